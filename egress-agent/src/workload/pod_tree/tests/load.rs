//! With threads that make and remove while the tree is read, and in the real hierarchy.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tokio::io::unix::AsyncFd;

use super::*;
use crate::datapath::{cgroup_facts, readable};

/// Waits for the next events as the daemon does.
async fn next(tree: &mut AsyncFd<PodTree>) -> Vec<PodEvent> {
    loop {
        let mut ready = tree.readable_mut().await.unwrap();
        match ready.get_inner_mut().read().unwrap() {
            Some(events) if events.is_empty() => {}
            Some(events) => return events,
            None => ready.clear_ready(),
        }
    }
}

/// Many pods at once, made by one thread and reported to another that waits.
fn many_at_once(bed: &Bed) {
    const PODS: u32 = 250;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (tree, events) = bed.tree();
    assert_eq!(events, []);
    let (made, removed) = thread::scope(|threads| {
        let (go, wait) = mpsc::channel::<()>();
        threads.spawn(move || {
            for number in 0..PODS {
                bed.make(&format!("{}/0a", systemd(number)));
            }
            wait.recv().unwrap();
            bed.remove("kubepods.slice");
        });
        runtime.block_on(async {
            let began = Instant::now();
            let mut tree = readable(tree).unwrap();
            let mut told = Told::default();
            while told.pods.len() < PODS as usize {
                let events = tokio::time::timeout(Duration::from_secs(20), next(&mut tree)).await;
                told.take(&events.expect("all pods are told"));
            }
            let made = began.elapsed();
            go.send(()).unwrap();
            while !told.pods.is_empty() {
                let events = tokio::time::timeout(Duration::from_secs(20), next(&mut tree)).await;
                told.take(&events.expect("all pods are told"));
            }
            (made, began.elapsed().saturating_sub(made))
        })
    });
    let place = bed.root.display();
    println!("{place}: {PODS} pods made and told in {made:?}, removed and told in {removed:?}");
}

#[test]
fn many_pods_at_once_are_all_told_once() {
    many_at_once(&Bed::plain());
}

/// Names that are used again and again while they are read.
fn churn(bed: &Bed) {
    let (mut tree, events) = bed.tree();
    assert_eq!(events, []);
    let mut told = Told::default();
    thread::scope(|threads| {
        let maker = threads.spawn(|| {
            for round in 0..200 {
                for number in 0..4 {
                    bed.make(&cgroupfs(number));
                }
                bed.remove(if round % 2 == 0 {
                    "kubepods"
                } else {
                    "kubepods/besteffort"
                });
                bed.make(&cgroupfs(round % 3));
            }
        });
        while !maker.is_finished() {
            told.take(&tree.read().unwrap().unwrap_or_default());
        }
    });
    told.take(&queued(&mut tree));
    let mut expected = BTreeMap::new();
    there(&bed.root, Path::new(""), &mut expected);
    assert_eq!((told.pods.len(), &told.pods), (1, &expected));
    assert!(!told.gone.is_empty(), "nothing was read meanwhile");
    bed.remove("kubepods");
}

#[test]
fn names_that_are_used_again_while_they_are_read_are_told_once() {
    churn(&Bed::plain());
}

