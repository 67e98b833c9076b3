//! squid.conf: which destinations `http_access` lets through. The first line whose lists all match decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use egress_common::policy::PortRange;

use super::{
    addresses::parse_network,
    input::{Item, named},
    order::first_match_to_deny_wins,
    rule::Carried,
    sink::Sink,
};
use crate::{
    read::{Node, Value},
    vocabulary::{parse_port_range, ports_text},
};

/// Other directives that decide what is reached.
const ALSO: &[&str] = &[
    "adapted_http_access",
    "always_direct",
    "cache_peer",
    "include",
    "never_direct",
    "ssl_bump",
    "tcp_outgoing_address",
    "url_rewrite_program",
];

/// Types of lists of destinations.
const DESTINATIONS: &[&str] = &["dst", "dstdom_regex", "dstdomain", "url_regex"];

/// True if the text is one.
pub(super) fn is_it(text: &str) -> bool {
    text.lines()
        .any(|line| line.trim_start().starts_with("http_access "))
}

/// A value of a list, and where it stands.
type AclValue<'n> = (Item<'n>, String);

/// A list of squid's, as its lines have it together.
#[derive(Default)]
struct Acl<'n> {
    kind: String,
    values: Vec<AclValue<'n>>,
    is_used: bool,
}

/// Makes a policy of a file.
pub(super) fn import(file: &Path, text: &str, sink: &mut Sink) {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy());
    let mut draft = sink.draft(stem.as_deref().unwrap_or_default());
    let nodes = lines(text);
    let mut acls = BTreeMap::<String, Acl<'_>>::new();
    let mut others = BTreeSet::new();
    let mut rules: Vec<Carried<'_>> = Vec::new();
    let mut ceiling = Ceiling::default();
    for node in &nodes {
        let at = Item::root(file, node);
        let line = at.text().unwrap_or_default().to_owned();
        let mut words = line.split_whitespace();
        match words.next() {
            None => {}
            Some("acl") => {
                let (Some(name), Some(kind)) = (words.next(), words.next()) else {
                    sink.choice(&at, "acl NAME TYPE VALUE...");
                    continue;
                };
                let acl = acls.entry(name.to_owned()).or_default();
                kind.clone_into(&mut acl.kind);
                acl.values
                    .extend(words.map(|word| (at.clone(), word.to_owned())));
            }
            Some("http_access") => {
                let is_deny = match words.next() {
                    Some("allow") => false,
                    Some("deny") => true,
                    _ => {
                        sink.choice(&at, "http_access allow or http_access deny");
                        continue;
                    }
                };
                let names: Vec<&str> = words.collect();
                let rule = Reader {
                    acls: &mut acls,
                    sink,
                }
                .rule(&at, &line, is_deny, &names, &mut ceiling);
                rules.push(rule);
            }
            Some(word) if ALSO.contains(&word) => {
                let mut rule = Carried::new(at.clone(), &line, false);
                rule.left_out(&at, format!("{word} decides too what is reached there"));
                rules.push(rule);
            }
            Some(word) => {
                others.insert(word.to_owned());
            }
        }
    }
    let unused = acls.iter().filter(|(_, acl)| !acl.is_used);
    let unused: Vec<&str> = unused.map(|(name, _)| name.as_str()).collect();
    if !unused.is_empty() {
        draft
            .comments
            .push(format!("In no http_access: {}.", unused.join(", ")));
    }
    if !others.is_empty() {
        let others: Vec<String> = others.into_iter().collect();
        draft
            .comments
            .push(format!("Not about destinations: {}.", others.join(", ")));
    }
    first_match_to_deny_wins(&mut rules);
    for rule in rules {
        rule.finish(&mut draft, sink);
    }
    sink.drafts.push(draft);
}

