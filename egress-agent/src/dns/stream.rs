//! Puts messages together: DNS over TCP from copied segments, long UDP answers from parts.
//!
//! The kernel copies what arrives at a socket, in the order of arrival, each
//! segment as one part or several (`offset_bytes` of `total_bytes`). Segments
//! may overlap, repeat and come out of order. A message begins with its length
//! (RFC 1035 section 4.2.2), so the stream has to be known from its start; the
//! first copy tells it: `expected_sequence` is what the socket waits for.
//!
//! A stream that cannot be understood any more (a copy was lost, or the agent
//! came in the middle) is *lost*: it gives nothing until it has been idle, because
//! bytes in the wrong place could read as an answer that nobody gave.

use std::collections::HashMap;

use egress_common::{event::DnsCopy, policy::protocol};

/// Bytes of the length before a message.
const PREFIX_BYTES: usize = 2;
/// Longest message with its length.
const WINDOW_BYTES: usize = 65_535 + PREFIX_BYTES;
/// Shortest message: the header alone.
const SHORTEST_BYTES: usize = 12;

/// Bounds of a [`Reassembly`].
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Most streams and unfinished datagrams, together.
    pub streams: usize,
    /// Most bytes that they hold, together.
    pub bytes: usize,
    /// How long one is kept without a new copy.
    pub idle_ns: u64,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            streams: 1_024,
            bytes: 8 << 20,
            idle_ns: 10_000_000_000,
        }
    }
}

/// Counts of what was given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamCounts {
    /// Streams and datagrams thrown out for lack of room.
    pub evicted: u64,
    /// Unfinished ones that nothing more came for.
    pub idle: u64,
    /// Streams that could not be understood any more, datagrams whose parts contradict each other.
    pub lost: u64,
    /// Copies that contradict themselves: parts behind the end, lengths that are not those of the bytes.
    pub malformed: u64,
}

/// A whole message, without a length before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeMessage {
    /// Head of the copy that completed it.
    pub copy: DnsCopy,
    /// The message.
    pub bytes: Vec<u8>,
}

/// The key that tells streams apart, and datagrams from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    cookie: u64,
    resolver: [u8; 16],
    resolver_port: u16,
    port: u16,
    proto: u8,
    /// Datagrams only: when it came, and how long it is. Zero for streams.
    at_ns: u64,
    total_bytes: u32,
}

impl Key {
    const fn of(copy: &DnsCopy) -> Self {
        let is_stream = copy.proto == protocol::TCP;
        Self {
            cookie: copy.cookie,
            resolver: copy.resolver,
            resolver_port: copy.resolver_port,
            port: copy.port,
            proto: copy.proto,
            at_ns: if is_stream { 0 } else { copy.at_ns },
            total_bytes: if is_stream { 0 } else { copy.total_bytes },
        }
    }
}

/// Bytes with holes, from a beginning that moves.
#[derive(Debug, Default)]
struct Pieces {
    /// The bytes; those in no range mean nothing.
    bytes: Vec<u8>,
    /// Ranges that are there: begin and end, in order, never touching each other.
    ranges: Vec<(usize, usize)>,
}

