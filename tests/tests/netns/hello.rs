//! Rules that want a connection to name its destination: TLS hellos are read in the kernel.

use std::time::Duration;

use egress_tests::{
    Agent, Workload, World,
    expect::{counted, ip, policy, reached, refused},
    process::Running,
    ready,
    report::Attempt,
    world::Role,
};

use crate::hellos::{Hello, hex};

/// Two names lead here; a rule allows the first.
const SHARED: &str = "10.78.2.7";
const GOOD: &str = "shared.cdn.example.net";
const EVIL: &str = "evilshared.cdn.example.net";

const REQUIRED: &str =
    "allow: [{ names: [shared.cdn.example.net], ports: [443/tcp, 8443/tcp], require: tls }]";

fn pieces(client: &Workload, parts: &[Vec<u8>], more: &[&str]) -> Attempt {
    let parts: Vec<String> = parts.iter().map(|part| hex(part)).collect();
    let mut args = vec!["pieces", SHARED, "443"];
    args.extend(more);
    args.extend(parts.iter().map(String::as_str));
    client.probe(&args)
}

/// The hello leaves in these parts, and comes back.
fn passes(agent: &Agent, client: &Workload, parts: &[Vec<u8>], what: &str) {
    let (attempt, moved) = agent.counted(|| pieces(client, parts, &[]));
    assert!(attempt.ok, "{what}: {attempt:?} {moved:?}");
    assert!(attempt.elapsed_ms < 1_000.0, "{what}: {attempt:?}");
    counted(&moved, "name_rule");
}

/// It does not, for this reason.
fn is_denied(agent: &Agent, client: &Workload, parts: &[Vec<u8>], reason: &str, what: &str) {
    let (attempt, moved) = agent.counted(|| pieces(client, parts, &["--timeout", "300"]));
    assert!(!attempt.ok, "{what}: {attempt:?}");
    assert!(
        moved.reason(reason) > 0,
        "{what} should be {reason}: {:?}",
        moved.by_reason
    );
}

fn split(bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
    bytes.chunks(size).map(<[u8]>::to_vec).collect()
}

#[test]
fn a_name_on_a_shared_address_opens_itself_alone() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy(REQUIRED)).start();
    let client = world.workload("client");
    // Unknown before anybody resolved it.
    refused(&client.connect(SHARED, 443));
    client.resolve(GOOD, false);
    let good = Hello::of(GOOD).bytes();
    passes(&agent, &client, std::slice::from_ref(&good), "allowed");
    let flow = agent
        .flow_to(ip(SHARED), |flow| flow.reason == "name_rule")
        .expect("a flow");
    assert_eq!(flow.server_name.as_deref(), Some(GOOD));
    // Bytes behind the hello pass with it, and after it.
    let behind = [good.clone(), vec![0x17; 3_000]].concat();
    passes(
        &agent,
        &client,
        &[behind, vec![1; 100], vec![2; 9_000]],
        "more",
    );

    is_denied(
        &agent,
        &client,
        &[Hello::of(EVIL).bytes()],
        "name_differs",
        "other",
    );
    let flow = agent
        .flow_to(ip(SHARED), |flow| flow.reason == "name_differs")
        .expect("a flow");
    assert_eq!(flow.server_name.as_deref(), Some(EVIL));
    assert!(flow.names.iter().any(|name| name == GOOD), "{flow:?}");
    assert_eq!(flow.verdict, "denied");
    // Nothing of it arrived, and nothing behind it.
    let parts = [Hello::of(EVIL).bytes(), good];
    is_denied(&agent, &client, &parts, "name_differs", "other first");
    // QUIC: clients fall back.
    let (attempt, moved) = agent.counted(|| client.udp(SHARED, 443, true));
    refused(&attempt);
    counted(&moved, "quic");
}

