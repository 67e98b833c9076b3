//! The policy schema as users write it: one for files and for the Kubernetes resource.

use std::collections::BTreeMap;

use egress_common::verdict::Mode;
use serde::{Deserialize, Serialize};

/// The one `apiVersion` that exists.
pub const API_VERSION: &str = "egress.dev/v1alpha1";

/// The one `kind` that exists.
pub const KIND: &str = "EgressPolicy";

/// A policy document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressPolicy {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Always [`KIND`].
    pub kind: String,
    /// What the policy is called.
    pub metadata: Metadata,
    /// What it says.
    pub spec: Spec,
}

/// What a policy is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Its name, unique in a set.
    pub name: String,
    /// As in Kubernetes; has no meaning here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// As in Kubernetes; have no meaning here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// As in Kubernetes; have no meaning here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a policy says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Whether denials stand; they do unless the policy says otherwise.
    #[serde(default)]
    pub mode: SpecMode,
    /// How long learned addresses live.
    #[serde(default)]
    pub ttl: SpecTtl,
    /// What happens to TCP flows that are older than the enforcement.
    #[serde(default)]
    pub preexisting: Preexisting,
    /// What may be asked of resolvers.
    #[serde(default)]
    pub dns: SpecDns,
    /// What may be reached; nothing if empty.
    #[serde(default)]
    pub allow: Vec<SpecRule>,
    /// What may not be reached although it is allowed.
    #[serde(default)]
    pub deny: Vec<SpecRule>,
}

/// `spec.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpecMode {
    /// Denied packets are dropped.
    #[default]
    Enforce,
    /// Denied packets pass and are reported.
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

/// `spec.ttl`: bounds for the life of learned addresses, as `30s`, `5m`, `24h`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SpecTtl {
    /// At least this long.
    pub min: String,
    /// At most this long.
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

/// `spec.preexisting`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preexisting {
    /// They go on.
    #[default]
    Keep,
    /// They are judged like new ones.
    Judge,
}

/// `spec.dns`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SpecDns {
    /// Which names may be asked for.
    pub queries: Queries,
}

/// `spec.dns.queries`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Queries {
    /// Any name.
    #[default]
    Any,
    /// Names that a rule allows, and those below the search domains; of trusted resolvers only.
    Allowed,
}

/// A rule of `spec.allow` or `spec.deny`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpecRule {
    /// Names and patterns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Networks and addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
    /// Azure service tags, such as `Storage.westeurope`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_tags: Vec<String>,
    /// Ports; any port and protocol if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<String>>,
    /// A preset, whose rules this one stands for; then it has no destinations and ports of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
