//! Feeds the parsers of egress-common with random and broken input, on stable Rust.
//!
//! See README.md for the targets, what counts as a finding, and the long runs.

mod dns;
mod driver;
mod packet;
mod packets;
mod rng;

#[path = "../../../egress-common/tests/support/mod.rs"]
mod support;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use driver::{Finding, Options, Target, run_target};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TargetName {
    /// DNS answers: step machines against hickory-proto.
    Dns,
    /// IPv4 and IPv6 headers: the parser against etherparse.
    Packet,
}

/// Feeds the parsers with random and broken input; exits with 1 and a saved reproducer on a finding.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    options: Options,
    /// What to feed; both when not given.
    #[arg(long)]
    target: Option<TargetName>,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    args.options.home = env!("CARGO_MANIFEST_DIR").into();
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
    let mut is_clean = true;
    if !matches!(args.target, Some(TargetName::Packet)) {
        is_clean &= run_target(&dns::Dns, &args.options)?;
    }
    if !matches!(args.target, Some(TargetName::Dns)) {
        is_clean &= run_target(&packet::Packets, &args.options)?;
    }
    Ok(is_clean)
}
