//! Errors of sources that are imported.

use thiserror::Error;

/// The formats that can be imported, for messages.
const IMPORTED: &str = "give an Azure Firewall policy, outbound network dependencies of an Azure service, \
    policies of Kubernetes, Cilium, Calico, Antrea, OVN, GKE or EKS, or a list of host:port";

/// The reason why something cannot be imported. Every text ends with the correction.
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
        /// Its kind.
        what: &'static str,
        /// The command whose output to import instead.
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
        /// Its format.
        found: &'static str,
        /// The format that was asked for.
        wanted: &'static str,
    },
}
