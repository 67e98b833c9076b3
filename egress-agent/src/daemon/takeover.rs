//! Taking over from programs of another layout, without a packet that is judged by neither.
//!
//! Programs of the other layout are attached and judge by their own maps; those
//! of this agent are loaded, and its maps hold a policy that every workload is
//! bound to.
//!
//! 1. Every workload's `next` becomes its scope in the other layout.
//! 2. The hooks that learn are switched. From now on each answer teaches both
//!    scopes: the hooks that judge know it, old ones and new ones.
//! 3. After a pause, what the other layout knew before is carried over.
//! 4. The hooks that judge are switched.
//! 5. `next` is taken back, and the maps of the other layout are removed.
//!
//! An agent that is killed on the way leaves both folders of maps: the next one,
//! of either layout, begins with step 1.

use std::collections::HashMap;

use egress_common::{
    learned::{LearnRequest, LearnedKey},
    maps::{AliasKey, NODE_CGROUP},
    policy::{Binding, Workload},
};
use tracing::info;

use super::{
    carry::alias_for,
    shared::{Shared, lock},
    switch::PAUSE,
    time::now_ns,
};

impl Shared {
    /// Whether every workload is bound to a policy of this agent's layout.
    pub(super) fn is_bound(&self) -> bool {
        let datapath = self.datapath();
        lock(&self.scopes).known().iter().all(|scope| {
            let bound = datapath.bound(scope.cgroup_id);
            bound.is_some_and(|workload| workload.current.policy_id != 0)
        })
    }

    /// Switches the hooks from the other layout to this agent's.
    ///
    /// # Errors
    ///
    /// What the kernel refuses. Hooks that were not switched judge as before.
    pub(super) fn take_over(&self) -> anyhow::Result<()> {
        let mut datapath = self.datapath();
        let mut own: Vec<(u64, Workload)> = Vec::new();
        // A scope of the other layout, to those that profit from it here.
        let mut successors: HashMap<u32, Vec<Binding>> = HashMap::new();
        for (cgroup_id, workload) in datapath.workloads()? {
            let theirs = datapath
                .foreign_bound(cgroup_id)
                .or_else(|| datapath.foreign_bound(NODE_CGROUP))
                .filter(|theirs| theirs.current.scope_id != 0);
            let next = theirs.map_or_else(Binding::default, |theirs| Binding {
                scope_id: theirs.current.scope_id,
                ..workload.current
            });
            datapath.bind(cgroup_id, Workload { next, ..workload })?;
            if let Some(theirs) = theirs {
                let scopes = successors.entry(theirs.current.scope_id).or_default();
                scopes.push(workload.current);
            }
            own.push((cgroup_id, workload));
        }
        datapath.attach_learning()?;
        std::thread::sleep(PAUSE);

        let now_ns = now_ns();
        let mut requests = Vec::new();
        for entry in datapath.foreign_learned()? {
            for binding in successors.get(&entry.scope_id).into_iter().flatten() {
                let live = entry.grants.iter().filter(|grant| {
                    grant.expires_at_ns > now_ns && datapath.has_rule(binding.policy_id, grant.rule)
                });
                requests.extend(live.map(|grant| LearnRequest {
                    key: LearnedKey::new(binding.scope_id, entry.address),
                    grant: *grant,
                }));
            }
        }
        let carried = datapath.learn(&requests)?;
        let mut aliases = Vec::new();
        for (key, alias) in datapath.aliases()? {
            for binding in successors.get(&key.scope_id).into_iter().flatten() {
                let key = AliasKey::new(key.name, binding.scope_id);
                let has_rule = |rule| datapath.has_rule(binding.policy_id, rule);
                aliases.extend(alias_for(key, &alias, has_rule).map(|alias| (key, alias)));
            }
        }
        datapath.note_aliases(&aliases)?;
        datapath.attach_judging()?;

        for (cgroup_id, workload) in &own {
            let next = Binding::default();
            datapath.bind(*cgroup_id, Workload { next, ..*workload })?;
        }
        datapath.remove_foreign()?;
        std::thread::sleep(PAUSE);
        let is_left = |scope_id| {
            let mut own = own.iter();
            own.all(|(_, workload)| workload.current.scope_id != scope_id)
        };
        let left: Vec<_> = datapath
            .learned()?
            .iter()
            .filter(|entry| is_left(entry.scope_id))
            .map(|entry| LearnedKey::new(entry.scope_id, entry.address))
            .collect();
        // No grant ends later than this: all of them go.
        datapath.sweep(&left, u64::MAX)?;
        let left: Vec<_> = datapath
            .aliases()?
            .into_iter()
            .map(|(key, _)| key)
            .filter(|key| is_left(key.scope_id))
            .collect();
        datapath.remove_aliases(&left)?;
        info!(carried, "taken over from another layout");
        Ok(())
    }
}
