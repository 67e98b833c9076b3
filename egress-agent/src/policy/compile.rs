//! From policies to trie entries.
//!
//! The kernel finds only the longest pattern and the longest prefix, so every
//! entry holds the union of all rules whose pattern or network covers it.
//! Equal port ranges are kept once, for the longest pattern's rule.
//!
//! How long an address lives is one pair of bounds for each name, while several
//! policies may cover it. "The longest wins" makes it the larger of their
//! minima and the larger of their maxima: for every TTL that is the longest
//! life that any of them gives.

use std::collections::HashMap;

use egress_common::{
    address::Address,
    hash::fnv1a,
    policy::{
        CIDR_ENTRIES, CidrRules, EntryKind, HAS_DENIED_NAMES, KEEP_PREEXISTING, NAME_ENTRIES,
        NameRules, PortRange, RuleEntry,
    },
    verdict::Mode,
};

use super::{
    cidr::{Cidr, V4_OFFSET},
    compiled::{Compiled, NamePattern, RuleList, RuleSource},
    error::{Place, PolicyErrors, Problem, Report, quoted},
    lifeline::{self, Lifeline},
    set::{Policy, PolicySet},
    text::ports_text,
    ttl::Ttl,
};

/// Most rules that a message about a full entry lists.
const LISTED: usize = 20;

/// What a rule without ports is about.
const ANY_PORT: &[PortRange] = &[PortRange::ANY];

/// Compiles a set of policies for one workload: a flow is allowed if no policy denies it and one allows it.
///
/// # Errors
/// If policies have different modes and `mode_override` is not given, or if
/// more rules meet at one name or CIDR than an entry can hold.
pub fn compile(
    set: &PolicySet,
    lifeline: &Lifeline,
    mode_override: Option<Mode>,
) -> Result<Compiled, PolicyErrors> {
    let mut report = Report::default();
    let mode = mode_override.unwrap_or_else(|| common_mode(set, &mut report));
    let all = Items::collect(set, lifeline);
    let names = all.names(&mut report);
    let cidrs = all.cidrs(&mut report);
    let mut flags = 0;
    if set.policies().iter().all(|policy| policy.keeps_preexisting) {
        flags |= KEEP_PREEXISTING;
    }
    let denies_names = |policy: &Policy| policy.deny.iter().any(|rule| !rule.names.is_empty());
    if set.policies().iter().any(denies_names) {
        flags |= HAS_DENIED_NAMES;
    }
    report.finish(Compiled {
        mode,
        flags,
        names,
        cidrs,
        rules: all.sources,
    })
}

/// The mode that all policies share; reports each that differs from the first.
fn common_mode(set: &PolicySet, report: &mut Report) -> Mode {
    let Some((first, others)) = set.policies().split_first() else {
        return Mode::Enforce;
    };
    for policy in others.iter().filter(|policy| policy.mode != first.mode) {
        report.add(
            Place::field(&policy.file, policy.line, "spec.mode"),
            Problem::MixedModes {
                policy: quoted(policy.name()),
                mode: policy.mode.name(),
                other: quoted(first.name()),
                other_place: format!("{}:{}", first.file.display(), first.line),
                other_mode: first.mode.name(),
            },
        );
    }
    first.mode
}

/// One destination of one rule.
struct Item<'a> {
    /// Identity of the rule.
    id: u64,
    kind: EntryKind,
    /// Never empty.
    ports: &'a [PortRange],
    ttl: Ttl,
    /// `None` for the lifeline.
    policy: Option<&'a Policy>,
    list: RuleList,
    /// Position of the rule in its list.
    rule: usize,
    /// `names` or `cidrs`.
    field: &'static str,
    /// Position of the destination in its field.
    position: usize,
    line: usize,
}

impl Item<'_> {
    fn place(&self) -> Place {
        let Some(policy) = self.policy else {
            return Place::file(std::path::Path::new(lifeline::POLICY));
        };
        let Self {
            rule,
            field,
            position,
            ..
        } = self;
        let field = format!("spec.{}[{rule}].{field}[{position}]", self.list.name());
        Place::field(&policy.file, self.line, field)
    }

    fn told(&self) -> String {
        format!("{} ({})", self.place(), ports_text(self.ports))
    }
}

/// The rules of one pattern.
#[derive(Default)]
struct OfPattern<'a> {
    allow: Vec<Item<'a>>,
    deny: Option<u64>,
}

/// All destinations, by pattern and by network.
#[derive(Default)]
struct Items<'a> {
    exact: HashMap<&'a str, OfPattern<'a>>,
    below: HashMap<&'a str, OfPattern<'a>>,
    cidrs: HashMap<(Address, u8), Vec<Item<'a>>>,
    sources: HashMap<u64, RuleSource>,
}

