//! Differences in the verdicts of two policies, however they are written.
//!
//! Every pattern and network that one of them names is compared by what both
//! decide of it: the union of the rules that cover it. A pattern stands for the
//! names that no other pattern is about; a network for the addresses that are
//! in no smaller one. What a wider difference already says is left out.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::{
    address::Address,
    policy::{EntryKind, KEEP_PREEXISTING, NameRules, ONLY_ALLOWED_QUERIES, RuleEntry},
};

use crate::{
    compile::{Compiled, RuleSource},
    vocabulary::{Cidr, PortSet, Ttl},
};

/// A label that stands for any: no pattern of a policy can hold its first and last byte.
const ANY_LABEL: &str = "~any~";

/// The change of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Becomes {
    /// It becomes allowed.
    Allowed,
    /// It becomes denied.
    Denied,
    /// It is not denied any more, where an allowed name leads there.
    Undenied,
    /// It becomes denied also where an allowed name leads there.
    DeniedToo,
}

/// A difference for one destination.
#[derive(Clone, Debug)]
pub struct Difference<'a> {
    /// Its change.
    pub becomes: Becomes,
    /// The pattern or network.
    pub destination: String,
    /// The ports that it is about; none for a denied name.
    pub ports: Vec<String>,
    /// The rules that make it so: of the new policy, or of the old one where it had one that is gone.
    pub rules: Vec<&'a RuleSource>,
    /// How many networks are put together under the name of a service tag; 1 for everything else.
    pub networks: usize,
}

/// Another setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingDifference {
    /// The field below `spec`.
    pub setting: &'static str,
    /// Its value before.
    pub from: String,
    /// Its value now.
    pub to: String,
}

/// Differences in the verdicts of two policies.
#[derive(Clone, Debug, Default)]
pub struct PolicyDiff<'a> {
    /// Destinations, in their order.
    pub differences: Vec<Difference<'a>>,
    /// Settings.
    pub settings: Vec<SettingDifference>,
}

impl PolicyDiff<'_> {
    /// True if both mean the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.differences.is_empty() && self.settings.is_empty()
    }
}

/// The difference of one destination.
struct Row<'a> {
    becomes: Becomes,
    ports: PortSet,
    rules: Vec<&'a RuleSource>,
}

/// Rows by destination.
type Rows<'a, K> = BTreeMap<K, Vec<Row<'a>>>;

/// Compares two policies.
#[must_use]
pub fn diff<'a>(old: &'a Compiled, new: &'a Compiled) -> PolicyDiff<'a> {
    let mut found = PolicyDiff {
        differences: Vec::new(),
        settings: settings(old, new),
    };
    let patterns: BTreeSet<String> = patterns(old).chain(patterns(new)).collect();
    let names: Rows<'_, String> = patterns
        .into_iter()
        .map(|pattern| {
            let rows = name_rows(&pattern, old, new);
            (pattern, rows)
        })
        .filter(|(_, rows)| !rows.is_empty())
        .collect();
    for (pattern, rows) in &names {
        let is_told = |row: &&Row<'_>| {
            !wider_patterns(pattern).any(|wider| is_implied(row, names.get(&wider)))
        };
        for row in rows.iter().filter(is_told) {
            found.differences.push(difference(pattern.clone(), row));
        }
    }
    add_networks(old, new, &mut found.differences);
    let order = |one: &Difference<'_>| (one.becomes, one.destination.clone());
    found.differences.sort_by_key(order);
    found
}

fn difference<'a>(destination: String, row: &Row<'a>) -> Difference<'a> {
    Difference {
        becomes: row.becomes,
        destination,
        ports: row.ports.texts(),
        rules: row.rules.clone(),
        networks: 1,
    }
}

/// True if a row of a wider destination says the same.
fn is_implied(row: &Row<'_>, wider: Option<&Vec<Row<'_>>>) -> bool {
    let mut wider = wider.into_iter().flatten();
    wider.any(|wider| wider.becomes == row.becomes && wider.ports.holds(&row.ports))
}

/// The name patterns that the rules of a policy have.
fn patterns(compiled: &Compiled) -> impl Iterator<Item = String> {
    let patterns = compiled.rules.values().filter_map(RuleSource::pattern);
    patterns.map(|pattern| pattern.to_string())
}

/// The wildcards that cover everything that a pattern covers, the nearest first.
fn wider_patterns(pattern: &str) -> impl Iterator<Item = String> {
    let name = pattern.strip_prefix("*.").unwrap_or(pattern);
    let parents = std::iter::successors(name.split_once('.'), |(_, rest)| rest.split_once('.'));
    parents.map(|(_, parent)| format!("*.{parent}"))
}

