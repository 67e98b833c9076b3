//! UDP sockets between their first packet and their second: what the first was allowed by waits where the kernel keeps it
//! for sockets without a memory of their own, and ends when that would.

use std::{fs, thread, time::Duration};

use egress_common::flow::SEEN_SOCKETS;

use egress_tests::{
    Workload, World,
    expect::{policy, reached, refused},
    process::Running,
    ready,
    report::Storm,
    zone,
};

/// Longer than a change of policy takes, and than the grants here last.
const EVERY: &str = "4000";
const LIMIT: Duration = Duration::from_secs(8);

/// A connected socket that has sent one packet.
fn hold(client: &Workload, args: &[&str]) -> Running {
    let every = if args.contains(&"--every") {
        &[][..]
    } else {
        &["--every", EVERY]
    };
    let mut held = client.background(&[&["hold", "--udp"], every, args].concat());
    held.wait_for_line(0, LIMIT, |line| line == "open").unwrap();
    held
}

/// What becomes of its second.
fn second(held: &mut Running) -> String {
    held.wait_for_line(1, LIMIT, |_| true).unwrap()
}

#[test]
fn a_flow_goes_on_after_its_grant_has_ended() {
    if !ready() {
        return;
    }
    let world = World::new();
    let spec = "ttl: { min: 1s, grace: 0s, max: 1s }\nallow: [{ names: [short.example.com] }]";
    let _agent = world.agent(&policy(spec)).start();
    let client = world.workload("client");
    client.resolve("short.example.com", false);
    let short = zone::address("short.example.com", false).to_string();
    let mut held = hold(&client, &[&short, "443"]);
    thread::sleep(Duration::from_millis(2_000));
    refused(&client.udp(&short, 443, true));
    assert_eq!(second(&mut held), "alive 1");
}

#[test]
fn a_flow_is_decided_again_when_others_have_taken_its_place() {
    if !ready() {
        return;
    }
    let world = World::new();
    let spec = "ttl: { min: 1s, grace: 0s, max: 1s }\nallow:\n- names: [short.example.com]\n- cidrs: [10.78.9.1]";
    let _agent = world.agent(&policy(spec)).start();
    let client = world.workload("client");
    client.resolve("short.example.com", false);
    let short = zone::address("short.example.com", false).to_string();
    let is_taken = world.dir().join("taken");
    let until = is_taken.display().to_string();
    let late = |address: &str, more: &[&str]| hold(&client, &[&[address, "443"], more].concat());
    let mut ended = late(&short, &["--until", &until]);
    let mut kept = late("10.78.9.1", &["--until", &until]);
    // It has memory of its own before.
    let mut remembered = late(&short, &["--every", "100"]);
    remembered.wait_for_line(1, LIMIT, |_| true).unwrap();
    let count = (3 * SEEN_SOCKETS).to_string();
    // Where nobody listens: the echoes of the others are not to be lost.
    let call = ["call", "10.78.9.1", "9", "--connected", "--count", &count];
    let sent: Storm = client.probe(&call);
    assert_eq!(sent.sent, u64::from(3 * SEEN_SOCKETS));
    thread::sleep(Duration::from_millis(2_000));
    refused(&client.udp(&short, 443, true));
    fs::write(&is_taken, "").unwrap();
    assert_eq!(second(&mut ended), "broken EPERM");
    assert_eq!(second(&mut kept), "alive 1");
    let rounds = remembered.lines().len();
    let next = remembered.wait_for_line(rounds, LIMIT, |_| true);
    assert!(
        next.is_ok_and(|line| line.starts_with("alive")),
        "{remembered:?}"
    );
}

#[test]
fn a_flow_ends_with_its_rule() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ cidrs: [10.78.9.1, 10.78.9.2] }]"))
        .start();
    let client = world.workload("client");
    let mut ended = hold(&client, &["10.78.9.1", "443"]);
    let mut kept = hold(&client, &["10.78.9.2", "443"]);
    agent.reload(&policy("allow: [{ cidrs: [10.78.9.2] }]"));
    assert!(second(&mut ended).starts_with("broken"), "{ended:?}");
    assert_eq!(second(&mut kept), "alive 1");
}

#[test]
fn a_flow_ends_with_a_denial_of_its_address() {
    if !ready() {
        return;
    }
    let world = World::new();
    let spec = "allow: [{ cidrs: [10.78.9.0/24] }]";
    let agent = world.agent(&policy(spec)).start();
    let client = world.workload("client");
    let mut ended = hold(&client, &["10.78.9.1", "443"]);
    let mut kept = hold(&client, &["10.78.9.2", "443"]);
    agent.reload(&policy(&format!(
        "{spec}\ndeny: [{{ cidrs: [10.78.9.1] }}]"
    )));
    assert!(second(&mut ended).starts_with("broken"), "{ended:?}");
    assert_eq!(second(&mut kept), "alive 1");
}

#[test]
fn a_socket_that_is_led_elsewhere_is_judged_for_that() {
    if !ready() {
        return;
    }
    let world = World::new();
    let spec = "allow: [{ cidrs: [10.78.9.1], ports: [443/udp] }]";
    let _agent = world.agent(&policy(spec)).start();
    let client = world.workload("client");
    for (then, expected) in [
        ("10.78.9.1:443", "alive 1"),
        ("10.78.9.2:443", "broken EPERM"),
        ("10.78.9.1:9000", "broken EPERM"),
    ] {
        let mut held = hold(&client, &["10.78.9.1", "443", "--then", then]);
        assert_eq!(second(&mut held), expected, "{then}");
    }
    reached(&client.udp("10.78.9.1", 443, true));
}
