//! Addresses that names teach: exact, wildcard, apex, denied, aliases, ports; over UDP and TCP.

use std::{net::IpAddr, time::Duration};

use egress_tests::{
    Workload, World, eventually,
    expect::{counted, ip, policy, reached, refused, tallied},
    ready,
    world::Role,
    zone,
};

#[test]
fn an_allowed_name_is_reached_once_it_is_resolved_and_others_are_not() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ names: [api.example.com], ports: [\"80/tcp\"] }]",
        ))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        let allowed = zone::address("api.example.com", v6);
        let forbidden = zone::address("forbidden.example.org", v6);

        let (attempt, moved) = agent.counted(|| client.connect(allowed, 80));
        refused(&attempt);
        counted(&moved, "no_rule");

        let (addresses, moved) = agent.counted(|| client.resolve("api.example.com", v6));
        assert_eq!(addresses, [allowed]);
        tallied(&moved, "dns_query_noted");
        tallied(&moved, "dns_answer_learned");
        let (attempt, moved) = agent.counted(|| client.connect(allowed, 80));
        reached(&attempt);
        counted(&moved, "name_rule");
        assert_eq!(moved.denied, 0, "{moved:?}");

        let (addresses, moved) = agent.counted(|| client.resolve("forbidden.example.org", v6));
        assert_eq!(addresses, [forbidden], "the answer itself is delivered");
        tallied(&moved, "dns_answer_no_rule");
        let (attempt, moved) = agent.counted(|| client.connect(forbidden, 80));
        refused(&attempt);
        counted(&moved, "no_rule");
        assert_eq!(
            world.web_saw(&format!("tcp {}", socket_text(forbidden, 80))),
            0
        );
        assert_eq!(
            world.web_saw(&format!("tcp {}", socket_text(allowed, 80))),
            1
        );
    }
    assert!(
        agent
            .counters()
            .by_rule
            .iter()
            .any(|rule| { rule.destination == "api.example.com" && rule.allowed == 2 }),
        "{:?}",
        agent.counters().by_rule
    );
}

#[test]
fn a_learned_address_is_listed_with_its_name_ports_scope_and_remaining_seconds() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ names: [api.example.com], ports: [\"80/tcp\"] }]",
        ))
        .start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    client.resolve("forbidden.example.org", false);
    // The name comes by the ring buffer, a little later than the address.
    let address = zone::address("api.example.com", false);
    assert!(
        eventually(Duration::from_secs(2), || {
            agent
                .learned()
                .iter()
                .any(|one| one.name == "api.example.com")
        }),
        "{:?}",
        agent.learned()
    );
    let learned = agent.learned();
    let one = learned.iter().find(|one| one.address == address).unwrap();
    assert_eq!(one.ports, ["80/tcp"]);
    assert!((290..=300).contains(&one.expires_in_s), "{one:?}");
    assert!(!one.scope.is_empty());
    assert!(!agent.knows(zone::address("forbidden.example.org", false)));
}

#[test]
fn a_denied_destination_is_shown_with_the_name_that_was_resolved_to_it() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .start();
    let client = world.workload("client");
    client.resolve("forbidden.example.org", false);
    let address = zone::address("forbidden.example.org", false);
    refused(&client.connect(address, 80));
    let flow = agent
        .flow_to(address, |flow| flow.names == ["forbidden.example.org"])
        .unwrap_or_else(|| panic!("no such flow in {:?}", agent.flows()));
    assert_eq!(
        (flow.verdict.as_str(), flow.reason.as_str()),
        ("denied", "no_rule")
    );
    assert_eq!((flow.protocol.as_str(), flow.port), ("tcp", Some(80)));

    client.resolve("api.example.com", false);
    let address = zone::address("api.example.com", false);
    reached(&client.connect(address, 80));
    let flow = agent.flow_to(address, |flow| flow.verdict == "allowed");
    let flow = flow.unwrap_or_else(|| panic!("no such flow in {:?}", agent.flows()));
    assert_eq!(flow.reason, "name_rule");
    assert!(flow.rule.is_some(), "{flow:?}");
}

#[test]
fn a_wildcard_covers_every_name_below_but_neither_its_apex_nor_a_lookalike() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [\"*.cdn.example.net\"] }]"))
        .start();
    let client = world.workload("client");
    for name in ["www.cdn.example.net", "a.b.cdn.example.net"] {
        for v6 in [false, true] {
            client.resolve(name, v6);
            reached(&client.connect(zone::address(name, v6), 443));
        }
    }
    for name in ["cdn.example.net", "notcdn.example.net"] {
        let (_, moved) = agent.counted(|| client.resolve(name, false));
        tallied(&moved, "dns_answer_no_rule");
        refused(&client.connect(zone::address(name, false), 443));
    }
}

