//! The rules nearest to a destination that none allows: what its owner probably meant.

use std::collections::HashSet;

use egress_common::{
    address::{Address, is_v4},
    policy::{EntryKind, RuleEntry},
};

use crate::{
    compile::{Compiled, RuleSource},
    document::RuleList,
    vocabulary::{Cidr, Destination, Host, NamePattern, Star},
};

/// Most rules that are shown.
const SHOWN: usize = 3;

/// Letters in which a name may differ to be taken for a slip.
const SLIP: usize = 2;

/// Bits by which a network may miss an address to be near.
const NEAR_BITS: u8 = 8;

/// The reason why a rule does not allow a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// It denies it.
    Denies,
    /// It allows it on other ports or protocols.
    OtherPorts,
    /// It covers the names below, not the name itself.
    Apex,
    /// It names the parent, and so nothing below it.
    ParentOnly,
    /// One label differs.
    OneLabelOff,
    /// The name differs in a letter or two.
    Alike,
    /// Its network ends before the address.
    NearNetwork,
}

/// A rule that is near.
#[derive(Clone, Copy, Debug)]
pub struct Near<'a> {
    /// The reason why it does not allow.
    pub how: Nearness,
    /// The rule.
    pub rule: &'a RuleSource,
}

impl Compiled {
    /// The rules nearest to a destination, the nearest first; none if a rule allows it.
    #[must_use]
    pub fn nearest(&self, destination: &Destination) -> Vec<Near<'_>> {
        match &destination.host {
            Host::Name(name) => match self.rules_of_name(name) {
                Some(rules) if rules.deny != 0 => self.all(Nearness::Denies, [rules.deny]),
                Some(rules) => self.other_ports(&rules.entries, destination),
                None => self.near_names(name),
            },
            Host::Address(address) => match self.rules_of_address(address) {
                Some(rules) if rules.entries.iter().any(|entry| entry.kind != 0) => {
                    let decides = rules.find(destination.proto, destination.port, true);
                    match decides {
                        Some(entry) if entry.kind == EntryKind::Deny as u8 => {
                            self.all(Nearness::Denies, [entry.rule])
                        }
                        _ => self.other_ports(&rules.entries, destination),
                    }
                }
                _ => self.near_networks(address),
            },
        }
    }

    fn all(&self, how: Nearness, rules: impl IntoIterator<Item = u64>) -> Vec<Near<'_>> {
        let mut told = HashSet::new();
        let new = rules.into_iter().filter(|rule| told.insert(*rule));
        let known = new.filter_map(|rule| self.rules.get(&rule));
        known.map(|rule| Near { how, rule }).take(SHOWN).collect()
    }

    /// The rules that allow it on other ports; none if one decides about this one.
    fn other_ports(&self, entries: &[RuleEntry], destination: &Destination) -> Vec<Near<'_>> {
        let used = || entries.iter().take_while(|entry| entry.kind != 0);
        let covers = |entry: &RuleEntry| {
            entry.kind != EntryKind::Audited as u8
                && entry.ports.covers(destination.proto, destination.port)
        };
        if used().any(covers) {
            return Vec::new();
        }
        let open = used().filter(|entry| entry.opens());
        self.all(Nearness::OtherPorts, open.map(|entry| entry.rule))
    }

    fn near_names(&self, name: &str) -> Vec<Near<'_>> {
        let mut found: Vec<(usize, NamePattern, Nearness, &RuleSource)> = Vec::new();
        for (id, rule) in &self.rules {
            if rule.list == RuleList::Allow
                && let Some(pattern) = rule.pattern()
                && let Some((how, distance)) = nearness(&pattern, name)
                && self.is_of_names(*id, &pattern)
            {
                found.push((distance, pattern, how, rule));
            }
        }
        found.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let shown = found.into_iter().take(SHOWN);
        shown.map(|(_, _, how, rule)| Near { how, rule }).collect()
    }

    /// True if names that the pattern covers are allowed by this very rule: service tags look like names.
    fn is_of_names(&self, rule: u64, pattern: &NamePattern) -> bool {
        let rules = self.names.rules_of_pattern(pattern);
        rules.is_some_and(|rules| rules.entries.iter().any(|entry| entry.rule == rule))
    }

    fn near_networks(&self, address: &Address) -> Vec<Near<'_>> {
        let mut found: Vec<(u8, Cidr, u64)> = Vec::new();
        let family_bits = if is_v4(address) { 96 } else { 0 };
        for ((network, bits), rules) in &self.cidrs {
            let cidr = Cidr::containing(network, *bits);
            let missed = bits.saturating_sub(common_bits(network, address));
            let is_near = cidr.is_v4() == is_v4(address)
                && missed <= NEAR_BITS
                && bits.saturating_sub(missed) >= NEAR_BITS.saturating_add(family_bits);
            let allows = |entry: &&RuleEntry| entry.kind == EntryKind::Allow as u8;
            if is_near && let Some(entry) = rules.entries.iter().find(allows) {
                found.push((missed, cidr, entry.rule));
            }
        }
        found.sort_unstable();
        self.all(
            Nearness::NearNetwork,
            found.into_iter().map(|(_, _, rule)| rule),
        )
    }
}

