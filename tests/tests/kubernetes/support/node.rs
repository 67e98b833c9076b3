//! A node of a test: its pods are objects on the server, and cgroups with real processes here.

use std::{net::IpAddr, path::Path, time::Duration};

use egress_tests::{Agent, AgentOptions, Cluster, Workload, World, eventually, zone};
use serde_json::{Value, json};

use super::installed::{json, write};

/// How long what the API server says may take to be in force.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A node of the test's own, with a namespace of its own; both have its name.
pub(crate) struct Node<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) world: World,
    pub(crate) name: &'static str,
}

impl<'a> Node<'a> {
    pub(crate) fn new(cluster: &'a Cluster, name: &'static str) -> Self {
        Self::of_world(cluster, name, World::new())
    }

    pub(crate) fn of_world(cluster: &'a Cluster, name: &'static str, world: World) -> Self {
        let node = Self {
            cluster,
            world,
            name,
        };
        let labels = json!({ "name": name, "labels": { "pool": name } });
        node.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": labels }));
        node.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": labels }));
        node
    }

    pub(crate) fn apply(&self, object: &Value) {
        let metadata = &object["metadata"];
        let file = format!("{}-{}-{}.json", self.name, object["kind"], metadata["name"]);
        let file = write(self.cluster, &file.replace('"', ""), &object.to_string());
        self.cluster.get(["apply", "-f", &file]).unwrap();
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        let namespace = ["-n", self.name];
        let arguments = arguments.iter().chain(&namespace);
        self.cluster.get(arguments).unwrap()
    }

    pub(crate) fn policy(&self, name: &str, spec: &Value) {
        self.apply(&json!({
            "apiVersion": "egress.dev/v1alpha1",
            "kind": "EgressPolicy",
            "metadata": { "name": name, "namespace": self.name },
            "spec": spec,
        }));
    }

    pub(crate) fn cluster_policy(&self, name: &str, spec: &Value) {
        self.apply(&json!({
            "apiVersion": "egress.dev/v1alpha1",
            "kind": "ClusterEgressPolicy",
            "metadata": { "name": name },
            "spec": spec,
        }));
    }

    /// Makes a pod, and says the UID that its cgroup carries.
    pub(crate) fn pod(&self, name: &str, app: &str) -> String {
        self.pod_with(name, app, json!({}))
    }

    /// The same, with more in its spec.
    pub(crate) fn pod_with(&self, name: &str, app: &str, more: Value) -> String {
        let mut spec =
            json!({ "nodeName": self.name, "containers": [{ "name": "main", "image": "none" }] });
        let Value::Object(more) = more else {
            panic!("{more} is no spec");
        };
        spec.as_object_mut().unwrap().extend(more);
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": self.name, "labels": { "app": app } },
            "spec": spec,
        }));
        let pod = self.kubectl(&["get", "pod", name, "-o", "json"]);
        json(&pod)["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// Takes a pod's object away at once, as when its containers have ended.
    pub(crate) fn delete_pod(&self, name: &str) {
        self.kubectl(&["delete", "pod", name, "--force", "--grace-period=0"]);
    }

    pub(crate) fn agent(&self) -> Agent {
        self.agent_by(&self.cluster.kubeconfig()).start()
    }

    /// An agent that comes to the server in this way, still to be started.
    pub(crate) fn agent_by(&self, kubeconfig: &Path) -> AgentOptions {
        self.world.agent("").of_cluster(kubeconfig, self.name)
    }

    /// Processes in a container of a pod, by a path of its cgroup.
    pub(crate) fn container(&self, path: &str) -> Workload {
        self.world.workload(path)
    }
}

/// The paths of a pod's container in the forms that there are.
pub(crate) fn paths(uid: &str) -> [String; 4] {
    let id = "c46bafd57b2ef55a23c1319893c8aa5bfca24872bd95258700a51059941fb69e";
    [0, 1, 2, 3].map(|form| path(uid, form, id))
}

/// The path of one of a pod's containers.
pub(crate) fn path(uid: &str, form: usize, id: &str) -> String {
    let uid_ = uid.replace('-', "_");
    let slice =
        format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice");
    match form {
        // systemd, containerd and CRI-O
        0 => format!("{slice}/cri-containerd-{id}.scope"),
        1 => format!("{slice}/crio-{id}.scope"),
        // cgroupfs
        2 => format!("kubepods/burstable/pod{uid}/{id}"),
        // kubelet with systemd, containerd without
        _ => format!(
            "system.slice/containerd.service/kubepods-burstable-pod{uid_}.slice:cri-containerd:{id}"
        ),
    }
}

pub(crate) fn scopes(agent: &Agent) -> Vec<String> {
    let status: Value = agent.try_ask(&["status"]).unwrap();
    let scopes = status["scopes"].as_array().unwrap().iter();
    scopes
        .map(|scope| scope["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Waits until the agent has a scope of this name.
#[track_caller]
pub(crate) fn known(agent: &Agent, name: &str) {
    let is_there = || scopes(agent).iter().any(|scope| scope == name);
    assert!(
        eventually(SOON, is_there),
        "{name}: {:?}\n{}",
        scopes(agent),
        agent.log()
    );
}

pub(crate) fn address(name: &str) -> IpAddr {
    zone::address(name, false)
}
