//! The second real resolver.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::wildcard_enum_match_arm,
    reason = "tests panic"
)]

use std::time::Duration;

use egress_tests::{
    Resolver, World, eventually,
    expect::{policy, reached, refused},
    ready, zone,
};

#[test]
fn names_are_learned_from_dnsmasq_too() {
    if !ready() {
        return;
    }
    let world = World::builder().resolver(Resolver::Dnsmasq).build();
    let _agent = world
        .agent(&policy(
            "allow: [{ names: [api.example.com, alias.example.com, \"*.cdn.example.net\"] }]\n\
             deny: [{ names: [evil.cdn.example.net] }]",
        ))
        .start();
    let client = world.workload("client");
    for v6 in [false, true] {
        for server in zone::RESOLVER {
            for (name, owner, is_allowed) in [
                ("api.example.com", "api.example.com", true),
                ("alias.example.com", "end.example.org", true),
                ("www.cdn.example.net", "www.cdn.example.net", true),
                ("cdn.example.net", "cdn.example.net", false),
                ("evil.cdn.example.net", "evil.cdn.example.net", false),
                ("forbidden.example.org", "forbidden.example.org", false),
            ] {
                client.resolve_at(name, v6, server);
                let attempt = client.connect(zone::address(owner, v6), 80);
                assert_eq!(attempt.ok, is_allowed, "{name} by {server}: {attempt:?}");
            }
        }
    }
}

#[test]
fn a_libc_resolver_and_curl_reach_allowed_names_only() {
    if !ready() {
        return;
    }
    for resolver in [Resolver::Unbound, Resolver::Dnsmasq] {
        let world = World::builder().resolver(resolver).build();
        let _agent = world
            .agent(&policy("allow: [{ names: [api.example.com] }]"))
            .start();
        let client = world.workload("client");
        let good = client.run_with_resolver("curl", &["-sS", "-m", "5", "http://api.example.com/"]);
        assert_eq!(good.code(), Some(0), "{}", good.shown());
        assert!(good.stdout.starts_with("hello from "), "{}", good.shown());
        let bad =
            client.run_with_resolver("curl", &["-sS", "-m", "5", "http://forbidden.example.org/"]);
        assert_ne!(bad.code(), Some(0), "{}", bad.shown());
    }
}

#[test]
fn dig_gets_its_answers_unchanged() {
    if !ready() {
        return;
    }
    let world = World::new();
    let _agent = world
        .agent(&policy("allow: [{ names: [api.example.com] }]"))
        .start();
    let client = world.workload("client");
    for (name, address) in [
        ("api.example.com", "10.78.1.1"),
        ("forbidden.example.org", "10.78.9.1"),
    ] {
        for how in ["+notcp", "+tcp"] {
            let at = format!("@{}", zone::RESOLVER[0]);
            let output = client.run("dig", &[&at, "+short", how, name]);
            assert_eq!(output.stdout.trim(), address, "{}", output.shown());
        }
    }
    reached(&client.connect("10.78.1.1", 80));
    refused(&client.connect("10.78.9.1", 80));
    assert!(eventually(Duration::from_secs(1), || world
        .web_saw("tcp 10.78.1.1:80")
        == 1));
}
