//! Readers of the socket, however many and however slow: the agent does its work, and answers others.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use egress_common::{
    learned::{Learned, LearnedKey},
    maps::ScopeUse,
};
use egress_tests::{
    Agent, World, eventually,
    expect::{policy, reached, refused},
    programs, ready, zone,
};

/// Learned addresses beside those that are really resolved.
const MANY: u32 = 500_000;
/// Longest time of status, counters, and a question about one address with that many. The budget is a third of a second
/// for a release build on a machine that does nothing else, which a test cannot count on.
const SOON: Duration = Duration::from_secs(3);
const RELEASE_SOON: Duration = Duration::from_secs(1);
/// Most memory that all readers together may cost.
const MEMORY_MIB: u64 = 48;

/// Writes addresses as the kernel would have learned them, after the pattern of one that it has learned.
fn fill(agent: &Agent) {
    let pinned = |name: &str| {
        let maps = fs::read_dir(agent.pins()).unwrap().flatten();
        let pin = maps
            .map(|folder| folder.path().join(name))
            .find(|path| path.exists())
            .expect("the map is pinned");
        Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap()
    };
    let mut learned = HashMap::<_, LearnedKey, Learned>::try_from(pinned("LEARNED")).unwrap();
    let (key, mut value) = learned.iter().next().unwrap().unwrap();
    for grant in value.grants.iter_mut().filter(|one| one.expires_at_ns != 0) {
        grant.expires_at_ns = u64::MAX;
    }
    for number in 0..MANY {
        let mut next = key;
        next.address = [0xfd; 16];
        next.address[12..].copy_from_slice(&number.to_be_bytes());
        learned.insert(next, value, 0).unwrap();
    }
    let mut scopes = HashMap::<_, u32, ScopeUse>::try_from(pinned("SCOPES")).unwrap();
    let mut usage = scopes.get(&key.scope_id, 0).unwrap();
    usage.learned += u64::from(MANY);
    scopes.insert(key.scope_id, usage, 0).unwrap();
}

/// One of them.
fn one_of_many(number: u32) -> IpAddr {
    let mut address = [0xfd; 16];
    address[12..].copy_from_slice(&number.to_be_bytes());
    IpAddr::from(address)
}

/// A figure of /proc/PID/status in MiB.
fn memory_mib(agent: &Agent, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}

/// Runs a subcommand, and says how long it took.
fn timed(agent: &Agent, args: &[&str]) -> (String, Duration) {
    let begin = Instant::now();
    let output = agent.cli(args).unwrap();
    let took = begin.elapsed();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    (output.stdout, took)
}

