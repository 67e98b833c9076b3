//! Service tags: files, rules, and a file in the real size.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use egress_common::{
    maps::CIDRS_CAPACITY,
    policy::{EntryKind, PortRange, protocol::TCP},
};
use proptest::{collection::vec, prelude::*};

use crate::tests::policy;
use crate::{
    compile::{Compiled, compile},
    document::{Catalog, PolicySet, ServiceTags},
    read::PolicyErrors,
    vocabulary::{Cidr, Lifeline, address_from},
};

#[path = "../../../tests/src/service_tags.rs"]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a fixture of the tests' own crate"
)]
mod files;
use files::{CLOUD_PREFIXES, Form, IPV4_PREFIXES, IPV6_PREFIXES, TAGS, TagFile};

const FILE: &str = "tags.json";

fn read(json: &str) -> Result<ServiceTags, PolicyErrors> {
    ServiceTags::parse(Path::new(FILE), json.as_bytes(), None)
}

/// A catalog with these tags.
fn catalog(tags: &[(&str, &[&str])]) -> Catalog {
    let json = TagFile::new(7, tags).json(Form::Download);
    Catalog::new(Some(read(&json).unwrap()))
}

fn try_compile(catalog: &Catalog, spec: &str) -> Result<Compiled, PolicyErrors> {
    let text = policy("node", spec);
    let set = PolicySet::from_texts([(Path::new("policy.yaml"), text.as_str())], catalog)?;
    compile(&set, &Lifeline::new(), None)
}

fn compiled(catalog: &Catalog, spec: &str) -> Compiled {
    try_compile(catalog, spec).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What decides about a TCP port of an address: the kind and the destination of the rule.
fn deciding(compiled: &Compiled, address: &str, port: u16) -> Option<(u8, String)> {
    let address = address_from(address.parse().unwrap());
    let entry = compiled
        .rules_of_address(&address)?
        .find(TCP, Some(port), true)?;
    Some((entry.kind, compiled.rules[&entry.rule].destination.clone()))
}

fn allowed_by(tag: &str) -> Option<(u8, String)> {
    Some((EntryKind::Allow as u8, tag.to_owned()))
}

fn denied_by(tag: &str) -> Option<(u8, String)> {
    Some((EntryKind::Deny as u8, tag.to_owned()))
}

const SOME: &[(&str, &[&str])] = &[
    ("AzureCloud", &["20.0.0.0/8", "2603::/16"]),
    ("AzureCloud.westeurope", &["20.1.0.0/16", "2603:1::/32"]),
    (
        "Storage.WestEurope",
        &["20.1.2.0/24", "20.9.0.0/24", "2603:1:2::/48"],
    ),
    ("Empty", &[]),
];

#[test]
fn both_forms_say_the_same() {
    let file = TagFile::new(376, SOME);
    let [download, answer] = [Form::Download, Form::Answer].map(|form| file.json(form));
    assert!(download.contains("\"changeNumber\": 376") && download.contains("regionId"));
    assert!(answer.contains("\"changeNumber\":\"376\"") && !answer.contains("regionId"));
    let written = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(7));
    let read = |json: &str| ServiceTags::parse(Path::new(FILE), json.as_bytes(), written).unwrap();
    assert_eq!(read(&download), read(&answer));
    let tags = read(&download);
    let facts = tags.facts();
    assert_eq!(
        (facts.cloud.as_str(), facts.change_number.as_str()),
        ("Public", "376")
    );
    assert_eq!((facts.tags, facts.modified), (4, written));
    assert_eq!((facts.ipv4_prefixes, facts.ipv6_prefixes), (4, 3));
    assert!(facts.notes.is_empty());
    // As editors on Windows save it.
    assert_eq!(read(&format!("\u{feff}{download}")), tags);
}

#[test]
fn a_tag_is_allowed_on_its_ports_and_nothing_beside_it_is() {
    let compiled = compiled(
        &catalog(SOME),
        "{ allow: [{ serviceTags: [storage.westeurope], names: [a.example], cidrs: [10.0.0.0/8], ports: [443/tcp] }] }",
    );
    for inside in ["20.1.2.255", "20.9.0.0", "2603:1:2::1"] {
        assert_eq!(
            deciding(&compiled, inside, 443),
            allowed_by("storage.westeurope")
        );
        assert_eq!(deciding(&compiled, inside, 80), None, "{inside}");
    }
    for outside in ["20.1.3.0", "20.1.1.255", "2603:1:3::1"] {
        assert_eq!(deciding(&compiled, outside, 443), None, "{outside}");
    }
    assert_eq!(
        deciding(&compiled, "10.1.1.1", 443),
        allowed_by("10.0.0.0/8")
    );
    assert!(compiled.rules_of_name("a.example").is_some());
    // One rule for the name, one for the CIDR, one for the tag.
    assert_eq!((compiled.rules.len(), compiled.cidrs.len()), (3, 4));
}

