//! Selection against tables and against a second way to say it.

use proptest::prelude::*;

use super::*;
use crate::policy::{Operator, Requirement};

fn labels(text: &str) -> Labels {
    text.split_whitespace()
        .map(|label| label.split_once('=').unwrap())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn selector(text: &str) -> Selector {
    Selector {
        match_labels: labels(text),
        ..Selector::default()
    }
}

fn policy(spec: Spec) -> Arc<PolicyObject> {
    Arc::new(PolicyObject {
        uid: "1".to_owned(),
        generation: 1,
        spec,
    })
}

fn pod(namespace: &str, its: &str) -> Pod {
    Pod {
        namespace: namespace.to_owned(),
        labels: labels(its),
        ..Pod::default()
    }
}

/// A node with labels, three namespaces, and a policy for each way to select.
fn view() -> ClusterView {
    let of_pods = |pods: Option<&str>, namespaces: Option<&str>, nodes: Option<&str>| Spec {
        pod_selector: pods.map(selector),
        namespace_selector: namespaces.map(selector),
        node_selector: nodes.map(selector),
        ..Spec::default()
    };
    let of_nodes = |nodes: Option<&str>| Spec {
        subject: Subject::Node,
        ..of_pods(None, None, nodes)
    };
    let policies = [
        ("all", of_pods(None, None, None)),
        ("all-too", of_pods(Some(""), Some(""), Some(""))),
        ("of-shops", of_pods(None, Some("kind=shop"), None)),
        ("gpu", of_pods(None, None, Some("gpu=yes"))),
        ("no-gpu", of_pods(None, None, Some("gpu=no"))),
        (
            "web-of-shops",
            of_pods(Some("app=web"), Some("kind=shop"), Some("gpu=yes")),
        ),
        ("node", of_nodes(None)),
        ("node-gpu", of_nodes(Some("gpu=yes"))),
        ("node-no-gpu", of_nodes(Some("gpu=no"))),
        ("shop/all", of_pods(None, None, None)),
        ("shop/web", of_pods(Some("app=web"), None, None)),
        (
            "shop/web-blue",
            of_pods(Some("app=web color=blue"), None, None),
        ),
        ("shops/all", of_pods(None, None, None)),
        ("sho/all", of_pods(None, None, None)),
    ];
    ClusterView {
        node: labels("gpu=yes zone=a"),
        namespaces: [
            ("shop".to_owned(), labels("kind=shop")),
            ("shops".to_owned(), labels("kind=mall")),
        ]
        .into(),
        policies: Arc::new(
            policies
                .into_iter()
                .map(|(key, spec)| (key.parse().unwrap(), policy(spec)))
                .collect(),
        ),
        ..ClusterView::default()
    }
}

fn of(view: &ClusterView, pod: &Pod) -> String {
    let keys: Vec<String> = view
        .policies_of(pod)
        .iter()
        .map(ToString::to_string)
        .collect();
    keys.join(" ")
}

#[test]
fn a_pod_has_the_policies_of_its_namespace_and_of_the_cluster_that_select_it() {
    let view = view();
    for (pod, expected) in [
        (pod("shop", ""), "all all-too gpu of-shops shop/all"),
        (
            pod("shop", "app=web"),
            "all all-too gpu of-shops web-of-shops shop/all shop/web",
        ),
        (
            pod("shop", "app=web color=blue"),
            "all all-too gpu of-shops web-of-shops shop/all shop/web shop/web-blue",
        ),
        (
            pod("shop", "app=db color=blue"),
            "all all-too gpu of-shops shop/all",
        ),
        (pod("shops", "app=web"), "all all-too gpu shops/all"),
        // Not known yet: it has no labels, but policies.
        (pod("sho", "app=web"), "all all-too gpu sho/all"),
        (pod("other", "app=web"), "all all-too gpu"),
    ] {
        assert_eq!(of(&view, &pod), expected, "{pod:?}");
    }
}

#[test]
fn labels_of_pod_namespace_and_node_change_what_selects_it() {
    let mut view = view();
    let web = pod("shop", "app=web");
    view.namespaces.get_mut("shop").unwrap().clear();
    assert_eq!(of(&view, &web), "all all-too gpu shop/all shop/web");
    view.node = labels("gpu=no");
    assert_eq!(of(&view, &web), "all all-too no-gpu shop/all shop/web");
    view.node = Labels::new();
    assert_eq!(of(&view, &web), "all all-too shop/all shop/web");
    view.policies = Arc::default();
    assert_eq!(of(&view, &web), "");
}

#[test]
fn the_node_has_the_policies_for_nodes_that_select_it() {
    let mut view = view();
    let of = |view: &ClusterView| -> Vec<String> {
        view.policies_of_node()
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(of(&view), ["node", "node-gpu"]);
    view.node = labels("gpu=no");
    assert_eq!(of(&view), ["node", "node-no-gpu"]);
    view.node = Labels::new();
    assert_eq!(of(&view), ["node"]);
}

#[test]
fn what_an_egress_policy_says_of_namespaces_nodes_and_subjects_does_not_count() {
    let spec = Spec {
        subject: Subject::Node,
        namespace_selector: Some(selector("kind=none")),
        node_selector: Some(selector("kind=none")),
        ..Spec::default()
    };
    let key: PolicyKey = "shop/strange".parse().unwrap();
    let view = ClusterView {
        policies: Arc::new([(key, policy(spec))].into()),
        ..ClusterView::default()
    };
    assert_eq!(of(&view, &pod("shop", "")), "shop/strange");
    assert_eq!(of(&view, &pod("other", "")), "");
    assert!(view.policies_of_node().is_empty());
}

#[test]
fn a_view_is_the_same_after_the_disk() {
    let mut view = view();
    let hash = "81cdabfc720501d9e81b425b15921b4d";
    for uid in [hash, "0f6c1d2e-3a4b-4c5d-8e6f-708192a3b4c5"] {
        let pod = Arc::new(pod("shop", "app=web"));
        view.pods.insert(PodUid::new(uid).unwrap(), pod);
    }
    view.dns_service = vec!["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()];
    let text = serde_json::to_string(&view).unwrap();
    assert_eq!(serde_json::from_str::<ClusterView>(&text).unwrap(), view);
    let wrong = text.replace(hash, "not-a-uid");
    let error = serde_json::from_str::<ClusterView>(&wrong).unwrap_err();
    assert!(error.to_string().contains("not-a-uid"), "{error}");
}

#[test]
fn requirements_mean_what_they_mean_in_kubernetes() {
    use Operator::{DoesNotExist, Exists, In, NotIn};
    // From the documentation of Kubernetes, with an absent key, an empty value and another one.
    for (operator, values, present, empty, other, absent) in [
        (In, &["a", "b"][..], true, false, false, false),
        (In, &["a", ""], true, true, false, false),
        (NotIn, &["a", "b"], false, true, true, true),
        (NotIn, &["a", ""], false, false, true, true),
        (Exists, &[], true, true, true, false),
        (DoesNotExist, &[], false, false, false, true),
    ] {
        let requirement = Requirement {
            key: "app".to_owned(),
            operator,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        let selector = Selector {
            match_expressions: vec![requirement],
            ..Selector::default()
        };
        for (of, expected) in [
            ("app=a x=y", present),
            ("app= x=y", empty),
            ("app=c x=y", other),
            ("x=y", absent),
        ] {
            assert_eq!(selector.matches(&labels(of)), expected, "{selector}: {of}");
        }
    }
    assert!(selector("").matches(&Labels::new()));
}

/// Written as the sentences of the documentation, over all labels instead of by key.
fn matches_as_told(selector: &Selector, labels: &Labels) -> bool {
    let has = |key: &str, value: &str| {
        labels
            .iter()
            .any(|(its_key, its)| its_key == key && its == value)
    };
    let mut result = true;
    for (key, value) in &selector.match_labels {
        if !has(key, value) {
            result = false;
        }
    }
    for requirement in &selector.match_expressions {
        let is_there = labels.keys().any(|key| *key == requirement.key);
        let mut is_one = false;
        for value in &requirement.values {
            if has(&requirement.key, value) {
                is_one = true;
            }
        }
        let holds = match requirement.operator {
            Operator::In => is_one,
            Operator::NotIn => !is_one,
            Operator::Exists => is_there,
            Operator::DoesNotExist => !is_there,
        };
        if !holds {
            result = false;
        }
    }
    result
}

fn some_labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map("[a-c]", "[x-z]?", 0..4)
}

fn some_selector() -> impl Strategy<Value = Selector> {
    let operators = vec![
        Operator::In,
        Operator::NotIn,
        Operator::Exists,
        Operator::DoesNotExist,
    ];
    let requirement = (
        "[a-c]",
        prop::sample::select(operators),
        prop::collection::vec("[x-z]?", 1..3),
    )
        .prop_map(|(key, operator, values)| Requirement {
            key,
            operator,
            values: match operator {
                Operator::In | Operator::NotIn => values,
                Operator::Exists | Operator::DoesNotExist => Vec::new(),
            },
        });
    (
        prop::collection::btree_map("[a-c]", "[x-z]?", 0..2),
        prop::collection::vec(requirement, 0..3),
    )
        .prop_map(|(match_labels, match_expressions)| Selector {
            match_labels,
            match_expressions,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn selectors_match_as_told(selector in some_selector(), labels in some_labels()) {
        prop_assert_eq!(selector.matches(&labels), matches_as_told(&selector, &labels));
    }

    #[test]
    fn policies_are_found_as_one_by_one(
        specs in prop::collection::vec(
            (
                prop::option::of("[a-b]"),
                any::<bool>(),
                prop::option::of(some_selector()),
                prop::option::of(some_selector()),
                prop::option::of(some_selector()),
            ),
            0..8,
        ),
        node in some_labels(),
        namespaces in prop::collection::btree_map("[a-b]", some_labels(), 0..2),
        of_pod in some_labels(),
    ) {
        let policies = specs.into_iter().enumerate().map(|(index, spec)| {
            let (namespace, is_node, pod_selector, namespace_selector, node_selector) = spec;
            let subject = if is_node { Subject::Node } else { Subject::Pods };
            let spec = Spec {
                subject,
                pod_selector,
                namespace_selector,
                node_selector,
                ..Spec::default()
            };
            (PolicyKey { namespace, name: format!("p{index}") }, policy(spec))
        });
        let policies = Arc::new(policies.collect());
        let view = ClusterView { node, namespaces, policies, ..ClusterView::default() };
        let pod = Pod { namespace: "a".to_owned(), labels: of_pod, ..Pod::default() };
        let holds = |selector: &Option<Selector>, labels: &Labels| match selector {
            Some(selector) => matches_as_told(selector, labels),
            None => true,
        };
        let of_namespace = view.namespaces.get("a").cloned().unwrap_or_default();
        let (mut of_pod, mut of_node) = (Vec::new(), Vec::new());
        for (key, policy) in view.policies.as_ref() {
            let spec = &policy.spec;
            let here = holds(&spec.node_selector, &view.node);
            let pods = holds(&spec.pod_selector, &pod.labels);
            match (key.namespace.as_deref(), spec.subject) {
                (Some("a"), _) if pods => of_pod.push(key),
                (None, Subject::Pods)
                    if pods && here && holds(&spec.namespace_selector, &of_namespace) =>
                {
                    of_pod.push(key);
                }
                (None, Subject::Node) if here => of_node.push(key),
                _ => {}
            }
        }
        prop_assert_eq!(view.policies_of(&pod), of_pod);
        prop_assert_eq!(view.policies_of_node(), of_node);
    }
}
