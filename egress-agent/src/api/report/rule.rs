//! Rules as text.

use crate::policy::{RuleList, RuleSource, port_range_text};

/// The ports of a rule; one `any` where it names none.
pub(super) fn rule_ports(rule: &RuleSource) -> Vec<String> {
    if rule.ports.is_empty() {
        return vec!["any".to_owned()];
    }
    rule.ports.iter().map(port_range_text).collect()
}

/// A rule in one line: `policy/node allow[0] *.example.com 443/tcp`, and of a preset
/// `policy/node allow[1] aks/azure-global: mcr.microsoft.com 443/tcp`.
#[must_use]
pub fn rule_text(rule: &RuleSource) -> String {
    let place = match rule.list {
        RuleList::Lifeline => "lifeline".to_owned(),
        list @ (RuleList::Allow | RuleList::Deny) => {
            format!("policy/{} {}[{}]", rule.policy, list.name(), rule.index)
        }
    };
    let preset = rule.preset.as_ref();
    let preset = preset.map(|preset| format!("{preset}: "));
    format!(
        "{place} {}{} {}",
        preset.unwrap_or_default(),
        rule.destination,
        rule_ports(rule).join(",")
    )
}

/// Stands in for a rule that no loaded policy holds any more.
pub(super) fn gone_rule_text(rule: u64) -> String {
    format!("removed rule {rule:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::rule;

    #[test]
    fn a_rule_names_its_place_destination_and_ports() {
        let mut source = rule(RuleList::Allow, "*.example.com");
        assert_eq!(
            rule_text(&source),
            "policy/node allow[0] *.example.com 443/tcp"
        );
        source.preset = Some("team/shop".to_owned());
        assert_eq!(
            rule_text(&source),
            "policy/node allow[0] team/shop: *.example.com 443/tcp"
        );
        source.preset = None;
        source.ports.clear();
        assert_eq!(rule_text(&source), "policy/node allow[0] *.example.com any");
        source.list = RuleList::Lifeline;
        assert_eq!(rule_text(&source), "lifeline *.example.com any");
    }
}
