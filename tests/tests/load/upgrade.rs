//! Restarts and upgrades under load, and maps of another layout.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use egress_tests::{
    World,
    expect::{policy, reached, refused},
    programs, ready,
    report::Load,
    skip::{is_quick, upgrade_ready},
    world::Role,
    zone,
};
use nix::sys::signal::Signal;

/// Kills, ends and starts of the agent, over all kinds.
const ROUNDS: usize = 50;
/// The same in a quick run.
const ROUNDS_QUICK: usize = 10;
/// An address without a rule, which nothing else here asks for.
const FORBIDDEN: &str = "10.78.9.1";

/// Folders of maps in a pin folder, by name.
fn layouts(pins: &Path) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(pins)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "links")
        .collect();
    found.sort();
    found
}

fn this_layout() -> String {
    format!("layout-{}", egress_common::maps::LAYOUT_VERSION)
}

fn next_layout() -> String {
    format!("layout-{}", egress_common::maps::LAYOUT_VERSION + 1)
}

/// Agents of both layouts, the next one first.
fn both() -> [PathBuf; 2] {
    [programs::next_agent(), programs::agent()]
}

#[test]
fn traffic_does_not_notice_kills_restarts_and_upgrades() {
    if !upgrade_ready() {
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
    let mut agent = world
        .agent(&policy(
            "allow: [{ names: [api.example.com, \"*.fresh.example.com\"] }]",
        ))
        .resolver(zone::SERVER)
        // On a slow machine the rounds take minutes, and each lookup is a new name: the node's share is a quarter.
        .arg("--max-learned")
        .arg("2000000")
        .start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    let api = zone::address("api.example.com", false).to_string();
    let mut load = client.background(&[
        "load",
        &api,
        FORBIDDEN,
        "--server",
        zone::SERVER,
        "--zone",
        "fresh.example.com",
        "--stale-zone",
        "stale.example.com",
    ]);
    load.wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
        .unwrap();

    let rounds = if is_quick() { ROUNDS_QUICK } else { ROUNDS };
    let mut happened = [0; 4];
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let kind = round % 4;
        happened[kind] += 1;
        // Traffic between two rounds.
        thread::sleep(Duration::from_millis(200));
        let other = both()[(round / 4) % 2].clone();
        if kind == 1 {
            agent.stop();
        } else {
            agent.kill();
        }
        if kind == 3 {
            // Killed wherever it is: while it loads, switches hooks or cleans up.
            let after = Duration::from_millis(40 + 35 * (round as u64 / 4 % 12));
            agent.start_and_kill(both()[(round / 4 + 1) % 2].clone(), after);
        }
        let begin = Instant::now();
        if kind < 2 {
            agent.start_again();
        } else {
            agent.start_other(other.clone(), &[]);
            let wanted = if other == programs::agent() {
                this_layout()
            } else {
                next_layout()
            };
            assert_eq!(layouts(agent.pins()), [wanted], "round {round}");
        }
        slowest = slowest.max(begin.elapsed());
        assert!(load.ended().is_none(), "{}", load.errors());
    }
    load.signal(Signal::SIGTERM);
    let line = load
        .wait_for_line(1, Duration::from_secs(20), |line| line.starts_with('{'))
        .unwrap();
    let report: Load = serde_json::from_str(&line).unwrap();
    eprintln!(
        "{} killed, {} stopped, {} upgraded, {} upgraded after a killed upgrade; slowest start {slowest:?}; {report:?}",
        happened[0], happened[1], happened[2], happened[3]
    );
    for (name, traffic) in [
        ("streams", &report.streams),
        ("datagrams", &report.datagrams),
        ("connects", &report.connects),
        ("lookups", &report.lookups),
        ("forbidden", &report.forbidden),
    ] {
        assert_eq!(traffic.failed, 0, "{name}: {:?}", traffic.examples);
        assert!(
            traffic.done > 20 * rounds as u64,
            "{name}: too little to show anything: {}",
            traffic.done
        );
    }
    assert_eq!(world.web_saw("tcp 10.78.9.1:80"), 0);
    assert_eq!(world.web_saw("udp 10.78.9.1:443"), 0);
}

#[test]
fn an_upgrade_to_another_layout_carries_over_what_is_known() {
    if !upgrade_ready() {
        return;
    }
    let world = World::new();
    let spec = "ttl: { min: 1s, grace: 0s, max: 1h }\n\
                allow: [{ names: [api.example.com, short.example.com, new1.example.com] }]";
    let mut agent = world.agent(&policy(spec)).start();
    let client = world.workload("client");
    let (api, short) = (
        zone::address("api.example.com", false),
        zone::address("short.example.com", false),
    );
    client.resolve("short.example.com", false);
    let mut tcp = client.hold(short, 80);
    let mut udp = client.hold_with(&[&short.to_string(), "443", "--udp"]);
    client.resolve("api.example.com", false);
    // The flows' address expires: from here on the entries of their sockets and flows grant them.
    thread::sleep(Duration::from_millis(1500));
    refused(&client.connect(short, 80));
    for program in both() {
        let denied = agent.counters().denied;
        let generation = agent.status().policy.generation;
        agent.kill();
        agent.start_other(program, &[]);
        assert_eq!(layouts(agent.pins()).len(), 1);
        assert!(tcp.is_alive(), "{:?}", tcp.lines());
        assert!(udp.is_alive(), "{:?}", udp.lines());
        reached(&client.connect(api, 80));
        refused(&client.connect(short, 80));
        refused(&client.connect(FORBIDDEN, 80));
        assert!(agent.counters().denied > denied, "counters go on");
        assert!(agent.status().policy.generation > generation);
        assert!(agent.knows(api), "{:?}", agent.learned());
    }
    client.resolve("new1.example.com", false);
    reached(&client.connect(zone::address("new1.example.com", false), 80));
    // And the rules still cut: it is the same policy that is enforced.
    agent.reload(&policy("allow: [{ names: [api.example.com] }]"));
    assert!(tcp.breaks(Duration::from_secs(4)), "{:?}", tcp.lines());
}

