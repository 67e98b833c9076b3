//! The second real resolver.

use std::time::Duration;

use egress_tests::{
    Agent, Resolver, Workload, World, eventually,
    expect::{policy, reached, refused},
    process::Running,
    programs, ready,
    skip::skip,
    world::Role,
    zone,
};

#[test]
fn names_are_learned_from_dnsmasq_too() {
    if !ready() {
        return;
    }
    let world = World::builder().resolver(Resolver::Dnsmasq).build();
    let _agent = world
        .agent(&policy(
            "allow: [{ names: [api.example.com, alias.example.com, \"*.cdn.example.net\"] }]\n\
             deny: [{ names: [evil.cdn.example.net] }]",
        ))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        for server in zone::RESOLVER {
            for (name, owner, is_allowed) in [
                ("api.example.com", "api.example.com", true),
                ("alias.example.com", "end.example.org", true),
                ("www.cdn.example.net", "www.cdn.example.net", true),
                ("cdn.example.net", "cdn.example.net", false),
                ("evil.cdn.example.net", "evil.cdn.example.net", false),
                ("forbidden.example.org", "forbidden.example.org", false),
            ] {
                client.resolve_at(name, v6, server);
                let attempt = client.connect(zone::address(owner, v6), 80);
                assert_eq!(attempt.ok, is_allowed, "{name} by {server}: {attempt:?}");
            }
        }
    }
}

#[test]
fn a_libc_resolver_and_curl_reach_allowed_names_only() {
    if !ready() {
        return;
    }
    for resolver in [Resolver::Unbound, Resolver::Dnsmasq] {
        let world = World::builder().resolver(resolver).build();
        let _agent = world
            .agent(&policy("allow: [{ names: [api.example.com] }]"))
            .start();
        let client = world.workload("client");
        let good = client.run_with_resolver("curl", &["-sS", "-m", "5", "http://api.example.com/"]);
        assert_eq!(good.code(), Some(0), "{}", good.shown());
        assert!(good.stdout.starts_with("hello from "), "{}", good.shown());
        let bad =
            client.run_with_resolver("curl", &["-sS", "-m", "5", "http://forbidden.example.org/"]);
        assert_ne!(bad.code(), Some(0), "{}", bad.shown());
    }
}

#[test]
fn dig_gets_its_answers_unchanged() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .start();
    let client = world.workload("client");
    for (name, address) in [
        ("api.example.com", "10.78.1.1"),
        ("forbidden.example.org", "10.78.9.1"),
    ] {
        for how in ["+notcp", "+tcp"] {
            let at = format!("@{}", zone::RESOLVER[0]);
            let output = client.run("dig", &[&at, "+short", how, name]);
            assert_eq!(output.stdout.trim(), address, "{}", output.shown());
        }
    }
    reached(&client.connect("10.78.1.1", 80));
    refused(&client.connect("10.78.9.1", 80));
    assert!(eventually(Duration::from_secs(1), || world
        .web_saw("tcp 10.78.1.1:80")
        == 1));
}

/// Where the local stub listens, as systemd-resolved does.
const STUB: &str = "127.0.0.53";
/// A cluster's DNS service, which the node translates.
const SERVICE: &str = "10.96.0.10";

#[test]
fn names_resolved_by_a_stub_on_the_node_are_open_to_its_processes() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "allow: [{ names: [api.example.com, alias.example.com] }]",
        ))
        .start();
    let errors = world.dir().join("stub.err");
    let program = programs::find("dnsmasq").unwrap();
    let mut command = world.workload("stub").command(program);
    command.args([
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--group=root",
        "--bind-interfaces",
    ]);
    command.arg(format!("--listen-address={STUB}"));
    command.arg(format!("--server={}", zone::RESOLVER[0]));
    let _stub = Running::start(&mut command, &errors).unwrap();
    let client = world.workload("client");
    let first = ["api.example.com", "--server", STUB, "--timeout", "300"];
    assert!(eventually(Duration::from_secs(5), || client
        .lookup(&first)
        .error
        .is_none()));
    for v6 in [false, true] {
        client.resolve_at("api.example.com", v6, STUB);
        reached(&client.connect(zone::address("api.example.com", v6), 80));
        client.resolve_at("alias.example.com", v6, STUB);
        reached(&client.connect(zone::address("end.example.org", v6), 80));
        client.resolve_at("forbidden.example.org", v6, STUB);
        refused(&client.connect(zone::address("forbidden.example.org", v6), 80));
    }
}

