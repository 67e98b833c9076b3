//! Agents' writes to a real API server, with their own account: the status of policies, and events at pods.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use egress_agent::{
    kube::{
        ClusterView, LeaseTimes, Pod, PolicyKey, PolicyObject, StatusSettings,
        events::{self, Denial, EventLimits},
        write_status,
    },
    policy::Catalog,
    shutdown::{self, Trigger},
};
use egress_common::verdict::Reason;
use egress_tests::{Cluster, Gate, eventually};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::watch, task::JoinHandle};

use crate::support::{
    account::{self, AGENTS},
    installed::{SOON, cluster, json, write},
};

/// There is one lease.
static LEASE: Mutex<()> = Mutex::new(());

const TIMES: LeaseTimes = LeaseTimes {
    duration: Duration::from_secs(3),
    renewal: Duration::from_millis(600),
    look: Duration::from_millis(500),
};
/// As long as a writer with something to write would never take.
const QUIET: Duration = Duration::from_millis(1_500);

/// An agent's part that writes the status.
struct Writer {
    feed: watch::Sender<Arc<ClusterView>>,
    _catalog: watch::Sender<Catalog>,
    stop: Trigger,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(runtime: &Runtime, kubeconfig: &str, identity: &str, view: ClusterView) -> Self {
        let (feed, view) = watch::channel(Arc::new(view));
        let (catalog, of_catalog) = watch::channel(Catalog::default());
        let (stop, stopped) = shutdown::channel();
        let settings = StatusSettings {
            identity: identity.to_owned(),
            namespace: AGENTS.to_owned(),
            times: TIMES,
        };
        let kubeconfig = kubeconfig.to_owned();
        let task = runtime.spawn(async move {
            let client = account::client(&kubeconfig).await;
            let view_of = |view: &Arc<ClusterView>| Some(Arc::clone(view));
            write_status(client, settings, view, view_of, of_catalog, stopped).await;
        });
        Self {
            feed,
            _catalog: catalog,
            stop,
            task,
        }
    }

    /// Ends as an agent does at a signal.
    fn stop(self, runtime: &Runtime) {
        self.stop.shut_down();
        runtime.block_on(self.task).unwrap();
    }

    /// Ends as one does that is killed.
    fn kill(self, runtime: &Runtime) {
        self.task.abort();
        assert!(runtime.block_on(self.task).unwrap_err().is_cancelled());
    }
}

/// Makes a namespace with policies, and one of the cluster by the same name.
fn create(cluster: &Cluster, namespace: &str, policies: &[(&str, &str)]) {
    let mut text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {namespace} }}\n");
    for (name, spec) in policies {
        let (kind, metadata) = if *name == namespace {
            ("ClusterEgressPolicy", format!("name: {name}"))
        } else {
            (
                "EgressPolicy",
                format!("name: {name}, namespace: {namespace}"),
            )
        };
        text += &format!(
            "---\napiVersion: egress.dev/v1alpha1\nkind: {kind}\nmetadata: {{ {metadata} }}\nspec: {spec}\n"
        );
    }
    let file = write(cluster, &format!("{namespace}.yaml"), &text);
    cluster
        .get(["apply", "--server-side", "-f", &file])
        .unwrap();
}

/// The policies of a namespace and those of the cluster by its name, as the server has them.
fn objects(cluster: &Cluster, namespace: &str) -> BTreeMap<String, Value> {
    let get = ["get", "egp,cegp", "-A", "-o", "json"];
    let mut list = json(&cluster.get(get).unwrap());
    let items = list["items"].as_array_mut().unwrap();
    let items = items.iter_mut().map(Value::take).filter(|item| {
        let metadata = &item["metadata"];
        metadata["namespace"] == namespace || metadata["name"] == namespace
    });
    items
        .map(|item| (item["metadata"]["name"].as_str().unwrap().to_owned(), item))
        .collect()
}

/// An agent's view of these objects.
fn view<'a>(objects: impl IntoIterator<Item = &'a Value>) -> ClusterView {
    let policies = objects.into_iter().map(|item| {
        let text = |field: &str| item["metadata"][field].as_str().map(str::to_owned);
        let key = PolicyKey {
            namespace: text("namespace"),
            name: text("name").unwrap(),
        };
        let object = PolicyObject {
            uid: text("uid").unwrap(),
            generation: item["metadata"]["generation"].as_i64().unwrap(),
            spec: serde_json::from_value(item["spec"].clone()).unwrap(),
        };
        (key, Arc::new(object))
    });
    ClusterView {
        policies: Arc::new(policies.collect()),
        ..ClusterView::default()
    }
}

