//! Checks, their results, and the table at the end.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::Result;
use egress_tests::interrupt;

/// Results of the checks so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    checks: Vec<Check>,
}

#[derive(Debug)]
struct Check {
    name: &'static str,
    took: Duration,
    result: Result<String, String>,
}

/// Prints a progress line.
pub(crate) fn say(line: &str) {
    eprintln!("[e2e-node] {line}");
}

impl Report {
    /// Makes one check. Its findings are in the table; true if it passed.
    ///
    /// # Errors
    ///
    /// We are asked to end: then nothing that follows means anything.
    pub(crate) fn check(
        &mut self,
        name: &'static str,
        check: impl FnOnce() -> Result<String>,
    ) -> Result<bool> {
        say(&format!("{name} ..."));
        let begin = Instant::now();
        let result = check();
        if interrupt::requested() {
            anyhow::bail!("interrupted");
        }
        let check = Check {
            name,
            took: begin.elapsed(),
            result: result.map_err(|error| format!("{error:#}")),
        };
        let (word, text) = check.words();
        say(&format!(
            "{name}: {word} in {:.1} s: {text}",
            check.took.as_secs_f64()
        ));
        self.checks.push(check);
        Ok(self.checks.last().is_some_and(|check| check.result.is_ok()))
    }

    /// How many failed.
    pub(crate) fn failed(&self) -> usize {
        self.checks
            .iter()
            .filter(|check| check.result.is_err())
            .count()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.checks.len()
    }

    /// All of them.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<28} {:<6} {:>6}  {}\n",
            "check", "", "s", "what was seen"
        );
        for check in &self.checks {
            let (word, seen) = check.words();
            let seen = seen.lines().next().unwrap_or_default();
            // A string takes everything.
            let _ = writeln!(
                text,
                "{:<28} {word:<6} {:>6.1}  {seen}",
                check.name,
                check.took.as_secs_f64()
            );
        }
        text
    }
}

impl Check {
    fn words(&self) -> (&'static str, &str) {
        match &self.result {
            Ok(seen) => ("ok", seen),
            Err(why) => ("FAILED", why),
        }
    }
}
