//! Compiled entries, one property of the union at a time.

use std::{collections::HashSet, path::Path};

use egress_common::{
    policy::{
        CidrRules, EntryKind, HAS_AUDITORS, HAS_DENIED_NAMES, KEEP_PREEXISTING, NameRules,
        ONLY_ALLOWED_QUERIES, PortRange, REQUIRE_TLS,
        protocol::{TCP, UDP},
    },
    verdict::{Mode, Reason},
};

use crate::tests::{EXAMPLE, compiled, policy, set};
use crate::{
    compile::{Compiled, compile},
    document::{PolicySet, RuleList},
    vocabulary::{Destination, Lifeline, address_from, ports_text},
};

fn name_ports(rules: &NameRules) -> Vec<String> {
    let used = rules.entries.iter().take_while(|entry| entry.kind != 0);
    used.map(|entry| ports_text(&[entry.ports])).collect()
}

fn at<'a>(compiled: &'a Compiled, name: &str) -> &'a NameRules {
    compiled.rules_of_name(name).unwrap()
}

fn of<'a>(compiled: &'a Compiled, address: &str) -> Option<&'a CidrRules> {
    compiled.rules_of_address(&address_from(address.parse().unwrap()))
}

/// What decides about TCP port 443 of an address: the kind and the destination of the rule.
fn deciding(compiled: &Compiled, address: &str, port: u16) -> Option<(u8, String)> {
    let entry = of(compiled, address)?.find(TCP, Some(port), true)?;
    Some((entry.kind, compiled.rules[&entry.rule].destination.clone()))
}

#[test]
fn the_example_compiles() {
    let compiled = compiled(EXAMPLE);
    assert_eq!(compiled.mode, Mode::Enforce);
    assert_eq!(compiled.flags, KEEP_PREEXISTING | HAS_DENIED_NAMES);
    assert_eq!(
        name_ports(at(&compiled, "api.example.com")),
        ["443/tcp", "8000-8080/tcp"]
    );
    assert!(compiled.rules_of_name("www.example.com").is_none());
    assert_eq!(compiled.rules.len(), 6);
    let deny = at(&compiled, "evil.cdn.example.net").deny;
    let source = &compiled.rules[&deny];
    assert_eq!(
        (source.list, source.index, source.line),
        (RuleList::Deny, 0, Some(13))
    );
    assert_eq!(source.file.as_deref(), Some(Path::new("policy.yaml")));
}

#[test]
fn what_a_connection_has_to_say_goes_with_the_ports_of_its_names() {
    let both = "{ allow: [\
         { names: [api.example.com, '*.cdn.example.net'], ports: [443/tcp], require: tls },\
         { names: [open.cdn.example.net], ports: [443/tcp] }] }";
    let both = compiled(&policy("p", both));
    let required = |name| {
        let used = at(&both, name).entries;
        let used = used.iter().take_while(|entry| entry.kind != 0);
        used.map(|entry| entry.ports.require).collect::<Vec<u8>>()
    };
    assert_eq!(required("api.example.com"), [REQUIRE_TLS]);
    assert_eq!(required("www.cdn.example.net"), [REQUIRE_TLS]);
    // Both rules cover it: what is open stays open.
    assert_eq!(required("open.cdn.example.net"), [0, REQUIRE_TLS]);
    // The rule is the same one without it: flows that it allowed go on when it gains or loses that.
    let text = "{ allow: [{ names: [api.example.com], ports: [443/tcp], require: tls }] }";
    let rules = |text: &str| {
        let compiled = compiled(&policy("p", text));
        compiled.rules.keys().copied().collect::<HashSet<u64>>()
    };
    let without = text.replace(", require: tls", "");
    assert_eq!(rules(text), rules(&without));
    assert_eq!(rules(&without), rules(&text.replace("tls }", "none }")));
}

#[test]
fn a_ceiling_leaves_what_a_rule_requires() {
    let of_cluster = policy(
        "c",
        "{ ceiling: true, allow: [{ names: ['*.example.com'], ports: [any/tcp] }] }",
    )
    .replace("kind: EgressPolicy", "kind: ClusterEgressPolicy");
    let of_namespace = policy(
        "n",
        "{ podSelector: {}, allow: [{ names: [api.example.com, other.example.net], ports: [443/tcp], require: tls }] }",
    );
    let compiled = compiled(&format!("{of_cluster}---\n{of_namespace}"));
    let [first, second, ..] = at(&compiled, "api.example.com").entries;
    assert_eq!((first.ports.require, second.kind), (REQUIRE_TLS, 0));
    assert!(compiled.rules_of_name("other.example.net").is_none());
}

