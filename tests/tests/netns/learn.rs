//! From traffic to policy: flows that an auditing agent saw become a policy that allows them, and nothing else.

use std::{fs, process::Command, time::Duration};

use egress_tests::{
    Agent, Workload, World, eventually,
    expect::{policy, reached, refused},
    process, programs, ready,
    report::Attempt,
    zone,
};

/// Longest time until something that was seen is known, or on disk.
const LIMIT: Duration = Duration::from_secs(10);
/// An address without a name.
const BARE: &str = "10.78.9.2";
/// Another one, which nobody used.
const OTHER_BARE: &str = "10.78.9.1";

/// Flows of a workload while it is watched, and again when the learned policy is enforced.
fn everyday(client: &Workload) {
    let address = |name: &str, v6| client.resolve(name, v6)[0];
    reached(&client.connect(address("v6.example.com", true), 443));
    reached(&client.udp(address("new1.example.com", false), 9000, false));
    reached(&client.ping(address("new3.example.com", false)));
    // The name that was asked for counts, not the one at the end of its aliases.
    reached(&client.connect(address("alias.example.com", false), 443));
    // Two names of one address: the one that was asked for last counts.
    address("evilshared.cdn.example.net", false);
    for sibling in ["shared", "www", "evil"] {
        let name = format!("{sibling}.cdn.example.net");
        reached(&client.connect(address(&name, false), 443));
    }
}

/// The first thing that a workload does.
fn first(client: &Workload) {
    reached(&client.connect(client.resolve("api.example.com", false)[0], 80));
}

/// Waits until the agent has seen a name; verdicts arrive a little later than the flows that they report.
fn has_seen(agent: &Agent, name: &str) -> bool {
    eventually(LIMIT, || {
        let seen = agent.observations();
        seen.iter().any(|one| one.name.as_deref() == Some(name))
    })
}

/// The policy with its addresses in force, as its comment says.
fn with_addresses(policy: &str) -> String {
    policy
        .replace("    # - ", "    - ")
        .replace("    #   ", "      ")
}

fn enforced(policy: &str) -> String {
    let enforced = policy.replace("mode: audit", "mode: enforce");
    assert_ne!(enforced, policy);
    enforced
}

