//! Errors of documents, and of sets of them.

use thiserror::Error;

/// An error of a document, or of a set of them. Every text ends with the correction.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// No path was given.
    #[error("no policy file was given; name at least one file or folder")]
    NoFiles,
    /// The folder holds no policy file.
    #[error("holds no *.yaml or *.yml file; put at least one policy there")]
    EmptyFolder,
    /// The file holds no document.
    #[error("holds no policy; write one, starting with apiVersion: {0}")]
    EmptyFile(&'static str),
    /// Two files have one name.
    #[error(
        "has the same file name as {0}, and messages would not tell them apart; rename one of them"
    )]
    SameFileName(String),
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
    /// A policy for what only a cluster knows.
    #[error(
        "policy {name} is for {subjects}, which only an agent in a cluster can tell; apply it to the cluster with kubectl, and here write a kind: EgressPolicy without podSelector"
    )]
    Selects {
        /// Its name.
        name: String,
        /// Its subjects.
        subjects: String,
    },
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
    /// More port ranges in one rule than an entry can hold.
    #[error("has {count} port ranges, but {what} can have {max}; join ranges, or use any/tcp")]
    TooManyPorts {
        /// How many there are.
        count: usize,
        /// The kind of rule.
        what: &'static str,
        /// How many can be.
        max: usize,
    },
}
