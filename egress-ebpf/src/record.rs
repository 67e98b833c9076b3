//! Counters and events.
//!
//! Counters are atomic adds, because a softirq can interrupt a program on its
//! own CPU. Events are rate-limited per CPU and scope, denials and allowed flows
//! apart, so that a flood takes no other scope's, and costs one map lookup and one compare for each packet that
//! is not reported; what is not reported is counted.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_RB_NO_WAKEUP},
    helpers::bpf_skb_cgroup_id,
};
use egress_common::{
    decision::Decision,
    event::{Process, VerdictEvent, budget_index},
    maps::{RuleCounters, workload_counter},
    packed::Place,
    policy::{Binding, Workload},
    tally::Tally,
    verdict::{Hook, Reason, Verdict, counter_index, verdict_of},
};

use crate::{
    maps::{COUNTERS, EVENT_BUDGETS, EVENTS, RULE_COUNTERS, TALLIES},
    netns, process,
    skb::{Header, ReadHeader as _, Skb},
    time::now_ns,
};

/// `BPF_NOEXIST`.
pub const NO_EXIST: u64 = 1;

/// Adds to a counter that other CPUs, or a softirq on this one, may change at the same time.
#[inline(always)]
pub fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the pointer is to a map value, aligned, and lives as long as the
    // program runs. One instruction that every supported kernel knows.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) amount);
    }
}

/// Hides where a number comes from, so that the compiler keeps a bound check that the verifier needs.
#[inline(always)]
pub fn opaque(number: u32) -> u32 {
    let mut number = u64::from(number);
    // SAFETY: a register is moved to itself. (Without any instruction, the line
    // information would have two lines at one place, which the kernel refuses.)
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number) };
    number as u32
}

/// Makes the compiler write its state to memory and read it again: a loop whose state is in memory looks the same to
/// the verifier at each turn, one whose state is in registers does not.
#[inline(always)]
pub fn forget() {
    opaque(0);
}

/// Counts something that is not a verdict.
#[inline(always)]
pub fn tally(tally: Tally) {
    tally_number(tally as u32);
}

/// Counts by number, where the tally comes out of a machine; verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tally_number(number: u32) -> u32 {
    if let Some(counter) = TALLIES.get_ptr_mut(number) {
        add(counter, 1);
    }
    0
}

/// Counts a verdict.
#[inline(always)]
pub fn count(hook: Hook, verdict: Verdict, reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_index(hook, verdict, reason)) {
        add(counter, 1);
    }
}

/// Counters of a rule that has not been counted yet; not on the stack, which is small.
static FRESH: RuleCounters = RuleCounters { decisions: [0; 4] };

/// Counts a decision under its rule and under its workload, if a rule or the lack of one decided.
#[inline(always)]
pub fn count_decision(decision: &Decision, workload: &Workload) {
    if decision.rule != 0 || !decision.reason.allows() {
        count_under(decision.rule, decision.verdict as u32);
        count_under(workload_counter(workload.identity), decision.verdict as u32);
    }
}

/// Counts a verdict under a rule, or under what [`workload_counter`] says; under 0 nothing. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_under(key: u64, verdict: u32) -> u32 {
    // Both are used, whatever the key is: the verifier wants that of a function of its own.
    let index = opaque(verdict) & 3;
    if key == 0 {
        return index;
    }
    let mut counters = RULE_COUNTERS.get_ptr_mut(key);
    if counters.is_none() {
        // Somebody else may have been faster; what counts is that it is there now.
        let _ = RULE_COUNTERS.insert(key, &FRESH, NO_EXIST);
        counters = RULE_COUNTERS.get_ptr_mut(key);
    }
    match counters {
        Some(counters) => {
            // SAFETY: the pointer is to a map value with four counters.
            let first = unsafe { &raw mut (*counters).decisions }.cast::<u64>();
            // SAFETY: the mask is for the verifier (a verdict is 0, 1 or 2), and the index is at most 3.
            add(unsafe { first.add(index as usize) }, 1);
        }
        None => tally(Tally::RuleCountersFull),
    }
    0
}

