//! Networks of one's own, and ways past the IP stack.

use std::{process::Command, time::Duration};

use egress_tests::{
    World, eventually,
    expect::{counted, reached},
    packets::{Ends, IPIP, UDP, to_hex},
    programs,
    report::Attempt,
    skip::skip,
    world::Role,
    zone,
};

use crate::bench::{ALLOWED, Bench, DENIED, RULES};

const SECRET: &[u8] = b"the secret of the node";

/// A bench whose agent also judges what leaves through the node's interface, if asked to.
fn bench(interface: bool) -> Option<Bench> {
    Bench::with(RULES, World::builder().pod(), |agent| {
        if interface {
            agent.interface("eth0")
        } else {
            agent
        }
    })
}

pub(crate) fn network_namespaces() {
    let Some(mut bench) = bench(false) else {
        return;
    };
    bench.client = bench.world.workload_in(Role::Pod, "own");
    for kind in [&["--tcp"][..], &[], &["--connected"]] {
        bench.stops_both(|address| {
            bench
                .client
                .probe(&[&["exchange", address, "443"], kind].concat())
        });
    }
    bench.stops_both(|address| bench.client.ping(address));
    bench.stops_both(|address| {
        let from = zone::POD[usize::from(address.contains(':'))];
        let ends = Ends::new(from, address);
        bench.emit(address, &ends.packet(UDP, &ends.udp(7, 9000, SECRET)))
    });
}

/// A bench whose client is a pod, and whose agent judges pods' interfaces.
fn pod_bench() -> Option<Bench> {
    let mut bench = Bench::with(RULES, World::builder().pod(), |agent| {
        agent.arg("--pod-interfaces").arg("auto")
    })?;
    bench.client = bench.world.workload_in(Role::Pod, "own");
    let is_judged = || {
        let status = bench.agent.status();
        status.pod_interfaces.is_some_and(|one| one.judged == 1)
    };
    assert!(eventually(Duration::from_secs(3), is_judged));
    Some(bench)
}

/// Sends a datagram with the secret to an address, past the IP stack.
fn frame(bench: &Bench, address: &str, more: &[&str]) -> Attempt {
    frame_between(bench, zone::NODE, &bench.world.gateway(), address, more)
}

/// As [`frame`], from the pod.
fn pod_frame(bench: &Bench, address: &str, more: &[&str]) -> Attempt {
    let gateway = bench.world.hardware_address(Role::Node, "pod0");
    frame_between(bench, zone::POD, &gateway, address, more)
}

fn frame_between(
    bench: &Bench,
    from: [&str; 2],
    gateway: &str,
    address: &str,
    more: &[&str],
) -> Attempt {
    let family = usize::from(address.contains(':'));
    let ends = Ends::new(from[family], address);
    let packet = to_hex(&ends.packet(UDP, &ends.udp(7, 9000, SECRET)));
    let kind = ["0800", "86dd"][family];
    let args = [
        "emit-frame",
        &packet,
        "--gateway",
        gateway,
        "--ethertype",
        kind,
    ];
    bench.client.probe(&[&args, more].concat())
}

