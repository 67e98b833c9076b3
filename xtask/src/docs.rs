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

/// Generated pages: package, test target, the test that writes the page, and the page.
const PAGES: &[(&str, &[&str], &str, &str)] = &[
    (
        "egress-agent",
        &["--test", "reasons"],
        "the_page_of_reasons_is_what_the_tables_say",
        "docs/reasons.md",
    ),
    (
        "egress-policy",
        &["--lib"],
        "the_page_about_presets_is_as_the_data",
        "docs/presets.md",
    ),
    (
        "egress-policy",
        &["--test", "policy_reference"],
        "the_policy_reference_is_what_the_schema_says",
        "docs/policy.md or docs/policy.schema.json",
    ),
    (
        "egress-agent",
        &["--test", "crds"],
        "the_definitions_are_what_the_types_say",
        "deploy/crds/*.yaml",
    ),
    (
        "egress-agent",
        &["--test", "chart"],
        "the_policy_among_the_values_has_the_fields_of_a_policy_for_nodes",
        "deploy/chart/values.schema.json",
    ),
    (
        "egress-agent",
        &["--test", "flow_log"],
        "the_schema_of_the_flow_log_is_what_the_type_says",
        "docs/flow-log.schema.json",
    ),
    (
        "egress-common",
        &["--lib"],
        "the_page_about_security_has_the_table",
        "docs/security.md",
    ),
    (
        "egress-agent",
        &["--test", "man"],
        "every_subcommand_has_a_page",
        "target/man/*.1",
    ),
    (
        "egress-tests",
        &["--test", "bypass"],
        "the_page_on_security_has_the_table",
        "the table of docs/security.md",
    ),
];

impl Docs {
    /// Writes or checks what the tests of each page make.
    ///
    /// # Errors
    ///
    /// A page cannot be made, or is stale.
    pub(crate) fn run(&self) -> Result<()> {
        for (package, target, test, name) in PAGES {
            let mut cargo = run::cargo();
            cargo.args(["test", "--quiet", "--package", package]);
            cargo.args(*target).args(["--", test]);
            if !self.check {
                cargo.env("EGRESS_BLESS", "1");
            }
            if !cargo.status()?.success() {
                bail!("{name} cannot be made, or is stale");
            }
        }
        Ok(())
    }
}
