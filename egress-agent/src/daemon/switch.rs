//! Switching to another policy, without a packet that is judged by half of one.
//!
//! 1. The new policy is written under an id that no workload uses.
//! 2. Every workload is bound to it as `next`: from now on answers teach the
//!    old scope and the new one.
//! 3. After a pause, in which programs that read the old binding end, known
//!    addresses are carried over into the new scopes: grants whose rule is
//!    still there, and names that the agent remembers and the policy allows.
//! 4. Every workload is bound to it as `current`: one atomic write for each.
//! 5. The generation is raised: sockets check what they remember.
//! 6. After another pause, the old policy and the old scopes are removed.
//!
//! A failure before step 4 takes `next` back and removes what was written.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use egress_common::{
    learned::{Grant, LearnRequest, LearnedKey},
    maps::{Alias, AliasKey, CGROUP_LEVELS},
    policy::{
        ANSWERS_DNS, Binding, IS_NODE, NAME_ENTRIES, NameRules, RuleEntry, SEARCH_POLICY, Workload,
    },
    verdict::Mode,
};
use tracing::{info, warn};

use super::{
    confirm::Moment,
    shared::{InForce, PolicyInForce, Scope, Shared, lock},
    time::now_ns,
};
use crate::{
    cli::{RunOptions, run::LifelinePart},
    datapath::LearnedEntry,
    dns::SeenName,
    policy::{Compiled, Lifeline, PolicyErrors, RuleList, ServiceTagsFacts, address_from},
    workload::own_addresses,
};

/// Longer than any program runs.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Policy ids in use: 0 restricts nothing, the last one stands for "not configured".
const POLICY_IDS: std::ops::Range<u16> = 1..SEARCH_POLICY;

/// The lifeline that the options ask for.
pub(super) fn lifeline(options: &RunOptions, resolvers: &[IpAddr]) -> Lifeline {
    let has = |part| !options.no_lifeline.contains(&part);
    let mut lifeline = Lifeline::new();
    if has(LifelinePart::Resolvers) {
        lifeline = lifeline.resolvers(resolvers);
    }
    if has(LifelinePart::NodeAddresses) {
        lifeline = lifeline.node_addresses(&own_addresses());
    }
    if has(LifelinePart::Dhcp) {
        lifeline = lifeline.dhcp();
    }
    if has(LifelinePart::ApiServer)
        && let Some(server) = options.api_server
    {
        lifeline = lifeline.api_server(server.ip(), server.port());
    }
    if has(LifelinePart::ClusterRanges) {
        lifeline = lifeline.cluster_ranges(&options.lifeline_cidrs);
    }
    lifeline
}

/// A policy that is to come into force.
#[derive(Debug)]
pub(super) struct Candidate {
    policies: Vec<PolicyInForce>,
    service_tags: Option<ServiceTagsFacts>,
    lifeline: Lifeline,
    compiled: Compiled,
}

impl Candidate {
    /// Reads and compiles the policy files.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub(super) fn load(options: &RunOptions, lifeline: Lifeline) -> Result<Self, PolicyErrors> {
        let catalog = options.catalog.load()?;
        let notes = catalog.service_tags().map(|tags| &tags.facts().notes);
        for note in notes.into_iter().flatten() {
            warn!(note, "the file of service tags is not quite right");
        }
        let set = crate::policy::load(&options.policies, &catalog)?;
        let compiled = crate::policy::compile(&set, &lifeline, options.mode)?;
        Ok(Self {
            policies: set.policies().iter().map(PolicyInForce::of).collect(),
            service_tags: catalog.service_tags().map(|tags| tags.facts().clone()),
            lifeline,
            compiled,
        })
    }
}

fn next_policy_id(last: u16) -> u16 {
    let next = last.wrapping_add(1);
    if POLICY_IDS.contains(&next) {
        next
    } else {
        POLICY_IDS.start
    }
}

