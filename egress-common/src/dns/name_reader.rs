//! Reads one name, following compression pointers (RFC 1035 section 4.1.4).

use super::message::{MESSAGE_BYTES, Message};
use crate::{
    hash::mix,
    name::{NAME_TEXT_BYTES, is_matchable},
    policy::POLICY_ID_BITS,
};

/// Most compression pointers in one name.
const POINTERS: u32 = 16;

/// Steps that the longest name takes: each byte but the last, and the pointers.
pub const NAME_STEPS: u32 = 255 + POINTERS + 1;

/// Where the last byte of the reversed text (the first of the name) stands in [`NameReader::key`].
const TEXT_END: u32 = 263;

/// Room for the longest key at its lowest and highest place.
const KEY_BYTES: usize = 520;

/// Bytes of a trie key with its prefix length before it.
const TRIE_KEY_BYTES: u32 = 260;

/// What one step gave.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameStep {
    /// Not at the end yet.
    More = 0,
    /// The name is read.
    Done = 1,
    /// It is not a name.
    Malformed = 2,
}

/// State of the machine, and its result.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NameReader {
    /// Keyed hash of the labels in lower case.
    pub hash: u64,
    /// Next byte.
    at: u32,
    /// First byte behind the name where it was met; 0 until it is known.
    pub end: u32,
    /// Bytes left of the label.
    label_left: u32,
    /// Bytes of text so far, dots included.
    pub text_bytes: u32,
    /// Pointers followed.
    pointers: u32,
    /// Where the part of the name began that is being read: pointers go before it, so that they end.
    part_at: u32,
    /// 1 when a byte was met that no rule can match.
    pub is_unmatchable: u32,
    /// Padding, always zero.
    _pad: u32,
    /// The text backwards, ending at `TEXT_END`, then a zero byte; the trie key's head is written before it.
    key: [u8; KEY_BYTES],
}

impl NameReader {
    /// A machine that has read nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            hash: 0,
            at: 0,
            end: 0,
            label_left: 0,
            text_bytes: 0,
            pointers: 0,
            part_at: 0,
            is_unmatchable: 0,
            _pad: 0,
            key: [0; KEY_BYTES],
        }
    }

    /// Prepares to read the name at `at`.
    #[inline(always)]
    pub const fn start(&mut self, at: u32, seed: u64) {
        self.hash = seed;
        self.at = at;
        self.end = 0;
        self.label_left = 0;
        self.text_bytes = 0;
        self.pointers = 0;
        self.part_at = at;
        self.is_unmatchable = 0;
    }

    /// Reads one byte, or one pointer.
    #[inline(always)]
    pub fn step(&mut self, message: &Message) -> NameStep {
        let at = self.at;
        if at >= message.length {
            return NameStep::Malformed;
        }
        let byte = message.byte(at);
        if self.label_left != 0 {
            let lower = byte.to_ascii_lowercase();
            if !is_matchable(lower) {
                self.is_unmatchable = 1;
            }
            self.label_left = self.label_left.wrapping_sub(1);
            self.at = at.wrapping_add(1);
            self.hash = mix(self.hash, u64::from(lower));
            return self.push(lower);
        }
        if byte == 0 {
            if self.end == 0 {
                self.end = at.wrapping_add(1);
            }
            return NameStep::Done;
        }
        if byte & 0xc0 == 0xc0 {
            return self.follow(message, at);
        }
        if byte & 0xc0 != 0 {
            return NameStep::Malformed;
        }
        self.label_left = u32::from(byte);
        self.at = at.wrapping_add(1);
        self.hash = mix(self.hash, u64::from(byte));
        if self.text_bytes == 0 {
            NameStep::More
        } else {
            self.push(b'.')
        }
    }

    #[inline(always)]
    fn follow(&mut self, message: &Message, at: u32) -> NameStep {
        let low_at = at.wrapping_add(1);
        if low_at >= message.length || self.pointers == POINTERS {
            return NameStep::Malformed;
        }
        let target = u32::from(message.u16_at(at) & 0x3fff);
        if target >= self.part_at {
            return NameStep::Malformed;
        }
        if self.end == 0 {
            self.end = low_at.wrapping_add(1);
        }
        self.pointers = self.pointers.wrapping_add(1);
        self.part_at = target;
        self.at = target;
        NameStep::More
    }

    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        reason = "the mask keeps the index in bounds"
    )]
    fn push(&mut self, byte: u8) -> NameStep {
        let length = self.text_bytes;
        if length as usize >= NAME_TEXT_BYTES {
            return NameStep::Malformed;
        }
        // TEXT_END - length, written so that its bounds are seen: 8 to 263.
        let slot = (255_u32.wrapping_sub(length) & 255).wrapping_add(8);
        self.key[slot as usize] = byte;
        self.text_bytes = length.wrapping_add(1);
        NameStep::More
    }

    /// Writes the head of the trie key before the text, and says where in the buffer the key begins.
    ///
    /// The key is 260 bytes from there: prefix length in native byte order,
    /// policy id in big endian, text backwards, zero byte (nothing ever writes behind the text).
    #[inline(always)]
    pub fn trie_key(&mut self, policy_id: u16) -> *const u8 {
        let length = self.text_bytes & 255;
        let bits = POLICY_ID_BITS.wrapping_add(length.wrapping_add(1).wrapping_mul(8));
        // TEXT_END + 1 - length - 6: 3 to 258.
        let at = TEXT_END.wrapping_sub(5).wrapping_sub(length) as usize;
        let [b0, b1, b2, b3] = bits.to_ne_bytes();
        let [high, low] = policy_id.to_be_bytes();
        for (index, byte) in [b0, b1, b2, b3, high, low].into_iter().enumerate() {
            put(&mut self.key, at, index, byte);
        }
        key_from(&self.key, at)
    }

    /// The name as text, first byte last: for the host.
    #[must_use]
    pub fn reversed_text(&self) -> &[u8] {
        let end = TEXT_END.wrapping_add(1) as usize;
        let begin = end.saturating_sub(self.text_bytes as usize);
        self.key.get(begin..end).unwrap_or_default()
    }
}

impl Default for NameReader {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = assert!(TEXT_END as usize == 8 + 255);
const _: () = assert!(258 + TRIE_KEY_BYTES as usize <= KEY_BYTES);
const _: () = assert!(MESSAGE_BYTES.is_power_of_two());

#[inline(always)]
#[expect(
    unsafe_code,
    reason = "an index check here would be a branch that the verifier cannot remove"
)]
fn put(key: &mut [u8; KEY_BYTES], at: usize, index: usize, byte: u8) {
    // SAFETY: `at` is at most 258 and `index` at most 5 (see `trie_key`), the buffer has 520 bytes.
    let slot = unsafe { key.as_mut_ptr().add(at) };
    // SAFETY: as above.
    let slot = unsafe { slot.add(index) };
    // SAFETY: as above.
    unsafe { slot.write(byte) }
}

#[inline(always)]
#[expect(unsafe_code, reason = "the kernel's helper takes a pointer")]
fn key_from(key: &[u8; KEY_BYTES], at: usize) -> *const u8 {
    // SAFETY: `at` is at most 258, and 258 + 260 bytes are in the buffer.
    unsafe { key.as_ptr().add(at) }
}
