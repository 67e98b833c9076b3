//! Keeps what is attached and pinned as it was asked for, whoever takes it away.
//!
//! Tasks of their own: a switch of policies, a reader or a disk that takes long keeps no hook open.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::warn;

use crate::{datapath::Anchors, shutdown::Shutdown, workload::Interfaces};

/// How often everything is compared with what the kernel says.
const LOOK: Duration = Duration::from_millis(250);
/// How soon a watch is begun anew that reported nothing more.
const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// Compares and puts back until it is asked to stop.
///
/// # Errors
///
/// A task of the runtime failed.
pub(super) async fn run(anchors: Anchors, stop: Shutdown) -> anyhow::Result<()> {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = stop.requested() => return Ok(()),
        }
        let anchors = anchors.clone();
        tokio::task::spawn_blocking(move || anchors.hold()).await?;
    }
}

/// Attaches to the node's interfaces as soon as the kernel reports one that was made again.
///
/// # Errors
///
/// A task of the runtime failed.
pub(super) async fn follow_interfaces(anchors: Anchors, stop: Shutdown) -> anyhow::Result<()> {
    loop {
        match Interfaces::watch() {
            Ok(mut interfaces) => loop {
                let held = anchors.clone();
                tokio::task::spawn_blocking(move || held.hold_interfaces()).await?;
                tokio::select! {
                    is_heard = interfaces.changed() => if !is_heard { break },
                    () = stop.requested() => return Ok(()),
                }
            },
            Err(error) => {
                warn!(%error, "the kernel tells nothing of interfaces: looked at every quarter of a second")
            }
        }
        tokio::select! {
            () = sleep(WATCH_AGAIN) => {}
            () = stop.requested() => return Ok(()),
        }
    }
}
