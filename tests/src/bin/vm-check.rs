//! Runs in the virtual machines of `cargo xtask vm`: the real programs and the real agent on another kernel.
//!
//! Prints lines that xtask reads: `CHECK <name> ok|failed|skipped <details>` and `INSNS <program> <count>`.
//! The initramfs has mounted proc, sys, cgroup2 and bpf, brought up `lo` and inserted veth.

use std::{env, ffi::OsString, fs, process::Command};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError},
    util::KernelVersion,
};

/// Lines of a verifier log that are shown.
const LOG_LINES: usize = 60;
/// What lines after the verifier's reason have in them.
const STATISTICS: [&str; 4] = [
    "processed ",
    "stack depth ",
    "verification time ",
    "subprog ",
];

fn main() {
    check("cgroup2_is_mounted", || {
        fs::metadata("/sys/fs/cgroup/cgroup.procs")
            .map(drop)
            .map_err(|error| error.to_string())
    });
    match load_object() {
        Ok(mut ebpf) => {
            for (name, program) in ebpf.programs_mut() {
                check(&format!("program_loads:{name}"), || load(name, program));
            }
        }
        Err(error) => println!("CHECK object_loads failed {error}"),
    }
    check("doctor_finds_nothing_missing", || {
        let output = Command::new(from_env("EGRESS_AGENT", "/bin/egress-agent"))
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

/// A path from the environment.
fn from_env(name: &str, default: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| default.into())
}

/// Reads the object and creates its maps, which the kernel checks.
fn load_object() -> Result<Ebpf, String> {
    let path = from_env("EGRESS_EBPF_OBJECT", "/egress-ebpf");
    let object = fs::read(path).map_err(|error| error.to_string())?;
    let kernel = KernelVersion::current().map_err(|error| error.to_string())?;
    let coarse_clock = u8::from(kernel >= KernelVersion::new(5, 11, 0));
    EbpfLoader::new()
        .verifier_log_level(VerifierLogLevel::VERBOSE | VerifierLogLevel::STATS)
        .override_global("COARSE_CLOCK", &coarse_clock, true)
        .load(&object)
        .map_err(|error| chain(&error).replace('\n', "; "))
}

/// Loads one program and prints how many instructions the verifier looked at; its log goes to the console.
fn load(name: &str, program: &mut Program) -> Result<(), String> {
    let loaded = match program {
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        other => return Err(format!("unexpected program type {:?}", other.prog_type())),
    };
    if let Err(error) = loaded {
        if let ProgramError::LoadError { verifier_log, .. } = &error {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.get(lines.len().saturating_sub(LOG_LINES)..);
            eprintln!(
                "verifier log of {name}, its end:\n{}",
                last.unwrap_or_default().join("\n")
            );
            let reason = lines
                .iter()
                .rev()
                .find(|line| !STATISTICS.iter().any(|word| line.contains(word)))
                .unwrap_or(&"no reason given");
            return Err(format!("{reason} (log on the console)"));
        }
        return Err(chain(&error));
    }
    // Told since 5.16.
    if let Some(count) = program
        .info()
        .ok()
        .and_then(|info| info.verified_instruction_count())
    {
        println!("INSNS {name} {count}");
    }
    Ok(())
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Runs one check and prints its result.
fn check(name: &str, body: impl FnOnce() -> Result<(), String>) {
    match body() {
        Ok(()) => println!("CHECK {name} ok"),
        Err(details) => println!("CHECK {name} failed {details}"),
    }
}
