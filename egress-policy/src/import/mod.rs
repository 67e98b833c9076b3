//! Reads what other firewalls and policies say, and makes policies of it. Pure: texts in, policies and notes out.
//!
//! A part without an exact counterpart here becomes a [`Note`] and a comment where it was. Every format makes [`Draft`]s,
//! so that what comes out is written, and read again, in one way.

mod addresses;
mod azure;
mod cilium;
mod cluster;
mod dependencies;
mod dnsmasq;
mod error;
mod hosts;
mod input;
mod json;
mod kubernetes;
mod order;
mod ordered;
mod rule;
mod selectors;
mod sink;
mod sources;
mod squid;
mod terraform;
#[cfg(test)]
mod tests;
mod workflow;

use std::path::{Path, PathBuf};

pub use self::{
    error::ImportError,
    hosts::HostError,
    sink::{Note, NoteKind},
};
use self::{input::Item, sink::Sink};
use crate::{
    read::{Node, Place, PolicyErrors, Problem, Value, yaml},
    write::Draft,
};

/// Most levels of lists around what is imported.
const DEPTH: usize = 4;

/// A format that can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportFormat {
    /// Azure Firewall: policies and classic ones, `az` output, ARM templates, `terraform show -json`.
    AzureFirewall,
    /// The answer to `outboundNetworkDependenciesEndpoints`.
    AzureDependencies,
    /// CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, and the CiliumCIDRGroups that they name.
    Cilium,
    /// NetworkPolicy, GKE's FQDNNetworkPolicy, and EKS's ApplicationNetworkPolicy.
    NetworkPolicy,
    /// Policies of Calico.
    Calico,
    /// EgressFirewall of OVN.
    EgressFirewall,
    /// Policies of Antrea.
    Antrea,
    /// ClusterNetworkPolicy and what it was before.
    ClusterNetworkPolicy,
    /// Workflows with harden-runner.
    HardenRunner,
    /// squid.conf.
    Squid,
    /// Lists of dnsmasq.
    Dnsmasq,
    /// A plain list of destinations.
    Hosts,
}

impl ImportFormat {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AzureFirewall => "azure-firewall",
            Self::AzureDependencies => "azure-dependencies",
            Self::Cilium => "cilium",
            Self::NetworkPolicy => "network-policy",
            Self::Calico => "calico",
            Self::EgressFirewall => "egress-firewall",
            Self::Antrea => "antrea",
            Self::ClusterNetworkPolicy => "cluster-network-policy",
            Self::HardenRunner => "harden-runner",
            Self::Squid => "squid",
            Self::Dnsmasq => "dnsmasq",
            Self::Hosts => "hosts",
        }
    }
}

/// The subjects of the policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImportSubject {
    /// Those that the source selects: objects of a cluster, where it has selectors.
    #[default]
    Selected,
    /// The node that they are installed on, whomever the source selects.
    Node,
}

/// The policies that an import makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The policies.
    pub policies: Vec<Draft>,
    /// Differences from the source, in the order of the policies.
    pub notes: Vec<Note>,
}

