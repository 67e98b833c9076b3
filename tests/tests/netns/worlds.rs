//! The worlds themselves, without an agent: everything is reachable, so that a denial elsewhere means something.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use egress_tests::{
    Resolver, World, cgroup, eventually, forge, leftovers,
    packets::{Ends, UDP, to_hex},
    programs,
    report::{Attempt, Lookup, Series},
    skip::world_ready,
    world::Role,
    zone,
};

#[test]
fn a_world_comes_up_fast() {
    if !world_ready() {
        return;
    }
    let begin = Instant::now();
    let world = World::new();
    let up = begin.elapsed();
    let begin = Instant::now();
    drop(world);
    let down = begin.elapsed();
    eprintln!("up in {up:?}, down in {down:?}");
    // Five times of what it takes on an idle machine.
    assert!(up < Duration::from_secs(5), "{up:?}");
    assert!(down < Duration::from_secs(5), "{down:?}");
}

#[test]
fn every_transport_reaches_every_server_without_an_agent() {
    if !world_ready() {
        return;
    }
    let world = World::new();
    let client = world.workload("client");
    for name in ["api.example.com", "forbidden.example.org"] {
        for v6 in [false, true] {
            let address = zone::address(name, v6);
            assert_eq!(client.resolve(name, v6), [address]);
            for port in [80, 443, 8000, 8080, 9000] {
                let attempt = client.connect(address, port);
                assert!(attempt.ok, "{address}:{port} {attempt:?}");
            }
            for connected in [false, true] {
                let attempt = client.udp(address, 443, connected);
                assert!(attempt.ok, "{address} {attempt:?}");
            }
            assert!(client.ping(address).ok);
            let dgram = client.probe::<egress_tests::report::Attempt>(&[
                "ping",
                "--dgram",
                &address.to_string(),
            ]);
            assert!(dgram.ok, "{dgram:?}");
        }
    }
    let text = client
        .run("curl", &["-sS", "http://10.78.1.1:8080/"])
        .stdout;
    assert_eq!(text, "hello from 10.78.1.1:8080\n");
}

#[test]
fn aliases_ipv6_and_tcp_work_with_both_resolvers() {
    if !world_ready() {
        return;
    }
    for resolver in [Resolver::Unbound, Resolver::Dnsmasq] {
        let world = World::builder().resolver(resolver).build();
        let client = world.workload("client");
        for v6 in [false, true] {
            let end = zone::address("end.example.org", v6);
            assert_eq!(
                client.resolve("alias.example.com", v6),
                [end],
                "{resolver:?}"
            );
        }
        assert_eq!(
            client.resolve_at("api.example.com", false, zone::RESOLVER[1]),
            [zone::address("api.example.com", false)]
        );
        let lookup = client.lookup(&["short.example.com", "--server", zone::RESOLVER[0], "--tcp"]);
        assert_eq!(
            lookup.addresses,
            [zone::address("short.example.com", false)]
        );
        assert_eq!(lookup.ttl, Some(1), "{lookup:?}");
        let lookup = client.lookup(&["nowhere.example.com", "--server", zone::RESOLVER[0]]);
        assert_eq!(lookup.addresses, Vec::<IpAddr>::new());
        assert!(
            lookup.rcode.is_some_and(|code| code != "NOERROR"),
            "{resolver:?}"
        );
    }
}