fn condition(object: &Value) -> &Value {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let found = conditions.find(|condition| condition["type"] == "Accepted");
    found.unwrap_or(&Value::Null)
}

/// The condition is about the newest version.
fn is_current(object: &Value) -> bool {
    let generation = &object["metadata"]["generation"];
    condition(object)["observedGeneration"] == *generation
        && object["status"]["observedGeneration"] == *generation
}

fn versions(objects: &BTreeMap<String, Value>) -> Vec<&Value> {
    let versions = objects.values();
    versions
        .map(|object| &object["metadata"]["resourceVersion"])
        .collect()
}

fn holder(cluster: &Cluster) -> String {
    let get = ["get", "lease", "egress-agent", "-n", AGENTS, "-o"];
    let path = "jsonpath={.spec.holderIdentity}";
    let output = cluster.kubectl(get.into_iter().chain([path])).unwrap();
    output.stdout
}

#[test]
fn the_status_says_whether_a_policy_compiles_and_is_written_once() {
    const SPACE: &str = "status";
    let Some(cluster) = cluster() else { return };
    let _lease = LEASE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = Runtime::new().unwrap();
    let kubeconfig = account::kubeconfig(&cluster);
    create(
        &cluster,
        SPACE,
        &[
            (
                "good",
                "{ podSelector: { matchLabels: { app: web } }, allow: [{ names: [api.example.com] }], deny: [{ cidrs: [192.0.2.0/24] }] }",
            ),
            (
                "bad",
                "{ allow: [{ names: [api.example.com] }, { cidrs: [10.0.0.1/8] }] }",
            ),
            (
                SPACE,
                "{ subject: node, nodeSelector: { matchLabels: { pool: gpu } } }",
            ),
        ],
    );
    let before = objects(&cluster, SPACE);
    let writer = Writer::start(&runtime, &kubeconfig, "node-1", view(before.values()));
    let mut now = BTreeMap::new();
    let is_written = eventually(SOON, || {
        now = objects(&cluster, SPACE);
        now.values().all(is_current)
    });
    assert!(is_written, "{now:#?}");
    assert_eq!(holder(&cluster), "node-1");
    for (name, accepted, reason, rules, subjects) in [
        (
            "good",
            "True",
            "Compiles",
            json!(2),
            "pods app=web in status",
        ),
        ("bad", "False", "Invalid", Value::Null, "all pods in status"),
        (SPACE, "True", "Compiles", json!(0), "nodes pool=gpu"),
    ] {
        let (status, condition) = (&now[name]["status"], condition(&now[name]));
        assert_eq!(condition["status"], accepted, "{condition}");
        assert_eq!(condition["reason"], reason);
        assert_eq!(status["rules"], rules);
        assert_eq!(status["subjects"], subjects);
    }
    let said = condition(&now["bad"])["message"].as_str().unwrap();
    assert!(said.starts_with("spec.allow[1].cidrs[0]: "), "{said}");
    let shown = cluster.get(["get", "egp", "good", "-n", SPACE]).unwrap();
    let row: Vec<&str> = shown.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row[..2], ["good", "enforce"], "{shown}");
    assert_eq!(row[row.len() - 2], "True", "{shown}");

    // Pods come and go, and another agent becomes the one that writes: nothing is to be written.
    for _ in 0..3 {
        writer.feed.send_replace(Arc::new(view(now.values())));
        thread::sleep(Duration::from_millis(100));
    }
    writer.stop(&runtime);
    assert_eq!(holder(&cluster), "");
    let writer = Writer::start(&runtime, &kubeconfig, "node-2", view(now.values()));
    assert!(eventually(SOON, || holder(&cluster) == "node-2"));
    thread::sleep(QUIET);
    let later = objects(&cluster, SPACE);
    assert_eq!(versions(&later), versions(&now));

    // An edit is, and nothing else.
    let patch = r#"{ "spec": { "allow": [{ "names": ["api.example.com"] }] } }"#;
    cluster
        .get([
            "patch",
            "egp",
            "bad",
            "-n",
            SPACE,
            "--type=merge",
            "-p",
            patch,
        ])
        .unwrap();
    let edited = objects(&cluster, SPACE);
    assert!(!is_current(&edited["bad"]));
    writer.feed.send_replace(Arc::new(view(edited.values())));
    let mut after = BTreeMap::new();
    let is_written = eventually(SOON, || {
        after = objects(&cluster, SPACE);
        is_current(&after["bad"])
    });
    assert!(is_written, "{after:#?}");
    assert_eq!(condition(&after["bad"])["status"], "True");
    assert_eq!(after["bad"]["status"]["rules"], 1);
    for name in ["good", SPACE] {
        assert_eq!(after[name], now[name]);
    }
    writer.stop(&runtime);
}

