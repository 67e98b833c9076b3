//! The results of an import: policies, notes and errors.

use std::{collections::HashSet, fmt, path::PathBuf};

use serde::Serialize;

use super::input::Item;
use crate::{
    read::{Place, Problem, ReadError, Report},
    vocabulary::lifeline,
    write::{Draft, Target},
};

/// Longest policy name, with room for a number.
const NAME_BYTES: usize = 240;

/// The kind of a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// Something means something else here.
    Differs,
    /// Something has no counterpart here.
    LeftOut,
}

/// Something that could not be carried over exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// File of the source.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: Option<usize>,
    /// Field of the source.
    pub field: String,
    /// True if it is here in another form or not at all.
    pub kind: NoteKind,
    /// The difference, in words.
    pub text: String,
}

impl Note {
    /// A note about a value.
    pub(super) fn new(at: &Item<'_>, kind: NoteKind, text: impl Into<String>) -> Self {
        let Place { file, line, field } = at.place();
        Self {
            file,
            line,
            field,
            kind,
            text: text.into(),
        }
    }

    /// The note as a comment at the rule.
    pub(super) fn comment(&self) -> String {
        let kind = match self.kind {
            NoteKind::Differs => "Differs",
            NoteKind::LeftOut => "Left out",
        };
        format!("{kind}: {}", self.text)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            NoteKind::Differs => "differs",
            NoteKind::LeftOut => "left out",
        };
        let place = Place {
            file: self.file.clone(),
            line: self.line,
            field: self.field.clone(),
        };
        write!(f, "{place}: {kind}: {}", self.text)
    }
}

/// Collects what comes out.
#[derive(Default)]
pub(super) struct Sink {
    /// The errors of the source.
    pub(super) report: Report,
    /// The difference, in words.
    pub(super) notes: Vec<Note>,
    /// The policies.
    pub(super) drafts: Vec<Draft>,
    names: HashSet<(Option<String>, String)>,
}

impl Sink {
    /// Reports what is wrong with a value.
    pub(super) fn wrong(&mut self, at: &Item<'_>, problem: impl Into<Problem>) {
        self.report.add(at.place(), problem);
    }

    /// Reports a value of another shape.
    pub(super) fn shape(&mut self, at: &Item<'_>, wanted: &'static str, example: &'static str) {
        let found = at.value().kind();
        self.wrong(
            at,
            ReadError::Shape {
                found,
                wanted,
                example,
            },
        );
    }

    /// Reports a text that is none of those that exist.
    pub(super) fn choice(&mut self, at: &Item<'_>, known: &'static str) {
        let found = super::input::named(&at.shown());
        self.wrong(at, ReadError::Choice { found, known });
    }

    /// The items of a field that is a list; none if it is not there.
    pub(super) fn list<'n>(&mut self, of: &Item<'n>, name: &str) -> Vec<Item<'n>> {
        let Some(list) = of.get(name) else {
            return Vec::new();
        };
        if !matches!(list.value(), crate::read::Value::List(_)) {
            self.shape(&list, "a list", "it in brackets: [ ... ]");
            return Vec::new();
        }
        list.items().collect()
    }

    /// The items of a field that is a list of mappings.
    pub(super) fn maps<'n>(&mut self, of: &Item<'n>, name: &str) -> Vec<Item<'n>> {
        let items = self.list(of, name);
        let (maps, others): (Vec<_>, Vec<_>) = items.into_iter().partition(Item::is_map);
        for other in others {
            self.shape(&other, "a mapping", "{ field: value }");
        }
        maps
    }

    /// The items of a field that is a list of texts.
    pub(super) fn texts<'n>(&mut self, of: &Item<'n>, name: &str) -> Vec<(Item<'n>, &'n str)> {
        let mut texts = Vec::new();
        for item in self.list(of, name) {
            match item.text() {
                Some(text) => texts.push((item, text)),
                None => self.shape(&item, "text", "one text"),
            }
        }
        texts
    }

    /// Notes something that belongs to a policy as a whole.
    pub(super) fn note(&mut self, draft: &mut Draft, note: Note) {
        draft.comments.push(note.comment());
        self.notes.push(note);
    }

    /// A policy with a name that is taken by none so far and that is like the source's.
    pub(super) fn draft(&mut self, wanted: &str) -> Draft {
        self.draft_for(wanted, Target::Node)
    }

    /// The same for whom it is; names of namespaces are their own.
    pub(super) fn draft_for(&mut self, wanted: &str, target: Target) -> Draft {
        let base = policy_name(wanted);
        let namespace = match &target {
            Target::Pods { namespace, .. } => namespace.clone(),
            Target::Node | Target::AllPods { .. } | Target::Nodes(_) => None,
        };
        let taken = |name: &String| self.names.contains(&(namespace.clone(), name.clone()));
        let numbered = (2_usize..).map(|number| format!("{base}-{number}"));
        let mut names = std::iter::once(base.clone()).chain(numbered);
        // There are more numbers than policies.
        let name = names.find(|name| !taken(name)).unwrap_or(base);
        self.names.insert((namespace, name.clone()));
        Draft {
            name,
            target,
            ..Draft::default()
        }
    }
}

/// The text as a policy name.
fn policy_name(text: &str) -> String {
    let lower = text.chars().flat_map(char::to_lowercase);
    let name: String = lower
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') {
                c
            } else {
                '-'
            }
        })
        .take(NAME_BYTES)
        .collect();
    let name = name.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() {
        return "imported".to_owned();
    }
    if name == lifeline::POLICY {
        return format!("{name}-imported");
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_get_names_that_are_taken_by_none() {
        let mut sink = Sink::default();
        let mut name = |wanted: &str| sink.draft(wanted).name;
        assert_eq!(name("Fw_Policy 1"), "fw-policy-1");
        assert_eq!(name("fw-policy-1"), "fw-policy-1-2");
        assert_eq!(name("-"), "imported");
        assert_eq!(name("lifeline"), "lifeline-imported");
        assert_eq!(name(&"a".repeat(300)).len(), NAME_BYTES);
    }
}
