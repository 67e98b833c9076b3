//! Allow lists for the pods of a namespace: NetworkPolicy of Kubernetes, FQDNNetworkPolicy of GKE, and
//! ApplicationNetworkPolicy of EKS: what they say about egress.

use super::{
    ImportSubject,
    addresses::{parse_network, without},
    input::{Item, named},
    rule::Carried,
    selectors::{Of, selector, unknown_field, unknown_fields},
    sink::{Note, NoteKind, Sink},
};
use crate::{document::Selector, write::Target};

/// True if it is one of them.
pub(super) fn is_it(kind: &str, version: &str) -> bool {
    let group = version.split('/').next().unwrap_or_default();
    matches!(
        (group, kind),
        ("networking.k8s.io", "NetworkPolicy")
            | ("networking.gke.io", "FQDNNetworkPolicy")
            | ("networking.k8s.aws", "ApplicationNetworkPolicy")
    )
}

/// Makes a policy of an object.
pub(super) fn import(object: &Item<'_>, subject: ImportSubject, sink: &mut Sink) {
    let metadata = |name: &str| object.at("metadata", name);
    let name = metadata("name");
    let name = name.as_ref().and_then(Item::text).unwrap_or_default();
    let namespace = metadata("namespace");
    let namespace = namespace.as_ref().and_then(Item::text);
    let kind = object.word("kind").unwrap_or_default();
    let Some(spec) = object.get("spec").filter(Item::is_map) else {
        return sink.shape(object, "an object with a spec", "spec: { egress: [] }");
    };
    let of_object = unknown_fields(
        object,
        &["apiVersion", "kind", "metadata", "spec", "status"],
    );
    for field in of_object {
        let text = unknown_field(&field);
        sink.notes.push(Note::new(&field, NoteKind::LeftOut, text));
    }
    let types: Vec<&str> = sink
        .texts(&spec, "policyTypes")
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    let is_of_egress =
        types.contains(&"Egress") || types.is_empty() && spec.get("egress").is_some();
    if !is_of_egress {
        let text = "says nothing about egress, so that it restricts none: no policy is made of it";
        sink.notes.push(Note::new(&spec, NoteKind::LeftOut, text));
        return;
    }
    let is_for_node = subject == ImportSubject::Node;
    let target = if is_for_node {
        Target::Node
    } else {
        Target::Pods {
            namespace: namespace.map(str::to_owned),
            pods: Selector::default(),
        }
    };
    let mut draft = sink.draft_for(name, target);
    let of = namespace.map_or_else(String::new, |namespace| {
        format!(" of namespace {namespace}")
    });
    let title = format!("{kind} {name}{of} ({})", object.origin());
    draft.comments.push(title);
    for (name, field) in spec.fields() {
        match name {
            "egress" | "policyTypes" => {}
            "podSelector" if is_for_node => {
                let text = format!(
                    "applies to the pods {} there; here to the whole node",
                    field.shown()
                );
                sink.note(&mut draft, Note::new(&field, NoteKind::Differs, text));
            }
            "podSelector" => {
                let of = |key: &str| Of::Subject(key.to_owned());
                let (subject, _) = selector(&field, of, &mut draft, sink);
                if let Target::Pods { pods, .. } = &mut draft.target {
                    *pods = subject;
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
    for item in sink.maps(&spec, "egress") {
        let rule = rule(&item, sink);
        rule.finish(&mut draft, sink);
    }
    sink.drafts.push(draft);
}

fn rule<'n>(item: &Item<'n>, sink: &mut Sink) -> Carried<'n> {
    let mut rule = Carried::new(item.clone(), "", false);
    for peer in sink.maps(item, "to") {
        peer_of(&peer, &mut rule, sink);
    }
    for name in sink.maps(item, "matches") {
        match_of(&name, &mut rule, sink);
    }
    if item.get("to").is_none() && item.get("matches").is_none() {
        rule.add_world();
    }
    for port in sink.maps(item, "ports") {
        port_of(&port, &mut rule, sink);
    }
    for field in unknown_fields(item, &["to", "matches", "ports"]) {
        rule.left_out(&field, unknown_field(&field));
    }
    rule
}

fn peer_of(peer: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    for (name, field) in peer.fields() {
        match name {
            "ipBlock" => block(&field, rule, sink),
            "domainNames" => {
                for (at, text) in sink.texts(peer, name) {
                    rule.add_name(&at, text);
                    if text.starts_with("*.") {
                        let text = format!("{}: a * is all labels below here", named(text));
                        rule.remark(text);
                    }
                }
            }
            "podSelector" | "namespaceSelector" => {
                let text = format!(
                    "{name} {}: pods have no names here; `run --lifeline-cidr` lets the cluster's ranges pass",
                    field.shown()
                );
                rule.left_out(&field, text);
            }
            _ => rule.left_out(&field, unknown_field(&field)),
        }
    }
}

/// `cidr`, without what is in `except`.
fn block(block: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    let Some(cidr) = block.get("cidr") else {
        return sink.shape(block, "a mapping with cidr", "cidr: 10.0.0.0/8");
    };
    let exceptions = sink.texts(block, "except");
    let mut network = |at: &Item<'_>| match parse_network(at.text().unwrap_or_default()) {
        Ok(network) => Some(network),
        Err(error) => {
            sink.wrong(at, error);
            None
        }
    };
    let cut: Vec<_> = exceptions
        .iter()
        .filter_map(|(at, _)| network(at))
        .collect();
    let Some(whole) = network(&cidr) else {
        return;
    };
    match without(whole, &cut) {
        Some(pieces) => {
            rule.cidrs.extend(pieces);
            if !exceptions.is_empty() {
                let texts: Vec<&str> = exceptions.iter().map(|(_, text)| *text).collect();
                rule.remark(format!("{whole} without {}", texts.join(", ")));
            }
        }
        None => rule.left_out(
            block,
            format!("{whole} without its exceptions would be too many networks"),
        ),
    }
    for field in unknown_fields(block, &["cidr", "except"]) {
        rule.left_out(&field, unknown_field(&field));
    }
}

/// `name: api.example.com` or `pattern: "*.example.com"` of GKE.
fn match_of(item: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    for (name, field) in item.fields() {
        match (name, field.text()) {
            ("name" | "pattern", Some(text)) => {
                rule.add_name(&field, text);
                if text.contains('*') {
                    let text = format!(
                        "{}: a * is one label or a part of one there; here *. is all labels below",
                        named(text)
                    );
                    rule.differs(&field, text);
                }
            }
            ("name" | "pattern", None) => sink.shape(&field, "text", "name: api.example.com"),
            _ => rule.left_out(&field, unknown_field(&field)),
        }
    }
}

/// `{ protocol: TCP, port: 443, endPort: 450 }`
fn port_of(item: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    rule.restrict_ports();
    for field in unknown_fields(item, &["protocol", "port", "endPort"]) {
        rule.left_out(&field, unknown_field(&field));
    }
    let proto = match item.word("protocol") {
        None | Some("TCP") => "tcp",
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        Some(_) => {
            let at = item.get("protocol");
            return sink.choice(at.as_ref().unwrap_or(item), "TCP, UDP or SCTP");
        }
    };
    let Some(port) = item.get("port") else {
        return rule.add_ports(item, "*", proto, sink);
    };
    let text = port.text().unwrap_or_default();
    let is_name = text.bytes().any(|byte| byte.is_ascii_alphabetic());
    if is_name {
        let text = format!(
            "the port name {} means something in pods alone",
            named(text)
        );
        return rule.left_out(&port, text);
    }
    match item.word("endPort") {
        Some(end) => rule.add_ports(&port, &format!("{text}-{end}"), proto, sink),
        None => rule.add_ports(&port, text, proto, sink),
    }
}
