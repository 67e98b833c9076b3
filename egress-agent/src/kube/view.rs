//! An agent's view of its cluster, and which policies that makes of it.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    policy::{Selector, Spec, Subject},
    workload::PodUid,
};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Policies by their names.
pub type Policies = BTreeMap<PolicyKey, Arc<PolicyObject>>;

/// An agent's view of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Labels of this node.
    pub node: Labels,
    /// Labels of each namespace.
    pub namespaces: BTreeMap<String, Labels>,
    /// Pods of this node, by the UID that their cgroup carries.
    pub pods: BTreeMap<PodUid, Arc<Pod>>,
    /// Objects that claim a cgroup without a right to it, by its UID: that of another object, or one that several claim,
    /// none of which then is its pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contested: BTreeMap<PodUid, Vec<Arc<Pod>>>,
    /// Policies of all namespaces and of the cluster; shared, because pods change often and policies do not.
    pub policies: Arc<Policies>,
    /// Addresses of the cluster's DNS services.
    pub dns_service: Vec<IpAddr>,
    /// The endpoints behind them: where a load balancer at sockets sends queries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_endpoints: Vec<SocketAddr>,
    /// The API servers behind `default/kubernetes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub api_servers: Vec<SocketAddr>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Where it lives.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// The labels that selectors see.
    pub labels: Labels,
    /// The UID of the object: for a static pod not the one that its cgroup carries.
    pub uid: String,
    /// Of the object that stands for a static pod: the UID that kubelet knows the pod by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_of: Option<String>,
}

impl Pod {
    /// The UID under which kubelet and kubectl have the pod's events.
    #[must_use]
    pub fn events_uid(&self) -> &str {
        self.mirror_of.as_deref().unwrap_or(&self.uid)
    }
}

/// Which policy: `shop/payments`, one of the cluster `baseline`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// The namespace of an `EgressPolicy`; a `ClusterEgressPolicy` has none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// A policy as the server has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyObject {
    /// The UID of the object.
    pub uid: String,
    /// Counts changes of the spec.
    pub generation: i64,
    /// Its content.
    pub spec: Spec,
}

impl ClusterView {
    /// The policies that select a pod of this node, the cluster's first.
    ///
    /// Those of its namespace look at its labels; those of the cluster for pods look also at the labels of its namespace
    /// and of the node. A selector that a policy does not have is for everything. A namespace that is not known has no
    /// labels.
    #[must_use]
    pub fn policies_of(&self, pod: &Pod) -> Vec<&PolicyKey> {
        let no_labels = Labels::new();
        let namespace = self.namespaces.get(&pod.namespace).unwrap_or(&no_labels);
        let of_cluster = self.of_cluster(Subject::Pods).filter(|(_, spec)| {
            is_selected(spec.namespace_selector.as_ref(), namespace)
                && is_selected(spec.node_selector.as_ref(), &self.node)
        });
        of_cluster
            .chain(self.of_namespace(&pod.namespace))
            .filter(|(_, spec)| is_selected(spec.pod_selector.as_ref(), &pod.labels))
            .map(|(key, _)| key)
            .collect()
    }

    /// The policies that select the processes of this node which are in no pod.
    #[must_use]
    pub fn policies_of_node(&self) -> Vec<&PolicyKey> {
        self.of_cluster(Subject::Node)
            .filter(|(_, spec)| is_selected(spec.node_selector.as_ref(), &self.node))
            .map(|(key, _)| key)
            .collect()
    }

    /// Policies of the cluster with a subject.
    fn of_cluster(&self, subject: Subject) -> impl Iterator<Item = (&PolicyKey, &Spec)> {
        self.policies
            .iter()
            // They come first.
            .take_while(|(key, _)| key.namespace.is_none())
            .map(|(key, policy)| (key, &policy.spec))
            .filter(move |(_, spec)| spec.subject == subject)
    }

    /// Policies of a namespace.
    fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = (&PolicyKey, &Spec)> {
        let first = PolicyKey {
            namespace: Some(namespace.to_owned()),
            name: String::new(),
        };
        self.policies
            .range(&first..)
            .take_while(move |(key, _)| key.namespace == first.namespace)
            .map(|(key, policy)| (key, &policy.spec))
    }
}

/// True if a selector matches; without one, everything does.
fn is_selected(selector: Option<&Selector>, labels: &Labels) -> bool {
    selector.is_none_or(|selector| selector.matches(labels))
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

impl FromStr for PolicyKey {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, text),
        };
        let name = name.to_owned();
        Ok(Self { namespace, name })
    }
}

impl Serialize for PolicyKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PolicyKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(text.parse().unwrap_or_else(|never| match never {}))
    }
}

impl Serialize for PodUid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for PodUid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text)
            .ok_or_else(|| de::Error::custom(format_args!("{text:?} is not the UID of a pod")))
    }
}

#[cfg(test)]
mod tests;