#[test]
fn the_programmable_server_answers_what_its_names_say() {
    if !world_ready() {
        return;
    }
    let mut world = World::new();
    world
        .start_probe(Role::Dns, &["dns-server", "--zone", "fresh.example.com"])
        .unwrap();
    let client = world.workload("client");
    let ask = |label: &str, more: &[&str]| -> Lookup {
        let name = format!("{label}.fresh.example.com");
        client.lookup(&[&[name.as_str(), "--server", zone::SERVER], more].concat())
    };
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(ask("n300", &[]).addresses, [address("10.78.129.44")]);
    let v6 = ask("n300", &["--type", "AAAA"]).addresses;
    assert_eq!(v6, [address("fd78:8000::12c")]);
    assert_eq!(ask("ttl3-5", &[]).ttl, Some(3));
    assert_eq!(ask("chain-4-9", &[]).addresses, [address("10.78.128.9")]);
    let cut = ask("many-40-0", &[]);
    assert!(cut.truncated && cut.addresses.is_empty());
    assert_eq!(ask("many-40-0", &["--tcp"]).addresses.len(), 40);
    assert_eq!(ask("huge-40-0", &[]).addresses.len(), 40);
    assert_eq!(
        ask("split-5", &["--tcp"]).addresses,
        [address("10.78.128.5")]
    );

    let series: Series = client.probe(&[
        "resolve-connect",
        "--count",
        "200",
        "--server",
        zone::SERVER,
        "--zone",
        "fresh.example.com",
        "--cpu",
        "0",
    ]);
    assert_eq!(
        (
            series.count,
            series.refused,
            series.failed,
            series.unresolved
        ),
        (200, 0, 0, 0)
    );
}

#[test]
fn the_forger_sends_what_it_is_asked_for() {
    if !world_ready() {
        return;
    }
    let mut world = World::new();
    world
        .start_probe(Role::Dns, &["forge-dns", "--late-ms", "300"])
        .unwrap();
    let client = world.workload("client");
    let mut listener = client.background(&["listen", "5555"]);
    listener
        .wait_for_line(0, Duration::from_secs(2), |line| line == "ready")
        .unwrap();
    for kind in forge::Kind::ALL {
        let lookup = client.lookup(&[
            &kind.name(),
            "--server",
            zone::FORGER,
            "--unconnected",
            "--collect",
            "500",
        ]);
        let count = match kind {
            forge::Kind::Unsolicited => 0,
            forge::Kind::Twice => 2,
            _ => 1,
        };
        assert_eq!(lookup.arrived.len(), count, "{kind:?}: {lookup:?}");
        let from = lookup.arrived.first().map(|one| one.from.to_string());
        match kind {
            forge::Kind::Unsolicited => assert_eq!(from, None),
            forge::Kind::WrongSource => assert_eq!(from.unwrap(), "10.77.0.66:53"),
            forge::Kind::WrongPort => assert_eq!(from.unwrap(), "10.77.0.55:5353"),
            _ => assert_eq!(from.unwrap(), "10.77.0.55:53"),
        }
        if *kind == forge::Kind::Good {
            assert_eq!(lookup.addresses, [IpAddr::V4(kind.v4())]);
        }
    }
    let got = listener.wait_for_line(1, Duration::from_secs(2), |line| line.starts_with("got "));
    assert!(got.unwrap().contains("10.77.0.55:53"));
}

#[test]
fn a_flow_is_held_and_its_end_is_seen() {
    if !world_ready() {
        return;
    }
    let world = World::new();
    let client = world.workload("client");
    let mut tcp = client.hold("10.78.1.1", 443);
    let mut udp = client.hold_with(&["fd78::1:1", "443", "--udp"]);
    assert!(tcp.is_alive() && udp.is_alive());
    world
        .namespace(Role::Node)
        .ip("link set eth0 down\n")
        .unwrap();
    assert!(tcp.breaks(Duration::from_secs(3)) && udp.breaks(Duration::from_secs(3)));
}

