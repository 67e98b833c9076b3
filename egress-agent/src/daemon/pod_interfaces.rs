//! Keeps the host's ends of pods' interfaces judged.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::Context as _;
use egress_common::maps::NODE_CGROUP;
use tracing::{error, warn};

use super::{
    pods::PENDING,
    shared::{Shared, lock},
};
use crate::{api::model::PodInterfacesStatus, shutdown::Shutdown, workload::Interfaces};

/// How often they are looked at although the kernel reported no change.
const LOOK: Duration = Duration::from_secs(10);

/// How soon a watch is begun anew that reported nothing more.
const WATCH_AGAIN: Duration = Duration::from_millis(200);

/// Watches and attaches until it is asked to stop.
///
/// # Errors
///
/// The kernel does not report interfaces.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut interfaces: Interfaces,
    stop: Shutdown,
) -> anyhow::Result<()> {
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            is_heard = interfaces.changed() => if !is_heard {
                // More was reported than was read in time: all is looked at anew.
                warn!("the watch on interfaces has ended, and is begun anew");
                tokio::time::sleep(WATCH_AGAIN).await;
                interfaces = Interfaces::watch().context("cannot watch the interfaces")?;
            },
            () = stop.requested() => return Ok(()),
        }
        let found = interfaces.of_pods().await;
        let found = found.context("cannot list the interfaces")?;
        // An interface that was given as the node's is the node's.
        let given = &shared.options.interfaces;
        let of_pods = found.into_iter().filter(|one| !given.contains(&one.name));
        let wanted: BTreeSet<_> = of_pods.collect();
        let shared = Arc::clone(&shared);
        // Some milliseconds for each new one.
        tokio::task::spawn_blocking(move || shared.judge_pod_interfaces(&wanted)).await?;
    }
}

impl Shared {
    fn judge_pod_interfaces(&self, wanted: &BTreeSet<crate::workload::PodInterface>) {
        let owner = self.unknown_pods_cgroup();
        let failed = self.datapath().set_pod_interfaces(wanted, owner);
        let failed: Vec<String> = failed
            .into_iter()
            .map(|(interface, error)| format!("{interface}: {:#}", anyhow::Error::new(error)))
            .collect();
        let judged = wanted.len().saturating_sub(failed.len());
        let status = PodInterfacesStatus {
            judged: judged as u64,
            failed,
        };
        let mut before = lock(&self.pod_interfaces);
        let is_new = |text: &&String| {
            let mut known = before.iter().flat_map(|status| &status.failed);
            !known.any(|one| one == *text)
        };
        for text in status.failed.iter().filter(is_new) {
            error!(error = text, "a pod's interface is not judged");
        }
        *before = Some(status);
    }

    /// Whose policies apply to what has no socket on the interface of a pod that is not known yet: in a cluster those of
    /// pods that wait for theirs; a cgroup that nothing is bound to if there is none, so that it is denied.
    fn unknown_pods_cgroup(&self) -> u64 {
        if self.options.kubernetes.is_none() {
            return NODE_CGROUP;
        }
        let in_force = self.in_force();
        let mut bound = in_force.iter().flat_map(|in_force| &in_force.bound);
        bound
            .find(|bound| bound.scope.name == PENDING)
            .map_or(u64::MAX, |bound| bound.scope.cgroup_id)
    }
}
