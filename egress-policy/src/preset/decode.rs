//! Reads a preset's file, and checks all that can be checked without values.

use std::path::Path;

use super::{
    error::PresetError,
    model::{Condition, Entry, Include, Origin, Preset, Source, Variable},
    template::{self, Values, fill},
    value::Kind,
};
use crate::{
    read::{FieldPath, Fields, Node, Place, Problem, Reader, Report, Value, yaml},
    vocabulary::{Cidr, RuleError, parse_name_pattern, parse_port_range, quoted},
};

/// Reads the preset of a text. `None` if something was reported.
pub(super) fn decode(
    name: &str,
    origin: Origin,
    text: &str,
    report: &mut Report,
) -> Option<Preset> {
    let file = origin.path(name);
    let (documents, wrong) = yaml::documents(text);
    if let Some((line, problem)) = wrong {
        report.add(Place::field(&file, line, ""), problem);
        return None;
    }
    let is_there = |document: &&Node| !matches!(document.value, Value::Null);
    let documents: Vec<&Node> = documents.iter().filter(is_there).collect();
    let [document] = documents.as_slice() else {
        let problem = PresetError::Documents(documents.len());
        report.add(Place::file(&file), problem);
        return None;
    };
    let mut decoder = Decoder {
        reader: Reader::new(&file, report),
        variables: Vec::new(),
        examples: Values::new(),
    };
    decoder.preset(name, origin.clone(), document)
}

/// Reads one file.
pub(super) struct Decoder<'a> {
    pub(super) reader: Reader<'a>,
    /// The variables so far.
    pub(super) variables: Vec<Variable>,
    /// A value for each of them.
    pub(super) examples: Values,
}

