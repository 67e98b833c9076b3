//! From a marked tree to a checked policy.

use std::{collections::HashSet, path::Path};

use egress_common::policy::{CIDR_ENTRIES, NAME_ENTRIES, PortRange, protocol};

use super::{
    catalog::Catalog,
    error::DocumentError,
    schema::{
        API_VERSION, CLUSTER_KIND, EgressPolicy, KIND, Metadata, Preexisting, Queries, Require,
        Spec, SpecDns, SpecMode, SpecRule, SpecTtl, Subject,
    },
    set::{DESTINATIONS, Policy, Rule},
};
use crate::{
    read::{FieldPath, Fields, Node, Reader, Report, Value, is_text},
    vocabulary::{
        MAX_GRACE_S, RuleError, Ttl, TtlError, lifeline, parse_duration_s, parse_name_pattern,
        parse_port_range, quoted,
    },
};

/// Reads one document, which may name as many destinations as are left. `None` if something was reported.
pub(crate) fn decode(
    file: &Path,
    document: &Node,
    catalog: &Catalog,
    destinations_left: &mut usize,
    report: &mut Report,
) -> Option<Policy> {
    let mut reader = Reader::new(file, report);
    reader.destinations_left = *destinations_left;
    let policy = reader.policy(document, catalog)?;
    *destinations_left = reader.destinations_left;
    reader.is_good().then_some(policy)
}

