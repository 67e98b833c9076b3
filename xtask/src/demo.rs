//! `cargo xtask demo`: shows the agent at work, in namespaces of its own.

use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build, run,
    setup::{self, Group},
};

/// Options of `cargo xtask demo`.
#[derive(Args, Debug)]
pub(crate) struct Demo {}

impl Demo {
    /// Sets up, builds, and becomes the demo: the program in `tests/` that makes the world and cleans it up.
    ///
    /// # Errors
    ///
    /// Not root, or a tool is missing or fails. On success this does not return.
    pub(crate) fn run(&self) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "the demo makes network namespaces: run `sudo -E env \"PATH=$PATH\" cargo xtask demo`"
            );
        }
        setup::setup(&[Group::Build, Group::Net])?;
        let agent = build::build()?;
        // As the agent is built, so that what they share is there already.
        let demo = build::build_static("egress-tests", &["demo", "probe"])?;
        // In our place, so that ctrl-c and the exit status are its own.
        let error = run::command(&demo)
            .env("EGRESS_AGENT", agent)
            .env("EGRESS_PROBE", demo.with_file_name("probe"))
            .exec();
        Err(error).with_context(|| format!("cannot start {}", run::shown(&demo)))
    }
}
