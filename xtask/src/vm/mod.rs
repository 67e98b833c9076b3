//! `cargo xtask vm`: the agent on other kernels, attached to the root cgroup there, or under the bypass suite.
//!
//! Debian's cloud kernels boot in QEMU with an initramfs of busybox, the static agent and the static `vm-check` (or the
//! suite), which prints what it found as lines on the second serial port. The first one is the kernel's console.

mod files;
mod payload;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::payload::Payload;
pub(crate) use files::pack;

use crate::{
    build, kernels,
    run::{self, say},
    setup::{self, Group},
};

/// Virtual machines that run at the same time.
const PARALLEL: usize = 2;
/// How often a long run says how far it is.
const SAY_EVERY: Duration = Duration::from_mins(2);

/// Options of `cargo xtask vm`.
#[derive(Args, Debug)]
pub(crate) struct Vm {
    /// Kernel series to try, or `newest`.
    #[arg(long, value_delimiter = ',', default_values = kernels::DEFAULT)]
    pub(crate) kernel: Vec<String>,
    /// Look for newer kernels although some have been fetched.
    #[arg(long)]
    pub(crate) refresh: bool,
    /// Show the console of each virtual machine.
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Use this static agent instead of building one.
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Use this static `vm-check` instead of building one.
    #[arg(long, value_name = "PATH")]
    check: Option<PathBuf>,
    /// Run the bypass suite instead of the checks, or its tests whose name contains FILTER: under emulation the whole of it
    /// takes about an hour for each kernel.
    #[arg(long, value_name = "FILTER", num_args = 0..=1, default_missing_value = "")]
    bypass: Option<String>,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            kernel: kernels::DEFAULT.map(str::to_owned).to_vec(),
            refresh: false,
            verbose: false,
            agent: None,
            check: None,
            bypass: None,
        }
    }
}

impl Vm {
    /// Installs, builds, boots and prints a table.
    ///
    /// # Errors
    ///
    /// A tool fails, or a kernel fails a check.
    pub(crate) fn run(&self) -> Result<()> {
        setup::setup(&[Group::Build, Group::Net, Group::Vm])?;
        let agent = match &self.agent {
            Some(agent) => agent.clone(),
            None => build::build()?,
        };
        let guests = self.guests(&agent)?;
        print!("{}", table(&guests));
        if guests.iter().any(|guest| !guest.good()) {
            bail!(
                "a kernel failed; the consoles are in {}",
                run::shown(&dir())
            );
        }
        Ok(())
    }

