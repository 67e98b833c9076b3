//! Pods of a real API server as cgroups with real processes: the policies that select them, and their flows.
//!
//! The pods are objects on the server, bound to a node of the test's name; their cgroups have the paths that kubelet and
//! the runtimes give them.

use std::time::{Duration, Instant};

use egress_tests::{
    Agent, World, cgroup, eventually,
    expect::{reached, refused},
    ready,
    world::Role,
};
use serde_json::{Value, json};

use crate::support::{
    installed::{cluster, json},
    node::{Node, SOON, address, known, path, paths, scopes},
};

/// How long what a pod leaves may take to be swept.
const SWEPT: Duration = Duration::from_secs(20);

/// How much is in one of the kernel's maps.
fn entries(agent: &Agent, map: &str) -> u64 {
    let maps = agent.status().maps;
    maps.iter().find(|one| one.name == map).unwrap().entries
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
        // An address that one pod resolved opens nothing to another one under the same policy.
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
    // The developer finds it at the pod, the author at the policy.
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
    // An edit: the flow that a removed rule granted is cut, that of another pod is not.
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
    // A label: from one policy to the other. Addresses that it had resolved are known to the new one.
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
    let of_pod = |uid: &str| paths(uid)[0].rsplit_once('/').unwrap().0.to_owned();
    let first = of_pod(&node.pod("first", "web"));
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
    let learned = || entries(&agent, "LEARNED");
    assert!(eventually(SWEPT, || learned() == 0), "{}", learned());
}

#[test]
fn a_pod_in_the_nodes_network_has_its_own_policies_and_not_those_of_the_node() {
    let Some(cluster) = cluster().filter(|_| ready()) else {
        return;
    };
    let node = Node::of_world(&cluster, "host-network", World::builder().pod().build());
    let names = ["api.example.com", "other.example.com", "new1.example.com"];
    let allow = |app: &str, name: &str| json!({ "podSelector": { "matchLabels": { "app": app } }, "allow": [{ "names": [name] }] });
    node.policy("proxies", &allow("proxy", names[0]));
    node.policy("web", &allow("web", names[1]));
    node.cluster_policy("host-network", &json!({ "subject": "node", "nodeSelector": { "matchLabels": { "pool": "host-network" } }, "allow": [{ "names": [names[2]] }] }));
    let agent = node.agent();
    let proxy = node.pod_with("proxy", "proxy", json!({ "hostNetwork": true }));
    let proxy = node.container(&paths(&proxy)[0]);
    let web = paths(&node.pod("web", "web"));
    let web = node.world.workload_in(Role::Pod, &web[0]);
    let kubelet = node.container("system.slice/kubelet.service");
    known(&agent, "host-network/proxy");
    known(&agent, "host-network/web");
    for (workload, its) in [(&proxy, 0), (&web, 1), (&kubelet, 2)] {
        for (index, name) in names.iter().enumerate() {
            workload.resolve(name, false);
            let attempt = workload.connect(address(name), 80);
            if index == its {
                reached(&attempt);
            } else {
                refused(&attempt);
            }
        }
    }
}

