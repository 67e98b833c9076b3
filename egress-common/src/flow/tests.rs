use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::{
    address::from_v4,
    packed::{address_words, v4_words},
};

fn peer() -> impl Strategy<Value = Peer> {
    (any::<[u64; 2]>(), any::<u16>()).prop_map(|(address, port)| Peer::new(address, port))
}

fn remembered() -> impl Strategy<Value = Remembered> {
    (any::<u32>(), 1_u64..1 << 56).prop_map(|(generation, rule)| Remembered { generation, rule })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flow_is_recalled_as_it_was_remembered_and_no_other_is(
        peer in peer(), proto: u8, remembered in remembered(), version in 1_u16.., bit in 0_usize..144, flip: u8,
    ) {
        let words = words_of(peer, proto, remembered, version);
        prop_assert_eq!(recall(words, peer, proto), remembered);
        // One bit of address or port is another flow; so is another protocol.
        let mut other = peer;
        other.0[bit / 48] ^= 1 << (bit % 48);
        prop_assert_eq!(recall(words, other, proto), Remembered::NOTHING);
        if flip != 0 {
            prop_assert_eq!(recall(words, peer, proto ^ flip), Remembered::NOTHING);
        }
    }

    /// Every mixture that a reader can see while others write, in any order of loads and stores.
    #[test]
    fn no_mixture_of_two_writes_is_a_flow(
        first in (peer(), any::<u8>(), remembered(), 1_u16..), second in (peer(), any::<u8>(), remembered(), 1_u16..),
        mixed in peer(), proto: u8,
    ) {
        prop_assume!(first.3 != second.3);
        let words = |write: (Peer, u8, Remembered, u16)| words_of(write.0, write.1, write.2, write.3);
        let (one, other) = (words(first), words(second));
        for choice in 1_u32..31 {
            let mut seen = one;
            for (at, word) in other.iter().enumerate() {
                if choice >> at & 1 == 1 {
                    seen[at] = *word;
                }
            }
            for (peer, proto) in [(first.0, first.1), (second.0, second.1), (mixed, proto)] {
                prop_assert_eq!(recall(seen, peer, proto), Remembered::NOTHING, "{}", choice);
            }
        }
    }

    #[test]
    fn a_half_first_write_is_no_flow(peer in peer(), proto: u8, remembered in remembered(), version in 1_u16.., choice in 0_u32..31) {
        let mut seen = [0; 5];
        for (at, word) in words_of(peer, proto, remembered, version).iter().enumerate() {
            if choice >> at & 1 == 1 {
                seen[at] = *word;
            }
        }
        prop_assert_eq!(recall(seen, peer, proto), Remembered::NOTHING);
        prop_assert_eq!(recall([0; 5], Peer::new([0, 0], 0), 0), Remembered::NOTHING);
    }
}

/// A pair that had one tag in the first layout: a multiplication made the tags, which carries differences only upwards,
/// so that flipping three bits gave the same tag whatever the seed was.
#[test]
fn bits_that_once_collided_make_other_flows() {
    let address = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9];
    let mut other = address;
    for at in [7, 11, 15] {
        other[at] ^= 0x80;
    }
    let peer = |address| Peer::new(address_words(&address), 1194);
    let remembered = Remembered {
        generation: 1,
        rule: 9,
    };
    let words = words_of(peer(address), 17, remembered, 1);
    assert_eq!(recall(words, peer(other), 17), Remembered::NOTHING);
    // IPv4 is no part of IPv6, nor the other way round.
    let v4 = from_v4([192, 0, 2, 1]);
    assert_eq!(
        address_words(&v4),
        v4_words(u32::from_ne_bytes([192, 0, 2, 1]))
    );
    let mut low = [0; 16];
    low[12..].copy_from_slice(&[192, 0, 2, 1]);
    let words = words_of(peer(v4), 17, remembered, 1);
    assert_eq!(recall(words, peer(low), 17), Remembered::NOTHING);
}

#[test]
fn flows_of_an_unknown_namespace_are_not_placed() {
    let key = FlowKey {
        remote: [0; 2],
        local: [0; 2],
        owner: 1,
        netns: 0,
        remote_port: 1,
        local_port: 2,
        proto: 17,
        by_interface: 0,
        _pad: [0; 2],
    };
    let placed: Vec<bool> = [
        key,
        FlowKey { netns: 7, ..key },
        FlowKey {
            by_interface: 1,
            ..key
        },
    ]
    .iter()
    .map(FlowKey::is_placed)
    .collect();
    assert_eq!(placed, [false, true, true]);
}

#[test]
fn a_stamp_is_due_after_a_whole_tick() {
    for (now, due) in [(5, false), (6, false), (7, true)] {
        assert_eq!(is_stamp_due(5, now), due);
    }
    assert!(!is_stamp_due(u16::MAX, 0) && is_stamp_due(u16::MAX, 1));
}

#[test]
fn each_port_has_a_byte_of_its_own_and_one_that_64_share() {
    let mut bytes: std::collections::BTreeMap<(u32, u32), u32> = std::collections::BTreeMap::new();
    for port in 0..=u16::MAX {
        for at in [CalledPorts::at(port), CalledPorts::above(port)] {
            assert!(at.0 < CALLED_PLACES && at.1 < 64, "{port}: {at:?}");
            *bytes.entry(at).or_default() += 1;
        }
    }
    assert_eq!(bytes.values().filter(|ports| **ports == 1).count(), 65_536);
    assert_eq!(bytes.values().filter(|ports| **ports == 64).count(), 1_024);
    assert_eq!(bytes.len(), 65_536 + 1_024);
}
