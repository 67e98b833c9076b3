//! Nodes while the API server is away, after it forgot old versions, and with policies that became wrong.

use std::{
    thread,
    time::{Duration, Instant},
};

use egress_tests::{
    Agent, Cluster, Gate, Workload, eventually,
    expect::{reached, refused},
    kubernetes, ready,
};
use serde_json::{Value, json};

use crate::support::{
    installed::{self, cluster, json},
    node::{Node, SOON, address, known, paths},
};

/// How long an agent may take to hear of a server that is back: it asks at least each half minute.
const BACK: Duration = Duration::from_mins(1);
/// How long the server is away.
const OUTAGE: Duration = Duration::from_mins(1);
/// The agent's copy of the cluster is on the disk within a moment.
const KEPT: Duration = Duration::from_secs(2);

fn allow(name: &str) -> Value {
    json!({ "podSelector": { "matchLabels": { "app": "web" } }, "allow": [{ "names": [name] }] })
}

/// Waits until an agent hears the server again.
#[track_caller]
fn back(agent: &Agent) {
    let hears = || {
        let status = agent.status().kubernetes.unwrap();
        status.is_synced && status.error.is_none()
    };
    assert!(eventually(BACK, hears), "{:?}", agent.status().kubernetes);
}

#[test]
fn a_minute_without_the_api_server_opens_and_closes_nothing() {
    if !ready() || !kubernetes::ready() {
        return;
    }
    let cluster = Cluster::start().unwrap();
    installed::install(&cluster).unwrap();
    let node = Node::new(&cluster, "minute");
    node.policy("web", &allow("api.example.com"));
    let gate = Gate::to(cluster.port()).unwrap();
    let kubeconfig = cluster.kubeconfig_with(gate.port(), None).unwrap();
    let agent = node.agent_by(&kubeconfig).start();
    let web = node.container(&paths(&node.pod("web", "web"))[0]);
    let free = node.container(&paths(&node.pod("free", "free"))[0]);
    known(&agent, "minute/web");
    known(&agent, "minute/free");
    let (api, other) = (address("api.example.com"), address("other.example.com"));
    web.resolve("api.example.com", false);
    let mut held = web.hold(api, 80);

    // The agent does not learn the changes that the server still takes up.
    gate.shut();
    let begin = Instant::now();
    let late = node.pod("late", "web");
    node.policy("web", &allow("other.example.com"));
    node.kubectl(&["label", "pod", "free", "app=web", "--overwrite"]);
    cluster.kill_server();
    let late = node.container(&paths(&late)[0]);
    let pending = || agent.status().kubernetes.unwrap().pending;
    assert!(eventually(SOON, || pending() == 1));
    let mut rounds = 0;
    while begin.elapsed() < OUTAGE {
        reached(&web.connect(api, 80));
        refused(&web.connect(other, 80));
        reached(&free.connect(other, 80));
        assert!(held.is_alive(), "{:?}", held.lines());
        assert!(!late.resolve("api.example.com", false).is_empty());
        refused(&late.connect(api, 80));
        refused(&late.connect(other, 80));
        rounds += 1;
        thread::sleep(Duration::from_secs(3));
    }
    let status = agent.status();
    assert!(status.enforcing, "{status:?}");
    let known_of = status.kubernetes.unwrap();
    let age_s = known_of.age_s.unwrap();
    assert!(age_s + 1 >= OUTAGE.as_secs(), "{known_of:?}");
    assert_eq!(
        (known_of.policies, known_of.pods, known_of.pending),
        (1, 3, 1)
    );
    assert!(known_of.error.is_some());
    let shown = agent.cli(&["status"]).unwrap();
    assert_eq!(shown.code(), Some(0), "{}", shown.shown());
    let line = shown
        .stdout
        .lines()
        .find(|line| line.contains("node minute"));
    let line = line.unwrap_or(&shown.stdout);
    assert!(
        line.contains(" old; the API server does not answer: "),
        "{line}"
    );

    let metrics = || agent.metrics().unwrap();
    let is_told = |line: &str| metrics().iter().any(|told| told == line);
    for line in [
        "egress_kubernetes_synced 1",
        "egress_kubernetes_complete 1",
        "egress_kubernetes_watch_connected{kind=\"pods\"} 0",
        "egress_kubernetes_watch_connected{kind=\"egresspolicies\"} 0",
        "egress_kubernetes_pods{state=\"known\"} 2",
        "egress_kubernetes_pods{state=\"pending\"} 1",
        "egress_kubernetes_policies{state=\"accepted\"} 1",
        "egress_kubernetes_policies{state=\"refused\"} 0",
    ] {
        assert!(is_told(line), "{line}: {:#?}", metrics());
    }

    // Afterwards it is as the server says.
    cluster.start_server(&[]).unwrap();
    gate.open();
    let begin = Instant::now();
    back(&agent);
    println!(
        "{rounds} rounds in {OUTAGE:?}, {age_s} s old; all is heard {:?} after the server was back",
        begin.elapsed()
    );
    known(&agent, "minute/late");
    assert_eq!(pending(), 0);
    assert!(is_told(
        "egress_kubernetes_watch_connected{kind=\"pods\"} 1"
    ));
    assert!(is_told("egress_kubernetes_pods{state=\"known\"} 3"));
    for pod in [&web, &free, &late] {
        assert!(eventually(SOON, || {
            pod.resolve("other.example.com", false);
            pod.connect(other, 80).ok
        }));
        refused(&pod.connect(api, 80));
    }
    assert!(held.breaks(SOON), "{:?}", held.lines());
}

