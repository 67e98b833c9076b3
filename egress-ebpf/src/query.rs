//! DNS queries that leave: noted, so that their answers can be distinguished from forged ones; and judged by their
//! name, where the policy lets only queries for allowed names through.
//!
//! A packet's kind goes by its destination, whatever its socket is connected to.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_socket_cookie, bpf_skb_load_bytes, bpf_spin_lock, bpf_spin_unlock},
};
use egress_common::{
    dns::{
        DNS_PORT, HEADER_BYTES, MESSAGE_BYTES, NAME_WORDS, NameStep, QuestionHasher,
        is_plain_query, is_query_header, question_of as question_of_message,
    },
    event::DnsCopy,
    hash::Sip,
    packet::PacketBytes,
    policy::{SEARCH_POLICY, Workload, protocol},
    query::{Query, query_ports},
    tally::Tally,
    verdict::Mode,
};

use crate::{
    alias::{alias_name_read, dns_recall_alias},
    dns::{ALLOWED, UNRULED, dns_name, dns_rules, load_message, send_part},
    maps::QUERIES,
    netns,
    record::{self, opaque},
    resolver::{Asked, may_be_at, may_be_inside, near_words},
    scratch::{QUERY, SETS, Scratch},
    skb::{
        Header, Payload, ReadHeader as _, ReadSocket as _, Skb, Socket, full_socket, is_on_loopback,
    },
    stream::stream_leaves,
    time::now_ns,
    workload,
};

/// True if a packet that leaves may hold a query: a first look, for every packet.
#[inline(always)]
pub fn may_be_one(header: Header, skb: &Skb, socket: &Socket) -> bool {
    if header.is_later_fragment() {
        return false;
    }
    if header.proto() != protocol::UDP && header.proto() != protocol::TCP {
        return false;
    }
    may_be_at(header.dport())
        || (socket.peer_port != 0 && may_be_at(socket.peer_port))
        || (may_be_inside() && header.is_to_loopback(skb))
}

/// The fate of a packet that may hold a query: it passes.
pub const PASSES: u32 = 0;
/// It is refused, and its sender gets an error.
pub const REFUSED: u32 = 1;
/// It is dropped without a word: it will be sent again.
pub const LATER: u32 = 2;

/// True if a packet leaves for the DNS port of somebody who is no trusted resolver. A server may answer a caller at that
/// port: in a datagram that says it is a response (QR, RFC 1035 section 4.1.1).
#[inline(always)]
fn asks_a_stranger(skb: &Skb, header: Header, payload: u64) -> bool {
    header.dport() == DNS_PORT && !is_on_loopback(skb.raw) && !is_response(skb, header, payload)
}

#[inline(always)]
fn is_response(skb: &Skb, header: Header, payload: u64) -> bool {
    header.sport() == DNS_PORT
        && header.proto() == protocol::UDP
        && skb
            .load(Payload::unpack(payload).at.wrapping_add(FLAGS_AT))
            .is_some_and(|[flags]: [u8; 1]| flags & QR != 0)
}

/// Offset of the flags in a message of DNS (RFC 1035 section 4.1.1).
const FLAGS_AT: u32 = 2;
/// The first of them: it is a response.
const QR: u8 = 0x80;

/// The workload that a packet belongs to: of a frame, the node.
#[inline(always)]
pub fn workload_of(raw: *mut __sk_buff, is_frame: u32) -> Option<&'static Workload> {
    if is_frame != 0 {
        workload::node()
    } else {
        workload::config().and_then(|config| workload::of_skb(config, raw))
    }
}

/// True if a socket that is not raw sends the packet.
#[inline(always)]
fn is_cooked(raw: *mut __sk_buff) -> bool {
    full_socket(raw).is_some_and(|sk| !Socket::read(sk).is_raw)
}

/// True if a TCP socket sends the packet: a raw socket keeps no order that could be followed.
#[inline(always)]
fn is_stream(raw: *mut __sk_buff) -> bool {
    full_socket(raw).is_some_and(|sk| Socket::read(sk).is_stream)
}

