//! Packets in the name of somebody else: of the resolver, to teach addresses; of a remote, to be answered.

use std::{process::Command, thread, time::Duration};

use egress_tests::{
    AgentOptions, Workload, World, eventually,
    expect::{reached, refused},
    packets::{Ends, ICMP, ICMPV6, SYN, TCP, UDP, to_hex},
    process::Running,
    programs,
    report::Attempt,
    skip::skip,
    world::Role,
    zone,
};

use hickory_proto::{
    op::{Message, OpCode},
    rr::{RData, Record, RecordType, rdata::A},
};

use crate::bench::{Bench, DENIED, emit, node_like};

/// A trusted resolver that accepts connections and never answers.
const SILENT: [&str; 2] = ["10.77.0.99", "fd77::99"];
/// Addresses that the lies would teach.
const LIE: [&str; 2] = ["10.78.9.20", "fd78::9:20"];
/// An allowed name.
const NAME: &str = "lie.example.com";
/// Port of a remote that seems to call. Nobody serves it: two servers that echo would never end.
const CALLER: u16 = 9001;
const RULES: &str = "allow: [{ names: [\"*.example.com\"] }]";

/// A bench with the silent resolver.
fn trusting_bench() -> Option<Bench> {
    let mut bench = Bench::with(RULES, World::builder(), |agent| {
        agent.resolver(SILENT[0]).resolver(SILENT[1])
    })?;
    let web = bench.world.namespace(Role::Web);
    web.ip("address add 10.77.0.99/24 dev br0\naddress add fd77::99/64 dev br0 nodad\n")
        .unwrap();
    bench
        .world
        .start_probe(Role::Web, &["serve", "--silent", "53"])
        .unwrap();
    Some(bench)
}

impl Bench {
    /// `probe self-forge`: asks the silent resolver, and answers itself by way of `to`.
    fn lie(&self, family: usize, to: &str, more: &[&str]) -> Attempt {
        let server = [
            "--server",
            SILENT[family],
            "--to",
            to,
            "--address",
            LIE[family],
        ];
        self.client
            .probe(&[&["self-forge", NAME], &server[..], more].concat())
    }

    /// The lie taught nothing, to the kernel or to the agent.
    #[track_caller]
    fn is_not_believed(&self, family: usize, lie: impl FnOnce() -> Attempt) {
        let (attempt, moved) = self.agent.counted(lie);
        assert_eq!(
            moved.dns("address_learned"),
            0,
            "{attempt:?} {:?}",
            moved.dns
        );
        refused(&self.client.connect(LIE[family], 80));
        // The agent reads copies of answers a little later.
        thread::sleep(Duration::from_millis(100));
        refused(&self.client.connect(LIE[family], 80));
        assert_eq!(self.left_to(LIE[family]), 0);
    }

    /// The twin: an honest answer for the same rule teaches.
    #[track_caller]
    fn honest_answers_are_believed(&self) {
        for v6 in [false, true] {
            let server = zone::RESOLVER[usize::from(v6)];
            self.client.resolve_at("api.example.com", v6, server);
            reached(
                &self
                    .client
                    .connect(zone::address("api.example.com", v6), 80),
            );
        }
    }
}

fn forged_answers(more: &[&str]) {
    let Some(bench) = trusting_bench() else {
        return;
    };
    for (family, loopback) in ["127.0.0.1", "::1"].into_iter().enumerate() {
        for to in [zone::NODE[family], loopback] {
            bench.is_not_believed(family, || bench.lie(family, to, more));
        }
    }
    bench.honest_answers_are_believed();
}

pub(crate) fn answers_by_raw_sockets() {
    forged_answers(&["--way", "raw"]);
}

pub(crate) fn answers_by_packet_sockets() {
    forged_answers(&["--way", "packet"]);
}

pub(crate) fn answers_by_transparent_sockets() {
    forged_answers(&["--way", "transparent"]);
}

pub(crate) fn answers_by_freebind_sockets() {
    forged_answers(&["--way", "freebind"]);
}

pub(crate) fn answers_in_a_tcp_connection() {
    forged_answers(&["--way", "raw", "--tcp"]);
    forged_answers(&["--way", "packet", "--tcp"]);
}

