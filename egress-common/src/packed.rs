//! Layouts that travel as numbers.
//!
//! A global function in the kernel takes at most five numbers and returns one. Its arguments are packed here, and each
//! layout has a test that they come out again.

#![expect(
    clippy::cast_possible_truncation,
    reason = "fields are cut out of a word"
)]

use crate::{
    address::{Address, is_link_scoped, is_v4},
    decision::Decision,
    flow::{Flow, Origin, Remembered, Starter, Way},
    hash::RULE_BITS,
    packet::{Extensions, Packet, TCP_ACK, TCP_FIN, TCP_SYN},
    policy::{Binding, protocol},
    verdict::{Hook, Reason},
};

/// An address as two words, each as its eight bytes lie in memory. The kernel programs hold addresses so: the compiler
/// makes single bytes of arrays.
pub type AddressWords = [u64; 2];

/// An address as words.
#[inline(always)]
#[must_use]
pub const fn address_words(address: &Address) -> AddressWords {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    ]
}

/// Undoes [`address_words`].
#[inline(always)]
#[must_use]
pub const fn address_of(words: AddressWords) -> Address {
    let [first, second] = words;
    let [a, b, c, d, e, f, g, h] = first.to_ne_bytes();
    let [i, j, k, l, m, n, o, p] = second.to_ne_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The words of an IPv4 address, given as its four bytes lie in memory.
#[inline(always)]
#[must_use]
pub const fn v4_words(v4: u32) -> AddressWords {
    let [a, b, c, d] = v4.to_ne_bytes();
    [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])]
}

/// The headers of a packet as a number: ports (bits 0 to 31), protocol, flags of TCP or type of ICMP, facts, and from
/// bit 56 on the reason to deny the packet if it could not be read. To the verifier it is any number, so that all kinds
/// of packets are one path for the programs that use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header(u64);

const IS_V4: u64 = 1 << 48;
const HAS_PORTS: u64 = 1 << 49;
const IS_LATER_FRAGMENT: u64 = 1 << 50;
const IS_LINK_CONTROL: u64 = 1 << 51;
const IS_KERNEL_ANSWER: u64 = 1 << 52;
const OPENS_TCP: u64 = 1 << 53;
const IS_LINK_SCOPED: u64 = 1 << 54;
const IS_FROM_LOOPBACK: u64 = 1 << 55;

#[inline(always)]
const fn flag(is_set: bool, flag: u64) -> u64 {
    if is_set { flag } else { 0 }
}

impl Header {
    /// A packet whose headers were not read.
    pub const UNREAD: Self = Self::refused(Reason::Malformed);

    /// The headers of a packet that could be read.
    #[inline(always)]
    #[must_use]
    pub const fn new(packet: &Packet) -> Self {
        // An IPv6 packet with such addresses could not be read.
        let is_v4 = is_v4(&packet.saddr);
        let [_, _, _, _, _, _, _, _, _, _, _, _, first, _, _, _] = packet.saddr;
        Self(
            packet.dport as u64
                | (packet.sport as u64) << 16
                | (packet.proto as u64) << 32
                | (packet.flags as u64) << 40
                | flag(is_v4, IS_V4)
                | flag(packet.has_ports, HAS_PORTS)
                | flag(packet.is_later_fragment, IS_LATER_FRAGMENT)
                | flag(packet.is_link_control(), IS_LINK_CONTROL)
                | flag(packet.is_kernel_answer(), IS_KERNEL_ANSWER)
                | flag(packet.opens_tcp(), OPENS_TCP)
                | flag(is_link_scoped(&packet.daddr), IS_LINK_SCOPED)
                | flag(is_v4 && first == 127, IS_FROM_LOOPBACK),
        )
    }

    /// The same as [`Header::new`] for a whole TCP or UDP packet of a socket, as far as
    /// [`at_once`](crate::origin::at_once) asks.
    #[inline(always)]
    #[must_use]
    pub const fn plain(
        sport: u16,
        dport: u16,
        proto: u8,
        tcp_flags: u8,
        is_from_loopback: bool,
    ) -> Self {
        let flags = if proto == protocol::TCP { tcp_flags } else { 0 };
        Self(
            dport as u64
                | (sport as u64) << 16
                | (proto as u64) << 32
                | (flags as u64) << 40
                | HAS_PORTS
                | flag(
                    proto == protocol::TCP && flags & (TCP_SYN | TCP_ACK) == TCP_SYN,
                    OPENS_TCP,
                )
                | flag(is_from_loopback, IS_FROM_LOOPBACK),
        )
    }

