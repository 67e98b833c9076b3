//! Each scenario runs in a plain directory; those that depend on the file system also in cgroup v2.

mod load;

use std::{io::Write as _, thread};

use super::*;
use crate::workload::cgroup_root;

/// A directory of our own: in a tmpfs, which like cgroup v2 gives no inode number twice, or in cgroup v2.
struct Bed {
    root: PathBuf,
}

impl Bed {
    fn plain() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("egt-pods-")
            .tempdir_in("/dev/shm")
            .unwrap();
        Self {
            root: directory.keep(),
        }
    }

    /// `None`, with a note, where cgroups cannot be made.
    fn cgroup(number: u32) -> Option<Self> {
        let name = thread::current().name().unwrap_or("test").to_owned();
        let skipped = |reason: &str| {
            // Not eprintln: the runner counts these lines, also those of passed tests. In one piece: tests run side by side.
            let line = format!("SKIPPED {name}: {reason}\n");
            let _ = io::stderr().write_all(line.as_bytes());
        };
        if !nix::unistd::Uid::effective().is_root() {
            skipped("needs root");
            return None;
        }
        let Some(mount) = cgroup_root() else {
            skipped("cgroup v2 is not mounted");
            return None;
        };
        // So named, the net tests remove it if this process is killed.
        let root = mount.join(format!("egt-{}-{number}", std::process::id()));
        fs::create_dir(&root).unwrap();
        Some(Self { root })
    }

    fn make(&self, path: &str) -> u64 {
        let path = self.root.join(path);
        fs::create_dir_all(&path).unwrap();
        fs::metadata(&path).unwrap().ino()
    }

    /// Removes a directory and all below, directory by directory, as it has to be done with cgroups.
    fn remove(&self, path: &str) {
        remove_tree(&self.root.join(path));
    }

    fn tree(&self) -> (PodTree, Vec<PodEvent>) {
        PodTree::watch(&self.root).unwrap()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.root.starts_with("/dev/shm") {
            let _ = fs::remove_dir_all(&self.root);
        } else {
            remove_tree(&self.root);
        }
    }
}

