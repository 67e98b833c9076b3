//! `policy diff --flows agent`: which of the flows that the agent has seen would change, and whether they do.

use std::{fs, path::Path, time::Duration};

use egress_tests::{
    Agent, Workload, World, eventually,
    expect::{policy, reached, refused},
    process::Output,
    ready,
    report::Attempt,
};
use serde_json::Value;

const OLD: &str = "allow:
- { names: [api.example.com, reload.example.com], ports: [\"80/tcp\"] }
- { names: [new1.example.com], ports: [\"9000/udp\"] }
- { cidrs: [10.79.1.0/24] }";
/// Takes a name and a network away, opens a name and an address, and closes a port.
const NEW: &str = "allow:
- { names: [reload.example.com, other.example.com], ports: [\"80/tcp\"] }
- { names: [new1.example.com], ports: [\"9001/udp\"] }
- { cidrs: [10.79.2.1/32], ports: [\"443/tcp\"] }";

/// Runs `policy diff` of both with the flows of the agent.
fn diff(agent: &Agent, old: &Path, new: &Path, more: &[&str]) -> Output {
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let args = [&["policy", "diff", old, new, "--flows", "agent"], more].concat();
    agent.cli(&args).unwrap()
}

/// A flow by name or address, as the probe makes it.
fn attempt(client: &Workload, to: &str, port: u16, protocol: &str) -> Attempt {
    let address = if to.starts_with("10.") {
        to.parse().unwrap()
    } else {
        client.resolve(to, false)[0]
    };
    match protocol {
        "tcp" => client.connect(address, port),
        _ => client.udp(address, port, false),
    }
}

#[test]
fn flows_that_the_agent_has_seen_change_as_the_difference_says() {
    if !ready() {
        return;
    }
    let world = World::new();
    let (client, web) = (world.workload("client"), world.workload("web"));
    let agent = world.agent(&policy(OLD)).scope("web", web.cgroup()).start();
    let (old, new) = (
        world.dir().join("policy.yaml"),
        world.dir().join("new.yaml"),
    );
    fs::write(&new, policy(NEW)).unwrap();
    // Name or address, port, protocol, true if the old policy allows it, true if the new one does.
    let flows = [
        ("api.example.com", 80, "tcp", true, false),
        ("reload.example.com", 80, "tcp", true, true),
        ("other.example.com", 80, "tcp", false, true),
        ("new1.example.com", 9000, "udp", true, false),
        ("forbidden.example.org", 80, "tcp", false, false),
        ("10.79.1.1", 443, "tcp", true, false),
        ("10.79.2.1", 443, "tcp", false, true),
        ("10.79.2.1", 80, "tcp", false, false),
    ];
    let happens = |client: &Workload, is_new: bool| {
        for (to, port, protocol, before, after) in flows {
            let attempt = attempt(client, to, port, protocol);
            if if is_new { after } else { before } {
                reached(&attempt);
            } else {
                refused(&attempt);
            }
        }
    };
    happens(&client, false);
    reached(&attempt(&web, "api.example.com", 80, "tcp"));
    let is_seen = || agent.observations().len() == flows.len() + 1;
    assert!(
        eventually(Duration::from_secs(10), is_seen),
        "{:?}",
        agent.observations()
    );

    let changed = diff(&agent, &old, &new, &["-o", "json"]);
    assert_eq!(changed.code(), Some(1), "{}", changed.shown());
    let report: Value = serde_json::from_str(&changed.stdout).unwrap();
    let text = |flow: &Value, field: &str| flow[field].as_str().unwrap().to_owned();
    let mut told: Vec<_> = report["flows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|flow| {
            let to = flow["names"].get(0).unwrap_or(&flow["address"]);
            let to = to.as_str().unwrap().to_owned();
            (
                text(flow, "scope"),
                to,
                text(flow, "ports"),
                text(flow, "becomes"),
                text(flow, "reason"),
            )
        })
        .collect();
    let mut expected: Vec<_> = [
        ("node", "api.example.com", "80/tcp", "denied", "no_rule"),
        ("web", "api.example.com", "80/tcp", "denied", "no_rule"),
        (
            "node",
            "other.example.com",
            "80/tcp",
            "allowed",
            "name_rule",
        ),
        (
            "node",
            "new1.example.com",
            "9000/udp",
            "denied",
            "port_not_allowed",
        ),
        ("node", "10.79.1.1", "443/tcp", "denied", "no_rule"),
        ("node", "10.79.2.1", "443/tcp", "allowed", "cidr_rule"),
    ]
    .map(|(scope, to, ports, becomes, reason)| {
        (
            scope.to_owned(),
            to.to_owned(),
            ports.to_owned(),
            becomes.to_owned(),
            reason.to_owned(),
        )
    })
    .into();
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
    assert_eq!(report["flows_judged"], flows.len() + 1);
    let table = diff(&agent, &old, &new, &[]);
    assert!(
        table.stderr.contains("6 of 9 flows would change"),
        "{}",
        table.shown()
    );

    // The same policy changes nothing.
    let same = diff(&agent, &old, &old, &[]);
    assert_eq!(same.code(), Some(0), "{}", same.shown());
    assert!(
        same.stderr.contains("0 of 9 flows would change"),
        "{}",
        same.shown()
    );

    agent.reload(&policy(NEW));
    happens(&client, true);
}
