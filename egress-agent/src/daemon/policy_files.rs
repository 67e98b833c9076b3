//! The files that policies and the catalog are read from, and what changes in them.
//!
//! Metadata says most: place, size, times of content and of metadata, which no program sets. Where they cannot tell (a
//! clock that ticks slowly, a file system that keeps no such times), the content is compared. A file that changes is
//! taken up once it has been the same for a moment, so that half of one is not; a file that is renamed into its place is
//! whole at any moment. What could not be read, or was refused, is tried again.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    hash::{DefaultHasher, Hasher as _},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::shared::{Shared, lock};
use crate::{
    cli::RunOptions,
    datapath,
    policy::{Catalog, Policy, PolicyErrors},
    shutdown::Shutdown,
    signals::Reload,
};

/// How often files are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long a change has to be all before it is taken up.
const STABLE: Duration = Duration::from_millis(250);
/// How often the content is compared although nothing says that it changed.
const COMPARE: Duration = Duration::from_secs(30);
/// How long after a file was written times may not tell a second change.
const YOUNG: Duration = Duration::from_secs(3);
/// Most bytes of a file that are compared; the policies of a node have at most half as many.
const MAX_BYTES: u64 = 64 << 20;
/// From a refusal to the next try, at first and at most.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(60);

/// The files as they were read from the disk.
#[derive(Clone, Debug)]
pub(super) struct PolicyFiles {
    /// Everything that rules may refer to.
    pub(super) catalog: Arc<Catalog>,
    /// The policies that stand in files.
    pub(super) policies: Vec<Policy>,
}

impl PolicyFiles {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// The files are wrong.
    pub(super) fn read(options: &RunOptions) -> Result<Self, PolicyErrors> {
        let catalog = options.catalog.load()?;
        let notes = catalog.service_tags().map(|tags| &tags.facts().notes);
        for note in notes.into_iter().flatten() {
            warn!(note, "the file of service tags is not quite right");
        }
        let policies = if options.policies.is_empty() {
            Vec::new()
        } else {
            let files = crate::policy::load(&options.policies, &catalog)?;
            files.policies().to_vec()
        };
        Ok(Self {
            catalog: Arc::new(catalog),
            policies,
        })
    }
}

/// The files as they were seen.
#[derive(Debug, Default)]
pub(super) struct Watched {
    files: BTreeMap<PathBuf, Seen>,
    compared_at: Option<Instant>,
}

/// A file as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    File(Facts, u64),
    /// It is there, and cannot be read or looked into.
    Unreadable(io::ErrorKind),
}

/// Facts that change when a file does: a swap of links shows as another inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Facts {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// True if all but the time of its metadata is the same.
    fn is_same_content(&self, other: &Self) -> bool {
        let changed = self.changed;
        *self == Self { changed, ..*other }
    }

    /// True if it was written so shortly ago that another write might leave the same times.
    fn is_young(&self, metadata: &fs::Metadata) -> bool {
        let is_young = |at: io::Result<std::time::SystemTime>| {
            at.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < YOUNG))
        };
        let since_change = u64::try_from(self.changed.0).unwrap_or(0);
        let changed = std::time::UNIX_EPOCH.checked_add(Duration::from_secs(since_change));
        is_young(metadata.modified()) || is_young(changed.ok_or(io::ErrorKind::Other.into()))
    }
}

impl Watched {
    /// Looks at the files that the options name.
    pub(super) fn look(options: &RunOptions) -> Self {
        let mut watched = Self::default();
        watched.changes(options, Instant::now());
        watched
    }

    /// Looks again; says whether anything is other than at the last look.
    fn changes(&mut self, options: &RunOptions, now: Instant) -> bool {
        let is_compared = self
            .compared_at
            .is_none_or(|at| now.saturating_duration_since(at) >= COMPARE);
        if is_compared {
            self.compared_at = Some(now);
        }
        let mut files = BTreeMap::new();
        for path in paths(options) {
            match entries(&path) {
                Ok(paths) => {
                    for file in paths {
                        let before = self.files.get(&file);
                        if let Some(seen) = seen(&file, before, is_compared) {
                            files.insert(file, seen);
                        }
                    }
                }
                Err(error) => {
                    files.insert(path, Seen::Unreadable(error.kind()));
                }
            }
        }
        let is_same = files.len() == self.files.len()
            && files.iter().zip(&self.files).all(|(now, before)| {
                now.0 == before.0
                    && match (now.1, before.1) {
                        // Its owner or mode may have changed, which is nothing to be taken up.
                        (Seen::File(now, content), Seen::File(before, known)) => {
                            content == known && now.is_same_content(before)
                        }
                        (now, before) => now == before,
                    }
            });
        self.files = files;
        !is_same
    }
}