/// Notes the queries in a packet that leaves for a trusted resolver, and judges them where the policy restricts them:
/// what cannot be read as a query is then refused. Of a frame, `is_frame` is 1: it has no socket, and is the node's.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn query_leaves(
    raw: *mut __sk_buff,
    base: u32,
    header: u64,
    payload: u64,
    is_frame: u32,
) -> u32 {
    let Some(workload) = workload_of(raw, is_frame) else {
        return REFUSED;
    };
    let is_restricted = workload.current.restricts_queries();
    let skb = Skb { raw, base };
    let unpacked = Header::unpack(header);
    let asked = Asked::find(&skb, unpacked, is_frame);
    if asked == Asked::NOBODY {
        return u32::from(is_restricted && asks_a_stranger(&skb, unpacked, payload));
    }
    if unpacked.proto() == protocol::TCP && is_frame == 0 && is_stream(raw) {
        return stream_leaves(raw, header, payload, asked.pack());
    }
    let mut verdict = PASSES;
    if is_restricted {
        verdict = datagram_refused(raw, base, header, payload, is_frame);
    }
    // DNS over TCP of forwarded senders is not learned; nor is what a raw socket asks: nobody can tell its answer from
    // others.
    if unpacked.proto() == protocol::UDP
        && (verdict == PASSES || drops_refused(raw, is_frame) == 0)
        && (is_frame != 0 || is_cooked(raw))
    {
        let Payload { at, bytes } = Payload::unpack(payload);
        let begin = base.wrapping_add(at).wrapping_add(HEADER_BYTES);
        let question = question_of(raw, begin, bytes.wrapping_sub(HEADER_BYTES));
        let asked = u64::from(asked.pack() | is_frame << IS_FRAME) | u64::from(at) << 32;
        let place = u64::from(workload.current.scope_id) << 32 | u64::from(base);
        note_datagram(raw, place, header, asked, question);
    }
    verdict
}

/// Bit of what [`note_datagram`] takes beside [`Asked`].
const IS_FRAME: u32 = 31;

/// Judges what leaves for a trusted resolver in one packet: one query, and nothing else. Returns [`REFUSED`] or
/// [`PASSES`]; under audit, refused ones pass too, and are reported.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn datagram_refused(
    raw: *mut __sk_buff,
    base: u32,
    header: u64,
    payload: u64,
    is_frame: u32,
) -> u32 {
    let Some(workload) = workload_of(raw, is_frame) else {
        return REFUSED;
    };
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let Payload { mut at, mut bytes } = Payload::unpack(payload);
    let is_tcp = header.proto() == protocol::TCP;
    // A frame's handshake of DNS over TCP.
    if is_tcp && bytes == 0 {
        return PASSES;
    }
    let Some(scratch) = Scratch::get(QUERY) else {
        return REFUSED;
    };
    if !scratch.claim() {
        record::tally(Tally::AnswerReentered);
        return REFUSED;
    }
    begin(scratch, workload, header);
    scratch.copy.resolver = header.daddr(&skb);
    scratch.copy.netns = netns::of_frame(raw);
    scratch.netns = scratch.copy.netns;
    if is_tcp {
        // RFC 1035 section 4.2.2: two bytes of length come first.
        let prefix = skb.load::<2>(at).unwrap_or_default();
        at = at.wrapping_add(2);
        bytes = bytes.wrapping_sub(2);
        if u32::from(u16::from_be_bytes(prefix)) != bytes {
            bytes = 0;
        }
    }
    let is_loaded = (1..=MESSAGE_BYTES as u32).contains(&bytes)
        && !is_several(&skb)
        && (is_frame != 0 || is_linear(&skb, at, bytes))
        && load_message(scratch, &skb, at, bytes);
    if !is_loaded {
        scratch.message.length = 0;
    }
    let verdict = if is_loaded && message_is_allowed(QUERY) != 0 {
        PASSES
    } else {
        refused(QUERY)
    };
    scratch.release();
    verdict
}

/// True if the buffer holds several datagrams (`UDP_SEGMENT`).
#[inline(always)]
fn is_several(skb: &Skb) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*skb.raw).gso_size != 0 }
}

