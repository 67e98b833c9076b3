//! Clients and servers of the test worlds.
//!
//! Clients print one JSON object (see `egress_tests::report`) and exit 0 also
//! when what they tried failed; servers print `ready`, then a line for
//! everything that reaches them.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test tool: a broken assumption should panic"
)]

mod client;
mod dns_client;
mod dns_server;
mod forger;
mod frame;
mod hold;
mod ping;
mod serve;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Clients and servers of the test worlds.
#[derive(Debug, Parser)]
#[command(name = "probe")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// TCP echo and HTTP, UDP echo, on every address.
    Serve(serve::Serve),
    /// Connect by TCP and wait for an echo.
    Connect(client::Connect),
    /// Send a datagram and wait for its echo.
    Udp(client::Udp),
    /// Send many datagrams.
    Flood(client::Flood),
    /// Wait for one datagram on a port.
    Listen(client::Listen),
    /// Send an ICMP echo request and wait for the reply.
    Ping(ping::Ping),
    /// Keep a flow open with a byte every 100 ms.
    Hold(hold::Hold),
    /// Resolve a name.
    Resolve(dns_client::Resolve),
    /// Resolve fresh names and connect at once.
    ResolveConnect(dns_client::ResolveConnect),
    /// A DNS server for names that it makes up.
    DnsServer(dns_server::DnsServer),
    /// A DNS server that lies.
    ForgeDns(forger::ForgeDns),
    /// Send a raw Ethernet frame past the IP stack.
    Frame(frame::Frame),
    /// Ask a resolver and forge its answer through a raw socket.
    SelfForge(frame::SelfForge),
    /// Forge a call to itself through a raw socket and answer it.
    SelfCall(frame::SelfCall),
    /// Send an IP packet through a raw socket.
    RawIp(frame::RawIp),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Serve(command) => command.run(),
        Command::Connect(command) => command.run(),
        Command::Udp(command) => command.run(),
        Command::Flood(command) => command.run(),
        Command::Listen(command) => command.run(),
        Command::Ping(command) => command.run(),
        Command::Hold(command) => command.run(),
        Command::Resolve(command) => command.run(),
        Command::ResolveConnect(command) => command.run(),
        Command::DnsServer(command) => command.run(),
        Command::ForgeDns(command) => command.run(),
        Command::Frame(command) => command.run(),
        Command::SelfForge(command) => command.run(),
        Command::SelfCall(command) => command.run(),
        Command::RawIp(command) => command.run(),
    }
}
