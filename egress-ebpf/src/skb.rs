//! What the programs read from a packet and its socket.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::{bpf_sk_fullsock, bpf_skb_load_bytes},
};
use egress_common::{
    address::{Address, from_v4},
    packet::{Extensions, Packet, PacketBytes, parse_into, walk_extensions, walk_options},
    verdict::Reason,
};

/// `SOCK_STREAM`, include/linux/net.h.
const SOCK_STREAM: u32 = 1;
/// `SOCK_RAW`.
const SOCK_RAW: u32 = 3;
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

/// Reads the headers.
///
/// # Errors
///
/// The reason to deny, as `egress_common::packet::parse`.
#[inline(always)]
pub fn read_packet(skb: &Skb) -> Result<Packet, Reason> {
    let mut packet = Packet::EMPTY;
    match fill_packet(skb, &mut packet) {
        Some(reason) => Err(reason),
        None => Ok(packet),
    }
}

/// Reads the headers in a stack frame of its own. (A `Result` with a packet in it would have type information that
/// the kernel refuses: its tag lies behind the packet.)
#[inline(never)]
fn fill_packet(skb: &Skb, packet: &mut Packet) -> Option<Reason> {
    parse_into(skb, packet).err()
}
