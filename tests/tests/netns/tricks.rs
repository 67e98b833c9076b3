//! Names and answers that trip up others: search domains, long names, rotating and repeated addresses, odd TTLs, EDNS,
//! truncation, DNS over TCP in pieces and in batches.

use std::{collections::BTreeSet, fs, net::IpAddr, time::Duration};

use egress_tests::{
    Agent, Workload, World, eventually,
    expect::{ip, policy, reached, refused, tallied},
    ready,
    report::{Attempt, Lookup},
    world::Role,
    zone,
};

/// A server for names that are allowed, `*.fresh.example.com`, and names that are not, `*.stale.example.com`.
fn world(more: &[&str]) -> (World, Agent, Workload) {
    let mut world = World::new();
    let server = [
        "dns-server",
        "--zone",
        "fresh.example.com",
        "--zone",
        "stale.example.com",
    ];
    world
        .start_probe(Role::Dns, &[&server, more].concat())
        .unwrap();
    let agent = world
        .agent(&policy(
            "ttl: { min: 1s, grace: 0s }\nallow: [{ names: [\"*.fresh.example.com\"] }]",
        ))
        .resolver(zone::SERVER)
        .start();
    let client = world.workload("client");
    (world, agent, client)
}

fn ask(client: &Workload, name: &str, how: &[&str]) -> Lookup {
    let lookup = client.lookup(&[&[name, "--server", zone::SERVER], how].concat());
    assert!(lookup.error.is_none(), "{name}: {lookup:?}");
    lookup
}

/// Addresses in answers that the agent has to read are learned a moment later. Until then the kernel defers: it drops
/// the SYN without an error, and the next one, a second later, gets through.
#[track_caller]
fn reached_soon(client: &Workload, address: IpAddr) {
    let address = address.to_string();
    let attempt: Attempt = client.probe(&["connect", &address, "80", "--timeout", "5000"]);
    reached(&attempt);
}

/// After an answer that the agent reads, denied flows are silent for as long as the kernel defers, and refused then.
#[track_caller]
fn refused_soon(client: &Workload, address: &str) {
    let refused = eventually(Duration::from_secs(5), || {
        let attempt = client.connect(address, 80);
        assert!(!attempt.ok, "{attempt:?}");
        attempt.is_refused()
    });
    assert!(refused, "{address} is not refused");
}

#[test]
fn search_domains_that_are_tried_first_do_no_harm() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .start();
    let client = world.workload("client");
    // As in a pod.
    let resolv = world.dir().join("resolv.conf");
    let search = "search ns.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
    let text = fs::read_to_string(&resolv).unwrap();
    fs::write(&resolv, format!("{search}{text}")).unwrap();
    let (good, moved) = agent.counted(|| {
        client.run_with_resolver("curl", &["-sS", "-m", "5", "http://api.example.com/"])
    });
    assert_eq!(good.code(), Some(0), "{}", good.shown());
    // Three suffixes, A and AAAA.
    assert!(moved.dns("dns_answer_error_code") >= 6, "{:?}", moved.dns);
    tallied(&moved, "dns_answer_learned");
    let bad =
        client.run_with_resolver("curl", &["-sS", "-m", "5", "http://forbidden.example.org/"]);
    assert_ne!(bad.code(), Some(0), "{}", bad.shown());
}

#[test]
fn a_name_of_253_bytes_is_learned() {
    if !ready() {
        return;
    }
    let (_world, _agent, client) = world(&[]);
    for (zone, number, is_allowed) in [("fresh", 5, true), ("stale", 6, false)] {
        let name = format!(
            "n{number:062}.{}.{}.{}.{zone}.example.com",
            "a".repeat(63),
            "B".repeat(63),
            "c".repeat(43)
        );
        assert_eq!(name.len(), 253);
        let lookup = ask(&client, &name, &[]);
        let address = format!("10.78.128.{number}");
        assert_eq!(lookup.addresses, [ip(&address)]);
        let attempt = client.connect(&address, 80);
        assert_eq!(attempt.ok, is_allowed, "{attempt:?}");
    }
}

