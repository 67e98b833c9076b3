//! Resolvers behind a socket-level load balancer: programs of somebody else turn a service's address into a backend's.

use std::{net::IpAddr, time::Duration};

use aya::maps::{Array, Map, MapData};
use egress_common::query::{ResolverPorts, UNBALANCED};
use egress_tests::{
    Agent, Workload, World,
    expect::{policy, reached, refused},
    ready,
    report::Attempt,
    world::Role,
    zone,
};

/// A cluster's DNS service.
const SERVICE: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// A service whose backend nobody can reach.
const BROKEN: &str = "10.96.0.11";
/// Where the backends answer.
const BACKEND: [&str; 2] = ["10.77.0.54:5353", "[fd77::53]:5353"];
/// Longest wait for a probe.
const LIMIT: Duration = Duration::from_secs(10);
/// Rules of the policies.
const RULES: &str = "allow: [{ names: [\"*.fresh.example.com\"] }]";

/// Backends, which nobody trusts by their own address, and a stranger who answers too.
fn world() -> World {
    let mut world = World::new();
    for (listen, port) in [
        (zone::SERVER, "5353"),
        ("fd77::53", "5353"),
        (zone::STRANGER, "53"),
    ] {
        let server = [
            "dns-server",
            "--zone",
            "fresh.example.com",
            "--listen",
            listen,
            "--port",
            port,
        ];
        world.start_probe(Role::Dns, &server).unwrap();
    }
    world
}

fn balance(world: &mut World) {
    let judged = world.judged().display().to_string();
    let services = [
        format!("{}={}", SERVICE[0], BACKEND[0]),
        format!("{}={}", SERVICE[1], BACKEND[1]),
        format!("{BROKEN}=192.0.2.1:53"),
    ];
    let [one, two, three] = &services;
    let args = ["balance", &judged, one, two, three];
    world.start_probe(Role::Node, &args).unwrap();
}

fn agent(world: &World, spec: &str) -> Agent {
    world
        .agent(&policy(spec))
        .resolver(SERVICE[0])
        .resolver(SERVICE[1])
        .resolver(BROKEN)
        .start()
}

/// Whether an agent's programs are told that nobody else changes addresses.
fn is_unbalanced(agent: &Agent) -> bool {
    let layout = format!("layout-{}", egress_common::maps::LAYOUT_VERSION);
    let pin = agent.pins().join(layout).join("RESOLVER_PORTS");
    let map = Map::Array(MapData::from_pin(pin).unwrap());
    let ports = Array::<_, ResolverPorts>::try_from(map).unwrap();
    ports.get(&0, 0).unwrap().flags & UNBALANCED != 0
}

/// Attaches the balancer under an agent, which has noted whom sockets ask from its start: it may come at any time.
fn balance_under(world: &mut World, agent: &Agent) {
    assert!(!is_unbalanced(agent));
    balance(world);
}

/// A kernel that orders programs (6.17), or one on which ours happen to be first.
fn orders_programs() -> bool {
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_str().unwrap().to_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 17)
}

/// Every way to ask, over IPv4, IPv6, and IPv4 by an IPv6 socket.
fn every_way_teaches(agent: &Agent, client: &Workload) {
    let mut number = 100;
    let mapped = format!("::ffff:{}", SERVICE[0]);
    for server in [SERVICE[0], SERVICE[1], &mapped] {
        for how in [&[][..], &["--unconnected"], &["--tcp"]] {
            for kind in ["A", "AAAA"] {
                number += 1;
                let name = format!("n{number}.fresh.example.com");
                let args = [&[name.as_str(), "--server", server, "--type", kind], how].concat();
                let (lookup, moved) = agent.counted(|| client.lookup(&args));
                assert!(lookup.error.is_none(), "{args:?} {lookup:?} {moved:?}");
                let attempt = client.connect(lookup.addresses[0], 80);
                assert!(attempt.ok, "{args:?} {attempt:?} {:?}", moved.dns);
            }
        }
    }
    let name = ["n7.other.example.com", "--server", SERVICE[0]];
    client.lookup(&name);
    refused(&client.connect("10.78.128.7", 80));
}

#[test]
fn names_are_learned_through_a_balancer_that_is_attached_later() {
    if !ready() {
        return;
    }
    let mut world = world();
    let agent = agent(&world, RULES);
    balance_under(&mut world, &agent);
    every_way_teaches(&agent, &world.workload("client"));
}

