//! `cargo xtask faults`: faults of a node, one by one and in random combinations, under traffic.
//!
//! A round injects faults, looks at what the agent says of them, takes them away and looks whether all is well again.
//! Nothing that is allowed may be lost meanwhile, nothing that is forbidden may pass, and `status` has to be true: its
//! exit status and its sentences are those of what was injected, and no others.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a check that is wrong about itself should panic (STYLE §10)"
)]

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow};
use clap::{Parser, ValueEnum as _};
use egress_tests::{interrupt, ready};

mod fault;
mod oracle;
mod random;
mod rig;

use fault::Fault;
use random::Random;
use rig::Rig;

/// So many rounds share a world and its long-lived flows.
const ROUNDS_OF_A_WORLD: u64 = 25;

/// Injects faults into an agent under traffic.
#[derive(Debug, Parser)]
#[command(name = "faults")]
struct Cli {
    /// No combination begins later; before them each fault has a round of its own.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Start of the random numbers: the same seed makes the same rounds [default: the time].
    #[arg(long)]
    seed: Option<u64>,
    /// Only this round of the seed, in a world of its own.
    #[arg(long)]
    round: Option<u64>,
    /// Only these faults, singly and combined; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Fault>,
    /// Print the faults and what they are.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for fault in Fault::value_variants() {
            println!("{:<14} {}", fault.name(), fault.words());
        }
        return ExitCode::SUCCESS;
    }
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Result of the rounds.
#[derive(Debug, Default)]
struct Tally {
    rounds: u64,
    failed: u64,
    operations: u64,
    forbidden: u64,
    excused: u64,
    /// How often each was injected, and the longest until all was well after it.
    faults: BTreeMap<&'static str, (u64, Duration)>,
}

fn run(cli: &Cli) -> Result<bool> {
    if !ready() {
        return Ok(true);
    }
    interrupt::catch().context("cannot catch signals")?;
    let all = if cli.only.is_empty() {
        Fault::value_variants()
    } else {
        &cli.only
    };
    let seed = cli.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs())
    });
    println!("seed {seed}");
    let end = Instant::now() + Duration::from_secs(cli.seconds);
    let mut tally = Tally::default();
    let mut rig: Option<Rig> = None;
    let rounds = cli.round.map_or(0..u64::MAX, |round| round..round + 1);
    for round in rounds {
        let is_over = Instant::now() >= end && round >= all.len() as u64 && cli.round.is_none();
        if interrupt::requested() || is_over {
            break;
        }
        if round % ROUNDS_OF_A_WORLD == 0 {
            rig = None;
        }
        let mut random = Random::new(seed, round);
        let faults = fault::of_round(all, round, &mut random);
        let names: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
        let names = names.join(" + ");
        let began = Instant::now();
        let rig_of_round = match &mut rig {
            Some(rig) => rig,
            None => rig.insert(Rig::new().context("no world for the faults")?),
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            oracle::round(rig_of_round, &faults, &mut random)
        }));
        let result = result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(anyhow!("{}", text.unwrap_or_default()))
        });
        if interrupt::requested() {
            break;
        }
        tally.rounds += 1;
        match result {
            Ok(report) => {
                tally.operations += report.operations;
                tally.forbidden += report.forbidden;
                tally.excused += report.excused;
                for fault in &faults {
                    let (times, longest) = tally.faults.entry(fault.name()).or_default();
                    *times += 1;
                    *longest = report.well_after.max(*longest);
                }
                println!(
                    "ok     round {round:<4} {:4.1} s, well after {:4.1} s, {} operations: {names}",
                    began.elapsed().as_secs_f64(),
                    report.well_after.as_secs_f64(),
                    report.operations + report.forbidden
                );
            }
            Err(error) => {
                tally.failed += 1;
                println!(
                    "FAILED round {round} ({names}), again with --seed {seed} --round {round}: {error:#}"
                );
                if let Some(rig) = &mut rig {
                    rig.heal_all();
                    eprintln!("--- the agent's log, its end:\n{}", rig.log());
                }
                rig = None;
            }
        }
    }
    // Its guards look at what is left behind.
    drop(rig);
    report(&tally);
    Ok(tally.failed == 0 && tally.rounds > 0)
}

fn report(tally: &Tally) {
    println!("\n{:<14} {:>6} {:>16}", "fault", "times", "well after, s");
    for (name, (times, longest)) in &tally.faults {
        println!("{name:<14} {times:>6} {:>16.1}", longest.as_secs_f64());
    }
    println!(
        "{} rounds, {} failed; {} allowed operations, 0 lost in rounds that passed ({} timed out while a link was down); \
         {} forbidden attempts, 0 passed",
        tally.rounds, tally.failed, tally.operations, tally.excused, tally.forbidden
    );
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// A source file below this folder has a function of this name, or is a module of it.
    fn has(folder: &Path, name: &str) -> bool {
        let entries = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        entries.into_iter().any(|path| {
            if path.is_dir() {
                return path
                    .file_name()
                    .is_some_and(|it| it != "target" && it != "corpus")
                    && has(&path, name);
            }
            if path.extension().is_none_or(|it| it != "rs") {
                return false;
            }
            path.file_stem().is_some_and(|stem| stem == name)
                || fs::read_to_string(&path)
                    .unwrap()
                    .contains(&format!("fn {name}("))
        })
    }

    #[test]
    fn every_promise_names_tests_that_there_are() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let page = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
        let promises = page
            .lines()
            .skip_while(|line| *line != "| --- | --- |")
            .skip(1);
        let promises: Vec<&str> = promises.take_while(|line| line.starts_with('|')).collect();
        assert!(promises.len() > 10, "{promises:?}");
        let mut faults = Vec::new();
        for promise in &promises {
            let tests = promise.split('|').nth(2).unwrap();
            let (tests, of_line) = match tests.split_once("fault") {
                Some((tests, faults)) => (tests, faults),
                None => (tests, ""),
            };
            faults.extend(of_line.split('`').skip(1).step_by(2));
            for test in tests
                .split('`')
                .skip(1)
                .step_by(2)
                .filter(|test| !test.starts_with("xtask"))
            {
                let last = test.rsplit([' ', ':']).next().unwrap();
                let name = match last {
                    "*" => test
                        .trim_end_matches("::*")
                        .rsplit([' ', ':'])
                        .next()
                        .unwrap(),
                    "tests" => test
                        .trim_end_matches("::tests")
                        .rsplit([' ', ':'])
                        .next()
                        .unwrap(),
                    name => name,
                };
                // Checks in virtual machines have names with a colon in one word.
                let name = if test.starts_with("sleep:") {
                    "sleep"
                } else {
                    name
                };
                let folders = ["tests/tests", "tests/src/bin/vm-check", "egress-agent/src"]
                    .map(|folder| root.join(folder));
                assert!(
                    folders.iter().any(|folder| has(folder, name)),
                    "{test} is nowhere"
                );
            }
        }
        for fault in Fault::value_variants() {
            assert!(
                faults.contains(&fault.name()),
                "no promise names the fault {}",
                fault.name()
            );
        }
    }

    #[test]
    fn a_seed_makes_the_same_rounds() {
        let all = Fault::value_variants();
        for round in 0..200 {
            let faults = fault::of_round(all, round, &mut Random::new(7, round));
            assert_eq!(
                faults,
                fault::of_round(all, round, &mut Random::new(7, round))
            );
            assert!(!faults.is_empty() && faults.len() <= 3);
        }
    }
}
