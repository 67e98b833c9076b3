//! What can be wrong with policies: always where, what, and what would be right.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::{
    document::{SelectorError, ServiceTagError},
    import::HostError,
    preset::PresetProblem,
    vocabulary::{CidrError, DestinationError, NameError, PortsError, TtlError},
};

/// Most messages that are printed of one set of errors.
const SHOWN: usize = 50;

/// Most errors that are kept; the others are counted.
const KEPT: usize = 1_000;

/// What can be imported.
const IMPORTED: &str = "give an Azure Firewall policy, outbound network dependencies of an Azure service, \
    policies of Kubernetes, Cilium, Calico, Antrea, OVN, GKE or EKS, or a list of host:port";

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
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {problem}")]
pub struct PolicyError {
    /// Where.
    pub place: Place,
    /// What, and what would be right.
    pub problem: Problem,
}

/// What is wrong at a place. Every text ends with what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
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
    /// No path was given.
    #[error("no policy file was given; name at least one file or folder")]
    NoFiles,
    /// The folder holds no policy file.
    #[error("holds no *.yaml or *.yml file; put at least one policy there")]
    EmptyFolder,
    /// The file holds no document.
    #[error("holds no policy; write one, starting with apiVersion: {0}")]
    EmptyFile(&'static str),
    /// A file that may hold one document holds more.
    #[error("is a second document; write everything in one")]
    SecondDocument,
    /// A file of expectations without any.
    #[error("expects nothing; write expect: [{{ to: api.example.com:443, verdict: allowed }}]")]
    NoExpectations,
    /// A reason that goes with the other verdict.
    #[error(
        "{reason} is a reason of what is {verdict}; write one of what is expected, or leave it out"
    )]
    ReasonOfOtherVerdict {
        /// The reason.
        reason: &'static str,
        /// The verdict that it goes with.
        verdict: &'static str,
    },
    /// A bad destination.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The same file is given twice.
    #[error("is the same file as {0}; give it once")]
    SameFile(String),
    /// Two files have one name.
    #[error(
        "has the same file name as {0}, and messages would not tell them apart; rename one of them"
    )]
    SameFileName(String),
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
    /// The text is not JSON.
    #[error("is not valid JSON: {0}; check commas, brackets and quotes here and in the line above")]
    Json(String),
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
        /// What it is.
        found: &'static str,
        /// What it should be.
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
    /// A policy name that Kubernetes would refuse.
    #[error(
        "{0} is not a policy name; write 1 to 253 lower-case letters, digits, - and ., with a letter or digit at both ends"
    )]
    BadPolicyName(String),
    /// A policy name that the agent needs for itself.
    #[error("{0} is reserved for the agent's own rules; choose another name")]
    ReservedName(String),
    /// Two policies have one name.
    #[error("policy {name} is already defined at {first}; rename one of them")]
    DuplicatePolicy {
        /// The name, quoted.
        name: String,
        /// Where the first one is.
        first: String,
    },
    /// A field of the other kind.
    #[error("is for policies of a cluster; write kind: ClusterEgressPolicy, or leave it out")]
    OnlyOfCluster,
    /// A namespace of what is in none.
    #[error("is for policies of a namespace; write kind: EgressPolicy, or leave it out")]
    OnlyOfNamespace,
    /// Pods are selected, and nodes are meant.
    #[error("selects pods, but the subject is node; leave it out, or write subject: pods")]
    SelectsPods,
    /// A ceiling where no policies of namespaces apply.
    #[error(
        "bounds policies of namespaces, which are for pods, but the subject is node; leave it out, or write subject: pods"
    )]
    CeilingOfNode,
    /// Rules and ceilings that overlap too much.
    #[error(
        "this and the rules with it overlap too much with the ceilings {ceilings} to be compared; use wider patterns and networks"
    )]
    CeilingWork {
        /// The ceilings.
        ceilings: String,
    },
    /// A policy for what only a cluster knows.
    #[error(
        "policy {name} is for {subjects}, which only an agent in a cluster can tell; apply it to the cluster with kubectl, and here write a kind: EgressPolicy without podSelector"
    )]
    Selects {
        /// Its name.
        name: String,
        /// Whom it is for.
        subjects: String,
    },
    /// A bad selector.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// A rule without destination.
    #[error(
        "names no destination; write names: [api.example.com], cidrs: [192.0.2.0/24] or serviceTags: [Storage.westeurope]"
    )]
    NoDestination,
    /// A rule with a preset and something else.
    #[error("stands beside a preset, which has its own; write a rule of its own for it")]
    BesidePreset,
    /// Values for no preset.
    #[error("is for the variables of a preset, and there is none; write {0}")]
    WithoutPreset(&'static str),
    /// More destinations than a set may have.
    #[error(
        "here are more than {0} names, networks and prefixes of service tags together, each counted as often as it is named, those of presets too; name each once, or wider ones"
    )]
    TooManyDestinations(usize),
    /// A list of ports without ports.
    #[error(r#"is empty, so that nothing would match; write ["443/tcp"], or leave ports out for any port"#)]
    NoPorts,
    /// A deny rule with names and ports.
    #[error(
        "a denied name teaches no address at all, whatever the port; leave ports out, or deny the port in a rule with cidrs alone"
    )]
    DeniedNameWithPorts,
    /// A deny rule with `require`.
    #[error("has no meaning in a rule that denies; leave it out")]
    RequiresOfDenied,
    /// A rule with `require` that is not for names alone.
    #[error(
        "is for rules with names and nothing else; put cidrs, serviceTags and presets in rules of their own"
    )]
    RequiresOfOthers,
    /// A rule with `require` and ports of other protocols, or none.
    #[error(
        r#"needs TCP ports, such as ports: ["443/tcp"]; put other protocols in a rule of their own"#
    )]
    RequiresOtherPorts,
    /// A ceiling with `require`.
    #[error("has no meaning in a ceiling, which opens nothing; leave it out")]
    RequiresOfCeiling,
    /// A bad name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A bad CIDR.
    #[error(transparent)]
    Cidr(#[from] CidrError),
    /// Bad ports.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// A bad length of time.
    #[error(transparent)]
    Ttl(#[from] TtlError),
    /// A bad line of a list of destinations.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Nothing in the files can be imported.
    #[error("holds nothing that can be imported; {IMPORTED}")]
    NothingToImport,
    /// The source of what can be imported, which another program makes it of.
    #[error("is {what}, not what it makes; {instead}")]
    SourceOf {
        /// What it is.
        what: &'static str,
        /// What to import instead.
        instead: &'static str,
    },
    /// A document of no format that can be imported.
    #[error("is of no format that can be imported; {IMPORTED}")]
    UnknownFormat,
    /// A Kubernetes object of another kind.
    #[error("{0} is no kind that can be imported; {IMPORTED}")]
    UnknownKind(String),
    /// A document of another format than the one that was asked for.
    #[error("is of the format {found}, not {wanted}; leave --format out, or import it by itself")]
    OtherFormat {
        /// What it is.
        found: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// A preset, or values of its variables, that cannot be used.
    #[error(transparent)]
    Preset(#[from] Box<PresetProblem>),
    /// A bad service tag, or a bad file of them.
    #[error(transparent)]
    ServiceTag(#[from] ServiceTagError),
    /// More port ranges in one rule than an entry can hold.
    #[error("has {count} port ranges, but {what} can have {max}; join ranges, or use any/tcp")]
    TooManyPorts {
        /// How many there are.
        count: usize,
        /// What the rule is about.
        what: &'static str,
        /// How many can be.
        max: usize,
    },
    /// Too many port ranges for one name.
    #[error(
        "{} different port ranges meet at {name}, but a name can have {}: {}; join ranges, or use any/tcp",
        meeting.count, meeting.max, meeting.rules
    )]
    NameFull {
        /// The pattern.
        name: String,
        /// What meets there.
        meeting: Meeting,
    },
    /// More entries than a map of the kernel holds twice.
    #[error(
        "this and the policies with it have {count} different {what}, but {max} is the most that can be in force; use wider ones"
    )]
    TooManyEntries {
        /// How many there are.
        count: usize,
        /// Of what.
        what: &'static str,
        /// How many can be.
        max: usize,
    },
    /// Patterns with `*` inside a label that need too many entries.
    #[error(
        "patterns with * inside the first label, here below {parent}, need more than {max} entries: each text before a * meets each text behind one; write fewer, or *.{parent}"
    )]
    LabelsFull {
        /// Name behind the label.
        parent: String,
        /// How many fit.
        max: usize,
    },
    /// Too many entries for one CIDR.
    #[error(
        "{} different entries meet at {cidr}, but a CIDR can have {}: {}; join port ranges, or use any/tcp",
        meeting.count, meeting.max, meeting.rules
    )]
    CidrFull {
        /// The CIDR.
        cidr: String,
        /// What meets there.
        meeting: Meeting,
    },
}

/// Rules that meet at one name or CIDR and are too many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    /// How many port ranges they have.
    pub count: String,
    /// How many fit.
    pub max: usize,
    /// Where they stand, with their ports.
    pub rules: String,
}

/// What is wrong with a set of policies, in the order of files and lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
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

    /// Whether errors are only counted from now on.
    pub(crate) const fn is_full(&self) -> bool {
        self.errors.len() >= KEPT
    }

    /// Adds an error that nobody will read.
    pub(crate) const fn count(&mut self) {
        self.more = self.more.saturating_add(1);
    }

    /// Whether nothing was added.
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
