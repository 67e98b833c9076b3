//! Switching scopes to other rules, without a packet that is judged by half of one.
//!
//! A scope that the kernel does not know is bound with one atomic write, once its rules are there. For the others whose
//! rules change:
//!
//! 1. The new rules are written under a policy id that no workload uses.
//! 2. The workloads are bound to them as `next`: from now on answers teach the
//!    old scope and the new one.
//! 3. After a pause, in which programs that read the old binding end, known
//!    addresses are carried over into the new scopes: those that a name which the
//!    new policy allows is remembered to have taught (see `carry`).
//! 4. The workloads are bound to them as `current`: one atomic write for each.
//! 5. The generation is raised: sockets check what they remember.
//! 6. After another pause, rules that nothing is bound to and the old scopes are removed.
//!
//! A failure before step 4 takes `next` and the new scopes back, and removes what was written. Whose rules stay, and the
//! scopes that they have, is not touched.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use egress_common::{
    learned::LearnedKey,
    maps::CGROUP_LEVELS,
    policy::{ANSWERS_DNS, Binding, IS_NODE, SEARCH_POLICY, Workload},
    verdict::Mode,
};
use tracing::{debug, info, warn};

use super::{
    carry::{Carried, Successors},
    plan::Assignment,
    shared::{Bound, InForce, NodeFacts, Rules, Ruleset, Scope, Shared},
    time::now_ns,
};
use crate::datapath::{Datapath, DatapathError};

/// Longer than any program runs.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Policy ids in use: 0 restricts nothing, the last one stands for "not configured".
const POLICY_IDS: std::ops::Range<u16> = 1..SEARCH_POLICY;

/// Steps for the scopes.
struct Steps {
    /// All of them, in the order of the plan.
    bound: Vec<Arc<Bound>>,
    /// Those that the kernel does not know.
    fresh: Vec<Arc<Bound>>,
    /// Those whose rules change, with how the kernel has them.
    moved: Vec<(Workload, Arc<Bound>)>,
    /// Rules that are not in the kernel, with the id for each.
    new_rules: Vec<(u16, Arc<Ruleset>)>,
}

impl Steps {
    fn successors(&self) -> Successors<'_> {
        let moved = self.moved.iter();
        moved
            .map(|(before, bound)| (before.current.scope_id, &**bound))
            .collect()
    }

    /// The policies that are bound to when all is done.
    fn policy_ids(&self) -> BTreeSet<u16> {
        let ids = self.bound.iter().map(|bound| bound.binding.policy_id);
        ids.filter(|id| *id != 0).collect()
    }
}

impl Shared {
    /// Switches to a plan, which names every scope, the node first. What it does not change is not touched.
    ///
    /// # Errors
    ///
    /// A map that cannot be written; what was in force before still is.
    pub(super) fn switch(&self, plan: &[Assignment], facts: &Arc<NodeFacts>) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut datapath = self.datapath();
        let before = self.in_force();
        let known: HashMap<u64, Workload> = datapath.workloads()?.into_iter().collect();
        let steps = self.steps(plan, before.as_deref(), &known, &datapath)?;