pub(crate) fn answers_from_an_untrusted_server() {
    let rules = "allow:\n- { names: [\"*.forge.example.com\"] }\n\
                 - { cidrs: [10.77.0.54/32, 10.77.0.55/32], ports: [53/udp, 53/tcp] }";
    let Some(mut bench) = Bench::under(rules) else {
        return;
    };
    bench
        .world
        .start_probe(Role::Dns, &["dns-server", "--zone", "forge.example.com"])
        .unwrap();
    let ask = |name: &str, server: &str| bench.client.lookup(&[name, "--server", server, "--tcp"]);
    // A server that a rule lets it talk to, and that no one trusts.
    let (lookup, moved) = bench
        .agent
        .counted(|| ask("n1.forge.example.com", zone::SERVER));
    assert_eq!(lookup.addresses.len(), 1, "{lookup:?}");
    assert_eq!(moved.dns("address_learned"), 0, "{:?}", moved.dns);
    thread::sleep(Duration::from_millis(200));
    refused(&bench.client.connect(lookup.addresses[0], 80));
    // One that no rule lets it talk to.
    let lookup = ask("n1.forge.example.com", zone::STRANGER);
    assert!(
        lookup
            .error
            .is_some_and(|error| error.contains("Operation not permitted"))
    );
    assert_eq!(bench.left_to(zone::STRANGER), 0);
}

fn serving(bench: &Bench) -> Running {
    let mut server = bench
        .client
        .background(&["serve", "--tcp", "7000", "--udp", "7001"]);
    server
        .wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
        .unwrap();
    server
}

/// The workload calls itself in the name of a remote; nothing may leave to that.
fn forged_calls(protocols: &[u8], call: impl Fn(&Workload, &Ends, u8, &[u8]) -> Attempt) {
    let Some(bench) = Bench::new() else { return };
    let _server = serving(&bench);
    for denied in DENIED {
        let ends = Ends::new(denied, node_like(denied));
        let (ping, echo) = if ends.to.is_ipv4() {
            (ICMP, 8)
        } else {
            (ICMPV6, 128)
        };
        for (protocol, payload) in [
            (UDP, ends.udp(CALLER, 7001, b"call")),
            (TCP, ends.tcp((CALLER, 7000), (1, 0), SYN, b"")),
            (ping, ends.icmp(echo, b"call")),
        ] {
            if !protocols.contains(&protocol) {
                continue;
            }
            let attempt = call(&bench.client, &ends, protocol, &payload);
            // The kernel or another process answers.
            thread::sleep(Duration::from_millis(50));
            bench.settle();
            assert_eq!(bench.left_to(denied), 0, "protocol {protocol}: {attempt:?}");
        }
    }
    real_calls_are_answered(&bench);
}

fn real_calls_are_answered(bench: &Bench) {
    let outside = bench.world.outsider(Role::Web);
    for node in zone::NODE {
        reached(&outside.connect(node, 7000));
        reached(&outside.udp(node, 7001, false));
        reached(&outside.ping(node));
    }
}

pub(crate) fn calls_by_raw_sockets() {
    forged_calls(
        &[UDP, TCP, ICMP, ICMPV6],
        |client, ends, protocol, payload| {
            let packet = to_hex(&ends.packet(protocol, payload));
            client.probe(&["emit", &ends.to.to_string(), &packet, "--header-included"])
        },
    );
}

pub(crate) fn calls_by_packet_sockets() {
    forged_calls(&[UDP, TCP], on_loopback);
}

pub(crate) fn questions_to_the_kernel_by_packet_sockets() {
    let Some(bench) = Bench::new() else { return };
    for denied in DENIED {
        let ends = Ends::new(denied, node_like(denied));
        let (ping, echo) = if ends.to.is_ipv4() {
            (ICMP, 8)
        } else {
            (ICMPV6, 128)
        };
        for (protocol, payload) in [
            (ping, ends.icmp(echo, b"call")),
            // Ports on which nobody listens.
            (UDP, ends.udp(CALLER, 9, b"call")),
            (TCP, ends.tcp((CALLER, 9), (0x5ec7_e700, 0), SYN, b"")),
        ] {
            let attempt = on_loopback(&bench.client, &ends, protocol, &payload);
            thread::sleep(Duration::from_millis(50));
            bench.settle();
            assert_eq!(bench.left_to(denied), 0, "protocol {protocol}: {attempt:?}");
        }
    }
    real_questions_are_answered(&bench);
}

