//! State that the tasks share.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, atomic::AtomicU32},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use egress_common::{
    address::Address,
    hash::rule_identity,
    policy::{Binding, NameRules},
    verdict::Mode,
};
use tokio::sync::{broadcast, watch};
use tracing::{debug, warn};

use super::{
    confirm::Confirmation,
    looks::Looks,
    node::Node,
    node::{ClusterServers, Found},
    observe::Observer,
    plan::Wanted,
    scopes::OwnScopes,
    state_writer::StateWriter,
    time::now_ns,
};
use crate::{
    api::{
        RecentFlows, Timestamp,
        model::{FlowReport, KubernetesStatus, PodInterfacesStatus},
    },
    cli::{RunOptions, run::NODE_SCOPE},
    datapath::{Anchors, Datapath, DnsRing, Reader},
    dns::{Journal, Memory, MemoryLimits, Refusals, ScopeNumber},
    flow_log::FlowLog,
    kube::{Feed, Pod, events::Denials},
    policy::{Catalog, Compiled, Lifeline, Policy, ServiceTagsFacts},
    workload::CgroupPaths,
};

/// Verdicts that a slow follower may be behind.
const FOLLOW_FLOWS: usize = 1_024;

/// A scope: the node, a pod, or a cgroup given with `--scope`.
#[derive(Debug)]
pub(super) struct Scope {
    /// Its name; of a pod `namespace/name`.
    pub(super) name: String,
    /// Its cgroup; none for the node.
    pub(super) cgroup: Option<PathBuf>,
    /// Id of that cgroup, or [`NODE_CGROUP`].
    pub(super) cgroup_id: u64,
    /// Distance of that cgroup from the root of the hierarchy.
    pub(super) level: Option<i32>,
    /// The identity that owns its UDP flows: the same in every generation.
    pub(super) identity: u32,
    /// True if it runs a trusted resolver.
    pub(super) answers_dns: bool,
    /// Its number in the memory of names.
    pub(super) number: ScopeNumber,
    /// The pod, where it is one that is known.
    pub(super) pod: Option<Arc<Pod>>,
}

/// Policies that apply together, compiled once for all scopes that have the same.
#[derive(Debug)]
pub(super) struct Ruleset {
    pub(super) compiled: Arc<Compiled>,
    pub(super) policies: Vec<PolicyInForce>,
}

impl Ruleset {
    /// True if policies in audit stand beside enforced ones. The agent may have fallen back to audit for all of them.
    pub(super) fn is_mixed(&self) -> bool {
        self.compiled.looking_on.is_some() && self.compiled.mode == Mode::Enforce
    }
}

/// The rules that a scope is judged by.
#[derive(Clone, Debug)]
pub(super) enum Rules {
    /// No policy is for it: nothing is restricted.
    Open,
    /// Those that the kernel has for it: the right ones are not known yet.
    Kept,
    /// These policies.
    Of(Arc<Ruleset>),
}

impl Rules {
    /// The policies, where they are known.
    pub(super) fn ruleset(&self) -> Option<&Arc<Ruleset>> {
        match self {
            Self::Of(ruleset) => Some(ruleset),
            Self::Open | Self::Kept => None,
        }
    }

    /// True if nothing has to be done to come from one to the other.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Of(one), Self::Of(other)) => Arc::ptr_eq(one, other),
            (Self::Open, Self::Open) | (Self::Kept, Self::Kept) => true,
            _ => false,
        }
    }
}

/// A scope as the kernel has it.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) scope: Arc<Scope>,
    pub(super) binding: Binding,
    pub(super) rules: Rules,
}

impl Bound {
    /// The same, under what the scope is called now.
    pub(super) fn of_scope(self: &Arc<Self>, scope: &Arc<Scope>) -> Arc<Self> {
        if Arc::ptr_eq(&self.scope, scope) {
            return Arc::clone(self);
        }
        Arc::new(Self {
            scope: Arc::clone(scope),
            binding: self.binding,
            rules: self.rules.clone(),
        })
    }

    /// The policies compiled, where they are known.
    pub(super) fn compiled(&self) -> Option<&Arc<Compiled>> {
        self.rules.ruleset().map(|ruleset| &ruleset.compiled)
    }

    /// The rules of a name; none where nothing is restricted, or nothing known.
    pub(super) fn rules_of_name(&self, name: &str) -> Option<&NameRules> {
        self.compiled()?.rules_of_name(name)
    }

    /// The mode that it is bound with.
    pub(super) fn mode(&self) -> Mode {
        self.binding.mode()
    }
}

