//! Policies in audit beside policies that are enforced: flows that they would deny pass, and are reported.

use std::{net::IpAddr, thread, time::Duration};

use egress_tests::{
    Agent, World,
    agent::Counters,
    expect::{counted, policy, reached, refused},
    ready,
    world::Role,
    zone,
};

/// Two policies, `enforced` and `trial`, with these texts as their `spec`.
fn policies(enforced: &str, trial: &str) -> String {
    let enforced = policy(enforced).replace("name: test", "name: enforced");
    let trial = policy(trial).replace("name: test", "name: trial");
    format!("{enforced}---\n{trial}")
}

fn v4(name: &str) -> IpAddr {
    zone::address(name, false)
}

/// Packets and connects that `trial` would have denied, by the counters of its rules.
fn of_trial(counters: &Counters) -> u64 {
    let of_trial = |policy: &&egress_tests::agent::PolicyCount| policy.policy == "trial";
    let mut found = counters.by_policy.iter().filter(of_trial);
    found.next().map_or(0, |trial| trial.would_deny)
}

#[track_caller]
fn reported(agent: &Agent, address: IpAddr, port: u16, reason: &str) {
    let found = agent.flow_to(address, |flow| {
        flow.port == Some(port) && flow.verdict == "would_deny"
    });
    let flow = found.unwrap_or_else(|| panic!("no flow to {address}: {:?}", agent.flows()));
    let rule = flow.rule.clone().unwrap_or_default();
    assert!(
        flow.reason == reason && rule.starts_with("policy/trial deny["),
        "{flow:?}"
    );
}

#[test]
fn an_auditing_policy_beside_enforced_ones_takes_nothing_away_and_opens_nothing() {
    if !ready() {
        return;
    }
    let world = World::new();
    let enforced = "allow: [{ names: [api.example.com, new1.example.com, alias.example.com] }, \
                    { cidrs: [10.78.9.0/24, \"fd78::9:0/112\"] }]";
    let trial = "deny: [{ names: [new1.example.com, end.example.org] }, \
                 { cidrs: [10.78.9.1, \"fd78::9:1\"], ports: [80/tcp, 443/udp] }]\n\
                 allow: [{ names: [other.example.com] }]";
    let agent = world
        .agent(&policies(enforced, &format!("mode: audit\n{trial}")))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        for name in ["api", "new1", "alias", "other"] {
            client.resolve(&format!("{name}.example.com"), v6);
        }
        // Denied by name, by the name of an alias, by address.
        for (name, reason) in [
            ("new1.example.com", "audited_name"),
            ("end.example.org", "audited_name"),
            ("forbidden.example.org", "audited_cidr"),
        ] {
            let address = zone::address(name, v6);
            let (_, moved) = agent.counted(|| {
                reached(&client.connect(address, 80));
                reached(&client.udp(address, 443, true));
                reached(&client.udp(address, 443, false));
            });
            assert_eq!(moved.denied, 0, "{name}: {moved:?}");
            // Later packets of a flow are judged by the rule that allows it.
            assert_eq!(moved.reason(reason), 3, "{name}: {moved:?}");
            assert_eq!(moved.would_deny, 3, "{name}: {moved:?}");
            counted(&moved, "established_flow");
            assert_eq!(of_trial(&moved), 3, "{name}: {:?}", moved.by_policy);
            reported(&agent, address, 80, reason);
            reported(&agent, address, 443, reason);
        }
        let (_, moved) = agent.counted(|| {
            reached(&client.connect(zone::address("api.example.com", v6), 80));
            reached(&client.connect(zone::address("secret.example.org", v6), 80));
            reached(&client.udp(zone::address("forbidden.example.org", v6), 80, true));
            refused(&client.connect(zone::address("other.example.com", v6), 80));
        });
        assert_eq!(moved.would_deny, 0, "{moved:?}");
        assert_eq!(moved.denied, 1, "{moved:?}");
    }
    let status = agent.status();
    assert_eq!(status.mode, "mixed");
    let told: Vec<_> = status
        .policy
        .policies
        .iter()
        .map(|policy| (policy.name.as_str(), policy.mode.as_str(), policy.rules))
        .collect();
    assert_eq!(told, [("enforced", "enforce", 2), ("trial", "audit", 3)]);

    for (asked, reason) in [
        ("new1.example.com:80", "audited_name"),
        ("10.78.9.1:80", "audited_cidr"),
        ("10.78.7.1:80", "audited_name"),
    ] {
        let explained = agent.explain(asked, None);
        let rule = explained.rule.as_ref();
        let is_of_trial = rule.is_some_and(|rule| rule.rule.starts_with("policy/trial deny["));
        assert_eq!(
            (
                explained.verdict.as_str(),
                explained.reason.as_str(),
                is_of_trial
            ),
            ("would_deny", reason, true),
            "{explained:?}"
        );
        let cause = explained.causes.first().map(|cause| cause.cause.as_str());
        assert_eq!(cause, Some("audited_rule"), "{explained:?}");
    }

    let explained = agent.explain("other.example.com:80", None);
    let cause = explained.causes.first().map(|cause| cause.cause.as_str());
    assert_eq!(
        (explained.verdict.as_str(), cause),
        ("denied", Some("allowed_in_audit")),
        "{explained:?}"
    );

    // Enforced, it denies the flows that it reported.
    let since = status.policy.generation;
    agent.reload(&policies(enforced, trial));
    let status = agent.status();
    assert_eq!(status.mode, "enforce");
    let generations: Vec<_> = status
        .policy
        .policies
        .iter()
        .map(|one| one.generation)
        .collect();
    assert_eq!(generations, [since, status.policy.generation]);
    for name in [
        "new1.example.com",
        "end.example.org",
        "forbidden.example.org",
    ] {
        refused(&client.connect(v4(name), 80));
    }
    reached(&client.connect(v4("api.example.com"), 80));
    reached(&client.connect(v4("other.example.com"), 80));
}

