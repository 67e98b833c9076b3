//! The custom resources against a real API server: what it takes, what it refuses, what it shows, and to whom.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests panic"
)]

#[path = "support/policies.rs"]
mod policies;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use egress_tests::{
    Cluster, eventually,
    kubernetes::{self, Shared},
    process, programs, skip,
};
use policies::{BAD, FULL, FULL_CLUSTER, ONLY_COMPILER, policy};
use serde_json::{Value, json};

/// How long what controllers do may take.
const SOON: Duration = Duration::from_secs(30);
/// Where policies of the tests live.
const NAMESPACE: &str = "shop";
/// A namespace that nobody has rights in.
const OTHER: &str = "other";

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name)
}

/// The server with our definitions and the namespaces; `None` if it cannot be had here.
fn cluster() -> Option<Shared> {
    if !kubernetes::ready() {
        return None;
    }
    let cluster = Cluster::shared().unwrap();
    let crds = deploy("crds");
    let crds = crds.to_str().unwrap();
    cluster.get(["apply", "--server-side", "-k", crds]).unwrap();
    let wait = "wait --for=condition=Established --timeout=60s crd egresspolicies.egress.dev \
                clusteregresspolicies.egress.dev";
    cluster.get(wait.split_whitespace()).unwrap();
    // The server begins to serve a kind a moment after it says so.
    for kind in ["egp", "cegp"] {
        let serves = || cluster.kubectl(["get", kind, "-A"]).unwrap().code() == Some(0);
        assert!(eventually(SOON, serves), "{kind}");
    }
    for name in [NAMESPACE, OTHER] {
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        let file = write(
            &cluster,
            &format!("namespace-{name}.json"),
            &namespace.to_string(),
        );
        cluster
            .get(["apply", "--server-side", "-f", &file])
            .unwrap();
    }
    Some(cluster)
}

