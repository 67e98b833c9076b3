//! The JSON Schema and the loader agree, as far as a schema can.

use std::{fs, path::Path};

use boon::{Compiler, SchemaIndex, Schemas};
use proptest::prelude::*;
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::tests::{EXAMPLE, policy};
use crate::{
    document::{Catalog, PolicySet, ServiceTags, json_schema},
    vocabulary::{
        Cidr, CidrError, TtlError, parse_duration_s, parse_name_pattern, parse_port_range,
    },
};

/// A compiled schema.
struct Validator(Schemas, SchemaIndex);

impl Validator {
    fn new(schema: Value) -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource("schema.json", schema).unwrap();
        let index = compiler.compile("schema.json", &mut schemas).unwrap();
        Self(schemas, index)
    }

    fn of_policy() -> Self {
        Self::new(json_schema().to_value())
    }

    /// Of one kind of text.
    fn of_text(name: &str) -> Self {
        let schema = json_schema().to_value();
        Self::new(schema["$defs"][name].clone())
    }

    fn accepts(&self, value: &Value) -> bool {
        self.0.validate(value, self.1).is_ok()
    }
}

/// The documents of a text as an editor sees them; `None` if it is not YAML.
fn documents(text: &str) -> Option<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(text.trim_start_matches('\u{feff}'));
    let values = documents.map(|document| Value::deserialize(document).ok());
    let values: Option<Vec<Value>> = values.collect();
    values.map(|values| {
        values
            .into_iter()
            .filter(|value| !value.is_null())
            .collect()
    })
}

/// Two service tags, and the presets that are built in.
fn catalog() -> Catalog {
    let tag =
        |name: &str| json!({ "name": name, "properties": { "addressPrefixes": ["192.0.2.0/24"] } });
    let file = json!({
        "changeNumber": 1,
        "cloud": "Public",
        "values": [tag("Storage"), tag("AzureCloud.eastus")],
    });
    let tags = ServiceTags::parse(Path::new("tags.json"), file.to_string().as_bytes(), None);
    Catalog::new(Some(tags.unwrap()))
}

fn loads(text: &str) -> Result<PolicySet, String> {
    CATALOG
        .with(|catalog| PolicySet::from_texts([(Path::new("policy.yaml"), text)], catalog))
        .map_err(|errors| errors.to_string())
}

/// Folders of the repository with policies, and how many files lie there at least.
const FOLDERS: &[(&str, usize)] = &[("../deploy/systemd/policies", 1)];

#[test]
fn policies_that_are_accepted_fit_the_schema() {
    let schema = Validator::of_policy();
    let mut texts = vec![EXAMPLE.to_owned()];
    for (folder, least) in FOLDERS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let files = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let files: Vec<_> = files.collect();
        assert!(files.len() >= *least, "{}", folder.display());
        texts.extend(files.iter().map(|file| fs::read_to_string(file).unwrap()));
    }
    for spec in [
        "{}",
        "{ allow: [], deny: [] }",
        "{ mode: audit, preexisting: judge, dns: { queries: allowed }, ttl: { min: 0s, max: 7d } }",
        "{ allow: [{ names: [], cidrs: ['::/0', '2001:db8::1', 192.0.2.1, 0.0.0.0/0], ports: [any, ICMP] }] }",
        "{ allow: [{ names: ['*.B\u{fc}cher.example.', _a.b, '-'], ports: [1/tcp, 65535/UDP, 5-5/sctp, any/tcp] }] }",
        "{ allow: [{ names: [md-*.blob.example.net, '*-x.B.example', a*b.c] }] }",
        "{ allow: [{ preset: aks/azure-global, with: { location: eastus, privateCluster: true, customDns: [192.0.2.53] } }] }",
        "{ allow: [{ serviceTags: [Storage, azurecloud.EASTUS], ports: [443/tcp] }] }",
        "{ allow: [{ names: [a.b], ports: [443/tcp, 8000-8080/TCP, any/tcp], require: tls }] }",
        "{ allow: [{ names: [a.b], cidrs: [], ports: [443/tcp], require: tls }] }",
        "{ allow: [{ names: [a.b], require: none }, { cidrs: [10.0.0.0/8], require: none }] }",
        "{ deny: [{ names: [a.b], require: none }] }",
        "{ deny: [{ names: [a.b], ports: [any] }, { cidrs: [10.0.0.0/8], ports: [22/tcp] }] }",
        "{ deny: [{ names: [a.b] }, { names: [], cidrs: [10.0.0.0/8], ports: [22/tcp] }] }",
        "{ ttl: { min: 168h, max: 604800s } }",
        "{ ttl: { min: 0d, max: 0h10080m } }",
        "{ podSelector: { matchLabels: { app: payments, example.com/tier: '' } } }",
        "{ podSelector: { matchExpressions: [{ key: a, operator: In, values: [b] }, { key: a, operator: Exists }] } }",
    ] {
        texts.push(policy("node", spec));
    }
    for text in texts {
        loads(&text).unwrap();
        for document in documents(&text).unwrap() {
            let result = schema.0.validate(&document, schema.1);
            assert!(result.is_ok(), "{text}\n{}", result.unwrap_err());
        }
    }
}

