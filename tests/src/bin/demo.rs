//! `cargo xtask demo`: a world, a real resolver, the real agent, real clients, and a table of their attempts.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "adds up a few counts and widths"
)]

use std::{
    io::{IsTerminal as _, Write as _, stdout},
    net::IpAddr,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use egress_tests::{
    Agent, Workload, World, interrupt,
    process::{self, Output},
    world::Role,
    zone,
};

/// The policy that the demo enforces.
const POLICY: &str = "\
apiVersion: egress.dev/v1alpha1
kind: EgressPolicy
metadata: { name: demo }
spec:
  mode: enforce
  ttl: { min: 1s, grace: 0s, max: 24h }
  allow:
    - names: [api.example.com, \"*.cdn.example.net\"]
      ports: [\"80/tcp\", \"443/tcp\"]
    - names: [short.example.com]
    - cidrs: [10.79.0.0/16, \"fd79::/32\"]
      ports: [any]
  deny:
    - names: [evil.cdn.example.net]
    - cidrs: [10.79.99.0/24]
";

/// No client needs longer.
const LIMIT: Duration = Duration::from_secs(6);

/// The process that runs a client.
#[derive(Clone, Copy)]
enum Who {
    /// The node's processes.
    Node,
    /// A workload with a scope of its own, which has resolved nothing yet.
    Other,
    /// Somebody outside, who calls the node.
    Outside,
}

/// One line of the table.
struct Attempt {
    who: Who,
    /// Program and arguments.
    client: &'static [&'static str],
    /// The attempt in words, for the table.
    about: &'static str,
    /// It should get through.
    allowed: bool,
    /// Where the verdict is looked up: destination and port.
    at: (&'static str, Option<u16>),
}

const fn node(
    client: &'static [&'static str],
    about: &'static str,
    allowed: bool,
    at: (&'static str, Option<u16>),
) -> Attempt {
    Attempt {
        who: Who::Node,
        client,
        about,
        allowed,
        at,
    }
}

const CURL4: &str = "-4";
const CURL6: &str = "-6";

const ATTEMPTS: &[Attempt] = &[
    node(
        &["dig", "@10.77.0.53", "api.example.com"],
        "the trusted resolver",
        true,
        ("10.77.0.53", Some(53)),
    ),
    node(
        &["dig", "@fd77::53", "+tcp", "www.cdn.example.net", "AAAA"],
        "the same, IPv6 and TCP",
        true,
        ("fd77::53", Some(53)),
    ),
    node(
        &["dig", "@10.77.0.66", "api.example.com"],
        "another DNS server",
        false,
        ("10.77.0.66", Some(53)),
    ),
    node(
        &["curl", CURL4, "http://api.example.com/"],
        "an allowed name",
        true,
        ("10.78.1.1", Some(80)),
    ),
    node(
        &["curl", CURL6, "http://api.example.com/"],
        "the same, IPv6",
        true,
        ("fd78::1:1", Some(80)),
    ),
    node(
        &["curl", CURL4, "http://api.example.com:9000/"],
        "a port that no rule opens",
        false,
        ("10.78.1.1", Some(9000)),
    ),
    node(
        &["curl", CURL4, "http://a.b.cdn.example.net/"],
        "below an allowed wildcard",
        true,
        ("10.78.2.2", Some(80)),
    ),
    node(
        &["curl", CURL4, "http://cdn.example.net/"],
        "its apex",
        false,
        ("10.78.2.3", Some(80)),
    ),
    node(
        &["curl", CURL4, "http://evil.cdn.example.net/"],
        "a denied name below it",
        false,
        ("10.78.2.66", Some(80)),
    ),
    node(
        &["curl", CURL4, "http://forbidden.example.org/"],
        "a name without a rule",
        false,
        ("10.78.9.1", Some(80)),
    ),
    node(
        &["curl", CURL6, "http://forbidden.example.org/"],
        "the same, IPv6",
        false,
        ("fd78::9:1", Some(80)),
    ),
    node(
        &["curl", "http://10.78.9.2/"],
        "an address that nobody resolved",
        false,
        ("10.78.9.2", Some(80)),
    ),
    node(
        &["curl", "http://10.79.1.1:8080/"],
        "an allowed network",
        true,
        ("10.79.1.1", Some(8080)),
    ),
    node(
        &["curl", "http://[fd79::1]/"],
        "the same, IPv6",
        true,
        ("fd79::1", Some(80)),
    ),
    node(
        &["curl", "http://10.79.99.1/"],
        "a denied network inside it",
        false,
        ("10.79.99.1", Some(80)),
    ),
    node(
        &["ping", "10.79.1.1"],
        "an allowed network",
        true,
        ("10.79.1.1", None),
    ),
    node(
        &["ping", "10.78.9.1"],
        "an address without a rule",
        false,
        ("10.78.9.1", None),
    ),
    node(
        &["ping", "fd78::9:1"],
        "the same, IPv6",
        false,
        ("fd78::9:1", None),
    ),
    Attempt {
        who: Who::Other,
        client: &["curl", "http://10.78.1.1/"],
        about: "what only the node resolved",
        allowed: false,
        at: ("10.78.1.1", Some(80)),
    },
    Attempt {
        who: Who::Other,
        client: &["curl", CURL4, "http://api.example.com/"],
        about: "the same by its own lookup",
        allowed: true,
        at: ("10.78.1.1", Some(80)),
    },
    Attempt {
        who: Who::Outside,
        client: &["curl", "http://10.77.0.2:8000/"],
        about: "a server on the node, from outside",
        allowed: true,
        at: ("10.77.0.80", None),
    },
    node(
        &["curl", CURL4, "http://short.example.com/"],
        "an allowed name with a TTL of 1 s",
        true,
        ("10.78.4.1", Some(80)),
    ),
];

/// Tried when the TTL of the last one has ended.
const AFTER_TTL: Attempt = node(
    &["curl", "http://10.78.4.1/"],
    "its address, 1.5 s later",
    false,
    ("10.78.4.1", Some(80)),
);

fn main() -> ExitCode {
    let result = interrupt::catch()
        .context("cannot catch signals")
        .and_then(|()| demo());
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("{wrong} verdicts were not the expected ones");
            ExitCode::FAILURE
        }
        Err(_) if interrupt::requested() => {
            eprintln!("interrupted; everything is cleaned up");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo and returns how many verdicts were wrong.
fn demo() -> Result<usize> {
    let begin = Instant::now();
    let world = World::builder()
        .try_build()
        .context("cannot build the world")?;
    let client = world.workload("node");
    let other = world.workload("other");
    let agent = world
        .agent(POLICY)
        .scope("other", other.cgroup())
        .try_start()
        .context("cannot start the agent")?;
    let mut server = client.background(&["serve", "--tcp", "8000"]);
    server.wait_for_line(0, Duration::from_secs(5), |line| line == "ready")?;
    println!(
        "A node, unbound at {}, web servers at {} and {}; up in {:.1} s.\nThe policy:\n\n{}",
        zone::RESOLVER.join(" and "),
        zone::SERVERS[0],
        zone::SERVERS[1],
        begin.elapsed().as_secs_f64(),
        indented(POLICY)
    );

    let mut table = Table::new();
    table.head();
    let outside = world.outsider(Role::Web);
    let mut wrong = 0;
    for attempt in ATTEMPTS {
        let workload = match attempt.who {
            Who::Node => &client,
            Who::Other => &other,
            Who::Outside => &outside,
        };
        wrong += usize::from(!table.row(&agent, workload, attempt)?);
    }
    pause(Duration::from_millis(1500))?;
    wrong += usize::from(!table.row(&agent, &client, &AFTER_TTL)?);

    for command in ["counters", "learned"] {
        let output = agent.cli(&[command])?;
        if output.code() != Some(0) {
            bail!("egress-agent {command} failed: {}", output.shown());
        }
        println!("\n$ egress-agent {command}\n{}", output.stdout.trim_end());
    }
    let seconds = begin.elapsed().as_secs_f64();
    drop(server);
    drop(agent);
    drop(world);
    println!(
        "\n{} attempts, {wrong} unexpected; everything is removed again; {seconds:.1} s.",
        ATTEMPTS.len() + 1
    );
    Ok(wrong)
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// Sleeps, unless somebody wants the process to end.
fn pause(length: Duration) -> Result<()> {
    let end = Instant::now() + length;
    while Instant::now() < end {
        if interrupt::requested() {
            bail!("interrupted");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Runs a client and says whether it got through.
fn run(workload: &Workload, attempt: &Attempt) -> Result<(bool, Output)> {
    let (program, args) = attempt.client.split_first().context("no client")?;
    let quiet: &[&str] = match *program {
        "curl" => &["--silent", "--show-error", "--max-time", "4"],
        "dig" => &["+short", "+time=1", "+tries=1"],
        "ping" => &["-n", "-q", "-c", "1", "-W", "1"],
        _ => &[],
    };
    let mut command = workload.command_with_resolver(program);
    command.args(quiet).args(args);
    let output = process::run(&mut command, LIMIT)?;
    let got = match *program {
        "curl" => output.stdout.starts_with("hello from "),
        "dig" => output.code() == Some(0) && output.stdout.trim().parse::<IpAddr>().is_ok(),
        _ => output.code() == Some(0),
    };
    Ok((got, output))
}

/// The agent's reason for what it saw last at a destination.
fn reason(agent: &Agent, attempt: &Attempt, allowed: bool) -> Result<String> {
    let (address, port) = attempt.at;
    let address: IpAddr = address.parse().context("not an address")?;
    let verdict = if allowed { "allowed" } else { "denied" };
    if matches!(attempt.who, Who::Outside) {
        return Ok("reply".to_owned());
    }
    let flow = agent.flow_to(address, |flow| {
        flow.verdict == verdict && (port.is_none() || flow.port == port)
    });
    Ok(flow.map_or_else(
        || "not reported".to_owned(),
        |flow| match flow.rule {
            Some(rule) => format!("{}: {rule}", flow.reason),
            None if flow.names.is_empty() => flow.reason,
            None => format!("{}: {}", flow.reason, flow.names.join(", ")),
        },
    ))
}

/// Prints attempts as they are made.
struct Table {
    has_colour: bool,
}

impl Table {
    fn new() -> Self {
        Self {
            has_colour: stdout().is_terminal(),
        }
    }

    fn head(&self) {
        println!(
            "{:<8} {:<44} {:<35} {:<8} {:<8} reason",
            "who", "client", "destination", "expected", "got"
        );
    }

    /// Makes an attempt and prints its line; false if the verdict was wrong.
    fn row(&mut self, agent: &Agent, workload: &Workload, attempt: &Attempt) -> Result<bool> {
        if interrupt::requested() {
            bail!("interrupted");
        }
        let (got, output) = run(workload, attempt)?;
        let is_right = got == attempt.allowed;
        let reason = reason(agent, attempt, got)?;
        let who = match attempt.who {
            Who::Node => "node",
            Who::Other => "other",
            Who::Outside => "outside",
        };
        let word = |allowed: bool| if allowed { "allowed" } else { "denied" };
        let mark = match (self.has_colour, is_right, got) {
            (false, ..) => "",
            (true, false, _) => "\x1b[7;31m",
            (true, true, true) => "\x1b[32m",
            (true, true, false) => "\x1b[33m",
        };
        let reset = if self.has_colour { "\x1b[0m" } else { "" };
        println!(
            "{who:<8} {:<44} {:<35} {:<8} {mark}{:<8}{reset} {reason}",
            attempt.client.join(" "),
            attempt.about,
            word(attempt.allowed),
            word(got),
        );
        if !is_right {
            println!("         UNEXPECTED: {}", output.shown().trim());
        }
        stdout().flush().context("cannot print")?;
        Ok(is_right)
    }
}
