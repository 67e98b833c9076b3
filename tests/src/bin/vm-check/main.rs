//! Runs in the virtual machines of `cargo xtask vm`: the real programs and the real agent on another kernel.
//!
//! Prints lines that xtask reads: `CHECK <name> ok|failed|skipped <details>` and `INSNS <program> <count>`.
//! The initramfs has mounted proc, sys, cgroup2 and bpf, brought up `lo` and inserted veth. The agent is attached
//! to the root cgroup: everything in the guest is judged, the far end of the veth pair too.

use std::{
    env,
    ffi::OsString,
    fs,
    process::{Command, exit},
};

mod agent;
mod far;
mod object;

fn main() {
    match env::args().nth(1).as_deref() {
        Some("far") => {
            if let Err(error) = far::serve() {
                eprintln!("the far end: {error:#}");
            }
            return;
        }
        // Attaches nothing, so that it may run anywhere.
        Some("object") => return object::checks(),
        _ => {}
    }
    // What follows judges all of the machine's traffic.
    if env::var_os("EGRESS_VM_GUEST").is_none() {
        eprintln!("only in a virtual machine of `cargo xtask vm`; `vm-check object` runs anywhere");
        exit(2);
    }
    check("cgroup2_is_mounted", || {
        fs::metadata("/sys/fs/cgroup/cgroup.procs")
            .map(drop)
            .map_err(|error| error.to_string())
    });
    object::checks();
    check("doctor_finds_nothing_missing", || {
        let mut doctor = Command::new(agent::program());
        agent::output(doctor.arg("doctor")).map(drop)
    });
    agent::checks();
}

/// A path from the environment.
fn from_env(name: &str, default: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| default.into())
}

/// Runs one check and prints its result.
fn check(name: &str, body: impl FnOnce() -> Result<(), String>) {
    match body() {
        Ok(()) => println!("CHECK {name} ok"),
        Err(details) => println!("CHECK {name} failed {}", details.replace('\n', "; ")),
    }
}
