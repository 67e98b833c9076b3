//! Writes policies as YAML that people go on with: rules with comments, and rules that are comments.

mod preset;

use std::fmt::Write as _;

use crate::document::{
    API_VERSION, CLUSTER_KIND, EgressPolicy, KIND, Metadata, PresetValue, Require, Selector, Spec,
    SpecMode, SpecRule, Subject,
};

/// Columns that a list on one line may fill.
const COLUMNS: usize = 100;

/// A part of a list of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A comment above the next part; may have several lines.
    Comment(String),
    /// A rule.
    Rule(SpecRule),
    /// A rule that is written as a comment: without its `# ` it would be in force.
    Off(SpecRule),
}

/// A policy that is to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// Comments above it; each may have several lines.
    pub comments: Vec<String>,
    /// `metadata.name`.
    pub name: String,
    /// `spec.mode`.
    pub mode: SpecMode,
    /// Its subjects.
    pub target: Target,
    /// `spec.allow`.
    pub allow: Vec<Entry>,
    /// `spec.deny`.
    pub deny: Vec<Entry>,
}

/// The subjects of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The node that it is installed on.
    #[default]
    Node,
    /// Pods of a namespace.
    Pods {
        /// The namespace; that of `kubectl apply` if left out.
        namespace: Option<String>,
        /// Which pods.
        pods: Selector,
    },
    /// Pods of all namespaces.
    AllPods {
        /// Which namespaces; all if left out.
        namespaces: Option<Selector>,
        /// Which pods; all if left out.
        pods: Option<Selector>,
    },
    /// Processes of nodes.
    Nodes(Option<Selector>),
}

impl Target {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Node | Self::Pods { .. } => KIND,
            Self::AllPods { .. } | Self::Nodes(_) => CLUSTER_KIND,
        }
    }

    fn namespace(&self) -> Option<&String> {
        match self {
            Self::Pods { namespace, .. } => namespace.as_ref(),
            Self::Node | Self::AllPods { .. } | Self::Nodes(_) => None,
        }
    }

    /// The spec with what selects.
    fn select(&self, spec: Spec) -> Spec {
        match self.clone() {
            Self::Node => spec,
            Self::Pods { pods, .. } => Spec {
                pod_selector: Some(pods),
                ..spec
            },
            Self::AllPods { namespaces, pods } => Spec {
                pod_selector: pods,
                namespace_selector: namespaces,
                ..spec
            },
            Self::Nodes(nodes) => Spec {
                subject: Subject::Node,
                node_selector: nodes,
                ..spec
            },
        }
    }
}

impl Draft {
    /// The policy as a document: without comments, and without rules that are comments.
    #[must_use]
    pub fn document(&self) -> EgressPolicy {
        let rules = |entries: &[Entry]| {
            let rules = entries.iter().filter_map(|entry| match entry {
                Entry::Rule(rule) => Some(rule.clone()),
                Entry::Comment(_) | Entry::Off(_) => None,
            });
            rules.collect()
        };
        EgressPolicy {
            api_version: API_VERSION.to_owned(),
            kind: self.target.kind().to_owned(),
            metadata: Metadata {
                name: self.name.clone(),
                namespace: self.target.namespace().cloned(),
                ..Metadata::default()
            },
            spec: self.target.select(Spec {
                mode: self.mode,
                allow: rules(&self.allow),
                deny: rules(&self.deny),
                ..Spec::default()
            }),
        }
    }
}

/// The policies as YAML documents.
#[must_use]
pub fn write_policies(drafts: &[Draft]) -> String {
    let mut text = String::new();
    for (number, draft) in drafts.iter().enumerate() {
        if number > 0 {
            text.push_str("---\n");
        }
        policy(&mut text, draft);
    }
    text
}

