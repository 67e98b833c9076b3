//! A watch on paths that come and go, by inotify(7).
//!
//! An event is a hint to look, never a fact: every folder on the way to a path that is there is watched, and who
//! waits looks at the paths after [`PathWatch::follow`], not before. So nothing that happens in between is missed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::{
        fd::{AsFd as _, AsRawFd, RawFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};

/// Device and inode of a folder: one that is made again has another.
type Identity = (u64, u64);

/// Folders on the way to paths.
///
/// Its file descriptor is readable when something happened in one of them.
#[derive(Debug)]
pub struct PathWatch {
    inotify: Inotify,
    watched: BTreeMap<PathBuf, (Identity, WatchDescriptor)>,
}

impl PathWatch {
    /// Watches nothing yet.
    ///
    /// # Errors
    ///
    /// There is no inotify instance to be had.
    pub fn new() -> Result<Self, Errno> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        Ok(Self {
            inotify: Inotify::init(flags)?,
            watched: BTreeMap::new(),
        })
    }

    /// Watches the folders below `root`, and `root` itself, in which these paths are, or will be.
    ///
    /// # Errors
    ///
    /// A folder cannot be watched: `fs.inotify.max_user_watches` may be too low. The others are.
    pub fn follow(&mut self, root: &Path, paths: &[PathBuf]) -> Result<(), Errno> {
        let wanted: BTreeSet<&Path> = paths
            .iter()
            .flat_map(|path| path.ancestors().skip(1))
            .filter(|folder| folder.starts_with(root))
            .collect();
        let mut result = Ok(());
        // From the top: what is made meanwhile is seen in the folder above, or is there when its turn comes.
        for folder in wanted {
            let now = fs::metadata(folder).ok();
            let now = now.map(|metadata| (metadata.dev(), metadata.ino()));
            let known = self.watched.get(folder);
            if known.map(|(identity, _)| *identity) == now {
                continue;
            }
            if let Some((_, watch)) = self.watched.remove(folder) {
                // The kernel may have taken it off already.
                let _ = self.inotify.rm_watch(watch);
            }
            let Some(identity) = now else { continue };
            let flags = AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_ONLYDIR;
            match self.inotify.add_watch(folder, flags) {
                Ok(watch) => {
                    self.watched.insert(folder.to_owned(), (identity, watch));
                }
                // It is gone again, which is seen in the folder above.
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Takes up what happened so far; says whether there was anything.
    ///
    /// # Errors
    ///
    /// Events cannot be read.
    pub fn drain(&mut self) -> Result<bool, Errno> {
        let mut is_any = false;
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    is_any = true;
                    // The kernel took the watch off with its folder. Another one may get the same inode; in cgroup v2,
                    // where not every kernel tells this, none does.
                    for event in events
                        .iter()
                        .filter(|one| one.mask.contains(AddWatchFlags::IN_IGNORED))
                    {
                        self.watched.retain(|_, (_, watch)| *watch != event.wd);
                    }
                }
                Err(Errno::EAGAIN) => return Ok(is_any),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for PathWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_a_path_that_comes_is_told() {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("system.slice/web.service/inner");
        let mut watch = PathWatch::new().expect("inotify");
        let follow = |watch: &mut PathWatch| {
            watch
                .follow(root.path(), std::slice::from_ref(&path))
                .expect("watches");
        };
        follow(&mut watch);
        assert_eq!(watch.drain(), Ok(false));
        for folder in [
            "system.slice",
            "system.slice/web.service",
            "system.slice/web.service/inner",
        ] {
            fs::create_dir(root.path().join(folder)).expect("a folder");
            assert_eq!(watch.drain(), Ok(true), "{folder}");
            follow(&mut watch);
            assert_eq!(watch.drain(), Ok(false), "{folder}");
        }
        // Neighbours of a folder on the way are reported as well, what is elsewhere is not.
        fs::create_dir(path.join("below")).expect("a folder");
        assert_eq!(watch.drain(), Ok(false));
    }

    #[test]
    fn what_is_made_again_is_told_again() {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("a/b");
        let mut watch = PathWatch::new().expect("inotify");
        for _ in 0..20 {
            fs::create_dir_all(&path).expect("folders");
            watch
                .follow(root.path(), std::slice::from_ref(&path))
                .expect("watches");
            watch.drain().expect("reads");
            fs::remove_dir(&path).expect("removed");
            assert_eq!(watch.drain(), Ok(true));
            fs::remove_dir(root.path().join("a")).expect("removed");
            assert_eq!(watch.drain(), Ok(true));
        }
        assert!(watch.watched.len() <= 2, "{:?}", watch.watched);
    }
}
