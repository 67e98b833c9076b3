//! `cargo xtask test`: sets up, builds, runs every test there is, and counts.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    build, ebpf, faults,
    fuzz::{self, Target},
    kubernetes,
    run::{self, Stage, say},
    setup::{self, Group},
    vm::{self, Vm},
};

/// Targets of the short fuzz run, with their inputs and those of `--quick`.
const FUZZ_RUNS: [(Target, u64, u64); 5] = [
    (Target::Dns, 500_000, 50_000),
    (Target::Packet, 500_000, 50_000),
    (Target::Prog, 10_000, 2_000),
    (Target::Policy, 1_000, 300),
    (Target::Api, 4_000, 1_000),
];
/// The kernels of a run with `--quick`.
const QUICK_KERNELS: [&str; 2] = ["5.10", "newest"];
/// The programs of `tests/` whose tests need namespaces and mostly wait.
const NETNS: &[&str] = &["bypass", "netns"];
/// The one whose tests fill the machine or measure times: one at a time.
const LOAD: &str = "load";
/// The one whose tests need an API server.
const KUBERNETES: &str = "kubernetes";
/// How many tests run side by side where they mostly wait.
const TOGETHER: usize = 3;
/// Skips that are no failure in CI, one `name: reason` per line.
const EXPECTED_SKIPS: &str = ".ci/expected-skips";

/// Options of `cargo xtask test`.
#[derive(Args, Debug)]
pub(crate) struct Test {
    /// Leave out the virtual machines.
    #[arg(long)]
    no_vm: bool,
    /// Also the tests that need a Kubernetes API server, whose first build takes minutes.
    #[arg(long)]
    kubernetes: bool,
    /// Fewer fuzz runs and kernels, and fewer repetitions where a test has many.
    #[arg(long)]
    quick: bool,
    /// Run only tests whose name contains this; neither fuzz runs nor virtual machines.
    filter: Option<String>,
}

impl Test {
    /// Runs everything and prints the table.
    ///
    /// # Errors
    ///
    /// Set-up or build fails, or a test does.
    pub(crate) fn run(&self) -> Result<()> {
        let mut groups = vec![Group::Build, Group::Net];
        if !self.no_vm && self.filter.is_none() {
            groups.push(Group::Vm);
        }
        setup::setup(&groups)?;
        let agent = build::build()?;
        let next = build::build_next()?;

        let mut suites = vec![self.unit()?];
        suites.extend(self.worlds(&agent, &next)?);
        if self.kubernetes {
            suites.push(self.kubernetes(&agent)?);
        }
        if self.filter.is_none() {
            suites.push(self.faults(&agent)?);
            suites.push(self.fuzz()?);
            suites.push(self.vm(&agent)?);
        }
        print!("{}", table(&suites));

        let mut passed: usize = 0;
        let mut failed: usize = 0;
        let mut skipped: usize = 0;
        for suite in &suites {
            passed = passed.saturating_add(suite.passed);
            failed = failed.saturating_add(suite.failed.len());
            skipped = skipped.saturating_add(suite.skipped.len());
        }
        let unexpected = unexpected_skips(&suites);
        let nothing = passed == 0 && failed == 0;
        for name in &unexpected {
            println!("unexpected skip: {name} (not in {EXPECTED_SKIPS})");
        }
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        if nothing {
            bail!("no test ran");
        }
        if failed > 0 || !unexpected.is_empty() {
            bail!(
                "the logs are in {}",
                run::shown(&run::target_dir().join(LOGS))
            );
        }
        Ok(())
    }

    /// Unit, property and documentation tests of the default members.
    fn unit(&self) -> Result<Suite> {
        let mut cargo = self.cargo_test();
        cargo.args(["--", "--show-output"]).args(&self.filter);
        self.libtest("unit", "unit, property and doc tests", &mut cargo)
    }

