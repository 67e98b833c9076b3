//! Ceilings: what the rules of namespaces can open at most.
//!
//! The allow list of a `ClusterEgressPolicy` with `ceiling: true` opens nothing. Of what an `EgressPolicy` allows, that part
//! is left which every ceiling has too: of two patterns the names that both cover, of two networks the narrower one, of
//! their ports those of both. What is left is compiled in the place of the rule, under a number of its own, so that a flow
//! that rests on more than is left rests on nothing.
//!
//! A rule for names is held against the names of a ceiling, and one for networks against its networks: nobody knows
//! beforehand where a name leads. The one exception is a ceiling with `0.0.0.0/0` and `::/0`: every name is within it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use egress_common::{
    address::Address,
    policy::{PortRange, protocol},
};

use super::{Modes, error::CompileError, grants::covers, or_any, patterns::overlaps};
use crate::{
    document::{DESTINATIONS, KIND, Policy, PolicySet, Rule, RuleList},
    read::{Place, Report},
    vocabulary::{Cidr, NamePattern, Star},
};

/// Most comparisons of a rule with one of a ceiling: patterns that all overlap would take minutes.
const COMPARISONS: usize = 4_000_000;

/// The rest of one destination of a rule, and the ceilings that took the others.
#[derive(Debug, Default)]
pub(super) struct Left<T> {
    pub(super) pieces: Vec<(T, Vec<PortRange>)>,
    /// Names of the ceilings that do not have all of it.
    pub(super) cut_by: Vec<String>,
}

/// The rest of a rule, in the order of its destinations.
#[derive(Debug, Default)]
pub(super) struct Bounded {
    pub(super) names: Vec<Left<NamePattern>>,
    pub(super) cidrs: Vec<Left<Cidr>>,
    pub(super) service_tags: Vec<Left<Cidr>>,
}

/// The rest of the allow rules of policies, by the positions of both; nothing of a policy that no ceiling is above.
pub(super) type AllBounded = HashMap<usize, Vec<Bounded>>;

/// True if a policy is a ceiling, whose allow list opens nothing.
pub(super) fn is_ceiling(policy: &Policy) -> bool {
    policy.document.spec.ceiling
}

/// Holds the allow rules of namespaces against the ceilings that decide.
pub(super) fn bound(set: &PolicySet, modes: Modes, report: &mut Report) -> AllBounded {
    let deciding = || {
        let policies = set.policies().iter().enumerate();
        policies.filter(|(_, policy)| modes.decides(policy))
    };
    let ceilings: Vec<Ceiling<'_>> = deciding()
        .filter(|(_, policy)| is_ceiling(policy))
        .map(|(_, policy)| Ceiling::of(policy))
        .collect();
    let mut all = AllBounded::new();
    if ceilings.is_empty() {
        return all;
    }
    let mut work = Work {
        comparisons: COMPARISONS,
        pieces: DESTINATIONS,
    };
    for (index, policy) in deciding().filter(|(_, policy)| policy.document.kind == KIND) {
        let mut rules = Vec::with_capacity(policy.allow.len());
        for rule in policy.rules(RuleList::Allow) {
            let Some(bounded) = bound_rule(rule, &ceilings, &mut work) else {
                let place = Place::field(
                    &policy.file,
                    rule.line,
                    format!("spec.allow[{}]", rule.index),
                );
                let ceilings: Vec<&str> = ceilings.iter().map(|one| one.policy.name()).collect();
                let ceilings = ceilings.join(", ");
                report.add(place, CompileError::CeilingWork { ceilings });
                return all;
            };
            rules.push(bounded);
        }
        all.insert(index, rules);
    }
    all
}

/// The work that may still be done.
struct Work {
    comparisons: usize,
    pieces: usize,
}

impl Work {
    fn compare(&mut self, count: usize) -> Option<()> {
        self.comparisons = self.comparisons.checked_sub(count)?;
        Some(())
    }
}

