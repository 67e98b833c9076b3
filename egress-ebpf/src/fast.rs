//! The packets that need no decision: almost all of them.
//!
//! What is read here is read again on the long way (`egress.rs`), which says why. This is the same judgement on plain
//! packets of connected sockets, without a helper call for each header field; everything else takes the long way.

use aya_ebpf::bindings::__sk_buff;
use egress_common::{
    address::{Address, from_v4},
    dns::DNS_PORT,
    flow::{Flow, Origin, ROLE_PASSIVE, is_stamp_due},
    packet::TCP_SYN,
    policy::protocol,
    verdict::Reason,
};

use crate::{
    maps::SOCKETS,
    skb::{Skb, Socket, full_socket},
    source::is_on_loopback,
    time::stamp_now,
    workload,
};

/// Take the long way.
pub const UNKNOWN: u32 = u32::MAX;

/// Bytes of an IPv4 header without options, and of an IPv6 header.
const V4_BYTES: usize = 20;
const V6_BYTES: usize = 40;
/// Bytes of a TCP or UDP header that are read: ports, and TCP's flags at 13.
const L4_BYTES: usize = 14;
/// More fragments, and the fragment offset, in an IPv4 header (RFC 791 section 3.1).
const FRAGMENT_BITS: u16 = 0x3fff;

/// What a plain packet says.
#[derive(Clone, Copy)]
struct Plain {
    /// Whether the source is in 127.0.0.0/8.
    is_from_loopback: bool,
    daddr: Address,
    proto: u8,
    sport: u16,
    dport: u16,
    tcp_flags: u8,
}

/// Reads `N` bytes at `at`, which the caller has compared with the packet's end.
#[inline(always)]
fn bytes<const N: usize>(data: usize, at: usize) -> [u8; N] {
    // SAFETY: the caller's comparison, which the verifier checks; byte arrays have no alignment.
    unsafe { *((data + at) as *const [u8; N]) }
}

/// Reads a packet without options, extension headers and fragments, out of the linear part of the buffer.
#[inline(always)]
fn plain(raw: *mut __sk_buff) -> Option<Plain> {
    // SAFETY: the context is valid while the program runs.
    let data = unsafe { (*raw).data } as usize;
    // SAFETY: as above.
    let end = unsafe { (*raw).data_end } as usize;
    if data + V4_BYTES + L4_BYTES > end {
        return None;
    }
    let [first] = bytes::<1>(data, 0);
    if first == 0x45 {
        if u16::from_be_bytes(bytes(data, 6)) & FRAGMENT_BITS != 0 {
            return None;
        }
        let [proto] = bytes::<1>(data, 9);
        return Some(Plain {
            is_from_loopback: bytes::<1>(data, 12)[0] == 127,
            daddr: from_v4(bytes(data, 16)),
            proto,
            sport: u16::from_be_bytes(bytes(data, V4_BYTES)),
            dport: u16::from_be_bytes(bytes(data, V4_BYTES + 2)),
            tcp_flags: bytes::<1>(data, V4_BYTES + 13)[0],
        });
    }
    if first >> 4 != 6 || data + V6_BYTES + L4_BYTES > end {
        return None;
    }
    let [proto] = bytes::<1>(data, 6);
    Some(Plain {
        is_from_loopback: false,
        daddr: bytes(data, 24),
        proto,
        sport: u16::from_be_bytes(bytes(data, V6_BYTES)),
        dport: u16::from_be_bytes(bytes(data, V6_BYTES + 2)),
        tcp_flags: bytes::<1>(data, V6_BYTES + 13)[0],
    })
}

/// The reason to pass a plain packet at once, as a number, or [`UNKNOWN`]. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fast_reason(raw: *mut __sk_buff) -> u32 {
    let Some(config) = workload::config() else {
        return UNKNOWN;
    };
    let Some(sk) = full_socket(raw) else {
        return UNKNOWN;
    };
    let socket = Socket::read(sk);
    // Queries are noted, and packets from port 53 looked at, on the long way.
    if socket.is_raw || socket.listens || socket.peer_port == 0 || socket.peer_port == DNS_PORT {
        return UNKNOWN;
    }
    let Some(packet) = plain(raw) else {
        return UNKNOWN;
    };
    let is_tcp = packet.proto == protocol::TCP && socket.is_stream;
    if (!is_tcp && packet.proto != protocol::UDP)
        || packet.sport == DNS_PORT
        || (is_tcp && packet.tcp_flags & TCP_SYN != 0)
    {
        return UNKNOWN;
    }
    if packet.is_from_loopback && is_on_loopback(&Skb { raw, base: 0 }) {
        return Reason::Loopback as u32;
    }
    let Some(state) = SOCKETS.get_or_create(sk) else {
        return UNKNOWN;
    };
    // SAFETY: the storage lives as long as the socket; as on the long way, other CPUs may change it.
    let state = unsafe { *state };
    if is_tcp && state.role == ROLE_PASSIVE {
        return Reason::Reply as u32;
    }
    let flow = Flow {
        daddr: packet.daddr,
        dport: Some(packet.dport),
        proto: packet.proto,
        is_fragment: false,
        origin: Origin::Workload,
    };
    if state.tag == 0
        || state.tag != flow.tag(workload::seed(), config.generation, state.rule)
        || is_stamp_due(state.stamp, stamp_now())
    {
        return UNKNOWN;
    }
    Reason::EstablishedFlow as u32
}