/// Lines without comments; what ends in a backslash goes on.
fn lines(text: &str) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut open: Option<Node> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let line = if line.starts_with('#') {
            ""
        } else {
            line.split(" #").next().unwrap_or(line)
        };
        let (line, goes_on) = match line.strip_suffix('\\') {
            Some(line) => (line, true),
            None => (line, false),
        };
        let node = match open.take() {
            Some(Node {
                line: first,
                value: Value::Text(before),
            }) => Node {
                line: first,
                value: Value::Text(format!("{before} {line}")),
            },
            Some(_) | None => Node {
                line: index.saturating_add(1),
                value: Value::Text(line.to_owned()),
            },
        };
        if goes_on {
            open = Some(node);
        } else {
            nodes.push(node);
        }
    }
    nodes.extend(open);
    nodes
}

/// The ports and destinations that `deny !Safe_ports` and `deny !allowed` leave to all lines after them.
#[derive(Default)]
struct Ceiling<'n> {
    ports: Option<Vec<PortRange>>,
    /// A list of destinations: its name, type and values.
    destinations: Option<(String, String, Vec<AclValue<'n>>)>,
}

struct Reader<'a, 'n> {
    acls: &'a mut BTreeMap<String, Acl<'n>>,
    sink: &'a mut Sink,
}

impl<'n> Reader<'_, 'n> {
    fn rule(
        &mut self,
        at: &Item<'n>,
        line: &str,
        is_deny: bool,
        names: &[&str],
        ceiling: &mut Ceiling<'n>,
    ) -> Carried<'n> {
        let mut rule = Carried::new(at.clone(), line, is_deny);
        if let ([only], true) = (names, is_deny)
            && let Some(name) = only.strip_prefix('!')
            && self.is_ceiling(at, name, ceiling, &mut rule)
        {
            return rule;
        }
        let mut has_destination = false;
        let mut ports: Option<Vec<PortRange>> = None;
        for name in names {
            let (name, is_not) = match name.strip_prefix('!') {
                Some(name) => (name, true),
                None => (*name, false),
            };
            let (kind, values) = self.acl(name);
            match (kind.as_str(), is_not) {
                ("all", false) => {}
                ("dstdomain" | "dst" | "dstdom_regex" | "url_regex", false) => {
                    if has_destination {
                        // Both have to match there: what that leaves cannot be said here.
                        rule.names.clear();
                        rule.cidrs.clear();
                        rule.left_out(at, "two lists of destinations that both have to match");
                        return rule;
                    }
                    has_destination = true;
                    for (value_at, value) in &values {
                        destination(&mut rule, value_at, &kind, value);
                    }
                }
                ("dstdomain" | "dst" | "dstdom_regex" | "url_regex", true) if !is_deny => {
                    let text = format!("not to {name} there: a deny rule would say that here");
                    rule.left_out(at, text);
                    return rule;
                }
                ("port", false) => ports = self.ports_of(name),
                ("port", true) if !is_deny => {
                    rule.left_out(
                        at,
                        format!("on other ports than {name}: list those that are meant"),
                    );
                    return rule;
                }
                (_, true) => {
                    rule.narrower_there(
                        at,
                        format!("only where {name} ({kind}) does not match there"),
                    );
                }
                (_, false) => {
                    rule.narrower_there(at, format!("only for {name} ({kind}) there"));
                }
            }
        }
        match &ceiling.destinations {
            Some((name, _, _)) if has_destination && !is_deny => {
                rule.narrower_there(at, format!("also only to {name} there"));
            }
            Some((name, kind, values)) if !is_deny => {
                rule.remark(format!("Only to {name}."));
                for (value_at, value) in values {
                    destination(&mut rule, value_at, kind, value);
                }
            }
            _ if has_destination => {}
            // The rest is denied anyway; on all that it does not say, this would deny everything.
            _ if is_deny && rule.is_narrower_there => {
                rule.left_out(at, "denies by something else than destinations");
                return rule;
            }
            _ => rule.add_world(),
        }
        let ports = match (ports, &ceiling.ports) {
            (Some(ports), Some(ceiling)) if !is_deny => Some(common(&ports, ceiling)),
            (None, ceiling) if !is_deny => ceiling.clone(),
            (ports, _) => ports,
        };
        match ports {
            Some(ports) => {
                rule.restrict_ports();
                ports.into_iter().for_each(|range| rule.add_port(range));
            }
            // It proxies TCP alone.
            None if is_deny => {}
            None => rule.add_ports(at, "*", "tcp", self.sink),
        }
        rule
    }

    /// True if all that is not in this list is denied from here on, and the list is one of ports or destinations.
    fn is_ceiling(
        &mut self,
        at: &Item<'n>,
        name: &str,
        ceiling: &mut Ceiling<'n>,
        rule: &mut Carried<'n>,
    ) -> bool {
        let is_second = if let Some(ports) = self.ports_of(name) {
            rule.remark(format!("Only {} for the rules below.", ports_text(&ports)));
            ceiling.ports.replace(ports).is_some()
        } else {
            let (kind, values) = self.acl(name);
            if !DESTINATIONS.contains(&kind.as_str()) {
                return false;
            }
            rule.remark(format!("Only to {name} for the rules below."));
            let destinations = (name.to_owned(), kind, values);
            ceiling.destinations.replace(destinations).is_some()
        };
        if is_second {
            rule.differs(at, "the one before it holds there as well");
        }
        true
    }

    /// A list by its name: its type and values. Some are there without a line.
    fn acl(&mut self, name: &str) -> (String, Vec<AclValue<'n>>) {
        match self.acls.get_mut(name) {
            Some(acl) => {
                acl.is_used = true;
                (acl.kind.clone(), acl.values.clone())
            }
            None if name == "all" => ("all".to_owned(), Vec::new()),
            None if name == "CONNECT" => ("method".to_owned(), Vec::new()),
            None if name == "localhost" => ("src".to_owned(), Vec::new()),
            None if name == "manager" => ("url_regex".to_owned(), Vec::new()),
            None if matches!(name, "to_localhost" | "to_linklocal") => {
                ("dst".to_owned(), Vec::new())
            }
            None => ("unknown".to_owned(), Vec::new()),
        }
    }

    /// The ports of a list, if it is one of ports.
    fn ports_of(&mut self, name: &str) -> Option<Vec<PortRange>> {
        let acl = self.acls.get_mut(name).filter(|acl| acl.kind == "port")?;
        acl.is_used = true;
        let mut ports = Vec::new();
        for (at, value) in &acl.values {
            match parse_port_range(&format!("{value}/tcp")) {
                Ok(range) => ports.push(range),
                Err(error) => self.sink.wrong(at, error),
            }
        }
        Some(ports)
    }
}