#[test]
fn a_denied_tag_beats_an_allowed_one_inside_and_around_it() {
    let around = compiled(
        &catalog(SOME),
        "{ allow: [{ serviceTags: [AzureCloud] }], deny: [{ serviceTags: [Storage.WestEurope], ports: [80/tcp] }] }",
    );
    assert_eq!(
        deciding(&around, "20.1.2.1", 80),
        denied_by("Storage.WestEurope")
    );
    assert_eq!(deciding(&around, "20.1.2.1", 443), allowed_by("AzureCloud"));
    assert_eq!(deciding(&around, "20.1.3.1", 80), allowed_by("AzureCloud"));
    let inside = compiled(
        &catalog(SOME),
        "{ allow: [{ serviceTags: [Storage.WestEurope] }], deny: [{ serviceTags: [AzureCloud.westeurope] }] }",
    );
    assert_eq!(
        deciding(&inside, "20.1.2.1", 80),
        denied_by("AzureCloud.westeurope")
    );
    assert_eq!(
        deciding(&inside, "20.9.0.1", 80),
        allowed_by("Storage.WestEurope")
    );
}

#[test]
fn a_rule_is_the_same_in_every_spelling_and_edition_and_no_name_is_taken_for_it() {
    let one = compiled(
        &catalog(SOME),
        "{ allow: [{ serviceTags: [Storage.WESTEUROPE] }] }",
    );
    let other = compiled(
        &catalog(&[("storage.westeurope", &["192.0.2.0/24"])]),
        "{ allow: [{ serviceTags: [Storage.westeurope] }] }",
    );
    let name = compiled(
        &catalog(SOME),
        "{ allow: [{ names: [storage.westeurope] }] }",
    );
    let rule = |compiled: &Compiled| *compiled.rules.keys().next().unwrap();
    assert_eq!(rule(&one), rule(&other));
    assert_ne!(rule(&one), rule(&name));
}

#[test]
fn tags_that_cannot_be_used_are_told_with_their_place() {
    let refused = |spec: &str| try_compile(&catalog(SOME), spec).unwrap_err().to_string();
    assert_eq!(
        refused("{ allow: [{ serviceTags: [AzureCloud, storage.westeurop] }] }"),
        "policy.yaml:4: spec.allow[0].serviceTags[1]: \"storage.westeurop\" is not a service tag of tags.json \
         (cloud Public, change number 7); write Storage.WestEurope"
    );
    assert_eq!(
        refused("{ deny: [{ serviceTags: [VirtualNetwork] }] }"),
        "policy.yaml:4: spec.deny[0].serviceTags[0]: \"VirtualNetwork\" is not a service tag of tags.json \
         (cloud Public, change number 7); write a name that stands there"
    );
    assert_eq!(
        refused("{ deny: [{ serviceTags: [empty] }] }"),
        "policy.yaml:4: spec.deny[0].serviceTags[0]: service tag \"empty\" has no prefix in tags.json, so that \
         nothing would match; take it out"
    );
    let json = TagFile::new(7, SOME).json(Form::Answer);
    let page = json.replace("\"nextLink\":null", "\"nextLink\":\"https://next.example\"");
    let page = Catalog::new(Some(read(&page).unwrap()));
    let error = try_compile(&page, "{ allow: [{ serviceTags: [Sql] }] }").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("one page of an answer: nextLink is not empty"),
        "{error}"
    );
}

#[test]
fn a_hundred_thousand_unknown_tags_end_in_one_short_message() {
    let catalog = Catalog::new(Some(read(&TagFile::large(1).json(Form::Answer)).unwrap()));
    let names: Vec<String> = (0..100_000).map(|n| format!("Storage.{n}")).collect();
    let spec = format!("{{ allow: [{{ serviceTags: [{}] }}] }}", names.join(", "));
    let error = try_compile(&catalog, &spec).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 51, "{error}");
    assert!(error.contains("and 99950 more errors"), "{error}");
}

