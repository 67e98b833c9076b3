//! TCP flows that are older than the programs.

use std::time::Duration;

use egress_tests::{
    World,
    expect::{counted, policy, refused},
    ready,
    world::Role,
    zone,
};

#[test]
fn a_flow_older_than_the_programs_is_kept_and_counted() {
    if !ready() {
        return;
    }
    let world = World::new();
    let client = world.workload("client");
    for v6 in [false, true] {
        let address = zone::address("forbidden.example.org", v6);
        let mut flow = client.hold(address, 443);
        let agent = world.agent(&policy("allow: []")).start();
        let (alive, moved) = agent.counted(|| flow.is_alive());
        assert!(alive, "{:?}", flow.lines());
        counted(&moved, "preexisting_flow");
        assert_eq!(moved.denied, 0, "{moved:?}");
        // The twin: a new one to the same place.
        refused(&client.connect(address, 443));
    }
}

#[test]
fn an_inbound_flow_older_than_the_programs_is_kept() {
    if !ready() {
        return;
    }
    let world = World::new();
    let workload = world.workload("server");
    let mut server = workload.background(&["serve", "--tcp", "7000"]);
    server
        .wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
        .unwrap();
    let mut flow = world.outsider(Role::Web).hold(zone::NODE[0], 7000);
    let agent = world.agent(&policy("allow: []")).start();
    assert!(flow.is_alive(), "{:?}", flow.lines());
    assert_eq!(agent.counters().denied, 0, "{:?}", agent.counters());
    // Its listener is older too: what it accepts from now on is a reply all the same.
    let mut flow = world.outsider(Role::Web).hold(zone::NODE[1], 7000);
    assert!(flow.is_alive(), "{:?}", flow.lines());
}
