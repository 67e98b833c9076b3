//! Limits of the machine and of the maps, looked at before anything is changed.

use std::{fs, path::Path};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

use super::plan::check_scopes;
use crate::{
    cli::{RunOptions, UsageError},
    datapath,
};

/// Descriptors that the agent needs: maps, programs, links, rings, its socket with readers, files.
const DESCRIPTORS: u64 = 512;
/// Descriptors that it asks for, if it may have them.
const WANTED_DESCRIPTORS: u64 = 65_536;

/// Raises what may be raised, and says what is below need.
///
/// # Errors
///
/// A limit, as a sentence.
pub(super) fn check(options: &RunOptions) -> Result<(), UsageError> {
    check_scopes(options.scopes.len().saturating_add(1)).map_err(UsageError::new)?;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return Ok(());
    };
    let wanted = WANTED_DESCRIPTORS.min(hard);
    if soft < wanted
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    {
        warn!(%error, "the limit of open files cannot be raised");
    }
    let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |(soft, _)| soft);
    is_enough(most).map_err(UsageError::new)?;
    let learned = u64::from(options.max_learned);
    let Some(memory) = Memory::of_this_process() else {
        return Ok(());
    };
    if let Some(doubt) = is_memory_enough(memory.limit, learned).map_err(UsageError::new)? {
        warn!("{doubt}");
    }
    let held = datapath::pinned_room(&options.pin_dir).map(u64::from);
    match held.filter(|held| *held != learned) {
        Some(held) => is_room_to_resize(memory, held, learned).map_err(UsageError::new),
        None => Ok(()),
    }
}

/// Memory that the agent and its maps hold, without a learned address (measured: docs/reliability.md).
const HELD_BYTES: u64 = 48 << 20;
/// Memory that a start takes for a moment, where the kernel counts the verifier's work (measured there too).
const START_BYTES: u64 = 128 << 20;
/// The part of [`HELD_BYTES`] that grows with `--max-learned`: 16 bytes for each place of the table.
const TABLE_BYTES: u64 = table_bytes(524_288);

/// Memory of the maps that are made anew when the size of the table changes, without the table (measured there too).
const RESIZE_BYTES: u64 = 12 << 20;

const fn table_bytes(learned: u64) -> u64 {
    learned.next_power_of_two().saturating_mul(16)
}

/// Checks that a limit of memory leaves room: an error where it never can, a doubt where the kernel may end the agent.
fn is_memory_enough(limit: u64, learned: u64) -> Result<Option<String>, String> {
    let more = table_bytes(learned).saturating_sub(TABLE_BYTES);
    let (held, start) = (
        HELD_BYTES.saturating_add(more),
        START_BYTES.saturating_add(more),
    );
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let words = format!(
        "the agent's cgroup may use {} MiB of memory; with --max-learned {learned} its maps and itself hold {} MiB, and a start takes \
         up to {} MiB: raise memory.max, MemoryMax= of its unit or the container's limit",
        limit.div_euclid(1 << 20),
        mib(held),
        mib(start)
    );
    if limit < held {
        return Err(words);
    }
    Ok((limit < start).then_some(words))
}

/// Checks that there is room for a table of another size beside the one that is pinned, which judges until the new one
/// does: the maps of the policy are made anew with it.
fn is_room_to_resize(memory: Memory, held: u64, learned: u64) -> Result<(), String> {
    let needed = table_bytes(learned)
        .saturating_add(RESIZE_BYTES)
        .saturating_add(START_BYTES.saturating_sub(HELD_BYTES));
    if memory.room >= needed {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(format!(
        "--max-learned {learned}: the new table stands beside the pinned one, which has room for {held}, until it takes over; with the \
         start it takes up to {} MiB more, and of the {} MiB that the agent's cgroup may use {} are free: raise memory.max, MemoryMax= of \
         its unit or the container's limit, or start with --max-learned {held}; nothing was changed, the pinned programs go on",
        mib(needed),
        memory.limit.div_euclid(1 << 20),
        memory.room.div_euclid(1 << 20)
    ))
}

/// The memory that the agent's cgroup may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    /// The least limit on the way from the cgroup to the root.
    limit: u64,
    /// The least room that is left on that way, with what the kernel can take back at once.
    room: u64,
}

impl Memory {
    /// None where there is no limit.
    fn of_this_process() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let found = own.lines().filter_map(|line| {
            let (folder, names) = folder_of(line)?;
            Self::least(Path::new(folder.0), folder.1, names)
        });
        found.reduce(Self::and)
    }

    fn least(mount: &Path, path: &str, names: &Names) -> Option<Self> {
        let own = mount.join(path);
        let folders = own
            .ancestors()
            .take_while(|folder| folder.starts_with(mount));
        let found = folders.filter_map(|folder| {
            let limit = number(&folder.join(names.limit))?;
            let used = number(&folder.join(names.used)).unwrap_or(0);
            let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let used = used.saturating_sub(names.reclaimable(&stat));
            Some(Self {
                limit,
                room: limit.saturating_sub(used),
            })
        });
        found.reduce(Self::and)
    }

    fn and(self, other: Self) -> Self {
        Self {
            limit: self.limit.min(other.limit),
            room: self.room.min(other.room),
        }
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The files of the memory controller, in one of its versions.
#[derive(Debug)]
struct Names {
    limit: &'static str,
    used: &'static str,
    /// Lines of `memory.stat`: the file cache, and the part of it that is no cache.
    cache: &'static str,
    no_cache: &'static str,
}

const VERSION_1: Names = Names {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: "total_cache",
    no_cache: "total_shmem",
};
const VERSION_2: Names = Names {
    limit: "memory.max",
    used: "memory.current",
    cache: "file",
    no_cache: "shmem",
};

impl Names {
    fn reclaimable(&self, stat: &str) -> u64 {
        let of_line = |name: &str| {
            let line = stat
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|bytes| bytes.parse::<u64>().ok())
                .unwrap_or(0)
        };
        of_line(self.cache).saturating_sub(of_line(self.no_cache))
    }
}

