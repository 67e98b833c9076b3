//! Azure Firewall: policies with rule collection groups, and classic firewalls, as `az … -o json` prints them and
//! as ARM templates hold them.
//!
//! The firewall looks at network rules first, then at application rules; among each by the priority of the group,
//! of the collection, and by order. The first rule that matches decides.

mod application;
mod expression;
mod functions;
mod groups;
mod network;
mod rules;
mod template;

use std::collections::HashMap;

use self::{
    groups::{Collector, policy_notes, region_of, unknown_field, unknown_fields},
    rules::Context,
    template::Values,
};
use super::{
    input::Item,
    order::first_match_to_deny_wins,
    rule::Carried,
    sink::{Note, NoteKind, Sink},
};
use crate::read::Node;

/// Most levels of templates in templates, and of resources in resources.
const DEPTH: usize = 8;

/// True if it is a template.
pub(super) fn is_template(document: &Item<'_>) -> bool {
    document.get("resources").is_some() && document.get("type").is_none()
}

/// True if it is a file of parameters for a template.
pub(super) fn is_parameters_file(document: &Item<'_>) -> bool {
    let schema = document.word("$schema").unwrap_or_default();
    schema.contains("deploymentParameters.json") && document.get("parameters").is_some()
}

/// True if it is a resource, or a part of one, that says something about a firewall.
pub(super) fn is_resource(document: &Item<'_>) -> bool {
    let kind = document.word("type").unwrap_or_default().to_lowercase();
    let is_named = ["firewallpolicies", "azurefirewalls", "ipgroups"];
    let parts = [
        "ruleCollections",
        "ruleCollectionType",
        "applicationRuleCollections",
        "networkRuleCollections",
        "ruleCollectionGroups",
        "ipAddresses",
    ];
    let has =
        |part: &&str| document.get(part).is_some() || document.at("properties", part).is_some();
    kind.starts_with("microsoft.network/") && is_named.iter().any(|name| kind.contains(name))
        || parts.iter().any(has)
}

/// Fields of a template.
const TEMPLATE: &[&str] = &[
    "$schema",
    "apiProfile",
    "asserts",
    "contentVersion",
    "definitions",
    "extensions",
    "functions",
    "imports",
    "languageVersion",
    "metadata",
    "outputs",
    "parameters",
    "resources",
    "variables",
];

/// Fields of a deployment inside of a template, and of its properties.
const DEPLOYMENT: &[&str] = &[
    "apiVersion",
    "comments",
    "condition",
    "debugSetting",
    "dependsOn",
    "expressionEvaluationOptions",
    "location",
    "metadata",
    "mode",
    "name",
    "parameters",
    "properties",
    "resourceGroup",
    "scope",
    "subscriptionId",
    "tags",
    "template",
    "type",
];

/// Fields of a firewall policy, and of its properties.
const POLICY: &[&str] = &[
    "apiVersion",
    "basePolicy",
    "childPolicies",
    "comments",
    "condition",
    "dependsOn",
    "dnsSettings",
    "etag",
    "explicitProxy",
    "firewalls",
    "id",
    "identity",
    "insights",
    "intrusionDetection",
    "location",
    "metadata",
    "name",
    "properties",
    "provisioningState",
    "resourceGroup",
    "resourceGuid",
    "resources",
    "ruleCollectionGroups",
    "scope",
    "size",
    "sku",
    "snat",
    "sql",
    "subscriptionId",
    "systemData",
    "tags",
    "tenantId",
    "threatIntelMode",
    "threatIntelWhitelist",
    "transportSecurity",
    "type",
];

