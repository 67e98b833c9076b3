//! Periodic work: the fall back, expiry. Nothing here waits for the disk.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use egress_common::{learned::LearnedKey, maps::AliasKey, tally::Tally, verdict::Mode};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error, warn};

use super::{
    confirm::Moment,
    notify,
    shared::{Bound, InForce, Shared, lock},
    sweep::Sweep,
    time::now_ns,
};
use crate::{
    datapath::{Datapath, DatapathError, Pages},
    dns::ScopeNumber,
    shutdown::Shutdown,
};

/// How often something may be due.
const TICK: Duration = Duration::from_millis(200);
/// Ticks between two looks at what was lost.
const LOSSES_TICKS: u64 = 25;
/// Ticks between two sweeps of what the agent remembers.
const MEMORY_TICKS: u64 = 300;

/// Does this work until it is asked to stop.
///
/// # Errors
///
/// A task of the runtime failed.
pub(super) async fn run(shared: Arc<Shared>, stop: Shutdown) -> anyhow::Result<()> {
    let mut timer = interval(TICK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = Seen {
        refused_for_room: refused_for_room(&shared),
        sweep: Sweep::default(),
    };
    shared.observe_losses();
    let mut tick = 0_u64;
    let watchdog = notify::watchdog();
    let mut told_at = Instant::now();
    loop {
        tokio::select! {
            _ = timer.tick() => {}
            () = stop.requested() => return Ok(()),
        }
        tick = tick.wrapping_add(1);
        let shared = Arc::clone(&shared);
        // Maps: milliseconds, which the runtime's own threads should not wait for.
        seen = tokio::task::spawn_blocking(move || upkeep(&shared, seen, tick)).await?;
        if watchdog.is_some_and(|pause| told_at.elapsed() >= pause) {
            notify::alive();
            told_at = Instant::now();
        }
    }
}

/// State that the last tick left.
#[derive(Debug)]
struct Seen {
    /// Addresses refused for lack of room so far.
    refused_for_room: u64,
    sweep: Sweep,
}

fn upkeep(shared: &Shared, mut seen: Seen, tick: u64) -> Seen {
    confirm_or_fall_back(shared);
    if tick.is_multiple_of(LOSSES_TICKS) {
        shared.observe_losses();
        if let Err(error) = shared.datapath().note_node() {
            warn!(
                error = format!("{:#}", anyhow::Error::new(error)),
                "cannot tell the programs which network namespace is the node's"
            );
        }
    }
    if let Err(error) = shared.datapath().look_for_balancers() {
        warn!(
            error = format!("{:#}", anyhow::Error::new(error)),
            "cannot tell whether programs of others change the address of calls"
        );
    }
    shared.save_observations_if_due();
    // A full table refuses new addresses: then nothing that has ended is kept for its reason.
    let refused = refused_for_room(shared);
    let is_full = refused > seen.refused_for_room;
    seen.refused_for_room = refused;
    let swept = seen.sweep.go_on(shared, is_full);
    if let Err(error) = swept {
        warn!(
            error = format!("{:#}", anyhow::Error::new(error)),
            "cannot sweep"
        );
    }
    if tick.is_multiple_of(MEMORY_TICKS) {
        sweep_memory(shared);
    }
    seen
}

/// Falls back to audit when enforcing was not confirmed in time; tries again as long as that fails.
fn confirm_or_fall_back(shared: &Shared) {
    if shared.confirmation.expire(Moment::now()) {
        warn!("enforcing was not confirmed in time: falling back to audit");
    }
    if let Err(error) = shared.settle_probation() {
        error!(
            error = format!("{error:#}"),
            "cannot tell the kernel when enforcing ends"
        );
    }
    if shared.confirmation.is_fallen_back()
        && shared.mode() != Mode::Audit
        && let Err(error) = shared.fall_back()
    {
        error!(error = format!("{error:#}"), "still enforcing");
    }
}

/// How many addresses were refused because the table was full.
fn refused_for_room(shared: &Shared) -> u64 {
    shared
        .datapath()
        .tally(Tally::LearnedFull)
        .unwrap_or_default()
}

/// Forgets names whose addresses the kernel does not hold any more.
fn sweep_memory(shared: &Shared) {
    let Some(in_force) = shared.in_force() else {
        return;
    };
    let scope_ids: HashMap<ScopeNumber, u32> = in_force
        .bound
        .iter()
        .map(|bound| (bound.scope.number, bound.binding.scope_id))
        .collect();
    let datapath = shared.datapath();
    shared.memory.sweep(now_ns(), |scope, netns, address| {
        let scope_id = scope_ids.get(&scope);
        scope_id.is_some_and(|scope_id| {
            let key = LearnedKey::new(*scope_id, netns, *address);
            datapath.grants(&key).is_some()
        })
    });
}

/// A scope that is at its share gets room at most this often.
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// Makes room in the share of a scope that has none left: its own entries that are worth least go, an eighth of its
/// share at once; nobody else's.
pub(super) fn make_room(shared: &Shared, scope_id: u32, bound: &Bound, now_ns: u64) {
    if bound.binding.scope_id != scope_id {
        return;
    }
    let mut made = lock(&shared.room_made);
    made.retain(|_, at| at.elapsed() < ROOM_PAUSE);
    if made.contains_key(&scope_id) {
        return;
    }
    made.insert(scope_id, Instant::now());
    drop(made);
    let mut datapath = shared.datapath();
    let made = make_room_of(shared, &mut datapath, bound, now_ns);
    drop(datapath);
    if let Err(error) = made {
        warn!(
            error = format!("{:#}", anyhow::Error::new(error)),
            scope = bound.scope.name,
            "cannot make room"
        );
    }
}

fn make_room_of(
    shared: &Shared,
    datapath: &mut Datapath,
    bound: &Bound,
    now_ns: u64,
) -> Result<(), DatapathError> {
    let scope_id = bound.binding.scope_id;
    let usage = datapath.scope_usage(scope_id)?.unwrap_or_default();
    let eighth = |share: u32| usize::try_from(share / 8).unwrap_or(0).max(1);
    if usage.learned >= u64::from(usage.learned_share) {
        let wanted = eighth(usage.learned_share);
        let number = bound.scope.number;
        let keys: Vec<LearnedKey> = shared
            .memory
            .by_end(number)
            .into_iter()
            .map(|(address, netns)| LearnedKey::new(scope_id, netns, address))
            .collect();
        // Ended addresses go first, then those that nobody used lately; those in use only when there is nothing else.
        let mut gone: usize = 0;
        let now_s = seconds(now_ns);
        let unused_for = |pause_s: u32| (u64::MAX, now_s.saturating_sub(pause_s));
        let passes = [
            (now_ns, u32::MAX),
            unused_for(600),
            unused_for(60),
            unused_for(0),
        ];
        'passes: for (ended_before_ns, used_before_s) in passes {
            for some in keys.chunks(wanted) {
                let swept = datapath.sweep(some, ended_before_ns, used_before_s)?;
                gone = gone.saturating_add(usize::try_from(swept).unwrap_or(usize::MAX));
                if gone >= wanted {
                    break 'passes;
                }
            }
        }
        debug!(scope = bound.scope.name, gone, "room made in a share");
    }
    if usage.aliases >= u64::from(usage.aliases_share) {
        let wanted = eighth(usage.aliases_share);
        let mut ends: Vec<(u64, AliasKey)> = Vec::new();
        let mut pages = Pages::default();
        while let Some(read) = datapath.aliases_page(&mut pages)? {
            let own = read.iter().filter(|(key, _)| key.scope_id == scope_id);
            ends.extend(own.map(|(key, alias)| (alias.expires_at_ns, *key)));
        }
        if ends.len() > wanted {
            ends.select_nth_unstable_by_key(wanted, |(end, _)| *end);
            ends.truncate(wanted);
        }
        let keys: Vec<AliasKey> = ends.into_iter().map(|(_, key)| key).collect();
        let gone = datapath.sweep_aliases(&keys, u64::MAX)?;
        debug!(scope = bound.scope.name, gone, "room made for aliases");
    }
    Ok(())
}

/// Seconds of the clock since boot.
fn seconds(ns: u64) -> u32 {
    u32::try_from(ns / 1_000_000_000).unwrap_or(u32::MAX)
}

/// Removes the counters of pods that are gone.
pub(super) fn forget_workloads(
    datapath: &mut Datapath,
    in_force: &InForce,
) -> Result<(), DatapathError> {
    let there: HashSet<u32> = in_force
        .bound
        .iter()
        .map(|bound| bound.scope.identity)
        .collect();
    for workload in datapath.counted_workloads()? {
        if !there.contains(&workload) {
            datapath.forget_workload(workload)?;
        }
    }
    Ok(())
}
