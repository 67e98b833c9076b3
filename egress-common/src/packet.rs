//! Headers of a packet: where it goes, and where its payload is.
//!
//! IPv4 (RFC 791), IPv6 (RFC 8200), and of the next protocol as much as a
//! verdict needs. A packet that cannot be read is an error, which the decision
//! turns into a denial.

use crate::{
    address::{Address, from_v4, is_multicast, is_v4},
    policy::protocol,
    verdict::Reason,
};

/// Source of a packet's bytes: the kernel's skb, or a slice on the host.
pub trait PacketBytes {
    /// The `N` bytes at `at`, counted from the network header; `None` where the packet ends before.
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]>;

    /// Reads both addresses, which stand one behind the other.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "an address has 4 or 16 bytes"
    )]
    fn addresses<const N: usize>(&self, at: u32, packet: &mut Packet) -> Option<()> {
        let at_end = |address: &mut Address, bytes: [u8; N]| {
            *address.last_chunk_mut::<N>()? = bytes;
            Some(())
        };
        at_end(&mut packet.saddr, self.load::<N>(at)?)?;
        at_end(
            &mut packet.daddr,
            self.load::<N>(at.wrapping_add(N as u32))?,
        )
    }

    /// [`walk_options`]; the kernel puts it into a function of its own.
    fn options(&self, header_bytes: u32) -> Option<Reason> {
        walk_options(self, header_bytes)
    }

    /// [`walk_extensions`]; the kernel puts it into a function of its own.
    fn extensions(&self, first: u8) -> Extensions {
        walk_extensions(self, first)
    }
}

impl PacketBytes for [u8] {
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let at = usize::try_from(at).ok()?;
        self.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}

/// Most IPv6 extension headers that are walked.
pub const EXTENSION_HEADERS: u32 = 8;

/// Most bytes of IPv4 options.
const IPV4_OPTIONS_BYTES: u32 = 40;

/// TCP flag bits, byte 13 of the header.
pub const TCP_FIN: u8 = 0x01;
/// Opens a flow.
pub const TCP_SYN: u8 = 0x02;
/// Resets it.
pub const TCP_RST: u8 = 0x04;
/// Carries an acknowledgement.
pub const TCP_ACK: u8 = 0x10;

/// IPv4 ICMP echo request.
const ICMP_ECHO: u8 = 8;
/// ICMPv6 echo request.
const ICMPV6_ECHO_REQUEST: u8 = 128;
/// ICMPv6 echo reply.
const ICMPV6_ECHO_REPLY: u8 = 129;

/// The headers of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub saddr: Address,
    /// Destination address.
    pub daddr: Address,
    /// Where the payload of the transport protocol begins, from the network header.
    pub payload_at: u32,
    /// Where the packet ends by its own length field, from the network header.
    pub end: u32,
    /// TCP: sequence number.
    pub sequence: u32,
    /// Source port, host byte order; 0 without ports.
    pub sport: u16,
    /// Destination port, host byte order; 0 without ports.
    pub dport: u16,
    /// IANA protocol number behind all extension headers.
    pub proto: u8,
    /// `sport` and `dport` are there.
    pub has_ports: bool,
    /// This is a fragment other than the first.
    pub is_later_fragment: bool,
    /// TCP: flags. ICMP: type.
    pub flags: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

impl Packet {
    /// No packet yet.
    pub const EMPTY: Self = Self {
        saddr: [0; 16],
        daddr: [0; 16],
        payload_at: 0,
        end: 0,
        sequence: 0,
        sport: 0,
        dport: 0,
        proto: 0,
        has_ports: false,
        is_later_fragment: false,
        flags: 0,
        hop_limit: 0,
    };

    /// The destination port as rules see it.
    #[inline(always)]
    #[must_use]
    pub const fn rule_port(&self) -> Option<u16> {
        if self.has_ports {
            Some(self.dport)
        } else {
            None
        }
    }

    /// Bytes of transport payload.
    #[inline(always)]
    #[must_use]
    pub const fn payload_bytes(&self) -> u32 {
        self.end.saturating_sub(self.payload_at)
    }

