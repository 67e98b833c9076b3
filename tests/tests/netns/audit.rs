//! Audit mode: the real verdict is reported, and the packet passes.

use std::time::Duration;

use egress_tests::{
    Agent, World,
    expect::{counted, policy, reached, refused},
    ready,
    report::Attempt,
    world::Role,
    zone,
};

fn everything_passes(world: &World, agent: &Agent) {
    let client = world.workload("client");
    for v6 in [false, true] {
        let address = zone::address("forbidden.example.org", v6);
        let (_, moved) = agent.counted(|| {
            reached(&client.connect(address, 80));
            reached(&client.udp(address, 443, true));
            reached(&client.udp(address, 443, false));
            reached(&client.ping(address));
        });
        assert!(moved.would_deny >= 4, "{moved:?}");
        assert_eq!(moved.denied, 0, "{moved:?}");
        counted(&moved, "no_rule");
        let flow = agent.flow_to(address, |flow| flow.verdict == "would_deny");
        assert!(flow.is_some_and(|flow| flow.reason == "no_rule"));
        // An allowed flow is not reported as a denial.
        client.resolve("api.example.com", v6);
        let (_, moved) = agent.counted(|| {
            reached(&client.connect(zone::address("api.example.com", v6), 80));
        });
        assert_eq!((moved.would_deny, moved.denied), (0, 0), "{moved:?}");
        counted(&moved, "name_rule");
    }
    assert_eq!(agent.status().mode, "audit");
}

#[test]
fn an_auditing_policy_passes_everything_and_counts_what_it_would_deny() {
    if !ready() {
        return;
    }
    let world = World::new();
    let allow = "allow: [{ names: [api.example.com] }]";
    let agent = world
        .agent(&policy(&format!("mode: audit\n{allow}")))
        .start();
    everything_passes(&world, &agent);
    // The twin: the same policy, enforced.
    agent.reload(&policy(&format!("mode: enforce\n{allow}")));
    let client = world.workload("client");
    for v6 in [false, true] {
        refused(&client.connect(zone::address("forbidden.example.org", v6), 80));
        reached(&client.connect(zone::address("api.example.com", v6), 80));
    }
    assert_eq!(agent.status().mode, "enforce");
}

#[test]
fn the_mode_flag_overrides_the_policies() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "mode: enforce\nallow: [{ names: [api.example.com] }]",
        ))
        .mode("audit")
        .start();
    everything_passes(&world, &agent);
    drop(agent);
    let agent = world
        .agent(&policy("mode: audit\nallow: []"))
        .mode("enforce")
        .start();
    refused(&world.workload("client").connect("10.78.9.1", 80));
    assert_eq!(agent.status().mode, "enforce");
}

#[test]
fn a_flow_that_passes_is_counted_with_each_packet_and_reported_now_and_then() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy("mode: audit\nallow: []")).start();
    let client = world.workload("client");
    let address = zone::address("forbidden.example.org", false);
    let events = |agent: &Agent| {
        let flows = agent.flows().into_iter();
        flows.filter(|flow| flow.destination == address).count()
    };
    let (mut held, moved) = agent.counted(|| {
        let mut held = client.hold(address, 80);
        for _ in 0..4 {
            assert!(held.is_alive());
        }
        held
    });
    assert!(moved.would_deny >= 10, "{moved:?}");
    assert!(
        agent
            .flow_to(address, |flow| flow.port == Some(80))
            .is_some()
    );
    let before = events(&agent);
    assert!(before <= 2, "{before} events of one flow");
    // Another flow to the same place is another event.
    reached(&client.connect(address, 80));
    assert!(egress_tests::eventually(
        Duration::from_secs(10),
        || events(&agent) > before
    ));
    // Enforced, the flow is judged anew, and each denial is reported.
    agent.reload(&policy("mode: enforce\nallow: []"));
    assert!(held.breaks(Duration::from_secs(10)));
    let denied = agent.flow_to(address, |flow| flow.verdict == "denied");
    assert!(denied.is_some());
}

#[test]
fn what_a_socket_sent_under_audit_makes_its_answers_no_calls() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy("mode: audit\nallow: []")).start();
    let client = world.workload("client");
    let server = world.workload("server");
    let mut serving = server.background(&["serve", "--udp", "7001"]);
    let limit = Duration::from_secs(5);
    serving
        .wait_for_line(0, limit, |line| line == "ready")
        .unwrap();
    let outside = world.outsider(Role::Web);
    let ask = |address: &str, more: &[&str]| {
        let words = ["udp", address, "9000", "--from-port", "4000"];
        client.probe::<Attempt>(&[&words, more].concat())
    };
    // Each port once: the flow is the same with every socket that has it.
    for address in zone::WEB {
        for _ in 0..3 {
            let (attempt, moved) = agent.counted(|| ask(address, &[]));
            reached(&attempt);
            assert!(moved.would_deny > 0, "{moved:?}");
        }
    }
    for node in zone::NODE {
        reached(&outside.udp(node, 7001, false));
    }
    agent.reload(&policy("allow: []"));
    for address in zone::WEB {
        refused(&ask(address, &[]));
        refused(&ask(address, &["--connected"]));
    }
    // The twin: whoever was called answers under any policy.
    for node in zone::NODE {
        reached(&outside.udp(node, 7001, false));
    }
    agent.reload(&policy("allow: [{ cidrs: [0.0.0.0/0, \"::/0\"] }]"));
    for address in zone::WEB {
        reached(&ask(address, &[]));
    }
    agent.reload(&policy("allow: []"));
    for address in zone::WEB {
        refused(&ask(address, &[]));
    }
}

#[test]
fn what_a_pod_sent_under_audit_makes_its_answers_no_calls() {
    if !ready() {
        return;
    }
    let world = World::builder().pod().build();
    let agent = world
        .agent(&policy("mode: audit\nallow: []"))
        .interface("eth0")
        .start();
    let pod = world.outsider(Role::Pod);
    let ask =
        |address: &str| pod.probe::<Attempt>(&["udp", address, "9000", "--from-port", "4000"]);
    for address in ["10.78.9.1", "fd78::9:1"] {
        for _ in 0..3 {
            reached(&ask(address));
        }
    }
    agent.reload(&policy("allow: []"));
    for address in ["10.78.9.1", "fd78::9:1"] {
        let (attempt, moved) = agent.counted(|| ask(address));
        assert!(!attempt.ok, "{attempt:?}");
        counted(&moved, "no_rule");
    }
}
