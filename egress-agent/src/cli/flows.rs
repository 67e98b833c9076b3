//! `flows`: the latest verdicts, with names and reasons.

use std::{collections::BTreeMap, ops::ControlFlow};

use anyhow::Context;
use clap::Args;

use super::{
    counters::verdict,
    exit::ExitCode,
    output::{self, Format, Screen, note, say},
    remote::{PodArgs, RemoteArgs, wait_for},
    table::Table,
};
use crate::{
    api::{
        FlowFilter,
        model::{FlowReport, FollowLine},
    },
    policy::printable,
};

const EXAMPLES: &str = "\
Examples:
  egress-agent flows --denied
  egress-agent flows --follow --denied
  egress-agent flows --denied --namespace shop --pod payments-7d9c
  egress-agent flows -o json | jq 'group_by(.destination) | map(length)'

With --follow, JSON is one object a line; {\"lost\": N} stands for verdicts that
came too fast. The kernel limits how many verdicts it reports: see counters.";

/// Options of `flows`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Flows {
    /// Show verdicts as they come, until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Only denied ones, and those that audit mode let pass
    #[arg(short, long)]
    pub denied: bool,
    /// At most this many, the newest
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "follow")]
    pub limit: Option<usize>,
    /// Whose.
    #[command(flatten)]
    pub pods: PodArgs,
    /// Where to ask and what to print.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

impl Flows {
    /// Prints verdicts.
    ///
    /// # Errors
    ///
    /// No agent answers, or it ends while it is followed.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let filter = FlowFilter {
            denied: self.denied,
            limit: self.limit,
            pods: self.pods.filter(),
        };
        if self.follow {
            return wait_for(self.follow(filter));
        }
        let client = self.remote.client();
        let flows = wait_for(client.flows(filter))?;
        let output = self.remote.output;
        output.print(&flows, |screen| render(&flows, screen))?;
        if flows.is_empty() && output.output == Format::Table {
            note("no verdicts yet");
        }
        Ok(ExitCode::Ok)
    }

    async fn follow(&self, filter: FlowFilter) -> anyhow::Result<ExitCode> {
        let mut following = self.remote.client().follow(filter).await?;
        let screen = Screen::of_stdout();
        loop {
            let line = tokio::select! {
                line = following.next() => line?,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted.context("cannot wait for ctrl-c")?;
                    return Ok(ExitCode::Ok);
                }
            };
            let Some(line) = line else {
                anyhow::bail!("the agent has ended: start `flows --follow` again when it is back");
            };
            let text = match (self.remote.output.output, &line) {
                (Format::Json, line) => serde_json::to_string(line).context("cannot write JSON")?,
                (Format::Table, FollowLine::Flow(flow)) => one_line(flow, screen),
                (Format::Table, FollowLine::Lost { lost }) => {
                    say(&format!(
                        "{lost} verdicts came too fast and are left out here"
                    ));
                    continue;
                }
            };
            if let ControlFlow::Break(()) = output::print(&format!("{text}\n"))? {
                return Ok(ExitCode::Ok);
            }
        }
    }
}

/// Where the flow goes: its names, address, port and protocol.
fn destination(flow: &FlowReport) -> String {
    let address = match flow.port {
        Some(port) => std::net::SocketAddr::new(flow.destination, port).to_string(),
        None => flow.destination.to_string(),
    };
    let mut names = flow.names.join(",");
    if !names.is_empty() {
        names.push(' ');
    }
    let hello = flow
        .server_name
        .as_ref()
        .map(|name| format!(", hello for {name}"));
    format!(
        "{names}{address}/{}{}",
        flow.protocol,
        hello.unwrap_or_default()
    )
}

/// The reason, and what lies behind it where that is known.
fn reason(flow: &FlowReport) -> String {
    match &flow.cause {
        Some(cause) => format!("{} ({})", flow.reason, cause.cause),
        None => flow.reason.to_string(),
    }
}

/// A verdict in one line of a stream, whose columns cannot be known before.
pub(super) fn one_line(flow: &FlowReport, screen: Screen) -> String {
    let mut table = Table::new().word("").word("").word("").word("").word("");
    table.row([
        flow.at.time_of_day().into(),
        verdict(&flow.verdict),
        format!("{:<16}", reason(flow)).into(),
        format!("{:<8}", flow.scope).into(),
        destination(flow).into(),
    ]);
    let unbound = Screen {
        width: None,
        ..screen
    };
    let line = table.render(unbound);
    line.trim_end().to_owned()
}

/// Verdicts for people, with what the reasons of denials mean below.
pub(super) fn render(flows: &[FlowReport], screen: Screen) -> String {
    if flows.is_empty() {
        return String::new();
    }
    let mut table = Table::new()
        .word("TIME")
        .word("VERDICT")
        .word("REASON")
        .text("SCOPE")
        .text("DESTINATION");
    let mut meanings: BTreeMap<&str, &str> = BTreeMap::new();
    let denied = FlowFilter {
        denied: true,
        ..FlowFilter::default()
    };
    for flow in flows {
        table.row([
            flow.at.time_of_day().into(),
            verdict(&flow.verdict),
            reason(flow).into(),
            flow.scope.as_str().into(),
            destination(flow).into(),
        ]);
        if denied.shows(flow) {
            meanings.insert(&flow.reason, &flow.words);
            if let Some(cause) = &flow.cause {
                meanings.insert(&cause.cause, &cause.words);
            }
        }
    }
    let mut text = table.render(screen);
    if !meanings.is_empty() {
        text.push('\n');
        let mut legend = Table::new().word("").text("");
        for (reason, words) in meanings {
            legend.row([reason.into(), printable(words).into()]);
        }
        text.push_str(&legend.render(screen));
    }
    text
}