    /// TCP: the flags.
    #[inline(always)]
    #[must_use]
    pub const fn tcp_flags(self) -> u8 {
        (self.0 >> 40) as u8
    }

    /// The packet opens a TCP flow, or answers one that does.
    #[inline(always)]
    #[must_use]
    pub const fn has_syn(self) -> bool {
        self.proto() == protocol::TCP && (self.0 >> 40) as u8 & TCP_SYN != 0
    }

    /// A packet that could not be read.
    #[inline(always)]
    #[must_use]
    pub const fn refused(reason: Reason) -> Self {
        Self((reason as u64) << 56)
    }

    /// The reason to deny the packet, if it cannot be read.
    #[inline(always)]
    #[must_use]
    pub const fn refusal(self) -> Option<Reason> {
        refusal_of((self.0 >> 56) as u8)
    }

    /// Destination port, host byte order; 0 without ports.
    #[inline(always)]
    #[must_use]
    pub const fn dport(self) -> u16 {
        self.0 as u16
    }

    /// Source port, host byte order; 0 without ports.
    #[inline(always)]
    #[must_use]
    pub const fn sport(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// IANA protocol number behind all extension headers.
    #[inline(always)]
    #[must_use]
    pub const fn proto(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// The destination port as rules see it.
    #[inline(always)]
    #[must_use]
    pub const fn rule_port(self) -> Option<u16> {
        if self.has_ports() {
            Some(self.dport())
        } else {
            None
        }
    }

    /// The ports are there.
    #[inline(always)]
    #[must_use]
    pub const fn has_ports(self) -> bool {
        self.0 & HAS_PORTS != 0
    }

    /// This is IPv4.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.0 & IS_V4 != 0
    }

    /// The source is in 127.0.0.0/8.
    #[inline(always)]
    #[must_use]
    pub const fn is_from_loopback(self) -> bool {
        self.0 & IS_FROM_LOOPBACK != 0
    }

    /// This is a fragment other than the first.
    #[inline(always)]
    #[must_use]
    pub const fn is_later_fragment(self) -> bool {
        self.0 & IS_LATER_FRAGMENT != 0
    }

    /// [`Packet::is_link_control`].
    #[inline(always)]
    #[must_use]
    pub const fn is_link_control(self) -> bool {
        self.0 & IS_LINK_CONTROL != 0
    }

    /// [`Packet::is_kernel_answer`].
    #[inline(always)]
    #[must_use]
    pub const fn is_kernel_answer(self) -> bool {
        self.0 & IS_KERNEL_ANSWER != 0
    }

    /// [`Packet::opens_tcp`].
    #[inline(always)]
    #[must_use]
    pub const fn opens_tcp(self) -> bool {
        self.0 & OPENS_TCP != 0
    }

    /// No router forwards packets to the destination.
    #[inline(always)]
    #[must_use]
    pub const fn stays_on_link(self) -> bool {
        self.0 & IS_LINK_SCOPED != 0
    }

    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.0
    }

    /// Undoes [`Header::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self(word)
    }
}

/// The first bytes of a packet, from its network header on, as they lie in memory. Nobody asks for bytes before
/// [`PlainBytes::has`] said that they are there.
pub trait PlainBytes {
    /// So many bytes are there.
    fn has(&self, bytes: usize) -> bool;
    /// The byte at a place.
    fn byte(&self, at: usize) -> u8;
    /// The two bytes at an even place.
    fn half(&self, at: usize) -> u16;
    /// The four bytes at a place that four divides.
    fn word(&self, at: usize) -> u32;
}

/// More fragments, and the fragment offset, in an IPv4 header (RFC 791 section 3.1), as they lie in it.
const FRAGMENT_BITS_BE: u16 = 0x3fff_u16.to_be();