#[test]
fn bad_policies_do_not_fit_the_schema() {
    let schema = Validator::of_policy();
    let text = |spec: &str| policy("node", spec);
    let good = text("{ allow: [{ names: [a.example.com] }] }");
    assert!(loads(&good).is_ok() && schema.accepts(&documents(&good).unwrap()[0]));
    let mut bad: Vec<String> = [
        "{ mode: on }",
        "{ preexisting: drop }",
        "{ dns: { queries: none } }",
        "{ dns: { query: any } }",
        "{ ttl: { min: 30 } }",
        "{ ttl: { min: 1m1h } }",
        "{ ttl: 30s }",
        "{ allow: {} }",
        "{ allow: [a.example.com] }",
        "{ allow: [{}] }",
        "{ allow: [{ names: [] }] }",
        "{ allow: [{ ports: [443/tcp] }] }",
        "{ allow: [{ names: a.example.com }] }",
        "{ allow: [{ name: [a.example.com] }] }",
        "{ allow: [{ names: [a.example.com], ports: [] }] }",
        "{ allow: [{ names: [a.example.com], ports: 443/tcp }] }",
        "{ allow: [{ names: ['*'] }] }",
        "{ allow: [{ names: ['*.'] }] }",
        "{ allow: [{ names: ['a.*.b'] }] }",
        "{ allow: [{ names: ['a*'] }] }",
        "{ allow: [{ names: ['a*b*.c'] }] }",
        "{ allow: [{ names: ['a*b.1.2'] }] }",
        "{ allow: [{ names: [a..b] }] }",
        "{ allow: [{ names: ['a b.c'] }] }",
        "{ allow: [{ names: ['https://a.b'] }] }",
        "{ allow: [{ names: ['a.b:443'] }] }",
        "{ allow: [{ names: [192.0.2.1] }] }",
        "{ allow: [{ names: ['2001:db8::1'] }] }",
        "{ allow: [{ names: [''] }] }",
        "{ allow: [{ cidrs: [a.example.com] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/33] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/255.0.0.0] }] }",
        "{ allow: [{ cidrs: [10.0.0.256] }] }",
        "{ allow: [{ cidrs: ['fd00::/129'] }] }",
        "{ allow: [{ cidrs: ['fe80::1%eth0'] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [443] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [0/tcp] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [65536/tcp] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [tcp/443] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [443/icmp] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['*'] }] }",
        "{ allow: [{ preset: aks/azure-global, names: [a.example.com] }] }",
        "{ allow: [{ with: { location: eastus } }] }",
        "{ allow: [{ preset: [aks/azure-global] }] }",
        "{ allow: [{ preset: aks/azure-global, with: [location] }] }",
        "{ allow: [{ preset: aks/azure-global, with: { location: { name: eastus } } }] }",
        "{ allow: [{ serviceTags: Storage }] }",
        "{ allow: [{ preset: AKS/azure }] }",
        "{ ttl: { min: 8d } }",
        "{ ttl: { max: 0s } }",
        "{ ttl: { min: 0s, max: 0m00s } }",
        "{ ttl: { max: 169h } }",
        "{ ttl: { max: 10081m } }",
        "{ ttl: { max: 604801s } }",
        "{ allow: [{ names: [a.b], ports: [443/tcp], require: https }] }",
        "{ allow: [{ names: [a.b], ports: [443/tcp], require: true }] }",
        "{ allow: [{ names: [a.b], require: tls }] }",
        "{ allow: [{ names: [a.b], ports: [443/tcp, 443/udp], require: tls }] }",
        "{ allow: [{ names: [a.b], ports: [any], require: tls }] }",
        "{ allow: [{ names: [a.b], cidrs: [10.0.0.0/8], ports: [443/tcp], require: tls }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [443/tcp], require: tls }] }",
        "{ allow: [{ serviceTags: [Storage], ports: [443/tcp], require: tls }] }",
        "{ allow: [{ preset: aks/azure-global, with: { location: eastus }, require: tls }] }",
        "{ deny: [{ names: [a.b], require: tls }] }",
        "{ deny: [{ names: [a.b], ports: [443/tcp] }] }",
        "{ deny: [{ names: [a.b], cidrs: [10.0.0.0/8], ports: [443/tcp] }] }",
        "{ allow: [{ names: [a.b], ports: [1/tcp, 2/tcp, 3/tcp, 4/tcp, 5/tcp, 6/tcp, 7/tcp, 8/tcp, 9/tcp] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [1/tcp, 2/tcp, 3/tcp, 4/tcp, 5/tcp, 6/tcp, 7/tcp, 8/tcp, 9/tcp, \
         10/tcp, 11/tcp, 12/tcp, 13/tcp, 14/tcp, 15/tcp, 16/tcp, 17/tcp] }] }",
        "{ subject: pods }",
        "{ subject: node }",
        "{ namespaceSelector: {} }",
        "{ nodeSelector: {} }",
        "{ ceiling: true }",
        "{ podSelector: payments }",
        "{ podSelector: { matchLabels: { app: -x } } }",
        "{ podSelector: { matchExpressions: [{ key: a b, operator: Exists }] } }",
        "{ podSelector: { matchExpressions: [{ operator: Exists }] } }",
        "{ podSelector: { matchExpressions: [{ key: a }] } }",
        "{ podSelector: { matchExpressions: [{ key: a, operator: Is }] } }",
        "{ podSelector: { matchExpressions: [{ key: a, operator: In }] } }",
        "{ podSelector: { matchExpressions: [{ key: a, operator: NotIn, values: [] }] } }",
        "{ podSelector: { matchExpressions: [{ key: a, operator: Exists, values: [b] }] } }",
        "{ podSelector: { matchExpressions: [{ key: a, operator: In, values: ['b/c'] }] } }",
        "{ allow: [{ serviceTags: [] }] }",
        "[]",
    ]
    .iter()
    .map(|spec| text(spec))
    .collect();
    let long = vec!["a".repeat(63); 4].join(".");
    bad.push(text(&format!("{{ allow: [{{ names: [{long}] }}] }}")));
    bad.push(text(&format!(
        "{{ allow: [{{ names: [a{}.b] }}] }}",
        "a".repeat(63)
    )));
    for (from, to) in [
        ("egress.dev/v1alpha1", "egress.dev/v1"),
        ("EgressPolicy", "NetworkPolicy"),
        ("name: node", "nam: node"),
        ("name: node", "name: Node"),
        ("name: node", "name: lifeline"),
        ("name: node", "name: node-"),
        ("name: node", "name: node, labels: [a]"),
        ("kind: EgressPolicy\n", ""),
        ("spec:", "status: {}\nspec:"),
    ] {
        bad.push(good.replace(from, to));
    }
    for text in bad {
        assert!(loads(&text).is_err(), "the loader takes\n{text}");
        let documents = documents(&text).unwrap();
        assert!(!schema.accepts(&documents[0]), "the schema takes\n{text}");
    }
}

