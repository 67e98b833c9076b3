//! Sets of ports, to compare what rules mean rather than how they are written.

use egress_common::policy::{PortRange, protocol};

use super::{port_range_text, protocol_text};

/// Protocols that rules tell apart, and one that stands for all others.
const PROTOCOLS: [u8; 5] = [
    protocol::TCP,
    protocol::UDP,
    protocol::SCTP,
    protocol::ICMP,
    OTHERS,
];

/// Stands for the protocols that only `any` covers (IANA: reserved).
const OTHERS: u8 = 255;

/// All ports, and what has none.
const ALL: (u32, u32) = (0, u16::MAX as u32);

/// A set of ports of protocols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortSet {
    /// For each of [`PROTOCOLS`] ranges in order, which never touch each other.
    ranges: [Vec<(u32, u32)>; PROTOCOLS.len()],
}

impl PortSet {
    /// The set of one range.
    pub(crate) fn of(range: &PortRange) -> Self {
        let mut set = Self::default();
        for (proto, ranges) in PROTOCOLS.iter().zip(&mut set.ranges) {
            if range.proto == protocol::ANY || range.proto == *proto {
                ranges.push((range.first.into(), range.last.into()));
            }
        }
        set
    }

    /// The set of several ranges.
    pub(crate) fn of_all<'a>(ranges: impl IntoIterator<Item = &'a PortRange>) -> Self {
        ranges
            .into_iter()
            .fold(Self::default(), |set, range| set.with(&Self::of(range)))
    }

    /// The ports of either.
    pub(crate) fn with(&self, other: &Self) -> Self {
        self.combined(other, |own, others| {
            let mut all: Vec<(u32, u32)> = own.iter().chain(others).copied().collect();
            all.sort_unstable();
            let mut joined: Vec<(u32, u32)> = Vec::with_capacity(all.len());
            for (first, last) in all {
                match joined.last_mut() {
                    Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                    _ => joined.push((first, last)),
                }
            }
            joined
        })
    }

    /// The ports of this one that the other does not have.
    pub(crate) fn without(&self, other: &Self) -> Self {
        self.combined(other, |own, others| {
            let mut left = Vec::new();
            for (first, last) in own {
                let mut next = *first;
                for (from, to) in others
                    .iter()
                    .filter(|(from, to)| *to >= *first && from <= last)
                {
                    if *from > next {
                        left.push((next, from.saturating_sub(1)));
                    }
                    next = next.max(to.saturating_add(1));
                }
                if next <= *last {
                    left.push((next, *last));
                }
            }
            left
        })
    }

    fn combined(
        &self,
        other: &Self,
        combine: impl Fn(&[(u32, u32)], &[(u32, u32)]) -> Vec<(u32, u32)>,
    ) -> Self {
        let mut set = Self::default();
        let both = self.ranges.iter().zip(&other.ranges);
        for (slot, (own, others)) in set.ranges.iter_mut().zip(both) {
            *slot = combine(own, others);
        }
        set
    }

    /// True if nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.iter().all(Vec::is_empty)
    }

    /// True if everything of the other is in it.
    pub(crate) fn holds(&self, other: &Self) -> bool {
        other.without(self).is_empty()
    }

    /// As a rule would write it.
    pub(crate) fn texts(&self) -> Vec<String> {
        let is_all = |ranges: &Vec<(u32, u32)>| ranges.as_slice() == [ALL];
        if self.ranges.iter().all(is_all) {
            return vec!["any".to_owned()];
        }
        let mut texts = Vec::new();
        for (proto, ranges) in PROTOCOLS.iter().zip(&self.ranges) {
            for (first, last) in ranges {
                let whole = (*first, *last) == ALL;
                texts.push(match *proto {
                    OTHERS => "other protocols".to_owned(),
                    protocol::ICMP => protocol_text(protocol::ICMP),
                    proto => {
                        // Port 0 is never written: it is there when all are.
                        let first = if whole { 0 } else { (*first).max(1) };
                        let end = |port: u32| u16::try_from(port).unwrap_or(u16::MAX);
                        port_range_text(&PortRange::new(proto, end(first), end(*last)))
                    }
                });
            }
        }
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::parse_port_range;

    fn set(texts: &[&str]) -> PortSet {
        let ranges: Vec<PortRange> = texts
            .iter()
            .map(|text| parse_port_range(text).unwrap())
            .collect();
        PortSet::of_all(&ranges)
    }

    #[test]
    fn the_same_ports_are_equal_however_they_are_written() {
        for (one, other) in [
            (&["80/tcp", "81/tcp"][..], &["80-81/tcp"][..]),
            (&["80-90/tcp", "85-100/tcp"], &["80-100/tcp"]),
            (&["any", "443/tcp"], &["any"]),
            (&["any/udp", "53/udp"], &["any/udp"]),
            (&["icmp", "any"], &["any"]),
        ] {
            assert_eq!(set(one), set(other));
        }
        assert_ne!(set(&["80/tcp"]), set(&["80/udp"]));
        assert_ne!(set(&["1-65535/tcp"]), set(&["any/tcp"]));
        assert_ne!(
            set(&["any/tcp", "any/udp", "any/sctp", "icmp"]),
            set(&["any"])
        );
    }

    #[test]
    fn what_is_left_is_told_as_a_rule_would_write_it() {
        for (one, other, left) in [
            (
                &["80/tcp", "443/tcp"][..],
                &["80/tcp"][..],
                &["443/tcp"][..],
            ),
            (&["80-90/tcp"], &["85/tcp"], &["80-84/tcp", "86-90/tcp"]),
            (&["any"], &[], &["any"]),
            (&["any/tcp"], &["443/tcp"], &["1-442/tcp", "444-65535/tcp"]),
            (
                &["any"],
                &["any/tcp"],
                &["any/udp", "any/sctp", "icmp", "other protocols"],
            ),
            (&["icmp"], &["any"], &[]),
            (&["80/tcp"], &["1-100/tcp", "200/tcp"], &[]),
        ] {
            assert_eq!(
                set(one).without(&set(other)).texts(),
                left,
                "{one:?} {other:?}"
            );
        }
        assert!(set(&["any"]).holds(&set(&["icmp", "53/udp"])));
        assert!(!set(&["53/udp"]).holds(&set(&["53/tcp"])));
        assert!(set(&[]).is_empty() && set(&["any"]).holds(&set(&[])));
    }
}
