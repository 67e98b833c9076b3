//! Explanations, offline and with facts that an agent could have.

use std::path::Path;

use egress_common::{
    address::Address,
    decision::{Decision, Trouble, decide},
    learned::{Learned, LearnedKey},
    policy::PortRange,
};

use super::*;
use crate::{
    dns::{Memory, MemoryLimits, ScopeNumber, Seen},
    policy::{Catalog, Lifeline, PolicySet, address_from, compile},
};

const NOW_NS: u64 = 1_000 * NS_PER_S;

const POLICY: &str = "apiVersion: egress.dev/v1alpha1
kind: EgressPolicy
metadata: { name: node }
spec:
  allow:
    - names: [api.example.com, \"*.cdn.example.net\"]
      ports: [\"443/tcp\"]
    - cidrs: [10.0.0.0/8]
  deny:
    - names: [evil.cdn.example.net]
    - cidrs: [10.99.0.0/16]
";

fn compiled(text: &str) -> Compiled {
    let set = PolicySet::from_texts([(Path::new("node.yaml"), text)], &Catalog::default())
        .expect("a policy");
    compile(&set, &Lifeline::new(), None).expect("compiles")
}

fn to(text: &str) -> Destination {
    text.parse().expect("a destination")
}

fn address(text: &str) -> Address {
    address_from(text.parse().expect("an address"))
}

fn causes(explained: &Explanation) -> Vec<&str> {
    explained.causes.iter().map(|cause| &*cause.cause).collect()
}

#[test]
fn a_ceiling_that_takes_a_rule_away_is_told() {
    let ceiling = "---
apiVersion: egress.dev/v1alpha1
kind: ClusterEgressPolicy
metadata: { name: fence }
spec: { ceiling: true, allow: [{ names: [a.cdn.example.net] }, { cidrs: [10.1.0.0/16] }] }
";
    let compiled = compiled(&format!("{POLICY}{ceiling}"));
    for (destination, is_cut) in [
        ("api.example.com", true),
        ("b.cdn.example.net", true),
        ("10.2.0.1", true),
        ("api.example.com:80", false),
        ("a.cdn.example.net", false),
        ("10.1.0.1", false),
        // Denied in any case.
        ("evil.cdn.example.net", false),
        ("10.99.0.1", false),
    ] {
        let explained = explanation(&compiled, &to(destination), None);
        assert_eq!(
            causes(&explained).contains(&"ceiling"),
            is_cut,
            "{explained:?}"
        );
        if is_cut {
            assert!(!causes(&explained).contains(&"nothing_near"));
            let words = &explained.causes[0].words;
            assert!(words.contains("ClusterEgressPolicy fence"), "{words}");
        }
    }
}

/// A scope's knowledge: names it resolved with their ends, and what the kernel learned of it.
struct World {
    memory: Memory,
    node: ScopeNumber,
    facts: ExplainFacts,
}

impl World {
    fn new(compiled: &Compiled) -> Self {
        let memory = Memory::new(MemoryLimits::default());
        let node = memory.scope("node");
        Self {
            memory,
            node,
            facts: ExplainFacts {
                now_ns: NOW_NS,
                scope: "node".to_owned(),
                binding: compiled.binding(1, 1),
                addresses: Vec::new(),
                elsewhere: Vec::new(),
                refusals: Vec::new(),
            },
        }
    }

    /// The scope resolved `name` to `at`; the kernel stored a grant for 443/tcp if `is_stored`.
    fn resolved(
        &mut self,
        compiled: &Compiled,
        asked: &str,
        name: &str,
        at: &str,
        expires_at_ns: u64,
        is_stored: bool,
    ) {
        let address = address(at);
        let is_allowed = compiled.rules_of_name(name).is_some();
        let seen = Seen {
            address,
            netns: 1,
            name,
            alias: None,
            chain: name,
            at_ns: 0,
            ttl_s: 0,
            expires_at_ns,
            is_allowed,
        };
        self.memory.record(self.node, &seen, 0);
        let key = LearnedKey::new(1, 1, address);
        let mut learned = Learned {
            owner: key.words(),
            ..Learned::default()
        };
        let rule = compiled.rules_of_name(name).map(|rules| rules.entries[0]);
        let grants: Vec<Grant> = rule
            .filter(|_| is_stored)
            .map(|entry| Grant {
                expires_at_ns,
                rule: entry.rule,
                ports: entry.ports,
                ..Grant::default()
            })
            .into_iter()
            .collect();
        learned
            .grants
            .iter_mut()
            .zip(&grants)
            .for_each(|(slot, grant)| *slot = *grant);
        let decision = decide(
            &to(asked).flow(address),
            &self.facts.binding,
            NOW_NS,
            || compiled.rules_of_address(&address),
            || (!grants.is_empty()).then_some((&learned, &key)),
            || learned.named(&key, to(asked).port, NOW_NS),
            || Trouble::None,
        );
        self.facts.addresses.push(AddressFacts {
            address,
            decision,
            grants,
            names: self.memory.names_of(self.node, &address, NOW_NS),
            is_own: true,
        });
    }

    fn refused(&mut self, name: &str, kind: RefusalKind, at: &str) {
        self.facts.refusals.push(Refusal {
            scope: self.node,
            name: name.to_owned(),
            kind,
            resolver: address("192.0.2.66"),
            addresses: vec![address(at)],
            at_ns: NOW_NS - 3 * NS_PER_S,
        });
    }
}

#[test]
fn what_is_allowed_has_its_rule_and_no_causes() {
    let compiled = compiled(POLICY);
    let explained = explanation(&compiled, &to("www.cdn.example.net"), None);
    assert_eq!(
        (&*explained.verdict, &*explained.reason),
        ("allowed", "name_rule")
    );
    let rule = explained.rule.expect("a rule");
    assert_eq!(rule.rule, "policy/node allow[0] *.cdn.example.net 443/tcp");
    assert_eq!(
        (rule.file.as_deref(), rule.line),
        (Some(Path::new("node.yaml")), Some(6))
    );
    assert!(explained.causes.is_empty() && explained.add.is_none());
    assert_eq!(explained.ports, ["443/tcp"]);
    assert_eq!(explained.scope, None);
}

#[test]
fn the_line_to_add_makes_the_destination_allowed() {
    for (text, cause) in [
        ("api.example.com:8443", "other_ports"),
        ("cdn.example.net", "apex"),
        ("ap1.example.com", "one_label_off"),
        ("a.api.example.com:53/udp", "parent_only"),
        ("null", "nothing_near"),
        ("elsewhere.example:icmp", "nothing_near"),
        ("elsewhere.example:80/sctp", "nothing_near"),
        ("11.0.0.1:22", "nothing_near"),
        ("192.0.2.1:icmp", "nothing_near"),
        ("[2001:db8::1]:icmp", "nothing_near"),
        ("[2001:db8::1]:53/udp", "nothing_near"),
    ] {
        let before = compiled(POLICY);
        let explained = explanation(&before, &to(text), None);
        assert_eq!(&*explained.verdict, "denied", "{text}");
        assert_eq!(
            causes(&explained).first(),
            Some(&cause),
            "{text}: {:?}",
            explained.causes
        );
        let line = explained.add.expect("a line to add");
        let policy = POLICY.replace("  allow:\n", &format!("  allow:\n    {line}\n"));
        let after = explanation(&compiled(&policy), &to(text), None);
        assert_eq!(&*after.verdict, "allowed", "{text} with {line}");
        assert_eq!(after.rule.expect("a rule").line, Some(6), "{text}");
    }
}

#[test]
fn a_deny_rule_is_named_and_no_line_would_help() {
    let compiled = compiled(POLICY);
    for (text, rule, reason) in [
        (
            "evil.cdn.example.net",
            "policy/node deny[0] evil.cdn.example.net any",
            "no_rule",
        ),
        (
            "10.99.1.1",
            "policy/node deny[1] 10.99.0.0/16 any",
            "denied_cidr",
        ),
    ] {
        let explained = explanation(&compiled, &to(text), None);
        assert_eq!(
            (causes(&explained), &*explained.reason),
            (vec!["deny_rule"], reason)
        );
        let found = explained.causes[0].rule.as_ref().expect("a rule");
        assert_eq!(found.rule, rule);
        assert_eq!(explained.add, None);
    }
}

#[test]
fn a_policy_that_restricts_queries_refuses_the_lookup_too() {
    let restricted = POLICY.replace("spec:\n", "spec:\n  dns: { queries: allowed }\n");
    let explained = explanation(&compiled(&restricted), &to("elsewhere.example"), None);
    assert_eq!(causes(&explained), ["nothing_near", "query_refused"]);
    let explained = explanation(&compiled(&restricted), &to("api.example.com:80"), None);
    assert_eq!(causes(&explained), ["other_ports"]);
}

#[test]
fn a_name_that_was_never_resolved_is_denied_now_and_says_so() {
    let compiled = compiled(POLICY);
    let world = World::new(&compiled);
    let explained = explanation(&compiled, &to("api.example.com"), Some(&world.facts));
    assert_eq!(
        (&*explained.verdict, &*explained.reason),
        ("denied", "no_rule")
    );
    assert_eq!(causes(&explained), ["not_resolved"]);
    assert_eq!(explained.add, None);
    let rule = explained.causes[0].rule.as_ref().expect("a rule");
    assert_eq!(rule.rule, "policy/node allow[0] api.example.com 443/tcp");
}

#[test]
fn what_became_of_a_resolution_is_told() {
    let compiled = compiled(POLICY);
    let asked = to("api.example.com");
    let live = NOW_NS + 30 * NS_PER_S;
    let explain = |world: &World| explanation(&compiled, &asked, Some(&world.facts));
    let resolved = |expires_at_ns, is_stored| {
        let mut world = World::new(&compiled);
        world.resolved(
            &compiled,
            "api.example.com",
            "api.example.com",
            "192.0.2.1",
            expires_at_ns,
            is_stored,
        );
        world
    };

    let explained = explain(&resolved(live, true));
    assert_eq!(
        (&*explained.verdict, &*explained.reason),
        ("allowed", "name_rule")
    );
    assert_eq!(explained.addresses[0].expires_in_s, Some(30));

    let explained = explain(&resolved(NOW_NS - 12 * NS_PER_S, true));
    assert_eq!(
        (&*explained.reason, causes(&explained)),
        ("expired", vec!["expired"])
    );
    assert_eq!(
        explained.causes[0].words,
        "scope node resolved api.example.com to 192.0.2.1, which ended 12 s ago"
    );

    // Swept away meanwhile: the memory still knows.
    let explained = explain(&resolved(NOW_NS - 90 * NS_PER_S, false));
    assert_eq!(
        (&*explained.reason, causes(&explained)),
        ("no_rule", vec!["expired"])
    );

    let explained = explain(&resolved(live, false));
    assert_eq!(causes(&explained), ["no_room"]);

    for (kind, cause) in [
        (RefusalKind::Untrusted, "untrusted_resolver"),
        (RefusalKind::Rebinding, "rebinding"),
        (
            RefusalKind::AliasDenied("evil.cdn.example.net".to_owned()),
            "alias_denied",
        ),
        (RefusalKind::NotAsked, "not_asked"),
        (RefusalKind::Late, "late"),
    ] {
        let mut world = World::new(&compiled);
        world.refused("api.example.com", kind, "127.0.0.1");
        let explained = explain(&world);
        assert_eq!(
            (&*explained.verdict, causes(&explained)),
            ("denied", vec![cause])
        );
        assert!(explained.causes[0].words.contains("api.example.com"));
    }

    let mut world = World::new(&compiled);
    world.facts.elsewhere.push(Elsewhere {
        scope: "web".to_owned(),
        name: "api.example.com".to_owned(),
        address: address("192.0.2.1"),
    });
    let explained = explain(&world);
    assert_eq!(causes(&explained), ["resolved_elsewhere"]);
    assert_eq!(
        explained.causes[0].words,
        "scope web resolved api.example.com to 192.0.2.1, which opens it to scope web alone"
    );
}

#[test]
fn an_address_is_explained_by_the_names_that_lead_there() {
    let compiled = compiled(POLICY);
    let explain = |world: &World, text: &str| explanation(&compiled, &to(text), Some(&world.facts));
    let live = NOW_NS + 30 * NS_PER_S;

    let mut world = World::new(&compiled);
    world.resolved(
        &compiled,
        "192.0.2.1:443",
        "www.example.org",
        "192.0.2.1",
        live,
        false,
    );
    let explained = explain(&world, "192.0.2.1:443");
    assert_eq!(
        (&*explained.verdict, causes(&explained)),
        ("denied", vec!["nothing_near"])
    );
    assert_eq!(
        explained.add.as_deref(),
        Some("- { names: [\"www.example.org\"], ports: [\"443/tcp\"] }")
    );

    let mut world = World::new(&compiled);
    world.resolved(
        &compiled,
        "192.0.2.1:80",
        "api.example.com",
        "192.0.2.1",
        live,
        true,
    );
    let explained = explain(&world, "192.0.2.1:80");
    assert_eq!(
        (&*explained.reason, causes(&explained)),
        ("port_not_allowed", vec!["other_ports"])
    );
    assert_eq!(
        explained.add.as_deref(),
        Some("- { names: [\"api.example.com\"], ports: [\"80/tcp\"] }")
    );

    let mut world = World::new(&compiled);
    let decision = Decision::without_rule(Reason::NoRule, &world.facts.binding);
    world.facts.addresses.push(AddressFacts {
        address: address("192.0.2.1"),
        decision,
        grants: Vec::new(),
        names: Vec::new(),
        is_own: true,
    });
    let explained = explain(&world, "192.0.2.1:443");
    assert_eq!(causes(&explained), ["no_name"]);
    assert_eq!(
        explained.add.as_deref(),
        Some("- { cidrs: [\"192.0.2.1\"], ports: [\"443/tcp\"] }")
    );
    world.refused("api.example.com", RefusalKind::Untrusted, "192.0.2.1");
    let explained = explain(&world, "192.0.2.1:443");
    assert_eq!(causes(&explained), ["untrusted_resolver"]);
    assert_eq!(explained.add, None);
}

#[test]
fn the_ports_of_an_address_are_those_of_its_networks() {
    let explained = explanation(&compiled(POLICY), &to("10.1.2.3"), None);
    assert_eq!(explained.ports, ["any"]);
    assert_eq!(
        PortRange::ANY,
        crate::policy::parse_port_range("any").expect("a range")
    );
}

#[test]
fn explain_names_the_preset_that_allows_or_nearly_does() {
    let preset = "apiVersion: egress.dev/v1alpha1
kind: EgressPolicy
metadata: { name: node }
spec: { allow: [{ preset: aks/azure-global, with: { location: eastus } }] }
";
    let compiled = compiled(preset);
    let explained = |to: &str| {
        let explained = explanation(&compiled, &self::to(to), None);
        let cause = explained.causes.into_iter().next();
        let near = cause.and_then(|cause| cause.rule);
        let rule = explained.rule.or(near).map(|rule| rule.rule);
        (explained.verdict.to_string(), rule.unwrap_or_default())
    };
    let rule = "policy/node allow[0] aks/azure-global: mcr.microsoft.com 443/tcp";
    assert_eq!(
        explained("mcr.microsoft.com:443"),
        ("allowed".to_owned(), rule.to_owned())
    );
    assert_eq!(
        explained("mcr.microsoft.com:80"),
        ("denied".to_owned(), rule.to_owned())
    );
    // One label off: found by the rule's own pattern.
    assert_eq!(
        explained("mcx.microsoft.com:443"),
        ("denied".to_owned(), rule.to_owned())
    );
}
