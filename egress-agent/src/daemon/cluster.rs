//! Policies of a cluster, for the pods of this node and for the node itself.
//!
//! Two sources tell what is to be: cgroups that come and go, and what the API server says of pods, namespaces and
//! policies. Whatever comes, the whole plan is made anew and switched to; the switch does only what differs.
//!
//! Something unknown opens and closes nothing: a pod that the kernel already judges stays as it is, also when it is
//! gone from the API server and its processes are still there. A pod that is new is held in the cgroup above all pods,
//! whose rules are the lifeline (or none, `--pending-pods open`), until its policies are known.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use egress_common::verdict::Mode;
use kube::Client;
use tokio::{sync::watch, task::JoinSet};
use tracing::{debug, error, warn};

use super::{
    node::ClusterServers,
    plan::{Assignment, Base},
    pods::Pods,
    rulesets::{Rulesets, versions_of},
    shared::{Bound, Rules, Shared, lock},
};
use crate::{
    api::model::{DelayStatus, KubernetesStatus},
    cli::{RunOptions, run::PendingPods},
    datapath::readable,
    kube::{
        ClusterView, Feed, LeaseTimes, Pod, PolicyKey, StatusSettings,
        events::{self, Claim, Denials, EventLimits},
        write_status,
    },
    policy::{Catalog, Policy},
    shutdown::Shutdown,
    workload::{PodEvent, PodTree, PodUid},
};

/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How many of the last delays are kept.
const DELAYS: usize = 1_024;

/// Policies that select a pod together.
type Selection = Arc<[PolicyKey]>;

/// The cluster as it is known, and its pods here.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) feed: Feed,
    pub(super) pods: Pods,
    rulesets: Rulesets,
    /// The policies that select pods, by their cgroups: as long as neither the pod changes nor what may select it.
    selected: HashMap<u64, (Arc<Pod>, Selection)>,
    /// Each selection once, so that pods with the same one share it.
    selections: HashSet<Selection>,
    /// When cgroups were heard of whose policy is not yet in force.
    waiting: HashMap<u64, Instant>,
    /// From hearing of a cgroup to its policy, of the last pods.
    delays: Vec<Duration>,
    next_delay: usize,
    /// Claims of cgroups that events reported.
    told_claims: BTreeSet<(PodUid, String)>,
    /// Why the last plan was not switched to.
    pub(super) refused: Option<String>,
}

impl Cluster {
    /// A cluster as far as it is known, without its pods.
    ///
    /// # Errors
    ///
    /// The cgroup that is to be judged is not there.
    pub(super) fn new(feed: Feed, options: &RunOptions) -> anyhow::Result<Self> {
        Ok(Self {
            pods: Pods::new(&options.cgroup)?,
            rulesets: Rulesets::new(feed.last_right.clone()),
            feed,
            selected: HashMap::new(),
            selections: HashSet::new(),
            waiting: HashMap::new(),
            delays: Vec::new(),
            next_delay: 0,
            told_claims: BTreeSet::new(),
            refused: None,
        })
    }

    /// The policies for the node itself.
    pub(super) fn node_policies(&mut self, catalog: &Catalog) -> Vec<Policy> {
        let view = Arc::clone(&self.feed.view);
        let keys = view.policies_of_node();
        self.rulesets.policies_of(&view, &keys, catalog)
    }

