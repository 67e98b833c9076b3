//! State that outlives the agent, on disk.
//!
//! One file, written anew as a whole: beside the old one, then renamed. What
//! cannot be read is set aside, not deleted, and the agent begins anew.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    marker::PhantomData,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

pub mod unwritten {
    //! State that is not on the disk, and since when: a disk that is full, or that does not answer.

    use std::{
        collections::BTreeMap,
        path::{Path, PathBuf},
        sync::{Mutex, MutexGuard, PoisonError},
        time::{Duration, Instant},
    };

    static SINCE: Mutex<BTreeMap<PathBuf, Instant>> = Mutex::new(BTreeMap::new());

    fn since() -> MutexGuard<'static, BTreeMap<PathBuf, Instant>> {
        SINCE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write begins; the first one counts that did not succeed.
    pub(crate) fn begin(file: &Path) {
        since().entry(file.to_owned()).or_insert_with(Instant::now);
    }

    /// A write succeeded.
    pub(crate) fn end(file: &Path) {
        since().remove(file);
    }

    /// The files whose state has not been written for longer than this, and for how long.
    #[must_use]
    pub fn longer_than(limit: Duration) -> Vec<(PathBuf, Duration)> {
        let since = since();
        let ages = since.iter().map(|(file, at)| (file.clone(), at.elapsed()));
        ages.filter(|(_, age)| *age > limit).collect()
    }
}

pub(crate) mod in_time {
    //! Reads of an agent that starts, from a disk that may hang: it begins without the state that does not come in time.

    use std::{
        io,
        sync::{
            atomic::{AtomicBool, Ordering},
            mpsc,
        },
        thread,
        time::Duration,
    };

    /// How long the agent waits for a read: a disk that spins up takes less.
    const LIMIT: Duration = Duration::from_secs(10);
    /// The same once it waited in vain.
    const NEXT_LIMIT: Duration = Duration::from_secs(1);
    /// How long it waits for a read without which addresses are lost that pinned programs let through meanwhile: less than a
    /// service manager waits for a start.
    const DEAR_LIMIT: Duration = Duration::from_secs(60);

    static HANGS: AtomicBool = AtomicBool::new(false);

    /// Returns what `read` returns. A thread that the disk does not answer is left behind.
    ///
    /// # Errors
    ///
    /// The disk does not answer in time.
    pub(crate) fn read<T: Send + 'static>(
        read: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let hangs = HANGS.load(Ordering::Relaxed);
        let answer = within(if hangs { NEXT_LIMIT } else { LIMIT }, read);
        if answer.is_err() {
            HANGS.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// The same, with much more patience.
    ///
    /// # Errors
    ///
    /// The disk does not answer in time.
    pub(crate) fn read_dear<T: Send + 'static>(
        read: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        within(DEAR_LIMIT, read)
    }

    pub(super) fn within<T: Send + 'static>(
        limit: Duration,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (sender, answer) = mpsc::sync_channel(1);
        let reader = move || {
            // An error means that nobody waits any more.
            let _ = sender.send(read());
        };
        thread::Builder::new()
            .name("state-reader".to_owned())
            .spawn(reader)?;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer");
        answer.recv_timeout(limit).map_err(late)
    }
}

/// State that is kept. As JSON it has the field `version`.
pub trait Kept: Serialize + DeserializeOwned {
    /// Name of the file in its folder.
    const FILE: &'static str;
    /// The form that this version writes, and the only one that it reads.
    const VERSION: u32;
    /// Most bytes that are read.
    const MAX_BYTES: u64;
    /// The consequence of a file that cannot be read.
    const LOST: &'static str;
}

/// Why a file was not read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file is there, but is no store of this version.
    #[error("{}: {why}; it is now {}, and {lost}", file.display(), aside.display())]
    SetAside {
        /// The file.
        file: PathBuf,
        /// The fault in it.
        why: String,
        /// The consequence.
        lost: &'static str,
        /// Where it was moved to.
        aside: PathBuf,
    },
    /// The file is there, is no store of this version, and cannot be moved away.
    #[error("{}: {why}, and it cannot be set aside; {lost}", file.display())]
    InTheWay {
        /// The file.
        file: PathBuf,
        /// The fault in it.
        why: String,
        /// The consequence.
        lost: &'static str,
        /// Why it cannot be moved.
        source: io::Error,
    },
    /// The file was not read.
    #[error("{}: {why}; it will be {} when the next one is written, and {lost}", file.display(), aside.display())]
    Unread {
        /// The file.
        file: PathBuf,
        /// The consequence.
        lost: &'static str,
        /// Where it will be moved to.
        aside: PathBuf,
        /// The reason.
        why: String,
    },
    /// It cannot be written.
    #[error("cannot write {}, so that it does not outlive the agent; choose a folder with --state-dir", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where something is kept.
#[derive(Clone, Debug)]
pub struct Store<T> {
    file: PathBuf,
    /// The file was not read: it is moved away before another one is written.
    is_unread: Arc<AtomicBool>,
    kept: PhantomData<fn() -> T>,
}

