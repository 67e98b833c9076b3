//! Rules in an order, for pods: policies of Calico and Antrea, and OVN's EgressFirewall: what they say about egress.

use super::{
    ImportSubject,
    addresses::{all_v6, parse_network, without},
    input::{Item, named},
    order::first_match_to_deny_wins,
    rule::{Carried, ICMP, Ports},
    selectors::{Of, selector, unknown_field, unknown_fields},
    sink::{Note, NoteKind, Sink},
};
use crate::{
    document::{
        Operator, Requirement, Selector,
        selector::{is_key, is_value},
    },
    vocabulary::Cidr,
    write::{Draft, Target},
};

/// Whose policies they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Calico,
    Ovn,
    Antrea,
}

/// Whose policy an object is, if it is one.
pub(super) fn dialect(kind: &str, version: &str) -> Option<Dialect> {
    let group = version.split('/').next().unwrap_or_default();
    match (group, kind) {
        (
            "projectcalico.org" | "crd.projectcalico.org",
            "NetworkPolicy" | "GlobalNetworkPolicy",
        ) => Some(Dialect::Calico),
        ("k8s.ovn.org", "EgressFirewall") => Some(Dialect::Ovn),
        ("crd.antrea.io", "NetworkPolicy" | "ClusterNetworkPolicy") => Some(Dialect::Antrea),
        _ => None,
    }
}

