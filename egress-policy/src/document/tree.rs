//! From a tree to a document: the one reader of the schema, for files and for objects of an API server.
//!
//! Here is found what has another form than the schema: unknown fields, other kinds of values, unknown choices. What
//! values mean is for [`check`](super::check()).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::schema::{
    API_VERSION, CLUSTER_KIND, EgressPolicy, KIND, Metadata, Preexisting, PresetValue, Queries,
    Require, Spec, SpecDns, SpecMode, SpecRule, SpecTtl, Subject,
};
use crate::read::{FieldPath, Node, ReadError, Reader, Value, has_text, read_typed};

/// The fields of a document, and of the parts of it.
pub(super) const DOCUMENT: &[&str] = &["apiVersion", "kind", "metadata", "spec"];
pub(super) const METADATA: &[&str] = &["name", "namespace", "labels", "annotations"];
pub(super) const SPEC: &[&str] = &[
    "mode",
    "ttl",
    "preexisting",
    "dns",
    "allow",
    "deny",
    "podSelector",
    "subject",
    "namespaceSelector",
    "nodeSelector",
    "ceiling",
];
pub(super) const TTL: &[&str] = &["min", "grace", "max"];
pub(super) const DNS: &[&str] = &["queries"];
pub(super) const RULE: &[&str] = &[
    "names",
    "cidrs",
    "serviceTags",
    "ports",
    "require",
    "preset",
    "with",
];

/// The fields that are read of each part, by the part's name in the JSON Schema.
#[cfg(test)]
pub(crate) const FIELDS: &[(&str, &[&str])] = &[
    ("", DOCUMENT),
    ("Metadata", METADATA),
    ("Spec", SPEC),
    ("SpecTtl", TTL),
    ("SpecDns", DNS),
    ("SpecRule", RULE),
    ("Selector", super::selector::SELECTOR),
    ("Requirement", super::selector::REQUIREMENT),
];

impl<'de> Deserialize<'de> for EgressPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_typed(deserializer, |reader, node, _| reader.policy(node))
    }
}

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_typed(deserializer, |reader, node, path| reader.spec(node, path))
    }
}

