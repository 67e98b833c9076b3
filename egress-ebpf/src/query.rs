//! DNS queries that leave: noted, so that their answers can be told from forged ones.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_get_socket_cookie};
use egress_common::{
    address::Address,
    dns::{DNS_PORT, HEADER_BYTES, QUESTION_STEPS, QuestionHasher, QuestionStep, is_query_header},
    maps::{Config, Query, QueryKey},
    packet::PacketBytes,
    policy::protocol,
    tally::Tally,
};

use crate::{
    maps::{QUERIES, RESOLVERS},
    record,
    skb::{Header, Payload, Skb, Socket, full_socket, peer_address},
    time::now_ns,
    workload,
};

/// Whether a packet that leaves may hold a query: a first look, for every packet.
#[inline(always)]
pub fn may_be_one(header: Header, skb: &Skb, socket: &Socket) -> bool {
    if socket.is_raw || header.is_later_fragment() {
        return false;
    }
    if header.proto() != protocol::UDP && header.proto() != protocol::TCP {
        return false;
    }
    if socket.peer_port != 0 {
        return socket.peer_port == DNS_PORT;
    }
    header.dport() == DNS_PORT || header.is_to_loopback(skb)
}

/// Notes the query in a packet that leaves, if it is one to a trusted resolver.
///
/// The resolver is the socket's peer where it has one: address translation in
/// this namespace has already been done to the packet, and is undone on the
/// answer before the socket gets it. A socket without a peer that asks a
/// resolver on loopback may have its port translated (docker's 127.0.0.11).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn note_query(raw: *mut __sk_buff, header: u64, payload: u64) -> u32 {
    let skb = Skb { raw, base: 0 };
    let Some(config) = workload::config() else {
        return 0;
    };
    let header = Header::unpack(header);
    let Some(sk) = full_socket(raw) else {
        return 0;
    };
    let resolver = if Socket::read(sk).peer_port != 0 {
        peer_address(sk)
    } else {
        header.daddr(&skb)
    };
    if RESOLVERS.get_ptr(&resolver).is_none() {
        return 0;
    }
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(raw.cast()) };
    store(
        config,
        &skb,
        header,
        Payload::unpack(payload),
        resolver,
        cookie,
    );
    0
}

/// Reads and stores the query; `cookie` is whatever tells its sender from others.
#[inline(always)]
pub fn store(
    config: &Config,
    skb: &Skb,
    header: Header,
    payload: Payload,
    resolver: Address,
    cookie: u64,
) {
    let Payload { mut at, bytes } = payload;
    if header.proto() == protocol::TCP {
        if bytes == 0 {
            return;
        }
        // RFC 1035 section 4.2.2: two bytes of length come first.
        let Some(length) = skb.load::<2>(at) else {
            return record::tally(Tally::QueryUnreadable);
        };
        if u32::from(u16::from_be_bytes(length)).wrapping_add(2) != bytes {
            return record::tally(Tally::QueryUnreadable);
        }
        at = at.wrapping_add(2);
    }
    let Some(head) = skb.load::<12>(at) else {
        return record::tally(Tally::QueryUnreadable);
    };
    if !is_query_header(&head) {
        return record::tally(Tally::QueryUnreadable);
    }
    let begin = skb.base.wrapping_add(at).wrapping_add(HEADER_BYTES);
    let question = question_of(skb.raw, begin, config.seed);
    if question == 0 {
        return record::tally(Tally::QueryUnreadable);
    }
    let [id_high, id_low, ..] = head;
    let key = QueryKey {
        cookie,
        resolver,
        id: [id_high, id_low],
        port: header.sport(),
        proto: header.proto(),
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
