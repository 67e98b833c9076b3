//! Signals, the terminal, and how the command ends.
//!
//! The command stays in the process group of `exec`. So what a terminal sends (Ctrl-C, Ctrl-Z, a hang-up) reaches it
//! from the terminal itself, a pipeline stays one job, and the terminal's foreground group need not change. Passed on is
//! what somebody sends to `exec` alone.

use std::{fs::File, io};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        signalfd::{SfdFlags, SignalFd, siginfo},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp},
};
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::{Ended, OwnCgroup, process::readable};

/// Signals that are passed on to the command.
const PASSED_ON: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
];
/// Those of them that end a wait for what the command left.
const END: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];

/// Signals cannot be waited for.
#[derive(Debug, Error)]
#[error("cannot {action}")]
pub struct SignalsError {
    action: &'static str,
    #[source]
    source: io::Error,
}

fn failed(action: &'static str) -> impl FnOnce(Errno) -> SignalsError {
    move |errno| SignalsError {
        action,
        source: errno.into(),
    }
}

/// Signals to this process, which wait until they are read.
#[derive(Debug)]
pub struct Signals {
    mask: SigSet,
}

impl Signals {
    /// Holds signals back, for threads that begin later too.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn hold() -> Result<Self, SignalsError> {
        let mut mask = SigSet::empty();
        for signal in PASSED_ON {
            mask.add(signal);
        }
        mask.add(Signal::SIGCHLD);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)
            .map_err(failed("hold signals back"))?;
        Ok(Self { mask })
    }

    /// Begins to read them; needs a runtime.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn read(&self) -> Result<AsyncFd<SignalFd>, SignalsError> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&self.mask, flags).map_err(failed("read signals"))?;
        readable(fd).map_err(|source| SignalsError {
            action: "wait for signals",
            source,
        })
    }
}

async fn next(signals: &AsyncFd<SignalFd>) -> io::Result<siginfo> {
    loop {
        let mut guard = signals.readable().await?;
        match guard.get_inner().read_signal() {
            Ok(Some(info)) => return Ok(info),
            Ok(None) => guard.clear_ready(),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn signal_of(info: &siginfo) -> Option<Signal> {
    let number = i32::try_from(info.ssi_signo).ok()?;
    Signal::try_from(number).ok()
}

/// True if a signal reaches the command only when it is passed on: the kernel sends the terminal's signals to the whole
/// group, and those that the command sends to its group have reached it already.
fn is_passed_on(info: &siginfo, is_of_command: impl Fn(i32) -> bool) -> bool {
    let is_from_kernel = info.ssi_code > 0;
    let sender = i32::try_from(info.ssi_pid).unwrap_or(0);
    !is_from_kernel && !is_of_command(sender)
}

/// Passes signals on until the command has ended.
///
/// # Errors
///
/// Signals cannot be read; the command is still there.
pub async fn follow(
    signals: &AsyncFd<SignalFd>,
    command: Pid,
    watcher: Pid,
    cgroup: &OwnCgroup,
    terminal: &Terminal,
) -> io::Result<Ended> {
    // It may have ended before anybody read signals.
    if let Some(ended) = look(command, watcher, terminal) {
        return Ok(ended);
    }
    loop {
        let info = next(signals).await?;
        let Some(signal) = signal_of(&info) else {
            continue;
        };
        if signal == Signal::SIGCHLD {
            if let Some(ended) = look(command, watcher, terminal) {
                return Ok(ended);
            }
        } else {
            let is_of_command = |pid| cgroup.processes().iter().any(|process| process.pid == pid);
            if is_passed_on(&info, is_of_command) {
                // It may be gone: then SIGCHLD comes next.
                let _gone = kill(command, signal);
            }
        }
    }
}

/// Waits until somebody wants an end.
pub(crate) async fn wants_end(signals: &AsyncFd<SignalFd>) {
    while let Ok(info) = next(signals).await {
        if signal_of(&info).is_some_and(|signal| END.contains(&signal)) {
            return;
        }
    }
    std::future::pending().await
}

/// Looks at the processes; the command's end, if it has ended.
fn look(command: Pid, watcher: Pid, terminal: &Terminal) -> Option<Ended> {
    if let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
        waitpid(watcher, Some(WaitPidFlag::WNOHANG))
    {
        warn!("the watcher was ended: if this process is killed now, its command goes on unjudged");
    }
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
    match waitpid(command, Some(flags)) {
        Ok(WaitStatus::Exited(_, status)) => Some(Ended::Status(status)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(Ended::Signal(signal as i32)),
        Ok(WaitStatus::Stopped(..)) => {
            terminal.stop_too(command);
            None
        }
        _ => None,
    }
}

/// The terminal of this process, if it has one.
#[derive(Debug)]
pub struct Terminal {
    device: Option<File>,
    has_foreground: bool,
}

impl Terminal {
    /// Remembers whether this process is in the foreground.
    #[must_use]
    pub fn of_this_process() -> Self {
        let device = File::options().read(true).write(true).open("/dev/tty").ok();
        let foreground = device.as_ref().and_then(|device| tcgetpgrp(device).ok());
        Self {
            has_foreground: foreground == Some(getpgrp()),
            device,
        }
    }

    /// The command was stopped: whoever controls the job sees this process, which stops with it and continues it.
    fn stop_too(&self, command: Pid) {
        if self.device.is_none() {
            // Nobody has jobs here; whoever stopped it will continue it.
            return;
        }
        if kill(Pid::this(), Signal::SIGSTOP).is_ok() {
            let _gone = kill(command, Signal::SIGCONT);
        }
    }

    /// Takes the foreground back from a command that kept it, as shells do that are killed.
    pub fn take_back(&self) {
        let Some(device) = &self.device else { return };
        if !self.has_foreground || tcgetpgrp(device) == Ok(getpgrp()) {
            return;
        }
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTTOU);
        // The kernel stops a background process that takes the terminal, unless this signal is blocked.
        let _held = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None);
        let _taken = tcsetpgrp(device, getpgrp());
        let _passed = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&mask), None);
    }
}