    /// Boots every wanted kernel with this agent.
    ///
    /// # Errors
    ///
    /// Kernels cannot be fetched or the initramfs cannot be made. Failures in the guest are in the result.
    pub(crate) fn guests(&self, agent: &Path) -> Result<Vec<Guest>> {
        let payload = match (&self.bypass, &self.check) {
            (Some(filter), _) => Payload::bypass(agent, filter)?,
            (None, Some(check)) => Payload::checks(agent, check.clone()),
            (None, None) => {
                Payload::checks(agent, build::build_static("egress-tests", &["vm-check"])?)
            }
        };
        let wanted = kernels::fetch(&self.kernel, self.refresh)?;
        let results = Mutex::new(Vec::new());
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..PARALLEL {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(wanted) = wanted.get(index) else {
                            return;
                        };
                        let guest = self.guest(wanted, &payload);
                        say(&format!("vm {}: {}", guest.series, guest.summary()));
                        if let Ok(mut results) = results.lock() {
                            results.push((index, guest));
                        }
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_default();
        results.sort_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, guest)| guest).collect())
    }

    /// Boots one kernel, if there is one.
    fn guest(&self, wanted: &kernels::Wanted, payload: &Payload) -> Guest {
        let mut guest = Guest {
            series: wanted.series.clone(),
            ..Guest::default()
        };
        match &wanted.kernel {
            Ok(kernel) => {
                guest.release.clone_from(&kernel.release);
                let mut result = self.boot(kernel, payload, &mut guest);
                if result.is_err() && guest.is_silent() && !run::interrupted() {
                    say(&format!(
                        "vm {}: did not get as far as a check, once more",
                        guest.series
                    ));
                    result = self.boot(kernel, payload, &mut guest);
                }
                guest.trouble = result.err().map(|error| format!("{error:#}"));
            }
            Err(reason) => guest.skipped = Some(reason.clone()),
        }
        guest
    }

    /// Boots one kernel and reads what the guest prints.
    fn boot(&self, kernel: &kernels::Kernel, payload: &Payload, guest: &mut Guest) -> Result<()> {
        let dir = dir().join("run").join(&kernel.release);
        setup::remove_dir(&dir)?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let initramfs = files::initramfs(kernel, payload, &dir)?;
        let console = dir.join("console.log");
        let results = dir.join("results.log");
        let errors = dir.join("qemu.log");
        let errors = File::create(&errors).context("cannot write qemu's log")?;
        let begin = Instant::now();
        let child = run::command("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-smp",
                "1",
                "-cpu",
                processor(&kernel.release),
            ])
            .args(["-m", payload.memory_mib])
            .args(["-display", "none", "-monitor", "none"])
            .args(["-nodefaults", "-no-reboot", "-no-user-config"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-serial")
            .arg(format!("file:{}", results.display()))
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initramfs)
            // A kernel that panics reboots at once, which ends qemu.
            .args([
                "-append",
                "console=ttyS0 panic=-1 loglevel=5 random.trust_cpu=on",
            ])
            .stdout(Stdio::null())
            .stderr(errors)
            .process_group(0)
            .spawn()
            .context("cannot start qemu-system-x86_64: run `cargo xtask setup`")?;
        let mut said = begin;
        let ended = run::supervise(child, payload.limit, || {
            if said.elapsed() > SAY_EVERY {
                said = Instant::now();
                let lines = fs::read(&results).unwrap_or_default();
                let mut so_far = Guest::new(&guest.series, &guest.release);
                so_far.read(&String::from_utf8_lossy(&lines));
                so_far.seconds = begin.elapsed().as_secs_f64();
                say(&format!("vm {}: {} so far", guest.series, so_far.summary()));
            }
        });
        guest.seconds = begin.elapsed().as_secs_f64();
        let lines = fs::read(&results).unwrap_or_default();
        guest.read(&String::from_utf8_lossy(&lines));
        let _ = fs::remove_file(&initramfs); // the next run makes it anew
        if self.verbose || ended.is_err() || !guest.finished {
            eprintln!("{}", run::tail(&console));
        }
        let status = ended?;
        if !status.success() {
            bail!("qemu failed ({status}), see {}", run::shown(&dir));
        }
        if !guest.finished {
            bail!(
                "the guest stopped before its end, see {}",
                run::shown(&console)
            );
        }
        Ok(())
    }
}

/// The emulated processor for a kernel.
///
/// Under qemu 7.2's emulation cmpxchg16b now and then corrupts the flags, and 6.12 crashed in every second boot.
/// Kernels can do without it, but those that allocate socket storage with `kmalloc_nolock`, which needs it.
/// These seldom use it otherwise.
pub(crate) fn processor(release: &str) -> &'static str {
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= (6, 18) => "max",
        _ => "max,-cx16",
    }
}

/// Where everything about virtual machines is kept.
pub(crate) fn dir() -> PathBuf {
    run::target_dir().join("vm")
}

/// Result of a run of one kernel.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    /// The series that was asked for.
    pub(crate) series: String,
    /// The kernel's release.
    pub(crate) release: String,
    /// Names of the checks that passed.
    pub(crate) passed: Vec<String>,
    /// The checks that failed, with the guest's details.
    pub(crate) failed: Vec<String>,
    /// The checks that were skipped, with the reason.
    pub(crate) skips: Vec<String>,
    /// Instructions that the verifier looked at, per program.
    pub(crate) instructions: BTreeMap<String, u64>,
    /// How long boot and run took.
    pub(crate) seconds: f64,
    /// Why there was no run, if so.
    pub(crate) skipped: Option<String>,
    /// Failure of the run itself.
    pub(crate) trouble: Option<String>,
    /// The guest came to its end.
    finished: bool,
}

impl Guest {
    /// A run of a kernel that has shown nothing yet.
    pub(crate) fn new(series: &str, release: &str) -> Self {
        Self {
            series: series.to_owned(),
            release: release.to_owned(),
            ..Self::default()
        }
    }

    /// The run passed; a skipped one counts as passed.
    pub(crate) fn good(&self) -> bool {
        self.skipped.is_some()
            || (self.failed.is_empty() && self.trouble.is_none() && !self.passed.is_empty())
    }

    /// The guest has printed nothing: then the emulated boot itself failed.
    fn is_silent(&self) -> bool {
        self.passed.is_empty() && self.failed.is_empty() && !self.finished
    }