    /// The packet opens a TCP flow.
    #[inline(always)]
    #[must_use]
    pub const fn opens_tcp(&self) -> bool {
        self.proto == protocol::TCP && self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// This is link control that never leaves the link: neighbour
    /// discovery (RFC 4861 section 7.1: hop limit 255), multicast listener
    /// reports (RFC 3810 section 5) and IGMP (RFC 3376 section 4) with hop limit 1.
    #[inline(always)]
    #[must_use]
    pub const fn is_link_control(&self) -> bool {
        if self.is_later_fragment {
            return false;
        }
        match self.proto {
            protocol::ICMPV6 => match self.flags {
                133..=137 => self.hop_limit == 255,
                130..=132 | 143 => self.hop_limit == 1 && is_multicast(&self.daddr),
                _ => false,
            },
            protocol::IGMP => self.hop_limit == 1 && is_multicast(&self.daddr),
            _ => false,
        }
    }

    /// This is an answer by the kernel itself to a packet, if a kernel socket
    /// sends it: an ICMP error or reply, a TCP reset, or an acknowledgement
    /// without data.
    #[inline(always)]
    #[must_use]
    pub const fn is_kernel_answer(&self) -> bool {
        if self.is_later_fragment {
            return false;
        }
        match self.proto {
            // Echo reply, unreachable, redirect, time exceeded, parameter problem, timestamp reply.
            protocol::ICMP => matches!(self.flags, 0 | 3 | 5 | 11 | 12 | 14),
            // Errors are below 128 (RFC 4443 section 2.1).
            protocol::ICMPV6 => self.flags < 128 || self.flags == ICMPV6_ECHO_REPLY,
            protocol::TCP => self.flags & (TCP_SYN | TCP_FIN) == 0 && self.payload_bytes() == 0,
            _ => false,
        }
    }

    /// This is an echo request.
    #[must_use]
    pub const fn is_echo_request(&self) -> bool {
        (self.proto == protocol::ICMP && self.flags == ICMP_ECHO)
            || (self.proto == protocol::ICMPV6 && self.flags == ICMPV6_ECHO_REQUEST)
    }
}

/// Reads the headers of an IPv4 or IPv6 packet.
///
/// # Errors
///
/// The reason to deny: [`Reason::Malformed`], [`Reason::SourceRouted`] or [`Reason::TooManyHeaders`].
pub fn parse<B: PacketBytes + ?Sized>(bytes: &B) -> Result<Packet, Reason> {
    let mut packet = Packet::EMPTY;
    parse_into(bytes, &mut packet)?;
    Ok(packet)
}

/// [`parse`] in place: the kernel's stack is small. `packet` is [`Packet::EMPTY`] at first.
///
/// # Errors
///
/// As [`parse`].
#[inline(always)]
pub fn parse_into<B: PacketBytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Result<(), Reason> {
    let [first] = bytes.load::<1>(0).ok_or(Reason::Malformed)?;
    match first >> 4 {
        4 => parse_v4(bytes, packet)?,
        6 => parse_v6(bytes, packet)?,
        _ => return Err(Reason::Malformed),
    }
    parse_transport(bytes, packet)
}

#[inline(always)]
fn parse_v4<B: PacketBytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Result<(), Reason> {
    let [
        first,
        _,
        length_high,
        length_low,
        _,
        _,
        fragment_high,
        fragment_low,
        hop_limit,
        proto,
    ] = bytes.load::<10>(0).ok_or(Reason::Malformed)?;
    packet.saddr = from_v4([0; 4]);
    packet.daddr = from_v4([0; 4]);
    bytes.addresses::<4>(12, packet).ok_or(Reason::Malformed)?;
    let header_bytes = u32::from(first & 0xf).wrapping_mul(4);
    let length = u32::from(u16::from_be_bytes([length_high, length_low]));
    // A total length of zero is a GSO packet above 64 KiB (BIG TCP): its end is not known here.
    let end = if length == 0 { u32::MAX } else { length };
    if header_bytes < 20 || end < header_bytes {
        return Err(Reason::Malformed);
    }
    if header_bytes > 20
        && let Some(reason) = bytes.options(header_bytes)
    {
        return Err(reason);
    }
    packet.payload_at = header_bytes;
    packet.end = end;
    packet.proto = proto;
    packet.is_later_fragment = u16::from_be_bytes([fragment_high, fragment_low]) & 0x1fff != 0;
    packet.hop_limit = hop_limit;
    Ok(())
}

/// Why IPv4 options are to be denied, if they are: loose and strict source
/// routes (RFC 791 section 3.1), wherever they stand, and lengths that lie.
#[inline(always)]
pub fn walk_options<B: PacketBytes + ?Sized>(bytes: &B, header_bytes: u32) -> Option<Reason> {
    let mut at = 20_u32;
    for _ in 0..IPV4_OPTIONS_BYTES {
        if at >= header_bytes {
            return None;
        }
        let Some([kind]) = bytes.load::<1>(at) else {
            return Some(Reason::Malformed);
        };
        match kind {
            0 => return None,
            1 => at = at.wrapping_add(1),
            131 | 137 => return Some(Reason::SourceRouted),
            _ => {
                let Some([length]) = bytes.load::<1>(at.wrapping_add(1)) else {
                    return Some(Reason::Malformed);
                };
                at = at.wrapping_add(u32::from(length));
                if length < 2 || at > header_bytes {
                    return Some(Reason::Malformed);
                }
            }
        }
    }
    None
}

/// Where IPv6 extension headers lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// Where the header behind them begins, from the network header.
    pub at: u32,
    /// Its protocol.
    pub next: u8,
    /// This is a fragment other than the first.
    pub is_later_fragment: bool,
    /// Why the packet is to be denied; [`Reason::NoPolicy`] for no reason.
    pub refusal: Reason,
}

