//! Runs in the virtual machines of `cargo xtask vm`: the real agent on another kernel.
//!
//! Prints lines that xtask reads: `CHECK <name> ok|failed|skipped <details>` and `INSNS <program> <count>`.
//! The initramfs has mounted proc, sys, cgroup2 and bpf, brought up `lo` and inserted veth.

use std::{env, fs, process::Command};

fn main() {
    check("cgroup2_is_mounted", || {
        fs::metadata("/sys/fs/cgroup/cgroup.procs")
            .map(drop)
            .map_err(|error| error.to_string())
    });
    check("doctor_finds_nothing_missing", || {
        let agent = env::var_os("EGRESS_AGENT").unwrap_or_else(|| "/bin/egress-agent".into());
        let output = Command::new(agent)
            .arg("doctor")
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).replace('\n', "; ");
        let complained = String::from_utf8_lossy(&output.stderr).replace('\n', "; ");
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("{}: {said} {complained}", output.status))
        }
    });
}

/// Runs one check and prints its result.
fn check(name: &str, body: impl FnOnce() -> Result<(), String>) {
    match body() {
        Ok(()) => println!("CHECK {name} ok"),
        Err(details) => println!("CHECK {name} failed {details}"),
    }
}