#[test]
fn the_fields_of_a_cluster_go_with_its_kind() {
    let schema = Validator::of_policy();
    for (spec, is_good) in [
        (
            "{ subject: node, nodeSelector: { matchLabels: { pool: system } } }",
            true,
        ),
        (
            "{ namespaceSelector: {}, podSelector: {}, nodeSelector: {} }",
            true,
        ),
        ("{ subject: pods, podSelector: {} }", true),
        ("{ subject: node, podSelector: {} }", false),
        ("{ subject: node, namespaceSelector: {} }", false),
        ("{ subject: nodes }", false),
        ("{ ceiling: true, podSelector: {} }", true),
        (
            "{ ceiling: true, allow: [{ names: [a.b], ports: [443/tcp], require: tls }] }",
            false,
        ),
        (
            "{ ceiling: false, allow: [{ names: [a.b], ports: [443/tcp], require: tls }] }",
            true,
        ),
        ("{ ceiling: false, subject: pods }", true),
        ("{ ceiling: sometimes }", false),
        ("{ ceiling: true, subject: node }", false),
    ] {
        let text = policy("node", spec).replace("EgressPolicy", "ClusterEgressPolicy");
        assert_eq!(loads(&text).is_ok(), is_good, "{text}");
        assert_eq!(
            schema.accepts(&documents(&text).unwrap()[0]),
            is_good,
            "{text}"
        );
    }
}

