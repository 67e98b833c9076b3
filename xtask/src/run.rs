//! Runs tools: where the project is, progress lines, log files, the tail of a log on failure.

use std::{
    cell::Cell,
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{IsTerminal as _, Write as _, stderr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// A stage shorter than this is not worth a line.
const SHORT: Duration = Duration::from_millis(400);
/// No tool is worth waiting for longer than this.
const TOOL_LIMIT: Duration = Duration::from_mins(20);
/// How long a tool may take to clean up after a signal to stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Lines of a failed tool's log that are shown.
const TAIL_LINES: usize = 40;
/// How often a running stage is reported on a terminal, and in a log.
const TICK_TERMINAL: Duration = Duration::from_secs(1);
const TICK_LOG: Duration = Duration::from_secs(20);

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// The folder for everything that is built or fetched.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(
        || root().join("target"),
        |dir| root().join(dir), // an absolute one replaces the root
    )
}

/// `path` as a reader at the workspace's root would write it.
pub(crate) fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// A command at the workspace's root without what `cargo run` has put into the environment.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_")
            || name_text.starts_with("CARGO_MANIFEST_")
            || ["CARGO", "LD_LIBRARY_PATH", "RUST_RECURSION_COUNT"].contains(&name_text.as_ref())
        {
            command.env_remove(&name);
        }
    }
    command
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Standard output of a command that must succeed, trimmed.
///
/// # Errors
///
/// The command cannot be started or fails; its standard error is in the message.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", display(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            display(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Where the program of this name is, looked up in `PATH` and where Debian keeps root's tools.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A step that takes a while: says that it began, that it still runs, and how long it took.
#[derive(Debug)]
pub(crate) struct Stage {
    title: String,
    log: PathBuf,
    begin: Instant,
    announced: Cell<bool>,
    limit: Duration,
}

impl Stage {
    /// Begins a stage whose tools write to `target/logs/<name>.log`.
    ///
    /// # Errors
    ///
    /// The log cannot be created.
    pub(crate) fn begin(name: &str, title: impl Into<String>) -> Result<Self> {
        Self::begin_in("logs", name, title)
    }

    /// Begins a stage whose tools write to `target/<folder>/<name>.log`.
    ///
    /// # Errors
    ///
    /// The log cannot be created.
    pub(crate) fn begin_in(folder: &str, name: &str, title: impl Into<String>) -> Result<Self> {
        let dir = target_dir().join(folder);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let log = dir.join(format!("{name}.log"));
        File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        Ok(Self {
            title: title.into(),
            log,
            begin: Instant::now(),
            announced: Cell::new(false),
            limit: TOOL_LIMIT,
        })
    }

    /// Lets each of its tools take longer than most may.
    pub(crate) fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs one tool of the stage with its output in the log.
    ///
    /// # Errors
    ///
    /// The tool cannot be started or fails: then the end of its log has been printed.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let status = self.status(command)?;
        if !status.success() {
            eprintln!("{}", tail(&self.log));
            bail!(
                "{}: {} failed ({status}); all of its output is in {}",
                self.title,
                Path::new(command.get_program())
                    .file_name()
                    .unwrap_or_default()
                    .display(),
                shown(&self.log)
            );
        }
        Ok(())
    }

    /// Runs one tool of the stage with its output in the log, and returns how it ended.
    ///
    /// # Errors
    ///
    /// The tool cannot be started or takes too long, or we are interrupted.
    pub(crate) fn status(&self, command: &mut Command) -> Result<ExitStatus> {
        let mut log = File::options()
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        writeln!(log, "$ {}", display(command)).context("cannot write the log")?;
        let errors = log.try_clone().context("cannot write the log")?;
        let child = command
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", display(command)))?;
        let terminal = stderr().is_terminal();
        let tick = if terminal { TICK_TERMINAL } else { TICK_LOG };
        let mut reported = Instant::now();
        let status = supervise(child, self.limit, || {
            if !self.announced.get() && self.begin.elapsed() >= SHORT {
                self.announced.set(true);
                say(&format!("{} ...", self.title));
            }
            if reported.elapsed() >= tick {
                reported = Instant::now();
                let line = format!("{} ... {} s", self.title, self.begin.elapsed().as_secs());
                if terminal {
                    eprint!("\r\x1b[K[xtask] {line}");
                } else {
                    say(&line);
                }
            }
        })
        .with_context(|| self.title.clone());
        if terminal {
            eprint!("\r\x1b[K");
        }
        status
    }

    /// Output of the stage's tools up to now.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Where that is.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// For how long the stage has been running.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Says that the stage is done, and how long it took, unless that was no time at all.
    pub(crate) fn done(self) {
        if !self.announced.get() {
            return;
        }
        let seconds = self.begin.elapsed().as_secs_f64();
        say(&format!("{}: done in {seconds:.1} s", self.title));
    }
}

/// Waits for a child that leads its own process group, and ends the group when it takes too long or we are interrupted.
///
/// # Errors
///
/// The child took too long, or we were interrupted.
pub(crate) fn supervise(
    mut child: Child,
    limit: Duration,
    mut tick: impl FnMut(),
) -> Result<ExitStatus> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("cannot wait")? {
            return Ok(status);
        }
        if interrupted() {
            end_group(&mut child);
            bail!("interrupted");
        }
        if begin.elapsed() >= limit {
            end_group(&mut child);
            bail!("not done after {} s, stopped", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
        tick();
    }
}

/// Ends a child and its process group: asks, waits a while, insists.
pub(crate) fn end_group(child: &mut Child) {
    let Ok(group) = i32::try_from(child.id()) else {
        return;
    };
    let group = Pid::from_raw(group);
    let begin = Instant::now();
    let _ = killpg(group, Signal::SIGINT); // it may be gone already
    while begin.elapsed() < STOP_LIMIT && matches!(child.try_wait(), Ok(None)) {
        thread::sleep(Duration::from_millis(20));
    }
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait();
}

/// True after ctrl-c, or another signal that asks us to end.
///
/// From the first call on, the signals only set this: the caller has to check it from time to time.
pub(crate) fn interrupted() -> bool {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let flag = FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // It fails for signals that cannot be caught; these can.
            let _ = signal_hook::flag::register(signal, Arc::clone(&flag));
        }
        flag
    });
    flag.load(Ordering::Relaxed)
}

/// Prints a progress line to standard error.
pub(crate) fn say(line: &str) {
    eprintln!("[xtask] {line}");
}

/// The last lines of a file.
pub(crate) fn tail(file: &Path) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(TAIL_LINES);
    lines.get(first..).unwrap_or_default().join("\n")
}

/// A command line for people; the environment is left out.
fn display(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Writes `bytes` to `path` unless the file holds just that, so that what depends on it stays fresh. True if written.
///
/// # Errors
///
/// The file cannot be written.
pub(crate) fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    // Written aside and renamed: a build that runs at the same time never sees half of it.
    let aside = path.with_extension("new");
    fs::write(&aside, bytes).with_context(|| format!("cannot write {}", aside.display()))?;
    fs::rename(&aside, path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

/// Copies a file by [`write_if_changed`] and keeps its permissions. True if written.
///
/// # Errors
///
/// One of the files cannot be read or written.
pub(crate) fn copy_if_changed(from: &Path, to: &Path) -> Result<bool> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    let changed = write_if_changed(to, &bytes)?;
    let permissions = fs::metadata(from)
        .with_context(|| format!("cannot read {}", from.display()))?
        .permissions();
    fs::set_permissions(to, permissions)
        .with_context(|| format!("cannot write {}", to.display()))?;
    Ok(changed)
}