    /// The worlds in network namespaces: those that mostly wait side by side, then those that load the machine or
    /// measure times, one at a time.
    fn worlds(&self, agent: &Path, next: &Path) -> Result<Vec<Suite>> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(vec![Suite::skipped("netns", "needs root")]);
        }
        let mut suites = Vec::new();
        for (name, title, programs, threads) in [
            ("netns", "tests in network namespaces", NETNS, TOGETHER),
            (LOAD, "tests under load in network namespaces", &[LOAD], 1),
        ] {
            let mut cargo = self.cargo_test();
            cargo.args(["--package", "egress-tests"]);
            if threads > 1 {
                cargo.args(["--lib", "--bins"]);
            }
            for program in programs {
                cargo.args(["--test", program]);
            }
            cargo
                .args(["--", "--show-output", &format!("--test-threads={threads}")])
                .args(&self.filter)
                .env("EGRESS_AGENT", agent)
                .env("EGRESS_AGENT_NEXT", next);
            suites.push(self.libtest(name, title, &mut cargo)?);
        }
        Ok(suites)
    }

    /// Runs the tests of our definitions and manifests against a real API server.
    fn kubernetes(&self, agent: &Path) -> Result<Suite> {
        kubernetes::prepare()?;
        let mut cargo = self.cargo_test();
        // The tests of a module share one server while they overlap.
        cargo
            .args(["--package", "egress-tests", "--test", KUBERNETES])
            .args(["--", "--show-output", &format!("--test-threads={TOGETHER}")])
            .args(&self.filter)
            .env("EGRESS_AGENT", agent);
        self.libtest(KUBERNETES, "tests with a Kubernetes API server", &mut cargo)
    }

    /// Each fault once, and combinations as long as there is time.
    fn faults(&self, agent: &Path) -> Result<Suite> {
        let mut suite = Suite::new("faults");
        if !nix::unistd::geteuid().is_root() {
            return Ok(Suite::skipped("faults", "needs root"));
        }
        let stage = Stage::begin_in(LOGS, "faults", "faults under traffic")?;
        let seconds = if self.quick {
            faults::SECONDS.div_euclid(4)
        } else {
            faults::SECONDS
        };
        let status = stage.status(faults::command(seconds).env("EGRESS_AGENT", agent))?;
        suite.read_rounds(&stage.output(), status);
        if !suite.failed.is_empty() {
            eprintln!("{}", run::tail(stage.log()));
        }
        suite.end(stage);
        Ok(suite)
    }

    /// A short run of every fuzz target.
    fn fuzz(&self) -> Result<Suite> {
        let mut suite = Suite::new("fuzz");
        let stage = Stage::begin_in(LOGS, "fuzz", "fuzz targets")?;
        for (target, runs, quick_runs) in FUZZ_RUNS {
            let name = target.name();
            if target.program() == fuzz::Program::Parsers && !fuzz::manifest().is_file() {
                let reason = "tests/fuzz is not there".to_owned();
                suite.skipped.push((format!("fuzz {name}"), reason));
                continue;
            }
            let runs = if self.quick { quick_runs } else { runs };
            let stage = Stage::begin_in(LOGS, &format!("fuzz-{name}"), format!("fuzz {name}"))?;
            let status = stage.status(&mut fuzz::command(target, runs))?;
            let text = stage.output();
            let skip = text.lines().find_map(|line| line.strip_prefix("SKIPPED "));
            if !status.success() {
                eprintln!("{}", run::tail(stage.log()));
                suite.failed.push(format!("fuzz {name}: {status}"));
            } else if let Some((_, reason)) = skip.and_then(|skip| skip.split_once(": ")) {
                let skip = (format!("fuzz {name}"), reason.to_owned());
                suite.skipped.push(skip);
            } else {
                suite.passed = suite.passed.saturating_add(1);
            }
            stage.done();
        }
        suite.end(stage);
        Ok(suite)
    }

    /// The agent on other kernels.
    fn vm(&self, agent: &Path) -> Result<Suite> {
        if self.no_vm {
            return Ok(Suite::skipped("vm", "--no-vm"));
        }
        let mut vm = Vm::default();
        if self.quick {
            vm.kernel = QUICK_KERNELS.map(str::to_owned).to_vec();
        }
        let stage = Stage::begin_in(LOGS, "vm", "other kernels in virtual machines")?;
        say("other kernels in virtual machines ...");
        let mut suite = Suite::new("vm");
        match vm.guests(agent) {
            Ok(guests) => {
                let text = vm::table(&guests);
                print!("{text}");
                fs::write(stage.log(), text)?;
                for guest in guests {
                    suite.add_guest(guest);
                }
            }
            Err(error) => {
                say(&format!("vm: {error:#}"));
                suite.failed.push(format!("vm: {error:#}"));
            }
        }
        suite.end(stage);
        Ok(suite)
    }

    /// A `cargo test` that goes on after a failure.
    fn cargo_test(&self) -> Command {
        let mut cargo = run::cargo();
        cargo
            .args(["test", "--no-fail-fast"])
            .env("EGRESS_EBPF_OBJECT", ebpf::object());
        if self.quick {
            cargo.env("EGRESS_TEST_QUICK", "1");
        }
        cargo
    }

    /// Runs tests and counts what libtest says about them.
    fn libtest(&self, name: &'static str, title: &str, cargo: &mut Command) -> Result<Suite> {
        let stage = Stage::begin_in(LOGS, name, title)?;
        let status = stage.status(cargo)?;
        let text = stage.output();
        let mut suite = Suite::new(name);
        suite.read(&text, status);
        if suite.failed.is_empty() && suite.passed == 0 && self.filter.is_none() {
            suite.failed.push(format!("{name}: no test ran"));
        }
        if !suite.failed.is_empty() {
            eprintln!("{}", failures(&text, stage.log()));
        }
        suite.end(stage);
        Ok(suite)
    }
}