fn real_questions_are_answered(bench: &Bench) {
    let outside = bench.world.outsider(Role::Web);
    for node in zone::NODE {
        reached(&outside.ping(node));
        for attempt in [outside.connect(node, 9), outside.udp(node, 9, true)] {
            assert_eq!(
                attempt.errno.as_deref(),
                Some("ECONNREFUSED"),
                "{attempt:?}"
            );
        }
    }
}

/// Sockets bound to the remote's address make the kernel answer to it.
fn questions_by_bound_sockets(option: &str) {
    let Some(bench) = Bench::new() else { return };
    for denied in DENIED {
        let node = node_like(denied);
        let from = std::net::SocketAddr::new(denied.parse().unwrap(), 9100).to_string();
        for args in [
            &["ping", node, "--dgram", "--timeout", "200", option, denied][..],
            &["ping", node, "--timeout", "200", option, denied],
            &["exchange", node, "9", "--no-echo", option, "--from", &from],
            &["exchange", node, "9", "--tcp", option, "--from", &from],
        ] {
            let attempt: Attempt = bench.client.probe(args);
            thread::sleep(Duration::from_millis(50));
            bench.settle();
            assert_eq!(bench.left_to(denied), 0, "{args:?}: {attempt:?}");
        }
    }
    real_questions_are_answered(&bench);
}

pub(crate) fn questions_to_the_kernel_by_transparent_sockets() {
    questions_by_bound_sockets("--transparent");
}

pub(crate) fn questions_to_the_kernel_by_freebind_sockets() {
    questions_by_bound_sockets("--freebind");
}

pub(crate) fn answers_by_looped_multicast() {
    let Some(bench) = trusting_bench() else {
        return;
    };
    let query = [
        "resolve",
        NAME,
        "--server",
        SILENT[1],
        "--unconnected",
        "--id",
        "4660",
    ];
    let more = [
        "--from-port",
        "547",
        "--group",
        "ff02::1:2",
        "--timeout",
        "1500",
    ];
    let mut asking = bench.client.background(&[&query[..], &more].concat());
    let from = format!("[{}]:53", SILENT[1]);
    let lie = to_hex(&answer(4660, LIE[0]));
    let to = [
        "exchange",
        "ff02::1:2",
        "547",
        "--no-echo",
        "--device",
        "eth0",
        "--freebind",
    ];
    let more = ["--from", &from, "--bytes", &lie];
    eventually(Duration::from_secs(1), || {
        let _: Attempt = bench.client.probe(&[&to[..], &more].concat());
        asking.ended().is_some()
    });
    thread::sleep(Duration::from_millis(100));
    refused(&bench.client.connect(LIE[0], 80));
    bench.honest_answers_are_believed();
}

pub(crate) fn calls_by_looped_multicast() {
    let Some(bench) = Bench::new() else { return };
    // Packets to a group come back to its members here: by eth0, not by loopback. The lifeline opens DHCP.
    let node = bench.world.namespace(Role::Node);
    node.ip("route add 255.255.255.255/32 dev eth0\n").unwrap();
    for (denied, to, port, group) in [
        (DENIED[1], "ff02::1:2", 547, &["--group", "ff02::1:2"][..]),
        (DENIED[0], "255.255.255.255", 67, &[]),
    ] {
        let number = port.to_string();
        let mut server = bench
            .client
            .background(&[&["answer", &number], group].concat());
        server
            .wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
            .unwrap();
        let ends = Ends::new(denied, to);
        let packet = ends.packet(UDP, &ends.udp(CALLER, port, b"call"));
        let from = std::net::SocketAddr::new(denied.parse().unwrap(), CALLER).to_string();
        let option = if group.is_empty() {
            "--transparent"
        } else {
            "--freebind"
        };
        let bound = [
            "exchange",
            to,
            &number,
            "--no-echo",
            "--broadcast",
            "--device",
            "eth0",
        ];
        let attempts: [Attempt; 2] = [
            bench
                .client
                .probe(&[&bound[..], &[option, "--from", &from]].concat()),
            emit(
                &bench.client,
                to,
                &packet,
                &["--header-included", "--interface", "eth0"],
            ),
        ];
        thread::sleep(Duration::from_millis(50));
        bench.settle();
        assert_eq!(
            bench.left_to(denied),
            0,
            "{attempts:?} {:?}",
            server.lines()
        );
        // The twin: a real call to the same server.
        if group.is_empty() {
            reached(
                &bench
                    .world
                    .outsider(Role::Web)
                    .udp(zone::NODE[0], port, false),
            );
        }
    }
}

