//! What is decided of a destination without a kernel, and which rules come near.

use egress_common::verdict::{Reason, Verdict};

use crate::tests::{EXAMPLE, compiled, policy};
use crate::{ask::Nearness, compile::Compiled, vocabulary::Destination};

fn to(text: &str) -> Destination {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn reason(compiled: &Compiled, text: &str) -> Reason {
    compiled.judge(&to(text), &[]).reason
}

fn spec(spec: &str) -> Compiled {
    compiled(&policy("p", spec))
}

#[test]
fn names_and_addresses_are_judged_as_the_kernel_would() {
    let compiled = compiled(EXAMPLE);
    for (text, wanted) in [
        ("api.example.com", Reason::NameRule),
        ("api.example.com:8080", Reason::NameRule),
        ("api.example.com:8081", Reason::PortNotAllowed),
        ("api.example.com:443/udp", Reason::PortNotAllowed),
        ("www.example.com", Reason::NoRule),
        ("a.b.cdn.example.net", Reason::NameRule),
        ("cdn.example.net", Reason::NoRule),
        ("evil.cdn.example.net", Reason::NoRule),
        ("10.1.2.3:22", Reason::CidrRule),
        ("10.1.2.3:icmp", Reason::CidrRule),
        ("10.99.1.1", Reason::DeniedCidr),
        ("11.0.0.1", Reason::NoRule),
        ("[fd00::1]:53/udp", Reason::CidrRule),
        ("127.0.0.1:80", Reason::Loopback),
    ] {
        assert_eq!(reason(&compiled, text), wanted, "{text}");
    }
    let decision = compiled.judge(&to("api.example.com"), &[]);
    let rule = compiled.rule_of(&decision).unwrap();
    assert_eq!(
        (rule.destination.as_str(), rule.line),
        ("api.example.com", Some(8))
    );
}

#[test]
fn a_name_that_leads_to_an_address_opens_it_unless_its_network_is_denied() {
    let compiled = compiled(EXAMPLE);
    let judge = |text: &str, names: &[&str]| compiled.judge(&to(text), names).reason;
    assert_eq!(judge("192.0.2.1", &[]), Reason::NoRule);
    assert_eq!(judge("192.0.2.1", &["api.example.com"]), Reason::NameRule);
    assert_eq!(
        judge("192.0.2.1", &["www.example.com", "x.cdn.example.net"]),
        Reason::NameRule
    );
    assert_eq!(
        judge("192.0.2.1:22", &["www.example.com", "api.example.com"]),
        Reason::PortNotAllowed
    );
    assert_eq!(
        judge("192.0.2.1", &["evil.cdn.example.net"]),
        Reason::NoRule
    );
    assert_eq!(judge("10.99.1.1", &["api.example.com"]), Reason::DeniedCidr);
}

#[test]
fn networks_count_for_a_name_when_they_hold_every_address() {
    let all = spec("{ allow: [{ cidrs: [0.0.0.0/0, \"::/0\"] }] }");
    assert_eq!(reason(&all, "api.example.com"), Reason::CidrRule);
    let some = spec("{ allow: [{ cidrs: [0.0.0.0/1] }] }");
    assert_eq!(reason(&some, "api.example.com"), Reason::NoRule);
    // Reached by IPv4 alone is reached.
    let half = spec("{ allow: [{ names: [a.example] }], deny: [{ cidrs: [\"::/0\"] }] }");
    assert_eq!(reason(&half, "a.example"), Reason::NameRule);
    let none =
        spec("{ allow: [{ names: [a.example] }], deny: [{ cidrs: [0.0.0.0/0, \"::/0\"] }] }");
    assert_eq!(reason(&none, "a.example"), Reason::DeniedCidr);
}

#[test]
fn audit_reports_what_enforcing_would_deny() {
    let audit = spec("{ mode: audit, allow: [{ names: [a.example] }] }");
    assert_eq!(
        audit.judge(&to("b.example"), &[]).verdict,
        Verdict::WouldDeny
    );
    assert_eq!(audit.judge(&to("a.example"), &[]).verdict, Verdict::Allow);
}

fn near(compiled: &Compiled, text: &str) -> Vec<(Nearness, String)> {
    let near = compiled.nearest(&to(text));
    near.iter()
        .map(|near| (near.how, near.rule.destination.clone()))
        .collect()
}

#[test]
fn the_nearest_rule_tells_what_was_probably_meant() {
    let compiled = spec(
        "{ allow: [{ names: [api.example.com, db1.zone.example.com, \"*.cdn.example.net\", parent.example.org], \
         ports: [443/tcp] }, { cidrs: [192.0.2.0/25], ports: [80/tcp] }], \
         deny: [{ names: [evil.cdn.example.net] }, { cidrs: [192.0.2.9/32] }] }",
    );
    for (text, how, rule) in [
        (
            "api.example.com:80",
            Nearness::OtherPorts,
            "api.example.com",
        ),
        ("cdn.example.net", Nearness::Apex, "*.cdn.example.net"),
        (
            "evil.cdn.example.net",
            Nearness::Denies,
            "evil.cdn.example.net",
        ),
        (
            "a.parent.example.org",
            Nearness::ParentOnly,
            "parent.example.org",
        ),
        (
            "db2.zone.example.com",
            Nearness::OneLabelOff,
            "db1.zone.example.com",
        ),
        (
            "web.zone.example.com",
            Nearness::OneLabelOff,
            "db1.zone.example.com",
        ),
        (
            "zone.example.com",
            Nearness::OneLabelOff,
            "db1.zone.example.com",
        ),
        ("api.exmaple.com", Nearness::OneLabelOff, "api.example.com"),
        ("api.exmaple.co", Nearness::Alike, "api.example.com"),
        (
            "x.cnd.example.net",
            Nearness::OneLabelOff,
            "*.cdn.example.net",
        ),
        ("192.0.2.1:443", Nearness::OtherPorts, "192.0.2.0/25"),
        ("192.0.2.9:80", Nearness::Denies, "192.0.2.9/32"),
        ("192.0.2.200:80", Nearness::NearNetwork, "192.0.2.0/25"),
    ] {
        let found = near(&compiled, text);
        assert_eq!(
            found.first(),
            Some(&(how, rule.to_owned())),
            "{text}: {found:?}"
        );
    }
    for text in [
        "api.example.com",
        "www.elsewhere.example",
        "198.51.100.1",
        "192.0.2.1:80",
        "[2001:db8::1]:80",
    ] {
        assert_eq!(near(&compiled, text), [], "{text}");
    }
}
