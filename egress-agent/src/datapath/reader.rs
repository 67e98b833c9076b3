//! Reads the maps for those who ask: through handles of its own, so
//! that no reader waits for a policy that is being switched to, and none delays it.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use aya::{
    Ebpf, Pod,
    maps::{Map, MapData, MapError, PerCpuArray},
};
use egress_common::{
    learned::{Learned, LearnedKey},
    maps::{Alias, AliasKey, RuleCounters, ScopeUse, WORKLOAD_COUNTER},
    policy::Workload,
    tally::Tally,
    verdict::{Hook, Reason, Verdict, counter_index},
};

use super::{
    Counter, Counters, LearnedEntry, MapFill, RuleCounter, ScopeFill, WorkloadCounter,
    error::DatapathError,
    maps::{identity_of, used_grants},
    walk::{Pages, Walk},
};

/// A count whose walk took longer than this is used again for a while.
const LONG_WALK: Duration = Duration::from_millis(10);

/// A count is used again for this many times what its walk took: whoever asks how often, counting takes a tenth of a CPU.
const REUSE: u32 = 10;

/// A map whose entries are counted.
struct Counted<K, V> {
    walk: Walk<K, V>,
    last: Mutex<Option<Count>>,
}

/// A count, and until when it is good enough.
#[derive(Clone, Copy)]
struct Count {
    entries: u64,
    until: Instant,
}

impl<K: Pod, V: Pod> Counted<K, V> {
    fn open(ebpf: &Ebpf, name: &'static str) -> Result<Self, DatapathError> {
        Ok(Self {
            walk: Walk::open(ebpf, name)?,
            last: Mutex::new(None),
        })
    }

    /// How many entries there are, or were a moment ago. One counts for all who ask.
    fn fill(&self, name: &'static str) -> Result<MapFill, DatapathError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        let entries = match *last {
            Some(count) if count.until > began => count.entries,
            _ => {
                let entries = self.walk.count()?;
                let took = began.elapsed();
                *last = (took > LONG_WALK).then(|| Count {
                    entries,
                    until: Instant::now()
                        .checked_add(took.saturating_mul(REUSE))
                        .unwrap_or(began),
                });
                entries
            }
        };
        Ok(MapFill {
            name,
            entries,
            capacity: u64::from(self.walk.capacity()),
        })
    }
}

/// Reads what the kernel knows and counts.
pub struct Reader {
    learned: Walk<LearnedKey, Learned>,
    aliases: u32,
    /// Each scope's use of the two: nobody has to walk them to know how full they are.
    scopes: Walk<u32, ScopeUse>,
    rule_counters: Counted<u64, RuleCounters>,
    workloads: Counted<u64, Workload>,
    counters: PerCpuArray<MapData, u64>,
    tallies: PerCpuArray<MapData, u64>,
}

