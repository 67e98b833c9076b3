//! Random policies: a longest-prefix match on the compiled tries gives what the rules give one by one.
//!
//! The evaluator here shares nothing with the compiler: it takes the generated
//! rules, not the parsed ones, and it compares texts and integers of one family.
//! The trie is a list of keys and is looked up as the kernel does it.

use std::{collections::BTreeSet, net::IpAddr, path::Path, time::Instant};

use egress_common::{
    address::Address,
    name::{NameKey, exact_key, exact_key_bits, label_key, label_key_bits},
    policy::{
        CIDR_KEY_BITS, CidrRules, EntryKind, NameEntry, NameRules, POLICY_ID_BITS, PortRange,
        cidr_key,
        protocol::{ICMPV6, TCP, UDP},
    },
};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::tests::{EXAMPLE, compiled, policy};
use crate::{
    compile::{Compiled, compile},
    document::{Catalog, PolicySet, parse},
    vocabulary::{
        Cidr, Lifeline, Ttl, address_from, parse_name_pattern, parse_port_range, port_range_text,
    },
};

/// Policy id of the tries here; any will do.
const ID: u16 = 0x0201;

/// A rule as generated.
#[derive(Clone, Debug)]
struct Made {
    names: Vec<String>,
    cidrs: Vec<(IpAddr, u8)>,
    /// `None` where the rule has no ports field.
    ports: Option<Vec<&'static str>>,
}

#[derive(Clone, Debug)]
pub(super) struct MadePolicy {
    part: Part,
    audits: bool,
    ttl: (u32, u32),
    allow: Vec<Made>,
    deny: Vec<Made>,
}

/// Which part a policy has beside others.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    /// Of a namespace: ceilings bound it.
    Namespace,
    /// Of the cluster: they do not.
    Cluster,
    Ceiling,
}

/// Flows that tell the port texts apart.
const FLOWS: [(u8, Option<u16>); 8] = [
    (TCP, Some(443)),
    (TCP, Some(400)),
    (TCP, Some(80)),
    (TCP, None),
    (UDP, Some(53)),
    (UDP, Some(443)),
    (ICMPV6, None),
    (47, None),
];

/// Whether policies allow a flow to what rules cover by themselves, and ceilings are above by their own rules.
fn is_allowed(
    deciding: &[&MadePolicy],
    covers: impl Fn(&Made) -> bool,
    is_below: impl Fn(&MadePolicy) -> bool,
) -> bool {
    let is_bounded = deciding
        .iter()
        .filter(|policy| policy.part == Part::Ceiling)
        .all(|ceiling| is_below(ceiling));
    deciding.iter().any(|policy| {
        let is_open = match policy.part {
            Part::Namespace => is_bounded,
            Part::Cluster => true,
            Part::Ceiling => false,
        };
        is_open && policy.allow.iter().any(&covers)
    })
}

impl Made {
    fn yaml(&self) -> String {
        let quoted = |texts: Vec<String>| {
            let texts: Vec<String> = texts.iter().map(|text| format!("'{text}'")).collect();
            texts.join(", ")
        };
        let names = quoted(self.names.clone());
        let cidrs = quoted(
            self.cidrs
                .iter()
                .map(|(address, bits)| format!("{address}/{bits}"))
                .collect(),
        );
        let ports = match &self.ports {
            Some(ports) => format!(", ports: [{}]", ports.join(", ")),
            None => String::new(),
        };
        format!("{{ names: [{names}], cidrs: [{cidrs}]{ports} }}")
    }

    fn covers_port(&self, proto: u8, port: Option<u16>) -> bool {
        let Some(ports) = &self.ports else {
            return true;
        };
        ports.iter().any(|text| covers_port(text, proto, port))
    }

    fn ranges(&self) -> Vec<&'static str> {
        self.ports.clone().unwrap_or_else(|| vec!["any"])
    }
}