impl Shared {
    /// Switches to a compiled policy.
    ///
    /// # Errors
    ///
    /// A map that cannot be written; the old policy is then still in force.
    pub(super) fn switch(&self, candidate: Candidate) -> anyhow::Result<()> {
        let Candidate {
            policies,
            service_tags,
            lifeline,
            compiled,
        } = candidate;
        let began = Instant::now();
        let compiled = Arc::new(compiled);
        let mut datapath = self.datapath();
        let bound: Vec<Option<Workload>> = self
            .scopes
            .iter()
            .map(|scope| datapath.bound(scope.cgroup_id))
            .collect();
        let old: Vec<Option<Binding>> = bound
            .iter()
            .map(|workload| {
                workload
                    .map(|workload| workload.current)
                    .filter(|binding| binding.policy_id != 0)
            })
            .collect();
        let last_policy_id = old.iter().flatten().map(|binding| binding.policy_id).max();
        let policy_id = next_policy_id(last_policy_id.unwrap_or(0));
        let learned = datapath.learned()?;
        let last_scope_id = learned
            .iter()
            .map(|entry| entry.scope_id)
            .chain(old.iter().flatten().map(|binding| binding.scope_id))
            .chain(datapath.foreign_scope_ids())
            .max()
            .unwrap_or(0);
        drop(learned);
        let new: Vec<Binding> = (1_u32..)
            .zip(&self.scopes)
            .map(|(offset, _)| Binding {
                // Wraps after four thousand million switches; 0 is never a scope.
                scope_id: last_scope_id.wrapping_add(offset).max(1),
                policy_id,
                mode: compiled.mode as u8,
                flags: compiled.flags,
            })
            .collect();

        datapath.set_levels(&levels(&self.scopes)?)?;
        let resolvers: Vec<_> = self.resolvers().into_iter().map(address_from).collect();
        datapath.set_resolvers(&resolvers)?;
        let local: Vec<_> = own_addresses().into_iter().map(address_from).collect();
        datapath.set_local(&local)?;
        *lock(&self.local) = local;
        datapath.set_search_domains(&self.options.search_domains)?;

        // An agent that was killed on its way may have left something under the new id.
        datapath.remove_policies_but(last_policy_id)?;
        let prepared = datapath.install(policy_id, &compiled).and_then(|()| {
            for ((scope, old), new) in self.scopes.iter().zip(&old).zip(&new) {
                if let Some(old) = old {
                    datapath.bind(scope.cgroup_id, workload(scope, *old, *new))?;
                }
            }
            std::thread::sleep(PAUSE);
            let entries = datapath.learned()?;
            let requests = self.carry_over(&entries, &old, &new, &compiled);
            let carried = datapath.learn(&requests)?;
            let lost = requests
                .len()
                .saturating_sub(usize::try_from(carried).unwrap_or(usize::MAX));
            if lost > 0 {
                warn!(
                    carried,
                    lost,
                    "known addresses found no room under the new policy, and are refused until \
                     their names are resolved again: raise --max-learned"
                );
            }
            let aliases = carry_over_aliases(&datapath.aliases()?, &old, &new, &compiled);
            datapath.note_aliases(&aliases)
        });
        if let Err(error) = prepared {
            for (scope, old) in self.scopes.iter().zip(&old) {
                if let Some(old) = old {
                    datapath.bind(scope.cgroup_id, workload(scope, *old, Binding::default()))?;
                }
            }
            datapath.remove_policies_but(last_policy_id)?;
            return Err(error.into());
        }
        for (scope, new) in self.scopes.iter().zip(&new) {
            datapath.bind(scope.cgroup_id, workload(scope, *new, Binding::default()))?;
        }
        let generation = datapath.raise_generation()?;

        let ids = |bindings: &[Option<Binding>]| -> HashMap<u32, usize> {
            let ids = bindings.iter().enumerate();
            ids.filter_map(|(index, binding)| Some(((*binding)?.scope_id, index)))
                .collect()
        };
        let mut scope_ids = ids(&old);
        scope_ids.extend(ids(&new.iter().copied().map(Some).collect::<Vec<_>>()));
        info!(
            generation,
            policies = policies.len(),
            names = compiled.names.len(),
            cidrs = compiled.cidrs.len(),
            mode = compiled.mode.name(),
            ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "policy switched"
        );
        let mode = compiled.mode;
        self.set_in_force(InForce {
            compiled,
            lifeline,
            policies: self.in_force_since(policies, generation),
            service_tags,
            loaded_at: InForce::loaded_now(),
            scope_ids,
        });
        self.confirmation.in_force(mode, Moment::now());

        std::thread::sleep(PAUSE);
        let kept: Vec<u64> = self.scopes.iter().map(|scope| scope.cgroup_id).collect();
        datapath.unbind_but(&kept)?;
        // Programs of another layout may still judge by what they know.
        let live: BTreeSet<u32> = new
            .iter()
            .map(|binding| binding.scope_id)
            .chain(datapath.foreign_scope_ids())
            .collect();
        let stale: Vec<LearnedKey> = datapath
            .learned()?
            .into_iter()
            .filter(|entry| !live.contains(&entry.scope_id))
            .map(|entry| LearnedKey::new(entry.scope_id, entry.address))
            .collect();
        // No grant ends later than this: all of them go.
        datapath.sweep(&stale, u64::MAX)?;
        let stale: Vec<AliasKey> = datapath
            .aliases()?
            .iter()
            .map(|(key, _)| *key)
            .filter(|key| !live.contains(&key.scope_id))
            .collect();
        datapath.remove_aliases(&stale)?;
        datapath.remove_policies_but(Some(policy_id))?;
        Ok(())
    }

