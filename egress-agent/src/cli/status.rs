//! `status`: what is attached, loaded, filled and lost.

use clap::Args;

use super::{
    exit::ExitCode,
    output::Screen,
    remote::{RemoteArgs, wait_for},
    table::{Cell, Paint, Table, number},
};
use crate::api::{Timestamp, model};

const EXAMPLES: &str = "\
Examples:
  egress-agent status
  egress-agent status -o json | jq .alarms

Exit status: 0 enforces all it should; 1 does not, is impaired itself (an alarm
says how), or no agent answers.";

/// Options of `status`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Status {
    /// Where to ask and what to print.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

impl Status {
    /// Prints the status.
    ///
    /// # Errors
    ///
    /// No agent answers.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let client = self.remote.client();
        let status = wait_for(client.status())?;
        let output = self.remote.output;
        output.print(&status, |screen| render(&status, screen))?;
        Ok(if status.enforcing && !status.impaired {
            ExitCode::Ok
        } else {
            ExitCode::Failure
        })
    }
}

/// The status for people.
pub(super) fn render(status: &model::Status, screen: Screen) -> String {
    let mut parts = vec![
        facts(status).render(screen),
        policies(status).render(screen),
        hooks(status).render(screen),
        maps(status).render(screen),
        found(status).render(screen),
        lifeline(status).render(screen),
        scopes(status).render(screen),
    ];
    parts.retain(|part| part.lines().count() > 1);
    parts.join("\n")
}

fn facts(status: &model::Status) -> Table {
    let mut facts = Table::new().word("").text("");
    let agent = format!(
        "{}, pid {}, up {}",
        status.version,
        status.pid,
        duration(status.uptime_s)
    );
    facts.row(["agent".into(), agent.into()]);
    let (word, paint) = match (status.enforcing, status.mode.as_str()) {
        (true, "enforce") => ("yes", Paint::Good),
        (true, "open") => ("no policy restricts anything here", Paint::Doubtful),
        (true, "audit") => ("audit only: nothing is dropped", Paint::Doubtful),
        (true, _) => ("yes, some policies audit only", Paint::Doubtful),
        (false, _) => ("NO: not all that it should", Paint::Bad),
    };
    facts.row(["enforcing".into(), Cell::painted(word, paint)]);
    if let Some(status) = &status.confirmation {
        facts.row(["confirm".into(), confirmation(status)]);
    }
    for alarm in &status.alarms {
        facts.row(["alarm".into(), Cell::painted(alarm, Paint::Bad)]);
    }
    let policy = &status.policy;
    let loaded = policy
        .loaded_at
        .map_or_else(String::new, |at| format!(", loaded {at}"));
    let text = format!(
        "generation {}, {} rules ({} names, {} CIDRs){loaded}",
        policy.generation, policy.rules, policy.names, policy.cidrs
    );
    facts.row(["policy".into(), text.into()]);
    if let Some(tags) = &policy.service_tags {
        facts.row(["tags".into(), tags.file.to_string_lossy().into()]);
        facts.row(["".into(), service_tags(tags)]);
        for note in &tags.notes {
            facts.row(["".into(), Cell::painted(note, Paint::Doubtful)]);
        }
    }
    if let Some(error) = &policy.error {
        let text = format!("change refused, the policy before it applies: {error}");
        for line in text.lines() {
            facts.row(["reload".into(), Cell::painted(line, Paint::Bad)]);
        }
    }
    if let Some(kubernetes) = &status.kubernetes {
        facts.row(["cluster".into(), cluster(kubernetes)]);
        facts.row(["pods".into(), pods(kubernetes).into()]);
    }
    if let Some(interfaces) = &status.pod_interfaces {
        let text = format!("{} of pods are judged", interfaces.judged);
        facts.row(["interfaces".into(), text.into()]);
    }
    facts.row(["resolvers".into(), status.resolvers.join(", ").into()]);
    let losses: Vec<_> = status
        .lost
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    facts.row(if losses.is_empty() {
        ["lost".into(), "nothing".into()]
    } else {
        ["lost".into(), Cell::painted(losses.join(", "), Paint::Bad)]
    });
    let observed = &status.observed;
    if observed.capacity > 0 {
        let saved = observed
            .saved_at
            .map_or_else(|| "not saved yet".to_owned(), |at| format!("saved {at}"));
        let text = format!(
            "{} of {} destinations, {saved} in {}",
            observed.observations,
            observed.capacity,
            observed.file.display()
        );
        facts.row(["observed".into(), text.into()]);
    }
    if !status.dns_tunnelling.is_empty() {
        facts.row(["note".into(), status.dns_tunnelling.as_str().into()]);
    }
    facts
}

/// A file of service tags that is older than this may lack networks that are in use: a new one comes every week.
const OLD_S: u64 = 30 * 86_400;

/// The content of a file of service tags, in a sentence.
fn service_tags(tags: &model::ServiceTagsStatus) -> Cell {
    let age = tags
        .age_s
        .map_or_else(String::new, |age_s| format!(", {} old", duration(age_s)));
    let text = format!(
        "{}, change number {}{age}: {} tags, {} IPv4 and {} IPv6 networks",
        tags.cloud, tags.change_number, tags.tags, tags.ipv4_prefixes, tags.ipv6_prefixes
    );
    let is_old = tags.age_s.is_some_and(|age_s| age_s > OLD_S);
    let paint = if is_old {
        Paint::Doubtful
    } else {
        Paint::Plain
    };
    Cell::painted(text, paint)
}

