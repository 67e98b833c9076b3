//! The policy schema as users write it: one for files and for the Kubernetes resource.
//!
//! What the documentation of a field says is what editors and the policy reference show.

use std::collections::BTreeMap;

use egress_common::verdict::Mode;
use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use super::forms::{CidrText, DurationText, NameText, PolicyName, PortsText};

/// The one `apiVersion` that exists.
pub const API_VERSION: &str = "egress.dev/v1alpha1";

/// The one `kind` that exists.
pub const KIND: &str = "EgressPolicy";

/// The JSON Schema (draft 2020-12) of a policy document, for editors and the policy reference.
#[must_use]
pub fn json_schema() -> Schema {
    schema_for!(EgressPolicy)
}

/// What a node, or a workload on it, may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressPolicy {
    /// The version of this schema.
    #[schemars(extend("const" = API_VERSION))]
    pub api_version: String,
    /// What the document is.
    #[schemars(extend("const" = KIND))]
    pub kind: String,
    /// What the policy is called.
    pub metadata: Metadata,
    /// What it says.
    pub spec: Spec,
}

/// What a policy is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Its name, which no other policy of the node has; counters and messages show it.
    #[schemars(with = "PolicyName")]
    pub name: String,
    /// As in Kubernetes; has no meaning on a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub namespace: Option<String>,
    /// As in Kubernetes; have no meaning on a node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// As in Kubernetes; have no meaning on a node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a policy says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Whether denied packets are dropped.
    #[serde(default)]
    pub mode: SpecMode,
    /// Bounds for how long a learned address lives after the DNS answer that taught it: the TTL of the answer, but at
    /// least `min` and at most `max`.
    #[serde(default)]
    pub ttl: SpecTtl,
    /// What happens to TCP connections that are older than the enforcement.
    #[serde(default)]
    pub preexisting: Preexisting,
    /// What may be asked of resolvers.
    #[serde(default)]
    pub dns: SpecDns,
    /// What may be reached. An empty list allows nothing.
    #[serde(default)]
    pub allow: Vec<SpecRule>,
    /// What may not be reached although a rule allows it, here or in another policy. A denied name never teaches an
    /// address; it is denied for all ports.
    #[serde(default)]
    pub deny: Vec<SpecRule>,
}

/// Whether denied packets are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum SpecMode {
    /// They are dropped, and reported.
    #[default]
    Enforce,
    /// They pass, and are reported as `would_deny`. Beside policies that are enforced, these decide: then only what its
    /// deny rules would take away is reported, and its allow rules open nothing.
    Audit,
}

impl From<SpecMode> for Mode {
    fn from(mode: SpecMode) -> Self {
        match mode {
            SpecMode::Enforce => Self::Enforce,
            SpecMode::Audit => Self::Audit,
        }
    }
}

/// Bounds for the life of learned addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SpecTtl {
    /// At least this long, also when the answer says less.
    #[schemars(with = "DurationText")]
    pub min: String,
    /// At most this long, also when the answer says more; not less than `min`, and not nothing.
    #[schemars(with = "DurationText")]
    pub max: String,
}

impl Default for SpecTtl {
    fn default() -> Self {
        Self {
            min: "30s".to_owned(),
            max: "24h".to_owned(),
        }
    }
}

/// What happens to TCP connections that are older than the enforcement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Preexisting {
    /// They go on.
    #[default]
    Keep,
    /// They are judged like new ones.
    Judge,
}

/// What may be asked of resolvers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SpecDns {
    /// Which names may be asked for.
    pub queries: Queries,
}

/// Which names may be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Queries {
    /// Any name, of any resolver that the rules let through.
    #[default]
    Any,
    /// Names that a rule allows, their aliases, and names below the search domains; of trusted resolvers only. That
    /// closes DNS tunnelling as far as names can.
    Allowed,
}

/// A rule: destinations and ports, or a preset that stands for such rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("anyOf" = [
    {
        "required": ["names"],
        "properties": { "names": { "minItems": 1 } },
        "not": { "anyOf": [{ "required": ["preset"] }, { "required": ["with"] }] },
    },
    {
        "required": ["cidrs"],
        "properties": { "cidrs": { "minItems": 1 } },
        "not": { "anyOf": [{ "required": ["preset"] }, { "required": ["with"] }] },
    },
    {
        "required": ["serviceTags"],
        "properties": { "serviceTags": { "minItems": 1 } },
        "not": { "anyOf": [{ "required": ["preset"] }, { "required": ["with"] }] },
    },
    {
        "required": ["preset"],
        "not": { "anyOf": [
            { "required": ["names"] },
            { "required": ["cidrs"] },
            { "required": ["serviceTags"] },
            { "required": ["ports"] },
        ] },
    },
]))]
pub struct SpecRule {
    /// Names and patterns. Addresses that a DNS answer for such a name taught are open on `ports`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<NameText>")]
    pub names: Vec<String>,
    /// Networks and addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<CidrText>")]
    pub cidrs: Vec<String>,
    /// Azure service tags, in any case. They need `--service-tags FILE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(example = ["Storage.westeurope", "AzureCloud.eastus"])]
    pub service_tags: Vec<String>,
    /// Ports and protocols, at most 8 for names and 16 for networks; any if left out. A deny rule with names has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<PortsText>", length(min = 1))]
    pub ports: Option<Vec<String>>,
    /// A preset, whose rules this one stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", example = &"aks/azure-global")]
    pub preset: Option<String>,
    /// Values of the preset's variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub with: BTreeMap<String, PresetValue>,
}

/// The value of a preset's variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, from = "AnyValue")]
pub enum PresetValue {
    /// One.
    Text(String),
    /// Several, or none.
    List(Vec<String>),
}

/// A value as JSON and YAML may have it: numbers and truth values are their texts.
#[derive(Deserialize)]
#[serde(untagged)]
enum AnyValue {
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<String>),
}

impl From<AnyValue> for PresetValue {
    fn from(value: AnyValue) -> Self {
        match value {
            AnyValue::Bool(value) => Self::Text(value.to_string()),
            AnyValue::Number(value) => Self::Text(value.to_string()),
            AnyValue::Text(value) => Self::Text(value),
            AnyValue::List(values) => Self::List(values),
        }
    }
}

impl From<Vec<String>> for PresetValue {
    /// One text alone is a value.
    fn from(texts: Vec<String>) -> Self {
        match <[String; 1]>::try_from(texts) {
            Ok([text]) => Self::Text(text),
            Err(texts) => Self::List(texts),
        }
    }
}
