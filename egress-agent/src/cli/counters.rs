//! `counters`: what was allowed and denied, and why.

use clap::{Args, ValueEnum};

use super::{
    exit::ExitCode,
    output::Screen,
    remote::{PodArgs, RemoteArgs, wait_for},
    table::{Cell, Paint, Table, number},
};
use crate::api::model::{CountersReport, WorkloadCount};

const EXAMPLES: &str = "\
Examples:
  egress-agent counters
  egress-agent counters --by rule
  egress-agent counters --namespace shop          the pods there
  egress-agent counters -o json | jq .denied

allowed, denied and would_deny count packets and refused connects; by rule,
policy and workload they count first packets of allowed flows and what is
denied; by hook everything.";

/// Options of `counters`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Counters {
    /// How the table splits them [default: reason, and DNS below it]; JSON always has every split
    #[arg(long, value_name = "WHAT")]
    pub by: Option<By>,
    /// Whose: by workload, and of these alone.
    #[command(flatten)]
    pub pods: PodArgs,
    /// Where to ask and what to print.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// How counters are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Why
    Reason,
    /// Which line of the policy
    Rule,
    /// Which policy
    Policy,
    /// Who sends: the node, each pod, each --scope
    Workload,
    /// Where in the kernel
    Hook,
}

impl Counters {
    /// Prints the counters.
    ///
    /// # Errors
    ///
    /// No agent answers.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let client = self.remote.client();
        let mut counters = wait_for(client.counters())?;
        let output = self.remote.output;
        if self.pods.is_given() {
            let pods = self.pods.filter();
            counters.by_workload.retain(|one| pods.shows(&one.workload));
            let counters = &counters.by_workload;
            output.print(counters, |screen| by_workload(counters).render(screen))?;
            return Ok(ExitCode::Ok);
        }
        output.print(&counters, |screen| render(&counters, self.by, screen))?;
        Ok(ExitCode::Ok)
    }
}

/// The counters for people.
pub(super) fn render(counters: &CountersReport, by: Option<By>, screen: Screen) -> String {
    let mut totals = Table::new().word("").number("");
    totals.row(["allowed".into(), number(counters.allowed)]);
    totals.row(["denied".into(), number(counters.denied)]);
    totals.row(["would_deny".into(), number(counters.would_deny)]);
    let mut parts = vec![totals];
    match by {
        None => parts.extend([by_reason(counters), dns(counters)]),
        Some(By::Reason) => parts.push(by_reason(counters)),
        Some(By::Rule) => parts.push(by_rule(counters)),
        Some(By::Policy) => parts.push(by_policy(counters)),
        Some(By::Workload) => parts.push(by_workload(&counters.by_workload)),
        Some(By::Hook) => parts.push(by_hook(counters)),
    }
    parts.retain(|table| !table.is_empty());
    let parts: Vec<_> = parts.iter().map(|table| table.render(screen)).collect();
    parts.join("\n")
}

/// The verdict in its colour.
pub(super) fn verdict(verdict: &str) -> Cell {
    let paint = match verdict {
        "denied" => Paint::Bad,
        "would_deny" => Paint::Doubtful,
        _ => Paint::Plain,
    };
    Cell::painted(verdict, paint)
}

fn by_reason(counters: &CountersReport) -> Table {
    let mut table = Table::new()
        .word("VERDICT")
        .word("REASON")
        .number("COUNT")
        .text("MEANING");
    for reason in &counters.by_reason {
        table.row([
            verdict(&reason.verdict),
            (&*reason.reason).into(),
            number(reason.count),
            (&*reason.words).into(),
        ]);
    }
    table
}

fn by_rule(counters: &CountersReport) -> Table {
    let mut table = Table::new()
        .number("ALLOWED")
        .number("DENIED")
        .number("WOULD_DENY")
        .text("RULE")
        .text("WHERE");
    for rule in &counters.by_rule {
        let place = match (&rule.file, rule.line) {
            (Some(file), Some(line)) => format!("{}:{line}", file.display()),
            (Some(file), None) => file.display().to_string(),
            (None, _) => String::new(),
        };
        table.row([
            number(rule.allowed),
            number(rule.denied),
            number(rule.would_deny),
            rule.rule.as_str().into(),
            place.into(),
        ]);
    }
    table
}

fn by_policy(counters: &CountersReport) -> Table {
    let mut table = Table::new()
        .text("POLICY")
        .number("ALLOWED")
        .number("DENIED")
        .number("WOULD_DENY");
    for policy in &counters.by_policy {
        let name = match policy.policy.as_str() {
            "" => "(rules that are gone)",
            name => name,
        };
        table.row([
            name.into(),
            number(policy.allowed),
            number(policy.denied),
            number(policy.would_deny),
        ]);
    }
    table
}

fn by_workload(counters: &[WorkloadCount]) -> Table {
    let mut table = Table::new()
        .text("WORKLOAD")
        .number("ALLOWED")
        .number("DENIED")
        .number("WOULD_DENY");
    for workload in counters {
        table.row([
            workload.workload.as_str().into(),
            number(workload.allowed),
            number(workload.denied),
            number(workload.would_deny),
        ]);
    }
    table
}

fn by_hook(counters: &CountersReport) -> Table {
    let mut table = Table::new()
        .word("HOOK")
        .number("ALLOWED")
        .number("DENIED")
        .number("WOULD_DENY");
    for hook in &counters.by_hook {
        table.row([
            (&*hook.hook).into(),
            number(hook.allowed),
            number(hook.denied),
            number(hook.would_deny),
        ]);
    }
    table
}

fn dns(counters: &CountersReport) -> Table {
    let mut table = Table::new().word("DNS AND LEARNING").number("COUNT");
    for (tally, count) in counters.dns.iter().filter(|(_, count)| **count > 0) {
        table.row([tally.into(), number(*count)]);
    }
    table
}
