//! deploy/crds/*.yaml are made from the types. `EGRESS_BLESS=1` writes them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic")]

use std::{fs, path::Path};

use egress_agent::kube::{ClusterEgressPolicy, EgressPolicy, crds};
use serde_json::{Value, json};

#[test]
fn the_definitions_are_what_the_types_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    for crd in crds() {
        let path = folder.join(format!("{}.yaml", crd.spec.names.plural));
        let yaml = serde_yaml_ng::to_string(&crd).unwrap();
        let text = format!(
            "# Made from egress-agent/src/kube by `cargo xtask docs`: do not edit.\n{yaml}"
        );
        if std::env::var_os("EGRESS_BLESS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            there == text,
            "{} is stale: `cargo xtask docs` makes it anew",
            path.display()
        );
        // The most that `kubectl apply` without --server-side can hold in its annotation.
        assert!(serde_json::to_string(&crd).unwrap().len() < 256 << 10);
    }
}

/// Looks at a schema and those in it.
fn look(schema: &Value, path: &str, see: &mut impl FnMut(&Value, &str)) {
    see(schema, path);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        look(field, &format!("{path}.{name}"), see);
    }
    for name in ["items", "additionalProperties"] {
        if schema[name].is_object() {
            look(&schema[name], &format!("{path}[]"), see);
        }
    }
}

#[test]
fn every_field_has_a_type_and_says_what_it_means() {
    for crd in crds() {
        let schema = serde_json::to_value(&crd).unwrap();
        let spec =
            &schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut seen = 0;
        look(spec, "spec", &mut |schema, path| {
            seen += 1;
            let any = schema["x-kubernetes-preserve-unknown-fields"] == json!(true);
            assert!(schema["type"].is_string() != any, "{path}: {schema}");
            // Only values of presets are of any type.
            assert_eq!(any, path.ends_with(".with[]"), "{path}");
            let text = schema["description"].as_str();
            let is_inner = path.ends_with("serviceTags[]");
            assert!(
                is_inner || text.is_some_and(|text| text.ends_with('.')),
                "{path}: {text:?}"
            );
        });
        assert!(seen > 30, "{seen}");
    }
}

#[test]
fn objects_of_both_kinds_are_read_and_written() {
    let spec = json!({
        "podSelector": { "matchLabels": { "app": "payments" } },
        "mode": "audit",
        "ttl": { "min": "30s", "grace": "30m", "max": "24h" },
        "preexisting": "keep",
        "dns": { "queries": "any" },
        "allow": [{ "names": ["api.example.com"], "ports": ["443/tcp"] }],
        "deny": [],
    });
    let object = |kind: &str, spec: &Value| {
        json!({
            "apiVersion": "egress.dev/v1alpha1",
            "kind": kind,
            "metadata": { "name": "payments" },
            "spec": spec,
        })
    };
    let written = object("EgressPolicy", &spec);
    let policy: EgressPolicy = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(serde_json::to_value(&policy).unwrap(), written);
    let mut spec = spec;
    spec["nodeSelector"] = json!({ "matchLabels": { "pool": "a" } });
    let written = object("ClusterEgressPolicy", &spec);
    let policy: ClusterEgressPolicy = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(serde_json::to_value(&policy).unwrap(), written);
    // An agent that does not know a field of a later version says so, as for a file.
    let mut later = written;
    later["spec"]["later"] = json!(true);
    let error = serde_json::from_value::<ClusterEgressPolicy>(later).unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("later: unknown field \"later\"; the fields here are mode, ttl"),
        "{error}"
    );
}
