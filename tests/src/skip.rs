//! Tests that cannot run here say so.

use std::{env, io::Write as _};

use nix::unistd::Uid;

use crate::programs;

/// Tools without which no world can be built.
const TOOLS: &[&str] = &["ip", "nsenter", "unshare", "taskset", "unbound", "dnsmasq"];
/// Clients that tests of names use. Guests of `cargo xtask vm` have none, and run the bypass suite alone.
const CLIENTS: &[&str] = &["curl", "dig", "openssl", "python3"];

/// A test that needs a world can run; if not, prints the reason.
#[must_use]
pub fn world_ready() -> bool {
    if !Uid::effective().is_root() {
        return skip("needs root");
    }
    let is_guest = env::var_os("EGRESS_VM_GUEST").is_some();
    let clients = if is_guest { &[] } else { CLIENTS };
    for tool in TOOLS.iter().chain(clients) {
        if programs::find(tool).is_none() {
            return skip(&format!("{tool} is missing: run `cargo xtask setup`"));
        }
    }
    if !programs::probe().is_file() {
        return skip("the probe is missing: run `cargo build -p egress-tests`");
    }
    true
}

/// A test that needs a world and the agent can run; if not, prints the reason.
#[must_use]
pub fn ready() -> bool {
    if !world_ready() {
        return false;
    }
    let agent = programs::agent();
    if !agent.is_file() {
        return skip(&format!(
            "{} is missing: run `cargo xtask build`",
            agent.display()
        ));
    }
    true
}

/// A test of an upgrade to another layout of the maps can run; if not, prints the reason.
#[must_use]
pub fn upgrade_ready() -> bool {
    if !ready() {
        return false;
    }
    let next = programs::next_agent();
    if !next.is_file() {
        return skip(&format!(
            "{} is missing: run `cargo xtask build --next-layout`",
            next.display()
        ));
    }
    true
}

/// Prints why this test does not run, past libtest's capture; always false.
pub fn skip(reason: &str) -> bool {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("test");
    // Not eprintln: the runner counts these lines, also those of passed tests.
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {reason}");
    false
}

/// The user asked for a run with fewer repetitions (`cargo xtask test --quick`).
#[must_use]
pub fn is_quick() -> bool {
    env::var_os("EGRESS_TEST_QUICK").is_some()
}
