//! The agent follows its node: resolvers, addresses, files, a disk that hangs; and reports to its service manager.

use std::{
    fs::{self, File},
    io::Write as _,
    net::IpAddr,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use egress_tests::{
    Agent, World,
    disk::Disk,
    eventually,
    expect::{policy, reached, refused},
    process, programs, ready,
    skip::{is_quick, skip},
    world::Role,
    zone,
};

const FORBIDDEN: &str = "10.78.9.1";
/// How soon a change of the node is in force, on a machine with little time to spare.
const SOON: Duration = Duration::from_secs(2);

/// The agent, started by a line of shell that ends in `exec "$AGENT" "$@"`.
fn started_by(world: &World, line: &str) -> PathBuf {
    let script = world.dir().join("agent.sh");
    let agent = programs::agent();
    let text = format!("#!/bin/sh\nAGENT='{}'\n{line}\n", agent.display());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// The agent, with this file as its resolv.conf.
fn with_resolv_conf(world: &World, file: &Path) -> PathBuf {
    let line = format!(
        "RC='{}' exec unshare --mount sh -c 'mount --bind \"$RC\" /etc/resolv.conf && exec \"$0\" \"$@\"' \"$AGENT\" \"$@\"",
        file.display()
    );
    started_by(world, &line)
}

#[test]
fn resolvers_follow_resolv_conf_and_an_empty_one_keeps_the_last() {
    if !ready() {
        return;
    }
    let world = World::new();
    let file = world.dir().join("resolv.conf");
    let good = format!("nameserver {}\n", zone::RESOLVER[0]);
    fs::write(&file, &good).unwrap();
    let agent = world
        .agent(&policy("allow: [{ names: ['*.example.com'] }]"))
        .resolvers_of_the_node()
        .program(with_resolv_conf(&world, &file))
        .start();
    let client = world.workload("client");
    let resolvers = || agent.status().resolvers;
    let first: Vec<IpAddr> = vec![zone::RESOLVER[0].parse().unwrap()];
    assert_eq!(resolvers(), first);
    client.resolve("api.example.com", false);

    for bad in ["", "# being written\n", "\0\0garbage"] {
        fs::write(&file, bad).unwrap();
        let is_told = || {
            let status = agent.cli(&["status"]).unwrap();
            let text = &status.stdout;
            status.code() == Some(1) && text.contains("last known good resolvers stay")
        };
        assert!(eventually(SOON, is_told), "{bad:?}: {:?}", agent.status());
        assert_eq!(resolvers(), first, "{bad:?}");
        assert!(agent.status().enforcing, "{bad:?}");
        client.resolve("www.example.com", false);
        fs::write(&file, &good).unwrap();
        let is_well = || agent.cli(&["status"]).unwrap().code() == Some(0);
        assert!(eventually(SOON, is_well), "{bad:?}: {:?}", agent.status());
    }

    fs::write(&file, format!("nameserver {}\n", zone::SERVER)).unwrap();
    let other: Vec<IpAddr> = vec![zone::SERVER.parse().unwrap()];
    let began = Instant::now();
    assert!(
        eventually(SOON, || resolvers() == other),
        "{:?}",
        resolvers()
    );
    assert!(began.elapsed() < SOON);
    // Addresses resolved before stay; the resolver before is none any more.
    let lookup = client.lookup(&[
        "late.example.com",
        "--server",
        zone::RESOLVER[0],
        "--type",
        "A",
    ]);
    assert!(lookup.error.is_some(), "{lookup:?}");
}

#[test]
fn resolvers_and_addresses_that_come_while_the_agent_starts_are_taken_up() {
    if !ready() {
        return;
    }
    let world = World::new();
    let file = world.dir().join("resolv.conf");
    let rules = policy("allow: [{ names: ['*.example.com'] }]");
    let program = with_resolv_conf(&world, &file);
    let resolver: Vec<IpAddr> = vec![zone::RESOLVER[0].parse().unwrap()];
    // A start takes some seconds; the node is looked at in the first of them.
    for (number, after_ms) in (1_u8..).zip([200, 600, 1_000, 1_400]) {
        fs::write(&file, "# dhcp\n").unwrap();
        let address = format!("10.99.1.{number}");
        let state = world.dir().join(format!("state-{number}"));
        let options = world.agent(&rules).resolvers_of_the_node();
        let options = options.program(program.clone()).state_dir(&state);
        let agent = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(after_ms));
                let text = format!("nameserver {}\n", zone::RESOLVER[0]);
                fs::write(&file, text).unwrap();
                let namespace = world.namespace(Role::Node);
                namespace
                    .ip(&format!("addr add {address}/32 dev lo\n"))
                    .unwrap();
            });
            options.start()
        });
        let is_taken = || {
            let is_open = agent.explain(&format!("{address}:9"), None).verdict == "allowed";
            is_open && agent.status().resolvers == resolver
        };
        assert!(
            eventually(SOON, is_taken),
            "{after_ms} ms: {:?}",
            agent.status()
        );
        world.workload("client").resolve("api.example.com", false);
        let is_well = || agent.cli(&["status"]).unwrap().code() == Some(0);
        assert!(
            eventually(SOON, is_well),
            "{after_ms} ms: {:?}",
            agent.status()
        );
    }
}

