//! What has to be done from time to time: expiry, changed files of policies and service tags, the node's own addresses and resolvers.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use egress_common::{tally::Tally, verdict::Mode};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::{
    confirm::Moment,
    shared::{InForce, Shared, lock},
    switch,
    time::now_ns,
};
use crate::{
    cli::RunOptions,
    datapath::{self, Datapath, DatapathError},
    shutdown::Shutdown,
    signals::Reload,
    workload::own_addresses,
};

/// How often policy files are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Ticks between two looks at the node.
const NODE_TICKS: u64 = 25;
/// Ticks between two sweeps.
const SWEEP_TICKS: u64 = 50;
/// An entry stays this long after its end, so that a denial can say that it expired.
const KEEP_EXPIRED_NS: u64 = 60 * 1_000_000_000;

/// Does what has to be done until it is told to stop.
///
/// # Errors
///
/// A task of the runtime failed.
pub(super) async fn run(
    shared: Arc<Shared>,
    files: Files,
    asked: Reload,
    stop: Shutdown,
) -> anyhow::Result<()> {
    let mut timer = interval(TICK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = Seen::look(&shared, files);
    shared.observe_losses();
    let mut tick = 0_u64;
    loop {
        let mut is_asked = false;
        tokio::select! {
            _ = timer.tick() => {}
            () = asked.requested() => is_asked = true,
            () = stop.requested() => return Ok(()),
        }
        if is_asked {
            info!("policies are read again, as SIGHUP asks");
        } else {
            tick = tick.wrapping_add(1);
        }
        let shared = Arc::clone(&shared);
        // Maps and files: milliseconds, which the runtime's own threads should not wait for.
        seen = tokio::task::spawn_blocking(move || upkeep(&shared, seen, tick, is_asked)).await?;
    }
}

fn upkeep(shared: &Shared, mut seen: Seen, tick: u64, is_asked: bool) -> Seen {
    let files = files_of(&shared.options);
    let mut is_changed = is_asked || files != seen.files;
    seen.files = files;
    if tick.is_multiple_of(NODE_TICKS) {
        let node = node_of(shared);
        is_changed |= node != seen.node;
        seen.node = node;
        shared.observe_losses();
    }
    shared.observer.save_if_due();
    if is_changed {
        reload(shared);
    }
    confirm_or_fall_back(shared);
    // A full table refuses new addresses: then nothing that has ended is kept for its reason.
    let refused = refused_for_room(shared);
    let is_full = refused > seen.refused_for_room;
    seen.refused_for_room = refused;
    if tick.is_multiple_of(SWEEP_TICKS) || is_full {
        sweep(shared, if is_full { 0 } else { KEEP_EXPIRED_NS });
    }
    seen
}

fn reload(shared: &Shared) {
    let reloaded = shared.reload();
    datapath::release_memory();
    match reloaded {
        Ok(()) => {
            info!("policy files taken up");
            *lock(&shared.refused) = None;
        }
        Err(error) => {
            let message = format!("{error:#}");
            error!(
                error = message,
                "policy change refused; the old policy stays"
            );
            *lock(&shared.refused) = Some(message);
        }
    }
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

/// Files with their facts.
pub(super) type Files = BTreeMap<PathBuf, FileFacts>;

/// What the last look saw.
#[derive(Debug)]
struct Seen {
    files: Files,
    node: (Vec<IpAddr>, Vec<IpAddr>),
    /// Addresses refused for lack of room so far.
    refused_for_room: u64,
}

/// What changes when a file does: a symlink swap shows as another inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileFacts {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Seen {
    fn look(shared: &Shared, files: Files) -> Self {
        Self {
            files,
            node: node_of(shared),
            refused_for_room: refused_for_room(shared),
        }
    }
}

fn node_of(shared: &Shared) -> (Vec<IpAddr>, Vec<IpAddr>) {
    (own_addresses(), shared.resolvers())
}

/// Every file that policies and the catalog are read from, with its facts; folders as `policy::load` reads them.
pub(super) fn files_of(options: &RunOptions) -> Files {
    let mut found = BTreeMap::new();
    for path in options
        .policies
        .iter()
        .cloned()
        .chain(options.catalog.files())
    {
        let inside = fs::read_dir(&path).map(|entries| {
            let paths = entries.flatten().map(|entry| entry.path());
            paths.collect::<Vec<_>>()
        });
        for file in inside.unwrap_or_else(|_| vec![path.clone()]) {
            if let Ok(metadata) = fs::metadata(&file)
                && metadata.is_file()
            {
                let facts = FileFacts {
                    device: metadata.dev(),
                    inode: metadata.ino(),
                    bytes: metadata.len(),
                    modified: (metadata.mtime(), metadata.mtime_nsec()),
                };
                found.insert(file, facts);
            }
        }
    }
    found
}
