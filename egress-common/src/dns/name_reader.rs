//! Reads one name, following compression pointers (RFC 1035 section 4.1.4).

use super::message::{MESSAGE_BYTES, Message};
use crate::{
    hash::mix,
    name::{
        LABEL_BYTES, LABEL_MARK, NAME_TEXT_BYTES, exact_key_bits, is_matchable, label_key_bits,
    },
};

/// Most compression pointers in one name.
const POINTERS: u32 = 16;

/// Steps that the longest name takes: each byte but the last, and the pointers.
pub const NAME_STEPS: u32 = 255 + POINTERS + 1;

/// Where the reversed text ends in [`NameReader::key`]; its first byte is the last before.
const TEXT_END: u32 = 264;

/// Bytes of a key before its text: prefix length and policy id.
const KEY_HEAD_BYTES: u32 = 6;

/// Places in the buffer where a key can begin; a power of two.
const PLACES: usize = 512;

/// Bytes of a trie key with its prefix length before it.
const TRIE_KEY_BYTES: usize = 260;

/// Bytes of a label's key before the label: prefix length, policy id, mark, set.
const LABEL_HEAD_BYTES: usize = 11;

/// Room for a key at every place.
const KEY_BYTES: usize = PLACES + TRIE_KEY_BYTES + 4;

