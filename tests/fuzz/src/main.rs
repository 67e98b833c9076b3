//! Feeds the parsers of egress-common with random and broken input, on stable Rust.
//!
//! See README.md for the targets, what counts as a finding, and the long runs.

mod dns;
mod packet;
mod rng;

#[path = "../../../egress-common/tests/support/mod.rs"]
mod support;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use egress_common::hash::fnv1a;
use rng::Rng;

/// What is wrong with an input.
#[derive(Debug)]
pub struct Finding(pub String);

/// Something to feed.
pub trait Target: Sync {
    /// Name of the target and of its corpus folder.
    fn name(&self) -> &'static str;
    /// What an input can turn out to be.
    fn classes(&self) -> Vec<String>;
    /// Makes an input.
    fn make(&self, rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8>;
    /// Tries an input: the number of its class, or a finding.
    fn check(&self, input: &[u8]) -> Result<usize, Finding>;
    /// Reasons that the parser under test refuses with.
    fn refusals(&self) -> &'static [&'static str];
    /// With which of them it refuses the input.
    fn refusal(&self, input: &[u8]) -> Option<usize>;
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TargetName {
    /// DNS answers: step machines against hickory-proto.
    Dns,
    /// IPv4 and IPv6 headers: the parser against etherparse.
    Packet,
}

/// Feeds the parsers with random and broken input; exits with 1 and a saved reproducer on a finding.
#[derive(Debug, Parser)]
struct Args {
    /// Inputs to try for each target.
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
    /// Start of the random numbers: the same seed tries the same inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Ends after this many seconds for each target, whatever `--runs` says.
    #[arg(long)]
    seconds: Option<u64>,
    /// What to feed; both when not given.
    #[arg(long)]
    target: Option<TargetName>,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// Tries only these files.
    #[arg(long)]
    reproduce: Vec<PathBuf>,
    /// Saves the first few small inputs of every class to the corpus.
    #[arg(long)]
    grow_corpus: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    let mut is_clean = true;
    if !matches!(args.target, Some(TargetName::Packet)) {
        is_clean &= run_target(&dns::Dns, args)?;
    }
    if !matches!(args.target, Some(TargetName::Dns)) {
        is_clean &= run_target(&packet::Packets, args)?;
    }
    Ok(is_clean)
}

/// Counts of a run, shared by its threads.
struct Counts {
    runs: AtomicU64,
    bytes: AtomicU64,
    classes: Vec<AtomicU64>,
    refusals: Vec<AtomicU64>,
    found: AtomicBool,
    ended: AtomicU64,
}

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read_corpus(target: &dyn Target) -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
    let folder = home().join("corpus").join(target.name());
    let mut files = Vec::new();
    if folder.is_dir() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            files.push(entry?.path());
        }
    }
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((path, bytes))
        })
        .collect()
}

fn try_input(target: &dyn Target, input: &[u8]) -> Result<usize, Finding> {
    catch_unwind(AssertUnwindSafe(|| target.check(input)))
        .unwrap_or_else(|_| Err(Finding("it panicked".to_owned())))
}

fn run_target(target: &dyn Target, args: &Args) -> anyhow::Result<bool> {
    let classes = target.classes();
    if !args.reproduce.is_empty() {
        let mut is_clean = true;
        for path in &args.reproduce {
            let input =
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            match try_input(target, &input) {
                Ok(class) => println!("{}: {} {}", target.name(), path.display(), classes[class]),
                Err(found) => {
                    println!("{}: {} FOUND {}", target.name(), path.display(), found.0);
                    is_clean = false;
                }
            }
        }
        return Ok(is_clean);
    }
    let corpus = read_corpus(target)?;
    let mut is_clean = true;
    for (path, input) in &corpus {
        if let Err(found) = try_input(target, input) {
            println!(
                "{}: corpus file {}: {}",
                target.name(),
                path.display(),
                found.0
            );
            is_clean = false;
        }
    }
    if !is_clean {
        return Ok(false);
    }
    let corpus: Vec<Vec<u8>> = corpus.into_iter().map(|(_, input)| input).collect();
    println!(
        "{}: {} runs, seed {}, {} corpus files, {} thread(s)",
        target.name(),
        args.runs,
        args.seed,
        corpus.len(),
        args.threads
    );
    let counts = Counts {
        runs: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        classes: classes.iter().map(|_| AtomicU64::new(0)).collect(),
        refusals: target
            .refusals()
            .iter()
            .map(|_| AtomicU64::new(0))
            .collect(),
        found: AtomicBool::new(false),
        ended: AtomicU64::new(0),
    };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.threads.max(1))
            .map(|thread| {
                let (counts, corpus) = (&counts, &corpus);
                scope.spawn(move || {
                    let result = work(target, args, thread, corpus, counts, begun);
                    counts.ended.fetch_add(1, Ordering::Relaxed);
                    result
                })
            })
            .collect();
        let mut printed = Instant::now();
        while counts.ended.load(Ordering::Relaxed) < args.threads.max(1) {
            std::thread::sleep(Duration::from_millis(20));
            if printed.elapsed() >= Duration::from_secs(2) {
                printed = Instant::now();
                print_progress(target, args, &counts, begun);
            }
        }
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        anyhow::Ok(())
    })?;
    print_summary(target, &classes, &counts, begun);
    Ok(!counts.found.load(Ordering::Relaxed))
}