#[test]
fn a_wildcard_excludes_its_apex() {
    let compiled = compiled(&policy("p", "{ allow: [{ names: [\"*.example.com\"] }] }"));
    assert!(compiled.rules_of_name("example.com").is_none());
    assert!(compiled.rules_of_name("notexample.com").is_none());
    assert!(compiled.rules_of_name("a.example.com").is_some());
    assert!(compiled.rules_of_name("a.b.example.com").is_some());
}

#[test]
fn longer_patterns_hold_what_shorter_ones_allow() {
    let compiled = compiled(&policy(
        "p",
        "{ allow: [
            { names: ['*.example.com'], ports: [80/tcp] },
            { names: ['*.b.example.com'], ports: [81/tcp, 80/tcp] },
            { names: [a.b.example.com], ports: [82/tcp] },
            { names: [b.example.com], ports: [83/tcp] } ] }",
    ));
    assert_eq!(
        name_ports(at(&compiled, "a.b.example.com")),
        ["82/tcp", "81/tcp", "80/tcp"]
    );
    assert_eq!(
        name_ports(at(&compiled, "x.b.example.com")),
        ["81/tcp", "80/tcp"]
    );
    assert_eq!(
        name_ports(at(&compiled, "b.example.com")),
        ["83/tcp", "80/tcp"]
    );
    assert_eq!(name_ports(at(&compiled, "x.example.com")), ["80/tcp"]);
    // An equal range is kept for the longest pattern's rule.
    let rule = at(&compiled, "a.b.example.com").entries[2].rule;
    assert_eq!(compiled.rules[&rule].destination, "*.b.example.com");
}

#[test]
fn a_deny_covers_every_name_below_it() {
    let compiled = compiled(&policy(
        "p",
        "{ allow: [{ names: [a.bad.example, '*.good.example', '*.x.bad.example'] }],
           deny: [{ names: ['*.bad.example', evil.good.example] }] }",
    ));
    for name in [
        "a.bad.example",
        "b.bad.example",
        "y.x.bad.example",
        "evil.good.example",
    ] {
        let rules = at(&compiled, name);
        assert_ne!(rules.deny, 0, "{name}");
        assert_eq!(rules.entries[0].kind, 0, "{name}");
    }
    for name in ["a.good.example", "a.evil.good.example"] {
        assert_eq!(at(&compiled, name).deny, 0, "{name}");
    }
    assert!(compiled.rules_of_name("bad.example").is_none());
}

#[test]
fn longer_networks_hold_what_shorter_ones_say() {
    let compiled = compiled(&policy(
        "p",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [443/tcp] }, { cidrs: [10.1.0.0/16], ports: [80/tcp] }],
           deny: [{ cidrs: [10.1.2.0/24] }, { cidrs: [10.0.0.0/8], ports: [22/tcp] }] }",
    ));
    let allow = EntryKind::Allow as u8;
    let deny = EntryKind::Deny as u8;
    let expect = |kind, text: &str| Some((kind, text.to_owned()));
    assert_eq!(
        deciding(&compiled, "10.1.9.9", 443),
        expect(allow, "10.0.0.0/8")
    );
    assert_eq!(
        deciding(&compiled, "10.1.9.9", 80),
        expect(allow, "10.1.0.0/16")
    );
    assert_eq!(
        deciding(&compiled, "10.1.9.9", 22),
        expect(deny, "10.0.0.0/8")
    );
    assert_eq!(
        deciding(&compiled, "10.1.2.3", 443),
        expect(deny, "10.1.2.0/24")
    );
    assert_eq!(deciding(&compiled, "10.9.9.9", 80), None);
    assert_eq!(deciding(&compiled, "11.0.0.1", 80), None);
}

