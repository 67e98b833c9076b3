//! What is to be in force, from what the agent is told: files, options, the node itself.

use std::{net::IpAddr, sync::Arc};

use anyhow::Context as _;
use egress_common::verdict::Mode;
use tracing::warn;

use super::{
    cluster::Cluster,
    confirm::Moment,
    shared::{NodeFacts, PolicyInForce, Rules, Ruleset, Scope, Shared, lock},
};
use crate::{
    cli::{RunOptions, run::LifelinePart},
    policy::{Catalog, Compiled, Lifeline, Policy, PolicyErrors, PolicySet, address_from},
    workload::own_addresses,
};

/// What is to be in force.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// None before the files were first switched to.
    pub(super) base: Option<Base>,
    /// None without `--kubernetes`.
    pub(super) cluster: Option<Cluster>,
}

/// What is for the node, and for the cgroups given with `--scope`.
#[derive(Clone, Debug)]
pub(super) struct Base {
    pub(super) rules: Rules,
    pub(super) facts: Arc<NodeFacts>,
    /// What rules may refer to.
    pub(super) catalog: Arc<Catalog>,
}

/// A scope with what it is to be judged by.
pub(super) type Assignment = (Arc<Scope>, Rules);

/// The lifeline that the options ask for.
fn lifeline(options: &RunOptions, resolvers: &[IpAddr]) -> Lifeline {
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

impl Base {
    /// Reads the policy files, and compiles them with those of the cluster that are for the node.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub(super) fn load(
        options: &RunOptions,
        resolvers: &[IpAddr],
        of_cluster: impl FnOnce(&Catalog) -> Vec<Policy>,
    ) -> Result<Self, PolicyErrors> {
        let catalog = options.catalog.load()?;
        let notes = catalog.service_tags().map(|tags| &tags.facts().notes);
        for note in notes.into_iter().flatten() {
            warn!(note, "the file of service tags is not quite right");
        }
        let mut policies = of_cluster(&catalog);
        if !options.policies.is_empty() {
            let files = crate::policy::load(&options.policies, &catalog)?;
            policies.extend(files.policies().iter().cloned());
        }
        let set: PolicySet = policies.into_iter().collect();
        Self::of_set(options, resolvers, Arc::new(catalog), &set)
    }

    /// Compiles policies that were read already.
    ///
    /// # Errors
    ///
    /// They cannot apply together.
    pub(super) fn of_set(
        options: &RunOptions,
        resolvers: &[IpAddr],
        catalog: Arc<Catalog>,
        set: &PolicySet,
    ) -> Result<Self, PolicyErrors> {
        let lifeline = lifeline(options, resolvers);
        let rules = if set.policies().is_empty() {
            Rules::Open
        } else {
            let compiled = crate::policy::compile(set, &lifeline, options.mode)?;
            Rules::Of(Arc::new(Ruleset {
                compiled: Arc::new(compiled),
                policies: set.policies().iter().map(PolicyInForce::of).collect(),
            }))
        };
        Ok(Self {
            rules,
            facts: Arc::new(NodeFacts {
                lifeline,
                service_tags: catalog.service_tags().map(|tags| tags.facts().clone()),
                resolvers: resolvers.to_vec(),
                local: own_addresses().into_iter().map(address_from).collect(),
            }),
            catalog,
        })
    }

    /// The same, but that nothing is dropped.
    fn audited(&self) -> Self {
        let rules = match &self.rules {
            Rules::Of(ruleset) => Rules::Of(Arc::new(Ruleset {
                compiled: Arc::new(Compiled {
                    mode: Mode::Audit,
                    ..Compiled::clone(&ruleset.compiled)
                }),
                policies: ruleset.policies.clone(),
            })),
            rules @ (Rules::Open | Rules::Kept) => rules.clone(),
        };
        Self {
            rules,
            facts: Arc::clone(&self.facts),
            catalog: Arc::clone(&self.catalog),
        }
    }
}

/// Whether both were loaded with the same things that rules may refer to.
fn is_catalog_same(before: Option<&Base>, base: &Base) -> bool {
    before.is_some_and(|before| Arc::ptr_eq(&before.catalog, &base.catalog))
}

