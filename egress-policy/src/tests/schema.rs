//! The schema: what is accepted, and that the serde types and the loader agree.

use egress_common::{
    policy::{PortRange, protocol::TCP},
    verdict::Mode,
};

use crate::tests::{EXAMPLE, policy, set};
use crate::{document::EgressPolicy, vocabulary::Ttl};

#[test]
fn the_example_is_read_as_it_stands() {
    let set = set(EXAMPLE);
    let [policy] = set.policies() else {
        panic!("one policy");
    };
    assert_eq!(
        (policy.name(), policy.mode, policy.line),
        ("node", Mode::Enforce, 1)
    );
    assert_eq!(
        policy.ttl,
        Ttl {
            min_s: 30,
            grace_s: 1800,
            max_s: 86_400
        }
    );
    assert!(policy.keeps_preexisting);
    let [names, cidrs] = policy.allow.as_slice() else {
        panic!("two rules");
    };
    assert_eq!((names.line, cidrs.line), (8, 10));
    let ports = [
        PortRange::new(TCP, 443, 443),
        PortRange::new(TCP, 8000, 8080),
    ];
    assert_eq!(names.ports, ports);
    assert_eq!(names.names[1].value.to_string(), "*.cdn.example.net");
    assert_eq!(names.names[1].text, "*.cdn.example.net");
    assert_eq!(cidrs.cidrs[1].value.to_string(), "fd00::/8");
    assert_eq!(cidrs.ports, [PortRange::ANY]);
    assert_eq!(policy.deny[0].names[0].line, 13);
    assert!(policy.deny[0].ports.is_empty());
}

#[test]
fn what_is_left_out_has_its_default() {
    for text in [
        "{}",
        "{ allow: [], deny: [] }",
        "{ allow: , deny: , mode: , ttl: , preexisting: }",
        "{ ttl: {} }",
    ] {
        let set = set(&policy("node", text));
        let policy = &set.policies()[0];
        assert_eq!(policy.mode, Mode::Enforce, "{text}");
        assert_eq!(policy.ttl, Ttl::default(), "{text}");
        assert!(policy.keeps_preexisting && policy.allow.is_empty() && policy.deny.is_empty());
    }
    let judged = set(&policy("node", "{ preexisting: judge, mode: audit }"));
    assert!(!judged.policies()[0].keeps_preexisting);
    assert_eq!(judged.policies()[0].mode, Mode::Audit);
}

#[test]
fn kubernetes_metadata_is_accepted() {
    let text = EXAMPLE.replace(
        "{ name: node }",
        "{ name: node, namespace: default, labels: { app: web, tier: 1 }, annotations: { a/b: \"\" } }",
    );
    let set = set(&text);
    let metadata = &set.policies()[0].document.metadata;
    assert_eq!(metadata.namespace.as_deref(), Some("default"));
    assert_eq!(metadata.labels["tier"], "1");
    assert_eq!(metadata.annotations["a/b"], "");
}

#[test]
fn aliases_and_several_documents_work() {
    let text = policy(
        "a",
        "{ allow: [{ names: [x.example], ports: &p [443/tcp] }, { names: [y.example], ports: *p }] }",
    );
    let set = set(&format!("---\n{text}---\n{}...\n---\n", policy("b", "{}")));
    let names: Vec<_> = set.policies().iter().map(|policy| policy.name()).collect();
    assert_eq!(names, ["a", "b"]);
    let [first, second] = set.policies()[0].allow.as_slice() else {
        panic!("two rules");
    };
    assert_eq!(first.ports, second.ports);
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_do_no_harm() {
    let set = set(&format!("\u{feff}{}", EXAMPLE.replace('\n', "\r\n")));
    assert_eq!(set.policies()[0].deny[1].line, 14);
}

#[test]
fn the_document_goes_through_json_unchanged() {
    let set = set(EXAMPLE);
    let document = &set.policies()[0].document;
    let json = serde_json::to_string(&set.policies()[0]).unwrap();
    assert_eq!(
        &serde_json::from_str::<EgressPolicy>(&json).unwrap(),
        document
    );
    // JSON is YAML: the loader reads it as well.
    assert_eq!(&super::set(&json).policies()[0].document, document);
}

#[test]
fn the_serde_types_refuse_unknown_fields_too() {
    let json = serde_json::to_value(&set(EXAMPLE).policies()[0]).unwrap();
    for pointer in ["", "/metadata", "/spec", "/spec/ttl", "/spec/allow/0"] {
        let mut json = json.clone();
        let object = json.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
        object.insert("extra".to_owned(), "x".into());
        assert!(
            serde_json::from_value::<EgressPolicy>(json).is_err(),
            "{pointer}"
        );
    }
}