/// True if bytes lie in the buffer itself, where nobody can change them any more: pages may be the sender's own
/// (`MSG_ZEROCOPY`, `splice`).
#[inline(always)]
fn is_linear(skb: &Skb, at: u32, bytes: u32) -> bool {
    // SAFETY: the context is valid while the program runs.
    let data = unsafe { (*skb.raw).data };
    // SAFETY: as above.
    let end = unsafe { (*skb.raw).data_end };
    u64::from(at).wrapping_add(u64::from(bytes)) <= u64::from(end.wrapping_sub(data))
}

/// Prepares the slot for queries of a workload.
#[inline(always)]
pub fn begin(scratch: &mut Scratch, workload: &Workload, header: Header) {
    scratch.current = workload.current;
    scratch.now_ns = now_ns();
    scratch.seed = workload::seed();
    scratch.copy = DnsCopy {
        at_ns: scratch.now_ns,
        cookie: 0,
        resolver: [0; 16],
        scope_id: workload.current.scope_id,
        policy_id: workload.current.policy_id,
        port: header.sport(),
        sequence: 0,
        expected_sequence: 0,
        total_bytes: 0,
        offset_bytes: 0,
        payload_bytes: 0,
        outcome: Tally::QueryRefused as u8,
        proto: header.proto(),
        refused: 0,
        _pad: 0,
        netns: 0,
        resolver_port: header.dport(),
        _pad2: 0,
    };
}

/// 1 if the message in a slot is one query for a name that may be asked, and nothing else.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn message_is_allowed(slot: u32) -> u32 {
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    scratch.answer.name_at = HEADER_BYTES;
    if dns_name(slot) != NameStep::Done as u32 || !is_plain_query(&scratch.message, &scratch.name) {
        return 0;
    }
    let found = dns_rules(slot, u32::from(scratch.current.policy_id), SETS);
    if found != UNRULED {
        return u32::from(found == ALLOWED);
    }
    u32::from(
        dns_rules(slot, u32::from(SEARCH_POLICY), SETS) == ALLOWED
            || (alias_name_read(slot) != 0 && dns_recall_alias(slot, 0) != 0),
    )
}

/// Counts the refused query in a slot, and copies it to the agent, which reports it with its name; returns what becomes
/// of it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn refused(slot: u32) -> u32 {
    record::tally(Tally::QueryRefused);
    let Some(scratch) = Scratch::get(slot) else {
        return REFUSED;
    };
    let bytes = scratch.message.length;
    if record::has_budget(scratch.current.scope_id, false, scratch.now_ns) {
        scratch.copy_flags = 0;
        scratch.copy.total_bytes = bytes;
        scratch.copy.payload_bytes = bytes;
        // A message that could not be read is reported without a name.
        if bytes == 0 || bytes > MESSAGE_BYTES as u32 || !send_part(scratch, bytes) {
            record::tally(Tally::CopiesLost);
        }
    }
    REFUSED
}

/// True if the policy in force drops what it refuses.
#[inline(always)]
pub fn is_enforced(workload: &Workload) -> bool {
    workload::config()
        .is_none_or(|config| matches!(workload::binding(config, workload).mode(), Mode::Enforce))
}

/// [`is_enforced`] for the workload of a packet, in a stack frame of its own. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn drops_refused(raw: *mut __sk_buff, is_frame: u32) -> u32 {
    workload_of(raw, is_frame).map_or(1, |workload| u32::from(is_enforced(workload)))
}

/// Notes the query in a datagram; `place` is where its headers begin, and its scope (upper half); `asked` is packed, with
/// [`IS_FRAME`] and where the message begins (upper half). Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn note_datagram(
    raw: *mut __sk_buff,
    place: u64,
    header: u64,
    asked: u64,
    question: u64,
) -> u32 {
    let is_frame = asked as u32 >> IS_FRAME;
    let skb = Skb {
        raw,
        base: place as u32,
    };
    let head = skb.load::<12>((asked >> 32) as u32).unwrap_or_default();
    let asked = Asked::unpack(asked as u32 & !(1 << IS_FRAME));
    let header = Header::unpack(header);
    if question == 0 || !is_query_header(&head) {
        record::tally(Tally::QueryUnreadable);
        return 0;
    }
    let cookie = if is_frame != 0 {
        frame_cookie(raw, near_words(&skb, header))
    } else {
        // SAFETY: the context is valid while the program runs.
        unsafe { bpf_get_socket_cookie(raw.cast()) }
    };
    let [high, low, ..] = head;
    note(&Query {
        sent_at_ns: now_ns(),
        question,
        cookie,
        resolver: asked.words(&skb, header),
        ports: query_ports(asked.port(), header.sport(), [high, low], header.proto()),
        scope_id: (place >> 32) as u32,
    });
    0
}