/// The folder below `target/` for the suites' logs.
const LOGS: &str = "test-logs";

/// Result of a run of one suite.
#[derive(Debug, Default)]
struct Suite {
    name: &'static str,
    passed: usize,
    failed: Vec<String>,
    /// Name and reason.
    skipped: Vec<(String, String)>,
    time: Duration,
}

impl Suite {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// A suite that is not run at all.
    fn skipped(name: &'static str, reason: &str) -> Self {
        let mut suite = Self::new(name);
        suite.skipped.push((name.to_owned(), reason.to_owned()));
        suite
    }

    /// Takes the time and reports the result.
    fn end(&mut self, stage: Stage) {
        self.time = stage.elapsed();
        stage.done();
        say(&format!(
            "{}: {} passed, {} failed, {} skipped",
            self.name,
            self.passed,
            self.failed.len(),
            self.skipped.len()
        ));
    }

    /// Takes in libtest's output: the results of each test program, the names of what failed or was left out.
    fn read(&mut self, text: &str, status: ExitStatus) {
        let mut counted_failed: usize = 0;
        let mut returned_early: usize = 0;
        let mut in_list = false;
        for line in text.lines() {
            if let Some((_, skip)) = line.split_once("SKIPPED ")
                && let Some((name, reason)) = skip.split_once(": ")
            {
                // Printed past libtest's capture, so that it may follow the test's name on the line.
                // The test returns after it, and libtest counts it as passed.
                self.skipped.push((name.to_owned(), reason.to_owned()));
                returned_early = returned_early.saturating_add(1);
            } else if let Some(counts) = line.strip_prefix("test result: ") {
                self.passed = self.passed.saturating_add(count(counts, "passed"));
                counted_failed = counted_failed.saturating_add(count(counts, "failed"));
            } else if let Some(test) = line.strip_prefix("test ") {
                if let Some((name, reason)) = test.split_once(" ... ignored") {
                    let reason = reason.strip_prefix(", ").unwrap_or("ignored");
                    self.skipped.push((name.to_owned(), reason.to_owned()));
                }
            } else if line == "failures:" {
                // Twice: what failed tests have printed follows an empty line, their names follow at once.
                in_list = true;
            } else if let Some(name) = line.strip_prefix("    ").filter(|_| in_list) {
                self.failed.push(name.to_owned());
            } else {
                in_list = false;
            }
        }
        self.passed = self.passed.saturating_sub(returned_early);
        // A crashed test program prints no result.
        while self.failed.len() < counted_failed {
            self.failed.push(format!("a test of {}", self.name));
        }
        if !status.success() && self.failed.is_empty() {
            self.failed
                .push(format!("{}: did not build or crashed", self.name));
        }
    }

    /// Takes in the lines that rounds of faults print: `ok …`, `FAILED …`, `SKIPPED names: reason`.
    fn read_rounds(&mut self, text: &str, status: ExitStatus) {
        for line in text.lines() {
            if line.starts_with("ok ") {
                self.passed = self.passed.saturating_add(1);
            } else if let Some(failed) = line.strip_prefix("FAILED ") {
                self.failed.push(format!("faults {failed}"));
            } else if let Some((names, reason)) = line
                .strip_prefix("SKIPPED ")
                .and_then(|skip| skip.split_once(": "))
            {
                let skip = (format!("faults {names}"), reason.to_owned());
                if !self.skipped.contains(&skip) {
                    self.skipped.push(skip);
                }
            }
        }
        if (!status.success() || self.passed == 0) && self.failed.is_empty() {
            self.failed.push(format!("faults: {status}"));
        }
    }

    /// Takes in the run of one kernel.
    fn add_guest(&mut self, guest: vm::Guest) {
        let kernel = format!("vm {}", guest.series);
        let good = guest.good();
        self.passed = self.passed.saturating_add(guest.passed.len());
        let failed = guest.failed.iter().chain(&guest.trouble);
        let before = self.failed.len();
        self.failed
            .extend(failed.map(|failed| format!("{kernel} {failed}")));
        if !good && self.failed.len() == before {
            self.failed.push(format!("{kernel}: no check ran"));
        }
        for skip in guest.skips {
            let (name, reason) = skip.split_once(": ").unwrap_or((&skip, ""));
            self.skipped
                .push((format!("{kernel} {name}"), reason.to_owned()));
        }
        if let Some(reason) = guest.skipped {
            self.skipped.push((kernel, reason));
        }
    }
}