/// How many bits two addresses begin with together.
fn common_bits(one: &Address, other: &Address) -> u8 {
    let differ = u128::from_be_bytes(*one) ^ u128::from_be_bytes(*other);
    u8::try_from(differ.leading_zeros()).unwrap_or(128)
}

/// How near a pattern is that does not cover the name, and how far it is for the order.
fn nearness(pattern: &NamePattern, name: &str) -> Option<(Nearness, usize)> {
    let has_star = pattern.star != Star::None;
    if has_star && pattern.name == name {
        return Some((Nearness::Apex, 0));
    }
    let wanted = pattern.name.as_str();
    let is_below = || {
        let rest = name.strip_suffix(wanted)?;
        rest.strip_suffix('.')
    };
    match (&pattern.star, is_below()) {
        (Star::None, Some(_)) => return Some((Nearness::ParentOnly, 2)),
        (Star::Label { .. }, Some(label)) if !label.contains('.') => {
            return Some((Nearness::OneLabelOff, 4));
        }
        (Star::Label { .. }, Some(_)) => return None,
        (Star::None | Star::Below | Star::Label { .. }, _) => {}
    }
    // A wildcard is compared with as many labels of the name.
    let count = wanted.split('.').count();
    let compared = if has_star {
        last_labels(name, count)?
    } else {
        name
    };
    let letters = wanted.len().abs_diff(compared.len());
    let slips = if letters <= SLIP {
        strsim::osa_distance(wanted, compared)
    } else {
        usize::MAX
    };
    // A slip in a short name is another name.
    let is_slip = slips <= SLIP && slips.saturating_mul(4) <= wanted.len();
    let order = match (
        is_slip,
        wanted.split('.').count() == compared.split('.').count(),
    ) {
        (true, _) => slips,
        // A label more or less comes before another label.
        (false, false) => 3,
        (false, true) => 4,
    };
    if is_one_label_off(wanted, compared, is_slip) {
        return Some((Nearness::OneLabelOff, order));
    }
    is_slip.then_some((Nearness::Alike, order))
}

/// The last `count` labels of a name that has more of them.
fn last_labels(name: &str, count: usize) -> Option<&str> {
    let mut dots = name.rmatch_indices('.');
    let (at, _) = dots.nth(count.checked_sub(1)?)?;
    name.get(at.saturating_add(1)..)
}

/// True if one label differs, or is too much. Unless it is a slip, two others have to be the same.
fn is_one_label_off(one: &str, other: &str, is_slip: bool) -> bool {
    let (one, other): (Vec<&str>, Vec<&str>) =
        (one.split('.').collect(), other.split('.').collect());
    let same_front = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    let backwards = one.iter().rev().zip(other.iter().rev());
    let same_back = backwards.take_while(|(a, b)| a == b).count();
    let longer = one.len().max(other.len());
    let shorter = one.len().min(other.len());
    let same = same_front.saturating_add(same_back).min(shorter);
    let is_off = longer.abs_diff(shorter) <= 1 && same == longer.saturating_sub(1);
    is_off && (is_slip || same_back >= 2)
}