#[test]
fn frames_and_raw_packets_arrive_without_an_agent() {
    if !world_ready() {
        return;
    }
    let world = World::new();
    let client = world.workload("client");
    assert!(client.ping(zone::WEB[0]).ok);
    let gateway = world.gateway();
    let to = |address: &str| {
        let ends = Ends::new(zone::NODE[0], address);
        (ends, ends.udp(7, 9000, b"hello"))
    };
    let (ends, datagram) = to("10.78.9.1");
    let packet = to_hex(&ends.packet(UDP, &datagram));
    let sent: Attempt = client.probe(&["emit-frame", &packet, "--gateway", &gateway]);
    assert!(sent.ok, "{sent:?}");
    assert!(eventually(Duration::from_secs(1), || world
        .web_saw("udp 10.78.9.1:9000")
        == 1));
    let (ends, datagram) = to("10.78.9.2");
    let with_options = ends.ipv4().options(&[1; 8]);
    for (bytes, how) in [
        (
            ends.packet(UDP, &datagram),
            ["--header-included"].as_slice(),
        ),
        (datagram.clone(), &["--protocol", "17"]),
        (with_options.packet(UDP, &datagram), &["--header-included"]),
    ] {
        let bytes = to_hex(&bytes);
        let sent: Attempt = client.probe(&[&["emit", "10.78.9.2", &bytes], how].concat());
        assert!(sent.ok, "{how:?} {sent:?}");
    }
    assert!(eventually(Duration::from_secs(1), || world
        .web_saw("udp 10.78.9.2:9000")
        == 3));
}

#[test]
fn a_pod_is_forwarded_by_the_node() {
    if !world_ready() {
        return;
    }
    let world = World::builder().pod().build();
    let pod = world.outsider(Role::Pod);
    for v6 in [false, true] {
        let attempt = pod.connect(zone::address("api.example.com", v6), 80);
        assert!(attempt.ok, "{attempt:?}");
        assert_eq!(
            pod.resolve("api.example.com", v6),
            [zone::address("api.example.com", v6)]
        );
    }
}

#[test]
fn a_world_leaves_nothing_behind_also_when_its_test_panics() {
    if !world_ready() {
        return;
    }
    let name = std::panic::catch_unwind(|| {
        let world = World::new();
        let _flow = world.workload("client").hold("10.78.1.1", 80);
        std::panic::panic_any(world.name());
    })
    .unwrap_err()
    .downcast::<String>()
    .unwrap();
    assert_gone(&name);
}

#[test]
fn what_a_killed_run_left_is_swept_and_what_others_own_is_not() {
    if !world_ready() {
        return;
    }
    let world = World::new();
    // A process that is dead for sure: ours, reaped.
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let name = format!("egt-{pid}-1");
    let cgroup = cgroup::root().unwrap().join(&name);
    fs::create_dir_all(cgroup.join("judged/client")).unwrap();
    let mut orphan = Command::new("/bin/sh")
        .arg("-c")
        .arg(format!(
            "echo $$ >{}/judged/client/cgroup.procs; exec sleep 60",
            cgroup.display()
        ))
        .spawn()
        .unwrap();
    assert!(eventually(Duration::from_secs(2), || {
        fs::read_to_string(cgroup.join("judged/client/cgroup.procs"))
            .is_ok_and(|text| !text.is_empty())
    }));
    egress_tests::namespace::ip(&[], &format!("netns add {name}-node\n")).unwrap();
    let dir = std::env::temp_dir().join(&name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("owner"), "1").unwrap();
    let pins = Path::new(leftovers::BPFFS).join(format!("egress-test-{pid}-1"));
    fs::create_dir(&pins).unwrap();

    leftovers::sweep();

    assert!(!orphan.wait().unwrap().success());
    assert_gone(&name);
    assert!(!pins.exists());
    assert!(world.workload("client").connect("10.78.1.1", 80).ok);
}

#[test]
fn the_probe_that_runs_is_the_one_that_was_built() {
    let probe = programs::probe();
    assert!(probe.is_file(), "{}", probe.display());
}

fn assert_gone(name: &str) {
    assert!(!cgroup::root().unwrap().join(name).exists());
    assert!(!std::env::temp_dir().join(name).exists());
    let namespaces: Vec<_> = fs::read_dir(leftovers::NAMESPACES)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|namespace| namespace.starts_with(name))
        .collect();
    assert_eq!(namespaces, Vec::<String>::new());
}