#[test]
fn mixed_case_is_learned_by_every_transport() {
    if !ready() {
        return;
    }
    let (_world, _agent, client) = world(&[]);
    for (name, address, how) in [
        ("N11.FrEsH.eXaMpLe.CoM", "10.78.128.11", &[][..]),
        ("n12.fResh.exAMple.cOm", "10.78.128.12", &["--tcp"]),
        ("N13.fresh.EXAMPLE.com", "10.78.128.13", &["--unconnected"]),
    ] {
        assert_eq!(ask(&client, name, how).addresses, [ip(address)]);
        reached(&client.connect(address, 80));
    }
    ask(&client, "N14.StALe.exAMple.cOm", &[]);
    refused(&client.connect("10.78.128.14", 80));
}

#[test]
fn a_thousand_addresses_that_rotate_are_all_open() {
    if !ready() {
        return;
    }
    let (_world, agent, client) = world(&[]);
    let mut seen = BTreeSet::new();
    for round in 0..63 {
        let lookup = ask(&client, "rotate-16-1000-0.fresh.example.com", &[]);
        assert_eq!(lookup.addresses.len(), 16);
        if round % 8 == 0 {
            reached(&client.connect(lookup.addresses[15], 80));
        }
        seen.extend(lookup.addresses);
    }
    assert_eq!(seen.len(), 1000);
    let learned: BTreeSet<_> = agent.learned().iter().map(|one| one.address).collect();
    assert!(seen.is_subset(&learned), "{} of 1000", learned.len());
    for address in seen.iter().step_by(97) {
        reached(&client.connect(address, 80));
    }
    // All in one answer, in another order each time.
    for _ in 0..2 {
        let lookup = ask(
            &client,
            "rotate-1000-1000-2000.fresh.example.com",
            &["--tcp"],
        );
        assert_eq!(lookup.addresses.len(), 1000);
        for address in lookup.addresses.iter().step_by(333) {
            reached_soon(&client, *address);
        }
    }
    ask(&client, "rotate-16-1000-5000.stale.example.com", &[]);
    refused_soon(&client, "10.78.148.8");
}

#[test]
fn a_ttl_of_zero_lasts_for_the_policys_least_and_one_of_2_to_the_31_is_bounded() {
    if !ready() {
        return;
    }
    let (_world, agent, client) = world(&[]);
    ask(&client, "ttl0-21.fresh.example.com", &[]);
    reached(&client.connect("10.78.128.21", 80));
    for (ttl, number) in [("2147483648", 22), ("4294967295", 23), ("2147483647", 24)] {
        let address = format!("10.78.128.{number}");
        ask(
            &client,
            &format!("ttl{ttl}-{number}.fresh.example.com"),
            &[],
        );
        reached(&client.connect(&address, 80));
        let learned = agent.learned();
        let one = learned.iter().find(|one| one.address == ip(&address));
        let left_s = one.map(|one| one.expires_in_s);
        assert!(
            left_s.is_some_and(|left_s| left_s <= 86_400),
            "{ttl}: {learned:?}"
        );
    }
    // Its second is over.
    assert!(eventually(Duration::from_secs(3), || client
        .connect("10.78.128.21", 80)
        .is_refused()));
    ask(&client, "ttl0-25.stale.example.com", &[]);
    refused(&client.connect("10.78.128.25", 80));
}

#[test]
fn repeated_records_and_repeated_answers_are_learned_once() {
    if !ready() {
        return;
    }
    let (_world, agent, client) = world(&[]);
    let (lookup, moved) = agent.counted(|| {
        ask(
            &client,
            "twice-31.fresh.example.com",
            &["--unconnected", "--collect", "300"],
        )
    });
    assert_eq!(lookup.arrived.len(), 2, "{lookup:?}");
    assert_eq!(lookup.arrived[0].hex, lookup.arrived[1].hex);
    assert_eq!(lookup.addresses, [ip("10.78.128.31"); 3]);
    assert_eq!(moved.dns("dns_answer_learned"), 1, "{:?}", moved.dns);
    tallied(&moved, "dns_answer_replayed");
    reached(&client.connect("10.78.128.31", 80));
    ask(&client, "twice-32.stale.example.com", &[]);
    refused(&client.connect("10.78.128.32", 80));
}