    /// Every policy with the generation since which it reads as it does.
    fn in_force_since(
        &self,
        mut policies: Vec<PolicyInForce>,
        generation: u32,
    ) -> Vec<PolicyInForce> {
        let before = self.in_force();
        let before = before.iter().flat_map(|in_force| &in_force.policies);
        let before: HashMap<_, _> = before
            .map(|one| ((one.name.as_str(), one.content), one.generation))
            .collect();
        for policy in &mut policies {
            let same = before.get(&(policy.name.as_str(), policy.content));
            policy.generation = same.copied().unwrap_or(generation);
        }
        policies
    }

    /// Loads and compiles the files again, and switches to them.
    ///
    /// # Errors
    ///
    /// The files are wrong, or the kernel refuses; the old policy is then still in force.
    pub(super) fn reload(&self) -> anyhow::Result<()> {
        let _one_at_a_time = lock(&self.reloading);
        let mut candidate = self.candidate()?;
        if self.confirmation.is_fallen_back() {
            candidate.compiled.mode = Mode::Audit;
        }
        self.switch(candidate)
            .context("cannot write the policy into the kernel")
    }

    /// What the files say now.
    fn candidate(&self) -> anyhow::Result<Candidate> {
        let lifeline = lifeline(&self.options, &self.resolvers());
        Candidate::load(&self.options, lifeline).map_err(anyhow::Error::new)
    }

    /// Switches the policy that is in force to audit, if the agent is to; the files are not looked at, which may be wrong by now.
    ///
    /// # Errors
    ///
    /// The kernel refuses; the policy is then still enforced.
    pub(super) fn fall_back(&self) -> anyhow::Result<()> {
        let _one_at_a_time = lock(&self.reloading);
        // While this waited, somebody may have confirmed after all.
        if !self.confirmation.is_fallen_back() {
            return Ok(());
        }
        let Some(in_force) = self.in_force() else {
            return Ok(());
        };
        let mut compiled = Compiled::clone(&in_force.compiled);
        compiled.mode = Mode::Audit;
        self.switch(Candidate {
            policies: in_force.policies.clone(),
            service_tags: in_force.service_tags.clone(),
            lifeline: in_force.lifeline.clone(),
            compiled,
        })
        .context("cannot fall back to audit")
    }

    /// Switches to what the files say, after a fall back; from now on a confirmation is awaited again.
    ///
    /// # Errors
    ///
    /// The files are wrong, or the kernel refuses; the agent goes on auditing.
    pub(super) fn enforce_again(&self) -> anyhow::Result<()> {
        let _one_at_a_time = lock(&self.reloading);
        let candidate = self.candidate()?;
        let mode = candidate.compiled.mode;
        self.switch(candidate)
            .context("cannot write the policy into the kernel")?;
        self.confirmation.enforced_again(mode, Moment::now());
        Ok(())
    }

    /// The trusted resolvers: those that were given, or those that the node has now.
    pub(super) fn resolvers(&self) -> Vec<IpAddr> {
        if self.options.are_resolvers_given {
            self.options.resolvers.clone()
        } else {
            crate::workload::system_resolvers()
        }
    }

    /// What the new scopes are to know from the beginning.
    fn carry_over(
        &self,
        entries: &[LearnedEntry],
        old: &[Option<Binding>],
        new: &[Binding],
        compiled: &Compiled,
    ) -> Vec<LearnRequest> {
        let now_ns = now_ns();
        let successors: HashMap<u32, (&Scope, u32)> = old
            .iter()
            .zip(new)
            .zip(&self.scopes)
            .filter_map(|((old, new), scope)| Some(((*old)?.scope_id, (scope, new.scope_id))))
            .collect();
        let mut requests = Vec::new();
        for entry in entries {
            let Some((scope, scope_id)) = successors.get(&entry.scope_id) else {
                continue;
            };
            let live = entry
                .grants
                .iter()
                .filter(|grant| grant.expires_at_ns > now_ns);
            for grant in live {
                let auditor = self.still_rests(scope, entry, grant, compiled, now_ns);
                requests.extend(auditor.map(|auditor| LearnRequest {
                    key: LearnedKey::new(*scope_id, entry.address),
                    grant: Grant { auditor, ..*grant },
                }));
            }
        }
        let by_number: HashMap<_, u32> = self
            .scopes
            .iter()
            .zip(new)
            .map(|(scope, new)| (scope.number, new.scope_id))
            .collect();
        self.memory.for_each_live(now_ns, |live| {
            let Some(scope_id) = by_number.get(&live.scope) else {
                return;
            };
            let Some(rules) = compiled.rules_of_name(&live.seen.name) else {
                return;
            };
            let Some(auditor) = auditor_of_seen(live.seen, rules, compiled) else {
                return;
            };
            for rule in rules.entries.iter().take_while(|rule| rule.kind != 0) {
                requests.push(LearnRequest {
                    key: LearnedKey::new(*scope_id, live.address),
                    grant: Grant {
                        expires_at_ns: live.seen.expires_at_ns,
                        rule: rule.rule,
                        auditor,
                        ports: rule.ports,
                        _pad: 0,
                    },
                });
            }
        });
        requests
    }