/// Distinguishes the queries of forwarded senders: by their address and the interface, which fit no cookie. A
/// pseudorandom function of both, under the key of questions. The top bit keeps it apart from cookies of sockets, which
/// count up from 1.
#[inline(always)]
pub fn frame_cookie(raw: *mut __sk_buff, [first, second]: [u64; 2]) -> u64 {
    let Some(keys) = workload::keys() else {
        return 0;
    };
    // SAFETY: the context is valid while the program runs.
    let interface = unsafe { (*raw).ifindex };
    let state = Sip::new(&keys.question).word(u64::from(interface));
    state.word(first).word(second).finish() | 1 << 63
}

/// Stores a query.
#[inline(always)]
pub fn note(query: &Query) {
    let Some(bucket) = QUERIES.get_ptr_mut(query.bucket()) else {
        return record::tally(Tally::QueryTableFull);
    };
    // SAFETY: the bucket is a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*bucket).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held.
    unsafe { (*bucket).note(query) };
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    record::tally(Tally::QueryNoted);
}

/// Words of a question that are loaded at once.
const CHUNK_WORDS: u32 = 8;
const CHUNK_BYTES: u32 = CHUNK_WORDS * 8;
const CHUNKS: u32 = NAME_WORDS / CHUNK_WORDS;

/// Hash of the question of the message in a slot; 0 for what is no question. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn question_in(slot: u32) -> u64 {
    let (Some(scratch), Some(keys)) = (Scratch::get(slot), workload::keys()) else {
        return 0;
    };
    question_of_message(&scratch.message, &keys.question).map_or(0, |question| question.max(1))
}

/// Hashes the question that begins at a byte of the packet, of which `left` bytes are left; 0 for what is no question.
/// In chunks on the stack: no buffer for each CPU would be safe from a softirq that sends another query there.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn question_of(raw: *mut __sk_buff, begin: u32, left: u32) -> u64 {
    let Some(keys) = workload::keys() else {
        return 0;
    };
    let mut hasher = QuestionHasher::new(&keys.question);
    let mut begins_at = begin;
    let mut left = left;
    for _ in 0..CHUNKS {
        if left == 0 || left > u32::from(u16::MAX) {
            return 0;
        }
        let mut words = [0_u64; CHUNK_WORDS as usize];
        let here = if left > CHUNK_BYTES {
            CHUNK_BYTES
        } else {
            left
        };
        let masked = (opaque(here.wrapping_sub(1)) & (CHUNK_BYTES - 1)).wrapping_add(1);
        // SAFETY: the buffer has CHUNK_BYTES bytes, and `masked` is at most that.
        let error =
            unsafe { bpf_skb_load_bytes(raw.cast(), begins_at, words.as_mut_ptr().cast(), masked) };
        if error != 0 {
            return 0;
        }
        for index in 0..CHUNK_WORDS {
            // Hidden from the compiler, which would unroll the loop: that needs more stack than there is.
            let index = opaque(index) & (CHUNK_WORDS - 1);
            // SAFETY: the index is below CHUNK_WORDS.
            let word = unsafe { words.as_ptr().add(index as usize).read() };
            if hasher.word(u64::from_le(word)) {
                return tail_of(raw, begin, hasher);
            }
        }
        begins_at = begins_at.wrapping_add(CHUNK_BYTES);
        left = left.wrapping_sub(here);
    }
    0
}

/// The hash of a question whose name has been taken, with type and class, which follow it.
#[inline(always)]
fn tail_of(raw: *mut __sk_buff, begin: u32, hasher: QuestionHasher) -> u64 {
    let skb = Skb { raw, base: 0 };
    match skb.load::<4>(begin.wrapping_add(hasher.name_bytes())) {
        // 0 stands for none.
        Some(tail) => hasher.finish(u32::from_be_bytes(tail)).max(1),
        None => 0,
    }
}