#[test]
fn names_are_learned_through_a_balancer_that_is_attached_before() {
    if !ready() {
        return;
    }
    if !orders_programs() {
        egress_tests::skip::skip("this kernel does not order programs at a cgroup");
        return;
    }
    let mut world = world();
    balance(&mut world);
    let agent = agent(&world, RULES);
    every_way_teaches(&agent, &world.workload("client"));
}

#[test]
fn restricted_queries_are_judged_behind_a_balancer() {
    if !ready() {
        return;
    }
    let mut world = world();
    let agent = agent(&world, &format!("dns: {{ queries: allowed }}\n{RULES}"));
    balance_under(&mut world, &agent);
    let client = world.workload("client");
    every_way_teaches(&agent, &client);
    for server in SERVICE {
        for how in [&[][..], &["--unconnected"], &["--tcp"]] {
            let args = [&["n7.secret.example.com", "--server", server], how].concat();
            let lookup = client.lookup(&args);
            assert!(lookup.error.is_some(), "{args:?} {lookup:?}");
        }
    }
}

#[test]
fn the_backend_itself_is_nobody_one_may_ask() {
    if !ready() {
        return;
    }
    let mut world = world();
    let agent = agent(&world, RULES);
    balance_under(&mut world, &agent);
    let client = world.workload("client");
    let lookup = client.lookup(&["n5.fresh.example.com", "--server", SERVICE[0]]);
    assert!(lookup.error.is_none(), "{lookup:?}");
    for connected in [false, true] {
        refused(&client.udp(zone::SERVER, 5353, connected));
    }
    refused(&client.connect(zone::SERVER, 5353));
}

#[test]
fn what_passed_in_the_services_name_is_no_way_to_the_backend() {
    if !ready() {
        return;
    }
    let mut world = world();
    let agent = agent(&world, &format!("dns: {{ queries: allowed }}\n{RULES}"));
    balance_under(&mut world, &agent);
    let client = world.workload("client");
    for way in ["after-elsewhere", "same-port"] {
        let args = ["stray", way, "--service", SERVICE[0], "--broken", BROKEN];
        let backend = ["--stranger", zone::SERVER, "--stranger-port", "5353"];
        let name = ["--name", "n7.secret.example.com"];
        let attempt: Attempt = client.probe(&[&args[..], &backend, &name].concat());
        assert!(!attempt.ok && attempt.stage == "send", "{way}: {attempt:?}");
    }
}

#[test]
fn a_backend_that_is_denied_stays_denied() {
    if !ready() {
        return;
    }
    let mut world = world();
    let deny = format!("deny: [{{ cidrs: [{}/32] }}]", zone::SERVER);
    let agent = agent(&world, &format!("{RULES}\n{deny}"));
    balance_under(&mut world, &agent);
    let client = world.workload("client");
    for how in [&[][..], &["--unconnected"], &["--tcp"]] {
        let args = [&["n5.fresh.example.com", "--server", SERVICE[0]], how].concat();
        let lookup = client.lookup(&args);
        assert!(lookup.error.is_some(), "{args:?} {lookup:?}");
    }
}

#[test]
fn resolvers_at_more_ports_than_can_be_listed_teach_and_a_process_that_fills_the_list_harms_none() {
    if !ready() {
        return;
    }
    let mut world = world();
    let services: Vec<_> = (1..=6_u16).map(|one| format!("10.96.1.{one}")).collect();
    let agent = services
        .iter()
        .fold(world.agent(&policy(RULES)), |agent, service| {
            agent.resolver(service)
        })
        .start();
    let mut args = vec!["balance".to_owned(), world.judged().display().to_string()];
    for (service, port) in services.iter().zip(6000..) {
        let port = format!("{port}");
        let server = ["dns-server", "--zone", "fresh.example.com", "--port", &port];
        world.start_probe(Role::Dns, &server).unwrap();
        args.push(format!("{service}={}:{port}", zone::SERVER));
    }
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    world.start_probe(Role::Node, &args).unwrap();
    // A socket that asks resolvers alone finds ports; one that calls somebody else finds none.
    let hostile = world.workload("hostile");
    for port in 7000..7010 {
        refused(&hostile.udp(zone::STRANGER, port, false));
    }
    let client = world.workload("client");
    for (service, number) in services.iter().zip(300..) {
        for (how, number) in [(&[][..], number), (&["--unconnected"], number + 10)] {
            let name = format!("n{number}.fresh.example.com");
            let args = [&[name.as_str(), "--server", service], how].concat();
            let (lookup, moved) = agent.counted(|| client.lookup(&args));
            assert!(lookup.error.is_none(), "{args:?} {lookup:?} {moved:?}");
            reached(&client.connect(lookup.addresses[0], 80));
        }
    }
    // With a list that is full, what is no query is no query.
    refused(&client.udp(zone::SERVER, 6003, true));
    refused(&client.connect(zone::STRANGER, 53));
}