/// Whether a port text covers a flow: a table, not a parser.
fn covers_port(text: &str, proto: u8, port: Option<u16>) -> bool {
    match text {
        "any" => true,
        "443/tcp" => proto == TCP && port == Some(443),
        "400-450/tcp" => proto == TCP && port.is_some_and(|port| (400..=450).contains(&port)),
        "any/tcp" => proto == TCP,
        "53/udp" => proto == UDP && port == Some(53),
        "icmp" => proto == ICMPV6,
        other => panic!("{other} is not in the table"),
    }
}

const PORTS: &[&str] = &["any", "443/tcp", "400-450/tcp", "any/tcp", "53/udp", "icmp"];

/// Whether a pattern covers a name, after the words of the documentation.
pub(super) fn covers_name(pattern: &str, name: &str) -> bool {
    if let Some(base) = pattern.strip_prefix("*.") {
        return name.ends_with(&format!(".{base}"));
    }
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == name;
    };
    // Every text that the star can stand for.
    let labels = name.split('.').next().unwrap();
    (0..=labels.len()).any(|from| {
        (from..=labels.len()).any(|to| format!("{head}{}{tail}", &labels[from..to]) == name)
    })
}

/// Whether a network covers an address: never across families.
fn covers_address((network, bits): (IpAddr, u8), address: IpAddr) -> bool {
    let top = |value: u128, width: u8| {
        let shift = u32::from(width.saturating_sub(bits));
        value.checked_shr(shift).unwrap_or(0)
    };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            top(network.to_bits().into(), 32) == top(address.to_bits().into(), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            top(network.to_bits(), 128) == top(address.to_bits(), 128)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Names over a small alphabet, so that patterns meet.
pub(crate) fn name() -> impl Strategy<Value = String> {
    let first = select(vec![
        "a", "b", "ab", "aa", "aba", "abab", "baab", "c-", "_", "ca_",
    ]);
    let rest = vec(select(vec!["a", "b", "ab", "c-", "_"]), 0..4);
    (first, rest).prop_map(|(first, mut labels)| {
        labels.insert(0, first);
        labels.join(".")
    })
}

pub(crate) fn pattern() -> impl Strategy<Value = String> {
    let plain = (name(), any::<bool>())
        .prop_map(|(name, below)| if below { format!("*.{name}") } else { name });
    let part = || select(vec!["", "a", "b", "ab", "ba", "aa", "c", "_"]);
    let star = (part(), part(), name())
        .prop_filter("* alone is another pattern", |(head, tail, _)| {
            !head.is_empty() || !tail.is_empty()
        })
        .prop_map(|(head, tail, name)| format!("{head}*{tail}.{name}"));
    prop_oneof![plain, star]
}

/// Addresses over few bits at both ends, IPv4 and IPv6, close to where IPv4 lies in IPv6.
pub(super) fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = vec(select(vec![0_u8, 1, 10, 128, 255]), 4)
        .prop_map(|bytes| IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let heads = select(vec![[0_u16; 4], [0xfd00, 0, 0, 0], [0xfd00, 1, 0, 0x8000]]);
    let tails = select(vec![
        [0_u16, 0, 0, 1],
        [0, 0xfffe, 0, 1],
        [0, 0xff00, 0x0a00, 0],
        [1, 0xffff, 0, 0],
        [0x8000, 0, 0, 0],
    ]);
    let v6 = (heads, tails).prop_map(|(head, tail)| {
        IpAddr::from([
            head[0], head[1], head[2], head[3], tail[0], tail[1], tail[2], tail[3],
        ])
    });
    prop_oneof![v4, v6]
}

/// Networks around such addresses.
fn network() -> impl Strategy<Value = (IpAddr, u8)> {
    (address(), 0_u8..=128, any::<bool>()).prop_map(|(address, bits, is_wide)| {
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = if is_wide {
            bits.checked_rem(16).unwrap_or(0)
        } else {
            bits
        };
        let bits = bits.min(width);
        let shift = u32::from(width.saturating_sub(bits));
        match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
                ((v4.to_bits() & mask).to_be_bytes().into(), bits)
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
                ((v6.to_bits() & mask).to_be_bytes().into(), bits)
            }
        }
    })
}

fn ports() -> impl Strategy<Value = Option<Vec<&'static str>>> {
    proptest::option::of(vec(select(PORTS.to_vec()), 1..4))
}

