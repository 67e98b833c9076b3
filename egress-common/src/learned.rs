//! Learned addresses: which holder may use which, on which ports, until when.
//!
//! One entry for a holder (a scope in a network namespace) and an address holds
//! up to [`GRANTS`] grants, one for each port range.
//!
//! Only kernel code (`egress-ebpf`'s `learn`) writes, under the entry's lock;
//! the agent asks for writes by running a program. Readers take no lock.
//! The kernel may give the memory of a deleted entry to another key at once,
//! while a reader still looks at it. So that nobody ever sees a grant of
//! another key as its own, on any architecture:
//!
//! - An entry names its owner by the full key ([`LearnedKey::words`]). Readers compare it *after* they read grants, with
//!   a barrier between.
//! - An entry is inserted without grants. They are written afterwards, behind a barrier: a reader that sees a grant of
//!   the new key sees the new owner too, also on arm64, where stores of another CPU arrive in any order without one.
//! - A slot's ports never change while the entry lives; its end is written last, behind a barrier, and its numbers only
//!   grow. A reader sees a grant or not, never more than was ever granted: of two writes each number is the old or the
//!   new one, and the larger ones are what was granted last.
//! - An entry goes in two steps, and only the agent starts them. First its owner becomes [`DOOMED`], under the lock:
//!   from then on nobody writes there. Then, when every program that may have seen it before has ended (the agent waits
//!   for the kernel's grace period), it is deleted. A writer that meets a doomed entry leaves its answer to the agent,
//!   which learns it when the entry is gone. An entry without any grant is one that is about to be filled: it stays.

use crate::{
    address::Address,
    barrier::barrier,
    hash::RULE_BITS,
    policy::{NAME_ENTRIES, PortRange, protocol},
};

/// Key of `LEARNED`: an address that a holder's own lookup returned.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LearnedKey {
    /// Scope that resolved it.
    pub scope_id: u32,
    /// Network namespace in which it did; 0, not known, holds nothing.
    pub netns: u32,
    /// The address.
    pub address: Address,
}
const _: () = assert!(size_of::<LearnedKey>() == 24 && align_of::<LearnedKey>() == 8);

impl LearnedKey {
    /// The key of an address of a holder.
    #[inline(always)]
    #[must_use]
    pub const fn new(scope_id: u32, netns: u32, address: Address) -> Self {
        Self {
            scope_id,
            netns,
            address,
        }
    }

    /// The owner that the entry of this key carries: the whole key.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u64; 3] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.address;
        [
            holder_word(self.scope_id, self.netns),
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        ]
    }
}

/// A holder as one word.
#[inline(always)]
#[must_use]
pub const fn holder_word(scope_id: u32, netns: u32) -> u64 {
    (scope_id as u64) << 32 | netns as u64
}

/// First word of the owner of an entry that is about to be deleted. No scope has that number.
pub const DOOMED: u64 = u64::MAX;

/// Rule of a grant that more rules share than have room: each of its policy that wants the connection to name its
/// destination. [`rule_identity`](crate::hash::rule_identity) gives no rule this number.
pub const MANY_RULES: u64 = (1 << RULE_BITS) - 1;

/// Most grants of one learned address.
pub const GRANTS: usize = NAME_ENTRIES;

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// One port range of a learned address with its own end. Grants by names that a policy in audit denies lie apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Grant {
    /// Until when answers say that it lives, nanoseconds of the clock since boot; 0 for a slot that was never used.
    pub expires_at_ns: u64,
    /// Identity of the rule that grants it.
    pub rule: u64,
    /// Identity of the rule by which a policy in audit denies the name that taught it; 0 for none.
    pub auditor: u64,
    /// When an allowed flow last used it, seconds of the clock since boot; 0 for never.
    pub used_at_s: u32,
    /// No use keeps it open for longer than until then, seconds of the clock since boot.
    pub limit_s: u32,
    /// The ports.
    pub ports: PortRange,
    /// A use keeps it open this long, seconds.
    pub grace_s: u16,
}
const _: () = assert!(size_of::<Grant>() == 40 && align_of::<Grant>() == 8);

impl Grant {
    /// Both can share a slot: the same ports, and, unless `in_any`, audited or not. A scope that asks for a name that
    /// nobody audits is not to be reported for another one that leads to the same address. Where the connection has to
    /// name its destination, the rule counts too.
    #[inline(always)]
    #[must_use]
    pub const fn shares_slot(&self, other: &Self, in_any: bool) -> bool {
        self.ports.word() == other.ports.word()
            && (in_any
                || (self.auditor == 0) == (other.auditor == 0)
                    && (self.ports.require == 0 || self.rule == other.rule))
    }