impl Pieces {
    /// Puts bytes at a place. Bytes that are there already stay: the socket took the first ones too.
    /// Returns false when they contradict.
    fn put(&mut self, at: usize, new: &[u8]) -> bool {
        let end = at.saturating_add(new.len());
        if new.is_empty() {
            return true;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let mut agrees = true;
        let mut next = at;
        let mut merged = (at, end);
        let mut ranges = Vec::with_capacity(self.ranges.len().saturating_add(1));
        let mut later = Vec::new();
        for (from, to) in self.ranges.drain(..) {
            if to < at {
                ranges.push((from, to));
                continue;
            }
            if from > end {
                later.push((from, to));
                continue;
            }
            merged = (merged.0.min(from), merged.1.max(to));
            copy_range(&mut self.bytes, next, from.min(end), at, new);
            agrees &= is_same_range(&self.bytes, from.max(at), to.min(end), at, new);
            next = next.max(to);
        }
        copy_range(&mut self.bytes, next, end, at, new);
        ranges.push(merged);
        ranges.append(&mut later);
        self.ranges = ranges;
        agrees
    }

    /// How many bytes from the beginning have no hole.
    fn ready(&self) -> usize {
        match self.ranges.first() {
            Some((0, end)) => *end,
            _ => 0,
        }
    }

    /// Forgets bytes from the beginning, which are ready.
    fn forget(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
        self.ranges.retain_mut(|(from, to)| {
            *from = from.saturating_sub(count);
            *to = to.saturating_sub(count);
            from < to
        });
    }
}

/// Copies what stands at `from..to` of the stream, out of `new`, which stands at `at`.
fn copy_range(bytes: &mut [u8], from: usize, to: usize, at: usize, new: &[u8]) {
    if from >= to {
        return;
    }
    let source = new.get(from.saturating_sub(at)..to.saturating_sub(at));
    if let (Some(slot), Some(source)) = (bytes.get_mut(from..to), source) {
        slot.copy_from_slice(source);
    }
}

fn is_same_range(bytes: &[u8], from: usize, to: usize, at: usize, new: &[u8]) -> bool {
    from >= to || bytes.get(from..to) == new.get(from.saturating_sub(at)..to.saturating_sub(at))
}

#[derive(Debug)]
struct Stream {
    pieces: Pieces,
    /// TCP: sequence number of the first byte of `pieces`.
    begins_at: u32,
    last_ns: u64,
    is_lost: bool,
}

/// Streams and datagrams that wait for more.
#[derive(Debug)]
pub struct Reassembly {
    streams: HashMap<Key, Stream>,
    limits: StreamLimits,
    bytes: usize,
    swept_ns: u64,
    counts: StreamCounts,
}

impl Reassembly {
    /// Nothing waits.
    #[must_use]
    pub fn new(limits: StreamLimits) -> Self {
        Self {
            streams: HashMap::new(),
            limits: StreamLimits {
                streams: limits.streams.max(1),
                ..limits
            },
            bytes: 0,
            swept_ns: 0,
            counts: StreamCounts::default(),
        }
    }

    /// Takes a copy; calls `emit` for every message that it completes, in their order.
    pub fn push(
        &mut self,
        copy: &DnsCopy,
        payload: &[u8],
        now_ns: u64,
        mut emit: impl FnMut(WholeMessage),
    ) {
        // A look at all streams, at most ten times in an idle time.
        if now_ns.saturating_sub(self.swept_ns) >= self.limits.idle_ns / 10 {
            self.sweep(now_ns);
        }
        let part_end = u64::from(copy.offset_bytes).saturating_add(payload.len() as u64);
        if payload.len() as u64 != u64::from(copy.payload_bytes)
            || part_end > u64::from(copy.total_bytes)
        {
            self.counts.malformed = self.counts.malformed.saturating_add(1);
            return;
        }
        if payload.is_empty() {
            return;
        }
        if copy.proto == protocol::TCP {
            self.push_segment(copy, payload, now_ns, &mut emit);
        } else {
            self.push_part(copy, payload, now_ns, &mut emit);
        }
    }

    fn push_part(
        &mut self,
        copy: &DnsCopy,
        payload: &[u8],
        now_ns: u64,
        emit: &mut impl FnMut(WholeMessage),
    ) {
        let total = copy.total_bytes as usize;
        if payload.len() == total {
            emit(WholeMessage {
                copy: *copy,
                bytes: payload.to_vec(),
            });
            return;
        }
        let at = copy.offset_bytes as usize;
        let end = at.saturating_add(payload.len());
        if total > WINDOW_BYTES {
            self.counts.malformed = self.counts.malformed.saturating_add(1);
            return;
        }
        let key = Key::of(copy);
        self.make_room(&key, end);
        let stream = self.stream(key, 0, now_ns);
        if stream.is_lost {
            return;
        }
        let before = stream.pieces.bytes.len();
        let agrees = stream.pieces.put(at, payload);
        let after = stream.pieces.bytes.len();
        let is_whole = agrees && stream.pieces.ready() == total;
        self.bytes = self.bytes.saturating_sub(before).saturating_add(after);
        if is_whole && let Some(stream) = self.remove(&key) {
            emit(WholeMessage {
                copy: *copy,
                bytes: stream.pieces.bytes,
            });
        } else if !agrees {
            // Two datagrams that cannot be distinguished: neither is worth a guess.
            self.lose(&key);
        }
    }