#[test]
fn without_the_api_server_what_was_known_goes_on() {
    if !ready() || !kubernetes::ready() {
        return;
    }
    let cluster = Cluster::start().unwrap();
    installed::install(&cluster).unwrap();
    let node = Node::new(&cluster, "away");
    node.policy("all", &json!({ "podSelector": { "matchLabels": { "app": "web" } }, "allow": [{ "names": ["api.example.com"] }] }));
    let mut agent = node.agent();
    let of_web = paths(&node.pod("web", "web"));
    let web = node.container(&of_web[0]);
    let free = node.container(&paths(&node.pod("free", "free"))[0]);
    known(&agent, "away/web");
    known(&agent, "away/free");
    let (api, other) = (address("api.example.com"), address("other.example.com"));
    web.resolve("api.example.com", false);
    reached(&web.connect(api, 80));
    thread::sleep(KEPT);
    let check = |web: &Workload| {
        reached(&web.connect(api, 80));
        refused(&web.connect(other, 80));
        reached(&free.connect(other, 80));
    };
    cluster.kill_server();
    check(&web);
    agent.kill();
    check(&web);
    agent.start_again();
    let status = agent.status().kubernetes.unwrap();
    assert!(status.is_from_disk && !status.is_synced, "{status:?}");
    assert_eq!((status.policies, status.pods), (1, 2));
    // The kernel's policies go on until the agent has found which cgroup is whose.
    check(&web);
    assert!(eventually(SOON, || agent
        .status()
        .kubernetes
        .is_some_and(|status| status.pending == 0)));
    check(&web);
    assert!(eventually(SOON, || agent
        .status()
        .kubernetes
        .unwrap()
        .error
        .is_some()));

    // As after a reboot: the kernel knows nothing, and the cgroups are others.
    agent.stop();
    let output = agent.unload().unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    reached(&web.connect(other, 80));
    agent.start_again();
    let web = node.container(&of_web[1]);
    known(&agent, "away/web");
    refused(&web.connect(api, 80));
    web.resolve("api.example.com", false);
    check(&web);
}

