//! Scopes do not profit from each other.

use std::time::Duration;

use egress_tests::{
    Agent, World, eventually,
    expect::{counted, policy, reached, refused},
    ready,
    report::Storm,
    world::Role,
    zone,
};

/// How long the agent may take to see a cgroup, however little of the CPUs it gets.
const SOON: Duration = Duration::from_secs(1);
/// How long the kernel may take to let a cgroup go.
const LONG: Duration = Duration::from_secs(5);

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

/// State of a scope in `status`.
fn state(agent: &Agent, name: &str) -> String {
    let scopes = agent.status().scopes;
    let found = scopes.into_iter().find(|scope| scope.name == name);
    found.expect("the scope is told").state
}

#[test]
fn a_scope_whose_cgroup_comes_later_or_is_made_again_is_its_scope_at_once() {
    if !ready() {
        return;
    }
    let world = World::new();
    let path = world.judged().join("slice/web");
    let agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .scope("web", &path)
        .start();
    let node = world.workload("node");
    assert_eq!(state(&agent, "web"), "waiting");
    let api = zone::address("api.example.com", false);
    // Until it is there, nothing is in it; then it learns for itself.
    let web = world.workload("slice/web");
    assert!(eventually(SOON, || state(&agent, "web") == "bound"));
    web.resolve("api.example.com", false);
    reached(&web.connect(api, 80));
    refused(&node.connect(api, 80));
    let generation = agent.status().policy.generation;
    for round in 0..3 {
        assert!(eventually(LONG, || std::fs::remove_dir(&path).is_ok()));
        if round == 1 {
            // The folder above as well, as `systemctl daemon-reload` may do with an empty slice.
            std::fs::remove_dir(path.parent().unwrap()).unwrap();
        }
        if round == 2 {
            assert!(eventually(SOON, || state(&agent, "web") == "waiting"));
        }
        let web = world.workload("slice/web");
        // It is the same scope, and knows what it has learned.
        assert!(eventually(SOON, || web.connect(api, 80).ok), "{round}");
        refused(&node.connect(api, 80));
        assert_eq!(state(&agent, "web"), "bound");
    }
    assert_eq!(agent.status().policy.generation, generation);
    assert_eq!(agent.status().alarms, Vec::<String>::new());
}

#[test]
fn a_scope_that_can_never_be_there_is_refused() {
    if !ready() {
        return;
    }
    let world = World::new();
    let output = world
        .agent(&policy("allow: []"))
        .scope("web", &world.dir().join("no-cgroup"))
        .run_to_end();
    assert_eq!(output.code(), Some(2), "{}", output.shown());
    assert!(
        output.stderr.contains("--scope web=") && output.stderr.contains("cgroup v2"),
        "{}",
        output.shown()
    );
}

#[test]
fn a_scope_that_makes_flows_without_number_takes_none_from_another() {
    if !ready() {
        return;
    }
    let world = World::new();
    let (polite, hostile) = (world.workload("polite"), world.workload("hostile"));
    let _agent = world
        .agent(&policy("allow: [{ cidrs: [10.79.0.0/16] }]"))
        .scope("polite", polite.cgroup())
        .scope("hostile", hostile.cgroup())
        .start();
    // Servers that the policy allows nothing but answers, among them one of the hostile scope.
    let servers = [(&polite, "7001", 50), (&hostile, "7002", 150)];
    let outside = world.outsider(Role::Web);
    let mut running = Vec::new();
    for (workload, port, count) in servers {
        let mut server = workload.background(&["answer-late", port]);
        server
            .wait_for_line(0, LONG, |line| line == "ready")
            .unwrap();
        let from = server.lines().len();
        let called: Storm =
            outside.probe(&["call", zone::NODE[0], port, "--count", &count.to_string()]);
        assert_eq!(called.sent, count);
        let last = format!("called {count}");
        server
            .wait_for_line(from, LONG, |line| line == last)
            .unwrap();
        running.push(server);
    }
    let mut answered = |at: usize| {
        let server = &mut running[at];
        let from = server.lines().len();
        let _: Storm = outside.probe(&["call", zone::NODE[0], servers[at].1, "--text", "answer"]);
        server
            .wait_for_line(from, LONG, |line| line.starts_with("answered "))
            .unwrap()
    };
    assert_eq!(answered(0), "answered 50 of 50");
    assert_eq!(answered(1), "answered 150 of 150");
    // Each round makes more than twice the flows that the table holds, each used twice.
    for _ in 0..3 {
        let flood: Storm = hostile.probe(&[
            "spread",
            "10.79.1.1",
            "1194",
            "--sockets",
            "1200",
            "--peers",
            "120",
        ]);
        assert_eq!((flood.sent, flood.refused), (288_000, 0), "{flood:?}");
        assert_eq!(answered(0), "answered 50 of 50");
    }
    // The hostile scope pays by itself: of its own calls, which it used longer ago, it has forgotten most.
    let own = answered(1);
    let count: u32 = own.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(count < 50, "{own}");
}
