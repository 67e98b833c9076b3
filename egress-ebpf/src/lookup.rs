//! The lookups behind a decision: at most two maps, one after the other.

use aya_ebpf::btf_maps::lpm_trie::Key;
use egress_common::{
    decision::{Decision, Trouble, decide},
    flow::Origin,
    learned::{Learned, LearnedKey, holder_word},
    maps::{FULL_NS, HOLD_NS, HOLDS_FULL},
    packed::{AddressWords, Facts, address_of},
    policy::{Binding, CIDR_KEY_BITS, CidrRules, RuleKey, cidr_key},
    verdict::Reason,
};

use crate::{
    learn::note_use,
    maps::{CIDRS, HELD, HOLDS, LEARNED, RULES},
    time::now_ns,
};

/// Decides a flow with what the maps say.
#[inline(always)]
pub fn judge(
    destination: AddressWords,
    facts: Facts,
    origin: Origin,
    binding: &Binding,
) -> Decision {
    let [first, second] = destination;
    let packed = judge_flow(first, second, facts.pack(), origin.pack(), binding.pack());
    // The result of `judge_flow` is always a reason; were it not, this denies.
    Decision::unpack(packed, binding)
}

/// The decision as it is counted and reported: what only a policy in audit denies goes by that policy's rule.
#[inline(always)]
pub fn reported(
    decision: Decision,
    destination: AddressWords,
    facts: Facts,
    binding: &Binding,
) -> Decision {
    if !decision.reason.is_audited() {
        return decision;
    }
    let [first, second] = destination;
    Decision {
        rule: auditor_of(first, second, facts.pack(), binding.pack()),
        ..decision
    }
}

/// Identity of the rule by which a policy in audit denies a flow that passes; 0 when it is gone since.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn auditor_of(first: u64, second: u64, facts: u64, binding: u64) -> u64 {
    let address = address_of([first, second]);
    let facts = Facts::unpack(facts);
    let binding = Binding::unpack(binding);
    let key = Key::new(CIDR_KEY_BITS, cidr_key(binding.policy_id, &address));
    if let Some(rules) = CIDRS.get(&key) {
        let rule = rules.auditor(facts.proto(), facts.port());
        if rule != 0 {
            return rule;
        }
    }
    let key = LearnedKey::new(binding.scope_id, facts.netns(), address);
    // SAFETY: readers of a learned entry tolerate its writers (egress_common::learned).
    match unsafe { LEARNED.get(&key) } {
        Some(entry) => entry.auditor(&key, facts.proto(), facts.port(), now_ns()),
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
    origin: u64,
    binding: u64,
) -> u64 {
    let facts = Facts::unpack(facts);
    let flow = facts.flow(address_of([first, second]), Origin::unpack(origin));
    let binding = Binding::unpack(binding);
    let cidr = || cidr_of(binding.policy_id, first, second);
    let key = LearnedKey::new(binding.scope_id, facts.netns(), flow.daddr);
    // Looked up when the flow is not decided before that.
    let mut held = None;
    let learned = || {
        held = learned_of(&key);
        held.map(|entry| (entry, &key))
    };
    let trouble = || match trouble_of(binding.scope_id, facts.netns()) {
        READING => Trouble::Reading,
        FULL => Trouble::Full,
        _ => Trouble::None,
    };
    let named = || named_rule(first, second, facts.pack(), binding.scope_id);
    let now_ns = now_ns();
    let decision = decide(&flow, &binding, now_ns, cidr, learned, named, trouble);
    // An allowed flow keeps the address open for others of its holder.
    if matches!(decision.reason, Reason::NameRule | Reason::AuditedName)
        && let Some(entry) = held
    {
        let entry = core::ptr::from_ref(entry).cast_mut();
        note_use(entry, &key, flow.proto, flow.dport, now_ns);
    }
    decision.pack()
}

/// The rules about an address; in a stack frame of its own.
#[inline(never)]
fn cidr_of(policy_id: u16, first: u64, second: u64) -> Option<&'static CidrRules> {
    let key = Key::new(
        CIDR_KEY_BITS,
        cidr_key(policy_id, &address_of([first, second])),
    );
    CIDRS.get(&key)
}

/// The learned entry of an address.
#[inline(always)]
fn learned_of(key: &LearnedKey) -> Option<&'static Learned> {
    // Nobody learns in a namespace that is not known.
    if key.netns == 0 {
        return None;
    }
    // SAFETY: readers of a learned entry tolerate its writers (egress_common::learned).
    unsafe { LEARNED.get(key) }
}

/// [`Learned::named`], verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn named_rule(first: u64, second: u64, facts: u64, scope_id: u32) -> u64 {
    let facts = Facts::unpack(facts);
    let key = LearnedKey::new(scope_id, facts.netns(), address_of([first, second]));
    match learned_of(&key) {
        Some(entry) => entry.named(&key, facts.port(), now_ns()),
        None => 0,
    }
}

/// An answer for the holder is with the agent, as [`trouble_of`] says it.
pub const READING: u32 = 1;
const FULL: u32 = 2;

/// A [`Trouble`] as a number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn trouble_of(scope_id: u32, netns: u32) -> u32 {
    let key = holder_word(scope_id, netns);
    if is_marked(key) {
        READING
    } else if is_marked(key | HOLDS_FULL) {
        FULL
    } else {
        0
    }
}

/// Place in `HELD` of the kind of a key of `HOLDS`.
#[inline(always)]
const fn kind_of(key: u64) -> u32 {
    (key >> 63) as u32
}

#[inline(always)]
fn is_marked(key: u64) -> bool {
    // The number that is stored there last is the latest end: it is seldom so late that a clock is read.
    if HELD
        .get(kind_of(key))
        .is_none_or(|until_ns| *until_ns == 0 || *until_ns <= now_ns())
    {
        return false;
    }
    // SAFETY: one number, which another CPU may renew; a stale one ends a little sooner.
    unsafe { HOLDS.get(key) }.is_some_and(|until_ns| *until_ns > now_ns())
}

/// Marks a holder, by its key in `HOLDS`: an answer for it is with the agent, or (with [`HOLDS_FULL`]) there was no room for
/// one of its addresses. What one network namespace waits for, the scope's others do not.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mark(key: u64) -> u32 {
    let lasts_ns = if key & HOLDS_FULL == 0 {
        HOLD_NS
    } else {
        FULL_NS
    };
    let until_ns = now_ns().wrapping_add(lasts_ns);
    // Before the entry, so that whoever could see that one looks for it. All of a kind last as long: of two that are
    // marked at once, the ends are the same.
    if let Some(held) = HELD.get_ptr_mut(kind_of(key)) {
        // SAFETY: one aligned word of a map value.
        unsafe { held.write_volatile(until_ns) };
    }
    u32::from(HOLDS.insert(key, until_ns, 0).is_ok())
}

/// True if the policy still has a name rule.
#[inline(always)]
pub fn has_rule(binding: &Binding, rule: u64) -> bool {
    let key = RuleKey {
        rule,
        policy_id: binding.policy_id,
        _pad: [0; 6],
    };
    rule != 0 && RULES.get_ptr(&key).is_some()
}
