//! `cargo xtask faults`: faults of a node, one by one and in combinations, under traffic.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    build, run,
    setup::{self, Group},
};

/// Seconds of a run that nothing is said about, and of `cargo xtask test`.
pub(crate) const SECONDS: u64 = 120;

/// Options of `cargo xtask faults`.
#[derive(Args, Debug)]
pub(crate) struct Faults {
    /// How long rounds begin [default: 2].
    #[arg(long)]
    minutes: Option<u64>,
    /// Use this agent instead of building one.
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Further options: `--seed N`, `--round N`, `--only FAULT`, `--list`.
    #[arg(last = true)]
    more: Vec<String>,
}

impl Faults {
    /// Sets up, builds, and runs the faults with their output on the terminal.
    ///
    /// # Errors
    ///
    /// A tool is missing or fails, or a round does.
    pub(crate) fn run(&self) -> Result<()> {
        setup::setup(&[Group::Build, Group::Net])?;
        let agent = match &self.agent {
            Some(agent) => agent.clone(),
            None => build::build()?,
        };
        let seconds = self
            .minutes
            .map_or(SECONDS, |minutes| minutes.saturating_mul(60));
        let mut cargo = command(seconds);
        cargo.args(&self.more).env("EGRESS_AGENT", agent);
        if !cargo.status()?.success() {
            bail!("a round failed: it says how to run it again");
        }
        Ok(())
    }
}

/// The program, which makes the world and cleans it up.
pub(crate) fn command(seconds: u64) -> Command {
    let mut cargo = run::cargo();
    cargo
        .args(["run", "--quiet", "--package", "egress-tests"])
        .args(["--bin", "faults", "--"])
        .args(["--seconds", &seconds.to_string()]);
    cargo
}