impl Reader<'_> {
    /// A document. `None` of one that is none at all, or of another kind.
    pub(super) fn policy(&mut self, document: &Node) -> Option<EgressPolicy> {
        let root = FieldPath::Root;
        let example = "apiVersion: egress.dev/v1alpha1";
        let Value::Map(pairs) = &document.value else {
            self.shape(document, root, "a mapping", example);
            return None;
        };
        // Of a document of another kind nothing else is worth a word.
        let kind = pairs.iter().find(|(key, _)| has_text(key, "kind"));
        let kind = match kind {
            Some((_, kind)) if has_text(kind, CLUSTER_KIND) => CLUSTER_KIND,
            Some((_, kind)) if !has_text(kind, KIND) => {
                let kinds = [(KIND, ()), (CLUSTER_KIND, ())];
                let known = "EgressPolicy or ClusterEgressPolicy";
                self.choice(kind, FieldPath::Field(&root, "kind"), &kinds, known);
                return None;
            }
            Some(_) | None => KIND,
        };
        let fields = self.fields(document, root, DOCUMENT, example)?;
        match fields.get("apiVersion") {
            Some(node) => self.constant(node, FieldPath::Field(&root, "apiVersion"), API_VERSION),
            None => self.missing(document, FieldPath::Field(&root, "apiVersion"), API_VERSION),
        }
        if !fields.contains_key("kind") {
            self.missing(document, FieldPath::Field(&root, "kind"), KIND);
        }
        let metadata = FieldPath::Field(&root, "metadata");
        let metadata = match fields.get("metadata") {
            Some(node) => self.metadata(node, metadata),
            None => {
                self.missing(document, metadata, "metadata: { name: node }");
                None
            }
        };
        let spec = FieldPath::Field(&root, "spec");
        let spec = match fields.get("spec") {
            Some(node) => self.spec(node, spec),
            None => {
                self.missing(document, spec, "spec: { allow: [] }");
                None
            }
        };
        Some(EgressPolicy {
            api_version: API_VERSION.to_owned(),
            kind: kind.to_owned(),
            metadata: metadata.unwrap_or_default(),
            spec: spec.unwrap_or_default(),
        })
    }

    fn metadata(&mut self, node: &Node, path: FieldPath<'_>) -> Option<Metadata> {
        let fields = self.fields(node, path, METADATA, "metadata: { name: node }")?;
        let at = |name| FieldPath::Field(&path, name);
        let mut metadata = Metadata::default();
        match fields.get("name") {
            Some(node) => {
                let name = self.text(node, at("name"), "name: node");
                metadata.name = name.unwrap_or_default().to_owned();
            }
            None => self.missing(node, at("name"), "name: node"),
        }
        if let Some(node) = fields.get("namespace") {
            let text = self.text(node, at("namespace"), "namespace: default");
            metadata.namespace = text.map(str::to_owned);
        }
        if let Some(node) = fields.get("labels") {
            metadata.labels = self.texts_by_key(node, at("labels"), "team: platform");
        }
        if let Some(node) = fields.get("annotations") {
            metadata.annotations = self.texts_by_key(node, at("annotations"), "team: platform");
        }
        Some(metadata)
    }

    fn spec(&mut self, node: &Node, path: FieldPath<'_>) -> Option<Spec> {
        let fields = self.fields(node, path, SPEC, "spec: { allow: [] }")?;
        let at = |name| FieldPath::Field(&path, name);
        let mut spec = Spec::default();
        if let Some(node) = fields.get("subject") {
            let subjects = [("pods", Subject::Pods), ("node", Subject::Node)];
            spec.subject = self.choice(node, at("subject"), &subjects, "pods or node");
        }
        for (name, selector) in [
            ("namespaceSelector", &mut spec.namespace_selector),
            ("podSelector", &mut spec.pod_selector),
            ("nodeSelector", &mut spec.node_selector),
        ] {
            if let Some(node) = fields.get(name) {
                *selector = self.selector(node, at(name));
            }
        }
        if let Some(node) = fields.get("ceiling") {
            let choices = [("true", true), ("false", false)];
            spec.ceiling = self.choice(node, at("ceiling"), &choices, "true or false");
        }
        if let Some(node) = fields.get("mode") {
            let modes = [("enforce", SpecMode::Enforce), ("audit", SpecMode::Audit)];
            spec.mode = self.choice(node, at("mode"), &modes, "enforce or audit");
        }
        if let Some(node) = fields.get("preexisting") {
            let ways = [("keep", Preexisting::Keep), ("judge", Preexisting::Judge)];
            spec.preexisting = self.choice(node, at("preexisting"), &ways, "keep or judge");
        }
        if let Some(node) = fields.get("ttl") {
            spec.ttl = self.ttl(node, at("ttl"));
        }
        if let Some(node) = fields.get("dns") {
            spec.dns = self.dns(node, at("dns"));
        }
        for (name, rules) in [("allow", &mut spec.allow), ("deny", &mut spec.deny)] {
            if let Some(node) = fields.get(name) {
                *rules = self.rules(node, at(name));
            }
        }
        Some(spec)
    }

    fn ttl(&mut self, node: &Node, path: FieldPath<'_>) -> SpecTtl {
        let mut ttl = SpecTtl::default();
        let example = "ttl: { min: 30s, grace: 30m, max: 24h }";
        let Some(fields) = self.fields(node, path, TTL, example) else {
            return ttl;
        };
        for (name, example, value) in [
            ("min", "min: 30s", &mut ttl.min),
            ("grace", "grace: 30m", &mut ttl.grace),
            ("max", "max: 24h", &mut ttl.max),
        ] {
            if let Some(node) = fields.get(name)
                && let Some(text) = self.text(node, FieldPath::Field(&path, name), example)
            {
                text.clone_into(value);
            }
        }
        ttl
    }

    fn dns(&mut self, node: &Node, path: FieldPath<'_>) -> SpecDns {
        let mut dns = SpecDns::default();
        let example = "dns: { queries: allowed }";
        if let Some(fields) = self.fields(node, path, DNS, example)
            && let Some(node) = fields.get("queries")
        {
            let choices = [("any", Queries::Any), ("allowed", Queries::Allowed)];
            let path = FieldPath::Field(&path, "queries");
            dns.queries = self.choice(node, path, &choices, "any or allowed");
        }
        dns
    }

    fn rules(&mut self, node: &Node, path: FieldPath<'_>) -> Vec<SpecRule> {
        let Value::List(items) = &node.value else {
            self.shape(node, path, "a list of rules", "- names: [api.example.com]");
            return Vec::new();
        };
        let rules = items.iter().enumerate();
        let rules =
            rules.filter_map(|(index, item)| self.rule(item, FieldPath::Item(&path, index)));
        rules.collect()
    }

    fn rule(&mut self, node: &Node, path: FieldPath<'_>) -> Option<SpecRule> {
        // Empty lists say something here: a rule without ports is for any.
        let fields = self.present(node, path, RULE, "- names: [api.example.com]")?;
        let at = |name| FieldPath::Field(&path, name);
        let mut rule = SpecRule::default();
        for (name, example, list) in [
            ("names", "names: [api.example.com]", &mut rule.names),
            ("cidrs", "cidrs: [10.0.0.0/8]", &mut rule.cidrs),
            (
                "serviceTags",
                "serviceTags: [Storage.westeurope]",
                &mut rule.service_tags,
            ),
        ] {
            if let Some(node) = fields.get(name) {
                *list = self.texts(node, at(name), example);
            }
        }
        if let Some(node) = fields.get("ports") {
            rule.ports = Some(self.texts(node, at("ports"), r#"ports: ["443/tcp"]"#));
        }
        if let Some(node) = fields.get("require") {
            let choices = [("none", Require::None), ("tls", Require::Tls)];
            rule.require = self.choice(node, at("require"), &choices, "tls or none");
        }
        if let Some(node) = fields.get("with") {
            rule.with = self.with(node, at("with"));
        }
        if let Some(node) = fields.get("preset") {
            let name = self.text(node, at("preset"), "preset: aks/azure-global");
            rule.preset = name.map(str::to_owned);
        }
        Some(rule)
    }

    fn with(&mut self, node: &Node, path: FieldPath<'_>) -> BTreeMap<String, PresetValue> {
        let pairs = match &node.value {
            Value::Map(pairs) => pairs.as_slice(),
            Value::Null => &[],
            Value::Text(_) | Value::List(_) => {
                self.shape(node, path, "a mapping", "with: { location: eastus }");
                &[]
            }
        };
        let mut with = BTreeMap::new();
        for (key, value) in pairs {
            let Some(name) = self.key(key, path) else {
                continue;
            };
            let path = FieldPath::Field(&path, name);
            let texts = match &value.value {
                Value::Text(text) => vec![text.clone()],
                Value::Null | Value::List(_) | Value::Map(_) => {
                    self.texts(value, path, "a value or a list of values")
                }
            };
            with.insert(name.to_owned(), texts.into());
        }
        with
    }

    /// A list of texts; an empty value is an empty list.
    pub(super) fn texts(
        &mut self,
        node: &Node,
        path: FieldPath<'_>,
        example: &'static str,
    ) -> Vec<String> {
        let texts = self.items(node, path, example, |text| {
            Ok::<_, ReadError>(text.to_owned())
        });
        texts.into_iter().map(|text| text.value).collect()
    }
}
