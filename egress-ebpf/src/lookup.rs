//! The lookups behind a decision: at most two maps, one after the other.

use aya_ebpf::btf_maps::lpm_trie::Key;
use egress_common::{
    address::Address,
    decision::{Decision, Trouble, decide},
    flow::{Flow, Origin},
    hash::RULE_BITS,
    learned::LearnedKey,
    maps::{FULL_NS, HOLD_NS, HOLDS_FULL},
    policy::{Binding, CIDR_KEY_BITS, RuleKey, cidr_key},
    verdict::Reason,
};

use crate::{
    maps::{CIDRS, HOLDS, LEARNED, RULES},
    time::now_ns,
};

/// Who started a flow, with every byte written whatever the case: the payload of an [`Origin`] that has none is a hole,
/// and verifiers before 6.3 refuse to copy a hole.
#[derive(Clone, Copy)]
pub struct Start {
    kind: u8,
    rule: u64,
}

impl Start {
    /// [`Origin::Workload`].
    pub const WORKLOAD: Self = Self::of(0);
    /// [`Origin::FarEnd`].
    pub const FAR_END: Self = Self::of(FAR_END);
    /// [`Origin::Preexisting`].
    pub const PREEXISTING: Self = Self::of(PREEXISTING);
    /// [`Origin::Kernel`].
    pub const KERNEL: Self = Self::of(KERNEL);
    /// [`Origin::WorkloadServing`].
    pub const SERVING: Self = Self::of(SERVING);

    const fn of(kind: u8) -> Self {
        Self { kind, rule: 0 }
    }

    /// [`Origin::Resting`].
    #[inline(always)]
    pub const fn resting(rule: u64) -> Self {
        Self {
            kind: RESTING,
            rule,
        }
    }

    /// Whether this is [`Origin::Workload`].
    #[inline(always)]
    pub const fn is_workload(self) -> bool {
        self.kind == 0
    }
}

/// Decides a flow with what the maps say; `start` stands for its origin.
#[inline(always)]
pub fn judge(flow: &Flow, start: Start, binding: &Binding) -> Decision {
    let (first, second) = halves(&flow.daddr);
    let facts = facts(flow) | u64::from(start.kind) << 32;
    let packed = judge_flow(first, second, facts, start.rule, binding.pack());
    let rule = packed & ((1 << RULE_BITS) - 1);
    // What `judge_flow` returns is always a reason; were it not, this denies.
    let reason = Reason::try_from((packed >> RULE_BITS) as u8).unwrap_or(Reason::NotConfigured);
    Decision::new(reason, rule, binding)
}

/// The decision as it is counted and reported: what only a policy in audit denies goes by that policy's rule.
#[inline(always)]
pub fn reported(decision: Decision, flow: &Flow, binding: &Binding) -> Decision {
    if !decision.reason.is_audited() {
        return decision;
    }
    let (first, second) = halves(&flow.daddr);
    Decision {
        rule: auditor_of(first, second, facts(flow), binding.pack()),
        ..decision
    }
}

/// Identity of the rule by which a policy in audit denies a flow that passes; 0 when it is gone since.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn auditor_of(first: u64, second: u64, facts: u64, binding: u64) -> u64 {
    let address = address_of(first, second);
    let binding = Binding::unpack(binding);
    let key = Key::new(CIDR_KEY_BITS, cidr_key(binding.policy_id, &address));
    if let Some(rules) = CIDRS.get(&key) {
        let rule = rules.auditor(proto_of(facts), port_of(facts));
        if rule != 0 {
            return rule;
        }
    }
    let key = LearnedKey::new(binding.scope_id, address);
    // SAFETY: readers of a learned entry tolerate its writers (egress_common::learned).
    match unsafe { LEARNED.get(&key) } {
        Some(entry) => entry.auditor(key.owner(), proto_of(facts), port_of(facts), now_ns()),
        None => 0,
    }
}