    fn push_segment(
        &mut self,
        copy: &DnsCopy,
        payload: &[u8],
        now_ns: u64,
        emit: &mut impl FnMut(WholeMessage),
    ) {
        let key = Key::of(copy);
        let sequence = copy.sequence.wrapping_add(copy.offset_bytes);
        let mut at_stream = sequence;
        let mut rest = payload;
        // A segment can be longer than what may wait: it is taken in pieces.
        while !rest.is_empty() {
            let room = WINDOW_BYTES.min(rest.len());
            self.make_room(&key, room);
            let stream = self.stream(key, copy.expected_sequence, now_ns);
            if stream.is_lost {
                return;
            }
            let distance = at_stream.wrapping_sub(stream.begins_at);
            // More than half the circle ahead is behind: bytes that were taken before.
            if distance > u32::MAX / 2 {
                let old = (distance.wrapping_neg() as usize).min(rest.len());
                rest = rest.get(old..).unwrap_or_default();
                at_stream = stream.begins_at;
                continue;
            }
            let at = distance as usize;
            let Some(fits) = WINDOW_BYTES.checked_sub(at).filter(|fits| *fits != 0) else {
                // The hole before this will not be filled any more.
                return self.lose(&key);
            };
            let (now, later) = rest.split_at(fits.min(rest.len()));
            let before = stream.pieces.bytes.len();
            // Contradicting bytes are not followed: the socket has taken the first ones.
            stream.pieces.put(at, now);
            let is_understood = drain(stream, copy, emit);
            let after = stream.pieces.bytes.len();
            self.bytes = self.bytes.saturating_sub(before).saturating_add(after);
            if !is_understood {
                return self.lose(&key);
            }
            at_stream = at_stream.wrapping_add(u32::try_from(now.len()).unwrap_or(u32::MAX));
            rest = later;
        }
    }

    fn stream(&mut self, key: Key, begins_at: u32, now_ns: u64) -> &mut Stream {
        let stream = self.streams.entry(key).or_insert_with(|| Stream {
            pieces: Pieces::default(),
            begins_at,
            last_ns: now_ns,
            is_lost: false,
        });
        stream.last_ns = now_ns;
        stream
    }

