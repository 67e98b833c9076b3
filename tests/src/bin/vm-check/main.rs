//! Runs in the virtual machines of `cargo xtask vm`: the real programs and the real agent on another kernel.
//!
//! Prints lines that xtask reads: `CHECK <name> ok|failed|skipped <details>` and `INSNS <program> <count>`.
//! The initramfs has mounted proc, sys, cgroup2 and bpf, brought up `lo` and inserted veth. The agent is attached
//! to the root cgroup: everything in the guest is judged, the peer of the veth pair too.

use std::{
    env,
    ffi::OsString,
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    process::{Command, exit},
    time::Duration,
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
        Some("connect") => connect(),
        _ => {}
    }
    // From here on the programs judge all of the machine's traffic.
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
    check("exec_judges_one_command", exec);
    agent::checks();
}

/// Status of a connect that was refused with EPERM.
const REFUSED: i32 = 7;

/// Connects to an address that nobody allowed, and ends with what became of it.
fn connect() -> ! {
    let address = SocketAddr::from(([192, 0, 2, 1], 80));
    match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => exit(REFUSED),
        Err(error) => {
            eprintln!("{error}");
            exit(1)
        }
        Ok(_) => exit(0),
    }
}

/// `exec` loads its programs, which note processes, and attaches them to one cgroup.
fn exec() -> Result<(), String> {
    let own = env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(agent::program())
        .args(["exec", "--allow", "x.example", "--"])
        .arg(own)
        .arg("connect")
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(REFUSED) && said.contains("vm-check (") {
        return Ok(());
    }
    Err(format!("{}: {said}", output.status))
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
