//! A small disk of its own, that can be full and can hang.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
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

/// A disk is full.
#[derive(Debug)]
pub struct Full(PathBuf);

impl Drop for Full {
    fn drop(&mut self) {
        let _removed = fs::remove_file(&self.0);
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).status();
    status.is_ok_and(|status| status.success())
}