        datapath.set_levels(&levels(plan)?)?;
        self.set_facts(&mut datapath, before.as_deref(), facts)?;
        let kept_policies: BTreeSet<u16> = known
            .values()
            .map(|workload| workload.current.policy_id)
            .collect();
        if before.is_none() {
            // An agent that was killed on its way may have left something under the new ids.
            datapath.remove_policies_but(&kept_policies)?;
        }
        let prepared = prepare(&mut datapath, &steps);
        if prepared.is_ok() && !steps.moved.is_empty() {
            // The agent has to remember what the kernel learned until now before it can carry it over, and the task
            // that reads it needs the data plane too. Nobody else switches meanwhile.
            drop(datapath);
            std::thread::sleep(PAUSE);
            if before.is_some() {
                self.dns_looks.catch_up();
            } else {
                let by_cgroup: HashMap<u64, &Arc<Scope>> = plan
                    .iter()
                    .map(|(scope, _)| (scope.cgroup_id, scope))
                    .collect();
                let scopes = known.iter().filter_map(|(cgroup_id, workload)| {
                    let scope = by_cgroup.get(cgroup_id)?;
                    Some((workload.current.scope_id, Arc::clone(scope)))
                });
                self.remember_early(&scopes.collect());
            }
            datapath = self.datapath();
        }
        let prepared = prepared.and_then(|()| self.carry(&mut datapath, &steps));
        if let Err(error) = prepared {
            for (workload, bound) in &steps.moved {
                let next = Binding::default();
                datapath.bind(bound.scope.cgroup_id, Workload { next, ..*workload })?;
            }
            let fresh = steps.fresh.iter().map(|bound| bound.scope.cgroup_id);
            datapath.unbind(fresh)?;
            datapath.remove_policies_but(&kept_policies)?;
            return Err(error.into());
        }
        for (_, bound) in &steps.moved {
            let workload = workload(&bound.scope, bound.binding, Binding::default());
            datapath.bind(bound.scope.cgroup_id, workload)?;
        }
        let generation = if steps.moved.is_empty() && before.is_some() {
            // No socket remembers anything of a scope that was not there.
            datapath.generation()?
        } else {
            datapath.raise_generation()?
        };
        let wanted: BTreeSet<u64> = plan.iter().map(|(scope, _)| scope.cgroup_id).collect();
        let gone = known.keys().filter(|id| !wanted.contains(id)).copied();
        datapath.unbind(gone)?;
        let bound = steps.bound.clone();
        let in_force = InForce::after(before.as_deref(), bound, Arc::clone(facts), generation);
        if before.is_none() || !steps.moved.is_empty() {
            tell(&in_force, generation, began);
        } else {
            debug!(
                fresh = steps.fresh.len(),
                scopes = steps.bound.len(),
                "scopes changed"
            );
        }
        self.set_in_force(in_force);