impl<'a> Items<'a> {
    fn collect(set: &'a PolicySet, lifeline: &'a Lifeline) -> Self {
        let mut all = Self::default();
        for (index, entry) in lifeline.entries().iter().enumerate() {
            let source = RuleSource {
                policy: lifeline::POLICY.to_owned(),
                list: RuleList::Lifeline,
                index,
                destination: format!("{} {}", entry.name, entry.cidr),
                ports: entry.ports.clone(),
                file: None,
                line: None,
            };
            let destination = source.destination.clone();
            let item = Item {
                id: all.register(source, &destination),
                kind: EntryKind::Lifeline,
                ports: or_any(&entry.ports),
                ttl: Ttl::default(),
                policy: None,
                list: RuleList::Lifeline,
                rule: index,
                field: "cidrs",
                position: 0,
                line: 0,
            };
            all.add_cidr(&entry.cidr, item);
        }
        for policy in set.policies() {
            all.collect_rules(policy, RuleList::Deny, EntryKind::Deny);
            all.collect_rules(policy, RuleList::Allow, EntryKind::Allow);
        }
        all
    }

    fn collect_rules(&mut self, policy: &'a Policy, list: RuleList, kind: EntryKind) {
        for (index, rule) in policy.rules(list).iter().enumerate() {
            let source = |text: &str, line| RuleSource {
                policy: policy.name().to_owned(),
                list,
                index,
                destination: text.to_owned(),
                ports: rule.ports.clone(),
                file: Some(policy.file.clone()),
                line: Some(line),
            };
            let item = |id, field, position, line| Item {
                id,
                kind,
                ports: or_any(&rule.ports),
                ttl: policy.ttl,
                policy: Some(policy),
                list,
                rule: index,
                field,
                position,
                line,
            };
            for (position, name) in rule.names.iter().enumerate() {
                let id = self.register(source(&name.text, name.line), &name.value.to_string());
                let patterns = if name.value.below {
                    &mut self.below
                } else {
                    &mut self.exact
                };
                let rules = patterns.entry(&name.value.name).or_default();
                if kind == EntryKind::Deny {
                    rules.deny.get_or_insert(id);
                } else {
                    rules.allow.push(item(id, "names", position, name.line));
                }
            }
            for (position, cidr) in rule.cidrs.iter().enumerate() {
                let id = self.register(source(&cidr.text, cidr.line), &cidr.value.to_string());
                self.add_cidr(&cidr.value, item(id, "cidrs", position, cidr.line));
            }
        }
    }

    /// Gives a rule its number: the same content has the same one in every generation.
    fn register(&mut self, source: RuleSource, destination: &str) -> u64 {
        let mut ports = or_any(&source.ports).to_vec();
        ports.sort_unstable();
        let identity = format!(
            "{}\0{}\0{destination}\0{}",
            source.policy,
            source.list.name(),
            ports_text(&ports)
        );
        // 0 means "no rule".
        let id = fnv1a(identity.as_bytes()).max(1);
        self.sources.entry(id).or_insert(source);
        id
    }

    fn add_cidr(&mut self, cidr: &Cidr, item: Item<'a>) {
        let key = (*cidr.address(), cidr.bits());
        self.cidrs.entry(key).or_default().push(item);
    }

    /// Every pattern with the union of the rules that cover it.
    fn names(&self, report: &mut Report) -> HashMap<NamePattern, NameRules> {
        let patterns = [(&self.exact, false), (&self.below, true)];
        let mut names = HashMap::with_capacity(self.exact.len().saturating_add(self.below.len()));
        for (patterns, below) in patterns {
            for (name, own) in patterns {
                let rules = self.name_rules(name, below, own, report);
                let name = (*name).to_owned();
                names.insert(NamePattern { name, below }, rules);
            }
        }
        names
    }

    fn name_rules(
        &self,
        name: &str,
        below: bool,
        own: &OfPattern<'_>,
        report: &mut Report,
    ) -> NameRules {
        let parents = std::iter::successors(Some(name), |rest| {
            rest.split_once('.').map(|(_, parent)| parent)
        });
        let wider = parents.skip(1).filter_map(|parent| self.below.get(parent));
        let covering: Vec<&OfPattern<'_>> = std::iter::once(own).chain(wider).collect();
        let mut rules = NameRules {
            deny: covering.iter().find_map(|of| of.deny).unwrap_or(0),
            ..NameRules::default()
        };
        let items: Vec<&Item<'_>> = covering.iter().flat_map(|of| &of.allow).collect();
        let ttl = items.iter().map(|item| item.ttl).reduce(longest);
        let ttl = ttl.unwrap_or_default();
        (rules.ttl_min_s, rules.ttl_max_s) = (ttl.min_s, ttl.max_s);
        // A denied name teaches nothing, so that it has no grants either.
        if rules.deny != 0 {
            return rules;
        }
        let mut entries: Vec<RuleEntry> = Vec::new();
        for item in &items {
            for ports in item.ports {
                if !entries.iter().any(|entry| entry.ports == *ports) {
                    entries.push(item.rule_entry(*ports));
                }
            }
        }
        let count = entries.len();
        if count > NAME_ENTRIES {
            let name = NamePattern {
                name: name.to_owned(),
                below,
            };
            let problem = Problem::NameFull {
                name: name.to_string(),
                count,
                max: NAME_ENTRIES,
                rules: told(&items),
            };
            add_at_first(&items, problem, report);
        }
        for (slot, entry) in rules.entries.iter_mut().zip(entries) {
            *slot = entry;
        }
        rules
    }

