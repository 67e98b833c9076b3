//! Metrics over TCP: plain on loopback, elsewhere for clients with the token alone.

use std::{fs, time::Duration};

use egress_tests::{
    World, eventually,
    expect::{policy, refused},
    programs, ready,
    world::Role,
};

const ALLOW: &str = "allow: [{ cidrs: [10.79.0.0/16] }]";
const TOKEN: &str = "a-token-of-some-length";

/// The status and the text that a client in that namespace gets.
fn get(world: &World, role: Role, args: &[&str]) -> (String, String) {
    let mut curl = world.helper(role, programs::find("curl").unwrap()).unwrap();
    curl.args(["--silent", "--show-error", "--max-time", "5", "--insecure"]);
    curl.args(["--write-out", "\n%{http_code}"]).args(args);
    let output = curl.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

#[test]
fn metrics_are_scraped_on_loopback_without_tls() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy(ALLOW))
        .arg("--listen")
        .arg("127.0.0.1:9964")
        .start();
    let client = world.workload("client");
    refused(&client.connect("10.78.9.9", 443));
    let denied = || {
        let (status, text) = get(&world, Role::Node, &["http://127.0.0.1:9964/metrics"]);
        assert_eq!(status, "200", "{text}");
        text.contains("no_rule")
    };
    assert!(eventually(Duration::from_secs(5), denied));
    // Nothing of what the socket answers is there.
    for path in ["v1/status", "v1/learned", "v1/flows", ""] {
        let url = format!("http://127.0.0.1:9964/{path}");
        let (status, text) = get(&world, Role::Node, &[&url]);
        assert_eq!(status, "404", "{path}: {text}");
    }
}

#[test]
fn others_scrape_over_tls_with_the_token_alone() {
    if !ready() {
        return;
    }
    let world = World::new();
    let made = rcgen::generate_simple_self_signed(["node.example".to_owned()]).unwrap();
    let file = |name: &str, text: &str| {
        let path = world.dir().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let cert = file("cert.pem", &made.cert.pem());
    let key = file("key.pem", &made.signing_key.serialize_pem());
    let token = file("token", &format!("{TOKEN}\n"));
    let agent = |args: &[&str]| {
        let mut options = world.agent(&policy(ALLOW));
        for arg in args {
            options = options.arg(*arg);
        }
        options
    };

    // The agent refuses metrics that others on the network could read, before it changes anything.
    let error = agent(&["--listen", "0.0.0.0:9964", "--listen-token", &token])
        .try_start()
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    assert!(error.contains("--listen-cert"), "{error}");

    let _agent = agent(&[
        "--listen",
        "0.0.0.0:9964",
        "--listen-cert",
        &cert,
        "--listen-key",
        &key,
        "--listen-token",
        &token,
    ])
    .start();
    let url = "https://10.77.0.2:9964/metrics";
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    let (status, text) = get(&world, Role::Web, &["--header", &bearer(TOKEN), url]);
    assert_eq!(status, "200", "{text}");
    assert!(text.contains("egress_"), "{text}");
    for args in [
        vec![url],
        vec![
            "--header",
            "Authorization: Bearer a-token-of-some-lengtg",
            url,
        ],
        vec!["--header", "Authorization: Bearer ", url],
    ] {
        let (status, text) = get(&world, Role::Web, &args);
        assert_eq!(status, "401", "{text}");
        assert!(!text.contains("egress_"), "{text}");
    }
    let (status, text) = get(&world, Role::Web, &["http://10.77.0.2:9964/metrics"]);
    assert_ne!(status, "200", "{text}");
    // The token is read again.
    fs::write(&token, "another-token-of-some-length").unwrap();
    let (status, _) = get(&world, Role::Web, &["--header", &bearer(TOKEN), url]);
    assert_eq!(status, "401");
    let another = bearer("another-token-of-some-length");
    let (status, text) = get(&world, Role::Web, &["--header", &another, url]);
    assert_eq!(status, "200", "{text}");
}
