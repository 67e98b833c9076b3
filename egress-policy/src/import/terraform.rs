//! Reads the output of `terraform show -json`, of a plan or a state: Azure Firewall resources become what ARM calls them, so that
//! one importer reads both. Lines stay those of the source.

use std::collections::BTreeMap;

use super::{
    input::Item,
    selectors::{unknown_field, unknown_fields},
    sink::{Note, NoteKind, Sink},
};
use crate::read::{Node, Value};

/// Fields of what `terraform show -json` prints, of a module, and of a resource.
const DOCUMENT: &[&str] = &[
    "applyable",
    "checks",
    "complete",
    "configuration",
    "errored",
    "format_version",
    "output_changes",
    "planned_values",
    "prior_state",
    "relevant_attributes",
    "resource_changes",
    "resource_drift",
    "terraform_version",
    "timestamp",
    "values",
    "variables",
];
const MODULE: &[&str] = &["address", "child_modules", "resources"];
const RESOURCE: &[&str] = &[
    "address",
    "deposed_key",
    "depends_on",
    "index",
    "mode",
    "name",
    "provider_name",
    "schema_version",
    "sensitive_values",
    "tainted",
    "type",
    "values",
];
const IP_GROUP: &[&str] = &[
    "cidrs",
    "firewall_ids",
    "firewall_policy_ids",
    "id",
    "location",
    "name",
    "resource_group_name",
    "tags",
    "timeouts",
];

/// Most levels of modules in modules.
const DEPTH: usize = 32;

/// True if a document is one.
pub(super) fn is_it(document: &Item<'_>) -> bool {
    document.get("format_version").is_some()
        && (document.get("planned_values").is_some()
            || document.get("values").is_some()
            || document.get("terraform_version").is_some())
}

/// The firewall resources as a list of ARM resources. All others are counted in notes.
pub(super) fn translated(document: &Item<'_>, sink: &mut Sink) -> Node {
    let mut found = Found::default();
    others(document, DOCUMENT, sink);
    let values = document.get("planned_values").or(document.get("values"));
    if let Some(values) = values {
        others(&values, &["outputs", "root_module"], sink);
        if let Some(root) = values.get("root_module") {
            found.module(&root, 0, sink);
        }
    }
    for change in document
        .get("resource_changes")
        .iter()
        .flat_map(Item::items)
    {
        unknown(&change, sink);
    }
    for (kind, (count, at)) in found.others {
        let text = format!("Terraform: {count} of {kind}, which is not imported");
        sink.notes.push(Note::new(&at, NoteKind::LeftOut, text));
    }
    // In a plan for what is to be made, groups do not know the id of their policy yet.
    let mut policies = found.resources.iter().filter(|made| made.is_policy);
    let only = match (policies.next(), policies.next()) {
        (Some(policy), None) => policy.name.clone(),
        _ => String::new(),
    };
    let resources = found.resources.into_iter().map(|made| made.node(&only));
    Node {
        line: document.node().line,
        value: Value::List(resources.collect()),
    }
}

/// Notes fields that are not known here.
fn others(of: &Item<'_>, known: &[&str], sink: &mut Sink) {
    for field in unknown_fields(of, known) {
        let text = unknown_field(&field);
        sink.notes.push(Note::new(&field, NoteKind::LeftOut, text));
    }
}

#[derive(Default)]
struct Found<'n> {
    resources: Vec<Made>,
    others: BTreeMap<&'n str, (usize, Item<'n>)>,
}

/// A resource in the words of ARM.
struct Made {
    line: usize,
    kind: &'static str,
    name: String,
    id: Option<String>,
    location: Option<String>,
    properties: Vec<(Node, Node)>,
    is_policy: bool,
    is_group: bool,
}

impl Made {
    fn node(self, only_policy: &str) -> Node {
        let line = self.line;
        let name = if self.is_group && self.id.is_none() && !only_policy.is_empty() {
            format!("{only_policy}/{}", self.name)
        } else {
            self.name
        };
        let mut pairs = vec![
            pair(line, "type", text(line, self.kind)),
            pair(line, "name", text(line, &name)),
        ];
        pairs.extend(self.id.map(|id| pair(line, "id", text(line, &id))));
        pairs.extend(
            self.location
                .map(|location| pair(line, "location", text(line, &location))),
        );
        pairs.push(pair(line, "properties", map(line, self.properties)));
        map(line, pairs)
    }
}

