//! Limits of the machine and of the maps, looked at before anything is changed.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

use super::plan::check_scopes;
use crate::cli::{RunOptions, UsageError};

/// Descriptors that the agent needs: maps, programs, links, rings, its socket with readers, files.
const DESCRIPTORS: u64 = 512;
/// What is asked for, if it may be had.
const WANTED_DESCRIPTORS: u64 = 65_536;

/// Raises what may be raised, and says what is below need.
///
/// # Errors
///
/// A limit, as a sentence.
pub(super) fn check(options: &RunOptions) -> Result<(), UsageError> {
    check_scopes(options.scopes.len().saturating_add(1)).map_err(UsageError::new)?;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return Ok(());
    };
    let wanted = WANTED_DESCRIPTORS.min(hard);
    if soft < wanted
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    {
        warn!(%error, "the limit of open files cannot be raised");
    }
    let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |(soft, _)| soft);
    is_enough(most).map_err(UsageError::new)
}

fn is_enough(most: u64) -> Result<(), String> {
    if most >= DESCRIPTORS {
        return Ok(());
    }
    Err(format!(
        "at most {most} files may be open, and the agent needs {DESCRIPTORS}: raise `ulimit -n`, or LimitNOFILE= of its unit"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_descriptors_are_told_with_both_figures() {
        assert_eq!(is_enough(DESCRIPTORS), Ok(()));
        let error = is_enough(DESCRIPTORS - 1).expect_err("too few");
        assert!(error.contains("511") && error.contains("512"), "{error}");
    }
}
