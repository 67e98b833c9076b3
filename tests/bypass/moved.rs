//! Sockets and processes that change hands and places.

use std::{path::PathBuf, time::Duration};

use egress_tests::{
    Agent, Workload, World, eventually,
    expect::{counted, policy, reached, refused},
    packets::{Ends, UDP, to_hex},
    ready,
    report::Attempt,
    world::Role,
    zone,
};

use crate::bench::{ALLOWED, Bench, DENIED, RULES, emit, node_like};

/// Two scopes of which one has resolved the name.
struct Scopes {
    poor: Workload,
    rich: Workload,
    agent: Agent,
    world: World,
}

impl Scopes {
    fn new() -> Option<Self> {
        if !ready() {
            return None;
        }
        let world = World::new();
        let (poor, rich) = (world.workload("poor"), world.workload("rich"));
        let agent = world
            .agent(&policy("allow: [{ names: [api.example.com] }]"))
            .scope("poor", poor.cgroup())
            .scope("rich", rich.cgroup())
            .start();
        for v6 in [false, true] {
            rich.resolve("api.example.com", v6);
        }
        Some(Self {
            poor,
            rich,
            agent,
            world,
        })
    }

    /// Has `giver` make a socket that `taker` uses.
    fn hand_over(&self, giver: &Workload, taker: &Workload, address: &str, tcp: bool) -> Attempt {
        let path = self.world.dir().join("give.sock");
        let _ = std::fs::remove_file(&path);
        let path = path.to_str().unwrap();
        let mut args = vec!["give", path];
        args.extend(tcp.then_some("--tcp"));
        args.extend(address.contains(':').then_some("--v6"));
        let mut running = giver.background(&args);
        running
            .wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
            .unwrap();
        let mut args = vec!["take", path, address, "443"];
        args.extend(tcp.then_some("--tcp"));
        taker.probe(&args)
    }
}

pub(crate) fn sockets_passed_to_another_scope() {
    let Some(scopes) = Scopes::new() else { return };
    for v6 in [false, true] {
        let address = zone::address("api.example.com", v6).to_string();
        for tcp in [false, true] {
            // The scope that made it counts, not the one that holds it.
            let (attempt, moved) = scopes
                .agent
                .counted(|| scopes.hand_over(&scopes.poor, &scopes.rich, &address, tcp));
            assert!(!attempt.ok, "{attempt:?}");
            assert!(moved.denied_by("skb_egress") > 0, "{moved:?}");
            counted(&moved, "no_rule");
            reached(&scopes.hand_over(&scopes.rich, &scopes.rich, &address, tcp));
            // To a denied address it leads nobody.
            let denied = zone::address("forbidden.example.org", v6).to_string();
            for giver in [&scopes.poor, &scopes.rich] {
                assert!(!scopes.hand_over(giver, &scopes.rich, &denied, tcp).ok);
            }
        }
    }
    assert_eq!(scopes.world.web_saw("udp 10.78.9.1:443"), 0);
}

pub(crate) fn ports_taken_over_from_another_scope() {
    let Some(scopes) = Scopes::new() else { return };
    let api = zone::address("api.example.com", false).to_string();
    let mut server = scopes.poor.background(&["answer", "7001"]);
    let limit = Duration::from_secs(5);
    server
        .wait_for_line(0, limit, |line| line == "ready")
        .unwrap();
    // The twin: nobody has answered yet.
    let own = ["exchange", &api, "9000", "--no-echo"];
    refused(&scopes.poor.probe(&own));
    // The other scope asks from that port; the answer comes to whoever has it.
    let ends = Ends::new(zone::NODE[0], &api);
    let packet = ends.packet(UDP, &ends.udp(7001, 9000, b"asked"));
    reached(&emit(&scopes.rich, &api, &packet, &["--header-included"]));
    let answered = format!("answered {api}:9000");
    let line = server.wait_for_line(1, limit, |line| !line.is_empty());
    assert_eq!(line.unwrap(), answered, "it is stopped now");
}

pub(crate) fn processes_moved_to_another_cgroup() {
    let Some(scopes) = Scopes::new() else { return };
    let rich = scopes.rich.cgroup().to_str().unwrap();
    let go = |workload: &Workload, way: &str, address: &str, cgroup: &str, tcp: bool| -> Attempt {
        let mut args = vec!["trick", way, address, "443", "--cgroup", cgroup];
        args.extend(tcp.then_some("--tcp"));
        workload.probe(&args)
    };
    for v6 in [false, true] {
        let address = zone::address("api.example.com", v6).to_string();
        let denied = zone::address("forbidden.example.org", v6).to_string();
        for tcp in [false, true] {
            // A socket stays where it was made.
            let (attempt, moved) = scopes
                .agent
                .counted(|| go(&scopes.poor, "move-then-use", &address, rich, tcp));
            assert!(!attempt.ok, "{attempt:?}");
            assert!(moved.denied_by("skb_egress") > 0, "{moved:?}");
            assert!(!go(&scopes.poor, "move-then-make", &denied, rich, tcp).ok);
            reached(&go(&scopes.rich, "move-then-use", &address, rich, tcp));
        }
    }
    assert_eq!(scopes.world.web_saw("tcp 10.78.9.1:443"), 0);
}

