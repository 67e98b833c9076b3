//! An observation in the table: what it is about, and what was seen of it.

use std::{net::IpAddr, sync::Arc};

use egress_common::verdict::{Reason, Verdict};

use crate::{
    api::{
        Timestamp,
        model::{Observation, SenderProcess},
    },
    policy::{protocol_number, protocol_text},
};

/// Most senders, addresses and other names that an observation lists.
pub(super) const LISTED: usize = 4;
/// Longest text of a sender or name that is kept, bytes.
pub(super) const TEXT_BYTES: usize = 255;

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

/// The subject of an observation.
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
    /// The sender: its cgroup, or where a forwarded packet comes from.
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
    /// Name and number of the process, where they are known.
    pub process: Option<(&'a str, u32)>,
}

/// Facts that were seen of a [`Key`].
#[derive(Clone, Debug)]
pub(super) struct Facts {
    flows: u64,
    first: Timestamp,
    pub(super) last: Timestamp,
    senders: Vec<Arc<str>>,
    pub(super) addresses: Vec<IpAddr>,
    other_names: Vec<Arc<str>>,
    is_cut: bool,
    /// Of the first flow.
    process: Option<(Arc<str>, u32)>,
}

/// True if a rule decides about flows that get this reason: a rule could allow them, or one denies them.
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
            | Reason::AuditedCidr
            | Reason::AuditedName
    )
}

impl Facts {
    pub(super) const fn new(at: Timestamp) -> Self {
        Self {
            flows: 0,
            first: at,
            last: at,
            senders: Vec::new(),
            addresses: Vec::new(),
            other_names: Vec::new(),
            is_cut: false,
            process: None,
        }
    }

    pub(super) fn add(&mut self, packet: &Packet<'_>) {
        if self.flows == 0 {
            self.process = packet.process.map(|(command, pid)| (clamped(command), pid));
        }
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

    pub(super) fn of(&self, key: &Key) -> Observation {
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
            process: self.process.as_ref().map(|(command, pid)| SenderProcess {
                command: command.to_string(),
                pid: *pid,
            }),
            rule: None,
        }
    }
}

pub(super) const fn is_name(key: &Key) -> bool {
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

pub(super) fn clamped(text: &str) -> Arc<str> {
    let mut end = text.len().min(TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    Arc::from(text.get(..end).unwrap_or_default())
}

/// The entry that an observation was made of; `None` if this version cannot know it.
pub(super) fn restored(observation: &Observation) -> Option<(Key, Facts)> {
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
        process: observation
            .process
            .as_ref()
            .map(|process| (clamped(&process.command), process.pid)),
    };
    Some((key, facts))
}

/// The reason of this name.
pub(in crate::observed) fn reason_of(name: &str) -> Option<Reason> {
    let mut reasons = Reason::ALL.iter();
    reasons.find(|reason| reason.name() == name).copied()
}