/// Makes policies of objects of one dialect.
pub(super) fn import(objects: &[(Item<'_>, Dialect)], subject: ImportSubject, sink: &mut Sink) {
    for (object, dialect) in objects {
        let others = objects.iter().filter(|(_, other)| other == dialect).count();
        import_one(object, *dialect, others > 1, subject, sink);
    }
}

fn import_one(
    object: &Item<'_>,
    dialect: Dialect,
    has_others: bool,
    subject: ImportSubject,
    sink: &mut Sink,
) {
    let name = object.at("metadata", "name");
    let name = name.as_ref().and_then(Item::text).unwrap_or_default();
    let namespace = object.at("metadata", "namespace");
    let namespace = namespace.as_ref().and_then(Item::text);
    let kind = object.word("kind").unwrap_or_default();
    let Some(spec) = object.get("spec").filter(Item::is_map) else {
        return sink.shape(object, "an object with a spec", "spec: { egress: [] }");
    };
    for field in unknown_fields(
        object,
        &["apiVersion", "kind", "metadata", "spec", "status"],
    ) {
        let text = unknown_field(&field);
        sink.notes.push(Note::new(&field, NoteKind::LeftOut, text));
    }
    let types: Vec<&str> = spec.get("types").map_or_else(Vec::new, |types| {
        types.items().filter_map(|item| item.text()).collect()
    });
    let is_of_egress =
        types.contains(&"Egress") || types.is_empty() && spec.get("egress").is_some();
    if !is_of_egress {
        let text = "says nothing about egress, so that it restricts none: no policy is made of it";
        sink.notes.push(Note::new(&spec, NoteKind::LeftOut, text));
        return;
    }
    let is_global = kind == "GlobalNetworkPolicy" || kind == "ClusterNetworkPolicy";
    let pods = |pods: Selector, namespaces: Selector| {
        let some = |selector: Selector| (selector != Selector::default()).then_some(selector);
        match (subject, is_global) {
            (ImportSubject::Node, _) => Target::Node,
            (ImportSubject::Selected, true) => Target::AllPods {
                namespaces: some(namespaces),
                pods: some(pods),
            },
            (ImportSubject::Selected, false) => Target::Pods {
                namespace: namespace.map(str::to_owned),
                pods,
            },
        }
    };
    let mut draft = sink.draft_for(name, pods(Selector::default(), Selector::default()));
    let of = namespace.map_or_else(String::new, |namespace| {
        format!(" of namespace {namespace}")
    });
    draft
        .comments
        .push(format!("{kind} {name}{of} ({})", object.origin()));
    let mut selected: Vec<(Selector, Selector)> = Vec::new();
    for (name, field) in spec.fields() {
        match name {
            "egress" | "types" => {}
            "selector" | "namespaceSelector" | "appliedTo"
                if subject == ImportSubject::Node && dialect != Dialect::Ovn =>
            {
                let text = format!("applies to {} there; here to the whole node", field.shown());
                sink.note(&mut draft, Note::new(&field, NoteKind::Differs, text));
            }
            "selector" | "namespaceSelector" if dialect == Dialect::Calico => {
                let text = field.text().unwrap_or_default();
                match calico_selector(text) {
                    Some((mut own, namespaces)) => {
                        let (pods, of_namespaces) = selected.pop().unwrap_or_default();
                        let joined = if name == "selector" {
                            (join(pods, own), join(of_namespaces, namespaces))
                        } else {
                            own = join(own, namespaces);
                            (pods, join(of_namespaces, own))
                        };
                        selected.push(joined);
                    }
                    None => {
                        let text = format!(
                            "{name} {text}: cannot be said here, so that the policy is for more here than there"
                        );
                        sink.note(&mut draft, Note::new(&field, NoteKind::Differs, text));
                    }
                }
            }
            "appliedTo" if dialect == Dialect::Antrea => {
                for to in sink.maps(&spec, name) {
                    selected.push(applied_to(&to, &mut draft, sink));
                }
            }
            "order" | "priority" | "tier" => {
                if has_others {
                    let text = format!(
                        "{name} {}: policies are looked at in their order there; here what any of them denies is denied",
                        field.shown()
                    );
                    sink.note(&mut draft, Note::new(&field, NoteKind::Differs, text));
                }
            }
            _ if field.says_nothing() => {}
            "ingress" => {
                let text = "ingress: only egress is carried over";
                sink.note(&mut draft, Note::new(&field, NoteKind::LeftOut, text));
            }
            _ => {
                let text = unknown_field(&field);
                sink.note(&mut draft, Note::new(&field, NoteKind::LeftOut, text));
            }
        }
    }
    let mut rules: Vec<Carried<'_>> = sink
        .maps(&spec, "egress")
        .iter()
        .enumerate()
        .map(|(index, item)| {
            let title = item
                .word("name")
                .map_or_else(|| index.to_string(), str::to_owned);
            rule(item, &format!("{name}/{title}"), dialect, sink)
        })
        .collect();
    let denies_the_rest = rules.iter().any(|rule| {
        rule.is_deny
            && rule.is_in_force()
            && rule.ports == Ports::Any
            && rule.cidrs.contains(&Cidr::ALL_V4)
    });
    if dialect != Dialect::Calico && !denies_the_rest {
        let text = "what no rule names passes there, and is denied here";
        sink.note(&mut draft, Note::new(&spec, NoteKind::Differs, text));
    }
    first_match_to_deny_wins(&mut rules);
    for rule in rules {
        rule.finish(&mut draft, sink);
    }
    let mut selected = selected.into_iter();
    if let Some((own, namespaces)) = selected.next() {
        draft.target = pods(own, namespaces);
    }
    let more: Vec<Draft> = selected
        .map(|(own, namespaces)| {
            let named = sink.draft_for(name, pods(own, namespaces));
            Draft {
                name: named.name,
                target: named.target,
                ..draft.clone()
            }
        })
        .collect();
    sink.drafts.push(draft);
    sink.drafts.extend(more);
}

fn join(mut a: Selector, b: Selector) -> Selector {
    a.match_labels.extend(b.match_labels);
    a.match_expressions.extend(b.match_expressions);
    a
}

/// `podSelector` and `namespaceSelector` of Antrea.
fn applied_to(to: &Item<'_>, draft: &mut Draft, sink: &mut Sink) -> (Selector, Selector) {
    let of = |key: &str| Of::Subject(key.to_owned());
    let mut both = (Selector::default(), Selector::default());
    for (name, field) in to.fields() {
        match name {
            "podSelector" => both.0 = selector(&field, of, draft, sink).0,
            "namespaceSelector" => both.1 = selector(&field, of, draft, sink).0,
            _ => {
                let text = format!("{name} {}: applies to all pods here", field.shown());
                sink.note(draft, Note::new(&field, NoteKind::Differs, text));
            }
        }
    }
    both
}

/// A selector of Calico, as far as it joins what holds for single labels: for pods, and for namespaces.
fn calico_selector(text: &str) -> Option<(Selector, Selector)> {
    let (mut pods, mut namespaces) = (Selector::default(), Selector::default());
    let text = text.trim();
    if text.is_empty() || text.contains("||") {
        return text.is_empty().then_some((pods, namespaces));
    }
    for part in text.split("&&") {
        let part = part.trim();
        if part == "all()" {
            continue;
        }
        let requirement = calico_requirement(part)?;
        let (selector, key) = match requirement.key.as_str() {
            "projectcalico.org/namespace" | "projectcalico.org/name" => {
                (&mut namespaces, "kubernetes.io/metadata.name".to_owned())
            }
            key if key.starts_with("projectcalico.org/") => return None,
            key => (&mut pods, key.to_owned()),
        };
        is_key(&key).then_some(())?;
        let is_value = |value: &String| is_value(value);
        requirement.values.iter().all(is_value).then_some(())?;
        match (requirement.operator, requirement.values.as_slice()) {
            (Operator::In, [value]) => {
                let before = selector.match_labels.insert(key, value.clone());
                before.is_none().then_some(())?;
            }
            _ => selector
                .match_expressions
                .push(Requirement { key, ..requirement }),
        }
    }
    Some((pods, namespaces))
}

/// `app == 'web'`, `app != "web"`, `app in { 'a', 'b' }`, `app not in {...}`, `has(app)` or `!has(app)`.
fn calico_requirement(part: &str) -> Option<Requirement> {
    let has = |text: &str| -> Option<String> {
        let key = text.strip_prefix("has(")?.strip_suffix(')')?;
        Some(key.trim().to_owned())
    };
    let of = |key: &str, operator: Operator, values: Vec<String>| Requirement {
        key: key.trim().to_owned(),
        operator,
        values,
    };
    let quoted = |text: &str| -> Option<String> {
        let text = text.trim();
        let inner = text
            .strip_prefix('\'')
            .and_then(|text| text.strip_suffix('\''))
            .or_else(|| text.strip_prefix('"')?.strip_suffix('"'))?;
        (!inner.contains(['\'', '"'])).then(|| inner.to_owned())
    };
    let list = |text: &str| -> Option<Vec<String>> {
        let inner = text.trim().strip_prefix('{')?.strip_suffix('}')?;
        inner.split(',').map(quoted).collect()
    };
    if let Some(key) = has(part) {
        return Some(of(&key, Operator::Exists, Vec::new()));
    }
    if let Some(key) = part.strip_prefix('!').and_then(|part| has(part.trim())) {
        return Some(of(&key, Operator::DoesNotExist, Vec::new()));
    }
    if let Some((key, value)) = part.split_once("==") {
        return Some(of(key, Operator::In, vec![quoted(value)?]));
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Some(of(key, Operator::NotIn, vec![quoted(value)?]));
    }
    if let Some((key, values)) = part.split_once(" not in ") {
        return Some(of(key, Operator::NotIn, list(values)?));
    }
    if let Some((key, values)) = part.split_once(" in ") {
        return Some(of(key, Operator::In, list(values)?));
    }
    None
}

fn rule<'n>(item: &Item<'n>, title: &str, dialect: Dialect, sink: &mut Sink) -> Carried<'n> {
    let name = if dialect == Dialect::Ovn {
        "type"
    } else {
        "action"
    };
    let action = item.get(name);
    let text = action.as_ref().and_then(Item::text).unwrap_or_default();
    let is_deny = ["deny", "drop", "reject"].contains(&text.to_lowercase().as_str());
    let mut rule = Carried::new(item.clone(), title, is_deny);
    match text.to_lowercase().as_str() {
        "allow" | "deny" | "drop" | "reject" => {}
        "pass" | "log" => {
            rule.left_out(
                item,
                format!("{text} decides nothing by itself there, and is not known here"),
            );
            return rule;
        }
        _ => {
            sink.choice(action.as_ref().unwrap_or(item), "Allow or Deny");
            return rule;
        }
    }
    match dialect {
        Dialect::Calico => calico_rule(item, &mut rule, sink),
        Dialect::Ovn => ovn_rule(item, &mut rule, sink),
        Dialect::Antrea => antrea_rule(item, &mut rule, sink),
    }
    rule
}

