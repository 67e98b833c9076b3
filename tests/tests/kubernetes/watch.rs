//! An agent's watches of a real API server, also when that goes away.

use std::{fs, path::Path, sync::Arc, time::Instant};

use egress_tests::{
    Cluster, Gate,
    kubernetes::{self, Shared},
};
use serde_json::{Value, json};

use crate::support::{
    feed::{Fed, shown},
    installed::{cluster, install, json, write},
};

/// Hash of a static pod's manifest.
const HASH: &str = "81cdabfc720501d9e81b425b15921b4d";

fn pod(namespace: &str, name: &str, node: &str, label: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": { "app": label } },
        "spec": { "nodeName": node, "containers": [{ "name": "main", "image": "none" }] },
    })
}

fn node(name: &str, zone: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": { "zone": zone } } })
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    let (kind, metadata) = match namespace {
        "" => ("ClusterEgressPolicy", json!({ "name": name })),
        _ => (
            "EgressPolicy",
            json!({ "name": name, "namespace": namespace }),
        ),
    };
    json!({ "apiVersion": "egress.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec })
}

/// Creates objects, or changes them.
fn apply(cluster: &Cluster, name: &str, items: &[Value]) {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    let file = write(cluster, name, &list.to_string());
    cluster
        .get(["apply", "--server-side", "--force-conflicts", "-f", &file])
        .unwrap();
}

fn run(cluster: &Cluster, arguments: &str) -> String {
    cluster.get(arguments.split_whitespace()).unwrap()
}

fn delete_pod(cluster: &Cluster, namespace: &str, name: &str) {
    run(
        cluster,
        &format!("delete pod {name} -n {namespace} --force --grace-period=0"),
    );
}

#[test]
fn the_view_is_what_the_server_has_of_this_node_and_follows_its_changes() {
    let Some(cluster) = cluster() else { return };
    let state = tempfile::tempdir().unwrap();
    let mirror = {
        let mut pod = pod("kube-system", "proxy-n1", "n1", "proxy");
        let annotations =
            json!({ "kubernetes.io/config.mirror": HASH, "kubernetes.io/config.hash": HASH });
        pod["metadata"]["annotations"] = annotations;
        pod["metadata"]["ownerReferences"] =
            json!([{ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "1" }]);
        pod
    };
    let web = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "allow": [{ "names": ["api.example.com"] }] });
    let east = json!({ "nodeSelector": { "matchLabels": { "zone": "east" } },
        "namespaceSelector": { "matchLabels": { "kind": "shop" } } });
    let of_node = json!({ "subject": "node", "mode": "audit" });
    let dns = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "kube-dns", "namespace": "kube-system" },
        "spec": { "clusterIP": "10.96.0.10", "ports": [{ "name": "dns", "port": 53, "protocol": "UDP" }] },
    });
    let slice = |name: &str, service: &str, address: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1beta1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": "kube-system",
                "labels": { "kubernetes.io/service-name": service, "k8s-app": "kube-dns" },
            },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [address] }],
            "ports": [{ "name": "dns", "port": 5353, "protocol": "UDP" }, { "name": "metrics", "port": 9153 }],
        })
    };
    let other_service = {
        let mut service = dns.clone();
        service["metadata"]["name"] = json!("other");
        service["spec"]["clusterIP"] = json!("10.96.0.11");
        service
    };
    apply(
        &cluster,
        "follows.json",
        &[
            node("n1", "east"),
            node("n2", "west"),
            pod("shop", "web", "n1", "web"),
            pod("shop", "web-2", "n2", "web"),
            pod("other", "web", "n1", "web"),
            mirror,
            policy("shop", "web", &web),
            policy("", "east", &east),
            policy("", "nodes", &of_node),
            dns,
            other_service,
            slice("kube-dns-1", "kube-dns", "10.244.0.7"),
            slice("other-1", "other", "10.244.0.66"),
        ],
    );
    let fed = Fed::start(&cluster.kubeconfig(), "n1", state.path());
    assert!(!fed.now().freshness.is_synced && !fed.now().freshness.is_from_disk);
    let feed = fed.until_synced();
    assert_eq!(
        shown(&feed.view),
        "kube-system/proxy-n1 app=proxy\nother/web app=web\nshop/web app=web [shop/web]\nnode [nodes]"
    );
    assert!(feed.freshness.heard_at.is_some() && !feed.freshness.is_from_disk);
    assert_eq!(
        feed.view.dns_service,
        ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]
    );
    let behind = |feed: &egress_agent::kube::Feed| format!("{:?}", feed.view.dns_endpoints);
    assert_eq!(behind(&feed), "[10.244.0.7:5353]");
    // The API server's own, which it makes itself.
    let servers = run(
        &cluster,
        "get endpoints kubernetes -o jsonpath={.subsets[0].addresses[0].ip}",
    );
    let told: Vec<String> = feed
        .view
        .api_servers
        .iter()
        .map(|server| server.ip().to_string())
        .collect();
    assert_eq!(told, [servers]);
    // DNS moves: within a second it is known.
    let moved = slice("kube-dns-1", "kube-dns", "10.244.0.8");
    apply(&cluster, "moved.json", &[moved]);
    let began = std::time::Instant::now();
    fed.until("the new endpoint", |feed| {
        behind(feed) == "[10.244.0.8:5353]"
    });
    assert!(began.elapsed() < std::time::Duration::from_secs(1));
    let uid = run(&cluster, "get pod web -n shop -o jsonpath={.metadata.uid}");
    for (in_cgroup, pod) in &feed.view.pods {
        let is_static = pod.namespace == "kube-system";
        assert_eq!(is_static, in_cgroup.as_str() == HASH, "{pod:?}");
        assert_eq!(is_static, in_cgroup.as_str() != pod.uid, "{pod:?}");
        assert_eq!(is_static, pod.events_uid() == HASH, "{pod:?}");
        assert_eq!((pod.namespace == "shop"), (pod.uid == uid));
    }
    let object = &feed.view.policies[&"shop/web".parse().unwrap()];
    assert_eq!((object.generation, object.spec.allow.len()), (1, 1));

    // Labels of the namespace, of a pod, of the node.
    run(&cluster, "label namespace shop kind=shop");
    let rest = |shop: &str| {
        format!("kube-system/proxy-n1 app=proxy\nother/web app=web\n{shop}\nnode [nodes]")
    };
    fed.until_shown(&rest("shop/web app=web [east] [shop/web]"));
    run(&cluster, "label pod web -n shop --overwrite app=db");
    fed.until_shown(&rest("shop/web app=db [east]"));
    run(&cluster, "label node n1 --overwrite zone=west");
    fed.until_shown(&rest("shop/web app=db"));
    // A policy is made, changed, deleted.
    apply(&cluster, "db.json", &[policy("shop", "db", &json!({}))]);
    let feed = fed.until_shown(&rest("shop/web app=db [shop/db]"));
    let before = Arc::clone(&feed.view.policies[&"shop/web".parse().unwrap()]);
    let of_web = json!({ "podSelector": { "matchLabels": { "app": "web" } } });
    apply(&cluster, "db.json", &[policy("shop", "db", &of_web)]);
    let feed = fed.until_shown(&rest("shop/web app=db"));
    assert_eq!(
        feed.view.policies[&"shop/db".parse().unwrap()].generation,
        2
    );
    // A policy that did not change is the same object still.
    assert!(Arc::ptr_eq(
        &before,
        &feed.view.policies[&"shop/web".parse().unwrap()]
    ));
    run(&cluster, "delete clusteregresspolicy nodes");
    let shop = "kube-system/proxy-n1 app=proxy\nother/web app=web\nshop/web app=db\nnode";
    let feed = fed.until_shown(shop);

    // Changes that do not concern this node, or no selector, change nothing; then a pod that does.
    run(&cluster, "label pod web-2 -n shop --overwrite app=db");
    run(&cluster, "annotate pod web -n shop note=nothing");
    run(&cluster, "annotate egp web -n shop note=nothing");
    let status = json!({ "status": { "rules": 1 } }).to_string();
    cluster
        .get([
            "patch",
            "egp",
            "web",
            "-n",
            "shop",
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ])
        .unwrap();
    let views = fed.seen().len();
    apply(&cluster, "new.json", &[pod("shop", "new", "n1", "new")]);
    fed.until_shown(&shop.replace("shop/web", "shop/new app=new\nshop/web"));
    let seen = fed.seen();
    assert!(
        Arc::ptr_eq(&seen[views - 1], &feed.view),
        "published for nothing"
    );
    delete_pod(&cluster, "shop", "new");
    fed.until_shown(shop);
    // A pod of the same name is another pod.
    delete_pod(&cluster, "shop", "web");
    apply(&cluster, "again.json", &[pod("shop", "web", "n1", "db")]);
    let feed = fed.until("the new pod", |feed| {
        let is_new = |pod: &Arc<_>| {
            let pod: &egress_agent::kube::Pod = pod;
            pod.name == "web" && pod.namespace == "shop" && pod.uid != uid
        };
        feed.view.pods.len() == 3 && feed.view.pods.values().any(is_new)
    });

    // The next agent begins with what this one knew.
    fed.stop();
    let none = cluster.kubeconfig_with(1, None).unwrap();
    let later = Fed::start(&none, "n1", state.path());
    let from_disk = later.now();
    assert_eq!(from_disk.view, feed.view);
    assert!(from_disk.freshness.is_from_disk && !from_disk.freshness.is_synced);
    assert!(from_disk.freshness.heard_at >= feed.freshness.heard_at);
}

