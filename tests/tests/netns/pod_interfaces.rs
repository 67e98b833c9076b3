//! Packets that pods send past their cgroups, at the host's ends of their interfaces.

use std::{net::IpAddr, time::Duration};

use egress_tests::{
    Agent, Workload, World, eventually,
    expect::{policy, reached, refused},
    namespace::{self, Namespace},
    packets::{Ends, UDP, to_hex},
    ready,
    report::Attempt,
    world::Role,
    zone,
};

/// Where no rule leads.
const DENIED: &str = "10.78.9.1";

/// A world with a pod, and an agent for which it is a scope of its own.
fn world(rules: &str) -> (World, Agent, Workload) {
    let world = World::builder().pod().build();
    let pod = world.workload_in(Role::Pod, "pod");
    let agent = world
        .agent(&policy(rules))
        .scope("pod", &world.judged().join("pod"))
        .arg("--pod-interfaces")
        .arg("auto")
        .start();
    judged(&agent, 1);
    (world, agent, pod)
}

/// Waits until this many interfaces are judged.
#[track_caller]
fn judged(agent: &Agent, count: u64) {
    let is_so = || {
        agent
            .status()
            .pod_interfaces
            .is_some_and(|one| one.judged == count && one.failed.is_empty())
    };
    assert!(
        eventually(Duration::from_secs(3), is_so),
        "{:?}",
        agent.status()
    );
}

/// Sends a datagram by a packet socket of the pod.
fn frame(world: &World, pod: &Workload, to: &str, more: &[&str]) -> Attempt {
    let ends = Ends::new(zone::POD[usize::from(to.contains(':'))], to);
    let packet = to_hex(&ends.packet(UDP, &ends.udp(7, 9000, b"frame")));
    let gateway = world.hardware_address(Role::Node, "pod0");
    let kind = if to.contains(':') { "86dd" } else { "0800" };
    let args = [
        "emit-frame",
        &packet,
        "--gateway",
        &gateway,
        "--ethertype",
        kind,
    ];
    pod.probe(&[&args, more].concat())
}

/// How many such datagrams have come to an address.
fn arrived(world: &World, at: &str) -> usize {
    let at: IpAddr = at.parse().unwrap();
    let at = std::net::SocketAddr::new(at, 9000);
    world.web_saw(&format!("udp {at}"))
}

#[track_caller]
fn arrives(world: &World, at: &str, count: usize) {
    let is_there = || arrived(world, at) == count;
    assert!(
        eventually(Duration::from_secs(2), is_there),
        "{at}: {} of {count}",
        arrived(world, at)
    );
}

#[test]
fn frames_of_a_pod_are_judged_under_its_own_policy_and_addresses() {
    if !ready() {
        return;
    }
    let (world, agent, pod) = world("allow: [{ names: [api.example.com, v6.example.com] }]");
    let other = world.workload("client");
    for v6 in [false, true] {
        let address = zone::address("api.example.com", v6).to_string();
        // The node's scope knows the address, the pod's does not.
        other.resolve("api.example.com", v6);
        let (_, moved) = agent.counted(|| frame(&world, &pod, &address, &[]));
        assert_eq!(moved.denied_by("tc_egress"), 1, "{moved:?}");
        let flow = agent.flow_to(address.parse().unwrap(), |flow| flow.hook == "tc_egress");
        let flow = flow.expect("the denial is told");
        assert_eq!(
            (flow.scope.as_str(), flow.reason.as_str()),
            ("pod", "no_rule")
        );
        assert_eq!(arrived(&world, &address), 0);

        pod.resolve("api.example.com", v6);
        let (_, moved) = agent.counted(|| frame(&world, &pod, &address, &[]));
        assert_eq!(moved.denied, 0, "{moved:?}");
        arrives(&world, &address, 1);
        // Sockets are judged in their cgroup, and once.
        let (_, moved) = agent.counted(|| {
            reached(&pod.connect(&address, 80));
            refused(&pod.connect(DENIED, 80));
        });
        assert_eq!(moved.denied_by("tc_egress"), 0, "{moved:?}");
    }
    // Past the queue of the pod's interface is not past the host's end.
    let (sent, moved) = agent.counted(|| frame(&world, &pod, DENIED, &["--bypass-qdisc"]));
    reached(&sent);
    assert_eq!(moved.denied_by("tc_egress"), 1, "{moved:?}");
    assert_eq!(arrived(&world, DENIED), 0);
}

