//! `policy import`: policies of what other systems say.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    catalog::CatalogArgs,
    exit::{ExitCode, UsageError},
    output::{print, say},
};
use crate::policy::{
    self, EgressPolicy, ImportFormat, ImportSubject, Imported, Lifeline, Note, NoteKind,
    PolicyError, PolicyErrors, PolicySet, ServiceTagError, write_policies,
};

const EXAMPLES: &str = "\
Examples:
  az network firewall policy rule-collection-group list -g RG --policy-name FW -o json > groups.json
  az network ip-group list -g RG -o json > ip-groups.json
  egress-agent policy import groups.json ip-groups.json > node.yaml
  egress-agent policy import template.json parameters.json
  terraform show -json tfplan | egress-agent policy import -
  kubectl get ciliumnetworkpolicies -A -o yaml | egress-agent policy import -
  egress-agent policy import --format hosts --strict allowed.txt

The policies are on stdout. What could not be carried over exactly is listed on stderr and stands in a comment where
it was: read it before you enforce, and begin with `run --mode audit`.
Exit status: 0 done; 1 with --strict: something is not exact, or `run` would refuse the result as it is (too many port
ranges for one name); 2 the files cannot be imported, and nothing is printed.";

/// Options of `policy import`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Import {
    /// Files that belong together; - is stdin
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// What the files hold [default: each tells]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<FormatArg>,
    /// Whom the policies are for [default: whom the source selects, as objects of a cluster]
    #[arg(long = "as", value_enum, value_name = "SUBJECT")]
    pub subject: Option<SubjectArg>,
    /// Fail if anything could not be carried over exactly
    #[arg(long)]
    pub strict: bool,
    /// What the result's rules refer to.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Form of the result
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: ImportOutput,
}

/// What can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// Azure Firewall policies and classic firewalls: az output, ARM templates, terraform show -json
    AzureFirewall,
    /// The answer to outboundNetworkDependenciesEndpoints, of AKS or Machine Learning
    AzureDependencies,
    /// CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, CiliumCIDRGroup
    Cilium,
    /// NetworkPolicy, FQDNNetworkPolicy of GKE, ApplicationNetworkPolicy of EKS
    NetworkPolicy,
    /// NetworkPolicy and GlobalNetworkPolicy of Calico
    Calico,
    /// EgressFirewall of OVN-Kubernetes
    EgressFirewall,
    /// NetworkPolicy and ClusterNetworkPolicy of Antrea
    Antrea,
    /// ClusterNetworkPolicy, also of EKS, AdminNetworkPolicy, BaselineAdminNetworkPolicy
    ClusterNetworkPolicy,
    /// Workflows with step-security/harden-runner: its allowed-endpoints
    HardenRunner,
    /// squid.conf: its http_access lines
    Squid,
    /// dnsmasq: server, local, address, ipset and nftset lines
    Dnsmasq,
    /// A list with host, host:port, host:port/udp or CIDR on each line
    Hosts,
}

impl From<FormatArg> for ImportFormat {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::AzureFirewall => Self::AzureFirewall,
            FormatArg::AzureDependencies => Self::AzureDependencies,
            FormatArg::Cilium => Self::Cilium,
            FormatArg::NetworkPolicy => Self::NetworkPolicy,
            FormatArg::Calico => Self::Calico,
            FormatArg::EgressFirewall => Self::EgressFirewall,
            FormatArg::Antrea => Self::Antrea,
            FormatArg::ClusterNetworkPolicy => Self::ClusterNetworkPolicy,
            FormatArg::HardenRunner => Self::HardenRunner,
            FormatArg::Squid => Self::Squid,
            FormatArg::Dnsmasq => Self::Dnsmasq,
            FormatArg::Hosts => Self::Hosts,
        }
    }
}

/// Whom policies are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SubjectArg {
    /// The node that they are installed on, whomever the source selects
    Node,
}

/// The form of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ImportOutput {
    /// Policy files, with comments
    #[default]
    Yaml,
    /// Policies and notes for programs
    Json,
}

/// The output of `policy import -o json`.
#[derive(Debug, Serialize)]
struct ImportReport {
    policies: Vec<EgressPolicy>,
    notes: Vec<Note>,
}