#[test]
fn a_hello_is_read_however_it_is_cut() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy(REQUIRED)).start();
    let client = world.workload("client");
    client.resolve(GOOD, false);
    let (good, evil) = (Hello::of(GOOD), Hello::of(EVIL));
    let long = |name| Hello::of(name).padded(12_000);
    for (what, good, evil) in [
        ("bytes", split(&good.bytes(), 1), split(&evil.bytes(), 1)),
        ("sevens", split(&good.bytes(), 7), split(&evil.bytes(), 7)),
        ("long", vec![long(GOOD).bytes()], vec![long(EVIL).bytes()]),
        (
            "long in parts",
            split(&long(GOOD).bytes(), 1_000),
            split(&long(EVIL).bytes(), 1_000),
        ),
        (
            "records of 30 bytes",
            vec![good.in_records(30)],
            vec![evil.in_records(30)],
        ),
        (
            "records and writes",
            split(&good.in_records(50), 3),
            split(&evil.in_records(50), 3),
        ),
        (
            "upper case",
            vec![Hello::of(&GOOD.to_uppercase()).bytes()],
            vec![Hello::of(&EVIL.to_uppercase()).bytes()],
        ),
        (
            "final dot",
            vec![Hello::of(&format!("{GOOD}.")).bytes()],
            vec![Hello::of(&format!("{EVIL}.")).bytes()],
        ),
        (
            "name last",
            vec![Hello::of(GOOD).name_last().bytes()],
            vec![Hello::of(EVIL).name_last().bytes()],
        ),
    ] {
        passes(&agent, &client, &good, what);
        is_denied(&agent, &client, &evil, "name_differs", what);
    }
    // Three writes with pauses between.
    let parts = split(&good.bytes(), good.bytes().len() / 3 + 1);
    reached(&pieces(&client, &parts, &["--pause", "100"]));
}

#[test]
fn a_client_whose_hello_is_refused_hears_of_it_at_once() {
    if !ready() {
        return;
    }
    let world = World::new();
    let mut agent = world.agent(&policy(REQUIRED)).start();
    let client = world.workload("client");
    client.resolve(GOOD, false);
    let patient = &["--timeout", "10000"];
    for (reason, bytes) in [
        ("name_differs", Hello::of(EVIL).bytes()),
        ("no_name", Hello::unnamed().bytes()),
        ("not_tls", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let (attempt, moved) = agent.counted(|| pieces(&client, &[bytes], patient));
        counted(&moved, reason);
        assert_eq!(
            attempt.errno.as_deref(),
            Some("ECONNABORTED"),
            "{attempt:?}"
        );
        // A tenth of a second, and what a busy machine adds.
        assert!(attempt.elapsed_ms < 2_000.0, "{attempt:?}");
    }
    // Segments out of order are sent again, by the same socket.
    let good = Hello::of(GOOD).bytes();
    reached(&pieces(&client, &split(&good, 40), &["--pause", "20"]));
    // Without an agent the kernel goes on dropping, and the client waits.
    agent.kill();
    let evil = [Hello::of(EVIL).bytes()];
    let attempt = pieces(&client, &evil, &["--timeout", "1000"]);
    assert!(attempt.is_silent(), "{attempt:?}");
    reached(&pieces(&client, &[good], &[]));
}

#[test]
fn what_names_nothing_or_is_no_hello_is_denied_with_a_reason() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world.agent(&policy(REQUIRED)).start();
    let client = world.workload("client");
    client.resolve(GOOD, false);
    let good = Hello::of(GOOD).bytes();
    let named = |name: &str| Hello::of(name).bytes();
    let mut second_record = good.clone();
    second_record[0] = 23;
    let mut server = good.clone();
    server[5] = 2;
    for (what, reason, bytes) in [
        ("none", "no_name", Hello::unnamed().bytes()),
        ("address", "no_name", named(SHARED)),
        ("address of IPv6", "no_name", named("fd78::2:7")),
        ("empty label", "no_name", named("shared..cdn.example.net")),
        ("NUL", "no_name", named("shared.cdn.example.net\0.evil")),
        (
            "255 bytes",
            "no_name",
            named(&format!("{}a", "a.".repeat(127))),
        ),
        ("two lists", "not_tls", Hello::of(GOOD).twice(EVIL).bytes()),
        (
            "two names",
            "not_tls",
            Hello::of(GOOD).listing(EVIL).bytes(),
        ),
        (
            "HTTP",
            "not_tls",
            b"GET / HTTP/1.1\r\nHost: shared.cdn.example.net\r\n\r\n".to_vec(),
        ),
        (
            "HTTP/2",
            "not_tls",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        ),
        ("garbage", "not_tls", vec![0xff; 200]),
        ("SSH", "not_tls", b"SSH-2.0-x\r\n".to_vec()),
        ("application data", "not_tls", second_record),
        ("another message", "not_tls", server),
        (
            "SSLv2",
            "not_tls",
            vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10],
        ),
        ("ECH", "name_hidden", Hello::of(EVIL).encrypted().bytes()),
        (
            "too long",
            "hello_too_long",
            Hello::of(GOOD).padded(20_000).bytes(),
        ),
        (
            "records of a byte",
            "hello_split",
            Hello::of(GOOD).padded(2_000).in_records(1),
        ),
    ] {
        is_denied(&agent, &client, &[bytes], reason, what);
    }
    passes(
        &agent,
        &client,
        &[Hello::of(GOOD).encrypted().bytes()],
        "allowed outer name",
    );
    let (attempt, moved) = agent.counted(|| {
        pieces(
            &client,
            std::slice::from_ref(&good),
            &["--urgent", "--timeout", "300"],
        )
    });
    assert!(!attempt.ok);
    counted(&moved, "hello_split");
    // Data with the SYN: refused, and sent again without.
    reached(&pieces(&client, &[good], &[]));
}