fn remove_tree(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

fn uid(number: u32) -> PodUid {
    PodUid::new(&format!("{number:08x}-0000-4000-8000-000000000000")).unwrap()
}

fn systemd(number: u32) -> String {
    let uid = uid(number).as_str().replace('-', "_");
    format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice")
}

fn cgroupfs(number: u32) -> String {
    format!("kubepods/besteffort/pod{}", uid(number))
}

fn made(number: u32, cgroup_id: u64, path: &str) -> PodEvent {
    PodEvent::Made {
        uid: uid(number),
        cgroup_id,
        path: PathBuf::from(path),
        level: i32::try_from(path.split('/').count()).unwrap(),
    }
}

fn gone(cgroup_id: u64) -> PodEvent {
    PodEvent::Gone { cgroup_id }
}

/// Everything that the kernel has queued. It queues before mkdir(2) and rmdir(2) return.
fn queued(tree: &mut PodTree) -> Vec<PodEvent> {
    let mut events = Vec::new();
    while let Some(some) = tree.read().unwrap() {
        events.extend(some);
    }
    events
}

/// The pods that events reported.
#[derive(Default)]
struct Told {
    pods: BTreeMap<u64, PathBuf>,
    gone: BTreeSet<u64>,
}

impl Told {
    /// A pod is made once, and gone once.
    fn take(&mut self, events: &[PodEvent]) {
        for event in events {
            match event {
                PodEvent::Made {
                    cgroup_id, path, ..
                } => {
                    assert!(
                        !self.gone.contains(cgroup_id),
                        "{event:?} after it was gone"
                    );
                    let before = self.pods.insert(*cgroup_id, path.clone());
                    assert_eq!(before, None, "told twice");
                }
                PodEvent::Gone { cgroup_id } => {
                    assert!(
                        self.pods.remove(cgroup_id).is_some(),
                        "gone, but never made"
                    );
                    self.gone.insert(*cgroup_id);
                }
                PodEvent::Unseen(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn pods_that_exist_are_told_at_the_beginning() {
    let bed = Bed::plain();
    let nested = format!("docker/0a/{}", cgroupfs(3));
    let mismatch = "system.slice/containerd.service/kubepods-pod00000004_0000_4000_8000_000000000000.slice:cri-containerd:0a";
    let ids = [&systemd(1), &cgroupfs(2), &nested, mismatch].map(|path| bed.make(path));
    bed.make(&format!("{}/cri-containerd-0a.scope", systemd(1)));
    bed.make("kubepods/podinfo");
    fs::write(bed.root.join("kubepods/pod.max"), "").unwrap();
    let (mut tree, mut events) = bed.tree();
    events.sort_by_key(|event| match event {
        PodEvent::Made { uid, .. } => uid.to_string(),
        PodEvent::Gone { .. } | PodEvent::Unseen(_) => panic!("{event:?}"),
    });
    assert_eq!(
        events,
        [
            made(1, ids[0], &systemd(1)),
            made(2, ids[1], &cgroupfs(2)),
            made(3, ids[2], &nested),
            made(4, ids[3], mismatch),
        ]
    );
    assert_eq!(queued(&mut tree), []);
}

fn slices_come_and_go(bed: &Bed) {
    let (mut tree, events) = bed.tree();
    assert_eq!(events, []);
    for _ in 0..3 {
        let (first, second) = (bed.make(&systemd(1)), bed.make(&systemd(2)));
        let mut told = Told::default();
        told.take(&queued(&mut tree));
        let expected = [(first, systemd(1).into()), (second, systemd(2).into())];
        assert_eq!(told.pods, BTreeMap::from(expected));

        // Cgroups below a pod are not reported.
        bed.make(&format!("{}/crio-0a.scope/container", systemd(1)));
        assert_eq!(queued(&mut tree), []);

        bed.remove(&systemd(2));
        assert_eq!(queued(&mut tree), [gone(second)]);
        bed.remove("kubepods.slice");
        assert_eq!(queued(&mut tree), [gone(first)]);
    }
    assert_eq!((tree.known.len(), tree.watched.len()), (1, 1));
}

#[test]
fn kubepods_may_come_late_and_be_removed_and_made_again() {
    slices_come_and_go(&Bed::plain());
}

#[test]
fn a_directory_that_is_made_between_the_watch_and_the_scan_is_told_once() {
    let bed = Bed::plain();
    bed.make("kubepods");
    let (mut tree, _) = bed.tree();
    let inode = bed.make("kubepods/besteffort");
    // The steps of `look` at the new directory, with what happens meanwhile.
    assert!(tree.enter(Path::new("kubepods/besteffort"), inode));
    let between = bed.make(&cgroupfs(1));
    for child in tree.children(Path::new("kubepods/besteffort")) {
        tree.look(child);
    }
    let after = bed.make(&cgroupfs(2));
    let expected = [made(1, between, &cgroupfs(1)), made(2, after, &cgroupfs(2))];
    assert_eq!(queued(&mut tree), expected);
}

#[test]
fn a_directory_that_is_gone_before_its_turn_is_none() {
    let bed = Bed::plain();
    bed.make("kubepods/besteffort");
    let (mut tree, _) = bed.tree();
    bed.make(&cgroupfs(1));
    bed.remove(&cgroupfs(1));
    assert_eq!(queued(&mut tree), []);
    // Watched, and gone before it is read.
    let inode = bed.make("kubepods/burstable");
    assert!(tree.enter(Path::new("kubepods/burstable"), inode));
    bed.remove("kubepods");
    let children = tree.children(Path::new("kubepods/burstable"));
    assert!(children.is_empty(), "{children:?}");
    assert_eq!(queued(&mut tree), []);
    assert_eq!(tree.known.len(), 1);
}

fn names_are_used_again(bed: &Bed) {
    let first = bed.make(&cgroupfs(1));
    let (mut tree, events) = bed.tree();
    assert_eq!(events, [made(1, first, &cgroupfs(1))]);
    // The pod's own, unread in between.
    bed.remove(&cgroupfs(1));
    let second = bed.make(&cgroupfs(1));
    assert_ne!(first, second);
    let told = [gone(first), made(1, second, &cgroupfs(1))];
    assert_eq!(queued(&mut tree), told);
    // One above it.
    bed.remove("kubepods");
    let third = bed.make(&cgroupfs(1));
    let told = [gone(second), made(1, third, &cgroupfs(1))];
    assert_eq!(queued(&mut tree), told);
    // The new directories are watched.
    bed.remove(&cgroupfs(1));
    let fourth = bed.make(&cgroupfs(2));
    let told = [gone(third), made(2, fourth, &cgroupfs(2))];
    assert_eq!(queued(&mut tree), told);
}

#[test]
fn a_directory_made_again_under_its_name_is_another_pod() {
    names_are_used_again(&Bed::plain());
}

#[test]
fn a_queue_that_overflows_loses_nothing() {
    let bed = Bed::plain();
    let (first, second) = (bed.make(&cgroupfs(1)), bed.make(&cgroupfs(2)));
    let (mut tree, _) = bed.tree();
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    // Two events each, and no two in a row are alike.
    for _ in 0..=limit / 2 {
        bed.make("kubepods/noise");
        fs::remove_dir(bed.root.join("kubepods/noise")).unwrap();
    }
    // No event reports these.
    bed.remove(&cgroupfs(1));
    bed.remove(&cgroupfs(2));
    let third = bed.make(&cgroupfs(2));
    let late = bed.make(&systemd(4));
    let mut events = queued(&mut tree);
    // In the order of paths, and what is new afterwards.
    events.sort_by_key(|event| matches!(event, PodEvent::Made { .. }));
    assert_eq!(events.len(), 4, "{events:?}");
    assert_eq!(&events[..2], [gone(first), gone(second)]);
    let made = [made(2, third, &cgroupfs(2)), made(4, late, &systemd(4))];
    assert!(made.iter().all(|made| events.contains(made)), "{events:?}");
    // And it goes on as before.
    bed.remove(&systemd(4));
    assert_eq!(queued(&mut tree), [gone(late)]);
}

#[test]
fn what_cannot_be_looked_at_is_said_and_the_rest_goes_on() {
    use nix::{
        dir::Dir,
        fcntl::OFlag,
        sys::stat::{Mode, mkdirat},
    };
    let bed = Bed::plain();
    let (mut tree, _) = bed.tree();
    // A path longer than PATH_MAX (4,096 bytes).
    let name = "d".repeat(255);
    bed.make("deep");
    let mut directory =
        Dir::open(&bed.root.join("deep"), OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..17 {
        mkdirat(&directory, name.as_str(), Mode::S_IRWXU).unwrap();
        directory =
            Dir::openat(&directory, name.as_str(), OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    }
    let pod = bed.make(&cgroupfs(1));
    let is_too_long = |event: &PodEvent| {
        matches!(
            event,
            PodEvent::Unseen(PodTreeError::Read {
                source: Errno::ENAMETOOLONG,
                ..
            })
        )
    };
    let events = queued(&mut tree);
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(is_too_long(&events[0]) && events[1] == made(1, pod, &cgroupfs(1)));
    let again = tree.rescan().unwrap();
    assert!(again.len() == 1 && is_too_long(&again[0]), "{again:?}");
    fs::remove_dir_all(bed.root.join("deep")).unwrap();
    assert_eq!(tree.rescan().unwrap(), []);
}

#[test]
fn directories_of_other_users_are_left_out() {
    let Some(bed) = Bed::cgroup(7003) else { return };
    others_are_left_out(&bed);
    others_are_left_out(&Bed::plain());
}

fn others_are_left_out(bed: &Bed) {
    let session = bed.root.join("user.slice/session");
    bed.make("user.slice/session");
    std::os::unix::fs::chown(&session, Some(65_534), Some(65_534)).unwrap();
    bed.make(&format!("user.slice/session/{}", cgroupfs(1)));
    let own = bed.make(&format!("user.slice/own/{}", cgroupfs(2)));
    let (mut tree, events) = bed.tree();
    let path = format!("user.slice/own/{}", cgroupfs(2));
    assert_eq!(events, [made(2, own, &path)]);
    bed.make(&format!("user.slice/session/{}", cgroupfs(3)));
    assert_eq!(queued(&mut tree), []);
    // Delegated after it was seen.
    bed.make("user.slice/late");
    assert_eq!(queued(&mut tree), []);
    let late = bed.root.join("user.slice/late");
    std::os::unix::fs::chown(&late, Some(65_534), Some(65_534)).unwrap();
    fs::create_dir(late.join("kubepods")).unwrap();
    std::os::unix::fs::chown(late.join("kubepods"), Some(65_534), Some(65_534)).unwrap();
    bed.make(&format!("user.slice/late/{}", cgroupfs(4)));
    assert_eq!(queued(&mut tree), []);
}

#[test]
fn a_root_that_is_gone_is_an_error() {
    let bed = Bed::plain();
    let missing = PodTree::watch(&bed.root.join("missing")).unwrap_err();
    let told = missing.to_string();
    assert!(
        matches!(
            missing,
            PodTreeError::Read {
                source: Errno::ENOENT,
                ..
            }
        ),
        "{told}"
    );
    bed.make(&format!("cgroup/{}", cgroupfs(1)));
    let (mut tree, _) = PodTree::watch(&bed.root.join("cgroup")).unwrap();
    bed.remove("cgroup");
    let gone = PodTreeError::RootGone(bed.root.join("cgroup"));
    let ended = (0..100).find_map(|_| tree.read().err());
    assert_eq!(ended, Some(gone.clone()));
    assert_eq!(tree.rescan(), Err(gone));
}
