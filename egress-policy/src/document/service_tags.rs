//! Azure service tags: names of address ranges, which a file of Azure's lists.
//!
//! Two forms are read: the weekly download "Azure IP Ranges and Service Tags", and the answer of the REST operation
//! "Service Tags – List". They differ in little: `changeNumber` is a number in one and a text in the other.
//! Other fields than those that are needed are not looked at.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use crate::{
    read::{Place, PolicyErrors, Report},
    vocabulary::{Cidr, CidrError, quoted},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected, Visitor},
};

/// Largest file: four times the largest that there is.
pub const MAX_SERVICE_TAGS_BYTES: u64 = 16 * 1024 * 1024;

/// Most notes that are kept of one file, and most bad prefixes that are reported.
const NOTED: usize = 20;

/// Most names that a message offers for an unknown one.
const OFFERED: usize = 3;

/// A service tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTag {
    /// Its name, as the file writes it: `Storage.WestEurope`.
    pub name: String,
    /// Its networks, in order and without repetitions; at least one.
    pub prefixes: Vec<Cidr>,
}

impl ServiceTag {
    /// The identity of a rule about it: the same for every spelling. No name pattern and no CIDR has this form.
    pub(crate) fn identity(&self) -> String {
        format!("tag:{}", self.name.to_lowercase())
    }
}

/// Facts about a file of service tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTagsFacts {
    /// The file.
    pub file: PathBuf,
    /// When it was written, as the file system has it.
    pub modified: Option<SystemTime>,
    /// The cloud that it is about: `Public`, `AzureGovernment`, `China` …
    pub cloud: String,
    /// Its number, which grows with every change.
    pub change_number: String,
    /// How many tags it has.
    pub tags: usize,
    /// How many different IPv4 networks they have.
    pub ipv4_prefixes: usize,
    /// How many different IPv6 networks they have.
    pub ipv6_prefixes: usize,
    /// Corrections that were made to it, in sentences.
    pub notes: Vec<String>,
}

/// The service tags of a file.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceTags {
    facts: ServiceTagsFacts,
    /// True if the file says that there is more.
    is_one_page: bool,
    /// The tags, by their names in lower case.
    tags: BTreeMap<String, Arc<ServiceTag>>,
}

impl fmt::Debug for ServiceTags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The tags would fill screens.
        f.debug_tuple("ServiceTags").field(&self.facts).finish()
    }
}

impl ServiceTags {
    /// Reads a file's bytes. `file` is what messages call it, `modified` when it was written.
    ///
    /// # Errors
    /// It is in neither form, or a prefix is none.
    pub fn parse(
        file: &Path,
        bytes: &[u8],
        modified: Option<SystemTime>,
    ) -> Result<Self, PolicyErrors> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let document: Document = serde_json::from_slice(bytes).map_err(|error| {
            // The place is told apart.
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or(&text);
            let place = Place::field(file, error.line(), "");
            PolicyErrors::one(place, ServiceTagError::Form(what.to_owned()))
        })?;
        let mut report = Report::default();
        let mut found: BTreeMap<String, ServiceTag> = BTreeMap::new();
        let (mut notes, mut unnoted, mut wrong) = (Vec::new(), 0_usize, 0_usize);
        for (index, value) in document.values.into_iter().enumerate() {
            let Named { name, properties } = value;
            let tag = found
                .entry(name.to_lowercase())
                .or_insert_with(|| ServiceTag {
                    name: name.clone(),
                    prefixes: Vec::new(),
                });
            for (position, text) in properties.address_prefixes.iter().enumerate() {
                match text.parse() {
                    Ok(cidr) => tag.prefixes.push(cidr),
                    Err(CidrError::HostBits { network, .. }) => {
                        tag.prefixes.push(network);
                        if notes.len() < NOTED {
                            notes.push(format!(
                                "service tag {name}: {} has host bits set, {network} is used",
                                quoted(text)
                            ));
                        } else {
                            unnoted = unnoted.saturating_add(1);
                        }
                    }
                    Err(_) => {
                        wrong = wrong.saturating_add(1);
                        if wrong <= NOTED {
                            let field =
                                format!("values[{index}].properties.addressPrefixes[{position}]");
                            let mut place = Place::file(file);
                            place.field = field;
                            report.add(
                                place,
                                ServiceTagError::Prefix {
                                    tag: quoted(&name),
                                    prefix: quoted(text),
                                },
                            );
                        }
                    }
                }
            }
        }
        if unnoted > 0 {
            notes.push(format!("and {unnoted} more prefixes with host bits"));
        }
        if found.is_empty() {
            report.add(Place::file(file), ServiceTagError::NoTags);
        }
        let mut distinct = HashSet::new();
        for tag in found.values_mut() {
            tag.prefixes.sort_unstable();
            tag.prefixes.dedup();
            distinct.extend(tag.prefixes.iter().copied());
        }
        let ipv4_prefixes = distinct.iter().filter(|cidr| cidr.is_v4()).count();
        report.finish(Self {
            facts: ServiceTagsFacts {
                file: file.to_owned(),
                modified,
                cloud: document.cloud,
                change_number: document.change_number,
                tags: found.len(),
                ipv4_prefixes,
                ipv6_prefixes: distinct.len().saturating_sub(ipv4_prefixes),
                notes,
            },
            is_one_page: document.next_link.is_some_and(|link| !link.is_empty()),
            tags: found
                .into_iter()
                .map(|(name, tag)| (name, Arc::new(tag)))
                .collect(),
        })
    }

    /// Facts about the file.
    #[must_use]
    pub const fn facts(&self) -> &ServiceTagsFacts {
        &self.facts
    }

    /// The tags, sorted by name.
    pub fn tags(&self) -> impl Iterator<Item = &ServiceTag> {
        self.tags.values().map(|tag| &**tag)
    }

    /// The tag of this name, in any case.
    pub(crate) fn find(self: &Arc<Self>, name: &str) -> Result<Arc<ServiceTag>, ServiceTagError> {
        let Some(tag) = self.tags.get(&name.to_lowercase()) else {
            return Err(ServiceTagError::Unknown(UnknownTag {
                name: name.to_owned(),
                tags: Arc::clone(self),
            }));
        };
        if tag.prefixes.is_empty() {
            return Err(ServiceTagError::Empty {
                name: quoted(name),
                file: self.facts.file.display().to_string(),
            });
        }
        Ok(Arc::clone(tag))
    }

    /// The names that are most like this one, best first.
    fn nearest(&self, name: &str) -> Vec<&str> {
        const ALIKE: f64 = 0.85;
        let name = name.to_lowercase();
        let mut alike: Vec<(f64, &str)> = self
            .tags
            .iter()
            .map(|(lower, tag)| (strsim::jaro_winkler(&name, lower), tag.name.as_str()))
            .filter(|(likeness, _)| *likeness > ALIKE)
            .collect();
        alike.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        alike.truncate(OFFERED);
        alike.into_iter().map(|(_, name)| name).collect()
    }
}