/// The ways of `probe stray`.
const WAYS: [&str; 9] = [
    "failed-connect",
    "sendto",
    "corked",
    "connect-again",
    "connected-sendto",
    "tcp-connect-again",
    "threads",
    "connecting-threads",
    "port-zero",
];

fn stray(client: &Workload, way: &str, name: &str) -> Attempt {
    let args = ["stray", way, "--service", SERVICE[0], "--broken", BROKEN];
    client.probe(&[&args[..], &["--stranger", zone::STRANGER, "--name", name]].concat())
}

#[test]
fn nobody_else_is_asked_under_cover_of_a_service() {
    if !ready() {
        return;
    }
    let mut world = world();
    let agent = agent(&world, RULES);
    balance_under(&mut world, &agent);
    let client = world.workload("client");
    for way in WAYS {
        let attempt = stray(&client, way, "n9.fresh.example.com");
        assert!(!attempt.ok, "{way}: {attempt:?}");
    }
    let address: IpAddr = zone::STRANGER.parse().unwrap();
    assert!(
        world
            .outsider(Role::Node)
            .lookup(&["n9.fresh.example.com", "--server", zone::STRANGER])
            .error
            .is_none(),
        "{address} answers"
    );
}

#[test]
fn a_datagram_that_was_begun_before_the_balancer_came_leaves_in_nobodys_name() {
    if !ready() {
        return;
    }
    let mut world = world();
    let agent = agent(&world, RULES);
    let is_balanced = world.dir().join("balanced");
    let until = is_balanced.display().to_string();
    let others = ["--broken", BROKEN, "--stranger", zone::STRANGER];
    let rest = ["--name", "n9.fresh.example.com", "--until", &until];
    let mut begun = [
        (world.workload("client"), SERVICE[0]),
        (world.outsider(Role::Node), zone::SERVER),
    ]
    .map(|(client, service)| {
        let args = ["stray", "corked-early", "--service", service];
        let mut begun = client.background(&[&args[..], &others, &rest].concat());
        begun
            .wait_for_line(0, LIMIT, |line| line == "begun")
            .unwrap();
        begun
    });
    balance_under(&mut world, &agent);
    std::fs::write(&is_balanced, "").unwrap();
    let [judged, free] = begun.each_mut().map(|begun| {
        let line = begun.wait_for_line(1, LIMIT, |_| true).unwrap();
        serde_json::from_str::<Attempt>(&line).unwrap()
    });
    assert!(!judged.ok && judged.stage == "send", "{judged:?}");
    // Its twin leaves; a socket hears its peer alone.
    assert_eq!(free.stage, "receive", "{free:?}");
}

#[test]
fn somebody_else_teaches_nothing_under_cover_of_a_service() {
    if !ready() {
        return;
    }
    let mut world = world();
    let stranger = format!("{}/32", zone::STRANGER);
    let agent = agent(
        &world,
        &format!(
            "allow:\n- names: [\"*.fresh.example.com\"]\n- cidrs: [{stranger}]\n  ports: [53/udp, 53/tcp]"
        ),
    );
    balance_under(&mut world, &agent);
    let client = world.workload("client");
    for (number, way) in (200..).zip(WAYS) {
        let name = format!("n{number}.fresh.example.com");
        let attempt = stray(&client, way, &name);
        // A connected socket hears its peer alone.
        let hears = !way.ends_with("threads") && !["connected-sendto", "port-zero"].contains(&way);
        assert!(attempt.ok || !hears, "{way}: {attempt:?}");
        let address = format!("10.78.128.{number}");
        refused(&client.connect(&address, 80));
        // Its twin asks the service.
        let lookup = client.lookup(&[&name, "--server", SERVICE[0]]);
        assert_eq!(lookup.addresses[0].to_string(), address, "{lookup:?}");
        reached(&client.connect(&address, 80));
    }
}
