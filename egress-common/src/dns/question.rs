//! Questions: the hash by which an answer's question is compared with the one that was asked, and the form of a query
//! that may leave under `dns.queries: allowed`.
//!
//! A question of up to 255 bytes fits neither a map's key nor its value at a bearable price, so it is held as
//! SipHash-1-3 under a key of its own (`KEYS.question`), over words of eight bytes: the name in wire form and in lower
//! case, up to and with its final zero byte; then type, class and length. The first zero byte counts as the end: a name
//! with a zero byte inside a label has another end, but no rule matches such a name, so that it teaches nothing.

use super::{
    message::{HEADER_BYTES, MESSAGE_BYTES, Message},
    name_reader::NameReader,
};
use crate::hash::{Sip, SipKey};

/// Longest name in wire form (RFC 1035 section 3.1).
pub const NAME_BYTES: u32 = 255;
/// Words of eight bytes that hold the longest name.
pub const NAME_WORDS: u32 = 32;

/// Most bytes of EDNS options in a query that leaves where queries are restricted: a padding of 128 bytes (RFC 8467
/// section 4.1), a cookie (RFC 7873), a client subnet (RFC 7871) and room to spare.
pub const OPTIONS_BYTES: u32 = 256;
/// Longest query that is judged: header, name, type and class, and an OPT record with its options.
pub const QUERY_BYTES: u32 = HEADER_BYTES + NAME_BYTES + 4 + 11 + OPTIONS_BYTES;
const _: () = assert!((QUERY_BYTES as usize) < MESSAGE_BYTES);

/// Type of an OPT record, RFC 6891 section 6.1.2.
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
/// Flags that a query may have: recursion desired, authentic data, checking disabled.
const QUERY_FLAGS: u16 = 0x0130;
/// Of an OPT record's TTL field: extended code and version 0, DO and reserved flags (RFC 6891 section 6.1.3).
const OPT_TTL: u32 = 0x8000;

/// The header is that of one plain query: QR 0, opcode 0, one question (RFC 1035 section 4.1.1).
#[inline(always)]
#[must_use]
pub const fn is_query_header(header: &[u8; 12]) -> bool {
    let [_, _, flags, _, high, low, _, _, _, _, _, _] = *header;
    flags & 0xf8 == 0 && high == 0 && low == 1
}

/// The message is one query for the name that was read at its question, and nothing behind it: no other records than
/// one OPT, whose options are bounded.
#[inline(always)]
#[must_use]
pub fn is_plain_query(message: &Message, name: &NameReader) -> bool {
    // One question, no answers, no authorities.
    if message.u16_at(2) & !QUERY_FLAGS != 0
        || message.u16_at(4) != 1
        || message.u32_at(6) != 0
        || name.has_pointers()
    {
        return false;
    }
    let at = name.end;
    let end = at.wrapping_add(4);
    if end > message.length || message.u16_at(at.wrapping_add(2)) != CLASS_IN {
        return false;
    }
    let additional = message.u16_at(10);
    if additional == 0 {
        return end == message.length;
    }
    let options_at = end.wrapping_add(11);
    if additional != 1 || options_at > message.length {
        return false;
    }
    let options = u32::from(message.u16_at(end.wrapping_add(9)));
    message.byte(end) == 0
        && message.u16_at(end.wrapping_add(1)) == TYPE_OPT
        && message.u32_at(end.wrapping_add(5)) & !OPT_TTL == 0
        && options <= OPTIONS_BYTES
        && options_at.wrapping_add(options) == message.length
}

/// Lower case for eight ASCII letters at once; other bytes stay.
#[inline(always)]
const fn lower(word: u64) -> u64 {
    let low = word & 0x7f7f_7f7f_7f7f_7f7f;
    // The top bit of each byte: at least `A`; more than `Z`.
    let from_a = low.wrapping_add(0x3f3f_3f3f_3f3f_3f3f);
    let past_z = low.wrapping_add(0x2525_2525_2525_2525);
    let is_upper = from_a & !past_z & !word & 0x8080_8080_8080_8080;
    word | is_upper >> 2
}

/// Hashes a question, a word of its name at a step.
#[derive(Clone, Copy, Debug)]
pub struct QuestionHasher {
    state: Sip,
    /// Bytes of the name; 0 until its end was met.
    bytes: u32,
    taken: u32,
}

