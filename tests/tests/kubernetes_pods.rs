//! Pods of a real API server as cgroups with real processes: who selects them, what they may reach, from when on.
//!
//! The pods are objects on the server, bound to a node of the test's name; their cgroups have the paths that kubelet and
//! the runtimes give them.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests panic"
)]

#[path = "support/installed.rs"]
mod installed;

use std::{net::IpAddr, time::Duration};

use egress_tests::{
    Agent, Cluster, Workload, World, eventually,
    expect::{reached, refused},
    ready, zone,
};
use installed::{cluster, json, write};
use serde_json::{Value, json};

/// How long what the API server says may take to be in force.
const SOON: Duration = Duration::from_secs(10);

/// A node of the test's own, with a namespace of its own; both have its name.
struct Node<'a> {
    cluster: &'a Cluster,
    world: World,
    name: &'static str,
}

impl<'a> Node<'a> {
    fn new(cluster: &'a Cluster, name: &'static str) -> Self {
        let node = Self {
            cluster,
            world: World::new(),
            name,
        };
        let labels = json!({ "name": name, "labels": { "pool": name } });
        node.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": labels }));
        node.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": labels }));
        node
    }

    fn apply(&self, object: &Value) {
        let metadata = &object["metadata"];
        let file = format!("{}-{}-{}.json", self.name, object["kind"], metadata["name"]);
        let file = write(self.cluster, &file.replace('"', ""), &object.to_string());
        self.cluster.get(["apply", "-f", &file]).unwrap();
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let namespace = ["-n", self.name];
        let arguments = arguments.iter().chain(&namespace);
        self.cluster.get(arguments).unwrap()
    }

    fn policy(&self, name: &str, spec: &Value) {
        self.apply(&json!({
            "apiVersion": "egress.dev/v1alpha1",
            "kind": "EgressPolicy",
            "metadata": { "name": name, "namespace": self.name },
            "spec": spec,
        }));
    }

    fn cluster_policy(&self, name: &str, spec: &Value) {
        self.apply(&json!({
            "apiVersion": "egress.dev/v1alpha1",
            "kind": "ClusterEgressPolicy",
            "metadata": { "name": name },
            "spec": spec,
        }));
    }

    /// Makes a pod, and says the UID that its cgroup carries.
    fn pod(&self, name: &str, app: &str) -> String {
        let labels = json!({ "app": app });
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": self.name, "labels": labels },
            "spec": { "nodeName": self.name, "containers": [{ "name": "main", "image": "none" }] },
        }));
        let pod = self.kubectl(&["get", "pod", name, "-o", "json"]);
        json(&pod)["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    fn agent(&self) -> Agent {
        let agent = self.world.agent("");
        agent
            .of_cluster(&self.cluster.kubeconfig(), self.name)
            .start()
    }

    /// Processes in a container of a pod, by a path of its cgroup.
    fn container(&self, path: &str) -> Workload {
        self.world.workload(path)
    }
}

/// The paths of a pod's container in the forms that there are.
fn paths(uid: &str) -> [String; 4] {
    let uid_ = uid.replace('-', "_");
    let id = "c46bafd57b2ef55a23c1319893c8aa5bfca24872bd95258700a51059941fb69e";
    let slice =
        format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice");
    [
        // systemd, containerd and CRI-O
        format!("{slice}/cri-containerd-{id}.scope"),
        format!("{slice}/crio-{id}.scope"),
        // cgroupfs
        format!("kubepods/burstable/pod{uid}/{id}"),
        // kubelet with systemd, containerd without
        format!(
            "system.slice/containerd.service/kubepods-burstable-pod{uid_}.slice:cri-containerd:{id}"
        ),
    ]
}

