//! Verdict events: kept for `flows`, sent to followers, logged.

use std::{collections::VecDeque, sync::Arc};

use anyhow::Context;
use egress_common::{
    address::Address,
    dns::DNS_PORT,
    event::{DnsCopy, NameEvent, Process, VerdictEvent},
    policy::protocol,
    verdict::{Hook, Mode, Reason, Verdict},
};
use tracing::{debug, info};

use super::{
    abort::Abort,
    dns::LOOK,
    shared::{Shared, lock},
    time::{now_ns, wall_clock},
};
use crate::{
    api::{
        model::FlowReport,
        report::{FlowContext, flow_report},
    },
    datapath::{Event, EventRing, readable},
    kube::events::Denial,
    policy::printable,
    shutdown::Shutdown,
};

/// Most denials that are logged in a second; all of them are counted and kept for `flows`.
const LOGGED_PER_SECOND: u32 = 20;

/// Most events that are read before they are reported.
const BATCH: usize = 1_024;
/// How long events of addresses without a name wait for it.
const NAME_WAIT: std::time::Duration = std::time::Duration::from_millis(120);

/// Reads events until it is asked to stop.
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
    let mut named = Named::default();
    let mut abort = Abort::default();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let guard = tokio::select! {
            guard = ring.readable_mut() => Some(guard.context("cannot wait for events")?),
            // The kernel does not wake the agent for allowed flows.
            _ = look.tick() => None,
            () = shared.event_looks.asked() => None,
            () = stop.requested() => return Ok(()),
        };
        if let Some(mut guard) = guard {
            guard.clear_ready();
        }
        let this = shared.event_looks.begin();
        let mut events = Vec::new();
        while events.len() < BATCH
            && let Some(event) = ring.get_mut().next_event()
        {
            match event {
                Event::Name(name) => named.note(&name),
                Event::Verdict(event) => {
                    abort.after(&shared, &event);
                    events.push((event, named.of(&event)));
                }
            }
        }
        let is_end = events.len() < BATCH;
        if !is_end {
            // There is more: who is behind does not wait for names.
            look.reset_immediately();
        } else if this.is_asked {
            // The task that asked has had the answers read before.
        } else if events.iter().any(|(event, _)| is_nameless(&shared, event)) {
            // The answer that names an address may still be on its way through the other ring.
            tokio::select! {
                () = tokio::time::sleep(NAME_WAIT) => {}
                () = shared.event_looks.asked() => look.reset_immediately(),
            }
        }
        for (event, server_name) in events {
            take(&shared, &event, server_name, &mut logged);
        }
        shared.observe_waiting(now_ns());
        if is_end {
            shared.event_looks.end(this);
        }
    }
}

fn is_nameless(shared: &Shared, event: &VerdictEvent) -> bool {
    shared.scope_of(event.scope_id).is_some_and(|scope| {
        let names = shared
            .memory
            .names_of(scope.number, &event.daddr, event.at_ns);
        names.is_empty()
    })
}

/// Most names that are kept: the verdict on one follows at once, and again with every packet that is refused and sent again.
const MOST_NAMED: usize = 256;

/// The names that connections gave themselves, the latest last.
#[derive(Debug, Default)]
struct Named(VecDeque<NameEvent>);

impl Named {
    fn note(&mut self, name: &NameEvent) {
        let flow = |name: &NameEvent| (name.netns, name.sport, name.dport, name.daddr);
        self.0.retain(|known| flow(known) != flow(name));
        if self.0.len() >= MOST_NAMED {
            self.0.pop_front();
        }
        self.0.push_back(*name);
    }

    /// The name that belongs to a verdict which one decided.
    fn of(&self, event: &VerdictEvent) -> Option<String> {
        let is_decided_by_name = matches!(
            Reason::try_from(event.reason),
            Ok(Reason::NameRule
                | Reason::AuditedName
                | Reason::NameDiffers
                | Reason::NameHidden
                | Reason::NoName)
        );
        if !is_decided_by_name
            || event.proto != protocol::TCP
            || event.hook != Hook::SkbEgress as u8
        {
            return None;
        }
        let name = self.0.iter().find(|name| {
            (name.netns, name.sport, name.dport) == (event.netns, event.sport, event.dport)
                && name.daddr == event.daddr
        })?;
        let bytes = usize::try_from(name.name_bytes).ok()?;
        let text = name.name.get(..bytes)?;
        Some(printable(&String::from_utf8_lossy(text)))
    }
}

fn take(shared: &Shared, event: &VerdictEvent, server_name: Option<String>, logged: &mut Budget) {
    let mut flow = report(shared, event);
    flow.server_name = server_name;
    shared.observe(event, &flow.cgroup);
    publish(shared, event, flow, logged);
}

/// Reports that an answer for an allowed name pointed to an address that it may not open.
pub(super) fn rebinding(
    shared: &Shared,
    scope_id: u32,
    name: &str,
    address: Address,
    logged: &mut Budget,
) {
    let event = VerdictEvent {
        scope_id,
        daddr: address,
        hook: Hook::SkbIngress as u8,
        verdict: Verdict::Deny as u8,
        reason: Reason::Rebinding as u8,
        ..nothing(now_ns())
    };
    let mut flow = report(shared, &event);
    flow.names = vec![name.to_owned()];
    publish(shared, &event, flow, logged);
}