#[test]
fn an_exact_rule_covers_the_apex_but_nothing_below() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy("allow: [{ names: [cdn.example.net] }]"))
        .start();
    let client = world.workload("client");
    client.resolve("cdn.example.net", false);
    reached(&client.connect(zone::address("cdn.example.net", false), 443));
    client.resolve("www.cdn.example.net", false);
    refused(&client.connect(zone::address("www.cdn.example.net", false), 443));
}

#[test]
fn a_denied_name_teaches_nothing_and_takes_nothing_away() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ names: [\"*.cdn.example.net\"] }]\n\
             deny: [{ names: [evil.cdn.example.net, evil2.cdn.example.net, evilshared.cdn.example.net] }]",
        ))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        let (_, moved) = agent.counted(|| client.resolve("evil.cdn.example.net", v6));
        tallied(&moved, "dns_answer_denied_name");
        refused(&client.connect(zone::address("evil.cdn.example.net", v6), 443));
    }
    // Over TCP, where the agent may be the one who reads the answer.
    let server = zone::RESOLVER[0];
    client.lookup(&["evil.cdn.example.net", "--server", server, "--tcp"]);
    std::thread::sleep(Duration::from_millis(300));
    refused(&client.connect(zone::address("evil.cdn.example.net", false), 443));

    let shared = zone::address("shared.cdn.example.net", false);
    client.resolve("evilshared.cdn.example.net", false);
    refused(&client.connect(shared, 443));
    client.resolve("shared.cdn.example.net", false);
    reached(&client.connect(shared, 443));
    client.resolve("evilshared.cdn.example.net", false);
    reached(&client.connect(shared, 443));
}

#[test]
fn an_allowed_alias_of_a_denied_name_teaches_nothing() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ names: [\"*.cdn.example.net\"] }]\ndeny: [{ names: [evil2.cdn.example.net] }]",
        ))
        .start();
    let client = world.workload("client");
    let evil = zone::address("evil2.cdn.example.net", false);
    let (addresses, moved) = agent.counted(|| client.resolve("lure.cdn.example.net", false));
    assert_eq!(addresses, [evil]);
    tallied(&moved, "dns_alias_denied_name");
    refused(&client.connect(evil, 443));
    std::thread::sleep(Duration::from_millis(300));
    refused(&client.connect(evil, 443));
}

#[test]
fn only_the_ports_of_the_rule_are_open() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow:\n\
             - { names: [api.example.com], ports: [\"80/tcp\", \"8000-8080/tcp\"] }\n\
             - { names: [other.example.com], ports: [\"443/udp\"] }",
        ))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        let api = zone::address("api.example.com", v6);
        client.resolve("api.example.com", v6);
        for port in [80, 8000, 8080] {
            reached(&client.connect(api, port));
        }
        for port in [443, 9000] {
            let (attempt, moved) = agent.counted(|| client.connect(api, port));
            refused(&attempt);
            counted(&moved, "port_not_allowed");
        }
        refused(&client.udp(api, 80, false));
        refused(&client.ping(api));

        let other = zone::address("other.example.com", v6);
        client.resolve("other.example.com", v6);
        reached(&client.udp(other, 443, false));
        refused(&client.udp(other, 80, false));
        refused(&client.connect(other, 443));
    }
}

#[test]
fn two_names_of_one_address_open_the_ports_of_both_and_each_only_after_its_own_lookup() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "allow:\n\
             - { names: [shared.cdn.example.net], ports: [\"80/tcp\"] }\n\
             - { names: [evilshared.cdn.example.net], ports: [\"443/tcp\"] }",
        ))
        .start();
    let client = world.workload("client");
    let shared = zone::address("shared.cdn.example.net", false);
    client.resolve("shared.cdn.example.net", false);
    reached(&client.connect(shared, 80));
    refused(&client.connect(shared, 443));
    client.resolve("evilshared.cdn.example.net", false);
    reached(&client.connect(shared, 443));
    reached(&client.connect(shared, 80));
}

