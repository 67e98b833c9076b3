//! No race between an answer and the connect that follows it.

use egress_tests::{
    World, expect::policy, ready, report::Series, skip::is_quick, world::Role, zone,
};

/// Names of the long test.
const NAMES: u32 = 20_000;
/// The same in a quick run.
const NAMES_QUICK: u32 = 2_000;

fn series(
    client: &egress_tests::Workload,
    zone: &str,
    count: u32,
    first: u32,
    kind: &str,
    more: &[&str],
) -> Series {
    let (count, first) = (count.to_string(), first.to_string());
    let args = [
        "resolve-connect",
        "--count",
        &count,
        "--first",
        &first,
        "--server",
        zone::SERVER,
        "--zone",
        zone,
        "--cpu",
        "0",
        "--type",
        kind,
    ];
    client
        .try_probe(&[&args, more].concat(), std::time::Duration::from_secs(240))
        .unwrap()
}

#[test]
fn connect_right_after_resolve() {
    if !ready() {
        return;
    }
    let mut world = World::new();
    world
        .start_probe(
            Role::Dns,
            &[
                "dns-server",
                "--zone",
                "fresh.example.com",
                "--zone",
                "stale.example.com",
            ],
        )
        .unwrap();
    // Client and agent on different CPUs, where there are two.
    let options = world
        .agent(&policy(
            "allow: [{ names: [\"*.fresh.example.com\"], ports: [\"80/tcp\"] }]",
        ))
        .resolver(zone::SERVER);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let agent = if cpus > 1 {
        options.cpu(1).start()
    } else {
        options.start()
    };
    let client = world.workload("client");
    let names = if is_quick() { NAMES_QUICK } else { NAMES };

    let (good, moved) = agent.counted(|| series(&client, "fresh.example.com", names, 0, "A", &[]));
    eprintln!("{good:?}");
    assert_eq!(
        (good.count, good.refused, good.failed, good.unresolved),
        (names, 0, 0, 0),
        "{:?} {moved:?}",
        good.examples
    );
    assert_eq!(moved.denied, 0, "{moved:?}");
    assert!(
        moved.dns("dns_answer_learned") >= u64::from(names),
        "{moved:?}"
    );
    assert!(moved.reason("name_rule") >= u64::from(names), "{moved:?}");

    let six = series(&client, "fresh.example.com", 1000, 0, "AAAA", &[]);
    assert_eq!(
        (six.count, six.refused, six.failed, six.unresolved),
        (1000, 0, 0, 0),
        "{six:?}"
    );

    let tcp = series(&client, "fresh.example.com", 1000, 22_000, "A", &["--tcp"]);
    assert_eq!(
        (tcp.count, tcp.refused, tcp.failed, tcp.unresolved),
        (1000, 0, 0, 0),
        "over TCP: {tcp:?}"
    );

    // The twin: addresses that nobody has learned yet, by names without a rule.
    let bad = series(&client, "stale.example.com", 200, 25_000, "A", &[]);
    assert_eq!((bad.count, bad.refused), (200, 200), "{bad:?}");
}