fn scopes(agent: &Agent) -> Vec<String> {
    let status: Value = agent.try_ask(&["status"]).unwrap();
    let scopes = status["scopes"].as_array().unwrap().iter();
    scopes
        .map(|scope| scope["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Waits until the agent has a scope of this name.
#[track_caller]
fn known(agent: &Agent, name: &str) {
    let is_there = || scopes(agent).iter().any(|scope| scope == name);
    assert!(
        eventually(SOON, is_there),
        "{name}: {:?}\n{}",
        scopes(agent),
        agent.log()
    );
}

fn address(name: &str) -> IpAddr {
    zone::address(name, false)
}

#[test]
fn each_pod_has_the_policies_that_select_it_and_what_it_resolved_itself() {
    let Some(cluster) = cluster().filter(|_| ready()) else {
        return;
    };
    let node = Node::new(&cluster, "selection");
    node.policy("payments", &json!({ "podSelector": { "matchLabels": { "app": "payments" } }, "allow": [{ "names": ["api.example.com"] }] }));
    let agent = node.agent();
    let (api, other) = (address("api.example.com"), address("other.example.com"));
    for (number, form) in [0, 1, 2, 3].into_iter().enumerate() {
        let names = ["one", "two", "free"].map(|name| format!("{name}-{number}"));
        let uids = [
            node.pod(&names[0], "payments"),
            node.pod(&names[1], "payments"),
            node.pod(&names[2], "other"),
        ];
        let [one, two, free] = uids.map(|uid| node.container(&paths(&uid)[form]));
        for name in &names {
            known(&agent, &format!("selection/{name}"));
        }
        one.resolve("api.example.com", false);
        reached(&one.connect(api, 80));
        refused(&one.connect(other, 80));
        // What one pod resolved opens nothing to another one under the same policy.
        refused(&two.connect(api, 80));
        two.resolve("api.example.com", false);
        reached(&two.connect(api, 80));
        // No policy selects it.
        reached(&free.connect(api, 80));
        reached(&free.connect(other, 80));
    }
    // Nor the node.
    reached(
        &node
            .container("system.slice/kubelet.service")
            .connect(other, 80),
    );
    let explained = agent.explain("other.example.com:80", Some("selection/one-0"));
    assert_eq!(explained.verdict, "denied", "{explained:?}");
    let flows = agent.flows();
    let denied = flows
        .iter()
        .find(|flow| flow.verdict == "denied" && flow.scope == "selection/one-0");
    assert!(denied.is_some(), "{flows:?}");
    // The developer is told at the pod, the author at the policy.
    let events = || node.kubectl(&["describe", "pod", "one-0"]);
    assert!(
        eventually(SOON, || events().contains("EgressDenied")),
        "{}",
        events()
    );
    let policy = || json(&node.kubectl(&["get", "egresspolicy", "payments", "-o", "json"]));
    let accepted = || policy()["status"]["conditions"][0]["status"] == "True";
    assert!(eventually(SOON, accepted), "{}", policy());
    // Of one pod, and of all in a namespace.
    let workloads = |pods: &[&str]| -> Vec<Value> {
        let arguments = [&["counters"], pods].concat();
        agent.try_ask(&arguments).unwrap()
    };
    let of_one = workloads(&["--namespace", "selection", "--pod", "one-0"]);
    assert_eq!(of_one.len(), 1, "{of_one:?}");
    assert!(of_one[0]["allowed"].as_u64() >= Some(2), "{of_one:?}");
    assert!(of_one[0]["denied"].as_u64() >= Some(1), "{of_one:?}");
    assert!(workloads(&["--namespace", "selection"]).len() >= 8);
    assert!(workloads(&["--namespace", "nobody"]).is_empty());
    let learned: Vec<Value> = agent
        .try_ask(&["learned", "--namespace", "selection", "--pod", "one-0"])
        .unwrap();
    assert!(!learned.is_empty());
}

#[test]
fn policies_add_up_and_what_one_denies_nobody_allows() {
    let Some(cluster) = cluster().filter(|_| ready()) else {
        return;
    };
    let node = Node::new(&cluster, "union");
    let pool = json!({ "matchLabels": { "pool": "union" } });
    let web = json!({ "matchLabels": { "app": "web" } });
    node.policy(
        "web",
        &json!({ "podSelector": web, "allow": [{ "names": ["api.example.com"] }] }),
    );
    node.policy(
        "all",
        &json!({ "allow": [{ "names": ["other.example.com"] }] }),
    );
    node.cluster_policy("union-base", &json!({ "nodeSelector": pool, "namespaceSelector": pool, "deny": [{ "cidrs": [format!("{}/32", address("short.example.com"))] }] }));
    node.cluster_policy("union-node", &json!({ "subject": "node", "nodeSelector": pool, "allow": [{ "names": ["short.example.com"] }] }));
    let agent = node.agent();
    let both = node.container(&paths(&node.pod("both", "web"))[0]);
    let one = node.container(&paths(&node.pod("one", "batch"))[2]);
    known(&agent, "union/both");
    known(&agent, "union/one");
    for pod in [&both, &one] {
        pod.resolve("api.example.com", false);
        pod.resolve("other.example.com", false);
        reached(&pod.connect(address("other.example.com"), 80));
        refused(&pod.connect(address("short.example.com"), 80));
    }
    reached(&both.connect(address("api.example.com"), 80));
    refused(&one.connect(address("api.example.com"), 80));
    // A policy of its own for the node.
    let kubelet = node.container("system.slice/kubelet.service");
    kubelet.resolve("short.example.com", false);
    reached(&kubelet.connect(address("short.example.com"), 80));
    refused(&kubelet.connect(address("other.example.com"), 80));
}

#[test]
fn a_pod_whose_policies_are_not_known_has_the_lifeline_alone() {
    let Some(cluster) = cluster().filter(|_| ready()) else {
        return;
    };
    let node = Node::new(&cluster, "pending");
    let agent = node.agent();
    // The API server has never heard of it.
    let uid = "0f6c1d2e-3a4b-4c5d-8e6f-708192a3b4c5";
    let stranger = node.container(&paths(uid)[0]);
    assert!(eventually(SOON, || agent
        .status()
        .kubernetes
        .unwrap()
        .pending
        == 1));
    assert!(
        !stranger.resolve("api.example.com", false).is_empty(),
        "DNS is reachable"
    );
    refused(&stranger.connect(address("api.example.com"), 80));
    assert!(
        scopes(&agent).contains(&"pending".to_owned()),
        "{:?}",
        scopes(&agent)
    );
    // A pod that is known at once is what it should be from its first packet on.
    let free = node.container(&paths(&node.pod("free", "any"))[1]);
    known(&agent, "pending/free");
    reached(&free.connect(address("api.example.com"), 80));
    refused(&stranger.connect(address("api.example.com"), 80));
}

#[test]
fn labels_and_policies_change_for_those_that_they_are_about() {
    let Some(cluster) = cluster().filter(|_| ready()) else {
        return;
    };
    let node = Node::new(&cluster, "changes");
    let allow = |name: &str| json!({ "podSelector": { "matchLabels": { "app": "web" } }, "allow": [{ "names": [name] }] });
    node.policy("web", &allow("api.example.com"));
    node.policy("batch", &json!({ "podSelector": { "matchLabels": { "app": "batch" } }, "allow": [{ "names": ["api.example.com"] }] }));
    let agent = node.agent();
    let (api, other) = (address("api.example.com"), address("other.example.com"));
    let web = node.container(&paths(&node.pod("web", "web"))[0]);
    let batch = node.container(&paths(&node.pod("batch", "batch"))[0]);
    known(&agent, "changes/web");
    known(&agent, "changes/batch");
    for pod in [&web, &batch] {
        pod.resolve("api.example.com", false);
    }
    let (mut cut, mut kept) = (web.hold(api, 80), batch.hold(api, 80));
    assert!(cut.is_alive() && kept.is_alive());
    // An edit: the flow that rests on what is gone is cut, that of another pod is not.
    node.policy("web", &allow("other.example.com"));
    web.resolve("other.example.com", false);
    assert!(
        eventually(SOON, || web.connect(other, 80).ok),
        "{}",
        agent.log()
    );
    refused(&web.connect(api, 80));
    assert!(cut.breaks(SOON), "{:?}", cut.lines());
    assert!(kept.is_alive(), "{:?}", kept.lines());
    reached(&batch.connect(api, 80));
    // A label: from one policy to the other. What it had resolved is known to the new one.
    node.kubectl(&["label", "pod", "web", "app=batch", "--overwrite"]);
    assert!(eventually(SOON, || !web.connect(other, 80).ok));
    web.resolve("api.example.com", false);
    reached(&web.connect(api, 80));
    // A label that nothing selects, and a policy that is gone: nothing is restricted.
    node.kubectl(&["label", "pod", "web", "app=free", "--overwrite"]);
    assert!(eventually(SOON, || web.connect(other, 80).ok));
    refused(&batch.connect(other, 80));
    node.kubectl(&["delete", "egresspolicy", "batch"]);
    assert!(eventually(SOON, || batch.connect(other, 80).ok));
    assert!(kept.is_alive(), "{:?}", kept.lines());
}

#[test]
fn a_pod_that_is_gone_frees_what_it_had_and_one_whose_object_is_gone_stays_as_it_was() {
    let Some(cluster) = cluster().filter(|_| ready()) else {
        return;
    };
    let node = Node::new(&cluster, "gone");
    node.policy(
        "all",
        &json!({ "allow": [{ "names": ["api.example.com"] }] }),
    );
    let mut agent = node.agent();
    let api = address("api.example.com");
    let path = |uid: &str| paths(uid)[0].rsplit_once('/').unwrap().0.to_owned();
    let first = path(&node.pod("first", "web"));
    let pod = node.container(&first);
    known(&agent, "gone/first");
    pod.resolve("api.example.com", false);
    reached(&pod.connect(api, 80));
    assert!(
        agent
            .learned()
            .iter()
            .any(|entry| entry.scope == "gone/first")
    );
    // Deleted by force: its processes are still there, and judged as before, also by the next agent.
    node.kubectl(&["delete", "pod", "first", "--force", "--grace-period=0"]);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(1));
        reached(&pod.connect(api, 80));
        refused(&pod.connect(address("other.example.com"), 80));
        agent.kill();
        agent.start_again();
    }
    let cgroup = node.world.judged().join(&first);
    drop(pod);
    assert!(eventually(SOON, || std::fs::remove_dir(&cgroup).is_ok()
        || !cgroup.exists()));
    assert!(eventually(SOON, || agent.status().kubernetes.unwrap().pods == 0));
    // Its addresses and counters go with the next sweep.
    let status = || -> Value { agent.try_ask(&["status"]).unwrap() };
    let learned = || {
        let maps = status()["maps"].as_array().unwrap().clone();
        let learned = maps.iter().find(|map| map["name"] == "LEARNED").unwrap();
        learned["entries"].as_u64().unwrap()
    };
    assert!(
        eventually(Duration::from_secs(20), || learned() == 0),
        "{}",
        learned()
    );
}

#[test]
fn without_the_api_server_what_was_known_goes_on() {
    if !ready() || !egress_tests::kubernetes::ready() {
        return;
    }
    let mut cluster = Cluster::start().unwrap();
    installed::install(&cluster).unwrap();
    let node = Node::new(&cluster, "away");
    node.policy("all", &json!({ "podSelector": { "matchLabels": { "app": "web" } }, "allow": [{ "names": ["api.example.com"] }] }));
    let agent = node.agent();
    let web = node.container(&paths(&node.pod("web", "web"))[0]);
    let free = node.container(&paths(&node.pod("free", "free"))[0]);
    known(&agent, "away/web");
    known(&agent, "away/free");
    let (api, other) = (address("api.example.com"), address("other.example.com"));
    web.resolve("api.example.com", false);
    reached(&web.connect(api, 80));
    // What is known is on the disk within a moment.
    std::thread::sleep(Duration::from_secs(2));
    // The node's guards go last.
    let _world = node.world;
    let (mut agent, web, free) = (agent, web, free);
    let check = || {
        reached(&web.connect(api, 80));
        refused(&web.connect(other, 80));
        reached(&free.connect(other, 80));
    };
    cluster.kill_server();
    check();
    agent.kill();
    check();
    agent.start_again();
    let status = agent.status().kubernetes.unwrap();
    assert!(status.is_from_disk && !status.is_synced, "{status:?}");
    assert_eq!((status.policies, status.pods, status.pending), (1, 2, 0));
    check();
    assert!(eventually(SOON, || agent
        .status()
        .kubernetes
        .unwrap()
        .error
        .is_some()));
}
