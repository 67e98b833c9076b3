//! TCP connections to resolvers: the queries in them are followed from the first segment on, by sequence numbers, so
//! that each is noted, and judged where the policy restricts queries, whatever the segments.
//!
//! A segment leaves as a whole or not at all. A part of a query may leave before the rest is known; the rest is judged
//! with it, and a resolver does nothing with a part.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_socket_cookie, bpf_skb_load_bytes, generated::bpf_probe_read_kernel},
};
use egress_common::{
    dns::{MESSAGE_BYTES, is_query_header},
    packet::PacketBytes,
    policy::protocol,
    query::{Query, query_ports},
    stream::{Framer, Piece, STREAM_BYTES, STREAM_ENDED, STREAM_STEPS},
    tally::Tally,
};

use crate::{
    maps::STREAMS,
    netns,
    query::{
        LATER, PASSES, REFUSED, begin, is_enforced, message_is_allowed, note, question_in, refused,
    },
    record::{self, opaque},
    resolver::Asked,
    scratch::{QUERY, Scratch},
    skb::{Header, Payload, ReadHeader as _, Skb, full_socket, packet_sequence},
    workload,
};

/// `URG`, byte 13 of the TCP header.
const TCP_URG: u8 = 0x20;

/// Follows a segment that leaves for a trusted resolver; `asked` is packed. Returns one of `query`'s verdicts. Has no
/// stack frame of its own: below it, 5.10 has room for none (each counts 32 bytes at least).
#[inline(always)]
pub fn stream_leaves(raw: *mut __sk_buff, header: u64, payload: u64, asked: u32) -> u32 {
    let begun = stream_begin(raw, header, payload, asked);
    if begun & CONTINUES == 0 {
        return begun;
    }
    // From here on the slot is in use.
    let verdict = stream_segment(raw, begun & (RESTRICTED | STRICT));
    stream_end(raw, verdict)
}

/// The result of [`stream_begin`] beside [`RESTRICTED`] and [`STRICT`] when there is something to be read.
const CONTINUES: u32 = 1 << 8;
/// The policy lets only some names be asked for.
const RESTRICTED: u32 = 1 << 4;
/// And what it does not let through is dropped.
const STRICT: u32 = 1 << 5;

/// Begins with a segment: a verdict, or [`CONTINUES`]. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stream_begin(raw: *mut __sk_buff, header: u64, payload: u64, asked: u32) -> u32 {
    let skb = Skb { raw, base: 0 };
    let header = Header::unpack(header);
    let payload = Payload::unpack(payload);
    let (Some(config), Some(sk)) = (workload::config(), full_socket(raw)) else {
        return REFUSED;
    };
    let opens = header.opens_tcp();
    if payload.bytes == 0 && !opens {
        return PASSES;
    }
    let Some(workload) = workload::of_skb(config, raw) else {
        return REFUSED;
    };
    let is_restricted = workload.current.restricts_queries();
    let is_strict = is_restricted && is_enforced(workload);
    // A byte of urgent data (RFC 6093) is read apart from the others: it would shift what is framed here.
    if is_strict && header.tcp_flags() & TCP_URG != 0 {
        return REFUSED;
    }
    let mut sequence = packet_sequence(raw, 0);
    if opens {
        // Data may come with it (TCP fast open), behind the number that the SYN takes.
        sequence = sequence.wrapping_add(1);
    }
    if opens || STREAMS.get(sk).is_none() {
        // A connection that is older than this has to begin again where queries are restricted: nobody knows where in
        // a query it is.
        if !opens && is_strict {
            return REFUSED;
        }
        if stream_open(raw, header.pack(), asked, sequence) == 0 {
            record::tally(Tally::SocketStateFailed);
            return if is_strict { REFUSED } else { PASSES };
        }
    }
    if payload.bytes == 0 {
        return PASSES;
    }
    let (Some(stream), Some(scratch)) = (STREAMS.get(sk), Scratch::get(QUERY)) else {
        return LATER;
    };
    // SAFETY: the storage lives as long as the socket, whose lock is held while it sends.
    let stream = unsafe { &mut *stream };
    if is_strict && stream.flags & STREAM_ENDED != 0 {
        return LATER;
    }
    let mut behind = stream.next.wrapping_sub(sequence);
    if behind > u32::MAX / 2 {
        // A segment before this one did not leave.
        if is_strict {
            return LATER;
        }
        stream.framer = Framer::default();
        behind = 0;
    } else if behind >= payload.bytes {
        // Sent again.
        return PASSES;
    }
    if !scratch.claim() {
        record::tally(Tally::AnswerReentered);
        return LATER;
    }
    begin(scratch, workload, header);
    scratch.copy.netns = stream.netns;
    scratch.netns = stream.netns;
    scratch.copy.resolver = header.daddr(&skb);
    scratch.framer = stream.framer;
    scratch.part_at = payload.at.wrapping_add(behind);
    scratch.part_bytes = payload.bytes.wrapping_sub(behind);
    scratch.part_end = sequence.wrapping_add(payload.bytes);
    if scratch.framer.have != 0 {
        copy_part(scratch.message.bytes.as_mut_ptr(), stream.bytes.as_ptr());
    }
    let restricted = if is_restricted { RESTRICTED } else { 0 };
    let strict = if is_strict { STRICT } else { 0 };
    CONTINUES | restricted | strict
}

