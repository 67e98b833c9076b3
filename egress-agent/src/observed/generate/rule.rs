//! A rule of a learned policy, with the words above it.

use std::collections::BTreeSet;

use egress_common::policy::NAME_ENTRIES;

use super::words::{count, said, some, span};
use crate::{
    api::{Timestamp, model::Observation},
    observed::ports::Ports,
    policy::{SpecRule, port_range_text, protocol_text},
};

/// Most replaced names that the comment of a wildcard lists.
const REPLACED_LISTED: usize = 20;
/// Most of other things that a comment lists.
const SOME: usize = 6;

/// A rule, and what its comment says.
#[derive(Debug, Default)]
pub(super) struct Rule {
    pub(super) flows: u64,
    pub(super) times: Option<(Timestamp, Timestamp)>,
    senders: BTreeSet<String>,
    other_names: BTreeSet<String>,
    is_cut: bool,
    pub(super) ports: Ports,
    /// Names that a wildcard stands for.
    pub(super) replaced: BTreeSet<String>,
}

impl Rule {
    pub(super) fn add(&mut self, observation: &Observation) {
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

    pub(super) fn spans(&mut self, first: Timestamp, last: Timestamp) {
        let (from, to) = self.times.unwrap_or((first, last));
        self.times = Some((from.min(first), to.max(last)));
    }

    /// Takes another rule's place.
    pub(super) fn replace(&mut self, name: String, other: Self) {
        self.flows = self.flows.saturating_add(other.flows);
        if let Some((first, last)) = other.times {
            self.spans(first, last);
        }
        self.senders.extend(other.senders);
        self.is_cut |= other.is_cut;
        self.ports.extend(&other.ports);
        self.replaced.insert(name);
    }

    /// The words above it.
    pub(super) fn words(&self) -> String {
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

    pub(super) fn spec(&self, names: Vec<String>, cidrs: Vec<String>) -> SpecRule {
        let ranges = self.ports.ranges().ranges;
        SpecRule {
            names,
            cidrs,
            ports: Some(ranges.iter().map(port_range_text).collect()),
            ..SpecRule::default()
        }
    }
}