impl Shared {
    /// Switches to what was loaded at the start.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn begin_with(&self, base: Base) -> anyhow::Result<()> {
        self.apply(&mut lock(&self.wanted), base)
    }

    /// Loads and compiles the files again, and switches to them.
    ///
    /// # Errors
    ///
    /// The files are wrong, or the kernel refuses; the old policy is then still in force.
    pub(super) fn reload(&self) -> anyhow::Result<()> {
        self.reload_with(&mut lock(&self.wanted))
    }

    /// [`Self::reload`], where what is wanted is held already.
    pub(super) fn reload_with(&self, wanted: &mut Wanted) -> anyhow::Result<()> {
        let mut base = self.load(wanted)?;
        if self.confirmation.is_fallen_back() {
            base = base.audited();
        }
        self.apply(wanted, base)
    }

    /// What the files, and the cluster for the node, say now.
    fn load(&self, wanted: &mut Wanted) -> anyhow::Result<Base> {
        if let Some(fixed) = &self.fixed {
            let catalog = Arc::clone(&fixed.catalog);
            return Base::of_set(&self.options, &self.resolvers(), catalog, &fixed.policies)
                .map_err(anyhow::Error::new);
        }
        let of_cluster = |catalog: &Catalog| {
            let cluster = wanted.cluster.as_mut();
            cluster.map_or_else(Vec::new, |cluster| cluster.node_policies(catalog))
        };
        Base::load(&self.options, &self.resolvers(), of_cluster).map_err(anyhow::Error::new)
    }

    /// Switches the policy that is in force to audit, if the agent is to; the files are not looked at, which may be wrong by now.
    ///
    /// # Errors
    ///
    /// The kernel refuses; the policy is then still enforced.
    pub(super) fn fall_back(&self) -> anyhow::Result<()> {
        // One write; the switch may take long, or fail.
        self.settle_probation()?;
        let mut wanted = lock(&self.wanted);
        // While this waited, somebody may have confirmed after all.
        if !self.confirmation.is_fallen_back() {
            return Ok(());
        }
        let Some(base) = wanted.base.as_ref().map(Base::audited) else {
            return Ok(());
        };
        self.apply(&mut wanted, base)
            .context("cannot fall back to audit")
    }

    /// Switches to what the files say, after a fall back; from now on a confirmation is awaited again.
    ///
    /// # Errors
    ///
    /// The files are wrong, or the kernel refuses; the agent goes on auditing.
    pub(super) fn enforce_again(&self) -> anyhow::Result<()> {
        let mut wanted = lock(&self.wanted);
        let base = self.load(&mut wanted)?;
        let before = self.begin_probation(self.confirmation.window())?;
        if let Err(error) = self.apply(&mut wanted, base) {
            self.undo_probation(before)?;
            return Err(error);
        }
        self.confirmation.enforced_again(self.mode(), Moment::now());
        self.settle_probation()
    }

    /// Switches to what is wanted with this base, which is what is wanted from then on.
    pub(super) fn apply(&self, wanted: &mut Wanted, base: Base) -> anyhow::Result<()> {
        let own = self.scopes.iter();
        let mut plan: Vec<Assignment> = own
            .map(|scope| (Arc::clone(scope), base.rules.clone()))
            .collect();
        if let Some(cluster) = &mut wanted.cluster {
            let is_fallen_back = self.confirmation.is_fallen_back();
            let mode = is_fallen_back.then_some(Mode::Audit);
            let mode = mode.or(self.options.mode);
            let in_force = self.in_force();
            let bound = in_force.iter().flat_map(|in_force| &in_force.bound);
            let bound = bound.map(|bound| (bound.scope.cgroup_id, Arc::clone(bound)));
            let bound = bound.collect();
            let datapath = self.datapath();
            let is_in_kernel = |id| datapath.bound(id).is_some();
            let pending = self.options.pending_pods;
            plan.extend(cluster.assignments(&base, mode, pending, &bound, is_in_kernel));
        }
        let before = self
            .begin_probation(self.confirmation.to_come())
            .context("cannot tell the kernel when enforcing ends")?;
        if let Err(error) = self.switch(&plan, &base.facts) {
            self.undo_probation(before)?;
            return Err(error.context("cannot write the policy into the kernel"));
        }
        if wanted.cluster.is_some() && !is_catalog_same(wanted.base.as_ref(), &base) {
            self.catalog.send_replace(Catalog::clone(&base.catalog));
        }
        wanted.base = Some(base);
        self.confirmation.in_force(self.mode(), Moment::now());
        self.settle_probation()
            .context("cannot tell the kernel when enforcing ends")
    }

    /// The trusted resolvers: those that were given, or those that the node has now and the cluster's DNS service.
    pub(super) fn resolvers(&self) -> Vec<IpAddr> {
        if self.options.are_resolvers_given {
            return self.options.resolvers.clone();
        }
        let mut resolvers = crate::workload::system_resolvers();
        for address in lock(&self.dns_service).iter() {
            if !resolvers.contains(address) {
                resolvers.push(*address);
            }
        }
        resolvers
    }

    /// The mode of the node, and that of any scope that enforces.
    pub(super) fn mode(&self) -> Mode {
        let Some(in_force) = self.in_force() else {
            return Mode::Enforce;
        };
        let mut compiled = in_force.bound.iter().filter_map(|bound| bound.compiled());
        // Where nothing is restricted, nothing is dropped.
        if compiled.any(|compiled| compiled.mode == Mode::Enforce) {
            Mode::Enforce
        } else {
            Mode::Audit
        }
    }
}