fn name_rows<'a>(pattern: &str, old: &'a Compiled, new: &'a Compiled) -> Vec<Row<'a>> {
    let name = pattern.replacen('*', ANY_LABEL, 1);
    let (was, is) = (old.rules_of_name(&name), new.rules_of_name(&name));
    let entries = |rules: Option<&'a NameRules>| rules.map_or(&[][..], |rules| &rules.entries);
    let (was_open, is_open) = (ports_of(entries(was)), ports_of(entries(is)));
    let deny = |rules: Option<&NameRules>, compiled: &'a Compiled| {
        let rule = rules.filter(|rules| rules.deny != 0)?.deny;
        compiled.rules.get(&rule)
    };
    let (was_denied, is_denied) = (deny(was, old), deny(is, new));
    let mut rows = Vec::new();
    let opened = is_open.without(&was_open);
    if !opened.is_empty() {
        rows.push(Row {
            becomes: Becomes::Allowed,
            rules: rules_about(entries(is), &opened, new),
            ports: opened,
        });
    }
    let closed = was_open.without(&is_open);
    if !closed.is_empty() {
        rows.push(Row {
            becomes: Becomes::Denied,
            rules: match is_denied {
                Some(rule) => vec![rule],
                None => rules_about(entries(was), &closed, old),
            },
            ports: closed,
        });
    }
    if !rows.is_empty() {
        return rows;
    }
    // Nothing opens or closes but for aliases that lead there.
    let (becomes, rule) = match (was_denied, is_denied) {
        (None, Some(rule)) => (Becomes::DeniedToo, rule),
        (Some(rule), None) => (Becomes::Undenied, rule),
        (None, None) | (Some(_), Some(_)) => return rows,
    };
    rows.push(Row {
        becomes,
        ports: PortSet::default(),
        rules: vec![rule],
    });
    rows
}

/// The ports of entries that are used.
fn ports_of(entries: &[RuleEntry]) -> PortSet {
    let used = entries.iter().take_while(|entry| entry.kind != 0);
    PortSet::of_all(used.map(|entry| &entry.ports))
}

/// The rules of entries that are about one of these ports.
fn rules_about<'a>(
    entries: &[RuleEntry],
    ports: &PortSet,
    compiled: &'a Compiled,
) -> Vec<&'a RuleSource> {
    let used = entries.iter().take_while(|entry| entry.kind != 0);
    let about = used.filter(|entry| {
        let own = PortSet::of(&entry.ports);
        own.without(ports) != own
    });
    let mut seen = BTreeSet::new();
    about
        .filter(|entry| seen.insert(entry.rule))
        .filter_map(|entry| compiled.rules.get(&entry.rule))
        .collect()
}

/// The verdict on a network: that of the first entry that matches.
#[derive(Default)]
struct Decided<'a> {
    open: PortSet,
    denied: PortSet,
    entries: &'a [RuleEntry],
}

impl<'a> Decided<'a> {
    fn of(entries: &'a [RuleEntry]) -> Self {
        let mut decided = Self {
            entries,
            ..Self::default()
        };
        let deciding = entries
            .iter()
            .take_while(|entry| entry.kind != 0 && entry.kind != EntryKind::Audited as u8);
        for entry in deciding {
            let ports = PortSet::of(&entry.ports)
                .without(&decided.open)
                .without(&decided.denied);
            let side = if entry.kind == EntryKind::Deny as u8 {
                &mut decided.denied
            } else {
                &mut decided.open
            };
            *side = side.with(&ports);
        }
        decided
    }

    /// The rules of one kind that are about one of these ports.
    fn rules(
        &self,
        kind: EntryKind,
        ports: &PortSet,
        compiled: &'a Compiled,
    ) -> Vec<&'a RuleSource> {
        let of_kind = self.entries.iter().filter(|entry| entry.kind == kind as u8);
        let entries: Vec<RuleEntry> = of_kind.copied().collect();
        rules_about(&entries, ports, compiled)
    }
}

/// The entries of the longest network around another one, as the kernel finds them.
fn entries_around<'a>(
    compiled: &'a Compiled,
    lengths: &BTreeSet<u8>,
    cidr: &Cidr,
) -> &'a [RuleEntry] {
    let around = lengths.range(..=cidr.bits()).rev().find_map(|bits| {
        let wider = Cidr::containing(cidr.address(), *bits);
        compiled.cidrs.get(&(*wider.address(), *bits))
    });
    around.map_or(&[], |rules| &rules.entries)
}

fn network_rows<'a>(
    was: &Decided<'a>,
    is: &Decided<'a>,
    old: &'a Compiled,
    new: &'a Compiled,
) -> Vec<Row<'a>> {
    let opened = is.open.without(&was.open);
    let closed = was.open.without(&is.open);
    let denied = is.denied.without(&was.denied).without(&was.open);
    let undenied = was.denied.without(&is.denied).without(&is.open);
    let closing = {
        let mut rules = is.rules(EntryKind::Deny, &closed, new);
        if rules.is_empty() {
            rules = was.rules(EntryKind::Allow, &closed, old);
        }
        rules
    };
    let rows = [
        (
            Becomes::Allowed,
            is.rules(EntryKind::Allow, &opened, new),
            opened,
        ),
        (Becomes::Denied, closing, closed),
        (
            Becomes::Undenied,
            was.rules(EntryKind::Deny, &undenied, old),
            undenied,
        ),
        (
            Becomes::DeniedToo,
            is.rules(EntryKind::Deny, &denied, new),
            denied,
        ),
    ];
    rows.into_iter()
        .filter(|(_, _, ports)| !ports.is_empty())
        .map(|(becomes, rules, ports)| Row {
            becomes,
            ports,
            rules,
        })
        .collect()
}