/// TLS servers in *web*, at the shared address: one for each port, as a connection that never says anything keeps one busy.
fn serve_tls(world: &World, ports: &[&str]) -> Vec<Running> {
    let dir = world.dir();
    let (key, certificate) = (dir.join("key.pem"), dir.join("certificate.pem"));
    let (key, certificate) = (key.to_str().unwrap(), certificate.to_str().unwrap());
    let curve = "ec_paramgen_curve:prime256v1";
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", curve, "-nodes"])
        .args([
            "-days",
            "2",
            "-subj",
            "/CN=test",
            "-keyout",
            key,
            "-out",
            certificate,
        ])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let start = |port: &&str| {
        let mut command = world.helper(Role::Web, "openssl").unwrap();
        command.args([
            "s_server",
            "-accept",
            port,
            "-www",
            "-key",
            key,
            "-cert",
            certificate,
        ]);
        let mut server = Running::start(&mut command, &dir.join("s_server.err")).unwrap();
        server
            .wait_for_line(0, Duration::from_secs(10), |line| line.contains("ACCEPT"))
            .unwrap();
        server
    };
    ports.iter().map(start).collect()
}

#[test]
fn clients_reach_the_allowed_name_at_the_first_try_and_no_other_one() {
    if !ready() {
        return;
    }
    const PORTS: [&str; 8] = [
        "8441", "8442", "8443", "8444", "8445", "8446", "8447", "8448",
    ];
    let world = World::new();
    let _servers = serve_tls(&world, &PORTS);
    let required = REQUIRED.replace("8443/tcp", "8441-8448/tcp");
    let agent = world.agent(&policy(&required)).start();
    let client = world.workload("client");
    let curl = |name: &str, port: &str, more: &[&str]| {
        let url = format!("https://{name}:{port}/");
        let mut args = vec![
            "-sk",
            "--max-time",
            "2",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
        ];
        args.extend(more);
        args.push(&url);
        client.run_with_resolver("curl", &args).stdout
    };
    let fronting = format!("::{GOOD}:");
    let pinned = format!("{EVIL}:8445:{SHARED}");
    for (port, more) in [
        ("8441", &[][..]),
        ("8442", &["--tls-max", "1.2"]),
        ("8443", &["--http1.1"]),
        // The address of the one, the name of the other.
        ("8444", &["--connect-to", &fronting]),
        ("8445", &["--resolve", &pinned]),
    ] {
        assert_eq!(curl(GOOD, port, more), "200", "{more:?}");
        assert_eq!(curl(EVIL, port, more), "000", "{more:?}");
    }
    let flow = agent
        .flow_to(ip(SHARED), |flow| flow.reason == "name_differs")
        .expect("a flow");
    assert_eq!(flow.server_name.as_deref(), Some(EVIL));

    let openssl = |port: &str, more: &[&str]| {
        let to = format!("{SHARED}:{port}");
        let mut args = vec!["2", "openssl", "s_client", "-connect", &to];
        args.extend(more);
        let output = client.run("timeout", &args);
        output.stdout.contains("BEGIN CERTIFICATE")
    };
    assert!(openssl("8446", &["-servername", GOOD]));
    assert!(!openssl("8446", &["-servername", EVIL]));
    assert!(openssl("8447", &["-servername", GOOD]));
    assert!(!openssl("8447", &["-noservername"]));

    // With verification off, so that the name in the hello is all that differs.
    const PYTHON: &str = "import socket, ssl, sys\n\
        context = ssl._create_unverified_context()\n\
        raw = socket.create_connection((sys.argv[1], 8448), timeout=2)\n\
        name = sys.argv[2] if len(sys.argv) > 2 else None\n\
        print(context.wrap_socket(raw, server_hostname=name).version())";
    let python = |name: &[&str]| {
        let args = [&["-c", PYTHON, SHARED], name].concat();
        client.run("python3", &args).stdout.contains("TLSv1")
    };
    assert!(python(&[GOOD]));
    assert!(!python(&[EVIL]) && !python(&[]));
    assert!(python(&[GOOD]), "and again");
}

