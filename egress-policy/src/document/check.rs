//! From a document to a checked policy.

use std::{collections::HashSet, path::Path};

use egress_common::policy::{CIDR_ENTRIES, NAME_ENTRIES, PortRange, protocol};

use super::{
    catalog::Catalog,
    error::DocumentError,
    schema::{
        CLUSTER_KIND, EgressPolicy, KIND, Preexisting, Queries, Spec, SpecRule, SpecTtl, Subject,
    },
    set::{DESTINATIONS, Policy, Rule},
    tree::RULE,
};
use crate::{
    read::{Located, Part, Place, PolicyErrors, Problem, Report, is_mapping, is_text},
    vocabulary::{
        MAX_GRACE_S, RuleError, Ttl, TtlError, lifeline, parse_duration_s, parse_name_pattern,
        parse_port_range, quoted,
    },
};

/// Checks a document that came as values, from an API server. `name` is what messages call it.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check(
    document: EgressPolicy,
    name: &Path,
    catalog: &Catalog,
) -> Result<Policy, PolicyErrors> {
    let mut report = Report::default();
    let mut left = DESTINATIONS;
    let part = Part::document(None);
    let policy = check_part(document, part, name, catalog, &mut left, &mut report);
    report.finish(policy)
}

/// Checks a document, which may name as many destinations as are left. It is of use if nothing was reported.
pub(super) fn check_part(
    document: EgressPolicy,
    part: Part<'_>,
    file: &Path,
    catalog: &Catalog,
    left: &mut usize,
    report: &mut Report,
) -> Policy {
    let mut check = Check {
        file,
        catalog,
        left: *left,
        report,
    };
    let policy = check.policy(document, part);
    *left = check.left;
    policy
}

/// The check of one document.
pub(super) struct Check<'a> {
    pub(super) file: &'a Path,
    pub(super) catalog: &'a Catalog,
    /// Destinations that may still be named.
    left: usize,
    report: &'a mut Report,
}

