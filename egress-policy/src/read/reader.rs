//! Reads marked trees field by field. Goes on after an error, so that one run finds them all.

use std::{collections::BTreeMap, fmt, path::Path};

use super::{
    error::ReadError,
    report::{Place, PolicyErrors, Problem, Report},
    yaml::{self, Node, Value},
};
use crate::vocabulary::{quoted, shown};

/// A field path, built on the stack and printed only in messages.
#[derive(Clone, Copy)]
pub enum FieldPath<'a> {
    /// The document.
    Root,
    /// A field of a mapping.
    Field(&'a FieldPath<'a>, &'a str),
    /// An item of a list.
    Item(&'a FieldPath<'a>, usize),
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            // A key may hold anything, and a message has one line.
            Self::Field(Self::Root, name) => f.write_str(&shown(name)),
            Self::Field(parent, name) => write!(f, "{parent}.{}", shown(name)),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A checked value, as it was written, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// The text that the user wrote.
    pub text: String,
    /// Line in the file, from 1.
    pub line: usize,
}

/// Reads a text that holds one document. `file` is what messages call it, `if_empty` what is wrong without a document.
///
/// # Errors
/// Everything that is wrong with it.
pub fn one_document<T: Default>(
    file: &Path,
    text: &str,
    if_empty: Option<Problem>,
    read: impl FnOnce(&mut T, &Node, &mut Reader<'_>),
) -> Result<T, PolicyErrors> {
    let mut report = Report::default();
    let mut value = T::default();
    let (documents, wrong) = yaml::documents(text);
    let mut documents = documents
        .iter()
        .filter(|document| !matches!(document.value, Value::Null));
    match (documents.next(), if_empty) {
        (Some(document), _) => read(&mut value, document, &mut Reader::new(file, &mut report)),
        (None, Some(problem)) if wrong.is_none() => report.add(Place::file(file), problem),
        (None, _) => {}
    }
    if let Some(second) = documents.next() {
        report.add(
            Place::field(file, second.line, ""),
            ReadError::SecondDocument,
        );
    }
    if let Some((line, problem)) = wrong {
        report.add(Place::field(file, line, ""), problem);
    }
    report.sort_by_line();
    report.finish(value)
}

/// Reads the trees of one file.
pub struct Reader<'a> {
    file: &'a Path,
    report: &'a mut Report,
    is_good: bool,
}

/// The fields of a mapping that are there and not empty.
pub type Fields<'n> = BTreeMap<&'static str, &'n Node>;

impl<'a> Reader<'a> {
    /// A reader of a file; what is wrong goes to `report`.
    pub(crate) fn new(file: &'a Path, report: &'a mut Report) -> Self {
        Self {
            file,
            report,
            is_good: true,
        }
    }

    /// The file, as messages call it.
    pub const fn file(&self) -> &'a Path {
        self.file
    }

    /// True if nothing was reported so far.
    pub(crate) const fn is_good(&self) -> bool {
        self.is_good
    }

    /// Reports what is wrong at a place.
    pub(crate) fn wrong(&mut self, line: usize, path: FieldPath<'_>, problem: impl Into<Problem>) {
        self.is_good = false;
        let place = Place::field(self.file, line, path.to_string());
        self.report.add(place, problem);
    }

    /// A mapping of texts.
    pub(crate) fn texts_by_key(
        &mut self,
        node: &Node,
        path: FieldPath<'_>,
        example: &'static str,
    ) -> BTreeMap<String, String> {
        let (mut texts, mut lines) = (BTreeMap::new(), BTreeMap::new());
        let Value::Map(pairs) = &node.value else {
            self.shape(node, path, "a mapping", example);
            return texts;
        };
        for (key, value) in pairs {
            let line = key.line;
            let Some(key) = self.key(key, path) else {
                continue;
            };
            let path = FieldPath::Field(&path, key);
            if let Some(value) = self.text(value, path, "some text") {
                texts.insert(key.to_owned(), value.to_owned());
            }
            self.once(&mut lines, key, line, path);
        }
        texts
    }

    /// The items of a list of texts; an empty value is an empty list.
    pub(crate) fn items<T, E: Into<Problem>>(
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
    pub fn fields<'n>(
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
    pub(crate) fn present<'n>(
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
        let (mut fields, mut lines) = (Fields::new(), BTreeMap::new());
        for (key, value) in pairs {
            let line = key.line;
            let Some(name) = self.key(key, path) else {
                continue;
            };
            if name == "<<" {
                self.wrong(line, path, ReadError::MergeKey);
                continue;
            }
            let path = FieldPath::Field(&path, name);
            let Some(field) = known.iter().find(|field| **field == name) else {
                let problem = ReadError::UnknownField {
                    name: quoted(name),
                    nearest: nearest(name, known),
                    known: known.join(", "),
                };
                self.wrong(line, path, problem);
                continue;
            };
            fields.insert(*field, value);
            self.once(&mut lines, field, line, path);
        }
        Some(fields)
    }

    /// Reports a key that was there before; `lines` has those before it.
    fn once<'n>(
        &mut self,
        lines: &mut BTreeMap<&'n str, usize>,
        key: &'n str,
        line: usize,
        path: FieldPath<'_>,
    ) {
        match lines.get(key) {
            Some(first) => self.wrong(line, path, ReadError::DuplicateField { first: *first }),
            None => {
                lines.insert(key, line);
            }
        }
    }

    /// The text of a key.
    pub(crate) fn key<'n>(&mut self, key: &'n Node, path: FieldPath<'_>) -> Option<&'n str> {
        if let Value::Text(name) = &key.value {
            return Some(name);
        }
        self.wrong(key.line, path, ReadError::BadKey(key.value.kind()));
        None
    }

    /// The text of a value.
    pub fn text<'n>(
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

    /// The value that one of the known texts stands for.
    pub(crate) fn choice<T: Copy + Default>(
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
        self.wrong(node.line, path, ReadError::Choice { found, known });
        T::default()
    }

    /// Checks that a value is this text.
    pub(crate) fn constant(&mut self, node: &Node, path: FieldPath<'_>, wanted: &'static str) {
        if let Some(text) = self.text(node, path, wanted)
            && text != wanted
        {
            let found = quoted(text);
            self.wrong(
                node.line,
                path,
                ReadError::Choice {
                    found,
                    known: wanted,
                },
            );
        }
    }

    /// Reports a field that has to be there.
    pub(crate) fn missing(&mut self, parent: &Node, path: FieldPath<'_>, example: &'static str) {
        self.wrong(parent.line, path, ReadError::Missing(example));
    }

    /// Reports a value of another shape.
    pub(crate) fn shape(
        &mut self,
        node: &Node,
        path: FieldPath<'_>,
        wanted: &'static str,
        example: &'static str,
    ) {
        let found = node.value.kind();
        let problem = ReadError::Shape {
            found,
            wanted,
            example,
        };
        self.wrong(node.line, path, problem);
    }
}

/// True if a value is this text.
pub(crate) fn has_text(node: &Node, wanted: &str) -> bool {
    matches!(&node.value, Value::Text(text) if text == wanted)
}

/// The known text that is most like `name`, if one is.
pub(crate) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    const ALIKE: f64 = 0.7;
    const LONGEST: usize = 64;
    if name.len() > LONGEST {
        return None;
    }
    let name = name.to_lowercase();
    let likeness = |field: &str| strsim::jaro_winkler(&name, &field.to_lowercase());
    known
        .iter()
        .map(|field| (likeness(field), *field))
        .filter(|(likeness, _)| *likeness > ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, field)| field)
}
