//! Large policies.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use egress_tests::{
    Agent, World,
    expect::{policy, reached, refused},
    ready,
    report::Load,
    service_tags::{self, Form, TagFile},
    world::Role,
    zone,
};
use nix::sys::signal::Signal;

const NAMES: u32 = 50_000;
const CIDRS: u32 = 1_000;
/// Above what a debug build on a busy machine takes; the figure is printed.
const RELOAD_LIMIT: Duration = Duration::from_secs(30);
/// From a new file of service tags in the real size to the switch, with a release build on a machine that does nothing else.
const TAGS_BUDGET: Duration = Duration::from_secs(2);
/// The same for a release build.
const RELEASE_RELOAD_LIMIT: Duration = Duration::from_secs(5);

/// A policy of this size; `edition` changes one name in ten and every CIDR.
fn large(edition: u32) -> String {
    let mut spec =
        String::from("allow:\n- names:\n  - api.example.com\n  - \"*.fresh.example.com\"\n");
    for number in 0..NAMES {
        let edition = if number % 10 == 0 { edition } else { 0 };
        let star = if number % 2 == 0 { "*." } else { "" };
        writeln!(
            spec,
            "  - \"{star}host{number}-{edition}.service{}.example.net\"",
            number % 997
        )
        .unwrap();
    }
    spec.push_str("  ports: [\"80/tcp\", \"443/tcp\"]\n- names: [api.example.com]\n  ports: [\"443/udp\"]\n- cidrs:\n");
    for number in 0..CIDRS {
        writeln!(
            spec,
            "  - 10.{}.{}.0/24",
            200 + edition % 10 + number / 256,
            number % 256
        )
        .unwrap();
    }
    policy(&spec)
}

/// Resident memory of a process, MiB.
fn resident_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}

/// CPU time that a process has used.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    // proc_pid_stat(5): fields 14 and 15, in ticks of 10 ms; here the first is field 3.
    let ticks: Vec<u64> = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse().unwrap())
        .collect();
    Duration::from_millis(10 * (ticks[0] + ticks[1]))
}

fn is_release() -> bool {
    let agent = egress_tests::programs::agent();
    agent.to_string_lossy().contains("release")
}

