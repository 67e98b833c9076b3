//! What the programs read from a packet and its socket.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::{bpf_sk_fullsock, bpf_skb_load_bytes},
};
use egress_common::{
    address::{Address, from_v4, is_link_scoped, is_loopback},
    packet::{Extensions, Packet, PacketBytes, parse_into, walk_extensions, walk_options},
    verdict::Reason,
};

/// `SOCK_STREAM`, include/linux/net.h.
const SOCK_STREAM: u32 = 1;
/// `SOCK_RAW`.
pub const SOCK_RAW: u32 = 3;
/// `TCP_LISTEN`, include/net/tcp_states.h.
const TCP_LISTEN: u32 = 10;
/// `AF_INET`, include/linux/socket.h.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;

/// A packet's bytes from its network header.
#[derive(Clone, Copy)]
pub struct Skb {
    /// The context of the program.
    pub raw: *mut __sk_buff,
    /// Bytes before the network header: link-layer header at tc, none in a cgroup.
    pub base: u32,
}

impl PacketBytes for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        let at = self.base.wrapping_add(at);
        // SAFETY: the buffer has N bytes.
        let error =
            unsafe { bpf_skb_load_bytes(self.raw.cast(), at, bytes.as_mut_ptr().cast(), N as u32) };
        if error != 0 {
            return None;
        }
        // SAFETY: the helper filled all N bytes.
        Some(unsafe { bytes.assume_init() })
    }

    #[inline(always)]
    fn options(&self, header_bytes: u32) -> Option<Reason> {
        match packet_options(self.raw, self.base, header_bytes) {
            0 => None,
            number if number == Reason::SourceRouted as u32 => Some(Reason::SourceRouted),
            _ => Some(Reason::Malformed),
        }
    }

    #[inline(always)]
    fn extensions(&self, first: u8) -> Extensions {
        let packed = if matches!(first, 0 | 43 | 44 | 51 | 60) {
            packet_extensions(self.raw, self.base, u32::from(first))
        } else {
            pack(40, first, false, Reason::NoPolicy)
        };
        let refusal = (packed >> 16) as u8;
        Extensions {
            at: (packed >> 32) as u32,
            next: packed as u8,
            is_later_fragment: packed >> 8 & 1 == 1,
            refusal: if refusal == 0 {
                Reason::NoPolicy
            } else if refusal == Reason::SourceRouted as u8 {
                Reason::SourceRouted
            } else if refusal == Reason::TooManyHeaders as u8 {
                Reason::TooManyHeaders
            } else {
                Reason::Malformed
            },
        }
    }
}

/// A walk's result as one number, which is all that a global function can return.
#[inline(always)]
fn pack(at: u32, next: u8, is_later_fragment: bool, refusal: Reason) -> u64 {
    u64::from(at) << 32
        | u64::from(refusal as u8) << 16
        | u64::from(is_later_fragment) << 8
        | u64::from(next)
}

/// [`walk_options`], verified once for itself; returns a [`Reason`] as a number, 0 for none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_options(raw: *mut __sk_buff, base: u32, header_bytes: u32) -> u32 {
    match walk_options(&Skb { raw, base }, header_bytes) {
        Some(reason) => reason as u32,
        None => 0,
    }
}

/// [`walk_extensions`], verified once for itself; returns what [`pack`] makes of it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_extensions(raw: *mut __sk_buff, base: u32, first: u32) -> u64 {
    let walked = walk_extensions(&Skb { raw, base }, first as u8);
    pack(
        walked.at,
        walked.next,
        walked.is_later_fragment,
        walked.refusal,
    )
}

/// The full socket of a packet: for a packet that a listener answers, the listener.
#[inline(always)]
pub fn full_socket(raw: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*raw).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() { None } else { Some(sk) }
}

/// What a verdict needs to know of a socket.
#[derive(Clone, Copy)]
pub struct Socket {
    /// `SOCK_STREAM`.
    pub is_stream: bool,
    /// `SOCK_RAW`, as the kernel's own sockets are too.
    pub is_raw: bool,
    /// Whether it listens.
    pub listens: bool,
    /// Port of the peer that it is connected to, host byte order; 0 for none.
    pub peer_port: u16,
}

impl Socket {
    /// Reads a full socket.
    #[inline(always)]
    pub fn read(sk: *mut bpf_sock) -> Self {
        // SAFETY: `sk` is a full socket, which the verifier checks.
        let kind = unsafe { (*sk).type_ };
        // SAFETY: as above.
        let state = unsafe { (*sk).state };
        // SAFETY: as above.
        let peer_port = unsafe { (*sk).dst_port };
        Self {
            is_stream: kind == SOCK_STREAM,
            is_raw: kind == SOCK_RAW,
            listens: kind == SOCK_STREAM && state == TCP_LISTEN,
            peer_port: u16::from_be(peer_port),
        }
    }
}