    /// The rule of a slot that this grant of another one shares.
    #[inline(always)]
    #[must_use]
    pub const fn rule_with(&self, other: &Self) -> u64 {
        if self.ports.require != 0 && self.rule != other.rule {
            MANY_RULES
        } else {
            other.rule
        }
    }

    /// In how many slots the grant may lie. Grants that differ by their rules alone leave half of them to other ports, unless
    /// `in_any`.
    #[inline(always)]
    #[must_use]
    pub const fn room(&self, in_any: bool) -> usize {
        if in_any || self.ports.require == 0 {
            GRANTS
        } else {
            GRANTS / 2
        }
    }

    /// When it ends: with the answers that taught it, or some time after its last use.
    #[inline(always)]
    #[must_use]
    pub const fn end_ns(&self) -> u64 {
        end_ns(
            self.expires_at_ns,
            self.used_at_s,
            self.grace_s,
            self.limit_s,
        )
    }

    /// A use now is worth noting: an eighth of the time that it gives has gone since the last one that was, or a
    /// minute, whichever is less.
    #[inline(always)]
    #[must_use]
    pub const fn is_use_due(&self, now_s: u32) -> bool {
        let eighth = self.grace_s as u32 >> 3;
        let pause = if eighth < USE_PAUSE_S {
            eighth
        } else {
            USE_PAUSE_S
        };
        now_s > self.used_at_s.saturating_add(pause)
    }
}

/// Uses are noted at least this often, seconds.
const USE_PAUSE_S: u32 = 60;

#[inline(always)]
const fn end_ns(expires_at_ns: u64, used_at_s: u32, grace_s: u16, limit_s: u32) -> u64 {
    if used_at_s == 0 || grace_s == 0 {
        return expires_at_ns;
    }
    let kept = used_at_s.saturating_add(grace_s as u32);
    let kept = if kept < limit_s { kept } else { limit_s };
    let kept_ns = (kept as u64).wrapping_mul(SECOND_NS);
    if kept_ns > expires_at_ns {
        kept_ns
    } else {
        expires_at_ns
    }
}

/// A lock as `bpf_spin_lock` knows it. The kernel finds it by this very name in the value's type information.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(non_camel_case_types, reason = "the kernel looks for this name")]
pub struct bpf_spin_lock {
    /// Owned by the kernel.
    pub val: u32,
}

/// Value of `LEARNED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Learned {
    /// [`LearnedKey::words`] of the key.
    pub owner: [u64; 3],
    /// Guards every write.
    pub lock: bpf_spin_lock,
    /// Padding, always zero.
    pub _pad: u32,
    /// The grants; used slots come first.
    pub grants: [Grant; GRANTS],
}
const _: () = assert!(size_of::<Learned>() == 352 && align_of::<Learned>() == 8);

/// Result of a look at a learned address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A live grant for the port, by this rule.
    Live(u64),
    /// The same, and every live one comes from a name that a policy in audit denies.
    Audited(u64),
    /// A grant for the port that has ended, by this rule.
    Expired(u64),
    /// Grants, but none for the port.
    OtherPorts,
    /// Nothing.
    Unknown,
}

