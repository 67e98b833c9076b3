//! The measurements, their order, and the output.

use std::{fs, io::Write as _, path::PathBuf, process::Command, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use egress_tests::{interrupt, programs};
use serde::Serialize;

use crate::{lookups, measure::Row, packets, scale, scene::Scene, table, upkeep};

/// Options of `bench run`.
#[derive(Args, Debug)]
pub(crate) struct Suite {
    /// Fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// What to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Page whose table is replaced.
    #[arg(long, value_name = "PAGE")]
    write: Option<PathBuf>,
    /// Only these parts; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Part>,
}

/// How the report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table.
    #[default]
    Table,
    /// Everything, each round included.
    Json,
}

/// A part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Nanoseconds of single packets.
    Packets,
    /// Connections, streams, datagrams.
    Rates,
    /// Lookups, queries, races.
    Dns,
    /// The programs alone: learned addresses, names, answers.
    Scale,
    /// Reload, memory, CPU.
    Agent,
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Rounds of short measurements.
    pub(crate) rounds: usize,
    /// Packets of one measurement.
    pub(crate) packets: u32,
    /// Milliseconds of one measurement of a rate.
    pub(crate) ms: u64,
    /// Lookups that are followed by a connect at once.
    pub(crate) races: u32,
}

const QUICK: Effort = Effort {
    rounds: 5,
    packets: 10_000,
    ms: 100,
    races: 10_000,
};
const FULL: Effort = Effort {
    rounds: 21,
    packets: 20_000,
    ms: 300,
    races: 200_000,
};

/// Everything that was measured, and where.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Release of the kernel.
    kernel: String,
    /// Model of the CPU.
    cpu: String,
    /// CPUs.
    cores: usize,
    /// Commit of the sources, with a plus if they were changed since.
    commit: String,
    /// Processes that wanted to run when it began and when it ended, averages over a minute.
    load: [f64; 2],
    /// It was a short run.
    quick: bool,
    /// Seconds that it took.
    seconds: f64,
    /// The lines of the table.
    pub(crate) rows: Vec<Row>,
}

impl Report {
    /// Where and how it was measured, as a sentence.
    pub(crate) fn facts(&self) -> String {
        let [before, after] = self.load;
        format!(
            "Linux {}, {}, {} cores, commit {}, {} run of {:.0} s, load {before:.1} to {after:.1}.\n\
             Medians; in brackets where eight of ten rounds were. Change: to the first of \"compared with\".",
            self.kernel,
            self.cpu,
            self.cores,
            self.commit,
            if self.quick { "quick" } else { "full" },
            self.seconds
        )
    }
}

impl Suite {
    pub(crate) fn run(&self) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "the bench makes network namespaces: run `sudo -E env \"PATH=$PATH\" cargo xtask bench`"
            );
        }
        interrupt::catch().context("cannot catch signals")?;
        let begin = Instant::now();
        let load = load();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let effort = if self.quick { QUICK } else { FULL };
        let rows = self.measure(effort)?;
        let report = Report {
            kernel: read("/proc/sys/kernel/osrelease"),
            cpu: cpu_model(),
            cores,
            commit: commit(),
            load: [load, self::load()],
            quick: self.quick,
            seconds: begin.elapsed().as_secs_f64(),
            rows,
        };
        if let Some(page) = &self.write {
            table::write(&report, page)?;
            say(&format!("wrote {}", page.display()));
        }
        let text = match self.output {
            Output::Table => table::text(&report),
            Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        };
        std::io::stdout()
            .write_all(text.as_bytes())
            .context("cannot print")
    }

    fn measure(&self, effort: Effort) -> Result<Vec<Row>> {
        let wants = |part| self.only.is_empty() || self.only.contains(&part);
        let mut rows = Vec::new();
        if wants(Part::Packets) || wants(Part::Rates) || wants(Part::Dns) {
            let mut scene = stage("the world", Scene::new)?;
            if wants(Part::Packets) {
                rows.extend(stage("packets", || packets::packets(&mut scene, effort))?);
                rows.extend(stage("a pod's packets", || packets::of_pod(effort))?);
            }
            if wants(Part::Rates) {
                rows.extend(stage("rates", || packets::rates(&mut scene, effort))?);
            }
            if wants(Part::Dns) {
                rows.extend(stage("dns", || lookups::rows(&mut scene, effort))?);
                rows.extend(stage("queries", || lookups::noted(&mut scene, effort))?);
                // Last, because it fills the map of learned addresses.
                let answers = stage("answers", || lookups::answers(&mut scene, effort))?;
                rows.push(stage("races", || lookups::race(&mut scene, effort.races))?);
                rows.extend(answers);
            }
        }
        if wants(Part::Scale) {
            rows.extend(stage("programs alone", || scale::rows(effort))?);
        }
        if wants(Part::Agent) {
            rows.extend(stage("agent", || upkeep::rows(effort))?);
        }
        Ok(rows)
    }
}

/// Says what begins, and how long it took.
fn stage<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(&format!("{title} ..."));
    let begin = Instant::now();
    let result = work().with_context(|| format!("{title}: not measured"))?;
    let seconds = begin.elapsed().as_secs_f64();
    say(&format!("{title}: {seconds:.1} s"));
    Ok(result)
}

/// Prints a line of progress.
pub(crate) fn say(line: &str) {
    eprintln!("[bench] {line}");
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn load() -> f64 {
    let text = read("/proc/loadavg");
    let first = text.split(' ').next();
    first.and_then(|one| one.parse().ok()).unwrap_or_default()
}

fn cpu_model() -> String {
    let text = read("/proc/cpuinfo");
    let model = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    model.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git")
            .args(args)
            .current_dir(programs::target_dir().parent()?)
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    match git(&["rev-parse", "--short", "HEAD"]) {
        Some(commit) if changed.is_some_and(|files| !files.is_empty()) => commit + "+",
        Some(commit) => commit,
        None => "unknown".to_owned(),
    }
}
