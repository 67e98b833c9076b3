//! The processes: the command, begun inside its cgroup, and the watcher.
#![expect(unsafe_code, reason = "system calls that have no safe form")]

use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        prctl,
        resource::{Resource, getrlimit, rlim_t, setrlimit},
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
        signalfd::SignalFd,
        wait::waitpid,
    },
    unistd::{
        Pid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, execvpe, getppid, pipe2, setgroups,
        setresgid, setresuid, setsid,
    },
};
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

use super::{RunAs, cgroup};

/// `CLONE_INTO_CGROUP`, include/uapi/linux/sched.h; Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Status of a copy that failed before it became anything.
const FAILED: i32 = 125;

/// Variables by which sudo tells a command who called it. This command runs as that user, not by sudo.
const SUDO_VARIABLES: [&str; 4] = ["SUDO_COMMAND", "SUDO_GID", "SUDO_UID", "SUDO_USER"];

/// Why the command did not begin.
#[derive(Debug, Error)]
pub enum StartError {
    /// A word has a zero byte in it.
    #[error("an argument or a variable has a zero byte in it")]
    ZeroByte,
    /// This process has several threads, of which a copy would have one.
    #[error("cannot make a process beside other threads, which is an error of egress-agent")]
    Threads,
    /// The process cannot be made.
    #[error("cannot make a process")]
    Process(#[source] io::Error),
    /// The process was made, and could not become the command's user, or join its cgroup.
    #[error("cannot {step} for the command")]
    Step {
        /// The step that failed.
        step: &'static str,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The program cannot be run.
    #[error("cannot run {program}")]
    Program {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        errno: Errno,
    },
}

impl StartError {
    /// The exit status that shells have for it.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Program {
                errno: Errno::ENOENT,
                ..
            } => 127,
            Self::Program { .. } => 126,
            Self::ZeroByte | Self::Threads | Self::Process(_) | Self::Step { .. } => 125,
        }
    }
}

/// Steps of the copy before it becomes the command, by number: it can say no more.
const STEPS: [&str; 7] = [
    "join the cgroup",
    "set the limits",
    "become the user",
    "give up capabilities",
    "forbid new privileges",
    "end with egress-agent",
    "run the program",
];
const RUN_THE_PROGRAM: usize = 6;

/// A command with everything that it needs, so that its process has little to do.
#[derive(Debug)]
pub struct Prepared {
    words: Vec<CString>,
    environment: Vec<CString>,
    user: RunAs,
    no_new_privileges: bool,
    /// Signals that were blocked when this process began.
    mask: SigSet,
    /// The limit of locked memory then.
    memlock: (rlim_t, rlim_t),
}