impl Learned {
    /// Looks for a grant that is enough by itself. An end is exclusive: at its very nanosecond the grant is dead. Grants
    /// that want the connection to name its destination count as ended here: [`Self::named`] finds them.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, key: &LearnedKey, proto: u8, port: Option<u16>, now_ns: u64) -> Found {
        let mut found = Found::Unknown;
        for grant in &self.grants {
            if grant.expires_at_ns == 0 {
                break;
            }
            if grant.ports.covers(proto, port) {
                if grant.ports.require == 0 && grant.end_ns() > now_ns {
                    if grant.auditor == 0 {
                        found = Found::Live(grant.rule);
                        break;
                    }
                    found = Found::Audited(grant.rule);
                } else if !matches!(found, Found::Audited(_)) {
                    found = Found::Expired(grant.rule);
                }
            } else if matches!(found, Found::Unknown) {
                found = Found::OtherPorts;
            }
        }
        if self.is_of(key) {
            found
        } else {
            Found::Unknown
        }
    }

    /// Rule of a live grant for the TCP port that wants the connection to name its destination; 0 for none.
    #[inline(always)]
    #[must_use]
    pub fn named(&self, key: &LearnedKey, port: Option<u16>, now_ns: u64) -> u64 {
        let mut rule = 0;
        for grant in &self.grants {
            if grant.expires_at_ns == 0 {
                break;
            }
            if grant.ports.require != 0
                && grant.end_ns() > now_ns
                && grant.ports.covers(protocol::TCP, port)
            {
                rule = grant.rule;
            }
        }
        if self.is_of(key) { rule } else { 0 }
    }

    /// A connection that was begun at `begun_ns` may name a destination of this rule: a grant of the rule for the port
    /// lived then, or one that so many rules led to that it keeps none ([`MANY_RULES`]).
    #[inline(always)]
    #[must_use]
    pub fn is_led_to_by(&self, key: &LearnedKey, rule: u64, port: u16, begun_ns: u64) -> bool {
        let mut is_led = false;
        for grant in &self.grants {
            if grant.expires_at_ns == 0 {
                break;
            }
            is_led |= grant.ports.require != 0
                && (grant.rule == rule || grant.rule == MANY_RULES)
                && grant.end_ns() > begun_ns
                && grant.ports.covers(protocol::TCP, Some(port));
        }
        is_led && self.is_of(key)
    }

    /// A flow that was allowed before may go on: there is a grant for the port, live or ended. A policy change carries
    /// only those over that names teach which it does not deny.
    #[inline(always)]
    #[must_use]
    pub fn has_grant(&self, key: &LearnedKey, proto: u8, port: Option<u16>) -> bool {
        let mut is_found = false;
        for grant in &self.grants {
            if grant.expires_at_ns == 0 {
                break;
            }
            is_found |= grant.ports.covers(proto, port);
        }
        is_found && self.is_of(key)
    }

    /// The rule by which a policy in audit denies the name that a live grant for the port comes from; 0 for none.
    #[inline(always)]
    #[must_use]
    pub fn auditor(&self, key: &LearnedKey, proto: u8, port: Option<u16>, now_ns: u64) -> u64 {
        let mut auditor = 0;
        for grant in &self.grants {
            if grant.expires_at_ns == 0 {
                break;
            }
            if grant.end_ns() > now_ns && grant.ports.covers(proto, port) {
                auditor = grant.auditor;
            }
        }
        if self.is_of(key) { auditor } else { 0 }
    }

    /// The parts of the entry that were read before belong to this key.
    #[inline(always)]
    #[must_use]
    pub fn is_of(&self, key: &LearnedKey) -> bool {
        barrier();
        let [a, b, c] = key.words();
        let [x, y, z] = &self.owner;
        (read(x) ^ a) | (read(y) ^ b) | (read(z) ^ c) == 0
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "a volatile read")]
fn read(word: &u64) -> u64 {
    // SAFETY: the pointer comes from a reference.
    unsafe { core::ptr::read_volatile(word) }
}

/// Most requests of one batch.
pub const LEARN_BATCH: usize = 32;

/// A request of the agent to the kernel: to learn one grant.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnRequest {
    /// Its holder and address.
    pub key: LearnedKey,
    /// The grant. To sweep: `expires_at_ns` is the point before which an entry has to have ended, `used_at_s` the one
    /// before which it has to have been used last; an `auditor` of [`SWEEP_DELETE`] deletes what an earlier request
    /// doomed.
    pub grant: Grant,
}
const _: () = assert!(size_of::<LearnRequest>() == 64 && align_of::<LearnRequest>() == 8);

/// In a request to sweep: deletes the entry if it is doomed. Else the entry is doomed, if it may go.
pub const SWEEP_DELETE: u64 = 1;

impl LearnRequest {
    /// The request as the kernel reads it: its memory, byte by byte, padding zero.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let Self { key, grant } = self;
        let fields: [&[u8]; 12] = [
            &key.scope_id.to_ne_bytes(),
            &key.netns.to_ne_bytes(),
            &key.address,
            &grant.expires_at_ns.to_ne_bytes(),
            &grant.rule.to_ne_bytes(),
            &grant.auditor.to_ne_bytes(),
            &grant.used_at_s.to_ne_bytes(),
            &grant.limit_s.to_ne_bytes(),
            &[grant.ports.proto, grant.ports.require],
            &grant.ports.first.to_ne_bytes(),
            &grant.ports.last.to_ne_bytes(),
            &grant.grace_s.to_ne_bytes(),
        ];
        let mut bytes = [0; size_of::<Self>()];
        let fields = fields.iter().flat_map(|field| field.iter());
        for (slot, byte) in bytes.iter_mut().zip(fields) {
            *slot = *byte;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        address::from_v4,
        policy::{REQUIRE_TLS, protocol::TCP},
    };

