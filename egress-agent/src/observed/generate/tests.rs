use std::path::Path;

use egress_common::policy::protocol;

use super::*;
use crate::{
    observed::{
        Packet, Table,
        testing::{address, at, names, packet},
    },
    policy::{Catalog, Compiled, Lifeline, PolicySet, compile},
};

fn options() -> GenerateOptions {
    GenerateOptions {
        name: "learned".to_owned(),
        at: at(3_600),
        since: None,
        from: None,
        wildcard: None,
        include_allowed: false,
        include_denied: false,
    }
}

/// The policy as an agent would compile it.
fn compiled(text: &str) -> Compiled {
    let set = PolicySet::from_texts([(Path::new("learned.yaml"), text)], &Catalog::default())
        .unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    compile(&set, &Lifeline::new(), None).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// Names and addresses that the policy allows.
fn allows(text: &str) -> Vec<String> {
    let mut allowed: Vec<String> = compiled(text)
        .rules
        .values()
        .map(|rule| {
            format!(
                "{} {}",
                rule.destination,
                crate::policy::ports_text(&rule.ports)
            )
        })
        .collect();
    allowed.sort();
    allowed.dedup();
    allowed
}

/// Some of everything.
fn seen() -> Observations {
    let mut table = Table::default();
    let v6 = "2001:db8::1".parse().unwrap();
    for packet in [
        packet(1, "api.example.com", 443),
        packet(9, "api.example.com", 443),
        packet(2, "api.example.com", 80),
        Packet {
            scope: "web",
            sender: "/web.slice",
            ..packet(3, "api.example.com", 443)
        },
        Packet {
            destination: v6,
            protocol: protocol::UDP,
            ..packet(4, "v6.example.com", 443)
        },
        Packet {
            protocol: protocol::ICMPV6,
            port: None,
            destination: v6,
            ..packet(4, "v6.example.com", 0)
        },
        Packet {
            names: names(&["shared.example.net", "twin.example.net"]),
            ..packet(5, "", 443)
        },
        Packet {
            destination: address(9),
            sender: "from 10.244.1.7",
            reason: Reason::PortNotAllowed,
            ..packet(6, "", 8080)
        },
        Packet {
            destination: "2001:db8::9".parse().unwrap(),
            ..packet(6, "", 22)
        },
        Packet {
            protocol: 47,
            port: None,
            ..packet(7, "tunnel.example.com", 0)
        },
        Packet {
            reason: Reason::DeniedCidr,
            destination: address(66),
            ..packet(7, "", 443)
        },
        Packet {
            reason: Reason::Malformed,
            ..packet(7, "", 0)
        },
        Packet {
            verdict: Verdict::Allow,
            reason: Reason::NameRule,
            ..packet(8, "allowed.example.com", 443)
        },
        Packet {
            verdict: Verdict::Deny,
            ..packet(8, "denied.example.com", 443)
        },
        // A question to a resolver need not be a name.
        packet(9, "we\\032ird.example.com", 443),
    ] {
        table.record(&packet);
    }
    table.lose("events_suppressed", 1_200, at(5));
    table.lose("events_suppressed", 1, at(8));
    table.observations()
}

#[test]
fn a_policy_looks_like_this() {
    let text = generate(&seen(), &options()).text;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/observed/generate/golden.yaml");
    assert_eq!(text, crate::golden::golden(&path, &text));
    assert_eq!(
        allows(&text),
        [
            "api.example.com 80/tcp, 443/tcp",
            "shared.example.net 443/tcp",
            "v6.example.com 443/udp, icmp",
        ]
    );
}

#[test]
fn addresses_become_rules_when_their_comment_marks_are_taken_away() {
    let on = |text: &str| {
        text.replace("    # - ", "    - ")
            .replace("    #   ", "      ")
    };
    let allowed = allows(&on(&generate(&seen(), &options()).text));
    assert!(
        allowed.contains(&"192.0.2.9/32 8080/tcp".to_owned()),
        "{allowed:?}"
    );
    assert!(
        allowed.contains(&"2001:db8::9/128 22/tcp".to_owned()),
        "{allowed:?}"
    );
    // Without any name they stand below an empty list.
    let mut table = Table::default();
    table.record(&packet(0, "", 443));
    let generated = generate(&table.observations(), &options());
    assert_eq!((generated.rules, generated.addresses), (0, 1));
    assert_eq!(allows(&generated.text), [""; 0]);
    let text = generated.text.replace("allow: []", "allow:");
    assert_eq!(allows(&on(&text)), ["192.0.2.7/32 443/tcp"]);
}

#[test]
fn nothing_seen_is_a_policy_that_allows_nothing() {
    let generated = generate(&Observations::default(), &options());
    assert_eq!(allows(&generated.text), [""; 0]);
    assert_eq!((generated.rules, generated.addresses), (0, 0));
}

#[test]
fn what_was_allowed_and_what_was_denied_comes_when_it_is_asked_for() {
    let asked = |include_allowed, include_denied| {
        let options = GenerateOptions {
            include_allowed,
            include_denied,
            ..options()
        };
        allows(&generate(&seen(), &options).text)
    };
    let has = |list: &[String], name: &str| list.iter().any(|one| one.starts_with(name));
    for (allowed, denied) in [(false, false), (true, false), (false, true), (true, true)] {
        let list = asked(allowed, denied);
        assert_eq!(has(&list, "allowed.example.com"), allowed);
        assert_eq!(has(&list, "denied.example.com"), denied);
        assert!(has(&list, "api.example.com"));
    }
}

#[test]
fn what_the_policy_in_force_has_rules_for_by_now_is_left_out() {
    let mut seen = seen();
    for one in &mut seen.observations {
        let list = match one.name.as_deref() {
            Some("api.example.com") => RuleList::Allow,
            Some("shared.example.net") => RuleList::Deny,
            _ => continue,
        };
        one.rule = Some(list.name().into());
    }
    let text = generate(&seen, &options()).text;
    assert_eq!(allows(&text), ["v6.example.com 443/udp, icmp"]);
    assert!(
        text.contains("4 flows that the policy in force allows by now"),
        "{text}"
    );
    assert!(
        text.contains("denies: 192.0.2.66 443/tcp, shared.example.net 443/tcp\n"),
        "{text}"
    );
    // A whole policy has what is allowed, and never what is denied.
    let options = GenerateOptions {
        include_allowed: true,
        ..options()
    };
    let allowed = allows(&generate(&seen, &options).text);
    assert!(allowed.contains(&"api.example.com 80/tcp, 443/tcp".to_owned()));
    assert!(!allowed.iter().any(|rule| rule.contains("shared")));
    // The text names what is allowed and was used too late.
    for one in &mut seen.observations {
        one.reason = Reason::Expired.name().into();
    }
    let text = generate(&seen, &super::tests::options()).text;
    assert!(
        text.contains("after its TTL had ended (`spec.ttl.min` prolongs that): api.example.com"),
        "{text}"
    );
}

fn siblings(many: u32, above: &str) -> Observations {
    let mut table = Table::default();
    for number in 0..many {
        table.record(&packet(1, &format!("r{number}.{above}"), 443));
    }
    table.record(&packet(2, "deep.r0.cdn.example.net", 8443));
    table.record(&packet(2, "cdn.example.net", 443));
    table.record(&packet(2, "notcdn.example.net", 443));
    table.observations()
}

#[test]
fn a_wildcard_stands_only_above_the_number_that_was_given() {
    let with = |wildcard| {
        let options = GenerateOptions {
            wildcard,
            ..options()
        };
        generate(&siblings(30, "cdn.example.net"), &options).text
    };
    for no in [None, Some(30), Some(1_000)] {
        let text = with(no);
        assert!(
            !allows(&text).iter().any(|rule| rule.contains('*')),
            "{text}"
        );
        assert_eq!(allows(&text).len(), 33);
    }
    let text = with(Some(29));
    assert_eq!(
        allows(&text),
        [
            "*.cdn.example.net 443/tcp, 8443/tcp",
            "cdn.example.net 443/tcp",
            "notcdn.example.net 443/tcp",
        ]
    );
    // Bounded, and no silent loss.
    assert!(
        text.contains("instead of 31 names: deep.r0.cdn.example.net, r0.cdn.example.net, "),
        "{text}"
    );
    assert!(text.contains(" and 11 more\n"), "{text}");
    assert!(text.contains("# 31 flows, "), "{text}");
}

#[test]
fn no_wildcard_stands_below_a_top_level_name_alone_and_the_outer_one_takes_all() {
    let options = GenerateOptions {
        wildcard: Some(1),
        ..options()
    };
    let text = generate(&siblings(5, "example"), &options).text;
    assert!(
        !allows(&text)
            .iter()
            .any(|rule| rule.starts_with("*.example ")),
        "{text}"
    );
    let mut table = Table::default();
    for name in [
        "a.x.example.net",
        "b.x.example.net",
        "x.example.net",
        "y.example.net",
    ] {
        table.record(&packet(1, name, 443));
    }
    let text = generate(&table.observations(), &options).text;
    assert_eq!(allows(&text), ["*.example.net 443/tcp"]);
}

#[test]
fn a_name_with_more_ports_than_fit_compiles_and_says_that_it_was_widened() {
    let mut table = Table::default();
    for number in 0..40 {
        table.record(&packet(1, "passive.example.com", 50_000 + 2 * number));
    }
    let text = generate(&table.observations(), &options()).text;
    assert_eq!(allows(&text), ["passive.example.com 50000-50078/tcp"]);
    assert!(
        text.contains("# 40 tcp ports as one range, which covers more"),
        "{text}"
    );
}

#[test]
fn what_was_seen_cannot_write_into_the_policy() {
    let mut table = Table::default();
    let evil = "x\n  - cidrs: [0.0.0.0/0]\n# \u{2028}- cidrs: [\"::/0\"]\u{85}";
    table.record(&Packet {
        sender: evil,
        ..packet(1, "api.example.com", 443)
    });
    table.record(&packet(1, evil, 443));
    table.record(&packet(1, "*.example.com", 443));
    table.record(&packet(1, "\"], cidrs: [\"0.0.0.0/0", 443));
    let mut seen = table.observations();
    seen.observations[0].protocol = evil.to_owned().into();
    let options = GenerateOptions {
        from: Some(evil.to_owned()),
        ..options()
    };
    let text = generate(&seen, &options).text;
    assert_eq!(allows(&text), ["api.example.com 443/tcp"]);
}

#[test]
fn time_and_scope_are_looked_at_before() {
    let all = seen();
    let of = |since, from| seen_since(all.clone(), since, from);
    assert_eq!(of(None, None), all);
    let late = of(Some(at(8)), None);
    assert!(late.observations.iter().all(|one| one.last >= at(8)));
    assert_eq!((late.observations.len(), late.losses.len()), (4, 1));
    assert_eq!(of(Some(at(9)), None).losses, []);
    let web = of(None, Some("web"));
    assert_eq!(web.observations.len(), 1);
    assert_eq!(web.losses, all.losses, "nobody knows whose they were");
}