fn reader(agent: &Agent, stdout: Stdio) -> Child {
    Command::new(programs::agent())
        .args(["learned", "-o", "json", "--socket"])
        .arg(agent.socket())
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn half_a_million_addresses_cost_readers_time_and_nobody_else_anything() {
    if !ready() {
        return;
    }
    let world = World::new();
    let with = |name: &str| policy(&format!("allow: [{{ names: [api.example.com, {name}] }}]"));
    let agent = world.agent(&with("a.example.net")).start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    fill(&agent);
    let is_release = programs::agent().to_string_lossy().contains("release");
    let soon = if is_release { RELEASE_SOON } else { SOON };

    let (status, of_status) = timed(&agent, &["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let maps = status["maps"].as_array().unwrap();
    let learned = maps.iter().find(|map| map["name"] == "LEARNED").unwrap();
    assert!(
        learned["entries"].as_u64().unwrap() > MANY.into(),
        "{learned}"
    );
    let (_, of_counters) = timed(&agent, &["counters"]);
    let one = one_of_many(MANY / 2).to_string();
    let (found, of_one) = timed(&agent, &["learned", &one, "-o", "json"]);
    assert!(found.contains(&one), "{found}");
    assert!(found.len() < 2_000, "{found}");
    eprintln!("status {of_status:?}, counters {of_counters:?}, one of {MANY} {of_one:?}");
    for took in [of_status, of_counters, of_one] {
        assert!(took < soon, "{took:?}");
    }

    // Six read all of it, and one more does not read what it has asked for.
    let before = memory_mib(&agent, "VmRSS:");
    fs::write(format!("/proc/{}/clear_refs", agent.pid()), "5").unwrap();
    let mut stuck = UnixStream::connect(agent.socket()).unwrap();
    stuck
        .write_all(b"GET /v1/learned HTTP/1.1\r\nHost: agent\r\n\r\n")
        .unwrap();
    let listing = world.dir().join("listing.json");
    let file = fs::File::create(&listing).unwrap();
    let mut readers = vec![reader(&agent, file.into())];
    let begin = Instant::now();
    readers.extend((1..6).map(|_| reader(&agent, Stdio::null())));
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        for args in [&["status"][..], &["counters"]] {
            slowest = slowest.max(timed(&agent, args).1);
        }
    }
    assert!(
        readers[0].try_wait().unwrap().is_none(),
        "nobody reads any more"
    );
    assert!(slowest < soon, "{slowest:?} beside readers");
    for one in &mut readers {
        let done = eventually(Duration::from_secs(300), || {
            one.try_wait().unwrap().is_some()
        });
        assert!(done && one.wait().unwrap().success());
    }
    let of_all = begin.elapsed();
    let peak = memory_mib(&agent, "VmHWM:");
    eprintln!(
        "six readers of {MANY}: {of_all:?}, beside them at most {slowest:?}; {before} MiB, at most {peak} MiB"
    );
    assert!(peak < before + MEMORY_MIB, "{before} MiB, then {peak}");
    let rows: Vec<serde_json::Value> =
        serde_json::from_str(&fs::read_to_string(&listing).unwrap()).unwrap();
    assert!(rows.len() > MANY as usize, "{} rows", rows.len());
    drop(stuck);

    // The twin of all this: it judges.
    reached(&client.connect(zone::address("api.example.com", false), 80));
    refused(&client.connect(zone::address("forbidden.example.org", false), 80));
}

#[test]
fn a_crowd_on_the_socket_keeps_out_neither_probes_nor_policies() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .start();
    let idle: Vec<UnixStream> = (0..200)
        .map(|_| UnixStream::connect(agent.socket()).unwrap())
        .collect();
    let follow = b"GET /v1/flows/follow HTTP/1.1\r\nHost: agent\r\n\r\n";
    let mut refusals = 0;
    let following: Vec<UnixStream> = (0..64)
        .map(|_| {
            let mut stream = UnixStream::connect(agent.socket()).unwrap();
            stream.write_all(follow).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            let mut head = [0; 12];
            stream.read_exact(&mut head).unwrap();
            refusals += usize::from(&head == b"HTTP/1.1 503");
            stream
        })
        .collect();
    assert_eq!(refusals, 16, "of {} followers", following.len());
    for args in [&["status"][..], &["counters"], &["learned"], &["flows"]] {
        let (_, took) = timed(&agent, args);
        assert!(took < SOON, "{args:?} took {took:?}");
    }
    let output = agent.cli(&["flows", "--follow"]).unwrap();
    assert_eq!(output.code(), Some(1), "{}", output.shown());
    let says = "the agent is busy: 48 clients follow verdicts already";
    assert!(output.stderr.contains(says), "{}", output.shown());
    agent.reload(&policy(
        "allow: [{ names: [api.example.com, b.example.com] }]",
    ));
    let client = world.workload("client");
    refused(&client.connect(zone::address("forbidden.example.org", false), 80));
    drop((idle, following));
    let output = agent.cli(&["status"]).unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
}

#[test]
fn what_the_kernel_has_written_is_in_the_next_answer() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .start();
    let client = world.workload("client");
    let api = client.resolve("api.example.com", false)[0];
    // No waiting: the answer and the verdicts lie in the rings.
    let learned = agent.learned();
    let named = learned.iter().find(|one| one.address == api).unwrap();
    assert_eq!(named.name, "api.example.com");
    for _ in 0..5 {
        let forbidden = client.resolve("forbidden.example.org", false)[0];
        refused(&client.connect(forbidden, 80));
        let flows = agent.flows();
        let flow = flows.last().expect("the denial is there");
        assert_eq!(flow.destination, forbidden);
        assert_eq!(flow.names, ["forbidden.example.org"], "{flow:?}");
    }
}