/// Ends with a segment, and gives the slot back. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stream_end(raw: *mut __sk_buff, verdict: u32) -> u32 {
    let Some(scratch) = Scratch::get(QUERY) else {
        return REFUSED;
    };
    let verdict = end(raw, verdict, scratch);
    scratch.release();
    verdict
}

/// [`stream_end`], while the slot is still this program's.
#[inline(always)]
fn end(raw: *mut __sk_buff, verdict: u32, scratch: &Scratch) -> u32 {
    let Some(stream) = full_socket(raw).and_then(|sk| STREAMS.get(sk)) else {
        return REFUSED;
    };
    // SAFETY: the storage lives as long as the socket, whose lock is held while it sends.
    let stream = unsafe { &mut *stream };
    if verdict == REFUSED {
        stream.flags |= STREAM_ENDED;
        return REFUSED;
    }
    stream.next = scratch.part_end;
    stream.framer = scratch.framer;
    stream.asked_at_ns = scratch.now_ns;
    if scratch.framer.have != 0 {
        copy_part(stream.bytes.as_mut_ptr(), scratch.message.bytes.as_ptr());
    }
    PASSES
}

/// Begins to follow a connection; 0 when there is no memory for it. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stream_open(raw: *mut __sk_buff, header: u64, asked: u32, next: u32) -> u32 {
    let skb = Skb { raw, base: 0 };
    let header = Header::unpack(header);
    let asked = Asked::unpack(asked);
    let resolver = asked.words(&skb, header);
    let netns = netns::of_packet(raw);
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(raw.cast()) };
    let Some(stream) = full_socket(raw).and_then(|sk| STREAMS.get_or_create(sk)) else {
        return 0;
    };
    // SAFETY: the storage lives as long as the socket, whose lock is held while it sends.
    let stream = unsafe { &mut *stream };
    stream.cookie = cookie;
    stream.asked_at_ns = 0;
    stream.resolver = resolver;
    stream.resolver_port = asked.port();
    stream.port = header.sport();
    stream.netns = netns;
    stream.next = next;
    stream.flags = 0;
    stream.framer = Framer::default();
    1
}

/// Copies a part of a query between a stream and a slot.
#[inline(always)]
fn copy_part(to: *mut u8, from: *const u8) {
    // SAFETY: both have STREAM_BYTES bytes.
    unsafe { bpf_probe_read_kernel(to.cast(), STREAM_BYTES as u32, from.cast()) };
}

/// The result of [`stream_step`] beside the bytes that it took.
const IS_REFUSED: u32 = 1 << 31;

/// Takes the segment that was begun; `how` is [`RESTRICTED`] and [`STRICT`]. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stream_segment(raw: *mut __sk_buff, how: u32) -> u32 {
    for _ in 0..STREAM_STEPS {
        let step = stream_step(raw, how & RESTRICTED);
        if step == DONE {
            return PASSES;
        }
        if step == IS_REFUSED && how & STRICT != 0 {
            return REFUSED;
        }
    }
    // More queries than one segment may hold: what is left is not followed.
    record::tally(Tally::QueryUnreadable);
    if how & STRICT != 0 { REFUSED } else { PASSES }
}

