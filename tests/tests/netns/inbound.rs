//! Flows that the remote started.

use std::{fs, time::Duration};

use egress_tests::{
    Workload, World,
    expect::{counted, policy, reached},
    namespace::Namespace,
    process::Running,
    ready,
    report::Attempt,
    world::Role,
    zone,
};

fn serve(workload: &Workload) -> Running {
    let mut server = workload.background(&["serve", "--tcp", "7000", "--udp", "7001"]);
    server
        .wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
        .unwrap();
    server
}

#[test]
fn inbound_tcp_is_answered_although_the_policy_allows_nothing() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy("allow: []")).start();
    let workload = world.workload("server");
    let _server = serve(&workload);
    let outside = world.outsider(Role::Web);
    for node in zone::NODE {
        let (attempt, moved) = agent.counted(|| outside.connect(node, 7000));
        reached(&attempt);
        counted(&moved, "reply");
        assert_eq!(moved.denied, 0, "{moved:?}");
    }
    // The twin: the same remote, addressed by the workload itself.
    for web in zone::WEB {
        assert!(workload.connect(web, 80).is_refused());
    }
}

#[test]
fn inbound_udp_is_answered_from_an_unconnected_socket_which_may_not_write_to_others() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy("allow: []")).start();
    let workload = world.workload("server");
    let _server = serve(&workload);
    let outside = world.outsider(Role::Web);
    for (node, stranger) in [(zone::NODE[0], "10.78.9.1"), (zone::NODE[1], "fd78::9:1")] {
        let (attempt, moved) = agent.counted(|| outside.udp(node, 7001, false));
        reached(&attempt);
        counted(&moved, "reply");
        assert_eq!(moved.denied, 0, "{moved:?}");
        let text = format!("relay {stranger} 9000");
        let relayed: Attempt = outside.probe(&["udp", node, "7001", "--text", &text]);
        assert_eq!(
            (relayed.ok, relayed.stage.as_str()),
            (false, "relay"),
            "{relayed:?}"
        );
    }
    assert_eq!(world.web_saw("udp 10.78.9.1:9000"), 0);
    // Neither to another port of the remote that it has served.
    let relayed: Attempt = outside.probe(&[
        "udp",
        zone::NODE[0],
        "7001",
        "--text",
        "relay 10.77.0.80 9000",
    ]);
    assert_eq!(
        (relayed.ok, relayed.stage.as_str()),
        (false, "relay"),
        "{relayed:?}"
    );
}

#[test]
fn the_node_answers_pings() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world.agent(&policy("allow: []")).start();
    let outside = world.outsider(Role::Web);
    for (node, web) in zone::NODE.into_iter().zip(zone::WEB) {
        reached(&outside.ping(node));
        assert!(world.workload("client").ping(web).is_refused());
    }
}

#[test]
fn a_closed_port_still_says_so() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world.agent(&policy("allow: []")).start();
    let outside = world.outsider(Role::Web);
    for node in zone::NODE {
        let attempt = outside.connect(node, 9);
        assert_eq!(
            attempt.errno.as_deref(),
            Some("ECONNREFUSED"),
            "{attempt:?}"
        );
        let attempt = outside.udp(node, 9, true);
        assert_eq!(
            attempt.errno.as_deref(),
            Some("ECONNREFUSED"),
            "{attempt:?}"
        );
    }
}

#[test]
fn inbound_udp_is_answered_from_a_connected_socket_and_nobody_else_is() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy("allow: []")).start();
    let workload = world.workload("server");
    let mut server = workload.background(&["serve", "--udp-connected", "7001"]);
    server
        .wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
        .unwrap();
    // Before it was called: the peer that will call it.
    assert!(workload.udp(zone::WEB[0], 443, true).is_refused());
    let outside = world.outsider(Role::Web);
    let (attempt, moved) = agent.counted(|| outside.udp(zone::NODE[0], 7001, false));
    reached(&attempt);
    counted(&moved, "reply");
    assert_eq!(moved.denied, 0, "{moved:?}");
    // The twin: after it, another port of the same peer.
    assert!(workload.udp(zone::WEB[0], 443, true).is_refused());
}

