//! Ordinary sockets, used in unusual ways.

use std::time::Duration;

use egress_tests::{
    World, eventually,
    expect::{counted, policy, reached, refused},
    packets::{Ends, RST, SYN, TCP, to_hex},
    report::Attempt,
    skip::skip,
    world::Role,
    zone,
};

use crate::bench::{ALLOWED, Bench, DENIED, RULES, emit};

/// A second allowed address of the family of `address`.
fn friend_of(address: &str) -> &'static str {
    if address.starts_with("::ffff:") {
        "::ffff:10.79.0.3"
    } else if address.contains(':') {
        "fd79::3"
    } else {
        "10.79.0.3"
    }
}

impl Bench {
    /// `probe exchange` with more options.
    fn exchange(&self, address: &str, port: &str, more: &[&str]) -> Attempt {
        self.client
            .probe(&[&["exchange", address, port], more].concat())
    }

    /// `probe trick`, after an exchange with somebody who may be reached.
    fn trick(&self, way: &str, address: &str, more: &[&str]) -> Attempt {
        let args = ["trick", way, address, "443", "--first", friend_of(address)];
        self.client.probe(&[&args, more].concat())
    }

    /// Unusual options, for TCP and for connected and unconnected UDP; IPv4 and IPv6.
    #[track_caller]
    fn stops_with_options(&self, options: &[&str]) {
        for kind in [&["--tcp"][..], &[], &["--connected"]] {
            let more = [options, kind].concat();
            self.stops_both(|address| self.exchange(address, "443", &more));
        }
    }
}

pub(crate) fn tcp_fast_open() {
    let Some(bench) = Bench::new() else { return };
    bench.stops_both(|address| {
        bench
            .client
            .probe(&["connect", address, "80", "--fast-open"])
    });
}

pub(crate) fn zero_copy() {
    let Some(bench) = Bench::new() else { return };
    bench.stops_with_options(&["--zerocopy"]);
}

pub(crate) fn socket_mark() {
    let Some(bench) = Bench::new() else { return };
    bench.stops_with_options(&["--mark", "51966"]);
}

pub(crate) fn bind_to_device() {
    let Some(bench) = Bench::new() else { return };
    bench.stops_with_options(&["--device", "eth0"]);
    // On loopback it passes, and gets nowhere.
    for denied in DENIED {
        assert!(!bench.exchange(denied, "443", &["--device", "lo"]).ok);
        assert!(!bench.leaves_to(denied));
    }
}

pub(crate) fn loopback_addresses_over_a_device() {
    let rules = "allow: [{ cidrs: [10.79.0.0/16, \"fd79::/32\"] }]";
    let Some(bench) = Bench::under(rules) else {
        return;
    };
    let mut refusals = 0;
    for (family, address) in [(0, "127.0.0.1"), (0, "127.77.1.2"), (1, "::1")] {
        let secret = to_hex(format!("over a device to {address}").as_bytes());
        let ways = [
            &["--device", "eth0"][..],
            &["--unicast-device", "eth0"],
            &[
                "--packet-info",
                zone::NODE[family],
                "--packet-info-device",
                "eth0",
            ],
        ];
        for way in ways {
            let options = [way, &["--no-echo", "--bytes", &secret]].concat();
            let (attempt, moved) = bench
                .agent
                .counted(|| bench.exchange(address, "9000", &options));
            assert!(!attempt.ok, "{way:?}: {attempt:?}");
            // Some kernels find no route for some of them.
            if attempt.is_refused() {
                counted(&moved, "loopback_elsewhere");
                refusals += 1;
            }
        }
        // `connect` knows the device of a bound socket.
        assert!(
            !bench
                .exchange(address, "9000", &["--tcp", "--device", "eth0"])
                .ok
        );
        assert!(!bench.leaves_to(address));
        // The twin: over loopback.
        let (attempt, moved) = bench
            .agent
            .counted(|| bench.exchange(address, "9000", &["--no-echo"]));
        reached(&attempt);
        counted(&moved, "loopback");
    }
    assert!(refusals > 0);
}