impl Check<'_> {
    /// Reports what is wrong with a part.
    pub(super) fn wrong(&mut self, part: Part<'_>, problem: impl Into<Problem>) {
        let place = Place::field(self.file, part.line, part.path.to_string());
        self.report.add(place, problem);
    }

    /// Reports what is wrong elsewhere.
    pub(super) fn extend(&mut self, errors: PolicyErrors) {
        self.report.extend(errors);
    }

    fn policy(&mut self, document: EgressPolicy, part: Part<'_>) -> Policy {
        self.metadata(&document, part.field("metadata"));
        let spec = &document.spec;
        let spec_part = part.field("spec");
        self.selection(&document, spec_part);
        let ttl = self.ttl(&spec.ttl, spec_part.field("ttl"));
        let allow = self.rules(&spec.allow, spec_part.field("allow"), false);
        let deny = self.rules(&spec.deny, spec_part.field("deny"), true);
        self.ceiling(spec, spec_part);
        Policy {
            mode: spec.mode.into(),
            keeps_preexisting: spec.preexisting == Preexisting::Keep,
            restricts_queries: spec.dns.queries == Queries::Allowed,
            file: self.file.to_owned(),
            line: part.line,
            ttl,
            allow,
            deny,
            document,
        }
    }

    fn metadata(&mut self, document: &EgressPolicy, part: Part<'_>) {
        let name_part = part.field("name");
        let name = document.metadata.name.as_str();
        if !name_part.is_default() && name_part.is_read(is_text) {
            let is_end = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let bytes = name.as_bytes();
            let is_good = (1..=253).contains(&bytes.len())
                && bytes
                    .iter()
                    .all(|byte| is_end(*byte) || matches!(byte, b'-' | b'.'))
                && bytes.first().is_some_and(|byte| is_end(*byte))
                && bytes.last().is_some_and(|byte| is_end(*byte));
            if !is_good {
                self.wrong(name_part, DocumentError::BadPolicyName(quoted(name)));
            } else if name == lifeline::POLICY {
                self.wrong(name_part, DocumentError::ReservedName(quoted(name)));
            }
        }
        let namespace = part.field("namespace");
        let has_namespace = namespace.is_given() || document.metadata.namespace.is_some();
        if has_namespace && document.kind == CLUSTER_KIND {
            self.wrong(namespace, DocumentError::OnlyOfNamespace);
        }
    }

    /// The subjects of the policy.
    fn selection(&mut self, document: &EgressPolicy, part: Part<'_>) {
        let spec = &document.spec;
        let selectors = [
            ("namespaceSelector", &spec.namespace_selector),
            ("podSelector", &spec.pod_selector),
            ("nodeSelector", &spec.node_selector),
        ];
        for (name, selector) in selectors {
            if let Some(selector) = selector {
                self.selector(selector, part.field(name));
            }
        }
        let is_of_node = spec.subject == Subject::Node;
        for (name, is_set) in [
            ("ceiling", spec.ceiling),
            ("namespaceSelector", spec.namespace_selector.is_some()),
            ("nodeSelector", spec.node_selector.is_some()),
            ("podSelector", spec.pod_selector.is_some()),
            ("subject", !spec.subject.is_pods()),
        ] {
            let part = part.field(name);
            if !is_set && !part.is_given() {
                continue;
            }
            let is_of_pods = ["namespaceSelector", "podSelector"].contains(&name);
            if document.kind == KIND && name != "podSelector" {
                self.wrong(part, DocumentError::OnlyOfCluster);
            } else if is_of_pods && is_of_node {
                self.wrong(part, DocumentError::SelectsPods);
            } else if name == "ceiling" && is_of_node {
                self.wrong(part, DocumentError::CeilingOfNode);
            }
        }
    }

    /// A ceiling opens nothing, so that nothing can be required of what it opens.
    fn ceiling(&mut self, spec: &Spec, part: Part<'_>) {
        let list = part.field("allow");
        for (rule, (_, part)) in spec.allow.iter().zip(list.items(is_mapping)) {
            if spec.ceiling && !rule.require.is_none() {
                let require = part.field("require").on_line(part.line);
                self.wrong(require, DocumentError::RequiresOfCeiling);
            }
        }
    }

    fn ttl(&mut self, spec: &SpecTtl, part: Part<'_>) -> Ttl {
        let mut ttl = Ttl::default();
        let mut is_good = true;
        for (name, text, seconds) in [
            ("min", &spec.min, &mut ttl.min_s),
            ("grace", &spec.grace, &mut ttl.grace_s),
            ("max", &spec.max, &mut ttl.max_s),
        ] {
            let part = part.field(name);
            if !part.is_default() && !part.is_read(is_text) {
                is_good = false;
                continue;
            }
            let error = match parse_duration_s(text) {
                Ok(0) if name == "max" => Some(TtlError::Zero(quoted(text))),
                Ok(value) if name == "grace" && value > MAX_GRACE_S => {
                    Some(TtlError::LongGrace(quoted(text)))
                }
                Ok(value) => {
                    *seconds = value;
                    None
                }
                Err(error) => Some(error),
            };
            if let Some(error) = error {
                is_good = false;
                self.wrong(part, error);
            }
        }
        if is_good && ttl.min_s > ttl.max_s {
            let told = |name: &str, text: &str| {
                let is_default = part.field(name).is_default();
                let note = if is_default { " (the default)" } else { "" };
                format!("{text}{note}")
            };
            let (min, max) = (told("min", &spec.min), told("max", &spec.max));
            self.wrong(part, TtlError::Reversed { min, max });
        }
        ttl
    }

    fn rules(&mut self, specs: &[SpecRule], list: Part<'_>, is_deny: bool) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (spec, (index, part)) in specs.iter().zip(list.items(is_mapping)) {
            let written = spec.names.len().saturating_add(spec.cidrs.len());
            if !self.counts_destinations(part, written) {
                break;
            }
            let checked = rules.len();
            let fields = [part.field("preset"), part.field("with")];
            let is_written = fields.iter().any(Part::is_there);
            if is_written || spec.preset.is_some() || !spec.with.is_empty() {
                rules.extend(self.preset(spec, part, index, is_deny));
            } else {
                rules.push(self.rule(spec, part, index, is_deny));
            }
            let added = rules.iter().skip(checked).map(Rule::destinations_behind);
            if !self.counts_destinations(part, added.sum()) {
                break;
            }
        }
        rules
    }

    /// Counts destinations of a rule; false, and reported, if they are too many.
    fn counts_destinations(&mut self, part: Part<'_>, count: usize) -> bool {
        let left = self.left.checked_sub(count);
        self.left = left.unwrap_or(0);
        if left.is_none() {
            self.wrong(part, DocumentError::TooManyDestinations(DESTINATIONS));
        }
        left.is_some()
    }

    /// The values of texts.
    fn values<T, E: Into<Problem>>(
        &mut self,
        texts: &[String],
        list: Part<'_>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<Located<T>> {
        let mut values = Vec::with_capacity(texts.len());
        for (text, (_, part)) in texts.iter().zip(list.items(is_text)) {
            match parse(text) {
                Ok(value) => values.push(Located {
                    value,
                    text: text.clone(),
                    line: part.line,
                }),
                Err(error) => self.wrong(part, error),
            }
        }
        values
    }

    /// A rule with destinations of its own.
    fn rule(&mut self, spec: &SpecRule, part: Part<'_>, index: usize, is_deny: bool) -> Rule {
        let catalog = self.catalog;
        let parts = ["names", "cidrs", "serviceTags", "ports"];
        let [names_part, cidrs_part, tags_part, ports_part] = parts.map(|name| part.field(name));
        let names = self.values(&spec.names, names_part, parse_name_pattern);
        let cidrs = self.values(&spec.cidrs, cidrs_part, str::parse);
        let service_tags = self.values(&spec.service_tags, tags_part, |text| {
            catalog.service_tag(text)
        });
        let has_names = !names_part.is_empty_list(spec.names.len());
        let has_cidrs = !cidrs_part.is_empty_list(spec.cidrs.len());
        let has_tags = !tags_part.is_empty_list(spec.service_tags.len());
        // An unknown field may be a destination with a wrong name.
        let is_complete = part.keys().is_none_or(|keys| {
            let mut seen = HashSet::new();
            keys.iter()
                .all(|(key, _)| RULE.contains(key) && seen.insert(*key))
        });
        if is_complete && !has_names && !has_cidrs && !has_tags {
            self.wrong(part, RuleError::NoDestination);
        }
        let mut ports = Vec::new();
        if let Some(texts) = &spec.ports {
            if ports_part.is_empty_list(texts.len()) {
                self.wrong(ports_part, RuleError::NoPorts);
            } else {
                ports = self.values(texts, ports_part, parse_port_range);
            }
        }
        let (what, max) = if has_names {
            ("a rule with names", NAME_ENTRIES)
        } else if has_cidrs {
            ("a rule with cidrs", CIDR_ENTRIES)
        } else {
            ("a rule with serviceTags", CIDR_ENTRIES)
        };
        // Repetitions count: a schema cannot tell them.
        let count = ports.len();
        if count > max {
            let problem = DocumentError::TooManyPorts { count, what, max };
            self.wrong(ports_part, problem);
        }
        let mut seen = HashSet::new();
        let given = ports.iter().map(|port| port.value);
        let ranges: Vec<PortRange> = given.filter(|range| seen.insert(*range)).collect();
        if is_deny && has_names && !ranges.is_empty() && !ranges.contains(&PortRange::ANY) {
            self.wrong(ports_part, DocumentError::DeniedNameWithPorts);
        }
        if !spec.require.is_none() {
            let require = part.field("require");
            if is_deny {
                self.wrong(require, DocumentError::RequiresOfDenied);
            } else if !has_names || has_cidrs || has_tags {
                self.wrong(require, DocumentError::RequiresOfOthers);
            } else if spec.ports.is_none()
                || ranges.iter().any(|range| range.proto != protocol::TCP)
            {
                self.wrong(require, DocumentError::RequiresOtherPorts);
            }
        }
        let bits = spec.require.bits();
        let ranges = ranges.into_iter().map(|range| range.requiring(bits));
        Rule {
            index,
            line: part.line,
            preset: None,
            names,
            cidrs,
            service_tags,
            ports: ranges.collect(),
        }
    }
}
