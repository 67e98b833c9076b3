//! The kernel's decision about a destination now, and what the agent knows of it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use egress_common::address::Address;

use super::{
    shared::{Bound, InForce, Scope, Shared},
    time::now_ns,
};
use crate::{
    api::{
        BadQuestion, ExplainQuery,
        model::Explanation,
        report::{AddressFacts, Elsewhere, ExplainFacts, explanation},
    },
    datapath::Datapath,
    dns::{Memory, Refusal, SeenName},
    policy::{Compiled, Destination, Host, Lifeline, PolicySet},
    workload::cgroup_root,
};

/// Most addresses of a name that are looked at.
const ADDRESSES: usize = 64;
/// Most scopes that an error names.
const NAMES: usize = 20;

/// The agent's memory of a destination.
struct Remembered {
    now_ns: u64,
    /// The addresses to look at, with the names that lead the scope there.
    addresses: Vec<(Address, Vec<SeenName>)>,
    elsewhere: Vec<Elsewhere>,
    refusals: Vec<Refusal>,
}

/// The kernel's decision now, beside what is remembered.
fn judged(
    datapath: &Datapath,
    memory: &Memory,
    bound: &Bound,
    destination: &Destination,
    remembered: Remembered,
) -> ExplainFacts {
    let now_ns = remembered.now_ns;
    let binding = datapath.effective(bound.binding, now_ns);
    let addresses = remembered.addresses.into_iter().map(|(address, names)| {
        let mut flow = destination.at(address).flow(address);
        // A pod has a network namespace of its own; for all others an address of the node is on loopback.
        flow.way.is_outside = bound.scope.pod.is_some();
        // In the namespace that the scope used last for it.
        let netns = memory
            .last_netns(bound.scope.number, &address)
            .unwrap_or_else(|| datapath.node_netns());
        let judged = datapath.judge(&flow, &binding, netns, now_ns);
        AddressFacts {
            address,
            decision: judged.decision,
            grants: judged.grants,
            is_own: match &destination.host {
                Host::Name(name) => names.iter().any(|seen| *seen.name == **name),
                Host::Address(_) => true,
            },
            names,
        }
    });
    ExplainFacts {
        now_ns,
        scope: bound.scope.name.clone(),
        binding,
        addresses: addresses.collect(),
        elsewhere: remembered.elsewhere,
        refusals: remembered.refusals,
    }
}

impl Shared {
    /// Explains what the kernel decides about a destination.
    ///
    /// # Errors
    ///
    /// [`BadQuestion`] for a scope or cgroup that is not there or not judged; a map that cannot be read.
    pub(super) fn explanation(&self, query: &ExplainQuery) -> anyhow::Result<Explanation> {
        let no_policy = || anyhow::anyhow!("no policy is in force yet");
        let in_force = self.in_force().ok_or_else(no_policy)?;
        let bound = match &query.from {
            None => in_force.node().context("the node's own scope is missing")?,
            Some(from) => self.bound_from(&in_force, from)?,
        };
        let scope = Arc::clone(&bound.scope);
        // Looking through all that is remembered takes a while, for which nobody waits.
        let remembered = self.remembered(&in_force, &scope, &query.destination);
        // Under the lock, so that no switch comes between binding and maps.
        let datapath = self.datapath();
        let in_force = self.in_force().ok_or_else(no_policy)?;
        let bound = in_force.of_scope(&scope);
        let bound = bound.with_context(|| format!("{} has just ended", scope.name))?;
        let facts = judged(
            &datapath,
            &self.memory,
            bound,
            &query.destination,
            remembered,
        );
        drop(datapath);
        if let Some(compiled) = bound.compiled() {
            let mode = facts.binding.mode();
            if compiled.mode == mode {
                return Ok(explanation(compiled, &query.destination, Some(&facts)));
            }
            // Enforcing is over, and not switched to audit yet.
            let compiled = Compiled {
                mode,
                ..Compiled::clone(compiled)
            };
            return Ok(explanation(&compiled, &query.destination, Some(&facts)));
        }
        // Its rules are none, or not known: what the kernel decides is all there is to say.
        let nothing = crate::policy::compile(&PolicySet::default(), &Lifeline::new(), None)?;
        Ok(explanation(&nothing, &query.destination, Some(&facts)))
    }

    /// The agent's memory of a destination.
    fn remembered(
        &self,
        in_force: &InForce,
        scope: &Scope,
        destination: &Destination,
    ) -> Remembered {
        let now_ns = now_ns();
        let mut remembered = Remembered {
            now_ns,
            addresses: Vec::new(),
            elsewhere: self.elsewhere(in_force, scope, destination, now_ns),
            refusals: self.refusals_of(scope, destination),
        };
        remembered.addresses = self.addresses_of(scope, destination, &remembered);
        remembered
    }