#[test]
fn edns_and_its_options_change_nothing() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(
            "allow: [{ names: [api.example.com, \"*.fresh.example.com\"] }]",
        ))
        .start();
    let client = world.workload("client");
    let at = format!("@{}", zone::RESOLVER[0]);
    for (options, name, address, is_allowed) in [
        (
            "+bufsize=4096 +cookie=0102030405060708",
            "api.example.com",
            "10.78.1.1",
            true,
        ),
        (
            "+bufsize=512 +nsid +subnet=192.0.2.0/24",
            "api.example.com",
            "10.78.1.1",
            true,
        ),
        (
            "+dnssec +ednsopt=65001:00ff +padding=128",
            "forbidden.example.org",
            "10.78.9.1",
            false,
        ),
    ] {
        let mut args = vec![at.as_str(), "+short", "+notcp", "+tries=1"];
        args.extend(options.split(' '));
        args.push(name);
        let (output, moved) = agent.counted(|| client.run("dig", &args));
        assert!(
            output.stdout.lines().any(|line| line == address),
            "{options}: {}",
            output.shown()
        );
        tallied(&moved, "dns_query_noted");
        assert_eq!(moved.dns("dns_answer_malformed"), 0, "{:?}", moved.dns);
        let attempt = client.connect(address, 80);
        assert_eq!(attempt.ok, is_allowed, "{options}: {attempt:?}");
    }
}

#[test]
fn an_answer_that_is_cut_is_asked_again_over_tcp() {
    if !ready() {
        return;
    }
    let (_world, agent, client) = world(&[]);
    let at = format!("@{}", zone::SERVER);
    for (zone, first, is_allowed) in [("fresh", 100, true), ("stale", 200, false)] {
        let name = format!("many-60-{first}.{zone}.example.com");
        let args = [&at, "+short", "+noedns", "+tries=1", &name];
        let (output, moved) = agent.counted(|| client.run("dig", &args));
        assert_eq!(output.stdout.lines().count(), 60, "{}", output.shown());
        if is_allowed {
            tallied(&moved, "dns_answer_truncated");
        }
        for address in output.stdout.lines().step_by(20) {
            let attempt = client.connect(address, 80);
            assert_eq!(attempt.ok, is_allowed, "{name}: {attempt:?}");
        }
    }
}

/// A query in segments of one byte, its answer sent as the label says.
fn query_in_pieces_teaches(label: &str, number: u32) {
    if !ready() {
        return;
    }
    let (_world, _agent, client) = world(&[]);
    let name = format!("{label}{number}.fresh.example.com");
    let lookup = ask(&client, &name, &["--tcp", "--split"]);
    let address = ip(&format!("10.78.128.{number}"));
    assert_eq!(lookup.addresses, [address]);
    reached_soon(&client, address);
    let name = format!("{label}49.stale.example.com");
    ask(&client, &name, &["--tcp", "--split"]);
    refused_soon(&client, "10.78.128.49");
}

#[test]
fn a_query_and_its_answer_in_segments_of_one_byte_teach() {
    query_in_pieces_teaches("split-", 42);
}

#[test]
fn a_query_in_pieces_with_an_answer_in_one_segment_teaches() {
    query_in_pieces_teaches("n", 41);
}

#[test]
fn several_messages_in_one_segment_all_teach() {
    if !ready() {
        return;
    }
    let (_world, _agent, client) = world(&["--batch", "3"]);
    for more in [&[][..], &["--split"]] {
        let names = [
            "--tcp",
            "--also",
            "n52.stale.example.com",
            "--also",
            "n53.fresh.example.com",
        ];
        let lookup = ask(&client, "n51.fresh.example.com", &[&names, more].concat());
        let addresses = ["10.78.128.51", "10.78.128.52", "10.78.128.53"].map(ip);
        assert_eq!(lookup.addresses, addresses);
        reached_soon(&client, addresses[0]);
        reached_soon(&client, addresses[2]);
        refused_soon(&client, "10.78.128.52");
    }
}