/// Inputs between two looks at the clock and additions to the shared counts.
const BATCH: u64 = 256;

fn work(
    target: &dyn Target,
    args: &Args,
    thread: u64,
    corpus: &[Vec<u8>],
    counts: &Counts,
    begun: Instant,
) -> anyhow::Result<()> {
    let limit = args.seconds.map(Duration::from_secs);
    let threads = args.threads.max(1);
    let mut saved = vec![0_u32; counts.classes.len()];
    let mut run = thread;
    while run < args.runs {
        if counts.found.load(Ordering::Relaxed)
            || limit.is_some_and(|limit| begun.elapsed() >= limit)
        {
            return Ok(());
        }
        for _ in 0..BATCH {
            if run >= args.runs {
                break;
            }
            let input = target.make(&mut Rng::of_run(args.seed, run), corpus);
            match try_input(target, &input) {
                Ok(class) => {
                    counts.classes[class].fetch_add(1, Ordering::Relaxed);
                    if let Some(refusal) = target.refusal(&input) {
                        counts.refusals[refusal].fetch_add(1, Ordering::Relaxed);
                    }
                    if args.grow_corpus && saved[class] < 3 && (12..400).contains(&input.len()) {
                        saved[class] += 1;
                        save(&home().join("corpus").join(target.name()), &input)?;
                    }
                }
                Err(found) => {
                    counts.found.store(true, Ordering::Relaxed);
                    let path = save(&home().join("artifacts"), &input)?;
                    println!(
                        "{}: FOUND in run {run} of seed {}: {}\n{} bytes in {}",
                        target.name(),
                        args.seed,
                        found.0,
                        input.len(),
                        path.display()
                    );
                    return Ok(());
                }
            }
            counts.runs.fetch_add(1, Ordering::Relaxed);
            counts
                .bytes
                .fetch_add(input.len() as u64, Ordering::Relaxed);
            run += threads;
        }
    }
    Ok(())
}

fn save(folder: &Path, input: &[u8]) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{:016x}.bin", fnv1a(input)));
    fs::write(&path, input).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn print_progress(target: &dyn Target, args: &Args, counts: &Counts, begun: Instant) {
    let runs = counts.runs.load(Ordering::Relaxed);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{}: {runs} of {} ({:.1} %) in {seconds:.0} s, {:.0}/s",
        target.name(),
        args.runs,
        100.0 * runs as f64 / args.runs.max(1) as f64,
        runs as f64 / seconds
    );
}

fn print_summary(target: &dyn Target, classes: &[String], counts: &Counts, begun: Instant) {
    let runs = counts.runs.load(Ordering::Relaxed);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{}: {runs} inputs, {:.1} MB in {seconds:.1} s: {:.0}/s",
        target.name(),
        counts.bytes.load(Ordering::Relaxed) as f64 / 1e6,
        runs as f64 / seconds
    );
    let share = |count: u64| 100.0 * count as f64 / runs.max(1) as f64;
    for (name, count) in classes.iter().zip(&counts.classes) {
        let count = count.load(Ordering::Relaxed);
        println!("  {name:<22} {count:>10}  {:>6.2} %", share(count));
    }
    println!("  refused by the parser, by reason:");
    for (name, count) in target.refusals().iter().zip(&counts.refusals) {
        let count = count.load(Ordering::Relaxed);
        println!("  {name:<22} {count:>10}  {:>6.2} %", share(count));
    }
}