#[test]
fn a_cache_of_the_clusters_dns_is_trusted_while_it_is_on_the_node() {
    if !ready() {
        return;
    }
    let world = World::new();
    let file = world.dir().join("resolv.conf");
    fs::write(&file, format!("nameserver {}\n", zone::RESOLVER[0])).unwrap();
    let agent = world
        .agent(&policy("allow: [{ names: ['*.example.com'] }]"))
        .resolvers_of_the_node()
        .program(with_resolv_conf(&world, &file))
        .start();
    let cache = "169.254.20.10";
    let found = || {
        let output = agent.cli(&["status", "-o", "json"]).unwrap();
        let status: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
        let found = status["found"].as_array().unwrap().clone();
        let found: Vec<String> = found
            .iter()
            .filter(|found| found["what"] == "resolver")
            .map(|found| {
                format!(
                    "{} {}",
                    found["value"].as_str().unwrap(),
                    found["from"].as_str().unwrap()
                )
            })
            .collect();
        found.join(", ")
    };
    let of_file = format!("{} /etc/resolv.conf", zone::RESOLVER[0]);
    assert_eq!(found(), of_file);
    let namespace = world.namespace(Role::Node);
    namespace.ip("addr add 169.254.20.10/32 dev lo\n").unwrap();
    let both = format!("{of_file}, {cache} cache on this node, lo");
    assert!(eventually(SOON, || found() == both), "{}", found());
    namespace.ip("addr del 169.254.20.10/32 dev lo\n").unwrap();
    assert!(eventually(SOON, || found() == of_file), "{}", found());
}

#[test]
fn an_address_of_the_node_is_open_as_long_as_the_node_has_it() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy("allow: []")).start();
    let is_open = |address: &str| agent.explain(&format!("{address}:9"), None).verdict == "allowed";
    let address = "10.99.1.1";
    assert!(!is_open(address));
    let namespace = world.namespace(Role::Node);
    namespace.ip("addr add 10.99.1.1/32 dev lo\n").unwrap();
    assert!(
        eventually(SOON, || is_open(address)),
        "{:?}",
        agent.status()
    );
    namespace.ip("addr del 10.99.1.1/32 dev lo\n").unwrap();
    assert!(
        eventually(SOON, || !is_open(address)),
        "{:?}",
        agent.status()
    );
}

fn generation(agent: &Agent) -> u32 {
    agent.status().policy.generation
}