/// Makes policies of all documents together: groups, IP groups and parameters may stand in different files.
pub(super) fn import(documents: &[Item<'_>], sink: &mut Sink) {
    let mut given = Values::new();
    for file in documents.iter().filter(|item| is_parameters_file(item)) {
        given.extend(template::parameters_of(file));
    }
    let resolved: Vec<(&Item<'_>, Node)> = documents
        .iter()
        .filter(|item| !is_parameters_file(item))
        .map(|item| {
            let node = if is_template(item) {
                template::resolved(item, &given)
            } else {
                item.node().clone()
            };
            (item, node)
        })
        .collect();
    let mut found = Found::default();
    for (item, node) in &resolved {
        let item = item.with_node(node);
        if is_template(&item) {
            found.unknown_fields(&item, TEMPLATE);
            found.resources(&item, None, 0);
        } else {
            found.resource(item, None, 0);
        }
    }
    found.import(sink);
}

/// The contents of the documents.
#[derive(Default)]
struct Found<'n> {
    /// IP groups, by the last part of their id in lower case.
    ip_groups: HashMap<String, Vec<Item<'n>>>,
    /// Notes that belong to no policy.
    notes: Vec<Note>,
    /// Policies in the order in which they were found.
    policies: Vec<FirewallPolicy<'n>>,
}

/// A firewall policy or a classic firewall: what becomes one policy here.
struct FirewallPolicy<'n> {
    key: String,
    name: String,
    location: Option<String>,
    notes: Vec<Note>,
    groups: Vec<Item<'n>>,
}

impl<'n> Found<'n> {
    /// The resources of a template or of a resource.
    fn resources(&mut self, of: &Item<'n>, parent: Option<&str>, depth: usize) {
        let Some(list) = of.get("resources") else {
            return;
        };
        if depth >= DEPTH {
            let text = "lies too deep: more templates in templates than can be read";
            self.notes.push(Note::new(&list, NoteKind::LeftOut, text));
            return;
        }
        // Since language version 2.0 they may have names of their own.
        let by_name = list.fields().map(|(_, item)| item);
        for resource in list.items().chain(by_name) {
            // What only refers to something that exists says nothing itself.
            let is_reference =
                resource.word("existing") == Some("true") && resource.get("properties").is_none();
            if !is_reference {
                self.resource(resource, parent, depth.saturating_add(1));
            }
        }
    }

    fn resource(&mut self, resource: Item<'n>, parent: Option<&str>, depth: usize) {
        let kind = resource.word("type").unwrap_or_default().to_lowercase();
        let properties = resource
            .get("properties")
            .unwrap_or_else(|| resource.clone());
        if let Some(addresses) = properties.get("ipAddresses") {
            let name = resource
                .word("name")
                .or(resource.word("id"))
                .unwrap_or_default();
            self.ip_groups
                .insert(last_part(name), addresses.items().collect());
        } else if kind == "microsoft.resources/deployments" {
            match properties.get("template").filter(Item::is_map) {
                Some(template) => {
                    self.unknown_fields(&template, TEMPLATE);
                    self.resources(&template, None, depth);
                }
                None => {
                    let text =
                        "a deployment whose template does not stand here; give that file too";
                    self.notes
                        .push(Note::new(&resource, NoteKind::LeftOut, text));
                }
            }
            self.unknown_fields(&resource, DEPLOYMENT);
            self.unknown_fields(&properties, DEPLOYMENT);
        } else if kind.ends_with("/firewallpolicies")
            || properties.get("ruleCollectionGroups").is_some()
        {
            let name = resource.word("name").unwrap_or_default().to_owned();
            let policy = self.policy(&name, &resource);
            policy.location = properties_location(&resource);
            policy.notes.extend(policy_notes(&properties));
            for of in [&resource, &properties] {
                let unknown = unknown_fields(of, POLICY).into_iter();
                let notes = unknown
                    .map(|field| Note::new(&field, NoteKind::LeftOut, unknown_field(&field)));
                policy.notes.extend(notes);
            }
            let ids = properties.get("ruleCollectionGroups");
            for group in ids.iter().flat_map(Item::items) {
                if group.fields().any(|(name, _)| name != "id") {
                    let text = "a group inside of its policy; export the groups by themselves";
                    policy
                        .notes
                        .push(Note::new(&group, NoteKind::LeftOut, text));
                }
            }
            self.resources(&resource, Some(&name), depth);
        } else if is_group(&kind, &properties) {
            let name = policy_of_group(&resource)
                .or(parent)
                .unwrap_or_default()
                .to_owned();
            self.policy(&name, &resource).groups.push(resource);
        } else if !resource.says_nothing() {
            let what = match resource.word("type") {
                Some(kind) => format!("a {kind} is not imported"),
                None => "is no resource that can be imported".to_owned(),
            };
            self.notes
                .push(Note::new(&resource, NoteKind::LeftOut, what));
            // It may hold what can.
            self.resources(&resource, None, depth);
        }
    }