/// Result of one step.
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
    /// Hash of the labels in lower case. It only distinguishes the names of one answer. That answer is a trusted
    /// resolver's to a query that was noted, and anybody who could put a name into it that has the hash of another
    /// could as well put the other one in; a name that a rule is looked up for is compared byte by byte. A PRF would
    /// cost a round for each byte, of answers that may have 3,000.
    pub hash: u64,
    /// Next byte.
    at: u32,
    /// First byte behind the name where it was met; 0 until it is known.
    pub end: u32,
    /// Bytes left of the label.
    label_left: u32,
    /// Bytes of text so far, dots included.
    pub text_bytes: u32,
    /// Bytes of the first label.
    first_label: u32,
    /// Pointers followed.
    pointers: u32,
    /// Where the part of the name began that is being read: pointers go before it, so that they end.
    part_at: u32,
    /// 1 when a byte was met that no rule can match.
    pub is_unmatchable: u32,
    /// Where the text begins in `key`.
    text_at: u32,
    /// The text backwards, ending before `TEXT_END`, then zeros; the trie key's head is written before it.
    key: [u8; KEY_BYTES],
    /// The key of the first label, and what was there before it.
    label: [u8; TRIE_KEY_BYTES],
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
            first_label: 0,
            pointers: 0,
            part_at: 0,
            is_unmatchable: 0,
            text_at: TEXT_END,
            key: [0; KEY_BYTES],
            label: [0; TRIE_KEY_BYTES],
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
        self.first_label = 0;
        self.pointers = 0;
        self.part_at = at;
        self.is_unmatchable = 0;
        self.text_at = TEXT_END;
    }

    /// Cost of reading the name, in units of [`ANSWER_WORK`](super::ANSWER_WORK): a pointer takes as long as a byte.
    #[inline(always)]
    #[must_use]
    pub const fn work(&self) -> u64 {
        (self.text_bytes as u64).wrapping_add(self.pointers as u64)
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
            self.first_label = u32::from(byte);
            NameStep::More
        } else {
            self.push(b'.')
        }
    }

    /// Reads one byte of a name that stands as text from the beginning of `message` on, as the hello of TLS has it:
    /// without a final dot, letters in any case. Text that ends in a number is an address, and no name.
    #[inline(always)]
    pub fn step_text(&mut self, message: &Message) -> NameStep {
        let at = self.at;
        let label_bytes = self.label_left;
        if at >= message.length {
            // Of the label, `pointers` counts what is no digit.
            if label_bytes == 0 || self.pointers == 0 {
                return NameStep::Malformed;
            }
            if self.first_label == 0 {
                self.first_label = label_bytes;
            }
            return NameStep::Done;
        }
        let lower = message.byte(at).to_ascii_lowercase();
        self.at = at.wrapping_add(1);
        if lower == b'.' {
            if label_bytes == 0 {
                return NameStep::Malformed;
            }
            if self.first_label == 0 {
                self.first_label = label_bytes;
            }
            self.label_left = 0;
            self.pointers = 0;
            return self.push(lower);
        }
        if !is_matchable(lower) || label_bytes as usize >= LABEL_BYTES {
            return NameStep::Malformed;
        }
        if !lower.is_ascii_digit() {
            self.pointers = self.pointers.wrapping_add(1);
        }
        self.label_left = label_bytes.wrapping_add(1);
        self.push(lower)
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
        let slot = self.text_at.wrapping_sub(1);
        self.key[slot as usize & (PLACES - 1)] = byte;
        self.text_at = slot;
        self.text_bytes = length.wrapping_add(1);
        NameStep::More
    }

    /// Writes the head of the trie key before the text, and says where in the buffer the key begins.
    ///
    /// The key is 260 bytes from there: prefix length in native byte order,
    /// policy id in big endian, text backwards, zero byte (nothing ever writes behind the text).
    #[inline(always)]
    pub fn trie_key(&mut self, policy_id: u16) -> *const u8 {
        let bits = exact_key_bits(self.text_bytes);
        // The place is loaded and masked, not computed from the length: the
        // verifier wants to see a bounded number before it meets the pointer.
        let at = self.text_at.wrapping_sub(KEY_HEAD_BYTES) as usize & (PLACES - 1);
        let [b0, b1, b2, b3] = bits.to_ne_bytes();
        let [high, low] = policy_id.to_be_bytes();
        for (index, byte) in [b0, b1, b2, b3, high, low].into_iter().enumerate() {
            put(&mut self.key, at, index, byte);
        }
        key_from(&self.key, at)
    }

    /// Where the text begins: backwards, as many zeros behind it as fill 256 bytes.
    #[inline(always)]
    #[must_use]
    pub fn text(&self) -> *const u8 {
        // Masked for the verifier, as in `trie_key`.
        key_from(&self.key, self.text_at as usize & (PLACES - 1))
    }

    /// The name, or a part of it, stood elsewhere in the message.
    #[inline(always)]
    #[must_use]
    pub const fn has_pointers(&self) -> bool {
        self.pointers != 0
    }

    /// Bytes of the text behind the first label, dots included.
    #[inline(always)]
    #[must_use]
    pub const fn tail_bytes(&self) -> u32 {
        self.text_bytes.wrapping_sub(self.first_label)
    }

    /// Writes the key of the first label in a set of patterns; returns where it begins.
    ///
    /// As many bytes are copied as the longest label has: those behind it lie beyond the key's prefix length.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "constants, in bounds")]
    pub fn label_key(&mut self, policy_id: u16, set: u32) -> *const u8 {
        let [b0, b1, b2, b3] = label_key_bits(self.first_label).to_ne_bytes();
        let [high, low] = policy_id.to_be_bytes();
        let [s0, s1, s2, s3] = set.to_be_bytes();
        let head = [b0, b1, b2, b3, high, low, LABEL_MARK, s0, s1, s2, s3];
        for (slot, byte) in self.label.iter_mut().zip(head) {
            *slot = byte;
        }
        let mut at = 0;
        while at < LABEL_BYTES {
            self.label[LABEL_HEAD_BYTES.wrapping_add(at)] =
                self.key[(TEXT_END as usize).wrapping_sub(1).wrapping_sub(at)];
            at = at.wrapping_add(1);
        }
        self.label.as_ptr()
    }

    /// The name as text, first byte last: for the host.
    #[must_use]
    pub fn reversed_text(&self) -> &[u8] {
        self.key
            .get(self.text_at as usize..TEXT_END as usize)
            .unwrap_or_default()
    }
}

impl Default for NameReader {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = assert!(TEXT_END as usize >= NAME_TEXT_BYTES + KEY_HEAD_BYTES as usize);
const _: () = assert!(TEXT_END as usize + TRIE_KEY_BYTES <= KEY_BYTES);
const _: () = assert!(LABEL_HEAD_BYTES + LABEL_BYTES <= TRIE_KEY_BYTES);
const _: () = assert!(MESSAGE_BYTES.is_power_of_two());

#[inline(always)]
#[expect(
    unsafe_code,
    reason = "an index check here would be a branch that the verifier cannot remove"
)]
fn put(key: &mut [u8; KEY_BYTES], at: usize, index: usize, byte: u8) {
    // SAFETY: `at` is below `PLACES` and `index` at most 5 (see `trie_key`): both are in the buffer.
    let slot = unsafe { key.as_mut_ptr().add(at) };
    // SAFETY: as above.
    let slot = unsafe { slot.add(index) };
    // SAFETY: as above.
    unsafe { slot.write(byte) }
}

