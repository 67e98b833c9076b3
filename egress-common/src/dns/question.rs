//! The question of a query that leaves: hashed byte by byte, so that its answer can be told from a forged one.

use crate::hash::mix;

/// Steps that the longest question takes: 255 bytes of name, 4 of type and class.
pub const QUESTION_STEPS: u32 = 259;

/// Hash of a question, from the hash of its name ([`NameReader::hash`](super::NameReader)).
#[inline(always)]
#[must_use]
pub const fn question_hash(name_hash: u64, type_and_class: u32) -> u64 {
    mix(name_hash, type_and_class as u64)
}

/// Hash of a name as the machines compute it; `text` is in lower case, without the final dot.
#[must_use]
pub fn name_hash(seed: u64, text: &str) -> u64 {
    let labels = text.split('.').filter(|label| !label.is_empty());
    labels.fold(seed, |hash, label| {
        let hash = mix(hash, label.len() as u64);
        label
            .bytes()
            .fold(hash, |hash, byte| mix(hash, u64::from(byte)))
    })
}

/// Whether a header is that of one plain query: QR 0, opcode 0, one question (RFC 1035 section 4.1.1).
#[inline(always)]
#[must_use]
pub const fn is_query_header(header: &[u8; 12]) -> bool {
    let [
        _,
        _,
        flags,
        _,
        questions_high,
        questions_low,
        _,
        _,
        _,
        _,
        _,
        _,
    ] = *header;
    flags & 0xf8 == 0 && questions_high == 0 && questions_low == 1
}

/// What one step gave.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuestionStep {
    /// Not at the end yet.
    More = 0,
    /// [`QuestionHasher::hash`] is the question's.
    Done = 1,
    /// It is not a question.
    Malformed = 2,
}

/// Hashes a question, one byte at a step.
#[derive(Clone, Copy, Debug)]
pub struct QuestionHasher {
    hash: u64,
    /// Bytes left of the label; behind the name, of type and class.
    left: u32,
    tail: u32,
    in_tail: bool,
}

impl QuestionHasher {
    /// A machine at the first byte of the question.
    #[inline(always)]
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            hash: seed,
            left: 0,
            tail: 0,
            in_tail: false,
        }
    }

    /// Takes the next byte.
    #[inline(always)]
    pub const fn step(&mut self, byte: u8) -> QuestionStep {
        if self.in_tail {
            self.tail = self.tail << 8 | byte as u32;
            self.left = self.left.wrapping_sub(1);
            if self.left == 0 {
                self.hash = question_hash(self.hash, self.tail);
                return QuestionStep::Done;
            }
            return QuestionStep::More;
        }
        if self.left != 0 {
            self.left = self.left.wrapping_sub(1);
            self.hash = mix(self.hash, byte.to_ascii_lowercase() as u64);
            return QuestionStep::More;
        }
        if byte == 0 {
            self.in_tail = true;
            self.left = 4;
            return QuestionStep::More;
        }
        if byte & 0xc0 != 0 {
            return QuestionStep::Malformed;
        }
        self.left = byte as u32;
        self.hash = mix(self.hash, byte as u64);
        QuestionStep::More
    }

    /// The hash, after [`QuestionStep::Done`].
    #[inline(always)]
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }
}
