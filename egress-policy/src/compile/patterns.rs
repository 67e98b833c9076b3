//! From name patterns to the entries of the name trie.
//!
//! A name with `*` inside its first label is found in two steps: the trie gives
//! the longest ending of the name that a pattern has, and with it the number of
//! a set; in the set, the longest beginning of the first label gives the rules.
//! So a set holds, for every beginning, the union of all patterns whose ending
//! and beginning are shorter. A label that begins and ends like a pattern and
//! is too short for both (`aba` under `ab*ba`) would be found too: such names
//! are few and known, and get an entry of their own.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use egress_common::policy::{EntryKind, NAME_ENTRIES, NameRules, PortRange};

use super::{
    error::CompileError,
    grants::{Grant, Grants, Item},
    names::{Names, Node},
};
use crate::{
    read::Report,
    vocabulary::{NamePattern, Star, Ttl},
};

/// Most entries that patterns with `*` inside a label may need: two policies have to fit into the trie.
const LABEL_ENTRIES: usize = 131_072;

/// The rules of patterns that cover the same names: those of the longest pattern come first.
#[derive(Clone, Default)]
struct Union<'a> {
    allow: Grants<'a>,
    /// Bounds of the policies that allow the names.
    ttl: Option<Ttl>,
    deny: Option<u64>,
    /// Rule of a policy in audit that denies the names.
    auditor: Option<u64>,
}

impl<'a> Union<'a> {
    /// Adds the rules of shorter patterns.
    fn extend(&mut self, shorter: &Self) {
        self.deny = self.deny.or(shorter.deny);
        self.auditor = self.auditor.or(shorter.auditor);
        let bounds = [self.ttl, shorter.ttl].into_iter().flatten();
        self.ttl = bounds.reduce(longest);
        // A denied name teaches nothing, so that it has no grants either.
        if self.deny.is_none() {
            self.allow.extend_of_name(&shorter.allow);
        }
    }

    /// The rules as an entry holds them.
    fn rules(&self, report: &mut Report, shown: impl FnOnce() -> String) -> NameRules {
        let ttl = self.ttl.unwrap_or_default();
        let mut rules = NameRules {
            deny: self.deny.unwrap_or(0),
            auditor: self.auditor.unwrap_or(0),
            ttl_min_s: ttl.min_s,
            ttl_max_s: ttl.max_s,
            ttl_grace_s: ttl.grace_s,
            ..NameRules::default()
        };
        if self.deny.is_none() {
            let name_full = |meeting| CompileError::NameFull {
                name: shown(),
                meeting,
            };
            let entries = self.allow.entries(NAME_ENTRIES, report, name_full);
            for (slot, entry) in rules.entries.iter_mut().zip(entries) {
                *slot = entry;
            }
        }
        rules
    }
}

/// A pattern.
struct OfPattern<'a> {
    /// Where it stands first.
    item: Item<'a>,
    /// Its own rules at first, then those of shorter patterns of its kind as well.
    union: Union<'a>,
}

impl<'a> OfPattern<'a> {
    fn new(item: Item<'a>) -> Self {
        Self {
            item,
            union: Union::default(),
        }
    }
}

/// Patterns with `*` inside the first label and the same parent.
#[derive(Default)]
struct Labels<'a> {
    /// By what stands before the `*`, then by what stands behind it.
    patterns: HashMap<&'a str, HashMap<&'a str, OfPattern<'a>>>,
    prefixes_of: BTreeMap<&'a str, BTreeSet<&'a str>>,
    prefix_lengths: BTreeSet<usize>,
    suffix_lengths: BTreeSet<usize>,
}

