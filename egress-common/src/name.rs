//! Names as the tries store them: reversed text, so that a suffix becomes a prefix.
//!
//! `api.example.com` is `moc.elpmaxe.ipa\0`; `*.example.com` is `moc.elpmaxe.`
//! as a prefix: one or more labels below, the apex excluded. The zero byte
//! keeps `api.example.com` from matching as a prefix of longer names.
//!
//! `md-*x.example.com` is two prefixes: `moc.elpmaxe.x` of the name, and `md-`
//! of its first label, which is looked up in the same trie, as it is written,
//! behind [`LABEL_MARK`] and the number of the set of such patterns.

use crate::policy::POLICY_ID_BITS;

/// Longest name as text, without the final dot (RFC 1035 section 2.3.4: 255 bytes on the wire).
pub const NAME_TEXT_BYTES: usize = 253;

/// Bytes of a name trie key: policy id, reversed name, zero byte.
pub const NAME_KEY_BYTES: usize = 256;

/// Longest label (RFC 1035 section 2.3.4).
pub const LABEL_BYTES: usize = 63;

/// Byte behind the policy id in the key of a label: no name begins or ends with it.
pub const LABEL_MARK: u8 = b'*';

/// Prefix length of the key of a label of `label_bytes` bytes, in bits: mark and set come first.
#[inline(always)]
#[must_use]
pub const fn label_key_bits(label_bytes: u32) -> u32 {
    POLICY_ID_BITS
        .wrapping_add(8)
        .wrapping_add(u32::BITS)
        .wrapping_add(label_bytes.wrapping_mul(8))
}

/// Prefix length of the key of a whole name of `text_bytes` bytes, in bits.
#[inline(always)]
#[must_use]
pub const fn exact_key_bits(text_bytes: u32) -> u32 {
    POLICY_ID_BITS.wrapping_add(text_bytes.wrapping_add(1).wrapping_mul(8))
}

/// The byte, already in lower case, may stand in a name that matches rules.
#[inline(always)]
#[must_use]
pub const fn is_matchable(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_')
}

/// A key of the trie: prefix length in bits, and data.
pub type NameKey = (u32, [u8; NAME_KEY_BYTES]);

/// The key of a whole name. All texts here are in lower case, without a final dot, at most [`NAME_TEXT_BYTES`] long.
#[must_use]
pub fn exact_key(policy_id: u16, name: &[u8]) -> NameKey {
    key(policy_id, name.iter().rev().copied().chain([0]))
}

/// The key of the names below a name.
#[must_use]
pub fn below_key(policy_id: u16, name: &[u8]) -> NameKey {
    key(policy_id, name.iter().rev().copied().chain([b'.']))
}

/// The key of the names that end in a text, wherever in a label it begins.
#[must_use]
pub fn ending_key(policy_id: u16, text: &[u8]) -> NameKey {
    key(policy_id, text.iter().rev().copied())
}

/// The key of the first labels that begin with a text, in a set.
#[must_use]
pub fn label_key(policy_id: u16, set: u32, text: &[u8]) -> NameKey {
    let head = core::iter::once(LABEL_MARK).chain(set.to_be_bytes());
    key(policy_id, head.chain(text.iter().copied()))
}

fn key(policy_id: u16, bytes: impl Iterator<Item = u8>) -> NameKey {
    let mut data = [0; NAME_KEY_BYTES];
    let bytes = policy_id.to_be_bytes().into_iter().chain(bytes);
    let mut bits = 0_u32;
    for (slot, byte) in data.iter_mut().zip(bytes) {
        *slot = byte;
        bits = bits.wrapping_add(8);
    }
    (bits, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_reversed_and_ends_in_zero() {
        let (bits, data) = exact_key(0x0102, b"api.example.com");
        assert_eq!(&data[..18], b"\x01\x02moc.elpmaxe.ipa\0");
        assert_eq!(bits, 18 * 8);
        assert_eq!(bits, exact_key_bits(15));
    }

    #[test]
    fn a_wildcard_is_a_prefix_that_ends_in_a_dot() {
        let (bits, data) = below_key(1, b"example.com");
        assert_eq!(&data[2..14], b"moc.elpmaxe.");
        assert_eq!(bits, 14 * 8);
        assert_eq!(ending_key(1, b".example.com"), (bits, data));
    }

    #[test]
    fn a_label_stands_behind_its_mark_and_set_as_it_is_written() {
        let (bits, data) = label_key(0x0102, 0x0304_0506, b"md-");
        assert_eq!(&data[..10], b"\x01\x02*\x03\x04\x05\x06md-");
        assert_eq!(bits, 10 * 8);
        assert_eq!(bits, label_key_bits(3));
    }

    #[test]
    fn the_longest_name_fits() {
        let text = [b'a'; NAME_TEXT_BYTES];
        let (bits, data) = exact_key(1, &text);
        assert_eq!(bits as usize, NAME_KEY_BYTES * 8);
        assert_eq!(data[255], 0);
    }
}
