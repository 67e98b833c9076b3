//! Label selectors, as in Kubernetes.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::Serialize;
use thiserror::Error;

use super::{
    check::Check,
    forms::{LabelKey, LabelValue},
};
use crate::{
    read::{FieldPath, Node, Part, Reader, Value, is_mapping, is_text},
    vocabulary::quoted,
};

/// Most bytes of a label's name and of its value.
const LABEL_BYTES: usize = 63;
/// Most bytes of what stands before the `/` of a label's key.
const PREFIX_BYTES: usize = 253;

/// What labels things have that are meant: all of these. An empty selector means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, LabelValue>")]
    pub match_labels: BTreeMap<String, String>,
    /// What holds for labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// What holds for a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("anyOf" = [
    {
        "properties": { "operator": { "enum": ["In", "NotIn"] }, "values": { "minItems": 1 } },
        "required": ["values"],
    },
    {
        "properties": { "operator": { "enum": ["Exists", "DoesNotExist"] }, "values": { "maxItems": 0 } },
    },
]))]
pub struct Requirement {
    /// The label's key.
    #[schemars(with = "LabelKey")]
    pub key: String,
    /// How its value is compared.
    pub operator: Operator,
    /// With what: for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<LabelValue>")]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum Operator {
    /// It is there, with one of the values.
    #[default]
    In,
    /// It is not there, or has another value.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Selector {
    /// True if an object with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.match_labels.iter().all(has)
            && self.match_expressions.iter().all(|one| one.holds(labels))
    }
}

impl Requirement {
    /// True if it holds for an object with these labels. A label that is not there is in no list.
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let is_listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => is_listed,
            Operator::NotIn => !is_listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Selector {
    /// As `kubectl --selector` wants it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self
            .match_labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let requirements = self.match_expressions.iter().map(ToString::to_string);
        let parts: Vec<String> = labels.chain(requirements).collect();
        f.write_str(&parts.join(","))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

/// An error of a selector.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SelectorError {
    /// No key.
    #[error("{0} is not the key of a label; write app or example.com/app")]
    Key(String),
    /// No value.
    #[error(
        "{0} is not the value of a label; write at most 63 letters, digits, -, _ and ., with a letter or digit at both ends"
    )]
    Value(String),
    /// Nothing to compare with.
    #[error("is empty, so that nothing would match; write values: [payments]")]
    NoValues,
    /// Something to compare with where nothing is compared.
    #[error("{0} compares no values; leave values out, or write operator: In")]
    Values(&'static str),
}

/// The fields of a selector and of a requirement.
pub(super) const SELECTOR: &[&str] = &["matchLabels", "matchExpressions"];
pub(super) const REQUIREMENT: &[&str] = &["key", "operator", "values"];

/// The names of operators.
const OPERATORS: [(&str, Operator); 4] = [
    ("In", Operator::In),
    ("NotIn", Operator::NotIn),
    ("Exists", Operator::Exists),
    ("DoesNotExist", Operator::DoesNotExist),
];

impl Reader<'_> {
    /// A selector.
    pub(super) fn selector(&mut self, node: &Node, path: FieldPath<'_>) -> Option<Selector> {
        let example = "podSelector: { matchLabels: { app: payments } }";
        let fields = self.fields(node, path, SELECTOR, example)?;
        let at = |name| FieldPath::Field(&path, name);
        let mut selector = Selector::default();
        if let Some(node) = fields.get("matchLabels") {
            selector.match_labels = self.texts_by_key(node, at("matchLabels"), "app: payments");
        }
        if let Some(node) = fields.get("matchExpressions") {
            let path = at("matchExpressions");
            let Value::List(items) = &node.value else {
                self.shape(node, path, "a list", EXAMPLE);
                return None;
            };
            for (index, item) in items.iter().enumerate() {
                let requirement = self.requirement(item, FieldPath::Item(&path, index));
                selector.match_expressions.extend(requirement);
            }
        }
        Some(selector)
    }

    fn requirement(&mut self, node: &Node, path: FieldPath<'_>) -> Option<Requirement> {
        let fields = self.fields(node, path, REQUIREMENT, EXAMPLE)?;
        let at = |name| FieldPath::Field(&path, name);
        let mut requirement = Requirement::default();
        match fields.get("key") {
            Some(node) => {
                let key = self.text(node, at("key"), "key: app");
                requirement.key = key.unwrap_or_default().to_owned();
            }
            None => self.missing(node, at("key"), "key: app"),
        }
        match fields.get("operator") {
            Some(node) => {
                let known = "In, NotIn, Exists or DoesNotExist";
                requirement.operator = self.choice(node, at("operator"), &OPERATORS, known);
            }
            None => self.missing(node, at("operator"), "operator: In"),
        }
        if let Some(node) = fields.get("values") {
            requirement.values = self.texts(node, at("values"), "values: [payments]");
        }
        Some(requirement)
    }
}