impl<'n> Found<'n> {
    fn module(&mut self, module: &Item<'n>, depth: usize, sink: &mut Sink) {
        others(module, MODULE, sink);
        for resource in sink.maps(module, "resources") {
            self.resource(&resource, sink);
        }
        for child in sink.maps(module, "child_modules") {
            if depth >= DEPTH {
                let text = "lies too deep: more modules in modules than can be read";
                sink.notes.push(Note::new(&child, NoteKind::LeftOut, text));
                continue;
            }
            self.module(&child, depth.saturating_add(1), sink);
        }
    }

    fn resource(&mut self, resource: &Item<'n>, sink: &mut Sink) {
        let kind = resource.word("type").unwrap_or("a resource without type");
        let is_managed = resource.word("mode") != Some("data");
        let Some(values) = resource.get("values").filter(|_| is_managed) else {
            return self.other(kind, resource);
        };
        if kind.starts_with("azurerm_firewall") || kind == "azurerm_ip_group" {
            others(resource, RESOURCE, sink);
        }
        let word = |name: &str| values.word(name).unwrap_or_default().to_owned();
        let mut made = Made {
            line: resource.node().line,
            kind: "",
            name: word("name"),
            id: values.word("id").map(str::to_owned),
            location: values.word("location").map(str::to_owned),
            properties: Vec::new(),
            is_policy: false,
            is_group: false,
        };
        match kind {
            "azurerm_firewall_policy" => {
                made.kind = "Microsoft.Network/firewallPolicies";
                made.is_policy = true;
                made.properties = policy(&values);
            }
            "azurerm_firewall_policy_rule_collection_group" => {
                made.kind = "Microsoft.Network/firewallPolicies/ruleCollectionGroups";
                made.is_group = true;
                made.id = values
                    .word("firewall_policy_id")
                    .map(|id| format!("{id}/ruleCollectionGroups/{}", made.name));
                made.properties = group(&values, sink);
            }
            "azurerm_ip_group" => {
                made.kind = "Microsoft.Network/ipGroups";
                others(&values, IP_GROUP, sink);
                // Of another shape it would be no network at all.
                let _ = sink.list(&values, "cidrs");
                made.properties = renamed(&values, |name| match name {
                    "cidrs" => Some("ipAddresses"),
                    _ => None,
                });
                made.properties
                    .retain(|(key, _)| key_of(key) == "ipAddresses");
            }
            "azurerm_firewall_application_rule_collection"
            | "azurerm_firewall_network_rule_collection"
            | "azurerm_firewall_nat_rule_collection" => {
                made.kind = "Microsoft.Network/azureFirewalls";
                made.name = word("azure_firewall_name");
                made.id = None;
                let (list, is_application) = match kind {
                    "azurerm_firewall_application_rule_collection" => {
                        ("applicationRuleCollections", true)
                    }
                    "azurerm_firewall_network_rule_collection" => ("networkRuleCollections", false),
                    _ => ("natRuleCollections", false),
                };
                let line = made.line;
                let collection = classic(&values, is_application, sink);
                made.properties = vec![pair(line, list, items(line, vec![collection]))];
            }
            _ => return self.other(kind, resource),
        }
        self.resources.push(made);
    }

    fn other(&mut self, kind: &'n str, resource: &Item<'n>) {
        let other = self.others.entry(kind);
        let (count, _) = other.or_insert_with(|| (0, resource.clone()));
        *count = count.saturating_add(1);
    }
}

