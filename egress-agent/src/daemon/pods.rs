//! The cgroups of pods, as scopes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use egress_common::maps::CGROUP_LEVELS;

use super::shared::Scope;
use crate::{
    datapath::cgroup_facts,
    dns::Memory,
    kube::Pod,
    workload::{PodEvent, PodUid, kubepods_above},
};

/// The first number of a pod as a workload: those below are for the node and for `--scope`.
const FIRST_IDENTITY: u32 = 1 << 16;
/// The name of the scope that holds pods until their policies are known.
pub(super) const PENDING: &str = "pending";
/// The namespace of what belongs to the cluster itself.
const SYSTEM_NAMESPACE: &str = "kube-system";
/// The label by which the cluster's DNS is known, and its values: its own service, and the cache on each node.
const DNS_LABEL: &str = "k8s-app";
const DNS_APPS: [&str; 2] = ["kube-dns", "node-local-dns"];

/// A pod's cgroup.
#[derive(Debug)]
pub(super) struct PodCgroup {
    pub(super) uid: PodUid,
    /// With what was last heard of the pod, which may be gone for the API server while its processes still end.
    pub(super) scope: Arc<Scope>,
    /// True if it lies below a cgroup that holds pods until their policies are known.
    pub(super) is_held: bool,
}

/// The cgroups of this node's pods.
#[derive(Debug)]
pub(super) struct Pods {
    /// The cgroup that is watched, and its distance from the root of the hierarchy.
    root: PathBuf,
    root_level: i32,
    by_cgroup: BTreeMap<u64, PodCgroup>,
    /// Cgroups of kubelet that all pods lie below, by their paths below the root.
    holders: BTreeMap<PathBuf, Arc<Scope>>,
    identities: HashMap<PodUid, u32>,
    last_identity: u32,
    /// Depths at which the kernel looks.
    levels: BTreeSet<i32>,
    /// Pods whose cgroups lie at other depths.
    too_many_levels: BTreeSet<u64>,
    /// Directories that cannot be looked at.
    unseen: BTreeSet<String>,
}

/// The kernel's binding of a cgroup: the number of its workload, if it is bound.
pub(super) type BoundIdentity<'a> = &'a dyn Fn(u64) -> Option<u32>;

