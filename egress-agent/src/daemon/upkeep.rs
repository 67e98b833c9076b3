//! What has to be done from time to time: the fall back, expiry. Nothing here waits for the disk.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use egress_common::{tally::Tally, verdict::Mode};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, warn};

use super::{
    confirm::Moment,
    notify,
    shared::{InForce, Shared},
    switch,
    time::now_ns,
};
use crate::{
    datapath::{Datapath, DatapathError},
    shutdown::Shutdown,
};

/// How often something may be due.
const TICK: Duration = Duration::from_millis(200);
/// Ticks between two looks at what was lost.
const LOSSES_TICKS: u64 = 25;
/// Ticks between two sweeps.
const SWEEP_TICKS: u64 = 50;
/// An entry stays this long after its end, so that a denial can say that it expired.
const KEEP_EXPIRED_NS: u64 = 60 * 1_000_000_000;

/// Does what has to be done until it is told to stop.
///
/// # Errors
///
/// A task of the runtime failed.
pub(super) async fn run(shared: Arc<Shared>, stop: Shutdown) -> anyhow::Result<()> {
    let mut timer = interval(TICK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refused = refused_for_room(&shared);
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
        refused = tokio::task::spawn_blocking(move || upkeep(&shared, refused, tick)).await?;
        if watchdog.is_some_and(|pause| told_at.elapsed() >= pause) {
            notify::alive();
            told_at = Instant::now();
        }
    }
}

/// Returns how many addresses were refused for lack of room so far.
fn upkeep(shared: &Shared, refused_before: u64, tick: u64) -> u64 {
    confirm_or_fall_back(shared);
    if tick.is_multiple_of(LOSSES_TICKS) {
        shared.observe_losses();
    }
    shared.save_observations_if_due();
    // A full table refuses new addresses: then nothing that has ended is kept for its reason.
    let refused = refused_for_room(shared);
    let is_full = refused > refused_before;
    if tick.is_multiple_of(SWEEP_TICKS) || is_full {
        sweep(shared, if is_full { 0 } else { KEEP_EXPIRED_NS });
    }
    refused
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

/// Removes learned addresses of scopes that are gone, and those that ended longer ago than `keep_ns`.
fn sweep(shared: &Shared, keep_ns: u64) {
    let now_ns = now_ns();
    let mut datapath = shared.datapath();
    // Under the lock, so that a switch comes before or after.
    let Some(in_force) = shared.in_force() else {
        return;
    };
    let ended_before_ns = now_ns.saturating_sub(keep_ns);
    let swept = switch::sweep(&mut datapath, &in_force.bound, ended_before_ns)
        .and_then(|()| forget_workloads(&mut datapath, &in_force));
    drop(datapath);
    if let Err(error) = swept {
        warn!(
            error = format!("{:#}", anyhow::Error::new(error)),
            "cannot sweep"
        );
    }
    shared.memory.sweep(now_ns);
}

/// Removes the counters of pods that are gone.
fn forget_workloads(datapath: &mut Datapath, in_force: &InForce) -> Result<(), DatapathError> {
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
