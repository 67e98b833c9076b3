//! A policy of what was seen, for people to read before they enforce it.

mod head;
mod rule;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egress_common::verdict::{Reason, Verdict};

use self::rule::Rule;
use super::{
    ports::Ports,
    table::{is_a_matter_of_rules, reason_of},
};
use crate::{
    api::{
        Timestamp,
        model::{Observation, Observations},
    },
    policy::{
        Cidr, Draft, Entry, RuleList, SpecMode, Star, parse_name_pattern, protocol_number,
        write_policies,
    },
};

/// Most labels of a name that a wildcard never stands directly below: `*.com` is nobody's.
const TOP_LABELS: usize = 1;
/// Options of the policy.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Its name.
    pub name: String,
    /// When it is made.
    pub at: Timestamp,
    /// Flows last seen before this were left out.
    pub since: Option<Timestamp>,
    /// Flows of other scopes were left out.
    pub from: Option<String>,
    /// More names than this directly below one name become a wildcard; never if none.
    pub wildcard: Option<usize>,
    /// Take in what rules allow.
    pub include_allowed: bool,
    /// Take in what enforcing denied.
    pub include_denied: bool,
}

/// A policy as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The YAML.
    pub text: String,
    /// How many rules it has.
    pub rules: usize,
    /// How many addresses it lists apart.
    pub addresses: usize,
}

/// Observations that pass the options of time and scope. Losses of before stay out too.
#[must_use]
pub fn seen_since(
    mut seen: Observations,
    since: Option<Timestamp>,
    from: Option<&str>,
) -> Observations {
    let is_late = |last: Timestamp| since.is_none_or(|since| last >= since);
    seen.observations
        .retain(|one| is_late(one.last) && from.is_none_or(|from| one.scope == from));
    seen.losses.retain(|loss| is_late(loss.last));
    seen
}

/// Makes the policy.
#[must_use]
pub fn generate(seen: &Observations, options: &GenerateOptions) -> Generated {
    let mut findings = Findings::default();
    for observation in &seen.observations {
        findings.take(observation, options);
    }
    if let Some(most) = options.wildcard {
        findings.offer_wildcards(most);
    }
    let draft = Draft {
        target: crate::policy::Target::Node,
        comments: findings.head(seen, options),
        name: options.name.clone(),
        mode: SpecMode::Audit,
        allow: findings.rules(),
        deny: Vec::new(),
    };
    Generated {
        text: write_policies(&[draft]),
        rules: findings.names.len(),
        addresses: findings.addresses.len(),
    }
}

/// Labels from the top down: names that belong together sort together.
type Labels = Vec<String>;

fn labels(name: &str) -> Labels {
    name.rsplit('.').map(str::to_owned).collect()
}

fn name_of(labels: &[String]) -> String {
    let mut name: Vec<&str> = labels.iter().map(String::as_str).collect();
    name.reverse();
    name.join(".")
}

/// Observations, sorted by what becomes of them.
#[derive(Debug, Default)]
struct Findings {
    names: BTreeMap<Labels, Rule>,
    addresses: BTreeMap<IpAddr, Rule>,
    allowed_flows: u64,
    denied_flows: u64,
    allowed_by_now: u64,
    denied_by_rule: BTreeSet<String>,
    expired: BTreeSet<String>,
    not_rules: BTreeSet<String>,
    beyond_rules: BTreeMap<Reason, u64>,
}