fn allow_rule() -> impl Strategy<Value = Made> {
    (vec(pattern(), 1..4), vec(network(), 0..3), ports()).prop_map(|(names, cidrs, ports)| Made {
        names,
        cidrs,
        ports,
    })
}

fn deny_rule() -> impl Strategy<Value = Made> {
    let names = vec(pattern(), 1..3).prop_map(|names| Made {
        names,
        cidrs: Vec::new(),
        ports: None,
    });
    let cidrs = (vec(network(), 1..3), ports()).prop_map(|(cidrs, ports)| Made {
        names: Vec::new(),
        cidrs,
        ports,
    });
    prop_oneof![names, cidrs]
}

pub(super) fn policies() -> impl Strategy<Value = Vec<MadePolicy>> {
    let part = prop_oneof![
        3 => Just(Part::Namespace),
        1 => Just(Part::Cluster),
        1 => Just(Part::Ceiling),
    ];
    let made = (
        part,
        proptest::bool::weighted(0.3),
        (0_u32..100, 0_u32..100),
        vec(allow_rule(), 0..5),
        vec(deny_rule(), 0..3),
    )
        .prop_map(|(part, audits, (min, more), allow, deny)| MadePolicy {
            part,
            audits,
            ttl: (min, min.saturating_add(more).max(1)),
            allow,
            deny,
        });
    vec(made, 1..4)
}

