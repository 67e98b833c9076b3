//! A preset, as its file says it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};

use super::value::Kind;

/// Rules under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preset {
    /// Its name, such as `aks/azure-global`.
    pub name: String,
    /// Where its file is.
    pub origin: Origin,
    /// Its purpose.
    pub description: String,
    /// The documents that it is made from.
    pub sources: Vec<Source>,
    /// Its variables, in the order of the file: conditions and defaults refer to earlier ones only.
    pub variables: Vec<Variable>,
    /// Its own rules.
    pub entries: Vec<Entry>,
    /// Presets whose rules are its own too.
    pub includes: Vec<Include>,
}

impl Preset {
    /// The variable of this name.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&Variable> {
        self.variables.iter().find(|variable| variable.name == name)
    }

    /// Names of the variables that need a value whenever they apply.
    pub fn required(&self) -> impl Iterator<Item = &Variable> {
        let mut variables = self.variables.iter();
        std::iter::from_fn(move || variables.find(|variable| variable.default.is_none()))
    }
}

/// Where a preset's file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the binary.
    BuiltIn,
    /// In a folder that was given.
    File(PathBuf),
}

impl Origin {
    /// The name in messages.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::BuiltIn => PathBuf::from(format!("preset {name}")),
            Self::File(path) => path.clone(),
        }
    }

    /// The file, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::BuiltIn => None,
            Self::File(path) => Some(path),
        }
    }
}

/// A document that a preset is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Its title.
    pub document: String,
    /// The headings of its tables; none where it says things in prose.
    pub tables: Vec<String>,
}

impl Source {
    /// The document and its tables in one line.
    #[must_use]
    pub fn text(&self) -> String {
        if self.tables.is_empty() {
            format!("{} (prose)", self.document)
        } else {
            format!("{}: {}", self.document, self.tables.join("; "))
        }
    }
}

/// A variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(flatten)]
    pub kind: Kind,
    /// Its value when none is given, as texts with placeholders; without one it is required.
    pub default: Option<Vec<String>>,
    /// When it applies.
    #[serde(skip_serializing_if = "Condition::is_always")]
    pub when: Condition,
    /// Its purpose, and what breaks without it.
    pub description: String,
    /// Line in the file.
    #[serde(skip)]
    pub line: usize,
}

impl Variable {
    /// Its type, and the choices of a choice.
    #[must_use]
    pub fn type_text(&self) -> String {
        if let Kind::Choice(choices) = &self.kind {
            choices.join(" or ")
        } else {
            self.kind.name().to_owned()
        }
    }

    /// Its default for people; `required` if there is none.
    #[must_use]
    pub fn default_text(&self) -> String {
        match &self.default {
            None => "required".to_owned(),
            Some(texts) if texts.is_empty() => "none".to_owned(),
            Some(texts) => texts.join(", "),
        }
    }
}

/// A condition: each of these variables has one of these values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition(pub Vec<(String, Vec<String>)>);

impl Condition {
    /// True if it asks for nothing.
    #[must_use]
    pub const fn is_always(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Condition {
    /// `cloud is azure-global, marketplace is true`; empty if it asks for nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, wanted)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{name} is {}", wanted.join(" or "))?;
        }
        Ok(())
    }
}

impl Serialize for Condition {
    /// A mapping from variables to lists of values.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, values)| (name, values)))
    }
}

/// A rule of a preset, with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its purpose.
    pub description: String,
    /// How it differs from the document.
    pub note: Option<String>,
    /// Names and patterns.
    pub names: Vec<String>,
    /// Networks.
    pub cidrs: Vec<String>,
    /// Service tags.
    pub service_tags: Vec<String>,
    /// Ports; empty means any.
    pub ports: Vec<String>,
    /// When it applies.
    pub when: Condition,
    /// Line in the file.
    pub line: usize,
}

/// Another preset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Include {
    /// Its purpose.
    pub description: String,
    /// Its name.
    pub preset: String,
    /// Values of its variables, as texts with placeholders.
    pub with: Vec<(String, Vec<String>)>,
    /// When it applies.
    pub when: Condition,
    /// Line in the file.
    pub line: usize,
}