pub(crate) fn packet_sockets() {
    let Some(bench) = bench(true) else { return };
    for (denied, allowed) in DENIED.into_iter().zip(ALLOWED) {
        let (_, moved) = bench.agent.counted(|| frame(&bench, denied, &[]));
        counted(&moved, "no_rule");
        assert!(moved.denied_by("tc_egress") > 0, "{moved:?}");
        bench.twin(allowed, || frame(&bench, allowed, &[]));
        assert_eq!(bench.left_to(denied), 0);
    }
    // Behind VLAN tags.
    let tagged = |address: &str, tags: &str| {
        let ends = Ends::new(zone::NODE[0], address);
        let packet = to_hex(&ends.packet(UDP, &ends.udp(7, 9000, b"tagged")));
        let bytes = format!("{tags}0800{packet}");
        let args = [
            "emit-frame",
            &bytes,
            "--gateway",
            &bench.world.gateway(),
            "--ethertype",
            "8100",
        ];
        bench
            .agent
            .counted(|| bench.client.probe::<Attempt>(&args))
            .1
    };
    counted(&tagged(DENIED[0], "0005"), "no_rule");
    counted(&tagged(DENIED[0], "000581000006"), "no_rule");
    counted(
        &tagged(ALLOWED[0], "00058100000681000007"),
        "unknown_ethertype",
    );
    assert!(!bench.leaves(b"tagged"));
    assert_eq!(tagged(ALLOWED[0], "0005").denied, 0);
    assert!(bench.leaves(b"tagged"));
    // To loopback addresses, which a neighbour could take in: also as a later fragment, and around another packet. And
    // to an IPv4 address inside of an IPv6 one, which no rule for IPv4 is about.
    let raw = |packet: &[u8], kind: &str| {
        let gateway = bench.world.gateway();
        let packet = to_hex(packet);
        let args = [
            "emit-frame",
            &packet,
            "--gateway",
            &gateway,
            "--ethertype",
            kind,
        ];
        bench
            .agent
            .counted(|| bench.client.probe::<Attempt>(&args))
            .1
    };
    let v4 = Ends::new(zone::NODE[0], "127.0.0.1");
    let v6 = Ends::new(zone::NODE[1], "::1");
    let mut fragment = v4.packet(UDP, &v4.udp(7, 9000, b"to loopback"));
    fragment[7] = 3;
    for (packet, kind) in [
        (v4.packet(UDP, &v4.udp(7, 9000, b"to loopback")), "0800"),
        (fragment, "0800"),
        (v4.packet(IPIP, &v4.packet(UDP, b"to loopback")), "0800"),
        (v6.packet(UDP, &v6.udp(7, 9000, b"to loopback")), "86dd"),
    ] {
        counted(&raw(&packet, kind), "loopback_elsewhere");
    }
    let mapped = Ends::new(zone::NODE[1], &format!("::ffff:{}", ALLOWED[0]));
    let packet = mapped.packet(UDP, &mapped.udp(7, 9000, b"to loopback"));
    counted(&raw(&packet, "86dd"), "malformed");
    assert!(!bench.leaves(b"to loopback"));
    // Neither IPv4, IPv6 nor ARP.
    let other = [
        "emit-frame",
        &to_hex(SECRET),
        "--gateway",
        &bench.world.gateway(),
        "--ethertype",
        "88b5",
    ];
    let (_, moved) = bench
        .agent
        .counted(|| bench.client.probe::<Attempt>(&other));
    counted(&moved, "unknown_ethertype");
}

pub(crate) fn packet_sockets_past_the_queue() {
    for (interface, more) in [(true, &["--bypass-qdisc"][..]), (false, &[])] {
        let Some(bench) = bench(interface) else {
            return;
        };
        reached(&frame(&bench, DENIED[0], more));
        bench.settle();
        assert!(bench.left_to(DENIED[0]) > 0, "{more:?}: it is stopped now");
        // The twin: by a socket of its own it may not.
        assert!(bench.client.udp(DENIED[0], 9000, true).is_refused());
    }
}

pub(crate) fn packet_sockets_of_a_pod() {
    let Some(bench) = pod_bench() else { return };
    for more in [&[][..], &["--bypass-qdisc"]] {
        for (denied, allowed) in DENIED.into_iter().zip(ALLOWED) {
            let (sent, moved) = bench.agent.counted(|| pod_frame(&bench, denied, more));
            reached(&sent);
            counted(&moved, "no_rule");
            assert!(moved.denied_by("tc_egress") > 0, "{moved:?}");
            bench.twin(allowed, || pod_frame(&bench, allowed, more));
            assert_eq!(bench.left_to(denied), 0);
        }
    }
}

pub(crate) fn af_xdp_of_a_pod() {
    let Some(bench) = pod_bench() else { return };
    let gateway = bench.world.hardware_address(Role::Node, "pod0");
    let send = |address: &str| {
        let ends = Ends::new(zone::POD[0], address);
        let packet = to_hex(&ends.packet(UDP, &ends.udp(7, 9000, SECRET)));
        bench
            .client
            .probe::<Attempt>(&["xdp", &packet, "--gateway", &gateway])
    };
    let (attempt, moved) = bench.agent.counted(|| send(DENIED[0]));
    if attempt.stage == "socket" {
        skip(&format!("no AF_XDP in this kernel: {:?}", attempt.errno));
        return;
    }
    reached(&attempt);
    assert!(moved.denied_by("tc_egress") > 0, "{moved:?}");
    bench.twin(ALLOWED[0], || send(ALLOWED[0]));
    assert_eq!(bench.left_to(DENIED[0]), 0);
}

