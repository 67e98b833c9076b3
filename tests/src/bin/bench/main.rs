//! `cargo xtask bench`: every figure beside its baseline, in the same run.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "figures of a measurement, far from any limit"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests panic (STYLE §10)"))]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod client;
mod idle;
mod lookups;
mod measure;
mod nft;
mod packets;
mod place;
mod rig;
mod scale;
mod scene;
mod serve;
mod snooper;
mod suite;
mod table;
mod upkeep;
mod wire;

/// Measures what egress costs, beside what its peers cost.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure and print the table.
    Run(suite::Suite),
    /// A client of a measurement.
    #[command(hide = true)]
    Client(client::Client),
    /// The servers.
    #[command(hide = true)]
    Serve(serve::Serve),
    /// The DNS server.
    #[command(hide = true)]
    DnsServer(serve::DnsServer),
    /// The asynchronous peer.
    #[command(hide = true)]
    Snooper(snooper::Snooper),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(command) => command.run(),
        Command::Client(command) => command.run(),
        Command::Serve(command) => command.run(),
        Command::DnsServer(command) => command.run(),
        Command::Snooper(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
