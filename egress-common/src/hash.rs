//! Hashing: keyed mixing for tags and questions, FNV-1a for rule identities.

/// Multiplier of [`mix`]: 2^64 divided by the golden ratio, an odd number whose bits are well spread.
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Folds `word` into `state`.
///
/// Keyed by the start value: whoever does not know the seed (random, made when
/// the maps are, readable by root only) cannot compute collisions offline.
#[inline(always)]
#[must_use]
pub const fn mix(state: u64, word: u64) -> u64 {
    let product = (state ^ word).wrapping_mul(MULTIPLIER);
    product ^ (product >> 32)
}

/// Folds a 16-byte address into `state`.
#[inline(always)]
#[must_use]
pub const fn mix_address(state: u64, address: &[u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    let first = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    let second = u64::from_ne_bytes([i, j, k, l, m, n, o, p]);
    mix(mix(state, first), second)
}

/// FNV-1a, 64 bit: the same content has the same identity in every build and on every machine.
///
/// <http://www.isthe.com/chongo/tech/comp/fnv/>
#[must_use]
pub const fn fnv1a(bytes: &[u8]) -> u64 {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    let mut rest = bytes;
    while let [byte, tail @ ..] = rest {
        state = (state ^ *byte as u64).wrapping_mul(0x0100_0000_01b3);
        rest = tail;
    }
    state
}

/// Bits of a rule's identity: with a reason it fits into one 64-bit number.
pub const RULE_BITS: u32 = 56;

/// Identity of a rule with this content; never 0, which stands for "no rule".
#[must_use]
pub const fn rule_identity(content: &[u8]) -> u64 {
    let hash = fnv1a(content);
    let folded = (hash ^ (hash >> RULE_BITS)) & ((1 << RULE_BITS) - 1);
    if folded == 0 { 1 } else { folded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_gives_the_published_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_rule_has_an_identity_of_56_bits() {
        for content in [&b""[..], b"a", b"policy/allow/*.example.com/443"] {
            let rule = rule_identity(content);
            assert!(rule != 0 && rule >> RULE_BITS == 0);
        }
        assert_ne!(rule_identity(b"a"), rule_identity(b"b"));
    }

    #[test]
    fn mix_depends_on_seed_word_and_order() {
        assert_ne!(mix(1, 2), mix(2, 2));
        assert_ne!(mix(1, 2), mix(1, 3));
        assert_ne!(mix(mix(1, 2), 3), mix(mix(1, 3), 2));
    }
}
