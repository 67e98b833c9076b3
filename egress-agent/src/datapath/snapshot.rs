//! Facts that the agent reads from the kernel, as plain data.

use std::{collections::BTreeMap, time::SystemTime};

use egress_common::{
    address::Address,
    learned::Grant,
    maps::ScopeUse,
    policy::NameRules,
    tally::Tally,
    verdict::{Hook, Reason, Verdict},
};
use tracing::warn;

/// One non-zero counter of packets (and, at connect hooks, of calls).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Where.
    pub hook: Hook,
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// How often.
    pub count: u64,
}

/// Decisions that one rule made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleCounter {
    /// Identity of the rule.
    pub rule: u64,
    /// First packets of flows that it allowed.
    pub allowed: u64,
    /// Packets and connects that it denied.
    pub denied: u64,
    /// The same in audit mode.
    pub would_deny: u64,
}

/// Decisions on what a workload sends that a rule made, or the lack of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkloadCounter {
    /// The workload: [`Workload::identity`](egress_common::policy::Workload::identity).
    pub identity: u32,
    /// First packets of flows that were allowed.
    pub allowed: u64,
    /// Packets and connects that were denied.
    pub denied: u64,
    /// The same in audit mode.
    pub would_deny: u64,
}

/// Everything that the kernel counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Verdicts.
    pub verdicts: Vec<Counter>,
    /// Verdicts that rules gave.
    pub rules: Vec<RuleCounter>,
    /// The same, and denials without a rule, by workload.
    pub workloads: Vec<WorkloadCounter>,
    /// The rest: DNS, losses. Zero counts included.
    pub tallies: Vec<(Tally, u64)>,
}

/// A learned address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnedEntry {
    /// Scope that resolved it.
    pub scope_id: u32,
    /// Network namespace in which it did.
    pub netns: u32,
    /// The address.
    pub address: Address,
    /// Used slots, live or expired.
    pub grants: Vec<Grant>,
}

/// A name that an allowed name is an alias of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotedAlias {
    /// Scope that resolved it.
    pub scope_id: u32,
    /// Network namespace in which it did.
    pub netns: u32,
    /// The name, lower case, without the final dot.
    pub name: String,
    /// When it ends, nanoseconds of the clock since boot.
    pub expires_at_ns: u64,
    /// The rules under which answers about it teach.
    pub rules: NameRules,
}

/// One scope's use of the tables that workloads fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeFill {
    /// The scope.
    pub scope_id: u32,
    /// The kernel's counts, and the shares.
    pub usage: ScopeUse,
}

/// Fill of one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// Name of the map.
    pub name: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Most that fit.
    pub capacity: u64,
}

/// A hook that is, or should be, attached, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedHook {
    /// Which.
    pub hook: Hook,
    /// Cgroup path or interface name: where the kernel has it, or where it should be if it is nowhere.
    pub target: String,
    /// How: `link` (cgroup), `tcx` or `clsact`.
    pub kind: &'static str,
    /// True if the kernel has it where it was asked for, with this agent's program behind it.
    pub is_attached: bool,
    /// True if its pin is there, so that it outlives the agent. A `clsact` filter does without one.
    pub is_pinned: bool,
    /// Tag of this agent's program.
    pub program_tag: String,
    /// Why it is not as it should be.
    pub trouble: Option<String>,
}

/// Things that were gone from the kernel, and that the agent put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    /// How often, by what it was: `hook`, `program`, `pin` (of a hook), `map` (its pin), `bpffs`.
    pub counts: BTreeMap<&'static str, u64>,
    /// The last time, and what it was.
    pub last: Option<(SystemTime, String)>,
}

impl PutBack {
    /// Counts and logs it.
    pub(super) fn note(&mut self, kind: &'static str, what: String) {
        warn!(what, "was gone from the kernel, and is put back");
        let count = self.counts.entry(kind).or_default();
        *count = count.saturating_add(1);
        self.last = Some((SystemTime::now(), what));
    }
}