/// Address of the peer that a socket is connected to, as the socket sees it: before any translation.
#[inline(always)]
pub fn peer_address(sk: *mut bpf_sock) -> Address {
    // SAFETY: `sk` is a full socket, which the verifier checks.
    let family = unsafe { (*sk).family };
    if family == AF_INET {
        // SAFETY: as above.
        let v4 = unsafe { (*sk).dst_ip4 };
        return from_v4(v4.to_ne_bytes());
    }
    // SAFETY: as above.
    let first = unsafe { (*sk).dst_ip6[0] };
    // SAFETY: as above.
    let second = unsafe { (*sk).dst_ip6[1] };
    // SAFETY: as above.
    let third = unsafe { (*sk).dst_ip6[2] };
    // SAFETY: as above.
    let last = unsafe { (*sk).dst_ip6[3] };
    address_of_words([first, second, third, last])
}

/// An address from four words as the kernel's contexts hold them: in network order.
#[inline(always)]
pub fn address_of_words(words: [u32; 4]) -> Address {
    let [first, second, third, last] = words;
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    let [i, j, k, l] = third.to_ne_bytes();
    let [m, n, o, p] = last.to_ne_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// What the headers of a packet say, in one number: what a global function
/// returns. To the verifier it is any number, so that the kinds of packets are
/// one path for the programs that use it.
#[derive(Clone, Copy)]
pub struct Header(u64);

impl Header {
    /// A packet whose headers were not read.
    pub const UNREAD: Self = Self((Reason::Malformed as u64) << 56);
}

const IS_V4: u64 = 1 << 48;
const HAS_PORTS: u64 = 1 << 49;
const IS_LATER_FRAGMENT: u64 = 1 << 50;
const IS_LINK_CONTROL: u64 = 1 << 51;
const IS_KERNEL_ANSWER: u64 = 1 << 52;
const OPENS_TCP: u64 = 1 << 53;
const IS_LINK_SCOPED: u64 = 1 << 54;

impl Header {
    /// Reads the headers.
    #[inline(always)]
    pub fn read(skb: &Skb) -> Self {
        Self(packet_header(skb.raw, skb.base))
    }

    /// The reason to deny the packet, if it cannot be read.
    #[inline(always)]
    pub fn refusal(self) -> Option<Reason> {
        reason_of((self.0 >> 56) as u8)
    }

    /// Destination port, host byte order; 0 without ports.
    #[inline(always)]
    pub fn dport(self) -> u16 {
        self.0 as u16
    }

    /// Source port, host byte order; 0 without ports.
    #[inline(always)]
    pub fn sport(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// IANA protocol number behind all extension headers.
    #[inline(always)]
    pub fn proto(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// The destination port as rules see it.
    #[inline(always)]
    pub fn rule_port(self) -> Option<u16> {
        if self.has_ports() {
            Some(self.dport())
        } else {
            None
        }
    }

    /// Whether the ports are there.
    #[inline(always)]
    pub fn has_ports(self) -> bool {
        self.0 & HAS_PORTS != 0
    }

    /// Whether this is a fragment other than the first.
    #[inline(always)]
    pub fn is_later_fragment(self) -> bool {
        self.0 & IS_LATER_FRAGMENT != 0
    }

    /// [`Packet::is_link_control`].
    #[inline(always)]
    pub fn is_link_control(self) -> bool {
        self.0 & IS_LINK_CONTROL != 0
    }

    /// [`Packet::is_kernel_answer`].
    #[inline(always)]
    pub fn is_kernel_answer(self) -> bool {
        self.0 & IS_KERNEL_ANSWER != 0
    }

    /// [`Packet::opens_tcp`].
    #[inline(always)]
    pub fn opens_tcp(self) -> bool {
        self.0 & OPENS_TCP != 0
    }

    /// Whether no router forwards packets to the destination.
    #[inline(always)]
    pub fn stays_on_link(self) -> bool {
        self.0 & IS_LINK_SCOPED != 0
    }

    /// Whether the destination is loopback.
    #[inline(always)]
    pub fn is_to_loopback(self, skb: &Skb) -> bool {
        packet_is_to_loopback(skb.raw, skb.base, self.pack()) != 0
    }

    /// Source address.
    #[inline(always)]
    pub fn saddr(self, skb: &Skb) -> Address {
        self.address(skb, 12, 8)
    }

    /// Destination address.
    #[inline(always)]
    pub fn daddr(self, skb: &Skb) -> Address {
        self.address(skb, 16, 24)
    }

    #[inline(always)]
    fn address(self, skb: &Skb, v4_at: u32, v6_at: u32) -> Address {
        let is_v4 = self.0 & IS_V4 != 0;
        let mut address = [0; 16];
        load_address(skb, is_v4, if is_v4 { v4_at } else { v6_at }, &mut address);
        address
    }

    /// The header as a number: what global functions take.
    #[inline(always)]
    pub fn pack(self) -> u64 {
        self.0
    }

    /// Undoes [`Header::pack`].
    #[inline(always)]
    pub fn unpack(word: u64) -> Self {
        Self(word)
    }
}

/// [`Header::is_to_loopback`], verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_is_to_loopback(raw: *mut __sk_buff, base: u32, header: u64) -> u32 {
    let skb = Skb { raw, base };
    u32::from(is_loopback(&Header::unpack(header).daddr(&skb)))
}

/// Loads an address; in a stack frame of its own. What was read once can be read again: this does not fail.
#[inline(never)]
fn load_address(skb: &Skb, is_v4: bool, at: u32, address: &mut Address) {
    if is_v4 {
        *address = from_v4(skb.load::<4>(at).unwrap_or_default());
    } else {
        *address = skb.load::<16>(at).unwrap_or_default();
    }
}

#[inline(always)]
fn reason_of(number: u8) -> Option<Reason> {
    if number == 0 {
        None
    } else if number == Reason::SourceRouted as u8 {
        Some(Reason::SourceRouted)
    } else if number == Reason::TooManyHeaders as u8 {
        Some(Reason::TooManyHeaders)
    } else {
        Some(Reason::Malformed)
    }
}

/// Reads the headers; returns what [`Header`] holds. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_header(raw: *mut __sk_buff, base: u32) -> u64 {
    let mut packet = Packet::EMPTY;
    if let Err(reason) = parse_into(&Skb { raw, base }, &mut packet) {
        return u64::from(reason as u8) << 56;
    }
    let flag = |is_set: bool, flag: u64| if is_set { flag } else { 0 };
    u64::from(packet.dport)
        | u64::from(packet.sport) << 16
        | u64::from(packet.proto) << 32
        | u64::from(packet.flags) << 40
        | flag(is_v4_packet(raw, base), IS_V4)
        | flag(packet.has_ports, HAS_PORTS)
        | flag(packet.is_later_fragment, IS_LATER_FRAGMENT)
        | flag(packet.is_link_control(), IS_LINK_CONTROL)
        | flag(packet.is_kernel_answer(), IS_KERNEL_ANSWER)
        | flag(packet.opens_tcp(), OPENS_TCP)
        | flag(is_link_scoped(&packet.daddr), IS_LINK_SCOPED)
}

#[inline(always)]
fn is_v4_packet(raw: *mut __sk_buff, base: u32) -> bool {
    let first = Skb { raw, base }.load::<1>(0);
    matches!(first, Some([byte]) if byte >> 4 == 4)
}

/// Where the payload of a packet lies.
#[derive(Clone, Copy)]
pub struct Payload {
    /// Where it begins, from the network header.
    pub at: u32,
    /// How long it is.
    pub bytes: u32,
}

impl Payload {
    /// As one number: what global functions take.
    #[inline(always)]
    pub fn pack(self) -> u64 {
        u64::from(self.at) << 32 | u64::from(self.bytes)
    }

    /// Undoes [`Payload::pack`].
    #[inline(always)]
    pub fn unpack(word: u64) -> Self {
        Self {
            at: (word >> 32) as u32,
            bytes: word as u32,
        }
    }

    /// Finds the payload of a packet that could be read.
    #[inline(always)]
    pub fn find(skb: &Skb) -> Self {
        Self::unpack(packet_payload(skb.raw, skb.base))
    }
}

/// Finds the payload; returns its place (upper half) and length. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_payload(raw: *mut __sk_buff, base: u32) -> u64 {
    let mut packet = Packet::EMPTY;
    if parse_into(&Skb { raw, base }, &mut packet).is_err() {
        return 0;
    }
    u64::from(packet.payload_at) << 32 | u64::from(packet.payload_bytes())
}

/// TCP: the sequence number of a packet that could be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_sequence(raw: *mut __sk_buff, base: u32) -> u32 {
    let mut packet = Packet::EMPTY;
    if parse_into(&Skb { raw, base }, &mut packet).is_err() {
        return 0;
    }
    packet.sequence
}