pub(crate) fn writing_another_scopes_cgroup_procs() {
    let Some(scopes) = Scopes::new() else { return };
    let address = zone::address("api.example.com", false).to_string();
    let rich = scopes.rich.cgroup().to_str().unwrap();
    refused(&scopes.poor.connect(&address, 443));
    let args = [
        "trick",
        "move-then-make",
        &address,
        "443",
        "--cgroup",
        rich,
        "--tcp",
    ];
    reached(&scopes.poor.probe(&args));
}

pub(crate) fn new_cgroups_below() {
    let Some(bench) = Bench::new() else { return };
    let below: PathBuf = bench.client.cgroup().join("own/deeper/deepest");
    let below = below.to_str().unwrap();
    for way in ["move-then-use", "move-then-make"] {
        for kind in [&["--tcp"][..], &[]] {
            for (denied, allowed) in DENIED.into_iter().zip(ALLOWED) {
                bench.stops(denied, allowed, |address| {
                    let args = ["trick", way, address, "443", "--cgroup", below];
                    bench.client.probe(&[&args, kind].concat())
                });
            }
        }
    }
}

pub(crate) fn connections_opened_before() {
    if !ready() {
        return;
    }
    let world = World::new();
    let client = world.workload("client");
    for (family, port) in [(0, "443"), (1, "8000")] {
        let (denied, allowed) = (DENIED[family], ALLOWED[family]);
        let mut cut = [
            client.hold_with(&[denied, port]),
            client.hold_with(&[denied, port, "--udp"]),
        ];
        let mut kept = [
            client.hold_with(&[allowed, port]),
            client.hold_with(&[allowed, port, "--udp"]),
        ];
        let agent = world
            .agent(&policy(&format!("preexisting: judge\n{RULES}")))
            .start();
        for flow in &mut cut {
            assert!(flow.breaks(Duration::from_secs(4)), "{:?}", flow.lines());
        }
        for flow in &mut kept {
            assert!(flow.is_alive(), "{:?}", flow.lines());
        }
        counted(&agent.counters(), "no_rule");
    }
}

pub(crate) fn raw_sockets_opened_before() {
    if !ready() {
        return;
    }
    let world = World::new();
    let client = world.workload("client");
    let mut wire = world.outsider(Role::Web).background(&["watch", "node"]);
    wire.wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
        .unwrap();
    let gate = world.dir().join("go");
    let secret = |kind: u8, to: &str| format!("by an old socket {kind} to {to}.");
    // Messages that the kernel answers with by itself: echo replies and errors.
    let mut waiting = Vec::new();
    for (protocol, kind) in [("1", 0_u8), ("1", 3), ("58", 129), ("58", 1)] {
        for addresses in [DENIED, ALLOWED] {
            let to = addresses[usize::from(protocol == "58")];
            let ends = Ends::new(node_like(to), to);
            let packet = to_hex(&ends.icmp(kind, secret(kind, to).as_bytes()));
            let once = gate.to_str().unwrap();
            let mut running =
                client.background(&["emit", to, &packet, "--protocol", protocol, "--once", once]);
            running
                .wait_for_line(0, Duration::from_secs(5), |line| line == "open")
                .unwrap();
            waiting.push((running, to, to_hex(secret(kind, to).as_bytes())));
        }
    }
    let agent = world.agent(&policy(RULES)).start();
    let (_, moved) = agent.counted(|| {
        std::fs::write(&gate, "").unwrap();
        for (running, ..) in &mut waiting {
            running.wait(Duration::from_secs(5)).unwrap();
        }
    });
    counted(&moved, "no_rule");
    for (_, to, secret) in &waiting {
        let left = || wire.lines().iter().any(|line| line.contains(secret));
        let is_allowed = ALLOWED.contains(to);
        let seen = eventually(Duration::from_secs(if is_allowed { 3 } else { 1 }), left);
        assert_eq!(seen, is_allowed, "{to}");
    }
    // The twin: the kernel's own answers pass, to anybody.
    let stranger = world.outsider(Role::Web);
    for address in zone::NODE {
        let ping = stranger.run("ping", &["-c", "1", "-W", "2", address]);
        assert_eq!(ping.code(), Some(0), "{}", ping.shown());
    }
}

pub(crate) fn sockets_from_outside_of_what_is_judged() {
    let Some(scopes) = Scopes::new() else { return };
    let outsider = scopes.world.outsider(egress_tests::world::Role::Node);
    let denied = zone::address("forbidden.example.org", false).to_string();
    reached(&scopes.hand_over(&outsider, &scopes.poor, &denied, false));
    // The twin: its own socket.
    refused(&scopes.hand_over(&scopes.poor, &scopes.poor, &denied, false));
}