    /// Throws out the longest idle ones until one more stream, and so many bytes, have room.
    fn make_room(&mut self, key: &Key, bytes: usize) {
        loop {
            let has_place =
                self.streams.contains_key(key) || self.streams.len() < self.limits.streams;
            if has_place && self.bytes.saturating_add(bytes) <= self.limits.bytes {
                return;
            }
            let others = self.streams.iter().filter(|(other, stream)| {
                *other != key && (!has_place || !stream.pieces.bytes.is_empty())
            });
            let oldest = others.min_by_key(|(_, stream)| stream.last_ns);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                return;
            };
            self.remove(&oldest);
            self.counts.evicted = self.counts.evicted.saturating_add(1);
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Stream> {
        let stream = self.streams.remove(key)?;
        self.bytes = self.bytes.saturating_sub(stream.pieces.bytes.len());
        Some(stream)
    }

    /// Keeps only the memory that nothing more is to be taken from it.
    fn lose(&mut self, key: &Key) {
        if let Some(stream) = self.streams.get_mut(key) {
            self.bytes = self.bytes.saturating_sub(stream.pieces.bytes.len());
            stream.pieces = Pieces::default();
            stream.is_lost = true;
            self.counts.lost = self.counts.lost.saturating_add(1);
        }
    }

    /// Forgets what has been idle for too long.
    pub fn sweep(&mut self, now_ns: u64) {
        self.swept_ns = now_ns;
        let idle_ns = self.limits.idle_ns;
        let (mut freed, mut unfinished) = (0_usize, 0_u64);
        self.streams.retain(|_, stream| {
            let keeps = now_ns.saturating_sub(stream.last_ns) < idle_ns;
            if !keeps {
                freed = freed.saturating_add(stream.pieces.bytes.len());
                let had_bytes = !stream.pieces.bytes.is_empty();
                unfinished = unfinished.saturating_add(u64::from(had_bytes));
            }
            keeps
        });
        self.bytes = self.bytes.saturating_sub(freed);
        self.counts.idle = self.counts.idle.saturating_add(unfinished);
    }

    /// How many streams and datagrams are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// True if none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Bytes that wait.
    #[must_use]
    pub const fn waiting_bytes(&self) -> usize {
        self.bytes
    }

    /// Counts of what was given up so far.
    #[must_use]
    pub const fn counts(&self) -> StreamCounts {
        self.counts
    }
}

impl Default for Reassembly {
    fn default() -> Self {
        Self::new(StreamLimits::default())
    }
}

/// Takes the whole messages from the beginning of a stream; false when a length cannot be one.
fn drain(stream: &mut Stream, copy: &DnsCopy, emit: &mut impl FnMut(WholeMessage)) -> bool {
    let ready = stream.pieces.ready();
    let mut rest = stream.pieces.bytes.get(..ready).unwrap_or_default();
    let mut is_understood = true;
    while let Some(([high, low], behind)) = rest.split_first_chunk::<PREFIX_BYTES>() {
        let message_bytes = usize::from(u16::from_be_bytes([*high, *low]));
        if message_bytes < SHORTEST_BYTES {
            is_understood = false;
            break;
        }
        let Some((message, next)) = behind.split_at_checked(message_bytes) else {
            break;
        };
        emit(WholeMessage {
            copy: *copy,
            bytes: message.to_vec(),
        });
        rest = next;
    }
    let taken = ready.saturating_sub(rest.len());
    stream.pieces.forget(taken);
    // At most the window.
    let taken = u32::try_from(taken).unwrap_or(u32::MAX);
    stream.begins_at = stream.begins_at.wrapping_add(taken);
    is_understood
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "test code")]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn head(proto: u8, cookie: u64) -> DnsCopy {
        DnsCopy {
            at_ns: 5,
            cookie,
            resolver: [1; 16],
            scope_id: 2,
            policy_id: 3,
            port: 40_000,
            sequence: 0,
            expected_sequence: 0,
            total_bytes: 0,
            offset_bytes: 0,
            payload_bytes: 0,
            outcome: 15,
            proto,
            refused: 0,
            _pad: 0,
            netns: 1,
            resolver_port: 53,
            _pad2: 0,
        }
    }

    fn segment(cookie: u64, sequence: u32, expected_sequence: u32, bytes: &[u8]) -> DnsCopy {
        let length = u32::try_from(bytes.len()).expect("a length");
        DnsCopy {
            sequence,
            expected_sequence,
            total_bytes: length,
            payload_bytes: length,
            ..head(protocol::TCP, cookie)
        }
    }

    fn part(bytes: &[u8], at: usize, end: usize) -> (DnsCopy, Vec<u8>) {
        let number = |value: usize| u32::try_from(value).expect("a length");
        let copy = DnsCopy {
            total_bytes: number(bytes.len()),
            offset_bytes: number(at),
            payload_bytes: number(end - at),
            ..head(protocol::UDP, 1)
        };
        (copy, bytes[at..end].to_vec())
    }

    fn message(length: usize, first: u8) -> Vec<u8> {
        let bytes = (0..length).map(|index| (index % 251).to_be_bytes()[7]);
        let mut message: Vec<u8> = bytes.collect();
        message[0] = first;
        message
    }