pub(crate) fn calls_by_a_neighbour() {
    let Some(mut bench) = Bench::with(crate::bench::RULES, World::builder().pod(), |agent| agent)
    else {
        return;
    };
    let _server = serving(&bench);
    // Another container may reach the node's own addresses, and claims any IPv6 source without any right.
    bench.client = bench.world.workload_in(Role::Pod, "accomplice");
    let from = format!("[{}]:{CALLER}", DENIED[1]);
    for (port, kind) in [("7001", &["--no-echo"][..]), ("7000", &["--tcp"])] {
        let before = bench.left_to(DENIED[1]);
        let to = [
            "exchange",
            zone::NODE[1],
            port,
            "--freebind",
            "--from",
            &from,
        ];
        let attempt: Attempt = bench.client.probe(&[&to[..], kind].concat());
        bench.settle();
        let left = eventually(Duration::from_secs(1), || bench.left_to(DENIED[1]) > before);
        assert!(left, "it is stopped now: {attempt:?}");
    }
    // The twin: to call by themselves they may not.
    for name in ["client", "other"] {
        refused(&bench.world.workload(name).udp(DENIED[1], CALLER, true));
    }
    refused(&bench.client.udp(DENIED[1], CALLER, true));
}

pub(crate) fn calls_from_outside() {
    let Some(bench) = Bench::new() else { return };
    let _server = serving(&bench);
    let outside = bench.world.outsider(Role::Web);
    // The accomplice has the address to which the workload itself may not send.
    let from = format!("{}:9100", DENIED[0]);
    for kind in [&["--tcp"][..], &[]] {
        let port = if kind.is_empty() { "7001" } else { "7000" };
        let more = [kind, &["--from", &from]].concat();
        reached(&outside.probe(&[&["exchange", zone::NODE[0], port], &more[..]].concat()));
    }
    assert!(bench.left_to(DENIED[0]) > 0);
    // The twin: the workload begins.
    refused(&bench.client.udp(DENIED[0], 9000, true));
    refused(&bench.client.connect(DENIED[0], 9000));
}

fn on_loopback(client: &Workload, ends: &Ends, protocol: u8, payload: &[u8]) -> Attempt {
    let packet = to_hex(&ends.packet(protocol, payload));
    let kind = if ends.to.is_ipv4() { "0800" } else { "86dd" };
    client.probe(&[
        "emit-frame",
        &packet,
        "--interface",
        "lo",
        "--ethertype",
        kind,
    ])
}

/// Sockets bound to the remote's address call the workload's own servers.
fn calls_by_bound_sockets(option: &str) {
    let Some(bench) = Bench::new() else { return };
    let _server = serving(&bench);
    for denied in DENIED {
        let node = node_like(denied);
        let from = std::net::SocketAddr::new(denied.parse().unwrap(), 9100).to_string();
        for (port, kind) in [("7001", &["--no-echo"][..]), ("7000", &["--tcp"])] {
            let more = [&["--from", &from, option], kind].concat();
            let attempt: Attempt = bench
                .client
                .probe(&[&["exchange", node, port], &more[..]].concat());
            thread::sleep(Duration::from_millis(50));
            bench.settle();
            assert_eq!(bench.left_to(denied), 0, "port {port}: {attempt:?}");
        }
    }
    real_calls_are_answered(&bench);
}

pub(crate) fn calls_by_transparent_sockets() {
    calls_by_bound_sockets("--transparent");
}

