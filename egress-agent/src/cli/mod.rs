//! The command line: one file for each subcommand, its options at the top.

mod catalog;
mod completions;
mod confirm;
mod counters;
mod doctor;
mod exec;
mod exit;
mod explain;
mod flows;
mod import;
mod learn;
mod learned;
mod logging;
mod output;
mod policy;
mod policy_diff;
mod policy_test;
mod preset;
mod remote;
pub mod run;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod unload;

use clap::{Parser, Subcommand};

pub use catalog::CatalogArgs;
pub use exit::{ExitCode, UsageError};
pub use logging::start as start_logging;
pub use output::{Format, OutputArgs, Screen, say};
pub use remote::{DEFAULT_PIN_DIR, DEFAULT_SOCKET, DEFAULT_STATE_DIR};
pub use run::{LogLevel, PodInterfaces, RunOptions, ScopeOption};

const EXAMPLES: &str = "\
Examples:
  egress-agent policy check /etc/egress/policies  what run would say of it
  egress-agent policy import groups.json          what an Azure Firewall allows
  egress-agent preset show aks/azure-global --with location=eastus
  egress-agent doctor                             what this node lacks
  sudo egress-agent exec --allow '*.npmjs.org:443' -- npm ci
  egress-agent run --policy /etc/egress/policies --mode audit
  egress-agent run --policy /etc/egress/policies --confirm 60s
  egress-agent confirm                            or it falls back to audit
  egress-agent status                             exit 1: not all is enforced
  egress-agent flows --denied --follow            who is denied what, and why
  egress-agent explain api.example.com:8443       why it is, and what would allow it
  egress-agent learned api.example.com -o json
  egress-agent policy learn > learned.yaml        from traffic to policy

Exit status: 0 done; 1 failed; 2 command line, policy or environment not usable.";

/// Lets this node reach only the outside names that its owner lists.
#[derive(Debug, Parser)]
#[command(name = "egress-agent", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// What to log on stderr: a level or a filter such as `info,egress_agent::dns=debug`
    /// [default: info for run, warn for the rest]
    #[arg(
        long,
        global = true,
        env = "EGRESS_LOG",
        value_name = "FILTER",
        value_parser = logging::filter
    )]
    pub log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enforce policies on this node until told to end
    Run(Box<run::Run>),
    /// Run one command with all that it starts, and let it reach only what is allowed
    Exec(Box<exec::Exec>),
    /// Show what is attached, loaded, filled and lost; exit 1 when not all is enforced
    Status(status::Status),
    /// Confirm that enforcing left the node reachable, after `run --confirm`
    Confirm(confirm::Confirm),
    /// Show what was allowed and denied, and why
    Counters(counters::Counters),
    /// Show the addresses that DNS answers taught, and how long they stay
    Learned(learned::Learned),
    /// Show the latest verdicts, with names and reasons
    Flows(flows::Flows),
    /// Say why a destination is allowed or denied, and what would allow it; exit 1 when denied
    Explain(explain::Explain),
    /// Check policy files, import them, or learn one from what the agent saw
    Policy(policy::Policy),
    /// Show presets and the rules that they stand for, without an agent
    Preset(preset::PresetArgs),
    /// Remove everything from the kernel: nothing is enforced any more
    Unload(unload::Unload),
    /// Check whether this node has what the agent needs; exit 2 if not
    Doctor(doctor::Doctor),
    /// Print what a shell needs to complete these commands
    Completions(completions::Completions),
}

impl Cli {
    /// Reads the command line. What is wrong with it is said; then this is the exit code.
    ///
    /// # Errors
    ///
    /// It is wrong, or asks for help, which was given.
    pub fn read() -> Result<Self, ExitCode> {
        Self::try_parse().map_err(|error| {
            // Nobody is left to be told that stderr is gone.
            let _gone = error.print();
            let is_exec = std::env::args_os()
                .nth(1)
                .is_some_and(|word| word == "exec");
            match error.exit_code() {
                0 => ExitCode::Ok,
                // A command's own status may be 2.
                _ if is_exec => ExitCode::Command(ExitCode::EXEC_FAILED),
                _ => ExitCode::Usage,
            }
        })
    }

    /// The log filter when neither option nor variable gives one.
    #[must_use]
    pub const fn default_log(&self) -> &'static str {
        match self.command {
            // The callers of its client report requests that fail.
            Command::Run(_) => "info,kube_client=off",
            Command::Exec(_)
            | Command::Status(_)
            | Command::Confirm(_)
            | Command::Counters(_)
            | Command::Learned(_)
            | Command::Flows(_)
            | Command::Explain(_)
            | Command::Policy(_)
            | Command::Preset(_)
            | Command::Unload(_)
            | Command::Doctor(_)
            | Command::Completions(_) => "warn",
        }
    }

    /// Does what the command line says.
    ///
    /// # Errors
    ///
    /// A step fails; the error is for [`ExitCode::of`] and the person at the terminal.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(run) => run.execute(),
            Command::Exec(exec) => exec.execute(),
            Command::Status(status) => status.execute(),
            Command::Confirm(confirm) => confirm.execute(),
            Command::Counters(counters) => counters.execute(),
            Command::Learned(learned) => learned.execute(),
            Command::Flows(flows) => flows.execute(),
            Command::Explain(explain) => explain.execute(),
            Command::Policy(policy) => policy.execute(),
            Command::Preset(preset) => preset.execute(),
            Command::Unload(unload) => unload.execute(),
            Command::Doctor(doctor) => doctor.execute(),
            Command::Completions(completions) => completions.execute(),
        }
    }
}
