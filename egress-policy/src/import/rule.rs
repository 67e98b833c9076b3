//! A rule of the source on its way: what it becomes here, and what becomes of it not exactly.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use egress_common::policy::{CIDR_ENTRIES, NAME_ENTRIES, PortRange, protocol};

use super::{
    addresses::{all_v6, parse_network},
    input::{Item, cut},
    sink::{Note, NoteKind, Sink},
};
use crate::{
    document::{PresetValue, SpecRule},
    vocabulary::{Cidr, parse_name_pattern, parse_port_range, port_range_text, ports_text},
    write::{Draft, Entry},
};

/// On which ports a rule is about its destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ports {
    /// On all.
    Any,
    /// On these. Without any, they could not be carried over and the rule cannot be in force.
    Of(Vec<PortRange>),
}

impl Ports {
    /// How many ranges there are.
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::Any => 0,
            Self::Of(ports) => ports.len(),
        }
    }
}

/// A rule that is carried over.
#[derive(Clone, Debug)]
pub(super) struct Carried<'n> {
    at: Item<'n>,
    title: String,
    remarks: Vec<String>,
    notes: Vec<Note>,
    is_off: bool,
    /// True if it is about fewer flows in the source than here.
    pub(super) is_narrower_there: bool,
    /// True if it denies.
    pub(super) is_deny: bool,
    /// Names and patterns in our form.
    pub(super) names: Vec<String>,
    /// Networks.
    pub(super) cidrs: Vec<Cidr>,
    /// Service tags.
    pub(super) service_tags: Vec<String>,
    /// Presets, with their variables.
    pub(super) presets: Vec<(&'static str, BTreeMap<String, PresetValue>)>,
    /// Ports.
    pub(super) ports: Ports,
}

impl<'n> Carried<'n> {
    /// A rule without destinations, on any port.
    pub(super) fn new(at: Item<'n>, title: &str, is_deny: bool) -> Self {
        Self {
            title: cut(title),
            at,
            remarks: Vec::new(),
            notes: Vec::new(),
            is_off: false,
            is_narrower_there: false,
            is_deny,
            names: Vec::new(),
            cidrs: Vec::new(),
            service_tags: Vec::new(),
            presets: Vec::new(),
            ports: Ports::Any,
        }
    }

    /// Its name in the source.
    pub(super) fn title(&self) -> &str {
        &self.title
    }

    /// True if it opens or closes anything here.
    pub(super) fn is_in_force(&self) -> bool {
        let is_empty = self.names.is_empty() && !self.has_addresses();
        let has_ports = !matches!(&self.ports, Ports::Of(ports) if ports.is_empty());
        !self.is_off && has_ports && !(is_empty && self.presets.is_empty())
    }

    /// True if it names destinations by address.
    pub(super) fn has_addresses(&self) -> bool {
        !self.cidrs.is_empty() || !self.service_tags.is_empty()
    }

    /// Says something about it that is no difference.
    pub(super) fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// Says what is different here.
    pub(super) fn differs(&mut self, at: &Item<'_>, text: impl Into<String>) {
        self.notes.push(Note::new(at, NoteKind::Differs, text));
    }

    /// Says of which flows alone it speaks in the source.
    pub(super) fn narrower_there(&mut self, at: &Item<'_>, text: impl Into<String>) {
        self.is_narrower_there = true;
        self.differs(at, text);
    }

    /// Says what is different about the whole rule.
    pub(super) fn differs_as_a_whole(&mut self, text: impl Into<String>) {
        self.notes
            .push(Note::new(&self.at, NoteKind::Differs, text));
    }

    /// Says what of it is not here.
    pub(super) fn left_out(&mut self, at: &Item<'_>, text: impl Into<String>) {
        self.notes.push(Note::new(at, NoteKind::LeftOut, text));
    }

    /// Takes over the destinations of another rule with the same ports, and what is said about it.
    pub(super) fn join(&mut self, other: Self) {
        self.names.extend(other.names);
        self.cidrs.extend(other.cidrs);
        self.remarks.extend(other.remarks);
        self.notes.extend(other.notes);
    }

    /// Makes it a comment, for a reason that changes nothing. What differs in it does not matter then.
    pub(super) fn not_needed(&mut self, why: String) {
        self.is_off = true;
        self.notes.clear();
        self.remark(format!("Not needed: {why}"));
    }

    /// Adds a name or pattern of our form; what is none is left out.
    pub(super) fn add_name(&mut self, at: &Item<'_>, text: &str) {
        match parse_name_pattern(text) {
            Ok(pattern) => self.names.push(pattern.to_string()),
            Err(error) => self.left_out(at, format!("{}: {}", error.text, error.why)),
        }
    }

    /// Adds a network or an address.
    pub(super) fn add_network(&mut self, at: &Item<'_>, text: &str, sink: &mut Sink) {
        match parse_network(text) {
            Ok(network) => self.cidrs.push(network),
            Err(error) => sink.wrong(at, error),
        }
    }

    /// Adds every address.
    pub(super) fn add_world(&mut self) {
        self.cidrs.extend([Cidr::ALL_V4, all_v6()]);
    }

