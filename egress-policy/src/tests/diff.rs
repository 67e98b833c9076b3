//! What two policies decide differently, compared with what lookups say one by one.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use egress_common::policy::{
    EntryKind,
    protocol::{ICMPV6, TCP, UDP},
};
use proptest::{collection::vec, prelude::*};

use crate::tests::{
    oracle::{address, compile_made, covers_name, name, policies},
    policy,
};
use crate::{
    ask::{Becomes, Difference, diff},
    compile::{Compiled, compile},
    document::{Catalog, PolicySet, ServiceTags},
    vocabulary::{Cidr, Lifeline, address_from, parse_port_range},
};

fn spec(spec: &str) -> Compiled {
    super::compiled(&policy("p", spec))
}

/// One line for each difference: `+ name ports`.
fn told(old: &Compiled, new: &Compiled) -> Vec<String> {
    let found = diff(old, new);
    let line = |one: &Difference<'_>| {
        let sign = match one.becomes {
            Becomes::Allowed => "+",
            Becomes::Denied => "-",
            Becomes::Undenied => "(+)",
            Becomes::DeniedToo => "(-)",
        };
        let line = format!("{sign} {} {}", one.destination, one.ports.join(" "));
        line.trim_end().to_owned()
    };
    let settings = found
        .settings
        .iter()
        .map(|one| format!("{}: {} -> {}", one.setting, one.from, one.to));
    let differences = found.differences.iter().map(line);
    differences.chain(settings).collect()
}

#[test]
fn the_same_meaning_is_no_difference() {
    for (one, other) in [
        (
            "{ allow: [{ names: [a.example, b.example], ports: [80-81/tcp] }] }",
            "{ allow: [{ names: [B.example.], ports: [80/tcp, 81/tcp] }, { names: [a.example], ports: [81/tcp, 80/tcp] }] }",
        ),
        (
            "{ allow: [{ names: [\"*.example.com\"] }] }",
            "{ allow: [{ names: [\"*.example.com\", a.example.com], ports: [any, 443/tcp] }] }",
        ),
        (
            "{ allow: [{ cidrs: [10.0.0.0/8] }] }",
            "{ allow: [{ cidrs: [10.0.0.0/9, 10.0.0.0/8, 10.1.2.3] }], deny: [] }",
        ),
        (
            "{ allow: [{ cidrs: [10.0.0.0/8] }], deny: [{ cidrs: [10.1.0.0/16] }] }",
            "{ deny: [{ cidrs: [10.1.0.0/16, 10.1.1.0/24] }], allow: [{ cidrs: [10.0.0.0/8] }] }",
        ),
        (
            "{ allow: [{ names: [a.example] }] }",
            "{ mode: enforce, ttl: { min: 30s, max: 1d }, preexisting: keep, allow: [{ names: [a.example] }] }",
        ),
    ] {
        assert_eq!(told(&spec(one), &spec(other)), [""; 0], "{one} {other}");
    }
}

#[test]
fn what_opens_and_closes_is_told_once_and_as_wide_as_it_is() {
    let old = spec(
        "{ allow: [{ names: [api.example.com, \"*.cdn.example.net\"], ports: [443/tcp] }, \
         { cidrs: [10.0.0.0/8, 192.0.2.0/24], ports: [any/tcp] }], deny: [{ names: [old.cdn.example.net] }] }",
    );
    let new = spec(
        "{ mode: audit, ttl: { min: 60s, max: 1d }, dns: { queries: allowed }, allow: [\
         { names: [\"*.example.com\", \"*.cdn.example.net\", deep.cdn.example.net], ports: [443/tcp, 80/tcp] }, \
         { cidrs: [10.0.0.0/8], ports: [any/tcp] }], \
         deny: [{ names: [evil.cdn.example.net, evil.example.org] }, { cidrs: [10.99.0.0/16, 203.0.113.0/24] }] }",
    );
    assert_eq!(
        told(&old, &new),
        [
            "+ *.cdn.example.net 80/tcp",
            "+ *.example.com 80/tcp 443/tcp",
            "+ old.cdn.example.net 80/tcp 443/tcp",
            "- 10.99.0.0/16 any/tcp",
            "- 192.0.2.0/24 any/tcp",
            "- evil.cdn.example.net 443/tcp",
            "(-) 10.99.0.0/16 any/udp any/sctp icmp other protocols",
            "(-) 203.0.113.0/24 any",
            "(-) evil.example.org",
            "mode: enforce -> audit",
            "dns.queries: any -> allowed",
            "ttl: 30s to 86400s for *.cdn.example.net and 1 more -> 60s to 86400s",
        ]
    );
    let found = diff(&old, &new);
    let rule = |destination: &str| {
        let mut all = found.differences.iter();
        let one = all.find(|one| one.destination == destination).unwrap();
        let rule = one.rules[0];
        (rule.destination.clone(), rule.list.name())
    };
    assert_eq!(rule("192.0.2.0/24"), ("192.0.2.0/24".to_owned(), "allow"));
    assert_eq!(rule("10.99.0.0/16"), ("10.99.0.0/16".to_owned(), "deny"));
    assert_eq!(
        rule("evil.cdn.example.net"),
        ("evil.cdn.example.net".to_owned(), "deny")
    );
    assert!(diff(&old, &old).is_empty() && !found.is_empty());
}

