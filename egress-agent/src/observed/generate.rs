//! A policy of what was seen, for people to read before they enforce it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egress_common::{
    policy::NAME_ENTRIES,
    verdict::{Reason, Verdict},
};

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
        Cidr, Draft, Entry, RuleList, SpecMode, SpecRule, Star, parse_name_pattern,
        port_range_text, protocol_number, protocol_text, text::printable, write_policies,
    },
};

/// Most labels of a name that a wildcard never stands directly below: `*.com` is nobody's.
const TOP_LABELS: usize = 1;
/// Most replaced names that the comment of a wildcard lists.
const REPLACED_LISTED: usize = 20;
/// Most of other things that a comment lists.
const SOME: usize = 6;

/// What the policy is to be.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Its name.
    pub name: String,
    /// When it is made.
    pub at: Timestamp,
    /// What was seen before this was left out.
    pub since: Option<Timestamp>,
    /// What other scopes sent was left out.
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

/// What is seen through the options of time and scope. What was lost before stays out too.
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

/// A rule, and what its comment says.
#[derive(Debug, Default)]
struct Rule {
    flows: u64,
    times: Option<(Timestamp, Timestamp)>,
    senders: BTreeSet<String>,
    other_names: BTreeSet<String>,
    is_cut: bool,
    ports: Ports,
    /// Names that a wildcard stands for.
    replaced: BTreeSet<String>,
}

impl Rule {
    fn add(&mut self, observation: &Observation) {
        self.flows = self.flows.saturating_add(observation.flows);
        self.spans(observation.first, observation.last);
        for sender in &observation.senders {
            self.senders
                .insert(format!("{} {sender}", observation.scope));
        }
        let others = observation.other_names.iter().cloned();
        self.other_names.extend(others);
        self.is_cut |= observation.is_cut;
    }

    fn spans(&mut self, first: Timestamp, last: Timestamp) {
        let (from, to) = self.times.unwrap_or((first, last));
        self.times = Some((from.min(first), to.max(last)));
    }

    /// Takes another rule's place.
    fn replace(&mut self, name: String, other: Self) {
        self.flows = self.flows.saturating_add(other.flows);
        if let Some((first, last)) = other.times {
            self.spans(first, last);
        }
        self.senders.extend(other.senders);
        self.is_cut |= other.is_cut;
        self.ports.extend(&other.ports);
        self.replaced.insert(name);
    }

    /// What is said above it.
    fn words(&self) -> String {
        let times = self.times.map_or_else(String::new, span);
        let mut senders: Vec<&str> = self.senders.iter().map(String::as_str).collect();
        if self.is_cut {
            senders.push("maybe others");
        }
        let by = some(&senders, SOME);
        let mut lines = vec![format!("{}, {times}, by {by}", count(self.flows, "flow"))];
        let list = |set: &BTreeSet<String>, most| {
            let set: Vec<&str> = set.iter().map(String::as_str).collect();
            some(&set, most)
        };
        if !self.replaced.is_empty() {
            let names = count(self.replaced.len() as u64, "name");
            let list = list(&self.replaced, REPLACED_LISTED);
            lines.push(format!("every name below it, instead of {names}: {list}"));
        } else if !self.other_names.is_empty() {
            let list = list(&self.other_names, SOME);
            lines.push(format!("its addresses are also those of {list}"));
        }
        for (protocol, ports) in &self.ports.ranges().widened {
            let protocol = protocol_text(*protocol);
            lines.push(format!(
                "{ports} {protocol} ports as one range, which covers more: a rule has room for {NAME_ENTRIES} ranges"
            ));
        }
        said(&lines)
    }

    fn spec(&self, names: Vec<String>, cidrs: Vec<String>) -> SpecRule {
        let ranges = self.ports.ranges().ranges;
        SpecRule {
            names,
            cidrs,
            ports: Some(ranges.iter().map(port_range_text).collect()),
            ..SpecRule::default()
        }
    }
}

/// Lines of a comment: whatever was seen, it cannot end a line.
fn said(lines: &[String]) -> String {
    let lines: Vec<String> = lines.iter().map(|line| printable(line)).collect();
    lines.join("\n")
}