    /// The rules that the pods are to be judged by.
    pub(super) fn assignments(
        &mut self,
        base: &Base,
        mode: Option<Mode>,
        pending: PendingPods,
        bound: &HashMap<u64, Arc<Bound>>,
        is_in_kernel: impl Fn(u64) -> bool,
    ) -> Vec<Assignment> {
        let view = Arc::clone(&self.feed.view);
        self.pods.name(|uid| view.pods.get(uid).map(Arc::clone));
        self.rulesets.compile_with(&base.facts, mode);
        let held = match pending {
            PendingPods::Open => Rules::Open,
            PendingPods::Lifeline => {
                let set = self.rulesets.set_of(&view, &[], &base.catalog);
                // Without policies nothing can meet that does not fit together.
                set.map_or(Rules::Kept, Rules::Of)
            }
        };
        // Each selection is looked up once; those of pods that are gone are of no more use.
        self.selections
            .retain(|selection| Arc::strong_count(selection) > 1);
        let mut rules_of: HashMap<*const PolicyKey, Result<Rules, String>> = HashMap::new();
        let mut plan: Vec<Assignment> = Vec::new();
        for holder in self.pods.holders() {
            plan.push((Arc::clone(holder), held.clone()));
        }
        for cgroup in self.pods.cgroups() {
            let cgroup_id = cgroup.scope.cgroup_id;
            let rules = cgroup.scope.pod.as_ref().map(|pod| {
                let known = self.selected.get(&cgroup_id);
                let known = known.filter(|(of, _)| Arc::ptr_eq(of, pod));
                let selection = if let Some((_, selection)) = known {
                    Arc::clone(selection)
                } else {
                    let selection = interned(&mut self.selections, view.policies_of(pod));
                    let of_pod = (Arc::clone(pod), Arc::clone(&selection));
                    self.selected.insert(cgroup_id, of_pod);
                    selection
                };
                let rules = rules_of.entry(selection.as_ptr()).or_insert_with(|| {
                    let keys: Vec<&PolicyKey> = selection.iter().collect();
                    self.rulesets.rules_of(&view, &keys, &base.catalog)
                });
                rules.clone()
            });
            let rules = match rules {
                Some(Ok(rules)) => rules,
                // As it was, or as it is in the kernel.
                Some(Err(_)) | None if is_in_kernel(cgroup_id) => {
                    let before = bound.get(&cgroup_id);
                    before.map_or(Rules::Kept, |bound| bound.rules.clone())
                }
                Some(Err(_)) | None if cgroup.is_held => continue,
                Some(Err(_)) | None => held.clone(),
            };
            plan.push((Arc::clone(&cgroup.scope), rules));
        }
        self.rulesets.tidy(&view);
        plan
    }

    /// Takes up what the API server says now; gives what it said before.
    fn take_feed(&mut self, feed: Feed) -> Feed {
        let before = std::mem::replace(&mut self.feed, feed);
        let (old, new) = (&before.view, &self.feed.view);
        let has_same_policies =
            Arc::ptr_eq(&old.policies, &new.policies) || old.policies == new.policies;
        if !has_same_policies || old.namespaces != new.namespaces || old.node != new.node {
            self.selected.clear();
        }
        before
    }

    /// Has events report, once each, the objects that claim a cgroup without a right to it.
    fn tell_claims(&mut self, denials: &Denials) {
        let mut claims = BTreeSet::new();
        for (cgroup, by) in &self.feed.view.contested {
            for pod in by {
                let claim = (cgroup.clone(), pod.uid.clone());
                if !self.told_claims.contains(&claim) {
                    warn!(%cgroup, namespace = pod.namespace, pod = pod.name, "an object claims the cgroup of another");
                    denials.tell_claim(Claim {
                        pod: Arc::clone(pod),
                        cgroup: cgroup.clone(),
                    });
                }
                claims.insert(claim);
            }
        }
        self.told_claims = claims;
    }

    /// Notes that a plan is in force.
    fn arrived(&mut self) {
        let pods: Vec<u64> = self
            .pods
            .cgroups()
            .filter(|cgroup| cgroup.scope.pod.is_some())
            .map(|cgroup| cgroup.scope.cgroup_id)
            .collect();
        for cgroup_id in pods {
            if let Some(since) = self.waiting.remove(&cgroup_id) {
                let delay = since.elapsed();
                debug!(cgroup_id, ms = delay.as_millis(), "pod under its policy");
                match self.delays.get_mut(self.next_delay) {
                    Some(slot) => *slot = delay,
                    None => self.delays.push(delay),
                }
                self.next_delay = self.next_delay.wrapping_add(1) % DELAYS;
            }
        }
    }

    /// The status for an operator.
    fn status(&self, node: &str) -> KubernetesStatus {
        let mut alarms = self.pods.alarms();
        let is_complete = alarms.is_empty() && self.refused.is_none();
        let contested = self.feed.view.contested.iter();
        alarms.extend(contested.map(|(cgroup, by)| claim_alarm(&self.feed.view, cgroup, by)));
        let refused = self.refused.iter();
        alarms.extend(refused.map(|why| format!("pods are not judged as they should be: {why}")));
        let errors = self.rulesets.errors().into_iter();
        alarms.extend(errors.map(|error| format!("a policy of the cluster is refused: {error}")));
        let cgroups = || self.pods.cgroups();
        let (accepted, refused) = self.rulesets.counts();
        KubernetesStatus {
            node: node.to_owned(),
            policies: self.feed.view.policies.len() as u64,
            accepted: accepted as u64,
            refused: refused as u64,
            pods: cgroups().count() as u64,
            pending: cgroups().filter(|one| one.scope.pod.is_none()).count() as u64,
            delay: self.delay(),
            is_complete,
            alarms,
            // The rest changes without a switch, and is filled in when it is asked for.
            ..KubernetesStatus::default()
        }
    }

