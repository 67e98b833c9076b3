//! A preset's rules as a policy that people can read and go on with.

use super::{Draft, Entry};
use crate::{
    document::SpecRule,
    preset::{ExpandedRule, Expansion, Preset},
};

/// Columns of a comment.
const COLUMNS: usize = 96;

impl Preset {
    /// The rules as a policy, with what is said about them as comments.
    #[must_use]
    pub fn draft(&self, expansion: &Expansion) -> Draft {
        let mut comments = vec![wrapped(&format!(
            "Preset {}: {}.",
            self.name, self.description
        ))];
        comments.extend(
            self.sources
                .iter()
                .map(|source| wrapped(&format!("From: {}", source.text()))),
        );
        for (index, (name, texts)) in expansion.values.iter().enumerate() {
            let lead = if index == 0 { "\nwith:\n" } else { "" };
            let value = match self.variable(name) {
                Some(variable) if variable.kind.is_list() => format!("[{}]", texts.join(", ")),
                _ => texts.join(", "),
            };
            comments.push(format!("{lead}  {name}: {value}"));
        }
        let entries = expansion.rules.iter().flat_map(|rule| {
            let comment = wrapped(&self.comment(rule));
            [Entry::Comment(comment), Entry::Rule(rule.into())]
        });
        Draft {
            comments,
            name: self.name.replace('/', "-"),
            allow: entries.collect(),
            ..Draft::default()
        }
    }

    fn comment(&self, rule: &ExpandedRule) -> String {
        let from = if rule.preset == self.name {
            String::new()
        } else {
            format!("{}: ", rule.preset)
        };
        let note = rule.note.as_ref().map(|note| format!(". Note: {note}"));
        format!("{from}{}{}", rule.description, note.unwrap_or_default())
    }
}

impl From<&ExpandedRule> for SpecRule {
    fn from(rule: &ExpandedRule) -> Self {
        Self {
            names: rule.names.clone(),
            cidrs: rule.cidrs.clone(),
            service_tags: rule.service_tags.clone(),
            ports: (!rule.ports.is_empty()).then(|| rule.ports.clone()),
            ..Self::default()
        }
    }
}

/// The text in lines of at most [`COLUMNS`].
fn wrapped(text: &str) -> String {
    let mut lines = String::with_capacity(text.len());
    let mut columns = 0_usize;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if columns > 0 && columns.saturating_add(length) >= COLUMNS {
            lines.push('\n');
            columns = 0;
        } else if columns > 0 {
            lines.push(' ');
            columns = columns.saturating_add(1);
        }
        lines.push_str(word);
        columns = columns.saturating_add(length);
    }
    lines
}