/// Leaves out something that would make the rule narrower: then it cannot be in force.
fn narrower(field: &Item<'_>, rule: &mut Carried<'_>) {
    let text = format!("{} {}: cannot be said here", field.name(), field.shown());
    rule.left_out(field, text);
    rule.restrict_ports();
    rule.is_narrower_there = true;
}

fn calico_rule(item: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    let mut is_whole = true;
    for (name, field) in item.fields() {
        match name {
            "action" | "protocol" | "destination" | "metadata" => {}
            _ if field.says_nothing() => {}
            "source" => {
                let text = format!("only of what comes from {} there", field.shown());
                rule.narrower_there(&field, text);
            }
            _ => {
                is_whole = false;
                narrower(&field, rule);
            }
        }
    }
    let destination = item.get("destination");
    if let Some(other) = destination.as_ref().filter(|of| !of.is_map()) {
        return sink.shape(other, "a mapping", "destination: { nets: [192.0.2.0/24] }");
    }
    let mut cut = Vec::new();
    let mut has_any = false;
    for (name, field) in destination.iter().flat_map(Item::fields) {
        match name {
            "nets" | "notNets" => {}
            "domains" => {
                for (at, text) in destination
                    .iter()
                    .flat_map(|of| sink.texts(of, name))
                    .collect::<Vec<_>>()
                {
                    has_any = true;
                    rule.add_name(&at, text);
                    if text.contains('*') {
                        let text = format!(
                            "{}: a * stands for any labels there; here *. is all labels below",
                            named(text)
                        );
                        rule.remark(text);
                    }
                }
            }
            "ports" => {}
            _ if field.says_nothing() => {}
            _ => {
                is_whole = false;
                narrower(&field, rule);
            }
        }
    }
    if let Some(destination) = &destination {
        for (at, text) in sink.texts(destination, "notNets") {
            match parse_network(text) {
                Ok(network) => {
                    rule.remark(format!("Without {text}."));
                    cut.push(network);
                }
                Err(error) => sink.wrong(&at, error),
            }
        }
        let mut wholes = Vec::new();
        for (at, text) in sink.texts(destination, "nets") {
            match parse_network(text) {
                Ok(network) => wholes.push(network),
                Err(error) => sink.wrong(&at, error),
            }
        }
        if wholes.is_empty() && !has_any {
            wholes = vec![Cidr::ALL_V4, all_v6()];
        }
        for whole in wholes {
            match without(whole, &cut) {
                Some(pieces) => rule.cidrs.extend(pieces),
                None => rule.left_out(
                    destination,
                    format!("{whole} without its exceptions would be too many networks"),
                ),
            }
        }
    } else {
        rule.add_world();
    }
    if !is_whole {
        return;
    }
    let protocol = item.get("protocol");
    let ports = destination
        .as_ref()
        .map_or_else(Vec::new, |destination| sink.list(destination, "ports"));
    let proto = match protocol
        .as_ref()
        .map(|at| at.shown().to_lowercase())
        .as_deref()
    {
        None if ports.is_empty() => return,
        Some("tcp" | "6") => "tcp",
        Some("udp" | "17") => "udp",
        Some("sctp" | "132") => "sctp",
        Some("icmp" | "icmpv6" | "1" | "58") => return rule.add_port(ICMP),
        Some(_) | None => return narrower(protocol.as_ref().unwrap_or(item), rule),
    };
    if ports.is_empty() {
        rule.add_ports(item, "*", proto, sink);
    }
    for port in ports {
        let text = port.text().unwrap_or_default();
        if text.bytes().any(|byte| byte.is_ascii_alphabetic()) {
            rule.restrict_ports();
            let text = format!(
                "the port name {} means something in pods alone",
                named(text)
            );
            rule.left_out(&port, text);
        } else {
            rule.add_ports(&port, &text.replace(':', "-"), proto, sink);
        }
    }
}