pub(crate) fn af_xdp() {
    let Some(bench) = bench(true) else { return };
    let ends = Ends::new(zone::NODE[0], DENIED[0]);
    let packet = to_hex(&ends.packet(UDP, &ends.udp(7, 9000, SECRET)));
    let attempt: Attempt =
        bench
            .client
            .probe(&["xdp", &packet, "--gateway", &bench.world.gateway()]);
    if attempt.stage == "socket" {
        skip(&format!("no AF_XDP in this kernel: {:?}", attempt.errno));
        return;
    }
    reached(&attempt);
    bench.settle();
    assert!(bench.left_to(DENIED[0]) > 0, "it is stopped now");
    // The twin: by a packet socket it does not leave.
    frame(&bench, "10.78.9.2", &[]);
    assert!(!bench.leaves_to("10.78.9.2"));
}

pub(crate) fn arp_frames() {
    let Some(bench) = bench(true) else { return };
    let frame = |kind: &str| -> Attempt {
        let args = [
            "emit-frame",
            &to_hex(SECRET),
            "--gateway",
            &bench.world.gateway(),
            "--ethertype",
            kind,
        ];
        bench.client.probe(&args)
    };
    frame("88b5");
    assert!(!bench.leaves(SECRET));
    reached(&frame("0806"));
    assert!(bench.leaves(SECRET), "it is stopped now");
}

pub(crate) fn packets_on_loopback_that_the_node_forwards() {
    for (interface, to, leaves) in [
        (true, DENIED[0], false),
        (true, ALLOWED[0], true),
        // Without the hook nobody sees a forwarded packet.
        (false, DENIED[0], true),
    ] {
        // A node with a pod behind it forwards.
        let Some(bench) = bench(interface) else {
            return;
        };
        let ends = Ends::new("10.77.0.77", to);
        let packet = to_hex(&ends.packet(UDP, &ends.udp(7, 9000, SECRET)));
        reached(
            &bench
                .client
                .probe(&["emit-frame", &packet, "--interface", "lo"]),
        );
        bench.settle();
        assert_eq!(bench.left_to(to) > 0, leaves, "interface {interface}, {to}");
    }
}

/// A tunnel device to `remote`, with allowed addresses behind it.
fn tunnel(bench: &Bench, role: Role, kind: &str, remote: &str) -> bool {
    let local = match role {
        Role::Pod => zone::POD[0],
        _ => zone::NODE[0],
    };
    let (device, hop) = match kind {
        "vxlan" => (
            format!("vxlan id 7 remote {remote} dstport 4789 dev eth0"),
            "neighbour add 10.79.5.2 lladdr 02:00:00:00:00:02 dev tun1\n",
        ),
        _ => (format!("{kind} local {local} remote {remote}"), ""),
    };
    let lines = format!(
        "link add tun1 type {device}\naddress add 10.79.5.1/24 dev tun1\n\
         link set tun1 up\n{hop}"
    );
    bench.world.namespace(role).ip(&lines).is_ok()
}

pub(crate) fn vxlan_devices() {
    tunnel_devices("vxlan");
}

pub(crate) fn ipip_devices() {
    tunnel_devices("ipip");
}

pub(crate) fn gre_devices() {
    tunnel_devices("gre");
}

pub(crate) fn sit_devices() {
    tunnel_devices("sit mode any");
}

fn tunnel_devices(kind: &str) {
    for (interface, remote, leaves) in [
        (true, DENIED[0], false),
        (true, ALLOWED[0], true),
        // Without the hook nobody sees the outer packet.
        (false, DENIED[0], true),
    ] {
        let Some(mut bench) = bench(interface) else {
            return;
        };
        bench.client = bench.world.workload_in(Role::Pod, "own");
        if !tunnel(&bench, Role::Pod, kind, remote) {
            skip(&format!("no {kind} in this kernel"));
            return;
        }
        reached(
            &bench
                .client
                .probe(&["exchange", "10.79.5.2", "9000", "--no-echo"]),
        );
        bench.settle();
        assert_eq!(
            bench.left_to(remote) > 0,
            leaves,
            "interface {interface}, {remote}"
        );
    }
}