pub(super) fn compile_made(policies: &[MadePolicy], lifeline: &Lifeline) -> Compiled {
    let mut text = String::new();
    for (index, made) in policies.iter().enumerate() {
        let rules = |rules: &[Made]| {
            let texts: Vec<String> = rules.iter().map(Made::yaml).collect();
            texts.join(", ")
        };
        let (min, max) = made.ttl;
        let (allow, deny) = (rules(&made.allow), rules(&made.deny));
        let mode = if made.audits { "audit" } else { "enforce" };
        let (kind, ceiling) = match made.part {
            Part::Namespace => ("EgressPolicy", ""),
            Part::Cluster => ("ClusterEgressPolicy", ""),
            Part::Ceiling => ("ClusterEgressPolicy", "ceiling: true, "),
        };
        let spec = format!(
            "{{ {ceiling}mode: {mode}, ttl: {{ min: {min}s, max: {max}s }}, allow: [{allow}], deny: [{deny}] }}"
        );
        let document = policy(&format!("p{index}"), &spec).replace("EgressPolicy", kind);
        text.push_str(&format!("---\n{document}"));
    }
    let set = PolicySet::from_texts(
        [(Path::new("made.yaml"), text.as_str())],
        &Catalog::default(),
    )
    .unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    compile(&set, lifeline, None).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// The policies that decide, and those that look on: policies in audit decide only where there are no others.
fn sides(policies: &[MadePolicy]) -> (Vec<&MadePolicy>, Vec<&MadePolicy>) {
    let (audits, enforces): (Vec<_>, Vec<_>) = policies.iter().partition(|policy| policy.audits);
    if enforces.is_empty() {
        (audits, Vec::new())
    } else {
        (enforces, audits)
    }
}

/// Whether the first `bits` bits are equal: what an LPM trie looks at.
fn shares_prefix(a: &[u8], b: &[u8], bits: u32) -> bool {
    let bits = usize::try_from(bits).unwrap();
    let (bytes, rest) = (bits / 8, u32::try_from(bits % 8).unwrap());
    let mask = !0xff_u8.checked_shr(rest).unwrap();
    a[..bytes] == b[..bytes] && (rest == 0 || a[bytes] & mask == b[bytes] & mask)
}

/// A longest-prefix match.
fn lookup((bits, key): NameKey, trie: &[(NameKey, NameEntry)]) -> Option<&NameEntry> {
    let found = trie
        .iter()
        .filter(|((prefix, data), _)| *prefix <= bits && shares_prefix(data, &key, *prefix))
        .max_by_key(|((prefix, _), _)| *prefix);
    found.map(|(_, entry)| entry)
}

/// The rules of a name, looked up as the kernel does.
fn lookup_name(trie: &[(NameKey, NameEntry)], name: &str) -> Option<NameRules> {
    let key = exact_key(ID, name.as_bytes());
    assert_eq!(key.0, exact_key_bits(u32::try_from(name.len()).unwrap()));
    let entry = lookup(key, trie)?;
    let label = name.split('.').next().unwrap();
    let tail = name.strip_prefix(label).unwrap();
    let mut rules = entry.rules;
    if entry.labels != 0 && usize::try_from(entry.tail_bytes).unwrap() == tail.len() {
        let key = label_key(ID, entry.labels, label.as_bytes());
        assert_eq!(key.0, label_key_bits(u32::try_from(label.len()).unwrap()));
        if let Some(entry) = lookup(key, trie) {
            assert_eq!(entry.labels, 0);
            rules = entry.rules;
        }
    }
    (!rules.is_empty()).then_some(rules)
}

/// The CIDR trie as the kernel holds it, looked up as the kernel does.
fn lookup_address<'a>(compiled: &'a Compiled, address: &Address) -> Option<&'a CidrRules> {
    let key = cidr_key(ID, address);
    let prefix = |bits: u8| POLICY_ID_BITS.saturating_add(u32::from(bits));
    let found = compiled
        .cidrs
        .iter()
        .filter(|((network, bits), _)| shares_prefix(&cidr_key(ID, network), &key, prefix(*bits)))
        .max_by_key(|((_, bits), _)| *bits);
    assert!(found.is_none_or(|((_, bits), _)| prefix(*bits) <= CIDR_KEY_BITS));
    found.map(|(_, rules)| rules)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_name_lookup_gives_what_the_rules_give_one_by_one(
        policies in policies(),
        names in vec(name(), 1..30),
    ) {
        let compiled = compile_made(&policies, &Lifeline::new());
        let (deciding, looking_on) = sides(&policies);
        let trie: Vec<_> = compiled.names.entries(ID).collect();
        let keys: BTreeSet<_> = trie.iter().map(|(key, _)| *key).collect();
        prop_assert_eq!((keys.len(), trie.len()), (trie.len(), compiled.names.len()));
        prop_assert!(trie.iter().all(|((_, data), _)| data.starts_with(&ID.to_be_bytes())));
        for name in &names {
            let covering = |rule: &Made| rule.names.iter().any(|pattern| covers_name(pattern, name));
            let denied = deciding.iter().any(|policy| policy.deny.iter().any(covering));
            let audited = looking_on.iter().any(|policy| policy.deny.iter().any(covering));
            let auditor = compiled.auditor_of_name(name);
            prop_assert_eq!(auditor != 0, audited, "{}", name);
            if audited {
                let source = &compiled.rules[&auditor];
                prop_assert!(covers_name(&source.destination, name) && source.is_audited);
            }
            let has_ceiling = deciding.iter().any(|policy| policy.part == Part::Ceiling);
            let mut ranges: BTreeSet<&str> = BTreeSet::new();
            let mut ttl: Option<(u32, u32)> = None;
            let is_open = |only: Option<&MadePolicy>, (proto, port): (u8, Option<u16>)| {
                let covers = |rule: &Made| covering(rule) && rule.covers_port(proto, port);
                let holds_all = |rule: &Made, is_v4: bool| {
                    let mut cidrs = rule.cidrs.iter();
                    cidrs.any(|(network, bits)| *bits == 0 && network.is_ipv4() == is_v4) && rule.covers_port(proto, port)
                };
                let is_below = |ceiling: &MadePolicy| {
                    let has = |is_v4| ceiling.allow.iter().any(|rule| holds_all(rule, is_v4));
                    ceiling.allow.iter().any(covers) || has(true) && has(false)
                };
                let policies = deciding.iter().copied().filter(|policy| {
                    policy.part == Part::Ceiling || only.is_none_or(|only| std::ptr::eq(only, *policy))
                });
                is_allowed(&policies.collect::<Vec<_>>(), covers, is_below)
            };
            for policy in &deciding {
                if !FLOWS.iter().any(|flow| is_open(Some(policy), *flow)) {
                    continue;
                }
                for rule in policy.allow.iter().filter(|rule| covering(rule)) {
                    ranges.extend(rule.ranges());
                    let (min, max) = ttl.unwrap_or(policy.ttl);
                    ttl = Some((min.max(policy.ttl.0), max.max(policy.ttl.1)));
                }
            }
            let found = lookup_name(&trie, name);
            prop_assert_eq!(found.as_ref(), compiled.rules_of_name(name));
            let Some(rules) = found else {
                prop_assert!(!denied && ranges.is_empty(), "{} is covered", name);
                continue;
            };
            prop_assert_eq!(rules.deny != 0, denied, "{}", name);
            if denied {
                let source = &compiled.rules[&rules.deny];
                prop_assert!(covers_name(&source.destination, name));
                ranges.clear();
            } else {
                prop_assert_eq!(Some((rules.ttl_min_s, rules.ttl_max_s)), ttl, "{}", name);
            }
            let entries: Vec<_> = rules.entries.iter().take_while(|entry| entry.kind != 0).collect();
            for (proto, port) in FLOWS {
                let opens = entries.iter().any(|entry| entry.ports.covers(proto, port));
                prop_assert_eq!(opens, !denied && is_open(None, (proto, port)), "{} {}/{:?}", name, proto, port);
            }
            let texts: Vec<String> = entries.iter().map(|entry| port_range_text(&entry.ports)).collect();
            prop_assert!(has_ceiling || texts.len() == ranges.len(), "{}: {:?}", name, &texts);
            prop_assert!(has_ceiling || texts.iter().all(|text| ranges.contains(text.as_str())), "{}: {:?}", name, texts);
            for entry in entries {
                prop_assert_eq!(entry.kind, EntryKind::Allow as u8);
                let source = &compiled.rules[&entry.rule];
                prop_assert!(covers_name(&source.destination, name));
                let is_of_rule = source.ports.contains(&entry.ports)
                    || (source.ports.is_empty() && entry.ports == PortRange::ANY);
                prop_assert!(has_ceiling || is_of_rule);
            }
        }
    }

    #[test]
    fn an_address_lookup_gives_what_the_rules_give_one_by_one(
        policies in policies(),
        life in vec((network(), select(PORTS.to_vec())), 0..3),
        addresses in vec(address(), 1..30),
    ) {
        let mut lifeline = Lifeline::new();
        for ((network, bits), ports) in &life {
            let network = Cidr::containing(&address_from(*network), if network.is_ipv4() { bits.saturating_add(96) } else { *bits });
            lifeline = lifeline.entry("test", network, &[parse_port_range(ports).unwrap()]);
        }
        let compiled = compile_made(&policies, &lifeline);
        let (deciding, looking_on) = sides(&policies);
        for address in &addresses {
            let rules = lookup_address(&compiled, &address_from(*address));
            prop_assert_eq!(rules, compiled.rules_of_address(&address_from(*address)));
            for (proto, port) in FLOWS {
                let says = |rule: &Made| {
                    rule.cidrs.iter().any(|network| covers_address(*network, *address))
                        && rule.covers_port(proto, port)
                };
                let is_lifeline = life.iter().any(|(network, ports)| {
                    covers_address(*network, *address) && covers_port(ports, proto, port)
                });
                let expected = if is_lifeline {
                    Some(EntryKind::Lifeline as u8)
                } else if deciding.iter().any(|policy| policy.deny.iter().any(says)) {
                    Some(EntryKind::Deny as u8)
                } else if is_allowed(&deciding, says, |ceiling| ceiling.allow.iter().any(says)) {
                    Some(EntryKind::Allow as u8)
                } else {
                    None
                };
                let audited = looking_on.iter().any(|policy| policy.deny.iter().any(says));
                let auditor = rules.map_or(0, |rules| rules.auditor(proto, port));
                // Where a denial or the lifeline decides, nobody asks.
                if expected.is_none_or(|kind| kind == EntryKind::Allow as u8) {
                    prop_assert_eq!(auditor != 0, audited, "{} {}/{:?}", address, proto, port);
                }
                let found = rules.and_then(|rules| rules.find(proto, port, true));
                prop_assert_eq!(found.map(|entry| entry.kind), expected, "{} {}/{:?}", address, proto, port);
                if let Some(entry) = found {
                    let source = &compiled.rules[&entry.rule];
                    let text = source.destination.rsplit(' ').next().unwrap();
                    let network: Cidr = text.parse().unwrap();
                    prop_assert!(network.holds(&address_from(*address)), "{} {}", network, address);
                }
            }
        }
    }

    #[test]
    fn texts_go_both_ways(
        name in pattern(),
        names in vec(name(), 1..10),
        network in network(),
        port in any::<(u16, u16)>(),
    ) {
        let parsed = parse_name_pattern(&name).unwrap();
        for other in &names {
            prop_assert_eq!(parsed.covers(other), covers_name(&name, other));
        }
        prop_assert_eq!(parsed.to_string(), name);
        let (address, bits) = network;
        let text = format!("{address}/{bits}");
        prop_assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        let (first, last) = (port.0.min(port.1).max(1), port.0.max(port.1).max(1));
        let range = PortRange::new(TCP, first, last);
        prop_assert_eq!(parse_port_range(&port_range_text(&range)).unwrap(), range);
    }

    #[test]
    fn any_text_is_read_or_refused_with_a_place(text in "\\PC{0,40}") {
        let _ = parse_name_pattern(&text);
        let _ = text.parse::<Cidr>();
        let _ = parse_port_range(&text);
        let _ = crate::parse_duration_s(&text);
        if let Err(errors) = parse(Path::new("x.yaml"), &text, &Catalog::default()) {
            let errors = errors.to_string();
            prop_assert!(errors.lines().all(|line| line.starts_with("x.yaml")), "{}", errors);
        }
    }

    #[test]
    fn a_damaged_policy_is_read_or_refused_with_a_place(
        cuts in vec((any::<prop::sample::Index>(), "[a-z\\[\\]{}:,\\-\"' \n*&0-9/]{0,3}"), 1..4),
    ) {
        let mut text = EXAMPLE.to_owned();
        for (at, put) in cuts {
            let at = at.index(text.len());
            text.replace_range(at..=at, &put);
            if text.is_empty() {
                break;
            }
        }
        if let Err(errors) = parse(Path::new("x.yaml"), &text, &Catalog::default()) {
            let errors = errors.to_string();
            prop_assert!(errors.lines().all(|line| line.starts_with("x.yaml")), "{}", errors);
        }
    }
}