impl Header {
    /// The headers of a TCP or UDP packet without options, extension headers and fragments, as [`Header::new`] gives
    /// them. `None` for every other one, and for those that the parser may refuse.
    #[inline(always)]
    #[must_use]
    pub fn of_plain(bytes: &impl PlainBytes) -> Option<Self> {
        if !bytes.has(28) {
            return None;
        }
        let first = bytes.byte(0);
        if first == 0x45 {
            let end = u32::from(u16::from_be(bytes.half(2)));
            if bytes.half(6) & FRAGMENT_BITS_BE != 0 || end == 0 {
                return None;
            }
            let flags = IS_V4
                | flag(
                    u32::from_be(bytes.word(16)) >> 8 == 0x00e0_0000,
                    IS_LINK_SCOPED,
                )
                | flag(bytes.byte(12) == 127, IS_FROM_LOOPBACK);
            return Self::of_plain_transport::<20>(bytes, bytes.byte(9), end, flags);
        }
        if first >> 4 != 6 || !bytes.has(48) {
            return None;
        }
        let length = u32::from(u16::from_be(bytes.half(4)));
        // Addresses that only look like IPv6 begin with zeros.
        let is_odd = bytes.word(8) | bytes.word(12) == 0 || bytes.word(24) | bytes.word(28) == 0;
        if length == 0 || is_odd {
            return None;
        }
        let first = u32::from_be(bytes.word(24));
        let is_link_scoped = first >> 22 == 0xfe80 >> 6 || first >> 16 == 0xff02;
        let flags = flag(is_link_scoped, IS_LINK_SCOPED);
        Self::of_plain_transport::<40>(bytes, bytes.byte(6), length.wrapping_add(40), flags)
    }

    #[inline(always)]
    fn of_plain_transport<const AT: usize>(
        bytes: &impl PlainBytes,
        proto: u8,
        end: u32,
        flags: u64,
    ) -> Option<Self> {
        let mut payload_at = AT as u32;
        let mut tcp_flags = 0;
        if proto == protocol::TCP {
            if !bytes.has(AT.wrapping_add(14)) {
                return None;
            }
            let header_bytes = u32::from(bytes.byte(AT.wrapping_add(12)) >> 4).wrapping_mul(4);
            if header_bytes < 20 {
                return None;
            }
            tcp_flags = bytes.byte(AT.wrapping_add(13));
            payload_at = payload_at.wrapping_add(header_bytes);
        } else if proto == protocol::UDP {
            payload_at = payload_at.wrapping_add(8);
        } else {
            return None;
        }
        if payload_at > end {
            return None;
        }
        let is_tcp = proto == protocol::TCP;
        let is_bare = is_tcp && tcp_flags & (TCP_SYN | TCP_FIN) == 0 && payload_at == end;
        let opens_tcp = is_tcp && tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        Some(Self(
            u64::from(u16::from_be(bytes.half(AT.wrapping_add(2))))
                | u64::from(u16::from_be(bytes.half(AT))) << 16
                | u64::from(proto) << 32
                | u64::from(tcp_flags) << 40
                | HAS_PORTS
                | flags
                | flag(is_bare, IS_KERNEL_ANSWER)
                | flag(opens_tcp, OPENS_TCP),
        ))
    }
}

/// A reason for which the parser refuses a packet; `None` for 0. An unknown number is malformed.
#[inline(always)]
const fn refusal_of(number: u8) -> Option<Reason> {
    const SOURCE_ROUTED: u8 = Reason::SourceRouted as u8;
    const TOO_MANY_HEADERS: u8 = Reason::TooManyHeaders as u8;
    match number {
        0 => None,
        SOURCE_ROUTED => Some(Reason::SourceRouted),
        TOO_MANY_HEADERS => Some(Reason::TooManyHeaders),
        _ => Some(Reason::Malformed),
    }
}

/// Where the payload of a packet lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Where it begins, from the network header.
    pub at: u32,
    /// How long it is.
    pub bytes: u32,
}