#[test]
fn what_happened_before_a_compaction_is_listed_anew() {
    if !ready() || !kubernetes::ready() {
        return;
    }
    let cluster = Cluster::start().unwrap();
    installed::install(&cluster).unwrap();
    // Without its cache the server has what etcd has, and nothing older.
    cluster.kill_server();
    cluster.start_server(&["--watch-cache=false"]).unwrap();
    let node = Node::new(&cluster, "compaction");
    node.policy("web", &allow("api.example.com"));
    let gate = Gate::to(cluster.port()).unwrap();
    let kubeconfig = cluster.kubeconfig_with(gate.port(), None).unwrap();
    let [log, filter] = ["--log", "info,egress_agent::kube=debug"];
    let agent = node.agent_by(&kubeconfig).arg(log).arg(filter).start();
    let web = node.container(&paths(&node.pod("web", "web"))[0]);
    known(&agent, "compaction/web");
    let (api, other) = (address("api.example.com"), address("other.example.com"));
    web.resolve("api.example.com", false);
    reached(&web.connect(api, 80));
    let newest = || {
        let pods = json(
            &cluster
                .get(["get", "--raw", "/api/v1/pods?limit=1"])
                .unwrap(),
        );
        pods["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let watched = newest();

    gate.shut();
    let late = node.pod("late", "web");
    node.policy("web", &allow("other.example.com"));
    node.policy(
        "new",
        &json!({ "podSelector": { "matchLabels": { "app": "new" } } }),
    );
    cluster.compact(&newest()).unwrap();
    // The server answers a watch from that version with 410 Gone.
    let path = format!("/api/v1/pods?watch=1&timeoutSeconds=1&resourceVersion={watched}");
    let told = cluster.kubectl(["get", "--raw", &path]).unwrap().shown();
    assert!(told.contains("\"code\":410"), "{told}");
    reached(&web.connect(api, 80));
    assert!(!agent.log().contains("too old"), "{}", agent.log());

    gate.open();
    back(&agent);
    let late = node.container(&paths(&late)[0]);
    known(&agent, "compaction/late");
    for pod in [&web, &late] {
        pod.resolve("other.example.com", false);
        assert!(eventually(SOON, || pod.connect(other, 80).ok));
        refused(&pod.connect(api, 80));
    }
    assert_eq!(agent.status().kubernetes.unwrap().policies, 2);
    let log = agent.log();
    for kind in ["pods", "egresspolicies"] {
        let is_told = |line: &str| {
            line.contains(&format!("kind={kind} ")) && line.contains("provided watch is too old")
        };
        assert!(log.lines().any(is_told), "{kind}\n{log}");
    }
}

#[test]
fn a_policy_that_became_wrong_stays_as_it_was_also_for_the_next_agent() {
    const NODE: &str = "wrong";
    let Some(cluster) = cluster().filter(|_| ready()) else {
        return;
    };
    let node = Node::new(&cluster, NODE);
    let of_node = |rule: Value| json!({ "subject": "node", "nodeSelector": { "matchLabels": { "pool": NODE } }, "allow": [rule] });
    // The schema cannot show that it is wrong.
    let host_bits = || json!({ "cidrs": ["10.78.0.1/16"] });
    node.policy("web", &allow("api.example.com"));
    node.cluster_policy(NODE, &of_node(json!({ "names": ["other.example.com"] })));
    let mut agent = node.agent();
    let (api, other) = (address("api.example.com"), address("other.example.com"));
    let web = node.container(&paths(&node.pod("web", "web"))[0]);
    let kubelet = node.container("system.slice/kubelet.service");
    known(&agent, "wrong/web");
    for workload in [&web, &kubelet] {
        workload.resolve("api.example.com", false);
        workload.resolve("other.example.com", false);
    }
    let check = || {
        reached(&web.connect(api, 80));
        refused(&web.connect(other, 80));
        reached(&kubelet.connect(other, 80));
        refused(&kubelet.connect(api, 80));
    };
    check();
    let mut wrong = allow("api.example.com");
    wrong["allow"] = json!([host_bits()]);
    node.policy("web", &wrong);
    node.cluster_policy(NODE, &of_node(host_bits()));
    let is_said = |agent: &Agent| {
        let alarms = agent.status().alarms;
        ["egresspolicy/wrong/web", "clusteregresspolicy/wrong"]
            .iter()
            .all(|name| {
                alarms
                    .iter()
                    .any(|alarm| alarm.contains(name) && alarm.contains("10.78.0.1/16"))
            })
    };
    assert!(
        eventually(SOON, || is_said(&agent)),
        "{:?}",
        agent.status().alarms
    );
    check();
    thread::sleep(KEPT);

    agent.kill();
    agent.start_again();
    check();
    back(&agent);
    assert!(
        eventually(SOON, || is_said(&agent)),
        "{:?}",
        agent.status().alarms
    );
    check();
    // Also a pod that is new has what was right.
    let late = node.container(&paths(&node.pod("late", "web"))[0]);
    known(&agent, "wrong/late");
    late.resolve("api.example.com", false);
    reached(&late.connect(api, 80));
    refused(&late.connect(other, 80));

    // And what is right again is in force.
    node.policy("web", &allow("other.example.com"));
    late.resolve("other.example.com", false);
    assert!(eventually(SOON, || late.connect(other, 80).ok));
    refused(&late.connect(api, 80));
}