/// A tag that the file does not have. Names like it are searched when it is told, which few of many errors are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownTag {
    name: String,
    tags: Arc<ServiceTags>,
}

impl fmt::Display for UnknownTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = &self.tags.facts;
        write!(
            f,
            "{} is not a service tag of {} (cloud {}, change number {})",
            quoted(&self.name),
            facts.file.display(),
            facts.cloud,
            facts.change_number
        )?;
        if self.tags.is_one_page {
            f.write_str(", which is one page of an answer: nextLink is not empty")?;
        }
        let nearest = self.tags.nearest(&self.name);
        if nearest.is_empty() {
            f.write_str("; write a name that stands there")
        } else {
            write!(f, "; write {}", nearest.join(" or "))
        }
    }
}

/// An error of a service tag, or of a file of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceTagError {
    /// A tag, and no file that says what it means.
    #[error(
        "{0} is a service tag, and no file says what it means; give one with --service-tags FILE, or as serviceTags.file in the settings"
    )]
    NoFile(String),
    /// A tag that the file does not have.
    #[error("{0}")]
    Unknown(UnknownTag),
    /// A tag without prefixes.
    #[error("service tag {name} has no prefix in {file}, so that nothing would match; take it out")]
    Empty {
        /// The tag, quoted.
        name: String,
        /// The file.
        file: String,
    },
    /// The file is in neither form.
    #[error(
        "is not a file of service tags: {0}; give the JSON of the weekly download or of the Service Tags API, whole"
    )]
    Form(String),
    /// The file has no tag.
    #[error("holds no service tag; get the file anew")]
    NoTags,
    /// A prefix of a tag is none.
    #[error("service tag {tag} has the prefix {prefix}, which is no CIDR; get the file anew")]
    Prefix {
        /// The tag, quoted.
        tag: String,
        /// The prefix, quoted.
        prefix: String,
    },
    /// The file is larger than [`MAX_SERVICE_TAGS_BYTES`].
    #[error("has more than {0} bytes, the most that a file of service tags may have; get it anew")]
    TooLarge(u64),
}

impl ServiceTagError {
    /// The error of a tag that nothing explains.
    pub(crate) fn no_file(name: &str) -> Self {
        Self::NoFile(quoted(name))
    }
}

/// The file, as far as it is looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(deserialize_with = "number_or_text")]
    change_number: String,
    cloud: String,
    values: Vec<Named>,
    #[serde(default)]
    next_link: Option<String>,
}

/// A tag in the file.
#[derive(Deserialize)]
struct Named {
    name: String,
    properties: Properties,
}

/// The networks of a tag.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    address_prefixes: Vec<String>,
}

/// A number, or the text of one.
fn number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Number;

    impl Visitor<'_> for Number {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number")
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
            let is_number =
                (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            if is_number {
                Ok(text.to_owned())
            } else {
                Err(E::invalid_value(Unexpected::Str(text), &self))
            }
        }
    }

    deserializer.deserialize_any(Number)
}