/// Resolves names in these ways through the service's address, and connects.
fn learned_through_a_service(ways: &[(&str, &[&str])]) {
    if !ready() {
        return;
    }
    let world = World::new();
    // Rules as kube-proxy makes them for a ClusterIP, for processes of the node.
    let rules = format!(
        "table ip service {{ chain output {{ type nat hook output priority -100; \
         ip daddr {SERVICE} udp dport 53 dnat to {0}; ip daddr {SERVICE} tcp dport 53 dnat to {0}; }}; }}",
        zone::RESOLVER[0]
    );
    if !translates(&world, &rules) {
        return;
    }
    let route = format!("route add {SERVICE} via {}\n", zone::WEB[0]);
    world.namespace(Role::Node).ip(&route).unwrap();
    let agent = world
        .agent(&policy(
            "allow: [{ names: [api.example.com, \"*.cdn.example.net\"] }]",
        ))
        .resolver(SERVICE)
        .start();
    let client = world.workload("client");
    learned(&agent, &client, SERVICE, ways);
}

/// Resolves names in these ways and connects; a forbidden one too.
fn learned(agent: &Agent, client: &Workload, server: &str, ways: &[(&str, &[&str])]) {
    for (name, how) in ways {
        let (lookup, moved) =
            agent.counted(|| client.lookup(&[&[name, "--server", server], *how].concat()));
        assert!(lookup.error.is_none(), "{how:?} {lookup:?} {moved:?}");
        let attempt = client.connect(zone::address(name, false), 80);
        assert!(attempt.ok, "{how:?} {attempt:?} {:?}", moved.dns);
    }
    client.lookup(&["forbidden.example.org", "--server", server]);
    refused(&client.connect(zone::address("forbidden.example.org", false), 80));
}

/// Loads address translation into the node; false, with the reason printed, where the kernel has none.
fn translates(world: &World, rules: &str) -> bool {
    let output = world.outsider(Role::Node).run("nft", &[rules]);
    output.code() == Some(0) || skip(&format!("no NAT in this kernel: {}", output.stderr.trim()))
}

#[test]
fn names_resolved_through_a_translated_service_address_are_learned() {
    learned_through_a_service(&[
        ("api.example.com", &[]),
        ("www.cdn.example.net", &["--tcp"]),
    ]);
}

#[test]
fn an_unconnected_socket_learns_through_a_translated_service_address() {
    learned_through_a_service(&[("api.example.com", &["--unconnected"])]);
}

#[test]
fn names_resolved_through_a_container_engines_resolver_are_learned() {
    if !ready() {
        return;
    }
    let world = World::new();
    // Docker's embedded resolver: 127.0.0.11:53 is translated to another port of the same address.
    let inside = "127.0.0.11";
    let rules = format!(
        "table ip docker {{ chain output {{ type nat hook output priority -100; \
         ip daddr {inside} udp dport 53 dnat to {inside}:10053; }}; }}"
    );
    if !translates(&world, &rules) {
        return;
    }
    let program = programs::find("dnsmasq").unwrap();
    // The engine's process is none of the workload's.
    let mut command = world.helper(Role::Node, program).unwrap();
    command.args([
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--group=root",
        "--bind-interfaces",
        "--port=10053",
    ]);
    command.arg(format!("--listen-address={inside}"));
    command.arg(format!("--server={}", zone::RESOLVER[0]));
    let _engine = Running::start(&mut command, &world.dir().join("engine.err")).unwrap();
    let outside = world.outsider(Role::Node);
    let first = ["api.example.com", "--server", inside, "--timeout", "300"];
    assert!(eventually(Duration::from_secs(5), || outside
        .lookup(&first)
        .error
        .is_none()));
    let agent = world
        .agent(&policy(
            "allow: [{ names: [api.example.com, \"*.cdn.example.net\"] }]",
        ))
        .resolver(inside)
        .start();
    let client = world.workload("client");
    learned(
        &agent,
        &client,
        inside,
        &[
            ("api.example.com", &[]),
            ("www.cdn.example.net", &["--unconnected"]),
        ],
    );
}
