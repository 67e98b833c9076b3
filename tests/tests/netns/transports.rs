//! Every way to send: TCP, UDP connected and not, ICMP, raw sockets; each allowed and denied, IPv4 and IPv6.

use egress_tests::{
    Workload, World,
    expect::{counted, policy, reached, refused},
    ready,
    report::Attempt,
    zone,
};

/// Every way to send, by name.
fn every_way(client: &Workload, address: &str) -> Vec<(&'static str, Attempt)> {
    vec![
        ("tcp", client.connect(address, 443)),
        ("connected udp", client.udp(address, 443, true)),
        ("unconnected udp", client.udp(address, 443, false)),
        ("ping", client.ping(address)),
        ("ping socket", client.probe(&["ping", "--dgram", address])),
    ]
}

/// The attempt failed as a denied one does. The kernel's ICMPv6 ping sockets keep the error to themselves.
fn is_denied(way: &str, attempt: &Attempt) -> bool {
    attempt.is_refused() || (way == "ping socket" && attempt.is_silent())
}

#[test]
fn every_transport_is_judged_by_networks() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16, \"fd79::/32\"] }]"))
        .start();
    let client = world.workload("client");
    for (inside, outside) in [("10.79.0.1", "10.78.9.1"), ("fd79::1", "fd78::9:1")] {
        let (attempts, moved) = agent.counted(|| every_way(&client, inside));
        for (way, attempt) in attempts {
            assert!(attempt.ok, "{way} to {inside}: {attempt:?}");
        }
        assert_eq!(moved.denied, 0, "{moved:?}");
        let (attempts, moved) = agent.counted(|| every_way(&client, outside));
        for (way, attempt) in &attempts {
            assert!(is_denied(way, attempt), "{way} to {outside}: {attempt:?}");
        }
        assert!(moved.denied >= attempts.len() as u64, "{moved:?}");
        assert!(moved.denied_by("skb_egress") >= 4, "{moved:?}");
        counted(&moved, "no_rule");
    }
}

#[test]
fn every_transport_is_judged_by_names() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        client.resolve("api.example.com", v6);
        let address = zone::address("api.example.com", v6).to_string();
        for (way, attempt) in every_way(&client, &address) {
            assert!(attempt.ok, "{way} to {address}: {attempt:?}");
        }
        client.resolve("forbidden.example.org", v6);
        let address = zone::address("forbidden.example.org", v6).to_string();
        for (way, attempt) in every_way(&client, &address) {
            assert!(is_denied(way, &attempt), "{way} to {address}: {attempt:?}");
        }
    }
    assert_eq!(agent.status().alarms, Vec::<String>::new());
}

#[test]
fn a_denied_connect_fails_with_eperm_at_once() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16, \"fd79::/32\"] }]"))
        .start();
    let client = world.workload("client");
    for (hook, inside, outside) in [
        ("connect4", "10.79.0.1", "10.78.9.1"),
        ("connect6", "fd79::1", "fd78::9:1"),
        // An IPv6 socket that is given an IPv4 address.
        ("connect6", "::ffff:10.79.0.1", "::ffff:10.78.9.1"),
    ] {
        reached(&client.connect(inside, 80));
        let (attempt, moved) = agent.counted(|| client.connect(outside, 80));
        refused(&attempt);
        assert_eq!(attempt.stage, "connect");
        assert!(attempt.elapsed_ms < 100.0, "{attempt:?}");
        assert_eq!(moved.denied_by(hook), 1, "{moved:?}");
        assert_eq!(moved.denied_by("skb_egress"), 0, "{moved:?}");
    }
}

#[test]
fn a_udp_socket_is_judged_for_each_destination_that_it_sends_to() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"))
        .start();
    let client = world.workload("client");
    // One unconnected socket: the echo server of the workload itself, which is asked to send elsewhere.
    let mut server = client.background(&["serve", "--udp", "7000"]);
    server
        .wait_for_line(0, std::time::Duration::from_secs(5), |line| line == "ready")
        .unwrap();
    for round in 0..2 {
        for (address, is_allowed) in [
            ("10.79.0.1", true),
            ("10.78.9.1", false),
            ("10.79.0.2", true),
        ] {
            let text = format!("relay {address} 9000");
            let attempt: Attempt = client.probe(&["udp", "127.0.0.1", "7000", "--text", &text]);
            assert_eq!(
                attempt.ok, is_allowed,
                "round {round}, {address}: {attempt:?}"
            );
        }
    }
}

#[test]
fn a_flood_of_denials_is_counted_in_full_reported_in_part_and_disturbs_nobody() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"))
        .start();
    let client = world.workload("client");
    let mut flow = client.hold("10.79.0.1", 80);
    let (attempt, moved) =
        agent.counted(|| -> Attempt { client.probe(&["flood", "10.78.9.1", "9000", "50000"]) });
    refused(&attempt);
    assert!(moved.denied >= 50_000, "{moved:?}");
    assert!(moved.dns("events_suppressed") > 0, "{moved:?}");
    assert!(flow.is_alive(), "{:?}", flow.lines());
    reached(&client.connect("10.79.0.2", 80));
    let flow = agent.flow_to("10.78.9.1".parse().unwrap(), |flow| {
        flow.verdict == "denied"
    });
    assert!(flow.is_some());
}

#[test]
fn a_rule_for_one_protocol_opens_no_other() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "allow:\n\
             - { cidrs: [10.79.1.0/24, \"fd79:0:1::/48\"], ports: [icmp] }\n\
             - { cidrs: [10.79.2.0/24, \"fd79:0:2::/48\"], ports: [any/tcp] }\n\
             - { cidrs: [10.79.3.0/24, \"fd79:0:3::/48\"], ports: [any/udp] }",
        ))
        .start();
    let client = world.workload("client");
    for (address, open) in [
        ("10.79.1.1", "ping"),
        ("fd79:0:1::1", "ping"),
        ("10.79.2.1", "tcp"),
        ("fd79:0:2::1", "tcp"),
        ("10.79.3.1", "udp"),
        ("fd79:0:3::1", "udp"),
    ] {
        for (way, attempt) in every_way(&client, address) {
            assert_eq!(
                attempt.ok,
                way.contains(open),
                "{way} to {address}: {attempt:?}"
            );
        }
    }
}

#[test]
fn ipv4_through_an_ipv6_socket_is_judged_as_ipv4() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "allow: [{ cidrs: [10.79.0.0/16], ports: [any/udp, 80/tcp] }]",
        ))
        .start();
    let client = world.workload("client");
    for connected in [false, true] {
        reached(&client.udp("::ffff:10.79.0.1", 443, connected));
        refused(&client.udp("::ffff:10.78.9.1", 443, connected));
    }
    reached(&client.connect("::ffff:10.79.0.1", 80));
    refused(&client.connect("::ffff:10.79.0.1", 443));
}

#[test]
fn a_datagram_above_the_mtu_is_judged_by_its_port() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "allow: [{ cidrs: [10.79.0.0/16, \"fd79::/32\"], ports: [\"443/udp\"] }]",
        ))
        .start();
    let client = world.workload("client");
    let text = "x".repeat(5000);
    for address in ["10.79.0.1", "fd79::1"] {
        let send =
            |port: &str| -> Attempt { client.probe(&["udp", address, port, "--text", &text]) };
        reached(&send("443"));
        refused(&send("9000"));
    }
}