    fn with_length(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut stream = Vec::new();
        for message in messages {
            stream.extend(
                u16::try_from(message.len())
                    .expect("a length")
                    .to_be_bytes(),
            );
            stream.extend(message);
        }
        stream
    }

    fn push(into: &mut Reassembly, copy: &DnsCopy, bytes: &[u8], now_ns: u64) -> Vec<Vec<u8>> {
        let mut whole = Vec::new();
        into.push(copy, bytes, now_ns, |message| whole.push(message.bytes));
        whole
    }

    #[test]
    fn one_byte_segments_and_many_messages_in_one_segment_give_the_messages() {
        let messages = [message(12, 1), message(300, 2), message(13, 3)];
        let stream = with_length(&messages);
        let mut reassembly = Reassembly::default();
        let whole = push(&mut reassembly, &segment(1, 9, 9, &stream), &stream, 0);
        assert_eq!(whole, messages);

        let mut whole = Vec::new();
        for (index, byte) in (0_u32..).zip(&stream) {
            // The sequence numbers go over the top.
            let sequence = (u32::MAX - 100).wrapping_add(index);
            let copy = segment(2, sequence, sequence, &[*byte]);
            whole.extend(push(&mut reassembly, &copy, &[*byte], 0));
        }
        assert_eq!(whole, messages);
        assert_eq!(reassembly.waiting_bytes(), 0);
    }

    #[test]
    fn the_longest_message_comes_through_and_a_segment_longer_than_the_window_too() {
        let messages = [message(65_535, 1), message(65_535, 2), message(12, 3)];
        let stream = with_length(&messages);
        let mut reassembly = Reassembly::default();
        let whole = push(&mut reassembly, &segment(1, 0, 0, &stream), &stream, 0);
        assert_eq!(whole, messages);
        assert_eq!(reassembly.waiting_bytes(), 0);
    }

    #[test]
    fn a_retransmit_of_what_was_taken_before_the_first_copy_is_skipped() {
        let messages = [message(20, 1)];
        let stream = with_length(&messages);
        let mut old = vec![9; 30];
        old.extend(&stream);
        let mut reassembly = Reassembly::default();
        let whole = push(&mut reassembly, &segment(1, 970, 1_000, &old), &old, 0);
        assert_eq!(whole, messages);
    }

    #[test]
    fn a_stream_whose_lengths_make_no_sense_is_lost_until_it_was_idle() {
        let mut reassembly = Reassembly::default();
        let rubbish = [0, 3, 1, 2, 3];
        assert!(push(&mut reassembly, &segment(1, 0, 0, &rubbish), &rubbish, 0).is_empty());
        assert_eq!(reassembly.counts().lost, 1);
        let messages = [message(20, 1)];
        let stream = with_length(&messages);
        let copy = segment(1, 5, 5, &stream);
        assert!(push(&mut reassembly, &copy, &stream, 9 * SECOND).is_empty());
        assert!(push(&mut reassembly, &copy, &stream, 18 * SECOND).is_empty());
        assert_eq!(push(&mut reassembly, &copy, &stream, 28 * SECOND), messages);
    }

    #[test]
    fn a_hole_that_stays_open_loses_the_stream_and_never_gives_a_wrong_message() {
        let mut reassembly = Reassembly::default();
        let stream = with_length(&[message(60_000, 1), message(60_000, 2)]);
        let first = &stream[..10];
        push(&mut reassembly, &segment(1, 0, 0, first), first, 0);
        // Bytes 10 to 20 never come.
        for (index, chunk) in stream[20..].chunks(1_000).enumerate() {
            let at = u32::try_from(20 + index * 1_000).expect("a place");
            assert!(push(&mut reassembly, &segment(1, at, at, chunk), chunk, 0).is_empty());
        }
        assert_eq!(reassembly.counts().lost, 1);
        assert_eq!(reassembly.waiting_bytes(), 0);
    }

