//! Ports that were seen, as a rule can have them.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::policy::{
    NAME_ENTRIES, PortRange,
    protocol::{ICMP, ICMPV6, SCTP, TCP, UDP},
};

/// Ports of one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    seen: BTreeSet<(u8, u16)>,
    icmp: bool,
}

/// The port ranges that a rule has for [`Ports`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PortRanges {
    /// The ranges, at most [`NAME_ENTRIES`].
    pub(super) ranges: Vec<PortRange>,
    /// Protocols whose ports had to be written as one range, which covers more than was seen, and how many they were.
    pub(super) widened: Vec<(u8, usize)>,
}

impl Ports {
    /// Adds a port; returns false when a rule has no words for it but `any`.
    pub(super) fn add(&mut self, protocol: u8, port: Option<u16>) -> bool {
        match (protocol, port) {
            (ICMP | ICMPV6, _) => self.icmp = true,
            (TCP | UDP | SCTP, Some(port)) if port != 0 => {
                self.seen.insert((protocol, port));
            }
            _ => return false,
        }
        true
    }

    /// Adds what others have.
    pub(super) fn extend(&mut self, others: &Self) {
        self.seen.extend(&others.seen);
        self.icmp |= others.icmp;
    }

    /// The ranges: neighbours together, and one for a whole protocol only where the rule had too many.
    pub(super) fn ranges(&self) -> PortRanges {
        let mut ranges: Vec<PortRange> = Vec::new();
        for (protocol, port) in &self.seen {
            match ranges.last_mut() {
                Some(last)
                    if last.proto == *protocol && last.last.checked_add(1) == Some(*port) =>
                {
                    last.last = *port;
                }
                _ => ranges.push(PortRange::new(*protocol, *port, *port)),
            }
        }
        if self.icmp {
            ranges.push(PortRange::new(ICMP, 0, u16::MAX));
        }
        let mut widened = Vec::new();
        while ranges.len() > NAME_ENTRIES {
            let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
            for range in &ranges {
                let count = counts.entry(range.proto).or_default();
                *count = count.saturating_add(1);
            }
            let Some((protocol, _)) = counts.into_iter().max_by_key(|(_, count)| *count) else {
                break;
            };
            let mut ports = ranges.iter().filter(|range| range.proto == protocol);
            let first = ports.clone().map(|range| range.first).min();
            let last = ports.by_ref().map(|range| range.last).max();
            let at = ranges.iter().position(|range| range.proto == protocol);
            ranges.retain(|range| range.proto != protocol);
            if let (Some(at), Some(first), Some(last)) = (at, first, last) {
                ranges.insert(at, PortRange::new(protocol, first, last));
            }
            let seen = self.seen.iter().filter(|(of, _)| *of == protocol);
            widened.push((protocol, seen.count()));
        }
        PortRanges { ranges, widened }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::ports_text;

    fn ports(seen: &[(u8, u16)]) -> Ports {
        let mut ports = Ports::default();
        for (protocol, port) in seen {
            assert!(ports.add(*protocol, Some(*port)));
        }
        ports
    }

    #[test]
    fn neighbours_are_one_range_and_both_icmps_are_one_word() {
        let mut seen = ports(&[
            (TCP, 8001),
            (TCP, 443),
            (TCP, 8000),
            (TCP, 8003),
            (UDP, 65_535),
            (TCP, 65_535),
        ]);
        assert!(seen.add(ICMP, None) && seen.add(ICMPV6, None));
        let PortRanges { ranges, widened } = seen.ranges();
        assert_eq!(
            ports_text(&ranges),
            "443/tcp, 8000-8001/tcp, 8003/tcp, 65535/tcp, 65535/udp, icmp"
        );
        assert_eq!(widened, []);
    }

    #[test]
    fn what_rules_have_no_words_for_is_refused() {
        let mut seen = Ports::default();
        for (protocol, port) in [(47, None), (TCP, None), (TCP, Some(0)), (136, Some(7))] {
            assert!(!seen.add(protocol, port));
        }
        assert_eq!(seen, Ports::default());
    }

    #[test]
    fn only_above_the_limit_the_ports_of_a_protocol_become_one_range() {
        let mut list: Vec<(u8, u16)> = (0..7).map(|n| (TCP, 1_000 + 2 * n)).collect();
        list.push((UDP, 53));
        assert_eq!(ports(&list).ranges().ranges.len(), NAME_ENTRIES);
        assert_eq!(ports(&list).ranges().widened, []);
        list.push((UDP, 443));
        let PortRanges { ranges, widened } = ports(&list).ranges();
        assert_eq!(ports_text(&ranges), "1000-1012/tcp, 53/udp, 443/udp");
        assert_eq!(widened, [(TCP, 7)]);
    }
}
