//! Observations, bounded.

mod entry;
mod explained;
mod flows;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use egress_common::verdict::Verdict;

pub(super) use self::entry::reason_of;
pub use self::entry::{Destination, Key, Packet, is_a_matter_of_rules};
use self::{
    entry::{Facts, LISTED, clamped, is_name, restored},
    explained::ExplainedAddresses,
    flows::{Flow, Flows},
};
use crate::api::{
    Timestamp,
    model::{Loss, Observations, Text},
};

/// Name of the loss of what the table had no room for.
pub const DROPPED: &str = "observations_dropped";

/// Bounds of a [`Table`].
#[derive(Clone, Copy, Debug)]
pub struct TableLimits {
    /// Most observations of names.
    pub names: usize,
    /// Most observations of addresses without a name.
    pub addresses: usize,
    /// Most flows whose next packets are known as theirs; twice as many are held.
    pub flows: usize,
}

impl Default for TableLimits {
    fn default() -> Self {
        Self {
            names: 6_144,
            addresses: 2_048,
            flows: 8_192,
        }
    }
}

/// The greatest change since the last question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing.
    #[default]
    Nothing,
    /// Counts and times.
    Counts,
    /// There is an observation more, or something was lost.
    Observations,
}

/// Observations, bounded: of names and of bare addresses apart, so that a scan of addresses cannot push names out.
#[derive(Debug, Default)]
pub struct Table {
    limits: TableLimits,
    entries: HashMap<Arc<Key>, Facts>,
    /// How many of `entries` are of names.
    names: usize,
    flows: Flows,
    explained: ExplainedAddresses,
    losses: BTreeMap<Text, Loss>,
    totals: BTreeMap<Text, u64>,
    change: Change,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(limits: TableLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Takes a verdict in. Packets of a flow that was seen just before only move its last time.
    pub fn record(&mut self, packet: &Packet<'_>) {
        // Of what is allowed, only what a rule allows is a question of the policy.
        if packet.verdict == Verdict::Allow && !is_a_matter_of_rules(packet.reason) {
            return;
        }
        let flow = Flow::of(packet);
        self.flows.forget(packet.at, self.limits.flows);
        if let Some(key) = self.flows.known(&flow)
            && let Some(facts) = self.entries.get_mut(&key)
        {
            facts.last = facts.last.max(packet.at);
            self.change = self.change.max(Change::Counts);
            return;
        }
        let key = self.key_of(packet, &flow.scope);
        let key = self.count(key, packet);
        self.flows.insert(flow, key);
    }

    fn key_of(&mut self, packet: &Packet<'_>, scope: &Arc<str>) -> Key {
        let place = (Arc::clone(scope), packet.destination);
        let destination = if !is_a_matter_of_rules(packet.reason) {
            Destination::Any
        } else if let Some(name) = packet.names.first() {
            let name = clamped(name);
            self.explain(place, Arc::clone(&name), packet.at);
            Destination::Name(name)
        } else {
            let known = self.explained.name(&place, packet.at);
            known.map_or(Destination::Address(packet.destination), Destination::Name)
        };
        let has_port = destination != Destination::Any;
        Key {
            scope: Arc::clone(scope),
            destination,
            protocol: packet.protocol,
            port: packet.port.filter(|_| has_port),
            verdict: packet.verdict,
            reason: packet.reason,
        }
    }

    fn explain(&mut self, place: (Arc<str>, IpAddr), name: Arc<str>, at: Timestamp) {
        let most = self.limits.names.saturating_mul(LISTED);
        self.explained.insert(place, name, at, most);
    }

    /// Counts one flow under its key; returns the key that the table holds.
    fn count(&mut self, key: Key, packet: &Packet<'_>) -> Arc<Key> {
        let known = self.entries.get_key_value(&key);
        let key = known.map_or_else(|| Arc::new(key), |(known, _)| Arc::clone(known));
        if !self.entries.contains_key(&key) {
            self.insert(Arc::clone(&key), Facts::new(packet.at));
        }
        if let Some(facts) = self.entries.get_mut(&key) {
            facts.add(packet);
        }
        self.change = self.change.max(Change::Counts);
        key
    }

    fn insert(&mut self, key: Arc<Key>, facts: Facts) {
        self.make_room(&key, facts.last);
        self.names = self.names.saturating_add(usize::from(is_name(&key)));
        self.entries.insert(key, facts);
        self.change = Change::Observations;
    }

    /// Throws out a sixteenth of what is of the same kind, if there is no room for one more: allowed flows first, then
    /// what was seen longest ago. The look at everything that this takes is paid by as many insertions.
    fn make_room(&mut self, newcomer: &Key, at: Timestamp) {
        let of_names = is_name(newcomer);
        let (held, limit) = if of_names {
            (self.names, self.limits.names)
        } else {
            let addresses = self.entries.len().saturating_sub(self.names);
            (addresses, self.limits.addresses)
        };
        if held < limit.max(1) {
            return;
        }
        let target = held.saturating_sub(limit).saturating_add(limit / 16).max(1);
        let worth = |key: &Key, facts: &Facts| (key.verdict != Verdict::Allow, facts.last);
        let same_kind = |key: &Key| is_name(key) == of_names;
        let entries = self.entries.iter();
        let mut worths: Vec<_> = entries
            .filter(|(key, _)| same_kind(key))
            .map(|(key, facts)| worth(key, facts))
            .collect();
        let last = target.saturating_sub(1).min(worths.len().saturating_sub(1));
        if worths.is_empty() {
            return;
        }
        let highest = *worths.select_nth_unstable(last).1;
        let mut removed = 0_usize;
        self.entries.retain(|key, facts| {
            let goes = removed < target && same_kind(key) && worth(key, facts) <= highest;
            removed = removed.saturating_add(usize::from(goes));
            !goes
        });
        if of_names {
            self.names = self.names.saturating_sub(removed);
        }
        self.lose(DROPPED, removed as u64, at);
    }

    /// Notes that something was lost on the way here.
    pub fn lose(&mut self, what: impl Into<Text>, count: u64, at: Timestamp) {
        if count == 0 {
            return;
        }
        let what = what.into();
        let loss = self.losses.entry(what.clone()).or_insert(Loss {
            what,
            count: 0,
            first: at,
            last: at,
        });
        loss.count = loss.count.saturating_add(count);
        loss.last = loss.last.max(at);
        self.change = Change::Observations;
    }

    /// Takes the total of something that others count and that only grows, but for a restart of theirs: what came to it
    /// since the last time is lost. What came before it was ever looked at is not.
    pub fn lost_in_total(&mut self, what: &'static str, total: u64, at: Timestamp) {
        if let Some(before) = self.totals.insert(Cow::Borrowed(what), total) {
            self.lose(what, total.checked_sub(before).unwrap_or(total), at);
        }
    }

    /// How many observations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Most observations that there can be.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.limits.names.saturating_add(self.limits.addresses)
    }