    #[test]
    fn an_idle_stream_is_forgotten_at_its_limit() {
        let mut reassembly = Reassembly::default();
        let start = [0, 20, 1];
        push(&mut reassembly, &segment(1, 0, 0, &start), &start, 0);
        reassembly.sweep(10 * SECOND - 1);
        assert_eq!((reassembly.len(), reassembly.counts().idle), (1, 0));
        reassembly.sweep(10 * SECOND);
        assert_eq!((reassembly.len(), reassembly.counts().idle), (0, 1));
        assert_eq!(reassembly.waiting_bytes(), 0);
    }

    #[test]
    fn streams_and_bytes_are_bounded_and_the_longest_idle_goes_first() {
        let mut reassembly = Reassembly::new(StreamLimits {
            streams: 4,
            bytes: 1_000,
            idle_ns: 10 * SECOND,
        });
        let start = [1, 0, 7];
        for cookie in 0..6 {
            push(
                &mut reassembly,
                &segment(cookie, 0, 0, &start),
                &start,
                cookie,
            );
        }
        assert_eq!((reassembly.len(), reassembly.counts().evicted), (4, 2));
        let more = [7; 200];
        for cookie in 2..6 {
            push(
                &mut reassembly,
                &segment(cookie, 3, 3, &more),
                &more,
                10 + cookie,
            );
        }
        assert_eq!(reassembly.counts().evicted, 2);
        let (copy, bytes) = part(&message(5_000, 1), 0, 700);
        push(&mut reassembly, &copy, &bytes, 20);
        assert!(
            reassembly.waiting_bytes() <= 1_000,
            "{}",
            reassembly.waiting_bytes()
        );
        assert!(reassembly.counts().evicted > 2);
    }

    #[test]
    fn a_whole_datagram_passes_and_a_long_one_is_put_together_in_any_order() {
        let mut reassembly = Reassembly::default();
        let small = message(100, 1);
        let (copy, bytes) = part(&small, 0, 100);
        assert_eq!(push(&mut reassembly, &copy, &bytes, 0), [small]);
        assert!(reassembly.is_empty());

        let long = message(10_000, 2);
        let mut parts = [
            part(&long, 8_192, 10_000),
            part(&long, 0, 4_096),
            part(&long, 4_096, 8_192),
        ];
        for _ in 0..3 {
            parts.rotate_left(1);
            let whole: Vec<_> = parts
                .iter()
                .flat_map(|(copy, bytes)| push(&mut reassembly, copy, bytes, 0))
                .collect();
            assert_eq!(whole, std::slice::from_ref(&long));
            assert!(reassembly.is_empty() && reassembly.waiting_bytes() == 0);
        }
    }

    #[test]
    fn two_datagrams_that_cannot_be_told_apart_give_nothing() {
        let (one, other) = (message(10_000, 1), message(10_000, 2));
        let mut reassembly = Reassembly::default();
        for (copy, bytes) in [
            part(&one, 0, 4_096),
            part(&other, 0, 4_096),
            part(&other, 4_096, 8_192),
            part(&one, 8_192, 10_000),
        ] {
            assert!(push(&mut reassembly, &copy, &bytes, 0).is_empty());
        }
        assert_eq!(reassembly.counts().lost, 1);
    }