    /// Restricts it to ports, of which there are none yet; those that are added next count.
    pub(super) fn restrict_ports(&mut self) {
        if self.ports == Ports::Any {
            self.ports = Ports::Of(Vec::new());
        }
    }

    /// Adds a port range to those that it is restricted to.
    pub(super) fn add_port(&mut self, range: PortRange) {
        self.restrict_ports();
        if let Ports::Of(ports) = &mut self.ports {
            ports.push(range);
        }
    }

    /// Adds ports (`443`, `8000-8080`, `*`) of a protocol (`tcp`, `udp`, `sctp`).
    pub(super) fn add_ports(&mut self, at: &Item<'_>, ports: &str, proto: &str, sink: &mut Sink) {
        self.restrict_ports();
        let ports = if matches!(ports, "*" | "0-65535" | "1-65535") {
            "any"
        } else {
            ports
        };
        match parse_port_range(&format!("{ports}/{proto}")) {
            Ok(range) => self.add_port(range),
            Err(error) => sink.wrong(at, error),
        }
    }

    /// Writes it into a policy, and its notes into the list.
    pub(super) fn finish(mut self, draft: &mut Draft, sink: &mut Sink) {
        let rules = self.rules();
        let entries = if self.is_deny {
            &mut draft.deny
        } else {
            &mut draft.allow
        };
        let origin = self.at.origin();
        let title = if self.title.is_empty() {
            origin
        } else {
            format!("{} ({origin})", self.title)
        };
        entries.push(Entry::Comment(title));
        entries.extend(self.remarks.into_iter().map(Entry::Comment));
        let notes = self.notes.iter().map(Note::comment);
        entries.extend(notes.map(Entry::Comment));
        entries.extend(rules);
        sink.notes.append(&mut self.notes);
    }

    /// The rules that it becomes.
    fn rules(&mut self) -> Vec<Entry> {
        let ports = match &self.ports {
            Ports::Any => None,
            // On no port: a rule without ports would be the opposite.
            Ports::Of(ports) if ports.is_empty() => {
                if self.notes.is_empty() {
                    let at = self.at.clone();
                    self.left_out(&at, "names no ports");
                }
                let cidrs = unique(&self.cidrs);
                let all = [unique(&self.names), cidrs, unique(&self.service_tags)].concat();
                if all.is_empty() {
                    return Vec::new();
                }
                return vec![Entry::Comment(format!("Not in force: {}", all.join(", ")))];
            }
            Ports::Of(ports) => merged(ports),
        };
        let (names, cidrs) = (unique(&self.names), unique(&self.cidrs));
        let service_tags = unique(&self.service_tags);
        let port_texts = ports
            .as_ref()
            .map(|ports| ports.iter().map(port_range_text).collect());
        let mut rules = Vec::new();
        let has_names = !names.is_empty();
        let mut rest = SpecRule {
            names,
            cidrs,
            service_tags,
            ports: port_texts,
            ..SpecRule::default()
        };
        if let Some(ports) = ports.filter(|_| has_names && self.is_deny) {
            let text = format!(
                "a denied name is denied on every port here, not only on {}",
                ports_text(&ports)
            );
            self.differs_as_a_whole(text);
            rules.push(SpecRule {
                names: std::mem::take(&mut rest.names),
                ..SpecRule::default()
            });
        }
        if !(rest.names.is_empty() && rest.cidrs.is_empty() && rest.service_tags.is_empty()) {
            let max = if rest.names.is_empty() {
                CIDR_ENTRIES
            } else {
                NAME_ENTRIES
            };
            let count = rest.ports.as_ref().map_or(0, Vec::len);
            if count > max {
                self.is_off = true;
                let at = self.at.clone();
                self.left_out(
                    &at,
                    format!(
                        "has {count} port ranges, but such a rule can have {max} here: join some"
                    ),
                );
            }
            rules.push(rest);
        }
        let entry = if self.is_off { Entry::Off } else { Entry::Rule };
        let rules = rules.into_iter().map(entry);
        let presets = self.presets.iter().map(|(preset, with)| {
            entry(SpecRule {
                preset: Some((*preset).to_owned()),
                with: with.clone(),
                ..SpecRule::default()
            })
        });
        rules.chain(presets).collect()
    }
}

/// The texts of each, without repetitions.
fn unique<T: fmt::Display>(values: &[T]) -> Vec<String> {
    let mut seen = HashSet::new();
    let texts = values.iter().map(ToString::to_string);
    texts.filter(|text| seen.insert(text.clone())).collect()
}

/// The ranges in order, joined where they meet; `None` if they are all there is.
fn merged(ranges: &[PortRange]) -> Option<Vec<PortRange>> {
    if ranges.contains(&PortRange::ANY) {
        return None;
    }
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable_by_key(|range| (range.proto, range.first));
    let mut joined: Vec<PortRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last)
                if last.proto == range.proto && range.first <= last.last.saturating_add(1) =>
            {
                last.last = last.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    Some(joined)
}

/// All ports of ICMP.
pub(super) const ICMP: PortRange = PortRange::new(protocol::ICMP, 0, u16::MAX);