pub(crate) fn the_nodes_own_address_over_a_device() {
    let Some(bench) = Bench::with(RULES, World::builder(), |agent| agent.interface("eth0")) else {
        return;
    };
    // An address of another device; the agent reads them with the policy.
    let node = bench.world.namespace(Role::Node);
    node.ip("link add own0 type bridge\nlink set own0 up\naddress add 10.99.0.1/24 dev own0\n")
        .unwrap();
    node.ip("address add fd99::1/64 dev own0 nodad\n").unwrap();
    // As a default route would lead there.
    node.ip("route add fd99::/64 dev eth0 metric 9\n").unwrap();
    let more = RULES.replace("10.79.0.0/16", "10.79.0.0/16, 10.80.0.0/16");
    bench.agent.reload(&policy(&more));
    for address in ["10.99.0.1", "fd99::1"] {
        // Neither does it leave by UDP, nor answer by TCP.
        let (attempt, moved) = bench
            .agent
            .counted(|| bench.exchange(address, "9000", &["--device", "eth0", "--no-echo"]));
        refused(&attempt);
        counted(&moved, "no_rule");
        refused(&bench.exchange(address, "9000", &["--tcp", "--device", "eth0"]));
        assert!(!bench.leaves_to(address));
        // The twin: the same address, where it is.
        let (attempt, moved) = bench
            .agent
            .counted(|| bench.exchange(address, "9000", &["--no-echo"]));
        reached(&attempt);
        counted(&moved, "loopback");
    }
}

pub(crate) fn mapped_addresses() {
    let Some(bench) = Bench::new() else { return };
    let mapped = |address: &str| format!("::ffff:{address}");
    let (denied, allowed) = (mapped(DENIED[0]), mapped(ALLOWED[0]));
    for kind in [&["--tcp"][..], &[], &["--connected"]] {
        let (refused_attempt, _) = bench.stops(&denied, &allowed, |address| {
            bench.exchange(address, "443", kind)
        });
        refused(&refused_attempt);
    }
}

pub(crate) fn io_uring() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.trick("io-uring", ALLOWED[0], &["--tcp"]);
    if first.stage == "io_uring" {
        skip(&format!("no io_uring here: {:?}", first.errno));
        return;
    }
    for way in ["io-uring", "io-uring-polled"] {
        for kind in [&["--tcp"][..], &[], &["--connected"]] {
            bench.stops_both(|address| bench.trick(way, address, kind));
        }
    }
}

pub(crate) fn packet_info() {
    let Some(bench) = Bench::new() else { return };
    for family in 0..2 {
        let source = ["--packet-info", zone::NODE[family]];
        bench.stops(DENIED[family], ALLOWED[family], |address| {
            bench.exchange(address, "443", &source)
        });
    }
}

pub(crate) fn sendto_elsewhere() {
    let Some(bench) = Bench::new() else { return };
    bench.stops_both(|address| bench.trick("sendto-elsewhere", address, &[]));
}

pub(crate) fn another_peer_for_an_allowed_socket() {
    let Some(bench) = Bench::new() else { return };
    bench.stops_both(|address| bench.trick("connect-again", address, &[]));
    for kind in [&["--tcp"][..], &[]] {
        bench.stops_both(|address| bench.trick("disconnect", address, kind));
    }
}

pub(crate) fn many_destinations_in_one_call() {
    let Some(bench) = Bench::new() else { return };
    bench.stops_both(|address| bench.trick("sendmmsg", address, &[]));
}

pub(crate) fn sendfile() {
    let Some(bench) = Bench::new() else { return };
    for kind in [&["--tcp"][..], &[]] {
        bench.stops_both(|address| bench.trick("sendfile", address, kind));
    }
}

/// The line of the wire is a TCP segment without RST: resets are the kernel's own.
fn is_no_reset(words: &[&str]) -> bool {
    let header = if words[2].contains(':') { 80 } else { 40 };
    let flags = words[3].get(header + 26..header + 28);
    let flags = flags.and_then(|flags| u8::from_str_radix(flags, 16).ok());
    words[0] == "6" && flags.is_some_and(|flags| flags & RST == 0)
}

pub(crate) fn simultaneous_open() {
    let Some(bench) = Bench::new() else { return };
    // The peers keep quiet, so that our SYN stays under way until theirs comes.
    bench
        .world
        .namespace(Role::Web)
        .ip("route add blackhole 10.78.9.7/32 table local\nroute add blackhole 10.79.0.7/32 table local\n")
        .unwrap();
    let outside = bench.world.outsider(Role::Web);
    for (address, may) in [("10.78.9.7", false), ("10.79.0.7", true)] {
        let ours = format!("{}:6000", zone::NODE[0]);
        let _opening = bench.client.background(&[
            "trick",
            "simultaneous-open",
            address,
            "6001",
            "--tcp",
            "--from",
            &ours,
        ]);
        let answered = || {
            bench.wire(|words| {
                let segment = words[3].get(40..).unwrap_or_default();
                words[2] == address && is_no_reset(words) && segment.get(26..28) == Some("12")
            })
        };
        let ends = Ends::new(address, zone::NODE[0]);
        let syn = ends.packet(TCP, &ends.tcp((6001, 6000), (1, 0), SYN, b""));
        let seen = eventually(Duration::from_millis(900), || {
            emit(&outside, zone::NODE[0], &syn, &["--header-included"]);
            answered() > 0
        });
        assert_eq!(seen, may, "{address}");
        let left = bench.wire(|words| words[2] == address && is_no_reset(words));
        assert_eq!(left > 0, may, "{address}");
    }
}

