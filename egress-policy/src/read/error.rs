//! Errors of files, and of the form of their text.

use thiserror::Error;

/// The reason why a file or a field cannot be read. Every text ends with the correction.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file or folder cannot be read.
    #[error("cannot be read: {0}; check the path and its permissions")]
    Unreadable(String),
    /// The files are larger than may be read.
    #[error("goes beyond the {} MiB that may be read; leave out what is not needed", .0 >> 20)]
    TooLarge(u64),
    /// More values than any policy needs.
    #[error("holds more than {0} values, which no policy needs; leave out what is not needed")]
    TooManyValues(usize),
    /// A list or mapping in brackets, or comments, that are too long.
    #[error(
        "holds more than {0} brackets, commas, quotes and comments before a value is complete; write long lists and mappings without brackets, with - before each item"
    )]
    FlowTooLong(usize),
    /// The bytes are not text.
    #[error("is not UTF-8 text; save the file as UTF-8")]
    NotText,
    /// The bytes are text in another encoding.
    #[error("is UTF-16 text; save the file as UTF-8")]
    Utf16,
    /// A control character.
    #[error(
        "holds the byte {0:#04x}, which text does not have; save the file as UTF-8, without control characters"
    )]
    Control(u8),
    /// A YAML tag.
    #[error("has the tag {0}, but tags mean nothing here; write the value itself")]
    Tag(String),
    /// A file that may hold one document holds more.
    #[error("is a second document; write everything in one")]
    SecondDocument,
    /// The same file is given twice.
    #[error("is the same file as {0}; give it once")]
    SameFile(String),
    /// The text is not YAML, because of a name that is read as an alias.
    #[error(
        "is not valid YAML: a word that starts with * is an alias of nothing; write names that start with * in quotes: \"*.example.com\""
    )]
    YamlStar,
    /// The text is not YAML.
    #[error(
        "is not valid YAML: {0}; check indentation, colons and quotes here and in the line above"
    )]
    Yaml(String),
    /// Nested deeper than any policy is.
    #[error("is nested more than {0} levels deep; a policy has at most 6")]
    TooDeep(usize),
    /// An alias repeats too much, or itself.
    #[error(
        "anchors and aliases repeat more than {0} values, or an alias itself; write the values out"
    )]
    AliasBomb(usize),
    /// A key is not a plain word.
    #[error("a key is {0}; write a field name")]
    BadKey(&'static str),
    /// A YAML 1.1 merge key.
    #[error(
        "merge keys mean nothing here; write the fields out, or repeat a whole value with an alias"
    )]
    MergeKey,
    /// The field stands there twice.
    #[error("stands here a second time, first in line {first}; keep one of them")]
    DuplicateField {
        /// Line of the first.
        first: usize,
    },
    /// The field is not in the schema.
    #[error("unknown field {name}; {}the fields here are {known}", nearest.map(|field| format!("write {field}: ")).unwrap_or_default())]
    UnknownField {
        /// The field, quoted.
        name: String,
        /// The known one that is most like it, if one is.
        nearest: Option<&'static str>,
        /// All known ones.
        known: String,
    },
    /// A field that must be there is not.
    #[error("is missing; write {0}")]
    Missing(&'static str),
    /// The value has another shape.
    #[error("is {found} where {wanted} is needed; write {example}")]
    Shape {
        /// The kind of the value.
        found: &'static str,
        /// The kind that is needed.
        wanted: &'static str,
        /// An example.
        example: &'static str,
    },
    /// The value is not one of those that exist.
    #[error("{found} is not known here; write {known}")]
    Choice {
        /// The value, quoted.
        found: String,
        /// All possible ones.
        known: &'static str,
    },
}