impl Extensions {
    const fn refused(refusal: Reason) -> Self {
        Self {
            at: 0,
            next: 0,
            is_later_fragment: false,
            refusal,
        }
    }
}

/// Walks extension headers: hop-by-hop 0, routing 43, fragment 44, authentication 51, destination options 60 (RFC
/// 7045).
#[inline(always)]
pub fn walk_extensions<B: PacketBytes + ?Sized>(bytes: &B, first: u8) -> Extensions {
    let mut next = first;
    let mut at = 40_u32;
    for walked in 0..=EXTENSION_HEADERS {
        if !matches!(next, 0 | 43 | 44 | 51 | 60) {
            return Extensions {
                at,
                next,
                is_later_fragment: false,
                refusal: Reason::NoPolicy,
            };
        }
        if walked == EXTENSION_HEADERS {
            break;
        }
        let Some([after, length, third, fourth]) = bytes.load::<4>(at) else {
            return Extensions::refused(Reason::Malformed);
        };
        // With segments left the packet's real destination is inside the routing header; without, the kernel took the one in
        // front from there, not from the call that named a destination (`fl6_update_dst`, net/ipv6/exthdrs.c).
        if next == 43 {
            return Extensions::refused(Reason::SourceRouted);
        }
        if next == 44 && u16::from_be_bytes([third, fourth]) & 0xfff8 != 0 {
            return Extensions {
                at: at.wrapping_add(8),
                next: after,
                is_later_fragment: true,
                refusal: Reason::NoPolicy,
            };
        }
        let length = u32::from(length);
        at = at.wrapping_add(match next {
            44 => 8,
            51 => length.wrapping_add(2).wrapping_mul(4),
            _ => length.wrapping_add(1).wrapping_mul(8),
        });
        next = after;
    }
    Extensions::refused(Reason::TooManyHeaders)
}

#[inline(always)]
fn parse_v6<B: PacketBytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Result<(), Reason> {
    let [_, _, _, _, length_high, length_low, next, hop_limit] =
        bytes.load::<8>(0).ok_or(Reason::Malformed)?;
    bytes.addresses::<16>(8, packet).ok_or(Reason::Malformed)?;
    // IPv4-mapped addresses never are on a wire (RFC 4291 section 2.5.5.2), and rules would take them for IPv4.
    if is_v4(&packet.saddr) || is_v4(&packet.daddr) {
        return Err(Reason::Malformed);
    }
    let length = u32::from(u16::from_be_bytes([length_high, length_low]));
    // A payload length of zero is a jumbogram (RFC 2675) or BIG TCP: its end is not known here.
    packet.end = if length == 0 {
        u32::MAX
    } else {
        length.wrapping_add(40)
    };
    let extensions = bytes.extensions(next);
    if !matches!(extensions.refusal, Reason::NoPolicy) {
        return Err(extensions.refusal);
    }
    packet.payload_at = extensions.at;
    packet.proto = extensions.next;
    packet.is_later_fragment = extensions.is_later_fragment;
    packet.hop_limit = hop_limit;
    Ok(())
}

#[inline(always)]
fn parse_transport<B: PacketBytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Result<(), Reason> {
    if packet.is_later_fragment {
        return Ok(());
    }
    let at = packet.payload_at;
    match packet.proto {
        protocol::TCP => {
            let [s0, s1, d0, d1, q0, q1, q2, q3, _, _, _, _, offset, flags] =
                bytes.load::<14>(at).ok_or(Reason::Malformed)?;
            packet.sport = u16::from_be_bytes([s0, s1]);
            packet.dport = u16::from_be_bytes([d0, d1]);
            packet.sequence = u32::from_be_bytes([q0, q1, q2, q3]);
            packet.has_ports = true;
            packet.flags = flags;
            let header_bytes = u32::from(offset >> 4).wrapping_mul(4);
            if header_bytes < 20 {
                return Err(Reason::Malformed);
            }
            packet.payload_at = at.wrapping_add(header_bytes);
        }
        protocol::UDP | protocol::UDPLITE => {
            let [s0, s1, d0, d1, _, _, _, _] = bytes.load::<8>(at).ok_or(Reason::Malformed)?;
            packet.sport = u16::from_be_bytes([s0, s1]);
            packet.dport = u16::from_be_bytes([d0, d1]);
            packet.has_ports = true;
            packet.payload_at = at.wrapping_add(8);
        }
        protocol::SCTP | protocol::DCCP => {
            let [s0, s1, d0, d1] = bytes.load::<4>(at).ok_or(Reason::Malformed)?;
            packet.sport = u16::from_be_bytes([s0, s1]);
            packet.dport = u16::from_be_bytes([d0, d1]);
            packet.has_ports = true;
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let [kind] = bytes.load::<1>(at).ok_or(Reason::Malformed)?;
            packet.flags = kind;
        }
        _ => {}
    }
    if packet.payload_at > packet.end {
        return Err(Reason::Malformed);
    }
    Ok(())
}