    #[test]
    fn copies_that_contradict_themselves_are_counted() {
        let mut reassembly = Reassembly::default();
        let (copy, bytes) = part(&message(100, 1), 0, 50);
        let lies = [
            DnsCopy {
                payload_bytes: 49,
                ..copy
            },
            DnsCopy {
                offset_bytes: 51,
                ..copy
            },
            DnsCopy {
                total_bytes: 49,
                ..copy
            },
            DnsCopy {
                total_bytes: 1 << 20,
                ..copy
            },
        ];
        for lie in lies {
            assert!(push(&mut reassembly, &lie, &bytes, 0).is_empty());
        }
        assert_eq!(reassembly.counts().malformed, 4);
        assert!(reassembly.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_cutting_order_and_repetition_of_a_stream_gives_its_messages(
            lengths in vec(12_usize..700, 1..12),
            cuts in vec(any::<Index>(), 0..60),
            again in vec((any::<Index>(), 1_usize..400), 0..20),
            swaps in vec((any::<Index>(), any::<Index>()), 0..60),
            start: u32,
            parts_of in 1_usize..300,
        ) {
            let messages: Vec<_> = (0_u8..)
                .zip(&lengths)
                .map(|(number, length)| message(*length, number))
                .collect();
            let stream = with_length(&messages);
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            places.extend([0, stream.len()]);
            places.sort_unstable();
            places.dedup();
            let mut pieces: Vec<_> = places.windows(2).map(|pair| (pair[0], pair[1])).collect();
            // Retransmits that overlap.
            for (from, length) in again {
                let from = from.index(stream.len());
                pieces.push((from, (from + length).min(stream.len())));
            }
            for (one, other) in swaps {
                let (one, other) = (one.index(pieces.len()), other.index(pieces.len()));
                pieces.swap(one, other);
            }
            let mut reassembly = Reassembly::default();
            let mut whole = Vec::new();
            for (from, to) in pieces {
                let bytes = &stream[from..to];
                let sequence = start.wrapping_add(u32::try_from(from).expect("a place"));
                // The kernel gives long segments in parts.
                for (index, chunk) in bytes.chunks(parts_of).enumerate() {
                    let copy = DnsCopy {
                        offset_bytes: u32::try_from(index * parts_of).expect("a place"),
                        payload_bytes: u32::try_from(chunk.len()).expect("a length"),
                        ..segment(1, sequence, start, bytes)
                    };
                    whole.extend(push(&mut reassembly, &copy, chunk, 0));
                }
            }
            prop_assert_eq!(whole, messages);
            prop_assert_eq!(reassembly.waiting_bytes(), 0);
            prop_assert_eq!(reassembly.counts(), StreamCounts::default());
        }

        #[test]
        fn any_parts_of_a_datagram_give_it_once(
            length in 100_usize..20_000,
            cuts in vec(any::<Index>(), 1..20),
            swaps in vec((any::<Index>(), any::<Index>()), 0..20),
        ) {
            let datagram = message(length, 7);
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(length)).collect();
            places.extend([0, length]);
            places.sort_unstable();
            places.dedup();
            let mut pieces: Vec<_> = places.windows(2).map(|pair| (pair[0], pair[1])).collect();
            for (one, other) in swaps {
                let (one, other) = (one.index(pieces.len()), other.index(pieces.len()));
                pieces.swap(one, other);
            }
            let mut reassembly = Reassembly::default();
            let mut whole = Vec::new();
            for (from, to) in pieces {
                let (copy, bytes) = part(&datagram, from, to);
                whole.extend(push(&mut reassembly, &copy, &bytes, 0));
            }
            prop_assert_eq!(whole, [datagram]);
            prop_assert!(reassembly.is_empty());
        }

        #[test]
        fn arbitrary_copies_never_panic_and_stay_in_bounds(
            copies in vec((0_u64..3, any::<u32>(), any::<u32>(), 0_u32..3_000, vec(any::<u8>(), 0..300), any::<bool>()), 0..40),
        ) {
            let mut reassembly = Reassembly::new(StreamLimits { streams: 2, bytes: 4_096, idle_ns: 100 });
            for (now_ns, (cookie, sequence, expected, offset_bytes, bytes, is_tcp)) in (0_u64..).zip(copies) {
                let copy = DnsCopy {
                    offset_bytes,
                    total_bytes: 4_000,
                    proto: if is_tcp { protocol::TCP } else { protocol::UDP },
                    ..segment(cookie, sequence & 0xfff, expected & 0xfff, &bytes)
                };
                push(&mut reassembly, &copy, &bytes, now_ns);
                prop_assert!(reassembly.len() <= 2);
                prop_assert!(reassembly.waiting_bytes() <= 2 * (WINDOW_BYTES + 4_096));
                let held: usize = reassembly.streams.values().map(|one| one.pieces.bytes.len()).sum();
                prop_assert_eq!(held, reassembly.waiting_bytes());
            }
        }
    }
}