pub(crate) fn tunnel_devices_of_the_node() {
    let Some(bench) = bench(true) else { return };
    if !tunnel(&bench, Role::Node, "vxlan", DENIED[0]) {
        skip("no VXLAN in this kernel");
        return;
    }
    reached(
        &bench
            .client
            .probe(&["exchange", "10.79.5.2", "9000", "--no-echo"]),
    );
    bench.settle();
    assert!(bench.left_to(DENIED[0]) > 0, "it is stopped now");
    // The twin: to the tunnel's remote it may not send by itself.
    assert!(bench.client.udp(DENIED[0], 4789, true).is_refused());
}

/// Has every packet to the allowed address rewritten after the hooks of the cgroup.
fn rewrite(bench: &Bench, role: Role, device: &str, to: &str) -> bool {
    let rules = format!(
        "table netdev own {{ chain out {{ type filter hook egress device {device} priority 0; \
         ip daddr {} ip daddr set {to}; }}; }}",
        ALLOWED[0]
    );
    let namespace = bench.world.namespace(role).name();
    let output = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", &rules])
        .output();
    output.is_ok_and(|output| output.status.success())
}

pub(crate) fn rewriting_behind_a_macvlan() {
    let Some(mut bench) = bench(true) else { return };
    let own = bench.world.namespace(Role::Pod);
    let device = format!(
        "link add link eth0 name mv0 netns {} type macvlan mode bridge\n",
        own.name()
    );
    if bench.world.namespace(Role::Node).ip(&device).is_err() {
        skip("no macvlan in this kernel");
        return;
    }
    own.ip(
        "link set eth0 down\nlink set mv0 name eth1\nlink set eth1 up\n\
         address add 10.77.0.41/24 dev eth1\nroute add default via 10.77.0.80\n",
    )
    .unwrap();
    bench.client = bench.world.workload_in(Role::Pod, "own");
    if programs::find("nft").is_none() || !rewrite(&bench, Role::Pod, "eth1", DENIED[0]) {
        skip("no nft with egress chains here");
        return;
    }
    reached(
        &bench
            .client
            .probe(&["exchange", ALLOWED[0], "9000", "--no-echo"]),
    );
    bench.settle();
    assert!(bench.left_to(DENIED[0]) > 0, "it is stopped now");
    // The twin: as it is judged without.
    assert!(bench.client.udp(DENIED[0], 9000, true).is_refused());
}

pub(crate) fn rewriting_in_a_pod() {
    let Some(bench) = pod_bench() else { return };
    if programs::find("nft").is_none() || !rewrite(&bench, Role::Pod, "eth0", DENIED[0]) {
        skip("no nft with egress chains here");
        return;
    }
    let args = ["exchange", ALLOWED[0], "9000", "--no-echo"];
    reached(&bench.client.probe(&args));
    bench.settle();
    assert!(bench.left_to(DENIED[0]) > 0, "it is stopped now");
    // The twin: what it asks for itself is judged.
    assert!(bench.client.udp(DENIED[0], 9000, true).is_refused());
}

pub(crate) fn rewriting_after_the_hooks() {
    for (interface, to, leaves) in [
        (true, DENIED[0], false),
        (true, "10.79.0.4", true),
        (false, DENIED[0], true),
    ] {
        let Some(mut bench) = bench(interface) else {
            return;
        };
        bench.client = bench.world.workload_in(Role::Pod, "own");
        if programs::find("nft").is_none() || !rewrite(&bench, Role::Pod, "eth0", to) {
            skip("no nft with egress chains here");
            return;
        }
        reached(
            &bench
                .client
                .probe(&["exchange", ALLOWED[0], "9000", "--no-echo"]),
        );
        bench.settle();
        assert_eq!(bench.left_to(to) > 0, leaves, "interface {interface}, {to}");
    }
}
