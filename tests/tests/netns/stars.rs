//! `*` inside the first label of a name: within that label only, allowed and denied.

use std::{thread, time::Duration};

use egress_tests::{
    Agent, Workload, World,
    expect::{counted, policy, reached, refused, tallied},
    ready,
    world::Role,
    zone,
};

/// Names that no rule covers: their answers teach nothing.
#[track_caller]
fn teaches_nothing(agent: &Agent, client: &Workload, name: &str, v6: bool) {
    let (_, moved) = agent.counted(|| client.resolve(name, v6));
    tallied(&moved, "dns_answer_no_rule");
    refused(&client.connect(zone::address(name, v6), 80));
}

#[track_caller]
fn opens(client: &Workload, name: &str, v6: bool) {
    let address = zone::address(name, v6);
    refused(&client.connect(address, 80));
    client.resolve(name, v6);
    reached(&client.connect(address, 80));
    refused(&client.connect(address, 443));
}

#[test]
fn a_star_inside_a_label_covers_that_label_and_no_other() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ names: [\"md-*.blob.example.net\"], ports: [\"80/tcp\"] }]",
        ))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        opens(&client, "md-1.blob.example.net", v6);
        opens(&client, "md-a-x.blob.example.net", v6);
        for name in [
            "um-1.blob.example.net",
            "md-1.b.blob.example.net",
            "blob.example.net",
            "x.blob.example.net",
        ] {
            teaches_nothing(&agent, &client, name, v6);
        }
    }
    let rules = agent.counters().by_rule;
    let rule = rules
        .iter()
        .find(|rule| rule.destination == "md-*.blob.example.net");
    assert_eq!(rule.map(|rule| rule.allowed), Some(4), "{rules:?}");
}

#[test]
fn text_behind_the_star_counts_too_and_never_overlaps_with_that_before() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ names: [\"*-x.blob.example.net\", \"x*x.blob.example.net\"], ports: [\"80/tcp\"] }]",
        ))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        opens(&client, "md-a-x.blob.example.net", v6);
        opens(&client, "xx.blob.example.net", v6);
        teaches_nothing(&agent, &client, "x.blob.example.net", v6);
        teaches_nothing(&agent, &client, "md-1.blob.example.net", v6);
    }
}

#[test]
fn a_name_has_the_ports_of_every_pattern_that_covers_it() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "allow:\n\
             - { names: [\"*.blob.example.net\"], ports: [\"80/tcp\"] }\n\
             - { names: [\"md-*.blob.example.net\"], ports: [\"443/tcp\"] }\n\
             - { names: [\"*-x.blob.example.net\"], ports: [\"8000/tcp\"] }\n\
             - { names: [md-1.blob.example.net], ports: [\"8080/tcp\"] }",
        ))
        .start();
    let client = world.workload("client");
    for (name, ports) in [
        ("um-1.blob.example.net", &[80][..]),
        ("md-1.b.blob.example.net", &[80]),
        ("md-1.blob.example.net", &[80, 443, 8080]),
        ("md-a-x.blob.example.net", &[80, 443, 8000]),
    ] {
        client.resolve(name, false);
        for port in [80, 443, 8000, 8080] {
            let attempt = client.connect(zone::address(name, false), port);
            assert_eq!(
                attempt.ok,
                ports.contains(&port),
                "{name} {port}: {attempt:?}"
            );
        }
    }
}

#[test]
fn a_denied_pattern_beats_a_wildcard_and_an_exact_name() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ names: [\"*.blob.example.net\", md-1.blob.example.net], ports: [\"80/tcp\"] }]\n\
             deny: [{ names: [\"md-*.blob.example.net\"] }]",
        ))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        for name in ["md-1.blob.example.net", "md-a-x.blob.example.net"] {
            let (_, moved) = agent.counted(|| client.resolve(name, v6));
            tallied(&moved, "dns_answer_denied_name");
            refused(&client.connect(zone::address(name, v6), 80));
        }
        opens(&client, "um-1.blob.example.net", v6);
        // One label further down it is another name.
        opens(&client, "md-1.b.blob.example.net", v6);
    }
    // An allowed alias of a denied name.
    let (_, moved) = agent.counted(|| client.resolve("um-lure.blob.example.net", false));
    tallied(&moved, "dns_alias_denied_name");
    refused(&client.connect(zone::address("md-1.blob.example.net", false), 80));
}

#[test]
fn an_alias_of_a_covered_name_teaches_where_it_leads() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy("allow: [{ names: [\"md-*.blob.example.net\"] }]"))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        let address = zone::address("store.example.org", v6);
        assert_eq!(client.resolve("store.example.org", v6), [address]);
        refused(&client.connect(address, 80));
    }
    for v6 in [false, true] {
        let address = zone::address("store.example.org", v6);
        assert_eq!(client.resolve("md-far.blob.example.net", v6), [address]);
        reached(&client.connect(address, 80));
    }
}

#[test]
fn answers_that_only_the_agent_can_read_are_matched_alike() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    world
        .start_probe(Role::Dns, &["dns-server", "--zone", "fresh.example.com"])
        .unwrap();
    let _agent = world
        .agent(&policy(
            "allow: [{ names: [\"split-*7.fresh.example.com\"], ports: [\"80/tcp\"] }]",
        ))
        .resolver(zone::SERVER)
        .start();
    let client = world.workload("client");
    for (name, address, is_allowed) in [
        ("split-8.fresh.example.com", "10.78.128.8", false),
        ("split-7.a.fresh.example.com", "10.78.128.7", false),
        ("split-17.fresh.example.com", "10.78.128.17", true),
    ] {
        let lookup = client.lookup(&[name, "--server", zone::SERVER, "--tcp"]);
        assert!(lookup.error.is_none(), "{name}: {lookup:?}");
        thread::sleep(Duration::from_millis(300));
        let attempt = client.connect(address, 80);
        assert_eq!(attempt.ok, is_allowed, "{name}: {attempt:?}");
    }
}

#[test]
fn queries_for_covered_names_leave_where_only_such_may() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "dns: { queries: allowed }\n\
             allow: [{ names: [\"md-*.blob.example.net\", \"*.cdn.example.net\"] }]\n\
             deny: [{ names: [\"evil*.cdn.example.net\"] }]",
        ))
        .start();
    let client = world.workload("client");
    let ask = |name: &str| client.lookup(&[name, "--server", zone::RESOLVER[0]]);
    for name in ["md-1.blob.example.net", "www.cdn.example.net"] {
        let lookup = ask(name);
        assert!(lookup.error.is_none(), "{name}: {lookup:?}");
    }
    for name in [
        "um-1.blob.example.net",
        "md-1.b.blob.example.net",
        "blob.example.net",
        "evil2.cdn.example.net",
    ] {
        let (lookup, moved) = agent.counted(|| ask(name));
        assert!(lookup.error.is_some(), "{name}: {lookup:?}");
        counted(&moved, "query_not_allowed");
    }
}

#[test]
fn what_a_pattern_taught_outlives_a_reload_as_long_as_it_is_covered() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [\"*.blob.example.net\"] }]"))
        .start();
    let client = world.workload("client");
    let (kept, lost) = ("md-1.blob.example.net", "um-1.blob.example.net");
    for name in [kept, lost] {
        client.resolve(name, false);
        reached(&client.connect(zone::address(name, false), 80));
    }
    agent.reload(&policy("allow: [{ names: [\"md-*.blob.example.net\"] }]"));
    reached(&client.connect(zone::address(kept, false), 80));
    refused(&client.connect(zone::address(lost, false), 80));
}
