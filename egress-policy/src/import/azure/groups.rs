//! Rule collection groups, collections, and what a policy says besides rules.

use std::collections::BTreeSet;

use super::{
    super::{
        input::Item,
        rule::Carried,
        sink::{Note, NoteKind, Sink},
    },
    expression::inside,
    last_part,
    rules::{self, Context, Kind},
};
use crate::read::{Node, Value};

/// Collections that come last when their priority is not known.
const LAST: u32 = u32::MAX;

/// Where a rule stands among all: application rules come last; then priority of the group and of the collection.
pub(super) type Rank = (bool, u32, u32);

/// The settings of a policy besides rules.
pub(super) fn policy_notes(properties: &Item<'_>) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut note = |at: &Item<'_>, text: String| notes.push(Note::new(at, NoteKind::LeftOut, text));
    if let Some(base) = properties.get("basePolicy") {
        let name = base.word("id").map(last_part).unwrap_or_default();
        note(
            &base,
            format!("the rules of the base policy {name:?} come first there: import it too"),
        );
    }
    if let Some(mode) = properties
        .get("threatIntelMode")
        .filter(|mode| mode.text() == Some("Deny"))
    {
        note(
            &mode,
            "threat intelligence denies there what no rule names".to_owned(),
        );
    }
    let detection = properties.at("intrusionDetection", "mode");
    if let Some(mode) = detection.filter(|mode| mode.text() == Some("Deny")) {
        note(
            &mode,
            "intrusion detection looks at what is said on connections there".to_owned(),
        );
    }
    notes
}

