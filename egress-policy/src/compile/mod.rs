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
//!
//! Ceilings first bound the rules of namespaces ([`ceiling`]).

mod ceiling;
mod compiled;
mod error;
mod grants;
mod names;
mod patterns;

use std::{collections::HashMap, path::Path};

use ceiling::{AllBounded, Bounded, is_ceiling};
use egress_common::{
    address::Address,
    hash::rule_identity,
    maps::{CIDRS_CAPACITY, NAMES_CAPACITY},
    policy::{
        CIDR_ENTRIES, CidrRules, EntryKind, HAS_AUDITORS, HAS_DENIED_NAMES, KEEP_PREEXISTING,
        ONLY_ALLOWED_QUERIES, PortRange,
    },
    verdict::Mode,
};
use grants::{Grant, Grants, Item, PRESET};
use patterns::Patterns;

use crate::{
    document::{Policy, PolicySet, RuleList},
    read::{Place, PolicyErrors, Report},
    vocabulary::{Cidr, Lifeline, V4_OFFSET, lifeline, ports_text},
};
pub use compiled::{Compiled, Cut, RuleSource};
pub use error::{CompileError, Meeting};
pub use names::Names;

/// The ports of a rule that names none.
const ANY_PORT: &[PortRange] = &[PortRange::ANY];

/// Compiles a set of policies for one workload: a flow is allowed if no policy denies it and one allows it.
///
/// Where some are enforced and others audit, the enforced ones decide. Of those in audit only the deny rules count, and
/// only for what passes: their allow rules open nothing, and would take nothing away. A ceiling bounds where it decides.
///
/// # Errors
/// If more rules meet at one name or CIDR than an entry can hold, or if there are more of them than the kernel's maps
/// can hold twice.
pub fn compile(
    set: &PolicySet,
    lifeline: &Lifeline,
    mode_override: Option<Mode>,
) -> Result<Compiled, PolicyErrors> {
    let mut report = Report::default();
    let modes = Modes::of(set, mode_override);
    let bounded = ceiling::bound(set, modes, &mut report);
    let mut all = Items::collect(set, lifeline, modes, &bounded);
    let names = all.patterns.compile(&mut report);
    let cidrs = all.cidrs(&mut report);
    for (what, count, capacity) in [
        ("names", names.len(), NAMES_CAPACITY),
        ("networks", cidrs.len(), CIDRS_CAPACITY),
    ] {
        // While the policy is switched, the one before it lies in the map as well.
        let max = usize::try_from(capacity / 2).unwrap_or(usize::MAX);
        if count > max {
            let file = set.policies().first().map(|policy| policy.file.as_path());
            let place = Place::file(file.unwrap_or(Path::new(lifeline::POLICY)));
            report.add(place, CompileError::TooManyEntries { count, what, max });
        }
    }
    let deciding = || set.policies().iter().filter(|policy| modes.decides(policy));
    let mut flags = 0;
    if deciding().all(|policy| policy.keeps_preexisting) {
        flags |= KEEP_PREEXISTING;
    }
    if deciding().any(|policy| policy.restricts_queries) {
        flags |= ONLY_ALLOWED_QUERIES;
    }
    if deciding().any(|policy| policy.deny.iter().any(|rule| !rule.names.is_empty())) {
        flags |= HAS_DENIED_NAMES;
    }
    let mut policies = set.policies().iter();
    if policies.any(|policy| !modes.decides(policy) && !policy.deny.is_empty()) {
        flags |= HAS_AUDITORS;
    }
    let mut looking_on = None;
    if modes.is_mixed {
        let others = set
            .policies()
            .iter()
            .filter(|policy| !modes.decides(policy));
        match compile(&others.cloned().collect(), &Lifeline::new(), None) {
            Ok(compiled) => looking_on = Some(Box::new(compiled)),
            Err(errors) => report.extend(errors),
        }
    }
    report.sort();
    report.finish(Compiled {
        mode: modes.deciding,
        flags,
        names,
        cidrs,
        rules: all.sources,
        looking_on,
        cuts: all.cuts,
    })
}

/// Which policies of a set decide.
#[derive(Clone, Copy)]
struct Modes {
    /// The mode of those that do.
    deciding: Mode,
    /// True if policies of the other mode only audit.
    is_mixed: bool,
}

impl Modes {
    fn of(set: &PolicySet, mode_override: Option<Mode>) -> Self {
        let has = |mode| set.policies().iter().any(|policy| policy.mode == mode);
        let deciding = mode_override.unwrap_or_else(|| {
            if has(Mode::Audit) && !has(Mode::Enforce) {
                Mode::Audit
            } else {
                Mode::Enforce
            }
        });
        Self {
            deciding,
            is_mixed: mode_override.is_none() && has(Mode::Audit) && has(Mode::Enforce),
        }
    }

    fn decides(self, policy: &Policy) -> bool {
        !self.is_mixed || policy.mode == self.deciding
    }
}