#[test]
fn a_policy_that_gains_the_field_keeps_flows_and_judges_new_ones() {
    if !ready() {
        return;
    }
    let world = World::new();
    let open = "allow: [{ names: [shared.cdn.example.net], ports: [443/tcp, 8443/tcp] }]";
    let agent = world.agent(&policy(open)).start();
    let client = world.workload("client");
    client.resolve(GOOD, false);
    let mut before = client.hold(SHARED, 443);
    reached(&client.connect(SHARED, 443));
    agent.reload(&policy(REQUIRED));
    assert!(before.is_alive(), "a flow from before goes on");
    let (attempt, moved) = agent.counted(|| client.connect(SHARED, 443));
    assert!(!attempt.ok);
    counted(&moved, "not_tls");
    passes(&agent, &client, &[Hello::of(GOOD).bytes()], "named");
    // And back.
    agent.reload(&policy(open));
    reached(&client.connect(SHARED, 443));
    assert!(before.is_alive());
}

#[test]
fn rules_that_find_no_slot_of_their_own_share_one_and_that_is_counted() {
    if !ready() {
        return;
    }
    const SITES: &str = "10.78.2.8";
    let site = |index: u32| format!("site{index}.example.net");
    let rule = |name: String| format!("{{ names: [{name}], ports: [443/tcp], require: tls }}");
    let world = World::new();
    let rules: Vec<String> = (1..=6).map(|index| rule(site(index))).collect();
    let agent = world
        .agent(&policy(&format!("allow: [{}]", rules.join(", "))))
        .start();
    let client = world.workload("client");
    let mut names = vec![];
    let mut shared = vec![];
    for index in 1..=5 {
        let (_, moved) = agent.counted(|| client.resolve(&site(index), false));
        shared.push(moved.dns("grants_shared") > 0);
        names.push(site(index));
        for name in &names {
            let hello = hex(&Hello::of(name).bytes());
            reached(&client.probe(&["pieces", SITES, "443", &hello]));
        }
        if index == 4 {
            // Nobody asked for it.
            let hello = hex(&Hello::of(&site(6)).bytes());
            let args = ["pieces", SITES, "443", &hello, "--timeout", "300"];
            let (attempt, moved) = agent.counted(|| -> Attempt { client.probe(&args) });
            assert!(!attempt.ok, "{attempt:?}");
            counted(&moved, "name_differs");
        }
    }
    assert_eq!(shared, [false, false, false, false, true]);
    // A name that no rule allows stays closed.
    let hello = hex(&Hello::of(EVIL).bytes());
    let args = ["pieces", SITES, "443", &hello, "--timeout", "300"];
    let (attempt, moved) = agent.counted(|| -> Attempt { client.probe(&args) });
    assert!(!attempt.ok, "{attempt:?}");
    counted(&moved, "name_differs");
}

#[test]
fn audit_reports_the_name_and_lets_it_pass() {
    if !ready() {
        return;
    }
    let world = World::new();
    let agent = world
        .agent(&policy(&format!("mode: audit\n{REQUIRED}")))
        .start();
    let client = world.workload("client");
    client.resolve(GOOD, false);
    let (attempt, moved) = agent.counted(|| {
        let parts = [Hello::of(EVIL).bytes(), vec![7; 2_000], vec![8; 2_000]];
        pieces(&client, &parts, &[])
    });
    reached(&attempt);
    assert!(moved.would_deny > 0 && moved.denied == 0, "{moved:?}");
    let flow = agent
        .flow_to(ip(SHARED), |flow| flow.verdict == "would_deny")
        .expect("a flow");
    assert_eq!(flow.reason, "name_differs");
    assert_eq!(flow.server_name.as_deref(), Some(EVIL));
    passes(&agent, &client, &[Hello::of(GOOD).bytes()], "allowed");
}
