//! The policy schema as users write it: one for files and for the Kubernetes resource.
//!
//! What the documentation of a field says is what editors and the policy reference show.

use std::collections::BTreeMap;

use egress_common::{
    policy::{CIDR_ENTRIES, NAME_ENTRIES, REQUIRE_TLS},
    verdict::Mode,
};
use schemars::{JsonSchema, Schema, schema_for};
use serde::Serialize;
use serde_json::json;

use super::{
    forms::{CidrText, DurationText, NameText, PolicyName, PortsText, PresetName},
    selector::Selector,
};

/// The one `apiVersion` that exists.
pub const API_VERSION: &str = "egress.dev/v1alpha1";

/// The `kind` of a policy for a node, or for pods of one namespace.
pub const KIND: &str = "EgressPolicy";

/// The `kind` of a policy for pods of any namespace, or for nodes of a cluster.
pub const CLUSTER_KIND: &str = "ClusterEgressPolicy";

/// The JSON Schema (draft 2020-12) of a policy document, for editors and the policy reference.
#[must_use]
pub fn json_schema() -> Schema {
    schema_for!(EgressPolicy)
}

/// The JSON Schema of a policy's name.
#[must_use]
pub fn name_schema() -> Schema {
    schema_for!(PolicyName)
}

/// What a node, or a workload on it, may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend(
    "if" = { "properties": { "kind": { "const": KIND } } },
    "then" = { "properties": { "spec": { "not": { "anyOf": [
        { "required": ["subject"] },
        { "required": ["namespaceSelector"] },
        { "required": ["nodeSelector"] },
        { "required": ["ceiling"] },
    ] } } } },
))]
pub struct EgressPolicy {
    /// The version of this schema.
    #[schemars(extend("const" = API_VERSION))]
    pub api_version: String,
    /// What the document is.
    #[schemars(with = "Kind")]
    pub kind: String,
    /// What the policy is called.
    pub metadata: Metadata,
    /// What it says.
    pub spec: Spec,
}

impl EgressPolicy {
    /// Whether it is for what labels tell, which only an agent in a cluster knows.
    #[must_use]
    pub fn selects(&self) -> bool {
        self.kind == CLUSTER_KIND || self.spec.pod_selector.is_some()
    }

    /// Whom it is for, in words.
    #[must_use]
    pub fn subjects(&self) -> String {
        self.spec.subjects(self.metadata.namespace.as_deref())
    }
}

/// What a document is.
#[derive(JsonSchema)]
#[schemars(inline)]
#[expect(dead_code, reason = "for its schema")]
enum Kind {
    /// A policy of a node; in a cluster, of the pods of its namespace that it selects.
    EgressPolicy,
    /// A policy of the pods that it selects in all namespaces, or of nodes.
    ClusterEgressPolicy,
}

/// What a policy is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Its name, which no other policy of the node has; counters and messages show it.
    #[schemars(with = "PolicyName")]
    pub name: String,
    /// As in Kubernetes: whose pods `podSelector` selects; has no meaning on a node.
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("anyOf" = [
    { "properties": { "subject": { "enum": ["pods"] } } },
    { "not": { "anyOf": [{ "required": ["namespaceSelector"] }, { "required": ["podSelector"] }, { "required": ["ceiling"] }] } },
], "allOf" = [{ "anyOf": [
    { "properties": { "ceiling": { "enum": [false] } } },
    { "properties": { "allow": { "items": { "properties": { "require": { "enum": ["none"] } } } } } },
] }]))]
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
    /// What may not be reached although a rule allows it, here or in any other policy, of the cluster or of a namespace: a
    /// denial always wins. A denied name never teaches an
    /// address; it is denied for all ports.
    #[serde(default)]
    #[schemars(extend("allOf" = [{ "items": { "properties": { "require": { "enum": ["none"] } } } }, { "items": { "anyOf": [
        { "not": { "required": ["names"] } },
        { "properties": { "names": { "maxItems": 0 } } },
        { "not": { "required": ["ports"] } },
        // One of the ports is any.
        { "not": { "properties": { "ports": { "items": { "not": { "pattern": "^[Aa][Nn][Yy]$" } } } } } },
    ] } }]))]
    pub deny: Vec<SpecRule>,
    /// Pods that the policy is for, by their labels; all of the namespaces if left out. Not with `subject: node`, and not
    /// in a file of `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Selector", example = json!({ "matchLabels": { "app": "payments" } }))]
    pub pod_selector: Option<Selector>,
    /// Whom a ClusterEgressPolicy is for; an EgressPolicy does not have it.
    #[serde(default, skip_serializing_if = "Subject::is_pods")]
    pub subject: Subject,
    /// Namespaces whose pods a ClusterEgressPolicy is for; all if left out. An EgressPolicy does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Selector")]
    pub namespace_selector: Option<Selector>,
    /// Nodes that a ClusterEgressPolicy is for, or on which the pods run; all if left out. An EgressPolicy does not have
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Selector")]
    pub node_selector: Option<Selector>,
    /// Whether the allow list of a ClusterEgressPolicy is an upper bound: it opens nothing by itself, and of what the
    /// EgressPolicies of the pods' namespaces allow only that part is open which the list has too. Of several ceilings each
    /// is a bound. What other ClusterEgressPolicies allow is not bounded. An EgressPolicy does not have it, nor does a
    /// policy with `subject: node`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ceiling: bool,
}

