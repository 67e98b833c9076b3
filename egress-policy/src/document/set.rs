//! Checked policies, and sets of them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use egress_common::{policy::PortRange, verdict::Mode};
use serde::{Serialize, Serializer};

use super::{
    catalog::Catalog,
    check::check_part,
    error::DocumentError,
    schema::{API_VERSION, EgressPolicy},
    service_tags::ServiceTag,
};
use crate::{
    read::{Located, Part, Place, PolicyErrors, Reader, Report, yaml},
    vocabulary::{Cidr, NamePattern, Ttl, quoted},
};

/// Most destinations of one set, each as often as it is named: names, networks, and the prefixes of service tags, those
/// of presets too. The kernel's tables hold far fewer different ones.
pub(crate) const DESTINATIONS: usize = 500_000;

/// The list of a policy that a rule stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleList {
    /// The lifeline, which the agent makes: it keeps the node manageable.
    Lifeline,
    /// `spec.allow`.
    Allow,
    /// `spec.deny`.
    Deny,
}

impl RuleList {
    /// The name in JSON and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lifeline => "lifeline",
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// A checked rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Position in its list, from 0; rules of one preset share it.
    pub index: usize,
    /// Line in the file, from 1.
    pub line: usize,
    /// The preset that it comes from.
    pub preset: Option<String>,
    /// Names and patterns.
    pub names: Vec<Located<NamePattern>>,
    /// Networks and addresses.
    pub cidrs: Vec<Located<Cidr>>,
    /// Service tags.
    pub service_tags: Vec<Located<Arc<ServiceTag>>>,
    /// Ports as the user wrote them, without repetitions; empty means any.
    pub ports: Vec<PortRange>,
}

impl Rule {
    /// The proof that it asks of connections, as its ports hold it.
    pub(crate) fn require(&self) -> u8 {
        self.ports.first().map_or(0, |range| range.require)
    }

    /// How many destinations it names besides those that stand in the file one by one.
    pub(crate) fn destinations_behind(&self) -> usize {
        let tags = self.service_tags.iter();
        let prefixes = tags.map(|tag| tag.value.prefixes.len()).sum::<usize>();
        let of_preset = if self.preset.is_some() {
            self.names.len().saturating_add(self.cidrs.len())
        } else {
            0
        };
        prefixes.saturating_add(of_preset)
    }
}

/// A checked policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The document as it was written, with defaults filled in.
    pub document: EgressPolicy,
    /// The file that it stands in.
    pub file: PathBuf,
    /// Line where the document starts.
    pub line: usize,
    /// True if denials stand.
    pub mode: Mode,
    /// How long learned addresses live.
    pub ttl: Ttl,
    /// True if TCP flows that are older than the enforcement go on.
    pub keeps_preexisting: bool,
    /// True if only queries for allowed names may be asked.
    pub restricts_queries: bool,
    /// Rules of `spec.allow`.
    pub allow: Vec<Rule>,
    /// Rules of `spec.deny`.
    pub deny: Vec<Rule>,
}

impl Policy {
    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.document.metadata.name
    }

    /// Its unique key: on a node its name, in a cluster that of the API server.
    fn identity(&self) -> (Option<(&str, Option<&str>)>, &str) {
        let document = &self.document;
        let of_cluster = document.selects().then_some((
            document.kind.as_str(),
            document.metadata.namespace.as_deref(),
        ));
        (of_cluster, self.name())
    }

    /// The rules of a list; none for the lifeline, which no policy holds.
    #[must_use]
    pub fn rules(&self, list: RuleList) -> &[Rule] {
        match list {
            RuleList::Allow => &self.allow,
            RuleList::Deny => &self.deny,
            RuleList::Lifeline => &[],
        }
    }
}

impl Serialize for Policy {
    /// The document.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.document.serialize(serializer)
    }
}

/// Reads the policies of one text. `file` is what messages call it.
///
/// # Errors
/// Everything that is wrong with the text.
pub fn parse(file: &Path, text: &str, catalog: &Catalog) -> Result<Vec<Policy>, PolicyErrors> {
    let mut left = DESTINATIONS;
    parse_up_to(file, text, catalog, &mut left)
}