    /// Notes fields that are not known here.
    fn unknown_fields(&mut self, of: &Item<'n>, known: &[&str]) {
        for field in unknown_fields(of, known) {
            let note = Note::new(&field, NoteKind::LeftOut, unknown_field(&field));
            self.notes.push(note);
        }
    }

    /// The policy of this name, or of the file if it has none.
    fn policy(&mut self, name: &str, resource: &Item<'_>) -> &mut FirewallPolicy<'n> {
        let stem = resource
            .file()
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        let has_name = !name.is_empty() && expression::inside(name).is_none();
        let name = if has_name {
            name.to_owned()
        } else {
            stem.unwrap_or_default()
        };
        let key = name.to_lowercase();
        let known = self.policies.iter().position(|policy| policy.key == key);
        let index = known.unwrap_or_else(|| {
            self.policies.push(FirewallPolicy {
                key,
                name,
                location: None,
                notes: Vec::new(),
                groups: Vec::new(),
            });
            self.policies.len().saturating_sub(1)
        });
        #[expect(
            clippy::indexing_slicing,
            reason = "the position was just found or filled"
        )]
        &mut self.policies[index]
    }

    fn import(self, sink: &mut Sink) {
        sink.notes.extend(self.notes);
        let ip_groups = self.ip_groups;
        for policy in self.policies {
            let mut draft = sink.draft(&policy.name);
            for note in policy.notes {
                sink.note(&mut draft, note);
            }
            let location = region_of(&policy.groups).or(policy.location);
            let ip_groups = &ip_groups;
            let mut collector = Collector {
                context: Context {
                    ip_groups,
                    location,
                },
                ranked: Vec::new(),
                sink,
            };
            policy
                .groups
                .iter()
                .for_each(|group| collector.group(group));
            let mut ranked = collector.ranked;
            if ranked.is_empty() {
                draft.comments.push("Holds no rules.".to_owned());
            }
            ranked.sort_by_key(|(rank, _)| *rank);
            let mut rules: Vec<Carried<'_>> = ranked.into_iter().map(|(_, rule)| rule).collect();
            first_match_to_deny_wins(&mut rules);
            for rule in rules {
                rule.finish(&mut draft, sink);
            }
            sink.drafts.push(draft);
        }
    }
}

fn is_group(kind: &str, properties: &Item<'_>) -> bool {
    let parts = [
        "ruleCollections",
        "ruleCollectionType",
        "applicationRuleCollections",
        "networkRuleCollections",
    ];
    kind.ends_with("/rulecollectiongroups")
        || parts.iter().any(|part| properties.get(part).is_some())
}

/// The last part of a path, in lower case.
fn last_part(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_lowercase()
}

/// The policy in the id or in the two-part name of a group, or the name of a classic firewall.
fn policy_of_group<'n>(group: &Item<'n>) -> Option<&'n str> {
    let mut parts = group.word("id").unwrap_or_default().split('/');
    if parts
        .by_ref()
        .any(|part| part.eq_ignore_ascii_case("firewallPolicies"))
    {
        return parts.next();
    }
    let name = group.word("name")?;
    let kind = group.word("type").unwrap_or_default();
    let is_whole = kind.to_lowercase().ends_with("/azurefirewalls");
    name.split_once('/')
        .map(|(policy, _)| policy)
        .or(is_whole.then_some(name))
}

fn properties_location(resource: &Item<'_>) -> Option<String> {
    let location = resource.word("location")?;
    expression::inside(location)
        .is_none()
        .then(|| location.to_lowercase().replace(' ', ""))
}
