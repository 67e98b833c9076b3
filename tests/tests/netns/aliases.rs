//! Names that lead elsewhere: aliases that span answers, answers that only the agent can read, rebinding.

use std::{thread, time::Duration};

use egress_tests::{
    Agent, Workload, World, eventually,
    expect::{counted, ip, policy, reached, refused, tallied},
    forge::Kind,
    ready,
    report::Attempt,
    world::Role,
    zone,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A server for `fresh.example.com`, whose names are allowed, and `target.example.org`, whose names are not.
fn serve(world: &mut World) {
    let zones = [
        "--zone",
        "fresh.example.com",
        "--zone",
        "target.example.org",
    ];
    world
        .start_probe(Role::Dns, &[&["dns-server"], zones.as_slice()].concat())
        .unwrap();
}

fn ask(client: &Workload, name: &str) {
    let lookup = client.lookup(&[name, "--server", zone::SERVER]);
    assert!(lookup.error.is_none(), "{name}: {lookup:?}");
}

fn signal(agent: &Agent, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(agent.pid()).unwrap()), signal).unwrap();
}

fn agent(world: &World, spec: &str) -> Agent {
    world.agent(&policy(spec)).resolver(zone::SERVER).start()
}

#[test]
fn the_target_of_an_alias_counts_in_an_answer_of_its_own_and_in_its_scope_only() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    serve(&mut world);
    let other = world.workload("other");
    let agent = world
        .agent(&policy(
            "ttl: { min: 3s, grace: 0s, max: 3s }\nallow: [{ names: [\"*.fresh.example.com\"], ports: [\"80/tcp\"] }]",
        ))
        .resolver(zone::SERVER)
        .scope("other", other.cgroup())
        .start();
    let client = world.workload("client");
    // Asked for by itself it is a name like any other.
    ask(&client, "n5.target.example.org");
    refused(&client.connect("10.78.128.5", 80));

    ask(&client, "alias-5.fresh.example.com");
    refused(&client.connect("10.78.128.5", 80));
    ask(&client, "n5.target.example.org");
    reached(&client.connect("10.78.128.5", 80));
    refused(&client.connect("10.78.128.5", 443));
    // A scope that did not resolve the alias gains nothing, nor do other names of the zone.
    ask(&other, "n5.target.example.org");
    refused(&other.connect("10.78.128.5", 80));
    ask(&client, "n6.target.example.org");
    refused(&client.connect("10.78.128.6", 80));

    // It ends with the alias.
    thread::sleep(Duration::from_millis(3300));
    ask(&client, "n5.target.example.org");
    refused(&client.connect("10.78.128.5", 80));
    assert_eq!(agent.status().alarms, Vec::<String>::new());
}

#[test]
fn an_alias_survives_a_change_of_the_policy_that_keeps_its_rule() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    serve(&mut world);
    let agent = agent(&world, "allow: [{ names: [\"*.fresh.example.com\"] }]");
    let client = world.workload("client");
    ask(&client, "alias-5.fresh.example.com");
    ask(&client, "alias-6.fresh.example.com");
    ask(&client, "n6.target.example.org");
    reached(&client.connect("10.78.128.6", 80));
    agent.reload(&policy(
        "allow: [{ names: [\"*.fresh.example.com\"] }, { names: [api.example.com] }]",
    ));
    reached(&client.connect("10.78.128.6", 80));
    ask(&client, "n5.target.example.org");
    reached(&client.connect("10.78.128.5", 80));
    // A denied target stays denied, whoever points to it.
    agent.reload(&policy(
        "allow: [{ names: [\"*.fresh.example.com\"] }]\ndeny: [{ names: [n7.target.example.org] }]",
    ));
    ask(&client, "alias-7.fresh.example.com");
    ask(&client, "n7.target.example.org");
    refused(&client.connect("10.78.128.7", 80));
    agent.reload(&policy("allow: [{ names: [api.example.com] }]"));
    ask(&client, "n5.target.example.org");
    refused(&client.connect("10.78.128.5", 80));
}

#[test]
fn connects_wait_for_an_answer_that_only_the_agent_can_read() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    serve(&mut world);
    let other = world.workload("other");
    let agent = world
        .agent(&policy("allow: [{ names: [\"*.fresh.example.com\"] }]"))
        .resolver(zone::SERVER)
        .scope("other", other.cgroup())
        .start();
    let client = world.workload("client");
    // Of the same scope, in another network namespace.
    let elsewhere = world.workload_in(Role::Web, "elsewhere");
    refused(&client.connect("10.78.128.9", 80));
    // The agent is slow: it learns the answer long after the client has it.
    signal(&agent, Signal::SIGSTOP);
    let lookup = client.lookup(&[
        "split-9.fresh.example.com",
        "--server",
        zone::SERVER,
        "--tcp",
    ]);
    assert_eq!(lookup.addresses, [ip("10.78.128.9")]);
    let attempt = thread::scope(|scope| {
        let connect = scope.spawn(|| {
            client.probe::<Attempt>(&["connect", "10.78.128.9", "80", "--timeout", "3500"])
        });
        thread::sleep(Duration::from_millis(300));
        // Others are refused at once.
        refused(&other.connect("10.78.128.9", 80));
        refused(&elsewhere.connect("10.78.128.9", 80));
        signal(&agent, Signal::SIGCONT);
        connect.join().unwrap()
    });
    reached(&attempt);
    assert!(attempt.elapsed_ms > 500.0, "it did not wait: {attempt:?}");

    // A datagram is dropped without an error, and what is not allowed is refused again soon.
    let lookup = client.lookup(&[
        "split-3.target.example.org",
        "--server",
        zone::SERVER,
        "--tcp",
    ]);
    assert_eq!(lookup.addresses, [ip("10.78.128.3")]);
    let (datagram, moved) = agent.counted(|| client.udp("10.78.128.3", 443, false));
    assert!(
        datagram.is_silent() || datagram.stage == "receive",
        "{datagram:?}"
    );
    counted(&moved, "held_off");
    thread::sleep(Duration::from_millis(1100));
    refused(&client.connect("10.78.128.3", 80));
    assert!(client.udp("10.78.128.3", 443, false).is_refused());
}

#[test]
fn rebinding_is_reported_with_its_name() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    world.start_probe(Role::Dns, &["forge-dns"]).unwrap();
    let agent = world
        .agent(&policy("allow: [{ names: [\"*.forge.example.com\"] }]"))
        .resolver(zone::FORGER)
        .start();
    let client = world.workload("client");
    let name = Kind::Rebinding.name();
    let (_, moved) = agent.counted(|| client.lookup(&[&name, "--server", zone::FORGER]));
    tallied(&moved, "address_unteachable");
    refused(&client.connect(Kind::Rebinding.v4(), 80));
    let seen = eventually(Duration::from_secs(3), || {
        agent.flows().iter().any(|flow| {
            flow.reason == "rebinding"
                && flow.names == [name.clone()]
                && flow.destination == ip(&Kind::Rebinding.v4().to_string())
        })
    });
    assert!(seen, "{:?}", agent.flows());
    // The twin.
    client.lookup(&[&Kind::Good.name(), "--server", zone::FORGER]);
    reached(&client.connect(Kind::Good.v4(), 80));
}