    fn delay(&self) -> DelayStatus {
        let mut delays = self.delays.clone();
        delays.sort_unstable();
        let at = |percent: usize| {
            let last = delays.len().saturating_sub(1);
            let index = last.saturating_mul(percent).div_ceil(100);
            let delay = delays.get(index).map_or(0, Duration::as_micros);
            u64::try_from(delay).unwrap_or(u64::MAX)
        };
        DelayStatus {
            count: delays.len() as u64,
            p50_us: at(50),
            p99_us: at(99),
            max_us: at(100),
        }
    }
}

/// Has policies and denials reported to the API server.
pub(super) fn tell(
    shared: &Shared,
    client: Client,
    feed: &watch::Receiver<Feed>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    stop: &Shutdown,
) {
    let Some(kubernetes) = &shared.options.kubernetes else {
        return;
    };
    let (denials, told) = events::channel();
    // Nobody has set them before.
    let _ = shared.feed.set(feed.clone());
    let _ = shared.denials.set(denials);
    let node = kubernetes.node_name.clone();
    let writer = events::run(
        client.clone(),
        node.clone(),
        EventLimits::default(),
        told,
        stop.clone(),
    );
    tasks.spawn(async {
        writer.await;
        Ok(())
    });
    let settings = StatusSettings {
        identity: node,
        namespace: client.default_namespace().to_owned(),
        times: LeaseTimes::default(),
    };
    // Nobody gets reports of an earlier view.
    let view_of = |feed: &Feed| feed.freshness.is_synced.then(|| Arc::clone(&feed.view));
    let catalog = shared.catalog.subscribe();
    let writer = write_status(
        client,
        settings,
        feed.clone(),
        view_of,
        catalog,
        stop.clone(),
    );
    tasks.spawn(async {
        writer.await;
        Ok(())
    });
}

/// The news that woke the loop.
enum News {
    Cgroups(Vec<PodEvent>),
    View,
    Retry,
}

/// Follows cgroups and the API server until it is asked to stop.
///
/// # Errors
///
/// The cgroups cannot be watched any more.
pub(super) async fn run(
    shared: Arc<Shared>,
    tree: PodTree,
    mut feed: watch::Receiver<Feed>,
    stop: Shutdown,
) -> anyhow::Result<()> {
    let mut tree = readable(tree).context("cannot wait for cgroups")?;
    let mut retry = tokio::time::interval(RETRY);
    retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let news = tokio::select! {
            guard = tree.readable_mut() => {
                let mut guard = guard.context("cannot wait for cgroups")?;
                let events = guard.get_inner_mut().read().map_err(anyhow::Error::new)?;
                match events {
                    Some(events) => News::Cgroups(events),
                    None => {
                        guard.clear_ready();
                        continue;
                    }
                }
            }
            changed = feed.changed() => {
                changed.context("nobody asks the API server any more")?;
                News::View
            }
            _ = retry.tick() => News::Retry,
            () = stop.requested() => return Ok(()),
        };
        let mut events = match news {
            News::Cgroups(events) if events.is_empty() => continue,
            News::Cgroups(events) => events,
            News::View => Vec::new(),
            News::Retry => {
                let (is_unseen, is_refused) = shared.cluster_troubles();
                if !is_unseen && !is_refused {
                    continue;
                }
                if is_unseen {
                    tree.get_mut().rescan().map_err(anyhow::Error::new)?
                } else {
                    Vec::new()
                }
            }
        };
        // More may have come meanwhile.
        while let Some(more) = tree.get_mut().read().map_err(anyhow::Error::new)? {
            events.extend(more);
        }
        let known = feed.borrow_and_update().clone();
        let shared = Arc::clone(&shared);
        // Maps and pauses: milliseconds, which the runtime's own threads should not wait for.
        tokio::task::spawn_blocking(move || shared.take_news(known, events)).await?;
    }
}

impl Shared {
    /// Takes up the cluster, and its pods that are here; says who watches for others.
    ///
    /// # Errors
    ///
    /// The cgroups cannot be watched.
    pub(super) fn join(&self, cluster: Option<Cluster>) -> anyhow::Result<Option<PodTree>> {
        let Some(mut cluster) = cluster else {
            return Ok(None);
        };
        let (tree, events) = PodTree::watch(&self.options.cgroup).map_err(anyhow::Error::new)?;
        let known = self.datapath().workloads()?;
        let identities = known.iter().map(|(_, workload)| workload.identity);
        cluster.pods.beside(lock(&self.scopes).levels(), identities);
        cluster.take_events(self, events);
        let view = Arc::clone(&cluster.feed.view);
        *lock(&self.cluster_servers) = ClusterServers::from(&*view);
        self.tell_cluster(&cluster);
        lock(&self.wanted).cluster = Some(cluster);
        Ok(Some(tree))
    }