impl Reader<'_> {
    fn policy(&mut self, document: &Node, catalog: &Catalog) -> Option<Policy> {
        let root = FieldPath::Root;
        let example = "apiVersion: egress.dev/v1alpha1";
        let Value::Map(pairs) = &document.value else {
            self.shape(document, root, "a mapping", example);
            return None;
        };
        // Of a document of another kind nothing else is worth a word.
        let kind = pairs.iter().find(|(key, _)| is_text(key, "kind"));
        let kind = match kind {
            Some((_, kind)) if is_text(kind, CLUSTER_KIND) => CLUSTER_KIND,
            Some((_, kind)) if !is_text(kind, KIND) => {
                let kinds = [(KIND, ()), (CLUSTER_KIND, ())];
                let known = "EgressPolicy or ClusterEgressPolicy";
                self.choice(kind, FieldPath::Field(&root, "kind"), &kinds, known);
                return None;
            }
            Some(_) | None => KIND,
        };
        let fields = self.fields(
            document,
            root,
            &["apiVersion", "kind", "metadata", "spec"],
            example,
        )?;
        match fields.get("apiVersion") {
            Some(node) => self.constant(node, FieldPath::Field(&root, "apiVersion"), API_VERSION),
            None => self.missing(document, FieldPath::Field(&root, "apiVersion"), API_VERSION),
        }
        if !fields.contains_key("kind") {
            self.missing(document, FieldPath::Field(&root, "kind"), KIND);
        }
        let metadata = FieldPath::Field(&root, "metadata");
        let metadata = match fields.get("metadata") {
            Some(node) => self.metadata(node, metadata, kind),
            None => {
                self.missing(document, metadata, "metadata: { name: node }");
                None
            }
        };
        let spec = FieldPath::Field(&root, "spec");
        let parts = match fields.get("spec") {
            Some(node) => self.spec(node, spec, kind, catalog),
            None => {
                self.missing(document, spec, "spec: { allow: [] }");
                None
            }
        };
        let (spec, ttl, allow, deny) = parts?;
        Some(Policy {
            mode: spec.mode.into(),
            keeps_preexisting: spec.preexisting == Preexisting::Keep,
            restricts_queries: spec.dns.queries == Queries::Allowed,
            document: EgressPolicy {
                api_version: API_VERSION.to_owned(),
                kind: kind.to_owned(),
                metadata: metadata?,
                spec,
            },
            file: self.file().to_owned(),
            line: document.line,
            ttl,
            allow,
            deny,
        })
    }

    fn metadata(&mut self, node: &Node, path: FieldPath<'_>, kind: &str) -> Option<Metadata> {
        const KNOWN: &[&str] = &["name", "namespace", "labels", "annotations"];
        let fields = self.fields(node, path, KNOWN, "metadata: { name: node }")?;
        let at = |name| FieldPath::Field(&path, name);
        let mut metadata = Metadata::default();
        match fields.get("name") {
            Some(node) => {
                if let Some(name) = self.text(node, at("name"), "name: node") {
                    self.policy_name(node.line, at("name"), name);
                    name.clone_into(&mut metadata.name);
                }
            }
            None => self.missing(node, at("name"), "name: node"),
        }
        if let Some(node) = fields.get("namespace") {
            let text = self.text(node, at("namespace"), "namespace: default");
            metadata.namespace = text.map(str::to_owned);
            if kind == CLUSTER_KIND {
                self.wrong(node.line, at("namespace"), DocumentError::OnlyOfNamespace);
            }
        }
        if let Some(node) = fields.get("labels") {
            metadata.labels = self.texts_by_key(node, at("labels"), "team: platform");
        }
        if let Some(node) = fields.get("annotations") {
            metadata.annotations = self.texts_by_key(node, at("annotations"), "team: platform");
        }
        Some(metadata)
    }

    fn policy_name(&mut self, line: usize, path: FieldPath<'_>, name: &str) {
        let is_end = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = name.as_bytes();
        let is_good = (1..=253).contains(&bytes.len())
            && bytes
                .iter()
                .all(|byte| is_end(*byte) || matches!(byte, b'-' | b'.'))
            && bytes.first().is_some_and(|byte| is_end(*byte))
            && bytes.last().is_some_and(|byte| is_end(*byte));
        if !is_good {
            self.wrong(line, path, DocumentError::BadPolicyName(quoted(name)));
        } else if name == lifeline::POLICY {
            self.wrong(line, path, DocumentError::ReservedName(quoted(name)));
        }
    }

    fn spec(
        &mut self,
        node: &Node,
        path: FieldPath<'_>,
        kind: &str,
        catalog: &Catalog,
    ) -> Option<(Spec, Ttl, Vec<Rule>, Vec<Rule>)> {
        const KNOWN: &[&str] = &[
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
        let fields = self.fields(node, path, KNOWN, "spec: { allow: [] }")?;
        let at = |name| FieldPath::Field(&path, name);
        let mut spec = Spec::default();
        self.selection(&fields, path, kind, &mut spec);
        if let Some(node) = fields.get("mode") {
            let modes = [("enforce", SpecMode::Enforce), ("audit", SpecMode::Audit)];
            spec.mode = self.choice(node, at("mode"), &modes, "enforce or audit");
        }
        if let Some(node) = fields.get("preexisting") {
            let ways = [("keep", Preexisting::Keep), ("judge", Preexisting::Judge)];
            spec.preexisting = self.choice(node, at("preexisting"), &ways, "keep or judge");
        }
        let mut ttl = Ttl::default();
        if let Some(node) = fields.get("ttl") {
            (spec.ttl, ttl) = self.ttl(node, at("ttl"));
        }
        if let Some(node) = fields.get("dns") {
            spec.dns = self.dns(node, at("dns"));
        }
        let (mut allow, mut deny) = (Vec::new(), Vec::new());
        if let Some(node) = fields.get("allow") {
            (spec.allow, allow) = self.rules(node, at("allow"), false, catalog);
        }
        if let Some(node) = fields.get("deny") {
            (spec.deny, deny) = self.rules(node, at("deny"), true, catalog);
        }
        for (index, rule) in spec.allow.iter().enumerate() {
            if spec.ceiling && !rule.require.is_none() {
                let line = allow
                    .iter()
                    .find(|checked| checked.index == index)
                    .map_or(node.line, |checked| checked.line);
                let list = at("allow");
                let rule = FieldPath::Item(&list, index);
                let path = FieldPath::Field(&rule, "require");
                self.wrong(line, path, DocumentError::RequiresOfCeiling);
            }
        }
        Some((spec, ttl, allow, deny))
    }

    /// Whom the policy is for.
    fn selection(&mut self, fields: &Fields<'_>, path: FieldPath<'_>, kind: &str, spec: &mut Spec) {
        if let Some(node) = fields.get("subject") {
            let path = FieldPath::Field(&path, "subject");
            let subjects = [("pods", Subject::Pods), ("node", Subject::Node)];
            spec.subject = self.choice(node, path, &subjects, "pods or node");
        }
        for (name, selector) in [
            ("namespaceSelector", &mut spec.namespace_selector),
            ("podSelector", &mut spec.pod_selector),
            ("nodeSelector", &mut spec.node_selector),
        ] {
            if let Some(node) = fields.get(name) {
                *selector = self.selector(node, FieldPath::Field(&path, name));
            }
        }
        if let Some(node) = fields.get("ceiling") {
            let path = FieldPath::Field(&path, "ceiling");
            let choices = [("true", true), ("false", false)];
            spec.ceiling = self.choice(node, path, &choices, "true or false");
        }
        for (name, node) in fields {
            let path = FieldPath::Field(&path, name);
            let of_cluster =
                ["subject", "namespaceSelector", "nodeSelector", "ceiling"].contains(name);
            let of_pods = ["namespaceSelector", "podSelector"].contains(name);
            if of_cluster && kind == KIND {
                self.wrong(node.line, path, DocumentError::OnlyOfCluster);
            } else if of_pods && spec.subject == Subject::Node {
                self.wrong(node.line, path, DocumentError::SelectsPods);
            } else if *name == "ceiling" && spec.subject == Subject::Node {
                self.wrong(node.line, path, DocumentError::CeilingOfNode);
            }
        }
    }

    fn dns(&mut self, node: &Node, path: FieldPath<'_>) -> SpecDns {
        let mut dns = SpecDns::default();
        let example = "dns: { queries: allowed }";
        if let Some(fields) = self.fields(node, path, &["queries"], example)
            && let Some(node) = fields.get("queries")
        {
            let choices = [("any", Queries::Any), ("allowed", Queries::Allowed)];
            let path = FieldPath::Field(&path, "queries");
            dns.queries = self.choice(node, path, &choices, "any or allowed");
        }
        dns
    }

    fn ttl(&mut self, node: &Node, path: FieldPath<'_>) -> (SpecTtl, Ttl) {
        let (mut spec, mut ttl) = (SpecTtl::default(), Ttl::default());
        let example = "ttl: { min: 30s, grace: 30m, max: 24h }";
        let Some(fields) = self.fields(node, path, &["min", "grace", "max"], example) else {
            return (spec, ttl);
        };
        let mut is_good = true;
        for (name, example, text, seconds) in [
            ("min", "min: 30s", &mut spec.min, &mut ttl.min_s),
            ("grace", "grace: 30m", &mut spec.grace, &mut ttl.grace_s),
            ("max", "max: 24h", &mut spec.max, &mut ttl.max_s),
        ] {
            let Some(node) = fields.get(name) else {
                continue;
            };
            let path = FieldPath::Field(&path, name);
            let Some(given) = self.text(node, path, example) else {
                is_good = false;
                continue;
            };
            given.clone_into(text);
            match parse_duration_s(given) {
                Ok(0) if name == "max" => {
                    is_good = false;
                    self.wrong(node.line, path, TtlError::Zero(quoted(given)));
                }
                Ok(value) if name == "grace" && value > MAX_GRACE_S => {
                    is_good = false;
                    self.wrong(node.line, path, TtlError::LongGrace(quoted(given)));
                }
                Ok(value) => *seconds = value,
                Err(error) => {
                    is_good = false;
                    self.wrong(node.line, path, error);
                }
            }
        }
        if is_good && ttl.min_s > ttl.max_s {
            let told = |name: &str, text: &str| {
                let note = if fields.contains_key(name) {
                    ""
                } else {
                    " (the default)"
                };
                format!("{text}{note}")
            };
            let (min, max) = (told("min", &spec.min), told("max", &spec.max));
            self.wrong(node.line, path, TtlError::Reversed { min, max });
        }
        (spec, ttl)
    }

    fn rules(
        &mut self,
        node: &Node,
        path: FieldPath<'_>,
        is_deny: bool,
        catalog: &Catalog,
    ) -> (Vec<SpecRule>, Vec<Rule>) {
        let Value::List(items) = &node.value else {
            self.shape(node, path, "a list of rules", "- names: [api.example.com]");
            return (Vec::new(), Vec::new());
        };
        let (mut specs, mut rules) = (Vec::new(), Vec::new());
        for (index, item) in items.iter().enumerate() {
            let path = FieldPath::Item(&path, index);
            const KNOWN: &[&str] = &[
                "names",
                "cidrs",
                "serviceTags",
                "ports",
                "require",
                "preset",
                "with",
            ];
            let Some(present) = self.present(item, path, KNOWN, "- names: [api.example.com]")
            else {
                continue;
            };
            let written = ["names", "cidrs"].into_iter().map(|name| {
                let items = present.get(name).map(|node| &node.value);
                items.map_or(0, |value| match value {
                    Value::List(items) => items.len(),
                    Value::Null | Value::Text(_) | Value::Map(_) => 0,
                })
            });
            if !self.counts_destinations(item, path, written.sum()) {
                break;
            }
            let decoded = rules.len();
            if present.contains_key("preset") || present.contains_key("with") {
                if let Some((spec, of_preset)) =
                    self.preset(path, &present, index, is_deny, catalog)
                {
                    specs.push(spec);
                    rules.extend(of_preset);
                }
            } else {
                let (spec, rule) = self.rule(item, path, &present, index, is_deny, catalog);
                specs.push(spec);
                rules.push(rule);
            }
            let added = rules.iter().skip(decoded).map(Rule::destinations_behind);
            if !self.counts_destinations(item, path, added.sum()) {
                break;
            }
        }
        (specs, rules)
    }

    /// Counts destinations of a rule; false, and reported, if they are too many.
    fn counts_destinations(&mut self, node: &Node, path: FieldPath<'_>, count: usize) -> bool {
        let left = self.destinations_left.checked_sub(count);
        self.destinations_left = left.unwrap_or(0);
        if left.is_none() {
            self.wrong(
                node.line,
                path,
                DocumentError::TooManyDestinations(DESTINATIONS),
            );
        }
        left.is_some()
    }

    /// A rule with destinations of its own.
    fn rule(
        &mut self,
        node: &Node,
        path: FieldPath<'_>,
        present: &Fields<'_>,
        index: usize,
        is_deny: bool,
        catalog: &Catalog,
    ) -> (SpecRule, Rule) {
        let at = |name| FieldPath::Field(&path, name);
        let names = present.get("names").map_or_else(Vec::new, |node| {
            let example = "names: [api.example.com]";
            self.items(node, at("names"), example, parse_name_pattern)
        });
        let cidrs = present.get("cidrs").map_or_else(Vec::new, |node| {
            self.items(node, at("cidrs"), "cidrs: [10.0.0.0/8]", str::parse)
        });
        let service_tags = present.get("serviceTags").map_or_else(Vec::new, |node| {
            let example = "serviceTags: [Storage.westeurope]";
            self.items(node, at("serviceTags"), example, |text| {
                catalog.service_tag(text)
            })
        });
        let is_empty = |name| match present.get(name).map(|node| &node.value) {
            None | Some(Value::Null) => true,
            Some(Value::List(items)) => items.is_empty(),
            Some(Value::Text(_) | Value::Map(_)) => false,
        };
        // An unknown field may be a destination with a wrong name.
        let is_complete = matches!(&node.value, Value::Map(pairs) if pairs.len() == present.len());
        if is_complete && ["names", "cidrs", "serviceTags"].into_iter().all(is_empty) {
            self.wrong(node.line, path, RuleError::NoDestination);
        }
        let ports = present.get("ports").map(|node| {
            if matches!(node.value, Value::Null) || is_empty("ports") {
                self.wrong(node.line, at("ports"), RuleError::NoPorts);
                return Vec::new();
            }
            let example = r#"ports: ["443/tcp"]"#;
            self.items(node, at("ports"), example, parse_port_range)
        });
        let mut seen = HashSet::new();
        let given = ports.iter().flatten().map(|port| port.value);
        let ranges: Vec<PortRange> = given.filter(|range| seen.insert(*range)).collect();
        let (what, max) = if !is_empty("names") {
            ("a rule with names", NAME_ENTRIES)
        } else if !is_empty("cidrs") {
            ("a rule with cidrs", CIDR_ENTRIES)
        } else {
            ("a rule with serviceTags", CIDR_ENTRIES)
        };
        let line = present.get("ports").map_or(node.line, |node| node.line);
        // Repetitions count: a schema cannot tell them.
        let count = ports.as_ref().map_or(0, Vec::len);
        if count > max {
            let problem = DocumentError::TooManyPorts { count, what, max };
            self.wrong(line, at("ports"), problem);
        }
        if is_deny && !is_empty("names") && !ranges.is_empty() && !ranges.contains(&PortRange::ANY)
        {
            self.wrong(line, at("ports"), DocumentError::DeniedNameWithPorts);
        }
        let require = self.require(path, present, is_deny, &ranges);
        let bits = require.bits();
        let ranges = ranges.into_iter().map(|range| range.requiring(bits));
        let spec = SpecRule {
            require,
            names: names.iter().map(|name| name.text.clone()).collect(),
            cidrs: cidrs.iter().map(|cidr| cidr.text.clone()).collect(),
            service_tags: service_tags.iter().map(|tag| tag.text.clone()).collect(),
            ports: ports.map(|ports| ports.into_iter().map(|port| port.text).collect()),
            ..SpecRule::default()
        };
        let rule = Rule {
            index,
            line: node.line,
            preset: None,
            names,
            cidrs,
            service_tags,
            ports: ranges.collect(),
        };
        (spec, rule)
    }

    /// What connections under a rule have to say of themselves.
    fn require(
        &mut self,
        path: FieldPath<'_>,
        present: &Fields<'_>,
        is_deny: bool,
        ports: &[PortRange],
    ) -> Require {
        let Some(node) = present.get("require") else {
            return Require::None;
        };
        let path = FieldPath::Field(&path, "require");
        let choices = [("none", Require::None), ("tls", Require::Tls)];
        let require = self.choice(node, path, &choices, "tls or none");
        if require.is_none() {
            return require;
        }
        let has = |name: &str| {
            let items = present.get(name).map(|node| &node.value);
            !matches!(items, None | Some(Value::Null))
                && !matches!(items, Some(Value::List(items)) if items.is_empty())
        };
        if is_deny {
            self.wrong(node.line, path, DocumentError::RequiresOfDenied);
        } else if !has("names") || has("cidrs") || has("serviceTags") {
            self.wrong(node.line, path, DocumentError::RequiresOfOthers);
        } else if !present.contains_key("ports")
            || ports.iter().any(|range| range.proto != protocol::TCP)
        {
            self.wrong(node.line, path, DocumentError::RequiresOtherPorts);
        }
        require
    }
}