#[test]
fn what_was_seen_becomes_a_policy_that_allows_it_and_nothing_else() {
    if !ready() {
        return;
    }
    let world = World::new();
    let (client, web) = (world.workload("client"), world.workload("web"));
    let mut agent = world
        .agent(&policy("mode: audit\nallow: []"))
        .scope("web", web.cgroup())
        .start();

    // Killed as soon as the first thing is on disk, it still knows that.
    first(&client);
    let file = agent.state_dir().join("observations.json");
    let is_kept = || fs::read_to_string(&file).is_ok_and(|text| text.contains("api.example.com"));
    assert!(eventually(LIMIT, is_kept), "{}", agent.log());
    agent.kill();
    agent.start_again();
    assert!(has_seen(&agent, "api.example.com"));

    // An agent that is ended keeps everything.
    everyday(&client);
    reached(&client.connect(BARE, 8080));
    let address = web.resolve("reload.example.com", false)[0];
    reached(&web.connect(address, 8000));
    assert!(has_seen(&agent, "reload.example.com"));
    let before = agent.observations();
    agent.stop();
    agent.start_again();
    assert_eq!(agent.observations(), before);

    // One flow each, whatever its packets, with who and where.
    let one = |name: &str| {
        let mut found = before.iter().filter(|o| o.name.as_deref() == Some(name));
        let one = found
            .next()
            .unwrap_or_else(|| panic!("no {name} in {before:#?}"));
        assert!(found.next().is_none(), "{name} twice in {before:#?}");
        one
    };
    let api = one("api.example.com");
    assert_eq!((api.flows, api.port, &*api.protocol), (1, Some(80), "tcp"));
    assert_eq!((&*api.scope, &*api.verdict), ("node", "would_deny"));
    assert!(api.senders[0].ends_with("/judged/client"), "{api:?}");
    assert_eq!(api.addresses, [zone::address("api.example.com", false)]);
    assert_eq!(one("new3.example.com").protocol, "icmp");
    assert_eq!(
        one("shared.cdn.example.net").other_names,
        ["evilshared.cdn.example.net"]
    );

    let learned = agent.learned_policy(&[]);
    for line in [
        "- names: [alias.example.com]\n      ports: [\"443/tcp\"]\n",
        "- names: [v6.example.com]\n      ports: [\"443/tcp\"]\n",
        "- names: [new1.example.com]\n      ports: [\"9000/udp\"]\n",
        "- names: [reload.example.com]\n      ports: [\"8000/tcp\"]\n",
        "    # - cidrs: [10.78.9.2/32]\n    #   ports: [\"8080/tcp\"]\n",
        "its addresses are also those of evilshared.cdn.example.net\n",
    ] {
        assert!(learned.contains(line), "no {line} in\n{learned}");
    }
    for not in ["end.example.org", "NOT ALL WAS SEEN", "*."] {
        assert!(!learned.contains(not), "{not} in\n{learned}");
    }
    let only_web = agent.learned_policy(&["--from", "web", "--since", "1h"]);
    assert!(only_web.contains("[reload.example.com]"), "{only_web}");
    assert!(!only_web.contains("[api.example.com]"), "{only_web}");
    let nobody = agent.cli(&["policy", "learn", "--from", "nobody"]).unwrap();
    assert_eq!(nobody.code(), Some(2), "{}", nobody.shown());
    assert!(
        nobody.stderr.contains("there are node, web"),
        "{}",
        nobody.shown()
    );

    // `run` would take it.
    let path = world.dir().join("learned.yaml");
    fs::write(&path, &learned).unwrap();
    let mut check = Command::new(programs::agent());
    let check = process::run(
        check.args(["policy", "check"]).arg(&path),
        Duration::from_secs(5),
    );
    assert_eq!(
        check.as_ref().unwrap().code(),
        Some(0),
        "{}",
        check.unwrap().shown()
    );

    agent.reload(&enforced(&learned));
    first(&client);
    everyday(&client);
    reached(&web.connect(web.resolve("reload.example.com", false)[0], 8000));
    // Flows that were not seen are denied: another name, port, protocol, sibling, address.
    let other = client.resolve("other.example.com", false)[0];
    refused(&client.connect(other, 80));
    refused(&client.connect(zone::address("api.example.com", false), 8080));
    refused(&client.udp(zone::address("api.example.com", false), 80, true));
    let sibling = client.resolve("a.b.cdn.example.net", false)[0];
    refused(&client.connect(sibling, 443));
    refused(&client.connect(BARE, 8080));

    // By now nothing is missing, but for what was denied if one asks for it.
    assert!(eventually(LIMIT, || {
        agent
            .learned_policy(&["--include-denied"])
            .contains("[other.example.com]")
    }));
    let missing = agent.learned_policy(&[]);
    assert!(missing.contains("  allow: []\n"), "{missing}");
    let whole = agent.learned_policy(&["--include-allowed"]);
    assert!(
        whole.contains("- names: [api.example.com]\n      ports: [\"80/tcp\"]\n"),
        "{whole}"
    );

    // The wildcard and the address, when somebody decides for them.
    let wide = agent.learned_policy(&["--include-allowed", "--wildcard", "2"]);
    assert!(
        wide.contains("- names: [\"*.cdn.example.net\"]\n"),
        "{wide}"
    );
    assert!(
        wide.contains("instead of 3 names: evil.cdn.example.net, "),
        "{wide}"
    );
    agent.reload(&enforced(&with_addresses(&wide)));
    reached(&client.connect(client.resolve("a.b.cdn.example.net", false)[0], 443));
    refused(&client.connect(client.resolve("cdn.example.net", false)[0], 443));
    reached(&client.connect(BARE, 8080));
    refused(&client.connect(OTHER_BARE, 8080));
}

#[test]
fn what_was_lost_is_said_in_the_policy() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy("mode: audit\nallow: []")).start();
    let client = world.workload("client");
    first(&client);
    assert!(has_seen(&agent, "api.example.com"));
    assert!(!agent.learned_policy(&[]).contains("NOT ALL WAS SEEN"));
    // More verdicts than the kernel reports; nobody listens there, who would slow it down.
    let is_suppressed = || {
        let _sent: Attempt = client.probe(&["flood", OTHER_BARE, "9", "6000"]);
        agent.counters().dns("events_suppressed") > 0
    };
    assert!(eventually(Duration::from_secs(30), is_suppressed));
    let learned = agent.learned_policy(&[]);
    assert!(learned.contains("# NOT ALL WAS SEEN"), "{learned}");
    assert!(
        learned.contains(" events_suppressed, noticed "),
        "{learned}"
    );
    assert!(learned.contains("[api.example.com]"), "{learned}");
}

#[test]
fn a_broken_store_is_set_aside_and_stops_nothing() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world.agent(&policy("mode: audit\nallow: []")).start();
    let client = world.workload("client");
    first(&client);
    assert!(has_seen(&agent, "api.example.com"));
    agent.stop();
    let file = agent.state_dir().join("observations.json");
    fs::write(&file, "{ \"version\": 1, \"saved").unwrap();
    agent.start_again();
    let alarms = agent.status().alarms;
    assert!(
        alarms.iter().any(|alarm| alarm.contains("is broken")),
        "{alarms:?}"
    );
    assert!(file.with_extension("json.unusable").exists());
    assert_eq!(agent.observations(), []);
    first(&client);
    assert!(has_seen(&agent, "api.example.com"));
    let is_kept = || fs::read_to_string(&file).is_ok_and(|text| text.contains("api.example.com"));
    assert!(eventually(LIMIT, is_kept), "{}", agent.log());
}
