//! Pods as they come and go, by their cgroups.
//!
//! [`PodTree`] watches the cgroup v2 hierarchy with inotify(7) and says which pods' cgroups there are: those that exist
//! when it begins, and every one that is made or removed from then on. It needs no kubelet, no runtime and no API
//! server, and it never polls.
//!
//! It watches every cgroup down to the pods' own, and none below these. So it does not matter where kubelet's cgroups
//! begin, nor whether they are there yet: what is made above them, be it after a removal, is watched like the rest.
//!
//! An inotify event is a hint where to look, never a fact: at each one the directory is looked at and compared with
//! what is known of it. Therefore these races end well:
//!
//! - *A directory is made between the watch and the scan.* A directory is watched before it is read. What is made in
//!   between is found twice, and the second look finds nothing new.
//! - *A directory is gone before its turn comes.* Then there is nothing to look at. A pod that came and went unseen is
//!   not reported.
//! - *A directory is removed and made again under its name.* Its inode number, which is the cgroup's id, is another one
//!   (the kernel gives none twice): first the old pod is gone, then the new one is made. Where it is not a pod's, all
//!   that was known below is gone, and what is there now is read. A watch on a removed directory is taken off by us:
//!   kernels before 2026 send neither `IN_DELETE_SELF` nor `IN_IGNORED` for cgroups.
//! - *The queue overflows* (`IN_Q_OVERFLOW`, after `fs.inotify.max_queued_events`). Everything is looked at again.
//!
//! A directory of another user than the root's is left out with all that is below it. Such a cgroup was delegated
//! (systemd does so for user sessions, and for containers with user namespaces), and its owner can give any name to what
//! is below, a pod's too. Who may make cgroups as root is believed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsString,
    fs, io,
    ops::Bound,
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

use super::pod_cgroup::{Place, PodCgroup, PodUid};

/// A change of a pod's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEvent {
    /// It is there.
    ///
    /// A pod may have several, where the runtime puts containers elsewhere ([`Place::Top`]).
    Made {
        /// The pod.
        uid: PodUid,
        /// Id of the cgroup.
        cgroup_id: u64,
        /// Where it is, below the root of the hierarchy.
        path: PathBuf,
        /// Its distance from the root of the hierarchy.
        level: i32,
    },
    /// It is not there any more. No other cgroup will have its id.
    Gone {
        /// Id of the cgroup.
        cgroup_id: u64,
    },
    /// This directory could not be looked at, so that pods below may be missing until [`PodTree::rescan`] succeeds.
    Unseen(PodTreeError),
}