fn ovn_rule(item: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    let Some(to) = item.get("to").filter(Item::is_map) else {
        return sink.shape(item, "a rule with to", "to: { cidrSelector: 192.0.2.0/24 }");
    };
    for (name, field) in to.fields() {
        let text = field.text().unwrap_or_default();
        match name {
            "cidrSelector" => rule.add_network(&field, text, sink),
            "dnsName" => {
                rule.add_name(&field, text);
                if text.contains('*') {
                    let text =
                        format!("{}: exactly one label there, one or more here", named(text));
                    rule.differs(&field, text);
                }
            }
            _ => narrower(&field, rule),
        }
    }
    for port in sink.maps(item, "ports") {
        port_of(&port, rule, sink);
    }
    for field in unknown_fields(item, &["type", "to", "ports"]) {
        narrower(&field, rule);
    }
}

fn antrea_rule(item: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    let peers = sink.maps(item, "to");
    for peer in &peers {
        for (name, field) in peer.fields() {
            match name {
                "ipBlock" => {
                    let text = field.word("cidr").unwrap_or_default();
                    let cut: Vec<Cidr> = sink
                        .texts(&field, "except")
                        .iter()
                        .filter_map(|(at, text)| match parse_network(text) {
                            Ok(network) => Some(network),
                            Err(error) => {
                                sink.wrong(at, error);
                                None
                            }
                        })
                        .collect();
                    match parse_network(text).map(|whole| without(whole, &cut)) {
                        Ok(Some(pieces)) => {
                            rule.cidrs.extend(pieces);
                            if let Some(except) = field.get("except") {
                                rule.remark(format!("{text} without {}", except.shown()));
                            }
                        }
                        Ok(None) => rule.left_out(&field, "would be too many networks"),
                        Err(error) => sink.wrong(&field, error),
                    }
                    for field in unknown_fields(&field, &["cidr", "except"]) {
                        rule.left_out(&field, unknown_field(&field));
                    }
                }
                "fqdn" => {
                    let text = field.text().unwrap_or_default();
                    rule.add_name(&field, text);
                    if text.contains('*') && !text.starts_with("*.") {
                        let text = format!(
                            "{}: a * stands for any labels there, here for a part of one",
                            named(text)
                        );
                        rule.differs(&field, text);
                    }
                }
                _ => {
                    let text = format!(
                        "{name} {}: has no counterpart here; `run --lifeline-cidr` lets the cluster's ranges pass",
                        field.shown()
                    );
                    rule.left_out(&field, text);
                }
            }
        }
    }
    if peers.is_empty() && item.get("toServices").is_none() {
        rule.add_world();
    }
    for port in sink.maps(item, "ports") {
        port_of(&port, rule, sink);
    }
    for field in unknown_fields(
        item,
        &["action", "to", "ports", "name", "enableLogging", "logLabel"],
    ) {
        narrower(&field, rule);
    }
}

/// `{ protocol: TCP, port: 443, endPort: 450 }`
fn port_of(item: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    rule.restrict_ports();
    let proto = item.word("protocol").unwrap_or("TCP").to_lowercase();
    let Some(port) = item.get("port") else {
        return rule.add_ports(item, "*", &proto, sink);
    };
    let text = port.text().unwrap_or_default();
    if text.bytes().any(|byte| byte.is_ascii_alphabetic()) {
        let text = format!(
            "the port name {} means something in pods alone",
            named(text)
        );
        return rule.left_out(&port, text);
    }
    match item.word("endPort") {
        Some(end) => rule.add_ports(&port, &format!("{text}-{end}"), &proto, sink),
        None => rule.add_ports(&port, text, &proto, sink),
    }
    for field in unknown_fields(item, &["protocol", "port", "endPort"]) {
        rule.left_out(&field, unknown_field(&field));
    }
}