/// Imports texts, each with what messages call it. Without a format, each document tells its own.
///
/// # Errors
/// Everything that is wrong with the texts.
pub fn import<'a>(
    texts: impl IntoIterator<Item = (&'a Path, &'a str)>,
    format: Option<ImportFormat>,
    subject: ImportSubject,
) -> Result<Imported, PolicyErrors> {
    let mut sink = Sink::default();
    let mut files: Vec<(PathBuf, Vec<Node>)> = Vec::new();
    for (file, text) in texts {
        if let Some((line, problem)) = sources::problem(file, text) {
            sink.report.add(Place::field(file, line, ""), problem);
            continue;
        }
        let is_of = |wanted, is_it: fn(&str) -> bool| {
            format.map_or_else(|| is_it(text), |format| format == wanted)
        };
        if is_of(ImportFormat::Squid, squid::is_it) {
            squid::import(file, text, &mut sink);
            continue;
        }
        if is_of(ImportFormat::Dnsmasq, dnsmasq::is_it) {
            dnsmasq::import(file, text, &mut sink);
            continue;
        }
        let is_list = match format {
            Some(format) => format == ImportFormat::Hosts,
            None => hosts::is_list(text),
        };
        if is_list {
            hosts::import(file, text, &mut sink);
            continue;
        }
        let text = match json::without_comments(file, text) {
            Ok(text) => text,
            Err((line, problem)) => {
                sink.report.add(Place::field(file, line, ""), problem);
                continue;
            }
        };
        let text = text.as_ref();
        let (documents, wrong) = yaml::documents(text);
        match wrong {
            Some((line, problem)) => {
                let (line, problem): (_, Problem) = match json::wrong(text) {
                    Some((line, problem)) => (line, problem.into()),
                    None => (line, problem.into()),
                };
                sink.report.add(Place::field(file, line, ""), problem);
            }
            // Lines of text, the first of which is no destination.
            None if format.is_none() && is_text(&documents) => hosts::import(file, text, &mut sink),
            None => {
                let documents = documents.into_iter().map(|document| {
                    let item = Item::root(file, &document);
                    let translated =
                        terraform::is_it(&item).then(|| terraform::translated(&item, &mut sink));
                    translated.unwrap_or(document)
                });
                files.push((file.to_owned(), documents.collect()));
            }
        }
    }
    let mut sorted = Sorted::default();
    for (file, documents) in &files {
        for document in documents {
            sorted.add(Item::root(file, document), format, 0, &mut sink);
        }
    }
    if !sorted.azure.is_empty() {
        azure::import(&sorted.azure, &mut sink);
    }
    dependencies::import(&sorted.dependencies, &mut sink);
    cilium::import(&sorted.cilium, subject, &mut sink);
    for object in &sorted.kubernetes {
        kubernetes::import(object, subject, &mut sink);
    }
    ordered::import(&sorted.ordered, subject, &mut sink);
    cluster::import(&sorted.cluster, &mut sink);
    for workflow in &sorted.workflows {
        workflow::import(workflow, &mut sink);
    }
    let has_none = sink.drafts.is_empty();
    for (object, kind) in &sorted.others {
        if has_none {
            let kind = with_group(object, kind);
            sink.wrong(object, ImportError::UnknownKind(input::named(&kind)));
        } else {
            let kind = with_group(object, kind);
            let text = format!("a {kind} is not imported");
            sink.notes.push(Note::new(object, NoteKind::LeftOut, text));
        }
    }
    if has_none && sorted.others.is_empty() && sink.report.is_empty() {
        let place = files.first().map_or(Path::new("stdin"), |(file, _)| file);
        sink.report
            .add(Place::file(place), ImportError::NothingToImport);
    }
    sink.report.finish(Imported {
        policies: sink.drafts,
        notes: sink.notes,
    })
}

/// True if a file holds text alone.
fn is_text(documents: &[Node]) -> bool {
    let mut documents = documents.iter().map(|document| &document.value);
    let is_text = |value: &Value| matches!(value, Value::Text(text) if !text.starts_with("<"));
    documents.len() > 0 && documents.all(is_text)
}

/// Documents by format.
#[derive(Default)]
struct Sorted<'n> {
    azure: Vec<Item<'n>>,
    dependencies: Vec<Item<'n>>,
    cilium: Vec<Item<'n>>,
    kubernetes: Vec<Item<'n>>,
    ordered: Vec<(Item<'n>, ordered::Dialect)>,
    cluster: Vec<Item<'n>>,
    workflows: Vec<Item<'n>>,
    /// Objects of other kinds.
    others: Vec<(Item<'n>, &'n str)>,
}

