//! Keeps the flows that were seen, for `policy learn`.
//!
//! Verdicts wait here until the answers that name their addresses were read, are
//! counted in the table, and the table is written to disk: soon after something
//! new was seen, later for counts alone, and never faster than a disk should
//! have to bear. Nothing here stops the agent.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use egress_common::{
    event::VerdictEvent,
    tally::Tally,
    verdict::{Reason, Verdict},
};
use tracing::{info, warn};

use super::{
    shared::{Shared, lock},
    state_writer::StateWriter,
    time::wall_clock,
};
use crate::{
    api::{
        Timestamp,
        model::{Observation, Observations, ObservedStatus},
    },
    observed::{
        Change, Packet, STORE_FILE, Store, Stored, Table, TableLimits, is_a_matter_of_rules,
    },
    policy::{Compiled, Destination, Host, RuleList, address_from, address_text, protocol_number},
};

/// How long a verdict waits for the answer that names its address: both come through rings of their own.
const NAMES_AFTER_NS: u64 = 250_000_000;
/// Most verdicts that wait; of more, the oldest waits no longer.
const MOST_WAITING: usize = 16_384;
/// New observations are written at most this often, and less often when they are many: see [`BYTES_PER_SECOND`].
const SAVE_PAUSE: Duration = Duration::from_secs(5);
/// Counts and times alone are written at most this often; so is tried again what failed.
const SAVE_COUNTS_PAUSE: Duration = Duration::from_secs(60);
/// Bytes that are written in a second on the average, at most.
const BYTES_PER_SECOND: u64 = 64 << 10;
/// The agent's own count of answers that it forgot, among what the kernel lost.
pub(super) const NAMES_EVICTED: &str = "names_evicted";

/// Observations, in memory and on disk.
#[derive(Debug)]
pub(super) struct Observer {
    waiting: Mutex<VecDeque<Waiting>>,
    table: Arc<Mutex<Table>>,
    /// None where nothing is kept.
    store: Option<Store>,
    kept: Arc<Mutex<Kept>>,
}

/// A verdict that waits for names.
#[derive(Debug)]
struct Waiting {
    event: VerdictEvent,
    sender: String,
}

/// State of the store.
#[derive(Debug, Default)]
struct Kept {
    saved_at: Option<Timestamp>,
    /// The fault of the file that was found at the start.
    not_loaded: Option<String>,
    not_saved: Option<String>,
    last_try: Option<Instant>,
    bytes: usize,
}

impl Observer {
    /// Takes up what the last agent kept in the folder.
    pub(super) fn open(folder: &Path) -> Self {
        let store = Store::in_folder(folder);
        let mut table = Table::new(TableLimits::default());
        let mut kept = Kept::default();
        let now = Timestamp::from(SystemTime::now());
        match store.load() {
            Ok(None) => {}
            Ok(Some(stored)) => {
                kept.saved_at = Some(stored.saved_at);
                table.restore(stored.seen, stored.totals, now);
                info!(observations = table.len(), "observations taken up");
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                warn!(error, "observations cannot be taken up");
                kept.not_loaded = Some(error);
            }
        }
        // This count begins anew with each agent.
        table.lost_in_total(NAMES_EVICTED, 0, now);
        Self {
            waiting: Mutex::default(),
            table: Arc::new(Mutex::new(table)),
            store: Some(store),
            kept: Arc::new(Mutex::new(kept)),
        }
    }

    /// Keeps nothing beyond this process.
    pub(super) fn in_memory() -> Self {
        Self {
            waiting: Mutex::default(),
            table: Arc::new(Mutex::new(Table::new(TableLimits::default()))),
            store: None,
            kept: Arc::default(),
        }
    }

    pub(super) fn status(&self) -> ObservedStatus {
        let table = lock(&self.table);
        let (observations, capacity) = (table.len() as u64, table.capacity() as u64);
        let dropped = table.dropped();
        drop(table);
        let kept = lock(&self.kept);
        ObservedStatus {
            observations,
            capacity,
            dropped,
            file: self
                .store
                .as_ref()
                .map_or_else(PathBuf::new, |store| store.file().to_owned()),
            saved_at: kept.saved_at,
            error: kept.not_saved.clone().or_else(|| kept.not_loaded.clone()),
        }
    }

