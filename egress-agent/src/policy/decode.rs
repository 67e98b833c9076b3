//! From a marked tree to a checked policy. Goes on after an error, so that one run finds them all.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::Path,
};

use egress_common::policy::{CIDR_ENTRIES, NAME_ENTRIES, PortRange};

use super::{
    error::{Place, Problem, Report, quoted},
    name::parse_name_pattern,
    ports::parse_port_range,
    schema::{
        API_VERSION, EgressPolicy, KIND, Metadata, Preexisting, Queries, Spec, SpecDns, SpecMode,
        SpecRule, SpecTtl,
    },
    set::{Located, Policy, Rule},
    ttl::{Ttl, TtlError, parse_duration_s},
    yaml::{Node, Value},
};

/// A field path, built on the stack and printed only in messages.
#[derive(Clone, Copy)]
enum FieldPath<'a> {
    Root,
    Field(&'a FieldPath<'a>, &'a str),
    Item(&'a FieldPath<'a>, usize),
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Reads one document. `None` if something was reported.
pub(super) fn decode(file: &Path, document: &Node, report: &mut Report) -> Option<Policy> {
    let mut decoder = Decoder {
        file,
        report,
        is_good: true,
    };
    let policy = decoder.policy(document)?;
    decoder.is_good.then_some(policy)
}

struct Decoder<'a> {
    file: &'a Path,
    report: &'a mut Report,
    is_good: bool,
}

/// The fields of a mapping that are there and not empty.
type Fields<'n> = BTreeMap<&'static str, &'n Node>;

