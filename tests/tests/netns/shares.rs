//! A hostile scope for each table that a workload fills, and a polite one beside it that notices nothing. Flows have a
//! test of their own (`scopes::a_scope_that_makes_flows_without_number_takes_none_from_another`).

use std::time::Duration;

use egress_tests::{
    Agent, Workload, World, eventually,
    expect::{policy, reached, refused},
    forge::Kind,
    ready,
    report::Storm,
    world::Role,
    zone,
};

const RULES: &str =
    "allow: [{ names: [api.example.com, \"*.forge.example.com\", \"*.storm.example.com\"] }]";

/// Two scopes that share nothing but the tables.
struct Scopes {
    polite: Workload,
    hostile: Workload,
    agent: Agent,
    _world: World,
}

impl Scopes {
    fn new(more: &[&str]) -> Self {
        let mut world = World::new();
        let storm = ["storm-server", "--records", "100", "--ttl", "600"];
        world.start_probe(Role::Dns, &storm).unwrap();
        world
            .start_probe(Role::Dns, &["forge-dns", "--late-ms", "2500"])
            .unwrap();
        let (polite, hostile) = (world.workload("polite"), world.workload("hostile"));
        let options = world
            .agent(&policy(RULES))
            .resolver(zone::SERVER)
            .resolver(zone::FORGER)
            .scope("polite", polite.cgroup())
            .scope("hostile", hostile.cgroup());
        let agent = more.iter().fold(options, |options, arg| options.arg(*arg));
        Self {
            polite,
            hostile,
            agent: agent.start(),
            _world: world,
        }
    }
}

#[test]
fn a_scope_that_learns_without_number_takes_no_addresses_from_another() {
    if !ready() {
        return;
    }
    // A share is 250: a quarter for each scope.
    let scopes = Scopes::new(&["--max-learned", "1000"]);
    let api = scopes.polite.resolve("api.example.com", false)[0];
    reached(&scopes.polite.connect(api, 80));
    for round in 0..3 {
        let first = (round * 40).to_string();
        let args = ["storm", "--zone", "storm.example.com", "--first", &first];
        let storm: Storm = scopes
            .hostile
            .probe(&[&args[..], &["--count", "40"]].concat());
        assert_eq!(storm.answered, 40, "{storm:?}");
        // Known addresses stay, and new names find room.
        reached(&scopes.polite.connect(api, 80));
        let new = [Kind::Good, Kind::Twice, Kind::Good][round];
        scopes.polite.resolve_at(&new.name(), false, zone::FORGER);
        reached(&scopes.polite.connect(new.v4(), 80));
    }
    assert!(scopes.agent.counters().dns("learned_share_full") > 0);
}

#[test]
fn a_scope_that_asks_without_number_takes_no_query_from_another() {
    if !ready() {
        return;
    }
    let scopes = Scopes::new(&[]);
    // Its answer comes after two and a half seconds, in which the other one asks from 60,000 sockets, four times as many
    // as there are buckets.
    let name = Kind::Late.name();
    let args = ["resolve", &name, "--server", zone::FORGER];
    let mut asking = scopes
        .polite
        .background(&[&args[..], &["--timeout", "8000"]].concat());
    std::thread::sleep(Duration::from_millis(300));
    let args = ["spread", zone::FORGER, "53", "--sockets", "60000"];
    let more = ["--peers", "1", "--ask", "nobody.forge.example.com"];
    let flood: Storm = scopes.hostile.probe(&[&args[..], &more].concat());
    assert_eq!(flood.refused, 0, "{flood:?}");
    asking.wait(Duration::from_secs(10)).unwrap();
    reached(&scopes.polite.connect(Kind::Late.v4(), 80));
    assert!(scopes.agent.counters().dns("dns_query_noted") > 60_000);
}

#[test]
fn a_scope_that_is_denied_without_number_hides_no_denial_of_another() {
    if !ready() {
        return;
    }
    let scopes = Scopes::new(&[]);
    let storm = scopes
        .hostile
        .background(&["storm-udp", "10.78.9.1", "9000", "--seconds", "3"]);
    std::thread::sleep(Duration::from_millis(500));
    for number in 2..6 {
        let address = format!("10.78.9.{number}");
        refused(&scopes.polite.connect(&address, 443));
        let address = address.parse().unwrap();
        let is_told = || {
            let told = scopes.agent.flow_to(address, |flow| flow.scope == "polite");
            told.is_some()
        };
        assert!(eventually(Duration::from_secs(2), is_told), "{address}");
    }
    drop(storm);
}