#[test]
fn an_alias_chain_teaches_the_name_that_was_asked_and_nobody_else() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [alias.example.com] }]"))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        let end = zone::address("end.example.org", v6);
        for name in ["end.example.org", "hop.example.org"] {
            assert_eq!(client.resolve(name, v6), [end]);
            refused(&client.connect(end, 80));
        }
    }
    for v6 in [false, true] {
        let end = zone::address("end.example.org", v6);
        assert_eq!(client.resolve("alias.example.com", v6), [end]);
        reached(&client.connect(end, 80));
    }
    assert!(
        eventually(Duration::from_secs(2), || {
            agent
                .learned()
                .iter()
                .any(|one| one.name == "alias.example.com")
        }),
        "{:?}",
        agent.learned()
    );
}

/// Asks for a service binding and returns the addresses of its hints, after comparing them with the zone.
fn hints(client: &Workload, name: &str, how: &str) -> Vec<IpAddr> {
    let service = zone::SERVICES.iter().find(|one| one.name == name).unwrap();
    let expected: Vec<_> = [service.v4, service.v6]
        .concat()
        .into_iter()
        .map(ip)
        .collect();
    let server = zone::RESOLVER[0];
    let lookup = client.lookup(&[name, "--server", server, "--type", service.kind, how]);
    assert_eq!(lookup.addresses, expected, "{lookup:?}");
    expected
}

#[test]
fn addresses_of_hints_are_learned_from_service_bindings_alone() {
    if !ready() {
        return;
    }
    for how in ["--timeout=2000", "--tcp"] {
        let world = World::new();
        let agent = world
            .agent(&policy(
                "allow: [{ names: [\"*.cdn.example.net\"], ports: [\"443/tcp\"] }]\n\
                 deny: [{ names: [evilhint.cdn.example.net] }]",
            ))
            .start();
        let client = world.workload("client");
        for name in [
            "hint.cdn.example.net",
            "_dns.hint.cdn.example.net",
            "farhint.cdn.example.net",
        ] {
            let (addresses, moved) = agent.counted(|| hints(&client, name, how));
            tallied(&moved, "dns_answer_learned");
            for address in addresses {
                reached(&client.connect(address, 443));
                refused(&client.connect(address, 80));
            }
        }
        for (name, tally) in [
            ("hint.example.org", "dns_answer_no_rule"),
            ("evilhint.cdn.example.net", "dns_answer_denied_name"),
            ("lurehint.cdn.example.net", "dns_alias_denied_name"),
        ] {
            let (addresses, moved) = agent.counted(|| hints(&client, name, how));
            tallied(&moved, tally);
            // Longer than the agent takes to read its copy.
            std::thread::sleep(Duration::from_millis(300));
            for address in addresses {
                refused(&client.connect(address, 443));
            }
        }
    }
}

#[test]
fn addresses_of_hints_are_refused_before_their_lookup_and_learned_ones_have_its_name_and_ttl() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [hint.cdn.example.net] }]"))
        .start();
    let client = world.workload("client");
    for address in ["10.78.10.1", "fd78::10:1"] {
        refused(&client.connect(address, 443));
    }
    // Another type of the same name says nothing of them.
    let server = zone::RESOLVER[0];
    let lookup = client.lookup(&["hint.cdn.example.net", "--server", server, "--type", "A"]);
    assert!(lookup.addresses.is_empty(), "{lookup:?}");
    refused(&client.connect("10.78.10.1", 443));

    let addresses = hints(&client, "hint.cdn.example.net", "--timeout=2000");
    assert!(
        eventually(Duration::from_secs(2), || {
            let learned = agent.learned();
            addresses.iter().all(|address| {
                learned.iter().any(|one| {
                    one.address == *address
                        && one.name == "hint.cdn.example.net"
                        && (280..=300).contains(&one.expires_in_s)
                })
            })
        }),
        "{:?}",
        agent.learned()
    );
}

#[test]
fn hints_that_point_to_the_machine_or_to_metadata_teach_nothing() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [\"*.cdn.example.net\"] }]"))
        .start();
    // So that the denial is ours and not a missing route.
    world
        .namespace(Role::Node)
        .ip("route add 169.254.169.254 via 10.77.0.80\nroute add fd00:ec2::254 via fd77::80\n")
        .unwrap();
    let client = world.workload("client");
    let (_, moved) = agent.counted(|| hints(&client, "badhint.cdn.example.net", "--timeout=2000"));
    assert_eq!(moved.dns("address_unteachable"), 4, "{moved:?}");
    for address in ["10.78.10.5", "fd78::10:5"] {
        reached(&client.connect(address, 443));
    }
    for address in ["169.254.169.254", "fd00:ec2::254"] {
        refused(&client.connect(address, 80));
    }
    for address in ["127.0.0.1", "::1", "169.254.169.254", "fd00:ec2::254"] {
        assert!(!agent.knows(ip(address)), "{address}");
    }
    assert_eq!(agent.learned().len(), 2, "{:?}", agent.learned());
}