/// The fields of every mapping as the loader lists them when one is unknown.
#[test]
fn the_loader_knows_the_fields_of_the_schema() {
    let text = format!(
        "x: 1\n{}",
        policy(
            "node, x: 1",
            "{ x: 1, ttl: { x: 1 }, dns: { x: 1 }, allow: [{ x: 1 }], \
             podSelector: { x: 1, matchExpressions: [{ x: 1, key: a, operator: Exists }] } }"
        )
    );
    let errors = loads(&text).unwrap_err();
    let schema = json_schema().to_value();
    let fields = |schema: &Value| -> String {
        let fields = schema["properties"].as_object().unwrap().keys();
        fields.cloned().collect::<Vec<_>>().join(", ")
    };
    for (path, schema) in [
        ("x", &schema),
        ("metadata.x", &schema["$defs"]["Metadata"]),
        ("spec.x", &schema["$defs"]["Spec"]),
        ("spec.ttl.x", &schema["$defs"]["SpecTtl"]),
        ("spec.dns.x", &schema["$defs"]["SpecDns"]),
        ("spec.allow[0].x", &schema["$defs"]["SpecRule"]),
        ("spec.podSelector.x", &schema["$defs"]["Selector"]),
        (
            "spec.podSelector.matchExpressions[0].x",
            &schema["$defs"]["Requirement"],
        ),
    ] {
        let ends = format!(
            ": {path}: unknown field \"x\"; the fields here are {}",
            fields(schema)
        );
        assert!(
            errors.lines().any(|line| line.ends_with(&ends)),
            "{ends}\n{errors}"
        );
    }
}

#[test]
fn every_field_says_what_it_means() {
    fn look(schema: &Value, path: &str) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let text = field["description"].as_str().unwrap_or_default();
            assert!(
                text.ends_with('.') && !text.contains(['[', '|']),
                "{path}.{name}: {text}"
            );
        }
        for (name, schema) in schema["$defs"].as_object().into_iter().flatten() {
            look(schema, name);
        }
    }
    look(&json_schema().to_value(), "");
}

#[test]
fn the_defaults_of_the_schema_are_those_of_the_loader() {
    let empty = loads(&policy("node", "{}")).unwrap();
    let schema = json_schema().to_value();
    let spec = json!(&empty.policies()[0].document.spec);
    for (name, field) in schema["$defs"]["Spec"]["properties"].as_object().unwrap() {
        assert_eq!(field["default"], spec[name], "{name}");
    }
}