/// The ports that both have.
fn common(ports: &[PortRange], others: &[PortRange]) -> Vec<PortRange> {
    let pairs = ports
        .iter()
        .flat_map(|range| others.iter().map(move |other| (range, other)));
    let common = pairs.filter_map(|(range, other)| {
        let (first, last) = (range.first.max(other.first), range.last.min(other.last));
        (range.proto == other.proto && first <= last)
            .then(|| PortRange::new(range.proto, first, last))
    });
    common.collect()
}

fn destination(rule: &mut Carried<'_>, at: &Item<'_>, kind: &str, value: &str) {
    let is_file = value.starts_with('"') || value.contains('(');
    match kind {
        // `-n`: no lookups of names.
        _ if value == "-n" => {}
        _ if is_file && kind != "url_regex" && kind != "dstdom_regex" => {
            let text = format!(
                "the list in {}: import that file too",
                named(value.trim_matches('"'))
            );
            rule.left_out(at, text);
        }
        "dstdomain" => match value.strip_prefix('.') {
            Some(domain) => {
                let count = rule.names.len();
                rule.add_name(at, domain);
                if rule.names.len() > count {
                    rule.add_name(at, &format!("*.{domain}"));
                }
            }
            None => rule.add_name(at, value),
        },
        "dst" if value == "all" => rule.add_world(),
        "dst" => match parse_network(value) {
            Ok(network) => rule.cidrs.push(network),
            Err(error) => rule.left_out(at, format!("dst {error}")),
        },
        _ => rule.left_out(at, format!("the pattern {}: list the names", named(value))),
    }
}
