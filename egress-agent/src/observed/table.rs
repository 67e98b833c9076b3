//! Observations, bounded.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use egress_common::verdict::{Reason, Verdict};

use crate::{
    api::{
        Timestamp,
        model::{Loss, Observation, Observations, Text},
    },
    policy::{protocol_number, protocol_text},
};

/// Most senders, addresses and other names that an observation lists.
const LISTED: usize = 4;
/// Longest text of a sender or name that is kept, bytes.
const TEXT_BYTES: usize = 255;
/// A flow without a packet for at least this long begins anew.
const FLOW_IDLE: Duration = Duration::from_secs(60);
/// How long an address keeps its name when no lookup was seen since: the agent may have been restarted.
const EXPLAINED_FOR: Duration = Duration::from_secs(24 * 3600);
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

/// Where a flow goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// A name that the scope had asked for.
    Name(Arc<str>),
    /// An address that no lookup explains.
    Address(IpAddr),
    /// Does not matter: no rule could allow the packet, wherever it goes.
    Any,
}

/// What an observation is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Name of the scope.
    pub scope: Arc<str>,
    /// Where the flows go.
    pub destination: Destination,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port, where the protocol has one.
    pub port: Option<u16>,
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
}

/// A packet or connect that a verdict was reported of.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// When.
    pub at: Timestamp,
    /// Name of the sender's scope.
    pub scope: &'a str,
    /// Who sends: its cgroup, or where a forwarded packet comes from.
    pub sender: &'a str,
    /// Source address; unspecified at connect, where it is not chosen yet.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port, where the protocol has one.
    pub port: Option<u16>,
    /// IANA protocol number.
    pub protocol: u8,
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Names that the scope had asked for and that led to the destination: the one asked for last before the packet
    /// comes first.
    pub names: &'a [Arc<str>],
}

/// What changed since it was last asked.
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

/// What tells the packets of one flow from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flow {
    scope: Arc<str>,
    source: (IpAddr, u16),
    destination: (IpAddr, Option<u16>),
    protocol: u8,
    verdict: Verdict,
}

/// What was seen of a [`Key`].
#[derive(Clone, Debug)]
struct Facts {
    flows: u64,
    first: Timestamp,
    last: Timestamp,
    senders: Vec<Arc<str>>,
    addresses: Vec<IpAddr>,
    other_names: Vec<Arc<str>>,
    is_cut: bool,
}

/// The name that explained an address, and when it last did.
#[derive(Clone, Debug)]
struct Explained {
    name: Arc<str>,
    at: Timestamp,
}

/// Observations, bounded: of names and of bare addresses apart, so that a scan of addresses cannot push names out.
#[derive(Debug, Default)]
pub struct Table {
    limits: TableLimits,
    entries: HashMap<Arc<Key>, Facts>,
    /// How many of `entries` are of names.
    names: usize,
    /// Flows with a packet lately, and those before.
    flows: [HashMap<Flow, Arc<Key>>; 2],
    flows_since: Option<Timestamp>,
    explained: HashMap<(Arc<str>, IpAddr), Explained>,
    losses: BTreeMap<Text, Loss>,
    totals: BTreeMap<Text, u64>,
    change: Change,
}

