//! What can be wrong with what is to be imported.

use thiserror::Error;

/// What can be imported.
const IMPORTED: &str = "give an Azure Firewall policy, outbound network dependencies of an Azure service, \
    policies of Kubernetes, Cilium, Calico, Antrea, OVN, GKE or EKS, or a list of host:port";

/// Why something cannot be imported. Every text ends with what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The text is not JSON.
    #[error("is not valid JSON: {0}; check commas, brackets and quotes here and in the line above")]
    Json(String),
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
}