/// Notes what a plan does not know yet about a firewall.
fn unknown(change: &Item<'_>, sink: &mut Sink) {
    let kind = change.word("type").unwrap_or_default();
    let is_firewall = kind.starts_with("azurerm_firewall") || kind == "azurerm_ip_group";
    let Some(after) = change
        .at("change", "after_unknown")
        .filter(|_| is_firewall && change.word("mode") != Some("data"))
    else {
        return;
    };
    let address = change.word("address").unwrap_or(kind);
    let mut leaves = Vec::new();
    collect(&after, &mut leaves, 0);
    for leaf in leaves {
        let field = leaf.name().to_owned();
        // Which policy a group is of is found by the names.
        if !matches!(field.as_str(), "id" | "firewall_policy_id") {
            let text = format!(
                "{field} of {address} is known only after apply: no policy has it; import the state then"
            );
            sink.notes.push(Note::new(&leaf, NoteKind::LeftOut, text));
        }
    }
}

fn collect<'n>(value: &Item<'n>, leaves: &mut Vec<Item<'n>>, depth: usize) {
    if depth >= DEPTH {
        return;
    }
    if value.text() == Some("true") {
        leaves.push(value.clone());
    }
    let deeper = depth.saturating_add(1);
    for (name, field) in value.fields() {
        // Managed by Azure alone.
        if !(depth == 0
            && [
                "child_policies",
                "firewalls",
                "rule_collection_groups",
                "firewall_ids",
                "firewall_policy_ids",
            ]
            .contains(&name))
        {
            collect(&field, leaves, deeper);
        }
    }
    value
        .items()
        .for_each(|item| collect(&item, leaves, deeper));
}

fn policy(values: &Item<'_>) -> Vec<(Node, Node)> {
    let mut properties = Vec::new();
    if let Some(base) = values.get("base_policy_id") {
        let line = base.node().line;
        let id = pair(line, "id", base.node().clone());
        properties.push(pair(line, "basePolicy", map(line, vec![id])));
    }
    if let Some(mode) = values.get("threat_intelligence_mode") {
        let line = mode.node().line;
        properties.push(pair(line, "threatIntelMode", mode.node().clone()));
    }
    let detection = values.get("intrusion_detection");
    if let Some(mode) = detection
        .iter()
        .flat_map(Item::items)
        .find_map(|item| item.get("mode"))
    {
        let line = mode.node().line;
        let mode = pair(line, "mode", mode.node().clone());
        properties.push(pair(line, "intrusionDetection", map(line, vec![mode])));
    }
    properties
}

fn group(values: &Item<'_>, sink: &mut Sink) -> Vec<(Node, Node)> {
    let line = values.node().line;
    let lists = [
        (
            "network_rule_collection",
            "FirewallPolicyFilterRuleCollection",
            "NetworkRule",
        ),
        (
            "application_rule_collection",
            "FirewallPolicyFilterRuleCollection",
            "ApplicationRule",
        ),
        (
            "nat_rule_collection",
            "FirewallPolicyNatRuleCollection",
            "NatRule",
        ),
    ];
    let mut collections = Vec::new();
    for (list, kind, rule_kind) in lists {
        for collection in sink.maps(values, list) {
            let at = collection.node().line;
            let mut pairs = head(&collection, sink);
            pairs.push(pair(at, "ruleCollectionType", text(at, kind)));
            let rules = sink.maps(&collection, "rule");
            let rules = rules.iter().map(|rule| {
                let mut pairs = rule_fields(rule, rule_kind == "ApplicationRule", true);
                let at = rule.node().line;
                pairs.push(pair(at, "ruleType", text(at, rule_kind)));
                map(at, pairs)
            });
            let rules = rules.collect();
            pairs.push(pair(at, "rules", items(at, rules)));
            collections.push(map(at, pairs));
        }
    }
    let mut properties = vec![pair(line, "ruleCollections", items(line, collections))];
    let priority = values.get("priority");
    properties.extend(priority.map(|priority| pair(line, "priority", priority.node().clone())));
    for (name, field) in values.fields() {
        let is_known = lists.iter().any(|(list, _, _)| *list == name)
            || ["id", "name", "priority", "firewall_policy_id", "timeouts"].contains(&name);
        if !is_known && !field.says_nothing() {
            properties.push(pair(field.node().line, name, field.node().clone()));
        }
    }
    properties
}