pub(crate) fn tcp_repair() {
    let Some(bench) = Bench::new() else { return };
    for (denied, allowed) in DENIED.into_iter().zip(ALLOWED) {
        let attempt = bench.trick("repair", denied, &["--tcp"]);
        refused(&attempt);
        assert_eq!(attempt.stage, "connect");
        // The twin. Its peer knows nothing of a connection, and resets it.
        bench.trick("repair", allowed, &["--tcp"]);
        assert!(eventually(Duration::from_secs(1), || bench
            .left_to(allowed)
            > 0));
        assert_eq!(bench.left_to(denied), 0);
    }
}

pub(crate) fn udp_lite() {
    other_protocol("136", &["--no-echo"], "UDP-Lite");
}

pub(crate) fn mptcp() {
    other_protocol("262", &["--tcp"], "MPTCP");
}

pub(crate) fn sctp_sockets() {
    other_protocol("132", &["--tcp", "--no-echo"], "SCTP");
}

pub(crate) fn dccp_sockets() {
    other_protocol("33", &["--tcp", "--no-echo"], "DCCP");
}

fn other_protocol(number: &str, more: &[&str], name: &str) {
    let Some(bench) = Bench::new() else { return };
    let more = [&["--protocol", number], more].concat();
    let first = bench.exchange(ALLOWED[0], "443", &more);
    if first.stage == "socket" {
        skip(&format!("no {name} in this kernel: {:?}", first.errno));
        return;
    }
    bench.stops_both(|address| bench.exchange(address, "443", &more));
}

pub(crate) fn mptcp_subflows() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    let limits = "mptcp limits set subflows 4 add_addr_accepted 4\n";
    let node = bench.world.namespace(Role::Node);
    let web = bench.world.namespace(Role::Web);
    if node.ip(limits).and_then(|()| web.ip(limits)).is_err() {
        skip("no MPTCP in this kernel, or an ip that cannot set it up");
        return;
    }
    // The peer announces more addresses of itself; the workload's kernel connects to them unasked.
    web.ip("mptcp endpoint add 10.79.0.8 signal\nmptcp endpoint add 10.78.9.8 signal\n")
        .unwrap();
    bench
        .world
        .start_probe(Role::Web, &["serve", "--mptcp", "7443"])
        .unwrap();
    let mut flow = bench.client.hold_with(&[ALLOWED[0], "7443", "--mptcp"]);
    assert!(
        eventually(Duration::from_secs(3), || bench.left_to("10.79.0.8") > 0),
        "no subflow to the allowed address"
    );
    assert!(flow.is_alive());
    assert_eq!(bench.left_to("10.78.9.8"), 0);
    assert!(eventually(Duration::from_secs(1), || {
        bench.agent.counters().denied > 0
    }));
}

pub(crate) fn multicast_and_broadcast() {
    let rules = "allow: [{ cidrs: [239.1.1.0/24, \"ff05::1:0/112\", 10.77.0.255/32] }]";
    let Some(bench) = Bench::under(rules) else {
        return;
    };
    let node = bench.world.namespace(Role::Node);
    node.ip("route add 224.0.0.0/4 dev eth0\nroute add 255.255.255.255/32 dev eth0\n")
        .unwrap();
    let options = ["--no-echo", "--broadcast", "--device", "eth0"];
    let send = |address: &str| bench.exchange(address, "9000", &options);
    for denied in ["224.0.0.251", "239.2.2.2", "255.255.255.255"] {
        bench.stops(denied, "239.1.1.1", send);
    }
    for denied in ["ff02::fb", "ff05::2:1", "ff0e::1"] {
        bench.stops(denied, "ff05::1:1", send);
    }
    bench.twin("10.77.0.255", || send("10.77.0.255"));
}

pub(crate) fn link_local_addresses() {
    let rules = "allow: [{ cidrs: [\"fe80::a/128\"] }]";
    let Some(bench) = Bench::under(rules) else {
        return;
    };
    let web = bench.world.namespace(Role::Web);
    web.ip("address add fe80::a/64 dev br0 nodad\naddress add fe80::b/64 dev br0 nodad\n")
        .unwrap();
    for kind in [&["--connected", "--no-echo"][..], &["--no-echo"]] {
        let more = [&["--device", "eth0"], kind].concat();
        bench.stops("fe80::b", "fe80::a", |address| {
            bench.exchange(address, "9000", &more)
        });
    }
}