#[test]
fn a_life_of_two_policies_is_the_longer_of_theirs() {
    for (a, b) in [((0, 10), (5, 7)), ((3, 4), (8, 20)), ((0, 100), (0, 50))] {
        let (min, max) = (a.0.max(b.0), a.1.max(b.1));
        for ttl in 0_u32..120 {
            let alone = ttl.clamp(a.0, a.1).max(ttl.clamp(b.0, b.1));
            assert_eq!(ttl.clamp(min, max), alone, "{a:?} {b:?} {ttl}");
        }
    }
    assert_eq!(
        Ttl::default(),
        Ttl {
            min_s: 30,
            grace_s: 1800,
            max_s: 86_400
        }
    );
}

/// Run with `--release -- --nocapture` for the time.
#[test]
fn fifty_thousand_patterns_and_a_thousand_networks_compile() {
    let mut text = policy("large", "\n  allow:\n");
    // Unoptimised the parser is slow.
    let networks = if cfg!(debug_assertions) { 50 } else { 1000 };
    for index in 0_u32..networks {
        text.push_str("  - names:\n");
        for name in 0_u32..49 {
            text.push_str(&format!(
                "    - s{name}.zone{index}.cdn{}.example.net\n",
                index % 7
            ));
        }
        text.push_str(&format!("    - \"*.zone{index}.example.com\"\n"));
        let (high, low) = (index / 250, index % 250);
        text.push_str(&format!(
            "    cidrs: [10.{high}.{low}.0/24]\n    ports: [443/tcp, 80/tcp]\n"
        ));
    }
    text.push_str(
        "  - names: [\"*.example.net\", \"*.com\"]\n    cidrs: [10.0.0.0/8]\n    ports: [22/tcp]\n",
    );
    let start = Instant::now();
    let set = PolicySet::from_texts(
        [(Path::new("large.yaml"), text.as_str())],
        &Catalog::default(),
    )
    .unwrap();
    let parsed = start.elapsed();
    let start = Instant::now();
    let compiled = compile(&set, &Lifeline::new(), None).unwrap();
    let took = start.elapsed();
    println!(
        "{} bytes: parsed in {parsed:?}, compiled in {took:?}",
        text.len()
    );
    let networks = usize::try_from(networks).unwrap();
    let patterns = networks.saturating_mul(50).saturating_add(2);
    assert_eq!(compiled.names.len(), patterns);
    assert_eq!(compiled.cidrs.len(), networks.saturating_add(1));
    let rules = compiled
        .rules_of_name("s3.zone49.cdn0.example.net")
        .unwrap();
    assert_eq!(
        rules.entries.iter().filter(|entry| entry.kind != 0).count(),
        3
    );
}