    /// Keeps what an operator may want to know, for who must not wait for a switch.
    fn tell_cluster(&self, cluster: &Cluster) {
        let kubernetes = self.options.kubernetes.as_ref();
        let node = kubernetes.map_or("", |kubernetes| kubernetes.node_name.as_str());
        *lock(&self.kubernetes) = Some(cluster.status(node));
    }

    /// Two flags: something could not be looked at; something could not be done.
    fn cluster_troubles(&self) -> (bool, bool) {
        let mut wanted = lock(&self.wanted);
        let cluster = wanted.cluster.as_mut();
        cluster.map_or((false, false), |cluster| {
            (cluster.pods.try_unseen(), cluster.refused.is_some())
        })
    }

    /// Takes up what happened to cgroups and what the API server said.
    fn take_news(&self, feed: Feed, events: Vec<PodEvent>) {
        let mut wanted = lock(&self.wanted);
        let Some(base) = wanted.base.clone() else {
            return;
        };
        let Some(cluster) = wanted.cluster.as_mut() else {
            return;
        };
        let now = Instant::now();
        for event in &events {
            match event {
                PodEvent::Made { cgroup_id, .. } => {
                    cluster.waiting.insert(*cgroup_id, now);
                }
                PodEvent::Gone { cgroup_id } => {
                    cluster.waiting.remove(cgroup_id);
                    cluster.selected.remove(cgroup_id);
                }
                PodEvent::Unseen(why) => {
                    warn!(
                        error = format!("{why}"),
                        "cgroups cannot be watched; tried again in a moment"
                    );
                }
            }
        }
        cluster.take_events(self, events);
        let before = cluster.take_feed(feed);
        if let Some(denials) = self.denials.get() {
            cluster.tell_claims(denials);
        }
        let view = Arc::clone(&cluster.feed.view);
        let is_node_same = node_versions(&before.view) == node_versions(&view)
            && ClusterServers::from(&*before.view) == ClusterServers::from(&*view);
        *lock(&self.cluster_servers) = ClusterServers::from(&*view);
        let applied = if is_node_same {
            self.apply(&mut wanted, base)
        } else {
            self.reload_with(&mut wanted)
        };
        let Some(cluster) = wanted.cluster.as_mut() else {
            return;
        };
        cluster.refused = applied.err().map(|error| format!("{error:#}"));
        match &cluster.refused {
            None => cluster.arrived(),
            Some(why) => error!(error = why, "pods are not judged as they should be"),
        }
        self.tell_cluster(cluster);
    }
}

impl Cluster {
    /// Takes up what happened to cgroups.
    pub(super) fn take_events(&mut self, shared: &Shared, events: Vec<PodEvent>) {
        let datapath = shared.datapath();
        let bound = |id| datapath.bound(id).map(|workload| workload.identity);
        for event in events {
            self.pods.take(event, &shared.memory, &bound);
        }
    }
}

/// The alarm about objects that claim a cgroup without a right to it.
fn claim_alarm(view: &ClusterView, cgroup: &PodUid, by: &[Arc<Pod>]) -> String {
    let by: Vec<String> = by
        .iter()
        .map(|pod| format!("{}/{}", pod.namespace, pod.name))
        .collect();
    let by = by.join(", ");
    match view.pods.get(cgroup) {
        Some(pod) => format!(
            "{by} claims the cgroup of {}/{} (pod UID {cgroup}), which keeps its own policies: find out who made {by}",
            pod.namespace, pod.name
        ),
        None => format!(
            "{by} claim the same cgroup (pod UID {cgroup}), which stays pending: delete what kubelet did not make"
        ),
    }
}

/// The selection of these policies, the same one for all that have it.
fn interned(selections: &mut HashSet<Selection>, keys: Vec<&PolicyKey>) -> Selection {
    let selection: Selection = keys.into_iter().cloned().collect();
    if let Some(known) = selections.get(&selection) {
        return Arc::clone(known);
    }
    selections.insert(Arc::clone(&selection));
    selection
}

/// The states of the policies that are for the node.
fn node_versions(view: &ClusterView) -> Vec<(PolicyKey, String, i64)> {
    versions_of(view, &view.policies_of_node())
}