impl Findings {
    fn take(&mut self, observation: &Observation, options: &GenerateOptions) {
        let verdict = &*observation.verdict;
        let add = |sum: &mut u64| *sum = sum.saturating_add(observation.flows);
        let reason = reason_of(&observation.reason);
        // An enforced policy allows what only an audit beside it denies.
        let is_allowed = verdict == Verdict::Allow.name() || reason.is_some_and(Reason::is_audited);
        if is_allowed && !options.include_allowed {
            return add(&mut self.allowed_flows);
        }
        if verdict == Verdict::Deny.name() && !options.include_denied {
            return add(&mut self.denied_flows);
        }
        let Some(reason) = reason else {
            self.not_rules.insert(destination(observation));
            return;
        };
        if !is_a_matter_of_rules(reason) {
            return add(self.beyond_rules.entry(reason).or_default());
        }
        let by_rule = |list: RuleList| observation.rule.as_deref() == Some(list.name());
        if reason == Reason::DeniedCidr || by_rule(RuleList::Deny) {
            self.denied_by_rule.insert(destination(observation));
            return;
        }
        let is_covered = by_rule(RuleList::Allow) || by_rule(RuleList::Lifeline);
        if is_covered && !options.include_allowed {
            if reason == Reason::Expired {
                self.expired.insert(destination(observation));
                return;
            }
            return add(&mut self.allowed_by_now);
        }
        let mut ports = Ports::default();
        let protocol = protocol_number(&observation.protocol);
        let has_ports = protocol.is_some_and(|protocol| ports.add(protocol, observation.port));
        let rule = match (&observation.name, observation.addresses.first()) {
            (Some(name), _) if has_ports && is_name(name) => {
                self.names.entry(labels(name)).or_default()
            }
            (None, Some(address)) if has_ports => self.addresses.entry(*address).or_default(),
            _ => {
                self.not_rules.insert(destination(observation));
                return;
            }
        };
        rule.add(observation);
        rule.ports.extend(&ports);
    }

    /// Puts `*.parent` in the place of everything below a name that has more than `most` names directly below it.
    fn offer_wildcards(&mut self, most: usize) {
        let mut below: BTreeMap<&[String], usize> = BTreeMap::new();
        for name in self.names.keys() {
            if let Some((_, parent)) = name.split_last()
                && parent.len() > TOP_LABELS
            {
                let siblings = below.entry(parent).or_default();
                *siblings = siblings.saturating_add(1);
            }
        }
        let mut parents: Vec<Labels> = below
            .into_iter()
            .filter(|(_, siblings)| *siblings > most)
            .map(|(parent, _)| parent.to_vec())
            .collect();
        // The shortest first: what is below it needs no wildcard of its own.
        parents.sort_by_key(Vec::len);
        for parent in parents {
            let is_below = |name: &Labels| name.len() > parent.len() && name.starts_with(&parent);
            let names: Vec<Labels> = self.names.keys().filter(|n| is_below(n)).cloned().collect();
            let mut wildcard = Rule::default();
            for name in names {
                if let Some(rule) = self.names.remove(&name) {
                    wildcard.replace(name_of(&name), rule);
                }
            }
            if !wildcard.replaced.is_empty() {
                let mut name = parent;
                name.push("*".to_owned());
                self.names.insert(name, wildcard);
            }
        }
    }

    /// The rules; those for addresses are off.
    fn rules(&self) -> Vec<Entry> {
        let mut rules = Vec::new();
        for (labels, rule) in &self.names {
            rules.push(Entry::Comment(rule.words()));
            rules.push(Entry::Rule(rule.spec(vec![name_of(labels)], Vec::new())));
        }
        if !self.addresses.is_empty() {
            let also = if self.names.is_empty() {
                ", and the [] from `allow`"
            } else {
                ""
            };
            rules.push(Entry::Comment(format!(
                "Addresses that no lookup explains. To allow one, take `# ` from its lines{also}."
            )));
        }
        for (address, rule) in &self.addresses {
            rules.push(Entry::Comment(rule.words()));
            let cidr = Cidr::from(*address).to_string();
            rules.push(Entry::Off(rule.spec(Vec::new(), vec![cidr])));
        }
        rules
    }
}

/// True if a rule can have this name as it is.
fn is_name(name: &str) -> bool {
    parse_name_pattern(name).is_ok_and(|pattern| pattern.star == Star::None && pattern.name == name)
}

/// A destination that is only mentioned.
fn destination(observation: &Observation) -> String {
    let place = match (&observation.name, observation.addresses.first()) {
        (Some(name), _) => name.clone(),
        (None, Some(address)) => address.to_string(),
        (None, None) => "?".to_owned(),
    };
    match observation.port {
        Some(port) => format!("{place} {port}/{}", observation.protocol),
        None => format!("{place} {}", observation.protocol),
    }
}

#[cfg(test)]
mod tests;
