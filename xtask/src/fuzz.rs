//! `cargo xtask fuzz`: the parsers against hickory-proto on random and mutated messages.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail};
use clap::Args;

use crate::run;

/// Messages of a run that nothing is said about.
const DEFAULT_RUNS: u64 = 1_000_000;

/// Options of `cargo xtask fuzz`.
#[derive(Args, Debug)]
pub(crate) struct Fuzz {
    /// How many messages to try.
    #[arg(long, default_value_t = DEFAULT_RUNS, conflicts_with = "seconds")]
    runs: u64,
    /// For how long to try messages.
    #[arg(long)]
    seconds: Option<u64>,
}

impl Fuzz {
    /// Builds and runs the target with its output on the terminal.
    ///
    /// # Errors
    ///
    /// The target does not build, or finds something.
    pub(crate) fn run(&self) -> Result<()> {
        let limit = match self.seconds {
            Some(seconds) => ("--seconds", seconds),
            None => ("--runs", self.runs),
        };
        if !command(limit).status()?.success() {
            bail!("fuzzing failed");
        }
        Ok(())
    }
}

/// The target's manifest.
pub(crate) fn manifest() -> PathBuf {
    run::root().join("tests/fuzz/Cargo.toml")
}

/// The command that builds and runs the target up to a limit.
pub(crate) fn command(limit: (&str, u64)) -> Command {
    let mut cargo = run::cargo();
    cargo
        .args(["run", "--release", "--manifest-path"])
        .arg(manifest())
        .args(["--", limit.0])
        .arg(limit.1.to_string());
    cargo
}