impl Payload {
    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        (self.at as u64) << 32 | self.bytes as u64
    }

    /// Finds the payload of a plain UDP packet ([`Header::of_plain`]), as the parser would; `None` leaves it to that.
    #[inline(always)]
    #[must_use]
    pub fn of_plain(bytes: &impl PlainBytes) -> Option<Self> {
        let header = Header::of_plain(bytes)?;
        if header.proto() != protocol::UDP {
            return None;
        }
        let (at, end) = if header.is_v4() {
            (28, u32::from(u16::from_be(bytes.half(2))))
        } else {
            let length = u32::from(u16::from_be(bytes.half(4)));
            (48, length.wrapping_add(40))
        };
        Some(Self {
            at,
            bytes: end.wrapping_sub(at),
        })
    }

    /// Undoes [`Payload::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self {
            at: (word >> 32) as u32,
            bytes: word as u32,
        }
    }
}

impl Extensions {
    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        (self.at as u64) << 32
            | (self.refusal as u64) << 16
            | (self.is_later_fragment as u64) << 8
            | self.next as u64
    }

    /// Undoes [`Extensions::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self {
            at: (word >> 32) as u32,
            next: word as u8,
            is_later_fragment: word >> 8 & 1 == 1,
            refusal: match refusal_of((word >> 16) as u8) {
                Some(reason) => reason,
                None => Reason::NoPolicy,
            },
        }
    }
}

const HAS_PORT: u64 = 1 << 16;
const IS_FRAGMENT: u64 = 1 << 17;
const IS_OUTSIDE: u64 = 1 << 18;
const IS_UNROUTED: u64 = 1 << 19;

/// Facts about a flow for a decision, beside its address and its origin: port (bits 0 to 15), flags, protocol (24 to
/// 31), the sender's network namespace (from 32 on).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts(u64);

impl Facts {
    /// The facts of a packet's flow.
    #[inline(always)]
    #[must_use]
    pub const fn of_packet(header: Header, way: Way, netns: u32) -> Self {
        Self::new(
            header.rule_port(),
            header.proto(),
            header.is_later_fragment(),
            way,
            netns,
        )
    }

    /// The same flow to another port.
    #[inline(always)]
    #[must_use]
    pub const fn at_port(self, port: u16) -> Self {
        Self(self.0 & !(HAS_PORT | 0xffff) | HAS_PORT | port as u64)
    }

    /// The facts of a flow.
    #[inline(always)]
    #[must_use]
    pub const fn of_flow(flow: &Flow, netns: u32) -> Self {
        Self::new(flow.dport, flow.proto, flow.is_fragment, flow.way, netns)
    }

    #[inline(always)]
    const fn new(port: Option<u16>, proto: u8, is_fragment: bool, way: Way, netns: u32) -> Self {
        let port = match port {
            Some(port) => HAS_PORT | port as u64,
            None => 0,
        };
        Self(
            port | flag(is_fragment, IS_FRAGMENT)
                | flag(way.is_outside, IS_OUTSIDE)
                | flag(way.is_unrouted, IS_UNROUTED)
                | (proto as u64) << 24
                | (netns as u64) << 32,
        )
    }

    /// The flow with this address and origin.
    #[inline(always)]
    #[must_use]
    pub const fn flow(self, daddr: Address, origin: Origin) -> Flow {
        Flow {
            daddr,
            dport: self.port(),
            proto: self.proto(),
            is_fragment: self.0 & IS_FRAGMENT != 0,
            way: Way {
                is_outside: self.0 & IS_OUTSIDE != 0,
                is_unrouted: self.0 & IS_UNROUTED != 0,
            },
            origin,
        }
    }

    /// The port, if there is one.
    #[inline(always)]
    #[must_use]
    pub const fn port(self) -> Option<u16> {
        if self.0 & HAS_PORT != 0 {
            Some(self.0 as u16)
        } else {
            None
        }
    }

    /// The protocol.
    #[inline(always)]
    #[must_use]
    pub const fn proto(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The sender's network namespace; 0 where it is not known.
    #[inline(always)]
    #[must_use]
    pub const fn netns(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.0
    }

    /// Undoes [`Facts::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self(word)
    }
}

