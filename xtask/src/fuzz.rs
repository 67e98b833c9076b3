//! `cargo xtask fuzz`: parsers, programs, policy loader and socket on random and broken input.
//!
//! Two programs: `tests/fuzz` feeds the parsers of egress-common, optimised and with a lockfile of its own;
//! `tests/fuzz-agent` is part of the workspace, for it needs the agent.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::{ebpf, run};

/// Inputs for each target of a run that nothing is said about.
const PARSER_RUNS: u64 = 1_000_000;
const AGENT_RUNS: u64 = 20_000;

/// Targets that can be fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// DNS answers: step machines against hickory-proto.
    Dns,
    /// IPv4 and IPv6 headers: the parser against etherparse.
    Packet,
    /// Packets through the programs in the kernel against the host; needs root.
    Prog,
    /// Policy files.
    Policy,
    /// Bytes on the API socket.
    Api,
}

impl Target {
    /// The program that feeds it.
    pub(crate) const fn program(self) -> Program {
        match self {
            Self::Dns | Self::Packet => Program::Parsers,
            Self::Prog | Self::Policy | Self::Api => Program::Agent,
        }
    }

    /// Name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Packet => "packet",
            Self::Prog => "prog",
            Self::Policy => "policy",
            Self::Api => "api",
        }
    }
}

/// The programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// `tests/fuzz`.
    Parsers,
    /// `tests/fuzz-agent`.
    Agent,
}

/// Options of `cargo xtask fuzz`.
#[derive(Args, Debug)]
pub(crate) struct Fuzz {
    /// How many inputs to try for each target [default: 1000000 for dns and packet, 20000 for the others].
    #[arg(long)]
    runs: Option<u64>,
    /// Ends each target after this many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Start of the random numbers: the same seed tries the same inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What to feed; all when not given; may be repeated.
    #[arg(long)]
    target: Vec<Target>,
}

impl Fuzz {
    /// Builds and runs the targets with their output on the terminal.
    ///
    /// # Errors
    ///
    /// A program does not build, or finds something.
    pub(crate) fn run(&self) -> Result<()> {
        let targets = if self.target.is_empty() {
            Target::value_variants()
        } else {
            &self.target
        };
        let mut is_clean = true;
        for target in targets {
            // Seconds alone bound a run by time only.
            let runs = match (self.runs, self.seconds, target.program()) {
                (Some(runs), _, _) => runs,
                (None, Some(_), _) => u64::MAX,
                (None, None, Program::Parsers) => PARSER_RUNS,
                (None, None, Program::Agent) => AGENT_RUNS,
            };
            let mut cargo = command(*target, runs);
            cargo.args(["--seed", &self.seed.to_string()]);
            if let Some(seconds) = self.seconds {
                cargo.args(["--seconds", &seconds.to_string()]);
            }
            is_clean &= cargo.status()?.success();
        }
        if !is_clean {
            bail!("fuzzing failed");
        }
        Ok(())
    }
}

/// The manifest of the parsers' program.
pub(crate) fn manifest() -> PathBuf {
    run::root().join("tests/fuzz/Cargo.toml")
}

/// The command that builds a target's program and feeds the target so many inputs.
pub(crate) fn command(target: Target, runs: u64) -> Command {
    let mut cargo = run::cargo();
    cargo.args(["run", "--quiet"]);
    match target.program() {
        Program::Parsers => cargo.args(["--release", "--manifest-path"]).arg(manifest()),
        Program::Agent => cargo
            .args(["--package", "egress-fuzz-agent"])
            .env("EGRESS_EBPF_OBJECT", ebpf::object()),
    };
    cargo.args(["--", "--target", target.name(), "--runs"]);
    cargo.arg(runs.to_string());
    cargo
}