/// How long after the mkdir(2) of a pod's cgroup a task that waits knows of it.
fn time_to_event(bed: &Bed) {
    const PODS: u32 = 200;
    bed.make("kubepods.slice/kubepods-burstable.slice");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (tree, _) = bed.tree();
    let mut times: Vec<Duration> = thread::scope(|threads| {
        let (go, wait) = mpsc::channel::<u32>();
        let (began, begins) = mpsc::channel::<Instant>();
        threads.spawn(move || {
            for number in wait {
                // So that the task sleeps when it happens.
                thread::sleep(Duration::from_millis(1));
                let now = Instant::now();
                fs::create_dir(bed.root.join(systemd(number))).unwrap();
                began.send(now).unwrap();
            }
        });
        runtime.block_on(async {
            let mut tree = readable(tree).unwrap();
            let mut times = Vec::new();
            for number in 0..PODS {
                go.send(number).unwrap();
                let events = tokio::time::timeout(Duration::from_secs(20), next(&mut tree)).await;
                let told = Instant::now();
                assert_eq!(events.expect("the pod is told").len(), 1);
                times.push(told.duration_since(begins.recv().unwrap()));
            }
            drop(go);
            times
        })
    });
    times.sort_unstable();
    let (median, p99, last) = (times[100], times[198], times[199]);
    let place = bed.root.display();
    println!("{place}: from mkdir to event: median {median:?}, p99 {p99:?}, longest {last:?}");
    assert!(median < Duration::from_millis(500), "median {median:?}");
}

#[test]
fn a_pod_is_told_soon_after_its_cgroup_is_made() {
    time_to_event(&Bed::plain());
}

#[test]
fn pods_are_found_in_cgroup_v2() {
    let Some(bed) = Bed::cgroup(7001) else { return };
    slices_come_and_go(&bed);
    names_are_used_again(&bed);
    bed.remove("kubepods");
    churn(&bed);
    many_at_once(&bed);
    time_to_event(&bed);
    // Seen from the root of the hierarchy, id and level are those by which the programs know a cgroup.
    let path = bed.root.join(systemd(900));
    fs::create_dir_all(&path).unwrap();
    let root = cgroup_root().unwrap();
    let (_, events) = PodTree::watch(&root).unwrap();
    let told = events.iter().find_map(|event| match event {
        PodEvent::Made {
            uid: told,
            cgroup_id,
            path: below,
            level,
        } => (*told == uid(900) && root.join(below) == path).then_some((*cgroup_id, *level)),
        PodEvent::Gone { .. } | PodEvent::Unseen(_) => None,
    });
    assert_eq!(told, Some(cgroup_facts(&path).unwrap()));
}

/// One thing that happens to the tree.
#[derive(Clone, Debug)]
enum Step {
    Make(String),
    Remove(String),
    Read,
    Rescan,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let path = (0..3_u32, any::<bool>(), 0..4_usize).prop_map(|(number, is_systemd, up)| {
        let path = if is_systemd {
            systemd(number)
        } else {
            cgroupfs(number)
        };
        let names: Vec<&str> = path.split('/').collect();
        names[..names.len().saturating_sub(up).max(1)].join("/")
    });
    let step = prop_oneof![
        5 => path.clone().prop_map(Step::Make),
        4 => path.prop_map(Step::Remove),
        2 => Just(Step::Read),
        1 => Just(Step::Rescan),
    ];
    prop::collection::vec(step, 0..40)
}

/// The pods that are there, by walking.
fn there(root: &Path, path: &Path, pods: &mut BTreeMap<u64, PathBuf>) {
    for entry in fs::read_dir(root.join(path)).unwrap().flatten() {
        let path = path.join(entry.file_name());
        if pod_at(&path).is_some() {
            pods.insert(entry.metadata().unwrap().ino(), path);
        } else if entry.file_type().unwrap().is_dir() {
            there(root, &path, pods);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_events_leave_the_pods_that_are_there(steps in steps()) {
        let bed = Bed::plain();
        let (mut tree, events) = bed.tree();
        let mut told = Told::default();
        told.take(&events);
        for step in steps {
            match step {
                Step::Make(path) => {
                    bed.make(&path);
                }
                Step::Remove(path) => bed.remove(&path),
                Step::Read => told.take(&tree.read().unwrap().unwrap_or_default()),
                Step::Rescan => told.take(&tree.rescan().unwrap()),
            }
        }
        told.take(&queued(&mut tree));
        let mut expected = BTreeMap::new();
        there(&bed.root, Path::new(""), &mut expected);
        prop_assert_eq!(told.pods, expected);
    }
}
