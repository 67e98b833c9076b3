//! Errors of policies: each has a place, and its text ends with the correction.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error as ThisError;

/// Most messages that are printed of one set of errors.
const SHOWN: usize = 50;

/// Most errors that are kept; the others are counted.
const KEPT: usize = 1_000;

/// A place in a policy file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was given.
    pub file: PathBuf,
    /// Line, from 1; `None` for the file as a whole.
    pub line: Option<usize>,
    /// Field path such as `spec.allow[1].ports[0]`; empty for the document as a whole.
    pub field: String,
}

impl Place {
    /// The file as a whole.
    #[must_use]
    pub fn file(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            field: String::new(),
        }
    }

    /// A field on a line.
    #[must_use]
    pub fn field(file: &Path, line: usize, field: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: Some(line),
            field: field.into(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("{place}: {problem}")]
pub struct PolicyError {
    /// Where.
    pub place: Place,
    /// The error, with its correction.
    pub problem: Problem,
}

/// The error at a place, of the folder that found it, such as a [`ReadError`](super::ReadError). Its text ends
/// with what would be right.
///
/// Errors of all folders meet in one list. Each stays of its own type, so that no folder has to know those of the others.
#[derive(Clone)]
pub struct Problem(Arc<dyn Error + Send + Sync>);

impl Problem {
    /// The error, if it is of this type.
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Problem {
    fn from(error: E) -> Self {
        Self(Arc::new(error))
    }
}

impl PartialEq for Problem {
    /// Two are equal if they say the same.
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Problem {}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl PolicyError {
    /// The field and its error, without file and line: an object has none.
    #[must_use]
    pub fn by_field(&self) -> String {
        match self.place.field.as_str() {
            "" => self.problem.to_string(),
            field => format!("{field}: {}", self.problem),
        }
    }
}

/// The errors of a set of policies, in the order of files and lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub struct PolicyErrors {
    errors: Vec<PolicyError>,
    more: usize,
}

impl PolicyErrors {
    /// One error.
    #[must_use]
    pub fn one(place: Place, problem: impl Into<Problem>) -> Self {
        let problem = problem.into();
        Self {
            errors: vec![PolicyError { place, problem }],
            more: 0,
        }
    }

    /// The errors, the first thousand of them.
    #[must_use]
    pub fn errors(&self) -> &[PolicyError] {
        &self.errors
    }

    /// How many there are besides.
    #[must_use]
    pub const fn more(&self) -> usize {
        self.more
    }
}

impl fmt::Display for PolicyErrors {
    /// One line for each error, without a final line break.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.errors.iter().take(SHOWN).enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        let hidden = self.errors.len().saturating_sub(SHOWN);
        let hidden = hidden.saturating_add(self.more);
        if hidden > 0 {
            write!(f, "\n... and {hidden} more errors; correct these first")?;
        }
        Ok(())
    }
}

/// Collects errors while work goes on.
#[derive(Debug, Default)]
pub(crate) struct Report {
    errors: Vec<PolicyError>,
    more: usize,
}

impl Report {
    /// Adds an error.
    pub(crate) fn add(&mut self, place: Place, problem: impl Into<Problem>) {
        if self.is_full() {
            self.count();
            return;
        }
        let problem = problem.into();
        self.errors.push(PolicyError { place, problem });
    }

    /// True if errors are only counted from now on.
    pub(crate) const fn is_full(&self) -> bool {
        self.errors.len() >= KEPT
    }

    /// Adds an error that nobody will read.
    pub(crate) const fn count(&mut self) {
        self.more = self.more.saturating_add(1);
    }

    /// True if nothing was added.
    pub(crate) const fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// Adds all errors of another set.
    pub(crate) fn extend(&mut self, errors: PolicyErrors) {
        self.more = self.more.saturating_add(errors.more);
        for PolicyError { place, problem } in errors.errors {
            self.add(place, problem);
        }
    }

    /// Puts the errors of one file in the order of lines; those of one line stay as they are.
    pub(crate) fn sort_by_line(&mut self) {
        self.errors.sort_by_key(|error| error.place.line);
    }

    /// Puts errors that came in no order in the order of files, lines and fields.
    pub(crate) fn sort(&mut self) {
        self.errors.sort_by(|a, b| a.place.cmp(&b.place));
    }

    /// `value`, or the errors if there are any.
    ///
    /// # Errors
    /// If something was added.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, PolicyErrors> {
        let Self { errors, more } = self;
        if errors.is_empty() {
            Ok(value)
        } else {
            Err(PolicyErrors { errors, more })
        }
    }
}