#[test]
fn capital_letters_in_a_question_make_no_difference() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "allow: [{ names: [API.example.com, \"*.CDN.example.net\"] }]",
        ))
        .start();
    let client = world.workload("client");
    client.resolve("aPi.ExamplE.cOM", false);
    reached(&client.connect(zone::address("api.example.com", false), 80));
    client.resolve("WWW.cdn.EXAMPLE.net", false);
    reached(&client.connect(zone::address("www.cdn.example.net", false), 80));
    client.resolve("FORBIDDEN.example.org", false);
    refused(&client.connect(zone::address("forbidden.example.org", false), 80));
}

#[test]
fn names_resolved_over_tcp_are_learned_and_others_are_not() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .start();
    let client = world.workload("client");
    for (v6, kind) in [(false, "A"), (true, "AAAA")] {
        for (name, is_allowed) in [("api.example.com", true), ("forbidden.example.org", false)] {
            let server = zone::RESOLVER[usize::from(v6)];
            let lookup = client.lookup(&[name, "--server", server, "--tcp", "--type", kind]);
            let address = zone::address(name, v6);
            assert_eq!(lookup.addresses, [address]);
            let reachable = eventually(Duration::from_secs(1), || client.connect(address, 80).ok);
            assert_eq!(reachable, is_allowed, "{name}");
        }
    }
}

#[test]
fn an_answer_in_many_tcp_segments_is_learned() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    world
        .start_probe(
            Role::Dns,
            &[
                "dns-server",
                "--zone",
                "fresh.example.com",
                "--zone",
                "stale.example.com",
            ],
        )
        .unwrap();
    let _agent = world
        .agent(&policy("allow: [{ names: [\"*.fresh.example.com\"] }]"))
        .resolver(zone::SERVER)
        .start();
    let client = world.workload("client");
    for (name, address, is_allowed) in [
        ("split-1.fresh.example.com", "10.78.128.1", true),
        ("split-2.stale.example.com", "10.78.128.2", false),
    ] {
        let lookup = client.lookup(&[name, "--server", zone::SERVER, "--tcp"]);
        assert_eq!(lookup.addresses, [ip(address)]);
        let reachable = eventually(Duration::from_secs(1), || client.connect(address, 80).ok);
        assert_eq!(reachable, is_allowed, "{name}");
    }
}

#[test]
fn every_address_of_a_long_answer_is_learned() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    world
        .start_probe(Role::Dns, &["dns-server", "--zone", "fresh.example.com"])
        .unwrap();
    let agent = world
        .agent(&policy("allow: [{ names: [\"*.fresh.example.com\"] }]"))
        .resolver(zone::SERVER)
        .start();
    let client = world.workload("client");
    // One that fits, one that is cut and asked again over TCP, two that no kernel limit fits.
    for (label, how, count) in [
        ("many-16-1000", "--timeout=2000", 16),
        ("many-60-2000", "--tcp", 60),
        ("huge-200-3000", "--timeout=2000", 200),
        ("many-500-4000", "--tcp", 500),
    ] {
        let name = format!("{label}.fresh.example.com");
        let addresses = client
            .lookup(&[&name, "--server", zone::SERVER, how])
            .addresses;
        assert_eq!(addresses.len(), count);
        assert!(
            eventually(Duration::from_secs(3), || {
                let learned = agent.learned();
                addresses
                    .iter()
                    .all(|address| learned.iter().any(|one| one.address == *address))
            }),
            "{label}: {} of {count}",
            agent.learned().len()
        );
        for address in addresses.iter().step_by(count / 8) {
            reached(&client.connect(address, 80));
        }
    }
    // Until no flow is deferred any more.
    std::thread::sleep(Duration::from_millis(1100));
    refused(&client.connect("10.78.200.1", 80));
}

#[test]
fn a_long_alias_chain_is_learned() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    world
        .start_probe(Role::Dns, &["dns-server", "--zone", "fresh.example.com"])
        .unwrap();
    let _agent = world
        .agent(&policy("allow: [{ names: [chain-8-7.fresh.example.com] }]"))
        .resolver(zone::SERVER)
        .start();
    let client = world.workload("client");
    refused(&client.connect("10.78.128.7", 80));
    client.resolve_at("chain-8-7.fresh.example.com", false, zone::SERVER);
    let reachable = eventually(Duration::from_secs(1), || {
        client.connect("10.78.128.7", 80).ok
    });
    assert!(reachable);
}

fn socket_text(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::from((address, port)).to_string()
}