#[test]
fn files_that_cannot_be_used_say_what_is_wrong() {
    let good = TagFile::new(7, &[("Sql", &["192.0.2.0/24"])]).json(Form::Download);
    assert!(read(&good).is_ok());
    let form = "is not a file of service tags: ";
    for (json, message) in [
        (
            good[..good.find("Sql").unwrap() + 2].to_owned(),
            "tags.json:6: is not a file of service tags: EOF while parsing a string; give",
        ),
        (
            good.replace("\"values\"", "\"valeus\""),
            "missing field `values`",
        ),
        (
            good.replace("\"cloud\"", "\"sky\""),
            "missing field `cloud`",
        ),
        (
            good.replace("\"addressPrefixes\"", "\"prefixes\""),
            "missing field `addressPrefixes`",
        ),
        (
            good.replacen("\"changeNumber\": 7", "\"changeNumber\": \"x\"", 2),
            "a number",
        ),
        (
            good.replacen("\"changeNumber\": 7", "\"changeNumber\": []", 2),
            "a number",
        ),
        ("[]".to_owned(), form),
        ("apiVersion: egress.dev/v1alpha1".to_owned(), form),
        (String::new(), form),
        (
            r#"{ "changeNumber": 1, "cloud": "Public", "values": [] }"#.to_owned(),
            "tags.json: holds no service tag; get the file anew",
        ),
    ] {
        let error = read(&json).unwrap_err().to_string();
        assert!(error.contains(message), "{error}\n{json}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_bad_prefix_is_told_with_its_tag_and_host_bits_are_set_right() {
    for bad in [
        "300.0.0.1/8",
        "10.0.0.0/33",
        "sql.example.com",
        "",
        "::ffff:10.0.0.0/104",
    ] {
        let json = TagFile::new(7, &[("Sql", &["192.0.2.0/24", bad])]).json(Form::Answer);
        assert_eq!(
            read(&json).unwrap_err().to_string(),
            format!(
                "tags.json: values[0].properties.addressPrefixes[1]: service tag \"Sql\" has the prefix \"{bad}\", \
                 which is no CIDR; get the file anew"
            )
        );
    }
    let odd: &[&str] = &["192.0.2.7/24", "192.0.2.0/24", "192.0.2.0/24", "fd00::1/8"];
    let tags = read(&TagFile::new(7, &[("Sql", odd)]).json(Form::Answer)).unwrap();
    assert_eq!(
        tags.facts().notes,
        [
            "service tag Sql: \"192.0.2.7/24\" has host bits set, 192.0.2.0/24 is used",
            "service tag Sql: \"fd00::1/8\" has host bits set, fd00::/8 is used",
        ]
    );
    let prefixes: Vec<String> = tags
        .tags()
        .flat_map(|tag| tag.prefixes.iter().map(Cidr::to_string))
        .collect();
    assert_eq!(prefixes, ["192.0.2.0/24", "fd00::/8"]);
}

#[test]
fn a_tag_that_stands_twice_means_both() {
    let file = TagFile::new(
        7,
        &[("Sql", &["192.0.2.0/24"]), ("SQL", &["198.51.100.0/24"])],
    );
    let catalog = Catalog::new(Some(read(&file.json(Form::Answer)).unwrap()));
    let compiled = compiled(&catalog, "{ allow: [{ serviceTags: [Sql] }] }");
    for address in ["192.0.2.1", "198.51.100.1"] {
        assert_eq!(deciding(&compiled, address, 443), allowed_by("Sql"));
    }
}

#[test]
fn too_many_rules_at_one_network_are_told_and_equal_ports_do_not_count() {
    let tags: Vec<(String, Vec<String>)> = (0..40)
        .map(|n| (format!("Tag{n}"), vec![format!("20.0.0.0/{}", 8 + n % 9)]))
        .collect();
    let file = TagFile {
        change_number: 7,
        tags: tags.into_iter().collect(),
    };
    let catalog = Catalog::new(Some(read(&file.json(Form::Answer)).unwrap()));
    let rules = |ports: &dyn Fn(usize) -> String| {
        let rules: Vec<String> = (0..40)
            .map(|n| format!("{{ serviceTags: [Tag{n}], ports: [{}] }}", ports(n)))
            .collect();
        format!("{{ allow: [{}] }}", rules.join(", "))
    };
    compiled(&catalog, &rules(&|_| "443/tcp, 80/tcp".to_owned()));
    let error = try_compile(&catalog, &rules(&|n| format!("{}/tcp", n + 1))).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("different entries meet at 20.0.0.0/"),
        "{error}"
    );
    assert!(
        error.contains("spec.allow[0].serviceTags[0] (1/tcp)"),
        "{error}"
    );
}

#[test]
fn a_file_in_the_real_size_is_read_and_compiled() {
    let file = TagFile::large(1);
    let json = file.json(Form::Download);
    let text = |names: &mut dyn Iterator<Item = &String>| {
        let names: Vec<&str> = names.map(String::as_str).collect();
        format!(
            "{{ allow: [{{ serviceTags: [{}], ports: [443/tcp, 80/tcp] }}] }}",
            names.join(", ")
        )
    };
    let start = Instant::now();
    let tags = read(&json).unwrap();
    let parsed = start.elapsed();
    let facts = tags.facts();
    assert_eq!(
        (TAGS, IPV4_PREFIXES, IPV6_PREFIXES),
        (3_000, 37_500, 13_400)
    );
    assert_eq!(
        (facts.tags, facts.ipv4_prefixes, facts.ipv6_prefixes),
        (TAGS, IPV4_PREFIXES, IPV6_PREFIXES)
    );
    assert_eq!(
        (CLOUD_PREFIXES, file.tags["AzureCloud"].len()),
        (12_400, 12_400)
    );
    let catalog = Catalog::new(Some(tags));
    let start = Instant::now();
    let compiled = compiled(&catalog, &text(&mut file.tags.keys()));
    println!(
        "{} bytes of tags: read in {parsed:?}; policy of all compiled in {:?}",
        json.len(),
        start.elapsed()
    );
    assert_eq!(compiled.rules.len(), TAGS);
    assert_eq!(compiled.cidrs.len(), IPV4_PREFIXES + IPV6_PREFIXES);
    let ports = [443, 80].map(|port| PortRange::new(TCP, port, port));
    for rules in compiled.cidrs.values() {
        let entries: Vec<PortRange> = rules
            .entries
            .iter()
            .filter(|entry| entry.kind != 0)
            .map(|entry| entry.ports)
            .collect();
        assert_eq!(entries, ports);
    }
}

#[test]
fn more_networks_than_the_kernel_holds_twice_are_refused() {
    let most = usize::try_from(CIDRS_CAPACITY / 2).unwrap();
    let compile = |count: usize| {
        let networks =
            (0..count).map(|n| format!("20.{}.{}.{}/32", n >> 16, n >> 8 & 255, n & 255));
        let tags = [("Many".to_owned(), networks.collect())].into();
        let file = TagFile {
            change_number: 1,
            tags,
        };
        let catalog = Catalog::new(Some(read(&file.json(Form::Answer)).unwrap()));
        try_compile(&catalog, "{ allow: [{ serviceTags: [Many] }] }")
    };
    assert_eq!(compile(most).unwrap().cidrs.len(), most);
    assert_eq!(
        compile(most.saturating_add(1)).unwrap_err().to_string(),
        "policy.yaml: this and the policies with it have 131073 different networks, but 131072 is the most that can be \
         in force; use wider ones"
    );
}

fn network() -> impl Strategy<Value = String> {
    (any::<bool>(), 0..4, 0..4, 0_usize..4).prop_map(|(is_v4, a, b, length)| {
        let (address, bits) = if is_v4 {
            (format!("20.{a}.{b}.0"), [104, 112, 120, 128][length])
        } else {
            (format!("2603:{a}:{b}::"), [16, 32, 48, 128][length])
        };
        Cidr::containing(&address_from(address.parse().unwrap()), bits).to_string()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_tag_means_what_its_networks_would(
        rules in vec(
            (vec(network(), 1..6), any::<bool>(), proptest::sample::select(vec!["443/tcp", "any", "400-450/tcp"])),
            1..6,
        ),
    ) {
        let spec = |field: &str, destination: &dyn Fn(usize) -> String| {
            let list = |is_deny: bool| {
                let of_list = rules.iter().enumerate().filter(|(_, rule)| rule.1 == is_deny);
                let texts: Vec<String> = of_list
                    .map(|(n, rule)| format!("{{ {field}: [{}], ports: [{}] }}", destination(n), rule.2))
                    .collect();
                texts.join(", ")
            };
            format!("{{ allow: [{}], deny: [{}] }}", list(false), list(true))
        };
        let file = TagFile {
            change_number: 7,
            tags: rules.iter().enumerate().map(|(n, rule)| (format!("Tag{n}"), rule.0.clone())).collect(),
        };
        let catalog = Catalog::new(Some(read(&file.json(Form::Answer)).unwrap()));
        let by_tag = compiled(&catalog, &spec("serviceTags", &|n| format!("tag{n}")));
        let by_cidr = compiled(&catalog, &spec("cidrs", &|n| {
            let quoted: Vec<String> = rules[n].0.iter().map(|cidr| format!("\"{cidr}\"")).collect();
            quoted.join(", ")
        }));
        prop_assert_eq!(by_tag.cidrs.len(), by_cidr.cidrs.len());
        for (network, rules) in &by_tag.cidrs {
            let says = |rules: &egress_common::policy::CidrRules| {
                rules.entries.map(|entry| (entry.kind, entry.ports))
            };
            prop_assert_eq!(says(rules), says(&by_cidr.cidrs[network]));
        }
    }
}