#[test]
fn learned_addresses_are_carried_into_a_map_of_another_size() {
    if !upgrade_ready() {
        return;
    }
    let world = World::new();
    let mut agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    let api = zone::address("api.example.com", false);
    let mut flow = client.hold(api, 80);
    agent.kill();
    agent.start_other(programs::next_agent(), &["--max-learned", "1234"]);
    assert_eq!(layouts(agent.pins()), [next_layout()]);
    assert!(
        agent.log().contains("map has another form"),
        "{}",
        agent.log()
    );
    reached(&client.connect(api, 80));
    assert!(flow.is_alive(), "{:?}", flow.lines());
    refused(&client.connect(FORBIDDEN, 80));
}

#[test]
fn a_killed_upgrade_goes_on_enforcing_and_learning_and_any_agent_can_unload_it() {
    if !upgrade_ready() {
        return;
    }
    let world = World::new();
    let mut agent = world
        .agent(&policy(
            "allow: [{ names: [api.example.com, new1.example.com] }]",
        ))
        .start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    agent.kill();
    // Killed later each time, until it leaves both layouts behind.
    let mut after = Duration::from_millis(20);
    while layouts(agent.pins()).len() < 2 {
        assert!(
            layouts(agent.pins()) == [this_layout()],
            "never caught on its way: {:?}",
            layouts(agent.pins())
        );
        agent.start_and_kill(programs::next_agent(), after);
        after += Duration::from_millis(10);
    }
    assert_eq!(layouts(agent.pins()), [this_layout(), next_layout()]);
    reached(&client.connect(zone::address("api.example.com", false), 80));
    refused(&client.connect(FORBIDDEN, 80));
    client.resolve("new1.example.com", false);
    reached(&client.connect(zone::address("new1.example.com", false), 80));
    let output = agent.unload().unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    assert!(!agent.pins().exists());
    reached(&client.connect(FORBIDDEN, 80));
}

#[test]
fn a_second_agent_on_the_same_pins_says_who_holds_them() {
    if !ready() {
        return;
    }
    let world = World::new();
    let spec = policy("allow: [{ cidrs: [10.79.0.0/16] }]");
    let agent = world.agent(&spec).start();
    // A socket of its own, so that only the pins are in its way.
    let socket = world.dir().join("second.sock");
    let second = world.agent(&spec).socket(&socket).run_to_end();
    assert_eq!(second.code(), Some(2), "{}", second.shown());
    let holder = format!("process {}", agent.pid());
    assert!(
        second.stderr.contains(&holder) && second.stderr.contains("holds"),
        "{}",
        second.shown()
    );
    let client = world.workload("client");
    reached(&client.connect("10.79.0.1", 80));
    refused(&client.connect(FORBIDDEN, 80));
    assert!(agent.status().enforcing);
}

#[test]
fn maps_in_a_folder_of_another_name_are_taken_over_too() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world
        .agent(&policy(
            "ttl: { min: 1s, grace: 0s, max: 1h }\nallow: [{ names: [api.example.com, short.example.com, alias.example.com] }]",
        ))
        .start();
    let client = world.workload("client");
    let (api, short) = (
        zone::address("api.example.com", false),
        zone::address("short.example.com", false),
    );
    client.resolve("short.example.com", false);
    let mut flow = client.hold(short, 80);
    client.resolve("api.example.com", false);
    // A name that only counts as the target of an alias.
    let target = zone::address("end.example.org", true);
    client.resolve("end.example.org", true);
    refused(&client.connect(target, 80));
    client.resolve("alias.example.com", false);
    thread::sleep(Duration::from_millis(1500));
    agent.kill();
    // As if they were of another layout, whose maps all have the same form.
    fs::rename(
        agent.pins().join(this_layout()),
        agent.pins().join("layout-0"),
    )
    .unwrap();
    agent.start_again();
    assert_eq!(layouts(agent.pins()), [this_layout()]);
    assert!(flow.is_alive(), "{:?}", flow.lines());
    reached(&client.connect(api, 80));
    refused(&client.connect(FORBIDDEN, 80));
    refused(&client.connect(target, 80));
    client.resolve("end.example.org", true);
    reached(&client.connect(target, 80));
}