impl Check<'_> {
    /// True if labels can be like this.
    pub(super) fn selector(&mut self, selector: &Selector, part: Part<'_>) {
        let labels = part.field("matchLabels");
        for (key, value) in &selector.match_labels {
            let part = labels.field(key).on_line(labels.line);
            if !is_key(key) {
                self.wrong(part, SelectorError::Key(quoted(key)));
            } else if !is_value(value) {
                self.wrong(part, SelectorError::Value(quoted(value)));
            }
        }
        let list = part.field("matchExpressions");
        let requirements = selector.match_expressions.iter();
        for (requirement, (_, part)) in requirements.zip(list.items(is_mapping)) {
            self.requirement(requirement, part);
        }
    }

    fn requirement(&mut self, requirement: &Requirement, part: Part<'_>) {
        let (key, operator, values) = (
            part.field("key"),
            part.field("operator"),
            part.field("values"),
        );
        if !key.is_default() && key.is_read(is_text) && !is_key(&requirement.key) {
            self.wrong(key, SelectorError::Key(quoted(&requirement.key)));
        }
        for (value, (_, part)) in requirement.values.iter().zip(values.items(is_text)) {
            if !is_value(value) {
                self.wrong(part, SelectorError::Value(quoted(value)));
            }
        }
        let is_operator = |value: &Value| matches!(value, Value::Text(text) if OPERATORS.iter().any(|(name, _)| name == text));
        if operator.is_default() || !operator.is_read(is_operator) {
            return;
        }
        let is_empty = values.is_empty_list(requirement.values.len());
        let wrong = match (requirement.operator, is_empty) {
            (Operator::In | Operator::NotIn, true) => Some(SelectorError::NoValues),
            (Operator::Exists, false) => Some(SelectorError::Values("Exists")),
            (Operator::DoesNotExist, false) => Some(SelectorError::Values("DoesNotExist")),
            (Operator::In | Operator::NotIn, false)
            | (Operator::Exists | Operator::DoesNotExist, true) => None,
        };
        if let Some(error) = wrong {
            self.wrong(values, error);
        }
    }
}

/// An example of a requirement.
const EXAMPLE: &str = "- { key: app, operator: In, values: [payments] }";

/// True if it can be the key of a label: a name, with a domain name and `/` before it or not.
pub(crate) fn is_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let is_prefix = |prefix: &str| {
        prefix.len() <= PREFIX_BYTES
            && prefix.split('.').all(|label| {
                has_ends(
                    label,
                    |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(),
                    b"-",
                )
            })
    };
    !name.is_empty() && is_value(name) && prefix.is_none_or(is_prefix)
}

/// True if it can be the value of a label.
pub(crate) fn is_value(text: &str) -> bool {
    text.len() <= LABEL_BYTES
        && (text.is_empty() || has_ends(text, |byte| byte.is_ascii_alphanumeric(), b"-_."))
}

/// True if it begins and ends with a byte of one kind, and has only these and `others` between.
fn has_ends(text: &str, is_end: impl Fn(u8) -> bool, others: &[u8]) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|byte| is_end(*byte))
        && bytes.last().is_some_and(|byte| is_end(*byte))
        && bytes
            .iter()
            .all(|byte| is_end(*byte) || others.contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_those_of_kubernetes() {
        let long = "a".repeat(63);
        for good in ["app", "a", "A.b_c-9", "example.com/app", "a.b-c.d/E", &long] {
            assert!(is_key(good), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in [
            "",
            "-a",
            "a-",
            "a/b/c",
            "/a",
            "a/",
            "Example.com/a",
            "a..b/c",
            "a b",
            "\u{e9}",
            &too_long,
        ] {
            assert!(!is_key(bad), "{bad}");
        }
        assert!(is_value("") && is_value("v1.2_x-Y") && is_value(&long));
        for bad in ["-", "a/b", ".a", "a.", "a b", &too_long] {
            assert!(!is_value(bad), "{bad}");
        }
    }

    #[test]
    fn a_selector_is_shown_as_kubectl_wants_it() {
        let requirement = |key: &str, operator, values: &[&str]| Requirement {
            key: key.to_owned(),
            operator,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        let selector = Selector {
            match_labels: [("app".to_owned(), "payments".to_owned())].into(),
            match_expressions: vec![
                requirement("tier", Operator::In, &["a", "b"]),
                requirement("env", Operator::NotIn, &["test"]),
                requirement("team", Operator::Exists, &[]),
                requirement("legacy", Operator::DoesNotExist, &[]),
            ],
        };
        let shown = "app=payments,tier in (a,b),env notin (test),team,!legacy";
        assert_eq!(selector.to_string(), shown);
        assert_eq!(Selector::default().to_string(), "");
    }
}