fn bound_rule(rule: &Rule, ceilings: &[Ceiling<'_>], work: &mut Work) -> Option<Bounded> {
    let ports = or_any(&rule.ports);
    let mut bounded = Bounded::default();
    for name in &rule.names {
        let whole = vec![(name.value.clone(), ports.to_vec())];
        let left = bound_pieces(whole, ceilings, work, Ceiling::of_name)?;
        bounded.names.push(left);
    }
    for cidr in &rule.cidrs {
        let whole = vec![(cidr.value, ports.to_vec())];
        let left = bound_pieces(whole, ceilings, work, Ceiling::of_cidr)?;
        bounded.cidrs.push(left);
    }
    for tag in &rule.service_tags {
        let prefixes = tag.value.prefixes.iter();
        let whole = prefixes.map(|cidr| (*cidr, ports.to_vec())).collect();
        let left = bound_pieces(whole, ceilings, work, Ceiling::of_cidr)?;
        bounded.service_tags.push(left);
    }
    Some(bounded)
}

/// Of these pieces what every ceiling has too; `None` if that is too much work.
fn bound_pieces<'a, T: Clone + PartialEq>(
    mut pieces: Vec<(T, Vec<PortRange>)>,
    ceilings: &[Ceiling<'a>],
    work: &mut Work,
    within: impl Fn(&Ceiling<'a>, &T, &[PortRange], &mut Work) -> Option<Vec<(T, Vec<PortRange>)>>,
) -> Option<Left<T>> {
    let mut cut_by = Vec::new();
    for ceiling in ceilings {
        let mut left = Vec::new();
        let mut is_cut = false;
        for (what, ports) in &pieces {
            let within = within(ceiling, what, ports, work)?;
            let is_whole = |(piece, its): &(T, Vec<PortRange>)| piece == what && its == ports;
            is_cut |= !within.iter().any(is_whole);
            left.extend(within);
        }
        pieces = left;
        if is_cut {
            cut_by.push(ceiling.policy.name().to_owned());
        }
    }
    work.pieces = work.pieces.checked_sub(pieces.len())?;
    Some(Left { pieces, cut_by })
}

/// A ceiling, by what it has.
struct Ceiling<'a> {
    policy: &'a Policy,
    /// Patterns by the labels of their names from the last one on, so that what lies below a name follows it.
    names: BTreeMap<String, Vec<(&'a NamePattern, Vec<PortRange>)>>,
    cidrs: BTreeMap<(Address, u8), Vec<PortRange>>,
    /// Prefix lengths of its networks.
    lengths: BTreeSet<u8>,
    /// Ports of all addresses: every name is within them.
    everywhere: Vec<PortRange>,
}

impl<'a> Ceiling<'a> {
    fn of(policy: &'a Policy) -> Self {
        let mut ceiling = Self {
            policy,
            names: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            lengths: BTreeSet::new(),
            everywhere: Vec::new(),
        };
        let mut places: HashMap<&NamePattern, usize> = HashMap::new();
        for rule in policy.rules(RuleList::Allow) {
            let ports = or_any(&rule.ports);
            for name in &rule.names {
                let of_name = ceiling.names.entry(reversed(&name.value.name)).or_default();
                let place = *places.entry(&name.value).or_insert(of_name.len());
                match of_name.get_mut(place) {
                    Some((_, known)) => known.extend_from_slice(ports),
                    None => of_name.push((&name.value, ports.to_vec())),
                }
            }
            let of_tags = rule.service_tags.iter().flat_map(|tag| &tag.value.prefixes);
            for cidr in rule.cidrs.iter().map(|cidr| &cidr.value).chain(of_tags) {
                let key = (*cidr.address(), cidr.bits());
                ceiling.lengths.insert(cidr.bits());
                ceiling
                    .cidrs
                    .entry(key)
                    .or_default()
                    .extend_from_slice(ports);
            }
        }
        for (_, ports) in ceiling.names.values_mut().flatten() {
            *ports = simplest(std::mem::take(ports));
        }
        for ports in ceiling.cidrs.values_mut() {
            *ports = simplest(std::mem::take(ports));
        }
        let of = |cidr: Cidr| ceiling.cidrs.get(&(*cidr.address(), cidr.bits()));
        let all = [Cidr::ALL_V4, Cidr::containing(&Address::default(), 0)].map(of);
        if let [Some(v4), Some(v6)] = all {
            ceiling.everywhere = in_both(v4, v6);
        }
        ceiling
    }

    /// The part of a pattern and its ports that it has.
    fn of_name(
        &self,
        pattern: &NamePattern,
        ports: &[PortRange],
        work: &mut Work,
    ) -> Option<Vec<(NamePattern, Vec<PortRange>)>> {
        let mut pieces: BTreeMap<NamePattern, Vec<PortRange>> = BTreeMap::new();
        let mut add = |pattern: NamePattern, theirs: &[PortRange]| {
            let both = in_both(ports, theirs);
            if !both.is_empty() {
                pieces.entry(pattern).or_default().extend(both);
            }
        };
        add(pattern.clone(), &self.everywhere);
        let key = reversed(&pattern.name);
        // Itself and the names above.
        let dots = key.match_indices('.').map(|(at, _)| at.saturating_add(1));
        for above in dots.filter_map(|end| key.get(..end)) {
            let Some(theirs) = self.names.get(above) else {
                continue;
            };
            work.compare(theirs.len())?;
            for (other, theirs) in theirs {
                for both in intersection(pattern, other) {
                    add(both, theirs);
                }
            }
        }
        if pattern.star != Star::None {
            let below = self.names.range::<str, _>((
                std::ops::Bound::Excluded(key.as_str()),
                std::ops::Bound::Unbounded,
            ));
            for (_, theirs) in below.take_while(|(name, _)| name.starts_with(&key)) {
                work.compare(theirs.len())?;
                for (other, theirs) in theirs {
                    for both in intersection(pattern, other) {
                        add(both, theirs);
                    }
                }
            }
        }
        Some(told(pieces, pattern, ports))
    }

    /// The part of a network and its ports that it has.
    fn of_cidr(
        &self,
        cidr: &Cidr,
        ports: &[PortRange],
        work: &mut Work,
    ) -> Option<Vec<(Cidr, Vec<PortRange>)>> {
        let mut pieces: BTreeMap<Cidr, Vec<PortRange>> = BTreeMap::new();
        let mut add = |cidr: Cidr, theirs: &[PortRange]| {
            let both = in_both(ports, theirs);
            if !both.is_empty() {
                pieces.entry(cidr).or_default().extend(both);
            }
        };
        for bits in self.lengths.range(..=cidr.bits()) {
            let around = Cidr::containing(cidr.address(), *bits);
            let theirs = self.cidrs.get(&(*around.address(), *bits));
            if let Some(theirs) = theirs.filter(|_| around.is_v4() == cidr.is_v4()) {
                add(*cidr, theirs);
            }
        }
        // Those inside follow in order, the narrower ones behind the wider ones with the same address.
        for ((address, bits), theirs) in self.cidrs.range((*cidr.address(), 0)..) {
            if Cidr::containing(address, cidr.bits()).address() != cidr.address() {
                break;
            }
            work.compare(1)?;
            let inside = Cidr::containing(address, *bits);
            if *bits > cidr.bits() && inside.is_v4() == cidr.is_v4() {
                add(inside, theirs);
            }
        }
        Some(told(pieces, cidr, ports))
    }
}

/// The pieces, each with the fewest ranges; one alone if that is all.
fn told<T: Clone + Ord>(
    mut pieces: BTreeMap<T, Vec<PortRange>>,
    whole: &T,
    ports: &[PortRange],
) -> Vec<(T, Vec<PortRange>)> {
    if let Some(left) = pieces.remove(whole) {
        let left = simplest(left);
        if ports
            .iter()
            .all(|range| left.iter().any(|other| covers(other, range)))
        {
            return vec![(whole.clone(), ports.to_vec())];
        }
        pieces.insert(whole.clone(), left);
    }
    let pieces = pieces.into_iter();
    pieces
        .map(|(what, ports)| (what, simplest(ports)))
        .collect()
}

/// The labels of a name from the last one on, each with a dot behind it.
fn reversed(name: &str) -> String {
    let mut text = String::with_capacity(name.len().saturating_add(1));
    for label in name.rsplit('.') {
        text.push_str(label);
        text.push('.');
    }
    text
}

/// The flows that are in both lists of ranges.
fn in_both(a: &[PortRange], b: &[PortRange]) -> Vec<PortRange> {
    let all = a
        .iter()
        .flat_map(|a| b.iter().filter_map(|b| overlap(a, b)));
    simplest(all.collect())
}

fn overlap(a: &PortRange, b: &PortRange) -> Option<PortRange> {
    let proto = match (a.proto, b.proto) {
        (protocol::ANY, proto) | (proto, protocol::ANY) => proto,
        (a, b) if a == b => a,
        _ => return None,
    };
    let both = PortRange::new(proto, a.first.max(b.first), a.last.min(b.last));
    (both.first <= both.last).then_some(both)
}

/// Without repetitions, and without ranges that others cover.
fn simplest(ranges: Vec<PortRange>) -> Vec<PortRange> {
    let mut kept: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        if !kept.iter().any(|known| covers(known, &range)) {
            kept.retain(|known| !covers(&range, known));
            kept.push(range);
        }
    }
    kept
}

/// The names that both patterns cover, as patterns.
fn intersection(a: &NamePattern, b: &NamePattern) -> Vec<NamePattern> {
    let is_within = |name: &str, base: &str| {
        name == base
            || name
                .strip_suffix(base)
                .is_some_and(|rest| rest.ends_with('.'))
    };
    match (&a.star, &b.star) {
        (Star::None, _) if b.covers(&a.name) => vec![a.clone()],
        (_, Star::None) if a.covers(&b.name) => vec![b.clone()],
        (Star::None, _) | (_, Star::None) => Vec::new(),
        // What stands behind the label with the `*` is the parent of the names that are covered.
        (Star::Below, _) if is_within(&b.name, &a.name) => vec![b.clone()],
        (_, Star::Below) if is_within(&a.name, &b.name) => vec![a.clone()],
        (Star::Below, _) | (_, Star::Below) => Vec::new(),
        (
            Star::Label { prefix, suffix },
            Star::Label {
                prefix: other_prefix,
                suffix: other_suffix,
            },
        ) => {
            if a.name != b.name {
                return Vec::new();
            }
            let ((short, prefix), (short_end, suffix)) = (
                by_length(prefix, other_prefix),
                by_length(suffix, other_suffix),
            );
            if !prefix.starts_with(short) || !suffix.ends_with(short_end) {
                return Vec::new();
            }
            let parent = &a.name;
            let mut both = vec![NamePattern {
                name: parent.clone(),
                star: Star::Label {
                    prefix: prefix.to_owned(),
                    suffix: suffix.to_owned(),
                },
            }];
            // Labels too short for the longer ends of both.
            for name in overlaps(prefix, suffix).map(|label| format!("{label}.{parent}")) {
                if a.covers(&name) && b.covers(&name) {
                    let star = Star::None;
                    both.push(NamePattern { name, star });
                }
            }
            both
        }
    }
}

/// The shorter text, then the longer one.
fn by_length<'a>(a: &'a str, b: &'a str) -> (&'a str, &'a str) {
    if a.len() <= b.len() { (a, b) } else { (b, a) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        tests::oracle::{name, pattern},
        vocabulary::{parse_name_pattern, parse_port_range},
    };

    fn shown(a: &str, b: &str) -> Vec<String> {
        let [a, b] = [a, b].map(|text| parse_name_pattern(text).unwrap());
        intersection(&a, &b)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn patterns_meet_in_patterns() {
        for (a, b, both) in [
            ("a.x", "a.x", "a.x"),
            ("a.x", "b.x", ""),
            ("a.b.x", "*.x", "a.b.x"),
            ("x", "*.x", ""),
            ("*.b.x", "*.x", "*.b.x"),
            ("*.b.x", "*.cb.x", ""),
            ("md-*.b.x", "*.x", "md-*.b.x"),
            ("md-*.b.x", "*.b.x", "md-*.b.x"),
            ("md-*.b.x", "*.md-1.b.x", ""),
            ("md-*.b.x", "md-1*.b.x", "md-1*.b.x"),
            ("md-*.b.x", "*-1.b.x", "md-*-1.b.x md-1.b.x"),
            ("ab*.x", "*ba.x", "ab*ba.x aba.x"),
            ("md-*.b.x", "me-*.b.x", ""),
            ("md-*.b.x", "md-*.c.x", ""),
        ] {
            assert_eq!(shown(a, b).join(" "), both, "{a} {b}");
            assert_eq!(shown(b, a).join(" "), both, "{b} {a}");
        }
    }

    #[test]
    fn ports_meet_in_ports() {
        let ranges = |text: &str| -> Vec<PortRange> {
            let texts = text.split_whitespace();
            texts.map(|text| parse_port_range(text).unwrap()).collect()
        };
        for (a, b, both) in [
            ("any", "443/tcp", "443/tcp"),
            ("any/tcp", "443/tcp 53/udp", "443/tcp"),
            ("400-450/tcp", "440-500/tcp", "440-450/tcp"),
            ("443/tcp", "443/udp", ""),
            ("icmp", "any", "icmp"),
            ("443/tcp any/tcp", "80/tcp any", "443/tcp any/tcp"),
        ] {
            let both = simplest(ranges(both));
            assert_eq!(in_both(&ranges(a), &ranges(b)), both, "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn an_intersection_covers_what_both_cover(
            a in pattern(),
            b in pattern(),
            names in proptest::collection::vec(name(), 1..60),
        ) {
            let [a, b] = [a, b].map(|text| parse_name_pattern(&text).unwrap());
            let both = intersection(&a, &b);
            for name in &names {
                let is_in = both.iter().any(|pattern| pattern.covers(name));
                prop_assert_eq!(is_in, a.covers(name) && b.covers(name), "{} {} {}", a, b, name);
            }
        }
    }
}