/// Where the memory controller of a line of /proc/self/cgroup is: mount point, path and names of its files.
fn folder_of(line: &str) -> Option<((&'static str, &str), &'static Names)> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let path = path.trim_start_matches('/');
    if number == "0" {
        return Some((("/sys/fs/cgroup", path), &VERSION_2));
    }
    let is_memory = controllers.split(',').any(|one| one == "memory");
    is_memory.then_some((("/sys/fs/cgroup/memory", path), &VERSION_1))
}

fn is_enough(most: u64) -> Result<(), String> {
    if most >= DESCRIPTORS {
        return Ok(());
    }
    Err(format!(
        "at most {most} files may be open, and the agent needs {DESCRIPTORS}: raise `ulimit -n`, or LimitNOFILE= of its unit"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_told_with_the_figures() {
        assert_eq!(is_memory_enough(START_BYTES, 524_288), Ok(None));
        let doubt = is_memory_enough(START_BYTES - 1, 524_288);
        let doubt = doubt.expect("can be").expect("a doubt");
        assert!(
            doubt.contains("127 MiB") && doubt.contains("128 MiB"),
            "{doubt}"
        );
        assert!(is_memory_enough(HELD_BYTES, 524_288).is_ok());
        let error = is_memory_enough(HELD_BYTES - 1, 524_288).expect_err("too little");
        assert!(
            error.contains("47 MiB") && error.contains("48 MiB"),
            "{error}"
        );
        // 64 MiB for four million places, 8 of which are counted already.
        let error = is_memory_enough(HELD_BYTES, 4_000_000).expect_err("too little");
        assert!(error.contains("104 MiB"), "{error}");
    }

    #[test]
    fn the_memory_controller_is_found_in_both_versions() {
        let found = |line| folder_of(line).map(|(folder, names)| (folder, names.limit));
        assert_eq!(
            found("4:memory:/a/b"),
            Some((("/sys/fs/cgroup/memory", "a/b"), "memory.limit_in_bytes"))
        );
        assert_eq!(found("0::/"), Some((("/sys/fs/cgroup", ""), "memory.max")));
        assert_eq!(found("3:cpu,cpuacct:/"), None);
    }

    #[test]
    fn the_least_limit_and_the_least_room_on_the_way_count() {
        let root = tempfile::tempdir().expect("a folder");
        let (mount, below) = (root.path(), root.path().join("a/b"));
        fs::create_dir_all(&below).expect("made");
        assert_eq!(Memory::least(mount, "a/b", &VERSION_2), None);
        let write = |folder: &Path, limit: &str, used: &str, stat: &str| {
            for (name, text) in [
                ("memory.max", limit),
                ("memory.current", used),
                ("memory.stat", stat),
            ] {
                fs::write(folder.join(name), text).expect("written");
            }
        };
        // The file cache makes room, but for what is in it as memory that is shared.
        write(
            &mount.join("a"),
            "2000\n",
            "1900\n",
            "anon 900\nfile 1000\nfile_dirty 7\nshmem 300\n",
        );
        write(&below, "1000\n", "100\n", "");
        let found = Memory::least(mount, "a/b", &VERSION_2);
        let (limit, room) = (1000, 800);
        assert_eq!(found, Some(Memory { limit, room }));
        write(&below, "max\n", "100\n", "");
        let found = Memory::least(mount, "a/b", &VERSION_2);
        let limit = 2000;
        assert_eq!(found, Some(Memory { limit, room }));
    }

    #[test]
    fn a_table_of_another_size_needs_room_beside_the_pinned_one() {
        let of = |room| Memory {
            limit: 256 << 20,
            room,
        };
        let needed = (16 << 20) + RESIZE_BYTES + START_BYTES - HELD_BYTES;
        assert_eq!(is_room_to_resize(of(needed), 524_288, 1_000_000), Ok(()));
        let error = is_room_to_resize(of(needed - 1), 524_288, 1_000_000).expect_err("too little");
        let needed = format!("up to {} MiB more", needed >> 20);
        for part in [&needed, "256 MiB", "--max-learned 524288"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn too_few_descriptors_are_told_with_both_figures() {
        assert_eq!(is_enough(DESCRIPTORS), Ok(()));
        let error = is_enough(DESCRIPTORS - 1).expect_err("too few");
        assert!(error.contains("511") && error.contains("512"), "{error}");
    }
}