/// Texts near a form: its own signs, and some that it has not.
fn near(signs: &'static str) -> impl Strategy<Value = String> {
    let signs: Vec<char> = signs.chars().collect();
    proptest::collection::vec(proptest::sample::select(signs), 0..24)
        .prop_map(|signs| signs.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn durations_fit_the_expression(text in near("0123456789999dhms ")) {
        let fits = DURATION.with(|schema| schema.accepts(&json!(text)));
        let units = text.bytes().filter(u8::is_ascii_alphabetic).count();
        match parse_duration_s(&text) {
            Ok(_) => prop_assert!(fits, "{:?}", text),
            Err(TtlError::TooLong(_)) => prop_assert!(!fits || units > 1, "{:?}", text),
            Err(_) => prop_assert!(!fits, "{:?}", text),
        }
    }

    #[test]
    fn ports_fit_the_expression(
        text in prop_oneof![
            near("0123456/-tcpudany"),
            (0..70_000_u32, prop::option::of(0..70_000_u32), "(tcp|UDP|Sctp|icmp|tpc)").prop_map(
                |(first, last, proto)| match last {
                    Some(last) => format!("{first}-{last}/{proto}"),
                    None => format!("{first}/{proto}"),
                }
            ),
        ]
    ) {
        let fits = PORTS.with(|schema| schema.accepts(&json!(text)));
        match parse_port_range(&text) {
            Ok(_) => prop_assert!(fits, "{:?}", text),
            Err(error) => prop_assert!(!fits || error.why == "the range is reversed", "{:?}", text),
        }
    }

    #[test]
    fn networks_fit_the_expression(
        text in prop_oneof![
            near("0123456789abcdefF::::..../"),
            (any::<std::net::IpAddr>(), prop::option::of(0..140_u8)).prop_map(|(address, bits)| match bits {
                Some(bits) => format!("{address}/{bits}"),
                None => address.to_string(),
            }),
            (prop::collection::vec("(0|1f|abcd|::|1\\.2\\.3\\.4)", 1..10), 0..140_u8)
                .prop_map(|(parts, bits)| format!("{}/{bits}", parts.join(":").replace(":::", "::"))),
        ]
    ) {
        let fits = CIDR.with(|schema| schema.accepts(&json!(text)));
        match text.parse::<Cidr>() {
            Ok(_) | Err(CidrError::HostBits { .. } | CidrError::Mapped { .. }) => {
                prop_assert!(fits, "{:?}", text);
            }
            Err(_) => prop_assert!(!fits, "{:?}", text),
        }
    }

    #[test]
    fn names_fit_the_expression(text in near("abcZ019-_....*/: @")) {
        let fits = NAME.with(|schema| schema.accepts(&json!(text)));
        prop_assert_eq!(parse_name_pattern(&text).is_ok(), fits, "{:?}", text);
    }

    #[test]
    fn international_names_fit_the_expression(text in "(\\*\\.)?[a-z\u{df}\u{e9}\u{43b}\u{4e2d}0-9.-]{1,30}") {
        if parse_name_pattern(&text).is_ok() {
            prop_assert!(NAME.with(|schema| schema.accepts(&json!(text))), "{:?}", text);
        }
    }

    #[test]
    fn what_the_loader_takes_fits_the_schema(at in 0..EXAMPLE.len(), length in 0..30_usize, insert in near("abc*.: -[]{}\"/10,\n")) {
        // The example with a part of it replaced.
        let end = at.saturating_add(length).min(EXAMPLE.len());
        let text = format!("{}{insert}{}", &EXAMPLE[..at], &EXAMPLE[end..]);
        if loads(&text).is_ok()
            && let Some(documents) = documents(&text)
            && documents.iter().all(has_texts_only)
        {
            for document in documents {
                prop_assert!(POLICY.with(|schema| schema.accepts(&document)), "{}", text);
            }
        }
    }
}

/// Whether every value is a text: the loader reads numbers, truth values and nothing as what they look like, which is
/// more than editors should take.
fn has_texts_only(value: &Value) -> bool {
    match value {
        Value::String(_) => true,
        Value::Array(items) => items.iter().all(has_texts_only),
        Value::Object(fields) => fields.values().all(has_texts_only),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

thread_local! {
    static CATALOG: Catalog = catalog();
    static POLICY: Validator = Validator::of_policy();
    static DURATION: Validator = Validator::of_text("Duration");
    static PORTS: Validator = Validator::of_text("PortRange");
    static CIDR: Validator = Validator::of_text("Network");
    static NAME: Validator = Validator::of_text("Name");
}
