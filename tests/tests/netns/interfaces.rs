//! Packets that pass no socket hook: forwarded ones. Frames past the IP stack are in the bypass suite.

use std::fs;

use egress_tests::{
    World,
    expect::{policy, reached, refused},
    ready,
    report::Attempt,
    world::Role,
    zone,
};

#[test]
fn sockets_of_the_node_are_judged_once_and_keep_their_names() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .interface("eth0")
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        let address = zone::address("api.example.com", v6);
        client.resolve("api.example.com", v6);
        let (_, moved) = agent.counted(|| {
            reached(&client.connect(address, 80));
            reached(&client.udp(address, 443, false));
            reached(&client.ping(address));
        });
        assert_eq!(moved.denied, 0, "{moved:?}");
        refused(&client.connect(zone::address("forbidden.example.org", v6), 80));
        reached(&world.outsider(Role::Web).ping(zone::NODE[usize::from(v6)]));
    }
}

#[test]
fn forwarded_packets_are_judged_at_the_interface_and_their_replies_come_back() {
    if !ready() {
        return;
    }
    let world = World::builder().pod().build();
    let agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16, \"fd79::/32\"] }]"))
        .interface("eth0")
        .start();
    let pod = world.outsider(Role::Pod);
    for (allowed, denied) in [("10.79.0.1", "10.78.9.1"), ("fd79::1", "fd78::9:1")] {
        let (_, moved) = agent.counted(|| {
            reached(&pod.connect(allowed, 80));
            reached(&pod.udp(allowed, 443, true));
            reached(&pod.ping(allowed));
        });
        assert_eq!(moved.denied, 0, "{moved:?}");
        let (attempts, moved) = agent.counted(|| {
            [
                pod.probe::<Attempt>(&["connect", denied, "80", "--timeout", "300"]),
                pod.probe(&["udp", denied, "443", "--timeout", "300"]),
                pod.probe(&["ping", denied, "--timeout", "300"]),
            ]
        });
        assert!(attempts.iter().all(|attempt| !attempt.ok), "{attempts:?}");
        assert!(moved.denied_by("tc_egress") >= 3, "{moved:?}");
    }
    assert_eq!(world.web_saw("tcp 10.78.9.1:80"), 0);
}

#[test]
fn inbound_flows_to_a_pod_behind_the_node_are_answered() {
    if !ready() {
        return;
    }
    let mut world = World::builder().pod().build();
    world
        .start_probe(Role::Pod, &["serve", "--tcp", "7000", "--udp", "7001"])
        .unwrap();
    let agent = world.agent(&policy("allow: []")).interface("eth0").start();
    let outside = world.outsider(Role::Web);
    for pod in zone::POD {
        let (_, moved) = agent.counted(|| {
            reached(&outside.connect(pod, 7000));
            reached(&outside.udp(pod, 7001, true));
            reached(&outside.ping(pod));
        });
        assert_eq!(moved.denied, 0, "{moved:?}");
    }
    // The twin: the pod may not begin.
    let attempt: Attempt =
        world
            .outsider(Role::Pod)
            .probe(&["connect", zone::WEB[0], "80", "--timeout", "300"]);
    assert!(!attempt.ok, "{attempt:?}");
}

#[test]
fn an_interface_that_does_not_exist_is_an_error() {
    if !ready() {
        return;
    }
    let world = World::new();
    let options = world.agent(&policy("allow: []")).interface("nowhere0");
    let output = options.run_to_end();
    assert_ne!(output.code(), Some(0));
    assert!(
        output.stderr.contains("nowhere0") || world_log(&world).contains("nowhere0"),
        "{}",
        output.shown()
    );
    let client = world.workload("client");
    reached(&client.connect("10.78.9.1", 80));
    let _ = egress_tests::leftovers::remove_pins(options.pins());
}

fn world_log(world: &World) -> String {
    fs::read_to_string(world.dir().join("agent.log")).unwrap_or_default()
}