#[inline(always)]
#[expect(unsafe_code, reason = "the kernel's helper takes a pointer")]
fn key_from(key: &[u8; KEY_BYTES], at: usize) -> *const u8 {
    // SAFETY: `at` is below `PLACES`, and from each place a whole key is in the buffer.
    unsafe { key.as_ptr().add(at) }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "test code")]
mod tests {
    use std::vec::Vec;

    use hickory_proto::{
        rr::Name,
        serialize::binary::{BinDecodable, BinDecoder},
    };
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::name::{NAME_KEY_BYTES, exact_key, label_key};

    fn read(reader: &mut NameReader, bytes: &[u8], at: u32) -> bool {
        let message = Message::from_slice(bytes).expect("a message that fits");
        reader.start(at, 1);
        for _ in 0..NAME_STEPS {
            match reader.step(&message) {
                NameStep::More => {}
                NameStep::Done => return true,
                NameStep::Malformed => return false,
            }
        }
        false
    }

    /// The key as the kernel's helper sees it: 260 bytes from the pointer.
    fn key_at_pointer(reader: &mut NameReader, policy_id: u16) -> (u32, [u8; NAME_KEY_BYTES]) {
        let pointer = reader.trie_key(policy_id);
        let at = pointer.addr() - reader.key.as_ptr().addr();
        let key = &reader.key[at..at + TRIE_KEY_BYTES];
        let (bits, data) = key.split_at(4);
        (
            u32::from_ne_bytes(bits.try_into().expect("four bytes")),
            data.try_into().expect("256 bytes"),
        )
    }

