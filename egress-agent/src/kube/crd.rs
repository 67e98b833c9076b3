//! The kinds `EgressPolicy` and `ClusterEgressPolicy`, and their definitions for the API server.

#![allow(
    clippy::duplicated_attributes,
    reason = "each column has a name, a type and a path"
)]

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinition, CustomResourceValidation, JSONSchemaProps,
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::structural::{rewrite, structural};
use crate::policy::{Spec, Subject, name_schema};

/// What pods of one namespace may reach.
#[derive(Clone, Debug, PartialEq, CustomResource, Serialize, Deserialize)]
#[kube(
    group = "egress.dev",
    version = "v1alpha1",
    kind = "EgressPolicy",
    plural = "egresspolicies",
    shortname = "egp",
    category = "egress",
    namespaced,
    status = "PolicyStatus",
    schema = "disabled",
    derive = "PartialEq",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Rules", type_ = "integer", json_path = ".status.rules"),
    printcolumn(name = "Subjects", type_ = "string", json_path = ".status.subjects"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Accepted")].status"#
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct PolicySpec {
    /// The spec of policy files.
    #[serde(flatten)]
    pub policy: Spec,
}

/// What pods of all namespaces, or nodes, may reach.
#[derive(Clone, Debug, PartialEq, CustomResource, Serialize, Deserialize)]
#[kube(
    group = "egress.dev",
    version = "v1alpha1",
    kind = "ClusterEgressPolicy",
    plural = "clusteregresspolicies",
    shortname = "cegp",
    category = "egress",
    status = "PolicyStatus",
    schema = "disabled",
    derive = "PartialEq",
    printcolumn(name = "Subject", type_ = "string", json_path = ".spec.subject"),
    printcolumn(name = "Ceiling", type_ = "boolean", json_path = ".spec.ceiling"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Rules", type_ = "integer", json_path = ".status.rules"),
    printcolumn(name = "Subjects", type_ = "string", json_path = ".status.subjects"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Accepted")].status"#
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct ClusterPolicySpec {
    /// The spec of policy files.
    #[serde(flatten)]
    pub policy: Spec,
}

/// What the agents say of a policy. One of them writes it, of the policy alone: what nodes made of it is told there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The generation of the policy that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub observed_generation: Option<i64>,
    /// How many rules it has, those of its presets among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = 0))]
    pub rules: Option<u32>,
    /// Whom it is for, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub subjects: Option<String>,
    /// `Accepted`: whether it compiles, and if not, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"],
    ))]
    pub conditions: Vec<Condition>,
}

/// The definitions of both kinds.
///
/// # Panics
///
/// Never: a test makes them.
#[must_use]
pub fn crds() -> [CustomResourceDefinition; 2] {
    // Fields that an EgressPolicy cannot have: it is for its own namespace.
    let of_cluster = ["subject", "namespaceSelector", "nodeSelector", "ceiling"];
    [
        define(EgressPolicy::crd(), &of_cluster),
        define(ClusterEgressPolicy::crd(), &[]),
    ]
}

/// Completes a definition with the schema of its kind, without these fields of the spec.
fn define(mut crd: CustomResourceDefinition, without: &[&str]) -> CustomResourceDefinition {
    let mut spec = structural::<Spec>();
    // Files say nothing of it where it is the default.
    if let Some(subject) = spec
        .pointer_mut("/properties/subject")
        .and_then(Value::as_object_mut)
    {
        subject.insert("default".to_owned(), json!(Subject::default()));
    }
    if let Some(fields) = spec
        .pointer_mut("/properties")
        .and_then(Value::as_object_mut)
    {
        fields.retain(|name, _| !without.contains(&name.as_str()));
    }
    if !without.is_empty()
        && let Some(spec) = spec.as_object_mut()
    {
        // It is about the fields that are gone.
        spec.remove("anyOf");
    }
    let description = match crd.spec.names.kind.as_str() {
        "EgressPolicy" => {
            "What pods of one namespace may reach. A pod that no policy selects is not restricted; one that several \
             select may do what any of them allows and none denies."
        }
        _ => {
            "What pods of all namespaces, or the processes of nodes, may reach, beside what the EgressPolicies of the \
             pods' namespaces say. What it denies no policy opens; with `ceiling: true` its allow list is an upper bound \
             for theirs."
        }
    };
    let mut name = name_schema().to_value();
    rewrite(&mut name);
    let schema = json!({
        "description": description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "metadata": { "type": "object", "properties": { "name": name } },
            "spec": spec,
            "status": structural::<PolicyStatus>(),
        },
    });
    let schema: JSONSchemaProps = serde_json::from_value(schema).expect("a schema of its type");
    for version in &mut crd.spec.versions {
        version.schema = Some(CustomResourceValidation {
            open_api_v3_schema: Some(schema.clone()),
        });
    }
    crd
}