/// `1 flow`, `2 flows`.
fn count(number: u64, what: &str) -> String {
    let end = match (number, what.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{number} {what}{end}")
}

/// The first of a list, and how many more there are.
fn some(list: &[&str], most: usize) -> String {
    let shown: Vec<&str> = list.iter().take(most).copied().collect();
    let more = list.len().saturating_sub(shown.len());
    let mut text = shown.join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
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

/// What was seen, sorted by what becomes of it.
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
        if verdict == Verdict::Allow.name() && !options.include_allowed {
            return add(&mut self.allowed_flows);
        }
        if verdict == Verdict::Deny.name() && !options.include_denied {
            return add(&mut self.denied_flows);
        }
        let Some(reason) = reason_of(&observation.reason) else {
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

    /// What is said above the policy.
    fn head(&self, seen: &Observations, options: &GenerateOptions) -> Vec<String> {
        let mut lines = vec![format!(
            "Written by `egress-agent policy learn` at {}. Read it; it audits until you write `mode: enforce`.",
            options.at
        )];
        let mut all = Rule::default();
        for rule in self.names.values().chain(self.addresses.values()) {
            all.flows = all.flows.saturating_add(rule.flows);
            if let Some((first, last)) = rule.times {
                all.spans(first, last);
            }
        }
        lines.push(match all.times {
            Some(times) => format!(
                "{}, {}: {} and {} without a name.",
                count(all.flows, "flow"),
                span(times),
                count(self.names.len() as u64, "rule"),
                count(self.addresses.len() as u64, "address"),
            ),
            None => "Nothing was seen that it would have to allow.".to_owned(),
        });
        if let Some(scope) = &options.from {
            lines.push(format!("Only what scope {scope} sent."));
        }
        if let Some(since) = options.since {
            lines.push(format!(
                "Only what was seen since {since}; counts and first times go back further."
            ));
        }
        if !seen.losses.is_empty() {
            lines.push("NOT ALL WAS SEEN. Lost, and maybe missing here:".to_owned());
            lines.extend(seen.losses.iter().map(|loss| {
                let times = span((loss.first, loss.last));
                let words = loss_words(&loss.what);
                format!("  {} {}, noticed {times}: {words}", loss.count, loss.what)
            }));
        }
        let left_out = self.left_out();
        if !left_out.is_empty() {
            lines.push("Left out:".to_owned());
            lines.extend(left_out.into_iter().map(|line| format!("  {line}")));
        }
        vec![said(&lines)]
    }

    /// What was seen and is no rule here, in sentences.
    fn left_out(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let flows = |lines: &mut Vec<String>, flows: u64, words: &str| {
            if flows > 0 {
                lines.push(format!("{} {words}", count(flows, "flow")));
            }
        };
        flows(
            &mut lines,
            self.allowed_flows,
            "that rules allow (--include-allowed)",
        );
        flows(
            &mut lines,
            self.denied_flows,
            "that enforcing denied (--include-denied)",
        );
        flows(
            &mut lines,
            self.allowed_by_now,
            "that the policy in force allows by now (--include-allowed)",
        );
        let list = |lines: &mut Vec<String>, set: &BTreeSet<String>, words: &str| {
            let set: Vec<&str> = set.iter().map(String::as_str).collect();
            if !set.is_empty() {
                lines.push(format!("{words}: {}", some(&set, 20)));
            }
        };
        list(
            &mut lines,
            &self.denied_by_rule,
            "what a rule of the policy in force denies",
        );
        list(
            &mut lines,
            &self.expired,
            "what is allowed, but was used after its TTL had ended (`spec.ttl.min` prolongs that)",
        );
        list(
            &mut lines,
            &self.not_rules,
            "what a rule has no words for (other protocols want `ports: [any]`)",
        );
        for (reason, packets) in &self.beyond_rules {
            let packets = count(*packets, "flow");
            lines.push(format!("{packets} {}: {}", reason.name(), reason.words()));
        }
        lines
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

/// Whether a rule can have this name as it is.
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

fn span((first, last): (Timestamp, Timestamp)) -> String {
    if first == last {
        format!("at {first}")
    } else {
        format!("{first} to {last}")
    }
}

/// What a loss means, for who reads the policy.
fn loss_words(what: &str) -> &'static str {
    match what {
        "events_suppressed" => {
            "verdicts above 1,000 a second on one CPU, which the kernel only counts"
        }
        "events_lost" => {
            "verdicts that the agent was too slow to read, or that came while it was not running"
        }
        "dns_copies_lost" | "names_evicted" => {
            "DNS answers, so that addresses may stand below without their names"
        }
        super::table::DROPPED => "destinations that the agent had no room for",
        "scope_gone" => "verdicts on scopes that the agent does not know any more",
        _ => "see `egress-agent status`",
    }
}

#[cfg(test)]
mod tests;
