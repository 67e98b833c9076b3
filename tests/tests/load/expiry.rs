//! When a learned address ends.

use std::{
    thread,
    time::{Duration, Instant},
};

use egress_tests::{
    Workload, World, eventually,
    expect::{policy, reached, refused},
    ready, zone,
};

/// Resolution of the kernel's coarse clock, and then some.
const SLACK: Duration = Duration::from_millis(50);

/// Connects again and again until it is refused; the instants of the last success and the first refusal.
fn until_refused(
    client: &Workload,
    address: std::net::IpAddr,
    limit: Duration,
) -> (Instant, Instant) {
    let end = Instant::now() + limit;
    let mut last = Instant::now();
    while Instant::now() < end {
        let before = Instant::now();
        let attempt = client.connect(address, 80);
        // The end may fall between a connect and its first packet, which is then dropped.
        if attempt.is_refused() || attempt.is_silent() {
            return (last, Instant::now());
        }
        reached(&attempt);
        last = before;
    }
    panic!("{address} is still allowed after {limit:?}");
}

#[test]
fn an_address_is_allowed_until_its_ttl_ends_and_not_longer() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "ttl: { min: 1s, grace: 0s, max: 1h }\nallow: [{ names: [brief.example.com] }]",
        ))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        let asked = Instant::now();
        client.resolve("brief.example.com", v6);
        let answered = Instant::now();
        let address = zone::address("brief.example.com", v6);
        let ttl = Duration::from_secs(2);
        let (last, first) = until_refused(&client, address, Duration::from_secs(6));
        assert!(
            first >= asked + ttl,
            "refused {:?} after the lookup",
            first - asked
        );
        assert!(
            last <= answered + ttl + SLACK,
            "allowed {:?} after the lookup",
            last - answered
        );
        let flow = agent
            .flow_to(address, |flow| flow.verdict == "denied")
            .unwrap();
        assert_eq!(flow.reason, "expired");
        // Asking again opens it again.
        client.resolve("brief.example.com", v6);
        reached(&client.connect(address, 80));
    }
}

#[test]
fn a_flow_that_is_open_at_the_end_of_the_ttl_goes_on() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "ttl: { min: 1s, grace: 0s, max: 1h }\nallow: [{ names: [short.example.com, fleeting.example.com] }]",
        ))
        .start();
    let client = world.workload("client");
    client.resolve("short.example.com", false);
    let mut tcp4 = client.hold(zone::address("short.example.com", false), 80);
    client.resolve("short.example.com", true);
    let mut tcp6 = client.hold(zone::address("short.example.com", true), 80);
    client.resolve("short.example.com", false);
    let address = zone::address("short.example.com", false).to_string();
    let mut udp = client.hold_with(&[&address, "443", "--udp"]);
    client.resolve("fleeting.example.com", false);
    let idle = zone::address("fleeting.example.com", false);
    reached(&client.connect(idle, 80));

    thread::sleep(Duration::from_millis(2500));
    assert!(tcp4.is_alive(), "{:?}", tcp4.lines());
    assert!(tcp6.is_alive(), "{:?}", tcp6.lines());
    assert!(udp.is_alive(), "{:?}", udp.lines());
    refused(&client.connect(idle, 80));
}

#[test]
fn a_live_flow_keeps_its_address_open_for_new_flows() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "ttl: { min: 1s, grace: 30s, max: 1h }\n\
             allow: [{ names: [short.example.com, brief.example.com, fleeting.example.com] }]",
        ))
        .start();
    let client = world.workload("client");
    let names = [
        "short.example.com",
        "brief.example.com",
        "fleeting.example.com",
    ];
    let [tcp, udp, idle] = names.map(|name| {
        client.resolve(name, false);
        zone::address(name, false)
    });
    let mut flows = [
        client.hold(tcp, 80),
        client.hold_with(&[&udp.to_string(), "443", "--udp"]),
    ];
    // The TTLs have ended, so that nothing but the flows opens anything. A flow counts once it has lived through a whole
    // tick, which is 10 s on the slowest kernels.
    thread::sleep(Duration::from_millis(2500));
    refused(&client.connect(idle, 80));
    for address in [tcp, udp] {
        assert!(eventually(Duration::from_secs(25), || client
            .connect(address, 80)
            .ok));
    }
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(200));
        reached(&client.connect(tcp, 80));
        reached(&client.connect(udp, 80));
    }
    assert!(flows.iter_mut().all(|flow| flow.is_alive()));
    // An address that nothing used gains nothing.
    refused(&client.connect(idle, 80));
}

#[test]
fn a_use_keeps_an_address_open_for_its_grace_and_never_beyond_the_longest_life() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "ttl: { min: 1s, grace: 3s, max: 8s }\n\
             allow: [{ names: [short.example.com, brief.example.com, fleeting.example.com] }]",
        ))
        .start();
    let client = world.workload("client");
    let begin = Instant::now();
    let [polled, once, never] = [
        "short.example.com",
        "brief.example.com",
        "fleeting.example.com",
    ]
    .map(|name| {
        client.resolve(name, false);
        zone::address(name, false)
    });
    reached(&client.connect(once, 80));
    while begin.elapsed() < Duration::from_millis(6_500) {
        reached(&client.connect(polled, 80));
        thread::sleep(Duration::from_millis(500));
    }
    // The TTLs ended long ago.
    refused(&client.connect(never, 80));
    refused(&client.connect(once, 80));
    reached(&client.connect(polled, 80));
    assert!(
        begin.elapsed() < Duration::from_millis(7_900),
        "too slow to show anything"
    );
    thread::sleep(Duration::from_millis(9_500).saturating_sub(begin.elapsed()));
    refused(&client.connect(polled, 80));
}

#[test]
fn a_ttl_below_the_minimum_is_raised_and_one_above_the_maximum_is_lowered() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(
            "ttl: { min: 3s, grace: 0s, max: 4s }\nallow: [{ names: [fleeting.example.com, api.example.com] }]",
        ))
        .start();
    let client = world.workload("client");
    for (name, life) in [("fleeting.example.com", 3), ("api.example.com", 4)] {
        let life = Duration::from_secs(life);
        let address = zone::address(name, false);
        let asked = Instant::now();
        client.resolve(name, false);
        let answered = Instant::now();
        let (last, first) = until_refused(&client, address, Duration::from_secs(10));
        assert!(
            first >= asked + life,
            "{name}: refused after {:?}",
            first - asked
        );
        assert!(
            last <= answered + life + SLACK,
            "{name}: allowed after {:?}",
            last - answered
        );
    }
}

#[test]
fn expired_addresses_leave_the_table() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "ttl: { min: 4s, grace: 0s, max: 1h }\nallow: [{ names: [short.example.com, api.example.com] }]",
        ))
        .start();
    let client = world.workload("client");
    client.resolve("short.example.com", false);
    client.resolve("api.example.com", false);
    let (short, api) = (
        zone::address("short.example.com", false),
        zone::address("api.example.com", false),
    );
    assert!(agent.knows(short) && agent.knows(api));
    assert!(eventually(Duration::from_secs(10), || !agent.knows(short)));
    assert!(agent.knows(api));
}
