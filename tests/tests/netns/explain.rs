//! `explain`: its answer, and the kernel's verdict after it.

use std::{net::IpAddr, thread, time::Duration};

use egress_tests::{
    Agent, Workload, World,
    agent::Explanation,
    eventually,
    expect::{ip, policy, reached, refused},
    forge::Kind,
    ready,
    world::Role,
    zone,
};

const SPEC: &str = "ttl: { min: 3s, grace: 0s, max: 1h }
allow:
- names: [api.example.com, short.example.com, new1.example.com, \"*.cdn.example.net\", \"*.forge.example.com\", \"*.pool.example.com\"]
  ports: [\"80/tcp\"]
- { cidrs: [10.79.0.0/16], ports: [\"80/tcp\"] }
- { cidrs: [10.77.0.54/32], ports: [\"53/udp\"] }
deny:
- names: [evil.cdn.example.net, evil2.cdn.example.net]
- cidrs: [10.79.99.0/24, 10.78.2.2/32]";

/// Explains a destination, then connects to `address`: both have to agree.
#[track_caller]
fn agree(agent: &Agent, client: &Workload, from: &str, to: &str, address: IpAddr) -> Explanation {
    let from = (from != "node").then_some(from);
    let explained = agent.explain(to, from);
    let attempt = client.connect(address, port_of(to));
    match explained.verdict.as_str() {
        "allowed" => reached(&attempt),
        "denied" => refused(&attempt),
        other => panic!("{other}: {explained:?}"),
    }
    explained
}

fn port_of(to: &str) -> u16 {
    to.rsplit(':').next().unwrap().parse().unwrap()
}

/// The kernel refused this for this reason.
#[track_caller]
fn said(agent: &Agent, from: &str, to: &str, address: IpAddr, reason: &str) {
    let flow = agent.flow_to(address, |flow| {
        flow.scope == from && flow.port == Some(port_of(to)) && flow.verdict == "denied"
    });
    assert_eq!(
        flow.map(|flow| flow.reason).as_deref(),
        Some(reason),
        "{to}"
    );
}

#[test]
fn what_is_explained_is_what_the_kernel_does() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    world.start_probe(Role::Dns, &["forge-dns"]).unwrap();
    world
        .start_probe(Role::Dns, &["dns-server", "--zone", "pool.example.com"])
        .unwrap();
    let (node, one) = (world.workload("client"), world.workload("one"));
    let agent = world
        .agent(&policy(SPEC))
        .resolver(zone::FORGER)
        .scope("one", one.cgroup())
        .start();
    for name in [
        "api.example.com",
        "a.b.cdn.example.net",
        "cdn.example.net",
        "evil.cdn.example.net",
        "lure.cdn.example.net",
        "forbidden.example.org",
    ] {
        node.resolve(name, false);
    }
    let rebinding = Kind::Rebinding.name();
    node.lookup(&[&rebinding, "--server", zone::FORGER]);
    let lookup = node.lookup(&["n7.pool.example.com", "--server", zone::SERVER]);
    let untrusted = lookup.addresses[0];
    // Copies reach the agent a little later than the answers their sockets.
    let is_told = |to: &str| !agent.explain(to, None).causes[0].cause.contains("resolved");
    assert!(eventually(Duration::from_secs(3), || {
        is_told("n7.pool.example.com:80")
            && is_told(&format!("{rebinding}:80"))
            && agent.explain("forbidden.example.org:80", None).causes[0].cause == "nothing_near"
    }));

    let at = |name: &str| zone::address(name, false);
    let (api, forbidden) = (at("api.example.com"), at("forbidden.example.org"));
    let metadata = IpAddr::from(Kind::Rebinding.v4());
    // From, the destination that is asked about, its address, the reason, the first cause.
    let cases: &[(&str, &str, IpAddr, &str, &str)] = &[
        ("node", "api.example.com:80", api, "name_rule", ""),
        ("node", "10.78.1.1:80", api, "name_rule", ""),
        (
            "node",
            "api.example.com:443",
            api,
            "port_not_allowed",
            "other_ports",
        ),
        (
            "node",
            "10.78.1.1:443",
            api,
            "port_not_allowed",
            "other_ports",
        ),
        (
            "one",
            "api.example.com:80",
            api,
            "no_rule",
            "resolved_elsewhere",
        ),
        ("one", "10.78.1.1:80", api, "no_rule", "resolved_elsewhere"),
        (
            "node",
            "new1.example.com:80",
            at("new1.example.com"),
            "no_rule",
            "not_resolved",
        ),
        (
            "node",
            "cdn.example.net:80",
            at("cdn.example.net"),
            "no_rule",
            "apex",
        ),
        (
            "node",
            "evil.cdn.example.net:80",
            at("evil.cdn.example.net"),
            "no_rule",
            "deny_rule",
        ),
        (
            "node",
            "lure.cdn.example.net:80",
            at("evil2.cdn.example.net"),
            "no_rule",
            "alias_denied",
        ),
        (
            "node",
            "a.b.cdn.example.net:80",
            at("a.b.cdn.example.net"),
            "denied_cidr",
            "deny_rule",
        ),
        (
            "node",
            "forbidden.example.org:80",
            forbidden,
            "no_rule",
            "nothing_near",
        ),
        ("node", "10.78.9.1:80", forbidden, "no_rule", "nothing_near"),
        (
            "node",
            "10.78.200.1:80",
            ip("10.78.200.1"),
            "no_rule",
            "no_name",
        ),
        ("node", "10.79.1.1:80", ip("10.79.1.1"), "cidr_rule", ""),
        ("one", "10.79.1.1:80", ip("10.79.1.1"), "cidr_rule", ""),
        (
            "node",
            "10.79.1.1:443",
            ip("10.79.1.1"),
            "no_rule",
            "other_ports",
        ),
        (
            "node",
            "10.79.99.1:80",
            ip("10.79.99.1"),
            "denied_cidr",
            "deny_rule",
        ),
        (
            "node",
            &format!("{rebinding}:80"),
            metadata,
            "no_rule",
            "rebinding",
        ),
        (
            "node",
            "169.254.169.254:80",
            metadata,
            "no_rule",
            "rebinding",
        ),
        (
            "node",
            "n7.pool.example.com:80",
            untrusted,
            "no_rule",
            "untrusted_resolver",
        ),
    ];
    let mut denied = Vec::new();
    for (from, to, address, reason, cause) in cases {
        let client = if *from == "one" { &one } else { &node };
        let explained = agree(&agent, client, from, to, *address);
        assert_eq!(explained.reason, *reason, "{to} from {from}: {explained:?}");
        let first = explained.causes.first();
        let first = first.map_or("", |first| first.cause.as_str());
        assert_eq!(first, *cause, "{to} from {from}: {explained:?}");
        assert_eq!(explained.scope.as_deref(), Some(*from));
        if explained.verdict == "denied" {
            denied.push((*from, *to, *address, *reason));
        }
    }
    for (from, to, address, reason) in denied {
        said(&agent, from, to, address, reason);
    }
    let rule = agent.explain("api.example.com:80", None).rule.unwrap();
    assert_eq!(rule.rule, "policy/test allow[0] api.example.com 80/tcp");
    assert_eq!(rule.line, Some(7), "{rule:?}");

    node.resolve("short.example.com", false);
    let short = at("short.example.com");
    agree(&agent, &node, "node", "short.example.com:80", short);
    thread::sleep(Duration::from_millis(3100));
    let explained = agree(&agent, &node, "node", "short.example.com:80", short);
    assert_eq!(
        (
            explained.reason.as_str(),
            explained.causes[0].cause.as_str()
        ),
        ("expired", "expired")
    );
    let resolver = agent.explain(&format!("{}:53/udp", zone::RESOLVER[0]), None);
    assert_eq!(resolver.reason, "lifeline");

    // The line that is offered is what was missing.
    let line = agent.explain("10.78.9.1:80", None).add.unwrap();
    assert!(line.contains("forbidden.example.org"), "{line}");
    agent.reload(&policy(
        &SPEC.replace("allow:\n", &format!("allow:\n{line}\n")),
    ));
    node.resolve("forbidden.example.org", false);
    let explained = agree(&agent, &node, "node", "forbidden.example.org:80", forbidden);
    assert_eq!(explained.reason, "name_rule");
}

#[test]
fn the_sender_is_a_scope_a_process_or_a_cgroup() {
    if !ready() {
        return;
    }
    let world = World::new();
    let (node, one) = (world.workload("client"), world.workload("one"));
    let below = world.workload("one/below");
    let agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .scope("one", one.cgroup())
        .start();
    one.resolve("api.example.com", false);
    reached(&below.connect(zone::address("api.example.com", false), 80));
    let serve = |workload: &Workload| {
        let mut server = workload.background(&["serve", "--tcp", "7000"]);
        let is_ready = |line: &str| line == "ready";
        server
            .wait_for_line(0, Duration::from_secs(5), is_ready)
            .unwrap();
        server
    };
    let inside = serve(&below);
    let pid = inside.pid().to_string();
    for from in [
        "one",
        &one.cgroup().display().to_string(),
        &below.cgroup().display().to_string(),
        &pid,
    ] {
        let explained = agent.explain("api.example.com:80", Some(from));
        assert_eq!(
            (explained.scope.as_deref(), explained.verdict.as_str()),
            (Some("one"), "allowed"),
            "{from}"
        );
    }
    for from in ["node", &node.cgroup().display().to_string()] {
        let explained = agent.explain("api.example.com:80", Some(from));
        assert_eq!(
            (explained.scope.as_deref(), explained.verdict.as_str()),
            (Some("node"), "denied"),
            "{from}"
        );
        assert_eq!(explained.causes[0].cause, "resolved_elsewhere");
    }
    let outside = world.outsider(Role::Node).cgroup().display().to_string();
    for (args, says) in [
        (
            ["api.example.com", "--from", "two"],
            "no scope is called \"two\"; write one of node, one",
        ),
        (
            ["api.example.com", "--from", "/no/such/cgroup"],
            "there is no cgroup",
        ),
        (
            ["api.example.com", "--from", outside.as_str()],
            "whatever it sends passes",
        ),
        (
            ["api.example.com", "--from", "4294967295"],
            "there is no such process",
        ),
        (["*.example.com", "--from", "node"], "is not a destination"),
    ] {
        let output = agent.cli(&[&["explain"], &args[..]].concat()).unwrap();
        assert_eq!(output.code(), Some(2), "{}", output.shown());
        assert!(output.stderr.contains(says), "{}", output.shown());
    }
}

#[test]
fn a_full_table_is_named() {
    if !ready() {
        return;
    }
    let world = World::new();
    let client = world.workload("client");
    let agent = world
        .agent(&policy(
            "allow: [{ names: [api.example.com, other.example.com] }]",
        ))
        .arg("--max-learned")
        .arg("1")
        .start();
    client.resolve("api.example.com", false);
    client.resolve("other.example.com", false);
    assert!(
        eventually(Duration::from_secs(3), || {
            agent
                .explain("other.example.com:80", None)
                .causes
                .iter()
                .any(|one| one.cause == "no_room")
        }),
        "{:?}",
        agent.explain("other.example.com:80", None)
    );
    let other = zone::address("other.example.com", false);
    let explained = agree(&agent, &client, "node", "other.example.com:80", other);
    assert_eq!(explained.reason, "table_full");
    // Its oldest made room meanwhile: asked again, the name counts.
    client.resolve("other.example.com", false);
    let explained = agree(&agent, &client, "node", "other.example.com:80", other);
    assert_eq!(explained.reason, "name_rule");
}

#[test]
fn in_audit_mode_it_says_what_flows_then_shows() {
    if !ready() {
        return;
    }
    let world = World::new();
    let client = world.workload("client");
    let spec = "ttl: { min: 1s, grace: 0s, max: 1h }
allow:
- { names: [api.example.com, short.example.com], ports: [\"80/tcp\"] }
- { cidrs: [10.79.0.0/16], ports: [\"80/tcp\"] }
deny: [{ cidrs: [10.79.99.0/24] }]";
    let agent = world
        .agent(&policy(&format!("mode: audit\n{spec}")))
        .start();
    for name in [
        "short.example.com",
        "api.example.com",
        "forbidden.example.org",
    ] {
        client.resolve(name, false);
    }
    let is_told = || {
        let explained = agent.explain("forbidden.example.org:80", None);
        explained.causes[0].cause == "nothing_near"
    };
    assert!(eventually(Duration::from_secs(3), is_told));
    thread::sleep(Duration::from_millis(1100));
    let at = |name: &str| zone::address(name, false);
    let (api, forbidden) = (at("api.example.com"), at("forbidden.example.org"));
    // The destination that is asked about, true if rules allow it, its address, the reason.
    let cases = [
        ("api.example.com:80", true, api, "name_rule"),
        ("api.example.com:443", false, api, "port_not_allowed"),
        ("forbidden.example.org:80", false, forbidden, "no_rule"),
        ("10.78.9.2:80", false, ip("10.78.9.2"), "no_rule"),
        (
            "short.example.com:80",
            false,
            at("short.example.com"),
            "expired",
        ),
        ("10.79.1.1:80", true, ip("10.79.1.1"), "cidr_rule"),
        ("10.79.1.1:443", false, ip("10.79.1.1"), "no_rule"),
        ("10.79.99.1:80", false, ip("10.79.99.1"), "denied_cidr"),
    ];
    for (to, is_allowed, address, reason) in cases {
        let explained = agent.explain(to, None);
        let verdict = if is_allowed { "allowed" } else { "would_deny" };
        assert_eq!(
            (explained.verdict.as_str(), explained.reason.as_str()),
            (verdict, reason),
            "{to}"
        );
        assert_eq!(explained.causes.is_empty(), is_allowed, "{explained:?}");
        // Whatever the verdict, audit lets it pass.
        reached(&client.connect(address, port_of(to)));
        let flow = agent.flow_to(address, |flow| {
            flow.port == Some(port_of(to)) && flow.verdict == verdict
        });
        let flow = flow.unwrap_or_else(|| panic!("no flow to {to} in {:?}", agent.flows()));
        assert_eq!(flow.reason, reason, "{to}");
        assert_eq!(flow.rule, explained.rule.map(|rule| rule.rule), "{to}");
    }

    // Enforced, the same is refused.
    agent.reload(&policy(spec));
    for (to, is_allowed, address, _) in cases {
        let explained = agree(&agent, &client, "node", to, address);
        assert_eq!(explained.verdict == "allowed", is_allowed, "{to}");
    }
}
