//! DNS queries that leave: noted, so that their answers can be told from forged ones; and judged by their name, where
//! the policy lets only queries for allowed names through.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_get_socket_cookie};
use egress_common::{
    address::Address,
    dns::{
        DNS_PORT, HEADER_BYTES, MESSAGE_BYTES, NameStep, QUESTION_STEPS, QuestionHasher,
        QuestionStep, is_query_header,
    },
    event::DnsCopy,
    maps::{Config, Query, QueryKey},
    packet::PacketBytes,
    policy::{Binding, SEARCH_POLICY, protocol},
    tally::Tally,
};

use crate::{
    alias::{alias_name_read, dns_recall_alias},
    dns::{ALLOWED, UNRULED, dns_name, dns_rules, load_message, send_part},
    maps::{QUERIES, RESOLVERS},
    netns, record,
    scratch::{QUERY, SETS, Scratch},
    skb::{
        Header, Payload, ReadHeader as _, ReadSocket as _, Skb, Socket, full_socket,
        is_on_loopback, peer_address,
    },
    time::now_ns,
    workload,
};

/// Whether a packet that leaves may hold a query: a first look, for every packet.
#[inline(always)]
pub fn may_be_one(header: Header, skb: &Skb, socket: &Socket) -> bool {
    if header.is_later_fragment() {
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
    let Some(resolver) = resolver_of(&skb, header, false) else {
        return 0;
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

/// Who is asked: the socket's peer, or the destination of a packet without a peer or a socket.
#[inline(always)]
fn resolver_of(skb: &Skb, header: Header, is_frame: bool) -> Option<Address> {
    if is_frame {
        return Some(header.daddr(skb));
    }
    let sk = full_socket(skb.raw)?;
    let socket = Socket::read(sk);
    Some(if socket.peer_port != 0 && !socket.is_raw {
        peer_address(sk)
    } else {
        header.daddr(skb)
    })
}

/// What [`query_refused`] returns for a query that the policy does not let through.
const REFUSED: u32 = 1;

/// Whether a packet leaves for the DNS port of somebody who is no trusted resolver.
#[inline(always)]
fn asks_a_stranger(skb: &Skb, header: Header) -> bool {
    header.dport() == DNS_PORT && header.sport() != DNS_PORT && !is_on_loopback(skb.raw)
}

/// Judges a packet for port 53 under a policy that restricts queries; returns [`REFUSED`] or 0. What cannot be read as one
/// query is refused. Of a frame, `is_frame` is 1: it has no socket, and is the node's.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn query_refused(
    raw: *mut __sk_buff,
    base: u32,
    header: u64,
    payload: u64,
    is_frame: u32,
) -> u32 {
    let workload = if is_frame != 0 {
        workload::node()
    } else {
        workload::config().and_then(|config| workload::of_skb(config, raw))
    };
    let Some(workload) = workload else {
        return REFUSED;
    };
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let Some(resolver) = resolver_of(&skb, header, is_frame != 0) else {
        return REFUSED;
    };
    if RESOLVERS.get_ptr(&resolver).is_none() {
        return u32::from(asks_a_stranger(&skb, header));
    }
    let payload = Payload::unpack(payload);
    // The handshake of DNS over TCP.
    if payload.bytes == 0 {
        return 0;
    }
    let Some(scratch) = Scratch::get(QUERY) else {
        return REFUSED;
    };
    if scratch.busy != 0 {
        record::tally(Tally::AnswerReentered);
        return REFUSED;
    }
    scratch.busy = 1;
    scratch.current = workload.current;
    scratch.now_ns = now_ns();
    let is_allowed = name_is_allowed(scratch, &skb, header, payload);
    scratch.busy = 0;
    u32::from(!is_allowed)
}

#[inline(always)]
fn name_is_allowed(scratch: &mut Scratch, skb: &Skb, header: Header, payload: Payload) -> bool {
    let Some(config) = workload::config() else {
        return false;
    };
    let Payload { mut at, mut bytes } = payload;
    if header.proto() == protocol::TCP {
        // RFC 1035 section 4.2.2: two bytes of length come first.
        let Some(length) = skb.load::<2>(at) else {
            return false;
        };
        at = at.wrapping_add(2);
        bytes = bytes.wrapping_sub(2);
        if u32::from(u16::from_be_bytes(length)) != bytes {
            return false;
        }
    }
    if !(HEADER_BYTES..=MESSAGE_BYTES as u32).contains(&bytes)
        || !load_message(scratch, skb, at, bytes)
    {
        return false;
    }
    // QR 0, opcode 0, one question.
    if scratch.message.u16_at(2) & 0xf800 != 0 || scratch.message.u16_at(4) != 1 {
        return false;
    }
    scratch.seed = workload::seed();
    scratch.answer.name_at = HEADER_BYTES;
    if dns_name(QUERY) != NameStep::Done as u32 {
        return false;
    }
    let found = dns_rules(QUERY, u32::from(scratch.current.policy_id), SETS);
    if found != UNRULED {
        return found == ALLOWED;
    }
    if dns_rules(QUERY, u32::from(SEARCH_POLICY), SETS) == ALLOWED {
        return true;
    }
    scratch.netns = netns::of_frame(skb.raw);
    alias_name_read(QUERY) != 0 && dns_recall_alias(QUERY, 0) != 0
}

/// Counts a refused query, and copies it to the agent, which reports it with its name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn copy_refused(
    raw: *mut __sk_buff,
    base: u32,
    header: u64,
    payload: u64,
    binding: u64,
) -> u32 {
    record::tally(Tally::QueryRefused);
    let Some(scratch) = Scratch::get(QUERY) else {
        return 0;
    };
    let at_ns = now_ns();
    let binding = Binding::unpack(binding);
    if !record::has_budget(binding.scope_id, false, at_ns) {
        return 0;
    }
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let payload = Payload::unpack(payload);
    if scratch.busy != 0 || payload.bytes == 0 || payload.bytes > MESSAGE_BYTES as u32 {
        record::tally(Tally::CopiesLost);
        return 0;
    }
    scratch.busy = 1;
    scratch.copy_flags = 0;
    scratch.copy = DnsCopy {
        at_ns,
        cookie: 0,
        resolver: [0; 16],
        scope_id: binding.scope_id,
        policy_id: binding.policy_id,
        port: header.sport(),
        sequence: 0,
        expected_sequence: 0,
        total_bytes: payload.bytes,
        offset_bytes: 0,
        payload_bytes: payload.bytes,
        outcome: Tally::QueryRefused as u8,
        proto: header.proto(),
        refused: 0,
        _pad: 0,
        netns: netns::of_packet(skb.raw),
        _pad2: 0,
    };
    scratch.copy.resolver = header.daddr(&skb);
    if !load_message(scratch, &skb, payload.at, payload.bytes) || !send_part(scratch, payload.bytes)
    {
        record::tally(Tally::CopiesLost);
    }
    scratch.busy = 0;
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
    let question = question_of(skb.raw, begin, workload::seed());
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