fn policy(text: &mut String, draft: &Draft) {
    for words in &draft.comments {
        comment(text, "", words);
    }
    let mode = match draft.mode {
        SpecMode::Enforce => "enforce",
        SpecMode::Audit => "audit",
    };
    line(text, "", &format!("apiVersion: {API_VERSION}"));
    line(text, "", &format!("kind: {}", draft.target.kind()));
    let name = scalar(&draft.name);
    let namespace = draft.target.namespace();
    let namespace = namespace.map(|namespace| format!(", namespace: {}", scalar(namespace)));
    let namespace = namespace.unwrap_or_default();
    line(
        text,
        "",
        &format!("metadata: {{ name: {name}{namespace} }}"),
    );
    line(text, "", "spec:");
    let spec = draft.target.select(Spec::default());
    if spec.subject == Subject::Node {
        line(text, "  ", "subject: node");
    }
    for (name, selector) in [
        ("namespaceSelector", &spec.namespace_selector),
        ("nodeSelector", &spec.node_selector),
        ("podSelector", &spec.pod_selector),
    ] {
        if let Some(selector) = selector {
            line(text, "  ", &format!("{name}: {}", selector_text(selector)));
        }
    }
    line(text, "  ", &format!("mode: {mode}"));
    list(text, "allow", &draft.allow);
    if !draft.deny.is_empty() {
        list(text, "deny", &draft.deny);
    }
}

/// A selector on one line.
fn selector_text(selector: &Selector) -> String {
    let braces = |parts: Vec<String>| match parts.as_slice() {
        [] => "{}".to_owned(),
        parts => format!("{{ {} }}", parts.join(", ")),
    };
    let mut parts = Vec::new();
    if !selector.match_labels.is_empty() {
        let labels = selector.match_labels.iter();
        let labels = labels.map(|(key, value)| format!("{}: {}", scalar(key), scalar(value)));
        parts.push(format!("matchLabels: {}", braces(labels.collect())));
    }
    if !selector.match_expressions.is_empty() {
        let expressions = selector.match_expressions.iter().map(|one| {
            let mut parts = vec![
                format!("key: {}", scalar(&one.key)),
                format!("operator: {:?}", one.operator),
            ];
            if !one.values.is_empty() {
                let values: Vec<String> = one.values.iter().map(|value| scalar(value)).collect();
                parts.push(format!("values: [{}]", values.join(", ")));
            }
            braces(parts)
        });
        let expressions: Vec<String> = expressions.collect();
        parts.push(format!("matchExpressions: [{}]", expressions.join(", ")));
    }
    braces(parts)
}

fn list(text: &mut String, name: &str, entries: &[Entry]) {
    let has_rules = entries.iter().any(|entry| matches!(entry, Entry::Rule(_)));
    let empty = if has_rules { "" } else { " []" };
    line(text, "  ", &format!("{name}:{empty}"));
    for entry in entries {
        match entry {
            Entry::Comment(words) => comment(text, "    ", words),
            Entry::Rule(content) => rule(text, "    ", content),
            Entry::Off(content) => rule(text, "    # ", content),
        }
    }
}

fn rule(text: &mut String, indent: &str, rule: &SpecRule) {
    let SpecRule {
        names,
        cidrs,
        service_tags,
        ports,
        require,
        preset,
        with,
    } = rule;
    let mut lead = "- ";
    if let Some(preset) = preset {
        line(text, indent, &format!("{lead}preset: {}", scalar(preset)));
        lead = "  ";
    }
    if !with.is_empty() {
        let values = with.iter();
        let values: Vec<String> = values
            .map(|(name, value)| format!("{}: {}", scalar(name), preset_value(value)))
            .collect();
        let values = values.join(", ");
        line(text, indent, &format!("{lead}with: {{ {values} }}"));
        lead = "  ";
    }
    let lists = [
        ("names", Some(names)),
        ("cidrs", Some(cidrs)),
        ("serviceTags", Some(service_tags)),
    ];
    for (name, texts) in lists.into_iter().chain([("ports", ports.as_ref())]) {
        let Some(texts) = texts.filter(|texts| !texts.is_empty() || name == "ports") else {
            continue;
        };
        texts_of(text, &format!("{indent}{lead}"), indent, name, texts);
        lead = "  ";
    }
    if *require == Require::Tls {
        line(text, indent, &format!("{lead}require: tls"));
    }
}

fn preset_value(value: &PresetValue) -> String {
    match value {
        PresetValue::Text(text) => scalar(text),
        PresetValue::List(texts) => {
            let scalars: Vec<String> = texts.iter().map(|text| scalar(text)).collect();
            format!("[{}]", scalars.join(", "))
        }
    }
}

