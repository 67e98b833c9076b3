//! Limits of the machine and of the maps, looked at before anything is changed.

use std::{fs, path::Path};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

use super::plan::check_scopes;
use crate::cli::{RunOptions, UsageError};

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
    match memory_limit().map(|limit| is_memory_enough(limit, learned)) {
        Some(Err(error)) => Err(UsageError::new(error)),
        Some(Ok(Some(doubt))) => {
            warn!("{doubt}");
            Ok(())
        }
        Some(Ok(None)) | None => Ok(()),
    }
}

/// Memory that the agent and its maps hold, without a learned address (measured: docs/reliability.md).
const HELD_BYTES: u64 = 48 << 20;
/// Memory that a start takes for a moment, where the kernel counts the verifier's work (measured there too).
const START_BYTES: u64 = 128 << 20;
/// The part of [`HELD_BYTES`] that grows with `--max-learned`: 16 bytes for each place of the table.
const TABLE_BYTES: u64 = table_bytes(524_288);

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

/// The least limit of memory on the way from the agent's cgroup to the root; none where there is none.
fn memory_limit() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = own.lines().filter_map(|line| {
        let (folder, file) = folder_of(line)?;
        least_limit(Path::new(folder.0), folder.1, file)
    });
    limits.min()
}

/// Where the memory controller of a line of /proc/self/cgroup is: mount point, path and the name of the limit.
fn folder_of(line: &str) -> Option<((&'static str, &str), &'static str)> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let path = path.trim_start_matches('/');
    if number == "0" {
        return Some((("/sys/fs/cgroup", path), "memory.max"));
    }
    let is_memory = controllers.split(',').any(|one| one == "memory");
    is_memory.then_some((("/sys/fs/cgroup/memory", path), "memory.limit_in_bytes"))
}

fn least_limit(mount: &Path, path: &str, file: &str) -> Option<u64> {
    let own = mount.join(path);
    let folders = own
        .ancestors()
        .take_while(|folder| folder.starts_with(mount));
    let limits = folders.filter_map(|folder| {
        let text = fs::read_to_string(folder.join(file)).ok()?;
        text.trim().parse::<u64>().ok()
    });
    limits.min()
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
        let one = folder_of("4:memory:/a/b");
        assert_eq!(
            one,
            Some((("/sys/fs/cgroup/memory", "a/b"), "memory.limit_in_bytes"))
        );
        let two = folder_of("0::/");
        assert_eq!(two, Some((("/sys/fs/cgroup", ""), "memory.max")));
        assert_eq!(folder_of("3:cpu,cpuacct:/"), None);
    }

    #[test]
    fn the_least_limit_on_the_way_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let (mount, below) = (root.path(), root.path().join("a/b"));
        fs::create_dir_all(&below).expect("made");
        assert_eq!(least_limit(mount, "a/b", "memory.max"), None);
        for (folder, limit) in [(mount.join("a"), "1000\n"), (below, "max\n")] {
            fs::write(folder.join("memory.max"), limit).expect("written");
        }
        assert_eq!(least_limit(mount, "a/b", "memory.max"), Some(1000));
    }

    #[test]
    fn too_few_descriptors_are_told_with_both_figures() {
        assert_eq!(is_enough(DESCRIPTORS), Ok(()));
        let error = is_enough(DESCRIPTORS - 1).expect_err("too few");
        assert!(error.contains("511") && error.contains("512"), "{error}");
    }
}
