//! `cargo xtask docs`: writes the generated parts of the documents.

use anyhow::{Result, bail};
use clap::Args;

use crate::run;

/// Options of `cargo xtask docs`.
#[derive(Args, Debug)]
pub(crate) struct Docs {
    /// Only say whether they are stale.
    #[arg(long)]
    check: bool,
}

impl Docs {
    /// Writes or checks the README's table of ways around, which the tests of each of them make.
    ///
    /// # Errors
    ///
    /// It cannot be made, or is stale.
    pub(crate) fn run(&self) -> Result<()> {
        let mut cargo = run::cargo();
        cargo.args(["test", "--quiet", "--package", "egress-tests"]);
        cargo.args(["--test", "bypass", "--", "the_readme_has_the_table"]);
        if !self.check {
            cargo.env("EGRESS_BLESS", "1");
        }
        if !cargo.status()?.success() {
            bail!("the README's table of ways around cannot be made, or is stale");
        }
        Ok(())
    }
}