impl Prepared {
    /// Takes a command in, with the environment, the blocked signals and the limits that this process has now.
    ///
    /// # Errors
    ///
    /// A word that no program can be given.
    pub fn new(
        words: &[std::ffi::OsString],
        user: RunAs,
        no_new_privileges: bool,
    ) -> Result<Self, StartError> {
        let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_zero| StartError::ZeroByte);
        let own = user.variables();
        let mut environment = Vec::new();
        for (name, value) in std::env::vars_os() {
            let is_own = own.iter().any(|(own, _)| OsStr::new(own) == name);
            let is_of_sudo =
                user.is_other && SUDO_VARIABLES.iter().any(|one| OsStr::new(one) == name);
            if !is_own && !is_of_sudo {
                let mut bytes = name.into_vec();
                bytes.push(b'=');
                bytes.extend_from_slice(value.as_bytes());
                environment.push(text(bytes)?);
            }
        }
        for (name, value) in &own {
            environment.push(text(format!("{name}={value}").into_bytes())?);
        }
        let words = words.iter().map(|word| text(word.as_bytes().to_vec()));
        Ok(Self {
            words: words.collect::<Result<_, _>>()?,
            environment,
            user,
            no_new_privileges,
            mask: SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()),
            memlock: getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or((0, 0)),
        })
    }

    /// Lifts this process's limit of locked memory, by which kernels before 5.11 count maps. The command gets its own
    /// back.
    pub fn lift_memory_limit(&self) {
        // Where it may not be lifted, the kernel says what it has no room for.
        let _kept = setrlimit(Resource::RLIMIT_MEMLOCK, rlim_t::MAX, rlim_t::MAX);
    }

    /// Begins the command inside the cgroup, where it is judged from its first instruction on.
    ///
    /// # Errors
    ///
    /// It did not begin; nothing of it is left.
    pub fn start(&self, cgroup: &File, path: &Path) -> Result<Pid, StartError> {
        let (read, write) =
            pipe2(OFlag::O_CLOEXEC).map_err(|errno| StartError::Process(errno.into()))?;
        let parent = Pid::this();
        let begin = |has_joined: bool| {
            let (step, errno) = self.become_command(parent, path, has_joined);
            let mut message = [0; 8];
            let step = u32::try_from(step).unwrap_or(u32::MAX);
            message[..4].copy_from_slice(&step.to_ne_bytes());
            message[4..].copy_from_slice(&(errno as i32).to_ne_bytes());
            let _told = nix::unistd::write(&write, &message);
            FAILED
        };
        let pid = match copy(Some(cgroup), || begin(true)) {
            // Some containers forbid it.
            Err(StartError::Process(_)) => copy(None, || begin(false))?,
            made => made?,
        };
        drop(write);
        let mut message = [0; 8];
        if File::from(read).read_exact(&mut message).is_err() {
            // Closed without a word: it became the program.
            return Ok(pid);
        }
        let _ended = waitpid(pid, None);
        let [a, b, c, d, e, f, g, h] = message;
        let step = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let errno = Errno::from_raw(i32::from_ne_bytes([e, f, g, h]));
        Err(if step == RUN_THE_PROGRAM {
            let program = self.words.first().map(|word| word.to_string_lossy());
            StartError::Program {
                program: program.unwrap_or_default().into_owned(),
                errno,
            }
        } else {
            StartError::Step {
                step: STEPS.get(step).copied().unwrap_or("begin"),
                errno,
            }
        })
    }

    /// Becomes the command; returns where that failed.
    fn become_command(&self, parent: Pid, cgroup: &Path, has_joined: bool) -> (usize, Errno) {
        let result = self.try_become(parent, cgroup, has_joined);
        match result {
            Ok(never) => match never {},
            Err(failed) => failed,
        }
    }

    fn try_become(
        &self,
        parent: Pid,
        cgroup: &Path,
        has_joined: bool,
    ) -> Result<std::convert::Infallible, (usize, Errno)> {
        let at = |step: usize| move |errno: Errno| (step, errno);
        if !has_joined {
            fs::write(cgroup.join("cgroup.procs"), "0").map_err(|error| (0, errno_of(&error)))?;
        }
        let (soft, hard) = self.memlock;
        setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard).map_err(at(1))?;
        let user = &self.user;
        if user.is_other {
            setgroups(&user.groups).map_err(at(2))?;
            setresgid(user.gid, user.gid, user.gid).map_err(at(2))?;
            setresuid(user.uid, user.uid, user.uid).map_err(at(2))?;
        }
        if !Uid::effective().is_root() {
            clear_ambient_capabilities().map_err(at(3))?;
        }
        if self.no_new_privileges {
            prctl::set_no_new_privs().map_err(at(4))?;
        }
        // The watcher ends all of them; this is for the case that somebody kills both. A change of the user takes it
        // away, so it comes after that.
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(5))?;
        if getppid() != parent {
            return Err((5, Errno::ESRCH));
        }
        default_broken_pipes();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None).map_err(at(6))?;
        let Some(program) = self.words.first() else {
            return Err((6, Errno::ENOENT));
        };
        execvpe(program, &self.words, &self.environment).map_err(at(6))
    }
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// A copy of this process that holds what this process holds, the links of the programs among it. When this process is
/// killed, it ends what is in the cgroup, which is judged until then, and removes the cgroup.
#[derive(Debug)]
pub struct Watcher {
    pid: Pid,
    alive: OwnedFd,
}