/// A view of a cluster with one pod, put on the disk.
fn copy_of(cluster: &Shared, name: &str, state: &Path) -> String {
    apply(
        cluster,
        &format!("{name}.json"),
        &[pod("other", name, name, "copied")],
    );
    let fed = Fed::start(&cluster.kubeconfig(), name, state);
    fed.until_synced();
    fed.stop();
    let file = state.join("cluster.json");
    fs::read_to_string(file).unwrap()
}

#[test]
fn the_copy_on_the_disk_stands_until_the_server_answers_and_a_broken_one_is_said() {
    let Some(cluster) = cluster() else { return };
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("cluster.json");
    let copy = copy_of(&cluster, "kept", state.path());
    let heard_at = json(&copy)["heard_at"].as_str().unwrap().to_owned();

    // No server: the copy, how old it is, and why.
    let gate = Gate::to(cluster.port()).unwrap();
    gate.shut();
    let kubeconfig = cluster.kubeconfig_with(gate.port(), None).unwrap();
    let fed = Fed::start(&kubeconfig, "kept", state.path());
    let feed = fed.now();
    assert!(feed.freshness.is_from_disk && shown(&feed.view).starts_with("other/kept app=copied"));
    let feed = fed.until("an error", |feed| feed.freshness.error.is_some());
    assert!(feed.freshness.is_from_disk && !feed.freshness.is_synced);
    assert_eq!(feed.freshness.heard_at.unwrap().to_string(), heard_at);
    assert!(shown(&feed.view).starts_with("other/kept app=copied"));
    // Changes meanwhile are known when it answers, without a moment in which nothing is.
    run(&cluster, "label pod kept -n other --overwrite app=changed");
    gate.open();
    let feed = fed.until_synced();
    assert!(shown(&feed.view).starts_with("other/kept app=changed"));
    assert!(
        !feed.freshness.is_from_disk && feed.freshness.heard_at.unwrap().to_string() > heard_at
    );
    assert!(fed.seen().iter().all(|view| !view.pods.is_empty()));
    fed.stop();

    // The agent reports an unusable copy, and sets it aside; the server's answer repairs it.
    let half = &copy[..copy.len() / 2];
    for (broken, node, said) in [
        (half, "kept", "cluster.json: is broken"),
        (
            copy.as_str(),
            "another",
            "is of the node kept, not of another",
        ),
    ] {
        fs::write(&file, broken).unwrap();
        gate.shut();
        let fed = Fed::start(&kubeconfig, node, state.path());
        let feed = fed.now();
        let error = feed.freshness.error.unwrap();
        assert!(error.contains(said), "{error}");
        assert!(!feed.freshness.is_from_disk && feed.view.pods.is_empty());
        gate.open();
        fed.until_synced();
        fed.stop();
        assert_eq!(
            json(&fs::read_to_string(&file).unwrap())["node_name"],
            json!(node)
        );
    }
}

