//! The cgroup v2 hierarchy: where it is mounted, and which path an id has.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Most cgroups that are looked at for their ids.
const MAX_CGROUPS: usize = 20_000;

/// Where cgroup v2 is mounted; `None` when it is not.
#[must_use]
pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    cgroup2_mount(&mounts)
}

fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    let mut points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (point, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescaped(point)))
    });
    // A later mount on the same place would hide it, one elsewhere (hybrid mode) does not.
    let first = points.next()?;
    let standard = Path::new("/sys/fs/cgroup");
    if first == standard || points.any(|point| point == standard) {
        return Some(standard.to_owned());
    }
    Some(first)
}

/// Mount points have space, tab, newline and backslash as `\040` and so on, proc_pid_mounts(5).
fn unescaped(point: &str) -> String {
    let mut text = String::with_capacity(point.len());
    let mut rest = point;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let code = after.get(..3).map(|digits| u8::from_str_radix(digits, 8));
        match code {
            Some(Ok(byte)) => {
                text.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            Some(Err(_)) | None => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

/// Paths of cgroups by their ids, read from the hierarchy when an unknown one is asked for.
#[derive(Debug, Default)]
pub struct CgroupPaths {
    paths: HashMap<u64, String>,
    read_at_ns: u64,
}

/// The hierarchy is not read again sooner than this.
const READ_AGAIN_NS: u64 = 1_000_000_000;

impl CgroupPaths {
    /// The path of a cgroup below the mount, if it is still there.
    pub fn path(&mut self, id: u64, now_ns: u64) -> Option<String> {
        let is_due = self.read_at_ns == 0 || now_ns.saturating_sub(self.read_at_ns) > READ_AGAIN_NS;
        if !self.paths.contains_key(&id) && is_due {
            self.read_at_ns = now_ns;
            self.paths = read_hierarchy();
        }
        self.paths.get(&id).cloned()
    }
}

fn read_hierarchy() -> HashMap<u64, String> {
    let Some(root) = cgroup_root() else {
        return HashMap::new();
    };
    let mut paths = HashMap::new();
    let mut waiting = vec![root.clone()];
    while let Some(directory) = waiting.pop() {
        if paths.len() == MAX_CGROUPS {
            break;
        }
        // A cgroup that goes away meanwhile is none.
        let Ok(metadata) = fs::metadata(&directory) else {
            continue;
        };
        let below = directory.strip_prefix(&root).unwrap_or(&directory);
        paths.insert(metadata.ino(), format!("/{}", below.display()));
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        let directories = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|file_type| file_type.is_dir()));
        waiting.extend(directories.map(|entry| entry.path()));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_in_both_layouts() {
        let unified = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(
            cgroup2_mount(unified),
            Some(PathBuf::from("/sys/fs/cgroup"))
        );
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs ro 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        assert_eq!(
            cgroup2_mount(hybrid),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        let twice = "none /run/cg\\040two cgroup2 rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(twice), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(cgroup2_mount("cgroup /sys/fs/cgroup cgroup rw 0 0\n"), None);
        assert_eq!(cgroup2_mount("short\n"), None);
    }

    #[test]
    fn escapes_of_mount_points_are_undone() {
        assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescaped("/a\\9"), "/a\\9");
    }
}