        let is_beginning = before.is_none();
        let policy_ids = steps.policy_ids();
        // Maps that are as new as the agent hold nothing of anybody else.
        let is_adopting = is_beginning && datapath.is_adopted();
        if is_adopting || !steps.moved.is_empty() {
            std::thread::sleep(PAUSE);
            self.leave(&mut datapath, &steps)?;
        }
        if is_beginning || kept_policies.iter().any(|id| !policy_ids.contains(id)) {
            datapath.remove_policies_but(&policy_ids)?;
        }
        Ok(())
    }

    /// The steps that have to be done; writes nothing.
    fn steps(
        &self,
        plan: &[Assignment],
        before: Option<&InForce>,
        known: &HashMap<u64, Workload>,
        datapath: &Datapath,
    ) -> anyhow::Result<Steps> {
        let mut policy_ids: HashMap<*const Ruleset, u16> = HashMap::new();
        for bound in before.iter().flat_map(|before| &before.bound) {
            if let Some(ruleset) = bound.rules.ruleset() {
                policy_ids.insert(Arc::as_ptr(ruleset), bound.binding.policy_id);
            }
        }
        let mut used: BTreeSet<u16> = known
            .values()
            .map(|workload| workload.current.policy_id)
            .collect();
        let by_cgroup: HashMap<u64, &Arc<Bound>> = before
            .iter()
            .flat_map(|before| &before.bound)
            .map(|bound| (bound.scope.cgroup_id, bound))
            .collect();
        let mut of_identity: HashMap<u32, Arc<Bound>> = by_cgroup
            .values()
            .map(|bound| (bound.scope.identity, Arc::clone(bound)))
            .collect();
        let mut steps = Steps {
            bound: Vec::with_capacity(plan.len()),
            fresh: Vec::new(),
            moved: Vec::new(),
            new_rules: Vec::new(),
        };
        for (scope, rules) in plan {
            let workload = known.get(&scope.cgroup_id).copied();
            if let Some(same) = by_cgroup.get(&scope.cgroup_id)
                && same.rules.is_same(rules)
                && workload.is_some_and(|workload| workload.current == same.binding)
            {
                steps.bound.push(same.of_scope(scope));
                continue;
            }
            let policy_id = match rules {
                Rules::Open => 0,
                Rules::Kept => {
                    let Some(workload) = workload else {
                        bail!("scope {} is not in the kernel", scope.name);
                    };
                    steps.bound.push(Arc::new(Bound {
                        scope: Arc::clone(scope),
                        binding: workload.current,
                        rules: Rules::Kept,
                    }));
                    continue;
                }
                Rules::Of(ruleset) => match policy_ids.get(&Arc::as_ptr(ruleset)) {
                    Some(id) => *id,
                    None => {
                        let id = free_policy_id(&used).context("no policy id is free")?;
                        used.insert(id);
                        policy_ids.insert(Arc::as_ptr(ruleset), id);
                        steps.new_rules.push((id, Arc::clone(ruleset)));
                        id
                    }
                },
            };
            let binding = match of_identity.get(&scope.identity) {
                // Another cgroup of the same workload.
                Some(other) if other.rules.is_same(rules) => other.binding,
                _ => {
                    let compiled = rules.ruleset().map(|ruleset| &ruleset.compiled);
                    Binding {
                        scope_id: self.new_scope_id(known, datapath)?,
                        policy_id,
                        mode: compiled.map_or(Mode::Enforce, |compiled| compiled.mode) as u8,
                        flags: compiled.map_or(0, |compiled| compiled.flags),
                    }
                }
            };
            let bound = Arc::new(Bound {
                scope: Arc::clone(scope),
                binding,
                rules: rules.clone(),
            });
            of_identity.insert(scope.identity, Arc::clone(&bound));
            steps.bound.push(Arc::clone(&bound));
            match workload.filter(|workload| workload.current.scope_id != 0) {
                Some(workload) => steps.moved.push((workload, bound)),
                None => steps.fresh.push(bound),
            }
        }
        Ok(steps)
    }

    /// An id that no scope has, or had.
    fn new_scope_id(
        &self,
        known: &HashMap<u64, Workload>,
        datapath: &Datapath,
    ) -> anyhow::Result<u32> {
        let mut last = self.last_scope_id.load(Ordering::Relaxed);
        if last == 0 {
            let scopes = datapath.scopes()?;
            let learned = scopes.iter().map(|scope| scope.scope_id).max().unwrap_or(0);
            let bound = known.values().flat_map(|one| [one.current, one.next]);
            last = bound
                .map(|binding| binding.scope_id)
                .chain(datapath.foreign_scope_ids())
                .fold(learned, u32::max);
        }
        // Wraps after four thousand million scopes; 0 is none.
        let next = last.wrapping_add(1).max(1);
        self.last_scope_id.store(next, Ordering::Relaxed);
        Ok(next)
    }

    /// Tells the kernel what goes for all scopes, where that is new.
    fn set_facts(
        &self,
        datapath: &mut Datapath,
        before: Option<&InForce>,
        facts: &NodeFacts,
    ) -> Result<(), DatapathError> {
        let before = before.map(|before| &before.facts);
        if before.is_none_or(|before| before.resolvers != facts.resolvers) {
            datapath.set_resolvers(&facts.resolvers)?;
        }
        if before.is_none_or(|before| before.local != facts.local) {
            datapath.set_local(&facts.local)?;
        }
        datapath.set_search_domains(&facts.search_domains)
    }

    /// Step 3: what the scopes take along.
    fn carry(&self, datapath: &mut Datapath, steps: &Steps) -> Result<(), DatapathError> {
        let now_ns = now_ns();
        let mut carried = Carried::default();
        for (scope_id, bound) in steps.successors() {
            let held = |netns, address| datapath.grants(&LearnedKey::new(scope_id, netns, address));
            carried.take(&self.memory, bound, held, now_ns);
        }
        carried.sort();
        let stored = datapath.learn(&carried.requests)?;
        let lost = carried
            .requests
            .len()
            .saturating_sub(usize::try_from(stored).unwrap_or(usize::MAX));
        if lost > 0 {
            warn!(
                carried = stored,
                lost,
                "known addresses found no room under the new policy, and are refused until \
                 their names are resolved again: raise --max-learned"
            );
        }
        datapath.note_aliases(&carried.aliases)?;
        Ok(())
    }

    /// Removes what the scopes of before knew: as far as the agent remembers it, at once. The rest is found by the sweep
    /// that goes round.
    fn leave(&self, datapath: &mut Datapath, steps: &Steps) -> Result<(), DatapathError> {
        for (before, bound) in &steps.moved {
            let mut keys = Vec::new();
            self.memory.for_each(bound.scope.number, |address, seen| {
                keys.push(LearnedKey::new(
                    before.current.scope_id,
                    seen.netns,
                    address,
                ));
            });
            // No grant ends later than this: all of them go.
            datapath.sweep(&keys, u64::MAX, u32::MAX)?;
        }
        Ok(())
    }
}

