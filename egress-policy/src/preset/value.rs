//! Types of variables, and how values of them are read.

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use super::error::PresetError;
use crate::{
    read::Problem,
    vocabulary::{Cidr, parse_name_pattern, quoted},
};

/// Longest label of a name.
const LABEL_BYTES: usize = 63;

/// The type of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A region of Azure, in lower case without spaces.
    Region,
    /// One label of a name.
    Label,
    /// A name or pattern.
    Name,
    /// Names and patterns.
    Names,
    /// Networks and addresses.
    Cidrs,
    /// Yes or no.
    Bool,
    /// One of these.
    Choice(Vec<String>),
}

impl Kind {
    /// All types but the choice, which has values.
    pub(super) const PLAIN: [Self; 6] = [
        Self::Region,
        Self::Label,
        Self::Name,
        Self::Names,
        Self::Cidrs,
        Self::Bool,
    ];

    /// The name in preset files.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::Label => "label",
            Self::Name => "name",
            Self::Names => "names",
            Self::Cidrs => "cidrs",
            Self::Bool => "bool",
            Self::Choice(_) => "choice",
        }
    }

    /// True if a value is a list.
    #[must_use]
    pub const fn is_list(&self) -> bool {
        matches!(self, Self::Names | Self::Cidrs)
    }

    /// A value, which also stands in for one where none is known.
    #[must_use]
    pub fn example(&self) -> String {
        match self {
            Self::Region => "eastus".to_owned(),
            Self::Label => "contoso".to_owned(),
            Self::Name | Self::Names => "api.example.com".to_owned(),
            Self::Cidrs => "192.0.2.0/24".to_owned(),
            Self::Bool => "true".to_owned(),
            Self::Choice(choices) => choices.first().cloned().unwrap_or_default(),
        }
    }

    /// The values that a condition may ask for; none if it may not.
    #[must_use]
    pub fn choices(&self) -> Vec<&str> {
        match self {
            Self::Bool => vec!["true", "false"],
            Self::Choice(choices) => choices.iter().map(String::as_str).collect(),
            Self::Region | Self::Label | Self::Name | Self::Names | Self::Cidrs => Vec::new(),
        }
    }

    /// Reads one value, or one item of a list.
    pub(super) fn parse(&self, text: &str) -> Result<String, Problem> {
        match self {
            Self::Region => region(text),
            Self::Label => label(text),
            Self::Name | Self::Names => Ok(parse_name_pattern(text)?.to_string()),
            Self::Cidrs => Ok(text.parse::<Cidr>()?.to_string()),
            Self::Bool | Self::Choice(_) => {
                let choices = self.choices();
                if choices.contains(&text) {
                    return Ok(text.to_owned());
                }
                Err(bad(text, "a value that exists here", choices.join(" or ")))
            }
        }
    }
}

fn bad(text: &str, wanted: &'static str, hint: impl Into<String>) -> Problem {
    PresetError::BadValue {
        text: quoted(text),
        wanted,
        hint: hint.into(),
    }
    .into()
}

/// A region as names have it: `East US` is `eastus` there.
fn region(text: &str) -> Result<String, Problem> {
    let is_plain =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_plain(text) && text.len() <= LABEL_BYTES {
        return Ok(text.to_ascii_lowercase());
    }
    let closed = text.replace([' ', '-', '_'], "").to_ascii_lowercase();
    if is_plain(&closed) && closed.len() <= LABEL_BYTES {
        return Err(bad(text, "a region as names have it", closed));
    }
    let hint = "letters and digits, such as eastus";
    Err(bad(text, "a region", hint))
}

/// One label of a name.
fn label(text: &str) -> Result<String, Problem> {
    let is_good = |text: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=LABEL_BYTES).contains(&text.len()) && text.bytes().all(is_plain)
    };
    if is_good(text) {
        return Ok(text.to_ascii_lowercase());
    }
    let hint = match text.split_once('.') {
        Some((first, _)) if is_good(first) => first,
        _ => "1 to 63 letters, digits, - and _, without dots",
    };
    Err(bad(text, "one label of a name", hint))
}

impl Serialize for Kind {
    /// `type` and, for a choice, `choices`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Kind", 2)?;
        fields.serialize_field("type", self.name())?;
        match self {
            Self::Choice(choices) => fields.serialize_field("choices", choices)?,
            Self::Region | Self::Label | Self::Name | Self::Names | Self::Cidrs | Self::Bool => {
                fields.skip_field("choices")?;
            }
        }
        fields.end()
    }
}
