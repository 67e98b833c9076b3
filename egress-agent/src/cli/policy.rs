//! `policy`: work on policy files.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use egress_common::verdict::Mode;
use serde::Serialize;

use super::{
    catalog::CatalogArgs,
    exit::{ExitCode, UsageError},
    import::Import,
    learn::Learn,
    output::{OutputArgs, print, say},
    policy_diff::PolicyDiff,
    policy_test::PolicyTest,
    run::ModeArg,
    table::{Table, number},
};
use crate::policy::{self, CatalogSources, Compiled, Lifeline, PolicyErrors, PolicySet};

const EXAMPLES: &str = "\
Examples:
  egress-agent policy check node.yaml
  egress-agent policy check /etc/egress/policies extra.yaml -o json
  egress-agent policy check node.yaml --service-tags service-tags.json

Runs what `run` runs before it touches the kernel.
Exit status: 0 usable; 2 not, and every error is on stderr.";

const SCHEMA_EXAMPLES: &str = "\
Examples:
  egress-agent policy schema > policy.schema.json

Editors with a YAML language server check a policy that begins with
  # yaml-language-server: $schema=policy.schema.json
and complete its fields. `policy check` sees more than any schema can say.";

/// Options of `policy`.
#[derive(Clone, Debug, Args)]
pub struct Policy {
    /// What to do.
    #[command(subcommand)]
    pub command: PolicyCommand,
}

/// What to do with policy files.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// Check files or folders as `run` would; exit 2 if it would refuse them
    Check(Check),
    /// Show what a change of policies opens and closes; exit 1 if it does
    Diff(Box<PolicyDiff>),
    /// Compare what policies decide with files of expectations; exit 1 if it differs
    Test(PolicyTest),
    /// Print the JSON Schema of policies, for editors
    Schema(SchemaOfPolicies),
    /// Make policies of an Azure Firewall's rules, Cilium's policies and others
    Import(Import),
    /// Write a policy of what the agent saw: names rather than addresses, who, when and how often
    Learn(Learn),
}

/// Options of `policy check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Check {
    /// Policy files or folders, which apply together
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// What rules may refer to.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Mode instead of the policies' own, as `run` would be given
    #[arg(long, value_name = "MODE")]
    pub mode: Option<ModeArg>,
    /// Form of the result.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `policy schema`: none.
#[derive(Clone, Debug, Args)]
#[command(after_help = SCHEMA_EXAMPLES)]
pub struct SchemaOfPolicies {}

/// What `policy check` found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct CheckReport {
    /// Whether `run` would take the files.
    pub(super) ok: bool,
    /// The mode that would apply, `mixed` where they differ; none if they are not usable.
    pub(super) mode: Option<&'static str>,
    /// The policies.
    pub(super) policies: Vec<PolicyReport>,
    /// Entries of the name trie.
    pub(super) names: usize,
    /// Entries of the CIDR trie, without the lifeline's.
    pub(super) cidrs: usize,
    /// What is wrong, the first thousand errors.
    pub(super) errors: Vec<String>,
    /// How many errors there are besides.
    pub(super) more_errors: usize,
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PolicyReport {
    /// Its name.
    pub(super) name: String,
    /// Its file.
    pub(super) file: PathBuf,
    /// The mode that would apply to it: its own, or that of `--mode`.
    pub(super) mode: &'static str,
    /// Rules that allow.
    pub(super) allow: usize,
    /// Rules that deny.
    pub(super) deny: usize,
}

impl Policy {
    /// Does what is asked for.
    ///
    /// # Errors
    ///
    /// The policies are not usable, or no agent answers.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            PolicyCommand::Check(check) => check.execute(),
            PolicyCommand::Diff(diff) => diff.execute(),
            PolicyCommand::Test(test) => test.execute(),
            PolicyCommand::Import(import) => import.execute(),
            PolicyCommand::Learn(learn) => learn.execute(),
            PolicyCommand::Schema(schema) => schema.execute(),
        }
    }
}

impl SchemaOfPolicies {
    fn execute(self) -> anyhow::Result<ExitCode> {
        let schema = serde_json::to_string_pretty(&policy::json_schema())?;
        // Somebody who reads no further has got what was wanted.
        let _closed = print(&format!("{schema}\n"))?;
        Ok(ExitCode::Ok)
    }
}

impl Check {
    fn execute(self) -> anyhow::Result<ExitCode> {
        let sources = self.catalog.sources()?;
        let (report, errors) = match self.check(&sources) {
            Ok((set, compiled)) => (report(&set, &compiled, self.mode.map(Mode::from)), None),
            Err(errors) => {
                let texts = errors.errors().iter().map(ToString::to_string);
                let report = CheckReport {
                    errors: texts.collect(),
                    more_errors: errors.more(),
                    ..CheckReport::default()
                };
                (report, Some(errors))
            }
        };
        self.output.print(&report, |screen| {
            if report.ok {
                render(&report).render(screen)
            } else {
                String::new()
            }
        })?;
        match errors {
            None => Ok(ExitCode::Ok),
            Some(errors) => Err(UsageError::new(errors).into()),
        }
    }

    fn check(&self, sources: &CatalogSources) -> Result<(PolicySet, Compiled), PolicyErrors> {
        let catalog = sources.load()?;
        let notes = catalog.service_tags().map(|tags| &tags.facts().notes);
        notes.into_iter().flatten().for_each(|note| say(note));
        let set = policy::load(&self.files, &catalog)?;
        let compiled = policy::compile(&set, &Lifeline::new(), self.mode.map(Mode::from))?;
        Ok((set, compiled))
    }
}

fn report(set: &PolicySet, compiled: &Compiled, of_all: Option<Mode>) -> CheckReport {
    let policies = set.policies().iter().map(|policy| PolicyReport {
        name: policy.name().to_owned(),
        file: policy.file.clone(),
        mode: of_all.unwrap_or(policy.mode).name(),
        allow: policy.allow.len(),
        deny: policy.deny.len(),
    });
    CheckReport {
        ok: true,
        mode: Some(if compiled.looking_on.is_some() {
            "mixed"
        } else {
            compiled.mode.name()
        }),
        policies: policies.collect(),
        names: compiled.names.len(),
        cidrs: compiled.cidrs.len(),
        errors: Vec::new(),
        more_errors: 0,
    }
}

fn render(report: &CheckReport) -> Table {
    let mut table = Table::new()
        .text("POLICY")
        .word("MODE")
        .number("ALLOW")
        .number("DENY")
        .text("FILE");
    let count = |count: usize| number(u64::try_from(count).unwrap_or(u64::MAX));
    for policy in &report.policies {
        table.row([
            policy.name.as_str().into(),
            policy.mode.into(),
            count(policy.allow),
            count(policy.deny),
            policy.file.to_string_lossy().into(),
        ]);
    }
    table
}