#[test]
fn an_ipv6_network_never_decides_about_ipv4() {
    for network in [
        "::/0",
        "::/80",
        "::ff00:0:0/88",
        "::ffc0:0:0/90",
        "::fffe:0:0/95",
    ] {
        let wide = compiled(&policy(
            "p",
            &format!("{{ allow: [{{ cidrs: ['{network}'] }}] }}"),
        ));
        assert_eq!(
            of(&wide, "192.0.2.1"),
            Some(&CidrRules::default()),
            "{network}"
        );
        assert_eq!(deciding(&wide, "192.0.2.1", 443), None, "{network}");
    }
    let both = compiled(&policy(
        "p",
        "{ allow: [{ cidrs: ['::/0'], ports: [443/tcp] }, { cidrs: [192.0.2.0/24], ports: [80/tcp] }] }",
    ));
    let expect = |text: &str| Some((EntryKind::Allow as u8, text.to_owned()));
    assert_eq!(deciding(&both, "2001:db8::1", 443), expect("::/0"));
    assert_eq!(deciding(&both, "192.0.2.1", 80), expect("192.0.2.0/24"));
    assert_eq!(deciding(&both, "192.0.2.1", 443), None);
    let zero = compiled(&policy(
        "p",
        "{ allow: [{ cidrs: [0.0.0.0/0] }], deny: [{ cidrs: ['::/0'] }] }",
    ));
    assert_eq!(deciding(&zero, "192.0.2.1", 443), expect("0.0.0.0/0"));
    // A network beside ::ffff:0:0/96 needs no shield.
    let narrow = compiled(&policy(
        "p",
        "{ allow: [{ cidrs: ['fd00::/8', '::/90'] }] }",
    ));
    assert_eq!(narrow.cidrs.len(), 2);
}

#[test]
fn the_lifeline_beats_a_deny_rule() {
    let set = set(&policy("p", "{ deny: [{ cidrs: [0.0.0.0/0, '::/0'] }] }"));
    let lifeline = Lifeline::new()
        .resolvers(&[
            "10.0.0.53:53".parse().unwrap(),
            "[fd00::53]:53".parse().unwrap(),
        ])
        .node_addresses(&["10.0.0.1".parse().unwrap()])
        .dhcp()
        .api_server("10.0.0.2".parse().unwrap(), 6443)
        .cluster_ranges(&["10.244.0.0/16".parse().unwrap()]);
    let compiled = compile(&set, &lifeline, None).unwrap();
    let kind = |address: &str, proto, port| {
        let entry = of(&compiled, address)
            .unwrap()
            .find(proto, Some(port), true)
            .unwrap();
        entry.kind
    };
    let (life, deny) = (EntryKind::Lifeline as u8, EntryKind::Deny as u8);
    for (address, proto, port, expected) in [
        ("10.0.0.53", UDP, 53, life),
        ("10.0.0.53", TCP, 53, life),
        ("10.0.0.53", TCP, 443, deny),
        ("fd00::53", UDP, 53, life),
        ("10.0.0.1", TCP, 10250, EntryKind::Local as u8),
        ("10.0.0.2", TCP, 6443, life),
        ("10.0.0.2", TCP, 22, deny),
        ("10.244.3.4", UDP, 9, life),
        ("255.255.255.255", UDP, 67, life),
        ("255.255.255.255", UDP, 68, deny),
        ("ff02::1:2", UDP, 547, life),
        ("10.245.0.1", TCP, 443, deny),
    ] {
        assert_eq!(kind(address, proto, port), expected, "{address} {port}");
    }
    let rule = of(&compiled, "10.0.0.2").unwrap().entries[0].rule;
    let source = &compiled.rules[&rule];
    assert_eq!(
        (source.policy.as_str(), source.list),
        ("lifeline", RuleList::Lifeline)
    );
    assert_eq!(source.destination, "api-server 10.0.0.2/32");
}

#[test]
fn what_an_earlier_entry_covers_takes_no_place() {
    let compiled = compiled(&policy(
        "p",
        "{ allow: [{ cidrs: [10.0.0.0/8] }, { cidrs: [10.0.0.0/8], ports: [443/tcp, any/udp, icmp] }] }",
    ));
    let rules = of(&compiled, "10.0.0.1").unwrap();
    assert_eq!(rules.entries[0].ports, PortRange::ANY);
    assert_eq!(rules.entries[1].kind, 0);
}

#[test]
fn the_longest_life_of_all_policies_wins() {
    let text = format!(
        "{}---\n{}",
        policy(
            "a",
            "{ ttl: { min: 30s, max: 1m }, allow: [{ names: [a.example.com, '*.example.com'] }] }"
        ),
        policy(
            "b",
            "{ ttl: { min: 5m, max: 10m }, allow: [{ names: [a.example.com] }] }"
        ),
    );
    let compiled = compiled(&text);
    let bounds = |name| {
        let rules = at(&compiled, name);
        (rules.ttl_min_s, rules.ttl_max_s)
    };
    assert_eq!(bounds("a.example.com"), (300, 600));
    assert_eq!(bounds("b.example.com"), (30, 60));
}

