//! Policies of the cluster, checked as those of files are.

use super::view::{PolicyKey, PolicyObject};
use crate::policy::{
    API_VERSION, CLUSTER_KIND, Catalog, Compiled, EgressPolicy, KIND, Lifeline, Metadata, Policy,
    PolicyErrors, PolicySet, check, compile,
};

/// Most bytes of what a condition says.
const MESSAGE_BYTES: usize = 4_096;

/// Checks a policy of the cluster, and that it compiles by itself.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn checked(
    key: &PolicyKey,
    object: &PolicyObject,
    catalog: &Catalog,
) -> Result<Policy, PolicyErrors> {
    let policy = policy_of(key, object, catalog)?;
    compile_alone(&policy)?;
    Ok(policy)
}

/// Compiles a policy by itself.
///
/// # Errors
///
/// It has more rules than can meet at a name or a network.
pub fn compile_alone(policy: &Policy) -> Result<Compiled, PolicyErrors> {
    let alone = PolicySet::from_iter([policy.clone()]);
    compile(&alone, &Lifeline::new(), None)
}

/// Checks a policy of the cluster. It gets the name that no other policy of the cluster has.
///
/// # Errors
///
/// Everything that is wrong with it before it is compiled.
pub fn policy_of(
    key: &PolicyKey,
    object: &PolicyObject,
    catalog: &Catalog,
) -> Result<Policy, PolicyErrors> {
    let (kind, resource) = match key.namespace {
        Some(_) => (KIND, "egresspolicy"),
        None => (CLUSTER_KIND, "clusteregresspolicy"),
    };
    let document = EgressPolicy {
        api_version: API_VERSION.to_owned(),
        kind: kind.to_owned(),
        metadata: Metadata {
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            ..Metadata::default()
        },
        spec: object.spec.clone(),
    };
    let name = format!("{resource}/{key}");
    let mut policy = check(document, name.as_ref(), catalog)?;
    policy.document.metadata.name = key.to_string();
    Ok(policy)
}

/// The errors by field: an object has no lines. One error to a line.
pub(super) fn message(errors: &PolicyErrors) -> String {
    let mut text = String::new();
    for (index, error) in errors.errors().iter().enumerate() {
        let line = error.by_field();
        if text.len().saturating_add(line.len()) > MESSAGE_BYTES && index > 0 {
            let left = errors.errors().len().saturating_sub(index);
            let left = left.saturating_add(errors.more());
            return format!("{text}\nand {left} more");
        }
        if index > 0 {
            text.push('\n');
        }
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Spec;

    fn object(spec: &str) -> PolicyObject {
        PolicyObject {
            uid: "1".to_owned(),
            generation: 1,
            spec: serde_yaml_ng::from_str::<Spec>(spec).unwrap(),
        }
    }

    fn check_spec(key: &str, spec: &str) -> Result<Policy, String> {
        let key = key.parse().unwrap();
        checked(&key, &object(spec), &Catalog::default()).map_err(|errors| message(&errors))
    }

    #[test]
    fn a_policy_is_known_by_its_key() {
        let spec = "{ mode: audit, allow: [{ names: [api.example.com], ports: [443/tcp] }] }";
        for (key, kind) in [("shop/payments", KIND), ("baseline", CLUSTER_KIND)] {
            let policy = check_spec(key, spec).unwrap();
            assert_eq!(policy.name(), key);
            assert_eq!(policy.document.kind, kind);
            assert_eq!((policy.allow.len(), policy.deny.len()), (1, 0));
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_field() {
        let spec = "{ allow: [{ names: ['*.*.example.com'] }], deny: [{ cidrs: [10.0.0.1/8] }] }";
        let wrong = check_spec("shop/payments", spec).unwrap_err();
        let lines: Vec<&str> = wrong.lines().collect();
        assert_eq!(lines.len(), 2, "{wrong}");
        assert!(lines[0].starts_with("spec.allow[0].names[0]: "), "{wrong}");
        assert!(lines[1].starts_with("spec.deny[0].cidrs[0]: "), "{wrong}");
    }

    #[test]
    fn what_only_compiling_shows_is_found() {
        let ports = |protocol| {
            let ports = (1..=5).map(|port| format!("{port}/{protocol}"));
            ports.collect::<Vec<_>>().join(", ")
        };
        let rule = |ports| format!("{{ names: [a.b], ports: [{ports}] }}");
        let one = format!("{{ allow: [{}] }}", rule(ports("tcp")));
        check_spec("shop/payments", &one).unwrap();
        let rules = [rule(ports("tcp")), rule(ports("udp"))].join(", ");
        let wrong = check_spec("shop/payments", &format!("{{ allow: [{rules}] }}")).unwrap_err();
        assert!(wrong.contains("a.b"), "{wrong}");
    }

    #[test]
    fn a_long_message_is_cut_between_errors() {
        let names: Vec<String> = (0..500)
            .map(|index| format!("'*.*.{index}.example.com'"))
            .collect();
        let wrong = check_spec(
            "a/b",
            &format!("{{ allow: [{{ names: [{}] }}] }}", names.join(", ")),
        )
        .unwrap_err();
        assert!(wrong.len() < MESSAGE_BYTES + 20, "{}", wrong.len());
        let shown = wrong.lines().count() - 1;
        assert!(
            wrong.ends_with(&format!("and {} more", 500 - shown)),
            "{wrong}"
        );
    }
}