impl Pods {
    /// No pods, below this cgroup.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub(super) fn new(root: &Path) -> anyhow::Result<Self> {
        let (_, root_level) = cgroup_facts(root)?;
        Ok(Self {
            root: root.to_owned(),
            root_level,
            by_cgroup: BTreeMap::new(),
            holders: BTreeMap::new(),
            identities: HashMap::new(),
            last_identity: FIRST_IDENTITY,
            levels: BTreeSet::new(),
            too_many_levels: BTreeSet::new(),
            unseen: BTreeSet::new(),
        })
    }

    /// Leaves alone the depths and numbers of other scopes, and of those that the kernel has.
    pub(super) fn beside(
        &mut self,
        levels: impl Iterator<Item = i32>,
        identities: impl Iterator<Item = u32>,
    ) {
        self.levels.extend(levels);
        self.last_identity = identities.fold(self.last_identity, u32::max);
    }

    /// Takes up what happened to cgroups.
    pub(super) fn take(&mut self, event: PodEvent, memory: &Memory, bound: BoundIdentity<'_>) {
        match event {
            PodEvent::Made {
                uid,
                cgroup_id,
                path,
                level,
            } => self.made(uid, cgroup_id, &path, level, memory, bound),
            PodEvent::Gone { cgroup_id } => self.gone(cgroup_id, memory),
            PodEvent::Unseen(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                self.unseen.insert(error);
            }
        }
    }

    fn made(
        &mut self,
        uid: PodUid,
        cgroup_id: u64,
        path: &Path,
        level: i32,
        memory: &Memory,
        bound: BoundIdentity<'_>,
    ) {
        let level = self.root_level.saturating_add(level);
        let is_held = kubepods_above(path).is_some_and(|above| self.hold(above, memory));
        if !self.has_level(level) {
            self.too_many_levels.insert(cgroup_id);
            return;
        }
        let identity = match (self.identities.get(&uid), bound(cgroup_id)) {
            (Some(identity), _) => *identity,
            (None, Some(identity)) => {
                self.last_identity = self.last_identity.max(identity);
                identity
            }
            (None, None) => {
                self.last_identity = self.last_identity.saturating_add(1);
                self.last_identity
            }
        };
        self.identities.insert(uid.clone(), identity);
        let scope = Arc::new(Scope {
            name: format!("pod/{uid}"),
            cgroup: Some(self.root.join(path)),
            cgroup_id,
            level: Some(level),
            identity,
            answers_dns: false,
            number: memory.scope(uid.as_str()),
            pod: None,
        });
        let pod = PodCgroup {
            uid,
            scope,
            is_held,
        };
        self.by_cgroup.insert(cgroup_id, pod);
    }

    fn gone(&mut self, cgroup_id: u64, memory: &Memory) {
        self.too_many_levels.remove(&cgroup_id);
        let Some(gone) = self.by_cgroup.remove(&cgroup_id) else {
            return;
        };
        if !self.by_cgroup.values().any(|pod| pod.uid == gone.uid) {
            self.identities.remove(&gone.uid);
            memory.forget_scope(gone.uid.as_str());
        }
    }

    /// Has new pods below this cgroup held until their policies are known.
    fn hold(&mut self, path: PathBuf, memory: &Memory) -> bool {
        let full = self.root.join(&path);
        let Ok(metadata) = std::fs::metadata(&full) else {
            return false;
        };
        let cgroup_id = metadata.ino();
        if let Some(known) = self.holders.get(&path)
            && known.cgroup_id == cgroup_id
        {
            return true;
        }
        let depth = i32::try_from(path.components().count()).unwrap_or(i32::MAX);
        let level = self.root_level.saturating_add(depth);
        if !self.has_level(level) {
            return false;
        }
        // The same for all of them: nobody learns anything there.
        let identity = FIRST_IDENTITY;
        let scope = Scope {
            name: PENDING.to_owned(),
            cgroup: Some(full),
            cgroup_id,
            level: Some(level),
            identity,
            answers_dns: false,
            number: memory.scope(PENDING),
            pod: None,
        };
        self.holders.insert(path, Arc::new(scope));
        true
    }

    /// Has the kernel look at a depth, if it can.
    fn has_level(&mut self, level: i32) -> bool {
        if self.levels.len() < CGROUP_LEVELS {
            self.levels.insert(level);
        }
        self.levels.contains(&level)
    }

    /// Takes up what is known of the pods now. A pod that is not known any more is what it was.
    pub(super) fn name(&mut self, pod_of: impl Fn(&PodUid) -> Option<Arc<Pod>>) {
        for cgroup in self.by_cgroup.values_mut() {
            let Some(pod) = pod_of(&cgroup.uid) else {
                continue;
            };
            let scope = &cgroup.scope;
            let name = format!("{}/{}", pod.namespace, pod.name);
            let answers_dns = answers_dns(&pod);
            if scope.pod.as_ref() != Some(&pod) {
                cgroup.scope = Arc::new(Scope {
                    name,
                    cgroup: scope.cgroup.clone(),
                    answers_dns,
                    pod: Some(pod),
                    ..**scope
                });
            }
        }
    }

    /// The cgroups of pods.
    pub(super) fn cgroups(&self) -> impl Iterator<Item = &PodCgroup> {
        self.by_cgroup.values()
    }

    /// The cgroups that hold pods whose policies are not known.
    pub(super) fn holders(&self) -> impl Iterator<Item = &Arc<Scope>> {
        self.holders.values()
    }

    /// Forgets what could not be looked at: it is about to be tried again. Says whether there was anything.
    pub(super) fn try_unseen(&mut self) -> bool {
        !std::mem::take(&mut self.unseen).is_empty()
    }

    /// Alarms for an operator.
    pub(super) fn alarms(&self) -> Vec<String> {
        let mut alarms: Vec<String> = self.unseen.iter().cloned().collect();
        if !self.too_many_levels.is_empty() {
            alarms.push(format!(
                "{} cgroups of pods lie at more than {CGROUP_LEVELS} different depths: they stay pending",
                self.too_many_levels.len()
            ));
        }
        alarms
    }
}

/// True if a pod is part of the cluster's own DNS, and so may answer from the address of a trusted resolver.
fn answers_dns(pod: &Pod) -> bool {
    let app = pod.labels.get(DNS_LABEL).map(String::as_str);
    pod.namespace == SYSTEM_NAMESPACE && app.is_some_and(|app| DNS_APPS.contains(&app))
}