/// A namespace behind that of the pod, which forwards for it.
fn nested(world: &World) -> Namespace {
    const ADDRESS: &str = "10.77.1.77";
    let pod = world.namespace(Role::Pod);
    let nested = Namespace::of_name(format!("{}-in", pod.name()));
    namespace::ip(&[], &format!("netns add {}\n", nested.name())).unwrap();
    pod.ip(&format!(
        "link add inner type veth peer name eth0 netns {}\nlink set inner up\nroute add {ADDRESS}/32 dev inner\n",
        nested.name()
    ))
    .unwrap();
    // The pod answers for what is behind it.
    pod.sysctl(&[("ipv4/ip_forward", "1"), ("ipv4/conf/all/proxy_arp", "1")])
        .unwrap();
    nested
        .ip(&format!(
            "link set lo up\nlink set eth0 up\naddress add {ADDRESS}/24 dev eth0\nroute add default via {}\n",
            zone::POD[0]
        ))
        .unwrap();
    nested
}

#[test]
fn without_the_option_frames_of_a_pod_are_not_judged() {
    if !ready() {
        return;
    }
    let world = World::builder().pod().build();
    let pod = world.workload_in(Role::Pod, "pod");
    let agent = world.agent(&policy("allow: []")).start();
    reached(&frame(&world, &pod, DENIED, &[]));
    arrives(&world, DENIED, 1);
    refused(&pod.udp(DENIED, 9000, true));
    assert!(agent.status().pod_interfaces.is_none());
}

#[test]
fn packets_that_a_pod_forwards_are_judged_under_its_policy_once_it_is_known() {
    if !ready() {
        return;
    }
    let (world, agent, pod) = world("allow: [{ cidrs: [10.79.0.0/16] }]");
    // Once a socket of the pod has sent something, its interface is known to be its own.
    reached(&pod.connect("10.79.0.1", 80));
    // A frame that the pod's own kernel forwards has no socket any more.
    let nested = nested(&world);
    let inner = world.outsider_at(nested.path());
    let (_, moved) = agent.counted(|| {
        reached(&inner.udp("10.79.0.1", 443, true));
    });
    assert_eq!(moved.denied, 0, "{moved:?}");
    let (attempt, moved) =
        agent.counted(|| inner.probe::<Attempt>(&["connect", DENIED, "80", "--timeout", "300"]));
    assert!(!attempt.ok, "{attempt:?}");
    assert!(moved.denied_by("tc_egress") > 0, "{moved:?}");
    let flow = agent.flow_to(DENIED.parse().unwrap(), |flow| flow.hook == "tc_egress");
    assert_eq!(flow.expect("the denial is told").scope, "pod");
}

#[test]
fn interfaces_come_and_go_and_outlive_the_agent() {
    if !ready() {
        return;
    }
    let (world, mut agent, pod) = world("allow: []");
    let stopped = |agent: Option<&Agent>| {
        reached(&frame(&world, &pod, DENIED, &[]));
        if let Some(agent) = agent {
            let moved = || agent.counters().denied_by("tc_egress") > 0;
            assert!(eventually(Duration::from_secs(2), moved));
        }
    };
    stopped(Some(&agent));
    agent.kill();
    stopped(None);
    agent.start_again();
    judged(&agent, 1);
    stopped(Some(&agent));

    // The same name, another interface.
    let node = world.namespace(Role::Node);
    node.ip("link delete pod0\n").unwrap();
    judged(&agent, 0);
    let inside = world.namespace(Role::Pod);
    let [gateway, _] = zone::POD_GATEWAY;
    let [address, _] = zone::POD;
    node.ip(&format!(
        "link add pod0 type veth peer name eth0 netns {}\nlink set pod0 up\naddress add {gateway}/24 dev pod0\n",
        inside.name()
    ))
    .unwrap();
    inside
        .ip(&format!(
            "link set eth0 up\naddress add {address}/24 dev eth0\nroute add default via {gateway}\n"
        ))
        .unwrap();
    judged(&agent, 1);
    stopped(Some(&agent));
    assert_eq!(arrived(&world, DENIED), 0);

    agent.stop();
    let output = agent.unload().unwrap();
    assert_eq!(output.code(), Some(0), "{}", output.shown());
    stopped(None);
    arrives(&world, DENIED, 1);
}
