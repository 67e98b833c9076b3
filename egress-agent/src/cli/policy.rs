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
  egress-agent policy check shop/payments.yaml && kubectl apply -f shop/payments.yaml

Runs what `run` runs before it touches the kernel. Policies for a cluster, which `run` does not take from files, are
compiled each by itself, as the API server's agents would.
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

/// Findings of `policy check`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct CheckReport {
    /// True if the files are usable.
    pub(super) ok: bool,
    /// The mode that would apply to the node, `mixed` where they differ; none if they are not usable, or not for a node.
    pub(super) mode: Option<&'static str>,
    /// The policies.
    pub(super) policies: Vec<PolicyReport>,
    /// Entries of the name trie.
    pub(super) names: usize,
    /// Entries of the CIDR trie, without the lifeline's.
    pub(super) cidrs: usize,
    /// The first thousand errors.
    pub(super) errors: Vec<String>,
    /// How many errors there are besides.
    pub(super) more_errors: usize,
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PolicyReport {
    /// Its name.
    pub(super) name: String,
    /// Its namespace, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
    /// Whom it is for in a cluster; none for one of a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subjects: Option<String>,
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
            Ok(report) => (report, None),
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

    /// Those of a node as they apply together; those of a cluster each by itself, because who gets which is not known.
    fn check(&self, sources: &CatalogSources) -> Result<CheckReport, PolicyErrors> {
        let catalog = sources.load()?;
        let notes = catalog.service_tags().map(|tags| &tags.facts().notes);
        notes.into_iter().flatten().for_each(|note| say(note));
        let mode = self.mode.map(Mode::from);
        let (of_node, of_cluster) = policy::load_any(&self.files, &catalog)?.by_subjects();
        let mut report = CheckReport {
            ok: true,
            ..CheckReport::default()
        };
        if !of_node.policies().is_empty() {
            let compiled = policy::compile(&of_node, &Lifeline::new(), mode)?;
            report.mode = Some(if compiled.looking_on.is_some() {
                "mixed"
            } else {
                compiled.mode.name()
            });
            report.add(&of_node, &compiled, mode);
        }
        for policy in of_cluster {
            let compiled = policy::compile(&policy, &Lifeline::new(), mode)?;
            report.add(&policy, &compiled, mode);
        }
        Ok(report)
    }
}

impl CheckReport {
    /// Takes in policies that apply together, under a mode instead of their own if one is given.
    fn add(&mut self, set: &PolicySet, compiled: &Compiled, of_all: Option<Mode>) {
        self.names = self.names.saturating_add(compiled.names.len());
        self.cidrs = self.cidrs.saturating_add(compiled.cidrs.len());
        for policy in set.policies().iter().filter(|policy| policy.ttl.min_s == 0) {
            say(&format!(
                "{}:{}: spec.ttl.min is 0s: an answer with a TTL of 0 opens nothing, not even for the moment; write at least 1s",
                policy.file.display(),
                policy.line
            ));
        }
        let reports = set.policies().iter().map(|policy| {
            let document = &policy.document;
            PolicyReport {
                name: policy.name().to_owned(),
                namespace: document.metadata.namespace.clone(),
                subjects: document.selects().then(|| document.subjects()),
                file: policy.file.clone(),
                mode: of_all.unwrap_or(policy.mode).name(),
                allow: policy.allow.len(),
                deny: policy.deny.len(),
            }
        });
        self.policies.extend(reports);
    }
}

fn render(report: &CheckReport) -> Table {
    let of_node_alone = report
        .policies
        .iter()
        .all(|policy| policy.subjects.is_none());
    let mut table = Table::new().text("POLICY");
    if !of_node_alone {
        table = table.text("FOR");
    }
    table = table
        .word("MODE")
        .number("ALLOW")
        .number("DENY")
        .text("FILE");
    let count = |count: usize| number(u64::try_from(count).unwrap_or(u64::MAX));
    for policy in &report.policies {
        let name = policy.name.as_str().into();
        let mode = policy.mode.into();
        let (allow, deny) = (count(policy.allow), count(policy.deny));
        let file = policy.file.to_string_lossy().into();
        if of_node_alone {
            table.row([name, mode, allow, deny, file]);
        } else {
            let subjects = policy.subjects.as_deref().unwrap_or("the node").into();
            table.row([name, subjects, mode, allow, deny, file]);
        }
    }
    table
}
