//! The nftables peers: a firewall with sets, without us.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{namespace::Namespace, process, programs, zone};

use crate::{client::SINK_COUNT, serve::HELLO_PORT, wire};

/// Family, table and set that hold learned addresses; dnsmasq and the snooper add to it.
pub(crate) const TABLE: &str = "egress_bench";
/// See [`TABLE`].
pub(crate) const SET: &str = "learned";

/// The rules that the node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// None.
    None,
    /// Addresses of a set with timeouts pass.
    Set,
    /// Packets of tracked connections pass before the set is asked.
    Tracked,
    /// As `Set`, but empty at first.
    EmptySet,
}

/// Writes and loads rules in one namespace.
#[derive(Debug)]
pub(crate) struct Nft {
    dir: PathBuf,
    loaded: Rules,
}

impl Nft {
    /// Nothing is loaded yet.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            loaded: Rules::None,
        }
    }

    /// Makes these the rules of the node.
    ///
    /// # Errors
    ///
    /// nft refuses.
    pub(crate) fn load(&mut self, node: &Namespace, rules: Rules) -> Result<()> {
        if rules == self.loaded {
            return Ok(());
        }
        self.load_anew(node, rules)
    }

    /// As [`Nft::load`], also where they are loaded: sets lose what was added to them.
    ///
    /// # Errors
    ///
    /// nft refuses.
    pub(crate) fn load_anew(&mut self, node: &Namespace, rules: Rules) -> Result<()> {
        run(node, &self.dir, &format!("flush ruleset\n{}", text(rules)))?;
        self.loaded = rules;
        Ok(())
    }
}

/// Drops at the far side what goes to the sink, but for the first datagram of an established flow.
///
/// # Errors
///
/// nft refuses.
pub(crate) fn sink(far: &Namespace, dir: &Path) -> Result<()> {
    let text = format!(
        "table ip {TABLE} {{ chain sink {{ type filter hook prerouting priority raw;\n\
         iifname \"sink0\" udp dport {HELLO_PORT} @th,64,8 0x68 accept\n\
         iifname \"sink0\" meta l4proto udp drop\n}}\n}}\n"
    );
    run(far, dir, &text)
}

/// How many addresses the set holds.
///
/// # Errors
///
/// nft refuses.
pub(crate) fn in_set(node: &Namespace) -> Result<u64> {
    let listed = run_with(node, &["list", "set", "inet", TABLE, SET])?;
    Ok(listed.matches("expires").count() as u64)
}

fn run(namespace: &Namespace, dir: &Path, text: &str) -> Result<()> {
    let path = dir.join("rules.nft");
    fs::write(&path, text).context("cannot write rules")?;
    run_with(namespace, &["-f", &path.to_string_lossy()])?;
    Ok(())
}

fn run_with(namespace: &Namespace, args: &[&str]) -> Result<String> {
    let nft = programs::find("nft").context("nft is missing: run `cargo xtask setup`")?;
    let mut command = std::process::Command::new("nsenter");
    command
        .arg(format!("--net={}", namespace.path().display()))
        .arg("--")
        .arg(nft)
        .args(args);
    let output = process::run(&mut command, Duration::from_secs(60))?;
    ensure!(output.code() == Some(0), "nft: {}", output.shown());
    Ok(output.stdout)
}

fn text(rules: Rules) -> String {
    if rules == Rules::None {
        return String::new();
    }
    let mut elements = String::new();
    if rules != Rules::EmptySet {
        let mut add = |base: Ipv4Addr, count: u32| {
            for number in 0..count {
                let address = Ipv4Addr::from(u32::from(base) + number);
                // Writing to a string cannot fail.
                let _ = write!(elements, "{address}, ");
            }
        };
        add(wire::SINK, SINK_COUNT);
        add(wire::REUSED, 64);
    }
    let elements = match elements.as_str() {
        "" => String::new(),
        some => format!("elements = {{ {some} }}"),
    };
    let tracked = if rules == Rules::Tracked {
        "ct state established,related accept\n"
    } else {
        ""
    };
    format!(
        "table inet {TABLE} {{\n\
         set {SET} {{ type ipv4_addr; flags timeout; timeout 1h; {elements} }}\n\
         chain out {{ type filter hook output priority filter; policy drop;\n{tracked}\
         oifname \"lo\" accept\n\
         ip daddr @{SET} accept\n\
         ip daddr {} udp dport 53 accept\n}}\n}}\n",
        zone::SERVER
    )
}