    /// The addresses to look at, with the names that lead the scope there.
    fn addresses_of(
        &self,
        scope: &Scope,
        destination: &Destination,
        facts: &Remembered,
    ) -> Vec<(Address, Vec<SeenName>)> {
        let mut addresses: Vec<Address> = match &destination.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                let own = self.memory.addresses_of(scope.number, name, facts.now_ns);
                own.into_iter().map(|(address, _)| address).collect()
            }
        };
        if addresses.is_empty() {
            let refused = facts.refusals.iter().flat_map(|one| &one.addresses);
            let elsewhere = facts.elsewhere.iter().map(|one| one.address);
            addresses = elsewhere.chain(refused.copied()).collect();
            addresses.sort_unstable();
            addresses.dedup();
        }
        addresses.truncate(ADDRESSES);
        addresses
            .into_iter()
            .map(|address| {
                let names = self.memory.names_of(scope.number, &address, facts.now_ns);
                (address, names)
            })
            .collect()
    }

    /// Where the destination is resolved now, apart from the scope itself.
    fn elsewhere(
        &self,
        in_force: &InForce,
        scope: &Scope,
        destination: &Destination,
        now_ns: u64,
    ) -> Vec<Elsewhere> {
        let scopes = in_force.bound.iter().map(|bound| &bound.scope);
        let mut by_scope = match &destination.host {
            Host::Name(name) => self.memory.addresses_by_scope(name, now_ns),
            Host::Address(_) => HashMap::new(),
        };
        let mut found = Vec::new();
        for other in scopes.filter(|one| one.number != scope.number) {
            let live: Vec<(String, Address)> = match &destination.host {
                Host::Name(name) => {
                    let addresses = by_scope.remove(&other.number).unwrap_or_default();
                    addresses
                        .into_iter()
                        .filter(|(_, ends_ns)| *ends_ns > now_ns)
                        .map(|(address, _)| (name.clone(), address))
                        .collect()
                }
                Host::Address(address) => {
                    let names = self.memory.names_of(other.number, address, now_ns);
                    names
                        .into_iter()
                        .filter(|seen| seen.expires_at_ns > now_ns)
                        .map(|seen| (seen.name.to_string(), *address))
                        .collect()
                }
            };
            found.extend(live.into_iter().map(|(name, address)| Elsewhere {
                scope: other.name.clone(),
                name,
                address,
            }));
        }
        found.truncate(ADDRESSES);
        found
    }

    fn refusals_of(&self, scope: &Scope, destination: &Destination) -> Vec<Refusal> {
        match &destination.host {
            Host::Name(name) => {
                let refusal = self.refusals.of_name(scope.number, name);
                refusal.into_iter().collect()
            }
            Host::Address(address) => self.refusals.of_address(scope.number, address),
        }
    }

    /// The scope of this name, or the one that a cgroup belongs to.
    fn bound_from<'a>(&self, in_force: &'a InForce, from: &str) -> anyhow::Result<&'a Arc<Bound>> {
        let bound = &in_force.bound;
        if let Some(named) = bound.iter().find(|bound| bound.scope.name == from) {
            return Ok(named);
        }
        let Some(below) = from.strip_prefix('/') else {
            let names = bound.iter().map(|bound| bound.scope.name.as_str());
            let names: Vec<&str> = names.take(NAMES).collect();
            let more = if names.len() < bound.len() {
                ", ..."
            } else {
                ""
            };
            return Err(BadQuestion(format!(
                "no scope is called {from:?}; write one of {}{more}, or the path of a cgroup",
                names.join(", ")
            ))
            .into());
        };
        let cgroup = Self::cgroup_at(Path::new(from), below)?;
        let judged = std::fs::canonicalize(&self.options.cgroup)?;
        if !cgroup.starts_with(&judged) {
            return Err(BadQuestion(format!(
                "{} is not below {}, the cgroup that this agent judges: whatever it sends passes",
                cgroup.display(),
                judged.display()
            ))
            .into());
        }
        let holds = |bound: &&Arc<Bound>| {
            let Some(path) = &bound.scope.cgroup else {
                return true;
            };
            std::fs::canonicalize(path).is_ok_and(|path| cgroup.starts_with(path))
        };
        // The deepest one; the node has no level.
        let found = bound.iter().filter(holds);
        found
            .max_by_key(|bound| bound.scope.level)
            .ok_or_else(|| anyhow::anyhow!("the node's own scope is missing"))
    }

    /// A cgroup given by its place in the file system, or by its path below the root of the hierarchy.
    fn cgroup_at(path: &Path, below: &str) -> anyhow::Result<PathBuf> {
        let root = cgroup_root().unwrap_or_default();
        let full = if path.starts_with(&root) {
            path.to_owned()
        } else {
            root.join(below)
        };
        std::fs::canonicalize(&full).map_err(|error| {
            BadQuestion(format!(
                "there is no cgroup {}: {error}; write it as `flows -o json` does",
                full.display()
            ))
            .into()
        })
    }
}