#[test]
fn one_writes_and_another_follows_when_it_ends() {
    const SPACE: &str = "election";
    let Some(cluster) = cluster() else { return };
    let _lease = LEASE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = Runtime::new().unwrap();
    let kubeconfig = account::kubeconfig(&cluster);
    // Each is known to one of three writers alone: so it is seen who writes.
    let names = ["one", "two", "three"];
    create(&cluster, SPACE, &names.map(|name| (name, "{}")));
    let all = objects(&cluster, SPACE);
    let start = |name: &str| Writer::start(&runtime, &kubeconfig, name, view([&all[name]]));
    let written = || -> Vec<String> {
        let now = objects(&cluster, SPACE);
        let mut names: Vec<String> = now
            .keys()
            .filter(|name| is_current(&now[*name]))
            .cloned()
            .collect();
        names.sort_by_key(|name| names_index(&["one", "two", "three"], name));
        names
    };

    let one = start("one");
    assert!(eventually(SOON, || written() == ["one"]), "{:?}", written());
    let two = start("two");
    let three = start("three");
    // Through several renewals, and longer than the lease holds without.
    thread::sleep(TIMES.duration + QUIET);
    assert_eq!(written(), ["one"]);

    // Given back: the next one need not wait for the end. It is two, because three is killed.
    three.kill(&runtime);
    let begin = Instant::now();
    one.stop(&runtime);
    assert!(
        eventually(SOON, || written() == ["one", "two"]),
        "{:?}",
        written()
    );
    let graceful = begin.elapsed();
    assert_eq!(holder(&cluster), "two");

    // Killed: the next one waits until the lease has ended.
    let three = start("three");
    thread::sleep(QUIET);
    assert_eq!(written(), ["one", "two"]);
    let begin = Instant::now();
    two.kill(&runtime);
    assert!(eventually(SOON, || holder(&cluster) == "three"));
    let expired = begin.elapsed();
    assert!(eventually(SOON, || written() == names));
    // The last renewal was at most so long ago.
    assert!(
        expired > TIMES.duration.saturating_sub(TIMES.renewal * 2),
        "{expired:?}"
    );
    println!("given back: followed after {graceful:?}; killed: after {expired:?}");
    three.stop(&runtime);
}

