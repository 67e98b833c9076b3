//! Ceilings, and denials of the cluster: what a policy of a namespace cannot do.

use egress_common::verdict::Reason;

use crate::tests::compiled;
use crate::{compile::Compiled, vocabulary::Destination};

/// Policies: `cluster NAME SPEC` or `namespace NAME SPEC`, one to a line.
fn of(lines: &str) -> Compiled {
    let documents = lines.lines().map(|line| {
        let mut parts = line.trim().splitn(3, ' ');
        let kind = match parts.next() {
            Some("cluster") => "ClusterEgressPolicy",
            Some("namespace") => "EgressPolicy",
            other => panic!("{other:?}"),
        };
        let (name, spec) = (parts.next().unwrap(), parts.next().unwrap());
        format!("apiVersion: egress.dev/v1alpha1\nkind: {kind}\nmetadata: {{ name: {name} }}\nspec: {spec}\n")
    });
    compiled(&documents.collect::<Vec<_>>().join("---\n"))
}

fn reason(compiled: &Compiled, destination: &str) -> Reason {
    let destination: Destination = destination.parse().unwrap();
    compiled.judge(&destination, &[]).reason
}

/// Which of the destinations are allowed.
fn open(compiled: &Compiled, destinations: &str) -> String {
    let open = destinations
        .split_whitespace()
        .filter(|destination| reason(compiled, destination).allows());
    open.collect::<Vec<_>>().join(" ")
}

const ASKED: &str = "api.example.com:443 api.example.com:80 db.example.com:443 other.test:443 \
     10.1.2.3:443 10.2.0.1:443 192.0.2.1:443 [2001:db8::1]:443";

#[test]
fn a_denial_of_the_cluster_wins_over_what_a_namespace_allows() {
    let compiled = of(
        "namespace open { allow: [{ cidrs: [0.0.0.0/0, '::/0'] }, { names: ['*.example.com'] }] }
         cluster fence { deny: [{ names: [db.example.com] }, { cidrs: [10.1.0.0/16, '2001:db8::/32'] }] }",
    );
    assert_eq!(reason(&compiled, "10.1.2.3:443"), Reason::DeniedCidr);
    assert!(compiled.rules_of_name("db.example.com").unwrap().deny != 0);
    let asked = "10.1.2.3:443 10.2.0.1:443 [2001:db8::1]:443 [2001:db9::1]:443";
    assert_eq!(open(&compiled, asked), "10.2.0.1:443 [2001:db9::1]:443");
}

#[test]
fn a_ceiling_opens_nothing_and_bounds_what_namespaces_open() {
    let ceiling = "cluster fence { ceiling: true, allow: [{ names: ['*.example.com'], ports: [443/tcp] }, { cidrs: [10.1.0.0/16] }] }";
    assert_eq!(open(&of(ceiling), ASKED), "");
    let wide = "namespace wide { allow: [{ names: ['*.example.com', other.test] }, { cidrs: [0.0.0.0/0, '::/0'], ports: [443/tcp] }] }";
    let alone = of(wide);
    assert_eq!(alone.cuts, []);
    let everything = ASKED.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(open(&alone, ASKED), everything);
    let both = of(&format!("{wide}\n{ceiling}"));
    assert_eq!(
        open(&both, ASKED),
        "api.example.com:443 db.example.com:443 10.1.2.3:443"
    );
    // A rule of its own, so that a flow that rests on all of it rests on nothing any more.
    let rule =
        |compiled: &Compiled| compiled.rules_of_name("api.example.com").unwrap().entries[0].rule;
    assert_ne!(rule(&both), rule(&alone));
    let told: Vec<String> = both
        .cuts
        .iter()
        .map(|cut| cut.rule.destination.clone())
        .collect();
    assert_eq!(told, ["*.example.com", "other.test", "0.0.0.0/0", "::/0"]);
    assert!(both.cuts.iter().all(|cut| cut.ceilings == ["fence"]));
    // What is wholly below a ceiling stays what it was.
    let narrow = "namespace wide { allow: [{ names: [api.example.com], ports: [443/tcp] }] }";
    let bounded = of(&format!("{narrow}\n{ceiling}"));
    assert_eq!((rule(&bounded), bounded.cuts.len()), (rule(&of(narrow)), 0));
}

#[test]
fn what_the_cluster_opens_is_not_bounded_and_each_ceiling_is() {
    let compiled = of(
        "namespace wide { allow: [{ names: ['*.example.com', other.test] }] }
         cluster floor { allow: [{ names: [other.test], ports: [443/tcp] }] }
         cluster one { ceiling: true, allow: [{ names: ['*.example.com'] }] }
         cluster two { ceiling: true, allow: [{ names: ['api.*', 'a*.example.com'] }] }"
            .replace("'api.*', ", "")
            .as_str(),
    );
    assert_eq!(
        open(&compiled, ASKED),
        "api.example.com:443 api.example.com:80 other.test:443"
    );
}

#[test]
fn names_are_within_a_ceiling_of_all_addresses_and_of_no_fewer() {
    for (cidrs, is_open) in [
        ("0.0.0.0/0, '::/0'", true),
        ("0.0.0.0/0", false),
        ("'::/0'", false),
        ("0.0.0.0/1, 128.0.0.0/1, '::/0'", false),
    ] {
        let compiled = of(&format!(
            "namespace web {{ allow: [{{ names: [api.example.com] }}] }}
             cluster fence {{ ceiling: true, allow: [{{ cidrs: [{cidrs}], ports: [443/tcp] }}] }}"
        ));
        let expected = if is_open { "api.example.com:443" } else { "" };
        assert_eq!(open(&compiled, ASKED), expected, "{cidrs}");
    }
}

#[test]
fn a_ceiling_in_audit_bounds_nothing_beside_policies_that_are_enforced() {
    let wide = "namespace wide { allow: [{ names: [other.test], ports: [443/tcp] }] }";
    let audit = "cluster fence { mode: audit, ceiling: true, allow: [] }";
    assert_eq!(
        open(&of(&format!("{wide}\n{audit}")), ASKED),
        "other.test:443"
    );
    let both = wide.replace("{ allow", "{ mode: audit, allow");
    assert_eq!(open(&of(&format!("{both}\n{audit}")), ASKED), "");
}

#[test]
fn whom_it_is_for_says_that_it_is_a_ceiling() {
    let text = "apiVersion: egress.dev/v1alpha1\nkind: ClusterEgressPolicy\nmetadata: { name: fence }\n\
                spec: { ceiling: true, namespaceSelector: { matchLabels: { team: shop } } }\n";
    let document = &super::set(text).policies()[0].document.clone();
    assert_eq!(
        document.subjects(),
        "all pods in namespaces team=shop, as a ceiling"
    );
}

#[test]
fn patterns_that_all_overlap_end_in_one_message() {
    let patterns = |end: &str| {
        let patterns: Vec<String> = (0..2_100)
            .map(|index| format!("'a{index}*{end}.x.example'"))
            .collect();
        patterns.join(", ")
    };
    let text = format!(
        "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: a }}\nspec: {{ allow: [{{ names: [{}] }}] }}\n\
         ---\napiVersion: egress.dev/v1alpha1\nkind: ClusterEgressPolicy\nmetadata: {{ name: fence }}\n\
         spec: {{ ceiling: true, allow: [{{ names: [{}] }}] }}\n",
        patterns(""),
        patterns("-z"),
    );
    let compiled = crate::compile(&super::set(&text), &crate::Lifeline::new(), None);
    let error = compiled.unwrap_err().to_string();
    assert!(error.contains("with the ceilings fence"), "{error}");
}