#[test]
fn a_rule_keeps_its_number_wherever_it_stands() {
    let numbers = |text: &str| -> HashSet<u64> { compiled(text).rules.into_keys().collect() };
    let one = "{ names: [API.example.com.], ports: [443/tcp, 80/tcp] }";
    let same = "{ names: [api.example.com], ports: [80/TCP, 443/tcp, 80/tcp] }";
    let other = "{ names: [b.example.com] }";
    let first = numbers(&policy("p", &format!("{{ allow: [{one}] }}")));
    let moved = numbers(&policy(
        "p",
        &format!("{{ mode: audit, allow: [{other}, {same}] }}"),
    ));
    assert!(moved.is_superset(&first) && moved.len() == 2 && !moved.contains(&0));
    for changed in [
        policy("q", &format!("{{ allow: [{one}] }}")),
        policy("p", "{ deny: [{ names: [api.example.com] }] }"),
        policy(
            "p",
            "{ allow: [{ names: [api.example.com], ports: [443/tcp] }] }",
        ),
        policy(
            "p",
            "{ allow: [{ names: ['*.api.example.com'], ports: [443/tcp, 80/tcp] }] }",
        ),
    ] {
        assert!(numbers(&changed).is_disjoint(&first), "{changed}");
    }
    let any = |ports: &str| {
        numbers(&policy(
            "p",
            &format!("{{ allow: [{{ cidrs: [10.0.0.0/8]{ports} }}] }}"),
        ))
    };
    assert_eq!(any(""), any(", ports: [any]"));
}

#[test]
fn preexisting_flows_are_kept_only_if_all_policies_say_so() {
    let text = |a: &str, b: &str| {
        format!(
            "{}---\n{}",
            policy("a", &format!("{{ preexisting: {a} }}")),
            policy("b", &format!("{{ preexisting: {b} }}"))
        )
    };
    assert_eq!(compiled(&text("keep", "keep")).flags, KEEP_PREEXISTING);
    assert_eq!(compiled(&text("keep", "judge")).flags, 0);
}

#[test]
fn beside_enforced_policies_one_in_audit_only_looks_on() {
    let text = format!(
        "{}---\n{}",
        policy(
            "a",
            "{ mode: enforce, allow: [{ names: [a.b, c.b], cidrs: [10.0.0.0/8] }] }"
        ),
        policy(
            "b",
            "{ mode: audit, dns: { queries: allowed }, preexisting: judge, allow: [{ names: [d.b] }], \
             deny: [{ names: [a.b] }, { cidrs: [10.1.0.0/16] }] }"
        )
    );
    let set = set(&text);
    let compiled = compile(&set, &Lifeline::new(), None).unwrap();
    assert_eq!(compiled.mode, Mode::Enforce);
    assert_eq!(compiled.flags, KEEP_PREEXISTING | HAS_AUDITORS);
    let audited = compiled.rules_of_name("a.b").unwrap();
    assert_eq!(
        (audited.deny, audited.entries[0].kind),
        (0, EntryKind::Allow as u8)
    );
    let auditor = &compiled.rules[&audited.auditor];
    assert_eq!((auditor.policy.as_str(), auditor.is_audited), ("b", true));
    assert_eq!(compiled.auditor_of_name("c.b"), 0);
    assert_eq!(compiled.rules_of_name("d.b"), None);
    let kinds = |address: [u8; 4]| -> Vec<u8> {
        let rules = compiled
            .rules_of_address(&egress_common::address::from_v4(address))
            .unwrap();
        let used = rules.entries.iter().take_while(|entry| entry.kind != 0);
        used.map(|entry| entry.kind).collect()
    };
    assert_eq!(kinds([10, 2, 0, 1]), [EntryKind::Allow as u8]);
    assert_eq!(
        kinds([10, 1, 0, 1]),
        [EntryKind::Allow as u8, EntryKind::Audited as u8]
    );
    for (text, reason, auditor) in [
        ("a.b:443", Reason::AuditedName, Some("b")),
        ("c.b:443", Reason::NameRule, None),
        ("d.b:443", Reason::NoRule, None),
        ("10.1.0.1:443", Reason::AuditedCidr, Some("b")),
        ("10.2.0.1:443", Reason::CidrRule, None),
    ] {
        let destination: Destination = text.parse().unwrap();
        assert_eq!(compiled.judge(&destination, &[]).reason, reason, "{text}");
        let rule = compiled.auditor_of(&destination, &[]);
        assert_eq!(rule.map(|rule| rule.policy.as_str()), auditor, "{text}");
    }
    // One mode for all: nobody looks on.
    for mode in [Mode::Enforce, Mode::Audit] {
        let compiled = compile(&set, &Lifeline::new(), Some(mode)).unwrap();
        assert_eq!(compiled.mode, mode);
        assert_eq!(compiled.flags, HAS_DENIED_NAMES | ONLY_ALLOWED_QUERIES);
        assert!(compiled.rules.values().all(|rule| !rule.is_audited));
        assert_ne!(compiled.rules_of_name("a.b").unwrap().deny, 0);
        assert!(compiled.rules_of_name("d.b").is_some());
    }
}