/// A file of the test; several tests share the folder.
fn write(cluster: &Cluster, name: &str, text: &str) -> String {
    let path = cluster.dir().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A namespace of its own for a test.
fn namespace(cluster: &Cluster, name: &str) {
    cluster.get(["create", "namespace", name]).unwrap();
}

/// Whether `policy check` takes a file, and what it says.
fn checked(file: &str, tags: &str) -> (bool, String) {
    let mut agent = Command::new(programs::agent());
    agent.args(["policy", "check", file, "--service-tags", tags]);
    let output = process::run(&mut agent, SOON).unwrap();
    assert!(matches!(output.code(), Some(0 | 2)), "{}", output.shown());
    (output.code() == Some(0), output.shown())
}

/// A file with the service tags that the policies name.
fn service_tags(cluster: &Cluster) -> String {
    let tag = json!({ "name": "Storage.westeurope", "properties": { "addressPrefixes": ["192.0.2.0/24"] } });
    let file = json!({ "changeNumber": 1, "cloud": "Public", "values": [tag] });
    write(cluster, "tags.json", &file.to_string())
}

fn has_agent() -> bool {
    programs::agent().is_file()
        || skip::skip(&format!(
            "{} is missing: run `cargo xtask build`",
            programs::agent().display()
        ))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn the_definitions_are_structural_and_install_in_both_ways() {
    let Some(cluster) = cluster() else { return };
    let crds = deploy("crds");
    // As people do it: the whole object goes into an annotation, which must not be too long for that.
    cluster
        .get(["apply", "-k", crds.to_str().unwrap()])
        .unwrap();
    for (name, scope, short) in [
        ("egresspolicies.egress.dev", "Namespaced", "egp"),
        ("clusteregresspolicies.egress.dev", "Cluster", "cegp"),
    ] {
        let crd = json(&cluster.get(["get", "crd", name, "-o", "json"]).unwrap());
        assert_eq!(crd["spec"]["scope"], json!(scope));
        assert_eq!(crd["spec"]["names"]["shortNames"], json!([short]));
        for condition in crd["status"]["conditions"].as_array().unwrap() {
            let wanted = match condition["type"].as_str().unwrap() {
                "Established" | "NamesAccepted" => "True",
                // NonStructuralSchema above all.
                _ => "False",
            };
            assert_eq!(condition["status"], json!(wanted), "{condition}");
        }
    }
    let listed = cluster
        .get(["api-resources", "--categories=egress", "-o", "name"])
        .unwrap();
    let listed: BTreeSet<&str> = listed.lines().collect();
    let wanted = [
        "clusteregresspolicies.egress.dev",
        "egresspolicies.egress.dev",
    ];
    assert_eq!(listed, wanted.into());
}

/// The paths of all fields in a schema.
fn fields_of(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        fields_of(field, &path, found);
        fields_of(&field["items"], &format!("{path}[]"), found);
        found.insert(path);
    }
}

/// The paths of all fields in a value.
fn fields_in(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                fields_in(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(items) => {
            for item in items {
                fields_in(item, &format!("{path}[]"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn every_field_is_taken_kept_and_means_the_same_in_a_file() {
    let Some(cluster) = cluster() else { return };
    if !has_agent() {
        return;
    }
    let tags = service_tags(&cluster);
    for (kind, plural, text) in [
        ("EgressPolicy", "egresspolicies", FULL),
        ("ClusterEgressPolicy", "clusteregresspolicies", FULL_CLUSTER),
    ] {
        let file = write(&cluster, &format!("full-{plural}.yaml"), text);
        let (is_good, said) = checked(&file, &tags);
        assert!(is_good, "{said}");
        cluster.get(["create", "-f", &file]).unwrap();
        // Without the server: what stands in the file.
        let written = cluster
            .get([
                "create",
                "--dry-run=client",
                "--validate=false",
                "-o",
                "json",
                "-f",
                &file,
            ])
            .unwrap();
        let get = ["get", plural, "-n", NAMESPACE, "full", "-o", "json"];
        let stored = json(&cluster.get(get).unwrap());
        assert_eq!(stored["spec"], json(&written)["spec"], "{kind}");
        // And that is every field there is.
        let name = format!("{plural}.egress.dev");
        let crd = json(&cluster.get(["get", "crd", &name, "-o", "json"]).unwrap());
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let (mut known, mut given) = (BTreeSet::new(), BTreeSet::new());
        fields_of(schema, "spec", &mut known);
        fields_in(&stored["spec"], "spec", &mut given);
        let missing: Vec<&String> = known.difference(&given).collect();
        assert!(
            known.len() > 20 && missing.is_empty(),
            "{kind}: {missing:?}"
        );
    }
}

#[test]
fn defaults_are_filled_in() {
    let Some(cluster) = cluster() else { return };
    let file = write(
        &cluster,
        "defaults.yaml",
        &policy("EgressPolicy", "defaults", "{}"),
    );
    let created = cluster.get(["create", "-o", "json", "-f", &file]).unwrap();
    let wanted = json!({
        "mode": "enforce",
        "ttl": { "min": "30s", "max": "24h" },
        "preexisting": "keep",
        "dns": { "queries": "any" },
        "allow": [],
        "deny": [],
    });
    assert_eq!(json(&created)["spec"], wanted);
    let text = policy("ClusterEgressPolicy", "defaults", "{ ttl: { min: 1m } }");
    let file = write(&cluster, "defaults-cluster.yaml", &text);
    let created = json(&cluster.get(["create", "-o", "json", "-f", &file]).unwrap());
    assert_eq!(created["spec"]["subject"], json!("pods"));
    assert_eq!(created["spec"]["ttl"], json!({ "min": "1m", "max": "24h" }));
}

/// Gives the server a folder of objects, and takes the names of the files that it refuses.
fn refused(cluster: &Cluster, folder: &str, count: usize) -> BTreeSet<String> {
    let folder = cluster.dir().join(folder);
    // Without the client's own checks.
    let output = cluster
        .kubectl([
            "create",
            "--dry-run=server",
            "--validate=ignore",
            "-f",
            folder.to_str().unwrap(),
        ])
        .unwrap();
    let refused: BTreeSet<String> = output
        .stderr
        .lines()
        .filter(|line| line.contains("(Invalid)") || line.contains("(BadRequest)"))
        .filter_map(|line| {
            Some(
                line.split_once("error when creating \"")?
                    .1
                    .split_once(".yaml\"")?
                    .0,
            )
        })
        .filter_map(|path| Some(path.rsplit_once('/')?.1.to_owned()))
        .collect();
    let taken = output
        .stdout
        .lines()
        .filter(|line| line.ends_with("created (server dry run)"))
        .count();
    assert_eq!(refused.len() + taken, count, "{}", output.shown());
    refused
}

#[test]
fn what_the_compiler_refuses_the_server_refuses() {
    let Some(cluster) = cluster() else { return };
    if !has_agent() {
        return;
    }
    let tags = service_tags(&cluster);
    let (mut bad, mut names) = (Vec::new(), BTreeSet::new());
    for (index, case) in BAD.iter().enumerate() {
        for (which, spec) in [("good", case.good), ("bad", case.bad)] {
            let name = format!("{index:03}-{which}");
            let object = case.name.unwrap_or(("twin", "twin"));
            let object = if which == "good" { object.0 } else { object.1 };
            // The names of the others do not matter, but differ so that they can be told apart.
            let object = if object == "twin" { &name } else { object };
            let text = policy(case.kind, object, spec);
            let file = write(&cluster, &format!("bad/{name}.yaml"), &text);
            let (is_good, said) = checked(&file, &tags);
            assert_eq!(is_good, which == "good", "{text}\n{said}");
            if which == "bad" {
                bad.push((name.clone(), spec));
            }
            names.insert(name);
        }
    }
    let refused = refused(&cluster, "bad", names.len());
    let taken: Vec<_> = bad
        .iter()
        .filter(|(name, _)| !refused.contains(name))
        .collect();
    assert!(taken.is_empty(), "the server takes {taken:#?}");
    let wrongly: Vec<_> = refused
        .iter()
        .filter(|name| name.ends_with("good"))
        .collect();
    assert!(wrongly.is_empty(), "the server refuses {wrongly:#?}");
    assert!(bad.len() >= 60, "{}", bad.len());
}

#[test]
fn what_only_the_compiler_can_tell_is_known() {
    let Some(cluster) = cluster() else { return };
    if !has_agent() {
        return;
    }
    let tags = service_tags(&cluster);
    for (index, spec) in ONLY_COMPILER.iter().enumerate() {
        let name = format!("{index:03}");
        let text = policy("EgressPolicy", &name, spec);
        let file = write(&cluster, &format!("compiler/{name}.yaml"), &text);
        assert!(!checked(&file, &tags).0, "{text}");
    }
    // One that the schema learns to refuse belongs to the others.
    let refused = refused(&cluster, "compiler", ONLY_COMPILER.len());
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
fn unknown_fields_are_refused_by_both_kinds_of_apply() {
    let Some(cluster) = cluster() else { return };
    for (index, (spec, field)) in [
        ("{ denny: [{ cidrs: [10.0.0.0/8] }] }", "denny"),
        (
            "{ allow: [{ names: [a.example.com], port: [443/tcp] }] }",
            "port",
        ),
        ("{ ttl: { minimum: 30s } }", "minimum"),
        ("{ podSelector: { labels: { app: payments } } }", "labels"),
        ("{ nodeSelector: {} }", "nodeSelector"),
    ]
    .into_iter()
    .enumerate()
    {
        let text = policy("EgressPolicy", "unknown", spec);
        let file = write(&cluster, &format!("unknown-{index}.yaml"), &text);
        for way in ["--server-side=false", "--server-side=true"] {
            let output = cluster
                .kubectl(["apply", way, "--dry-run=server", "-f", &file])
                .unwrap();
            assert_eq!(output.code(), Some(1), "{way} {spec}: {}", output.shown());
            assert!(output.stderr.contains(field), "{way}: {}", output.stderr);
        }
    }
    let good = policy(
        "EgressPolicy",
        "unknown",
        "{ deny: [{ cidrs: [10.0.0.0/8] }] }",
    );
    let file = write(&cluster, "unknown-good.yaml", &good);
    for way in ["--server-side=false", "--server-side=true"] {
        cluster
            .get(["apply", way, "--dry-run=server", "-f", &file])
            .unwrap();
    }
}

#[test]
fn the_status_is_apart_and_kubectl_shows_it() {
    let Some(cluster) = cluster() else { return };
    namespace(&cluster, "columns");
    let spec = "{ mode: audit, podSelector: { matchLabels: { app: payments } }, allow: [{ names: [api.example.com] }] }";
    let text = policy("EgressPolicy", "payments", spec).replace(NAMESPACE, "columns");
    let file = write(&cluster, "columns.yaml", &text);
    cluster.get(["create", "-f", &file]).unwrap();
    let cluster_policy = policy("ClusterEgressPolicy", "columns", "{ subject: node }");
    let file = write(&cluster, "columns-cluster.yaml", &cluster_policy);
    cluster.get(["create", "-f", &file]).unwrap();

    let shown = cluster.get(["get", "egp", "-n", "columns"]).unwrap();
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0],
        ["NAME", "MODE", "RULES", "SUBJECTS", "ACCEPTED", "AGE"]
    );
    // Nobody has looked at it yet.
    assert_eq!(rows[1][..2], ["payments", "audit"]);
    assert_eq!(rows[1].len(), 3, "{shown}");

    let patch =
        |status: &Value, spec: &Value| json!({ "status": status, "spec": spec }).to_string();
    let condition = json!({
        "type": "Accepted",
        "status": "True",
        "reason": "Compiled",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    });
    let status = json!({
        "observedGeneration": 1,
        "rules": 1,
        "subjects": "pods app=payments in columns",
        "conditions": [condition],
    });
    let status_of = |kind: &str, name: &str, patch: &str| {
        let arguments = [
            "patch",
            kind,
            name,
            "-n",
            "columns",
            "--subresource=status",
            "--type=merge",
            "-p",
            patch,
        ];
        cluster.kubectl(arguments).unwrap()
    };
    // Who writes the status cannot change the spec with it.
    let output = status_of(
        "egp",
        "payments",
        &patch(&status, &json!({ "mode": "enforce" })),
    );
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    let stored = json(
        &cluster
            .get(["get", "egp", "-n", "columns", "payments", "-o", "json"])
            .unwrap(),
    );
    assert_eq!(stored["spec"]["mode"], json!("audit"));
    assert_eq!(stored["metadata"]["generation"], json!(1));
    assert_eq!(stored["status"], status);
    // A status that is none is refused.
    for wrong in [
        json!({ "rules": -1 }),
        json!({ "conditions": [{ "type": "Accepted" }] }),
        json!({ "conditions": [condition, condition] }),
    ] {
        let output = status_of("egp", "payments", &patch(&wrong, &json!({})));
        assert_eq!(output.code(), Some(1), "{wrong}: {}", output.shown());
    }
    let shown = cluster.get(["get", "egp", "-n", "columns"]).unwrap();
    let row = shown.lines().nth(1).unwrap();
    assert!(row.contains("audit") && row.contains(" 1 "), "{shown}");
    assert!(
        row.contains("pods app=payments in columns") && row.contains("True"),
        "{shown}"
    );
    // A change of the spec is a new generation; the status of the last one stays and says so.
    let change = r#"{ "spec": { "mode": "enforce" } }"#;
    cluster
        .get([
            "patch",
            "egp",
            "payments",
            "-n",
            "columns",
            "--type=merge",
            "-p",
            change,
        ])
        .unwrap();
    let stored = json(
        &cluster
            .get(["get", "egp", "-n", "columns", "payments", "-o", "json"])
            .unwrap(),
    );
    assert_eq!(stored["metadata"]["generation"], json!(2));
    assert_eq!(stored["status"]["observedGeneration"], json!(1));

    let status = json!({ "rules": 0, "subjects": "all nodes", "conditions": [condition] });
    let output = status_of("cegp", "columns", &patch(&status, &json!({})));
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    let shown = cluster.get(["get", "cegp", "columns"]).unwrap();
    let titles: Vec<&str> = shown.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        titles,
        [
            "NAME", "SUBJECT", "MODE", "RULES", "SUBJECTS", "ACCEPTED", "AGE"
        ]
    );
    let row = shown.lines().nth(1).unwrap();
    assert!(
        row.contains("node") && row.contains("enforce") && row.contains("all nodes"),
        "{shown}"
    );
}

/// Whether somebody may do something.
fn may(cluster: &Cluster, who: &str, namespace: &str, what: &str) -> bool {
    let mut arguments = vec!["auth", "can-i", "--as", who, "-n", namespace];
    arguments.extend(what.split_whitespace());
    let output = cluster.kubectl(arguments).unwrap();
    match output.stdout.trim() {
        "yes" => true,
        "no" => false,
        _ => panic!("{}", output.shown()),
    }
}

#[test]
fn view_and_edit_of_a_namespace_are_view_and_edit_of_its_policies() {
    let Some(cluster) = cluster() else { return };
    for (role, who) in [("view", "viewer"), ("edit", "editor"), ("admin", "owner")] {
        let (role, who) = (format!("--clusterrole={role}"), format!("--user={who}"));
        let name = format!("test{who}");
        cluster
            .get(["create", "rolebinding", &name, &role, &who, "-n", NAMESPACE])
            .unwrap();
    }
    let binding = "create clusterrolebinding test-platform --clusterrole=egress-cluster-policies --user=platform";
    cluster.get(binding.split_whitespace()).unwrap();
    // The controller puts roles together when it gets to it.
    let joined = || {
        may(
            &cluster,
            "owner",
            NAMESPACE,
            "delete egresspolicies.egress.dev",
        )
    };
    assert!(eventually(SOON, joined));
    assert!(eventually(SOON, || may(
        &cluster,
        "viewer",
        NAMESPACE,
        "get egresspolicies.egress.dev"
    )));
    assert!(eventually(SOON, || may(
        &cluster,
        "editor",
        NAMESPACE,
        "create egresspolicies.egress.dev"
    )));
    for (who, verb, may_policy, may_cluster) in [
        ("viewer", "list", true, false),
        ("viewer", "create", false, false),
        ("viewer", "delete", false, false),
        ("editor", "watch", true, false),
        ("editor", "update", true, false),
        ("editor", "delete", true, false),
        ("owner", "patch", true, false),
        ("stranger", "list", false, false),
        ("platform", "list", false, true),
        ("platform", "create", false, true),
    ] {
        let policies = format!("{verb} egresspolicies.egress.dev");
        assert_eq!(
            may(&cluster, who, NAMESPACE, &policies),
            may_policy,
            "{who} {policies}"
        );
        assert!(
            !may(&cluster, who, OTHER, &policies),
            "{who} {policies} elsewhere"
        );
        // Nobody says of a policy that it is accepted but the agents.
        let status = format!("{verb} egresspolicies.egress.dev/status");
        assert!(!may(&cluster, who, NAMESPACE, &status), "{who} {status}");
        let policies = format!("{verb} clusteregresspolicies.egress.dev");
        assert_eq!(
            may(&cluster, who, NAMESPACE, &policies),
            may_cluster,
            "{who} {policies}"
        );
    }
    // Not only asked: done.
    let file = write(&cluster, "rbac.yaml", &policy("EgressPolicy", "rbac", "{}"));
    for (who, code) in [
        ("viewer", 1),
        ("stranger", 1),
        ("platform", 1),
        ("editor", 0),
    ] {
        let output = cluster
            .kubectl(["create", "--as", who, "-f", &file])
            .unwrap();
        assert_eq!(output.code(), Some(code), "{who}: {}", output.shown());
        assert!(
            code == 0 || output.stderr.contains("forbidden"),
            "{}",
            output.shown()
        );
    }
    let read = cluster
        .kubectl(["get", "egp", "-n", NAMESPACE, "rbac", "--as", "viewer"])
        .unwrap();
    assert_eq!(read.code(), Some(0), "{}", read.shown());
    let file = write(
        &cluster,
        "rbac-cluster.yaml",
        &policy("ClusterEgressPolicy", "rbac", "{}"),
    );
    for (who, code) in [("editor", 1), ("owner", 1), ("platform", 0)] {
        let output = cluster
            .kubectl(["create", "--as", who, "-f", &file])
            .unwrap();
        assert_eq!(output.code(), Some(code), "{who}: {}", output.shown());
    }
}

/// The folders below `deploy/` that kustomize renders.
fn overlays(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            overlays(&path, found);
        } else if path.ends_with("kustomization.yaml") {
            found.push(folder.to_owned());
        }
    }
}

#[test]
fn every_overlay_renders_and_the_server_takes_it() {
    let Some(cluster) = cluster() else { return };
    let mut folders = Vec::new();
    overlays(&deploy("."), &mut folders);
    folders.sort();
    assert!(folders.len() >= 2, "{folders:?}");
    // What is in it can only be tried in a namespace that is there.
    let namespace = deploy("kubernetes/namespace.yaml");
    cluster
        .get(["apply", "--server-side", "-f", namespace.to_str().unwrap()])
        .unwrap();
    for folder in &folders {
        let rendered = cluster
            .get(["kustomize", folder.to_str().unwrap()])
            .unwrap();
        let name = folder.file_name().unwrap().to_str().unwrap();
        let file = write(&cluster, &format!("rendered-{name}.yaml"), &rendered);
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "-f",
            &file,
        ];
        let output = cluster.kubectl(apply).unwrap();
        assert_eq!(
            output.code(),
            Some(0),
            "{}: {}",
            folder.display(),
            output.shown()
        );
        let objects = rendered.split("\n---\n").count();
        assert_eq!(output.stdout.lines().count(), objects, "{}", output.shown());
    }
    let unload = deploy("kubernetes/unload.yaml");
    cluster
        .get([
            "apply",
            "--server-side",
            "--dry-run=server",
            "-f",
            unload.to_str().unwrap(),
        ])
        .unwrap();
}
