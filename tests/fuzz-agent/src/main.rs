//! Feeds the readers of others' bytes with random and broken input: the packet programs in the kernel, the policy
//! loader, and the API socket.
//!
//! `tests/fuzz/README.md` says what counts as a finding. The driver is that of `tests/fuzz`, which feeds the parsers of
//! egress-common; this one is part of the workspace because it needs the agent.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    clippy::map_err_ignore,
    missing_docs,
    unreachable_pub,
    reason = "a fuzzer panics; the driver is shared with another crate"
)]

mod api;
#[path = "../../fuzz/src/driver.rs"]
mod driver;
mod heap;
#[path = "../../fuzz/src/packets.rs"]
mod packets;
mod policy;
mod prog;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/netns/rig.rs"]
mod rig;
#[path = "../../fuzz/src/rng.rs"]
mod rng;
#[allow(dead_code, reason = "other targets use more of it")]
mod support;

use std::{path::Path, process::ExitCode};

use clap::{Parser, ValueEnum};
use driver::{Finding, Options, Target, run_target};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TargetName {
    /// Packets through the programs in the kernel: the verdict of the host.
    Prog,
    /// Policy files: no panic, bounded time and memory, errors with a line.
    Policy,
    /// Bytes on the API socket: no panic, still answers.
    Api,
}

/// Feeds the agent with random and broken input; exits with 1 and a saved reproducer on a finding.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    options: Options,
    /// What to feed; all when not given.
    #[arg(long)]
    target: Vec<TargetName>,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    args.options.home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    let wants = |name| args.target.is_empty() || args.target.contains(&name);
    let mut is_clean = true;
    if wants(TargetName::Policy) {
        is_clean &= run_target(&policy::Policies::new()?, &args.options)?;
    }
    if wants(TargetName::Api) {
        is_clean &= run_target(&api::Socket::new()?, &args.options)?;
    }
    // One rig, so that one thread: it compares counts.
    if wants(TargetName::Prog)
        && let Some(prog) = prog::Programs::new()
    {
        is_clean &= run_target(&prog, &args.options)?;
    }
    Ok(is_clean)
}
