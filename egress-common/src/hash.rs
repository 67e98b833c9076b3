//! Hashing: SipHash for identities that somebody could otherwise steer; cheaper functions where a hash grants nothing.

/// Key of [`sip13`], 128 bits from the system's random numbers; one for each purpose.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SipKey {
    /// First half.
    pub k0: u64,
    /// Second half.
    pub k1: u64,
}

/// SipHash-1-3 over whole words, little endian: a pseudorandom function, for identities whose full key cannot be held.
///
/// Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012. Words are fed one by one, so that the kernel
/// needs no buffer: `Sip::new(key)`, [`Sip::word`] for each, [`Sip::finish`].
#[derive(Clone, Copy, Debug)]
pub struct Sip {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
    words: u64,
}

impl Sip {
    /// Begins a hash under a key.
    #[inline(always)]
    #[must_use]
    pub const fn new(key: &SipKey) -> Self {
        Self {
            v0: key.k0 ^ 0x736f_6d65_7073_6575,
            v1: key.k1 ^ 0x646f_7261_6e64_6f6d,
            v2: key.k0 ^ 0x6c79_6765_6e65_7261,
            v3: key.k1 ^ 0x7465_6462_7974_6573,
            words: 0,
        }
    }

    #[inline(always)]
    const fn round(mut self) -> Self {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
        self
    }

    /// Takes the next word.
    #[inline(always)]
    #[must_use]
    pub const fn word(mut self, word: u64) -> Self {
        self.v3 ^= word;
        let mut next = self.round();
        next.v0 ^= word;
        next.words = next.words.wrapping_add(1);
        next
    }

    /// The hash of the words so far.
    #[inline(always)]
    #[must_use]
    pub const fn finish(self) -> u64 {
        // The last block holds the length in bytes, modulo 256, in its top byte.
        let last = self.words.wrapping_mul(8) << 56;
        let mut end = self.word(last);
        end.v2 ^= 0xff;
        let end = end.round().round().round();
        end.v0 ^ end.v1 ^ end.v2 ^ end.v3
    }
}

/// [`Sip`] over these words.
#[inline(always)]
#[must_use]
pub fn sip13(key: &SipKey, words: &[u64]) -> u64 {
    let mut state = Sip::new(key);
    for word in words {
        state = state.word(*word);
    }
    state.finish()
}

/// Multiplier of [`mix`]: 2^64 divided by the golden ratio, an odd number whose bits are well spread.
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Folds `word` into `state`: cheap, and **no identity that grants anything**. It can be inverted, so that anybody who
/// chooses words makes collisions. It places queries in buckets, where everything is compared, and distinguishes the
/// names of one answer ([`crate::dns::NameReader::hash`]), which come from one trusted resolver.
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

/// Key of [`rule_identity`]: no secret, as a rule has the same identity on every machine and after every start.
const RULE_KEY: SipKey = SipKey {
    k0: 0x6567_7265_7373_2072,
    k1: 0x756c_6520_6964_2e31,
};

/// Identity of a rule with this content; never 0, which stands for "no rule", or
/// [`MANY_RULES`](crate::learned::MANY_RULES).
///
/// A flow goes on while its policy has a rule of the identity by which it was allowed. So somebody who may write one
/// policy must not give a rule of it the identity of a rule in another: it takes some 2^55 trials.
#[must_use]
pub fn rule_identity(content: &[u8]) -> u64 {
    let (words, rest) = content.as_chunks::<8>();
    let mut state = Sip::new(&RULE_KEY);
    for word in words {
        state = state.word(u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    // The length distinguishes a rest from one with zeros behind it.
    let state = state
        .word(u64::from_le_bytes(last))
        .word(content.len() as u64);
    match state.finish() >> (u64::BITS - RULE_BITS) {
        0 | crate::learned::MANY_RULES => 1,
        folded => folded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(deprecated, reason = "the standard library's own, to compare with")]
    fn sip13_is_the_published_function() {
        use core::hash::{Hasher as _, SipHasher};
        // The standard library offers SipHash-2-4 under a key; its first words of test vectors are the authors' own:
        // the same state and rounds, twice as many of the one and one more of the other.
        let key = SipKey {
            k0: 0x0706_0504_0302_0100,
            k1: 0x0f0e_0d0c_0b0a_0908,
        };
        let mut state = Sip::new(&key);
        let word = 0x0706_0504_0302_0100_u64;
        state.v3 ^= word;
        let mut state = state.round().round();
        state.v0 ^= word;
        let last = 8_u64 << 56;
        state.v3 ^= last;
        let mut state = state.round().round();
        state.v0 ^= last;
        state.v2 ^= 0xff;
        let state = state.round().round().round().round();
        let mut theirs = SipHasher::new_with_keys(key.k0, key.k1);
        theirs.write(&word.to_le_bytes());
        assert_eq!(state.v0 ^ state.v1 ^ state.v2 ^ state.v3, theirs.finish());
    }

    #[test]
    fn sip13_depends_on_key_words_and_length() {
        let key = SipKey { k0: 1, k1: 2 };
        let hash = sip13(&key, &[1, 2]);
        assert_ne!(hash, sip13(&SipKey { k0: 2, k1: 1 }, &[1, 2]));
        assert_ne!(hash, sip13(&key, &[2, 1]));
        assert_ne!(hash, sip13(&key, &[1]));
        assert_ne!(sip13(&key, &[]), sip13(&key, &[0]));
    }

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
        assert_ne!(rule_identity(b"a"), rule_identity(b"a\0"));
        assert_ne!(rule_identity(b"12345678"), rule_identity(b"12345678\0"));
        assert_ne!(
            rule_identity(b"1234567812345678"),
            rule_identity(b"8765432112345678")
        );
    }

    #[test]
    fn mix_depends_on_seed_word_and_order() {
        assert_ne!(mix(1, 2), mix(2, 2));
        assert_ne!(mix(1, 2), mix(1, 3));
        assert_ne!(mix(mix(1, 2), 3), mix(mix(1, 3), 2));
    }
}