/// The region that the policy's own rules name in service tags, if it is one.
pub(super) fn region_of(groups: &[Item<'_>]) -> Option<String> {
    fn collect(node: &Node, regions: &mut BTreeSet<String>) {
        match &node.value {
            Value::Null => {}
            Value::Text(text) => {
                let lower = text.to_lowercase();
                regions.extend(lower.strip_prefix("azurecloud.").map(str::to_owned));
            }
            Value::List(items) => items.iter().for_each(|item| collect(item, regions)),
            Value::Map(pairs) => pairs.iter().for_each(|(_, value)| collect(value, regions)),
        }
    }
    let mut regions = BTreeSet::new();
    groups
        .iter()
        .for_each(|group| collect(group.node(), &mut regions));
    let only = regions.len() == 1;
    regions.pop_first().filter(|_| only)
}

/// Collects the rules of groups, single collections and classic firewalls.
pub(super) struct Collector<'a, 'n> {
    /// The groups that rules may refer to.
    pub(super) context: Context<'a, 'n>,
    /// The rules, each with its rank.
    pub(super) ranked: Vec<(Rank, Carried<'n>)>,
    /// Where errors go.
    pub(super) sink: &'a mut Sink,
}

impl<'n> Collector<'_, 'n> {
    /// The rules of a group, of a single collection, or of a classic firewall.
    pub(super) fn group(&mut self, group: &Item<'n>) {
        let properties = group.get("properties").unwrap_or_else(|| group.clone());
        let name = group.word("name").unwrap_or_default();
        let name = name.rsplit('/').next().unwrap_or(name);
        for special in ["copy", "condition"] {
            let Some(field) = group.get(special) else {
                continue;
            };
            let rank = (false, 0, 0);
            match (special, field.text().map(str::to_lowercase).as_deref()) {
                ("condition", Some("true")) => {}
                ("condition", Some("false")) => {
                    let text = "Its condition is false, so that it is not deployed.";
                    self.say(name, rank, |rule| rule.remark(text), &field);
                    return;
                }
                _ => {
                    let text = format!(
                        "the value of {special} does not stand here: taken as it stands, once"
                    );
                    self.say(name, rank, |rule| rule.differs(&field, text), &field);
                }
            }
        }
        self.others(group, name, GROUP);
        if group.get("properties").is_some() {
            self.others(&properties, name, GROUP);
        }
        if group
            .get("type")
            .is_some_and(|kind| kind.shown().to_lowercase().ends_with("/rulegroups"))
        {
            let text = "a rule group of the API before 2020: export it as a rule collection group";
            self.say(
                name,
                (false, 0, 0),
                |rule| rule.left_out(group, text),
                group,
            );
        }
        if properties.get("ruleCollectionType").is_some() {
            self.collection(&properties, "", 0, None);
            return;
        }
        let priority = rules::priority(&properties, self.sink).unwrap_or(LAST);
        for item in self.list(&properties, "ruleCollections", name, priority) {
            self.collection(&item, name, priority, None);
        }
        let classic = [
            ("networkRuleCollections", Kind::Network),
            ("applicationRuleCollections", Kind::Application),
            ("natRuleCollections", Kind::Nat),
        ];
        for (list, kind) in classic {
            for item in self.list(&properties, list, name, 0) {
                self.collection(&item, name, 0, Some(kind));
            }
        }
    }

    /// Says which fields of an object are not known here.
    fn others(&mut self, of: &Item<'n>, title: &str, known: &[&str]) {
        for field in unknown_fields(of, known) {
            let text = unknown_field(&field);
            self.say(
                title,
                (false, 0, 0),
                |rule| rule.left_out(&field, text),
                &field,
            );
        }
    }

    /// Adds a rule that is only a comment.
    fn say(
        &mut self,
        title: &str,
        rank: Rank,
        words: impl FnOnce(&mut Carried<'n>),
        at: &Item<'n>,
    ) {
        let mut rule = Carried::new(at.clone(), title, false);
        words(&mut rule);
        self.ranked.push((rank, rule));
    }

    /// The items of a list; if it is an expression whose value is not known, it is left out.
    fn list(&mut self, of: &Item<'n>, name: &str, title: &str, priority: u32) -> Vec<Item<'n>> {
        match of.get(name).filter(is_open) {
            Some(field) => {
                let text = unknown(&field);
                self.say(
                    title,
                    (false, priority, LAST),
                    |rule| rule.left_out(&field, text),
                    &field,
                );
                Vec::new()
            }
            None => self.sink.list(of, name),
        }
    }

    fn collection(
        &mut self,
        item: &Item<'n>,
        group: &str,
        group_priority: u32,
        kind: Option<Kind>,
    ) {
        let name = item.word("name").unwrap_or_default();
        let title = if group.is_empty() {
            name.to_owned()
        } else {
            format!("{group}/{name}")
        };
        let properties = item.get("properties").unwrap_or_else(|| item.clone());
        let priority = rules::priority(&properties, self.sink).unwrap_or(LAST);
        let rank = (false, group_priority, priority);
        self.others(item, &title, COLLECTION);
        if item.get("properties").is_some() {
            self.others(&properties, &title, COLLECTION);
        }
        let is_nat = properties
            .word("ruleCollectionType")
            .is_some_and(|kind| kind.contains("Nat"));
        if is_nat || kind == Some(Kind::Nat) {
            let text = "rewrites destinations of what comes in; here only egress is judged";
            self.say(&title, rank, |rule| rule.left_out(item, text), item);
            return;
        }
        let action = properties.at("action", "type").or(properties.get("action"));
        if let Some(action) = properties.get("action").filter(Item::is_map) {
            self.others(&action, &title, &["type"]);
        }
        if let Some(action) = action.as_ref().filter(|action| is_open(action)) {
            let text = unknown(action);
            self.say(&title, rank, |rule| rule.left_out(item, text), item);
            return;
        }
        let is_deny = match action.as_ref().and_then(Item::text) {
            Some(text) if text.eq_ignore_ascii_case("allow") => false,
            Some(text) if text.eq_ignore_ascii_case("deny") => true,
            Some(_) | None => {
                let at = action.as_ref().unwrap_or(item);
                return self.sink.choice(at, "action: Allow or Deny");
            }
        };
        for rule in self.list(&properties, "rules", &title, group_priority) {
            let title = format!("{title}/{}", rule.word("name").unwrap_or_default());
            if is_open(&rule) {
                let text = unknown(&rule);
                self.say(&title, rank, |carried| carried.left_out(&rule, text), &rule);
            } else if !rule.is_map() {
                let example = "{ ruleType: ApplicationRule, targetFqdns: [api.example.com] }";
                self.sink.shape(&rule, "a rule", example);
            } else if let Some((kind, rule)) =
                rules::rule(&rule, &title, is_deny, kind, &self.context, self.sink)
            {
                let is_application = kind == Kind::Application;
                self.ranked
                    .push(((is_application, group_priority, priority), rule));
            }
        }
    }
}

/// Fields of a group, and of a classic firewall.
const GROUP: &[&str] = &[
    "apiVersion",
    "applicationRuleCollections",
    "comments",
    "condition",
    "copy",
    "dependsOn",
    "etag",
    "extendedLocation",
    "id",
    "identity",
    "location",
    "managedBy",
    "metadata",
    "name",
    "natRuleCollections",
    "networkRuleCollections",
    "priority",
    "properties",
    "provisioningState",
    "resourceGroup",
    "resourceGuid",
    "ruleCollectionType",
    "ruleCollections",
    "action",
    "rules",
    "scope",
    "size",
    "sku",
    "subscriptionId",
    "systemData",
    "tags",
    "tenantId",
    "type",
    "zones",
    // Of a classic firewall.
    "additionalProperties",
    "autoscaleConfiguration",
    "firewallPolicy",
    "hubIPAddresses",
    "hubIpAddresses",
    "ipConfigurations",
    "ipGroups",
    "managementIpConfiguration",
    "threatIntelMode",
    "virtualHub",
];

/// Fields of a collection.
const COLLECTION: &[&str] = &[
    "action",
    "etag",
    "id",
    "name",
    "priority",
    "properties",
    "provisioningState",
    "resourceGroup",
    "ruleCollectionType",
    "rules",
    "type",
];

/// The fields of an object that are none of these and say something.
pub(super) fn unknown_fields<'n>(of: &Item<'n>, known: &[&str]) -> Vec<Item<'n>> {
    let fields = of.fields();
    let unknown = fields.filter(|(name, field)| !known.contains(name) && !field.says_nothing());
    unknown.map(|(_, field)| field).collect()
}

/// The note about such a field.
pub(super) fn unknown_field(field: &Item<'_>) -> String {
    format!("the field {} is not known here", field.name())
}

/// True if it is an expression, whose value then is not known.
pub(super) fn is_open(item: &Item<'_>) -> bool {
    item.text().is_some_and(|text| inside(text).is_some())
}

/// The note about such an expression.
pub(super) fn unknown(at: &Item<'_>) -> String {
    let shown = at.shown();
    format!("the value of {shown} does not stand here; give the parameters file too")
}
