//! `dns.queries: allowed`: only queries for allowed names leave.

use std::time::Duration;

use egress_tests::{
    Agent, Workload, World, eventually,
    expect::{counted, policy, reached, refused, tallied},
    ready,
    report::{Attempt, Lookup},
    zone,
};

const RESTRICTED: &str = "dns: { queries: allowed }\n\
    allow: [{ names: [api.example.com, \"*.cdn.example.net\"] }]\n\
    deny: [{ names: [evil.cdn.example.net] }]";

fn is_refused(lookup: &Lookup) -> bool {
    lookup
        .error
        .as_ref()
        .is_some_and(|error| error.contains("Operation not permitted"))
}

fn ask(client: &Workload, name: &str, how: &[&str]) -> Lookup {
    client.lookup(&[&[name, "--server", zone::RESOLVER[0]], how].concat())
}

fn is_reported(agent: &Agent, name: &str) -> bool {
    eventually(Duration::from_secs(2), || {
        agent
            .flows()
            .iter()
            .any(|flow| flow.reason == "query_not_allowed" && flow.names == [name])
    })
}

#[test]
fn only_queries_for_allowed_names_leave_and_others_are_refused_at_the_socket() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(RESTRICTED))
        .arg("--search-domain")
        .arg("svc.cluster.local")
        .start();
    let client = world.workload("client");
    for name in ["api.example.com", "www.cdn.example.net"] {
        let lookup = ask(&client, name, &[]);
        assert!(lookup.error.is_none(), "{name}: {lookup:?}");
        reached(&client.connect(zone::address(name, false), 80));
    }
    // The twin: the same resolver, the same moment.
    for name in [
        "forbidden.example.org",
        "data.tunnel.example.org",
        "evil.cdn.example.net",
        "cdn.example.net",
    ] {
        let (lookup, moved) = agent.counted(|| ask(&client, name, &[]));
        assert!(is_refused(&lookup), "{name}: {lookup:?}");
        counted(&moved, "query_not_allowed");
        tallied(&moved, "dns_query_refused");
        assert!(is_reported(&agent, name), "{name}: {:?}", agent.flows());
    }
    // Every way to ask: an unconnected socket, another type, capitals, EDNS by dig.
    let lookup = ask(&client, "FORBIDDEN.example.org", &["--type", "AAAA"]);
    assert!(is_refused(&lookup), "{lookup:?}");
    let lookup = ask(&client, "API.example.COM", &["--type", "AAAA"]);
    assert!(lookup.error.is_none(), "{lookup:?}");
    // A name that a search list completes may be asked for: the answer is that there is none.
    let lookup = ask(&client, "api.example.com.shop.svc.cluster.local", &[]);
    assert!(!is_refused(&lookup), "{lookup:?}");
    let lookup = ask(&client, "svc.cluster.local.example.org", &[]);
    assert!(is_refused(&lookup), "{lookup:?}");
}

#[test]
fn queries_over_tcp_are_judged_by_their_name_too() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy(RESTRICTED)).start();
    let client = world.workload("client");
    let lookup = ask(&client, "api.example.com", &["--tcp"]);
    assert!(lookup.error.is_none(), "{lookup:?}");
    let (lookup, moved) = agent.counted(|| {
        ask(
            &client,
            "forbidden.example.org",
            &["--tcp", "--timeout", "400"],
        )
    });
    assert!(lookup.error.is_some(), "{lookup:?}");
    counted(&moved, "query_not_allowed");
    assert!(is_reported(&agent, "forbidden.example.org"));
}

#[test]
fn a_query_in_segments_of_one_byte_is_judged_as_a_whole() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy(RESTRICTED)).start();
    let client = world.workload("client");
    let lookup = ask(&client, "api.example.com", &["--tcp", "--split"]);
    assert!(lookup.error.is_none(), "{lookup:?}");
    reached(&client.connect(zone::address("api.example.com", false), 80));
    let how = ["--tcp", "--split", "--timeout", "400"];
    let (lookup, moved) = agent.counted(|| ask(&client, "forbidden.example.org", &how));
    assert!(lookup.error.is_some(), "{lookup:?}");
    counted(&moved, "query_not_allowed");
    tallied(&moved, "dns_query_refused");
    assert!(is_reported(&agent, "forbidden.example.org"));
}