#[test]
fn a_holder_that_was_cut_off_writes_nothing_when_it_is_back() {
    const SPACE: &str = "cut-off";
    let Some(cluster) = cluster() else { return };
    let _lease = LEASE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = Runtime::new().unwrap();
    let gate = Gate::to(cluster.port()).unwrap();
    let by_gate = account::kubeconfig_by(&cluster, gate.port());
    let direct = account::kubeconfig(&cluster);
    create(&cluster, SPACE, &[("old", "{}"), ("new", "{}")]);
    let now = || objects(&cluster, SPACE);
    // Only the old holder knows of the one policy, only the new one of the other.
    let old = Writer::start(&runtime, &by_gate, "old", view([&now()["old"]]));
    assert!(eventually(SOON, || is_current(&now()["old"])));
    assert_eq!(holder(&cluster), "old");
    let new = Writer::start(&runtime, &direct, "new", view([&now()["new"]]));

    // It has something to write while it is cut off, and tries to.
    gate.shut();
    let patch = ["--type=merge", "-p", r#"{ "spec": { "mode": "audit" } }"#];
    let object = ["patch", "egp", "old", "-n", SPACE];
    cluster.get(object.iter().chain(&patch)).unwrap();
    old.feed.send_replace(Arc::new(view([&now()["old"]])));
    let is_taken = || holder(&cluster) == "new" && is_current(&now()["new"]);
    assert!(eventually(SOON, is_taken), "{}", holder(&cluster));
    assert!(gate.refused() > 0);
    let version = now()["old"]["metadata"]["resourceVersion"].clone();
    gate.open();
    // Longer than it waits for anything: its renewals, its looks, its next try.
    let looks = TIMES.duration + TIMES.look * 4;
    thread::sleep(looks.max(Duration::from_secs(6)));
    let after = now();
    assert_eq!(after["old"]["metadata"]["resourceVersion"], version);
    assert!(!is_current(&after["old"]));
    assert_eq!(holder(&cluster), "new");

    // It could, and wanted to: when it is its turn, it does.
    new.stop(&runtime);
    assert!(
        eventually(SOON, || is_current(&now()["old"])),
        "{:#?}",
        now()
    );
    assert_eq!(holder(&cluster), "old");
    old.stop(&runtime);
}

fn names_index(names: &[&str], name: &str) -> Option<usize> {
    names.iter().position(|one| *one == name)
}

/// A pod object; nothing runs in it.
fn pod(cluster: &Cluster, namespace: &str, name: &str) -> Arc<Pod> {
    pod_with(cluster, namespace, name, &json!({}))
}

fn pod_with(cluster: &Cluster, namespace: &str, name: &str, annotations: &Value) -> Arc<Pod> {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "annotations": annotations },
        "spec": { "nodeName": "node-1", "containers": [{ "name": "main", "image": "none" }] },
    });
    let file = write(cluster, &format!("{name}.json"), &object.to_string());
    let made = json(&cluster.get(["create", "-o", "json", "-f", &file]).unwrap());
    Arc::new(Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: made["metadata"]["uid"].as_str().unwrap().to_owned(),
        ..Pod::default()
    })
}

