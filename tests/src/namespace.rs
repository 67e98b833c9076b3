//! Network namespaces.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::leftovers::NAMESPACES;

/// A named network namespace, deleted on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
}

impl Namespace {
    /// Takes charge of a namespace that `ip netns add` has made or is about to make.
    #[must_use]
    pub fn of_name(name: String) -> Self {
        let path = Path::new(NAMESPACES).join(&name);
        Self { name, path }
    }

    /// Name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// File to give to `nsenter --net`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs lines of `ip` commands inside.
    ///
    /// # Errors
    ///
    /// One of them fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        ip(&["-n", &self.name], lines)
    }

    /// Runs a function on a thread of its own that is inside the namespace.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered, or the function fails.
    ///
    /// # Panics
    ///
    /// If the function does.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    let file = File::open(&self.path)
                        .with_context(|| format!("cannot open {}", self.path.display()))?;
                    setns(file, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("cannot enter {}", self.path.display()))?;
                    inside()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Sets values below /proc/sys/net; those that this kernel does not have are skipped if `optional`.
    ///
    /// # Errors
    ///
    /// A value cannot be set.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in values {
                let path = Path::new("/proc/sys/net").join(key);
                std::fs::write(&path, value)
                    .with_context(|| format!("cannot write {value} to {}", path.display()))?;
            }
            Ok(())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.path.exists() {
            return;
        }
        let deleted = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .stdin(Stdio::null())
            .status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("cannot delete namespace {}", self.name);
        }
    }
}

/// Runs lines of `ip` commands in one process.
///
/// # Errors
///
/// One of them fails.
pub fn ip(options: &[&str], lines: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start ip: run `cargo xtask setup`")?;
    child
        .stdin
        .take()
        .context("no pipe to ip")?
        .write_all(lines.as_bytes())
        .context("cannot write to ip")?;
    let output = child.wait_with_output().context("cannot wait for ip")?;
    ensure!(
        output.status.success(),
        "ip {} failed: {}\n{lines}",
        options.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
