//! Answers that nobody should believe.

use std::{net::IpAddr, thread, time::Duration};

use egress_tests::{
    Agent, Workload, World,
    expect::{policy, reached, refused, tallied},
    forge::{Kind, UNSOLICITED_PORT},
    ready,
    report::Lookup,
    world::Role,
    zone,
};

/// How late the late answer is: past the ten seconds of the design.
const LATE_MS: u64 = 10_500;

fn world() -> (World, Agent) {
    let mut world = World::new();
    world
        .start_probe(Role::Dns, &["forge-dns", "--late-ms", &LATE_MS.to_string()])
        .unwrap();
    let agent = world
        .agent(&policy("allow: [{ names: [\"*.forge.example.com\"] }]"))
        .resolver(zone::FORGER)
        .start();
    (world, agent)
}

fn ask(client: &Workload, kind: Kind, record: &str, collect_ms: u64) -> Lookup {
    let name = kind.name();
    let collect = collect_ms.to_string();
    client.lookup(&[
        &name,
        "--server",
        zone::FORGER,
        "--unconnected",
        "--collect",
        &collect,
        "--type",
        record,
    ])
}

/// All that arrived is byte by byte as the forger sent it.
fn delivered_unchanged(world: &World, kind: Kind, lookup: &Lookup) -> bool {
    let begin = format!("sent {} ", kind.label());
    let seen = world.seen(Role::Dns);
    let sent: Vec<_> = seen
        .iter()
        .filter(|line| line.starts_with(&begin))
        .filter_map(|line| line.split(' ').next_back())
        .collect();
    !lookup.arrived.is_empty()
        && lookup
            .arrived
            .iter()
            .all(|one| sent.contains(&one.hex.as_str()))
}

/// One kind: it is delivered, counted, and teaches nothing; A and AAAA.
fn teaches_nothing(kind: Kind, tally: Option<&str>) {
    if !ready() {
        return;
    }
    let (world, agent) = world();
    let client = world.workload("client");
    for (record, address) in [
        ("A", IpAddr::V4(kind.v4())),
        ("AAAA", IpAddr::V6(kind.v6())),
    ] {
        let (lookup, moved) = agent.counted(|| ask(&client, kind, record, 300));
        assert!(delivered_unchanged(&world, kind, &lookup), "{lookup:?}");
        if let Some(tally) = tally {
            tallied(&moved, tally);
        }
        assert_eq!(moved.dns("dns_answer_learned"), 0, "{moved:?}");
        assert_eq!(moved.dns("address_learned"), 0, "{moved:?}");
        refused(&client.connect(address, 80));
    }
    // The agent, which reads the same bytes, must not believe them either.
    thread::sleep(Duration::from_millis(200));
    assert_eq!(agent.learned(), []);
    refused(&client.connect(IpAddr::V4(kind.v4()), 80));
    // The twin: the same server, believed when it is honest.
    good_is_learned(&client);
}

fn good_is_learned(client: &Workload) {
    client.resolve_at(&Kind::Good.name(), false, zone::FORGER);
    reached(&client.connect(Kind::Good.v4(), 80));
}

#[test]
fn an_answer_with_another_id_teaches_nothing() {
    teaches_nothing(Kind::WrongId, Some("dns_answer_unsolicited"));
}

#[test]
fn an_answer_to_another_question_teaches_nothing() {
    teaches_nothing(Kind::WrongQuestion, Some("dns_answer_other_question"));
}

#[test]
fn an_answer_of_another_class_teaches_nothing() {
    teaches_nothing(Kind::OtherClass, Some("dns_answer_other_question"));
}

#[test]
fn an_answer_from_an_address_that_is_no_resolver_teaches_nothing() {
    teaches_nothing(Kind::WrongSource, Some("dns_answer_untrusted_resolver"));
}

#[test]
fn an_answer_from_another_port_of_the_resolver_teaches_nothing() {
    teaches_nothing(Kind::WrongPort, None);
}

#[test]
fn a_record_off_the_alias_chain_teaches_nothing() {
    teaches_nothing(Kind::OffChain, Some("address_off_chain"));
}

#[test]
fn a_compression_loop_teaches_nothing() {
    teaches_nothing(Kind::Loop, Some("dns_answer_malformed"));
}

#[test]
fn an_answer_that_is_cut_short_teaches_nothing() {
    teaches_nothing(Kind::Cut, Some("dns_answer_malformed"));
}

#[test]
fn an_answer_with_an_error_code_teaches_nothing() {
    teaches_nothing(Kind::ErrorCode, Some("dns_answer_error_code"));
}

