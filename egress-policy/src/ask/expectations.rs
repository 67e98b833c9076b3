//! Files of expectations: what policies have to decide, for `policy test`.
//!
//! ```yaml
//! policies: [node.yaml]
//! expect:
//!   - { to: api.example.com, verdict: allowed }
//!   - { to: ["10.99.1.1:22", evil.cdn.example.net], verdict: denied, rule: 10.99.0.0/16 }
//! ```

use std::path::{Path, PathBuf};

use egress_common::verdict::Reason;

use super::error::AskError;
use crate::{
    read::{
        FieldPath, Located, MAX_BYTES, PolicyErrors, Problem, Reader, load_text, one_document, yaml,
    },
    vocabulary::{Destination, DestinationError},
};

/// The verdict that a destination has to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Where to.
    pub to: Destination,
    /// Line in the file, from 1.
    pub line: usize,
    /// True if it has to be allowed; denied otherwise.
    pub is_allowed: bool,
    /// The reason that it has to have, if one is given.
    pub reason: Option<Reason>,
    /// The destination, as a policy writes it, of the rule that has to decide, if one is given.
    pub rule: Option<String>,
}

/// A file of expectations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectations {
    /// Policy files and folders; relative ones are taken from the folder of the file.
    pub policies: Vec<PathBuf>,
    /// The expectations, in the order of the file.
    pub expect: Vec<Expectation>,
}

/// Reasons that policies alone can give.
const REASONS: &[(&str, Option<Reason>)] = &[
    ("name_rule", Some(Reason::NameRule)),
    ("cidr_rule", Some(Reason::CidrRule)),
    ("loopback", Some(Reason::Loopback)),
    ("no_rule", Some(Reason::NoRule)),
    ("denied_cidr", Some(Reason::DeniedCidr)),
    ("port_not_allowed", Some(Reason::PortNotAllowed)),
];

const EXAMPLE: &str = "- { to: api.example.com:443, verdict: allowed }";

impl Expectations {
    /// Reads a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(file: &Path) -> Result<Self, PolicyErrors> {
        Self::parse(file, &load_text(file, MAX_BYTES)?)
    }

    /// Reads a text. `file` is what messages call it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, PolicyErrors> {
        one_document(
            file,
            text,
            Some(AskError::NoExpectations.into()),
            Self::read,
        )
    }

    fn read(&mut self, document: &yaml::Node, reader: &mut Reader<'_>) {
        let root = FieldPath::Root;
        let known = &["policies", "expect"];
        let Some(fields) = reader.fields(document, root, known, "expect: []") else {
            return;
        };
        if let Some(node) = fields.get("policies") {
            let path = FieldPath::Field(&root, "policies");
            let folder = reader.file().parent().unwrap_or(Path::new("")).to_owned();
            let paths = reader.items(node, path, "policies: [node.yaml]", |text| {
                Ok::<_, Problem>(folder.join(text))
            });
            self.policies = paths.into_iter().map(|path| path.value).collect();
        }
        let path = FieldPath::Field(&root, "expect");
        let Some(node) = fields.get("expect") else {
            return reader.missing(document, path, EXAMPLE);
        };
        let yaml::Value::List(items) = &node.value else {
            return reader.shape(node, path, "a list of expectations", EXAMPLE);
        };
        if items.is_empty() {
            reader.wrong(node.line, path, AskError::NoExpectations);
        }
        for (index, item) in items.iter().enumerate() {
            self.item(item, FieldPath::Item(&path, index), reader);
        }
    }

    fn item(&mut self, node: &yaml::Node, path: FieldPath<'_>, reader: &mut Reader<'_>) {
        let known = &["to", "verdict", "reason", "rule"];
        let Some(fields) = reader.fields(node, path, known, EXAMPLE) else {
            return;
        };
        let at = |name| FieldPath::Field(&path, name);
        let to = match fields.get("to") {
            None => {
                reader.missing(node, at("to"), "to: api.example.com:443");
                Vec::new()
            }
            Some(to) => destinations(to, at("to"), reader),
        };
        let verdict = match fields.get("verdict") {
            None => {
                reader.missing(node, at("verdict"), "verdict: allowed");
                None
            }
            Some(verdict) => {
                let choices = [("allowed", Some(true)), ("denied", Some(false))];
                reader.choice(verdict, at("verdict"), &choices, "allowed or denied")
            }
        };
        let reason = fields.get("reason").and_then(|reason| {
            let known = "name_rule, cidr_rule, loopback, no_rule, denied_cidr or port_not_allowed";
            reader.choice(reason, at("reason"), REASONS, known)
        });
        let rule = fields.get("rule").and_then(|rule| {
            let text = reader.text(rule, at("rule"), "rule: \"*.example.com\"")?;
            Some(text.to_owned())
        });
        let Some(is_allowed) = verdict else { return };
        if let (Some(reason), Some(node)) = (reason, fields.get("reason"))
            && reason.passes() != is_allowed
        {
            let problem = AskError::ReasonOfOtherVerdict {
                reason: reason.name(),
                verdict: if reason.passes() { "allowed" } else { "denied" },
            };
            reader.wrong(node.line, at("reason"), problem);
        }
        self.expect.extend(to.into_iter().map(|to| Expectation {
            to: to.value,
            line: to.line,
            is_allowed,
            reason,
            rule: rule.clone(),
        }));
    }
}