    /// Has what changed written, if it is time to.
    fn save_if_due(&self, writer: &StateWriter) {
        let change = lock(&self.table).change();
        // While it is being written, what changes waits: another copy of all would.
        if !writer.is_busy_with(STORE_FILE) && is_due(change, &lock(&self.kept)) {
            self.save(writer);
        }
    }

    /// Has what changed written.
    fn save(&self, writer: &StateWriter) {
        let Some(store) = self.store.clone() else {
            return;
        };
        let now = Timestamp::from(SystemTime::now());
        let mut table = lock(&self.table);
        let change = table.take_change();
        if change == Change::Nothing {
            return;
        }
        let stored = Stored::new(now, table.observations(), table.totals());
        drop(table);
        lock(&self.kept).last_try = Some(Instant::now());
        let (table, kept) = (Arc::clone(&self.table), Arc::clone(&self.kept));
        writer.write(STORE_FILE, move || {
            let saved = store.save(&stored);
            let mut kept = lock(&kept);
            match saved {
                Ok(bytes) => {
                    kept.saved_at = Some(now);
                    kept.bytes = bytes;
                    kept.not_saved = None;
                }
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::new(error));
                    if kept.not_saved.as_ref() != Some(&error) {
                        warn!(error, "observations cannot be kept");
                    }
                    kept.not_saved = Some(error);
                    drop(kept);
                    lock(&table).changed(change);
                }
            }
        });
    }
}

/// True if it is time to write.
fn is_due(change: Change, kept: &Kept) -> bool {
    let bytes = u64::try_from(kept.bytes).unwrap_or(u64::MAX);
    let by_size = Duration::from_secs(bytes.checked_div(BYTES_PER_SECOND).unwrap_or(0));
    let pause = match change {
        Change::Nothing => return false,
        Change::Observations if kept.not_saved.is_none() => SAVE_PAUSE,
        Change::Observations | Change::Counts => SAVE_COUNTS_PAUSE,
    };
    kept.last_try
        .is_none_or(|last| last.elapsed() >= pause.max(by_size))
}

impl Shared {
    /// Takes a verdict, to be counted when its names are known.
    pub(super) fn observe(&self, event: &VerdictEvent, cgroup: &str) {
        let sender = match event.cgroup_id {
            0 => format!("from {}", address_text(&event.saddr)),
            _ if cgroup.starts_with('/') => cgroup.to_owned(),
            gone => format!("cgroup {gone}"),
        };
        let mut waiting = lock(&self.observer.waiting);
        waiting.push_back(Waiting {
            event: *event,
            sender,
        });
        let oldest = (waiting.len() > MOST_WAITING)
            .then(|| waiting.pop_front())
            .flatten();
        drop(waiting);
        if let Some(oldest) = oldest {
            self.count_flow(&oldest);
        }
    }

    /// Counts the verdicts that have waited long enough.
    pub(super) fn observe_waiting(&self, now_ns: u64) {
        let until_ns = now_ns.saturating_sub(NAMES_AFTER_NS);
        loop {
            let next = lock(&self.observer.waiting).pop_front_if(|one| one.event.at_ns <= until_ns);
            let Some(next) = next else { return };
            self.count_flow(&next);
        }
    }

    fn count_flow(&self, waiting: &Waiting) {
        let Waiting { event, sender } = waiting;
        let at = wall_clock(event.at_ns);
        let (Ok(verdict), Ok(reason)) = (
            Verdict::try_from(event.verdict),
            Reason::try_from(event.reason),
        ) else {
            lock(&self.observer.table).lose("events_unknown", 1, at);
            return;
        };
        let scope = self.scope_of(event.scope_id);
        let scope = scope.as_deref();
        if scope.is_none() && is_a_matter_of_rules(reason) {
            lock(&self.observer.table).lose("scope_gone", 1, at);
            return;
        }
        let names = scope.map_or_else(Vec::new, |scope| {
            let names = self
                .memory
                .names_asked_before(scope.number, &event.daddr, event.at_ns);
            names.into_iter().map(|seen| seen.name).collect()
        });
        let command = event.process.command;
        let command = command.split(|byte| *byte == 0).next().unwrap_or_default();
        let command = String::from_utf8_lossy(command);
        lock(&self.observer.table).record(&Packet {
            at,
            scope: scope.map_or("unknown", |scope| scope.name.as_str()),
            sender,
            source: address_text(&event.saddr),
            source_port: event.sport,
            destination: address_text(&event.daddr),
            port: (event.dport != 0).then_some(event.dport),
            protocol: event.proto,
            verdict,
            reason,
            names: &names,
            process: (event.process.pid != 0).then_some((&*command, event.process.pid)),
        });
    }