/// A decision as an event holds it.
pub struct Facts {
    /// A [`Hook`] as a number.
    pub hook: u8,
    /// A [`Verdict`] as a number.
    pub verdict: u8,
    /// A [`Reason`] as a number.
    pub reason: u8,
    /// The rule; 0 for none.
    pub rule: u64,
}

impl Facts {
    /// The facts of a decision.
    #[inline(always)]
    pub fn of(hook: Hook, decision: &Decision) -> Self {
        Self {
            hook: hook as u8,
            verdict: decision.verdict as u8,
            reason: decision.reason as u8,
            rule: decision.rule,
        }
    }
}

/// Takes one event out of this second's budget of a scope, that of denials or that of allowed flows; counts what there is
/// no room for.
#[inline(always)]
pub fn has_budget(scope_id: u32, is_allowed: bool, at_ns: u64) -> bool {
    let second = at_ns / 1_000_000_000;
    let (Some(own), Some(all)) = (
        EVENT_BUDGETS.get_ptr_mut(budget_index(Some(scope_id), is_allowed)),
        EVENT_BUDGETS.get_ptr_mut(budget_index(None, is_allowed)),
    ) else {
        return false;
    };
    // SAFETY: the pointers are to map values of this CPU, at two places. A softirq
    // between these lines can let a few events more or less through; each of them
    // is either sent or counted.
    let (own, all) = unsafe { (&mut *own, &mut *all) };
    let is_admitted = own.admits(all, second);
    if !is_admitted {
        tally(Tally::EventsSuppressed);
    }
    is_admitted
}

/// Sends an event, if this second's budget has room; `fill` adds what the decision does not say.
#[inline(always)]
pub fn report(facts: &Facts, binding: &Binding, fill: impl FnOnce(&mut VerdictEvent)) {
    let at_ns = now_ns();
    let is_allowed = facts.verdict == Verdict::Allow as u8;
    if !has_budget(binding.scope_id, is_allowed, at_ns) {
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        return tally(Tally::EventsLost);
    };
    let event = entry.write(VerdictEvent {
        at_ns,
        cgroup_id: 0,
        rule: facts.rule,
        saddr: [0; 16],
        daddr: [0; 16],
        scope_id: binding.scope_id,
        policy_id: binding.policy_id,
        sport: 0,
        dport: 0,
        proto: 0,
        hook: facts.hook,
        verdict: facts.verdict,
        reason: facts.reason,
        _pad: [0; 2],
        netns: 0,
        process: Process::UNKNOWN,
        _pad2: 0,
    });
    fill(event);
    // Waking the agent costs as much as a decision: allowed flows wait until it looks, which it does often.
    entry.submit(if is_allowed {
        u64::from(BPF_RB_NO_WAKEUP)
    } else {
        0
    });
}

/// Reports a decision on a packet.
#[inline(always)]
pub fn report_packet(
    skb: &Skb,
    hook: Hook,
    header: Header,
    decision: &Decision,
    binding: &Binding,
) {
    report_packet_number(
        skb.raw,
        Place::new(hook, skb.base).pack(),
        header.pack(),
        decision.pack(),
        binding.pack(),
    );
}

/// [`report_packet`], verified once for itself. The verdict follows from reason and mode.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_packet_number(
    raw: *mut __sk_buff,
    place: u32,
    header: u64,
    decision: u64,
    binding: u64,
) -> u32 {
    let Place { base, hook } = Place::unpack(place);
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let binding = Binding::unpack(binding);
    let cgroup_id = if hook == Hook::SkbEgress as u8 {
        // SAFETY: the context is valid while the program runs.
        unsafe { bpf_skb_cgroup_id(raw) }
    } else {
        0
    };
    let reason = Decision::packed_reason(decision);
    let facts = Facts {
        hook,
        verdict: verdict_of(reason, binding.mode()) as u8,
        reason,
        rule: Decision::packed_rule(decision),
    };
    report(&facts, &binding, |event| {
        event.cgroup_id = cgroup_id;
        event.netns = netns::of_packet(raw);
        event.process = process::of_packet(raw);
        // A packet that cannot be read is reported without its flow.
        if header.refusal().is_none() {
            event.saddr = header.saddr(&skb);
            event.daddr = header.daddr(&skb);
            event.sport = header.sport();
            event.dport = header.dport();
            event.proto = header.proto();
        }
    });
    0
}