impl Decoder<'_> {
    fn wrong(&mut self, line: usize, path: FieldPath<'_>, problem: impl Into<Problem>) {
        self.is_good = false;
        let place = Place::field(self.file, line, path.to_string());
        self.report.add(place, problem);
    }

    fn policy(&mut self, document: &Node) -> Option<Policy> {
        let root = FieldPath::Root;
        let example = "apiVersion: egress.dev/v1alpha1";
        let Value::Map(pairs) = &document.value else {
            self.shape(document, root, "a mapping", example);
            return None;
        };
        // Of a document of another kind nothing else is worth a word.
        if let Some((_, kind)) = pairs.iter().find(|(key, _)| is_text(key, "kind"))
            && !is_text(kind, KIND)
        {
            self.constant(kind, FieldPath::Field(&root, "kind"), KIND);
            return None;
        }
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
            Some(node) => self.metadata(node, metadata),
            None => {
                self.missing(document, metadata, "metadata: { name: node }");
                None
            }
        };
        let spec = FieldPath::Field(&root, "spec");
        let parts = match fields.get("spec") {
            Some(node) => self.spec(node, spec),
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
                kind: KIND.to_owned(),
                metadata: metadata?,
                spec,
            },
            file: self.file.to_owned(),
            line: document.line,
            ttl,
            allow,
            deny,
        })
    }

    fn metadata(&mut self, node: &Node, path: FieldPath<'_>) -> Option<Metadata> {
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
        }
        if let Some(node) = fields.get("labels") {
            metadata.labels = self.texts_by_key(node, at("labels"));
        }
        if let Some(node) = fields.get("annotations") {
            metadata.annotations = self.texts_by_key(node, at("annotations"));
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
            self.wrong(line, path, Problem::BadPolicyName(quoted(name)));
        } else if name == super::lifeline::POLICY {
            self.wrong(line, path, Problem::ReservedName(quoted(name)));
        }
    }

    fn texts_by_key(&mut self, node: &Node, path: FieldPath<'_>) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        let Value::Map(pairs) = &node.value else {
            self.shape(node, path, "a mapping", "team: platform");
            return texts;
        };
        for (key, value) in pairs {
            let Some(key) = self.key(key, path) else {
                continue;
            };
            if let Some(value) = self.text(value, FieldPath::Field(&path, key), "some text") {
                texts.insert(key.to_owned(), value.to_owned());
            }
        }
        texts
    }

    fn spec(
        &mut self,
        node: &Node,
        path: FieldPath<'_>,
    ) -> Option<(Spec, Ttl, Vec<Rule>, Vec<Rule>)> {
        const KNOWN: &[&str] = &["mode", "ttl", "preexisting", "dns", "allow", "deny"];
        let fields = self.fields(node, path, KNOWN, "spec: { allow: [] }")?;
        let at = |name| FieldPath::Field(&path, name);
        let mut spec = Spec::default();
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
            (spec.allow, allow) = self.rules(node, at("allow"), false);
        }
        if let Some(node) = fields.get("deny") {
            (spec.deny, deny) = self.rules(node, at("deny"), true);
        }
        Some((spec, ttl, allow, deny))
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
        let example = "ttl: { min: 30s, max: 24h }";
        let Some(fields) = self.fields(node, path, &["min", "max"], example) else {
            return (spec, ttl);
        };
        let mut is_good = true;
        for (name, example, text, seconds) in [
            ("min", "min: 30s", &mut spec.min, &mut ttl.min_s),
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
    ) -> (Vec<SpecRule>, Vec<Rule>) {
        let Value::List(items) = &node.value else {
            self.shape(node, path, "a list of rules", "- names: [api.example.com]");
            return (Vec::new(), Vec::new());
        };
        let (mut specs, mut rules) = (Vec::new(), Vec::new());
        for (index, item) in items.iter().enumerate() {
            if let Some((spec, rule)) = self.rule(item, FieldPath::Item(&path, index), is_deny) {
                specs.push(spec);
                rules.push(rule);
            }
        }
        (specs, rules)
    }

    fn rule(
        &mut self,
        node: &Node,
        path: FieldPath<'_>,
        is_deny: bool,
    ) -> Option<(SpecRule, Rule)> {
        const KNOWN: &[&str] = &["names", "cidrs", "ports"];
        let present = self.present(node, path, KNOWN, "- names: [api.example.com]")?;
        let at = |name| FieldPath::Field(&path, name);
        let names = match present.get("names") {
            Some(node) => self.items(
                node,
                at("names"),
                "names: [api.example.com]",
                parse_name_pattern,
            ),
            None => Vec::new(),
        };
        let cidrs = match present.get("cidrs") {
            Some(node) => self.items(node, at("cidrs"), "cidrs: [10.0.0.0/8]", str::parse),
            None => Vec::new(),
        };
        let is_empty = |name| match present.get(name).map(|node| &node.value) {
            None | Some(Value::Null) => true,
            Some(Value::List(items)) => items.is_empty(),
            Some(Value::Text(_) | Value::Map(_)) => false,
        };
        // An unknown field may be a destination with a wrong name.
        let is_complete = matches!(&node.value, Value::Map(pairs) if pairs.len() == present.len());
        if is_complete && is_empty("names") && is_empty("cidrs") {
            self.wrong(node.line, path, Problem::NoDestination);
        }
        let ports = present.get("ports").map(|node| {
            if matches!(node.value, Value::Null) || is_empty("ports") {
                self.wrong(node.line, at("ports"), Problem::NoPorts);
                return Vec::new();
            }
            let example = r#"ports: ["443/tcp"]"#;
            self.items(node, at("ports"), example, parse_port_range)
        });
        let mut seen = HashSet::new();
        let given = ports.iter().flatten().map(|port| port.value);
        let ranges: Vec<PortRange> = given.filter(|range| seen.insert(*range)).collect();
        let (what, max) = if is_empty("names") {
            ("a rule with cidrs", CIDR_ENTRIES)
        } else {
            ("a rule with names", NAME_ENTRIES)
        };
        if ranges.len() > max {
            let count = ranges.len();
            let line = present.get("ports").map_or(node.line, |node| node.line);
            self.wrong(
                line,
                at("ports"),
                Problem::TooManyPorts { count, what, max },
            );
        }
        if is_deny && !is_empty("names") && !ranges.is_empty() && !ranges.contains(&PortRange::ANY)
        {
            let line = present.get("ports").map_or(node.line, |node| node.line);
            self.wrong(line, at("ports"), Problem::DeniedNameWithPorts);
        }
        let spec = SpecRule {
            names: names.iter().map(|name| name.text.clone()).collect(),
            cidrs: cidrs.iter().map(|cidr| cidr.text.clone()).collect(),
            ports: ports.map(|ports| ports.into_iter().map(|port| port.text).collect()),
        };
        let rule = Rule {
            line: node.line,
            names,
            cidrs,
            ports: ranges,
        };
        Some((spec, rule))
    }

    /// The items of a list of texts; an empty value is an empty list.
    fn items<T, E: Into<Problem>>(
        &mut self,
        node: &Node,
        path: FieldPath<'_>,
        example: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<Located<T>> {
        let items = match &node.value {
            Value::List(items) => items.as_slice(),
            Value::Null => &[],
            Value::Text(_) | Value::Map(_) => {
                self.shape(node, path, "a list", example);
                &[]
            }
        };
        let mut located = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = FieldPath::Item(&path, index);
            let Some(text) = self.text(item, path, example) else {
                continue;
            };
            match parse(text) {
                Ok(value) => located.push(Located {
                    value,
                    text: text.to_owned(),
                    line: item.line,
                }),
                Err(error) => self.wrong(item.line, path, error),
            }
        }
        located
    }

    /// The fields of a mapping, without those that are empty.
    fn fields<'n>(
        &mut self,
        node: &'n Node,
        path: FieldPath<'_>,
        known: &[&'static str],
        example: &'static str,
    ) -> Option<Fields<'n>> {
        let mut fields = self.present(node, path, known, example)?;
        fields.retain(|_, node| !matches!(node.value, Value::Null));
        Some(fields)
    }

    /// The fields of a mapping.
    fn present<'n>(
        &mut self,
        node: &'n Node,
        path: FieldPath<'_>,
        known: &[&'static str],
        example: &'static str,
    ) -> Option<Fields<'n>> {
        let Value::Map(pairs) = &node.value else {
            self.shape(node, path, "a mapping", example);
            return None;
        };
        let mut fields = Fields::new();
        for (key, value) in pairs {
            let line = key.line;
            let Some(name) = self.key(key, path) else {
                continue;
            };
            let path = FieldPath::Field(&path, name);
            let Some(field) = known.iter().find(|field| **field == name) else {
                let problem = Problem::UnknownField {
                    name: quoted(name),
                    nearest: nearest(name, known),
                    known: known.join(", "),
                };
                self.wrong(line, path, problem);
                continue;
            };
            if fields.insert(*field, value).is_some() {
                let first = pairs.iter().find(|(key, _)| is_text(key, name));
                let first = first.map_or(line, |(key, _)| key.line);
                self.wrong(line, path, Problem::DuplicateField { first });
            }
        }
        Some(fields)
    }

    fn key<'n>(&mut self, key: &'n Node, path: FieldPath<'_>) -> Option<&'n str> {
        if let Value::Text(name) = &key.value {
            return Some(name);
        }
        self.wrong(key.line, path, Problem::BadKey(key.value.kind()));
        None
    }

    fn text<'n>(
        &mut self,
        node: &'n Node,
        path: FieldPath<'_>,
        example: &'static str,
    ) -> Option<&'n str> {
        if let Value::Text(text) = &node.value {
            return Some(text);
        }
        self.shape(node, path, "text", example);
        None
    }

    fn choice<T: Copy + Default>(
        &mut self,
        node: &Node,
        path: FieldPath<'_>,
        choices: &[(&'static str, T)],
        known: &'static str,
    ) -> T {
        let Some(text) = self.text(node, path, known) else {
            return T::default();
        };
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        let found = quoted(text);
        self.wrong(node.line, path, Problem::Choice { found, known });
        T::default()
    }

    fn constant(&mut self, node: &Node, path: FieldPath<'_>, wanted: &'static str) {
        if let Some(text) = self.text(node, path, wanted)
            && text != wanted
        {
            let found = quoted(text);
            self.wrong(
                node.line,
                path,
                Problem::Choice {
                    found,
                    known: wanted,
                },
            );
        }
    }

    fn missing(&mut self, parent: &Node, path: FieldPath<'_>, example: &'static str) {
        self.wrong(parent.line, path, Problem::Missing(example));
    }

    fn shape(
        &mut self,
        node: &Node,
        path: FieldPath<'_>,
        wanted: &'static str,
        example: &'static str,
    ) {
        let found = node.value.kind();
        let problem = Problem::Shape {
            found,
            wanted,
            example,
        };
        self.wrong(node.line, path, problem);
    }
}

fn is_text(node: &Node, wanted: &str) -> bool {
    matches!(&node.value, Value::Text(text) if text == wanted)
}

/// The known field that is most like `name`, if one is.
fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    const ALIKE: f64 = 0.7;
    let name = name.to_lowercase();
    let likeness = |field: &str| strsim::jaro_winkler(&name, &field.to_lowercase());
    known
        .iter()
        .map(|field| (likeness(field), *field))
        .filter(|(likeness, _)| *likeness > ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, field)| field)
}
