//! Tests of the module as a whole: schema, messages, compiled entries, properties.

mod ceilings;
mod compiled;
mod diff;
mod golden;
mod json_schema;
mod judged;
mod large;
mod objects;
pub(crate) mod oracle;
mod schema;
mod service_tags;

use std::path::Path;

use crate::{
    compile::{Compiled, compile},
    document::{Catalog, PolicySet},
    vocabulary::Lifeline,
};

/// The example of issue 2.
const EXAMPLE: &str = r#"apiVersion: egress.dev/v1alpha1
kind: EgressPolicy
metadata: { name: node }
spec:
  mode: enforce                  # enforce | audit
  ttl: { min: 30s, max: 24h }    # these are the defaults
  allow:
    - names: [api.example.com, "*.cdn.example.net"]
      ports: ["443/tcp", "8000-8080/tcp"]   # omitted: any port and protocol
    - cidrs: [10.0.0.0/8, "fd00::/8"]
      ports: ["any"]
  deny:
    - names: [evil.cdn.example.net]
    - cidrs: [10.99.0.0/16]
"#;

/// A policy with this `spec`, in flow style.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: {name} }}\nspec: {spec}\n"
    )
}

/// The set of one text.
fn set(text: &str) -> PolicySet {
    let texts = [(Path::new("policy.yaml"), text)];
    PolicySet::from_texts(texts, &Catalog::default()).unwrap()
}

/// The compiled text, without lifeline.
fn compiled(text: &str) -> Compiled {
    compile(&set(text), &Lifeline::new(), None).unwrap()
}
