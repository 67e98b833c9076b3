//! Observations on disk, so that they survive the agent.
//!
//! One file, written anew as a whole: beside the old one, then renamed. What
//! cannot be read is set aside, not deleted, and the agent begins anew.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::api::{
    Timestamp,
    model::{Observations, Text},
};

/// Name of the file in its folder.
pub const STORE_FILE: &str = "observations.json";
/// The form that this version writes, and the only one that it reads.
const VERSION: u32 = 1;
/// Most bytes that are read: more than a full table of the longest texts makes.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 20;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    version: u32,
    /// When it was written.
    pub saved_at: Timestamp,
    /// Totals of what others lost, as far as they are among the losses.
    pub totals: BTreeMap<Text, u64>,
    /// What was seen.
    pub seen: Observations,
}

impl Stored {
    /// What is to be kept from now on.
    #[must_use]
    pub const fn new(saved_at: Timestamp, seen: Observations, totals: BTreeMap<Text, u64>) -> Self {
        Self {
            version: VERSION,
            saved_at,
            totals,
            seen,
        }
    }
}

/// Why observations were not read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file is there, but is no store of this version.
    #[error("{}: {why}; it is now {}, and what was seen before is not known", file.display(), aside.display())]
    SetAside {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
        /// Where it was moved to.
        aside: PathBuf,
    },
    /// The file is there, is no store of this version, and cannot be moved away.
    #[error("{}: {why}, and it cannot be set aside; what was seen before is not known", file.display())]
    InTheWay {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
        /// Why it cannot be moved.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {}, so that what was seen does not outlive the agent; choose a folder with --state-dir", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where observations are kept.
#[derive(Clone, Debug)]
pub struct Store {
    file: PathBuf,
}

impl Store {
    /// The store in a folder, which is made when it is first written to.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            file: folder.join(STORE_FILE),
        }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What was kept; `None` if nothing was.
    ///
    /// # Errors
    ///
    /// What is there cannot be used, and was set aside.
    pub fn load(&self) -> Result<Option<Stored>, StoreError> {
        match read(&self.file) {
            Ok(stored) => Ok(stored),
            Err(why) => Err(self.set_aside(why)),
        }
    }

    fn set_aside(&self, why: String) -> StoreError {
        let file = self.file.clone();
        let aside = self.beside("unusable");
        match fs::rename(&self.file, &aside) {
            Ok(()) => StoreError::SetAside { file, why, aside },
            Err(source) => StoreError::InTheWay { file, why, source },
        }
    }

    /// Writes what is to be kept; returns how many bytes that took.
    ///
    /// # Errors
    ///
    /// It cannot be written; what was there before still is.
    pub fn save(&self, stored: &Stored) -> Result<usize, StoreError> {
        self.write(stored).map_err(|source| StoreError::Write {
            file: self.file.clone(),
            source,
        })
    }

    fn write(&self, stored: &Stored) -> io::Result<usize> {
        let bytes = serde_json::to_vec(stored)?;
        if let Some(folder) = self.file.parent() {
            // Where the node goes is not for everybody to read.
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
        }
        let new = self.beside("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&bytes)?;
        // Else a crash of the machine could leave the name with nothing behind it.
        file.sync_all()?;
        fs::rename(&new, &self.file)?;
        Ok(bytes.len())
    }

    /// A file beside the store's.
    fn beside(&self, what: &str) -> PathBuf {
        let mut name = self.file.clone().into_os_string();
        name.push(".");
        name.push(what);
        PathBuf::from(name)
    }
}

fn read(path: &Path) -> Result<Option<Stored>, String> {
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
    let most = MAX_FILE_BYTES.saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("has more than {MAX_FILE_BYTES} bytes"));
    }
    let broken = |error: serde_json::Error| format!("is broken: {error}");
    let Version { version } = serde_json::from_slice(&bytes).map_err(broken)?;
    if version != VERSION {
        return Err(format!(
            "is of version {version}; this agent reads version {VERSION}"
        ));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::{
        Table, TableLimits,
        testing::{at, packet},
    };

    fn stored() -> Stored {
        let mut table = Table::new(TableLimits::default());
        table.record(&packet(1, "api.example.com", 443));
        table.lose("events_lost", 3, at(2));
        Stored::new(
            at(9),
            table.observations(),
            [("events_lost".into(), 7)].into(),
        )
    }

    fn error(store: &Store) -> String {
        let error = store.load().expect_err("is not usable");
        format!("{:#}", anyhow::Error::new(error))
    }

    #[test]
    fn what_is_saved_comes_back_and_nothing_else_is_left_in_the_folder() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("state");
        let store = Store::in_folder(&below);
        assert_eq!(store.load().unwrap(), None);
        let bytes = store.save(&stored()).unwrap();
        assert_eq!(fs::metadata(store.file()).unwrap().len(), bytes as u64);
        assert_eq!(store.load().unwrap(), Some(stored()));
        // Once more, over the first.
        store.save(&stored()).unwrap();
        let names: Vec<_> = fs::read_dir(&below)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [STORE_FILE]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&below), mode(store.file())), (0o700, 0o600));
    }

    #[test]
    fn a_broken_store_is_set_aside_with_its_fault_and_the_next_one_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::in_folder(folder.path());
        store.save(&stored()).unwrap();
        let whole = fs::read(store.file()).unwrap();
        let half = &whole[..whole.len() / 2];
        let other: &[u8] = br#"{ "version": 1, "seen": [] }"#;
        for broken in [half, &b""[..], b"\xff\xfe", b"[]", other] {
            fs::write(store.file(), broken).unwrap();
            let said = error(&store);
            assert!(said.contains("observations.json: is broken: "), "{said}");
            assert!(said.contains("is now "), "{said}");
            let aside = folder.path().join("observations.json.unusable");
            assert_eq!(fs::read(aside).unwrap(), broken);
            assert_eq!(store.load().unwrap(), None);
        }
        store.save(&stored()).unwrap();
        assert_eq!(store.load().unwrap(), Some(stored()));
    }

    #[test]
    fn a_store_of_another_version_is_set_aside_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::in_folder(folder.path());
        for version in [0, 2] {
            // What else stands in it is for those who know that version.
            let text = format!("{{ \"version\": {version}, \"flows\": {{}} }}");
            fs::write(store.file(), &text).unwrap();
            let said = error(&store);
            let expected = format!("is of version {version}; this agent reads version 1");
            assert!(said.contains(&expected), "{said}");
            let aside = folder.path().join("observations.json.unusable");
            assert_eq!(fs::read_to_string(aside).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_file_is_set_aside_and_what_cannot_be_written_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::in_folder(folder.path());
        fs::create_dir(store.file()).unwrap();
        let said = error(&store);
        assert!(said.contains("is no file"), "{said}");
        // A file is where the folder should be.
        fs::write(folder.path().join("file"), "").unwrap();
        let nowhere = Store::in_folder(&folder.path().join("file"));
        let error = nowhere.save(&stored()).expect_err("cannot be written");
        assert!(error.to_string().contains("--state-dir"), "{error}");
        assert!(matches!(error, StoreError::Write { .. }));
    }
}
