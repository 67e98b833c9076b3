//! Verdict events: kept for `flows`, sent to followers, logged.

use std::sync::Arc;

use anyhow::Context;
use egress_common::{event::VerdictEvent, verdict::Verdict};
use tracing::{debug, info};

use super::{
    shared::{Shared, lock},
    time::{now_ns, wall_clock},
};
use crate::{
    api::{
        model::FlowReport,
        report::{FlowContext, flow_report},
    },
    datapath::{EventRing, readable},
    shutdown::Shutdown,
};

/// Most denials that are logged in a second; all of them are counted and kept for `flows`.
const LOGGED_PER_SECOND: u32 = 20;

/// Reads events until it is told to stop.
///
/// # Errors
///
/// The ring cannot be waited for.
pub(super) async fn run(
    shared: Arc<Shared>,
    ring: EventRing,
    stop: Shutdown,
) -> anyhow::Result<()> {
    let mut ring = readable(ring).context("cannot wait for events")?;
    let mut logged = Budget::default();
    loop {
        let mut guard = tokio::select! {
            guard = ring.readable_mut() => guard.context("cannot wait for events")?,
            () = stop.requested() => return Ok(()),
        };
        while let Some(event) = guard.get_inner_mut().next_event() {
            take(&shared, &event, &mut logged);
        }
        guard.clear_ready();
    }
}

fn take(shared: &Shared, event: &VerdictEvent, logged: &mut Budget) {
    let flow = report(shared, event);
    let is_denied = event.verdict != Verdict::Allow as u8;
    if !is_denied {
        debug!(
            scope = flow.scope,
            destination = %flow.destination,
            port = flow.port,
            protocol = %flow.protocol,
            names = ?flow.names,
            reason = %flow.reason,
            "flow allowed"
        );
    } else if logged.take(event.at_ns) {
        info!(
            scope = flow.scope,
            destination = %flow.destination,
            port = flow.port,
            protocol = %flow.protocol,
            names = ?flow.names,
            verdict = %flow.verdict,
            reason = %flow.reason,
            "flow denied"
        );
    }
    // Nobody may be following.
    let _ = shared.followers.send(flow.clone());
    lock(&shared.recent).push(flow);
}

fn report(shared: &Shared, event: &VerdictEvent) -> FlowReport {
    let in_force = shared.in_force();
    let scope = shared.scope_of(event.scope_id);
    let names = scope
        .map(|scope| {
            shared
                .memory
                .names_of(scope.number, &event.daddr, event.at_ns)
        })
        .unwrap_or_default();
    let cgroup = match event.cgroup_id {
        0 => None,
        id => lock(&shared.cgroup_paths).path(id, now_ns()),
    };
    let context = FlowContext {
        at: wall_clock(event.at_ns),
        scope: scope.map_or_else(|| "unknown".to_owned(), |scope| scope.name.clone()),
        cgroup,
        names: names.iter().map(|seen| seen.name.to_string()).collect(),
        rule: in_force
            .as_ref()
            .and_then(|in_force| in_force.compiled.rules.get(&event.rule)),
    };
    flow_report(event, context)
}

/// A window of one second.
#[derive(Debug, Default)]
struct Budget {
    second: u64,
    used: u32,
}

impl Budget {
    fn take(&mut self, at_ns: u64) -> bool {
        let second = at_ns.checked_div(1_000_000_000).unwrap_or(0);
        if self.second != second {
            *self = Self { second, used: 0 };
        }
        self.used = self.used.saturating_add(1);
        self.used <= LOGGED_PER_SECOND
    }
}

/// Prints the programs' debug messages until it is told to stop.
///
/// # Errors
///
/// Their ring cannot be waited for.
pub(super) async fn run_log(
    log: aya_log::EbpfLogger<&'static dyn log::Log>,
    stop: Shutdown,
) -> anyhow::Result<()> {
    let mut log = readable(log).context("cannot wait for messages")?;
    loop {
        let mut guard = tokio::select! {
            guard = log.readable_mut() => guard.context("cannot wait for messages")?,
            () = stop.requested() => return Ok(()),
        };
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}
