//! Queries in a TCP connection to a resolver: where each begins and ends (RFC 1035 section 4.2.2), whatever the segments.

use crate::dns::QUERY_BYTES;

/// Shortest query: a header and the question of the root.
const SHORTEST_BYTES: u32 = 17;

/// Bytes of [`Stream::bytes`]: the longest query, rounded up.
pub const STREAM_BYTES: usize = 544;
const _: () = assert!(STREAM_BYTES >= QUERY_BYTES as usize && STREAM_BYTES.is_multiple_of(8));

/// Most steps for one segment: a length, or a query, at a step. A segment with more is sent again in smaller pieces.
pub const STREAM_STEPS: u32 = 512;

/// Flag of a [`Stream`]: a query in it was refused, and nothing behind it leaves any more.
pub const STREAM_ENDED: u32 = 1;

/// Position in the stream.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Framer {
    /// Bytes of the query that were met.
    pub have: u32,
    /// Bytes of the query; 0 while its length is not known.
    pub length: u32,
    /// Bytes still to be passed over.
    pub skip: u32,
    /// The first byte of a length whose second one is still to come, with `HALF`.
    pub half: u32,
}

/// Of [`Framer::half`]: there is one.
const HALF: u32 = 0x100;

/// Instruction for the next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many are passed over.
    Skip(u32),
    /// A whole length: [`Framer::set_length`].
    Length,
    /// The first or second byte of a length: [`Framer::set_half`].
    Half,
    /// So many of the query.
    Query(u32),
}

impl Framer {
    /// The instruction for the next bytes, of `left` that are there (at least one).
    #[inline(always)]
    #[must_use]
    pub const fn piece(&self, left: u32) -> Piece {
        if self.skip != 0 {
            return Piece::Skip(if self.skip < left { self.skip } else { left });
        }
        if self.length == 0 {
            return if self.half == 0 && left >= 2 {
                Piece::Length
            } else {
                Piece::Half
            };
        }
        let missing = self.length.wrapping_sub(self.have);
        Piece::Query(if missing < left { missing } else { left })
    }

    /// Passes over bytes.
    #[inline(always)]
    pub const fn skipped(&mut self, bytes: u32) {
        self.skip = self.skip.wrapping_sub(bytes);
    }

    /// Takes a length; false when that is none of a query: so many bytes are then passed over.
    #[inline(always)]
    pub const fn set_length(&mut self, length: u16) -> bool {
        let length = length as u32;
        self.half = 0;
        self.have = 0;
        if length < SHORTEST_BYTES || length > QUERY_BYTES {
            self.length = 0;
            self.skip = length;
            return false;
        }
        self.length = length;
        true
    }

    /// Takes one byte of a length; as [`Self::set_length`] when it is the second one.
    #[inline(always)]
    pub const fn set_half(&mut self, byte: u8) -> bool {
        if self.half == 0 {
            self.half = HALF | byte as u32;
            return true;
        }
        let [_, _, _, first] = self.half.to_be_bytes();
        self.set_length(u16::from_be_bytes([first, byte]))
    }

    /// Takes bytes of the query; true when it is whole, which the next one then follows.
    #[inline(always)]
    pub const fn met(&mut self, bytes: u32) -> bool {
        self.have = self.have.wrapping_add(bytes);
        if self.have < self.length {
            return false;
        }
        self.have = 0;
        self.length = 0;
        true
    }
}

/// Value of `STREAMS`, storage of a TCP socket that was connected to a trusted resolver.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// When the last query left, nanoseconds of the clock since boot; 0 for none: nobody waits for an answer.
    pub asked_at_ns: u64,
    /// Cookie of the socket.
    pub cookie: u64,
    /// The resolver, as two words.
    pub resolver: [u64; 2],
    /// Its port, host byte order.
    pub resolver_port: u16,
    /// Port of the socket, host byte order.
    pub port: u16,
    /// Network namespace of the socket.
    pub netns: u32,
    /// Sequence number of the next byte.
    pub next: u32,
    /// [`STREAM_ENDED`], or 0.
    pub flags: u32,
    /// Where in a query that is.
    pub framer: Framer,
    /// The part of a query that has left.
    pub bytes: [u8; STREAM_BYTES],
}
const _: () = assert!(size_of::<Stream>() == 64 + STREAM_BYTES && align_of::<Stream>() == 8);

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "test code")]
mod tests {
    use std::vec::Vec;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The queries that come out of segments, and how many lengths were none of a query.
    fn framed(segments: &[&[u8]]) -> (Vec<Vec<u8>>, usize, Framer) {
        let mut framer = Framer::default();
        let mut message = Vec::new();
        let (mut queries, mut odd) = (Vec::new(), 0);
        for segment in segments {
            let mut rest = *segment;
            while !rest.is_empty() {
                let left = u32::try_from(rest.len()).expect("a length");
                let (taken, is_right) = match framer.piece(left) {
                    Piece::Skip(bytes) => {
                        framer.skipped(bytes);
                        (bytes, true)
                    }
                    Piece::Length => (2, framer.set_length(u16::from_be_bytes([rest[0], rest[1]]))),
                    Piece::Half => (1, framer.set_half(rest[0])),
                    Piece::Query(bytes) => {
                        message.extend(&rest[..bytes as usize]);
                        if framer.met(bytes) {
                            queries.push(std::mem::take(&mut message));
                        }
                        (bytes, true)
                    }
                };
                odd += usize::from(!is_right);
                rest = &rest[taken as usize..];
            }
        }
        (queries, odd, framer)
    }

    fn frame(query: &[u8]) -> Vec<u8> {
        let length = u16::try_from(query.len()).expect("a length");
        [&length.to_be_bytes(), query].concat()
    }

    #[test]
    fn lengths_that_no_query_has_are_passed_over() {
        let bytes = [
            frame(&[1; 16]),
            frame(&[2; 1_000]),
            frame(&[]),
            frame(&[3; 20]),
        ]
        .concat();
        let (queries, odd, framer) = framed(&[&bytes]);
        assert_eq!((queries, odd), (std::vec![std::vec![3; 20]], 3));
        assert_eq!(framer, Framer::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn queries_are_the_same_however_the_stream_is_cut(
            queries in vec(vec(any::<u8>(), 17..=538), 1..5),
            cuts in vec(any::<u16>(), 0..12),
        ) {
            let stream: Vec<u8> = queries.iter().flat_map(|query| frame(query)).collect();
            let mut cuts: Vec<usize> =
                cuts.into_iter().map(|cut| usize::from(cut) % (stream.len() + 1)).collect();
            cuts.push(stream.len());
            cuts.sort_unstable();
            let mut at = 0;
            let segments: Vec<&[u8]> = cuts.into_iter().map(|cut| {
                let segment = &stream[at..cut];
                at = cut;
                segment
            }).collect();
            let (found, odd, framer) = framed(&segments);
            prop_assert_eq!(found, queries);
            prop_assert_eq!((odd, framer), (0, Framer::default()));
        }
    }
}
