//! The agent attaches and pins the hooks that were asked for, and puts them back when somebody removes them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use egress_tests::{
    Agent, World, eventually,
    expect::{policy, reached, refused},
    link, process, programs, ready,
    report::Attempt,
    world::Role,
    zone,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// An address without a rule.
const FORBIDDEN: &str = "10.78.9.1";
/// An address with one.
const OPEN: &str = "10.79.0.1";
/// How long the agent may take to put back removed hooks and pins.
const SOON: Duration = Duration::from_secs(1);
/// How long the machine may take to say so.
const LONG: Duration = Duration::from_secs(5);

fn rules() -> String {
    policy("allow: [{ cidrs: [10.79.0.0/16] }, { names: [api.example.com] }]")
}

/// How often something was put back, by what it was.
fn put_back(agent: &Agent, what: &str) -> u64 {
    let begin = format!("egress_put_back_total{{what=\"{what}\"}} ");
    let metrics = agent.metrics().unwrap();
    let line = metrics.iter().find_map(|line| line.strip_prefix(&begin));
    line.expect("the counter is there").parse().unwrap()
}

#[track_caller]
fn is_whole(agent: &Agent) {
    let is_so = || {
        let status = agent.status();
        status.enforcing && status.hooks.iter().all(|hook| hook.attached && hook.pinned)
    };
    assert!(eventually(LONG, is_so), "{:?}", agent.status());
}

#[test]
fn a_restart_at_another_cgroup_judges_there_and_no_longer_where_it_was() {
    if !ready() {
        return;
    }
    let world = World::new();
    let (small, other) = (world.workload("small"), world.workload("other"));
    let mut agent = world.agent(&rules()).cgroup(small.cgroup()).start();
    refused(&small.connect(FORBIDDEN, 80));
    reached(&other.connect(FORBIDDEN, 80));
    agent.kill();
    agent.start_at(other.cgroup());
    refused(&other.connect(FORBIDDEN, 80));
    reached(&other.connect(OPEN, 80));
    reached(&small.connect(FORBIDDEN, 80));
    let status = agent.status();
    assert_eq!(status.alarms, Vec::<String>::new());
    for hook in &status.hooks {
        assert_eq!(hook.target, other.cgroup().display().to_string());
        assert_eq!(hook.program_tag.len(), 16, "{hook:?}");
    }
    // And back: what judges the whole tree is another cgroup, too.
    agent.kill();
    agent.start_at(&world.judged());
    refused(&small.connect(FORBIDDEN, 80));
    refused(&other.connect(FORBIDDEN, 80));
}

#[test]
fn a_cgroup_that_is_made_again_under_its_name_is_judged_again() {
    if !ready() {
        return;
    }
    let world = World::new();
    let name = "service";
    let path = world.judged().join(name);
    fs::create_dir_all(&path).unwrap();
    let mut agent = world.agent(&rules()).cgroup(&path).start();
    refused(&world.workload(name).connect(FORBIDDEN, 80));
    let again = || {
        assert!(eventually(LONG, || fs::remove_dir(&path).is_ok()));
        fs::create_dir(&path).unwrap();
    };
    // While the agent lives, and while it does not.
    again();
    assert!(eventually(SOON, || {
        !world.workload(name).connect(FORBIDDEN, 80).ok
    }));
    is_whole(&agent);
    assert!(put_back(&agent, "hook") >= 5);
    agent.kill();
    again();
    reached(&world.workload(name).connect(FORBIDDEN, 80));
    agent.start_again();
    refused(&world.workload(name).connect(FORBIDDEN, 80));
    reached(&world.workload(name).connect(OPEN, 80));
}

#[test]
fn an_interface_that_is_made_again_is_judged_again() {
    if !ready() {
        return;
    }
    let world = World::builder().pod().build();
    let mut agent = world.agent(&rules()).interface("eth0").start();
    let pod = world.outsider(Role::Pod);
    let check = |agent: &Agent| {
        let is_forwarded = || pod.connect(OPEN, 80).ok;
        assert!(eventually(LONG, is_forwarded));
        let (attempt, moved) = agent
            .counted(|| pod.probe::<Attempt>(&["connect", FORBIDDEN, "80", "--timeout", "300"]));
        assert!(!attempt.ok, "{attempt:?}");
        assert!(moved.denied_by("tc_egress") >= 1, "{moved:?}");
    };
    let again = || {
        let (node, web) = (world.namespace(Role::Node), world.namespace(Role::Web));
        node.ip("link del eth0\n").unwrap();
        web.ip(&format!(
            "link add node type veth peer name eth0 netns {}\nlink set node master br0 up\n",
            node.name()
        ))
        .unwrap();
        let ([v4, _], [gateway, _], [servers, _]) = (zone::NODE, zone::WEB, zone::SERVERS);
        node.ip(&format!(
            "link set eth0 up\naddress add {v4}/24 dev eth0\nroute add {servers} via {gateway}\n"
        ))
        .unwrap();
    };
    check(&agent);
    again();
    check(&agent);
    is_whole(&agent);
    agent.kill();
    again();
    agent.start_again();
    check(&agent);
    is_whole(&agent);
}