/// Writes the policy and waits until it is in force, as the agent's log says: asking the agent would cost it time.
fn reload(agent: &Agent, path: &Path, text: &str) -> Duration {
    let switches = || agent.log().matches("policy switched").count();
    let before = switches();
    let next = path.with_extension("tmp");
    fs::write(&next, text).unwrap();
    let begin = Instant::now();
    fs::rename(&next, path).unwrap();
    loop {
        let passed = begin.elapsed();
        if switches() > before {
            return passed;
        }
        assert!(
            passed < RELOAD_LIMIT,
            "not in force after {passed:?}: {}",
            agent.log()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_large_policy_is_reloaded_fast_and_no_packet_is_judged_by_half_of_it() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    world
        .start_probe(
            Role::Dns,
            &[
                "dns-server",
                "--zone",
                "fresh.example.com",
                "--zone",
                "stale.example.com",
            ],
        )
        .unwrap();
    let agent = world.agent(&large(0)).resolver(zone::SERVER).start();
    let path = world.dir().join("policy.yaml");
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    let api = zone::address("api.example.com", false);

    // With nothing else going on: the time.
    let mut times = Vec::new();
    let used = cpu_time(agent.pid());
    for edition in 1..=3 {
        times.push(reload(&agent, &path, &large(edition)));
        // Also what comes after it: the old policy is removed.
        let _ = agent.status();
    }
    let used = (cpu_time(agent.pid()) - used) / 3;
    // With traffic that both editions allow, and traffic that both forbid.
    let mut load = client.background(&[
        "load",
        &api.to_string(),
        "10.78.9.1",
        "--server",
        zone::SERVER,
        "--zone",
        "fresh.example.com",
        "--stale-zone",
        "stale.example.com",
        "--pause-us",
        "2000",
    ]);
    load.wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
        .unwrap();
    let mut loaded = Vec::new();
    for edition in 4..=6 {
        loaded.push(reload(&agent, &path, &large(edition)));
        refused(&client.connect("10.202.1.1", 80));
    }
    load.signal(Signal::SIGTERM);
    let line = load
        .wait_for_line(1, Duration::from_secs(20), |line| line.starts_with('{'))
        .unwrap();
    let report: Load = serde_json::from_str(&line).unwrap();
    // By then the agent has given back the memory that only reading the policy needed.
    std::thread::sleep(Duration::from_secs(1));
    let memory = resident_mib(agent.pid());
    eprintln!(
        "reload {times:?} ({used:?} of CPU each), under load {loaded:?}, agent {memory} MiB, {report:?}"
    );
    for (name, traffic) in [
        ("streams", &report.streams),
        ("datagrams", &report.datagrams),
        ("connects", &report.connects),
        ("lookups", &report.lookups),
        ("forbidden", &report.forbidden),
    ] {
        assert_eq!(traffic.failed, 0, "{name}: {:?}", traffic.examples);
        assert!(traffic.done > 50, "{name}: {}", traffic.done);
    }
    reached(&client.connect(api, 80));
    if is_release() {
        assert!(
            times.iter().all(|time| *time < RELEASE_RELOAD_LIMIT),
            "{times:?}"
        );
    }
}

/// Every service tag of the large file, and one whose network shows the edition.
fn tags(edition: u32) -> TagFile {
    let mut file = TagFile::large(edition);
    let network = format!("10.79.{edition}.0/24");
    file.tags.insert("Edition".to_owned(), vec![network]);
    file
}

#[test]
fn a_file_of_all_service_tags_is_taken_up_fast() {
    if !ready() {
        return;
    }
    let world = World::new();
    let path = world.dir().join("tags.json");
    let first = tags(0);
    fs::write(&path, first.json(Form::Download)).unwrap();
    let names: Vec<&str> = first.tags.keys().map(String::as_str).collect();
    let all = format!(
        "- serviceTags: [{}]\n  ports: [\"80/tcp\", \"443/tcp\"]\n",
        names.join(", ")
    );
    let agent = world
        .agent(&policy(&format!("allow:\n{all}")))
        .arg("--service-tags")
        .arg(path.to_str().unwrap())
        .start();
    let client = world.workload("client");
    let used = cpu_time(agent.pid());
    let mut times = Vec::new();
    for edition in 1..=3 {
        // No network but the lifeline's is in both editions: all of them lie in the map twice.
        times.push(reload(&agent, &path, &tags(edition).json(Form::Download)));
        reached(&client.connect(format!("10.79.{edition}.1"), 80));
        refused(&client.connect(format!("10.79.{}.1", edition - 1), 80));
    }
    let used = (cpu_time(agent.pid()) - used) / 3;
    let status = agent.status();
    let networks = (service_tags::IPV4_PREFIXES + service_tags::IPV6_PREFIXES) as u64;
    let map = status.maps.iter().find(|map| map.name == "CIDRS").unwrap();
    let found = status.policy.service_tags.unwrap();
    assert_eq!(found.tags, service_tags::TAGS as u64 + 1);
    assert_eq!(found.ipv4_prefixes + found.ipv6_prefixes, networks + 1);
    assert!(
        (networks + 1..networks + 100).contains(&map.entries),
        "{map:?}"
    );
    // Beside a policy with many names, too.
    let path = world.dir().join("policy.yaml");
    let names = format!("{}  {}\n", large(1), all.trim_end().replace('\n', "\n  "));
    let with_names = reload(&agent, &path, &names);
    reached(&client.connect("10.79.3.1", 80));
    refused(&client.connect("10.79.2.1", 80));
    eprintln!(
        "{} networks: {times:?} from file to switch ({used:?} of CPU each), with {NAMES} names {with_names:?}, agent {} MiB, {map:?}",
        networks,
        resident_mib(agent.pid())
    );
    if is_release() {
        let best = times.iter().min().unwrap();
        assert!(*best < TAGS_BUDGET, "{times:?}");
    }
}