impl QuestionHasher {
    /// A machine at the first word of the name.
    #[inline(always)]
    #[must_use]
    pub const fn new(key: &SipKey) -> Self {
        Self {
            state: Sip::new(key),
            bytes: 0,
            taken: 0,
        }
    }

    /// Takes the next eight bytes of the name, as a little-endian word; true when they hold its end. Bytes behind it do
    /// not count.
    #[inline(always)]
    pub const fn word(&mut self, word: u64) -> bool {
        let zeros = word.wrapping_sub(0x0101_0101_0101_0101) & !word & 0x8080_8080_8080_8080;
        self.taken = self.taken.wrapping_add(8);
        if zeros == 0 {
            self.state = self.state.word(lower(word));
            return false;
        }
        // Only the lowest of them is sure to be one.
        let first = zeros & zeros.wrapping_neg();
        let before = (first >> 7).wrapping_sub(1);
        self.state = self.state.word(lower(word & before));
        // The number of bytes of `before`, without a multiplication that a mask could not bound.
        let kept = (before & 0x0101_0101_0101_0101).wrapping_mul(0x0101_0101_0101_0101) >> 56;
        self.bytes = self.taken.wrapping_sub(7).wrapping_add(kept as u32);
        true
    }

    /// Bytes of the name, after [`Self::word`] has said that it ended.
    #[inline(always)]
    #[must_use]
    pub const fn name_bytes(&self) -> u32 {
        self.bytes
    }

    /// The hash of the question.
    #[inline(always)]
    #[must_use]
    pub const fn finish(self, type_and_class: u32) -> u64 {
        let last = (self.bytes as u64) << 32 | type_and_class as u64;
        self.state.word(last).finish()
    }
}

/// Hash of the question of a message in a buffer; `None` where there is none.
#[inline(always)]
#[must_use]
pub fn question_of(message: &Message, key: &SipKey) -> Option<u64> {
    let mut hasher = QuestionHasher::new(key);
    let mut at = HEADER_BYTES;
    for _ in 0..NAME_WORDS {
        if at >= message.length {
            return None;
        }
        if hasher.word(message.word_at(at)) {
            let end = HEADER_BYTES.wrapping_add(hasher.name_bytes());
            if end.wrapping_add(4) > message.length {
                return None;
            }
            return Some(hasher.finish(message.u32_at(end)));
        }
        at = at.wrapping_add(8);
    }
    None
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "test code")]
mod tests {
    use std::{vec, vec::Vec};

    use proptest::{collection::vec as vec_of, prelude::*};

    use super::*;
    use crate::dns::{NAME_STEPS, NameStep};

    const KEY: SipKey = SipKey { k0: 1, k1: 2 };

    fn query(name: &[u8], tail: &[u8], additional: u8, more: &[u8]) -> Vec<u8> {
        let head = [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, additional];
        [&head, name, tail, more].concat()
    }

    fn hash(bytes: &[u8]) -> Option<u64> {
        question_of(&Message::from_slice(bytes).expect("it fits"), &KEY)
    }

    fn is_plain(bytes: &[u8]) -> bool {
        let message = Message::from_slice(bytes).expect("it fits");
        let mut name = NameReader::new();
        name.start(HEADER_BYTES, 0);
        for _ in 0..NAME_STEPS {
            match name.step(&message) {
                NameStep::More => {}
                NameStep::Done => return is_plain_query(&message, &name),
                NameStep::Malformed => return false,
            }
        }
        false
    }

    const A_IN: &[u8] = &[0, 1, 0, 1];

    fn opt(options: &[u8]) -> Vec<u8> {
        let length = u16::try_from(options.len()).expect("a length");
        let mut record = vec![0, 0, 41, 4, 208, 0, 0, 0x80, 0];
        record.extend(length.to_be_bytes());
        record.extend(options);
        record
    }

