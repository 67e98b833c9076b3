//! The table of flows that have no socket of their own: `FLOWS`.
//!
//! An array of buckets, so that it cleans itself when no agent does, and no holder can take it from the others: in a
//! full bucket the holder that has most of it gives up its least recently used flow. A holder with few flows loses none
//! to one with many, and a lone holder may use all of it. Nobody can choose the bucket of a flow: see [`FlowKey::id`].

use super::{FLOW_IDLE_NS, FlowKey, STARTED_BY_REMOTE, TCP_IDLE_NS};
use crate::{
    barrier::hide,
    hash::{Sip, SipKey},
    learned::bpf_spin_lock,
    maps::FLOW_BUCKETS,
};

/// Flows of one bucket.
pub const FLOW_SLOTS: usize = 16;

/// Memory of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlowFacts {
    /// Rule by which the workload's flow was allowed; 0 for the remote's.
    pub rule: u64,
    /// Generation in which it was allowed; 0 for the remote's.
    pub generation: u32,
    /// Tick of the last [`LIVE_FLOW_NS`](super::LIVE_FLOW_NS) stamp.
    pub stamp: u16,
    /// The side that spoke first: [`STARTED_BY_REMOTE`] or [`STARTED_BY_WORKLOAD`](super::STARTED_BY_WORKLOAD).
    pub started_by: u8,
}

impl FlowFacts {
    /// Proof that these facts were written under a key with this id.
    ///
    /// A slot may be given to another key while a reader, who takes no lock, still has it, and the reader then sees that
    /// key's facts, or a part of them. A pseudorandom function of id and facts, under a key that nobody knows, is right for
    /// none of these. `stamp` grants nothing.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self, id: u64, secret: &SipKey) -> u64 {
        Sip::new(secret)
            .word(id)
            .word(self.rule)
            .word((self.generation as u64) << 8 | self.started_by as u64)
            .finish()
    }
}

/// A flow in a bucket. Readers accept it when `tag` fits what they read, and then the key is theirs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlowState {
    /// Key of the flow.
    pub key: FlowKey,
    /// [`FlowFacts::tag`].
    pub tag: u64,
    /// As in [`FlowFacts`].
    pub rule: u64,
    /// As in [`FlowFacts`].
    pub generation: u32,
    /// As in [`FlowFacts`].
    pub stamp: u16,
    /// As in [`FlowFacts`].
    pub started_by: u8,
    /// Padding, always zero.
    pub _pad: u8,
}
const _: () = assert!(size_of::<FlowState>() == 72 && align_of::<FlowState>() == 8);

/// Value of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlowBucket {
    /// Guards every write but those of `seen_ns` and `stamp` by users of a flow, which grant nothing.
    pub lock: bpf_spin_lock,
    /// Padding, always zero.
    pub _pad: u32,
    /// [`FlowKey::id`] of each flow; 0 for a free slot.
    pub ids: [u64; FLOW_SLOTS],
    /// Last packet of each, nanoseconds of the clock since boot.
    pub seen_ns: [u64; FLOW_SLOTS],
    /// [`FlowKey::holder`] of each.
    pub holders: [u32; FLOW_SLOTS],
    /// The flows.
    pub flows: [FlowState; FLOW_SLOTS],
}
const _: () = assert!(size_of::<FlowBucket>() == 1_480 && align_of::<FlowBucket>() == 8);

/// No slot.
const NONE: u64 = FLOW_SLOTS as u64;

/// Flag of a holder: an interface.
const BY_INTERFACE: u32 = 1 << 31;

impl FlowKey {
    /// The key as words.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u64; 6] {
        let [remote_first, remote_second] = self.remote;
        let [local_first, local_second] = self.local;
        let ports = (self.remote_port as u64) << 48 | (self.local_port as u64) << 32;
        let kinds = (self.proto as u64) << 8 | self.by_interface as u64;
        [
            remote_first,
            remote_second,
            local_first,
            local_second,
            (self.owner as u64) << 32 | self.netns as u64,
            ports | kinds,
        ]
    }

    /// Number of the flow, never 0: a pseudorandom function of the whole key. It finds the flow; the key is compared.
    #[inline(always)]
    #[must_use]
    pub const fn id(&self, secret: &SipKey) -> u64 {
        let [a, b, c, d, e, f] = self.words();
        // Word by word: an array would take its place on the kernel's small stack.
        Sip::new(secret)
            .word(a)
            .word(b)
            .word(c)
            .word(d)
            .word(e)
            .word(f)
            .finish()
            | 1
    }

    /// Bucket of the flow with this id.
    #[inline(always)]
    #[must_use]
    pub const fn bucket(id: u64) -> u32 {
        (id >> 32) as u32 & (FLOW_BUCKETS - 1)
    }

    /// The holder whose part of the table the flow takes: a workload, in whatever network namespace, or an interface.
    #[inline(always)]
    #[must_use]
    pub const fn holder(&self) -> u32 {
        if self.by_interface == 0 {
            self.owner & !BY_INTERFACE
        } else {
            self.owner | BY_INTERFACE
        }
    }

    /// Both are one, compared in full.
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, other: &Self) -> bool {
        let [a, b, c, d, e, f] = self.words();
        let [u, v, w, x, y, z] = other.words();
        (a ^ u) | (b ^ v) | (c ^ w) | (d ^ x) | (e ^ y) | (f ^ z) == 0
    }
}

