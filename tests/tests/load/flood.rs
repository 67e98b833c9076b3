//! Full, flooded, broken: nothing is opened, nothing allowed is lost, memory is bounded, everything is counted.

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use egress_tests::{
    Agent, Learned, Workload, World, eventually,
    expect::{counted, policy, reached, refused, tallied},
    process::Running,
    programs, ready,
    report::{Series, Steadiness, Storm},
    skip,
    world::Role,
    zone,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, de::DeserializeOwned};

/// Destinations that stay allowed beside every flood: a network, a name that is learned before, new names.
const ALLOWED: &str = "ttl: { min: 1s, grace: 0s }\nallow:\n\
    - { cidrs: [10.79.0.0/16] }\n\
    - { names: [api.example.com, \"*.fresh.example.com\", \"*.storm.example.com\"] }";
/// Where new names come from while the storm comes from elsewhere.
const FRESH: [&str; 5] = [
    "dns-server",
    "--zone",
    "fresh.example.com",
    "--listen",
    zone::FORGER,
];

/// `status -o json`, as far as it reports losses.
#[derive(Clone, Debug, Deserialize)]
struct Status {
    enforcing: bool,
    lost: BTreeMap<String, u64>,
    alarms: Vec<String>,
}

impl Status {
    /// An alarm begins like this.
    fn alarms_of(&self, begin: &str) -> bool {
        self.alarms.iter().any(|alarm| alarm.starts_with(begin))
    }
}

/// The agent's status; one that has much to count may take its time, which is then printed.
#[track_caller]
fn told_status(agent: &Agent) -> Status {
    let begin = Instant::now();
    let mut status = agent.try_ask(&["status"]);
    while status.is_err() && begin.elapsed() < Duration::from_secs(60) {
        status = agent.try_ask(&["status"]);
    }
    if begin.elapsed() > Duration::from_secs(5) {
        eprintln!("status took {:?}", begin.elapsed());
    }
    status.unwrap_or_else(|error| panic!("{error:#}"))
}

/// The agent's resident memory in MiB.
fn resident_mib(agent: &Agent) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap();
    kib / 1024.0
}