#[test]
fn an_interface_with_a_dot_in_its_name_is_judged() {
    if !ready() {
        return;
    }
    let world = World::new();
    let node = world.namespace(Role::Node);
    node.ip("link add eth0.100 type veth peer name far0\nlink set eth0.100 up\n")
        .unwrap();
    let mut agent = world.agent(&rules()).interface("eth0.100").start();
    is_whole(&agent);
    agent.kill();
    agent.start_again();
    is_whole(&agent);
    let hooks = agent.status().hooks;
    assert_eq!(
        hooks
            .iter()
            .filter(|hook| hook.target == "eth0.100")
            .count(),
        2
    );
}

#[test]
fn an_interface_that_is_not_asked_for_any_more_is_let_go() {
    if !ready() {
        return;
    }
    let world = World::builder().pod().build();
    let agent = world.agent(&rules()).interface("eth0").start();
    let pod = world.outsider(Role::Pod);
    assert!(!pod.connect(FORBIDDEN, 80).ok);
    let pin = agent.pins().join("links/tc_egress-eth0");
    assert!(pin.exists());
    // It ends as a killed one does: its pins stay.
    let mut agent = agent;
    agent.kill();
    std::mem::forget(agent);
    let agent = world.agent(&rules()).start();
    assert!(!pin.exists());
    reached(&pod.connect(FORBIDDEN, 80));
    drop(agent);
}

#[test]
fn pins_that_are_removed_open_nothing_and_are_put_back() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world.agent(&rules()).start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    let api = zone::address("api.example.com", false);
    let mut held = client.hold(api, 80);
    let files = |below: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(agent.pins().join(below)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let layout = format!("layout-{}", egress_common::maps::LAYOUT_VERSION);
    let pins = [files("links"), files(&layout)].concat();
    for pin in &pins {
        fs::remove_file(pin).unwrap();
        refused(&client.connect(FORBIDDEN, 80));
    }
    refused(&client.udp(FORBIDDEN, 443, false));
    assert!(eventually(SOON, || pins.iter().all(|pin| pin.exists())));
    is_whole(&agent);
    assert!(put_back(&agent, "pin") >= 5, "hooks");
    assert!(put_back(&agent, "map") >= 15, "maps");
    let alarms = agent.status().alarms;
    assert!(
        alarms.iter().any(|alarm| alarm.contains("put it back")),
        "{alarms:?}"
    );
    assert!(agent.log().contains("put back"), "{}", agent.log());
    // Folders, too, which are gone when the agent is asked to restart.
    fs::remove_dir_all(agent.pins()).unwrap();
    assert!(eventually(SOON, || pins.iter().all(|pin| pin.exists())));
    agent.kill();
    refused(&client.connect(FORBIDDEN, 80));
    agent.start_again();
    refused(&client.connect(FORBIDDEN, 80));
    reached(&client.connect(api, 80));
    assert!(held.is_alive(), "{:?}", held.lines());
}

#[test]
fn a_link_that_is_detached_is_attached_anew_within_a_second_and_a_restart_goes_on() {
    if !ready() {
        return;
    }
    let world = World::builder().pod().build();
    let mut agent = world.agent(&rules()).interface("eth0").start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    let api = zone::address("api.example.com", false);
    let mut held = client.hold(api, 80);
    let links = agent.pins().join("links");
    // Those of interfaces on kernels without TCX are no links.
    let pins: Vec<PathBuf> = fs::read_dir(&links)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(pins.len() >= 9, "{pins:?}");
    for pin in &pins {
        link::detach(pin).unwrap();
    }
    let is_judged = || !client.connect(FORBIDDEN, 80).ok && !client.udp(FORBIDDEN, 443, false).ok;
    assert!(eventually(SOON, is_judged), "{:?}", agent.status());
    assert!(eventually(SOON, || put_back(&agent, "hook") >= pins.len() as u64));
    is_whole(&agent);
    let status = agent.cli(&["status"]).unwrap();
    let is_said = status.stdout.contains("put it back") && agent.log().contains("put back");
    assert!(is_said, "{}\n{}", status.shown(), agent.log());
    // The new links are pinned in the place of the old: a killed agent leaves them.
    agent.kill();
    refused(&client.connect(FORBIDDEN, 80));
    agent.start_again();
    assert_eq!(agent.status().alarms, Vec::<String>::new());
    refused(&client.connect(FORBIDDEN, 80));

    // While there is no agent.
    agent.kill();
    for pin in &pins {
        link::detach(pin).unwrap();
    }
    reached(&client.connect(FORBIDDEN, 80));
    agent.start_again();
    is_whole(&agent);
    refused(&client.connect(FORBIDDEN, 80));
    reached(&client.connect(api, 80));
    assert!(held.is_alive(), "{:?}", held.lines());
}

/// A bpffs of its own, unmounted on drop.
struct Bpffs(PathBuf);

impl Bpffs {
    fn new(world: &World) -> Self {
        let path = world.dir().join("bpffs");
        fs::create_dir(&path).unwrap();
        let none: Option<&str> = None;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), none).unwrap();
        Self(path)
    }

    fn unmount(path: &Path) {
        umount2(path, MntFlags::MNT_DETACH).unwrap();
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        while umount2(&self.0, MntFlags::MNT_DETACH).is_ok() {}
    }
}