impl<'a> Labels<'a> {
    fn entry(&mut self, prefix: &'a str, suffix: &'a str, item: Item<'a>) -> &mut OfPattern<'a> {
        self.prefixes_of.entry(suffix).or_default().insert(prefix);
        self.prefix_lengths.insert(prefix.len());
        self.suffix_lengths.insert(suffix.len());
        let of_prefix = self.patterns.entry(prefix).or_default();
        of_prefix
            .entry(suffix)
            .or_insert_with(|| OfPattern::new(item))
    }

    /// Merges into each pattern those with the same beginning and a shorter end.
    fn merge_ends(&mut self) {
        for of_prefix in self.patterns.values_mut() {
            let mut suffixes: Vec<&str> = of_prefix.keys().copied().collect();
            suffixes.sort_unstable_by_key(|suffix| suffix.len());
            for suffix in suffixes {
                let ends = (1..=suffix.len()).filter_map(|from| suffix.get(from..));
                let shorter = ends.filter_map(|end| of_prefix.get(end)).next();
                let Some(shorter) = shorter.map(|of| of.union.clone()) else {
                    continue;
                };
                if let Some(of) = of_prefix.get_mut(suffix) {
                    of.union.extend(&shorter);
                }
            }
        }
    }

    /// The unions of every beginning whose patterns cover names that end with `suffix`, whatever stands between.
    fn beginnings(&self, suffix: &str) -> BTreeMap<&'a str, &Union<'a>> {
        let mut unions = BTreeMap::new();
        // The longest end has the union of the shorter ones.
        let ends = (0..=suffix.len()).filter_map(|from| suffix.get(from..));
        for (end, prefixes) in ends.filter_map(|end| self.prefixes_of.get_key_value(end)) {
            for prefix in prefixes {
                if let Some(of) = self.pattern(prefix, end) {
                    unions.entry(*prefix).or_insert(&of.union);
                }
            }
        }
        unions
    }

    /// Adds the rules of the patterns that cover a label.
    fn cover(&self, label: &str, union: &mut Union<'a>, report: &Report) {
        for prefix_length in self.prefix_lengths.iter().rev() {
            if report.is_full() && union.allow.list.len() > NAME_ENTRIES {
                // One more error, which is only counted.
                return;
            }
            let Some((prefix, rest)) = label.split_at_checked(*prefix_length) else {
                continue;
            };
            let Some(of_prefix) = self.patterns.get(prefix) else {
                continue;
            };
            let mut suffixes = self.suffix_lengths.iter().rev().filter_map(|length| {
                let from = rest.len().checked_sub(*length)?;
                rest.get(from..)
            });
            if let Some(of) = suffixes.find_map(|suffix| of_prefix.get(suffix)) {
                union.extend(&of.union);
            }
        }
    }

    fn pattern(&self, prefix: &str, suffix: &str) -> Option<&OfPattern<'a>> {
        self.patterns.get(prefix)?.get(suffix)
    }
}

/// Labels that begin with `prefix` and end with `suffix`, and are too short for both.
pub(super) fn overlaps(prefix: &str, suffix: &str) -> impl Iterator<Item = String> {
    let most = prefix.len().min(suffix.len());
    (1..=most).filter_map(move |shared| {
        let (common, rest) = suffix.split_at_checked(shared)?;
        prefix.ends_with(common).then(|| format!("{prefix}{rest}"))
    })
}

/// The name behind the first label; empty when there is none.
fn parent_of(name: &str) -> &str {
    name.split_once('.').map_or("", |(_, parent)| parent)
}

/// All name patterns, with the rules of each.
#[derive(Default)]
pub(super) struct Patterns<'a> {
    exact: HashMap<&'a str, OfPattern<'a>>,
    below: HashMap<&'a str, OfPattern<'a>>,
    /// By parent.
    labels: BTreeMap<&'a str, Labels<'a>>,
}

impl<'a> Patterns<'a> {
    /// Adds a rule that denies.
    pub(super) fn deny(&mut self, pattern: &'a NamePattern, item: Item<'a>) {
        let union = &mut self.entry(pattern, item).union;
        union.deny.get_or_insert(item.id);
    }

    /// Adds a rule of a policy in audit that denies, beside policies that are enforced.
    pub(super) fn audit(&mut self, pattern: &'a NamePattern, item: Item<'a>) {
        let union = &mut self.entry(pattern, item).union;
        union.auditor.get_or_insert(item.id);
    }

    /// Adds a rule that allows.
    pub(super) fn allow(
        &mut self,
        pattern: &'a NamePattern,
        item: Item<'a>,
        ports: &[PortRange],
        ttl: Ttl,
    ) {
        let union = &mut self.entry(pattern, item).union;
        union.ttl = Some(union.ttl.map_or(ttl, |known| longest(known, ttl)));
        for ports in ports.iter().copied() {
            let kind = EntryKind::Allow;
            union.allow.add_of_name(Grant { item, kind, ports });
        }
    }

