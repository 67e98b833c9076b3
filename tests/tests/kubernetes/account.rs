//! The agents' own account at a real API server: its permissions are those that it uses, and no others.

use std::{path::Path, time::Duration};

use egress_tests::{
    Cluster, eventually,
    expect::{reached, refused},
    kubernetes, ready,
};
use serde_json::{Value, json};

use crate::support::{
    account::{self, AGENTS},
    feed::Fed,
    installed::{self, cluster, deploy, json},
    node::{Node, SOON, address, known, paths},
};

/// How long an agent may take to do everything once: longer than until the second renewal of its lease.
const ALL: Duration = Duration::from_secs(45);

/// One permission of the account: a verb on a kind.
#[derive(Debug)]
struct Right {
    verb: String,
    group: String,
    resource: String,
    /// Of this namespace alone.
    namespace: Option<String>,
    /// These objects alone.
    names: Vec<String>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

/// Permissions that the manifest gives.
fn rights(cluster: &Cluster) -> Vec<Right> {
    let file = deploy("kubernetes/rbac.yaml");
    let read = ["create", "--dry-run=client", "-o", "json", "-f", &file];
    let documents = cluster.get(read).unwrap();
    let documents = serde_json::Deserializer::from_str(&documents).into_iter::<Value>();
    let mut rights = Vec::new();
    for document in documents.map(Result::unwrap) {
        let rules = document["rules"].as_array().into_iter().flatten();
        let namespace = document["metadata"]["namespace"].as_str();
        for rule in rules {
            for verb in texts(&rule["verbs"]) {
                for group in texts(&rule["apiGroups"]) {
                    rights.extend(texts(&rule["resources"]).into_iter().map(|resource| Right {
                        verb: verb.clone(),
                        group: group.clone(),
                        resource,
                        namespace: namespace.map(str::to_owned),
                        names: texts(&rule["resourceNames"]),
                    }));
                }
            }
        }
    }
    rights
}

/// The right allows the request.
fn allows(right: &Right, asked: &Value) -> bool {
    let object = &asked["objectRef"];
    let mut resource = text(&object["resource"]);
    if let Some(part) = object["subresource"].as_str() {
        resource = format!("{resource}/{part}");
    }
    let namespace = text(&object["namespace"]);
    asked["verb"] == right.verb.as_str()
        && text(&object["apiGroup"]) == right.group
        && resource == right.resource
        && right.namespace.as_ref().is_none_or(|its| *its == namespace)
        && (right.names.is_empty() || right.names.contains(&text(&object["name"])))
}

#[test]
fn every_call_is_allowed_and_every_permission_is_used() {
    if !ready() || !kubernetes::ready() {
        return;
    }
    // Of its own: on the one that is shared others ask for more with the same account.
    let cluster = Cluster::start().unwrap();
    installed::install(&cluster).unwrap();
    let kubeconfig = account::kubeconfig(&cluster);
    let rights = rights(&cluster);
    assert!(rights.len() >= 15, "{rights:?}");
    let node = Node::new(&cluster, "rights");
    node.policy(
        "all",
        &json!({ "allow": [{ "names": ["api.example.com"] }] }),
    );
    node.cluster_policy("rights", &json!({ "subject": "node" }));
    let mut agent = node.agent_by(Path::new(&kubeconfig)).start();
    let pod = node.container(&paths(&node.pod("pod", "web"))[0]);
    known(&agent, "rights/pod");
    pod.resolve("api.example.com", false);
    reached(&pod.connect(address("api.example.com"), 80));
    let events = || json(&node.kubectl(&["get", "events", "-o", "json"]));
    let is_told = || !events()["items"].as_array().unwrap().is_empty();
    refused(&pod.connect(address("other.example.com"), 80));
    assert!(eventually(SOON, is_told), "{}", agent.log());
    // The next agent finds the event of this one.
    agent.kill();
    agent.start_again();

    let unused = || -> Vec<&Right> {
        let asked = cluster.asked().unwrap();
        let is_used = |right: &Right| asked.iter().any(|asked| allows(right, asked));
        rights.iter().filter(|right| !is_used(right)).collect()
    };
    assert!(
        // A denial before the agent has heard of the pod makes no event.
        eventually(ALL, || {
            refused(&pod.connect(address("other.example.com"), 80));
            unused().is_empty()
        }),
        "{:#?}\n{}",
        unused(),
        agent.log()
    );
    agent.stop();
    let asked = cluster.asked().unwrap();
    for asked in &asked {
        let decision = &asked["annotations"]["authorization.k8s.io/decision"];
        assert_eq!(decision, "allow", "{asked:#}");
        assert_eq!(
            asked["user"]["username"],
            "system:serviceaccount:egress-system:egress-agent"
        );
        assert!(rights.iter().any(|right| allows(right, asked)), "{asked:#}");
    }
    println!(
        "{} requests, each by one of {} permissions, all of them used",
        asked.len(),
        rights.len()
    );
}

#[test]
fn an_agent_without_rights_hears_nothing_and_says_so() {
    let Some(cluster) = cluster() else { return };
    let state = tempfile::tempdir().unwrap();
    let fed = Fed::start(
        Path::new(&account::kubeconfig(&cluster)),
        "n1",
        state.path(),
    );
    fed.until_synced();
    fed.stop();

    let state = tempfile::tempdir().unwrap();
    let nobody = "create serviceaccount nobody -n egress-system";
    cluster.get(nobody.split_whitespace()).unwrap();
    let token = account::token(&cluster, "nobody");
    let nobody = cluster.kubeconfig_with(cluster.port(), Some(&token));
    let fed = Fed::start(&nobody.unwrap(), "n1", state.path());
    let kinds = [
        "pods",
        "namespaces",
        "nodes",
        "egresspolicies",
        "clusteregresspolicies",
        "services",
        "dns_endpoints",
        "api_servers",
    ];
    let feed = fed.until("an error for each kind", |feed| {
        let error = feed.freshness.error.clone().unwrap_or_default();
        kinds
            .iter()
            .all(|kind| error.contains(&format!("{kind}: ")))
    });
    let freshness = feed.freshness;
    assert!(freshness.error.unwrap().contains("cannot list resource"));
    assert!(!freshness.is_synced && freshness.watches.values().all(|tells| !tells));
    fed.stop();
}

#[test]
fn the_account_may_do_what_it_does_and_nothing_else() {
    let Some(cluster) = cluster() else { return };
    let kubeconfig = account::kubeconfig(&cluster);
    let agent = |arguments: &str| {
        let own = ["--kubeconfig", &kubeconfig];
        cluster
            .kubectl(own.into_iter().chain(arguments.split_whitespace()))
            .unwrap()
    };
    // All that RBAC gives it, as the server puts it together; in `default` it may look where the API servers are.
    let listed = agent("auth can-i --list --no-headers -n kube-public");
    let listed_there = agent(&format!("auth can-i --list --no-headers -n {AGENTS}"));
    let rows = |text: &str| -> Vec<String> {
        let rows = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let mut rows: Vec<String> = rows
            .filter(|row| !row.starts_with('[') && !row.starts_with("self"))
            .collect();
        rows.sort();
        rows
    };
    let everywhere = [
        "clusteregresspolicies.egress.dev [] [] [list watch]",
        "clusteregresspolicies.egress.dev/status [] [] [patch]",
        "egresspolicies.egress.dev [] [] [list watch]",
        "egresspolicies.egress.dev/status [] [] [patch]",
        "events [] [] [create patch]",
        "namespaces [] [] [list watch]",
        "nodes [] [] [list watch]",
        "pods [] [] [list watch]",
    ];
    assert_eq!(rows(&listed.stdout), everywhere, "{}", listed.shown());
    let mut there: Vec<&str> = everywhere.to_vec();
    there.extend([
        "leases.coordination.k8s.io [] [] [create]",
        "leases.coordination.k8s.io [] [egress-agent] [get update]",
    ]);
    there.sort_unstable();
    assert_eq!(
        rows(&listed_there.stdout),
        there,
        "{}",
        listed_there.shown()
    );

    // Not only asked: done, with its own token.
    cluster.get(["create", "namespace", "account"]).unwrap();
    let rules = json!({
        "apiVersion": "egress.dev/v1alpha1", "kind": "EgressPolicy",
        "metadata": { "name": "rules", "namespace": "account" }, "spec": {},
    });
    let file = installed::write(&cluster, "rules.json", &rules.to_string());
    cluster.get(["create", "-f", &file]).unwrap();
    for (arguments, is_allowed) in [
        ("get pods -A", true),
        ("get secrets -A", false),
        ("get configmaps -n egress-system", false),
        ("get egp,cegp -A", true),
        ("delete egp rules -n account", false),
        ("get services -n kube-system", true),
        ("get services -n egress-system", false),
        ("get endpointslices -n kube-system", true),
        (
            "get endpointslices -n default --field-selector metadata.name=kubernetes",
            true,
        ),
        ("get endpointslices -n default", false),
        ("get endpointslices -n egress-system", false),
        ("get pod some -n account", false),
        ("get lease other -n egress-system", false),
        ("get events -A", false),
        ("delete namespace account", false),
    ] {
        let output = agent(arguments);
        assert_eq!(
            output.code() == Some(0),
            is_allowed,
            "{arguments}: {}",
            output.shown()
        );
        assert!(
            is_allowed || output.stderr.contains("orbidden"),
            "{}",
            output.shown()
        );
    }
    let patch = r#"{"spec":{"mode":"audit"}}"#;
    let output = agent(&format!(
        "patch egp rules -n account --type=merge -p {patch}"
    ));
    assert!(output.stderr.contains("orbidden"), "{}", output.shown());
}
