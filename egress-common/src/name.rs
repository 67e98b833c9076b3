//! Names as the tries store them: reversed text, so that a suffix becomes a prefix.
//!
//! `api.example.com` is `moc.elpmaxe.ipa\0`; `*.example.com` is `moc.elpmaxe.`
//! as a prefix: one or more labels below, the apex excluded. The zero byte
//! keeps `api.example.com` from matching as a prefix of longer names.

use crate::policy::POLICY_ID_BITS;

/// Longest name as text, without the final dot (RFC 1035 section 2.3.4: 255 bytes on the wire).
pub const NAME_TEXT_BYTES: usize = 253;

/// Bytes of a name trie key: policy id, reversed name, zero byte.
pub const NAME_KEY_BYTES: usize = 256;

/// Prefix length of the key of a whole name of `text_bytes` bytes, in bits.
#[inline(always)]
#[must_use]
pub const fn exact_key_bits(text_bytes: u32) -> u32 {
    POLICY_ID_BITS.wrapping_add(text_bytes.wrapping_add(1).wrapping_mul(8))
}

/// Whether a byte, already in lower case, may stand in a name that matches rules.
#[inline(always)]
#[must_use]
pub const fn is_matchable(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_')
}

/// A key for the name trie: `(prefix length in bits, data)`.
///
/// `text` is in lower case, without a final dot, at most [`NAME_TEXT_BYTES`]
/// long. For a wildcard `*.example.com` pass `example.com` and `true`.
#[must_use]
pub fn trie_key(policy_id: u16, text: &[u8], below: bool) -> (u32, [u8; NAME_KEY_BYTES]) {
    let mut data = [0; NAME_KEY_BYTES];
    let end = if below { b'.' } else { 0 };
    let bytes = policy_id
        .to_be_bytes()
        .into_iter()
        .chain(text.iter().rev().copied())
        .chain(core::iter::once(end));
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
        let (bits, data) = trie_key(0x0102, b"api.example.com", false);
        assert_eq!(&data[..18], b"\x01\x02moc.elpmaxe.ipa\0");
        assert_eq!(bits, 18 * 8);
        assert_eq!(bits, exact_key_bits(15));
    }

    #[test]
    fn a_wildcard_is_a_prefix_that_ends_in_a_dot() {
        let (bits, data) = trie_key(1, b"example.com", true);
        assert_eq!(&data[2..14], b"moc.elpmaxe.");
        assert_eq!(bits, 14 * 8);
    }

    #[test]
    fn the_longest_name_fits() {
        let text = [b'a'; NAME_TEXT_BYTES];
        let (bits, data) = trie_key(1, &text, false);
        assert_eq!(bits as usize, NAME_KEY_BYTES * 8);
        assert_eq!(data[255], 0);
    }
}
