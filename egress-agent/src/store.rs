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
    kept: PhantomData<fn() -> T>,
}

impl<T: Kept> Store<T> {
    /// The store in a folder, which is made when it is first written to.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            file: folder.join(T::FILE),
            kept: PhantomData,
        }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The state that was kept; `None` if there is none.
    ///
    /// # Errors
    ///
    /// The file that is there cannot be used, and was set aside.
    pub fn load(&self) -> Result<Option<T>, StoreError> {
        // An agent that was killed while it wrote left this. If it cannot be removed now, the next write reports it.
        let _ = remove_new(&self.beside("new"));
        match read::<T>(&self.file) {
            Ok(kept) => Ok(kept),
            Err(why) => Err(self.set_aside(why)),
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