    /// Labels of any bytes, often ordinary ones, up to the greatest length of a name.
    fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let ordinary = "[a-zA-Z0-9_-]{1,63}".prop_map(|text| text.into_bytes());
        let label = prop_oneof![3 => ordinary, 1 => vec(any::<u8>(), 1..=63)];
        vec(label, 0..9).prop_map(|mut labels| {
            let mut room = 254;
            labels.retain(|label| {
                let fits = label.len() < room;
                if fits {
                    room -= label.len() + 1;
                }
                fits
            });
            labels
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn text_and_key_are_what_hickory_reads(
            names in vec(labels(), 1..4),
            policy_id: u16,
        ) {
            // One reader for all of them: the rest of an earlier name must not matter.
            let mut reader = NameReader::new();
            for labels in names {
                let mut wire = Vec::new();
                for label in &labels {
                    wire.push(u8::try_from(label.len()).expect("a label"));
                    wire.extend(label);
                }
                wire.push(0);
                let name = Name::read(&mut BinDecoder::new(&wire)).expect("a name");
                let mut text = Vec::new();
                for label in name.to_lowercase().iter() {
                    if !text.is_empty() {
                        text.push(b'.');
                    }
                    text.extend(label);
                }
                prop_assert!(read(&mut reader, &wire, 0));
                let read_text: Vec<u8> = reader.reversed_text().iter().rev().copied().collect();
                prop_assert_eq!(&read_text, &text);
                prop_assert_eq!(reader.end as usize, wire.len());
                let odd = labels.iter().flatten().any(|byte| !is_matchable(byte.to_ascii_lowercase()));
                prop_assert_eq!(reader.is_unmatchable != 0, odd);

                let (bits, data) = key_at_pointer(&mut reader, policy_id);
                let (expected_bits, expected) = exact_key(policy_id, &text);
                prop_assert_eq!(bits, expected_bits);
                let bytes = bits as usize / 8;
                prop_assert_eq!(&data[..bytes], &expected[..bytes]);
                let first = labels.first().map_or(&b""[..], Vec::as_slice).to_ascii_lowercase();
                prop_assert_eq!(reader.tail_bytes() as usize, text.len() - first.len());
                reader.label_key(policy_id, 0x0102_0304);
                let (bits, data) = reader.label.split_at(4);
                let (expected_bits, expected) = label_key(policy_id, 0x0102_0304, &first);
                prop_assert_eq!(bits, expected_bits.to_ne_bytes());
                let bytes = expected_bits as usize / 8;
                prop_assert_eq!(&data[..bytes], &expected[..bytes]);
                // The text is still there after the keys were made.
                let again: Vec<u8> = reader.reversed_text().iter().rev().copied().collect();
                prop_assert_eq!(&again, &text);
            }
        }
    }

    fn read_text(reader: &mut NameReader, text: &[u8]) -> bool {
        let message = Message::from_slice(text).expect("a message that fits");
        reader.start(0, 0);
        for _ in 0..NAME_STEPS {
            match reader.step_text(&message) {
                NameStep::More => {}
                NameStep::Done => return true,
                NameStep::Malformed => return false,
            }
        }
        false
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_name_as_text_has_the_keys_of_the_same_name_in_dns(
            labels in vec("[a-zA-Z0-9_-]{0,62}[a-zA-Z]", 1..4),
            before in vec(any::<u8>(), 0..40),
        ) {
            let mut wire = Vec::new();
            for label in &labels {
                wire.push(u8::try_from(label.len()).expect("a label"));
                wire.extend(label.as_bytes());
            }
            wire.push(0);
            let (mut dns, mut text) = (NameReader::new(), NameReader::new());
            // The rest of an earlier name does not matter.
            read_text(&mut text, &before);
            prop_assert!(read(&mut dns, &wire, 0));
            prop_assert!(read_text(&mut text, labels.join(".").as_bytes()));
            prop_assert_eq!(key_at_pointer(&mut text, 7), key_at_pointer(&mut dns, 7));
            prop_assert_eq!(text.tail_bytes(), dns.tail_bytes());
            text.label_key(7, 9);
            dns.label_key(7, 9);
            prop_assert_eq!(&text.label[..74], &dns.label[..74]);
        }
    }

    #[test]
    fn what_is_no_name_is_none_as_text() {
        let mut reader = NameReader::new();
        let long = [b'a'; 64];
        for text in [
            &b""[..],
            b".",
            b"a.",
            b".a",
            b"a..b",
            b"a b",
            b"a\0b",
            b"192.0.2.1",
            b"a.1",
            b"fd77::2",
            b"[fd77::2]",
            b"\xc3\xa4.example",
            &long,
        ] {
            assert!(!read_text(&mut reader, text), "{text:?}");
        }
        for text in [&b"a"[..], b"1a", b"1.a", b"xn--4ca.example", &long[..63]] {
            assert!(read_text(&mut reader, text), "{text:?}");
        }
        // 253 bytes fit, 254 do not.
        let long = [&[b'a'; 60][..]; 4].join(&b'.');
        let longest = [&long, &b".aaaaaaaaa"[..]].concat();
        assert_eq!(longest.len(), NAME_TEXT_BYTES);
        assert!(read_text(&mut reader, &longest));
        assert!(!read_text(&mut reader, &[&longest, &b"a"[..]].concat()));
    }

    #[test]
    fn the_key_stays_in_the_buffer_for_every_length() {
        let mut reader = NameReader::new();
        for length in 0..=u32::try_from(NAME_TEXT_BYTES).expect("a length") {
            reader.text_bytes = length;
            reader.text_at = TEXT_END - length;
            let (bits, _) = key_at_pointer(&mut reader, 7);
            assert_eq!(bits, 16 + (length + 1) * 8);
            assert_eq!(reader.key[264..], [0; KEY_BYTES - 264]);
        }
    }

    #[test]
    fn a_dead_end_is_malformed() {
        let mut reader = NameReader::new();
        for bytes in [
            &b""[..],
            b"\x01",
            b"\x01a",
            b"\x02a\x00",
            b"\xc0",
            b"\xc0\x00",
            b"\x40a",
            b"\x80a",
        ] {
            assert!(!read(&mut reader, bytes, 0), "{bytes:?}");
        }
        assert!(!read(&mut reader, b"\x00", 1));
        assert!(read(&mut reader, b"\x00", 0));
    }
}
