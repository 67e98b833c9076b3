//! CIDR rules, and their precedence.

use egress_tests::{
    World,
    expect::{counted, policy, reached, refused},
    ready, zone,
};

#[test]
fn an_allowed_network_is_reached_without_a_lookup_and_others_are_not() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ cidrs: [10.79.0.0/16, \"fd79::/32\"], ports: [any] }]",
        ))
        .start();
    let client = world.workload("client");
    for (inside, outside) in [("10.79.0.1", "10.78.255.255"), ("fd79::1", "fd78:ffff::1")] {
        let (attempt, moved) = agent.counted(|| client.connect(inside, 80));
        reached(&attempt);
        counted(&moved, "cidr_rule");
        assert_eq!(moved.denied, 0);
        let (attempt, moved) = agent.counted(|| client.connect(outside, 80));
        refused(&attempt);
        counted(&moved, "no_rule");
    }
}

#[test]
fn a_denied_network_inside_an_allowed_one_is_not_reached() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ cidrs: [10.79.0.0/16, \"fd79::/32\"] }]\n\
             deny: [{ cidrs: [10.79.99.0/24, \"fd79:0:99::/48\"] }]",
        ))
        .start();
    let client = world.workload("client");
    for (allowed, denied) in [
        ("10.79.98.255", "10.79.99.1"),
        ("10.79.100.0", "10.79.99.255"),
        ("fd79:0:98::1", "fd79:0:99::1"),
    ] {
        reached(&client.connect(allowed, 80));
        let (attempt, moved) = agent.counted(|| client.connect(denied, 80));
        refused(&attempt);
        counted(&moved, "denied_cidr");
    }
}

#[test]
fn a_wider_denied_network_beats_an_allowed_one_inside() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ cidrs: [10.79.1.0/24, 10.78.1.1/32] }]\ndeny: [{ cidrs: [10.79.0.0/16] }]",
        ))
        .start();
    let client = world.workload("client");
    let (attempt, moved) = agent.counted(|| client.connect("10.79.1.1", 80));
    refused(&attempt);
    counted(&moved, "denied_cidr");
    reached(&client.connect("10.78.1.1", 80));
}

#[test]
fn a_denied_network_beats_a_name_that_taught_the_address() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ names: [\"*.cdn.example.net\"] }]\n\
             deny: [{ cidrs: [10.78.2.2/32, \"fd78::2:2/128\"] }]",
        ))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        client.resolve("www.cdn.example.net", v6);
        reached(&client.connect(zone::address("www.cdn.example.net", v6), 80));
        client.resolve("a.b.cdn.example.net", v6);
        let denied = zone::address("a.b.cdn.example.net", v6);
        let (attempt, moved) = agent.counted(|| client.connect(denied, 80));
        refused(&attempt);
        counted(&moved, "denied_cidr");
    }
}

#[test]
fn ports_belong_to_their_network_also_in_deny_rules() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "allow:\n\
             - { cidrs: [10.79.0.0/16], ports: [\"80/tcp\", \"8000-9000/tcp\"] }\n\
             - { cidrs: [10.79.5.0/24], ports: [\"443/udp\"] }\n\
             deny: [{ cidrs: [10.79.0.0/16], ports: [\"8080/tcp\"] }]",
        ))
        .start();
    let client = world.workload("client");
    for port in [80, 8000, 9000] {
        reached(&client.connect("10.79.5.1", port));
    }
    for port in [443, 8080] {
        refused(&client.connect("10.79.5.1", port));
    }
    // The narrower network holds the union of what covers it.
    reached(&client.udp("10.79.5.1", 443, false));
    refused(&client.udp("10.79.6.1", 443, false));
}

#[test]
fn an_empty_allow_list_allows_nothing_but_the_lifeline_and_loopback() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy("allow: []")).start();
    let client = world.workload("client");
    let _server = {
        let mut server = client.background(&["serve", "--tcp", "7000"]);
        server
            .wait_for_line(0, std::time::Duration::from_secs(5), |line| line == "ready")
            .unwrap();
        server
    };
    for local in ["127.0.0.1", "::1"] {
        let (attempt, moved) = agent.counted(|| client.connect(local, 7000));
        reached(&attempt);
        counted(&moved, "loopback");
    }
    // The resolver answers, the node reaches itself, and nothing else goes.
    client.resolve("api.example.com", false);
    reached(&client.connect(zone::NODE[0], 7000));
    for v6 in [false, true] {
        refused(&client.connect(zone::address("api.example.com", v6), 80));
        refused(&client.udp(zone::address("api.example.com", v6), 80, true));
        refused(&client.ping(zone::address("api.example.com", v6)));
    }
    refused(&client.connect(zone::RESOLVER[0], 80));
}
