//! Presets in policies.

use std::{collections::BTreeSet, path::Path};

use egress_common::policy::EntryKind;

use super::Presets;
use crate::{
    compile::{Compiled, compile},
    document::{Catalog, PolicySet, ServiceTags},
    preset::Kind,
    read::PolicyErrors,
    vocabulary::{Lifeline, address_from},
};

/// A file of service tags with those that presets use.
const TAGS: &str = r#"{ "changeNumber": 1, "cloud": "Public", "values": [
  { "name": "AzureCloud.eastus", "properties": { "addressPrefixes": ["198.51.100.0/24", "2001:db8:1::/48"] } },
  { "name": "AzureActiveDirectory", "properties": { "addressPrefixes": ["198.51.100.1/32"] } },
  { "name": "AzureMachineLearning", "properties": { "addressPrefixes": ["198.51.100.2/32"] } },
  { "name": "BatchNodeManagement.EastUS", "properties": { "addressPrefixes": ["198.51.100.3/32"] } },
  { "name": "AzureResourceManager", "properties": { "addressPrefixes": ["198.51.100.4/32"] } },
  { "name": "Storage.EastUS", "properties": { "addressPrefixes": ["198.51.100.5/32"] } },
  { "name": "AzureFrontDoor.Frontend", "properties": { "addressPrefixes": ["198.51.100.6/32"] } },
  { "name": "AzureFrontDoor.FirstParty", "properties": { "addressPrefixes": ["198.51.100.7/32"] } },
  { "name": "MicrosoftContainerRegistry", "properties": { "addressPrefixes": ["198.51.100.8/32"] } },
  { "name": "AzureKeyVault.EastUS", "properties": { "addressPrefixes": ["198.51.100.9/32"] } },
  { "name": "AzureMonitor", "properties": { "addressPrefixes": ["198.51.100.10/32"] } }
] }"#;

fn catalog() -> Catalog {
    Catalog::new(Some(
        ServiceTags::parse(Path::new("tags.json"), TAGS.as_bytes(), None).unwrap(),
    ))
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: node }}\nspec:\n{spec}"
    )
}

fn set(text: &str, catalog: &Catalog) -> Result<PolicySet, PolicyErrors> {
    PolicySet::from_texts([(Path::new("node.yaml"), text)], catalog)
}