    fn learned(ends: &[(u16, u64)]) -> (LearnedKey, Learned) {
        let key = LearnedKey::new(7, 3, from_v4([192, 0, 2, 1]));
        let mut value = Learned {
            owner: key.words(),
            ..Learned::default()
        };
        for (slot, (port, expires_at_ns)) in value.grants.iter_mut().zip(ends) {
            *slot = Grant {
                expires_at_ns: *expires_at_ns,
                rule: u64::from(*port),
                ports: PortRange::new(TCP, *port, *port),
                ..Grant::default()
            };
        }
        (key, value)
    }

    #[test]
    fn entry_is_dead_at_its_expiry_instant() {
        let (key, value) = learned(&[(443, 100)]);
        let at = |now| value.find(&key, TCP, Some(443), now);
        assert_eq!(at(99), Found::Live(443));
        assert_eq!(at(100), Found::Expired(443));
        assert_eq!(at(101), Found::Expired(443));
    }

    #[test]
    fn a_use_keeps_it_open_for_its_grace_and_never_beyond_its_limit() {
        let (key, mut value) = learned(&[(443, 5 * SECOND_NS)]);
        value.grants[0].grace_s = 60;
        value.grants[0].limit_s = 100;
        let is_live = |value: &Learned, second: u64| {
            let found = value.find(&key, TCP, Some(443), second * SECOND_NS - 1);
            found == Found::Live(443)
        };
        assert!(is_live(&value, 5) && !is_live(&value, 6), "never used");
        value.grants[0].used_at_s = 4;
        assert!(is_live(&value, 64) && !is_live(&value, 65));
        value.grants[0].used_at_s = 50;
        assert!(is_live(&value, 100) && !is_live(&value, 101), "the limit");
        value.grants[0].expires_at_ns = 200 * SECOND_NS;
        assert!(
            is_live(&value, 200),
            "an answer is worth more than a limit of uses"
        );
        value.grants[0].expires_at_ns = 5 * SECOND_NS;
        value.grants[0].grace_s = 0;
        assert!(
            !is_live(&value, 6),
            "without a grace uses keep nothing open"
        );
        assert!(value.has_grant(&key, TCP, Some(443)));
        assert!(!value.has_grant(&key, TCP, Some(80)));
    }

    fn requiring(rule: u64, expires_at_ns: u64) -> Grant {
        Grant {
            expires_at_ns,
            rule,
            ports: PortRange::new(TCP, 443, 443).requiring(REQUIRE_TLS),
            ..Grant::default()
        }
    }

    #[test]
    fn a_grant_that_wants_a_name_is_found_apart() {
        let (key, mut value) = learned(&[(443, 100), (443, 200)]);
        value.grants[1] = requiring(9, 200);
        for _ in 0..2 {
            let at = |port, now| value.find(&key, TCP, Some(port), now);
            assert_eq!(at(443, 99), Found::Live(443));
            assert!(matches!(at(443, 150), Found::Expired(_)));
            assert_eq!(at(80, 150), Found::OtherPorts);
            let named = |port, now| value.named(&key, port, now);
            assert_eq!((named(Some(443), 199), named(Some(443), 200)), (9, 0));
            assert_eq!((named(Some(80), 199), named(None, 199)), (0, 0));
            let other = LearnedKey { netns: 4, ..key };
            assert_eq!(value.named(&other, Some(443), 99), 0);
            // In either order.
            value.grants.swap(0, 1);
        }
    }

    #[test]
    fn a_rule_leads_to_an_address_if_its_own_grant_lived_when_the_connection_began() {
        let (key, mut value) = learned(&[(443, 500)]);
        value.grants[1] = requiring(9, 100);
        let leads =
            |value: &Learned, rule, port, begun| value.is_led_to_by(&key, rule, port, begun);
        assert!(leads(&value, 9, 443, 99));
        assert!(!leads(&value, 9, 443, 100), "its time was over");
        assert!(!leads(&value, 9, 80, 99));
        assert!(!leads(&value, 8, 443, 99), "another rule");
        assert!(!leads(&value, 443, 443, 99), "a rule that wants no name");
        value.grants[1].rule = MANY_RULES;
        assert!(leads(&value, 8, 443, 99));
        let other = LearnedKey { netns: 4, ..key };
        assert!(!value.is_led_to_by(&other, 9, 443, 99));
    }