// Without branches, so that the kernel's verifier goes through the code below once. A condition is 0 or 1, and hidden
// before and after it becomes that: the compiler knows the usual ways to compute one, and makes branches of them.

#[inline(always)]
fn is_zero(number: u64) -> u64 {
    hide((hide(number | number.wrapping_neg()) >> 63) ^ 1)
}

/// 1 if `a` is less than `b`, else 0; both below 2^63.
#[inline(always)]
fn is_less(a: u64, b: u64) -> u64 {
    hide(hide(a.wrapping_sub(b)) >> 63)
}

#[inline(always)]
const fn select(condition: u64, yes: u64, no: u64) -> u64 {
    no ^ ((yes ^ no) & condition.wrapping_neg())
}

/// Time since a flow was seen; 0 when another CPU's clock is ahead.
#[inline(always)]
fn age_ns(seen_ns: u64, now_ns: u64) -> u64 {
    let age_ns = now_ns.wrapping_sub(seen_ns);
    age_ns & hide(hide(age_ns) >> 63).wrapping_sub(1)
}

impl FlowBucket {
    /// Slot of the flow with this id; [`FLOW_SLOTS`] for none.
    #[inline(always)]
    fn place_of(&self, id: u64) -> u64 {
        let mut place = NONE;
        let mut at = 0;
        for held in &self.ids {
            place = select(is_zero(*held ^ id), at, place);
            at = at.wrapping_add(1);
        }
        place
    }

    /// A slot without a flow, or with one that is over; [`FLOW_SLOTS`] for none.
    #[inline(always)]
    fn free_place(&self, now_ns: u64) -> u64 {
        let mut place = NONE;
        let mut at = 0;
        for ((held, seen_ns), holder) in self.ids.iter().zip(&self.seen_ns).zip(&self.holders) {
            let idle_ns = select(u64::from(*holder >> 31), TCP_IDLE_NS, FLOW_IDLE_NS);
            let is_free = is_zero(*held) | is_less(idle_ns, age_ns(*seen_ns, now_ns));
            place = select(is_free, at, place);
            at = at.wrapping_add(1);
        }
        place
    }

    /// The slot to give up for a flow of `holder`: of the one that would have most, the one unused for longest.
    #[inline(always)]
    fn place_to_give_up(&self, holder: u32, now_ns: u64) -> u64 {
        let mut place = 0;
        let mut most = 0;
        let mut at = 0;
        for (seen_ns, own) in self.seen_ns.iter().zip(&self.holders) {
            let mut count = is_zero(u64::from(*own ^ holder));
            for other in &self.holders {
                count = count.wrapping_add(is_zero(u64::from(*own ^ *other)));
            }
            // An age of a flow that is not over is below 2^43 ns. Every rank is above 0, which is compared first.
            let rank = count << 48 | age_ns(*seen_ns, now_ns);
            let is_better = is_less(most, rank);
            place = select(is_better, at, place);
            most = select(is_better, rank, most);
            at = at.wrapping_add(1);
        }
        place
    }

