//! The custom resources against a real API server: those that it accepts, and those that it refuses.

use std::{collections::BTreeSet, process::Command};

use egress_tests::{Cluster, eventually, process, programs, skip};
use serde_json::{Value, json};

use crate::support::{
    installed::{NAMESPACE, SOON, cluster, deploy, json, write},
    policies::{BAD, FULL, FULL_CLUSTER, ONLY_COMPILER, policy},
};

/// True if `policy check` accepts a file, and its output.
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

#[test]
fn the_definitions_are_structural_and_install_in_both_ways() {
    let Some(cluster) = cluster() else { return };
    // As people do it: the whole object goes into an annotation, which must not be too long for that.
    cluster.get(["apply", "-k", &deploy("crds")]).unwrap();
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
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
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
        "ttl": { "min": "30s", "grace": "30m", "max": "24h" },
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
    assert_eq!(
        created["spec"]["ttl"],
        json!({ "min": "1m", "grace": "30m", "max": "24h" })
    );
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
            // The names of the others do not matter; they differ to identify the policies.
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
        let name = format!("compiler-{index}");
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
    // The client's own check needs the server's description of the kinds, which follows them after a while.
    let description = || cluster.get(["get", "--raw", "/openapi/v2"]).unwrap();
    let is_described = || description().contains("dev.egress.v1alpha1.EgressPolicy\"");
    assert!(eventually(SOON, is_described));
    for (index, (spec, field)) in [
        ("{ denny: [{ cidrs: [10.0.0.0/8] }] }", "denny"),
        (
            "{ allow: [{ names: [a.example.com], port: [443/tcp] }] }",
            "port",
        ),
        ("{ ttl: { minimum: 30s } }", "minimum"),
        ("{ podSelector: { labels: { app: payments } } }", "labels"),
        ("{ nodeSelector: {} }", "nodeSelector"),
        ("{ ceiling: true }", "ceiling"),
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