/// How sure the agent is of what the cluster says, in a sentence.
fn cluster(status: &model::KubernetesStatus) -> Cell {
    let age = match (status.age_s, status.heard_at) {
        (Some(age_s), _) => format!("{} old", duration(age_s)),
        (None, Some(at)) => format!("of {at}"),
        (None, None) => "never heard".to_owned(),
    };
    let from = if status.is_from_disk {
        ", as it was kept on disk"
    } else {
        ""
    };
    let node = &status.node;
    let text = format!("node {node}, {} policies, {age}{from}", status.policies);
    match &status.error {
        Some(error) => {
            let text = format!("{text}; the API server does not answer: {error}");
            Cell::painted(text, Paint::Doubtful)
        }
        None if status.is_synced => Cell::from(text),
        None => Cell::painted(format!("{text}; not all is heard yet"), Paint::Doubtful),
    }
}

/// The pods of the node, in a sentence.
fn pods(status: &model::KubernetesStatus) -> String {
    let delay = &status.delay;
    let mut text = format!("{}, {} pending", status.pods, status.pending);
    if delay.count > 0 {
        let ms = |us: u64| us.div_ceil(1_000);
        text = format!(
            "{text}; policy after {} ms (p99 {} ms, at most {} ms)",
            ms(delay.p50_us),
            ms(delay.p99_us),
            ms(delay.max_us)
        );
    }
    text
}

/// The state of the confirmation, in a sentence.
pub(super) fn confirmation(status: &model::ConfirmationStatus) -> Cell {
    let at = |time: Option<Timestamp>| time.map_or_else(String::new, |time| format!(" {time}"));
    match &*status.state {
        "awaited" => {
            let left = duration(status.remaining_s.unwrap_or(0));
            let text = format!(
                "AWAITED until{} ({left}): run `egress-agent confirm`, or the agent falls back to audit",
                at(status.until)
            );
            Cell::painted(text, Paint::Doubtful)
        }
        "confirmed" => Cell::painted(format!("confirmed{}", at(status.at)), Paint::Good),
        "fell_back" => {
            let reason = status.reason.as_deref().unwrap_or("unknown reason");
            Cell::painted(
                format!("fell back to audit{}: {reason}", at(status.at)),
                Paint::Bad,
            )
        }
        _ => "awaited as soon as a policy enforces".into(),
    }
}

fn policies(status: &model::Status) -> Table {
    let mut table = Table::new()
        .text("POLICY")
        .word("MODE")
        .number("RULES")
        .number("SINCE")
        .text("FILE");
    for policy in &status.policy.policies {
        table.row([
            policy.name.as_str().into(),
            (&*policy.mode).into(),
            number(policy.rules),
            number(policy.generation.into()),
            format!("{}:{}", policy.file.display(), policy.line).into(),
        ]);
    }
    table
}

fn hooks(status: &model::Status) -> Table {
    let mut table = Table::new()
        .word("HOOK")
        .word("ATTACHED")
        .word("PINNED")
        .word("BY")
        .word("PROGRAM")
        .text("TO");
    let yes = |is: bool| {
        if is {
            Cell::painted("yes", Paint::Good)
        } else {
            Cell::painted("NO", Paint::Bad)
        }
    };
    for hook in &status.hooks {
        table.row([
            (&*hook.hook).into(),
            yes(hook.attached),
            yes(hook.pinned),
            (&*hook.kind).into(),
            hook.program_tag.as_str().into(),
            hook.target.as_str().into(),
        ]);
    }
    table
}

fn maps(status: &model::Status) -> Table {
    let mut table = Table::new()
        .word("MAP")
        .number("ENTRIES")
        .number("CAPACITY")
        .number("FULL");
    for map in &status.maps {
        let percent = map
            .entries
            .saturating_mul(100)
            .checked_div(map.capacity)
            .unwrap_or(0);
        let paint = match percent {
            0..80 => Paint::Plain,
            80..95 => Paint::Doubtful,
            _ => Paint::Bad,
        };
        table.row([
            (&*map.name).into(),
            number(map.entries),
            number(map.capacity),
            Cell::painted(format!("{percent}%"), paint),
        ]);
    }
    table
}

fn found(status: &model::Status) -> Table {
    let mut table = Table::new().word("FOUND").text("VALUE").text("WHERE");
    for found in &status.found {
        table.row([
            (&*found.what).into(),
            found.value.as_str().into(),
            found.from.as_str().into(),
        ]);
    }
    table
}

fn lifeline(status: &model::Status) -> Table {
    let mut table = Table::new()
        .word("LIFELINE")
        .text("DESTINATION")
        .text("PORTS");
    for part in &status.lifeline {
        table.row([
            part.name.as_str().into(),
            part.destination.as_str().into(),
            part.ports.join(", ").into(),
        ]);
    }
    table
}

fn scopes(status: &model::Status) -> Table {
    let mut table = Table::new()
        .word("SCOPE")
        .number("ID")
        .word("STATE")
        .text("CGROUP");
    for scope in &status.scopes {
        let cgroup = scope.cgroup.as_deref().map(|path| path.to_string_lossy());
        table.row([
            scope.name.as_str().into(),
            number(scope.id.into()),
            match &*scope.state {
                "waiting" => Cell::painted("waiting", Paint::Doubtful),
                state => state.into(),
            },
            cgroup.map_or_else(|| "all others".into(), Cell::from),
        ]);
    }
    table
}

/// Seconds in the two largest units that they fill.
pub(super) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days}d {}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}