    fn entry(&mut self, pattern: &'a NamePattern, item: Item<'a>) -> &mut OfPattern<'a> {
        let new = || OfPattern::new(item);
        let name = pattern.name.as_str();
        match &pattern.star {
            Star::None => self.exact.entry(name).or_insert_with(new),
            Star::Below => self.below.entry(name).or_insert_with(new),
            Star::Label { prefix, suffix } => {
                let labels = self.labels.entry(name).or_default();
                labels.entry(prefix, suffix, item)
            }
        }
    }

    /// Every entry with the union of the rules that cover it.
    pub(super) fn compile(&mut self, report: &mut Report) -> Names {
        self.merge_below();
        self.labels.values_mut().for_each(Labels::merge_ends);
        let mut names = Names::with_capacity(self.exact.len(), self.below.len());
        for (name, of) in &self.exact {
            let rules = self.rules_of(name, of.union.clone(), report);
            names.add_exact((*name).to_owned(), rules);
        }
        for (name, of) in &self.below {
            let rules = of.union.rules(report, || format!("*.{name}"));
            names.add_below((*name).to_owned(), Node::plain(rules));
        }
        let mut left = LABEL_ENTRIES;
        for (parent, labels) in &self.labels {
            if self
                .compile_labels(parent, labels, &mut left, &mut names, report)
                .is_none()
            {
                break;
            }
        }
        names
    }

    /// Merges into each pattern for all names below a name those that cover it.
    fn merge_below(&mut self) {
        let mut names: Vec<&str> = self.below.keys().copied().collect();
        names.sort_unstable_by_key(|name| name.len());
        for name in names {
            let Some(shorter) = self.around(parent_of(name)).cloned() else {
                continue;
            };
            if let Some(of) = self.below.get_mut(name) {
                of.union.extend(&shorter);
            }
        }
    }

    /// The union of the patterns for all names below `parent`: that of the nearest, which has the others.
    fn around(&self, parent: &str) -> Option<&Union<'a>> {
        let mut parents = std::iter::successors(Some(parent), |rest| {
            rest.split_once('.').map(|(_, parent)| parent)
        });
        let nearest = parents.find_map(|parent| self.below.get(parent));
        nearest.map(|of| &of.union)
    }

    /// The rules of one name; `union` has its own.
    fn rules_of(&self, name: &str, mut union: Union<'a>, report: &mut Report) -> NameRules {
        let (label, parent) = name.split_once('.').unwrap_or((name, ""));
        if let Some(labels) = self.labels.get(parent) {
            labels.cover(label, &mut union, report);
        }
        if let Some(around) = self.around(parent) {
            union.extend(around);
        }
        union.rules(report, || name.to_owned())
    }

    /// Adds the entries of patterns with the same parent; `None` when they are too many.
    fn compile_labels(
        &self,
        parent: &str,
        labels: &Labels<'a>,
        left: &mut usize,
        names: &mut Names,
        report: &mut Report,
    ) -> Option<()> {
        let everywhere = self.around(parent).cloned().unwrap_or_default();
        // A full one is told where it stands.
        let elsewhere = everywhere.rules(&mut Report::default(), String::new);
        for (suffix, own) in &labels.prefixes_of {
            let beginnings = labels.beginnings(suffix);
            let mut set = HashMap::with_capacity(beginnings.len().min(LABEL_ENTRIES));
            // Sorted, so that a beginning's shorter ones come before it.
            let mut shorter: Vec<(&str, Union<'a>)> = Vec::new();
            for (prefix, union) in beginnings {
                take_one(left, parent, labels, report)?;
                while shorter
                    .pop_if(|(shorter, _)| !prefix.starts_with(*shorter))
                    .is_some()
                {}
                let mut union = union.clone();
                union.extend(shorter.last().map_or(&everywhere, |(_, union)| union));
                let rules = union.rules(report, || format!("{prefix}*{suffix}.{parent}"));
                set.insert(prefix.to_owned(), rules);
                shorter.push((prefix, union));
            }
            names.add_set(parent, suffix, elsewhere, set);
            for label in own.iter().flat_map(|prefix| overlaps(prefix, suffix)) {
                let name = format!("{label}.{parent}");
                if self.exact.contains_key(name.as_str()) {
                    continue;
                }
                take_one(left, parent, labels, report)?;
                let rules = self.rules_of(&name, Union::default(), report);
                names.add_exact(name, rules);
            }
        }
        Some(())
    }
}

/// Takes one entry of those that are left; reports the first pattern when there is none.
fn take_one(
    left: &mut usize,
    parent: &str,
    labels: &Labels<'_>,
    report: &mut Report,
) -> Option<()> {
    if let Some(rest) = left.checked_sub(1) {
        *left = rest;
        return Some(());
    }
    let patterns = labels.patterns.values().flat_map(HashMap::values);
    let places = patterns.map(|of| of.item.place());
    if let Some(place) = places.min() {
        let parent = parent.to_owned();
        let max = LABEL_ENTRIES;
        report.add(place, CompileError::LabelsFull { parent, max });
    }
    None
}

/// For every TTL the longer of the two lives.
fn longest(a: Ttl, b: Ttl) -> Ttl {
    Ttl {
        min_s: a.min_s.max(b.min_s),
        grace_s: a.grace_s.max(b.grace_s),
        max_s: a.max_s.max(b.max_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_are_too_short_for_both_ends_are_known() {
        let of = |prefix, suffix| overlaps(prefix, suffix).collect::<Vec<_>>();
        assert_eq!(of("a", "a"), ["a"]);
        assert_eq!(of("ab", "ba"), ["aba"]);
        assert_eq!(of("aa", "aaa"), ["aaaa", "aaa"]);
        assert_eq!(of("md-", "x"), [""; 0]);
        assert_eq!(of("", "x"), [""; 0]);
    }
}
