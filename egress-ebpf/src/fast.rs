//! The packets that need no decision: almost all of them.
//!
//! Plain packets of sockets that remember their flow are read here without a helper call for each header field, and
//! [`at_once`] says whether they pass; everything else takes the long way (`egress.rs`), which runs the same function
//! again and more.

use aya_ebpf::bindings::__sk_buff;
use egress_common::{
    flow::Peer,
    origin::{Do, Known, Socket, at_once},
    packed::{AddressWords, Header, v4_words},
    policy::protocol,
    verdict::Reason,
};

use crate::{
    resolver::{may_be_at_one, may_be_inside},
    skb::is_on_loopback,
    state::State,
    workload,
};

/// Bytes of an IPv4 header without options, and of an IPv6 header.
const V4_BYTES: usize = 20;
const V6_BYTES: usize = 40;
/// Bytes of a TCP or UDP header that are read: ports, and TCP's flags at 13.
const L4_BYTES: usize = 14;
/// More fragments, and the fragment offset, in an IPv4 header (RFC 791 section 3.1), as they lie in it.
const FRAGMENT_BITS_BE: u16 = 0x3fff_u16.to_be();

/// Facts of a plain packet.
#[derive(Clone, Copy)]
struct Plain {
    /// True if the source is in 127.0.0.0/8.
    is_from_loopback: bool,
    destination: AddressWords,
    proto: u8,
    sport_be: u16,
    dport_be: u16,
    tcp_flags: u8,
}

/// Reads a number at `at`, which the caller has compared with the packet's end.
#[inline(always)]
fn read<T: Copy>(data: usize, at: usize) -> T {
    // SAFETY: the caller's comparison, which the verifier checks. A packet's network header is aligned to four bytes
    // where the machine needs that, and no field is read that is wider.
    unsafe { *((data + at) as *const T) }
}

/// Two words of an IPv6 packet as one.
#[inline(always)]
fn read_half(data: usize, at: usize) -> u64 {
    let (low, high): (u32, u32) = (read(data, at), read(data, at + 4));
    u64::from(low) | u64::from(high) << 32
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
    let first: u8 = read(data, 0);
    if first == 0x45 {
        if read::<u16>(data, 6) & FRAGMENT_BITS_BE != 0 {
            return None;
        }
        return Some(Plain {
            is_from_loopback: read::<u8>(data, 12) == 127,
            destination: v4_words(read(data, 16)),
            proto: read(data, 9),
            sport_be: read(data, V4_BYTES),
            dport_be: read(data, V4_BYTES + 2),
            tcp_flags: read(data, V4_BYTES + 13),
        });
    }
    if first >> 4 != 6 || data + V6_BYTES + L4_BYTES > end {
        return None;
    }
    let destination = [read_half(data, 24), read_half(data, 32)];
    let [upper, _] = destination;
    // Addresses that only look like IPv6 (`::ffff:0:0/96`) are refused on the long way.
    if upper == 0 {
        return None;
    }
    Some(Plain {
        is_from_loopback: false,
        destination,
        proto: read(data, 6),
        sport_be: read(data, V6_BYTES),
        dport_be: read(data, V6_BYTES + 2),
        tcp_flags: read(data, V6_BYTES + 13),
    })
}

/// The reason to pass a plain packet at once.
#[inline(always)]
pub fn reason(raw: *mut __sk_buff) -> Option<Reason> {
    let packet = plain(raw)?;
    if packet.proto != protocol::TCP && packet.proto != protocol::UDP {
        return None;
    }
    let header = Header::plain(
        u16::from_be(packet.sport_be),
        u16::from_be(packet.dport_be),
        packet.proto,
        packet.tcp_flags,
        packet.is_from_loopback,
    );
    // A packet that opens a flow, or answers one that does.
    if header.has_syn() {
        return None;
    }
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*raw).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is not null; every kind of socket has the field.
    let peer_port = u16::from_be(unsafe { (*sk).dst_port });
    // Queries are noted, and who answers in a resolver's name is looked at. A query's destination may be translated: then
    // its socket asked a resolver's port, or a stub at a loopback address.
    if may_be_at_one([header.sport(), header.dport(), peer_port]) {
        return None;
    }
    let is_on_loopback = is_on_loopback(raw);
    if is_on_loopback && (peer_port == 0 || may_be_inside()) {
        return None;
    }
    let config = workload::config()?;
    let known = if is_on_loopback {
        Known::NOTHING
    } else {
        let peer = Peer::new(packet.destination, header.dport());
        let state = State::get(sk)?;
        Known {
            role: state.role(),
            serves: false,
            recalled: state.recall(peer, packet.proto, config.generation),
        }
    };
    let socket = Socket::by_memory(known.role, peer_port);
    let step = at_once(&socket, &known, header, is_on_loopback)?;
    if matches!(step.to, Do::Pass) {
        Some(step.reason)
    } else {
        None
    }
}