fn events_of(cluster: &Cluster, pod: &Pod) -> Vec<Value> {
    let of = format!("involvedObject.uid={}", pod.uid);
    let get = [
        "get",
        "events",
        "-n",
        &pod.namespace,
        "--field-selector",
        &of,
        "-o",
        "json",
    ];
    let mut list = json(&cluster.get(get).unwrap());
    list["items"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .map(Value::take)
        .collect()
}

#[test]
fn a_denial_of_a_static_pod_is_shown_at_the_pod_that_stands_for_it() {
    const SPACE: &str = "static";
    const HASH: &str = "81cdabfc720501d9e81b425b15921b4d";
    let Some(cluster) = cluster() else { return };
    let runtime = Runtime::new().unwrap();
    let kubeconfig = account::kubeconfig(&cluster);
    create(&cluster, SPACE, &[]);
    let marks = json!({ "kubernetes.io/config.mirror": HASH, "kubernetes.io/config.hash": HASH });
    let mirror = pod_with(&cluster, SPACE, "proxy-n1", &marks);
    let (denials, told) = events::channel();
    let (stop, stopped) = shutdown::channel();
    let task = runtime.spawn(async move {
        let client = account::client(&kubeconfig).await;
        let limits = EventLimits::default();
        events::run(client, "node-1".to_owned(), limits, told, stopped).await;
    });
    // Under the object's own UID nobody would see it.
    for (written, mirror_of, is_shown) in [(1, None, false), (2, Some(HASH.to_owned()), true)] {
        denials.tell(Denial {
            pod: Arc::new(Pod {
                mirror_of,
                ..Pod::clone(&mirror)
            }),
            name: None,
            address: "192.0.2.1".parse().unwrap(),
            port: format!("{written}/tcp"),
            reason: Reason::NoRule,
            rule: None,
            is_audit: false,
        });
        assert!(eventually(SOON, || denials.counts().written() == written));
        let describe = ["describe", "pod", "proxy-n1", "-n", SPACE];
        let shown = cluster.get(describe).unwrap();
        assert_eq!(shown.contains("EgressDenied"), is_shown, "{shown}");
    }
    stop.shut_down();
    runtime.block_on(task).unwrap();
}

#[test]
fn a_denial_is_an_event_at_the_pod_within_the_limits() {
    const SPACE: &str = "events";
    let Some(cluster) = cluster() else { return };
    let runtime = Runtime::new().unwrap();
    let kubeconfig = account::kubeconfig(&cluster);
    create(&cluster, SPACE, &[]);
    let (web, noisy) = (pod(&cluster, SPACE, "web"), pod(&cluster, SPACE, "noisy"));
    let limits = EventLimits {
        pod: (4, Duration::from_mins(10)),
        node: (50, Duration::from_secs(1)),
        again: Duration::from_millis(500),
        remembered: 100,
    };
    let start = || {
        let (denials, told) = events::channel();
        let (stop, stopped) = shutdown::channel();
        let kubeconfig = kubeconfig.clone();
        let task = runtime.spawn(async move {
            let client = account::client(&kubeconfig).await;
            events::run(client, "node-1".to_owned(), limits, told, stopped).await;
        });
        (denials, stop, task)
    };
    let (denials, stop, task) = start();
    let denied = |pod: &Arc<Pod>, name: &str| Denial {
        pod: Arc::clone(pod),
        name: Some(name.to_owned()),
        address: "192.0.2.1".parse().unwrap(),
        port: "443/tcp".to_owned(),
        reason: Reason::NoRule,
        rule: None,
        is_audit: false,
    };
    for _ in 0..5 {
        denials.tell(denied(&web, "api.example.com"));
    }
    assert!(eventually(SOON, || denials.counts().written() == 1));
    let shown = cluster
        .get(["describe", "pod", "web", "-n", SPACE])
        .unwrap();
    let line = shown
        .lines()
        .find(|line| line.contains("EgressDenied"))
        .unwrap_or(&shown);
    for part in [
        "Warning",
        "egress-agent",
        "api.example.com (192.0.2.1):443/tcp is denied: ",
        "add to spec.allow of an EgressPolicy that selects the pod: { names: [api.example.com], ports: [443/tcp] }",
    ] {
        assert!(line.contains(part), "{part}: {shown}");
    }

    // It goes on: the same event says so.
    thread::sleep(limits.again);
    denials.tell(denied(&web, "api.example.com"));
    assert!(eventually(SOON, || denials.counts().written() == 2));
    let [event] = &events_of(&cluster, &web)[..] else {
        panic!("{:?}", events_of(&cluster, &web));
    };
    assert_eq!(event["count"], 6);

    // In audit it is another, and no warning.
    denials.tell(Denial {
        is_audit: true,
        ..denied(&web, "api.example.com")
    });
    assert!(eventually(SOON, || denials.counts().written() == 3));
    let events = events_of(&cluster, &web);
    let audit = events
        .iter()
        .find(|event| event["reason"] == "EgressWouldBeDenied");
    assert_eq!(audit.unwrap()["type"], "Normal");

    // One pod's many destinations take nothing from others.
    for index in 0..20 {
        denials.tell(denied(&noisy, &format!("n{index}.example.com")));
    }
    denials.tell(denied(&web, "other.example.com"));
    assert!(eventually(SOON, || denials.counts().written() == 8));
    assert_eq!(denials.counts().not_written(), 16);
    assert_eq!(events_of(&cluster, &noisy).len(), 4);
    assert_eq!(events_of(&cluster, &web).len(), 3);
    stop.shut_down();
    runtime.block_on(task).unwrap();

    // An agent that starts again finds the event, and one that is gone is made anew.
    let (denials, stop, task) = start();
    denials.tell(denied(&web, "api.example.com"));
    assert!(eventually(SOON, || denials.counts().written() == 1));
    let events = events_of(&cluster, &web);
    assert_eq!(events.len(), 3);
    cluster
        .get(["delete", "events", "--all", "-n", SPACE])
        .unwrap();
    thread::sleep(limits.again);
    denials.tell(denied(&web, "api.example.com"));
    assert!(eventually(SOON, || denials.counts().written() == 2));
    assert_eq!(events_of(&cluster, &web).len(), 1);
    // A pod whose namespace is not there: reported nowhere, and nothing ends.
    denials.tell(denied(
        &Arc::new(Pod {
            namespace: "nowhere".to_owned(),
            ..Pod::clone(&noisy)
        }),
        "api.example.com",
    ));
    assert!(eventually(SOON, || denials.counts().not_written() == 1));
    stop.shut_down();
    runtime.block_on(task).unwrap();
}