impl Decoder<'_> {
    fn preset(&mut self, name: &str, origin: Origin, document: &Node) -> Option<Preset> {
        const KNOWN: &[&str] = &["description", "sources", "variables", "rules", "include"];
        let root = FieldPath::Root;
        let at = |name| FieldPath::Field(&root, name);
        let fields = self
            .reader
            .fields(document, root, KNOWN, "description: What it is for")?;
        let description = self.description(document, &fields, root);
        let mut sources = Vec::new();
        if let Some(node) = fields.get("sources") {
            let example = "- document: Its title";
            for (index, node) in self.list(node, at("sources"), example).iter().enumerate() {
                sources.extend(self.source(node, FieldPath::Item(&at("sources"), index)));
            }
        }
        if let Some(node) = fields.get("variables") {
            self.variables(node, at("variables"));
        }
        let mut entries = Vec::new();
        if let Some(node) = fields.get("rules") {
            let example = "- names: [api.example.com]";
            for (index, node) in self.list(node, at("rules"), example).iter().enumerate() {
                entries.extend(self.entry(node, FieldPath::Item(&at("rules"), index)));
            }
        }
        let mut includes = Vec::new();
        if let Some(node) = fields.get("include") {
            let example = "- preset: aks/addon/key-vault";
            for (index, node) in self.list(node, at("include"), example).iter().enumerate() {
                includes.extend(self.include(node, FieldPath::Item(&at("include"), index)));
            }
        }
        if self.reader.is_good() && entries.is_empty() && includes.is_empty() {
            self.reader.wrong(document.line, root, PresetError::Nothing);
        }
        self.reader.is_good().then(|| Preset {
            name: name.to_owned(),
            origin,
            description,
            sources,
            variables: std::mem::take(&mut self.variables),
            entries,
            includes,
        })
    }

    fn source(&mut self, node: &Node, path: FieldPath<'_>) -> Option<Source> {
        let example = "document: Its title";
        let fields = self
            .reader
            .fields(node, path, &["document", "tables"], example)?;
        let at = |name| FieldPath::Field(&path, name);
        let Some(document) = fields.get("document") else {
            self.reader.missing(node, at("document"), example);
            return None;
        };
        let document = self
            .reader
            .text(document, at("document"), example)?
            .to_owned();
        let tables = fields
            .get("tables")
            .map_or_else(Vec::new, |node| self.texts(node, at("tables")));
        Some(Source { document, tables })
    }

    fn entry(&mut self, node: &Node, path: FieldPath<'_>) -> Option<Entry> {
        const KNOWN: &[&str] = &[
            "description",
            "names",
            "cidrs",
            "serviceTags",
            "ports",
            "when",
            "note",
        ];
        let fields = self
            .reader
            .fields(node, path, KNOWN, "- names: [api.example.com]")?;
        let at = |name| FieldPath::Field(&path, name);
        let description = self.description(node, &fields, path);
        let names = self.destinations(&fields, at("names"), &[Kind::Name, Kind::Names], |text| {
            Ok(parse_name_pattern(text).map(|_| ())?)
        });
        let cidrs = self.destinations(&fields, at("cidrs"), &[Kind::Cidrs], |text| {
            Ok(text.parse::<Cidr>().map(|_| ())?)
        });
        let service_tags = self.destinations(&fields, at("serviceTags"), &[], |_| Ok(()));
        if self.reader.is_good() && names.is_empty() && cidrs.is_empty() && service_tags.is_empty()
        {
            self.reader.wrong(node.line, path, RuleError::NoDestination);
        }
        let ports = match fields.get("ports") {
            None => Vec::new(),
            Some(node) => {
                let example = r#"ports: ["443/tcp"]"#;
                let ports = self
                    .reader
                    .items(node, at("ports"), example, parse_port_range);
                if ports.is_empty() {
                    self.reader
                        .wrong(node.line, at("ports"), RuleError::NoPorts);
                }
                ports.into_iter().map(|port| port.text).collect()
            }
        };
        Some(Entry {
            description,
            note: self.optional_text(&fields, path, "note"),
            names,
            cidrs,
            service_tags,
            ports,
            when: fields
                .get("when")
                .map_or_else(Condition::default, |node| self.condition(node, at("when"))),
            line: node.line,
        })
    }

    /// A list of destinations, tried with examples of the variables.
    fn destinations(
        &mut self,
        fields: &Fields<'_>,
        path: FieldPath<'_>,
        whole: &[Kind],
        check: impl Fn(&str) -> Result<(), Problem>,
    ) -> Vec<String> {
        let FieldPath::Field(_, name) = path else {
            return Vec::new();
        };
        let Some(node) = fields.get(name) else {
            return Vec::new();
        };
        let items = self.reader.items(node, path, "a list of texts", |text| {
            Ok::<_, Problem>(text.to_owned())
        });
        for (index, item) in items.iter().enumerate() {
            let path = FieldPath::Item(&path, index);
            let texts = std::slice::from_ref(&item.value);
            if !self.placeholders(item.line, path, texts, whole) {
                continue;
            }
            for filled in fill(&item.value, &self.examples).unwrap_or_default() {
                if let Err(problem) = check(&filled) {
                    self.reader.wrong(item.line, path, problem);
                }
            }
        }
        items.into_iter().map(|item| item.value).collect()
    }

    fn include(&mut self, node: &Node, path: FieldPath<'_>) -> Option<Include> {
        const KNOWN: &[&str] = &["description", "preset", "with", "when"];
        let example = "preset: aks/addon/key-vault";
        let fields = self.reader.fields(node, path, KNOWN, example)?;
        let at = |name| FieldPath::Field(&path, name);
        let description = self.description(node, &fields, path);
        let Some(preset) = fields.get("preset") else {
            self.reader.missing(node, at("preset"), example);
            return None;
        };
        let line = preset.line;
        let preset = self.reader.text(preset, at("preset"), example)?.to_owned();
        let mut with = Vec::new();
        match fields.get("with").map(|node| (node, &node.value)) {
            None => {}
            Some((_, Value::Map(pairs))) => {
                let path = at("with");
                for (key, value) in pairs {
                    let Some(name) = self.reader.key(key, path) else {
                        continue;
                    };
                    let path = FieldPath::Field(&path, name);
                    let texts = self.texts(value, path);
                    self.placeholders(value.line, path, &texts, &Kind::PLAIN);
                    with.push((name.to_owned(), texts));
                }
            }
            Some((node, _)) => {
                let example = "with: { location: eastus }";
                self.reader.shape(node, at("with"), "a mapping", example);
            }
        }
        Some(Include {
            description,
            preset,
            with,
            when: fields
                .get("when")
                .map_or_else(Condition::default, |node| self.condition(node, at("when"))),
            line,
        })
    }

    /// Checks the variables that texts name: they exist, and those that cannot stand within a text stand alone, where
    /// one of the types `whole` is wanted.
    pub(super) fn placeholders(
        &mut self,
        line: usize,
        path: FieldPath<'_>,
        texts: &[String],
        whole: &[Kind],
    ) -> bool {
        let mut is_good = true;
        for text in texts {
            if let Some(problem) = self.placeholder_problem(text, whole) {
                self.reader.wrong(line, path, problem);
                is_good = false;
            }
        }
        is_good
    }

    fn placeholder_problem(&self, text: &str, whole: &[Kind]) -> Option<PresetError> {
        let names = match template::variables(text) {
            Ok(names) => names,
            Err(problem) => return Some(problem),
        };
        names.into_iter().find_map(|name| {
            let Some(variable) = self.variables.iter().find(|variable| variable.name == name)
            else {
                return Some(self.unknown(text, name, "of this preset"));
            };
            let right = match &variable.kind {
                Kind::Region | Kind::Label | Kind::Choice(_) => return None,
                kind if template::whole(text) == Some(name) && whole.contains(kind) => return None,
                Kind::Name | Kind::Names => "it alone, under names",
                Kind::Cidrs => "it alone, under cidrs",
                Kind::Bool => "when: { it: true }",
            };
            Some(PresetError::Misplaced {
                text: quoted(text),
                variable: name.to_owned(),
                kind: variable.kind.name().to_owned(),
                right,
            })
        })
    }

    pub(super) fn unknown(&self, text: &str, name: &str, place: &'static str) -> PresetError {
        let known: Vec<&str> = self
            .variables
            .iter()
            .map(|variable| variable.name.as_str())
            .collect();
        PresetError::Placeholder {
            text: quoted(text),
            variable: quoted(name),
            place,
            known: if known.is_empty() {
                "define it under variables".to_owned()
            } else {
                format!("define it, or take one of {}", known.join(", "))
            },
        }
    }

    pub(super) fn description(
        &mut self,
        node: &Node,
        fields: &Fields<'_>,
        path: FieldPath<'_>,
    ) -> String {
        let text = self.optional_text(fields, path, "description");
        if text.is_none() {
            let path = FieldPath::Field(&path, "description");
            self.reader
                .missing(node, path, "description: What it is for");
        }
        text.unwrap_or_default()
    }

    fn optional_text(
        &mut self,
        fields: &Fields<'_>,
        path: FieldPath<'_>,
        name: &'static str,
    ) -> Option<String> {
        let node = fields.get(name)?;
        let text = self
            .reader
            .text(node, FieldPath::Field(&path, name), "some text")?;
        Some(text.trim().to_owned())
    }

    /// A text, or a list of texts.
    pub(super) fn texts(&mut self, node: &Node, path: FieldPath<'_>) -> Vec<String> {
        match &node.value {
            Value::Text(text) => vec![text.clone()],
            Value::Null | Value::List(_) | Value::Map(_) => {
                let items = self.reader.items(node, path, "a text or a list", |text| {
                    Ok::<_, Problem>(text.to_owned())
                });
                items.into_iter().map(|item| item.value).collect()
            }
        }
    }

    fn list<'n>(
        &mut self,
        node: &'n Node,
        path: FieldPath<'_>,
        example: &'static str,
    ) -> &'n [Node] {
        match &node.value {
            Value::List(items) => items,
            Value::Null | Value::Text(_) | Value::Map(_) => {
                self.reader.shape(node, path, "a list", example);
                &[]
            }
        }
    }
}

/// A preset's name from the path of its file below its folder, without the ending.
pub(super) fn name_of(relative: &Path) -> Result<String, PresetError> {
    let wrong = || PresetError::FileName(quoted(&relative.display().to_string()));
    let stem = relative.with_extension("");
    let mut parts = Vec::new();
    for part in &stem {
        let part = part.to_str().ok_or_else(wrong)?;
        let is_plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if part.is_empty() || !part.bytes().all(is_plain) {
            return Err(wrong());
        }
        parts.push(part);
    }
    Ok(parts.join("/"))
}
