//! Errors of expectations.

use thiserror::Error;

/// An error of a file of expectations. Every text ends with the correction.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AskError {
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
}
