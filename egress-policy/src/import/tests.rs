//! Fixtures: every folder of `testdata/import` becomes exactly the `policy.yaml` and the `notes.txt` in it, and every
//! file of `testdata/import-bad` gets exactly the messages beside it.
//!
//! `EGRESS_BLESS=1 cargo test -p egress-policy import::tests` writes them anew.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

use super::{ImportFormat, ImportSubject, Imported, NoteKind, import};
use crate::{
    compile::compile,
    document::{Catalog, EgressPolicy, PolicySet, ServiceTags},
    golden::golden,
    vocabulary::Lifeline,
    write::write_policies,
};

fn testdata(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/testdata")
        .join(folder)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The source files of a fixture, by their names.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let files = entries(folder)
        .into_iter()
        .filter(|path| !path.ends_with("policy.yaml") && !path.ends_with("notes.txt"));
    files
        .map(|path| {
            (
                PathBuf::from(path.file_name().unwrap()),
                fs::read_to_string(&path).unwrap(),
            )
        })
        .collect()
}

fn run(files: &[(PathBuf, String)], format: Option<ImportFormat>) -> Result<Imported, String> {
    let texts = files
        .iter()
        .map(|(file, text)| (file.as_path(), text.as_str()));
    import(texts, format, ImportSubject::Selected).map_err(|errors| errors.to_string())
}