/// The facts that are kept of a policy in force.
#[derive(Clone, Debug)]
pub(super) struct PolicyInForce {
    pub(super) name: String,
    /// Its own mode.
    pub(super) mode: Mode,
    pub(super) file: PathBuf,
    pub(super) line: usize,
    pub(super) rules: usize,
    /// Tells whether another one reads like it.
    pub(super) content: u64,
}

impl PolicyInForce {
    /// The facts that are kept of a policy.
    pub(super) fn of(policy: &Policy) -> Self {
        // A document that cannot be written reads like no other.
        let content = serde_json::to_vec(&policy.document).map_or(0, |bytes| rule_identity(&bytes));
        Self {
            name: policy.name().to_owned(),
            mode: policy.mode,
            file: policy.file.clone(),
            line: policy.line,
            rules: policy.allow.len().saturating_add(policy.deny.len()),
            content,
        }
    }

    /// The key that tells it from others, and from what it was before.
    pub(super) fn key(&self) -> (String, u64) {
        (self.name.clone(), self.content)
    }
}

/// How long events may still come of a scope id that nothing uses any more.
const KEEP_SCOPE_ID: Duration = Duration::from_secs(10);

/// Everything that is in force.
#[derive(Debug)]
pub(super) struct InForce {
    /// Every scope, the node first.
    pub(super) bound: Vec<Arc<Bound>>,
    /// The same by their scope ids, and until when those of before.
    by_scope_id: HashMap<u32, (Arc<Bound>, Option<Instant>)>,
    /// The generation since which a policy (by name and content) reads as it does.
    pub(super) since: HashMap<(String, u64), u32>,
    /// The node's facts.
    pub(super) facts: Arc<NodeFacts>,
    pub(super) loaded_at: Timestamp,
}

/// Facts that go for all scopes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeFacts {
    pub(super) lifeline: Lifeline,
    /// The file of service tags that rules were read with.
    pub(super) service_tags: Option<ServiceTagsFacts>,
    /// Trusted resolvers.
    pub(super) resolvers: Vec<SocketAddr>,
    /// Values that were found or given, and where.
    pub(super) found: Vec<Found>,
    /// Resolvers for which there is no room.
    pub(super) left_out: usize,
    /// Domains below which any name may be asked for.
    pub(super) search_domains: Vec<String>,
    /// The node's own addresses.
    pub(super) local: Vec<Address>,
}

impl InForce {
    /// The state after `before`.
    pub(super) fn after(
        before: Option<&Self>,
        bound: Vec<Arc<Bound>>,
        facts: Arc<NodeFacts>,
        generation: u32,
    ) -> Self {
        let now = Instant::now();
        let end = now.checked_add(KEEP_SCOPE_ID);
        let before_ids = before.iter().flat_map(|before| &before.by_scope_id);
        let mut by_scope_id: HashMap<_, _> = before_ids
            .filter(|(_, (_, until))| until.is_none_or(|until| until > now))
            .map(|(id, (bound, until))| (*id, (Arc::clone(bound), until.or(end))))
            .collect();
        for one in &bound {
            by_scope_id.insert(one.binding.scope_id, (Arc::clone(one), None));
        }
        let mut next = Self {
            bound,
            by_scope_id,
            since: HashMap::new(),
            facts,
            loaded_at: Timestamp::from(SystemTime::now()),
        };
        let since = next.policies().into_iter().map(|policy| {
            let key = policy.key();
            let same = before.and_then(|before| before.since.get(&key));
            (key, same.copied().unwrap_or(generation))
        });
        next.since = since.collect();
        next
    }

    /// The node's own processes.
    pub(super) fn node(&self) -> Option<&Arc<Bound>> {
        self.bound.first()
    }

    /// The scope with this id, or that had it a moment ago.
    pub(super) fn of(&self, scope_id: u32) -> Option<&Arc<Bound>> {
        self.by_scope_id.get(&scope_id).map(|(bound, _)| bound)
    }

    /// How the scope is bound now that has this id, or had it a moment ago.
    pub(super) fn now_of(&self, scope_id: u32) -> Option<&Arc<Bound>> {
        match self.by_scope_id.get(&scope_id)? {
            (bound, None) => Some(bound),
            (before, Some(_)) => self.of_scope(&before.scope),
        }
    }

    /// How this scope is bound.
    pub(super) fn of_scope(&self, scope: &Scope) -> Option<&Arc<Bound>> {
        let mut bound = self.bound.iter();
        bound.find(|one| one.scope.cgroup_id == scope.cgroup_id)
    }