/// Steps 1 and 2, and the scopes that are new.
fn prepare(datapath: &mut Datapath, steps: &Steps) -> Result<(), DatapathError> {
    for (policy_id, ruleset) in &steps.new_rules {
        datapath.install(*policy_id, &ruleset.compiled)?;
    }
    for bound in &steps.fresh {
        let workload = workload(&bound.scope, bound.binding, Binding::default());
        datapath.bind(bound.scope.cgroup_id, workload)?;
    }
    for (before, bound) in &steps.moved {
        let workload = workload(&bound.scope, before.current, bound.binding);
        datapath.bind(bound.scope.cgroup_id, workload)?;
    }
    Ok(())
}

/// Logs a switch of rules.
fn tell(in_force: &InForce, generation: u32, began: Instant) {
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let rulesets = in_force.rulesets();
    let sum = |count: fn(&Ruleset) -> usize| {
        let counts = rulesets.iter().map(|ruleset| count(ruleset));
        counts.fold(0, usize::saturating_add)
    };
    info!(
        generation,
        policies = in_force.policies().len(),
        scopes = in_force.bound.len(),
        names = sum(|ruleset| ruleset.compiled.names.len()),
        cidrs = sum(|ruleset| ruleset.compiled.cidrs.len()),
        mode = in_force.mode_text(false),
        ms,
        "policy switched"
    );
}

/// The id after the last one that is used, or the first that is free.
fn free_policy_id(used: &BTreeSet<u16>) -> Option<u16> {
    let after = used
        .last()
        .map_or(POLICY_IDS.start, |last| last.saturating_add(1));
    let is_free = |id: &u16| !used.contains(id);
    (after..POLICY_IDS.end)
        .find(is_free)
        .or_else(|| POLICY_IDS.clone().find(is_free))
}

fn workload(scope: &Scope, current: Binding, next: Binding) -> Workload {
    Workload {
        current,
        next,
        flags: if scope.cgroup.is_none() { IS_NODE } else { 0 }
            | if scope.answers_dns { ANSWERS_DNS } else { 0 },
        identity: scope.identity,
    }
}

/// The depths of the scopes' cgroups, deepest first.
fn levels(plan: &[Assignment]) -> anyhow::Result<Vec<i32>> {
    let levels: BTreeSet<i32> = plan.iter().filter_map(|(scope, _)| scope.level).collect();
    if levels.len() > CGROUP_LEVELS {
        bail!(
            "the scopes' cgroups lie at {} different depths, and {CGROUP_LEVELS} are possible",
            levels.len()
        );
    }
    Ok(levels.into_iter().rev().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_ids_skip_those_with_a_meaning() {
        let of = |used: &[u16]| free_policy_id(&used.iter().copied().collect());
        assert_eq!(of(&[]), Some(1));
        assert_eq!(of(&[0, 1, 5]), Some(6));
        assert_eq!(of(&[1, SEARCH_POLICY - 1]), Some(2));
        assert_eq!(of(&[u16::MAX]), Some(1));
    }
}
