//! `cargo xtask bench`: every figure beside its baseline, in the same run.

use std::{os::unix::process::CommandExt as _, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    build,
    run::{self, Stage},
    setup::{self, Group},
};

/// The page that holds the table.
const PAGE: &str = "docs/benchmark.md";

/// Options of `cargo xtask bench`.
#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// Fewer and shorter rounds: under two minutes instead of under fifteen.
    #[arg(long)]
    quick: bool,
    /// What to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Replace the table of docs/benchmark.md.
    #[arg(long)]
    write: bool,
    /// Measure only this; may be repeated.
    #[arg(long, value_enum, value_name = "PART", conflicts_with = "write")]
    only: Vec<Part>,
}

/// How the report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table.
    #[default]
    Table,
    /// Everything, each round included.
    Json,
}

/// A part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Nanoseconds of single packets.
    Packets,
    /// Connections, streams, datagrams.
    Rates,
    /// Lookups, queries, races, answers.
    Dns,
    /// The programs alone: learned addresses, names, answers.
    Scale,
    /// Reload, memory, CPU.
    Agent,
}

impl Bench {
    /// Sets up, builds, and becomes the bench: the program in `tests/` that makes the world and cleans it up.
    ///
    /// # Errors
    ///
    /// Not root, or a tool is missing or fails. On success this does not return.
    pub(crate) fn run(&self) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "the bench makes network namespaces: run `sudo -E env \"PATH=$PATH\" cargo xtask bench`"
            );
        }
        setup::setup(&[Group::Build, Group::Net])?;
        let agent = build::build()?;
        let bench = build_bench()?;
        let mut command = run::command(&bench);
        command
            .arg("run")
            .env("EGRESS_AGENT", agent)
            .env("EGRESS_PROBE", bench.with_file_name("probe"));
        if self.quick {
            command.arg("--quick");
        }
        if self.output == Output::Json {
            command.args(["--output", "json"]);
        }
        if self.write {
            command.arg("--write").arg(run::root().join(PAGE));
        }
        for part in &self.only {
            let value = part.to_possible_value().context("a part without a name")?;
            command.args(["--only", value.get_name()]);
        }
        // In our place, so that ctrl-c and the exit status are its own.
        let error = command.exec();
        Err(error).with_context(|| format!("cannot start {}", run::shown(&bench)))
    }
}

/// Builds the bench optimized: its clients' own time is in every figure.
fn build_bench() -> Result<PathBuf> {
    let stage = Stage::begin("build-bench", "bench, clients and servers")?;
    stage.run(
        run::cargo()
            .args(["build", "--release", "--package", "egress-tests"])
            .args(["--bin", "bench", "--bin", "probe"])
            .arg("--target-dir")
            .arg(run::target_dir()),
    )?;
    stage.done();
    Ok(run::target_dir().join("release/bench"))
}