#[test]
fn an_answer_with_a_metadata_address_teaches_nothing() {
    if !ready() {
        return;
    }
    let (world, agent) = world();
    // So that the denial is ours and not a missing route.
    world
        .namespace(Role::Node)
        .ip("route add 169.254.169.254 via 10.77.0.80\nroute add fd00:ec2::254 via fd77::80\n")
        .unwrap();
    let client = world.workload("client");
    for (record, address) in [
        ("A", IpAddr::V4(Kind::Rebinding.v4())),
        ("AAAA", IpAddr::V6(Kind::Rebinding.v6())),
    ] {
        let (lookup, moved) = agent.counted(|| ask(&client, Kind::Rebinding, record, 300));
        assert!(
            delivered_unchanged(&world, Kind::Rebinding, &lookup),
            "{lookup:?}"
        );
        tallied(&moved, "address_unteachable");
        assert_eq!(moved.dns("address_learned"), 0, "{moved:?}");
        refused(&client.connect(address, 80));
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(agent.learned(), []);
    good_is_learned(&client);
}

#[test]
fn a_second_answer_to_the_same_query_teaches_nothing() {
    if !ready() {
        return;
    }
    let (world, agent) = world();
    let client = world.workload("client");
    let (lookup, moved) = agent.counted(|| ask(&client, Kind::Twice, "A", 300));
    assert_eq!(lookup.arrived.len(), 2, "{lookup:?}");
    assert!(delivered_unchanged(&world, Kind::Twice, &lookup));
    tallied(&moved, "dns_answer_replayed");
    reached(&client.connect(Kind::Twice.v4(), 80));
    refused(&client.connect(Kind::Twice.second(), 80));
    thread::sleep(Duration::from_millis(200));
    refused(&client.connect(Kind::Twice.second(), 80));
}

#[test]
fn an_answer_to_a_socket_that_never_asked_teaches_nothing() {
    if !ready() {
        return;
    }
    let (world, agent) = world();
    let client = world.workload("client");
    let mut listener = client.background(&["listen", &UNSOLICITED_PORT.to_string()]);
    listener
        .wait_for_line(0, Duration::from_secs(5), |line| line == "ready")
        .unwrap();
    let (lookup, moved) = agent.counted(|| {
        let lookup = ask(&client, Kind::Unsolicited, "A", 100);
        let got = listener
            .wait_for_line(1, Duration::from_secs(2), |line| line.starts_with("got "))
            .unwrap();
        let seen = world.seen(Role::Dns);
        let hex = got.split(' ').next_back().unwrap();
        assert!(
            seen.iter().any(|line| line.ends_with(hex)),
            "delivered unchanged"
        );
        lookup
    });
    assert_eq!(lookup.arrived, []);
    tallied(&moved, "dns_answer_unsolicited");
    refused(&client.connect(Kind::Unsolicited.v4(), 80));
    thread::sleep(Duration::from_millis(200));
    assert_eq!(agent.learned(), []);
    good_is_learned(&client);
}

#[test]
fn an_answer_that_comes_too_late_teaches_nothing() {
    if !ready() {
        return;
    }
    let (world, agent) = world();
    let client = world.workload("client");
    let (lookup, moved) = agent.counted(|| ask(&client, Kind::Late, "A", LATE_MS + 1000));
    assert!(
        delivered_unchanged(&world, Kind::Late, &lookup),
        "{lookup:?}"
    );
    tallied(&moved, "dns_answer_late");
    assert_eq!(moved.dns("address_learned"), 0, "{moved:?}");
    refused(&client.connect(Kind::Late.v4(), 80));
    thread::sleep(Duration::from_millis(200));
    assert_eq!(agent.learned(), []);
    let late = IpAddr::V4(Kind::Late.v4());
    let flow = agent.flow_to(late, |_| true).expect("a denied flow");
    assert_eq!(flow.names, [Kind::Late.name()]);
    let cause = flow.cause.as_ref().expect("the answer was refused");
    assert_eq!(cause.cause, "late");
    assert!(cause.words.contains("ten seconds"), "{}", cause.words);
    let explained = agent.explain(&Kind::Late.name(), None);
    let causes = &explained.causes;
    assert!(
        causes.iter().any(|cause| cause.cause == "late"),
        "{causes:?}"
    );
    good_is_learned(&client);
}

#[test]
fn an_answer_that_comes_just_in_time_teaches() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    world
        .start_probe(Role::Dns, &["forge-dns", "--late-ms", "9700"])
        .unwrap();
    let _agent = world
        .agent(&policy("allow: [{ names: [\"*.forge.example.com\"] }]"))
        .resolver(zone::FORGER)
        .start();
    let client = world.workload("client");
    ask(&client, Kind::Late, "A", 10_500);
    reached(&client.connect(Kind::Late.v4(), 80));
}

#[test]
fn a_server_that_is_no_trusted_resolver_can_be_neither_asked_nor_believed() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    world.start_probe(Role::Dns, &["forge-dns"]).unwrap();
    // A rule lets the workload talk to it; that does not make it trusted.
    let agent = world
        .agent(&policy(
            "allow:\n- { names: [\"*.forge.example.com\"] }\n\
             - { cidrs: [10.77.0.55/32], ports: [\"53/udp\"] }",
        ))
        .start();
    let client = world.workload("client");
    let (lookup, moved) = agent.counted(|| ask(&client, Kind::Good, "A", 200));
    assert_eq!(lookup.addresses, [IpAddr::V4(Kind::Good.v4())]);
    tallied(&moved, "dns_answer_untrusted_resolver");
    refused(&client.connect(Kind::Good.v4(), 80));
    let lookup = client.lookup(&[
        "good.forge.example.com",
        "--server",
        zone::STRANGER,
        "--timeout",
        "300",
    ]);
    assert!(
        lookup
            .error
            .is_some_and(|error| error.contains("Operation not permitted"))
    );
}