/// Run with `--release -- --nocapture` for the time.
#[test]
fn fifty_thousand_patterns_with_a_star_inside_a_label_compile() {
    let scale = if cfg!(debug_assertions) { 20 } else { 1 };
    let mut text = policy("large", "\n  allow:\n  - names:\n");
    // One parent with all kinds, so that they meet; and many parents.
    for index in 0_u32..10_000 / scale {
        text.push_str(&format!("    - md-{index}-*.blob.example.net\n"));
        text.push_str(&format!("    - md-{index}-1.blob.example.net\n"));
        text.push_str(&format!("    - a{index}*.zone{index}.example.com\n"));
        text.push_str(&format!("    - '*-b{index}.zone{index}.example.com'\n"));
        text.push_str(&format!("    - '*.zone{index}.example.com'\n"));
    }
    for index in 0..5 {
        text.push_str(&format!("    - '*{index}.blob.example.net'\n"));
    }
    let set = PolicySet::from_texts(
        [(Path::new("large.yaml"), text.as_str())],
        &Catalog::default(),
    )
    .unwrap();
    let start = Instant::now();
    let compiled = compile(&set, &Lifeline::new(), None).unwrap();
    println!("{} entries in {:?}", compiled.names.len(), start.elapsed());
    for name in [
        "md-7-x.blob.example.net",
        "md-7-1.blob.example.net",
        "x3.blob.example.net",
        "a7.zone7.example.com",
        "x-b7.zone7.example.com",
    ] {
        assert!(compiled.rules_of_name(name).is_some(), "{name}");
    }
    assert!(
        compiled
            .rules_of_name("md-7-x.y.blob.example.net")
            .is_none()
    );
}

