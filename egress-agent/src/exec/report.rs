//! Destinations that a command reached and that it was denied, as `exec` reports them.

use std::net::IpAddr;

use egress_common::verdict::{Mode, Reason, Verdict};
use serde::{Deserialize, Serialize};

use super::{LeftProcess, RunAs, argument};
use crate::{
    api::{
        Timestamp,
        model::{Loss, Observation, Observations, SenderProcess},
    },
    observed::is_a_matter_of_rules,
    policy::{Cidr, RuleList, Star, parse_name_pattern},
};

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl Ended {
    /// The exit status that shells have for it: 128 and the number of the signal.
    #[must_use]
    pub fn status(self) -> u8 {
        let number = match self {
            Self::Status(status) => status,
            Self::Signal(signal) => signal.saturating_add(128),
        };
        u8::try_from(number & 0xff).unwrap_or(u8::MAX)
    }
}

/// Facts besides the observations.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The command as it was given.
    pub command: Vec<String>,
    /// As whom it ran.
    pub user: RunAs,
    /// The mode.
    pub mode: Mode,
    /// When it began.
    pub started: Timestamp,
    /// When it, and what it left, had ended.
    pub ended: Timestamp,
    /// How it ended.
    pub exit: Ended,
    /// Processes that it left; true for those that were killed.
    pub left: Vec<(LeftProcess, bool)>,
}

/// The report, as `--report` writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this form.
    pub version: u32,
    /// The command as it was given.
    pub command: Vec<String>,
    /// As whom it ran.
    pub user: ReportedUser,
    /// `enforce`, or `audit`, in which nothing is denied.
    pub mode: String,
    /// When it began.
    pub started: Timestamp,
    /// When it, and what it left, had ended.
    pub ended: Timestamp,
    /// How it ended: a status or a signal.
    pub exit: Ended,
    /// The exit status of `exec`.
    pub exit_status: u8,
    /// Destinations that were reached.
    pub reached: Vec<ReportedDestination>,
    /// Destinations that were denied, or would have been in the mode `enforce`.
    pub denied: Vec<ReportedDestination>,
    /// Losses on the way: flows that may be missing above.
    pub losses: Vec<Loss>,
    /// Processes that were left when the command had ended.
    pub left: Vec<ReportedProcess>,
    /// The options that would allow what was denied.
    pub add: Vec<String>,
}

/// As whom a command ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedUser {
    /// Its number.
    pub uid: u32,
    /// The number of its group.
    pub gid: u32,
    /// Its name, where it has one.
    pub name: Option<String>,
}

/// A process that was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedProcess {
    /// Its number.
    pub pid: i32,
    /// Its command name.
    pub command: String,
    /// True if it had to be killed.
    pub killed: bool,
}

/// One destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedDestination {
    /// The name that was asked for; none where no lookup explains the address.
    pub name: Option<String>,
    /// Where it went; the first few addresses.
    pub addresses: Vec<IpAddr>,
    /// The port; none where the protocol has none.
    pub port: Option<u16>,
    /// `tcp`, `udp`, `icmp` …, else its number.
    pub protocol: String,
    /// `allowed`, `denied` or `would_deny`.
    pub verdict: String,
    /// Why, by a name of docs/reasons.md.
    pub reason: String,
    /// How many flows.
    pub flows: u64,
    /// When the first of them began.
    pub first: Timestamp,
    /// When the last packet of them was seen.
    pub last: Timestamp,
    /// The process of the first of them, where it is known.
    pub process: Option<SenderProcess>,
    /// The option that would allow it, where one could.
    pub add: Option<String>,
}

impl ReportedDestination {
    fn of(seen: &Observation) -> Self {
        Self {
            name: seen.name.clone(),
            addresses: seen.addresses.clone(),
            port: seen.port,
            protocol: seen.protocol.to_string(),
            verdict: seen.verdict.to_string(),
            reason: seen.reason.to_string(),
            flows: seen.flows,
            first: seen.first,
            last: seen.last,
            process: seen.process.clone(),
            add: what_to_add(seen),
        }
    }

    fn is_denied(&self) -> bool {
        self.verdict != Verdict::Allow.name()
    }

    /// True if both would be one line.
    fn is_same(&self, other: &Self) -> bool {
        let place = |one: &Self| (one.name.clone(), one.port, one.protocol.clone());
        let is_place = place(self) == place(other)
            && (self.name.is_some() || self.addresses == other.addresses);
        is_place
            && self.verdict == other.verdict
            && (!self.is_denied() || self.reason == other.reason)
    }