impl Spec {
    /// Whom it is for in a cluster, in words.
    #[must_use]
    pub fn subjects(&self, namespace: Option<&str>) -> String {
        let chosen = |what: &str, selector: &Option<Selector>| match selector {
            Some(selector) if *selector != Selector::default() => format!("{what} {selector}"),
            Some(_) | None => format!("all {what}"),
        };
        let nodes = chosen("nodes", &self.node_selector);
        if self.subject == Subject::Node {
            return nodes;
        }
        let mut text = chosen("pods", &self.pod_selector);
        if let Some(namespace) = namespace {
            text = format!("{text} in {namespace}");
        }
        if self.namespace_selector.is_some() {
            text = format!(
                "{text} in {}",
                chosen("namespaces", &self.namespace_selector)
            );
        }
        if self.node_selector.is_some() {
            text = format!("{text} on {nodes}");
        }
        if self.ceiling {
            text.push_str(", as a ceiling");
        }
        text
    }
}

/// Whom a policy of a cluster is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Subject {
    /// Pods.
    #[default]
    Pods,
    /// The processes of nodes that are in no pod: kubelet, container runtime, system services.
    Node,
}

impl Subject {
    /// Whether it is the default.
    #[must_use]
    pub fn is_pods(&self) -> bool {
        *self == Self::Pods
    }
}

/// Whether denied packets are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SpecTtl {
    /// At least this long, also when the answer says less.
    #[schemars(with = "DurationText")]
    pub min: String,
    /// This long after an allowed flow last used the address, never longer than `max` after the last answer that named
    /// it; at most 18h. `0s` for not at all: only answers keep an address open then.
    #[schemars(with = "DurationText")]
    pub grace: String,
    /// At most this long, also when the answer says more; not less than `min`, and not nothing.
    #[schemars(with = "DurationText", extend("not" = { "pattern": "^(0+[dhms])+$" }))]
    pub max: String,
}

impl Default for SpecTtl {
    fn default() -> Self {
        Self {
            min: "30s".to_owned(),
            grace: "30m".to_owned(),
            max: "24h".to_owned(),
        }
    }
}

/// What happens to TCP connections that are older than the enforcement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SpecDns {
    /// Which names may be asked for.
    pub queries: Queries,
}

/// Which names may be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
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

/// A list of service tags. As a constant: in the attribute it would need more of `syn` than a derive has.
const TAG_EXAMPLES: [&str; 2] = ["Storage.westeurope", "AzureCloud.eastus"];

/// A rule: destinations and ports, or a preset that stands for such rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
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
            { "required": ["require"] },
        ] },
    },
], "allOf" = [{ "anyOf": [
    { "not": { "required": ["names"] } },
    { "properties": { "names": { "maxItems": 0 } } },
    { "properties": { "ports": { "maxItems": NAME_ENTRIES } } },
] }, { "anyOf": [
    { "not": { "required": ["require"] } },
    { "properties": { "require": { "enum": ["none"] } } },
    {
        "required": ["names", "ports"],
        "properties": {
            "names": { "minItems": 1 },
            "cidrs": { "maxItems": 0 },
            "serviceTags": { "maxItems": 0 },
            "ports": { "items": { "pattern": "/[Tt][Cc][Pp]$" } },
        },
    },
] }]))]
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
    #[schemars(inner(length(min = 1)), example = TAG_EXAMPLES)]
    pub service_tags: Vec<String>,
    /// Ports and protocols, at most 8 for names and 16 for networks; any if left out. A deny rule with names has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<PortsText>", length(min = 1, max = CIDR_ENTRIES))]
    pub ports: Option<Vec<String>>,
    /// What a connection has to say of itself besides going to an address of a name: only of a rule that allows names, and
    /// nothing else, on TCP ports.
    #[serde(default, skip_serializing_if = "Require::is_none")]
    pub require: Require,
    /// A preset, whose rules this one stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PresetName")]
    pub preset: Option<String>,
    /// Values of the preset's variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub with: BTreeMap<String, PresetValue>,
}

/// What a connection has to say of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Require {
    /// Nothing: the address is enough, and what else is served there is open too.
    #[default]
    None,
    /// It begins with a TLS hello whose server name (SNI) the same rule covers. So a name on a shared address (CDN, front
    /// door) opens itself alone.
    Tls,
}

impl Require {
    /// Whether it is the default.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// As a port range holds it.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Tls => REQUIRE_TLS,
        }
    }
}

/// The value of a preset's variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum PresetValue {
    /// One.
    Text(String),
    /// Several, or none.
    List(Vec<String>),
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