impl Origin {
    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        (self.starter as u64) << RULE_BITS | self.rule
    }

    /// Undoes [`Origin::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self {
            starter: match word >> RULE_BITS {
                1 => Starter::Remote,
                2 => Starter::Preexisting,
                3 => Starter::Kernel,
                4 => Starter::Serving,
                5 => Starter::Resting,
                _ => Starter::Workload,
            },
            rule: word & RULE,
        }
    }
}

const RULE: u64 = (1 << RULE_BITS) - 1;

impl Decision {
    /// Reason and rule as a number; the verdict follows from the reason and the binding.
    #[inline(always)]
    #[must_use]
    pub const fn pack(&self) -> u64 {
        (self.reason as u64) << RULE_BITS | self.rule
    }

    /// The rule of a packed decision.
    #[inline(always)]
    #[must_use]
    pub const fn packed_rule(word: u64) -> u64 {
        word & RULE
    }

    /// The number of the reason of a packed decision.
    #[inline(always)]
    #[must_use]
    pub const fn packed_reason(word: u64) -> u8 {
        (word >> RULE_BITS) as u8
    }

    /// Undoes [`Decision::pack`] under the binding that it was made for. A number that is no reason denies.
    #[inline(always)]
    #[must_use]
    pub fn unpack(word: u64, binding: &Binding) -> Self {
        let reason = Reason::try_from(Self::packed_reason(word)).unwrap_or(Reason::NotConfigured);
        Self::new(reason, Self::packed_rule(word), binding)
    }
}

impl Binding {
    /// The binding as one number.
    #[inline(always)]
    #[must_use]
    pub const fn pack(&self) -> u64 {
        (self.flags as u64) << 56
            | (self.mode as u64) << 48
            | (self.policy_id as u64) << 32
            | self.scope_id as u64
    }

    /// Undoes [`Binding::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self {
            scope_id: word as u32,
            policy_id: (word >> 32) as u16,
            mode: (word >> 48) as u8,
            flags: (word >> 56) as u8,
        }
    }
}

/// Result of a look into a memory of flows: that of a socket, or a table.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecalledAs {
    /// Nothing.
    Nothing = 0,
    /// The remote spoke first.
    Started = 1,
    /// It was allowed, and nothing has changed since.
    Allowed = 2,
    /// It was allowed under the rule in an earlier generation.
    Earlier = 3,
    /// As [`RecalledAs::Allowed`]; its address is to be kept open.
    Unstamped = 4,
    /// The workload spoke first, and passed without a rule: nothing is granted, but the remote's answer is no call.
    Begun = 5,
}

/// [`RecalledAs`], with the rule that the flow is granted by; 0 where it counts for nothing. No enum with a payload for
/// the reason that [`Origin`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recalled {
    /// How.
    pub how: RecalledAs,
    /// The rule.
    pub rule: u64,
}

impl Recalled {
    /// Nothing.
    pub const NOTHING: Self = Self::new(RecalledAs::Nothing, 0);

    /// A result from its parts.
    #[inline(always)]
    #[must_use]
    pub const fn new(how: RecalledAs, rule: u64) -> Self {
        Self { how, rule }
    }

    /// The result for the memory of an allowed flow in this generation.
    #[inline(always)]
    #[must_use]
    pub const fn in_generation(
        remembered: Remembered,
        generation: u32,
        is_stamp_due: bool,
    ) -> Self {
        if remembered.rule == 0 {
            return Self::NOTHING;
        }
        let how = if remembered.generation != generation {
            RecalledAs::Earlier
        } else if is_stamp_due {
            RecalledAs::Unstamped
        } else {
            RecalledAs::Allowed
        };
        Self::new(how, remembered.rule)
    }

    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        (self.how as u64) << RULE_BITS | self.rule
    }

    /// Undoes [`Recalled::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        let how = match word >> RULE_BITS {
            1 => RecalledAs::Started,
            2 => RecalledAs::Allowed,
            3 => RecalledAs::Earlier,
            4 => RecalledAs::Unstamped,
            5 => RecalledAs::Begun,
            _ => RecalledAs::Nothing,
        };
        Self::new(how, word & RULE)
    }
}

/// The hook that reports a packet, and the place of its network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes before the network header, below 65,536.
    pub base: u32,
    /// A [`Hook`] as a number.
    pub hook: u8,
}