/// Reports a query that the policy does not let through.
pub(super) fn refused_query(
    shared: &Shared,
    copy: &DnsCopy,
    name: Option<String>,
    logged: &mut Budget,
) {
    let in_force = shared.in_force();
    let bound = in_force
        .as_ref()
        .and_then(|in_force| in_force.of(copy.scope_id));
    let mode = if shared.is_enforcing_over(copy.at_ns) {
        Mode::Audit
    } else {
        bound.map_or(Mode::Enforce, |bound| bound.mode())
    };
    let verdict = match mode {
        Mode::Enforce => Verdict::Deny,
        Mode::Audit => Verdict::WouldDeny,
    };
    let event = VerdictEvent {
        scope_id: copy.scope_id,
        daddr: copy.resolver,
        sport: copy.port,
        dport: DNS_PORT,
        proto: copy.proto,
        hook: Hook::SkbEgress as u8,
        verdict: verdict as u8,
        reason: Reason::QueryNotAllowed as u8,
        ..nothing(copy.at_ns)
    };
    let mut flow = report(shared, &event);
    flow.names = name.into_iter().collect();
    publish(shared, &event, flow, logged);
}

/// An event that says nothing yet.
fn nothing(at_ns: u64) -> VerdictEvent {
    VerdictEvent {
        at_ns,
        cgroup_id: 0,
        rule: 0,
        saddr: [0; 16],
        daddr: [0; 16],
        scope_id: 0,
        policy_id: 0,
        sport: 0,
        dport: 0,
        proto: protocol::ANY,
        hook: 0,
        verdict: 0,
        reason: 0,
        _pad: [0; 2],
        netns: 1,
        process: Process::UNKNOWN,
        _pad2: 0,
    }
}

fn publish(shared: &Shared, event: &VerdictEvent, flow: FlowReport, logged: &mut Budget) {
    let is_denied = event.verdict != Verdict::Allow as u8;
    if !is_denied {
        debug!(
            scope = flow.scope,
            destination = %flow.destination,
            port = flow.port,
            protocol = %flow.protocol,
            names = ?flow.names,
            server_name = flow.server_name,
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
            server_name = flow.server_name,
            verdict = %flow.verdict,
            reason = %flow.reason,
            "flow denied"
        );
    }
    if let Some(log) = &shared.flow_log {
        let scope = shared.scope_of(event.scope_id);
        log.log(
            event,
            &flow,
            scope.and_then(|scope| scope.pod.clone()).as_deref(),
        );
    }
    if is_denied {
        tell_pod(shared, event, &flow);
    }
    let flow = Arc::new(flow);
    // Nobody may be following.
    let _ = shared.followers.send(Arc::clone(&flow));
    lock(&shared.recent).push(flow);
}

/// Reports a denial at the pod that it is about.
fn tell_pod(shared: &Shared, event: &VerdictEvent, flow: &FlowReport) {
    let Some(denials) = shared.denials.get() else {
        return;
    };
    let scope = shared.scope_of(event.scope_id);
    let Some(pod) = scope.and_then(|scope| scope.pod.clone()) else {
        return;
    };
    let Ok(reason) = Reason::try_from(event.reason) else {
        return;
    };
    denials.tell(Denial {
        pod,
        name: flow.names.first().cloned(),
        address: flow.destination,
        port: match flow.port {
            Some(port) => format!("{port}/{}", flow.protocol),
            None => flow.protocol.to_string(),
        },
        reason,
        rule: flow.rule.clone(),
        is_audit: event.verdict == Verdict::WouldDeny as u8,
    });
}

fn report(shared: &Shared, event: &VerdictEvent) -> FlowReport {
    let in_force = shared.in_force();
    let bound = in_force
        .as_ref()
        .and_then(|in_force| in_force.of(event.scope_id));
    let scope = bound.map(|bound| &bound.scope);
    let names = scope
        .map(|scope| {
            shared
                .memory
                .names_of(scope.number, &event.daddr, event.at_ns)
        })
        .unwrap_or_default();
    // A refused answer counts only where nothing else names the address.
    let refusal = scope
        .filter(|_| names.is_empty() && event.verdict != Verdict::Allow as u8)
        .and_then(|scope| {
            let refusals = shared.refusals.of_address(scope.number, &event.daddr);
            refusals.into_iter().find(|one| one.at_ns <= event.at_ns)
        });
    let cgroup = match event.cgroup_id {
        0 => None,
        id => lock(&shared.cgroup_paths).path(id, now_ns()),
    };
    let context = FlowContext {
        at: wall_clock(event.at_ns),
        scope: scope.map_or_else(|| "unknown".to_owned(), |scope| scope.name.clone()),
        cgroup,
        names: names.iter().map(|seen| seen.name.to_string()).collect(),
        rule: bound
            .and_then(|bound| bound.compiled())
            .and_then(|compiled| compiled.rules.get(&event.rule)),
        refusal,
    };
    flow_report(event, context)
}

/// A window of one second.
#[derive(Debug, Default)]
pub(super) struct Budget {
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

/// Prints the programs' debug messages until it is asked to stop.
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