    /// Looks at what was lost on the way here.
    pub(super) fn observe_losses(&self) {
        let kernel = {
            let datapath = self.datapath();
            [
                Tally::EventsSuppressed,
                Tally::EventsLost,
                Tally::CopiesLost,
            ]
            .map(|tally| (tally.name(), datapath.tally(tally)))
        };
        let now = Timestamp::from(SystemTime::now());
        let mut table = lock(&self.observer.table);
        for (what, total) in kernel {
            // A total that cannot be read now can be later.
            if let Ok(total) = total {
                table.lost_in_total(what, total, now);
            }
        }
        table.lost_in_total(NAMES_EVICTED, self.memory.counts().evicted, now);
    }

    /// Has observations written, if it is time to.
    pub(super) fn save_observations_if_due(&self) {
        self.observer.save_if_due(&self.state_writer);
    }

    /// Counts what is left and has it written, before the agent ends.
    pub(super) fn observe_end(&self) {
        self.observe_waiting(u64::MAX);
        self.observe_losses();
        self.observer.save(&self.state_writer);
    }

    /// Everything that was seen, and what the policy in force says of it.
    pub(super) fn observed(&self) -> Observations {
        self.observe_losses();
        let mut seen = lock(&self.observer.table).observations();
        if let Some(in_force) = self.in_force() {
            for one in &mut seen.observations {
                let mut bound = in_force.bound.iter();
                let of_scope = bound.find(|bound| bound.scope.name == one.scope);
                let compiled = of_scope.and_then(|bound| bound.compiled());
                let list = compiled.and_then(|compiled| rule_for(compiled, one));
                one.rule = list.map(|list| list.name().into());
            }
        }
        seen
    }
}

/// The list in which the policy has a rule for what was observed.
fn rule_for(compiled: &Compiled, observation: &Observation) -> Option<RuleList> {
    let name = observation.name.as_deref();
    let rules = name.and_then(|name| compiled.rules_of_name(name));
    if rules.is_some_and(|rules| rules.deny != 0) {
        return Some(RuleList::Deny);
    }
    let names: Vec<&str> = name.into_iter().collect();
    let proto = protocol_number(&observation.protocol)?;
    let mut lists = observation.addresses.iter().map(|address| {
        let destination = Destination {
            host: Host::Address(address_from(*address)),
            proto,
            port: observation.port,
            is_default_port: false,
        };
        let rule = compiled.judge(&destination, &names).rule;
        compiled.rules.get(&rule).map(|source| source.list)
    });
    // Only what is so wherever it went.
    let first = lists.next()??;
    lists.all(|list| list == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(seconds_ago: u64, bytes: usize, failed: bool) -> Kept {
        Kept {
            last_try: Instant::now().checked_sub(Duration::from_secs(seconds_ago)),
            bytes,
            not_saved: failed.then(String::new),
            ..Kept::default()
        }
    }

    #[test]
    fn what_is_new_is_written_soon_and_never_faster_than_a_disk_should_bear() {
        use Change::{Counts, Nothing, Observations};
        let many = 20 * (64 << 10);
        for (change, kept, due) in [
            (Observations, Kept::default(), true),
            (Counts, Kept::default(), true),
            (Nothing, kept(1_000, 0, false), false),
            (Observations, kept(4, 0, false), false),
            (Observations, kept(6, 0, false), true),
            (Observations, kept(19, many, false), false),
            (Observations, kept(21, many, false), true),
            (Observations, kept(59, 0, true), false),
            (Observations, kept(61, 0, true), true),
            (Counts, kept(59, 0, false), false),
            (Counts, kept(61, 0, false), true),
        ] {
            assert_eq!(is_due(change, &kept), due, "{change:?} {kept:?}");
        }
    }
}