#[test]
fn a_change_that_metadata_hides_is_taken_and_half_of_a_file_is_not() {
    if !ready() {
        return;
    }
    let world = World::new();
    let open = |network: &str| policy(&format!("allow: [{{ cidrs: [{network}] }}]"));
    let agent = world.agent(&open("10.79.0.0/16")).start();
    let client = world.workload("client");
    let file = world.dir().join("policy.yaml");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let set_old = || {
        let file = File::options().write(true).open(&file).unwrap();
        file.set_modified(old).unwrap();
    };
    set_old();
    thread::sleep(Duration::from_secs(2));
    refused(&client.connect(FORBIDDEN, 80));
    // In place: the same file, size and time.
    fs::write(&file, open("10.78.0.0/16")).unwrap();
    set_old();
    let is_taken = || client.connect(FORBIDDEN, 80).ok;
    assert!(
        eventually(Duration::from_secs(5), is_taken),
        "{:?}",
        agent.status()
    );

    // A valid beginning, and a moment later the rest.
    thread::sleep(Duration::from_secs(1));
    let before = generation(&agent);
    let text = open("10.79.0.0/16");
    let more = policy("allow: [{ cidrs: [10.78.0.0/16] }]").replacen("name: ", "name: more-", 1);
    let mut writer = File::create(&file).unwrap();
    for part in [&text, "---\n", &more] {
        writer.write_all(part.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(60));
    }
    drop(writer);
    let is_whole = || agent.status().policy.generation > before;
    assert!(
        eventually(Duration::from_secs(5), is_whole),
        "{:?}",
        agent.status()
    );
    thread::sleep(Duration::from_secs(1));
    assert_eq!(generation(&agent), before + 1, "{}", agent.log());
    reached(&client.connect(FORBIDDEN, 80));
}

#[test]
fn the_service_manager_is_told_when_all_is_attached() {
    if !ready() {
        return;
    }
    let world = World::new();
    let path = world.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let line = format!(
        "NOTIFY_SOCKET='{}' WATCHDOG_USEC=600000 exec \"$AGENT\" \"$@\"",
        path.display()
    );
    let script = started_by(&world, &line);
    let told = || {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let client = world.workload("client");
    let (first, mut agent) = thread::scope(|scope| {
        let first = scope.spawn(|| {
            let first = told();
            // Every process that starts after this is judged.
            refused(&client.connect(FORBIDDEN, 80));
            first
        });
        let agent = world.agent(&policy("allow: []")).program(script).start();
        (first.join().unwrap(), agent)
    });
    assert!(first.starts_with("READY=1\n"), "{first}");
    assert_eq!(told(), "WATCHDOG=1");
    assert_eq!(told(), "WATCHDOG=1");
    agent.stop();
    let is_stopping = |text: String| text.starts_with("STOPPING=1");
    assert!((0..50).any(|_| is_stopping(told())));
}

#[test]
fn too_few_descriptors_and_too_many_resolvers_are_told_before_anything_is_changed() {
    if !ready() {
        return;
    }
    let world = World::new();
    let script = started_by(&world, "ulimit -n 100 && exec \"$AGENT\" \"$@\"");
    let options = world.agent(&policy("allow: []"));
    let output = options.clone().program(script).run_to_end();
    assert_eq!(output.code(), Some(2), "{}", output.shown());
    assert!(
        output.stderr.contains("at most 100 files may be open"),
        "{}",
        output.shown()
    );

    let mut many = options.clone();
    for last in 0..=255 {
        many = many.resolver(&format!("192.0.2.{last}"));
    }
    let output = many.run_to_end();
    assert_eq!(output.code(), Some(2), "{}", output.shown());
    assert!(
        output.stderr.contains("at most 256 can be trusted"),
        "{}",
        output.shown()
    );
    assert!(!options.pins().join("links").exists());
}

#[test]
fn a_disk_that_hangs_holds_up_nothing_but_itself() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    let zones = ["--zone", "fresh.example.com", "--zone", "stale.example.com"];
    world
        .start_probe(Role::Dns, &[&["dns-server"], &zones[..]].concat())
        .unwrap();
    let Some(disk) = Disk::new(&world) else {
        println!("SKIPPED a_disk_that_hangs_holds_up_nothing_but_itself: no loop device");
        return;
    };
    let mut agent = world
        .agent(&policy(
            "allow: [{ cidrs: [10.79.0.0/16] }, { names: ['*.fresh.example.com'] }]",
        ))
        .resolver(zone::SERVER)
        .state_dir(&disk.path().join("state"))
        .arg("--confirm")
        .arg("8s")
        .start();
    let client = world.workload("client");
    let frozen = disk.freeze();
    // To be written, now and every few seconds.
    refused(&client.connect(FORBIDDEN, 80));
    // Answers that only the agent can read, each of which it writes down.
    for number in 1..=3 {
        let name = format!("split-{number}.fresh.example.com");
        client.lookup(&[&name, "--server", zone::SERVER, "--tcp"]);
        let address = format!("10.78.128.{number}");
        let is_open = || client.connect(&address, 80).ok;
        assert!(eventually(SOON, is_open), "{name}");
    }
    thread::sleep(Duration::from_secs(8));
    reached(&client.connect(FORBIDDEN, 80));
    let confirmation = || agent.status().confirmation.unwrap().state;
    assert!(
        eventually(SOON, || confirmation() == "fell_back"),
        "{:?}",
        agent.status()
    );
    let output = agent.cli(&["confirm"]).unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    refused(&client.connect(FORBIDDEN, 80));
    agent.reload(&policy("allow: [{ cidrs: [10.79.0.0/16, 10.78.0.0/16] }]"));
    reached(&client.connect(FORBIDDEN, 80));
    drop(frozen);
    agent.stop();
}