pub(crate) fn calls_by_freebind_sockets() {
    calls_by_bound_sockets("--freebind");
}

pub(crate) fn a_resolvers_address_in_a_namespace_of_ones_own() {
    let Some(world) = egress_tests::ready().then(|| World::builder().pod().build()) else {
        return;
    };
    let other = world.workload("other");
    let agent = world
        .agent(&egress_tests::expect::policy(RULES))
        .scope("other", other.cgroup())
        .start();
    // Root in a network namespace gives it any address; its processes are judged like all others.
    let own = world.namespace(Role::Pod);
    own.ip("address add 10.77.0.53/32 dev lo\n").unwrap();
    let attacker = world.workload_in(Role::Pod, "attacker");
    let mut server = attacker.background(&[
        "dns-server",
        "--listen",
        zone::RESOLVER[0],
        "--zone",
        "gen.example.com",
    ]);
    server
        .wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
        .unwrap();
    let lookup = attacker.lookup(&["n9.gen.example.com", "--server", zone::RESOLVER[0]]);
    let taught = lookup.addresses[0];
    // It teaches the scope, here the node's, in the attacker's namespace alone.
    assert!(agent.knows(taught), "{lookup:?} {:?}", agent.counters().dns);
    let client = world.workload("client");
    refused(&client.connect(taught, 80));
    refused(&other.connect(taught, 80));
    // The twin: an allowed name, asked of the real resolver where the client is.
    let honest = client.resolve("api.example.com", false)[0];
    reached(&client.connect(honest, 80));
}

/// An answer to the query `id` for [`NAME`] with this address, as bytes.
fn answer(id: u16, address: &str) -> Vec<u8> {
    let query = egress_tests::dns::query(id, NAME, RecordType::A).unwrap();
    let mut answer = Message::response(id, OpCode::Query);
    for question in Message::from_vec(&query).unwrap().queries {
        let data = RData::A(A(address.parse().unwrap()));
        answer.add_answer(Record::from_rdata(question.name().clone(), 300, data));
        answer.add_query(question);
    }
    answer.to_vec().unwrap()
}

pub(crate) fn answers_from_a_neighbour() {
    let Some(bench) = Bench::with(RULES, World::builder().pod(), |agent| {
        agent.resolver(SILENT[0])
    }) else {
        return;
    };
    // Somebody else on a link of the node, who knows the id and the port.
    let accomplice = bench.world.workload_in(Role::Pod, "accomplice");
    let gateway = bench.world.hardware_address(Role::Node, "pod0");
    let ends = Ends::new(SILENT[0], zone::NODE[0]);
    for (lie, how, is_believed) in [
        // The twin: a raw socket, which is judged.
        (
            "10.78.9.21",
            &["emit", zone::NODE[0], "--header-included"][..],
            false,
        ),
        (LIE[0], &["emit-frame", "--gateway", &gateway], true),
    ] {
        let packet = to_hex(&ends.packet(UDP, &ends.udp(53, 5454, &answer(4660, lie))));
        let mut asking = asks(&bench);
        let heard = eventually(Duration::from_secs(1), || {
            let _: Attempt = accomplice.probe(&[how, &[&packet]].concat());
            asking.ended().is_some()
        });
        assert_eq!(heard, is_believed, "{how:?}: {:?}", asking.lines());
        assert_eq!(bench.client.connect(lie, 80).ok, is_believed, "{how:?}");
    }
}

/// A pair of devices of the workload's own: what goes into the one comes in by the other.
fn with_a_pair_of_its_own(
    rules: &str,
    options: impl FnOnce(AgentOptions) -> AgentOptions,
) -> Option<Bench> {
    let mut bench = Bench::with(rules, World::builder().pod(), options)?;
    let own = bench.world.namespace(Role::Pod);
    own.ip("link add in0 type veth peer name out0\nlink set in0 up\nlink set out0 up\n")
        .unwrap();
    own.sysctl(&[
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/in0/rp_filter", "0"),
    ])
    .unwrap();
    bench.client = bench.world.workload_in(Role::Pod, "own");
    Some(bench)
}