impl<'n> Sorted<'n> {
    fn add(&mut self, item: Item<'n>, wanted: Option<ImportFormat>, depth: usize, sink: &mut Sink) {
        if matches!(item.value(), Value::Null) {
            return;
        }
        if let Some(list) = list_of(&item).filter(|_| depth < DEPTH) {
            for item in list.items() {
                self.add(item, wanted, depth.saturating_add(1), sink);
            }
            return;
        }
        let Some(found) = format_of(&item) else {
            match item.word("kind") {
                // A dump of a cluster holds many kinds.
                Some(kind) if wanted.is_none() => self.others.push((item.clone(), kind)),
                Some(kind) => {
                    let kind = with_group(&item, kind);
                    sink.wrong(&item, ImportError::UnknownKind(input::named(&kind)));
                }
                None => sink.wrong(&item, ImportError::UnknownFormat),
            }
            return;
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            let problem = ImportError::OtherFormat {
                found: found.name(),
                wanted: wanted.name(),
            };
            return sink.wrong(&item, problem);
        }
        match found {
            ImportFormat::AzureFirewall => self.azure.push(item),
            ImportFormat::AzureDependencies => self.dependencies.push(item),
            ImportFormat::Cilium => self.cilium.push(item),
            ImportFormat::NetworkPolicy => self.kubernetes.push(item),
            ImportFormat::Calico => self.ordered.push((item, ordered::Dialect::Calico)),
            ImportFormat::EgressFirewall => self.ordered.push((item, ordered::Dialect::Ovn)),
            ImportFormat::Antrea => self.ordered.push((item, ordered::Dialect::Antrea)),
            ImportFormat::ClusterNetworkPolicy => self.cluster.push(item),
            ImportFormat::HardenRunner => self.workflows.push(item),
            // No document is one.
            ImportFormat::Squid | ImportFormat::Dnsmasq | ImportFormat::Hosts => {}
        }
    }
}

/// A kind, with its group if it is not one of Kubernetes' own: others have kinds of the same names.
fn with_group(item: &Item<'_>, kind: &str) -> String {
    let group = item
        .word("apiVersion")
        .and_then(|version| version.split_once('/'));
    match group {
        Some((group, _)) if group.contains('.') => format!("{group}/{kind}"),
        Some(_) | None => kind.to_owned(),
    }
}

/// The list, if the value is only a wrapping around one: a list itself, `value` of Azure, `data` of its Resource Graph,
/// `items` of Kubernetes.
fn list_of<'n>(item: &Item<'n>) -> Option<Item<'n>> {
    if matches!(item.value(), Value::List(_)) {
        return Some(item.clone());
    }
    let is_list = |item: &Item<'_>| matches!(item.value(), Value::List(_));
    let name = if item.word("kind").is_some_and(|kind| kind.ends_with("List")) {
        "items"
    } else if item.get("total_records").is_some() || item.get("totalRecords").is_some() {
        "data"
    } else {
        "value"
    };
    item.get(name).filter(is_list)
}

/// The format of a document.
fn format_of(item: &Item<'_>) -> Option<ImportFormat> {
    let kind = item.word("kind").unwrap_or_default();
    let version = item.word("apiVersion").unwrap_or_default();
    let properties = item.get("properties").unwrap_or_else(|| item.clone());
    match kind {
        "CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy" | "CiliumCIDRGroup" => {
            Some(ImportFormat::Cilium)
        }
        _ if kubernetes::is_it(kind, version) => Some(ImportFormat::NetworkPolicy),
        _ if ordered::dialect(kind, version).is_some() => {
            Some(match ordered::dialect(kind, version)? {
                ordered::Dialect::Calico => ImportFormat::Calico,
                ordered::Dialect::Ovn => ImportFormat::EgressFirewall,
                ordered::Dialect::Antrea => ImportFormat::Antrea,
            })
        }
        "ClusterNetworkPolicy" | "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy"
            if version.starts_with("policy.networking.k8s.io/")
                || version.starts_with("networking.k8s.aws/") =>
        {
            Some(ImportFormat::ClusterNetworkPolicy)
        }
        _ if azure::is_parameters_file(item)
            || azure::is_template(item)
            || azure::is_resource(item) =>
        {
            Some(ImportFormat::AzureFirewall)
        }
        _ if workflow::is_it(item) => Some(ImportFormat::HardenRunner),
        _ if properties.get("endpoints").is_some() => Some(ImportFormat::AzureDependencies),
        _ => None,
    }
}