impl Reader {
    /// Opens what is read; the maps stay where they are.
    pub(super) fn open(ebpf: &Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            learned: Walk::open(ebpf, "LEARNED")?,
            aliases: Walk::<AliasKey, Alias>::open(ebpf, "ALIASES")?.capacity(),
            scopes: Walk::open(ebpf, "SCOPES")?,
            rule_counters: Counted::open(ebpf, "RULE_COUNTERS")?,
            workloads: Counted::open(ebpf, "WORKLOADS")?,
            counters: array(ebpf, "COUNTERS")?,
            tallies: array(ebpf, "TALLIES")?,
        })
    }

    /// Learned addresses, a page at a time, expired ones included.
    #[must_use]
    pub fn learned(&self) -> LearnedPages {
        LearnedPages(Pages::default())
    }

    /// The next page of learned addresses; `None` when there are no more.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn next_learned(
        &self,
        pages: &mut LearnedPages,
    ) -> Result<Option<Vec<LearnedEntry>>, DatapathError> {
        let entries = self.learned.next(&mut pages.0)?;
        Ok(entries.map(|entries| {
            entries
                .map(|(key, value)| learned_entry(key, value))
                .collect()
        }))
    }

    /// Fill of the maps that the kernel fills, in the order of their names here.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn fill(&self) -> Result<Vec<MapFill>, DatapathError> {
        let (mut learned, mut aliases) = (0_u64, 0_u64);
        self.scopes.for_each(|_, usage| {
            learned = learned.saturating_add(usage.learned);
            aliases = aliases.saturating_add(usage.aliases);
        })?;
        let fill = |name, entries, capacity| MapFill {
            name,
            entries,
            capacity: u64::from(capacity),
        };
        Ok(vec![
            fill("LEARNED", learned, self.learned.capacity()),
            fill("ALIASES", aliases, self.aliases),
            self.rule_counters.fill("RULE_COUNTERS")?,
            self.workloads.fill("WORKLOADS")?,
        ])
    }

    /// Every scope's use of the tables that workloads fill.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn scopes(&self) -> Result<Vec<ScopeFill>, DatapathError> {
        let mut scopes = Vec::new();
        self.scopes.for_each(|scope_id, usage| {
            scopes.push(ScopeFill {
                scope_id: *scope_id,
                usage: *usage,
            });
        })?;
        Ok(scopes)
    }

    /// One count that is not a verdict.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn tally(&self, tally: Tally) -> Result<u64, DatapathError> {
        sum(&self.tallies, u32::from(tally as u8), "TALLIES")
    }

    /// Everything that the kernel counts.
    ///
    /// # Errors
    ///
    /// A map cannot be read.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        let mut counters = Counters::default();
        for hook in Hook::ALL.iter().filter(|hook| hook.counts()) {
            for verdict in Verdict::ALL {
                for reason in Reason::ALL {
                    let index = counter_index(*hook, *verdict, *reason);
                    let count = sum(&self.counters, index, "COUNTERS")?;
                    if count != 0 {
                        counters.verdicts.push(Counter {
                            hook: *hook,
                            verdict: *verdict,
                            reason: *reason,
                            count,
                        });
                    }
                }
            }
        }
        for tally in Tally::ALL {
            counters.tallies.push((*tally, self.tally(*tally)?));
        }
        self.rule_counters.walk.for_each(|rule, value| {
            let [allowed, denied, would_deny, _] = value.decisions;
            if rule & WORKLOAD_COUNTER != 0 {
                counters.workloads.push(WorkloadCounter {
                    identity: identity_of(*rule),
                    allowed,
                    denied,
                    would_deny,
                });
            } else {
                counters.rules.push(RuleCounter {
                    rule: *rule,
                    allowed,
                    denied,
                    would_deny,
                });
            }
        })?;
        Ok(counters)
    }
}

/// How far somebody has come who reads what is learned.
pub struct LearnedPages(Pages<LearnedKey, Learned>);

/// An entry as plain data.
pub(super) fn learned_entry(key: &LearnedKey, value: &Learned) -> LearnedEntry {
    LearnedEntry {
        scope_id: key.scope_id,
        netns: key.netns,
        address: key.address,
        grants: used_grants(value),
    }
}

/// A handle of an array beside the one that stays in the object.
fn array(ebpf: &Ebpf, name: &'static str) -> Result<PerCpuArray<MapData, u64>, DatapathError> {
    use std::os::fd::AsFd as _;
    let Some(Map::PerCpuArray(data)) = ebpf.map(name) else {
        return Err(DatapathError::Missing { what: "map", name });
    };
    let fd = data.fd().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|source| DatapathError::Bulk {
        action: "open",
        map: name,
        source,
    })?;
    let opened = MapData::from_fd(fd).and_then(|data| Map::PerCpuArray(data).try_into());
    opened.map_err(error("open", name))
}

pub(super) fn error(
    action: &'static str,
    map: &'static str,
) -> impl FnOnce(MapError) -> DatapathError {
    move |source| DatapathError::Map {
        action,
        map,
        source,
    }
}

pub(super) fn sum(
    map: &PerCpuArray<MapData, u64>,
    index: u32,
    name: &'static str,
) -> Result<u64, DatapathError> {
    let values = map.get(&index, 0).map_err(error("read", name))?;
    Ok(values
        .iter()
        .fold(0, |sum, value| sum.saturating_add(*value)))
}