/// [`decide`], verified once for itself. A global function takes at most five
/// numbers and returns one, so that flow, binding and decision travel packed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_flow(
    first: u64,
    second: u64,
    facts: u64,
    resting: u64,
    binding: u64,
) -> u64 {
    let flow = Flow {
        daddr: address_of(first, second),
        dport: port_of(facts),
        proto: proto_of(facts),
        is_fragment: facts & IS_FRAGMENT != 0,
        origin: match (facts >> 32) as u8 {
            FAR_END => Origin::FarEnd,
            PREEXISTING => Origin::Preexisting,
            KERNEL => Origin::Kernel,
            SERVING => Origin::WorkloadServing,
            RESTING => Origin::Resting(resting),
            _ => Origin::Workload,
        },
    };
    let binding = Binding::unpack(binding);
    let cidr = || {
        let key = Key::new(CIDR_KEY_BITS, cidr_key(binding.policy_id, &flow.daddr));
        CIDRS.get(&key)
    };
    let learned = || {
        let key = LearnedKey::new(binding.scope_id, flow.daddr);
        // SAFETY: readers of a learned entry tolerate its writers (egress_common::learned).
        unsafe { LEARNED.get(&key) }.map(|entry| (entry, key.owner()))
    };
    let trouble = || match trouble_of(binding.scope_id) {
        READING => Trouble::Reading,
        FULL => Trouble::Full,
        _ => Trouble::None,
    };
    decide(&flow, &binding, now_ns(), cidr, learned, trouble).pack()
}

const READING: u32 = 1;
const FULL: u32 = 2;

/// A [`Trouble`] as a number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn trouble_of(scope_id: u32) -> u32 {
    if is_marked(scope_id) {
        READING
    } else if is_marked(scope_id | HOLDS_FULL) {
        FULL
    } else {
        0
    }
}

#[inline(always)]
fn is_marked(key: u32) -> bool {
    // SAFETY: one number, which another CPU may renew; a stale one ends a little sooner.
    unsafe { HOLDS.get(key) }.is_some_and(|until_ns| *until_ns > now_ns())
}

/// Marks a scope: an answer for it is with the agent, or (with [`HOLDS_FULL`]) there was no room for one of its addresses.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mark(key: u32) -> u32 {
    let lasts_ns = if key & HOLDS_FULL == 0 {
        HOLD_NS
    } else {
        FULL_NS
    };
    let until_ns = now_ns().wrapping_add(lasts_ns);
    u32::from(HOLDS.insert(key, until_ns, 0).is_ok())
}

const HAS_PORT: u64 = 1 << 16;
const IS_FRAGMENT: u64 = 1 << 17;
const FAR_END: u8 = 1;
const PREEXISTING: u8 = 2;
const KERNEL: u8 = 3;
const SERVING: u8 = 4;
const RESTING: u8 = 5;

/// Port (bits 0 to 15), flags, protocol (24 to 31); the origin follows (32 to 39).
#[inline(always)]
fn facts(flow: &Flow) -> u64 {
    let port = match flow.dport {
        Some(port) => HAS_PORT | u64::from(port),
        None => 0,
    };
    let fragment = if flow.is_fragment { IS_FRAGMENT } else { 0 };
    u64::from(flow.proto) << 24 | fragment | port
}

#[inline(always)]
fn port_of(facts: u64) -> Option<u16> {
    if facts & HAS_PORT != 0 {
        Some(facts as u16)
    } else {
        None
    }
}

#[inline(always)]
fn proto_of(facts: u64) -> u8 {
    (facts >> 24) as u8
}

#[inline(always)]
fn address_of(first: u64, second: u64) -> Address {
    let [a, b, c, d, e, f, g, h] = first.to_ne_bytes();
    let [i, j, k, l, m, n, o, p] = second.to_ne_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

#[inline(always)]
fn halves(address: &Address) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    (
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    )
}

/// Whether the policy still has a name rule.
#[inline(always)]
pub fn has_rule(binding: &Binding, rule: u64) -> bool {
    let key = RuleKey {
        rule,
        policy_id: binding.policy_id,
        _pad: [0; 6],
    };
    rule != 0 && RULES.get_ptr(&key).is_some()
}
