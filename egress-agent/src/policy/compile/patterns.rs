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

use super::grants::{Grant, Grants, Item};
use crate::policy::{
    error::{Problem, Report},
    name::{NamePattern, Star},
    names::{Names, Node},
    ttl::Ttl,
};

/// Most entries that patterns with `*` inside a label may need: two policies have to fit into the trie.
const LABEL_ENTRIES: usize = 131_072;

/// The rules of one pattern.
struct OfPattern<'a> {
    /// Where it stands first.
    item: Item<'a>,
    allow: Grants<'a>,
    /// Bounds of the policies that allow it.
    ttl: Option<Ttl>,
    deny: Option<u64>,
    /// Rule of a policy in audit that denies it.
    auditor: Option<u64>,
}

impl<'a> OfPattern<'a> {
    fn new(item: Item<'a>) -> Self {
        Self {
            item,
            allow: Grants::default(),
            ttl: None,
            deny: None,
            auditor: None,
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

    /// The patterns that cover every label of at least `bytes` bytes that begins with `head` and ends with `tail`,
    /// longest first.
    fn covering(&self, head: &str, tail: &str, bytes: usize) -> Vec<&OfPattern<'a>> {
        let mut covering = Vec::new();
        for length in self.prefix_lengths.iter().rev() {
            let Some(of_prefix) = head.get(..*length).and_then(|text| self.patterns.get(text))
            else {
                continue;
            };
            for suffix_length in self.suffix_lengths.iter().rev() {
                let fits = length.saturating_add(*suffix_length) <= bytes;
                let from = tail.len().checked_sub(*suffix_length).filter(|_| fits);
                let suffix = from.and_then(|from| tail.get(from..));
                covering.extend(suffix.and_then(|suffix| of_prefix.get(suffix)));
            }
        }
        covering
    }

    /// As [`Labels::covering`], for one label.
    fn covering_label(&self, label: &str) -> Vec<&OfPattern<'a>> {
        self.covering(label, label, label.len())
    }

    /// What stands before the `*` of the patterns whose end `suffix` ends with.
    fn prefixes(&self, suffix: &str) -> BTreeSet<&'a str> {
        let ends = (0..=suffix.len()).filter_map(|from| suffix.get(from..));
        let prefixes = ends.filter_map(|end| self.prefixes_of.get(end));
        prefixes.flatten().copied().collect()
    }
}

/// Labels that begin with `prefix` and end with `suffix`, and are too short for both.
fn overlaps(prefix: &str, suffix: &str) -> impl Iterator<Item = String> {
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
        self.entry(pattern, item).deny.get_or_insert(item.id);
    }

    /// Adds a rule of a policy in audit that denies, beside policies that are enforced.
    pub(super) fn audit(&mut self, pattern: &'a NamePattern, item: Item<'a>) {
        self.entry(pattern, item).auditor.get_or_insert(item.id);
    }

    /// Adds a rule that allows.
    pub(super) fn allow(
        &mut self,
        pattern: &'a NamePattern,
        item: Item<'a>,
        ports: &[PortRange],
        ttl: Ttl,
    ) {
        let of = self.entry(pattern, item);
        of.ttl = Some(of.ttl.map_or(ttl, |known| longest(known, ttl)));
        for ports in ports.iter().copied() {
            let kind = EntryKind::Allow;
            of.allow.add_of_name(Grant { item, kind, ports });
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
    pub(super) fn compile(&self, report: &mut Report) -> Names {
        let mut names = Names::default();
        for (name, own) in &self.exact {
            let mut covering = vec![own];
            covering.extend(self.covering_name(name));
            let rules = self.union(covering, parent_of(name), report, || (*name).to_owned());
            names.add_exact((*name).to_owned(), rules);
        }
        for name in self.below.keys() {
            let rules = self.union(Vec::new(), name, report, || format!("*.{name}"));
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

    /// The patterns with `*` inside the first label that cover a name.
    fn covering_name(&self, name: &str) -> Vec<&OfPattern<'a>> {
        let (label, parent) = name.split_once('.').unwrap_or((name, ""));
        match self.labels.get(parent) {
            Some(labels) => labels.covering_label(label),
            None => Vec::new(),
        }
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
        for (suffix, own) in &labels.prefixes_of {
            let prefixes = labels.prefixes(suffix);
            let mut set = HashMap::with_capacity(prefixes.len());
            for prefix in prefixes {
                take_one(left, parent, labels, report)?;
                let covering = labels.covering(prefix, suffix, usize::MAX);
                let rules = self.union(covering, parent, report, || {
                    format!("{prefix}*{suffix}.{parent}")
                });
                set.insert(prefix.to_owned(), rules);
            }
            let rules = self.union(Vec::new(), parent, report, || format!("*.{parent}"));
            names.add_set(parent, suffix, rules, set);
            for label in own.iter().flat_map(|prefix| overlaps(prefix, suffix)) {
                let name = format!("{label}.{parent}");
                if self.exact.contains_key(name.as_str()) {
                    continue;
                }
                take_one(left, parent, labels, report)?;
                let covering = labels.covering_label(&label);
                let rules = self.union(covering, parent, report, || name.clone());
                names.add_exact(name, rules);
            }
        }
        Some(())
    }

    /// The union of `covering` and the patterns for the names below `parent`.
    fn union<'b>(
        &'b self,
        mut covering: Vec<&'b OfPattern<'a>>,
        parent: &str,
        report: &mut Report,
        shown: impl FnOnce() -> String,
    ) -> NameRules {
        let parents = std::iter::successors(Some(parent), |rest| {
            rest.split_once('.').map(|(_, parent)| parent)
        });
        covering.extend(parents.filter_map(|parent| self.below.get(parent)));
        let mut rules = NameRules {
            deny: covering.iter().find_map(|of| of.deny).unwrap_or(0),
            auditor: covering.iter().find_map(|of| of.auditor).unwrap_or(0),
            ..NameRules::default()
        };
        let ttl = covering.iter().filter_map(|of| of.ttl).reduce(longest);
        let ttl = ttl.unwrap_or_default();
        (rules.ttl_min_s, rules.ttl_max_s) = (ttl.min_s, ttl.max_s);
        // A denied name teaches nothing, so that it has no grants either.
        if rules.deny != 0 {
            return rules;
        }
        let mut grants = Grants::default();
        for of in covering {
            grants.is_over |= of.allow.is_over;
            of.allow
                .list
                .iter()
                .for_each(|grant| grants.add_of_name(*grant));
        }
        let entries = grants.entries(NAME_ENTRIES, report, |meeting| Problem::NameFull {
            name: shown(),
            meeting,
        });
        for (slot, entry) in rules.entries.iter_mut().zip(entries) {
            *slot = entry;
        }
        rules
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
        report.add(place, Problem::LabelsFull { parent, max });
    }
    None
}

/// For every TTL the longer of the two lives.
fn longest(a: Ttl, b: Ttl) -> Ttl {
    Ttl {
        min_s: a.min_s.max(b.min_s),
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
