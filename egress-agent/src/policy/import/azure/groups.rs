//! Rule collection groups, collections, and what a policy says besides rules.

use std::collections::BTreeSet;

use super::super::{
    input::Item,
    rule::Carried,
    sink::{Note, NoteKind, Sink},
};
use super::{
    last_part,
    rules::{self, Context, Kind},
};
use crate::policy::yaml::{Node, Value};

/// Collections that come last when their priority is not known.
const LAST: u32 = u32::MAX;

/// Where a rule stands among all: application rules come last; then priority of the group and of the collection.
pub(super) type Rank = (bool, u32, u32);

/// What a policy says besides rules.
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

/// The rules of a group, of a single collection, or of a classic firewall.
pub(super) fn group_rules<'n>(
    group: &Item<'n>,
    context: &Context<'_, 'n>,
    ranked: &mut Vec<(Rank, Carried<'n>)>,
    sink: &mut Sink,
) {
    let properties = group.get("properties").unwrap_or_else(|| group.clone());
    let name = group
        .word("name")
        .map(|name| name.rsplit('/').next().unwrap_or(name));
    let name = name.unwrap_or_default();
    for special in ["copy", "condition"] {
        if let Some(field) = group.get(special) {
            let mut rule = Carried::new(field.clone(), name, false);
            rule.differs(
                &field,
                format!("{special} is not looked at: taken as it stands, once"),
            );
            ranked.push(((false, 0, 0), rule));
        }
    }
    if properties.get("ruleCollectionType").is_some() {
        collection(&properties, "", 0, None, context, ranked, sink);
        return;
    }
    let priority = rules::priority(&properties, sink).unwrap_or(LAST);
    for item in sink.list(&properties, "ruleCollections") {
        collection(&item, name, priority, None, context, ranked, sink);
    }
    let classic = [
        ("networkRuleCollections", Kind::Network),
        ("applicationRuleCollections", Kind::Application),
        ("natRuleCollections", Kind::Nat),
    ];
    for (list, kind) in classic {
        for item in sink.list(&properties, list) {
            collection(&item, name, 0, Some(kind), context, ranked, sink);
        }
    }
}

fn collection<'n>(
    item: &Item<'n>,
    group: &str,
    group_priority: u32,
    kind: Option<Kind>,
    context: &Context<'_, 'n>,
    ranked: &mut Vec<(Rank, Carried<'n>)>,
    sink: &mut Sink,
) {
    let name = item.word("name").unwrap_or_default();
    let title = if group.is_empty() {
        name.to_owned()
    } else {
        format!("{group}/{name}")
    };
    let properties = item.get("properties").unwrap_or_else(|| item.clone());
    let priority = rules::priority(&properties, sink).unwrap_or(LAST);
    let is_nat = properties
        .word("ruleCollectionType")
        .is_some_and(|kind| kind.contains("Nat"));
    let kind = if is_nat { Some(Kind::Nat) } else { kind };
    if kind == Some(Kind::Nat) {
        let mut rule = Carried::new(item.clone(), &title, false);
        rule.left_out(
            item,
            "rewrites destinations of what comes in; here only egress is judged",
        );
        ranked.push(((false, group_priority, priority), rule));
        return;
    }
    let action = properties.at("action", "type").or(properties.get("action"));
    let is_deny = match action.as_ref().and_then(Item::text) {
        Some(text) if text.eq_ignore_ascii_case("allow") => false,
        Some(text) if text.eq_ignore_ascii_case("deny") => true,
        Some(_) | None => {
            return sink.choice(action.as_ref().unwrap_or(item), "action: Allow or Deny");
        }
    };
    for rule in sink.list(&properties, "rules") {
        if !rule.is_map() {
            sink.shape(
                &rule,
                "a rule",
                "{ ruleType: ApplicationRule, targetFqdns: [api.example.com] }",
            );
            continue;
        }
        let title = format!("{title}/{}", rule.word("name").unwrap_or_default());
        if let Some((kind, rule)) = rules::rule(&rule, &title, is_deny, kind, context, sink) {
            ranked.push(((kind == Kind::Application, group_priority, priority), rule));
        }
    }
}