/// A collection of a classic firewall, which is a resource of its own.
fn classic(values: &Item<'_>, is_application: bool, sink: &mut Sink) -> Node {
    let line = values.node().line;
    let rules = sink.maps(values, "rule");
    let rules = rules
        .iter()
        .map(|rule| map(rule.node().line, rule_fields(rule, is_application, false)));
    let rules = rules.collect();
    let mut pairs = head(values, sink);
    pairs.push(pair(line, "rules", items(line, rules)));
    map(line, pairs)
}

/// Name, priority and action of a collection, and what else it has.
fn head(collection: &Item<'_>, _sink: &mut Sink) -> Vec<(Node, Node)> {
    const OTHERS: &[&str] = &[
        "azure_firewall_name",
        "id",
        "resource_group_name",
        "rule",
        "timeouts",
    ];
    let mut pairs = Vec::new();
    for (name, field) in collection.fields() {
        let line = field.node().line;
        if name == "action" {
            let kind = pair(line, "type", field.node().clone());
            pairs.push(pair(line, "action", map(line, vec![kind])));
        } else if !OTHERS.contains(&name) {
            pairs.push(pair(line, name, field.node().clone()));
        }
    }
    pairs
}

fn rule_fields(rule: &Item<'_>, is_application: bool, is_of_policy: bool) -> Vec<(Node, Node)> {
    let mut pairs = renamed(rule, |name| {
        Some(match (name, is_application) {
            ("source_addresses", _) => "sourceAddresses",
            ("source_ip_groups", _) => "sourceIpGroups",
            ("destination_addresses", _) => "destinationAddresses",
            ("destination_ip_groups", _) => "destinationIpGroups",
            ("destination_ports", _) => "destinationPorts",
            ("destination_fqdns", true) | ("target_fqdns", _) => "targetFqdns",
            ("destination_fqdns", false) => "destinationFqdns",
            ("destination_fqdn_tags" | "fqdn_tags", _) => "fqdnTags",
            ("destination_urls", _) => "targetUrls",
            ("web_categories", _) => "webCategories",
            ("terminate_tls", _) => "terminateTLS",
            ("http_headers", _) => "httpHeadersToInsert",
            ("protocols" | "protocol", true) => "protocols",
            ("protocols", false) if is_of_policy => "ipProtocols",
            _ => return None,
        })
    });
    if is_application {
        for (key, value) in &mut pairs {
            if let ("protocols", Value::List(protocols)) = (key_of(key), &mut value.value) {
                protocols.iter_mut().for_each(protocol_type);
            }
        }
    }
    pairs
}

/// `{ type: Https, port: 443 }`
fn protocol_type(protocol: &mut Node) {
    if let Value::Map(pairs) = &mut protocol.value {
        for (key, _) in pairs {
            if key_of(key) == "type" {
                key.value = Value::Text("protocolType".to_owned());
            }
        }
    }
}

/// The fields that say something, under other names; those without one keep theirs. What is not known in a list is noted
/// elsewhere.
fn renamed(of: &Item<'_>, name_of: impl Fn(&str) -> Option<&'static str>) -> Vec<(Node, Node)> {
    let fields = of.fields().filter(|(_, field)| !field.says_nothing());
    let pairs = fields.map(|(name, field)| {
        let mut node = field.node().clone();
        if let Value::List(items) = &mut node.value {
            items.retain(|item| !matches!(item.value, Value::Null));
        }
        pair(node.line, name_of(name).unwrap_or(name), node)
    });
    pairs.collect()
}

fn key_of(key: &Node) -> &str {
    match &key.value {
        Value::Text(text) => text,
        Value::Null | Value::List(_) | Value::Map(_) => "",
    }
}

fn text(line: usize, text: &str) -> Node {
    Node {
        line,
        value: Value::Text(text.to_owned()),
    }
}

const fn map(line: usize, pairs: Vec<(Node, Node)>) -> Node {
    Node {
        line,
        value: Value::Map(pairs),
    }
}

const fn items(line: usize, items: Vec<Node>) -> Node {
    Node {
        line,
        value: Value::List(items),
    }
}

fn pair(line: usize, key: &str, value: Node) -> (Node, Node) {
    (text(line, key), value)
}