    /// How many observations were dropped for lack of room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.losses.get(DROPPED).map_or(0, |loss| loss.count)
    }

    /// The change since this was last called.
    pub fn take_change(&mut self) -> Change {
        std::mem::take(&mut self.change)
    }

    /// Takes back [`Table::take_change`], for what could not be kept.
    pub fn changed(&mut self, change: Change) {
        self.change = self.change.max(change);
    }

    /// The change since [`Table::take_change`].
    #[must_use]
    pub const fn change(&self) -> Change {
        self.change
    }

    /// Everything that was seen, in a fixed order, and what was lost.
    #[must_use]
    pub fn observations(&self) -> Observations {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        let observations = entries.into_iter().map(|(key, facts)| facts.of(key));
        Observations {
            observations: observations.collect(),
            losses: self.losses.values().cloned().collect(),
        }
    }

    /// The totals of [`Table::lost_in_total`].
    #[must_use]
    pub fn totals(&self) -> BTreeMap<Text, u64> {
        self.totals.clone()
    }

    /// Takes in what a table held before. What this version does not know is counted as dropped.
    pub fn restore(&mut self, before: Observations, totals: BTreeMap<Text, u64>, now: Timestamp) {
        for loss in before.losses {
            self.losses.insert(loss.what.clone(), loss);
        }
        self.totals.extend(totals);
        let mut unknown = 0_u64;
        // The oldest first: were the bounds larger before, they go.
        let mut observations = before.observations;
        observations.sort_by_key(|one| one.last);
        for observation in observations {
            match restored(&observation) {
                Some((key, facts)) if !self.entries.contains_key(&key) => {
                    if let Destination::Name(name) = &key.destination {
                        for address in &facts.addresses {
                            let place = (Arc::clone(&key.scope), *address);
                            self.explain(place, Arc::clone(name), facts.last);
                        }
                    }
                    self.insert(Arc::new(key), facts);
                }
                _ => unknown = unknown.saturating_add(1),
            }
        }
        self.change = Change::Nothing;
        self.lose(DROPPED, unknown, now);
    }
}

#[cfg(test)]
mod tests;
