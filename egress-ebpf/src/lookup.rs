//! The lookups behind a decision: at most two maps, one after the other.

use aya_ebpf::btf_maps::lpm_trie::Key;
use egress_common::{
    decision::{Decision, decide},
    flow::Flow,
    learned::LearnedKey,
    policy::{Binding, CIDR_KEY_BITS, RuleKey, cidr_key},
};

use crate::{
    maps::{CIDRS, LEARNED, RULES},
    time::now_ns,
};

/// Decides a flow with what the maps say.
#[inline(never)]
pub fn judge(flow: &Flow, binding: &Binding) -> Decision {
    let cidr = || {
        let key = Key::new(CIDR_KEY_BITS, cidr_key(binding.policy_id, &flow.daddr));
        CIDRS.get(&key)
    };
    let learned = || {
        let key = LearnedKey::new(binding.scope_id, flow.daddr);
        // SAFETY: readers of a learned entry tolerate its writers (egress_common::learned).
        unsafe { LEARNED.get(&key) }.map(|entry| (entry, key.owner()))
    };
    decide(flow, binding, now_ns(), cidr, learned)
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