#[test]
fn a_start_does_not_wait_for_a_disk_that_hangs_but_for_what_pinned_programs_need() {
    if !ready() || is_quick() {
        return;
    }
    let world = World::new();
    let Some(disk) = Disk::new(&world) else {
        let _ = skip("no loop device");
        return;
    };
    let Some(slow) = disk.slow_reads(&world.name()) else {
        let _ = skip("no block controller of version 1");
        return;
    };
    slow.end();
    let line = format!(
        "echo $$ >'{}' && exec \"$AGENT\" \"$@\"",
        slow.procs().display()
    );
    let script = started_by(&world, &line);
    let (state, log) = (disk.path().join("state"), disk.path().join("flows.json"));
    let mut agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .state_dir(&state)
        .arg("--flow-log")
        .arg(log.display().to_string())
        .start();
    // Dropped first: an agent whose threads wait for the disk does not end.
    let slow = slow;
    let client = world.workload("client");
    refused(&client.connect(FORBIDDEN, 80));
    let kept = state.join("observations.json");
    assert!(eventually(Duration::from_secs(10), || kept.exists()));
    agent.stop();
    let before = fs::read(&kept).unwrap();

    // As after a reboot: nothing is attached, so that nothing enforces while the agent waits.
    let mut unload = world
        .place(Role::Node, world.judged())
        .command(programs::agent());
    unload.arg("unload").arg("--pin-dir").arg(agent.pins());
    let unloaded = process::run(&mut unload, Duration::from_secs(10)).unwrap();
    assert_eq!(unloaded.code(), Some(0), "{}", unloaded.shown());
    disk.mount_again();
    slow.begin();
    agent.spawn_again(script.clone()).unwrap();
    let answer = |agent: &Agent| agent.look().ok().and_then(|(_, status)| status);
    let is_there = |agent: &Agent| answer(agent).is_some_and(|status| status.enforcing);
    let is_soon = eventually(Duration::from_secs(30), || is_there(&agent));
    assert!(is_soon, "{}", agent.log());
    let alarms = agent.status().alarms;
    let is_said = |alarm: &String| {
        alarm.contains("observations.json: the disk does not answer")
            && alarm.contains("observations.json.unread")
    };
    assert!(alarms.iter().any(is_said), "{alarms:?}");
    client.resolve("api.example.com", false);
    let api = zone::address("api.example.com", false);
    let mut held = client.hold(api, 80);
    refused(&client.connect(FORBIDDEN, 81));
    slow.end();
    let unread = state.join("observations.json.unread");
    let is_kept = || fs::read(&unread).is_ok_and(|bytes| bytes == before) && kept.exists();
    assert!(
        eventually(Duration::from_secs(20), is_kept),
        "{}",
        agent.log()
    );
    let logged = || fs::read_to_string(&log).unwrap_or_default();
    assert!(
        eventually(SOON, || logged().contains(":81,")),
        "{}",
        logged()
    );
    agent.stop();

    // Over pinned programs: who taught their addresses is worth waiting for.
    let names = fs::read_to_string(state.join("learned.log")).unwrap();
    assert!(names.contains("api.example.com"), "{names}");
    disk.mount_again();
    slow.begin();
    agent.spawn_again(script).unwrap();
    let end = Instant::now() + Duration::from_secs(12);
    while Instant::now() < end {
        reached(&client.connect(api, 80));
        refused(&client.connect(FORBIDDEN, 80));
        thread::sleep(Duration::from_secs(1));
    }
    assert!(answer(&agent).is_none());
    slow.end();
    assert!(
        eventually(Duration::from_secs(30), || is_there(&agent)),
        "{}",
        agent.log()
    );
    assert_eq!(agent.status().alarms, Vec::<String>::new());
    reached(&client.connect(api, 80));
    assert!(held.is_alive(), "{:?}", held.lines());
    agent.stop();
}