/// As [`parse`], with as many destinations as are left.
fn parse_up_to(
    file: &Path,
    text: &str,
    catalog: &Catalog,
    left: &mut usize,
) -> Result<Vec<Policy>, PolicyErrors> {
    let mut report = Report::default();
    let (documents, wrong) = yaml::documents(text);
    let mut policies = Vec::new();
    let mut holds_any = false;
    for document in &documents {
        // `---` at the end of a file starts an empty document.
        if !matches!(document.value, yaml::Value::Null) {
            holds_any = true;
            if let Some(read) = Reader::new(file, &mut report).policy(document) {
                let part = Part::document(Some(document));
                policies.push(check_part(read, part, file, catalog, left, &mut report));
            }
        }
    }
    if let Some((line, problem)) = wrong {
        report.add(Place::field(file, line, ""), problem);
    } else if !holds_any {
        report.add(Place::file(file), DocumentError::EmptyFile(API_VERSION));
    }
    report.sort_by_line();
    report.finish(policies)
}

/// Policies that apply together, with unique names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PolicySet {
    policies: Vec<Policy>,
}

impl FromIterator<Policy> for PolicySet {
    /// Policies that have different names.
    fn from_iter<T: IntoIterator<Item = Policy>>(policies: T) -> Self {
        Self {
            policies: policies.into_iter().collect(),
        }
    }
}

impl PolicySet {
    /// Reads the policies of several texts, each with what messages call it.
    ///
    /// # Errors
    /// Everything that is wrong with the texts, and names that are used twice.
    pub fn from_texts<'a>(
        texts: impl IntoIterator<Item = (&'a Path, &'a str)>,
        catalog: &Catalog,
    ) -> Result<Self, PolicyErrors> {
        let mut report = Report::default();
        let mut policies: Vec<Policy> = Vec::new();
        let mut left = DESTINATIONS;
        for (file, text) in texts {
            match parse_up_to(file, text, catalog, &mut left) {
                Ok(parsed) => policies.extend(parsed),
                Err(errors) => report.extend(errors),
            }
        }
        let mut first_of: HashMap<_, &Policy> = HashMap::new();
        for policy in &policies {
            if let Some(first) = first_of.get(&policy.identity()) {
                report.add(
                    Place::field(&policy.file, policy.line, "metadata.name"),
                    DocumentError::DuplicatePolicy {
                        name: quoted(policy.name()),
                        first: format!("{}:{}", first.file.display(), first.line),
                    },
                );
            } else {
                first_of.insert(policy.identity(), policy);
            }
        }
        report.finish(Self { policies })
    }

    /// The policies that apply together on a node, and those for what only a cluster knows, each by itself.
    #[must_use]
    pub fn by_subjects(&self) -> (Self, Vec<Self>) {
        let (of_cluster, of_node) = self
            .policies
            .iter()
            .cloned()
            .partition::<Vec<_>, _>(|policy| policy.document.selects());
        let alone = |policy| Self {
            policies: vec![policy],
        };
        (
            Self { policies: of_node },
            of_cluster.into_iter().map(alone).collect(),
        )
    }

    /// The policies, in the order of files and documents.
    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\nmetadata: { name: a }\nspec:\n";

    /// The rest of `left` destinations after a policy with this in its spec.
    fn left_of(left: usize, spec: &str) -> Result<usize, PolicyErrors> {
        let mut left = left;
        let text = format!("{HEAD}{spec}");
        let catalog = Catalog::default();
        parse_up_to(Path::new("a.yaml"), &text, &catalog, &mut left).map(|_| left)
    }

    #[test]
    fn destinations_are_counted_as_often_as_they_are_named() {
        let spec =
            "  allow:\n  - names: [a.b, a.b]\n  - cidrs: [192.0.2.1]\n  deny:\n  - names: [a.b]\n";
        assert_eq!(left_of(5, spec), Ok(1));
        assert_eq!(left_of(4, spec), Ok(0));
        let error = left_of(3, spec).unwrap_err();
        assert_eq!(error.errors().len(), 1);
        let place = Place::field(Path::new("a.yaml"), 9, "spec.deny[0]");
        assert_eq!(error.errors()[0].place, place);
        let problem = DocumentError::TooManyDestinations(DESTINATIONS).into();
        assert_eq!(error.errors()[0].problem, problem);
    }

    #[test]
    fn what_a_preset_names_counts_each_time() {
        let rule = "  - { preset: aks/azure-global, with: { location: eastus } }\n";
        let count = DESTINATIONS - left_of(DESTINATIONS, &format!("  allow:\n{rule}")).unwrap();
        assert!(count > 5, "{count}");
        let twice = format!("  allow:\n{rule}{rule}");
        assert_eq!(left_of(2 * count, &twice), Ok(0));
        assert!(left_of(2 * count - 1, &twice).is_err());
    }
}
