//! What the tasks share.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, atomic::AtomicU64},
    time::{Instant, SystemTime},
};

use egress_common::{address::Address, hash::rule_identity, maps::NODE_CGROUP, verdict::Mode};
use tokio::sync::broadcast;

use super::{confirm::Confirmation, observe::Observer};
use crate::{
    api::{RECENT_FLOWS, RecentFlows, Timestamp, model::FlowReport},
    cli::{RunOptions, UsageError, run::NODE_SCOPE},
    datapath::{Datapath, cgroup_facts},
    dns::{Memory, MemoryLimits, Refusals, ScopeNumber},
    policy::{Compiled, Lifeline, Policy, ServiceTagsFacts},
    workload::CgroupPaths,
};

/// Verdicts that a slow follower may be behind.
const FOLLOW_FLOWS: usize = 1_024;

/// A scope: the node, or a cgroup given with `--scope`.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    /// Its name.
    pub(super) name: String,
    /// Its cgroup; none for the node.
    pub(super) cgroup: Option<PathBuf>,
    /// Id of that cgroup, or [`NODE_CGROUP`].
    pub(super) cgroup_id: u64,
    /// Distance of that cgroup from the root of the hierarchy.
    pub(super) level: Option<i32>,
    /// What owns its UDP flows: the same in every generation.
    pub(super) identity: u32,
    /// Whether it runs a trusted resolver.
    pub(super) answers_dns: bool,
    /// Its number in the memory of names.
    pub(super) number: ScopeNumber,
}

/// What is kept of one of the policies that are in force.
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
    /// The generation since which it reads as it does.
    pub(super) generation: u32,
}

impl PolicyInForce {
    /// Of a policy that is not in force yet.
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
            generation: 0,
        }
    }
}

/// The policies that are in force.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) compiled: Arc<Compiled>,
    pub(super) lifeline: Lifeline,
    pub(super) policies: Vec<PolicyInForce>,
    /// The file of service tags that its rules were read with.
    pub(super) service_tags: Option<ServiceTagsFacts>,
    pub(super) loaded_at: Timestamp,
    /// Scope ids of this and of the last generation, to indexes of scopes.
    pub(super) scope_ids: HashMap<u32, usize>,
}

/// Everything that the tasks share.
pub(super) struct Shared {
    pub(super) options: RunOptions,
    pub(super) scopes: Vec<Scope>,
    pub(super) memory: Memory,
    /// Answers that taught nothing.
    pub(super) refusals: Refusals,
    pub(super) started: Instant,
    datapath: Mutex<Datapath>,
    in_force: RwLock<Option<Arc<InForce>>>,
    /// Whether enforcing was confirmed.
    pub(super) confirmation: Confirmation,
    /// Held while files are read and switched to: one at a time.
    pub(super) reloading: Mutex<()>,
    /// Why the last change of a policy was not taken.
    pub(super) refused: Mutex<Option<String>>,
    pub(super) recent: Mutex<RecentFlows>,
    /// What is kept of the flows that were seen.
    pub(super) observer: Observer,
    pub(super) followers: broadcast::Sender<FlowReport>,
    pub(super) cgroup_paths: Mutex<CgroupPaths>,
    /// The node's own addresses, as the kernel has them.
    pub(super) local: Mutex<Vec<Address>>,
    /// What the agent itself lost: names and streams thrown out for lack of room.
    pub(super) dns_lost: Mutex<HashMap<&'static str, u64>>,
    /// How often all copies of answers that were there have been read.
    pub(super) dns_looks: AtomicU64,
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
    /// A scope's cgroup is not there.
    pub(super) fn new(options: RunOptions, datapath: Datapath) -> anyhow::Result<Self> {
        let memory = Memory::new(MemoryLimits::default());
        let mut scopes = vec![Scope {
            name: NODE_SCOPE.to_owned(),
            cgroup: None,
            cgroup_id: NODE_CGROUP,
            level: None,
            identity: 1,
            answers_dns: true,
            number: memory.scope(NODE_SCOPE),
        }];
        for (identity, scope) in (2_u32..).zip(&options.scopes) {
            let (cgroup_id, level) = cgroup_facts(&scope.cgroup).map_err(|error| {
                UsageError::new(
                    anyhow::Error::new(error).context(format!("--scope {}", scope.name)),
                )
            })?;
            scopes.push(Scope {
                name: scope.name.clone(),
                cgroup: Some(scope.cgroup.clone()),
                cgroup_id,
                level: Some(level),
                identity,
                answers_dns: options.resolver_scopes.contains(&scope.name),
                number: memory.scope(&scope.name),
            });
        }
        let confirmation = Confirmation::new(options.confirm);
        let observer = Observer::open(&options.state_dir);
        let (followers, _) = broadcast::channel(FOLLOW_FLOWS);
        Ok(Self {
            options,
            scopes,
            memory,
            refusals: Refusals::default(),
            started: Instant::now(),
            datapath: Mutex::new(datapath),
            in_force: RwLock::new(None),
            confirmation,
            reloading: Mutex::default(),
            refused: Mutex::new(None),
            recent: Mutex::new(RecentFlows::new(RECENT_FLOWS)),
            observer,
            followers,
            cgroup_paths: Mutex::default(),
            local: Mutex::default(),
            dns_lost: Mutex::default(),
            dns_looks: AtomicU64::new(0),
        })
    }

    /// The kernel side, for one caller at a time.
    pub(super) fn datapath(&self) -> MutexGuard<'_, Datapath> {
        lock(&self.datapath)
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

    /// The mode that is in force.
    pub(super) fn mode(&self) -> Mode {
        self.in_force()
            .map_or(Mode::Enforce, |in_force| in_force.compiled.mode)
    }

    /// The scope that a scope id of this or the last generation belongs to.
    pub(super) fn scope_of(&self, scope_id: u32) -> Option<&Scope> {
        let in_force = self.in_force()?;
        let index = in_force.scope_ids.get(&scope_id)?;
        self.scopes.get(*index)
    }
}

impl InForce {
    /// Now, for `loaded_at`.
    pub(super) fn loaded_now() -> Timestamp {
        Timestamp::from(SystemTime::now())
    }
}