/// A number from the environment.
fn option(name: &str, default: u64) -> u64 {
    env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Reads the report of a program that runs in the background.
#[track_caller]
fn report<T: DeserializeOwned>(mut running: Running, limit: Duration) -> T {
    let line = running
        .wait_for_line(0, limit, |line| line.starts_with('{'))
        .unwrap_or_else(|error| panic!("{error:#}"));
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// An agent that trusts the storm's server and that of new names.
fn world(storm: &[&str], spec: &str, more: &[&str]) -> (World, Agent) {
    let mut world = World::new();
    world
        .start_probe(Role::Dns, &[&["storm-server"], storm].concat())
        .unwrap();
    world.start_probe(Role::Dns, &FRESH).unwrap();
    let mut options = world
        .agent(&policy(spec))
        .resolver(zone::SERVER)
        .resolver(zone::FORGER);
    for arg in more {
        options = options.arg(*arg);
    }
    let agent = options.start();
    (world, agent)
}

/// New names one after another, each followed by a connect.
fn fresh(client: &Workload, first: u32, count: u32) -> Series {
    let (first, count) = (first.to_string(), count.to_string());
    let args = [
        "resolve-connect",
        "--server",
        zone::FORGER,
        "--zone",
        "fresh.example.com",
        "--first",
        &first,
        "--count",
        &count,
        "--timeout",
        "5000",
    ];
    client
        .try_probe(&args, Duration::from_secs(120))
        .unwrap_or_else(|error| panic!("{error:#}"))
}

#[track_caller]
fn nothing_lost(series: &Series) {
    assert!(series.count > 0);
    assert_eq!(
        (series.refused, series.failed, series.unresolved),
        (0, 0, 0),
        "{series:?}"
    );
}

#[track_caller]
fn steady(steadiness: &Steadiness) {
    assert!(steadiness.ok > 10, "{steadiness:?}");
    assert_eq!(steadiness.failed, 0, "{steadiness:?}");
}

/// The agent lists an address under this name; all addresses of a flood would be too many to ask for.
fn knows(agent: &Agent, name: &str) -> bool {
    agent
        .try_ask::<Vec<Learned>>(&["learned", name])
        .is_ok_and(|learned| learned.iter().any(|one| one.name == name))
}

/// The same after a flood: what is allowed is allowed, what is denied is denied, the agent answers.
#[track_caller]
fn is_well(agent: &Agent, client: &Workload) -> Status {
    reached(&client.connect("10.79.0.1", 80));
    refused(&client.connect(zone::address("forbidden.example.org", false), 80));
    let status = told_status(agent);
    assert!(status.enforcing, "{status:?}");
    status
}

#[test]
fn a_scope_at_its_share_takes_new_addresses_in_place_of_its_own_oldest() {
    if !ready() {
        return;
    }
    // The node's quarter is 16.
    let (world, agent) = world(
        &["--records", "10", "--ttl", "600"],
        ALLOWED,
        &["--max-learned", "64"],
    );
    let client = world.workload("client");
    let api = zone::address("api.example.com", false);
    client.resolve("api.example.com", false);
    let mut flow = client.hold(api, 80);
    nothing_lost(&fresh(&client, 0, 5));
    assert!(!told_status(&agent).alarms_of("learned_share_full"));

    let (storm, moved) = agent.counted(|| -> Storm {
        client.probe(&["storm", "--zone", "storm.example.com", "--count", "20"])
    });
    assert_eq!(storm.answered, 20, "{storm:?}");
    tallied(&moved, "learned_share_full");
    assert_eq!(moved.dns("learned_full"), 0, "{:?}", moved.dns);
    let status = told_status(&agent);
    assert!(
        status.alarms_of("learned_share_full") && status.alarms_of("scope node is at its share"),
        "{:?}",
        status.alarms
    );
    assert!(agent.learned().len() <= 16);

    // Addresses in use stay, and new names find room.
    assert!(flow.is_alive());
    reached(&client.connect(api, 80));
    is_well(&agent, &client);
    let mut first = 1000;
    let recovered = eventually(Duration::from_secs(10), || {
        thread::sleep(Duration::from_millis(200));
        first += 1;
        fresh(&client, first, 1).refused == 0
    });
    assert!(recovered, "{:?}", told_status(&agent));
    reached(&client.connect(api, 80));
    assert!(flow.is_alive());
}

#[test]
fn a_full_table_refuses_new_addresses_with_an_alarm_and_takes_new_ones_when_old_ones_end() {
    if !ready() {
        return;
    }
    // Shares of 64 for each scope, and the node's of 16, are more than the table holds.
    let mut world = World::new();
    let storm = ["storm-server", "--records", "10", "--ttl", "4"];
    world.start_probe(Role::Dns, &storm).unwrap();
    world.start_probe(Role::Dns, &FRESH).unwrap();
    let stormy = world.workload("stormy");
    let mut options = world
        .agent(&policy(ALLOWED))
        .resolver(zone::SERVER)
        .resolver(zone::FORGER)
        .scope("stormy", stormy.cgroup());
    for arg in ["--max-learned", "64", "--scope-share", "100"] {
        options = options.arg(arg);
    }
    let agent = options.start();
    let client = world.workload("client");
    let api = zone::address("api.example.com", false);
    client.resolve("api.example.com", false);
    let mut flow = client.hold(api, 80);
    nothing_lost(&fresh(&client, 0, 5));
    assert!(!told_status(&agent).alarms_of("learned_full"));

    let (storm, moved) = agent.counted(|| -> Storm {
        stormy.probe(&["storm", "--zone", "storm.example.com", "--count", "20"])
    });
    let filled = Instant::now();
    assert_eq!(storm.answered, 20, "{storm:?}");
    tallied(&moved, "learned_full");
    let status = told_status(&agent);
    assert!(status.alarms_of("learned_full"), "{:?}", status.alarms);
    assert!(agent.learned().len() <= 64);

    // A new name is refused; known ones and the flow do not notice.
    let (series, moved) = agent.counted(|| fresh(&client, 1000, 3));
    assert_eq!((series.refused, series.unresolved), (3, 0), "{series:?}");
    counted(&moved, "table_full");
    assert!(flow.is_alive());
    reached(&client.connect(api, 80));
    reached(&client.connect("10.78.128.1", 80));
    is_well(&agent, &client);

    // The storm's addresses end after four seconds.
    let mut first = 2000;
    let recovered = eventually(Duration::from_secs(30), || {
        thread::sleep(Duration::from_millis(200));
        first += 1;
        fresh(&client, first, 1).refused == 0
    });
    assert!(recovered, "{:?}", told_status(&agent));
    eprintln!("room again {:?} after the table was full", filled.elapsed());
    nothing_lost(&fresh(&client, 3000, 5));
    assert!(flow.is_alive());
}

/// Answers of new names for some seconds, as fast as the machine gives, up to 10,000 a second.
fn storm(pool_size: &str, is_full: bool) {
    if !ready() {
        return;
    }
    let usual = if skip::is_quick() { 2 } else { 5 };
    let seconds = option("EGRESS_TEST_FLOOD_SECONDS", usual);
    let (world, agent) = world(
        &["--records", "100", "--pool-size", pool_size],
        ALLOWED,
        &[],
    );
    let client = world.workload("client");
    let api = zone::address("api.example.com", false);
    client.resolve("api.example.com", false);
    let mut flow = client.hold(api, 80);
    let before_mib = resident_mib(&agent);
    let before = agent.counters();

    let seconds_text = seconds.to_string();
    let stormy = client.background(&[
        "storm",
        "--zone",
        "storm.example.com",
        "--seconds",
        &seconds_text,
    ]);
    let calm = client.background(&[
        "steady",
        "10.79.0.1",
        &api.to_string(),
        "--seconds",
        &seconds_text,
    ]);
    let begin = Instant::now();
    let (mut most_mib, mut first, mut new) = (0.0_f64, 0, Series::default());
    while begin.elapsed() < Duration::from_secs(seconds) {
        most_mib = most_mib.max(resident_mib(&agent));
        if is_full {
            thread::sleep(Duration::from_millis(100));
        } else {
            let series = fresh(&client, first % 20_000, 50);
            nothing_lost(&series);
            first += 50;
            new.count += series.count;
        }
        let forbidden = client.connect(zone::address("forbidden.example.org", false), 80);
        refused(&forbidden);
    }
    let limit = Duration::from_secs(20);
    let storm: Storm = report(stormy, limit);
    let calm: Steadiness = report(calm, limit);
    steady(&calm);
    assert!(flow.is_alive());
    let moved = agent.counters().since(&before);
    let status = is_well(&agent, &client);
    let after_mib = resident_mib(&agent);
    most_mib = most_mib.max(after_mib);
    eprintln!(
        "{} answers of 100 addresses in {seconds} s: {:.0}/s; {} learned or prolonged, {} refused for want of a share, {} answers \
         learned, {} copies lost; {} connects to known addresses, 0 lost, slowest {:.0} ms; {} new names, 0 lost; agent \
         {before_mib:.0} MiB before, {most_mib:.0} at most, {after_mib:.0} after",
        storm.answered,
        storm.rate(),
        moved.dns("address_learned"),
        moved.dns("learned_share_full"),
        moved.dns("dns_answer_learned"),
        moved.dns("dns_copies_lost"),
        calm.ok,
        calm.slowest_ms,
        new.count,
    );
    assert!(storm.answered > 100, "{storm:?}");
    // Every answer that came is counted as one that taught, or as one whose addresses found no room.
    let answers = moved.dns("dns_answer_learned") + moved.dns("learned_share_full") / 100;
    assert!(answers >= storm.answered, "{storm:?} {:?}", moved.dns);
    assert_eq!(
        moved.dns("learned_share_full") > 0,
        is_full,
        "{:?}",
        moved.dns
    );
    assert_eq!(
        status.alarms_of("learned_share_full"),
        is_full,
        "{:?}",
        status.alarms
    );
    if moved.dns("dns_copies_lost") > 0 {
        assert!(status.alarms_of("dns_copies_lost"), "{:?}", status.alarms);
    }
    // 200,000 remembered addresses and their names.
    assert!(most_mib < 256.0, "{most_mib} MiB");
}

#[test]
fn a_storm_of_new_names_loses_no_allowed_connection() {
    storm("100000", false);
}

#[test]
fn a_storm_of_new_addresses_fills_a_share_and_leaves_what_is_known_alone() {
    storm("16000000", true);
}

#[test]
fn a_flood_of_denied_packets_is_counted_one_by_one_and_disturbs_nobody() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"))
        .start();
    let client = world.workload("client");
    let before_mib = resident_mib(&agent);
    // Counts every event that arrives.
    let mut command = world.helper(Role::Node, programs::agent()).unwrap();
    command
        .args(["flows", "--follow", "--denied", "-o", "json", "--socket"])
        .arg(agent.socket());
    let follower = Running::start(&mut command, &world.dir().join("follower.err")).unwrap();
    thread::sleep(Duration::from_millis(500));

    let before = agent.counters();
    let calm = client.background(&["steady", "10.79.0.1", "--seconds", "3"]);
    let storm: Storm = client.probe(&["storm-udp", "10.78.9.1", "9000", "--seconds", "3"]);
    let calm: Steadiness = report(calm, Duration::from_secs(10));
    steady(&calm);
    let moved = agent.counters().since(&before);
    assert_eq!(storm.answered, 0, "{storm:?}");
    assert_eq!(storm.refused, storm.sent, "{storm:?}");
    assert_eq!(moved.denied, storm.sent, "{storm:?} {moved:?}");
    counted(&moved, "no_rule");
    assert_eq!(world.web_saw("udp 10.78.9.1:9000"), 0);

    let told = || {
        let lines = follower.lines();
        let flows = lines
            .iter()
            .filter(|line| line.contains("10.78.9.1"))
            .count() as u64;
        let skipped: u64 = lines
            .iter()
            .filter_map(|line| {
                line.strip_prefix("{\"lost\":")?
                    .trim_end_matches('}')
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .sum();
        flows + skipped
    };
    let (suppressed, lost) = (moved.dns("events_suppressed"), moved.dns("events_lost"));
    // Verdicts that the follower missed are only counted: the steady client's allowed flows may be among them.
    let sum = || told() + suppressed + lost;
    assert!(
        eventually(Duration::from_secs(5), || sum() >= storm.sent),
        "{} told, {suppressed} suppressed, {lost} lost of {}",
        told(),
        storm.sent
    );
    let after_mib = resident_mib(&agent);
    eprintln!(
        "{} denials in {:.0} ms: {} told, {suppressed} suppressed, {lost} lost; {} allowed connects, 0 lost; agent \
         {before_mib:.0} MiB before, {after_mib:.0} after",
        storm.sent,
        storm.elapsed_ms,
        told(),
        calm.ok
    );
    assert!(suppressed > 0);
    assert!(
        sum() <= storm.sent + u64::from(calm.ok),
        "{} of {}",
        sum(),
        storm.sent
    );
    assert!(after_mib < before_mib + 32.0, "{after_mib} MiB");
    is_well(&agent, &client);
}

/// Holds a process down to one percent of a CPU, by the best means that there are.
struct Throttle {
    means: &'static str,
    /// A cgroup of ours, to be removed.
    group: Option<PathBuf>,
    pulse: Option<(
        std::sync::Arc<std::sync::atomic::AtomicBool>,
        thread::JoinHandle<()>,
    )>,
    pid: i32,
}

impl Throttle {
    fn new(pid: u32, name: &str, own_cgroup: &std::path::Path) -> Self {
        let pid = i32::try_from(pid).unwrap();
        // cgroup v2, where the controller is given to the test's cgroup.
        if fs::write(own_cgroup.join("cpu.max"), "1000 100000").is_ok() {
            return Self {
                means: "cgroup v2 cpu.max 1000 100000",
                group: None,
                pulse: None,
                pid,
            };
        }
        // A hybrid hierarchy has the controller in version 1.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let v1 = mounts.lines().find_map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let is_cpu = fields.get(2) == Some(&"cgroup")
                && fields[3].split(',').any(|option| option == "cpu");
            is_cpu.then(|| PathBuf::from(fields[1]))
        });
        if let Some(root) = v1 {
            let group = root.join(name);
            let is_made = fs::create_dir(&group).is_ok()
                && fs::write(group.join("cpu.cfs_period_us"), "100000").is_ok()
                && fs::write(group.join("cpu.cfs_quota_us"), "1000").is_ok()
                && fs::write(group.join("cgroup.procs"), pid.to_string()).is_ok();
            if is_made {
                return Self {
                    means: "cgroup v1 cpu.cfs_quota_us 1000 of 100000",
                    group: Some(group),
                    pulse: None,
                    pid,
                };
            }
            let _ = fs::remove_dir(&group);
        }
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let pulse = thread::spawn({
            let stop = std::sync::Arc::clone(&stop);
            move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
                    thread::sleep(Duration::from_millis(99));
                    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Self {
            means: "SIGSTOP for 99 of 100 ms",
            group: None,
            pulse: Some((stop, pulse)),
            pid,
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        if let Some((stop, pulse)) = self.pulse.take() {
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            let _ = pulse.join();
        }
        if let Some(group) = &self.group {
            let _ = fs::write(group.join("cpu.cfs_quota_us"), "-1");
            // Back to the root of that hierarchy.
            let root = group.parent().unwrap();
            let _ = fs::write(root.join("cgroup.procs"), self.pid.to_string());
            eventually(Duration::from_secs(2), || fs::remove_dir(group).is_ok());
        }
    }
}

/// Processor time of a process, in seconds.
fn cpu_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

#[test]
fn an_agent_at_one_percent_of_a_cpu_loses_no_allowed_connection() {
    if !ready() {
        return;
    }
    let (world, agent) = world(&["--records", "1", "--pool-size", "50000"], ALLOWED, &[]);
    let client = world.workload("client");
    let throttle = Throttle::new(agent.pid(), &world.name(), &world.judged().join("agent"));
    let (begin, used) = (Instant::now(), cpu_s(agent.pid()));
    // Work for the agent, so that it has none of its time left.
    let stormy = client.background(&[
        "storm",
        "--zone",
        "storm.example.com",
        "--seconds",
        "6",
        "--rate",
        "5000",
    ]);
    let mut new = Series::default();
    for round in 0..8 {
        let series = fresh(&client, round * 100, 100);
        nothing_lost(&series);
        new.count += series.count;
        client.lookup(&["secret.example.org", "--server", zone::RESOLVER[0]]);
        refused(&client.connect(zone::address("secret.example.org", false), 80));
    }
    let storm: Storm = report(stormy, Duration::from_secs(20));
    let share = (cpu_s(agent.pid()) - used) / begin.elapsed().as_secs_f64();
    let means = throttle.means;
    drop(throttle);
    eprintln!(
        "{} names resolved and connected to, 0 lost; {} other answers ({:.0}/s); the agent had {:.1} % of a CPU ({means})",
        new.count,
        storm.answered,
        storm.rate(),
        share * 100.0
    );
    assert!(share < 0.05, "the agent was not held down: {share}");
    // It catches up: the names are known once it has time.
    client.resolve("api.example.com", false);
    let caught_up = eventually(Duration::from_secs(10), || knows(&agent, "api.example.com"));
    assert!(caught_up, "{:?}", told_status(&agent));
    is_well(&agent, &client);
}

#[test]
fn names_without_number_do_not_fill_the_agents_memory() {
    if !ready() {
        return;
    }
    let names = option("EGRESS_TEST_NAMES", 50_000);
    // Every second name is allowed; each address has about as many names as its answers were.
    let spec = "allow: [{ names: [\"*.storm.example.com\", \"*.fresh.example.com\"] }, { cidrs: [10.79.0.0/16] }]";
    let (world, agent) = world(&["--records", "1", "--pool-size", "200000"], spec, &[]);
    let client = world.workload("client");
    let before_mib = resident_mib(&agent);
    let begin = Instant::now();
    let count = names.to_string();
    let args = [
        "storm",
        "--zone",
        "storm.example.com",
        "--zone",
        "other.example.org",
        "--count",
        &count,
        "--seconds",
        "280",
        "--rate",
        "20000",
    ];
    let (storm, moved) = agent.counted(|| -> Storm {
        client
            .try_probe(&args, Duration::from_secs(300))
            .unwrap_or_else(|error| panic!("{error:#}"))
    });
    // A quiet agent has read everything.
    let mut used = cpu_s(agent.pid());
    eventually(Duration::from_secs(60), || {
        thread::sleep(Duration::from_millis(500));
        let now = cpu_s(agent.pid());
        let is_quiet = now - used < 0.05;
        used = now;
        is_quiet
    });
    let after_mib = resident_mib(&agent);
    eprintln!(
        "{} names in {:.0} s ({:.0}/s): {} answers learned, {} of no rule, {} copies lost; agent {before_mib:.0} MiB before, \
         {after_mib:.0} after",
        storm.answered,
        begin.elapsed().as_secs_f64(),
        storm.rate(),
        moved.dns("dns_answer_learned"),
        moved.dns("dns_answer_no_rule"),
        moved.dns("dns_copies_lost"),
    );
    assert!(storm.answered * 100 >= storm.sent * 99, "{storm:?}");
    let answers = moved.dns("dns_answer_learned")
        + moved.dns("dns_answer_no_rule")
        + moved.dns("learned_full");
    assert!(answers >= storm.answered, "{storm:?} {:?}", moved.dns);
    // 131,072 remembered addresses, each with up to 8 names.
    assert!(after_mib < 192.0, "{after_mib} MiB");
    // The twin: what is known is known, what is not is refused.
    nothing_lost(&fresh(&client, 0, 20));
    is_well(&agent, &client);
}

/// Lets the agent go on when a test ends, however it does.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: u32) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn rings_that_overflow_lose_copies_and_events_but_neither_names_nor_denials() {
    if !ready() {
        return;
    }
    let (world, agent) = world(&["--records", "100", "--pool-size", "50000"], ALLOWED, &[]);
    let client = world.workload("client");
    let before = agent.counters();
    let stopped = Stopped::new(agent.pid());
    // Copies of 1.7 KB into 4 MiB; a thousand denials a second and CPU into 1 MiB.
    let stormy = client.background(&[
        "storm",
        "--zone",
        "storm.example.com",
        "--count",
        "5000",
        "--seconds",
        "12",
    ]);
    let denied: Vec<Running> = ["0", "1"]
        .iter()
        .map(|cpu| {
            client.background(&[
                "storm-udp",
                "10.78.9.1",
                "9000",
                "--seconds",
                "9",
                "--cpu",
                cpu,
            ])
        })
        .collect();
    // The kernel learns by itself meanwhile.
    nothing_lost(&fresh(&client, 0, 200));
    client.resolve("forbidden.example.org", false);
    refused(&client.connect(zone::address("forbidden.example.org", false), 80));
    let storm: Storm = report(stormy, Duration::from_secs(20));
    let denied: Vec<Storm> = denied
        .into_iter()
        .map(|one| report(one, Duration::from_secs(20)))
        .collect();
    nothing_lost(&fresh(&client, 300, 50));
    drop(stopped);

    let answers = eventually(Duration::from_secs(10), || {
        agent.try_ask::<Status>(&["status"]).is_ok()
    });
    assert!(answers, "the agent does not answer again");
    let moved = agent.counters().since(&before);
    eprintln!(
        "{} answers, {} copies lost; {} denials, {} events suppressed, {} lost",
        storm.answered,
        moved.dns("dns_copies_lost"),
        denied.iter().map(|one| one.sent).sum::<u64>(),
        moved.dns("events_suppressed"),
        moved.dns("events_lost"),
    );
    assert!(
        moved.dns("dns_answer_learned") >= storm.answered,
        "{:?}",
        moved.dns
    );
    let sent: u64 = denied.iter().map(|one| one.sent).sum();
    let refused_ones: u64 = denied.iter().map(|one| one.refused).sum();
    assert_eq!(refused_ones, sent, "{denied:?}");
    assert!(moved.denied >= sent, "{moved:?}");
    tallied(&moved, "dns_copies_lost");
    tallied(&moved, "events_lost");
    let status = is_well(&agent, &client);
    for alarm in ["dns_copies_lost", "events_lost"] {
        assert!(status.alarms_of(alarm), "{alarm}: {:?}", status.alarms);
        assert!(status.lost[alarm] > 0, "{:?}", status.lost);
    }
    // It reads again: a new name is known by its name, a new denial is reported.
    client.resolve("api.example.com", false);
    let knows = eventually(Duration::from_secs(30), || knows(&agent, "api.example.com"));
    assert!(knows, "copies are read again");
    // The storm may have spent this second's budget of events.
    let told = eventually(Duration::from_secs(15), || {
        refused(&client.connect("10.78.9.77", 80));
        let address = "10.78.9.77".parse().unwrap();
        let flow = agent.flow_to(address, |flow| flow.verdict == "denied");
        flow.is_some()
    });
    assert!(told, "events are read again");
}