/// One destination, or a list of them.
fn destinations(
    node: &yaml::Node,
    path: FieldPath<'_>,
    reader: &mut Reader<'_>,
) -> Vec<Located<Destination>> {
    let example = "to: api.example.com:443";
    if matches!(node.value, yaml::Value::List(_)) {
        return reader.items(node, path, example, str::parse);
    }
    let Some(text) = reader.text(node, path, example) else {
        return Vec::new();
    };
    match text.parse() {
        Ok(value) => vec![Located {
            value,
            text: text.to_owned(),
            line: node.line,
        }],
        Err(error) => {
            let error: DestinationError = error;
            reader.wrong(node.line, path, error);
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Expectations, String> {
        Expectations::parse(Path::new("tests/expect.yaml"), text)
            .map_err(|errors| errors.to_string())
    }

    #[test]
    fn expectations_are_read_with_their_lines() {
        let read = parse(
            "policies: [node.yaml, /etc/egress]\nexpect:\n- { to: api.example.com, verdict: allowed }\n\
             - to: [\"10.99.1.1:22\",\n       \"[fd00::1]:53/udp\"]\n  verdict: denied\n  reason: denied_cidr\n  rule: 10.99.0.0/16\n",
        )
        .unwrap();
        assert_eq!(
            read.policies,
            [
                PathBuf::from("tests/node.yaml"),
                PathBuf::from("/etc/egress")
            ]
        );
        let rows: Vec<_> = read
            .expect
            .iter()
            .map(|one| (one.line, one.to.to_string(), one.is_allowed, one.reason))
            .collect();
        assert_eq!(
            rows,
            [
                (3, "api.example.com:443/tcp".to_owned(), true, None),
                (
                    4,
                    "10.99.1.1:22/tcp".to_owned(),
                    false,
                    Some(Reason::DeniedCidr)
                ),
                (
                    5,
                    "[fd00::1]:53/udp".to_owned(),
                    false,
                    Some(Reason::DeniedCidr)
                ),
            ]
        );
        assert_eq!(read.expect[2].rule.as_deref(), Some("10.99.0.0/16"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, message) in [
            (
                "",
                "tests/expect.yaml: expects nothing; write expect: [{ to: api.example.com:443, verdict: allowed }]",
            ),
            (
                "expect: []",
                "tests/expect.yaml:1: expect: expects nothing; write expect: [{ to: api.example.com:443, verdict: allowed }]",
            ),
            (
                "policies: [a.yaml]",
                "tests/expect.yaml:1: expect: is missing; write - { to: api.example.com:443, verdict: allowed }",
            ),
            (
                "expect:\n- { to: \"10.0.0.0/8\", verdict: maybe }\n- { verdict: denied, from: x }\n- { to: a.example }",
                "tests/expect.yaml:2: expect[0].to: \"10.0.0.0/8\" is not a destination: it is a network, and one address \
                 is asked for; write api.example.com, api.example.com:8080, 192.0.2.1:53/udp, [2001:db8::1]:443/tcp or \
                 api.example.com:icmp\n\
                 tests/expect.yaml:2: expect[0].verdict: \"maybe\" is not known here; write allowed or denied\n\
                 tests/expect.yaml:3: expect[1].from: unknown field \"from\"; the fields here are to, verdict, reason, rule\n\
                 tests/expect.yaml:3: expect[1].to: is missing; write to: api.example.com:443\n\
                 tests/expect.yaml:4: expect[2].verdict: is missing; write verdict: allowed",
            ),
            (
                "expect:\n- { to: a.example, verdict: denied, reason: name_rule }",
                "tests/expect.yaml:2: expect[0].reason: name_rule is a reason of what is allowed; write one of what is expected, or leave it out",
            ),
            (
                "expect: [{ to: a.example, verdict: allowed }]\n---\nexpect: []",
                "tests/expect.yaml:3: is a second document; write everything in one",
            ),
        ] {
            assert_eq!(parse(text), Err(message.to_owned()), "{text}");
        }
    }
}
