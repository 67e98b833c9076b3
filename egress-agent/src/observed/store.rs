//! Observations on disk, so that they survive the agent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        Timestamp,
        model::{Observations, Text},
    },
    store::Kept,
};

/// Where observations are kept.
pub type Store = crate::store::Store<Stored>;

/// Name of the file in its folder.
pub const STORE_FILE: &str = "observations.json";
/// Most bytes that are read: more than a full table of the longest texts makes.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 20;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    version: u32,
    /// When it was written.
    pub saved_at: Timestamp,
    /// Totals of what others lost, as far as they are among the losses.
    pub totals: BTreeMap<Text, u64>,
    /// The observations.
    pub seen: Observations,
}

impl Stored {
    /// The state to keep from now on.
    #[must_use]
    pub const fn new(saved_at: Timestamp, seen: Observations, totals: BTreeMap<Text, u64>) -> Self {
        Self {
            version: Self::VERSION,
            saved_at,
            totals,
            seen,
        }
    }
}

impl Kept for Stored {
    const FILE: &'static str = STORE_FILE;
    const VERSION: u32 = 1;
    const MAX_BYTES: u64 = MAX_FILE_BYTES;
    const LOST: &'static str = "what was seen before is not known";
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::observed::{
        Table, TableLimits,
        testing::{at, packet},
    };
    use crate::store::StoreError;

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
            // Its other fields are for those who know that version.
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
