//! Loads the object by itself, for the verifier's judgement of it.

use std::fs;

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError},
    util::KernelVersion,
};

use crate::{check, from_env};

/// Lines of a verifier log that are shown.
const LOG_LINES: usize = 60;
/// Parts of the lines after the verifier's reason.
const STATISTICS: [&str; 4] = [
    "processed ",
    "stack depth ",
    "verification time ",
    "subprog ",
];

/// Loads each program.
pub(crate) fn checks() {
    match load_object(VerifierLogLevel::STATS) {
        Ok(mut ebpf) => {
            for (name, program) in ebpf.programs_mut() {
                check(&format!("program_loads:{name}"), || load(name, program));
            }
        }
        Err(error) => println!("CHECK object_loads failed {error}"),
    }
}

/// Reads the object and creates its maps, which the kernel checks.
fn load_object(level: VerifierLogLevel) -> Result<Ebpf, String> {
    let path = from_env("EGRESS_EBPF_OBJECT", "/egress-ebpf");
    let object = fs::read(path).map_err(|error| error.to_string())?;
    let kernel = KernelVersion::current().map_err(|error| error.to_string())?;
    let coarse_clock = u8::from(kernel >= KernelVersion::new(5, 11, 0));
    EbpfLoader::new()
        .verifier_log_level(level)
        .override_global("COARSE_CLOCK", &coarse_clock, true)
        .load(&object)
        .map_err(|error| chain(&error).replace('\n', "; "))
}

/// Loads one program and prints how many instructions the verifier looked at; its log goes to the console.
fn load(name: &str, program: &mut Program) -> Result<(), String> {
    if let Err(error) = load_as_its_type(program) {
        let ProgramError::LoadError { verifier_log, .. } = &error else {
            return Err(chain(&error));
        };
        let statistics = verifier_log.to_string();
        // The whole log of such a program is hundreds of megabytes.
        if statistics.contains("processed 1000001 insns") {
            return Err("more than 1000000 instructions to verify".to_owned());
        }
        return Err(why_refused(name)?);
    }
    // Kernels report it since 5.16.
    if let Some(count) = program
        .info()
        .ok()
        .and_then(|info| info.verified_instruction_count())
    {
        println!("INSNS {name} {count}");
    }
    Ok(())
}

/// Loads a program of one of our types.
fn load_as_its_type(program: &mut Program) -> Result<(), ProgramError> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "we have four types of aya's thirty"
    )]
    match program {
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Loads a refused program once more for the verifier's log: its end goes to the console, the reason is returned.
fn why_refused(name: &str) -> Result<String, String> {
    let mut ebpf = load_object(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)?;
    let program = ebpf.program_mut(name).ok_or("not in the object")?;
    let Err(ProgramError::LoadError { verifier_log, .. }) = load_as_its_type(program) else {
        return Ok("loads when tried again".to_owned());
    };
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
    Ok(format!("{reason} (log on the console)"))
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