#[test]
fn options_of_a_query_are_bounded() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy(RESTRICTED)).start();
    let client = world.workload("client");
    let at = format!("@{}", zone::RESOLVER[0]);
    let dig = |how: &[&str]| {
        let fixed = ["+short", "+tries=1", "+timeout=1", &at, "api.example.com"];
        client.run("dig", &[&fixed[..], how].concat())
    };
    // A cookie and a padding, as clients send them, by datagram and stream.
    for how in [&["+padding=128"][..], &["+padding=128", "+tcp"]] {
        let output = dig(how);
        assert_eq!(output.stdout.trim(), "10.78.1.1", "{}", output.shown());
    }
    let (output, moved) = agent.counted(|| dig(&["+padding=512"]));
    assert_ne!(output.stdout.trim(), "10.78.1.1", "{}", output.shown());
    counted(&moved, "query_not_allowed");
}

#[test]
fn only_trusted_resolvers_may_be_asked() {
    if !ready() {
        return;
    }
    let world = World::new();
    let spec = "allow: [{ names: [api.example.com] }, { cidrs: [10.77.0.66/32] }]";
    // A rule for its address lets a server be asked, unless queries are restricted.
    for (restricted, reason) in [(false, "cidr_rule"), (true, "query_not_allowed")] {
        let spec = if restricted {
            format!("dns: {{ queries: allowed }}\n{spec}")
        } else {
            spec.to_owned()
        };
        let agent = world.agent(&policy(&spec)).start();
        let client = world.workload("client");
        let (lookup, moved) = agent.counted(|| {
            client.lookup(&[
                "api.example.com",
                "--server",
                zone::STRANGER,
                "--timeout",
                "300",
            ])
        });
        assert_eq!(is_refused(&lookup), restricted, "{lookup:?}");
        counted(&moved, reason);
        assert!(ask(&client, "api.example.com", &[]).error.is_none());
    }
}

#[test]
fn audit_reports_queries_and_lets_them_pass() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(&format!("mode: audit\n{RESTRICTED}")))
        .start();
    let client = world.workload("client");
    let lookup = ask(&client, "forbidden.example.org", &[]);
    assert!(lookup.error.is_none(), "{lookup:?}");
    assert!(is_reported(&agent, "forbidden.example.org"));
    let lookup = ask(&client, "api.example.com", &[]);
    assert!(lookup.error.is_none(), "{lookup:?}");
    assert!(agent.knows(zone::address("api.example.com", false)));
}

#[test]
fn a_query_for_a_stranger_leaves_from_no_port() {
    if !ready() {
        return;
    }
    let world = World::new();
    let spec = "dns: { queries: allowed }\nallow: [{ cidrs: [0.0.0.0/0, \"::/0\"], ports: [\"1-65535/udp\"] }]";
    let _agent = world.agent(&policy(spec)).start();
    let client = world.workload("client");
    let send = |address: &str, port: &str, from: &str, text: &str| {
        let words = [
            "udp",
            address,
            port,
            "--from-port",
            from,
            "--text",
            text,
            "--timeout",
            "300",
        ];
        client.probe::<Attempt>(&words)
    };
    for address in zone::WEB {
        for from in ["0", "53"] {
            refused(&send(address, "53", from, "data of a query"));
            reached(&send(address, "9000", from, "data of a query"));
        }
        // The twin: a server may answer a caller at that port, with a message that is a response (the third byte's first bit).
        let answer = send(address, "53", "53", "id\u{80}of an answer");
        assert_eq!(
            (answer.ok, answer.stage.as_str()),
            (false, "receive"),
            "{answer:?}"
        );
    }
}