#[test]
fn a_bpffs_that_is_unmounted_opens_nothing_and_a_restart_goes_on() {
    if !ready() {
        return;
    }
    let world = World::new();
    let bpffs = Bpffs::new(&world);
    let mut agent = world
        .agent(&rules())
        .pin_dir(&bpffs.0.join("egress"))
        .start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    Bpffs::unmount(&bpffs.0);
    refused(&client.connect(FORBIDDEN, 80));
    assert!(eventually(SOON, || agent
        .pins()
        .join("links/connect4")
        .exists()));
    is_whole(&agent);
    assert_eq!(put_back(&agent, "bpffs"), 1);
    agent.stop();
    refused(&client.connect(FORBIDDEN, 80));
    agent.start_again();
    refused(&client.connect(FORBIDDEN, 80));
    reached(&client.connect(zone::address("api.example.com", false), 80));
}

#[test]
fn room_for_learned_addresses_is_what_was_asked_for_last() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world.agent(&rules()).start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    let api = zone::address("api.example.com", false);
    let mut held = client.hold(api, 80);
    let mut udp = client.hold_with(&[&api.to_string(), "443", "--udp"]);
    for room in ["777", "1000000"] {
        agent.kill();
        // Its pins stay, as those of a killed one do.
        std::mem::forget(agent);
        agent = world.agent(&rules()).arg("--max-learned").arg(room).start();
        let learned = agent
            .status()
            .maps
            .into_iter()
            .find(|map| map.name == "LEARNED");
        assert_eq!(learned.unwrap().capacity.to_string(), room);
        reached(&client.connect(api, 80));
        refused(&client.connect(FORBIDDEN, 80));
        assert!(held.is_alive() && udp.is_alive());
        let mut folders: Vec<_> = fs::read_dir(agent.pins())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        folders.sort();
        let layout = format!("layout-{}", egress_common::maps::LAYOUT_VERSION);
        assert_eq!(folders, [layout, "links".to_owned()]);
    }
}

#[test]
fn unload_and_run_leave_alone_what_is_not_an_agents() {
    if !ready() {
        return;
    }
    let world = World::new();
    let unload = |folder: &Path| {
        let mut command = world
            .place(Role::Node, world.judged())
            .command(programs::agent());
        command.arg("unload").arg("--pin-dir").arg(folder);
        process::run(&mut command, LONG).unwrap()
    };
    // An ordinary folder.
    let folder = world.dir().join("ordinary");
    for name in ["links", "layout-1"] {
        fs::create_dir_all(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("CONFIG"), "dear").unwrap();
    }
    let output = unload(&folder);
    assert_eq!(output.code(), Some(2), "{}", output.shown());
    assert!(
        output.stderr.contains("not on a bpffs"),
        "{}",
        output.shown()
    );
    assert!(folder.join("layout-1/CONFIG").exists());

    // A bpffs in which others have pins, some of them named like the agent's: a map of an agent under other names.
    let mut agent = world.agent(&rules()).start();
    let bpffs = Bpffs::new(&world);
    let theirs = [
        "cilium/map",
        "links/connect4",
        "layout-7/OTHER",
        "layout-7/COUNTERS",
    ];
    let layout = format!("layout-{}", egress_common::maps::LAYOUT_VERSION);
    for name in theirs {
        let path = bpffs.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let map = aya::maps::MapData::from_pin(agent.pins().join(&layout).join("CONFIG")).unwrap();
        map.pin(&path).unwrap();
    }
    let all_there = || theirs.iter().all(|name| bpffs.0.join(name).exists());
    let output = unload(&bpffs.0);
    assert_eq!(output.code(), Some(2), "{}", output.shown());
    assert!(
        output.stderr.contains("links/connect4"),
        "{}",
        output.shown()
    );
    assert!(all_there());
    let second = world
        .agent(&rules())
        .pin_dir(&bpffs.0)
        .socket(&world.dir().join("second.sock"))
        .run_to_end();
    assert_eq!(second.code(), Some(2), "{}", second.shown());
    assert!(
        second.stderr.contains("layout-7/OTHER"),
        "{}",
        second.shown()
    );
    assert!(all_there());

    // In a folder with pins of somebody else, `unload` removes the agent's alone; it prints all removals first.
    agent.stop();
    let other = agent.pins().join("links/favourite");
    aya::maps::MapData::from_pin(agent.pins().join(&layout).join("CONFIG"))
        .unwrap()
        .pin(&other)
        .unwrap();
    let output = unload(agent.pins());
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    for told in [
        "removing hook connect4",
        "removing map layout-",
        "leaving links/favourite",
    ] {
        assert!(output.stderr.contains(told), "{told}: {}", output.shown());
    }
    assert!(other.exists());
    reached(&world.workload("client").connect(FORBIDDEN, 80));
    fs::remove_file(&other).unwrap();
    assert_eq!(unload(agent.pins()).code(), Some(0));
    assert!(!agent.pins().exists());
}