    #[test]
    fn rules_that_want_names_have_slots_of_their_own_as_long_as_half_are_free() {
        let (one, other) = (requiring(1, 10), requiring(2, 10));
        assert!(one.shares_slot(&one, false) && !one.shares_slot(&other, false));
        assert!(one.shares_slot(&other, true));
        let open = Grant {
            ports: PortRange::new(TCP, 443, 443),
            ..one
        };
        assert!(
            !one.shares_slot(&open, true),
            "what is open is no matter of names"
        );
        assert_eq!(
            (one.rule_with(&one), one.rule_with(&other)),
            (1, MANY_RULES)
        );
        assert_eq!(open.rule_with(&Grant { rule: 7, ..open }), 7);
        assert_eq!((one.room(false), one.room(true)), (4, 8));
        assert_eq!((open.room(false), open.room(true)), (8, 8));
    }

    #[test]
    fn uses_are_noted_often_enough_and_no_more() {
        let used = |grace_s, used_at_s| Grant {
            grace_s,
            used_at_s,
            ..Grant::default()
        };
        assert!(used(1800, 0).is_use_due(61));
        assert!(!used(1800, 100).is_use_due(160) && used(1800, 100).is_use_due(161));
        assert!(!used(80, 100).is_use_due(110) && used(80, 100).is_use_due(111));
        assert!(!used(4, 100).is_use_due(100) && used(4, 100).is_use_due(101));
    }

    #[test]
    fn each_port_keeps_its_own_end() {
        let (key, value) = learned(&[(443, 100), (80, 200)]);
        let at = |port| value.find(&key, TCP, Some(port), 150);
        assert_eq!(at(443), Found::Expired(443));
        assert_eq!(at(80), Found::Live(80));
        assert_eq!(at(22), Found::OtherPorts);
    }

    #[test]
    fn the_auditor_is_that_of_a_live_grant_for_the_port() {
        let (key, mut value) = learned(&[(443, 100), (443, 200), (80, 200)]);
        (value.grants[0].auditor, value.grants[1].auditor) = (7, 8);
        let at = |port, now| value.auditor(&key, TCP, Some(port), now);
        assert_eq!((at(443, 150), at(443, 200), at(80, 150)), (8, 0, 0));
        let other = LearnedKey { netns: 4, ..key };
        assert_eq!(value.auditor(&other, TCP, Some(443), 150), 0);
    }

    #[test]
    fn grants_share_a_slot_by_ports_and_by_whether_they_are_audited() {
        let grant = Grant {
            ports: PortRange::new(TCP, 443, 443),
            ..Grant::default()
        };
        let audited = Grant {
            auditor: 7,
            ..grant
        };
        assert!(grant.shares_slot(&Grant { rule: 9, ..grant }, false));
        assert!(audited.shares_slot(
            &Grant {
                auditor: 8,
                ..grant
            },
            false
        ));
        assert!(!grant.shares_slot(&audited, false));
        assert!(grant.shares_slot(&audited, true));
        let ports = PortRange::new(TCP, 443, 444);
        assert!(!grant.shares_slot(&Grant { ports, ..grant }, true));
    }

    /// Every key that differs in one bit, in whatever part of it.
    #[test]
    fn an_entry_of_another_key_grants_nothing() {
        let (key, value) = learned(&[(443, 100)]);
        assert!(value.is_of(&key));
        let mut others = std::vec::Vec::new();
        for bit in 0..32 {
            others.push(LearnedKey {
                scope_id: key.scope_id ^ 1 << bit,
                ..key
            });
            others.push(LearnedKey {
                netns: key.netns ^ 1 << bit,
                ..key
            });
        }
        for bit in 0..128 {
            let address = (u128::from_be_bytes(key.address) ^ 1 << bit).to_be_bytes();
            others.push(LearnedKey { address, ..key });
        }
        for other in others {
            assert_eq!(value.find(&other, TCP, Some(443), 1), Found::Unknown);
            assert!(!value.has_grant(&other, TCP, Some(443)));
        }
        let doomed = Learned {
            owner: [DOOMED, value.owner[1], value.owner[2]],
            ..value
        };
        assert_eq!(doomed.find(&key, TCP, Some(443), 1), Found::Unknown);
    }

    /// A key that once passed for another owner: `mix` folded the words, and these bits undo each other for every seed.
    #[test]
    fn words_that_collided_under_the_old_hash_are_different_owners() {
        let key = LearnedKey::new(7, 3, [1; 16]);
        let mut other = key;
        let words = [
            u64::from_ne_bytes([1; 8]) ^ 1 << 63,
            u64::from_ne_bytes([1; 8]) ^ (1 << 63 | 1 << 31),
        ];
        other.address[..8].copy_from_slice(&words[0].to_ne_bytes());
        other.address[8..].copy_from_slice(&words[1].to_ne_bytes());
        assert_ne!(key.words(), other.words());
    }
}