    /// Every network with the union of the rules that cover it.
    fn cidrs(&self, report: &mut Report) -> HashMap<(Address, u8), CidrRules> {
        let mut lengths: Vec<u8> = self.cidrs.keys().map(|(_, bits)| *bits).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        let mut cidrs = HashMap::with_capacity(self.cidrs.len().saturating_add(1));
        for (address, bits) in self.cidrs.keys() {
            let cidr = Cidr::containing(address, *bits);
            cidrs.insert((*address, *bits), self.cidr_rules(&cidr, &lengths, report));
        }
        // An IPv6 network that is wide enough to hold ::ffff:0:0/96 would match IPv4 in the trie.
        let all_v4 = Cidr::ALL_V4;
        let is_over_v4 = |(address, bits): &(Address, u8)| {
            *bits < V4_OFFSET && Cidr::containing(all_v4.address(), *bits).address() == address
        };
        if self.cidrs.keys().any(is_over_v4) {
            let key = (*all_v4.address(), all_v4.bits());
            cidrs.entry(key).or_default();
        }
        cidrs
    }

    fn cidr_rules(&self, cidr: &Cidr, lengths: &[u8], report: &mut Report) -> CidrRules {
        // Lengths below 96 are IPv6 networks: they say nothing about IPv4.
        let shortest = if cidr.is_v4() { V4_OFFSET } else { 0 };
        let mut items: Vec<&Item<'_>> = lengths
            .iter()
            .filter(|bits| (shortest..=cidr.bits()).contains(*bits))
            .filter_map(|bits| {
                let wider = Cidr::containing(cidr.address(), *bits);
                self.cidrs.get(&(*wider.address(), *bits))
            })
            .flatten()
            .collect();
        items.sort_by_key(|item| item.kind);
        let mut entries: Vec<RuleEntry> = Vec::new();
        for item in &items {
            for ports in item.ports {
                // What an earlier entry covers is never reached.
                if !entries.iter().any(|entry| covers(&entry.ports, ports)) {
                    entries.push(item.rule_entry(*ports));
                }
            }
        }
        let count = entries.len();
        if count > CIDR_ENTRIES {
            let problem = Problem::CidrFull {
                cidr: cidr.to_string(),
                count,
                max: CIDR_ENTRIES,
                rules: told(&items),
            };
            add_at_first(&items, problem, report);
        }
        let mut rules = CidrRules::default();
        for (slot, entry) in rules.entries.iter_mut().zip(entries) {
            *slot = entry;
        }
        rules
    }
}

impl Item<'_> {
    const fn rule_entry(&self, ports: PortRange) -> RuleEntry {
        RuleEntry {
            rule: self.id,
            ports,
            kind: self.kind as u8,
            _pad: 0,
        }
    }
}

const fn or_any(ports: &[PortRange]) -> &[PortRange] {
    if ports.is_empty() { ANY_PORT } else { ports }
}

/// For every TTL the longer of the two lives.
fn longest(a: Ttl, b: Ttl) -> Ttl {
    Ttl {
        min_s: a.min_s.max(b.min_s),
        max_s: a.max_s.max(b.max_s),
    }
}

/// Whether every flow that `inner` covers is covered by `outer`.
const fn covers(outer: &PortRange, inner: &PortRange) -> bool {
    let proto = outer.proto == egress_common::policy::protocol::ANY || outer.proto == inner.proto;
    proto && outer.first <= inner.first && inner.last <= outer.last
}

/// Adds a problem at the first item that stands in a file, so that messages point at what the user wrote.
fn add_at_first(items: &[&Item<'_>], problem: Problem, report: &mut Report) {
    let written = items.iter().find(|item| item.policy.is_some());
    if let Some(item) = written.or(items.first()) {
        report.add(item.place(), problem);
    }
}

fn told(items: &[&Item<'_>]) -> String {
    let mut texts: Vec<String> = items.iter().take(LISTED).map(|item| item.told()).collect();
    let hidden = items.len().saturating_sub(LISTED);
    if hidden > 0 {
        texts.push(format!("and {hidden} more"));
    }
    texts.join(", ")
}