#[test]
fn stars_inside_a_label_that_multiply_end_in_one_message() {
    let mut text = policy("large", "\n  allow:\n  - names:\n");
    for index in 0..400 {
        text.push_str(&format!(
            "    - a{index}*.x.example\n    - '*-b{index}.x.example'\n"
        ));
    }
    let set = PolicySet::from_texts(
        [(Path::new("large.yaml"), text.as_str())],
        &Catalog::default(),
    )
    .unwrap();
    let error = compile(&set, &Lifeline::new(), None)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "large.yaml:8: spec.allow[0].names[0]: patterns with * inside the first label, here below x.example, \
         need more than 131072 entries: each text before a * meets each text behind one; write fewer, or *.x.example"
    );
}

#[test]
fn the_example_is_what_the_lookups_here_understand() {
    let compiled = compiled(EXAMPLE);
    let trie: Vec<_> = compiled.names.entries(ID).collect();
    let rules = lookup_name(&trie, "x.evil.cdn.example.net").unwrap();
    let source = &compiled.rules[&rules.entries[0].rule];
    assert_eq!(
        (source.destination.as_str(), rules.deny),
        ("*.cdn.example.net", 0)
    );
    let rules = lookup_name(&trie, "evil.cdn.example.net").unwrap();
    assert_ne!(rules.deny, 0);
    let address = address_from("10.99.1.1".parse().unwrap());
    let entry = lookup_address(&compiled, &address).unwrap().entries[0];
    assert_eq!(entry.kind, EntryKind::Deny as u8);
}