    #[test]
    fn one_question_with_at_most_one_bounded_opt_is_plain() {
        let name = b"\x03api\x04good\x04test\0";
        assert!(is_plain(&query(name, A_IN, 0, &[])));
        assert!(is_plain(&query(name, A_IN, 1, &opt(&[]))));
        assert!(is_plain(&query(name, A_IN, 1, &opt(&[0; 256]))));
        // Each of these carries something that is no question.
        for odd in [
            query(name, A_IN, 0, b"secret"),
            query(name, A_IN, 0, &opt(&[])),
            query(name, A_IN, 1, &[]),
            query(name, A_IN, 1, &[opt(&[]), vec![1]].concat()),
            query(name, A_IN, 2, &[opt(&[]), opt(&[])].concat()),
            query(name, A_IN, 1, &opt(&[0; 257])),
            query(name, &[0, 1, 0, 3], 0, &[]),
            query(name, A_IN, 1, &[b"\x01x", &opt(&[])[..]].concat()),
            query(b"\x03api\xc0\x0c", A_IN, 0, &[]),
        ] {
            assert!(!is_plain(&odd), "{odd:?}");
        }
        // Flags, and records that are announced.
        for (at, byte) in [
            (2, 0x81),
            (2, 0x29),
            (3, 0x0f),
            (3, 0x40),
            (7, 1),
            (9, 1),
            (5, 2),
        ] {
            let mut odd = query(name, A_IN, 0, &[]);
            odd[at] = byte;
            assert!(!is_plain(&odd), "{at} {byte}");
        }
        // The version of EDNS.
        let mut odd = query(name, A_IN, 1, &opt(&[]));
        let version = odd.len() - 5;
        odd[version] = 1;
        assert!(!is_plain(&odd));
    }

    #[test]
    fn type_class_and_length_are_part_of_the_question() {
        let name = b"\x03api\0";
        let asked = hash(&query(name, A_IN, 0, &[])).expect("a question");
        // 65 and 97 are one letter in two cases.
        let https = hash(&query(name, &[0, 65, 0, 1], 0, &[])).expect("a question");
        let other = hash(&query(name, &[0, 97, 0, 1], 0, &[])).expect("a question");
        let chaos = hash(&query(name, &[0, 1, 0, 3], 0, &[])).expect("a question");
        assert!(asked != https && https != other && asked != chaos);
        assert_eq!(hash(&query(name, &[0, 1, 0], 0, &[])), None);
        assert_eq!(hash(&query(b"\x03api", &[], 0, &[])), None);
        assert_ne!(
            question_of(
                &Message::from_slice(&query(name, A_IN, 0, &[])).expect("it fits"),
                &SipKey { k0: 2, k1: 1 }
            ),
            Some(asked)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn lower_case_is_what_the_standard_library_says(bytes: [u8; 8]) {
            let expected = bytes.map(|byte| byte.to_ascii_lowercase());
            prop_assert_eq!(lower(u64::from_le_bytes(bytes)), u64::from_le_bytes(expected));
        }

        /// Two questions have one hash exactly if they are the same but for the case of letters: also with old bytes in
        /// the buffer behind them, and with every flip that an invertible hash would forgive.
        #[test]
        fn questions_are_equal_by_their_bytes(
            labels in vec_of(vec_of(1_u8.., 1..=63), 0..4),
            kind: u16,
            junk: u8,
            flips in vec_of((0_usize..256, 0_u8..8), 0..3),
        ) {
            let mut name: Vec<u8> = Vec::new();
            for label in &labels {
                name.push(u8::try_from(label.len()).expect("a label"));
                name.extend(label);
            }
            name.push(0);
            prop_assume!(name.len() <= 255);
            let tail = [kind.to_be_bytes(), [0, 1]].concat();
            let asked = query(&name, &tail, 0, &[]);
            let mut message = Message::from_slice(&asked).expect("it fits");
            let first = question_of(&message, &KEY);
            prop_assert!(first.is_some());
            for slot in message.bytes.iter_mut().skip(asked.len()) {
                *slot = junk;
            }
            prop_assert_eq!(question_of(&message, &KEY), first);
            let upper: Vec<u8> = name.iter().enumerate().map(|(at, byte)| {
                if is_length(&labels, at) { *byte } else { byte.to_ascii_uppercase() }
            }).collect();
            prop_assert_eq!(hash(&query(&upper, &tail, 0, &[])), first);
            let mut flipped = name.clone();
            for (at, bit) in flips {
                let place = at % flipped.len();
                flipped[place] ^= 1 << bit;
            }
            let same = flipped.eq_ignore_ascii_case(&name);
            let other = hash(&query(&flipped, &tail, 0, &[]));
            prop_assert_eq!(other == first, same);
        }
    }

    fn is_length(labels: &[Vec<u8>], at: usize) -> bool {
        let mut place = 0;
        labels.iter().any(|label| {
            let here = place == at;
            place += label.len() + 1;
            here
        })
    }
}
