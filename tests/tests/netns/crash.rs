//! The data plane without its agent.

use std::{thread, time::Duration};

use egress_tests::{
    Agent, World,
    expect::{policy, reached, refused},
    ready, zone,
};

/// With the agent gone: what was true stays true, and the kernel goes on learning and forgetting.
fn works_without_agent(end: impl FnOnce(&mut Agent)) {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world
        .agent(&policy(
            "ttl: { min: 1s, grace: 0s, max: 1h }\n\
             allow: [{ names: [api.example.com, new1.example.com, new2.example.com, new3.example.com] }]",
        ))
        .start();
    let client = world.workload("client");
    let api = zone::address("api.example.com", false);
    let forbidden = zone::address("forbidden.example.org", false);
    client.resolve("api.example.com", false);
    let mut tcp = client.hold(api, 80);
    let mut udp = client.hold_with(&[&api.to_string(), "443", "--udp"]);
    refused(&client.connect(forbidden, 80));
    let denied = agent.counters().denied;

    end(&mut agent);

    assert!(tcp.is_alive() && udp.is_alive(), "established flows go on");
    reached(&client.connect(api, 80));
    client.resolve("forbidden.example.org", false);
    refused(&client.connect(forbidden, 80));
    refused(&client.udp(forbidden, 443, false));
    for v6 in [false, true] {
        let new = zone::address("new1.example.com", v6);
        refused(&client.connect(new, 80));
        client.resolve("new1.example.com", v6);
        reached(&client.connect(new, 80));
    }
    client.resolve("new2.example.com", false);
    let short = zone::address("new2.example.com", false);
    reached(&client.connect(short, 80));
    thread::sleep(Duration::from_millis(1300));
    refused(&client.connect(short, 80));

    agent.start_again();
    assert!(tcp.is_alive() && udp.is_alive(), "and over the restart");
    reached(&client.connect(api, 80));
    reached(&client.connect(zone::address("new1.example.com", true), 80));
    refused(&client.connect(forbidden, 80));
    assert!(agent.counters().denied > denied, "counters go on");
    client.resolve("new3.example.com", false);
    reached(&client.connect(zone::address("new3.example.com", false), 80));
}

#[test]
fn a_killed_agent_takes_nothing_down_and_opens_nothing() {
    works_without_agent(Agent::kill);
}

#[test]
fn a_stopped_agent_takes_nothing_down_and_opens_nothing() {
    works_without_agent(Agent::stop);
}

#[test]
fn nothing_slips_through_while_the_agent_restarts() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .start();
    let client = world.workload("client");
    client.resolve("api.example.com", false);
    let api = zone::address("api.example.com", false);
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                reached(&client.connect(api, 80));
                refused(&client.connect("10.78.9.1", 80));
                refused(&client.udp("10.78.9.1", 443, false));
                rounds += 1;
            }
            rounds
        });
        for round in 0..4 {
            if round % 2 == 0 {
                agent.kill();
            } else {
                agent.stop();
            }
            agent.start_again();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let rounds = watcher.join().unwrap();
        assert!(rounds > 3, "{rounds}");
    });
    assert_eq!(world.web_saw("tcp 10.78.9.1:80"), 0);
}

#[test]
fn a_policy_that_changed_while_the_agent_was_down_applies_when_it_is_back() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.1.0/24] }]"))
        .start();
    let client = world.workload("client");
    let mut cut = client.hold("10.79.1.1", 80);
    agent.kill();
    std::fs::write(
        world.dir().join("policy.yaml"),
        policy("allow: [{ cidrs: [10.79.2.0/24] }]"),
    )
    .unwrap();
    reached(&client.connect("10.79.1.1", 80));
    refused(&client.connect("10.79.2.1", 80));
    agent.start_again();
    refused(&client.connect("10.79.1.1", 80));
    reached(&client.connect("10.79.2.1", 80));
    assert!(cut.breaks(Duration::from_secs(4)), "{:?}", cut.lines());
}
