//! A workload that tries everything at random, against a model.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use egress_tests::{
    World, eventually,
    expect::policy,
    own::{CGROUPS, RESOLVED, RULES, Scope},
    process::Running,
    ready, skip,
    world::Role,
};

/// Seconds of a run, where nobody says: `EGRESS_OWN_SECONDS`, in `EGRESS_OWN_SEED` what it draws from.
const SECONDS: u64 = 30;
/// Processes that try at the same time.
const PROCESSES: u64 = 2;
/// A rule that changes no verdict, while policies change.
const UNRELATED: &str = "- { cidrs: [192.0.2.0/24] }\n";

fn option(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Lines that begin like this.
fn lines(running: &Running, begin: &str) -> Vec<String> {
    let lines = running.lines().into_iter();
    lines.filter(|line| line.starts_with(begin)).collect()
}

/// The first number of the last line that begins like this.
fn number(running: &Running, begin: &str) -> u64 {
    let line = lines(running, begin).pop().unwrap_or_default();
    let mut words = line.split(' ').skip(1);
    words
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or_default()
}

/// Stops traffic that the model leaves out. At a pod's link a CNI lets nothing pass in the name of others; without, a
/// pod calls the node in anybody's name (`calls_by_a_neighbour`). And peers keep quiet: the answer to one scope may
/// reach another that has its port by then, and may reply (`ports_taken_over_from_another_scope`).
fn prepare(world: &World) -> bool {
    let sources = "table inet cni { chain in { type filter hook prerouting priority -300; \
        iifname pod0 ip saddr != 10.77.1.0/24 drop; \
        iifname pod0 ip6 saddr != { fd77:1::/64, fe80::/10 } drop; }; }";
    let quiet = "table inet quiet { chain out { type filter hook output priority 0; meta l4proto udp drop; }; }";
    [(Role::Node, sources), (Role::Web, quiet)]
        .into_iter()
        .all(|(role, rules)| {
            let output = Command::new("ip")
                .args(["netns", "exec", world.namespace(role).name(), "nft"])
                .arg(rules)
                .output();
            output.is_ok_and(|output| output.status.success())
        })
}

#[test]
fn a_workload_that_tries_everything_gets_nothing_but_what_is_allowed() {
    if !ready() {
        return;
    }
    let usual = if skip::is_quick() { 5 } else { SECONDS };
    let seconds = option("EGRESS_OWN_SECONDS").unwrap_or(usual);
    let seed = option("EGRESS_OWN_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("EGRESS_OWN_SEED={seed} EGRESS_OWN_SECONDS={seconds}");
    let world = World::builder().pod().build();
    if !prepare(&world) {
        skip::skip("no nft here that filters packets");
        return;
    }
    let name = |scope: Scope| ["a", "b", "plain"][scope as usize];
    let workloads = Scope::ALL.map(|scope| world.workload(name(scope)));
    let below = world.workload("a/below");
    let agent = world
        .agent(&policy(RULES))
        .scope("a", workloads[0].cgroup())
        .scope("b", workloads[1].cgroup())
        .start();
    let resolve = || {
        for (scope, name) in RESOLVED {
            for v6 in [false, true] {
                workloads[scope as usize].resolve(name, v6);
            }
        }
    };
    resolve();
    let mut wire = world.outsider(Role::Web).background(&["own-watch", "node"]);
    let limit = Duration::from_secs(5);
    wire.wait_for_line(0, limit, |line| line == "ready")
        .unwrap();

    let cgroups = [
        workloads[0].cgroup(),
        below.cgroup(),
        workloads[1].cgroup(),
        workloads[2].cgroup(),
    ]
    .map(|path| path.display().to_string());
    assert_eq!(cgroups.len(), CGROUPS.len());
    let namespaces =
        [Role::Node, Role::Pod].map(|role| world.namespace(role).path().display().to_string());
    let mut tries: Vec<_> = (0..PROCESSES)
        .map(|number| {
            let words = [seed + number, seconds, number].map(|word| word.to_string());
            let mut args = vec!["own", "--seed", &words[0], "--seconds", &words[1]];
            args.extend(["--number", &words[2], "--cgroup"]);
            args.extend(cgroups.iter().map(String::as_str));
            args.push("--namespace");
            args.extend(namespaces.iter().map(String::as_str));
            workloads[2].background(&args)
        })
        .collect();

    // Meanwhile policies change, and none of it matters.
    let end = Instant::now() + Duration::from_secs(seconds + 60);
    let mut rounds = 0_u32;
    while tries.iter_mut().any(|one| one.ended().is_none()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(700));
        rounds += 1;
        let more = [UNRELATED, ""][rounds as usize % 2];
        agent.reload_within(
            Duration::from_secs(60),
            &policy(&RULES.replace("allow:\n", &format!("allow:\n{more}"))),
        );
        if rounds.is_multiple_of(30) {
            resolve();
        }
        assert_eq!(lines(&wire, "forbidden"), [""; 0], "EGRESS_OWN_SEED={seed}");
    }
    let due: u64 = tries.iter().map(|one| number(one, "done")).sum();
    let arrived = || number(&wire, "seen");
    let has_come = eventually(Duration::from_secs(3), || arrived() * 100 >= due * 99);
    for one in &tries {
        assert_eq!(lines(one, "refused"), [""; 0], "{:#?}", one.lines());
        assert_ne!(lines(one, "done"), [""; 0], "{:?}", one.errors());
    }
    assert_eq!(lines(&wire, "forbidden"), [""; 0], "EGRESS_OWN_SEED={seed}");
    let moved = agent.counters();
    eprintln!(
        "{due} allowed datagrams, {} of them on the wire, {} packets denied, {:?}",
        arrived(),
        moved.denied,
        lines(&wire, "seen").pop(),
    );
    assert!(due > 100 && moved.denied > 100, "{due} {moved:?}");
    assert!(has_come, "{} of {due} came", arrived());
}