#[test]
fn flows_that_an_audit_would_deny_go_on_as_others_do() {
    if !ready() {
        return;
    }
    let world = World::new();
    let enforced = "ttl: { min: 1s, grace: 0s, max: 1s }\nallow: [{ names: [short.example.com, api.example.com] }]";
    let agent = world.agent(&policies(enforced, "mode: audit")).start();
    let client = world.workload("client");
    let short = v4("short.example.com");
    client.resolve("short.example.com", false);
    let mut tcp = client.hold(short, 80);
    let mut udp = client.hold_with(&[&short.to_string(), "443", "--udp"]);
    // The policy comes while they are open, and the address with it.
    let trial = "mode: audit\ndeny: [{ names: [short.example.com] }]";
    agent.reload(&policies(enforced, trial));
    let (_, moved) = agent.counted(|| reached(&client.connect(short, 80)));
    counted(&moved, "audited_name");
    drop(client.hold(short, 8000));
    thread::sleep(Duration::from_millis(1500));
    assert!(tcp.is_alive(), "{:?}", tcp.lines());
    assert!(udp.is_alive(), "{:?}", udp.lines());
    // So do those that began under it, when it goes.
    client.resolve("short.example.com", false);
    let mut later = client.hold(short, 9000);
    thread::sleep(Duration::from_millis(1500));
    agent.reload(&policies(enforced, "mode: audit"));
    for flow in [&mut tcp, &mut udp, &mut later] {
        assert!(flow.is_alive(), "{:?}", flow.lines());
    }
    // Enforced, it ends them.
    agent.reload(&policies(
        enforced,
        "deny: [{ names: [short.example.com] }]",
    ));
    for flow in [&mut tcp, &mut udp, &mut later] {
        assert!(flow.breaks(Duration::from_secs(4)), "{:?}", flow.lines());
    }
}

#[test]
fn forwarded_packets_are_reported_and_pass_too() {
    if !ready() {
        return;
    }
    let world = World::builder().pod().build();
    let spec = "allow: [{ cidrs: [10.78.0.0/15, \"fd78::/15\"] }]";
    let trial = "mode: audit\ndeny: [{ cidrs: [10.78.9.1, \"fd78::9:1\"] }]";
    let agent = world
        .agent(&policies(spec, trial))
        .interface("eth0")
        .start();
    let pod = world.outsider(Role::Pod);
    for address in ["10.78.9.1", "fd78::9:1"] {
        let (_, moved) = agent.counted(|| {
            reached(&pod.connect(address, 80));
            reached(&pod.udp(address, 443, true));
        });
        assert_eq!(
            (moved.denied, moved.reason("audited_cidr")),
            (0, 2),
            "{moved:?}"
        );
        counted(&moved, "established_flow");
        assert_eq!(of_trial(&moved), 2, "{:?}", moved.by_policy);
    }
}

#[test]
fn names_with_as_many_ports_as_fit_share_an_address_whether_audited_or_not() {
    if !ready() {
        return;
    }
    let world = World::new();
    let ports = "[80/tcp, 81/tcp, 82/tcp, 83/tcp, 84/tcp, 85/tcp, 86/tcp, 443/udp]";
    let names = "names: [shared.cdn.example.net, evilshared.cdn.example.net]";
    let enforced =
        format!("ttl: {{ min: 1s, grace: 0s, max: 1s }}\nallow: [{{ {names}, ports: {ports} }}]");
    let trial = "mode: audit\ndeny: [{ names: [evilshared.cdn.example.net] }]";
    let agent = world.agent(&policies(&enforced, trial)).start();
    let client = world.workload("client");
    let address = v4("shared.cdn.example.net");
    assert_eq!(address, v4("evilshared.cdn.example.net"));
    for name in ["shared", "evilshared", "shared"] {
        client.resolve(&format!("{name}.cdn.example.net"), false);
        reached(&client.connect(address, 80));
        reached(&client.udp(address, 443, true));
        thread::sleep(Duration::from_millis(1200));
        refused(&client.connect(address, 81));
    }
    assert_eq!(agent.counters().dns("grants_full"), 0);
}