#[test]
fn state_that_is_not_written_is_an_alarm() {
    if !ready() || is_quick() {
        return;
    }
    let world = World::new();
    let Some(disk) = Disk::new(&world) else {
        println!("SKIPPED state_that_is_not_written_is_an_alarm: no loop device");
        return;
    };
    let agent = world
        .agent(&policy("allow: []"))
        .state_dir(&disk.path().join("state"))
        .start();
    let client = world.workload("client");
    let _full = disk.fill();
    // To be written down, again and again.
    let mut port = 1_000;
    let is_said = || {
        port += 1;
        refused(&client.connect(FORBIDDEN, port));
        thread::sleep(Duration::from_secs(1));
        let status = agent.cli(&["status"]).unwrap();
        status.code() == Some(1) && status.stdout.contains("state is not written for 1 min")
    };
    assert!(
        eventually(Duration::from_secs(150), is_said),
        "{:?}",
        agent.status()
    );
    assert!(agent.status().enforcing);
}

#[test]
fn an_api_server_that_was_never_heard_is_an_alarm() {
    if !ready() {
        return;
    }
    let world = World::new();
    let kubeconfig = world.dir().join("kubeconfig");
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: one\n\
                clusters: [{ name: one, cluster: { server: \"http://127.0.0.1:9\" } }]\n\
                contexts: [{ name: one, context: { cluster: one, user: one } }]\n\
                users: [{ name: one, user: {} }]\n";
    fs::write(&kubeconfig, text).unwrap();
    let agent = world
        .agent(&policy("allow: []"))
        .of_cluster(&kubeconfig, "node-1")
        .start();
    let is_said = || {
        let status = agent.cli(&["status"]).unwrap();
        status.code() == Some(1) && status.stdout.contains("the API server was never heard")
    };
    assert!(
        eventually(Duration::from_secs(40), is_said),
        "{:?}",
        agent.status()
    );
}

#[test]
fn too_little_memory_is_told_before_anything_is_changed() {
    if !ready() {
        return;
    }
    let memory = Path::new("/sys/fs/cgroup/memory");
    if !memory.join("memory.limit_in_bytes").is_file() {
        println!(
            "SKIPPED too_little_memory_is_told_before_anything_is_changed: no memory controller of version 1"
        );
        return;
    }
    let world = World::new();
    let bound = memory.join(world.name());
    fs::create_dir(&bound).unwrap();
    fs::write(bound.join("memory.limit_in_bytes"), "41943040").unwrap();
    let line = format!(
        "echo $$ >'{}/cgroup.procs' && exec \"$AGENT\" \"$@\"",
        bound.display()
    );
    let script = started_by(&world, &line);
    let options = world.agent(&policy("allow: []"));
    let output = options.clone().program(script).run_to_end();
    let is_gone = eventually(SOON, || fs::remove_dir(&bound).is_ok());
    assert_eq!(output.code(), Some(2), "{}", output.shown());
    assert!(
        output.stderr.contains("may use 40 MiB of memory"),
        "{}",
        output.shown()
    );
    assert!(is_gone && !options.pins().join("links").exists());
}

#[test]
fn room_for_learned_addresses_grows_and_shrinks_within_the_memory_that_the_agent_may_use() {
    if !ready() {
        return;
    }
    let memory = Path::new("/sys/fs/cgroup/memory");
    if !memory.join("memory.limit_in_bytes").is_file() {
        println!(
            "SKIPPED room_for_learned_addresses_grows_and_shrinks_within_the_memory_that_the_agent_may_use: no memory controller of version 1"
        );
        return;
    }
    let world = World::new();
    let bound = memory.join(world.name());
    fs::create_dir(&bound).unwrap();
    fs::write(bound.join("memory.limit_in_bytes"), "201326592").unwrap();
    let line = format!(
        "echo $$ >'{}/cgroup.procs' && exec \"$AGENT\" \"$@\"",
        bound.display()
    );
    let script = started_by(&world, &line);
    let rules = policy("allow: [{ names: [api.example.com] }]");
    let options = world.agent(&rules).program(script);
    let mut agent = options.clone().start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    let api = zone::address("api.example.com", false);
    let mut held = client.hold(api, 80);
    let capacity = |agent: &Agent| {
        let maps = agent.status().maps;
        let learned = maps.into_iter().find(|map| map.name == "LEARNED");
        learned.unwrap().capacity.to_string()
    };
    let first = capacity(&agent);
    for room in ["2000000", "1000", "8000000", first.as_str()] {
        agent.kill();
        // Its pins stay, as those of a killed one do.
        std::mem::forget(agent);
        let asked = options.clone().arg("--max-learned").arg(room);
        // It would fit, but not beside the pinned one and the start.
        if room == "8000000" {
            let output = asked.run_to_end();
            assert_eq!(output.code(), Some(2), "{}", output.shown());
            let is_said = output.stderr.contains("of the 192 MiB")
                && output.stderr.contains("--max-learned 1000;");
            assert!(is_said, "{}", output.shown());
            agent = options.clone().arg("--max-learned").arg("1000").start();
            assert_eq!(capacity(&agent), "1000");
        } else {
            agent = asked.start();
            assert_eq!(capacity(&agent), room);
        }
        reached(&client.connect(api, 80));
        refused(&client.connect(FORBIDDEN, 80));
        assert!(held.is_alive(), "{room}: {:?}", held.lines());
    }
    drop(agent);
    assert!(eventually(SOON, || fs::remove_dir(&bound).is_ok()));
}

#[test]
fn who_taught_what_is_not_known_after_garbage_and_status_says_so() {
    if !ready() {
        return;
    }
    let world = World::new();
    let rules = policy("allow: [{ names: [api.example.com] }]");
    let mut agent = world.agent(&rules).start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    let api = zone::address("api.example.com", false);
    let file = agent.state_dir().join("learned.log");
    let has_name = || fs::read_to_string(&file).is_ok_and(|text| text.contains("api.example.com"));
    assert!(eventually(SOON, has_name));
    agent.stop();
    agent.start_again();
    assert_eq!(agent.status().alarms, Vec::<String>::new());
    agent.stop();
    fs::write(&file, "garbage").unwrap();
    agent.start_again();
    let alarms = agent.status().alarms;
    let is_said = alarms
        .iter()
        .any(|alarm| alarm.contains("learned.log.unusable"));
    assert!(is_said, "{alarms:?}");
    refused(&client.connect(api, 80));
    client.resolve("api.example.com", false);
    reached(&client.connect(api, 80));
}