    /// The auditor of a grant under the new policy (0 for none), if it has the rule and does not deny the name that the
    /// grant rests on.
    fn still_rests(
        &self,
        scope: &Scope,
        entry: &LearnedEntry,
        grant: &Grant,
        compiled: &Compiled,
        now_ns: u64,
    ) -> Option<u64> {
        let source = compiled.rules.get(&grant.rule)?;
        if source.list != RuleList::Allow {
            return None;
        }
        let names = self.memory.names_of(scope.number, &entry.address, now_ns);
        let mut live = names
            .iter()
            .filter(|name| name.expires_at_ns > now_ns)
            .peekable();
        // Learned while no agent looked: its rules are all that is known of it.
        if live.peek().is_none() {
            return match compiled.rules.get(&grant.auditor) {
                None => Some(0),
                // The policy that only looked on is enforced now.
                Some(auditor) => auditor.is_audited.then_some(grant.auditor),
            };
        }
        // A rule with the same content covers the same names. A name that no rule covers was the target of an alias.
        let auditors = live.filter_map(|name| {
            let rules = compiled.names.rules_of(&name.name).copied();
            auditor_of_seen(name, &rules.unwrap_or_default(), compiled)
        });
        // One name that nobody audits is enough.
        auditors.min()
    }
}

/// The rule by which a policy in audit denies a name with these rules, or its alias (0 for none); `None` if either is denied.
fn auditor_of_seen(seen: &SeenName, rules: &NameRules, compiled: &Compiled) -> Option<u64> {
    let is_denied = |name: &str| {
        compiled
            .rules_of_name(name)
            .is_some_and(|rules| rules.deny != 0)
    };
    let alias = seen.alias.as_deref();
    if rules.deny != 0 || alias.is_some_and(is_denied) {
        return None;
    }
    Some(if rules.auditor == 0 {
        alias.map_or(0, |alias| compiled.auditor_of_name(alias))
    } else {
        rules.auditor
    })
}

/// Noted aliases for the new scopes: under the rules that the new policy still has. A target that the new policy denies
/// stays denied, because its own name is matched first.
fn carry_over_aliases(
    aliases: &[(AliasKey, Alias)],
    old: &[Option<Binding>],
    new: &[Binding],
    compiled: &Compiled,
) -> Vec<(AliasKey, Alias)> {
    let successors: HashMap<u32, u32> = old
        .iter()
        .zip(new)
        .filter_map(|(old, new)| Some(((*old)?.scope_id, new.scope_id)))
        .collect();
    let carried = aliases.iter().filter_map(|(key, alias)| {
        let key = AliasKey::new(key.name, *successors.get(&key.scope_id)?);
        let is_kept = |rule| {
            let source = compiled.rules.get(&rule);
            source.is_some_and(|source| source.list == RuleList::Allow)
        };
        alias_for(key, alias, is_kept).map(|alias| (key, alias))
    });
    carried.collect()
}

/// An alias as it is noted under another key, with those of its rules that are kept; `None` if there are none.
pub(super) fn alias_for(
    key: AliasKey,
    alias: &Alias,
    is_kept: impl Fn(u64) -> bool,
) -> Option<Alias> {
    let mut rules = alias.rules;
    rules.entries = [RuleEntry::default(); NAME_ENTRIES];
    let entries = alias.rules.entries.iter();
    let kept = entries.filter(|entry| entry.kind != 0 && is_kept(entry.rule));
    for (slot, entry) in rules.entries.iter_mut().zip(kept) {
        *slot = *entry;
    }
    let [first, ..] = rules.entries;
    (first.kind != 0).then_some(Alias {
        owner: key.owner(),
        expires_at_ns: alias.expires_at_ns,
        rules,
    })
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
fn levels(scopes: &[Scope]) -> anyhow::Result<Vec<i32>> {
    let levels: BTreeSet<i32> = scopes.iter().filter_map(|scope| scope.level).collect();
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
        assert_eq!(next_policy_id(0), 1);
        assert_eq!(next_policy_id(1), 2);
        assert_eq!(next_policy_id(u16::MAX - 1), 1);
        assert_eq!(next_policy_id(u16::MAX), 1);
    }
}
