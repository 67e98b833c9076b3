//! Reads the variables of a preset's file, and conditions on them.

use super::{
    decode::Decoder,
    error::PresetError,
    model::{Condition, Variable},
    template::fill_all,
    value::Kind,
};
use crate::{
    read::{FieldPath, Fields, Node, Problem, ReadError, Value},
    vocabulary::quoted,
};

impl Decoder<'_> {
    pub(super) fn variables(&mut self, node: &Node, path: FieldPath<'_>) {
        let Value::Map(pairs) = &node.value else {
            let example = "variables: { location: { type: region } }";
            self.reader.shape(node, path, "a mapping", example);
            return;
        };
        for (key, value) in pairs {
            let Some(name) = self.reader.key(key, path) else {
                continue;
            };
            let path = FieldPath::Field(&path, name);
            let is_good = name.starts_with(|first: char| first.is_ascii_lowercase())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if !is_good {
                let problem = PresetError::VariableName(quoted(name));
                self.reader.wrong(key.line, path, problem);
                continue;
            }
            if let Some(first) = self.variables.iter().find(|variable| variable.name == name) {
                let first = first.line;
                self.reader
                    .wrong(key.line, path, ReadError::DuplicateField { first });
                continue;
            }
            if let Some(variable) = self.variable(name, key.line, value, path) {
                self.examples
                    .insert(name.to_owned(), vec![variable.kind.example()]);
                self.variables.push(variable);
            }
        }
    }

    fn variable(
        &mut self,
        name: &str,
        line: usize,
        node: &Node,
        path: FieldPath<'_>,
    ) -> Option<Variable> {
        const KNOWN: &[&str] = &["type", "choices", "default", "when", "description"];
        let fields = self.reader.present(node, path, KNOWN, "{ type: region }")?;
        let at = |name| FieldPath::Field(&path, name);
        let description = self.description(node, &fields, path);
        let kind = self.kind(node, &fields, path)?;
        let when = fields
            .get("when")
            .map_or_else(Condition::default, |node| self.condition(node, at("when")));
        let default = match fields.get("default") {
            None => None,
            Some(node) => {
                let texts = self.texts(node, at("default"));
                self.placeholders(node.line, at("default"), &texts, &[]);
                if !kind.is_list() && texts.len() != 1 {
                    let example = format!("default: {}", kind.example());
                    let count = texts.len();
                    self.reader.wrong(
                        node.line,
                        at("default"),
                        PresetError::OneValue { count, example },
                    );
                }
                for filled in fill_all(&texts, &self.examples).unwrap_or_default() {
                    if let Err(problem) = kind.parse(&filled) {
                        self.reader.wrong(node.line, at("default"), problem);
                    }
                }
                Some(texts)
            }
        };
        Some(Variable {
            name: name.to_owned(),
            kind,
            default,
            when,
            description,
            line,
        })
    }

    fn kind(&mut self, node: &Node, fields: &Fields<'_>, path: FieldPath<'_>) -> Option<Kind> {
        const TYPES: &str = "region, label, name, names, cidrs, bool or choice";
        let at = |name| FieldPath::Field(&path, name);
        let Some(kind) = fields.get("type") else {
            self.reader.missing(node, at("type"), "type: region");
            return None;
        };
        let text = self.reader.text(kind, at("type"), "type: region")?;
        let choices = fields
            .get("choices")
            .map(|node| self.texts(node, at("choices")));
        let plain = Kind::PLAIN.into_iter().find(|kind| kind.name() == text);
        match (plain, choices) {
            (Some(kind), None) => Some(kind),
            (Some(_), Some(_)) => {
                self.reader.wrong(
                    kind.line,
                    at("type"),
                    ReadError::Choice {
                        found: quoted(text),
                        known: "choice beside choices",
                    },
                );
                None
            }
            (None, Some(choices)) if text == "choice" && !choices.is_empty() => {
                Some(Kind::Choice(choices))
            }
            (None, _) if text == "choice" => {
                self.reader
                    .missing(node, at("choices"), "choices: [one, another]");
                None
            }
            (None, _) => {
                self.reader.wrong(
                    kind.line,
                    at("type"),
                    ReadError::Choice {
                        found: quoted(text),
                        known: TYPES,
                    },
                );
                None
            }
        }
    }

    pub(super) fn condition(&mut self, node: &Node, path: FieldPath<'_>) -> Condition {
        let mut condition = Condition::default();
        let Value::Map(pairs) = &node.value else {
            self.reader
                .shape(node, path, "a mapping", "when: { cloud: azure-global }");
            return condition;
        };
        for (key, value) in pairs {
            let Some(name) = self.reader.key(key, path) else {
                continue;
            };
            let path = FieldPath::Field(&path, name);
            let wanted = self.texts(value, path);
            let Some(variable) = self.variables.iter().find(|variable| variable.name == name)
            else {
                let text = format!("when: {{ {name}: .. }}");
                let problem = self.unknown(&text, name, "above it");
                self.reader.wrong(key.line, path, problem);
                continue;
            };
            let choices = variable.kind.choices();
            let problem: Option<Problem> = if choices.is_empty() {
                let kind = variable.kind.name();
                Some(
                    PresetError::Untestable {
                        name: name.to_owned(),
                        kind,
                    }
                    .into(),
                )
            } else if wanted.is_empty() {
                Some(PresetError::NoValue(choices.join(" or ")).into())
            } else {
                wanted
                    .iter()
                    .find_map(|text| variable.kind.parse(text).err())
            };
            if let Some(problem) = problem {
                self.reader.wrong(value.line, path, problem);
                continue;
            }
            condition.0.push((name.to_owned(), wanted));
        }
        condition
    }
}