pub(crate) fn answers_over_a_device_of_ones_own() {
    let trusting = |agent: AgentOptions| agent.resolver(SILENT[0]).interface("eth0");
    let Some(bench) = with_a_pair_of_its_own(RULES, trusting) else {
        return;
    };
    let gateway = bench.world.hardware_address(Role::Pod, "in0");
    let ends = Ends::new(SILENT[0], zone::POD[0]);
    let client = bench.world.workload("client");
    for (lie, device, gateway, is_believed) in [
        ("10.78.9.21", "lo", "00:00:00:00:00:00", false),
        (LIE[0], "out0", gateway.as_str(), true),
    ] {
        let packet = to_hex(&ends.packet(UDP, &ends.udp(53, 5454, &answer(4660, lie))));
        let mut asking = asks(&bench);
        let heard = eventually(Duration::from_secs(1), || {
            let args = [
                "emit-frame",
                &packet,
                "--gateway",
                gateway,
                "--interface",
                device,
            ];
            let _: Attempt = bench.client.probe(&args);
            asking.ended().is_some()
        });
        assert!(heard, "{device:?}: {:?}", asking.lines());
        // A packet that looks like the resolver's teaches the namespace that it came to; nobody elsewhere gains by it.
        assert_eq!(
            bench.agent.knows(lie.parse().unwrap()),
            is_believed,
            "{device:?}"
        );
        refused(&client.connect(lie, 80));
    }
}

/// A query to the silent resolver, from a known port and with a known id.
fn asks(bench: &Bench) -> Running {
    let query = [
        "resolve",
        NAME,
        "--server",
        SILENT[0],
        "--unconnected",
        "--id",
        "4660",
    ];
    let more = ["--from-port", "5454", "--timeout", "1500"];
    let running = bench.client.background(&[&query[..], &more].concat());
    // The answer must not be faster than the question.
    thread::sleep(Duration::from_millis(50));
    running
}

pub(crate) fn calls_in_another_namespace() {
    let Some(bench) = with_a_pair_of_its_own(crate::bench::RULES, |agent| agent) else {
        return;
    };
    let _server = serving(&bench);
    let gateway = bench.world.hardware_address(Role::Pod, "in0");
    // The same scope, in the node's network namespace.
    let accomplice = bench.world.workload("accomplice");
    for (family, denied) in DENIED.into_iter().enumerate() {
        let ends = Ends::new(denied, zone::POD[family]);
        let packet = to_hex(&ends.packet(UDP, &ends.udp(CALLER, 7001, b"call")));
        let kind = ["0800", "86dd"][family];
        let args = [
            "emit-frame",
            &packet,
            "--interface",
            "out0",
            "--gateway",
            &gateway,
        ];
        let before = bench.left_to(denied);
        let called: Attempt = bench
            .client
            .probe(&[&args[..], &["--ethertype", kind]].concat());
        reached(&called);
        // The twin: where the call arrived it is answered.
        let answered = eventually(Duration::from_secs(2), || bench.left_to(denied) > before);
        assert!(answered, "{called:?}");
        let after = bench.left_to(denied);
        let port = CALLER.to_string();
        let from = ["0.0.0.0:7001", "[::]:7001"][family];
        let args = ["exchange", denied, &port, "--from", from, "--no-echo"];
        refused(&accomplice.probe(&args));
        bench.settle();
        assert_eq!(bench.left_to(denied), after);
    }
}