fn paths(options: &RunOptions) -> impl Iterator<Item = PathBuf> {
    let catalog = options.catalog.files();
    options.policies.iter().cloned().chain(catalog)
}

/// The files in a folder, as `policy::load` reads them, or the file itself.
fn entries(path: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(path) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(vec![path.to_owned()]),
        // One that is not there is as good as empty.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// A file as it is seen now; none if there is none.
fn seen(path: &Path, before: Option<&Seen>, is_compared: bool) -> Option<Seen> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Seen::Unreadable(error.kind())),
    };
    if !metadata.is_file() {
        return None;
    }
    let facts = Facts::of(&metadata);
    if let Some(Seen::File(known, content)) = before
        && *known == facts
        && !is_compared
        && !facts.is_young(&metadata)
    {
        return Some(Seen::File(facts, *content));
    }
    Some(match content_of(path) {
        Ok(content) => Seen::File(facts, content),
        Err(error) => Seen::Unreadable(error.kind()),
    })
}

fn content_of(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?.take(MAX_BYTES);
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finish());
        }
        hasher.write(buffer.get(..read).unwrap_or_default());
    }
}

/// When to read again.
#[derive(Debug, Default)]
struct Due {
    /// Since when all is as it is, after a change that was not taken up.
    stable_since: Option<Instant>,
    retry_at: Option<Instant>,
    pause: Option<Duration>,
}

impl Due {
    fn changed(&mut self, now: Instant) {
        self.stable_since = Some(now);
    }

    fn is_due(&self, now: Instant) -> bool {
        let is_stable = |since: Instant| now.saturating_duration_since(since) >= STABLE;
        match self.stable_since {
            Some(since) => is_stable(since),
            None => self.retry_at.is_some_and(|at| at <= now),
        }
    }

    fn taken(&mut self) {
        *self = Self::default();
    }

    fn refused(&mut self, now: Instant) {
        let pause = self
            .pause
            .map_or(RETRY, |pause| pause.saturating_mul(2).min(MAX_RETRY));
        *self = Self {
            stable_since: None,
            retry_at: now.checked_add(pause),
            pause: Some(pause),
        };
    }
}