#[test]
fn a_name_holds_eight_port_ranges_and_not_nine() {
    let ports = |first: u16, last: u16| {
        let texts: Vec<String> = (first..=last).map(|port| format!("{port}/tcp")).collect();
        texts.join(", ")
    };
    let text = |last| {
        policy(
            "p",
            &format!(
                "\n  allow:\n  - names: ['*.example.com']\n    ports: [{}]\n  - names: [b.example, a.example.com]\n    ports: [{}]",
                ports(1, 4),
                ports(4, last)
            ),
        )
    };
    let full = compiled(&text(8));
    assert_eq!(name_ports(at(&full, "a.example.com")).len(), 8);
    let error = compile(&set(&text(9)), &Lifeline::new(), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "policy.yaml:8: spec.allow[1].names[1]: 9 different port ranges meet at a.example.com, but a name can have 8: \
         policy.yaml:8: spec.allow[1].names[1] (4/tcp, 5/tcp, 6/tcp, 7/tcp, 8/tcp, 9/tcp), \
         policy.yaml:6: spec.allow[0].names[0] (1/tcp, 2/tcp, 3/tcp); join ranges, or use any/tcp"
    );
}

#[test]
fn a_network_holds_sixteen_entries_and_not_seventeen() {
    let text = |last: u16| {
        let ports: Vec<String> = (1..=last).map(|port| format!("{port}/tcp")).collect();
        policy(
            "p",
            &format!(
                "{{ allow: [{{ cidrs: [10.0.0.0/8], ports: [{}] }}] }}",
                ports.join(", ")
            ),
        )
    };
    let lifeline = Lifeline::new().resolvers(&["10.0.0.53:53".parse().unwrap()]);
    assert!(compile(&set(&text(14)), &lifeline, None).is_ok());
    assert!(compile(&set(&text(16)), &Lifeline::new(), None).is_ok());
    let error = compile(&set(&text(15)), &lifeline, None).unwrap_err();
    let start = "policy.yaml:4: spec.allow[0].cidrs[0]: 17 different entries meet at 10.0.0.53/32, but a CIDR can have 16: \
                 lifeline (53/udp, 53/tcp), policy.yaml:4: spec.allow[0].cidrs[0] (1/tcp, 2/tcp";
    assert!(error.to_string().starts_with(start), "{error}");
}

#[test]
fn a_hundred_thousand_rules_for_one_name_end_in_one_message() {
    let mut text = policy(
        "p",
        "\n  allow:\n  - names: ['*.example.com']\n    cidrs: [10.0.0.0/8]\n",
    );
    // Unoptimised the parser is slow.
    let rules = if cfg!(debug_assertions) {
        2_000
    } else {
        100_000
    };
    for port in 0..rules {
        let (first, last) = (port / 60_000 + 1, port % 60_000 + 2);
        text.push_str(&format!(
            "  - {{ names: ['*.example.com', a.b.example.com], cidrs: [10.0.0.0/8], ports: [{first}-{last}/tcp] }}\n"
        ));
    }
    let error = compile(&set(&text), &Lifeline::new(), None).unwrap_err();
    let messages: Vec<&str> = error
        .errors()
        .iter()
        .map(|error| error.place.field.as_str())
        .collect();
    assert_eq!(
        messages,
        ["spec.allow[0].names[0]", "spec.allow[1].names[1]"]
    );
    assert!(
        error
            .to_string()
            .contains("more than 64 different port ranges meet at *.example.com")
    );
}

#[test]
fn no_policies_allow_nothing() {
    let empty = compile(&PolicySet::default(), &Lifeline::new(), None).unwrap();
    assert_eq!(
        (empty.mode, empty.names.len(), empty.cidrs.len()),
        (Mode::Enforce, 0, 0)
    );
    let nothing = compiled(&policy("p", "{ allow: [] }"));
    assert_eq!((nothing.names.len(), nothing.cidrs.len()), (0, 0));
}
