//! The cgroup of a command: made, found again when it was left, and removed.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use thiserror::Error;

use super::RunAs;

/// How the cgroups of commands begin.
const PREFIX: &str = "egress-exec-";
/// How often a cgroup is looked at that is to become empty.
const LOOK: Duration = Duration::from_millis(5);
/// Longest time that killed processes may take to go.
const KILLED: Duration = Duration::from_secs(5);

/// Why a command gets no cgroup.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The process is in no cgroup v2.
    #[error(
        "no cgroup v2 is mounted: boot with systemd.unified_cgroup_hierarchy=1, or mount it \
         (`mount -t cgroup2 none DIR`) and give a directory of it with --cgroup"
    )]
    NotMounted,
    /// The process's cgroup is not to be seen here.
    #[error(
        "the cgroup of this process, {0}, is outside of what is mounted here: give one with --cgroup"
    )]
    Outside(String),
    /// The user may not make cgroups.
    #[error(
        "cannot {action} cgroup {}: permission denied; run it with sudo, whose caller the command then runs as",
        path.display()
    )]
    NotRoot {
        /// The step that failed.
        action: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// The cgroup cannot be made, or looked at.
    #[error("cannot {action} cgroup {}", path.display())]
    Io {
        /// The step that failed.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A process that was still there when the command had ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftProcess {
    /// Its number.
    pub pid: i32,
    /// Its command name.
    pub command: String,
}

/// The cgroup of one command. Locked as long as this process, or its watcher, lives.
#[derive(Debug)]
pub struct OwnCgroup {
    path: PathBuf,
    lock: Flock<File>,
    can_leave: bool,
}

impl OwnCgroup {
    /// Makes a cgroup below `parent`, or below that of this process; and removes what was left there by an `exec` whose
    /// watcher was killed as well.
    ///
    /// A user whose own cgroups lie around it could move the command there. So it is made above them.
    ///
    /// # Errors
    ///
    /// There is no cgroup v2, or it cannot be made there.
    pub fn make(parent: Option<&Path>, user: &RunAs) -> Result<Self, CgroupError> {
        let root = crate::workload::cgroup_root().ok_or(CgroupError::NotMounted)?;
        let parent = match parent {
            Some(parent) => fs::canonicalize(parent).map_err(io_error("look at", parent))?,
            None => own_cgroup(&root)?,
        };
        let (parent, can_leave) = out_of_reach(&root, &parent, |path| {
            let Ok(facts) = fs::metadata(path.join("cgroup.procs")) else {
                return false;
            };
            user.may_write(facts.uid(), facts.gid(), facts.mode())
        });
        remove_leftovers(&parent);
        let mut refused = None;
        for number in 0..8 {
            let path = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(io_error("make", &path)(error)),
            }
            let directory = match File::open(&path) {
                Ok(directory) => directory,
                // Another one that begins took it for a leftover already.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error("open", &path)(error)),
            };
            let facts = directory.metadata().map_err(io_error("look at", &path))?;
            let Ok(lock) = Flock::lock(directory, FlockArg::LockExclusiveNonblock) else {
                // Another one that begins takes it for a leftover, and removes it.
                continue;
            };
            match fs::metadata(&path) {
                Ok(now) if now.ino() == facts.ino() => {
                    return Ok(Self {
                        path,
                        lock,
                        can_leave,
                    });
                }
                Ok(_) => {}
                Err(error) => refused = Some(error),
            }
        }
        let source = refused.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into());
        Err(io_error("make", &parent)(source))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory, opened.
    #[must_use]
    pub fn directory(&self) -> &File {
        &self.lock
    }

    /// True if the command's user could move it to another cgroup.
    #[must_use]
    pub const fn can_leave(&self) -> bool {
        self.can_leave
    }

    /// Processes in it.
    #[must_use]
    pub fn processes(&self) -> Vec<LeftProcess> {
        let pids = pids(&self.path).into_iter();
        pids.map(|pid| LeftProcess {
            pid,
            command: command_of(pid),
        })
        .collect()
    }

    /// True if no process is in it any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        is_empty(&self.path)
    }

    /// Asks all that is in it to end.
    pub fn terminate(&self) {
        for pid in pids(&self.path) {
            // One that is gone meanwhile has ended.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Ends all that is in it, and waits until that is done.
    pub fn kill(&self) {
        kill_all(&self.path);
    }

    /// Removes it; nothing may be in it.
    ///
    /// # Errors
    ///
    /// It cannot be removed.
    pub fn remove(self) -> Result<(), CgroupError> {
        remove(&self.path).map_err(io_error("remove", &self.path))
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| {
        let is_refused = source.kind() == io::ErrorKind::PermissionDenied;
        if is_refused && !nix::unistd::Uid::effective().is_root() {
            CgroupError::NotRoot { action, path }
        } else {
            CgroupError::Io {
                action,
                path,
                source,
            }
        }
    }
}

/// The cgroup of this process.
fn own_cgroup(root: &Path) -> Result<PathBuf, CgroupError> {
    let path = Path::new("/proc/self/cgroup");
    let text = fs::read_to_string(path).map_err(io_error("read the list of", path))?;
    let own = unified(&text).ok_or(CgroupError::NotMounted)?;
    // Seen from another cgroup namespace it begins with `/..`.
    if own.split('/').any(|part| part == "..") {
        return Err(CgroupError::Outside(own.to_owned()));
    }
    let path = root.join(own.trim_start_matches('/'));
    if path.join("cgroup.procs").exists() {
        Ok(path)
    } else {
        Err(CgroupError::Outside(own.to_owned()))
    }
}

/// The path in the unified hierarchy, cgroups(7).
fn unified(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The nearest cgroup from which `may_write` gives no way to another one: to move a process, its user writes the
/// `cgroup.procs` of where it goes and of what both lie below (cgroup-v2.rst, "Delegation Containment"). The second is
/// whether there is none.
fn out_of_reach(root: &Path, parent: &Path, may_write: impl Fn(&Path) -> bool) -> (PathBuf, bool) {
    let is_inside = |path: &&Path| path.starts_with(root);
    let highest = parent
        .ancestors()
        .take_while(is_inside)
        .filter(|path| may_write(path))
        .last();
    match highest {
        None => (parent.to_owned(), false),
        Some(highest) if highest == root => (parent.to_owned(), true),
        Some(highest) => (highest.parent().unwrap_or(root).to_owned(), false),
    }
}

/// Ends what an `exec` left that was killed together with its watcher, and removes its cgroup.
fn remove_leftovers(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(directory) = File::open(entry.path()) else {
            continue;
        };
        // An `exec` that lives holds the lock.
        if let Ok(_lock) = Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            tracing::debug!(cgroup = %entry.path().display(), "removing what an earlier exec left");
            let _left = end(&entry.path());
        }
    }
}

/// Kills all that is in a cgroup and removes it.
pub(super) fn end(path: &Path) -> io::Result<()> {
    kill_all(path);
    remove(path)
}

fn kill_all(path: &Path) {
    let end = Instant::now().checked_add(KILLED);
    while !is_empty(path) && end.is_some_and(|end| Instant::now() < end) {
        // From 5.14 on; before, one by one, until nobody is left to make another one.
        if fs::write(path.join("cgroup.kill"), "1").is_err() {
            for pid in pids(path) {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        thread::sleep(LOOK);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let end = Instant::now().checked_add(KILLED);
    loop {
        match remove_tree(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if end.is_none_or(|end| Instant::now() >= end) => return Err(error),
            // A killed process is still on its way out.
            Err(_) => thread::sleep(LOOK),
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    fs::remove_dir(path)
}

fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Processes in a cgroup and below, by id.
fn pids(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(path) {
        pids.extend(self::pids(&child));
    }
    pids
}

/// True if no process is in a cgroup or below; one that is gone is empty too.
fn is_empty(path: &Path) -> bool {
    let events = fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
    !events.lines().any(|line| line == "populated 1")
}

fn command_of(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_in_both_layouts() {
        assert_eq!(
            unified("0::/user.slice/a.scope\n"),
            Some("/user.slice/a.scope")
        );
        assert_eq!(unified("2:memory:/x\n0::/\n"), Some("/"));
        assert_eq!(unified("2:memory:/x\n"), None);
    }

    #[test]
    fn a_command_stays_above_the_cgroups_that_its_user_owns() {
        let root = Path::new("/sys/fs/cgroup");
        let of = |own: &str, writable: &[&str]| {
            let (path, can_leave) = out_of_reach(root, Path::new(own), |path| {
                writable.iter().any(|one| path == Path::new(one))
            });
            (path.display().to_string(), can_leave)
        };
        let manager = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service";
        let terminal = format!("{manager}/app.slice/terminal.scope");
        assert_eq!(of(&terminal, &[]), (terminal.clone(), false));
        assert_eq!(
            of(
                &terminal,
                &[manager, &format!("{manager}/app.slice"), &terminal]
            ),
            (
                "/sys/fs/cgroup/user.slice/user-1000.slice".to_owned(),
                false
            )
        );
        // Everything is the user's: then that is said.
        let inner = "/sys/fs/cgroup/job";
        assert_eq!(
            of(inner, &["/sys/fs/cgroup", inner]),
            (inner.to_owned(), true)
        );
    }
}