#[test]
fn init_and_ephemeral_containers_and_cgroups_below_are_the_pods() {
    let Some(cluster) = cluster().filter(|_| ready()) else {
        return;
    };
    let node = Node::new(&cluster, "parts");
    node.policy(
        "all",
        &json!({ "allow": [{ "names": ["api.example.com"] }] }),
    );
    let agent = node.agent();
    let (api, other) = (address("api.example.com"), address("other.example.com"));
    let [init, main, ephemeral] = ["1", "2", "3"].map(|digit| digit.repeat(64));
    for form in [0, 2, 3] {
        let names = [format!("pod-{form}"), format!("twin-{form}")];
        let containers = json!({ "initContainers": [{ "name": "init", "image": "none" }] });
        let uid = node.pod_with(&names[0], "web", containers);
        let container =
            |id: &str, below: &str| node.container(&format!("{}{below}", path(&uid, form, id)));
        let first = container(&init, "");
        known(&agent, &format!("parts/{}", names[0]));
        first.resolve("api.example.com", false);
        reached(&first.connect(api, 80));
        refused(&first.connect(other, 80));
        // It ends before the main container begins, which has what it resolved.
        let main = container(&main, "");
        drop(first);
        cgroup::remove(&node.world.judged().join(path(&uid, form, &init)));
        // An ephemeral one joins, and a process of the main one has a cgroup of its own further below.
        let joined = container(&ephemeral, "");
        let below = container(&"2".repeat(64), "/init.scope/session");
        for part in [&main, &joined, &below] {
            assert!(
                eventually(SOON, || part.connect(api, 80).ok),
                "form {form}: {}",
                agent.log()
            );
            refused(&part.connect(other, 80));
        }
        // Another pod under the same policy did not resolve it.
        let twin = node.container(&path(&node.pod(&names[1], "web"), form, &init));
        known(&agent, &format!("parts/{}", names[1]));
        refused(&twin.connect(api, 80));
        twin.resolve("api.example.com", false);
        reached(&twin.connect(api, 80));
    }
    assert_eq!(agent.status().kubernetes.unwrap().pending, 0);
}

#[test]
fn jobs_of_a_second_have_their_policies_and_leave_nothing() {
    const JOBS: usize = 5;
    let Some(cluster) = cluster().filter(|_| ready()) else {
        return;
    };
    let node = Node::new(&cluster, "jobs");
    let of_job = json!({ "matchExpressions": [{ "key": "app", "operator": "Exists" }] });
    node.policy(
        "jobs",
        &json!({ "podSelector": of_job, "allow": [{ "names": ["api.example.com"] }] }),
    );
    let agent = node.agent();
    let (api, other) = (address("api.example.com"), address("other.example.com"));
    // So that the cgroup above all pods is known already, as on any node.
    let stays = node.container(&paths(&node.pod("stays", "stays"))[0]);
    known(&agent, "jobs/stays");
    let left = || ["WORKLOADS", "LEARNED"].map(|map| entries(&agent, map));
    let before = left();
    let mut lives = Vec::new();
    for index in 0..JOBS {
        let name = format!("job-{index}");
        let path = paths(&node.pod(&name, "job"))[0].clone();
        let begin = Instant::now();
        let job = node.container(&path);
        refused(&job.connect(other, 80));
        let goes = || {
            job.resolve("api.example.com", false);
            job.connect(api, 80).ok
        };
        assert!(eventually(SOON, goes), "{}", agent.log());
        refused(&job.connect(other, 80));
        drop(job);
        let of_pod = node.world.judged().join(path.rsplit_once('/').unwrap().0);
        cgroup::remove(&of_pod);
        lives.push(begin.elapsed());
        node.delete_pod(&name);
    }
    println!("{JOBS} jobs lived {lives:?}");
    assert!(
        lives.iter().all(|life| *life < Duration::from_secs(1)),
        "{lives:?}"
    );
    // One that is gone before the API server knew it.
    let uid = "0f6c1d2e-3a4b-4c5d-8e6f-708192a3b4c6";
    let stranger = node.container(&paths(uid)[0]);
    refused(&stranger.connect(other, 80));
    drop(stranger);
    cgroup::remove(
        &node
            .world
            .judged()
            .join(paths(uid)[0].rsplit_once('/').unwrap().0),
    );

    let is_alone = || {
        let status = agent.status().kubernetes.unwrap();
        (status.pods, status.pending) == (1, 0)
    };
    assert!(
        eventually(SOON, is_alone),
        "{:?}",
        agent.status().kubernetes
    );
    let names = scopes(&agent);
    assert!(
        names.iter().all(|name| !name.starts_with("jobs/job")),
        "{names:?}"
    );
    assert!(
        eventually(SWEPT, || left() == before),
        "{:?}, not {before:?}",
        left()
    );
    // The one that stays is judged as before.
    stays.resolve("api.example.com", false);
    reached(&stays.connect(api, 80));
    refused(&stays.connect(other, 80));
}