impl Watcher {
    /// Starts to watch.
    ///
    /// # Errors
    ///
    /// The process cannot be made.
    pub fn start(cgroup: &Path) -> Result<Self, StartError> {
        let (read, write) =
            pipe2(OFlag::O_CLOEXEC).map_err(|errno| StartError::Process(errno.into()))?;
        let mut ends = Some((read, write));
        let pid = copy(None, || match ends.take() {
            Some((read, write)) => {
                drop(write);
                watch(File::from(read), cgroup)
            }
            None => FAILED,
        })?;
        match ends {
            Some((_read, alive)) => Ok(Self { pid, alive }),
            None => Err(StartError::Threads),
        }
    }

    /// Its number.
    #[must_use]
    pub const fn pid(&self) -> Pid {
        self.pid
    }

    /// Tells it that there is nothing to watch any more, and waits until it is gone.
    pub fn dismiss(self) {
        let _told = File::from(self.alive).write_all(b"!");
        let _ended = waitpid(self.pid, None);
    }
}

/// The watcher's work.
fn watch(mut alive: File, path: &Path) -> i32 {
    // An end of the session or the group of this process does not end the watcher.
    let _own_session = setsid();
    let _named = prctl::set_name(c"egress-watch");
    let _blocked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _in = dup2_stdin(&null);
        let _out = dup2_stdout(&null);
    }
    let mut word = [0];
    if alive.read_exact(&mut word).is_ok() {
        return 0;
    }
    let _err = writeln!(
        io::stderr(),
        "egress-agent exec was killed; ending its command"
    );
    if let Ok(null) = File::open("/dev/null") {
        let _err = dup2_stderr(&null);
    }
    i32::from(cgroup::end(path).is_err())
}

/// `struct clone_args`, clone(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a copy of this process, in a cgroup if one is given, which does this and ends.
fn copy(cgroup: Option<&File>, work: impl FnOnce() -> i32) -> Result<Pid, StartError> {
    if !has_one_thread() {
        return Err(StartError::Threads);
    }
    let mut arguments = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags = CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(u64::MAX);
    }
    let result = match cgroup {
        // SAFETY: the arguments are those of clone(2), without a stack or memory of its own: it is a fork. This process has
        // one thread, so that no lock is held in the copy.
        Some(_) => unsafe {
            libc::syscall(
                libc::SYS_clone3,
                std::ptr::from_ref(&arguments),
                size_of::<CloneArgs>(),
            )
        },
        // SAFETY: this process has one thread, so that no lock is held in the copy.
        None => unsafe { libc::fork() }.into(),
    };
    match result {
        0 => {
            let status = catch_unwind(AssertUnwindSafe(work)).unwrap_or(FAILED);
            // SAFETY: it ends the process. What this process does when it ends is not the copy's to do.
            unsafe { libc::_exit(status) }
        }
        pid if pid > 0 => Ok(Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))),
        _ => Err(StartError::Process(io::Error::last_os_error())),
    }
}

/// True if this process has one thread. One that has just been joined may still be listed.
fn has_one_thread() -> bool {
    for _ in 0..50 {
        let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        if threads == 1 {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Waits for signals; needs a runtime.
pub(super) fn readable(signals: SignalFd) -> io::Result<AsyncFd<SignalFd>> {
    // SAFETY: a `SignalFd` owns one descriptor, which is open as long as it is, and always shows that one.
    unsafe { AsyncFd::register_with_interest(signals, Interest::READABLE) }.map_err(io::Error::from)
}

fn clear_ambient_capabilities() -> Result<(), Errno> {
    let none: libc::c_ulong = 0;
    // SAFETY: the arguments are those of PR_CAP_AMBIENT, which are numbers.
    let result = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
            none,
            none,
            none,
        )
    };
    Errno::result(result).map(drop)
}

/// Rust programs ignore SIGPIPE; others count on it.
fn default_broken_pipes() {
    // SAFETY: the default action runs no code of this process.
    let _before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_run_has_the_status_that_shells_give_it() {
        let of = |errno| {
            StartError::Program {
                program: "x".to_owned(),
                errno,
            }
            .status()
        };
        assert_eq!(of(Errno::ENOENT), 127);
        assert_eq!(of(Errno::EACCES), 126);
        assert_eq!(of(Errno::ENOEXEC), 126);
        let step = StartError::Step {
            step: STEPS[2],
            errno: Errno::EPERM,
        };
        assert_eq!(step.status(), 125);
        assert_eq!(STEPS[RUN_THE_PROGRAM], "run the program");
    }
}