fn compiled(spec: &str, catalog: &Catalog) -> Compiled {
    let set = set(&policy(spec), catalog).unwrap_or_else(|errors| panic!("{errors}"));
    compile(&set, &Lifeline::new(), None).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The destinations of all rules with the line that they come from.
fn sources(compiled: &Compiled) -> BTreeSet<(String, Option<usize>)> {
    let sources = compiled.rules.values();
    sources
        .map(|source| {
            let preset = source.preset.as_ref().map(|preset| format!("{preset}: "));
            let text = format!("{}{}", preset.unwrap_or_default(), source.destination);
            (text, source.line)
        })
        .collect()
}

const ONE_LINE: &str =
    "  allow:\n    - preset: aks/azure-global\n      with: { location: eastus }\n";

#[test]
fn one_line_opens_what_a_cluster_needs() {
    let compiled = compiled(ONE_LINE, &Catalog::default());
    for name in [
        "x.hcp.eastus.azmk8s.io",
        "mcr.microsoft.com",
        "weu.data.mcr.microsoft.com",
    ] {
        let rules = compiled
            .rules_of_name(name)
            .unwrap_or_else(|| panic!("{name}"));
        let ports = rules.entries[0].ports;
        assert_eq!(
            (ports.proto, ports.first, ports.last),
            (6, 443, 443),
            "{name}"
        );
    }
    for name in [
        "x.hcp.westus.azmk8s.io",
        "data.mcr.microsoft.com",
        "ntp.ubuntu.com",
        "example.com",
    ] {
        assert!(compiled.rules_of_name(name).is_none(), "{name}");
    }
}

#[test]
fn a_rule_says_which_preset_it_comes_from_and_where_that_is_named() {
    let sources = sources(&compiled(ONE_LINE, &Catalog::default()));
    assert_eq!(sources.len(), 9, "{sources:?}");
    assert!(
        sources.contains(&("aks/azure-global: mcr.microsoft.com".to_owned(), Some(6))),
        "{sources:?}"
    );
}

#[test]
fn a_rule_is_the_same_rule_when_it_is_written_out() {
    // So that flows survive when a preset is replaced by its rules, and the other way round.
    let preset = compiled(ONE_LINE, &Catalog::default());
    let expansion = super::expand("aks/azure-global", &["location=eastus"]);
    let draft = Presets::default()
        .get("aks/azure-global")
        .unwrap()
        .draft(&expansion);
    let text = crate::write_policies(&[draft]).replace("aks-azure-global", "node");
    let set = set(&text, &Catalog::default()).unwrap();
    let written = compile(&set, &Lifeline::new(), None).unwrap();
    assert_eq!(preset.names, written.names);
    let ids = |compiled: &Compiled| compiled.rules.keys().copied().collect::<BTreeSet<_>>();
    assert_eq!(ids(&preset), ids(&written));
}

#[test]
fn presets_stand_beside_other_rules() {
    let spec = "  allow:\n    - names: [shop.example.com]\n    - preset: aks/addon/gpu\n    - names: [nvidia.github.io]\n      ports: [80/tcp]\n";
    let compiled = compiled(spec, &Catalog::default());
    assert!(compiled.rules_of_name("shop.example.com").is_some());
    let entries = compiled.rules_of_name("nvidia.github.io").unwrap().entries;
    let ports: Vec<u16> = entries
        .iter()
        .map(|entry| entry.ports.first)
        .filter(|port| *port > 0)
        .collect();
    assert_eq!(ports, [443, 80]);
    let lines: Vec<usize> = sources(&compiled)
        .iter()
        .filter_map(|(_, line)| *line)
        .collect();
    assert_eq!(
        lines,
        [7, 7, 7, 8, 6].map(|line| line).to_vec(),
        "{:?}",
        sources(&compiled)
    );
}

#[test]
fn a_preset_can_be_denied_on_every_port() {
    let spec =
        "  allow:\n    - names: [\"*.microsoft.com\"]\n  deny:\n    - preset: aks/addon/windows\n";
    let compiled = compiled(spec, &Catalog::default());
    assert_ne!(compiled.rules_of_name("go.microsoft.com").unwrap().deny, 0);
    assert_eq!(compiled.rules_of_name("www.microsoft.com").unwrap().deny, 0);
    let spec = "  allow:\n    - cidrs: [0.0.0.0/0]\n  deny:\n    - preset: aks/azure-global\n      with: { location: eastus, konnectivity: false, tunnelTo: service-tag }\n";
    let compiled = self::compiled(spec, &catalog());
    let address = address_from("198.51.100.7".parse().unwrap());
    let entries = compiled.rules_of_address(&address).unwrap().entries;
    let denied: Vec<u16> = entries
        .iter()
        .filter(|entry| entry.kind == EntryKind::Deny as u8)
        .map(|entry| entry.ports.first)
        .collect();
    assert_eq!(denied, [1194, 9000], "{entries:?}");
}

#[test]
fn values_may_be_lists_and_single_values() {
    for with in ["[10.0.0.10, fd00::10]", "10.0.0.10", "[]"] {
        let spec = format!(
            "  allow:\n    - preset: aks/azure-global\n      with: {{ location: eastus, customDns: {with} }}\n"
        );
        let compiled = compiled(&spec, &Catalog::default());
        let address = address_from("10.0.0.10".parse().unwrap());
        assert_eq!(
            compiled.rules_of_address(&address).is_some(),
            with != "[]",
            "{with}"
        );
    }
}

#[test]
fn what_is_wrong_is_told_with_the_line_of_the_policy() {
    for (spec, message) in [
        (
            "  allow:\n    - preset: aks/azure-globl\n",
            "node.yaml:6: spec.allow[0].preset: \"aks/azure-globl\" is not a preset; write aks/azure-global: `egress-agent preset list` shows all",
        ),
        (
            "  allow:\n    - preset: aks/azure-global\n",
            "node.yaml:6: spec.allow[0].with: preset aks/azure-global needs location: The region of the cluster, such as eastus; write with: { location: eastus }",
        ),
        (
            "  deny:\n    - preset: aks/addon/gpu\n      with:\n        cloud: x\n",
            "node.yaml:8: spec.deny[0].with.cloud: preset aks/addon/gpu has no variable \"cloud\"; it has none: leave with out",
        ),
        (
            "  allow:\n    - preset: aks/azure-global\n      with:\n        location: eastus\n        customDns: [10.0.0.1/8]\n",
            "node.yaml:9: spec.allow[0].with.customDns: \"10.0.0.1/8\" has host bits set; write 10.0.0.0/8 for the network or 10.0.0.1/32 for the one address",
        ),
        (
            "  allow:\n    - preset: aks/azure-global\n      with:\n        location: eastus\n        location: westus\n",
            "node.yaml:9: spec.allow[0].with.location: is given twice; keep one of them",
        ),
        (
            "  allow:\n    - preset: aks/azure-global\n      with: [location]\n",
            "node.yaml:7: spec.allow[0].with: is a list where a mapping is needed; write with: { location: eastus }",
        ),
        (
            "  allow:\n    - preset: azureml/rstudio\n      with: { imageHosts: [] }\n",
            "node.yaml:7: spec.allow[0].with.imageHosts: is empty; write at least one, such as api.example.com",
        ),
        (
            "  allow:\n    - preset: aks/addon/istio\n      with: { cloud: china-21vianet }\n",
            "node.yaml:7: spec.allow[0].with.cloud: \"china-21vianet\" is not a value that exists here; write azure-global or us-government",
        ),
        (
            "  allow:\n    - preset: azureml/hbi\n      with: { region: eastus }\n",
            "node.yaml:6: spec.allow[0].preset: preset azureml/hbi: \"AzureKeyVault.eastus\" is a service tag, and no file says what it means; give one with --service-tags FILE, or as serviceTags.file in the settings",
        ),
        (
            "  allow:\n    - preset: aks/azure-global\n      with: { location: eastus, konnectivity: false, tunnelTo: service-tag }\n",
            "node.yaml:6: spec.allow[0].preset: preset aks/azure-global: \"AzureCloud.eastus\" is a service tag, and no file says what it means; give one with --service-tags FILE, or as serviceTags.file in the settings; or choose another way with tunnelTo",
        ),
    ] {
        let errors = set(&policy(spec), &Catalog::default())
            .unwrap_err()
            .to_string();
        assert_eq!(errors, message, "{spec}");
    }
}

#[test]
fn too_many_ports_at_a_name_of_a_preset_are_told_at_its_line() {
    let ports: Vec<String> = (1..=8).map(|port| format!("{port}/tcp")).collect();
    let spec = format!(
        "  allow:\n    - names: [mcr.microsoft.com]\n      ports: [{}]\n    - preset: azureml/docker-images\n",
        ports.join(", ")
    );
    let set = set(&policy(&spec), &Catalog::default()).unwrap();
    let errors = compile(&set, &Lifeline::new(), None)
        .unwrap_err()
        .to_string();
    assert!(
        errors.contains("node.yaml:8: spec.allow[1].preset (443/tcp)"),
        "{errors}"
    );
}

#[test]
fn every_preset_compiles() {
    let presets = Presets::default();
    let mut count = 0;
    for preset in presets.all() {
        let clouds = match preset.variable("cloud").map(|variable| &variable.kind) {
            Some(Kind::Choice(clouds)) => clouds.clone(),
            _ => vec![String::new()],
        };
        for cloud in clouds {
            let needed = preset
                .required()
                .filter(|variable| variable.when.is_always());
            let mut with: Vec<String> = needed
                .map(|variable| format!("{}: {}", variable.name, variable.kind.example()))
                .collect();
            if !cloud.is_empty() {
                with.push(format!("cloud: {cloud}"));
            }
            let with = with.join(", ");
            let spec = format!(
                "  allow:\n    - preset: {}\n      with: {{ {with} }}\n",
                preset.name
            );
            let compiled = compiled(&spec, &catalog());
            assert!(!compiled.rules.is_empty(), "{}", preset.name);
            count += 1;
        }
    }
    assert!(count > 35, "{count}");
}

#[test]
fn service_tags_of_presets_become_their_networks() {
    let spec = "  allow:\n    - preset: azureml/storage\n      with: { region: EastUS }\n";
    let compiled = compiled(spec, &catalog());
    let address = |text: &str| address_from(text.parse().unwrap());
    assert!(
        compiled
            .rules_of_address(&address("198.51.100.5"))
            .is_some()
    );
    assert!(
        compiled
            .rules_of_address(&address("198.51.100.6"))
            .is_none()
    );
    let source = sources(&compiled).into_iter().next().unwrap();
    assert_eq!(
        source,
        ("azureml/storage: Storage.eastus".to_owned(), Some(6))
    );
}

#[test]
fn a_policy_with_a_preset_is_written_as_it_was() {
    let text = policy(
        "  allow:\n    - preset: aks/azure-global\n      with: { location: eastus, privateCluster: true, customDns: [10.0.0.1, 10.0.0.2] }\n",
    );
    let set = set(&text, &Catalog::default()).unwrap();
    let json = serde_json::to_value(&set.policies()[0]).unwrap();
    let wanted = serde_json::json!({
        "preset": "aks/azure-global",
        "with": { "location": "eastus", "privateCluster": "true", "customDns": ["10.0.0.1", "10.0.0.2"] },
    });
    assert_eq!(json["spec"]["allow"][0], wanted);
    // As a Kubernetes resource it may have numbers and truth values.
    let rule = serde_json::json!({
        "preset": "aks/azure-global",
        "with": { "location": "eastus", "privateCluster": true, "customDns": ["10.0.0.1", "10.0.0.2"] },
    });
    let spec = serde_json::json!({ "allow": [rule] });
    let read: crate::Spec = serde_json::from_value(spec).unwrap();
    let read = &read.allow[0];
    assert_eq!(read, &set.policies()[0].document.spec.allow[0]);
}