/// The number before a word in `ok. 5 passed; 0 failed; ...`.
fn count(counts: &str, word: &str) -> usize {
    counts
        .split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
        .unwrap_or(0)
}

/// The part of libtest's output that explains failures, or the end of the log if there is none.
fn failures(text: &str, log: &Path) -> String {
    let mut parts = String::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "failures:" => inside = true,
            _ if line.starts_with("test result: ") => inside = false,
            _ => {}
        }
        if inside {
            let _ = writeln!(parts, "{line}"); // a string takes everything
        }
    }
    if parts.is_empty() {
        parts = run::tail(log);
    }
    parts
}

/// In CI, the skips that nobody has listed as expected.
fn unexpected_skips(suites: &[Suite]) -> Vec<String> {
    if env::var("CI").is_ok_and(|ci| ci != "true") || env::var_os("CI").is_none() {
        return Vec::new();
    }
    let list = fs::read_to_string(run::root().join(EXPECTED_SKIPS)).unwrap_or_default();
    let expected: Vec<&str> = list
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once(": ")?.0))
        .collect();
    suites
        .iter()
        .flat_map(|suite| &suite.skipped)
        .filter(|(name, _)| !expected.contains(&name.as_str()))
        .map(|(name, _)| name.clone())
        .collect()
}

/// The suites as a table, then the tests that failed and those that were skipped.
fn table(suites: &[Suite]) -> String {
    let mut text = format!(
        "\n{:<8} {:>6} {:>6} {:>6} {:>7} {:>6}\n",
        "suite", "ran", "passed", "failed", "skipped", "s"
    );
    // Writing to a string cannot fail.
    for suite in suites {
        let failed = suite.failed.len();
        let _ = writeln!(
            text,
            "{:<8} {:>6} {:>6} {failed:>6} {:>7} {:>6.0}",
            suite.name,
            suite.passed.saturating_add(failed),
            suite.passed,
            suite.skipped.len(),
            suite.time.as_secs_f64(),
        );
    }
    for name in suites.iter().flat_map(|suite| &suite.failed) {
        let _ = writeln!(text, "failed: {name}");
    }
    for (name, reason) in suites.iter().flat_map(|suite| &suite.skipped) {
        let _ = writeln!(text, "skipped: {name}: {reason}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    const TEXT: &str = "
running 4 tests
test a::works ... ok
test a::cannot_here ... SKIPPED a::cannot_here: no netem in this kernel
ok
test a::breaks ... FAILED
test a::slow ... ignored, takes an hour

successes:

---- a::works stdout ----
some output

failures:

---- a::breaks stdout ----
it broke

failures:
    a::breaks

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s
";

    #[test]
    fn libtest_output_is_counted_over_all_programs() {
        let mut suite = Suite::new("unit");
        suite.read(TEXT, ExitStatus::from_raw(101 << 8));
        assert_eq!(suite.passed, 4);
        assert_eq!(suite.failed, ["a::breaks"]);
        let skipped = [
            ("a::cannot_here", "no netem in this kernel"),
            ("a::slow", "takes an hour"),
        ];
        assert_eq!(
            suite.skipped,
            skipped.map(|(name, reason)| (name.to_owned(), reason.to_owned()))
        );
    }

    #[test]
    fn a_program_that_prints_no_result_has_failed() {
        let mut suite = Suite::new("unit");
        suite.read("error: could not compile", ExitStatus::from_raw(101 << 8));
        assert_eq!(suite.failed, ["unit: did not build or crashed"]);
    }

    #[test]
    fn rounds_of_faults_are_counted() {
        let mut suite = Suite::new("faults");
        let text = "seed 7\nSKIPPED memory: no controller\nok     round 0 kill\nFAILED round 1 (stop): lost\n\
                    SKIPPED memory: no controller\nok     round 2 pins\n";
        suite.read_rounds(text, ExitStatus::from_raw(1 << 8));
        assert_eq!(suite.passed, 2);
        assert_eq!(suite.failed, ["faults round 1 (stop): lost"]);
        assert_eq!(suite.skipped.len(), 1);
        let mut crashed = Suite::new("faults");
        crashed.read_rounds("seed 7\n", ExitStatus::from_raw(101 << 8));
        assert_eq!(crashed.failed.len(), 1);
    }

    #[test]
    fn explanations_of_failures_are_found() {
        let text = failures(TEXT, Path::new("/nonexistent"));
        assert!(text.contains("it broke"));
        assert!(!text.contains("running 1 test"));
    }
}