/// The result of [`stream_step`] at the end of the segment.
const DONE: u32 = 1;

/// Takes the next piece of a segment: [`DONE`] when there is none, [`IS_REFUSED`], or 0. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stream_step(raw: *mut __sk_buff, is_restricted: u32) -> u32 {
    let skb = Skb { raw, base: 0 };
    let Some(scratch) = Scratch::get(QUERY) else {
        return IS_REFUSED;
    };
    let (at, left) = (scratch.part_at, scratch.part_bytes);
    if left == 0 {
        return DONE;
    }
    let piece = scratch.framer.piece(left);
    let taken = match piece {
        Piece::Skip(bytes) | Piece::Query(bytes) => bytes,
        Piece::Length => 2,
        Piece::Half => 1,
    };
    scratch.part_at = at.wrapping_add(taken);
    scratch.part_bytes = left.wrapping_sub(taken);
    match piece {
        Piece::Skip(bytes) => {
            scratch.framer.skipped(bytes);
            0
        }
        Piece::Length => {
            let length = u16::from_be_bytes(skb.load::<2>(at).unwrap_or_default());
            odd(scratch.framer.set_length(length), is_restricted)
        }
        Piece::Half => {
            let [byte] = skb.load::<1>(at).unwrap_or_default();
            odd(scratch.framer.set_half(byte), is_restricted)
        }
        Piece::Query(bytes) => {
            if !load_part(scratch, &skb, at, bytes) {
                return IS_REFUSED;
            }
            let length = scratch.framer.length;
            if !scratch.framer.met(bytes) {
                return 0;
            }
            scratch.message.length = length;
            // Noted before it is judged: under audit it leaves all the same.
            stream_note(raw, QUERY);
            if is_restricted != 0 && message_is_allowed(QUERY) == 0 {
                refused(QUERY);
                return IS_REFUSED;
            }
            0
        }
    }
}

/// A length that no query has.
#[inline(always)]
fn odd(is_right: bool, is_restricted: u32) -> u32 {
    if is_right {
        return 0;
    }
    record::tally(Tally::QueryUnreadable);
    if is_restricted != 0 { IS_REFUSED } else { 0 }
}

/// Loads bytes of a query behind those that are in the slot.
#[inline(always)]
fn load_part(scratch: &mut Scratch, skb: &Skb, at: u32, bytes: u32) -> bool {
    const HALF: u32 = MESSAGE_BYTES as u32 / 2;
    let begin = opaque(scratch.framer.have) & (HALF - 1);
    let masked = (opaque(bytes.wrapping_sub(1)) & (HALF - 1)).wrapping_add(1);
    // SAFETY: `begin` is below half of the buffer.
    let to = unsafe { scratch.message.bytes.as_mut_ptr().add(begin as usize) };
    // SAFETY: behind it lies more than a half, and `masked` is at most that.
    unsafe { bpf_skb_load_bytes(skb.raw.cast(), skb.base.wrapping_add(at), to.cast(), masked) == 0 }
}

/// Notes the query in a slot as one of the packet's stream. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stream_note(raw: *mut __sk_buff, slot: u32) -> u32 {
    let question = question_in(slot);
    let Some(scratch) = Scratch::get(slot) else {
        return 0;
    };
    let Some(stream) = full_socket(raw).and_then(|sk| STREAMS.get(sk)) else {
        return 0;
    };
    // SAFETY: the storage lives as long as the socket, whose lock is held while it sends.
    let stream = unsafe { &*stream };
    let message = &scratch.message;
    let mut head = [0; 12];
    for (place, byte) in head.iter_mut().zip(message.bytes.iter()) {
        *place = *byte;
    }
    if question == 0 || !is_query_header(&head) {
        record::tally(Tally::QueryUnreadable);
        return 0;
    }
    let [high, low, ..] = head;
    note(&Query {
        sent_at_ns: scratch.now_ns,
        question,
        cookie: stream.cookie,
        resolver: stream.resolver,
        ports: query_ports(
            stream.resolver_port,
            stream.port,
            [high, low],
            protocol::TCP,
        ),
        scope_id: scratch.current.scope_id,
    });
    1
}