/// Service tags that the fixtures name, and presets.
fn catalog() -> Catalog {
    let tag = |name: &str| {
        format!(
            r#"{{"name": "{name}", "id": "{name}", "properties": {{"addressPrefixes": ["203.0.113.0/24"], "region": "", "systemService": "", "changeNumber": 1}}}}"#
        )
    };
    let tags = ["AzureCloud.eastus", "Storage.westeurope"]
        .map(tag)
        .join(", ");
    let file = format!(r#"{{"changeNumber": 1, "cloud": "Public", "values": [{tags}]}}"#);
    let tags = ServiceTags::parse(Path::new("tags.json"), file.as_bytes(), None).unwrap();
    Catalog::new(Some(tags))
}

/// The documents, as the agent reads and compiles them.
fn round_trip(imported: &Imported) -> Vec<EgressPolicy> {
    let text = write_policies(&imported.policies);
    let set = PolicySet::from_texts([(Path::new("written.yaml"), text.as_str())], &catalog())
        .unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    let (of_node, alone) = set.by_subjects();
    for set in std::iter::once(of_node).chain(alone) {
        compile(&set, &Lifeline::new(), None).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    }
    set.policies()
        .iter()
        .map(|policy| policy.document.clone())
        .collect()
}

#[test]
fn every_fixture_becomes_its_policy_and_its_notes() {
    let mut wrong = Vec::new();
    let folders = entries(&testdata("import"));
    assert!(folders.len() >= 9, "{} fixtures", folders.len());
    for folder in folders {
        let imported = run(&sources(&folder), None).unwrap();
        let documents: Vec<_> = imported
            .policies
            .iter()
            .map(|draft| draft.document())
            .collect();
        assert_eq!(round_trip(&imported), documents, "{}", folder.display());
        let notes: String = imported
            .notes
            .iter()
            .map(|note| format!("{note}\n"))
            .collect();
        let results = [
            ("policy.yaml", write_policies(&imported.policies)),
            ("notes.txt", notes),
        ];
        for (name, text) in results {
            let expected = golden(&folder.join(name), &text);
            if text != expected {
                let path = folder.join(name);
                wrong.push(format!(
                    "{}: expected\n{expected}but got\n{text}",
                    path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_note_stands_in_a_comment_too() {
    for folder in entries(&testdata("import")) {
        let imported = run(&sources(&folder), None).unwrap();
        let text = write_policies(&imported.policies);
        for note in imported.notes {
            // Objects of other kinds have no place in any policy.
            if note.text.ends_with("is not imported")
                || note.text.contains("no policy")
                || note.text.contains("template does not")
            {
                continue;
            }
            assert!(
                text.contains(&format!("# {}\n", note.comment())),
                "{note}\n{text}"
            );
        }
    }
}

#[test]
fn every_bad_source_gets_its_messages() {
    let mut wrong = Vec::new();
    let files = entries(&testdata("import-bad"));
    let files = files
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension != "txt"));
    let mut count = 0;
    for path in files {
        count += 1;
        let name = PathBuf::from(path.file_name().unwrap());
        let source = [(name, fs::read_to_string(path).unwrap())];
        let format = path
            .extension()
            .filter(|extension| *extension == "hosts")
            .map(|_| ImportFormat::Hosts);
        let messages = match run(&source, format) {
            Err(messages) => format!("{messages}\n"),
            Ok(imported) => panic!("{}: {}", path.display(), write_policies(&imported.policies)),
        };
        let expected = golden(&path.with_extension("txt"), &messages);
        if messages != expected {
            wrong.push(format!(
                "{}: expected\n{expected}but got\n{messages}",
                path.display()
            ));
        }
    }
    assert!(count >= 7, "{count} bad sources");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_format_that_is_asked_for_has_to_be_there() {
    let cilium = sources(&testdata("import/cilium"));
    let good = run(&cilium, Some(ImportFormat::Cilium));
    // With a format the list's other kinds are errors.
    assert!(
        good.unwrap_err()
            .contains("\"ConfigMap\" is no kind that can be imported")
    );
    let error = run(&cilium, Some(ImportFormat::AzureFirewall)).unwrap_err();
    assert!(
        error.contains("is of the format cilium, not azure-firewall"),
        "{error}"
    );
    let azure = sources(&testdata("import/az-firewall-policy"));
    assert_eq!(
        run(&azure, Some(ImportFormat::AzureFirewall)),
        run(&azure, None)
    );
}

#[test]
fn files_of_several_formats_are_imported_together() {
    let mut files = sources(&testdata("import/aks-dependencies"));
    files.extend(sources(&testdata("import/hosts")));
    let imported = run(&files, None).unwrap();
    let names: Vec<&str> = imported
        .policies
        .iter()
        .map(|draft| draft.name.as_str())
        .collect();
    assert_eq!(names, ["allowed", "aks"]);
}

/// What is in force of an import of one JSON file.
fn documents(json: &serde_json::Value) -> Vec<EgressPolicy> {
    let file = (PathBuf::from("groups.json"), json.to_string());
    let imported = run(&[file], None).unwrap();
    imported
        .policies
        .iter()
        .map(|draft| draft.document())
        .collect()
}

#[test]
fn groups_mean_the_same_in_every_form_that_azure_has_for_them() {
    use serde_json::{Value, json};
    let source = sources(&testdata("import/az-firewall-policy"));
    let printed: Value = serde_json::from_str(&source[0].1).unwrap();
    let expected = documents(&printed);
    assert!(expected[0].spec.allow.len() > 5);
    // As the REST API answers.
    let nested = |group: &Value| {
        let properties =
            json!({"priority": group["priority"], "ruleCollections": group["ruleCollections"]});
        json!({"id": group["id"], "name": group["name"], "type": group["type"], "properties": properties})
    };
    let groups: Vec<Value> = printed.as_array().unwrap().iter().map(nested).collect();
    assert_eq!(documents(&json!({"value": groups})), expected);
    // As a template holds them: beside the policy, by symbolic names, and below it.
    let kind = "Microsoft.Network/firewallPolicies";
    let policy = |children: Value| json!({"type": kind, "name": "fwp-aks", "resources": children});
    let beside = |group: &Value| {
        let name = format!("fwp-aks/{}", group["name"].as_str().unwrap());
        json!({"type": format!("{kind}/ruleCollectionGroups"), "name": name, "properties": group["properties"]})
    };
    let resources: Vec<Value> = groups
        .iter()
        .map(beside)
        .chain([policy(json!([]))])
        .collect();
    assert_eq!(documents(&json!({"resources": resources})), expected);
    let named = serde_json::Map::from_iter(
        resources
            .iter()
            .enumerate()
            .map(|(index, item)| (format!("r{index}"), item.clone())),
    );
    assert_eq!(
        documents(&json!({"languageVersion": "2.0", "resources": named})),
        expected
    );
    let below = |group: &Value| json!({"type": "ruleCollectionGroups", "name": group["name"], "properties": group["properties"]});
    let children: Vec<Value> = groups.iter().map(below).collect();
    assert_eq!(
        documents(&json!({"resources": [policy(json!(children))]})),
        expected
    );
    // A collection by itself, as `collection list` prints them, has no group and no policy's name.
    let collections = documents(&printed[1]["ruleCollections"]);
    assert_eq!(collections[0].metadata.name, "groups");
    let denied = &collections[0].spec.deny;
    assert_eq!(
        (denied[0].cidrs[0].as_str(), denied[1].names[0].as_str()),
        ("203.0.113.0/24", "evil.docker.io")
    );
}

#[test]
fn what_an_expression_hides_is_left_out_and_opens_nothing() {
    let rule = |fields: &str| {
        let text = format!(
            "{{priority: 1, name: g, ruleCollections: [{{ruleCollectionType: F, name: c, priority: 1, action: {{type: Allow}}, rules: [{fields}]}}]}}"
        );
        let imported = run(&[(PathBuf::from("g.yaml"), text)], None).unwrap();
        (
            imported.policies[0].document().spec.allow,
            imported.notes.len(),
        )
    };
    let name = "ruleType: ApplicationRule, targetFqdns: [a.example]";
    let https = "protocols: [{protocolType: Https, port: 443}]";
    let (allow, notes) = rule(&format!("{{{name}, {https}}}"));
    assert_eq!((allow.len(), notes), (1, 0));
    for hidden in [
        format!("{{{name}, protocols: \"[parameters('p')]\"}}"),
        format!("{{{name}, protocols: [{{protocolType: Https, port: \"[parameters('p')]\"}}]}}"),
        format!("{{{name}}}"),
        format!("{{ruleType: ApplicationRule, targetFqdns: \"[parameters('p')]\", {https}}}"),
        "\"[parameters('p')]\"".to_owned(),
        "{ruleType: NetworkRule, ipProtocols: [TCP], destinationAddresses: ['*'], destinationPorts: \"[parameters('p')]\"}".to_owned(),
        "{ruleType: NetworkRule, destinationAddresses: ['*'], destinationPorts: ['443']}".to_owned(),
    ] {
        let (allow, notes) = rule(&hidden);
        assert_eq!((allow, notes), (vec![], 1), "{hidden}");
    }
}

/// A network rule of Azure Firewall.
fn network_rule(name: &str, to: &str, ports: &str) -> String {
    format!(
        "{{ruleType: NetworkRule, name: {name}, sourceAddresses: ['*'], ipProtocols: [TCP], destinationAddresses: [{to}], destinationPorts: ['{ports}']}}"
    )
}

/// A group with a collection for each action and rule, by priority.
fn group(collections: &[(&str, String)]) -> Imported {
    let texts: Vec<String> = collections
        .iter()
        .enumerate()
        .map(|(index, (action, rule))| {
            format!("{{ruleCollectionType: FirewallPolicyFilterRuleCollection, name: c, priority: {index}, action: {{type: {action}}}, rules: [{rule}]}}")
        })
        .collect();
    let text = format!(
        "{{priority: 100, name: g, ruleCollections: [{}]}}",
        texts.join(", ")
    );
    run(&[(PathBuf::from("group.yaml"), text)], None).unwrap()
}

/// What is in force: CIDRs that are allowed, and those that are denied.
fn in_force(imported: &Imported) -> (Vec<String>, Vec<String>) {
    let spec = imported.policies[0].document().spec;
    let cidrs =
        |rules: Vec<crate::SpecRule>| rules.into_iter().flat_map(|rule| rule.cidrs).collect();
    (cidrs(spec.allow), cidrs(spec.deny))
}

#[test]
fn a_deny_rule_before_all_is_carried_over_exactly() {
    let imported = group(&[
        ("Deny", network_rule("bad", "10.1.0.0/16", "*")),
        ("Allow", network_rule("good", "10.0.0.0/8", "443")),
    ]);
    assert_eq!(
        in_force(&imported),
        (vec!["10.0.0.0/8".into()], vec!["10.1.0.0/16".into()])
    );
    assert_eq!(imported.notes, []);
}

#[test]
fn a_deny_rule_after_all_that_it_meets_is_not_needed() {
    let imported = group(&[
        ("Allow", network_rule("good", "10.0.0.0/8", "443")),
        ("Deny", network_rule("rest", "'*'", "*")),
    ]);
    assert_eq!(in_force(&imported), (vec!["10.0.0.0/8".into()], vec![]));
    assert_eq!(imported.notes, []);
    assert!(write_policies(&imported.policies).contains("# - cidrs: [0.0.0.0/0, \"::/0\"]"));
}

#[test]
fn a_deny_rule_between_allow_rules_is_noted() {
    let imported = group(&[
        ("Allow", network_rule("first", "10.1.1.0/24", "443")),
        ("Deny", network_rule("bad", "10.1.0.0/16", "443")),
        ("Allow", network_rule("last", "10.0.0.0/8", "443")),
    ]);
    let (allow, deny) = in_force(&imported);
    assert_eq!((allow.len(), deny.len()), (2, 1));
    let [note] = imported.notes.as_slice() else {
        panic!("{:?}", imported.notes);
    };
    assert_eq!(note.kind, NoteKind::Differs);
    assert!(note.text.contains("\"g/c/first\""), "{note}");
    // On other ports nothing meets.
    let apart = group(&[
        ("Allow", network_rule("first", "10.1.1.0/24", "443")),
        ("Deny", network_rule("bad", "10.1.0.0/16", "25")),
        ("Allow", network_rule("last", "10.0.0.0/8", "443")),
    ]);
    assert_eq!(apart.notes, []);
}

#[test]
fn an_allow_rule_that_is_never_reached_is_not_in_force() {
    let imported = group(&[
        ("Allow", network_rule("good", "10.0.0.0/8", "443")),
        ("Deny", network_rule("rest", "'*'", "*")),
        ("Allow", network_rule("never", "192.0.2.0/24", "443")),
    ]);
    assert_eq!(in_force(&imported), (vec!["10.0.0.0/8".into()], vec![]));
    assert_eq!(imported.notes, []);
    // It is reached if the deny rule is about some sources only.
    let some = network_rule("rest", "'*'", "*")
        .replace("['*'], ipProtocols", "[10.9.0.0/16], ipProtocols");
    let imported = group(&[
        ("Deny", some),
        ("Allow", network_rule("good", "192.0.2.0/24", "443")),
    ]);
    assert_eq!(in_force(&imported).0, ["192.0.2.0/24"]);
    assert_eq!(imported.notes.len(), 1);
}

#[test]
fn large_and_hostile_sources_end_soon() {
    let started = Instant::now();
    // Rules that meet each other: comparisons are bounded.
    let rules: Vec<(&str, String)> = (0..400)
        .map(|n| {
            let action = if n % 2 == 0 { "Deny" } else { "Allow" };
            let to = format!("10.{}.{}.0/24", n % 256, n / 256);
            (action, network_rule(&format!("r{n}"), &to, "443"))
        })
        .collect();
    assert_eq!(group(&rules).policies.len(), 1);
    // Variables that double each other.
    let doubling: Vec<String> = (1..30)
        .map(|n| {
            format!(
                r#""v{n}": "[concat(variables('v{0}'), variables('v{0}'))]""#,
                n - 1
            )
        })
        .collect();
    let template = format!(
        r#"{{"$schema": "deploymentTemplate.json", "variables": {{"v0": ["a.example"], {}}}, "resources": [{{"type": "Microsoft.Network/firewallPolicies/ruleCollectionGroups", "name": "p/g", "properties": {{"priority": 1, "ruleCollections": "[variables('v29')]"}}}}]}}"#,
        doubling.join(", ")
    );
    let imported = run(&[(PathBuf::from("t.json"), template)], None).unwrap();
    assert!(
        imported.notes[0].text.contains("does not stand here"),
        "{imported:?}"
    );
    let bomb = format!("a: {}{}", "[".repeat(100_000), "]".repeat(100_000));
    let error = run(&[(PathBuf::from("b.yaml"), bomb)], None).unwrap_err();
    assert!(error.starts_with("b.yaml:1: "), "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}

/// A fixture's sources, with parts of a text replaced by others of the fixtures.
fn mutated() -> impl Strategy<Value = Vec<(PathBuf, String)>> {
    const BITS: &[&str] = &[
        "",
        "*",
        "0",
        "-1",
        "99999",
        "null",
        "[]",
        "{}",
        "true",
        "\"",
        "'",
        "[",
        "}",
        ":",
        ",",
        "\n",
        "- ",
        "#",
        "[a()]",
        "ä",
        "\u{0}",
        "::/0",
        "10.0.0.0/99",
        "**.a",
        "Deny",
        "Allow",
        "[parameters('partnerNames')]",
    ];
    let folders = entries(&testdata("import"));
    let fixtures: Vec<_> = folders.iter().map(|folder| sources(folder)).collect();
    let edit = (any::<Index>(), any::<Index>(), select(BITS), 0_usize..12);
    (select(fixtures), vec(edit, 1..6)).prop_map(|(mut files, edits)| {
        for (file, place, bit, length) in edits {
            let (_, text) = file.get_mut(&mut files);
            let starts = text.char_indices().map(|(at, _)| at);
            let places: Vec<usize> = starts.chain([text.len()]).collect();
            let start = place.index(places.len());
            let end = start
                .saturating_add(length)
                .min(places.len().saturating_sub(1));
            text.replace_range(places[start]..places[end], bit);
        }
        files
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_imported_can_be_read_again(files in mutated()) {
        if let Ok(imported) = run(&files, None) {
            let text = write_policies(&imported.policies);
            let read = crate::parse(Path::new("written.yaml"), &text, &catalog());
            let unknown_tag = |message: &str| message.contains("serviceTags[") || message.contains(".with.location: ");
            match read {
                Ok(policies) => {
                    let read: Vec<_> = policies.into_iter().map(|policy| policy.document).collect();
                    let written: Vec<_> = imported.policies.iter().map(|draft| draft.document()).collect();
                    prop_assert_eq!(read, written);
                }
                // A mutated tag is still a tag, if none that exists.
                Err(errors) => prop_assert!(errors.errors().iter().all(|error| unknown_tag(&error.to_string())), "{errors}\n{text}"),
            }
        }
    }
}

#[test]
fn a_denial_of_some_ports_is_no_denial_of_the_rest() {
    for (ports, has_note) in [
        ("", false),
        (
            ", protocols: [{ tcp: { destinationPort: { number: 25 } } }]",
            true,
        ),
    ] {
        let text = format!(
            "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: a}}, spec: {{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, \
             egress: [{{action: Accept, to: [{{networks: [10.0.0.0/8]}}]}}, {{action: Deny, to: [{{networks: [0.0.0.0/0]}}]{ports}}}]}}}}"
        );
        let imported = run(&[(PathBuf::from("a.yaml"), text)], None).unwrap();
        let is_told = imported
            .notes
            .iter()
            .any(|note| note.text.contains("no rule names"));
        assert_eq!(is_told, has_note, "{:?}", imported.notes);
    }
}

/// Ways to damage a source so that it is still JSON.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Remove,
    Rename,
    WrapInMap,
    WrapInList,
}

/// A JSON source of Azure or of a cluster, with one node damaged.
fn damaged() -> impl Strategy<Value = (String, serde_json::Value)> {
    const FOLDERS: &[&str] = &[
        "arm-loops",
        "arm-template",
        "az-firewall-policy",
        "azure-firewall-classic",
        "azure-firewall-stars",
        "cilium",
        "cilium-groups",
        "cilium-stars",
        "cluster-network-policy",
        "admin-network-policy",
        "network-policy",
        "calico",
        "ovn-egress-firewall",
        "antrea",
    ];
    let fixtures: Vec<serde_json::Value> = FOLDERS
        .iter()
        .flat_map(|folder| sources(&testdata(&format!("import/{folder}"))))
        .filter(|(file, _)| file != Path::new("parameters.json"))
        .flat_map(|(file, text)| {
            let text = super::json::without_comments(&file, &text).unwrap();
            serde_yaml_ng::Deserializer::from_str(&text)
                .map(|document| {
                    use serde::Deserialize as _;
                    serde_json::Value::deserialize(document).unwrap()
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let damage = select(vec![
        Damage::Remove,
        Damage::Rename,
        Damage::WrapInMap,
        Damage::WrapInList,
    ]);
    (select(fixtures), any::<Index>(), damage).prop_map(|(mut source, place, damage)| {
        let mut pointers = Vec::new();
        pointers_of(&source, String::new(), &mut pointers);
        let pointer = pointers[place.index(pointers.len())].clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let key = key.replace("~1", "/").replace("~0", "~");
        let parent = source.pointer_mut(parent).unwrap();
        match (damage, parent) {
            (Damage::Remove, serde_json::Value::Object(fields)) => {
                fields.remove(&key);
            }
            (Damage::Remove, serde_json::Value::Array(items)) => {
                items.remove(key.parse().unwrap());
            }
            (Damage::Rename, serde_json::Value::Object(fields)) => {
                let value = fields.remove(&key).unwrap();
                fields.insert(format!("x{key}"), value);
            }
            (Damage::WrapInMap | Damage::Rename, _) => {
                let node = source.pointer_mut(&pointer).unwrap();
                *node = serde_json::json!({ "wrapped": node.take() });
            }
            (Damage::WrapInList, _) => {
                let node = source.pointer_mut(&pointer).unwrap();
                *node = serde_json::json!([node.take()]);
            }
            (Damage::Remove, _) => unreachable!(),
        }
        (format!("{damage:?} {pointer}"), source)
    })
}

fn pointers_of(node: &serde_json::Value, at: String, pointers: &mut Vec<String>) {
    if !at.is_empty() {
        pointers.push(at.clone());
    }
    match node {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                let key = key.replace('~', "~0").replace('/', "~1");
                pointers_of(value, format!("{at}/{key}"), pointers);
            }
        }
        serde_json::Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                pointers_of(item, format!("{at}/{index}"), pointers);
            }
        }
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

#[test]
fn what_is_damaged_in_terraforms_output_is_not_lost_without_a_word() {
    let text = &sources(&testdata("import/terraform-plan"))[0].1;
    let whole: serde_json::Value = serde_json::from_str(text).unwrap();
    let import = |source: &serde_json::Value| {
        let source = (PathBuf::from("plan.json"), source.to_string());
        run(&[source], None).map(|imported| {
            let notes: BTreeSet<String> = imported.notes.iter().map(ToString::to_string).collect();
            (write_policies(&imported.policies), notes)
        })
    };
    let (_, notes_before) = import(&whole).unwrap();
    let planned = "/planned_values";
    let mut pointers = Vec::new();
    pointers_of(&whole["planned_values"], planned.to_owned(), &mut pointers);
    let mut count = 0;
    for pointer in &pointers {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        for is_wrapped in [false, true] {
            let mut source = whole.clone();
            if is_wrapped {
                let node = source.pointer_mut(pointer).unwrap();
                *node = serde_json::json!({ "wrapped": node.take() });
            } else if let Some(fields) = source
                .pointer_mut(parent)
                .and_then(|node| node.as_object_mut())
            {
                let value = fields.remove(key).unwrap();
                fields.insert(format!("x{key}"), value);
            } else {
                continue;
            }
            let Ok((text, notes)) = import(&source) else {
                continue;
            };
            count += 1;
            let lost = [
                "pypi.org",
                "pythonhosted.org",
                "paste.example.net",
                "ntp.example.com",
                "10.50.0.0",
                "10.60.0.0",
            ];
            let lost: Vec<&str> = lost
                .into_iter()
                .filter(|name| !text.contains(name))
                .collect();
            assert!(
                lost.is_empty() || !notes.is_subset(&notes_before),
                "{pointer} (wrapped: {is_wrapped}): {lost:?}, {notes:?}\n{text}"
            );
        }
    }
    assert!(count > 100, "{count} damaged plans could be imported");
}

/// The destinations in a source: names and networks that rules are about, each with the fields that lead there.
fn destinations(node: &serde_json::Value, at: &str, found: &mut Vec<(String, String)>) {
    /// What says nothing about a destination.
    const OTHERS: &[&str] = &[
        "$schema",
        "apiVersion",
        "id",
        "type",
        "metadata",
        "description",
        "location",
        "parameters",
        "variables",
        "outputs",
        "sourceAddresses",
        "sourceIpGroups",
        "protocolType",
        "ingress",
        "dependsOn",
    ];
    match node {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                if !OTHERS.contains(&key.strip_prefix('x').unwrap_or(key)) {
                    let at = if at.is_empty() {
                        key.clone()
                    } else {
                        format!("{at}.{key}")
                    };
                    destinations(value, &at, found);
                }
            }
        }
        serde_json::Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                destinations(item, &format!("{at}[{index}]"), found);
            }
        }
        serde_json::Value::String(text) => {
            let is_name = text.rsplit_once('.').is_some_and(|(_, end)| {
                ["example", "com", "org", "net", "io"].contains(&end)
                    && !text.contains([' ', '(', '/'])
            });
            let is_network = text.parse::<crate::Cidr>().is_ok() && text.contains(['.', ':']);
            if is_name || is_network {
                found.push((at.to_owned(), text.clone()));
            }
        }
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every destination that the source has is in the result, in a note, or the import fails.
    #[test]
    fn nothing_goes_without_a_word((what, source) in damaged()) {
        if let Ok(imported) = run(&[(PathBuf::from("source.json"), source.to_string())], None) {
            let text = write_policies(&imported.policies);
            let notes: Vec<String> = imported.notes.iter().map(|note| note.field.clone()).collect();
            let mut all = Vec::new();
            destinations(&source, "", &mut all);
            for (field, destination) in all {
                let is_noted = notes.iter().any(|note| {
                    field.strip_prefix(note.as_str()).is_some_and(|rest| {
                        rest.is_empty() || note.is_empty() || rest.starts_with(['.', '['])
                    })
                });
                let bare = destination.trim_start_matches(['*', '.']).to_lowercase();
                let bare = bare.split('/').next().unwrap_or_default().trim_end_matches(".0");
                prop_assert!(is_noted || text.contains(bare), "{what}: {field} {destination}\n{notes:?}\n{text}");
            }
        }
    }
}
