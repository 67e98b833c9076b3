//! DNS queries that leave: noted, so that their answers can be told from forged ones.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::bpf_get_socket_cookie,
};
use egress_common::{
    address::{Address, is_loopback},
    dns::{DNS_PORT, HEADER_BYTES, QUESTION_STEPS, QuestionHasher, QuestionStep, is_query_header},
    maps::{Config, Query, QueryKey},
    packet::{Packet, PacketBytes},
    policy::protocol,
    tally::Tally,
};

use crate::{
    maps::{QUERIES, RESOLVERS},
    record,
    skb::{Skb, Socket, peer_address},
    time::now_ns,
};

/// Notes the query in a packet that leaves, if it is one to a trusted resolver.
///
/// The resolver is the socket's peer where it has one: address translation in
/// this namespace has already been done to the packet, and is undone on the
/// answer before the socket gets it. A socket without a peer that asks a
/// resolver on loopback may have its port translated (docker's 127.0.0.11).
#[inline(never)]
pub fn note(config: &Config, skb: &Skb, packet: &Packet, sk: *mut bpf_sock, socket: &Socket) {
    let is_udp = packet.proto == protocol::UDP;
    if !(is_udp || packet.proto == protocol::TCP) || packet.is_later_fragment || socket.is_raw {
        return;
    }
    let resolver = if socket.peer_port != 0 {
        if socket.peer_port != DNS_PORT {
            return;
        }
        peer_address(sk)
    } else {
        if packet.dport != DNS_PORT && !is_loopback(&packet.daddr) {
            return;
        }
        packet.daddr
    };
    if RESOLVERS.get_ptr(&resolver).is_none() {
        return;
    }
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(skb.raw.cast()) };
    store(config, skb, packet, resolver, cookie);
}

/// Reads and stores the query; `cookie` is whatever tells its sender from others.
#[inline(always)]
pub fn store(config: &Config, skb: &Skb, packet: &Packet, resolver: Address, cookie: u64) {
    let payload_bytes = packet.payload_bytes();
    let mut at = packet.payload_at;
    if packet.proto == protocol::TCP {
        if payload_bytes == 0 {
            return;
        }
        // RFC 1035 section 4.2.2: two bytes of length come first.
        let Some(length) = skb.load::<2>(at) else {
            return record::tally(Tally::QueryUnreadable);
        };
        if u32::from(u16::from_be_bytes(length)).wrapping_add(2) != payload_bytes {
            return record::tally(Tally::QueryUnreadable);
        }
        at = at.wrapping_add(2);
    }
    let Some(header) = skb.load::<12>(at) else {
        return record::tally(Tally::QueryUnreadable);
    };
    if !is_query_header(&header) {
        return record::tally(Tally::QueryUnreadable);
    }
    let begin = skb.base.wrapping_add(at).wrapping_add(HEADER_BYTES);
    let question = question_of(skb.raw, begin, config.seed);
    if question == 0 {
        return record::tally(Tally::QueryUnreadable);
    }
    let [id_high, id_low, ..] = header;
    let key = QueryKey {
        cookie,
        resolver,
        id: [id_high, id_low],
        port: packet.sport,
        proto: packet.proto,
        _pad: [0; 3],
    };
    let query = Query {
        question,
        sent_at_ns: now_ns(),
    };
    match QUERIES.insert(&key, &query, 0) {
        Ok(()) => record::tally(Tally::QueryNoted),
        Err(_) => record::tally(Tally::QueryTableFull),
    }
}

/// Hashes the question byte by byte from the packet: queries are rare, and no buffer here would be safe from a
/// softirq that sends another query on this CPU. Returns 0 for what is no question.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn question_of(raw: *mut __sk_buff, begin: u32, seed: u64) -> u64 {
    let skb = Skb { raw, base: begin };
    let mut hasher = QuestionHasher::new(seed);
    for at in 0..QUESTION_STEPS {
        let Some([byte]) = skb.load::<1>(at) else {
            return 0;
        };
        match hasher.step(byte) {
            QuestionStep::More => {}
            QuestionStep::Done => return hasher.hash(),
            QuestionStep::Malformed => return 0,
        }
    }
    0
}
