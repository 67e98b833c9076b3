//! A watch on what the node is known by: its addresses (netlink) and its resolvers (inotify).
//!
//! An event is a hint to look, never a fact.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::io::unix::AsyncFd;

use super::node::{RESOLV_CONF, RESOLVED_CONF};
use crate::datapath::readable;

/// Most links that are followed (MAXSYMLINKS of the kernel).
const MAX_LINKS: usize = 40;

/// A watch on the addresses of this network namespace.
pub struct AddressWatch {
    changes: BoxStream<'static, ()>,
    connection: tokio::task::AbortHandle,
}

impl Drop for AddressWatch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl AddressWatch {
    /// Begins to watch. Needs a runtime.
    ///
    /// # Errors
    ///
    /// The kernel gives no netlink socket.
    pub fn begin() -> io::Result<Self> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _handle, messages) = new_multicast_connection(&groups)?;
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Self {
            changes: messages.map(|_| ()).boxed(),
            connection,
        })
    }

    /// Waits until an address came or went; false when nothing more will be heard.
    pub async fn changed(&mut self) -> bool {
        let is_heard = self.changes.next().await.is_some();
        while let Some(Some(())) = self.changes.next().now_or_never() {}
        is_heard
    }
}

/// A watch on files that may be links, be replaced, or not be there yet.
#[derive(Debug)]
pub struct FileWatch {
    files: Vec<PathBuf>,
    /// Names that matter in the folders that are watched.
    names: BTreeSet<OsString>,
    inotify: AsyncFd<FileEvents>,
}

/// The kernel's queue of events of files.
#[derive(Debug)]
pub struct FileEvents(Inotify);

impl AsRawFd for FileEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl FileWatch {
    /// Begins to watch the files in which the resolvers stand. Needs a runtime.
    ///
    /// # Errors
    ///
    /// There is no inotify instance to be had.
    pub fn of_resolvers() -> io::Result<Self> {
        Self::begin(&[Path::new(RESOLV_CONF), Path::new(RESOLVED_CONF)])
    }

    fn begin(files: &[&Path]) -> io::Result<Self> {
        let (inotify, names) = watches(files)?;
        Ok(Self {
            files: files.iter().map(|file| (*file).to_owned()).collect(),
            names,
            inotify: readable(FileEvents(inotify))?,
        })
    }

    /// Waits until one of the files may have changed.
    ///
    /// # Errors
    ///
    /// Nothing more will be heard.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.inotify.readable().await?;
            let events = match guard.get_inner().0.read_events() {
                Ok(events) => events,
                Err(nix::errno::Errno::EAGAIN) => {
                    guard.clear_ready();
                    continue;
                }
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            // An event without a name is of a file itself, or says that some were lost.
            let is_ours = events.iter().any(|event| {
                event
                    .name
                    .as_ref()
                    .is_none_or(|name| self.names.contains(name))
            });
            if is_ours {
                // Links lead elsewhere now, files are others: everything is watched anew.
                let files: Vec<&Path> = self.files.iter().map(PathBuf::as_path).collect();
                let (inotify, names) = watches(&files)?;
                self.inotify = readable(FileEvents(inotify))?;
                self.names = names;
                return Ok(());
            }
        }
    }
}

/// Watches the files, every link on the way, and the folders in which they lie.
fn watches(files: &[&Path]) -> io::Result<(Inotify, BTreeSet<OsString>)> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let of_folder = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM;
    let of_file = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_DELETE_SELF;
    let mut names = BTreeSet::new();
    for file in files {
        for path in way_to(file) {
            // The folder above reports a file that is not there, if that folder is; the slow look finds the rest.
            if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
                let _ = inotify.add_watch(folder, of_folder);
                names.insert(name.to_owned());
            }
        }
        let _ = inotify.add_watch(*file, of_file);
    }
    Ok((inotify, names))
}

/// The path, and where each link on the way leads.
fn way_to(file: &Path) -> Vec<PathBuf> {
    let mut way = vec![file.to_owned()];
    let mut at = file.to_owned();
    while let Ok(target) = fs::read_link(&at) {
        at = match at.parent() {
            Some(folder) => folder.join(target),
            None => target,
        };
        if way.len() >= MAX_LINKS {
            break;
        }
        way.push(at.clone());
    }
    way
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, time::Duration};

    use super::*;

    async fn hears(watch: &mut FileWatch) -> bool {
        let heard = tokio::time::timeout(Duration::from_secs(5), watch.changed()).await;
        heard.is_ok_and(|heard| heard.is_ok())
    }

    #[tokio::test]
    async fn a_file_that_is_written_replaced_or_linked_elsewhere_is_heard_of() {
        let folder = tempfile::tempdir().expect("a folder");
        let (etc, run) = (folder.path().join("etc"), folder.path().join("run"));
        fs::create_dir(&etc).expect("is made");
        fs::create_dir(&run).expect("is made");
        let (link, file, other) = (
            etc.join("resolv.conf"),
            run.join("resolv.conf"),
            run.join("other.conf"),
        );
        symlink("../run/resolv.conf", &link).expect("is linked");
        let mut watch = FileWatch::begin(&[&link]).expect("begins");

        fs::write(&file, "one").expect("is written");
        assert!(hears(&mut watch).await, "made behind the link");
        fs::write(&file, "two").expect("is written");
        assert!(hears(&mut watch).await, "written in place");
        fs::write(&other, "three").expect("is written");
        fs::rename(&other, &file).expect("is renamed");
        assert!(hears(&mut watch).await, "replaced");
        fs::write(&other, "four").expect("is written");
        let swap = etc.join("swap");
        symlink("../run/other.conf", &swap).expect("is linked");
        fs::rename(&swap, &link).expect("is renamed");
        assert!(hears(&mut watch).await, "linked elsewhere");
        fs::write(&other, "five").expect("is written");
        assert!(hears(&mut watch).await, "written where the link leads now");

        while tokio::time::timeout(Duration::from_millis(50), watch.changed())
            .await
            .is_ok()
        {}
        fs::write(etc.join("hosts"), "").expect("is written");
        let heard = tokio::time::timeout(Duration::from_millis(200), watch.changed()).await;
        assert!(heard.is_err(), "another file is no reason to look");
    }
}