/// All destinations, by pattern and by network.
#[derive(Default)]
struct Items<'a> {
    patterns: Patterns<'a>,
    cidrs: HashMap<(Address, u8), Grants<'a>>,
    sources: HashMap<u64, RuleSource>,
    cuts: Vec<Cut>,
}

impl<'a> Items<'a> {
    fn collect(
        set: &'a PolicySet,
        lifeline: &'a Lifeline,
        modes: Modes,
        bounded: &'a AllBounded,
    ) -> Self {
        let mut all = Self::default();
        for (index, entry) in lifeline.entries().iter().enumerate() {
            let source = RuleSource {
                policy: lifeline::POLICY.to_owned(),
                list: RuleList::Lifeline,
                is_audited: false,
                index,
                preset: None,
                destination: format!("{} {}", entry.name, entry.cidr),
                ports: entry.ports.clone(),
                file: None,
                line: None,
            };
            let destination = source.destination.clone();
            let item = Item {
                id: all.register(source, &destination),
                policy: None,
                list: RuleList::Lifeline,
                rule: index,
                field: "cidrs",
                position: 0,
                line: 0,
            };
            all.add_cidr(&entry.cidr, item, entry.kind(), &entry.ports);
        }
        for (index, policy) in set.policies().iter().enumerate() {
            if modes.decides(policy) {
                all.collect_rules(policy, RuleList::Deny, EntryKind::Deny);
                if let Some(bounded) = bounded.get(&index) {
                    all.collect_bounded(policy, bounded);
                } else if !is_ceiling(policy) {
                    all.collect_rules(policy, RuleList::Allow, EntryKind::Allow);
                }
            } else {
                all.collect_rules(policy, RuleList::Deny, EntryKind::Audited);
            }
        }
        all
    }

    fn collect_rules(&mut self, policy: &'a Policy, list: RuleList, kind: EntryKind) {
        for rule in policy.rules(list) {
            let index = rule.index;
            let source = |text: &str, line| RuleSource {
                policy: policy.name().to_owned(),
                list,
                is_audited: kind == EntryKind::Audited,
                index,
                preset: rule.preset.clone(),
                destination: text.to_owned(),
                ports: rule.ports.clone(),
                file: Some(policy.file.clone()),
                line: Some(line),
            };
            let item = |id, field, position, line| Item {
                id,
                policy: Some(policy),
                list,
                rule: index,
                field: if rule.preset.is_some() { PRESET } else { field },
                position,
                line,
            };
            self.sources.reserve(rule.names.len());
            for (position, name) in rule.names.iter().enumerate() {
                let id = self.register(source(&name.text, name.line), &name.value.to_string());
                let item = item(id, "names", position, name.line);
                match kind {
                    EntryKind::Deny => self.patterns.deny(&name.value, item),
                    EntryKind::Audited => self.patterns.audit(&name.value, item),
                    EntryKind::Allow | EntryKind::Lifeline | EntryKind::Local => {
                        let ports = or_any(&rule.ports);
                        self.patterns.allow(&name.value, item, ports, policy.ttl);
                    }
                }
            }
            for (position, cidr) in rule.cidrs.iter().enumerate() {
                let id = self.register(source(&cidr.text, cidr.line), &cidr.value.to_string());
                let item = item(id, "cidrs", position, cidr.line);
                self.add_cidr(&cidr.value, item, kind, &rule.ports);
            }
            for (position, tag) in rule.service_tags.iter().enumerate() {
                let id = self.register(source(&tag.text, tag.line), &tag.value.identity());
                let item = item(id, "serviceTags", position, tag.line);
                for cidr in &tag.value.prefixes {
                    self.add_cidr(cidr, item, kind, &rule.ports);
                }
            }
        }
    }

