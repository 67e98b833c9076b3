//! Exit codes, and the errors that choose one.

use std::{fmt::Display, process::Termination};

use thiserror::Error;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// It did what it was asked to.
    Ok,
    /// It could not, or what it reports is not as it should be.
    Failure,
    /// The command line, a policy or the environment is not usable: nothing was changed.
    Usage,
    /// It ran a command, with this status.
    Command(u8),
}

impl Termination for ExitCode {
    fn report(self) -> std::process::ExitCode {
        std::process::ExitCode::from(self.number())
    }
}

/// An error that ends the program with [`ExitCode::Usage`].
#[derive(Debug, Error)]
#[error("{0}")]
pub struct UsageError(String);

impl UsageError {
    /// Makes one of an error with its causes (`anyhow::Error` prints them all here) or a text.
    #[must_use]
    pub fn new(error: impl Display) -> Self {
        Self(format!("{error:#}"))
    }
}

impl ExitCode {
    /// Status of `exec` when it failed itself, as `env` and `nice` have it.
    pub const EXEC_FAILED: u8 = 125;

    /// The number that the program ends with.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Command(status) => status,
        }
    }

    /// The code of a result's end.
    #[must_use]
    pub fn of(result: &anyhow::Result<Self>) -> Self {
        match result {
            Ok(code) => *code,
            Err(error) if error.chain().any(|cause| cause.is::<UsageError>()) => Self::Usage,
            Err(_) => Self::Failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_usage_error_is_found_below_its_context() {
        let environment = anyhow!("CAP_BPF is missing").context("cannot load");
        let error = anyhow::Error::new(UsageError::new(environment)).context("cannot start");
        assert_eq!(
            format!("{error:#}"),
            "cannot start: cannot load: CAP_BPF is missing"
        );
        assert_eq!(ExitCode::of(&Err(error)), ExitCode::Usage);
    }

    #[test]
    fn other_errors_are_failures_and_codes_pass() {
        let failure: anyhow::Result<ExitCode> = Err(anyhow!("no")).context("cannot");
        assert_eq!(ExitCode::of(&failure), ExitCode::Failure);
        for code in [ExitCode::Ok, ExitCode::Failure, ExitCode::Usage] {
            assert_eq!(ExitCode::of(&Ok(code)), code);
        }
        assert_eq!(
            [
                ExitCode::Ok.number(),
                ExitCode::Failure.number(),
                ExitCode::Usage.number(),
                ExitCode::Command(137).number(),
            ],
            [0, 1, 2, 137]
        );
    }
}