/// Whether a rule decides about flows that get this reason: a rule could allow them, or one denies them.
#[must_use]
pub const fn is_a_matter_of_rules(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::CidrRule
            | Reason::NameRule
            | Reason::EstablishedFlow
            | Reason::NoRule
            | Reason::DeniedCidr
            | Reason::Expired
            | Reason::PortNotAllowed
            | Reason::HeldOff
            | Reason::TableFull
    )
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
        let flow = Flow {
            scope: clamped(packet.scope),
            source: (packet.source, packet.source_port),
            destination: (packet.destination, packet.port),
            protocol: packet.protocol,
            verdict: packet.verdict,
        };
        self.forget_flows(packet.at);
        if let Some(key) = self.known_flow(&flow)
            && let Some(facts) = self.entries.get_mut(&key)
        {
            facts.last = facts.last.max(packet.at);
            self.change = self.change.max(Change::Counts);
            return;
        }
        let key = self.key_of(packet, &flow.scope);
        let key = self.count(key, packet);
        // At connect nothing tells one attempt from the next.
        if !packet.source.is_unspecified() {
            let [current, _] = &mut self.flows;
            current.insert(flow, key);
        }
    }

    fn known_flow(&mut self, flow: &Flow) -> Option<Arc<Key>> {
        if flow.source.0.is_unspecified() {
            return None;
        }
        let [current, before] = &mut self.flows;
        if let Some(key) = current.get(flow) {
            return Some(Arc::clone(key));
        }
        let key = before.remove(flow)?;
        current.insert(flow.clone(), Arc::clone(&key));
        Some(key)
    }

    fn forget_flows(&mut self, now: Timestamp) {
        let since = *self.flows_since.get_or_insert(now);
        let [current, before] = &mut self.flows;
        if now.since(since) >= FLOW_IDLE.saturating_mul(2) {
            // There was no packet at all for so long.
            current.clear();
        }
        if now.since(since) >= FLOW_IDLE || current.len() >= self.limits.flows {
            *before = std::mem::take(current);
            self.flows_since = Some(now);
        }
    }

    fn key_of(&mut self, packet: &Packet<'_>, scope: &Arc<str>) -> Key {
        let place = (Arc::clone(scope), packet.destination);
        let destination = if !is_a_matter_of_rules(packet.reason) {
            Destination::Any
        } else if let Some(name) = packet.names.first() {
            let name = clamped(name);
            let explained = Explained {
                name: Arc::clone(&name),
                at: packet.at,
            };
            self.explain(place, explained);
            Destination::Name(name)
        } else {
            match self.explained.get(&place) {
                Some(known) if packet.at.since(known.at) < EXPLAINED_FOR => {
                    Destination::Name(Arc::clone(&known.name))
                }
                _ => Destination::Address(packet.destination),
            }
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

    /// Remembers which name explains an address. Only a help: without room for it an address stays without a name.
    fn explain(&mut self, place: (Arc<str>, IpAddr), explained: Explained) {
        let capacity = self.limits.names.saturating_mul(LISTED);
        if self.explained.len() >= capacity && !self.explained.contains_key(&place) {
            let now = explained.at;
            self.explained
                .retain(|_, known| now.since(known.at) < EXPLAINED_FOR);
            if self.explained.len() >= capacity {
                return;
            }
        }
        self.explained.insert(place, explained);
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

    /// Whether there is none.
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

    /// What changed since this was last asked.
    pub fn take_change(&mut self) -> Change {
        std::mem::take(&mut self.change)
    }

    /// Takes back [`Table::take_change`], for what could not be kept.
    pub fn changed(&mut self, change: Change) {
        self.change = self.change.max(change);
    }

    /// What changed since [`Table::take_change`].
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
                            let explained = Explained {
                                name: Arc::clone(name),
                                at: facts.last,
                            };
                            self.explain((Arc::clone(&key.scope), *address), explained);
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

impl Facts {
    const fn new(at: Timestamp) -> Self {
        Self {
            flows: 0,
            first: at,
            last: at,
            senders: Vec::new(),
            addresses: Vec::new(),
            other_names: Vec::new(),
            is_cut: false,
        }
    }

    fn add(&mut self, packet: &Packet<'_>) {
        self.flows = self.flows.saturating_add(1);
        self.first = self.first.min(packet.at);
        self.last = self.last.max(packet.at);
        let mut is_cut = !list(&mut self.senders, clamped(packet.sender));
        is_cut |= !list(&mut self.addresses, packet.destination);
        for name in packet.names.iter().skip(1) {
            is_cut |= !list(&mut self.other_names, clamped(name));
        }
        self.is_cut |= is_cut;
    }

    fn of(&self, key: &Key) -> Observation {
        let texts = |list: &[Arc<str>]| list.iter().map(ToString::to_string).collect();
        Observation {
            scope: key.scope.to_string(),
            name: match &key.destination {
                Destination::Name(name) => Some(name.to_string()),
                Destination::Address(_) | Destination::Any => None,
            },
            port: key.port,
            protocol: protocol_text(key.protocol).into(),
            verdict: key.verdict.name().into(),
            reason: key.reason.name().into(),
            flows: self.flows,
            first: self.first,
            last: self.last,
            senders: texts(&self.senders),
            addresses: self.addresses.clone(),
            other_names: texts(&self.other_names),
            is_cut: self.is_cut,
            rule: None,
        }
    }
}

const fn is_name(key: &Key) -> bool {
    matches!(key.destination, Destination::Name(_))
}

/// Adds what is not in the list yet; returns false if there is no room.
fn list<T: PartialEq>(list: &mut Vec<T>, item: T) -> bool {
    if list.contains(&item) {
        return true;
    }
    let has_room = list.len() < LISTED;
    if has_room {
        list.push(item);
    }
    has_room
}

fn clamped(text: &str) -> Arc<str> {
    let mut end = text.len().min(TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    Arc::from(text.get(..end).unwrap_or_default())
}

/// The entry that an observation was made of; `None` if this version cannot know it.
fn restored(observation: &Observation) -> Option<(Key, Facts)> {
    let reason = reason_of(&observation.reason)?;
    let addresses = &observation.addresses;
    let destination = match (&observation.name, addresses.first()) {
        _ if !is_a_matter_of_rules(reason) => Destination::Any,
        (Some(name), _) => Destination::Name(clamped(name)),
        (None, Some(address)) => Destination::Address(*address),
        (None, None) => return None,
    };
    let verdicts = Verdict::ALL.iter();
    let key = Key {
        scope: clamped(&observation.scope),
        destination,
        protocol: protocol_number(&observation.protocol)?,
        port: observation.port,
        verdict: *verdicts
            .into_iter()
            .find(|verdict| verdict.name() == observation.verdict)?,
        reason,
    };
    let texts = |list: &[String]| list.iter().take(LISTED).map(|text| clamped(text)).collect();
    let facts = Facts {
        flows: observation.flows,
        first: observation.first.min(observation.last),
        last: observation.last,
        senders: texts(&observation.senders),
        addresses: addresses.iter().take(LISTED).copied().collect(),
        other_names: texts(&observation.other_names),
        is_cut: observation.is_cut,
    };
    Some((key, facts))
}

/// The reason of this name.
pub(super) fn reason_of(name: &str) -> Option<Reason> {
    let mut reasons = Reason::ALL.iter();
    reasons.find(|reason| reason.name() == name).copied()
}

#[cfg(test)]
mod tests;