    /// Different sets of policies, each once.
    pub(super) fn rulesets(&self) -> Vec<&Arc<Ruleset>> {
        let mut seen = HashSet::new();
        let rulesets = self.bound.iter().filter_map(|one| one.rules.ruleset());
        rulesets
            .filter(|ruleset| seen.insert(Arc::as_ptr(ruleset)))
            .collect()
    }

    /// `enforce`, `audit`, `mixed` where policies differ, or `open` where there are none. Where enforcing is over, what
    /// enforces audits.
    pub(super) fn mode_text(&self, is_over: bool) -> &'static str {
        let rulesets = self.rulesets();
        if is_over && !rulesets.is_empty() {
            return Mode::Audit.name();
        }
        let has = |mode| rulesets.iter().any(|one| one.compiled.mode == mode);
        let is_mixed = |ruleset: &&Arc<Ruleset>| ruleset.is_mixed();
        match (has(Mode::Enforce), has(Mode::Audit)) {
            (true, true) => "mixed",
            (true, false) if rulesets.iter().any(is_mixed) => "mixed",
            (true, false) => Mode::Enforce.name(),
            (false, true) => Mode::Audit.name(),
            (false, false) => "open",
        }
    }

    /// The policies of all scopes, each once.
    pub(super) fn policies(&self) -> Vec<&PolicyInForce> {
        let mut seen = HashSet::new();
        let rulesets = self.rulesets().into_iter();
        let policies = rulesets.flat_map(|ruleset| &ruleset.policies);
        policies
            .filter(|policy| seen.insert((policy.name.as_str(), policy.content)))
            .collect()
    }
}

/// Everything that the tasks share.
pub(super) struct Shared {
    pub(super) options: RunOptions,
    /// The node, and the cgroups given with `--scope`.
    pub(super) scopes: Mutex<OwnScopes>,
    pub(super) memory: Arc<Memory>,
    /// The same on disk, for the next agent.
    pub(super) journal: Journal,
    /// Answers that taught nothing.
    pub(super) refusals: Refusals,
    pub(super) started: Instant,
    /// The node as it was last read.
    pub(super) node: Node,
    /// Where state is given to be written.
    pub(super) state_writer: StateWriter,
    datapath: Mutex<Datapath>,
    /// Reads maps for those who ask: nobody waits for the lock of the datapath, or holds it, to read.
    pub(super) reader: Arc<Reader>,
    /// The agent's links and pins; none where nothing is pinned.
    pub(super) anchors: Option<Anchors>,
    in_force: RwLock<Option<Arc<InForce>>>,
    /// The confirmation of enforcing.
    pub(super) confirmation: Confirmation,
    /// Everything that is to be in force. Held while that changes and is switched to: one at a time.
    pub(super) wanted: Mutex<Wanted>,
    /// The API server's view, and how sure that is; none without `--kubernetes`.
    pub(super) feed: OnceLock<watch::Receiver<Feed>>,
    /// Takes reports of denials of pods; none without `--kubernetes`.
    pub(super) denials: OnceLock<Denials>,
    /// Everything that rules may refer to, for the task that checks policies of the whole cluster.
    pub(super) catalog: watch::Sender<Catalog>,
    /// The cluster as it was known at the last switch.
    pub(super) kubernetes: Mutex<Option<KubernetesStatus>>,
    /// Servers that the cluster reports.
    pub(super) cluster_servers: Mutex<ClusterServers>,
    /// The last id that a scope was given; 0 while the kernel was not asked.
    pub(super) last_scope_id: AtomicU32,
    /// Why the last change of a policy was not taken.
    pub(super) refused: Mutex<Option<String>>,
    pub(super) recent: Mutex<RecentFlows>,
    /// Keeps the flows that were seen.
    pub(super) observer: Observer,
    pub(super) followers: broadcast::Sender<Arc<FlowReport>>,
    /// Where flows are logged, if anywhere.
    pub(super) flow_log: Option<FlowLog>,
    pub(super) cgroup_paths: Mutex<CgroupPaths>,
    /// The agent's own losses: names and streams thrown out for lack of room.
    pub(super) dns_lost: Mutex<HashMap<&'static str, u64>>,
    /// The host's ends of pods' interfaces; none without `--pod-interfaces`, and before the first look.
    pub(super) pod_interfaces: Mutex<Option<PodInterfacesStatus>>,
    /// Looks at the ring of copies of answers.
    pub(super) dns_looks: Looks,
    /// Looks at the ring of verdicts.
    pub(super) event_looks: Looks,
    /// Copies of answers, until the task that reads them begins.
    pub(super) early_copies: Mutex<Option<DnsRing>>,
    /// Scopes by the ids that agents before this one, or another layout, gave them.
    pub(super) earlier: Mutex<HashMap<u32, Arc<Scope>>>,
    /// When room was last made in the share of a scope, by its id.
    pub(super) room_made: Mutex<HashMap<u32, Instant>>,
}