impl Place {
    /// Where a hook sees a packet.
    #[inline(always)]
    #[must_use]
    pub const fn new(hook: Hook, base: u32) -> Self {
        Self {
            base,
            hook: hook as u8,
        }
    }

    /// As a number.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u32 {
        self.base & 0xffff | (self.hook as u32) << 16
    }

    /// Undoes [`Place::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u32) -> Self {
        Self {
            base: word & 0xffff,
            hook: (word >> 16) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects, reason = "tests panic")]

    use core::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::address::from_v4;

    fn starter() -> impl Strategy<Value = Starter> {
        prop_oneof![
            Just(Starter::Workload),
            Just(Starter::Remote),
            Just(Starter::Preexisting),
            Just(Starter::Kernel),
            Just(Starter::Serving),
            Just(Starter::Resting),
        ]
    }

    fn how() -> impl Strategy<Value = RecalledAs> {
        prop_oneof![
            Just(RecalledAs::Nothing),
            Just(RecalledAs::Started),
            Just(RecalledAs::Allowed),
            Just(RecalledAs::Earlier),
            Just(RecalledAs::Unstamped),
            Just(RecalledAs::Begun),
        ]
    }

    impl PlainBytes for &[u8] {
        fn has(&self, bytes: usize) -> bool {
            bytes <= self.len()
        }

        fn byte(&self, at: usize) -> u8 {
            self[at]
        }

        fn half(&self, at: usize) -> u16 {
            u16::from_ne_bytes([self[at], self[at + 1]])
        }

        fn word(&self, at: usize) -> u32 {
            u32::from_ne_bytes([self[at], self[at + 1], self[at + 2], self[at + 3]])
        }
    }

    /// Random bytes, made more or less a packet by those fields that count.
    fn bytes_of_a_packet() -> impl Strategy<Value = std::vec::Vec<u8>> {
        let address = prop_oneof![
            Just([0; 16]),
            Just([0xff; 16]),
            Just([0xe0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4]),
            Just([127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4]),
            Just([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4]),
            Just([0xfe, 0xbf, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            Just([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            any::<[u8; 16]>(),
        ];
        let first = prop_oneof![Just(0x45_u8), Just(0x60), Just(0x46), any::<u8>()];
        let proto = prop_oneof![Just(6_u8), Just(17), Just(44), any::<u8>()];
        let length = prop_oneof![0_u16..80, any::<u16>()];
        let fragment = prop_oneof![Just(0_u16), Just(0x4000), Just(0x2000), any::<u16>()];
        (
            proptest::collection::vec(any::<u8>(), 0..90),
            (first, proto, length, fragment),
            (address.clone(), address),
            (0_u8..16, any::<u8>()),
        )
            .prop_map(|(mut bytes, numbers, addresses, (offset, flags))| {
                let (first, proto, length, fragment) = numbers;
                let is_v4 = first >> 4 == 4;
                let mut put = |at: usize, field: &[u8]| {
                    if let Some(slot) = bytes.get_mut(at..at + field.len()) {
                        slot.copy_from_slice(field);
                    }
                };
                put(0, &[first]);
                put(if is_v4 { 2 } else { 4 }, &length.to_be_bytes());
                let transport = if is_v4 {
                    put(6, &fragment.to_be_bytes());
                    put(9, &[proto]);
                    put(12, &addresses.0[..4]);
                    put(16, &addresses.1[..4]);
                    20
                } else {
                    put(6, &[proto]);
                    put(8, &addresses.0);
                    put(24, &addresses.1);
                    40
                };
                put(transport + 12, &[offset << 4, flags]);
                bytes
            })
    }

    /// Headers that are read without the parser are those of the parser, bit for bit.
    #[test]
    fn plain_headers_are_those_of_the_parser() {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 10_000,
            ..ProptestConfig::default()
        });
        let plain = [core::cell::Cell::new(0_u32), core::cell::Cell::new(0_u32)];
        let result = runner.run(&bytes_of_a_packet(), |bytes| {
            if let Some(header) = Header::of_plain(&bytes.as_slice()) {
                let packet = crate::packet::parse(bytes.as_slice());
                prop_assert_eq!(packet.as_ref().map(Header::new), Ok(header));
                if let (Some(payload), Ok(packet)) = (Payload::of_plain(&bytes.as_slice()), packet)
                {
                    prop_assert_eq!(payload.at, packet.payload_at);
                    prop_assert_eq!(payload.bytes, packet.payload_bytes());
                }
                let seen = &plain[usize::from(header.is_v4())];
                seen.set(seen.get() + 1);
            }
            Ok(())
        });
        result.unwrap();
        assert!(plain.iter().all(|seen| seen.get() > 200), "{plain:?}");
    }

    #[test]
    fn ordinary_packets_are_plain() {
        let mut bytes = std::vec![0_u8; 60];
        bytes[0] = 0x45;
        bytes[3] = 60;
        bytes[9] = 17;
        let is_plain = |bytes: &[u8]| Header::of_plain(&bytes).is_some();
        assert!(is_plain(&bytes));
        let payload = Payload { at: 28, bytes: 32 };
        assert_eq!(Payload::of_plain(&&bytes[..]), Some(payload));
        bytes[9] = 6;
        assert!(!is_plain(&bytes), "a TCP header of no bytes");
        bytes[32] = 0x50;
        assert!(is_plain(&bytes));
        bytes[6] = 0x20;
        assert!(!is_plain(&bytes), "a first fragment");
        bytes[..40].fill(0);
        bytes[0] = 0x60;
        bytes[5] = 20;
        bytes[6] = 6;
        (bytes[8], bytes[24]) = (0x20, 0x20);
        bytes[52] = 0x50;
        assert!(is_plain(&bytes));
        assert!(!is_plain(&bytes[..47]));
    }

    proptest! {
        #[test]
        fn addresses_come_back(address: [u8; 16], v4: [u8; 4]) {
            prop_assert_eq!(address_of(address_words(&address)), address);
            let IpAddr::V4(expected) = IpAddr::from(v4) else { unreachable!() };
            prop_assert_eq!(address_of(v4_words(u32::from_ne_bytes(v4))), from_v4(Ipv4Addr::octets(&expected)));
        }

        #[test]
        fn headers_come_back(
            saddr: [u8; 16], daddr: [u8; 16], sport: u16, dport: u16, proto: u8, flags: u8, hop_limit: u8,
            facts: [bool; 3],
        ) {
            let [has_ports, is_later_fragment, is_v4] = facts;
            let mut saddr = saddr;
            if is_v4 {
                saddr[..12].copy_from_slice(&from_v4([0; 4])[..12]);
            }
            let packet = Packet { saddr, daddr, sport, dport, proto, has_ports, is_later_fragment, flags, hop_limit, ..Packet::EMPTY };
            let header = Header::unpack(Header::new(&packet).pack());
            prop_assert_eq!((header.sport(), header.dport(), header.proto()), (sport, dport, proto));
            prop_assert_eq!((header.has_ports(), header.rule_port()), (has_ports, packet.rule_port()));
            prop_assert_eq!((header.is_later_fragment(), header.is_v4()), (is_later_fragment, is_v4));
            prop_assert_eq!(header.is_link_control(), packet.is_link_control());
            prop_assert_eq!(header.is_kernel_answer(), packet.is_kernel_answer());
            prop_assert_eq!(header.opens_tcp(), packet.opens_tcp());
            prop_assert_eq!(header.stays_on_link(), is_link_scoped(&daddr));
            prop_assert_eq!(header.is_from_loopback(), is_v4 && saddr[12] == 127);
            prop_assert_eq!(header.refusal(), None);
            prop_assert_eq!(header.has_syn(), proto == protocol::TCP && flags & TCP_SYN != 0);
            // The fast path's header of the same packet, as far as it goes.
            let whole = Packet { has_ports: true, is_later_fragment: false, ..packet };
            let plain = Header::plain(sport, dport, proto, flags, is_v4 && saddr[12] == 127);
            let header = Header::new(&whole);
            if proto == protocol::TCP || proto == protocol::UDP {
                let read = |header: Header| (
                    header.sport(), header.dport(), header.proto(), header.opens_tcp(), header.has_syn(), header.rule_port(),
                    header.is_from_loopback(), header.is_later_fragment(),
                );
                prop_assert_eq!(read(plain), read(header));
            }
        }

        #[test]
        fn payloads_and_places_come_back(at: u32, bytes: u32, base in 0_u32..0x1_0000, hook in 0_usize..Hook::ALL.len()) {
            let payload = Payload { at, bytes };
            prop_assert_eq!(Payload::unpack(payload.pack()), payload);
            let place = Place::new(Hook::ALL[hook], base);
            prop_assert_eq!(Place::unpack(place.pack()), place);
        }

        #[test]
        fn flows_come_back(
            daddr: [u8; 16], dport: Option<u16>, proto: u8, facts: [bool; 3], starter in starter(),
            rule in 0_u64..1 << RULE_BITS, netns: u32,
        ) {
            let [is_fragment, is_outside, is_unrouted] = facts;
            let flow = Flow {
                daddr, dport, proto, is_fragment, way: Way { is_outside, is_unrouted }, origin: Origin { starter, rule },
            };
            let facts = Facts::unpack(Facts::of_flow(&flow, netns).pack());
            prop_assert_eq!((facts.port(), facts.proto(), facts.netns()), (dport, proto, netns));
            prop_assert_eq!(facts.flow(daddr, Origin::unpack(flow.origin.pack())), flow);
        }

        #[test]
        fn what_a_table_recalls_comes_back(how in how(), rule in 0_u64..1 << RULE_BITS) {
            let recalled = Recalled::new(how, rule);
            prop_assert_eq!(Recalled::unpack(recalled.pack()), recalled);
        }

        #[test]
        fn bindings_come_back(scope_id: u32, policy_id: u16, mode: u8, flags: u8) {
            let binding = Binding { scope_id, policy_id, mode, flags };
            prop_assert_eq!(Binding::unpack(binding.pack()), binding);
        }

        #[test]
        fn extensions_come_back(at: u32, next: u8, is_later_fragment: bool, refusal in 0_usize..4) {
            let refusal = [Reason::NoPolicy, Reason::Malformed, Reason::SourceRouted, Reason::TooManyHeaders][refusal];
            let walked = Extensions { at, next, is_later_fragment, refusal };
            prop_assert_eq!(Extensions::unpack(walked.pack()), walked);
        }

        #[test]
        fn decisions_come_back(reason in 0_usize..Reason::ALL.len(), rule in 0_u64..1 << RULE_BITS, mode in 0_u8..2) {
            let binding = Binding { policy_id: 1, mode, ..Binding::default() };
            let decision = Decision::new(Reason::ALL[reason], rule, &binding);
            prop_assert_eq!(Decision::unpack(decision.pack(), &binding), decision);
        }
    }

    #[test]
    fn a_memory_counts_in_its_generation_and_is_stamped_in_time() {
        let remembered = Remembered {
            generation: 3,
            rule: 9,
        };
        let says = |generation, is_stamp_due| {
            Recalled::in_generation(remembered, generation, is_stamp_due)
        };
        assert_eq!(says(3, false), Recalled::new(RecalledAs::Allowed, 9));
        assert_eq!(says(3, true), Recalled::new(RecalledAs::Unstamped, 9));
        for due in [false, true] {
            assert_eq!(says(4, due), Recalled::new(RecalledAs::Earlier, 9));
            assert_eq!(
                Recalled::in_generation(Remembered::NOTHING, 0, due),
                Recalled::NOTHING
            );
        }
    }

    #[test]
    fn a_header_that_could_not_be_read_says_why_and_a_number_that_is_no_reason_denies() {
        for reason in [
            Reason::Malformed,
            Reason::SourceRouted,
            Reason::TooManyHeaders,
        ] {
            assert_eq!(
                Header::unpack(Header::refused(reason).pack()).refusal(),
                Some(reason)
            );
        }
        assert_eq!(Header::unpack(31 << 56).refusal(), Some(Reason::Malformed));
        let decision = Decision::unpack(
            31 << RULE_BITS,
            &Binding {
                policy_id: 1,
                ..Binding::default()
            },
        );
        assert!(!decision.reason.allows());
    }
}
