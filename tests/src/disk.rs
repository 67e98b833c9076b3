//! A small disk of its own, that can be full and can hang.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::stat::{major, minor},
};

use crate::World;

/// Its size: a file system with room for an agent's state.
const BYTES: u64 = 16 << 20;

/// A disk of its own, unmounted on drop.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// Makes it below a world's folder; none where the machine has no loop device.
    ///
    /// # Panics
    ///
    /// If the image or the folder cannot be made.
    #[must_use]
    pub fn new(world: &World) -> Option<Self> {
        let (image, disk) = (world.dir().join("disk.img"), world.dir().join("disk"));
        File::create(&image).unwrap().set_len(BYTES).unwrap();
        fs::create_dir(&disk).unwrap();
        let (image, path) = (image.to_str().unwrap(), disk.to_str().unwrap());
        // Without blocks that only root may use: full is full.
        let is_made = run("mkfs.ext4", &["-q", "-m", "0", image])
            && run("mount", &["-o", "loop", image, path]);
        is_made.then_some(Self(disk))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Mounts it again: none of its files is in memory then.
    ///
    /// # Panics
    ///
    /// If something on it is in use, or it cannot be mounted.
    pub fn mount_again(&self) {
        let path = self.0.to_str().unwrap();
        let image = self.0.with_extension("img");
        assert!(
            run("umount", &[path]) && run("mount", &["-o", "loop", image.to_str().unwrap(), path])
        );
        // Where a process in another mount namespace has it too, mount takes the same device, with what was read of it.
        forget(&self.0);
    }

    /// Reads that a cgroup makes hang until what this returns is dropped. None where the machine has no block controller
    /// of version 1. A process joins by writing itself into [`SlowReads::procs`].
    ///
    /// # Panics
    ///
    /// If the cgroup cannot be made, or takes no limit.
    #[must_use]
    pub fn slow_reads(&self, name: &str) -> Option<SlowReads> {
        let controller = Path::new("/sys/fs/cgroup/blkio");
        if !controller.join("cgroup.procs").is_file() {
            return None;
        }
        let cgroup = controller.join(name);
        fs::create_dir(&cgroup).unwrap();
        let disk = self.0.clone();
        let slow = SlowReads { cgroup, disk };
        slow.begin();
        Some(slow)
    }

    /// Hangs until what this returns is dropped.
    ///
    /// # Panics
    ///
    /// If it cannot be made to hang.
    #[must_use]
    pub fn freeze(&self) -> Frozen {
        assert!(run("fsfreeze", &["-f", self.0.to_str().unwrap()]));
        Frozen(self.0.clone())
    }

    /// Is full until what this returns is dropped.
    ///
    /// # Panics
    ///
    /// If its file cannot be made, or fails for another reason than lack of room.
    #[must_use]
    pub fn fill(&self) -> Full {
        let full = Full(self.0.join("filler"));
        let mut filler = File::create(&full.0).unwrap();
        for bytes in [1 << 16, 1 << 9] {
            loop {
                match filler.write_all(&vec![7; bytes]) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("the disk cannot be filled: {error}"),
                }
            }
        }
        full
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _unmounted = run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

/// A disk hangs.
#[derive(Debug)]
pub struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _thawed = run("fsfreeze", &["-u", self.0.to_str().unwrap()]);
    }
}

/// Reads of a disk hang for a cgroup.
#[derive(Debug)]
pub struct SlowReads {
    cgroup: PathBuf,
    disk: PathBuf,
}

impl SlowReads {
    /// The file that takes processes in.
    #[must_use]
    pub fn procs(&self) -> PathBuf {
        self.cgroup.join("cgroup.procs")
    }

    /// A byte a second is less than any read.
    ///
    /// # Panics
    ///
    /// If the limit cannot be set.
    pub fn begin(&self) {
        self.limit(1).unwrap();
    }

    /// Lets reads go on, those that wait too.
    ///
    /// # Panics
    ///
    /// If the limit cannot be taken away.
    pub fn end(&self) {
        self.limit(0).unwrap();
    }

    fn limit(&self, bytes: u64) -> io::Result<()> {
        let file = self.cgroup.join("blkio.throttle.read_bps_device");
        // Another one after each mount, where others use loop devices too.
        let device = fs::metadata(&self.disk)?.dev();
        let (major, minor) = (major(device), minor(device));
        fs::write(file, format!("{major}:{minor} {bytes}"))
    }
}

impl Drop for SlowReads {
    fn drop(&mut self) {
        let _is_over = self.limit(0);
        let Some(parent) = self.cgroup.parent() else {
            return;
        };
        let members = fs::read_to_string(self.procs()).unwrap_or_default();
        for member in members.lines() {
            let _moved = fs::write(parent.join("cgroup.procs"), member);
        }
        let _removed = fs::remove_dir(&self.cgroup);
    }
}

/// A disk is full.
#[derive(Debug)]
pub struct Full(PathBuf);

impl Drop for Full {
    fn drop(&mut self) {
        let _removed = fs::remove_file(&self.0);
    }
}

/// Drops what the kernel keeps in memory of the files below a folder.
fn forget(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            forget(&path);
        } else if path.is_file() {
            let file = File::open(&path).unwrap();
            file.sync_all().unwrap();
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).status();
    status.is_ok_and(|status| status.success())
}