/// Errors while the hierarchy is watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodTreeError {
    /// There is no inotify instance to be had.
    #[error(
        "cannot watch cgroups: no inotify instance (fs.inotify.max_user_instances may be too low)"
    )]
    Init(#[source] Errno),
    /// A directory cannot be watched.
    #[error("cannot watch cgroup {} (fs.inotify.max_user_watches may be too low)", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// A directory cannot be read.
    #[error("cannot read cgroup {}", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// Events cannot be read.
    #[error("cannot read inotify events of cgroups")]
    Events(#[source] Errno),
    /// The root is not there any more, or another one is in its place.
    #[error("the cgroup hierarchy at {} is gone", .0.display())]
    RootGone(PathBuf),
}

/// A directory that was looked at.
#[derive(Debug)]
struct Known {
    inode: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// May have pods below.
    Watched(WatchDescriptor),
    /// A pod's own.
    Pod,
}

/// The cgroups of pods in a hierarchy.
///
/// Its file descriptor is readable when there is something to [`read`](Self::read), so that a task can wait for it
/// ([`readable`](crate::datapath::readable)).
#[derive(Debug)]
pub struct PodTree {
    inotify: Inotify,
    root: PathBuf,
    /// Owner of the root; directories of others are left out.
    owner: u32,
    /// By path below the root. What is below a directory stands directly behind it.
    known: BTreeMap<PathBuf, Known>,
    watched: HashMap<WatchDescriptor, PathBuf>,
    /// Not handed out yet.
    events: Vec<PodEvent>,
}

impl PodTree {
    /// Begins to watch the hierarchy whose root is mounted here. The pods that are there are reported first.
    ///
    /// # Errors
    ///
    /// There is no inotify instance, or the root cannot be watched.
    pub fn watch(root: &Path) -> Result<(Self, Vec<PodEvent>), PodTreeError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(PodTreeError::Init)?;
        let metadata = fs::metadata(root).map_err(|error| PodTreeError::Read {
            path: root.to_owned(),
            source: errno(&error),
        })?;
        let mut tree = Self {
            inotify,
            root: root.to_owned(),
            owner: metadata.uid(),
            known: BTreeMap::new(),
            watched: HashMap::new(),
            events: Vec::new(),
        };
        tree.look(PathBuf::new());
        let events = std::mem::take(&mut tree.events);
        if tree.known.is_empty() {
            let why = events.into_iter().find_map(|event| match event {
                PodEvent::Unseen(error) => Some(error),
                PodEvent::Made { .. } | PodEvent::Gone { .. } => None,
            });
            return Err(why.unwrap_or(PodTreeError::RootGone(tree.root)));
        }
        Ok((tree, events))
    }

    /// Takes up some of what happened since the last time, without waiting; `None` if it was nothing.
    ///
    /// A cgroup may have come or gone again since it was reported.
    ///
    /// # Errors
    ///
    /// The hierarchy is gone, or inotify fails: this tree tells nothing any more.
    pub fn read(&mut self) -> Result<Option<Vec<PodEvent>>, PodTreeError> {
        let hints = match self.inotify.read_events() {
            Ok(hints) => hints,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(PodTreeError::Events(error)),
        };
        let mut is_overflown = false;
        for hint in hints {
            is_overflown |= hint.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
            // A hint of a directory that has been forgotten since has nothing to say.
            if let Some(directory) = self.watched.get(&hint.wd) {
                let name = hint.name.unwrap_or_default();
                let path = if name.is_empty() {
                    directory.clone()
                } else {
                    directory.join(name)
                };
                self.look(path);
            }
        }
        if is_overflown {
            self.look_everywhere();
        }
        self.take().map(Some)
    }

    /// Looks at everything again, and reports what differs from the last reports.
    ///
    /// # Errors
    ///
    /// The hierarchy is gone.
    pub fn rescan(&mut self) -> Result<Vec<PodEvent>, PodTreeError> {
        self.look_everywhere();
        self.take()
    }

    fn take(&mut self) -> Result<Vec<PodEvent>, PodTreeError> {
        if self.known.is_empty() {
            return Err(PodTreeError::RootGone(self.root.clone()));
        }
        Ok(std::mem::take(&mut self.events))
    }

    fn look_everywhere(&mut self) {
        let paths: Vec<PathBuf> = self.known.keys().cloned().collect();
        for path in &paths {
            self.look(path.clone());
        }
        for path in paths {
            for child in self.children(&path) {
                self.look(child);
            }
        }
    }

    /// Compares a directory with what is known of it, and if it is new, goes on below.
    ///
    /// A look at a hint from an old directory may have found the new one of that name, and reported what lies below it.
    /// That is forgotten and found here, and nothing is reported of it.
    fn look(&mut self, path: PathBuf) {
        let mut lost = BTreeSet::new();
        let mut found = BTreeMap::new();
        let mut waiting = vec![path];
        while let Some(path) = waiting.pop() {
            let is_below_watched = path.parent().is_none_or(|parent| self.is_watched(parent));
            if !is_below_watched {
                continue;
            }
            let inode = match self.directory_at(&path) {
                Ok(inode) => inode,
                Err(source) => {
                    let path = self.root.join(path);
                    let error = PodTreeError::Read { path, source };
                    self.events.push(PodEvent::Unseen(error));
                    continue;
                }
            };
            if let Some(known) = self.known.get(&path) {
                if inode == Some(known.inode) {
                    continue;
                }
                self.forget(&path, &mut lost);
                // Another root is another hierarchy.
                if path.as_os_str().is_empty() {
                    continue;
                }
            }
            let Some(inode) = inode else {
                continue;
            };
            if let Some(uid) = pod_at(&path) {
                let kind = Kind::Pod;
                self.known.insert(path.clone(), Known { inode, kind });
                found.insert(inode, (uid, path));
            } else if self.enter(&path, inode) {
                waiting.extend(self.children(&path));
            }
        }
        let gone = lost.iter().filter(|id| !found.contains_key(id));
        let gone = gone.map(|id| PodEvent::Gone { cgroup_id: *id });
        self.events.extend(gone);
        let made = found.into_iter().filter(|(id, _)| !lost.contains(id));
        self.events
            .extend(made.map(|(cgroup_id, (uid, path))| PodEvent::Made {
                uid,
                cgroup_id,
                level: i32::try_from(path.components().count()).unwrap_or(i32::MAX),
                path,
            }));
    }

    fn is_watched(&self, path: &Path) -> bool {
        let kind = self.known.get(path).map(|known| &known.kind);
        matches!(kind, Some(Kind::Watched(_)))
    }

    /// Inode number of the directory here, if there is one that is not somebody else's.
    fn directory_at(&self, path: &Path) -> Result<Option<u64>, Errno> {
        match fs::symlink_metadata(self.root.join(path)) {
            Ok(metadata) => {
                let is_ours = metadata.is_dir() && metadata.uid() == self.owner;
                Ok(is_ours.then(|| metadata.ino()))
            }
            Err(error) if is_gone(errno(&error)) => Ok(None),
            Err(error) => Err(errno(&error)),
        }
    }

    /// Watches a directory; false if it cannot be.
    fn enter(&mut self, path: &Path, inode: u64) -> bool {
        let full_path = self.root.join(path);
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        match self.inotify.add_watch(&full_path, flags) {
            Ok(watch) => {
                let kind = Kind::Watched(watch);
                self.known.insert(path.to_owned(), Known { inode, kind });
                self.watched.insert(watch, path.to_owned());
                true
            }
            Err(error) if is_gone(error) => false,
            Err(source) => {
                let path = full_path;
                let error = PodTreeError::Watch { path, source };
                self.events.push(PodEvent::Unseen(error));
                false
            }
        }
    }

    /// Directories in a watched one.
    fn children(&mut self, path: &Path) -> Vec<PathBuf> {
        if !self.is_watched(path) {
            return Vec::new();
        }
        let full_path = self.root.join(path);
        match directories(&full_path) {
            Ok(names) => names.into_iter().map(|name| path.join(name)).collect(),
            Err(error) if is_gone(errno(&error)) => Vec::new(),
            Err(error) => {
                let source = errno(&error);
                let path = full_path;
                let error = PodTreeError::Read { path, source };
                self.events.push(PodEvent::Unseen(error));
                Vec::new()
            }
        }
    }

    /// Forgets a directory and all that is below it; the ids of pods are put with the lost ones.
    fn forget(&mut self, path: &Path, lost: &mut BTreeSet<u64>) {
        let from = (Bound::Included(path), Bound::Unbounded);
        let below = self.known.range::<Path, _>(from);
        let paths: Vec<PathBuf> = below
            .map(|(known, _)| known)
            .take_while(|known| known.starts_with(path))
            .cloned()
            .collect();
        for path in paths {
            match self.known.remove(&path) {
                Some(Known {
                    kind: Kind::Watched(watch),
                    ..
                }) => {
                    self.watched.remove(&watch);
                    // The kernel may have taken it off already.
                    let _ = self.inotify.rm_watch(watch);
                }
                Some(Known {
                    inode,
                    kind: Kind::Pod,
                }) => {
                    lost.insert(inode);
                }
                None => {}
            }
        }
    }
}

impl AsRawFd for PodTree {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_fd().as_raw_fd()
    }
}

/// Names of the directories in one.
fn directories(path: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name());
        }
    }
    Ok(names)
}

/// The pod whose own cgroup this is.
fn pod_at(path: &Path) -> Option<PodUid> {
    let pod = PodCgroup::parse(path.to_str()?)?;
    (pod.place == Place::Top).then_some(pod.uid)
}

/// True if an error only says that a directory has been removed.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

#[cfg(test)]
mod tests;
