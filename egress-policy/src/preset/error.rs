//! Errors of presets, their files and the values of their variables.

use thiserror::Error;

/// An error of a preset. Every text ends with the correction.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PresetError {
    /// A preset that does not exist.
    #[error(
        "{name} is not a preset; {}`egress-agent preset list` shows all",
        write(nearest)
    )]
    Unknown {
        /// The name, quoted.
        name: String,
        /// The known one that is most like it, if one is.
        nearest: Option<String>,
    },
    /// A value for a variable that does not exist.
    #[error("preset {preset} has no variable {name}; {}{known}", write(nearest))]
    UnknownVariable {
        /// The preset.
        preset: String,
        /// The name, quoted.
        name: String,
        /// The known one that is most like it, if one is.
        nearest: Option<String>,
        /// All known ones, as half a sentence.
        known: String,
    },
    /// A variable without a value.
    #[error("preset {preset} needs {name}: {description}; write {example}")]
    MissingVariable {
        /// The preset.
        preset: String,
        /// The variable.
        name: String,
        /// Its description.
        description: String,
        /// How to write it.
        example: String,
    },
    /// A value that has no effect.
    #[error("has no effect while {because}; leave it out, or write {instead}")]
    NoEffect {
        /// The variable and value that are in the way.
        because: String,
        /// The value that would make it count.
        instead: String,
    },
    /// A value of another type.
    #[error("{text} is not {wanted}; write {hint}")]
    BadValue {
        /// The value, quoted.
        text: String,
        /// The type.
        wanted: &'static str,
        /// The correction.
        hint: String,
    },
    /// A list where one value is needed.
    #[error("has {count} values where one is needed; write {example}")]
    OneValue {
        /// How many there are.
        count: usize,
        /// An example.
        example: String,
    },
    /// No value where at least one is needed.
    #[error("is empty; write at least one, such as {0}")]
    NoValue(String),
    /// A value that is given twice.
    #[error("is given twice; keep one of them")]
    Twice,
    /// A service tag of a preset cannot be used.
    #[error("preset {preset}: {problem}{}", other_way.as_ref().map(|way| format!("; or choose another way with {way}")).unwrap_or_default())]
    ServiceTag {
        /// The preset.
        preset: String,
        /// The error of the tag, with its correction.
        problem: String,
        /// The variables that lead to another entry.
        other_way: Option<String>,
    },
    /// More destinations than any preset has.
    #[error(
        "preset {preset} expands to more than {most} destinations; split it, or shorten its lists"
    )]
    TooMany {
        /// The preset.
        preset: String,
        /// How many may be.
        most: usize,
    },
    /// Presets that include each other.
    #[error("includes itself: {0}; take one of these includes out")]
    Loop(String),
    /// A file name that is no preset's name.
    #[error(
        "{0} is not a preset name; name folders and files with lower-case letters, digits and -, as in aks/azure-global.yaml"
    )]
    FileName(String),
    /// Two files of one folder are one preset.
    #[error("is preset {name} as well as {other}; keep one of them")]
    SameName {
        /// The preset.
        name: String,
        /// The other file.
        other: String,
    },
    /// A folder without presets.
    #[error("holds no preset; put one there, such as aks/azure-global.yaml")]
    EmptyFolder,
    /// A folder with too much in it.
    #[error("holds more than {0} files or folders; give the folder of the presets alone")]
    LargeFolder(usize),
    /// A file with several documents.
    #[error("holds {0} documents; a preset is one: make a file of each")]
    Documents(usize),
    /// A variable's name.
    #[error(
        "{0} is not a variable's name; write letters and digits, starting with a lower-case letter"
    )]
    VariableName(String),
    /// A placeholder for nothing.
    #[error("{text} names {variable}, which is no variable {place}; {known}")]
    Placeholder {
        /// The text, quoted.
        text: String,
        /// The variable, quoted.
        variable: String,
        /// Where it should have been defined.
        place: &'static str,
        /// The correction.
        known: String,
    },
    /// A list variable within a text, or of another type than the list.
    #[error("{text} uses {variable}, which is {kind}; write {right}")]
    Misplaced {
        /// The text, quoted.
        text: String,
        /// The variable.
        variable: String,
        /// Its type.
        kind: String,
        /// The correction.
        right: &'static str,
    },
    /// `<` or `>` without the other.
    #[error("{0} has < or > without the other; write <variable>")]
    Brackets(String),
    /// A condition on a variable that has no fixed values.
    #[error("{name} is {kind}, which a condition cannot test; take a bool or a choice")]
    Untestable {
        /// The variable.
        name: String,
        /// Its type.
        kind: &'static str,
    },
    /// Something in a list that should have something.
    #[error("does nothing; write rules or an include")]
    Nothing,
}

/// The beginning of what to write.
fn write(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|name| format!("write {name}: "))
        .unwrap_or_default()
}
