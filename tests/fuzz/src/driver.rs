//! Feeds targets: corpus first, then made-up inputs; counts classes, saves what is found.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use egress_common::hash::fnv1a;

use crate::rng::Rng;

/// An error that an input shows.
#[derive(Debug)]
pub struct Finding(pub String);

/// Something to feed.
pub trait Target: Sync {
    /// Name of the target and of its corpus folder.
    fn name(&self) -> &'static str;
    /// Classes of inputs.
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

/// Options of every run.
#[derive(Args, Debug)]
pub struct Options {
    /// Where the corpus is, and where what is found goes.
    #[arg(skip)]
    pub home: PathBuf,
    /// Inputs to try for each target.
    #[arg(long, default_value_t = 1_000_000)]
    pub runs: u64,
    /// Start of the random numbers: the same seed tries the same inputs.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Ends after this many seconds for each target, whatever `--runs` says.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    pub threads: u64,
    /// Tries only these files.
    #[arg(long)]
    pub reproduce: Vec<PathBuf>,
    /// Saves the first few small inputs of every class to the corpus.
    #[arg(long)]
    pub grow_corpus: bool,
}

/// Counts of a run, shared by its threads.
struct Counts {
    runs: AtomicU64,
    bytes: AtomicU64,
    classes: Vec<AtomicU64>,
    refusals: Vec<AtomicU64>,
    found: AtomicBool,
}

fn read_corpus(target: &dyn Target, home: &Path) -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
    let folder = home.join("corpus").join(target.name());
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

/// Feeds a target; false if something was found.
pub fn run_target(target: &dyn Target, args: &Options) -> anyhow::Result<bool> {
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
    let corpus = read_corpus(target, &args.home)?;
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
    };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.threads.max(1))
            .map(|thread| {
                let (counts, corpus) = (&counts, &corpus);
                scope.spawn(move || work(target, args, thread, corpus, counts, begun))
            })
            .collect();
        let mut printed = Instant::now();
        while workers.iter().any(|worker| !worker.is_finished()) {
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
    args: &Options,
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
                        save(&args.home.join("corpus").join(target.name()), &input)?;
                    }
                }
                Err(found) => {
                    counts.found.store(true, Ordering::Relaxed);
                    let path = save(&args.home.join("artifacts"), &input)?;
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

fn print_progress(target: &dyn Target, args: &Options, counts: &Counts, begun: Instant) {
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
    if !target.refusals().is_empty() {
        println!("  refused by the parser, by reason:");
    }
    for (name, count) in target.refusals().iter().zip(&counts.refusals) {
        let count = count.load(Ordering::Relaxed);
        println!("  {name:<22} {count:>10}  {:>6.2} %", share(count));
    }
}