/// Locks; a task that panicked has left nothing half done that matters here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Finds the cgroups of the scopes.
    ///
    /// # Errors
    ///
    /// A scope's cgroup can never be there.
    pub(super) fn new(
        options: RunOptions,
        datapath: Datapath,
        copies: DnsRing,
        node: Node,
        state_writer: StateWriter,
    ) -> anyhow::Result<Self> {
        // The agent's memory of a scope is bounded as what the kernel learns of it.
        let (capacity, shares) = (options.max_learned, options.shares);
        let share = |is_node| usize::try_from(shares.of(capacity, is_node)).unwrap_or(usize::MAX);
        let memory = Arc::new(Memory::new(MemoryLimits {
            addresses: usize::try_from(capacity).unwrap_or(usize::MAX),
            share: share(false),
            ..MemoryLimits::default()
        }));
        memory.set_share(memory.scope(NODE_SCOPE), share(true));
        let scopes = OwnScopes::new(&options, &memory)?;
        let is_adopted = datapath.is_adopted();
        let (journal, opened) = Journal::open(&options.state_dir, &memory, is_adopted, now_ns());
        match opened {
            Ok(chains) => debug!(chains, "known names taken up"),
            Err(error) => warn!(
                %error,
                folder = %options.state_dir.display(),
                "who taught the addresses of before is not known: their names have to be asked for again"
            ),
        }
        let confirmation = Confirmation::new(options.confirm);
        // An empty path: nothing is kept.
        let observer = if options.state_dir.as_os_str().is_empty() {
            Observer::in_memory()
        } else {
            Observer::open(&options.state_dir)
        };
        let (followers, _) = broadcast::channel(FOLLOW_FLOWS);
        let flow_log = match &options.flow_log {
            None => None,
            Some(log) => Some(FlowLog::open(log).with_context(|| {
                format!("--flow-log {}: cannot open it for writing", log.target)
            })?),
        };
        Ok(Self {
            options,
            scopes: Mutex::new(scopes),
            memory,
            journal,
            refusals: Refusals::default(),
            started: Instant::now(),
            reader: datapath.reader(),
            node,
            state_writer,
            anchors: datapath.anchors(),
            datapath: Mutex::new(datapath),
            in_force: RwLock::new(None),
            confirmation,
            wanted: Mutex::default(),
            feed: OnceLock::new(),
            denials: OnceLock::new(),
            catalog: watch::Sender::new(Catalog::default()),
            kubernetes: Mutex::default(),
            cluster_servers: Mutex::default(),
            last_scope_id: AtomicU32::new(0),
            refused: Mutex::new(None),
            recent: Mutex::new(RecentFlows::default()),
            observer,
            followers,
            flow_log,
            cgroup_paths: Mutex::default(),
            dns_lost: Mutex::default(),
            pod_interfaces: Mutex::default(),
            dns_looks: Looks::default(),
            event_looks: Looks::default(),
            early_copies: Mutex::new(Some(copies)),
            earlier: Mutex::default(),
            room_made: Mutex::default(),
        })
    }

    /// The kernel side, for one caller at a time.
    pub(super) fn datapath(&self) -> MutexGuard<'_, Datapath> {
        lock(&self.datapath)
    }

    /// Waits until the answers and verdicts are known that the kernel has written by now; blocks.
    pub(super) fn catch_up(&self) {
        // In this order: verdicts are reported with the names that answers gave.
        self.dns_looks.catch_up();
        self.event_looks.catch_up();
    }

    /// The policy that is in force; none before the first switch.
    pub(super) fn in_force(&self) -> Option<Arc<InForce>> {
        self.in_force
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set_in_force(&self, in_force: InForce) {
        *self
            .in_force
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(in_force));
    }

    /// The scope that a scope id of now or of a moment ago belongs to.
    pub(super) fn scope_of(&self, scope_id: u32) -> Option<Arc<Scope>> {
        let in_force = self.in_force()?;
        in_force.of(scope_id).map(|bound| Arc::clone(&bound.scope))
    }

    /// How the scope is bound now that a scope id of now or of a moment ago belongs to.
    pub(super) fn bound_now(&self, scope_id: u32) -> Option<Arc<Bound>> {
        let in_force = self.in_force()?;
        if let Some(bound) = in_force.now_of(scope_id) {
            return Some(Arc::clone(bound));
        }
        let earlier = lock(&self.earlier);
        in_force.of_scope(earlier.get(&scope_id)?).map(Arc::clone)
    }
}
