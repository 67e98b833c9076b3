//! What the programs read from a packet and its socket.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::{bpf_sk_fullsock, bpf_skb_load_bytes},
};
use egress_common::{
    address::{Address, from_v4},
    packet::{self, Packet, PacketBytes},
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
        let error = unsafe {
            bpf_skb_load_bytes(self.raw.cast(), at, bytes.as_mut_ptr().cast(), N as u32)
        };
        if error != 0 {
            return None;
        }
        // SAFETY: the helper filled all N bytes.
        Some(unsafe { bytes.assume_init() })
    }
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

/// Reads the headers, in a stack frame of its own.
///
/// # Errors
///
/// The reason to deny, as [`packet::parse`].
#[inline(never)]
pub fn read_packet(skb: &Skb) -> Result<Packet, Reason> {
    packet::parse(skb)
}