impl Import {
    /// Does what is asked for.
    ///
    /// # Errors
    ///
    /// The files cannot be imported, or not exactly.
    pub fn execute(&self) -> anyhow::Result<ExitCode> {
        let imported = self.import().map_err(UsageError::new)?;
        for note in &imported.notes {
            say(&note.to_string());
        }
        let yaml = write_policies(&imported.policies);
        let refused = self.refused(&yaml)?;
        let text = match self.output {
            ImportOutput::Yaml => yaml,
            ImportOutput::Json => json(&imported)?,
        };
        let _closed = print(&text)?;
        for error in &refused {
            say(&error.to_string());
        }
        let inexact = inexact(&imported.notes);
        match inexact {
            _ if !refused.is_empty() => Err(anyhow!(
                "run would refuse the result as it is, for what was said of it"
            )),
            Some(inexact) if self.strict => Err(anyhow!("{inexact}; --strict forbids that")),
            Some(inexact) => {
                say(&format!("note: {inexact}; the comments say where"));
                Ok(ExitCode::Ok)
            }
            None => Ok(ExitCode::Ok),
        }
    }

    /// Why `run` would refuse the result: more rules can meet at a name or network than it can hold.
    fn refused(&self, yaml: &str) -> anyhow::Result<Vec<PolicyError>> {
        let catalog = self.catalog.sources()?.load().map_err(UsageError::new)?;
        let checked = PolicySet::from_texts([(Path::new("result"), yaml)], &catalog).map(|set| {
            // A policy for pods applies alone, as far as is known here.
            let (of_node, alone) = set.by_subjects();
            let sets = std::iter::once(of_node).chain(alone);
            sets.filter_map(|set| policy::compile(&set, &Lifeline::new(), None).err())
                .collect()
        });
        let errors: Vec<PolicyErrors> = checked.unwrap_or_else(|errors| vec![errors]);
        let errors = errors.iter().flat_map(PolicyErrors::errors).cloned();
        let (open, refused): (Vec<_>, Vec<_>) = errors.partition(|error| {
            let error = error.problem.downcast_ref();
            matches!(error, Some(ServiceTagError::NoFile(_)))
        });
        if !open.is_empty() {
            say("note: the rules have service tags: --service-tags FILE checks the result too");
        }
        Ok(refused)
    }

    fn import(&self) -> Result<Imported, PolicyErrors> {
        let texts = policy::read_texts(&self.files)?;
        let texts = texts
            .iter()
            .map(|(file, text)| (file.as_path(), text.as_str()));
        let subject = match self.subject {
            Some(SubjectArg::Node) => ImportSubject::Node,
            None => ImportSubject::Selected,
        };
        policy::import(texts, self.format.map(ImportFormat::from), subject)
    }
}

fn json(imported: &Imported) -> anyhow::Result<String> {
    let report = ImportReport {
        policies: imported
            .policies
            .iter()
            .map(|draft| draft.document())
            .collect(),
        notes: imported.notes.clone(),
    };
    let mut json = serde_json::to_string_pretty(&report)?;
    json.push('\n');
    Ok(json)
}

/// How many things are not exact; `None` if everything is.
fn inexact(notes: &[Note]) -> Option<String> {
    let count = |kind: NoteKind| notes.iter().filter(|note| note.kind == kind).count();
    let (differ, left_out) = (count(NoteKind::Differs), count(NoteKind::LeftOut));
    (!notes.is_empty())
        .then(|| format!("not carried over exactly: {differ} that differ, {left_out} left out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_policies_and_notes() {
        let list = "https://a.example/v1\n";
        let subject = ImportSubject::Selected;
        let texts = [(Path::new("list.txt"), list)];
        let imported = policy::import(texts, None, subject).expect("imports");
        let json: serde_json::Value =
            serde_json::from_str(&json(&imported).expect("writes")).expect("is JSON");
        let policy: EgressPolicy =
            serde_json::from_value(json["policies"][0].clone()).expect("is a policy");
        assert_eq!(policy, imported.policies[0].document());
        let note = serde_json::json!({
            "file": "list.txt",
            "line": 1,
            "field": "",
            "kind": "differs",
            "text": "the path of https://a.example/v1 is not looked at",
        });
        assert_eq!(json["notes"], serde_json::json!([note]));
    }
}