#[test]
fn who_called_before_it_was_noted_at_which_ports_is_answered() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world.agent(&policy("allow: []")).start();
    let workload = world.workload("server");
    let is_upgraded = world.dir().join("upgraded");
    let until = is_upgraded.display().to_string();
    let limit = Duration::from_secs(60);
    let mut server = workload.background(&["serve", "--udp-connected", "7001", "--until", &until]);
    server
        .wait_for_line(0, limit, |line| line == "ready")
        .unwrap();
    let outside = world.outsider(Role::Web);
    let wait = limit.as_millis().to_string();
    let args = ["hold", "--udp", zone::NODE[0], "7001", "--wait-ms", &wait];
    let mut caller = outside.background(&args);
    server
        .wait_for_line(1, limit, |line| line.ends_with("called"))
        .unwrap();
    // As beside the flows of a release that did not note it.
    agent.kill();
    let layout = format!("layout-{}", egress_common::maps::LAYOUT_VERSION);
    fs::remove_file(agent.pins().join(layout).join("CALLED")).unwrap();
    agent.start_again();
    fs::write(&is_upgraded, "").unwrap();
    caller
        .wait_for_line(0, limit, |line| line == "open")
        .unwrap();
    // The twin: another port of the same peer.
    assert!(workload.udp(zone::WEB[0], 443, true).is_refused());
}

#[test]
fn inbound_flows_survive_the_start_of_the_agent() {
    if !ready() {
        return;
    }
    let world = World::new();
    let workload = world.workload("server");
    let _server = serve(&workload);
    let outside = world.outsider(Role::Web);
    let mut before = outside.hold(zone::NODE[0], 7000);
    let mut before6 = outside.hold(zone::NODE[1], 7000);
    let mut udp = outside.hold_with(&[zone::NODE[0], "7001", "--udp"]);
    let _agent = world
        .agent(&policy("preexisting: judge\nallow: []"))
        .start();
    assert!(udp.is_alive(), "{:?}", udp.lines());
    let mut after = outside.hold(zone::NODE[0], 7000);
    assert!(after.is_alive(), "{:?}", after.lines());
    // Nobody knows any more who opened a flow that is older than the programs: `judge` may cut it.
    let _ = (before.is_alive(), before6.is_alive());
}

#[test]
fn the_kernel_answers_in_a_namespace_that_a_judged_process_made() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world.agent(&policy("allow: []")).start();
    // As a container runtime does, in a cgroup of its own.
    let own = Namespace::of_name(format!("{}-own", world.name()));
    let made = world
        .workload("runtime")
        .run("ip", &["netns", "add", own.name()]);
    assert_eq!(made.code(), Some(0), "{}", made.shown());
    own.sysctl(&[("ipv6/conf/default/accept_dad", "0")])
        .unwrap();
    world
        .namespace(Role::Web)
        .ip(&format!(
            "link add own type veth peer name eth0 netns {}\nlink set own master br0 up\n",
            own.name()
        ))
        .unwrap();
    own.ip("link set lo up\nlink set eth0 up\n\
         address add 10.77.0.40/24 dev eth0\naddress add fd77::40/64 dev eth0 nodad\n")
        .unwrap();
    let outside = world.outsider(Role::Web);
    for address in ["10.77.0.40", "fd77::40"] {
        reached(&outside.ping(address));
        let attempt = outside.connect(address, 9);
        assert_eq!(
            attempt.errno.as_deref(),
            Some("ECONNREFUSED"),
            "{attempt:?}"
        );
    }
    // The twin: a flow that a process there begins is denied.
    for web in zone::WEB {
        let attempt: Attempt =
            world
                .workload_at(own.path(), "container")
                .probe(&["ping", web, "--timeout", "300"]);
        assert!(attempt.is_refused(), "{attempt:?}");
    }
}