    fn add_flows(&mut self, other: &Self) {
        self.flows = self.flows.saturating_add(other.flows);
        if other.first < self.first {
            self.process.clone_from(&other.process);
        }
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        for address in &other.addresses {
            if !self.addresses.contains(address) {
                self.addresses.push(*address);
            }
        }
    }

    /// The process, `curl (1234)`; empty where it is not known.
    #[must_use]
    pub fn sender(&self) -> String {
        let process = self.process.as_ref();
        process.map_or_else(String::new, |process| {
            format!("{} ({})", process.command, process.pid)
        })
    }

    /// Name or address.
    #[must_use]
    pub fn host(&self) -> String {
        match (&self.name, self.addresses.first()) {
            (Some(name), _) => name.clone(),
            (None, Some(address)) => address.to_string(),
            (None, None) => "?".to_owned(),
        }
    }

    /// Port and protocol, `443/tcp`.
    #[must_use]
    pub fn service(&self) -> String {
        match self.port {
            Some(port) => format!("{port}/{}", self.protocol),
            None => self.protocol.clone(),
        }
    }

    /// The rule of a policy that would allow it, as YAML lines of `spec.allow`.
    #[must_use]
    pub fn rule(&self) -> Option<String> {
        self.add.as_ref()?;
        let place = match (&self.name, self.addresses.first()) {
            (Some(name), _) => format!("names: [{name}]"),
            (None, Some(address)) => format!("cidrs: [\"{}\"]", Cidr::from(*address)),
            (None, None) => return None,
        };
        Some(format!(
            "    - {place}\n      ports: [\"{}\"]\n",
            self.service()
        ))
    }
}

/// The option that would allow what was denied; none where a rule denies it, or no rule could allow it.
fn what_to_add(seen: &Observation) -> Option<String> {
    let verdict = &*seen.verdict;
    let reasons = Reason::ALL.iter().copied();
    let reason = reasons
        .into_iter()
        .find(|reason| reason.name() == seen.reason)?;
    let is_rule = |list: RuleList| seen.rule.as_deref() == Some(list.name());
    if verdict == Verdict::Allow.name()
        || !is_a_matter_of_rules(reason)
        || reason == Reason::DeniedCidr
        || is_rule(RuleList::Deny)
        || is_rule(RuleList::Allow)
    {
        return None;
    }
    let has_rules = matches!(&*seen.protocol, "tcp" | "udp" | "sctp" | "icmp");
    if !has_rules {
        return None;
    }
    let host = match (&seen.name, seen.addresses.first()) {
        (Some(name), _) => {
            let pattern = parse_name_pattern(name).ok()?;
            (pattern.star == Star::None).then(|| name.clone())?
        }
        (None, Some(address)) => address.to_string(),
        (None, None) => return None,
    };
    Some(argument(&host, seen.port, &seen.protocol))
}

impl Report {
    /// The version of the form of what `--report` writes.
    pub const VERSION: u32 = 1;

    /// Makes it, sorted: what comes first is what was seen first.
    #[must_use]
    pub fn new(facts: Facts, seen: &Observations) -> Self {
        let mut destinations: Vec<ReportedDestination> = Vec::new();
        for observation in &seen.observations {
            let next = ReportedDestination::of(observation);
            match destinations.iter_mut().find(|one| one.is_same(&next)) {
                Some(same) => same.add_flows(&next),
                None => destinations.push(next),
            }
        }
        destinations.sort_by(|one, other| {
            (one.first, &one.name, one.port).cmp(&(other.first, &other.name, other.port))
        });
        let (denied, reached): (Vec<_>, Vec<_>) = destinations
            .into_iter()
            .partition(ReportedDestination::is_denied);
        let mut add: Vec<String> = Vec::new();
        for option in denied.iter().filter_map(|one| one.add.clone()) {
            if !add.contains(&option) {
                add.push(option);
            }
        }
        Self {
            version: Self::VERSION,
            command: facts.command,
            user: ReportedUser {
                uid: facts.user.uid.as_raw(),
                gid: facts.user.gid.as_raw(),
                name: facts.user.name,
            },
            mode: facts.mode.name().to_owned(),
            started: facts.started,
            ended: facts.ended,
            exit: facts.exit,
            exit_status: facts.exit.status(),
            reached,
            denied,
            losses: seen.losses.clone(),
            left: facts
                .left
                .into_iter()
                .map(|(process, killed)| ReportedProcess {
                    pid: process.pid,
                    command: process.command,
                    killed,
                })
                .collect(),
            add,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_ends_with_128_and_its_number() {
        assert_eq!(Ended::Status(0).status(), 0);
        assert_eq!(Ended::Status(255).status(), 255);
        assert_eq!(Ended::Signal(9).status(), 137);
        assert_eq!(Ended::Signal(15).status(), 143);
    }
}