/// A list of texts: on one line if it fits.
fn texts_of(text: &mut String, first: &str, indent: &str, name: &str, texts: &[String]) {
    let scalars: Vec<String> = texts.iter().map(|text| scalar(text)).collect();
    let all = format!("{name}: [{}]", scalars.join(", "));
    let columns = first.chars().count().saturating_add(all.chars().count());
    if columns <= COLUMNS {
        line(text, first, &all);
        return;
    }
    line(text, first, &format!("{name}:"));
    for scalar in scalars {
        line(text, indent, &format!("    - {scalar}"));
    }
}

fn line(text: &mut String, indent: &str, content: &str) {
    text.push_str(indent);
    text.push_str(content);
    text.push('\n');
}

/// Lines that YAML skips, whatever the words hold.
fn comment(text: &mut String, indent: &str, words: &str) {
    for words in words.lines() {
        let mut shown = String::with_capacity(words.len());
        for c in words.chars() {
            if is_plain(c) {
                shown.push(c);
            } else {
                shown.extend(c.escape_unicode());
            }
        }
        line(text, indent, format!("# {shown}").trim_end());
    }
}

/// A text as YAML that is read as this text by every version of YAML.
fn scalar(text: &str) -> String {
    if is_bare(text) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len().saturating_add(2));
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            _ if is_plain(c) => quoted.push(c),
            _ => {
                // Writing to a string does not fail.
                let _written = write!(quoted, "\\U{:08x}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}

/// True if a text means itself without quotes: no sign of YAML's, no number, no word that some version takes for one.
fn is_bare(text: &str) -> bool {
    const WORDS: &[&str] = &["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    let is_network = text.contains('/') && text.contains('.');
    text.chars().all(is_word)
        && (text.starts_with(|c: char| c.is_ascii_alphabetic())
            || is_network && text.starts_with(|c: char| c.is_ascii_digit()))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

/// True if YAML takes the character in comments and quotes, and as no line break.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::document::{Catalog, parse};

    fn rule(names: &[&str], cidrs: &[&str], ports: Option<&[&str]>) -> SpecRule {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        SpecRule {
            names: owned(names),
            cidrs: owned(cidrs),
            ports: ports.map(owned),
            ..SpecRule::default()
        }
    }

    fn read(text: &str) -> Vec<EgressPolicy> {
        let policies = parse(Path::new("written.yaml"), text, &Catalog::default());
        let policies = policies.unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        let documents = policies.into_iter().map(|policy| policy.document);
        documents.collect()
    }

    #[test]
    fn rules_are_written_with_what_is_said_about_them() {
        let draft = Draft {
            target: Target::Node,
            comments: vec!["From a list.\nTwo lines.".to_owned()],
            name: "web".to_owned(),
            mode: SpecMode::Audit,
            allow: vec![
                Entry::Comment("the shop".to_owned()),
                Entry::Rule(rule(
                    &["api.example.com", "*.example.net"],
                    &["10.0.0.0/8", "fd00::/8", "192.0.2.1"],
                    Some(&["443/tcp", "any"]),
                )),
                Entry::Comment("not yet".to_owned()),
                Entry::Off(rule(&["off.example.com"], &[], Some(&["80/tcp"]))),
            ],
            deny: vec![Entry::Off(rule(&[], &["198.51.100.0/24"], None))],
        };
        let text = write_policies(std::slice::from_ref(&draft));
        assert_eq!(
            text,
            r#"# From a list.
# Two lines.
apiVersion: egress.dev/v1alpha1
kind: EgressPolicy
metadata: { name: web }
spec:
  mode: audit
  allow:
    # the shop
    - names: [api.example.com, "*.example.net"]
      cidrs: [10.0.0.0/8, "fd00::/8", "192.0.2.1"]
      ports: ["443/tcp", any]
    # not yet
    # - names: [off.example.com]
    #   ports: ["80/tcp"]
  deny: []
    # - cidrs: [198.51.100.0/24]
"#
        );
        assert_eq!(read(&text), [draft.document()]);
    }

    #[test]
    fn a_long_list_has_a_line_for_each_text() {
        let names: Vec<String> = (0..9).map(|n| format!("*.name-{n}.example.com")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut draft = Draft {
            name: "p".to_owned(),
            allow: vec![Entry::Rule(rule(&names, &[], Some(&["443/tcp"])))],
            ..Draft::default()
        };
        let text = write_policies(std::slice::from_ref(&draft));
        let expected = "    - names:\n        - \"*.name-0.example.com\"\n";
        assert!(text.contains(expected), "{text}");
        assert!(text.ends_with("      ports: [\"443/tcp\"]\n"), "{text}");
        assert_eq!(read(&text), [draft.document()]);

        // Without its mark, a rule that is off is in force.
        draft.allow = vec![Entry::Off(rule(&names, &[], Some(&["443/tcp"])))];
        let off = write_policies(std::slice::from_ref(&draft));
        let on = off.replace("# ", "").replace("allow: []", "allow:");
        assert_eq!(on, text);
    }

    #[test]
    fn service_tags_and_presets_are_written_too() {
        let tags = SpecRule {
            service_tags: vec!["Storage.westeurope".to_owned()],
            ..rule(&["a.example.com"], &[], Some(&["443/tcp"]))
        };
        let preset = SpecRule {
            preset: Some("aks/azure-global".to_owned()),
            with: [("location", &["eastus"][..]), ("api", &["*.a", "b"])]
                .map(|(name, values)| {
                    let values: Vec<String> = values.iter().map(|value| (*value).into()).collect();
                    (name.to_owned(), values.into())
                })
                .into(),
            ..SpecRule::default()
        };
        let draft = Draft {
            name: "p".to_owned(),
            allow: vec![Entry::Rule(tags), Entry::Off(preset)],
            ..Draft::default()
        };
        let text = write_policies(&[draft]);
        let expected = r#"  allow:
    - names: [a.example.com]
      serviceTags: [Storage.westeurope]
      ports: ["443/tcp"]
    # - preset: aks/azure-global
    #   with: { api: ["*.a", b], location: eastus }
"#;
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn several_policies_are_several_documents() {
        let draft = |name: &str| Draft {
            name: name.to_owned(),
            ..Draft::default()
        };
        let text = write_policies(&[draft("a"), draft("null")]);
        let names: Vec<_> = read(&text).into_iter().map(|p| p.metadata.name).collect();
        assert_eq!(names, ["a", "null"]);
    }

    #[test]
    fn what_yaml_could_misread_is_quoted() {
        for (text, written) in [
            ("api.example.com", "api.example.com"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("443/tcp", "\"443/tcp\""),
            ("1.5", "\"1.5\""),
            ("1e3", "\"1e3\""),
            ("No", "\"No\""),
            ("", "\"\""),
            ("-", "\"-\""),
            ("*.a", "\"*.a\""),
            ("a: b", "\"a: b\""),
            ("a\"\\", "\"a\\\"\\\\\""),
            ("a\n", "\"a\\U0000000a\""),
        ] {
            assert_eq!(scalar(text), written, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn whatever_is_said_does_no_harm(words in vec(any::<String>(), 0..4), odd in vec("[\\PC\u{0}-\u{ff}\u{2028}\u{feff}]*", 0..4)) {
            let said = words.iter().chain(&odd);
            let draft = Draft {
            target: Target::Node,
                comments: said.clone().cloned().collect(),
                name: "p".to_owned(),
                allow: said
                    .map(|words| Entry::Comment(words.clone()))
                    .chain([Entry::Rule(rule(&["a.example"], &[], None))])
                    .collect(),
                ..Draft::default()
            };
            prop_assert_eq!(read(&write_policies(std::slice::from_ref(&draft))), [draft.document()]);
        }

        #[test]
        fn every_text_is_read_as_it_was(texts in vec(any::<String>(), 1..4)) {
            let scalars: Vec<String> = texts.iter().map(|text| scalar(text)).collect();
            let (documents, wrong) = crate::read::yaml::documents(&format!("[{}]", scalars.join(", ")));
            prop_assert!(wrong.is_none());
            let crate::read::yaml::Value::List(items) = &documents[0].value else {
                panic!("no list");
            };
            for (item, text) in items.iter().zip(&texts) {
                prop_assert!(matches!(&item.value, crate::read::yaml::Value::Text(read) if read == text));
            }
        }
    }
}
