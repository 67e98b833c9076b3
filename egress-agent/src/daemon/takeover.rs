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

use std::{collections::HashMap, sync::Arc};

use egress_common::{
    address::Address,
    learned::{Grant, LearnRequest, LearnedKey},
    maps::NODE_CGROUP,
    policy::{Binding, Workload},
};
use tracing::info;

use super::{
    carry::Carried,
    shared::{Shared, lock},
    switch::PAUSE,
    time::now_ns,
};

impl Shared {
    /// True if every workload is bound to a policy of this agent's layout.
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
    /// The kernel refuses. Hooks that were not switched judge as before.
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

        // Answers that came for the scopes of then, and come until the hooks are switched, are remembered for those of
        // now. None where an agent that was killed on the way left its policy: which names it allowed is not known yet.
        let in_force = self.in_force();
        let bound_of = |binding: &Binding| {
            let mut bound = in_force.iter().flat_map(|in_force| &in_force.bound);
            bound.find(|bound| bound.binding.scope_id == binding.scope_id)
        };
        let scopes = successors.iter().filter_map(|(theirs, bindings)| {
            let bound = bindings.first().and_then(&bound_of)?;
            Some((*theirs, Arc::clone(&bound.scope)))
        });
        self.remember_early(&scopes.collect());
        let now_ns = now_ns();
        let mut carried = Carried::default();
        let mut held: HashMap<u32, HashMap<(u32, Address), Vec<Grant>>> = HashMap::new();
        for entry in datapath.foreign_learned()? {
            let of_scope = held.entry(entry.scope_id).or_default();
            of_scope.insert((entry.netns, entry.address), entry.grants);
        }
        for (theirs, bindings) in &successors {
            let known = held.remove(theirs).unwrap_or_default();
            for bound in bindings.iter().filter_map(bound_of) {
                let held = |netns, address| known.get(&(netns, address)).cloned();
                carried.take(&self.memory, bound, held, now_ns);
            }
            // A grant that cannot be asked by name keeps its end, if its rule is still there: those that layout 1 knew,
            // in the node's own namespace, where its programs ran first of all; and all while no policy is known, until
            // the switch that follows within milliseconds asks by name.
            for binding in bindings {
                let by_rule = known
                    .iter()
                    .filter(|((netns, _), _)| *netns == 0 || in_force.is_none());
                for ((netns, address), grants) in by_rule {
                    let live = grants.iter().filter(|grant| {
                        grant.expires_at_ns > now_ns
                            && datapath.has_rule(binding.policy_id, grant.rule)
                    });
                    let netns = match *netns {
                        0 => datapath.node_netns(),
                        netns => netns,
                    };
                    carried.requests.extend(live.map(|grant| LearnRequest {
                        key: LearnedKey::new(binding.scope_id, netns, *address),
                        grant: *grant,
                    }));
                }
            }
        }
        carried.sort();
        let requests = carried.requests;
        let carried_over = datapath.learn(&requests)?;
        datapath.note_aliases(&carried.aliases)?;
        datapath.attach_judging()?;

        for (cgroup_id, workload) in &own {
            let next = Binding::default();
            datapath.bind(*cgroup_id, Workload { next, ..*workload })?;
        }
        datapath.remove_foreign()?;
        std::thread::sleep(PAUSE);
        // The sweep that goes round finds what the scopes of the other layout knew.
        info!(carried = carried_over, "taken over from another layout");
        Ok(())
    }
}