pub(crate) fn embedded_ipv4_addresses() {
    let rules =
        "allow: [{ cidrs: [10.79.0.0/16, \"64:ff9b::10.79.0.2/128\", \"2002:a4f:2::/48\"] }]";
    let Some(bench) = Bench::under(rules) else {
        return;
    };
    let routes: String = [
        "64:ff9b::/96",
        "2002::/16",
        "::10.79.0.0/112",
        "::ffff:0:10.79.0.0/112",
    ]
    .map(|route| format!("route add {route} via fd77::80\n"))
    .concat();
    bench.world.namespace(Role::Node).ip(&routes).unwrap();
    let send = |address: &str| bench.exchange(address, "9000", &["--no-echo"]);
    for denied in [
        "64:ff9b::a4f:1",
        "2002:a4f:1::1",
        "::a4f:1",
        "::ffff:0:a4f:1",
    ] {
        bench.stops(denied, "64:ff9b::a4f:2", send);
    }
    bench.twin("2002:a4f:2::1", || send("2002:a4f:2::1"));
}

pub(crate) fn source_routing() {
    let Some(bench) = Bench::new() else { return };
    // By way of 10.78.9.1, loosely: the kernel itself lets no strict route begin at a gateway.
    for kind in [&["--tcp"][..], &[], &["--connected"]] {
        let more = [&["--ip-options", "8307040a4e0901"], kind].concat();
        let (attempt, moved) = bench
            .agent
            .counted(|| bench.exchange("10.79.0.9", "443", &more));
        assert!(!attempt.ok, "{attempt:?}");
        counted(&moved, "source_routed");
    }
    // Type 4 (RFC 8754): by way of fd78::9:1.
    let hop = to_hex(&"fd78::9:1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    let route = format!("0004040101000000{}{hop}", "00".repeat(16));
    let (attempt, moved) = bench
        .agent
        .counted(|| bench.exchange("fd79::9", "443", &["--routing-header", &route]));
    if attempt.stage == "send" {
        counted(&moved, "source_routed");
    }
    assert!(!attempt.ok, "{attempt:?}");
    // With no segment left, the socket's call names the trusted resolver, and the packet goes where the header says.
    let route = format!("0002040000000000{hop}");
    for port in ["53", "443"] {
        let (attempt, moved) = bench
            .agent
            .counted(|| bench.exchange("fd77::53", port, &["--routing-header", &route]));
        if attempt.stage == "send" {
            counted(&moved, "source_routed");
        }
        assert!(!attempt.ok, "{attempt:?}");
    }
    // The twin: options that lead nowhere else.
    for options in ["01010101", "0707040000000000"] {
        bench.twin("10.79.0.9", || {
            bench.exchange("10.79.0.9", "443", &["--ip-options", options])
        });
    }
    bench.twin("fd79::9", || bench.exchange("fd79::9", "443", &[]));
    for denied in DENIED {
        assert_eq!(bench.left_to(denied), 0);
    }
    let before_the_twin = bench.wire(|words| words[2] == "10.79.0.9" && words[0] == "6");
    assert_eq!(before_the_twin, 0);
}

pub(crate) fn extension_headers() {
    let rules = "allow: [{ cidrs: [\"fd79::/32\"], ports: [\"443/udp\"] }]";
    let Some(bench) = Bench::under(rules) else {
        return;
    };
    // Padding only: what it does is to move the ports.
    let padding = "0000010400000000";
    let both = ["--hop-options", padding, "--destination-options", padding];
    for options in [&both[..2], &both[2..], &both] {
        bench.stops(DENIED[1], ALLOWED[1], |address| {
            bench.exchange(address, "443", options)
        });
        refused(&bench.exchange(ALLOWED[1], "9000", options));
    }
}

pub(crate) fn tcp_port_of_dot() {
    let rules = "allow: [{ names: [api.example.com] }]";
    let Some(mut bench) = Bench::under(rules) else {
        return;
    };
    bench
        .world
        .start_probe(Role::Dns, &["serve", "--tcp", "853"])
        .unwrap();
    for resolver in [zone::RESOLVER[0], zone::RESOLVER[1], zone::STRANGER] {
        refused(&bench.client.connect(resolver, 853));
    }
    assert_eq!(bench.wire(|words| words[0] == "6"), 0);
    // The twin: the same resolver, on the port that it is trusted for.
    let lookup = ["api.example.com", "--server", zone::RESOLVER[0], "--tcp"];
    assert!(!bench.client.lookup(&lookup).addresses.is_empty());
    reached(
        &bench
            .client
            .connect(zone::address("api.example.com", false), 80),
    );
}
