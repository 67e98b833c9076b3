//! Scopes do not profit from each other.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::wildcard_enum_match_arm,
    reason = "tests panic"
)]

use egress_tests::{
    World,
    expect::{counted, policy, reached, refused},
    ready, zone,
};

#[test]
fn a_scope_gains_nothing_from_what_another_resolved() {
    if !ready() {
        return;
    }
    let world = World::new();
    let (one, other, node) = (
        world.workload("one"),
        world.workload("other"),
        world.workload("node"),
    );
    let agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .scope("one", one.cgroup())
        .scope("other", other.cgroup())
        .start();
    for v6 in [false, true] {
        let api = zone::address("api.example.com", v6);
        one.resolve("api.example.com", v6);
        reached(&one.connect(api, 80));
        reached(&one.udp(api, 443, false));
        for bystander in [&other, &node] {
            let (attempt, moved) = agent.counted(|| bystander.connect(api, 80));
            refused(&attempt);
            counted(&moved, "no_rule");
            refused(&bystander.udp(api, 443, false));
            refused(&bystander.ping(api));
        }
        other.resolve("api.example.com", v6);
        reached(&other.connect(api, 80));
        refused(&node.connect(api, 80));
        node.resolve("api.example.com", v6);
        reached(&node.connect(api, 80));
    }
    // Each counts for itself: for each version three flows were allowed of `one`, and three refused of each bystander.
    let counters = agent.counters();
    let of = |name: &str| {
        let mut workloads = counters.by_workload.iter();
        let found = workloads.find(|workload| workload.workload == name);
        let found = found.unwrap_or_else(|| panic!("{name}: {:?}", counters.by_workload));
        (found.allowed, found.denied)
    };
    assert!(of("one").0 >= 4 && of("one").1 == 0, "{:?}", of("one"));
    assert!(
        of("other").0 >= 2 && of("other").1 >= 6,
        "{:?}",
        of("other")
    );
    assert!(of("node").0 >= 2 && of("node").1 >= 8, "{:?}", of("node"));
    let learned = agent.learned();
    let mut scopes: Vec<_> = learned.iter().map(|entry| entry.scope.as_str()).collect();
    scopes.sort_unstable();
    scopes.dedup();
    assert_eq!(scopes.len(), 3, "{learned:?}");
    assert!(
        scopes.contains(&"one") && scopes.contains(&"other"),
        "{scopes:?}"
    );
}

#[test]
fn processes_below_a_scope_belong_to_it_and_processes_of_the_node_share_theirs() {
    if !ready() {
        return;
    }
    let world = World::new();
    let one = world.workload("one");
    let (parent, child) = (world.workload("one/a"), world.workload("one/a/b"));
    let (first, second) = (world.workload("first"), world.workload("second"));
    let _agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .scope("one", one.cgroup())
        .start();
    let api = zone::address("api.example.com", false);
    child.resolve("api.example.com", false);
    reached(&parent.connect(api, 80));
    reached(&one.connect(api, 80));
    refused(&first.connect(api, 80));
    // One process of the node asks for the other, as a local stub resolver does.
    first.resolve("api.example.com", false);
    reached(&second.connect(api, 80));
}