#[test]
fn the_networks_of_a_service_tag_are_told_together() {
    let json = r#"{ "changeNumber": 1, "cloud": "Public", "values": [ { "name": "Storage", "id": "Storage",
        "properties": { "changeNumber": 1, "region": "", "regionId": 0, "platform": "Azure", "systemService": "AzureStorage",
        "addressPrefixes": ["192.0.2.0/25", "198.51.100.0/24", "2001:db8::/32"] } } ] }"#;
    let tags = ServiceTags::parse(Path::new("tags.json"), json.as_bytes(), None).unwrap();
    let catalog = Catalog::new(Some(tags));
    let with = |spec: &str| {
        let text = policy("p", spec);
        let texts = [(Path::new("policy.yaml"), text.as_str())];
        let set = PolicySet::from_texts(texts, &catalog).unwrap();
        compile(&set, &Lifeline::new(), None).unwrap()
    };
    let old = with("{ allow: [] }");
    let new = with("{ allow: [{ serviceTags: [Storage], ports: [443/tcp] }] }");
    let found = diff(&old, &new);
    let [one] = found.differences.as_slice() else {
        panic!("{:?}", found.differences);
    };
    assert_eq!((one.destination.as_str(), one.networks), ("Storage", 3));
    assert_eq!(one.ports, ["443/tcp"]);
}

const PORTS: &[(u8, Option<u16>)] = &[
    (TCP, Some(443)),
    (TCP, Some(400)),
    (TCP, Some(80)),
    (UDP, Some(53)),
    (ICMPV6, None),
    (47, None),
];

/// Whether the ports of a difference cover a flow.
fn covers(one: &Difference<'_>, proto: u8, port: Option<u16>) -> bool {
    one.ports.iter().any(|text| match parse_port_range(text) {
        Ok(range) => range.covers(proto, port),
        Err(_) => text == "other protocols" && proto == 47,
    })
}

fn opens(compiled: &Compiled, name: &str, proto: u8, port: Option<u16>) -> bool {
    compiled.rules_of_name(name).is_some_and(|rules| {
        let used = rules.entries.iter().take_while(|entry| entry.kind != 0);
        used.into_iter()
            .any(|entry| entry.ports.covers(proto, port))
    })
}

/// What decides about an address: 0 nothing, else the kind.
fn kind(compiled: &Compiled, address: IpAddr, proto: u8, port: Option<u16>) -> u8 {
    let rules = compiled.rules_of_address(&address_from(address));
    let entry = rules.and_then(|rules| rules.find(proto, port, true));
    entry.map_or(0, |entry| entry.kind)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    #[test]
    fn a_difference_is_told_where_lookups_differ_and_nowhere_else(
        old in policies(),
        new in policies(),
        names in vec(name(), 1..20),
        addresses in vec(address(), 1..20),
    ) {
        let (old, new) = (compile_made(&old, &Lifeline::new()), compile_made(&new, &Lifeline::new()));
        let found = diff(&old, &new);
        prop_assert!(diff(&old, &old).is_empty());
        for (proto, port) in PORTS.iter().copied() {
            for name in &names {
                let becomes: BTreeSet<Becomes> = found
                    .differences
                    .iter()
                    .filter(|one| one.destination.parse::<Cidr>().is_err())
                    .filter(|one| covers_name(&one.destination, name) && covers(one, proto, port))
                    .map(|one| one.becomes)
                    .collect();
                let (was, is) = (opens(&old, name, proto, port), opens(&new, name, proto, port));
                let wanted = match (was, is) {
                    (false, true) => Some(Becomes::Allowed),
                    (true, false) => Some(Becomes::Denied),
                    _ => None,
                };
                prop_assert!(wanted.is_none_or(|wanted| becomes.contains(&wanted)), "{} {:?}", name, found.differences);
            }
            for address in &addresses {
                let holds = |text: &str| text.parse::<Cidr>().is_ok_and(|cidr| cidr.holds(&address_from(*address)));
                let becomes: BTreeSet<Becomes> = found
                    .differences
                    .iter()
                    .filter(|one| holds(&one.destination) && covers(one, proto, port))
                    .map(|one| one.becomes)
                    .collect();
                let (allow, deny) = (EntryKind::Allow as u8, EntryKind::Deny as u8);
                let (was, is) = (kind(&old, *address, proto, port), kind(&new, *address, proto, port));
                let wanted = if was == is {
                    None
                } else if is == allow {
                    Some(Becomes::Allowed)
                } else if was == allow {
                    Some(Becomes::Denied)
                } else if is == deny {
                    Some(Becomes::DeniedToo)
                } else {
                    Some(Becomes::Undenied)
                };
                prop_assert!(wanted.is_none_or(|wanted| becomes.contains(&wanted)), "{} {:?} {:?}", address, wanted, found.differences);
            }
        }
        // Each difference has a witness: what is most particular about its destination.
        for one in &found.differences {
            let Some((proto, port)) = PORTS.iter().copied().find(|(proto, port)| covers(one, *proto, *port)) else {
                continue;
            };
            if let Ok(cidr) = one.destination.parse::<Cidr>() {
                // A smaller network may say the same of its first address; then it is not a witness.
                let is_smaller = |compiled: &Compiled| compiled.cidrs.keys().any(|(address, bits)| {
                    *bits > cidr.bits() && Cidr::containing(address, cidr.bits()) == cidr
                });
                if is_smaller(&old) || is_smaller(&new) {
                    continue;
                }
                let first = crate::address_text(cidr.address());
                prop_assert_ne!(kind(&old, first, proto, port), kind(&new, first, proto, port), "{:?}", one);
            } else {
                let name = one.destination.replacen('*', "no-such-label", 1);
                prop_assert_ne!(opens(&old, &name, proto, port), opens(&new, &name, proto, port), "{:?}", one);
            }
        }
    }
}