impl<T: Kept> Store<T> {
    /// The store in a folder, which is made when it is first written to.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            file: folder.join(T::FILE),
            is_unread: Arc::default(),
            kept: PhantomData,
        }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The state that was kept; `None` if there is none. A disk that does not answer is not waited for long.
    ///
    /// # Errors
    ///
    /// The file that is there cannot be used, and was set aside, or will be.
    pub fn load(&self) -> Result<Option<T>, StoreError>
    where
        T: Send + 'static,
    {
        let file = self.file.clone();
        let found = in_time::read(move || read::<T>(&file));
        // An agent that was killed while it wrote left this. If it cannot be removed now, the next write reports it.
        let new = self.beside("new");
        if found.is_ok() && new.symlink_metadata().is_ok() {
            let _ = in_time::read(move || remove_new(&new));
        }
        match found {
            Ok(Ok(kept)) => Ok(kept),
            Ok(Err(why)) => Err(self.set_aside(why)),
            Err(error) => {
                self.is_unread.store(true, Ordering::Relaxed);
                Err(StoreError::Unread {
                    file: self.file.clone(),
                    lost: T::LOST,
                    aside: self.beside("unread"),
                    why: error.to_string(),
                })
            }
        }
    }

    fn set_aside(&self, why: String) -> StoreError {
        let file = self.file.clone();
        let aside = self.beside("unusable");
        let lost = T::LOST;
        match fs::rename(&self.file, &aside) {
            Ok(()) => StoreError::SetAside {
                file,
                why,
                lost,
                aside,
            },
            Err(source) => StoreError::InTheWay {
                file,
                why,
                lost,
                source,
            },
        }
    }

    /// Writes what is to be kept; returns how many bytes that took.
    ///
    /// # Errors
    ///
    /// It cannot be written; what was there before still is.
    pub fn save(&self, kept: &T) -> Result<usize, StoreError> {
        unwritten::begin(&self.file);
        let written = self.write(kept);
        if written.is_ok() {
            unwritten::end(&self.file);
        }
        written.map_err(|source| StoreError::Write {
            file: self.file.clone(),
            source,
        })
    }

    fn write(&self, kept: &T) -> io::Result<usize> {
        let bytes = serde_json::to_vec(kept)?;
        if let Some(folder) = self.file.parent() {
            // Not everybody may read what the node does.
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
        }
        if self.is_unread.load(Ordering::Relaxed) {
            match fs::rename(&self.file, self.beside("unread")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.is_unread.store(false, Ordering::Relaxed),
            }
        }
        let new = self.beside("new");
        let written = write_new(&new, &bytes).and_then(|()| fs::rename(&new, &self.file));
        if written.is_err() {
            // Half of a file is of no use, least of all on a disk that is full.
            remove_new(&new)?;
        }
        written.map(|()| bytes.len())
    }

    /// A file beside the store's.
    fn beside(&self, what: &str) -> PathBuf {
        let mut name = self.file.clone().into_os_string();
        name.push(".");
        name.push(what);
        PathBuf::from(name)
    }
}

/// Writes a file that is not there yet: never through a link, never into what somebody else made.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    remove_new(path)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_NOFOLLOW)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    // Else a crash of the machine could leave the name with nothing behind it.
    file.sync_all()
}

fn remove_new(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read<T: Kept>(path: &Path) -> Result<Option<T>, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(cannot)?,
    };
    if !metadata.is_file() {
        return Err("is no file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    let most = T::MAX_BYTES.saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > T::MAX_BYTES {
        return Err(format!("has more than {} bytes", T::MAX_BYTES));
    }
    let broken = |error: serde_json::Error| format!("is broken: {error}");
    let Version { version } = serde_json::from_slice(&bytes).map_err(broken)?;
    if version != T::VERSION {
        return Err(format!(
            "is of version {version}; this agent reads version {}",
            T::VERSION
        ));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Number {
        version: u32,
        number: u32,
    }

    impl Kept for Number {
        const FILE: &'static str = "number.json";
        const VERSION: u32 = 1;
        const MAX_BYTES: u64 = 100;
        const LOST: &'static str = "the number is not known";
    }

    #[test]
    fn a_read_that_takes_too_long_is_left_behind() {
        use std::{sync::mpsc, time::Duration};
        let (answer, hangs) = mpsc::channel::<()>();
        let read = in_time::within(Duration::from_millis(20), move || hangs.recv());
        let error = read.expect_err("no answer");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(answer);
        assert_eq!(in_time::within(Duration::from_secs(30), || 7).ok(), Some(7));
    }

    #[test]
    fn a_file_that_was_not_read_is_not_written_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let old = Number {
            version: 1,
            number: 1,
        };
        let first = Store::in_folder(folder.path());
        first.save(&old).expect("is written");
        let store = Store::<Number>::in_folder(folder.path());
        store.is_unread.store(true, Ordering::Relaxed);
        for number in 2..4 {
            let new = Number { number, ..old };
            store.save(&new).expect("is written");
            assert_eq!(store.load().expect("is read"), Some(new));
            let aside = fs::read(folder.path().join("number.json.unread")).expect("is there");
            assert_eq!(
                serde_json::from_slice::<Number>(&aside).expect("whole"),
                old
            );
        }
    }
}