#[test]
fn outages_restarts_and_lost_versions_change_nothing_but_what_happened_meanwhile() {
    if !kubernetes::ready() {
        return;
    }
    let cluster = Cluster::start().unwrap();
    let state = tempfile::tempdir().unwrap();
    let gate = Gate::to(cluster.port()).unwrap();
    let kubeconfig = cluster.kubeconfig_with(gate.port(), None).unwrap();
    run(&cluster, "create namespace work");
    apply(
        &cluster,
        "first.json",
        &[pod("work", "a", "n1", "a"), pod("work", "b", "n1", "b")],
    );

    // Without the definitions it says what to do, and goes on as soon as they are there.
    let fed = Fed::start(&kubeconfig, "n1", state.path());
    let feed = fed.until("an error", |feed| feed.freshness.error.is_some());
    let error = feed.freshness.error.unwrap();
    assert!(
        error.contains("egresspolicies") && error.contains("deploy/crds"),
        "{error}"
    );
    assert!(!feed.freshness.is_synced && feed.view.pods.is_empty());
    install(&cluster).unwrap();
    apply(
        &cluster,
        "policies.json",
        &[
            policy("work", "a", &json!({})),
            policy("", "all", &json!({})),
        ],
    );
    fed.until_synced();
    let both = "work/a app=a [all] [work/a]\nwork/b app=b [all] [work/a]\nnode";
    let before = fed.until_shown(both);

    // Nobody answers: the view stands, and nobody is asked too often.
    gate.shut();
    fed.until("an error", |feed| feed.freshness.error.is_some());
    let pods = json(&run(&cluster, "get --raw /api/v1/pods"));
    let version = pods["metadata"]["resourceVersion"].as_str().unwrap();
    run(&cluster, "delete egp a -n work");
    run(&cluster, "label pod a -n work --overwrite app=c");
    delete_pod(&cluster, "work", "b");
    let feed = fed.now();
    assert!(Arc::ptr_eq(&feed.view, &before.view) && feed.freshness.is_synced);
    assert!(feed.freshness.heard_at.is_some());
    let refused = gate.refused();
    // All watches share one.
    assert!((1..=50).contains(&refused), "{refused} connections");

    // The server comes back without the versions of before.
    cluster.kill_server();
    cluster.start_server(&[]).unwrap();
    let path = format!("/api/v1/pods?watch=1&timeoutSeconds=1&resourceVersion={version}");
    let told = cluster.kubectl(["get", "--raw", &path]).unwrap().shown();
    assert!(told.contains("too old resource version"), "{told}");
    gate.open();
    fed.until_shown("work/a app=c [all]\nnode");
    fed.until_synced();
    // Of the two pods one was never lost, and no policy of the cluster.
    for view in fed.seen() {
        assert!(view.pods.values().any(|pod| pod.name == "a"));
        assert_eq!(view.policies_of_node().len(), 0);
    }
    let of_cluster = "all".parse().unwrap();
    let views = fed.seen();
    let first = views.iter().position(|view| shown(view) == both).unwrap();
    assert!(
        views[first..]
            .iter()
            .all(|view| view.policies.contains_key(&of_cluster))
    );

    // A restart that the agent sees.
    cluster.kill_server();
    fed.until("an error", |feed| feed.freshness.error.is_some());
    cluster.start_server(&[]).unwrap();
    let begin = Instant::now();
    fed.until_synced();
    eprintln!("synced {:?} after the server was ready", begin.elapsed());
    run(&cluster, "label pod a -n work --overwrite app=d");
    fed.until_shown("work/a app=d [all]\nnode");
    fed.stop();
}
