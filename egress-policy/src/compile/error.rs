//! Errors of policies that apply together.

use thiserror::Error;

/// The reason why policies cannot apply together. Every text ends with the correction.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CompileError {
    /// Rules and ceilings that overlap too much.
    #[error(
        "this and the rules with it overlap too much with the ceilings {ceilings} to be compared; use wider patterns and networks"
    )]
    CeilingWork {
        /// The ceilings.
        ceilings: String,
    },
    /// Too many port ranges for one name.
    #[error(
        "{} different port ranges meet at {name}, but a name can have {}: {}; join ranges, or use any/tcp",
        meeting.count, meeting.max, meeting.rules
    )]
    NameFull {
        /// The pattern.
        name: String,
        /// The rules that meet there.
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
        /// The rules that meet there.
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
