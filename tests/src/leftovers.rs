//! Names of a world's objects, and the removal of those that a killed run left.
//!
//! Everything carries an id `egt-<pid>-<number>` in its name: namespaces,
//! cgroup, temporary folder; the pin folder is `egress-test-<pid>-<number>`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::cgroup;

/// Begins the name of every namespace, cgroup and temporary folder of a test.
pub const PREFIX: &str = "egt-";
/// Begins the name of every pin folder of a test.
pub const PIN_PREFIX: &str = "egress-test-";
/// Where named network namespaces are.
pub const NAMESPACES: &str = "/run/netns";
/// Where bpffs is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Names the parts of one world.
#[derive(Clone, Debug)]
pub struct Id(String);

impl Id {
    /// A new id; the first one of a process removes what dead processes left.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("{}-{number}", std::process::id()))
    }

    /// Name of the cgroup, the temporary folder, and the stem of namespace names.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{PREFIX}{}", self.0)
    }

    /// Name of the namespace with this role.
    #[must_use]
    pub fn namespace(&self, role: &str) -> String {
        format!("{PREFIX}{}-{role}", self.0)
    }

    /// The pin folder.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join(format!("{PIN_PREFIX}{}", self.0))
    }

    /// The temporary folder, created empty and for root only, with a note of who owns it.
    ///
    /// # Errors
    ///
    /// It cannot be created.
    pub fn make_dir(&self) -> io::Result<PathBuf> {
        use std::os::unix::fs::DirBuilderExt as _;
        let dir = std::env::temp_dir().join(self.name());
        fs::DirBuilder::new().mode(0o755).create(&dir)?;
        fs::write(dir.join("owner"), started_at(std::process::id()))?;
        Ok(dir)
    }
}

impl Default for Id {
    fn default() -> Self {
        Self::new()
    }
}

/// When a process started, in the kernel's ticks; empty if there is none.
fn started_at(pid: u32) -> String {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return String::new();
    };
    // The command's name may hold spaces and brackets: count from the last bracket.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19))
        .unwrap_or_default()
        .to_owned()
}

/// The name is one of ours and its owner is dead.
fn is_orphan(name: &str, prefix: &str) -> bool {
    let Some(rest) = name.strip_prefix(prefix) else {
        return false;
    };
    let mut parts = rest.split('-');
    let (Some(Ok(pid)), Some(number)) = (parts.next().map(str::parse::<u32>), parts.next()) else {
        return false;
    };
    let now = started_at(pid);
    if now.is_empty() {
        return true;
    }
    // Another process may have been given the number since.
    let owner = std::env::temp_dir().join(format!("{PREFIX}{pid}-{number}/owner"));
    fs::read_to_string(owner).is_ok_and(|then| then != now)
}

/// The orphans in a folder.
fn orphans(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| is_orphan(&entry.file_name().to_string_lossy(), prefix))
        .map(|entry| entry.path())
        .collect()
}

/// Removes what dead owners left: processes in their cgroups, cgroups, namespaces, pins, folders.
pub fn sweep() {
    if let Ok(root) = cgroup::root() {
        for dir in orphans(&root, PREFIX) {
            cgroup::remove(&dir);
        }
    }
    for path in orphans(Path::new(NAMESPACES), PREFIX) {
        if let Some(name) = path.file_name() {
            // It may be gone by now: another process sweeps as well.
            let _ = Command::new("ip")
                .args(["netns", "delete"])
                .arg(name)
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
    for dir in orphans(Path::new(BPFFS), PIN_PREFIX) {
        let _ = remove_pins(&dir);
    }
    // Last, because the note of the owner lies there.
    for dir in orphans(&std::env::temp_dir(), PREFIX) {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Removes a pin folder; bpffs knows files, links and folders.
///
/// # Errors
///
/// Something in it cannot be removed.
pub fn remove_pins(dir: &Path) -> io::Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// Mounts bpffs where it belongs, unless it is there.
///
/// # Errors
///
/// It cannot be mounted.
pub fn mount_bpffs() -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let there = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    });
    if there {
        return Ok(());
    }
    nix::mount::mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )?;
    Ok(())
}