    /// Takes in the lines that the guest printed:
    /// `CHECK name ok|failed|skipped details`, `INSNS program count`, `END`, and libtest's `test name ... ok|FAILED`.
    pub(crate) fn read(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.trim().splitn(4, ' ');
            let mut word = || words.next().unwrap_or_default();
            let (kind, name, value, details) = (word(), word(), word(), word());
            match (kind, value) {
                ("CHECK", "ok") => self.passed.push(name.to_owned()),
                ("CHECK", "skipped") => self.skips.push(format!("{name}: {details}")),
                ("CHECK", _) => self.failed.push(format!("{name}: {details}")),
                ("INSNS", count) => {
                    let count = count.parse().unwrap_or_default();
                    self.instructions.insert(name.to_owned(), count);
                    if count > MOST_INSTRUCTIONS {
                        self.failed.push(format!(
                            "verifier_limit:{name}: {count} instructions, more than half of what the verifier takes"
                        ));
                    }
                }
                ("test", "...") => match details.split_once("SKIPPED ") {
                    Some((_, reason)) => self.skips.push(reason.to_owned()),
                    None if details == "ok" => self.passed.push(name.to_owned()),
                    None if details == "FAILED" => {
                        self.failed.push(format!("{name}: see results.log"));
                    }
                    // Ignored, as everywhere.
                    None => {}
                },
                ("END", _) => self.finished = true,
                _ => {}
            }
        }
    }

    /// The result in a few words.
    fn summary(&self) -> String {
        if let Some(reason) = &self.skipped {
            return format!("skipped, {reason}");
        }
        let mut text = format!(
            "{} passed, {} failed in {:.0} s",
            self.passed.len(),
            self.failed.len(),
            self.seconds
        );
        for failed in self.failed.iter().chain(&self.trouble) {
            let _ = write!(text, "\n        {failed}"); // a string takes everything
        }
        text
    }
}

/// Half of what the verifier takes (`BPF_COMPLEXITY_LIMIT_INSNS`, include/linux/bpf.h): the next compiler may need more.
const MOST_INSTRUCTIONS: u64 = 500_000;

/// All runs as a table.
pub(crate) fn table(guests: &[Guest]) -> String {
    let mut text = format!(
        "{:<8} {:<28} {:>6} {:>6} {:>5}  instructions verified\n",
        "kernel", "release", "passed", "failed", "s"
    );
    for guest in guests {
        let instructions = if guest.instructions.is_empty() {
            "-".to_owned()
        } else {
            let each: Vec<String> = guest
                .instructions
                .iter()
                .map(|(program, count)| format!("{program} {count}"))
                .collect();
            each.join(", ")
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<8} {:<28} {:>6} {:>6} {:>5.0}  {instructions}",
            guest.series,
            guest.release,
            guest.passed.len(),
            guest.failed.len(),
            guest.seconds
        );
        for failed in guest.failed.iter().chain(&guest.trouble) {
            let _ = writeln!(text, "         failed: {failed}");
        }
        for skipped in guest.skips.iter().chain(&guest.skipped) {
            let _ = writeln!(text, "         skipped: {skipped}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_guest_are_read() {
        let mut guest = Guest::default();
        guest.read("CHECK a ok\r\nnoise\nCHECK b failed it broke badly\nINSNS egress 1234\nEND\n");
        assert_eq!(guest.passed, ["a"]);
        assert_eq!(guest.failed, ["b: it broke badly"]);
        assert_eq!(guest.instructions.get("egress"), Some(&1234));
        let failed = guest.failed.len();
        guest.read("INSNS large 500001\n");
        assert_eq!(guest.failed.len(), failed + 1);
        assert!(guest.finished && !guest.good());
    }

    #[test]
    fn lines_of_a_suite_are_read() {
        let mut guest = Guest::default();
        guest.read(
            "test table::a ... ok\ntest table::b ... SKIPPED table::b: no SCTP\nok\ntest table::c ... FAILED\n\
             test table::d ... ignored\n",
        );
        assert_eq!(guest.passed, ["table::a"]);
        assert_eq!(guest.skips, ["table::b: no SCTP"]);
        assert_eq!(guest.failed, ["table::c: see results.log"]);
    }

    #[test]
    fn only_kernels_that_need_cmpxchg16b_get_it() {
        assert_eq!(processor("6.12.107+deb13-cloud-amd64"), "max,-cx16");
        assert_eq!(processor("6.18.15+deb13-cloud-amd64"), "max");
        assert_eq!(processor("7.3.4+deb13-cloud-amd64"), "max");
    }

    #[test]
    fn a_guest_that_checks_nothing_is_not_good() {
        let mut guest = Guest::default();
        guest.read("END\n");
        assert!(!guest.good());
    }
}
