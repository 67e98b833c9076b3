//! Counters and events.
//!
//! Counters are atomic adds, because a softirq can interrupt a program on its
//! own CPU. Events are rate-limited per CPU, denials and allowed flows apart,
//! so that a flood costs one map lookup and one compare for each packet that
//! is not reported; what is not reported is counted.

use egress_common::{
    decision::Decision,
    event::{EVENTS_PER_SECOND, VerdictEvent},
    maps::RuleCounters,
    packet::Packet,
    policy::Binding,
    tally::Tally,
    verdict::{Hook, Reason, Verdict, counter_index},
};

use crate::{
    maps::{COUNTERS, EVENT_BUDGETS, EVENTS, RULE_COUNTERS, TALLIES},
    time::now_ns,
};

/// `BPF_NOEXIST`.
pub const NO_EXIST: u64 = 1;

/// Adds to a counter that other CPUs, or a softirq on this one, may change at the same time.
#[inline(always)]
fn add(counter: *mut u64, amount: u64) {
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

/// Counts by number, where the tally comes out of a machine.
#[inline(always)]
pub fn tally_number(number: u32) {
    if let Some(counter) = TALLIES.get_ptr_mut(number) {
        add(counter, 1);
    }
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

/// Counts a decision under its rule.
#[inline(always)]
pub fn count_rule(decision: &Decision) {
    if decision.rule == 0 {
        return;
    }
    let mut counters = RULE_COUNTERS.get_ptr_mut(decision.rule);
    if counters.is_none() {
        // Somebody else may have been faster; what counts is that it is there now.
        let _ = RULE_COUNTERS.insert(decision.rule, &FRESH, NO_EXIST);
        counters = RULE_COUNTERS.get_ptr_mut(decision.rule);
    }
    match counters {
        Some(counters) => {
            // SAFETY: the pointer is to a map value with four counters.
            let first = unsafe { &raw mut (*counters).decisions }.cast::<u64>();
            // The mask is for the verifier: a verdict is 0, 1 or 2.
            let index = opaque(decision.verdict as u32) & 3;
            // SAFETY: the index is at most 3.
            add(unsafe { first.add(index as usize) }, 1);
        }
        None => tally(Tally::RuleCountersFull),
    }
}

/// Sends an event, if this second's budget has room; `fill` adds what the decision does not say.
#[inline(always)]
pub fn report(
    hook: Hook,
    decision: &Decision,
    binding: &Binding,
    fill: impl FnOnce(&mut VerdictEvent),
) {
    let is_allowed = matches!(decision.verdict, Verdict::Allow);
    let Some(budget) = EVENT_BUDGETS.get_ptr_mut(u32::from(is_allowed)) else {
        return;
    };
    let at_ns = now_ns();
    let second = at_ns / 1_000_000_000;
    // SAFETY: the pointer is to a map value of this CPU. A softirq between
    // these lines can let a few events more or less through; each of them is
    // either sent or counted.
    let budget = unsafe { &mut *budget };
    if budget.second != second {
        budget.second = second;
        budget.used = 0;
    }
    if budget.used >= u64::from(EVENTS_PER_SECOND) {
        tally(Tally::EventsSuppressed);
        return;
    }
    budget.used = budget.used.wrapping_add(1);
    let Some(mut entry) = EVENTS.reserve(0) else {
        return tally(Tally::EventsLost);
    };
    let event = entry.write(VerdictEvent {
        at_ns,
        cgroup_id: 0,
        rule: decision.rule,
        saddr: [0; 16],
        daddr: [0; 16],
        scope_id: binding.scope_id,
        policy_id: binding.policy_id,
        sport: 0,
        dport: 0,
        proto: 0,
        hook: hook as u8,
        verdict: decision.verdict as u8,
        reason: decision.reason as u8,
        _pad: [0; 6],
    });
    fill(event);
    entry.submit(0);
}

/// Fills in the flow of a packet.
#[inline(always)]
pub fn fill_packet(event: &mut VerdictEvent, packet: &Packet) {
    event.saddr = packet.saddr;
    event.daddr = packet.daddr;
    event.sport = packet.sport;
    event.dport = packet.dport;
    event.proto = packet.proto;
}