fn add_networks<'a>(old: &'a Compiled, new: &'a Compiled, found: &mut Vec<Difference<'a>>) {
    let keys: BTreeSet<&(Address, u8)> = old.cidrs.keys().chain(new.cidrs.keys()).collect();
    let lengths = |compiled: &Compiled| compiled.cidrs.keys().map(|(_, bits)| *bits).collect();
    let (old_lengths, new_lengths): (BTreeSet<u8>, BTreeSet<u8>) = (lengths(old), lengths(new));
    let mut rows: Rows<'_, Cidr> = BTreeMap::new();
    for (address, bits) in keys {
        let cidr = Cidr::containing(address, *bits);
        let was = Decided::of(entries_around(old, &old_lengths, &cidr));
        let is = Decided::of(entries_around(new, &new_lengths, &cidr));
        let changed = network_rows(&was, &is, old, new);
        if !changed.is_empty() {
            rows.insert(cidr, changed);
        }
    }
    let all: BTreeSet<u8> = rows.keys().map(Cidr::bits).collect();
    // A service tag has thousands of networks: they are told together.
    let mut by_tag: BTreeMap<(Becomes, String, Vec<String>), Difference<'a>> = BTreeMap::new();
    for (cidr, changed) in &rows {
        let is_told = |row: &&Row<'_>| {
            let wider = all.range(..cidr.bits()).rev();
            let mut wider = wider.map(|bits| Cidr::containing(cidr.address(), *bits));
            !wider.any(|wider| wider.is_v4() == cidr.is_v4() && is_implied(row, rows.get(&wider)))
        };
        for row in changed.iter().filter(is_told) {
            let tag = row.rules.first().filter(|rule| !is_network(rule));
            let Some(tag) = tag.map(|rule| rule.destination.as_str()) else {
                found.push(difference(cidr.to_string(), row));
                continue;
            };
            let told = by_tag
                .entry((row.becomes, tag.to_owned(), row.ports.texts()))
                .or_insert_with(|| Difference {
                    networks: 0,
                    ..difference(tag.to_owned(), row)
                });
            told.networks = told.networks.saturating_add(1);
        }
    }
    found.extend(by_tag.into_values());
}

/// True if a rule is about one network, rather than about all of a service tag.
fn is_network(rule: &RuleSource) -> bool {
    rule.destination.parse::<Cidr>().is_ok()
}

fn settings(old: &Compiled, new: &Compiled) -> Vec<SettingDifference> {
    let flag = |setting, bit: u8, set: &str, unset: &str| {
        let text = |compiled: &Compiled| {
            if compiled.flags & bit != 0 {
                set
            } else {
                unset
            }
            .to_owned()
        };
        (setting, text(old), text(new))
    };
    let all = [
        (
            "mode",
            old.mode.name().to_owned(),
            new.mode.name().to_owned(),
        ),
        flag("preexisting", KEEP_PREEXISTING, "keep", "judge"),
        flag("dns.queries", ONLY_ALLOWED_QUERIES, "allowed", "any"),
    ];
    let mut found: Vec<SettingDifference> = all
        .into_iter()
        .filter(|(_, from, to)| from != to)
        .map(|(setting, from, to)| SettingDifference { setting, from, to })
        .collect();
    let mut lives: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let both = patterns(old).collect::<BTreeSet<_>>();
    for pattern in both {
        let name = pattern.replacen('*', ANY_LABEL, 1);
        if let (Some(was), Some(is)) = (old.rules_of_name(&name), new.rules_of_name(&name))
            && was.deny == 0
            && is.deny == 0
        {
            let text = |rules: &NameRules| {
                let grace = if rules.ttl_grace_s == Ttl::default().grace_s {
                    String::new()
                } else {
                    format!(", {}s after a use", rules.ttl_grace_s)
                };
                format!("{}s to {}s{grace}", rules.ttl_min_s, rules.ttl_max_s)
            };
            if text(was) != text(is) {
                lives
                    .entry((text(was), text(is)))
                    .or_default()
                    .push(pattern);
            }
        }
    }
    for ((from, to), of) in lives {
        let of = match of.as_slice() {
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first} and {} more", rest.len()),
            [] => continue,
        };
        let from = format!("{from} for {of}");
        found.push(SettingDifference {
            setting: "ttl",
            from,
            to,
        });
    }
    found
}