    /// Notes a flow, under the lock: where it stands already, in a free slot, or instead of another. A flow that the
    /// remote started does not replace its entry while that is not over. Returns the side that started the flow that
    /// stands there now.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        reason = "the mask leaves an index of a slot"
    )]
    pub fn note(&mut self, id: u64, key: &FlowKey, facts: &FlowFacts, tag: u64, now_ns: u64) -> u8 {
        let mut place = self.place_of(id);
        if place == NONE {
            place = self.free_place(now_ns);
            if place == NONE {
                place = self.place_to_give_up(key.holder(), now_ns);
            }
        } else if facts.started_by == STARTED_BY_REMOTE {
            let at = hide(place) as usize & (FLOW_SLOTS - 1);
            let idle_ns = if key.proto == 6 {
                TCP_IDLE_NS
            } else {
                FLOW_IDLE_NS
            };
            if age_ns(self.seen_ns[at], now_ns) <= idle_ns {
                return self.flows[at].started_by;
            }
        }
        let at = hide(place) as usize & (FLOW_SLOTS - 1);
        self.ids[at] = id;
        self.seen_ns[at] = now_ns;
        self.holders[at] = key.holder();
        let flow = &mut self.flows[at];
        flow.key = *key;
        flow.tag = tag;
        flow.rule = facts.rule;
        flow.generation = facts.generation;
        flow.stamp = facts.stamp;
        flow.started_by = facts.started_by;
        facts.started_by
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        reason = "tests panic"
    )]

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::flow::STARTED_BY_WORKLOAD;

    const SECRET: SipKey = SipKey {
        k0: 0x0706_0504_0302_0100,
        k1: 0x0f0e_0d0c_0b0a_0908,
    };
    const SECOND: u64 = 1_000_000_000;

    fn key(owner: u32, remote_port: u16) -> FlowKey {
        FlowKey {
            remote: [0, 9],
            owner,
            netns: 3,
            remote_port,
            local_port: 5_000,
            proto: 17,
            ..FlowKey::default()
        }
    }

    fn note(bucket: &mut FlowBucket, key: &FlowKey, started_by: u8, now_ns: u64) -> u8 {
        let facts = FlowFacts {
            started_by,
            ..FlowFacts::default()
        };
        let id = key.id(&SECRET);
        bucket.note(id, key, &facts, facts.tag(id, &SECRET), now_ns)
    }

    fn has(bucket: &FlowBucket, key: &FlowKey) -> bool {
        let found = bucket.place_of(key.id(&SECRET));
        found != NONE && bucket.flows[found as usize].key.is(key)
    }

    fn ports_of(bucket: &FlowBucket, owner: u32) -> Vec<u16> {
        let held = bucket.ids.iter().zip(&bucket.flows);
        let own = held.filter(|(id, flow)| **id != 0 && flow.key.owner == owner);
        own.map(|(_, flow)| flow.key.remote_port).collect()
    }

    proptest! {
        #[test]
        fn an_id_is_of_one_key_and_a_tag_of_one_content(
            remote: [u64; 2], local: [u64; 2], owner: u32, netns: u32, ports: [u16; 2], by_interface in 0_u8..2,
            rule in 0_u64..1 << 56, generation: u32, bit in 0_u32..64,
        ) {
            let key = FlowKey {
                remote, local, owner, netns, remote_port: ports[0], local_port: ports[1], proto: 17, by_interface, _pad: [0; 2],
            };
            let id = key.id(&SECRET);
            let (flipped, half) = (1_u64 << bit, 1_u32 << (bit % 32));
            let port = 1_u16 << (bit % 16);
            let keys = [
                FlowKey { remote: [remote[0] ^ flipped, remote[1]], ..key },
                FlowKey { remote: [remote[0], remote[1] ^ flipped], ..key },
                FlowKey { local: [local[0] ^ flipped, local[1]], ..key },
                FlowKey { local: [local[0], local[1] ^ flipped], ..key },
                FlowKey { owner: owner ^ half, ..key },
                FlowKey { netns: netns ^ half, ..key },
                FlowKey { remote_port: ports[0] ^ port, ..key },
                FlowKey { local_port: ports[1] ^ port, ..key },
                FlowKey { proto: 6, ..key },
                FlowKey { by_interface: by_interface ^ 1, ..key },
            ];
            prop_assert!(key.is(&key) && id != 0);
            for other in keys {
                prop_assert!(!other.is(&key));
                prop_assert_ne!(other.id(&SECRET), id);
            }
            let facts = FlowFacts { rule, generation, started_by: STARTED_BY_WORKLOAD, stamp: 0 };
            let tag = facts.tag(id, &SECRET);
            let others = [
                FlowFacts { rule: rule ^ flipped, ..facts },
                FlowFacts { generation: generation ^ half, ..facts },
                FlowFacts { started_by: STARTED_BY_REMOTE, ..facts },
            ];
            for other in others {
                prop_assert_ne!(other.tag(id, &SECRET), tag);
            }
            prop_assert_ne!(facts.tag(id ^ flipped, &SECRET), tag);
            prop_assert_ne!(facts.tag(id, &SipKey { k0: SECRET.k0 ^ flipped, ..SECRET }), tag);
            // A fact that grants nothing may change without a new tag.
            prop_assert_eq!(FlowFacts { stamp: 2, ..facts }.tag(id, &SECRET), tag);
        }

        #[test]
        fn conditions_without_branches_are_right(a in 0_u64..1 << 63, b in 0_u64..1 << 63) {
            prop_assert_eq!(is_zero(a), u64::from(a == 0));
            prop_assert_eq!(is_zero(a ^ a), 1);
            prop_assert_eq!(is_less(a, b), u64::from(a < b));
            prop_assert_eq!(select(1, a, b), a);
            prop_assert_eq!(select(0, a, b), b);
            prop_assert_eq!(age_ns(a, b), b.saturating_sub(a));
        }

        /// Holders that have no more than their part of a bucket keep the flows they use, whatever many others do.
        #[test]
        fn who_has_few_flows_loses_none_to_who_has_many(
            steps in proptest::collection::vec((0_u32..3, any::<u16>()), 1..200),
        ) {
            let mut bucket = FlowBucket::default();
            let polite: Vec<FlowKey> = (0..4).map(|port| key(100, port)).collect();
            for (at, own) in polite.iter().enumerate() {
                note(&mut bucket, own, STARTED_BY_REMOTE, 1 + at as u64);
            }
            // Three others, of which each could fill the bucket: four slots for each holder are its part.
            for (at, (owner, port)) in steps.iter().enumerate() {
                note(&mut bucket, &key(*owner, *port), STARTED_BY_WORKLOAD, 10 + at as u64);
                for own in &polite {
                    prop_assert!(has(&bucket, own));
                }
            }
        }
    }

    #[test]
    fn a_full_bucket_gives_up_the_oldest_of_who_has_most() {
        let mut bucket = FlowBucket::default();
        for port in 0..12 {
            note(
                &mut bucket,
                &key(1, port),
                STARTED_BY_WORKLOAD,
                100 + u64::from(port),
            );
        }
        for port in 0..4 {
            note(
                &mut bucket,
                &key(2, port),
                STARTED_BY_REMOTE,
                10 + u64::from(port),
            );
        }
        // The flow of port 0 is used again: that of port 1 is unused for longest.
        bucket.seen_ns[bucket.place_of(key(1, 0).id(&SECRET)) as usize] = 500;
        note(&mut bucket, &key(2, 4), STARTED_BY_REMOTE, 600);
        assert!(has(&bucket, &key(1, 0)) && !has(&bucket, &key(1, 1)));
        assert_eq!(ports_of(&bucket, 2).len(), 5);
        // The flows of the holder that has most make room for its new one.
        note(&mut bucket, &key(1, 77), STARTED_BY_WORKLOAD, 700);
        assert!(has(&bucket, &key(1, 77)) && !has(&bucket, &key(1, 2)));
        // At equal parts it is the one that wants more.
        for port in 5..100 {
            note(
                &mut bucket,
                &key(2, port),
                STARTED_BY_REMOTE,
                800 + u64::from(port),
            );
        }
        assert_eq!(
            (ports_of(&bucket, 1).len(), ports_of(&bucket, 2).len()),
            (8, 8)
        );
        // A third has all that it uses.
        note(&mut bucket, &key(3, 1), STARTED_BY_REMOTE, 2_000);
        for port in 200..300 {
            note(
                &mut bucket,
                &key(1, port),
                STARTED_BY_REMOTE,
                3_000 + u64::from(port),
            );
        }
        assert!(has(&bucket, &key(3, 1)));
    }

    #[test]
    fn one_holder_has_one_part_whatever_its_namespaces() {
        let own = key(7, 1);
        assert_eq!(own.holder(), FlowKey { netns: 99, ..own }.holder());
        assert_ne!(
            own.holder(),
            FlowKey {
                by_interface: 1,
                ..own
            }
            .holder()
        );
    }

    #[test]
    fn flows_that_are_over_make_room_first() {
        let mut bucket = FlowBucket::default();
        for port in 0..15 {
            note(
                &mut bucket,
                &key(1, port),
                STARTED_BY_WORKLOAD,
                200 * SECOND,
            );
        }
        note(&mut bucket, &key(2, 0), STARTED_BY_REMOTE, 1);
        note(
            &mut bucket,
            &key(1, 99),
            STARTED_BY_WORKLOAD,
            FLOW_IDLE_NS + 2,
        );
        assert!(has(&bucket, &key(1, 99)) && !has(&bucket, &key(2, 0)));
        assert_eq!(ports_of(&bucket, 1).len(), 16);
    }

    #[test]
    fn a_call_does_not_replace_what_is_known_until_that_is_over() {
        let mut bucket = FlowBucket::default();
        let own = key(1, 1);
        assert_eq!(
            note(&mut bucket, &own, STARTED_BY_WORKLOAD, 10),
            STARTED_BY_WORKLOAD
        );
        assert_eq!(
            note(&mut bucket, &own, STARTED_BY_REMOTE, 20),
            STARTED_BY_WORKLOAD
        );
        let later = 10 + FLOW_IDLE_NS + 1;
        assert_eq!(
            note(&mut bucket, &own, STARTED_BY_REMOTE, later),
            STARTED_BY_REMOTE
        );
        assert_eq!(
            note(&mut bucket, &own, STARTED_BY_WORKLOAD, later),
            STARTED_BY_WORKLOAD
        );
        assert_eq!(ports_of(&bucket, 1), [1]);
    }
}
