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

mod balance;
mod client;
mod craft_dns;
mod dns_client;
mod dns_server;
mod emit;
mod exchange;
mod flows;
mod forger;
mod hold;
mod load;
mod own;
mod ping;
mod self_forge;
mod serve;
mod storm;
mod stray;
mod sys;
mod tricks;
mod turns;
mod xdp;

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
    /// Connect by TCP, send bytes part by part, and wait for their echo.
    Pieces(client::Pieces),
    /// Send a datagram and wait for its echo.
    Udp(client::Udp),
    /// Send many datagrams.
    Flood(client::Flood),
    /// Wait for one datagram on a port.
    Listen(client::Listen),
    /// Answer datagrams on a port.
    Answer(client::Answer),
    /// Answer those who called only when told to.
    AnswerLate(flows::AnswerLate),
    /// Send a datagram from each of some sockets.
    Call(flows::Call),
    /// Send datagrams from many sockets to many peers.
    Spread(flows::Spread),
    /// Send an ICMP echo request and wait for the reply.
    Ping(ping::Ping),
    /// Keep a flow open with a byte every 100 ms.
    Hold(hold::Hold),
    /// Streams, connects, lookups and forbidden attempts until SIGTERM.
    Load(load::Load),
    /// Resolve a name.
    Resolve(dns_client::Resolve),
    /// Resolve fresh names and connect at once.
    ResolveConnect(dns_client::ResolveConnect),
    /// A DNS server for names that it makes up.
    DnsServer(dns_server::DnsServer),
    /// A DNS server that lies.
    ForgeDns(forger::ForgeDns),
    /// Ask a resolver and answer in its name.
    SelfForge(self_forge::SelfForge),
    /// Send given bytes through a raw socket.
    Emit(emit::Emit),
    /// A DNS server that answers with many addresses, fast.
    StormServer(storm::StormServer),
    /// Ask for new names, fast.
    Storm(storm::StormClient),
    /// Send datagrams for some seconds, fast, and count how each went.
    StormUdp(storm::StormUdp),
    /// Connect again and again for some seconds.
    Steady(storm::Steady),
    /// Send given bytes through a packet socket.
    EmitFrame(emit::EmitFrame),
    /// One exchange over a socket with unusual options.
    Exchange(exchange::Exchange),
    /// Use a socket in an unusual way.
    Trick(tricks::Trick),
    /// Make a socket for another process.
    Give(tricks::Give),
    /// Use a socket of another process.
    Take(tricks::Take),
    /// Ask whether the kernel has a protocol.
    Open(tricks::Open),
    /// Send given bytes through an `AF_XDP` socket.
    Xdp(xdp::Xdp),
    /// Print what goes through an interface.
    Watch(emit::Watch),
    /// Lead calls to services elsewhere, at a cgroup.
    Balance(balance::Balance),
    /// Ask a service, and lead a query to somebody else.
    Stray(stray::Stray),
    /// Answer questions as one is told.
    CraftDns(craft_dns::CraftDns),
    /// Speak with somebody, and turn to another one.
    Turn(turns::Turn),
    /// Make random calls in two scopes.
    Own(own::Own),
    /// Look at what they lead to.
    OwnWatch(own::OwnWatch),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Serve(command) => command.run(),
        Command::Connect(command) => command.run(),
        Command::Pieces(command) => command.run(),
        Command::Udp(command) => command.run(),
        Command::Flood(command) => command.run(),
        Command::Listen(command) => command.run(),
        Command::Answer(command) => command.run(),
        Command::AnswerLate(command) => command.run(),
        Command::Call(command) => command.run(),
        Command::Spread(command) => command.run(),
        Command::Ping(command) => command.run(),
        Command::Hold(command) => command.run(),
        Command::Load(command) => command.run(),
        Command::Resolve(command) => command.run(),
        Command::ResolveConnect(command) => command.run(),
        Command::DnsServer(command) => command.run(),
        Command::ForgeDns(command) => command.run(),
        Command::SelfForge(command) => command.run(),
        Command::Emit(command) => command.run(),
        Command::StormServer(command) => command.run(),
        Command::Storm(command) => command.run(),
        Command::StormUdp(command) => command.run(),
        Command::Steady(command) => command.run(),
        Command::EmitFrame(command) => command.run(),
        Command::Exchange(command) => command.run(),
        Command::Trick(command) => command.run(),
        Command::Give(command) => command.run(),
        Command::Take(command) => command.run(),
        Command::Open(command) => command.run(),
        Command::Watch(command) => command.run(),
        Command::Xdp(command) => command.run(),
        Command::Balance(command) => command.run(),
        Command::Stray(command) => command.run(),
        Command::CraftDns(command) => command.run(),
        Command::Turn(command) => command.run(),
        Command::Own(command) => command.run(),
        Command::OwnWatch(command) => command.run(),
    }
}
