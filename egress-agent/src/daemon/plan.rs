//! The plan of what is to be in force, from files, options and the node itself.

use std::sync::Arc;

use anyhow::Context as _;
use egress_common::{maps::WORKLOADS_CAPACITY, verdict::Mode};

use super::{
    cluster::Cluster,
    confirm::Moment,
    node::NodeNow,
    policy_files::PolicyFiles,
    shared::{NodeFacts, PolicyInForce, Rules, Ruleset, Scope, Shared, lock},
};
use crate::{
    cli::{RunOptions, run::LifelinePart},
    policy::{Catalog, Compiled, Lifeline, Policy, PolicySet, address_from},
};

/// Everything that is to be in force.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// None before the files were first switched to.
    pub(super) base: Option<Base>,
    /// None without `--kubernetes`.
    pub(super) cluster: Option<Cluster>,
}

/// The part for the node, and for the cgroups given with `--scope`.
#[derive(Clone, Debug)]
pub(super) struct Base {
    pub(super) rules: Rules,
    pub(super) facts: Arc<NodeFacts>,
    /// Everything that rules may refer to.
    pub(super) catalog: Arc<Catalog>,
    /// The files' content that it is made of.
    files: Arc<PolicyFiles>,
    /// True if nothing is dropped, whatever the policies say.
    is_audited: bool,
}

/// A scope with what it is to be judged by.
pub(super) type Assignment = (Arc<Scope>, Rules);

/// The lifeline that the options ask for.
fn lifeline(options: &RunOptions, node: &NodeNow) -> Lifeline {
    let has = |part| !options.no_lifeline.contains(&part);
    let mut lifeline = Lifeline::new();
    if has(LifelinePart::Resolvers) {
        lifeline = lifeline.resolvers(&node.resolvers);
    }
    if has(LifelinePart::NodeAddresses) {
        lifeline = lifeline.node_addresses(&node.addresses);
    }
    if has(LifelinePart::Dhcp) {
        lifeline = lifeline.dhcp();
    }
    if has(LifelinePart::ApiServer) {
        for server in &node.api_servers {
            lifeline = lifeline.api_server(server.ip(), server.port());
        }
    }
    if has(LifelinePart::ClusterRanges) {
        lifeline = lifeline.cluster_ranges(&options.lifeline_cidrs);
    }
    lifeline
}

impl Base {
    /// Compiles what the files say with the policies of the cluster that are for the node.
    ///
    /// # Errors
    ///
    /// The policies are wrong, or a limit is passed; nothing was changed.
    pub(super) fn new(
        options: &RunOptions,
        files: Arc<PolicyFiles>,
        node: &NodeNow,
        of_cluster: impl FnOnce(&Catalog) -> Vec<Policy>,
    ) -> anyhow::Result<Self> {
        node.check()?;
        let catalog = Arc::clone(&files.catalog);
        let mut policies = of_cluster(&catalog);
        policies.extend(files.policies.iter().cloned());
        let set: PolicySet = policies.into_iter().collect();
        let lifeline = lifeline(options, node);
        let rules = if set.policies().is_empty() {
            Rules::Open
        } else {
            let compiled = crate::policy::compile(&set, &lifeline, options.mode)?;
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
                resolvers: node.resolvers.clone(),
                found: node.found.clone(),
                left_out: node.left_out,
                search_domains: node.search_domains.clone(),
                local: node.addresses.iter().copied().map(address_from).collect(),
            }),
            catalog,
            files,
            is_audited: false,
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
            files: Arc::clone(&self.files),
            is_audited: true,
        }
    }
}

/// True if both were loaded with the same things that rules may refer to.
fn is_catalog_same(before: Option<&Base>, base: &Base) -> bool {
    before.is_some_and(|before| Arc::ptr_eq(&before.catalog, &base.catalog))
}

/// Checks that the kernel has room for so many scopes.
///
/// # Errors
///
/// The limit.
pub(super) fn check_scopes(count: usize) -> anyhow::Result<()> {
    let fits = u32::try_from(count).is_ok_and(|count| count <= WORKLOADS_CAPACITY);
    anyhow::ensure!(
        fits,
        "{count} scopes are wanted (the node, pods and --scope), and at most {WORKLOADS_CAPACITY} can be judged"
    );
    Ok(())
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

    /// Reads the files again, and switches to what they say.
    ///
    /// # Errors
    ///
    /// The files are wrong, or the kernel refuses; the old policy is then still in force.
    pub(super) fn reload(&self) -> anyhow::Result<()> {
        // Nobody else waits for the disk.
        let files = Arc::new(PolicyFiles::read(&self.options)?);
        self.switch_to(&mut lock(&self.wanted), files)
    }

    /// Switches to what the cluster says for the node, with the files as they were read last.
    ///
    /// # Errors
    ///
    /// They do not fit together, or the kernel refuses; the old policy is then still in force.
    pub(super) fn reload_with(&self, wanted: &mut Wanted) -> anyhow::Result<()> {
        let Some(base) = &wanted.base else {
            return Ok(());
        };
        let files = Arc::clone(&base.files);
        self.switch_to(wanted, files)
    }

    /// Switches to what the node is now.
    ///
    /// # Errors
    ///
    /// The kernel refuses; what was in force still is.
    pub(super) fn take_node(&self) -> anyhow::Result<()> {
        self.reload_with(&mut lock(&self.wanted))
    }

    fn switch_to(&self, wanted: &mut Wanted, files: Arc<PolicyFiles>) -> anyhow::Result<()> {
        let mut base = self.base_of(wanted, files)?;
        if self.confirmation.is_fallen_back() {
            base = base.audited();
        }
        self.apply(wanted, base)
    }

    /// Compiles these files with the facts of the node and the cluster's policies for the node.
    fn base_of(&self, wanted: &mut Wanted, files: Arc<PolicyFiles>) -> anyhow::Result<Base> {
        let of_cluster = |catalog: &Catalog| {
            let cluster = wanted.cluster.as_mut();
            cluster.map_or_else(Vec::new, |cluster| cluster.node_policies(catalog))
        };
        Base::new(&self.options, files, &self.node_now(), of_cluster)
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

    /// Enforces what was last taken up, after a fall back; from now on a confirmation is awaited again.
    ///
    /// # Errors
    ///
    /// The kernel refuses; the agent goes on auditing.
    pub(super) fn enforce_again(&self) -> anyhow::Result<()> {
        let mut wanted = lock(&self.wanted);
        let Some(files) = wanted.base.as_ref().map(|base| Arc::clone(&base.files)) else {
            return Ok(());
        };
        let base = self.base_of(&mut wanted, files)?;
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
        let own = lock(&self.scopes).known().into_iter();
        let mut plan: Vec<Assignment> = own.map(|scope| (scope, base.rules.clone())).collect();
        if let Some(cluster) = &mut wanted.cluster {
            let mode = base.is_audited.then_some(Mode::Audit);
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
        check_scopes(plan.len())?;
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
