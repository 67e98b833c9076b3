//! The chart in `deploy/chart`, as far as it can be told without Helm; tests/tests/kubernetes/chart.rs has the rest.
//! `EGRESS_BLESS=1` writes what its schema takes from that of policies.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use boon::{Compiler, Schemas};
use serde_json::{Value, json};

/// Fields of a spec that a policy for nodes in a file does not have.
const OF_OTHERS: [&str; 5] = [
    "podSelector",
    "subject",
    "namespaceSelector",
    "nodeSelector",
    "ceiling",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> Value {
    serde_yaml_ng::from_str(&text(path)).unwrap()
}

fn schema() -> Value {
    serde_json::from_str(&text("deploy/chart/values.schema.json")).unwrap()
}

/// What the schema says of values: nothing, or why it refuses them.
fn refusal(values: &Value) -> Option<String> {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler
        .add_resource("values.schema.json", schema())
        .unwrap();
    let index = compiler
        .compile("values.schema.json", &mut schemas)
        .unwrap();
    let result = schemas.validate(values, index);
    result.err().map(|error| error.to_string())
}

#[test]
fn the_policy_among_the_values_has_the_fields_of_a_policy_for_nodes() {
    let policy: Value = serde_json::from_str(&text("docs/policy.schema.json")).unwrap();
    let fields = policy["$defs"]["Spec"]["properties"].as_object().unwrap();
    let fields: Vec<&String> = fields
        .keys()
        .filter(|field| !OF_OTHERS.contains(&field.as_str()))
        .collect();
    let there = schema();
    let mut made = there.clone();
    made["properties"]["nodePolicy"]["propertyNames"]["enum"] = json!(fields);
    made["$defs"] = policy["$defs"].clone();
    if std::env::var_os("EGRESS_BLESS").is_some() {
        let text = serde_json::to_string_pretty(&made).unwrap();
        fs::write(root().join("deploy/chart/values.schema.json"), text + "\n").unwrap();
        return;
    }
    assert!(
        there == made,
        "deploy/chart/values.schema.json is stale: `cargo xtask docs` makes it anew"
    );
}

#[test]
fn the_values_fit_their_schema_which_describes_each_of_them() {
    let values = yaml("deploy/chart/values.yaml");
    assert_eq!(refusal(&values), None);
    let names = |value: &Value| -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    let mut described = names(&schema()["properties"]);
    // Helm hands it to charts that are part of another.
    assert!(described.remove("global"));
    assert_eq!(names(&values), described);
    let image = &schema()["properties"]["image"]["properties"];
    assert_eq!(names(&values["image"]), names(image));
}

#[test]
fn values_that_mean_nothing_are_refused() {
    let good = [
        json!({ "nodePolicy": { "mode": "enforce", "allow": [{ "names": ["a.example.com"], "ports": ["443/tcp"] }] } }),
        json!({ "nodePolicy": { "allow": [{ "preset": "aks/node" }] } }),
        json!({ "lifelineCidrs": ["10.0.0.0/8", "fd00::/8"], "extraArgs": ["--pod-interfaces", "auto"] }),
        json!({ "image": { "repository": "registry.example.com:5000/tools/egress-agent", "tag": "1.2.3" } }),
        json!({ "maxUnavailable": "10%", "tolerations": [{ "operator": "Exists" }], "global": {} }),
    ];
    for values in good {
        assert_eq!(refusal(&values), None, "{values}");
    }
    // Each with a word that its message has.
    let bad = [
        (json!({ "imagee": {} }), "imagee"),
        (
            json!({ "image": { "repository": "egress-agent", "digest": "1" } }),
            "digest",
        ),
        (
            json!({ "image": { "repository": "Egress agent" } }),
            "repository",
        ),
        (json!({ "nodePolicy": { "mode": "loud" } }), "mode"),
        (json!({ "nodePolicy": { "alow": [] } }), "alow"),
        (json!({ "nodePolicy": { "ceiling": true } }), "ceiling"),
        (
            json!({ "nodePolicy": { "allow": [{ "name": "a.example.com" }] } }),
            "allow",
        ),
        (json!({ "lifelineCidrs": ["10.0.0"] }), "10.0.0"),
        (json!({ "lifelineCidrs": "10.0.0.0/8" }), "lifelineCidrs"),
        (json!({ "extraArgs": [1] }), "extraArgs"),
        (json!({ "maxUnavailable": 0 }), "maxUnavailable"),
        (json!({ "unload": "yes" }), "unload"),
        (json!({ "resources": { "cpu": "1" } }), "cpu"),
    ];
    for (values, word) in bad {
        let refusal = refusal(&values).unwrap_or_else(|| panic!("{values} is taken"));
        assert!(refusal.contains(word), "{refusal}");
    }
}

#[test]
fn it_is_of_this_version_and_its_image_that_of_the_base() {
    let chart = yaml("deploy/chart/Chart.yaml");
    for field in ["version", "appVersion"] {
        assert_eq!(chart[field], json!(env!("CARGO_PKG_VERSION")), "{field}");
    }
    let set = yaml("deploy/kubernetes/daemonset.yaml");
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let image = &yaml("deploy/chart/values.yaml")["image"];
    let tagged = format!(
        "{}:{}",
        image["repository"].as_str().unwrap(),
        chart["appVersion"].as_str().unwrap()
    );
    assert_eq!(container["image"], json!(tagged));
    assert_eq!(container["imagePullPolicy"], image["pullPolicy"]);
}

#[test]
fn it_renders_the_files_of_the_base_and_has_none_of_its_own() {
    let resources = |folder: &str| -> Vec<String> {
        let listed = yaml(&format!("deploy/{folder}/kustomization.yaml"))["resources"].clone();
        let listed: Vec<String> = serde_json::from_value(listed).unwrap();
        let files = listed.into_iter().filter(|file| file != "../crds");
        files.map(|file| format!("{folder}/{file}")).collect()
    };
    let mut wanted = resources("kubernetes");
    wanted.extend(resources("crds"));
    wanted.push("kubernetes/unload.yaml".to_owned());
    let chart = root().join("deploy/chart");
    let mut there: BTreeSet<String> = BTreeSet::new();
    for entry in fs::read_dir(chart.join("base")).unwrap() {
        there.insert(entry.unwrap().file_name().into_string().unwrap());
    }
    let mut templates = String::new();
    for entry in fs::read_dir(chart.join("templates")).unwrap() {
        templates += &fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    for file in wanted {
        let name = file.rsplit('/').next().unwrap();
        assert!(there.remove(name), "deploy/chart/base lacks {name}");
        let target = fs::read_link(chart.join("base").join(name));
        assert_eq!(
            target.unwrap_or_else(|error| panic!("deploy/chart/base/{name}: {error}")),
            Path::new("../..").join(&file)
        );
        assert!(templates.contains(name), "no template renders {name}");
    }
    assert!(there.is_empty(), "not of the base: {there:?}");
}