/// Takes up what changes until it is asked to stop.
///
/// # Errors
///
/// A task of the runtime failed.
pub(super) async fn run(
    shared: Arc<Shared>,
    watched: Watched,
    asked: Reload,
    stop: Shutdown,
) -> anyhow::Result<()> {
    let mut timer = interval(TICK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut state = (watched, Due::default());
    loop {
        let mut is_asked = false;
        tokio::select! {
            _ = timer.tick() => {}
            () = asked.requested() => is_asked = true,
            () = stop.requested() => return Ok(()),
        }
        if is_asked {
            info!("policies are read again, as SIGHUP asks");
        }
        let follower = Arc::clone(&shared);
        let (mut watched, mut due) = state;
        let looked = tokio::task::spawn_blocking(move || {
            let now = Instant::now();
            if watched.changes(&follower.options, now) {
                due.changed(now);
            }
            if is_asked || due.is_due(now) {
                if follower.reload_files() {
                    due.taken();
                } else {
                    due.refused(Instant::now());
                }
            }
            (watched, due)
        });
        state = tokio::select! {
            looked = looked => looked?,
            // A disk that hangs is not waited for.
            () = stop.requested() => return Ok(()),
        };
    }
}

impl Shared {
    /// Reads the files and switches to what they say; says whether that is in force.
    fn reload_files(&self) -> bool {
        let reloaded = self.reload();
        datapath::release_memory();
        let mut refused = lock(&self.refused);
        match reloaded {
            Ok(()) => {
                info!("policy files taken up");
                *refused = None;
                true
            }
            Err(error) => {
                let message = format!("{error:#}");
                if refused.as_ref() != Some(&message) {
                    error!(
                        error = message,
                        "policy change refused; the old policy stays, the new one is tried again"
                    );
                }
                *refused = Some(message);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::SystemTime};

    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    /// The options of `run --policy` with this path.
    fn options(path: &Path) -> RunOptions {
        let path = path.to_str().expect("a plain path");
        let cli = Cli::try_parse_from([
            "egress-agent",
            "run",
            "--cgroup",
            "/",
            "--policy",
            path,
            "--resolver",
            "192.0.2.1",
        ])
        .expect("is right");
        let Command::Run(run) = cli.command else {
            panic!("it is run");
        };
        run.into_options().expect("is right")
    }

    #[test]
    fn a_change_is_seen_whatever_the_times_say() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("node.yaml");
        let options = options(folder.path());
        fs::write(&file, "one").expect("is written");
        let mut watched = Watched::look(&options);
        let mut looks = |what: &str, is_change: bool| {
            let changes = watched.changes(&options, Instant::now());
            assert_eq!(changes, is_change, "{what}");
        };
        looks("nothing", false);
        let old = SystemTime::UNIX_EPOCH;
        let set_old = |path: &Path| {
            let file = File::options().write(true).open(path).expect("opens");
            file.set_modified(old).expect("is set");
        };
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("is set");
        looks("who may read it", false);
        set_old(&file);
        looks("a time of content", true);
        fs::write(&file, "two").expect("is written");
        set_old(&file);
        looks("same size, inode and time of content", true);
        fs::write(&file, "tri").expect("is written");
        looks("written in the same moment", true);
        let other = folder.path().join(".new");
        fs::write(&other, "for").expect("is written");
        set_old(&other);
        fs::rename(&other, &file).expect("is renamed");
        looks("renamed", true);
        fs::remove_file(&file).expect("is removed");
        looks("removed", true);
        fs::write(&file, "for").expect("is written");
        looks("made again", true);
    }

    #[test]
    fn what_can_be_read_again_is_a_change() {
        if nix::unistd::geteuid().is_root() {
            // Root reads everything: what a mode forbids others, a folder in the way forbids root.
            let folder = tempfile::tempdir().expect("a folder");
            let way = folder.path().join("way");
            let file = way.join("node.yaml");
            let options = options(&file);
            fs::create_dir(&way).expect("is made");
            fs::write(&file, "one").expect("is written");
            let mut watched = Watched::look(&options);
            fs::remove_dir_all(&way).expect("is removed");
            assert!(watched.changes(&options, Instant::now()));
            fs::create_dir(&way).expect("is made");
            fs::write(&file, "one").expect("is written");
            assert!(watched.changes(&options, Instant::now()));
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("node.yaml");
        let options = options(folder.path());
        fs::write(&file, "one").expect("is written");
        let mode = |bits| {
            fs::set_permissions(&file, fs::Permissions::from_mode(bits)).expect("is set");
        };
        mode(0);
        let mut watched = Watched::look(&options);
        mode(0o600);
        assert!(watched.changes(&options, Instant::now()));
    }

    #[test]
    fn half_of_a_file_is_not_taken_and_what_was_refused_is_tried_again() {
        let start = Instant::now();
        let after = |passed| start.checked_add(passed).expect("in range");
        let mut due = Due::default();
        assert!(!due.is_due(start), "nothing changed");
        due.changed(start);
        due.changed(after(STABLE / 2));
        assert!(!due.is_due(after(STABLE)), "it is still being written");
        assert!(due.is_due(after(STABLE * 2)));
        let refused_at = after(STABLE * 2);
        due.refused(refused_at);
        assert!(!due.is_due(refused_at));
        let again = refused_at.checked_add(RETRY).expect("in range");
        assert!(due.is_due(again));
        due.refused(again);
        assert!(
            !due.is_due(again.checked_add(RETRY).expect("in range")),
            "later and later"
        );
        for _ in 0..10 {
            due.refused(again);
        }
        assert!(due.is_due(again.checked_add(MAX_RETRY).expect("in range")));
        due.changed(again);
        due.taken();
        assert!(!due.is_due(again.checked_add(MAX_RETRY).expect("in range")));
    }
}
