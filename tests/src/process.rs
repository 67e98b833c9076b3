//! Programs that run somewhere: in a namespace, in a cgroup, for a limited time.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead as _, BufReader, Read},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::interrupt;

/// Where a program runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// File of the network namespace.
    pub namespace: PathBuf,
    /// Path of the cgroup.
    pub cgroup: PathBuf,
}

impl Place {
    /// A command that joins the cgroup, then the namespace, then becomes `program`; its pid stays the same.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(
                "cgroup=$1; namespace=$2; shift 2; echo $$ >\"$cgroup/cgroup.procs\" && \
                 exec nsenter --net=\"$namespace\" -- \"$@\"",
            )
            .arg("sh")
            .arg(&self.cgroup)
            .arg(&self.namespace)
            .arg(program)
            .stdin(Stdio::null())
            // ctrl-c is for us: the guards end what we started.
            .process_group(0);
        command
    }
}

/// Output of a program, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Exit code; `None` if a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Everything in one text, for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        let signal = self.status.signal();
        let end = self.code().map_or_else(
            || format!("signal {}", signal.unwrap_or_default()),
            |code| format!("exit status {code}"),
        );
        format!("{end}\n{}{}", self.stdout, self.stderr)
    }
}

/// Runs a command to its end, but no longer than `limit`.
///
/// # Errors
///
/// It cannot be started, does not end in time, or we are asked to end.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    run_unless(command, limit, interrupt::requested)
}

/// As [`run`], for cleaning up: also when we are asked to end.
///
/// # Errors
///
/// It cannot be started or does not end in time.
pub fn run_anyway(command: &mut Command, limit: Duration) -> Result<Output> {
    run_unless(command, limit, || false)
}

fn run_unless(command: &mut Command, limit: Duration, stop: fn() -> bool) -> Result<Output> {
    let name = shown(command);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let status = wait(&mut child, limit, stop).with_context(|| name.clone());
    if status.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let text = |reader: Option<JoinHandle<String>>| {
        reader
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    };
    Ok(Output {
        status: status?,
        stdout: text(stdout),
        stderr: text(stderr),
    })
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks ends the text, which then says enough.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, limit: Duration, stop: fn() -> bool) -> Result<ExitStatus> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait().context("cannot wait")? {
            return Ok(status);
        }
        if stop() {
            bail!("interrupted");
        }
        if Instant::now() >= end {
            bail!("still running after {} s", limit.as_secs_f32());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(OsStr::to_string_lossy));
    // Of our wrapper only what it runs is of interest.
    if words.first().is_some_and(|word| word == "/bin/sh") && words.len() > 6 {
        words.drain(..6);
    }
    words.join(" ")
}

/// A program in the background, killed on drop; its lines are kept.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    errors: PathBuf,
}

impl Running {
    /// Starts a command whose standard error goes to the file `errors`.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(command: &mut Command, errors: &Path) -> Result<Self> {
        let name = shown(command);
        let file = File::options()
            .create(true)
            .append(true)
            .open(errors)
            .with_context(|| format!("cannot write {}", errors.display()))?;
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let reader = child.stdout.take().map(|pipe| {
            let lines = Arc::clone(&lines);
            thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    lines
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(line);
                }
            })
        });
        Ok(Self {
            child,
            name,
            lines,
            reader,
            errors: errors.to_path_buf(),
        })
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lines that it has printed so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Its standard error so far.
    #[must_use]
    pub fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it has printed a line that `wanted` accepts, looking from line number `from` on.
    ///
    /// # Errors
    ///
    /// It ends before, the time is over, or we are asked to end.
    pub fn wait_for_line(
        &mut self,
        from: usize,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            let ended = self.ended();
            if ended.is_some()
                && let Some(reader) = self.reader.take()
            {
                // Its last lines may still be in the pipe.
                let _ = reader.join();
            }
            if let Some(line) = self
                .lines()
                .into_iter()
                .skip(from)
                .find(|line| wanted(line))
            {
                return Ok(line);
            }
            if let Some(status) = ended {
                bail!("{} ended ({status}): {}", self.name, self.errors().trim());
            }
            if interrupt::requested() {
                bail!("interrupted");
            }
            if Instant::now() >= end {
                bail!(
                    "{} did not say what it should; it said {:?}",
                    self.name,
                    self.lines()
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal; one that has ended is left alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            // Not reaped yet, so that the number still is its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits for its end; `None` if it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        wait(&mut self.child, limit, || false).ok()
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
