//! `cargo xtask build`: the static agent with the object inside.

use anyhow::Result;
use clap::Args;

use crate::ebpf;

/// Options of `cargo xtask build`.
#[derive(Args, Debug)]
pub(crate) struct Build {}

impl Build {
    /// Builds the object, then the agent.
    ///
    /// # Errors
    ///
    /// A tool is missing or fails.
    pub(crate) fn run(&self) -> Result<()> {
        ebpf::build()?;
        Ok(())
    }
}