    /// Collects what ceilings leave of the allow rules of a policy.
    fn collect_bounded(&mut self, policy: &'a Policy, bounded: &'a [Bounded]) {
        for (rule, left) in policy.allow.iter().zip(bounded) {
            let source = |text: &str, line| RuleSource {
                policy: policy.name().to_owned(),
                list: RuleList::Allow,
                is_audited: false,
                index: rule.index,
                preset: rule.preset.clone(),
                destination: text.to_owned(),
                ports: rule.ports.clone(),
                file: Some(policy.file.clone()),
                line: Some(line),
            };
            let item = |id, field, position, line| Item {
                id,
                policy: Some(policy),
                list: RuleList::Allow,
                rule: rule.index,
                field: if rule.preset.is_some() { PRESET } else { field },
                position,
                line,
            };
            for (position, (name, left)) in rule.names.iter().zip(&left.names).enumerate() {
                let source = source(&name.text, name.line);
                for (pattern, ports) in &left.pieces {
                    // What is left wants what the whole rule wants.
                    let require = rule.require();
                    let ports = ports.iter().map(|range| range.requiring(require));
                    let ports: Vec<PortRange> = ports.collect();
                    let id = self.register_part(source.clone(), &pattern.to_string(), &ports);
                    let item = item(id, "names", position, name.line);
                    self.patterns.allow(pattern, item, &ports, policy.ttl);
                }
                self.cut(source, &left.cut_by, Vec::new);
            }
            for (position, (cidr, left)) in rule.cidrs.iter().zip(&left.cidrs).enumerate() {
                let source = source(&cidr.text, cidr.line);
                for (network, ports) in &left.pieces {
                    let id = self.register_part(source.clone(), &network.to_string(), ports);
                    let item = item(id, "cidrs", position, cidr.line);
                    self.add_cidr(network, item, EntryKind::Allow, ports);
                }
                self.cut(source, &left.cut_by, || vec![cidr.value]);
            }
            let tags = rule.service_tags.iter().zip(&left.service_tags);
            for (position, (tag, left)) in tags.enumerate() {
                let source = source(&tag.text, tag.line);
                let mut identity = tag.value.identity().to_string();
                // All that is left of a tag is one rule.
                if !left.cut_by.is_empty() {
                    for (network, ports) in &left.pieces {
                        identity.push_str(&format!("\0{network} {}", ports_text(ports)));
                    }
                }
                let id = self.register(source.clone(), &identity);
                let item = item(id, "serviceTags", position, tag.line);
                for (network, ports) in &left.pieces {
                    self.add_cidr(network, item, EntryKind::Allow, ports);
                }
                self.cut(source, &left.cut_by, || tag.value.prefixes.clone());
            }
        }
    }

    /// Notes that ceilings leave less of a rule.
    fn cut(&mut self, rule: RuleSource, ceilings: &[String], networks: impl FnOnce() -> Vec<Cidr>) {
        if !ceilings.is_empty() {
            self.cuts.push(Cut {
                rule,
                ceilings: ceilings.to_vec(),
                networks: networks(),
            });
        }
    }

    /// Gives a rule its number: the same content has the same one in every generation.
    fn register(&mut self, source: RuleSource, destination: &str) -> u64 {
        let ports = source.ports.clone();
        self.register_part(source, destination, &ports)
    }

    /// Gives a part of a rule, or all of it, its number, by what it opens.
    fn register_part(&mut self, source: RuleSource, destination: &str, ports: &[PortRange]) -> u64 {
        // What the connection has to say is no part of it: a flow that was allowed before goes on.
        let ports = or_any(ports).iter().map(|range| range.requiring(0));
        let mut ports: Vec<PortRange> = ports.collect();
        ports.sort_unstable();
        let identity = format!(
            "{}\0{}\0{destination}\0{}",
            source.policy,
            source.list.name(),
            ports_text(&ports)
        );
        // 0 means "no rule".
        let id = rule_identity(identity.as_bytes());
        self.sources.entry(id).or_insert(source);
        id
    }

    fn add_cidr(&mut self, cidr: &Cidr, item: Item<'a>, kind: EntryKind, ports: &[PortRange]) {
        let grants = self
            .cidrs
            .entry((*cidr.address(), cidr.bits()))
            .or_default();
        for ports in or_any(ports).iter().copied() {
            grants.add_of_cidr(Grant { item, kind, ports });
        }
    }

    /// Every network with the union of the rules that cover it.
    fn cidrs(&self, report: &mut Report) -> HashMap<(Address, u8), CidrRules> {
        let mut networks: Vec<_> = self.cidrs.iter().collect();
        // Those around a network come before it.
        networks.sort_unstable_by_key(|(network, _)| **network);
        let mut cidrs = HashMap::with_capacity(networks.len().saturating_add(1));
        let mut around: Vec<(Cidr, Grants<'_>)> = Vec::new();
        for ((address, bits), grants) in networks {
            let cidr = Cidr::containing(address, *bits);
            let is_around = |wider: &Cidr| Cidr::containing(cidr.address(), wider.bits()) == *wider;
            while around.pop_if(|(wider, _)| !is_around(wider)).is_some() {}
            // IPv6 networks say nothing about IPv4, however wide they are.
            let wider = around
                .last()
                .filter(|(wider, _)| wider.is_v4() == cidr.is_v4());
            let union = grants.with_those_around(wider.map(|(_, union)| union));
            cidrs.insert((*address, *bits), cidr_rules(&cidr, &union, report));
            around.push((cidr, union));
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
}

/// The union of the rules of a network and those around it, as an entry holds it.
fn cidr_rules(cidr: &Cidr, union: &Grants<'_>, report: &mut Report) -> CidrRules {
    let entries = union.entries(CIDR_ENTRIES, report, |meeting| CompileError::CidrFull {
        cidr: cidr.to_string(),
        meeting,
    });
    let mut rules = CidrRules::default();
    for (slot, entry) in rules.entries.iter_mut().zip(entries) {
        *slot = entry;
    }
    rules
}

const fn or_any(ports: &[PortRange]) -> &[PortRange] {
    if ports.is_empty() { ANY_PORT } else { ports }
}