pub(crate) fn calls_over_a_device_of_ones_own() {
    for interface in [true, false] {
        let judging = |agent: AgentOptions| {
            if interface {
                agent.interface("eth0")
            } else {
                agent
            }
        };
        let Some(bench) = with_a_pair_of_its_own(crate::bench::RULES, judging) else {
            return;
        };
        let _server = serving(&bench);
        let gateway = bench.world.hardware_address(Role::Pod, "in0");
        for (family, denied) in DENIED.into_iter().enumerate() {
            let ends = Ends::new(denied, zone::POD[family]);
            let (ping, echo) = [(ICMP, 8), (ICMPV6, 128)][family];
            let kind = ["0800", "86dd"][family];
            for (protocol, payload) in [
                (UDP, ends.udp(CALLER, 7001, b"call")),
                (TCP, ends.tcp((CALLER, 7000), (1, 0), SYN, b"")),
                (ping, ends.icmp(echo, b"call")),
            ] {
                let packet = to_hex(&ends.packet(protocol, &payload));
                let before = bench.left_to(denied);
                let args = [
                    "emit-frame",
                    &packet,
                    "--interface",
                    "out0",
                    "--gateway",
                    &gateway,
                ];
                let attempt: Attempt = bench
                    .client
                    .probe(&[&args[..], &["--ethertype", kind]].concat());
                thread::sleep(Duration::from_millis(50));
                bench.settle();
                let left = bench.left_to(denied) > before;
                assert_eq!(
                    left, !interface,
                    "protocol {protocol} to {denied}: {attempt:?}"
                );
            }
        }
        // The twin: a real caller is answered.
        let outside = bench.world.outsider(Role::Web);
        for pod in zone::POD {
            reached(&outside.connect(pod, 7000));
            reached(&outside.udp(pod, 7001, true));
            reached(&outside.ping(pod));
        }
    }
}

/// Packets to this address go to the other one, from this namespace.
fn translate(bench: &Bench, role: Role, from: &str, to: &str) -> bool {
    let rules = format!(
        "table ip own {{ chain out {{ type nat hook output priority -100; \
         ip daddr {from} udp dport 53 dnat to {to}; }}; }}"
    );
    let namespace = bench.world.namespace(role).name();
    let output = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", &rules])
        .output();
    output.is_ok_and(|output| output.status.success())
}

pub(crate) fn a_server_of_ones_own_by_translation() {
    // The server may be talked to, and nobody trusts it.
    let rules = format!(
        "allow:\n- {{ names: [\"*.fresh.example.com\"] }}\n- {{ cidrs: [{}/32], ports: [53/udp] }}",
        zone::STRANGER
    );
    let Some(mut bench) = Bench::with(&rules, World::builder().pod(), |agent| {
        agent.resolver(zone::SERVER)
    }) else {
        return;
    };
    for server in [zone::SERVER, zone::STRANGER] {
        let args = ["dns-server", "--zone", "fresh.example.com", "--listen"];
        let args = [&args[..], &[server]].concat();
        bench.world.start_probe(Role::Dns, &args).unwrap();
    }
    bench.client = bench.world.workload_in(Role::Pod, "own");
    let ask = |name: &str| {
        let args = [name, "--server", zone::SERVER, "--unconnected"];
        bench.agent.counted(|| bench.client.lookup(&args))
    };
    let (honest, moved) = ask("n5.fresh.example.com");
    assert!(moved.dns("address_learned") > 0, "{honest:?} {moved:?}");
    reached(&bench.client.connect(honest.addresses[0], 80));
    if programs::find("nft").is_none()
        || !translate(&bench, Role::Pod, zone::SERVER, zone::STRANGER)
    {
        skip("no nft that translates addresses here");
        return;
    }
    let before = bench.left_to(zone::STRANGER);
    let (lie, moved) = ask("n6.fresh.example.com");
    assert!(bench.left_to(zone::STRANGER) > before, "{lie:?} {moved:?}");
    assert_eq!(lie.addresses.len(), 1, "{lie:?}");
    assert_eq!(moved.dns("address_learned"), 0, "{:?}", moved.dns);
    refused(&bench.client.connect(lie.addresses[0], 80));
}

pub(crate) fn dns_tunnels() {
    let Some(bench) = Bench::under("allow: [{ names: [api.example.com] }]") else {
        return;
    };
    let question = b"c2VjcmV0.tunnel.example.org";
    let lookup = bench.client.lookup(&[
        std::str::from_utf8(question).unwrap(),
        "--server",
        zone::RESOLVER[0],
    ]);
    assert!(lookup.rcode.is_some(), "{lookup:?}");
    assert!(bench.leaves(b"c2VjcmV0"));
    // The twin: to another server it does not leave.
    let elsewhere = ["c2VjcmV0.tunnel.example.org", "--server", zone::STRANGER];
    assert!(bench.client.lookup(&elsewhere).error.is_some());
    assert_eq!(bench.left_to(zone::STRANGER), 0);
}
