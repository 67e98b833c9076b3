//! ClusterNetworkPolicy, and AdminNetworkPolicy and BaselineAdminNetworkPolicy before it: what they say about egress.

use egress_common::policy::{PortRange, protocol};

use super::{
    input::{Item, named},
    order::first_match_to_deny_wins,
    rule::{Carried, Ports},
    sink::{Note, NoteKind, Sink},
};
use crate::{vocabulary::Cidr, write::Draft};

/// A rule, the place of its policy among all, and the policy that it goes to.
struct Ranked<'n> {
    rank: (u8, u32),
    draft: usize,
    rule: Carried<'n>,
}

/// Makes a policy of each object. The order of rules counts across all of them.
pub(super) fn import(objects: &[Item<'_>], sink: &mut Sink) {
    let mut drafts: Vec<Draft> = Vec::new();
    let mut ranked: Vec<Ranked<'_>> = Vec::new();
    let mut specs = Vec::new();
    for object in objects {
        let Some(spec) = object.get("spec").filter(Item::is_map) else {
            sink.shape(object, "an object with a spec", "spec: { egress: [] }");
            continue;
        };
        let name = object.at("metadata", "name");
        let name = name.as_ref().and_then(Item::text).unwrap_or_default();
        let kind = object.word("kind").unwrap_or_default();
        let mut draft = sink.draft(name);
        draft
            .comments
            .push(format!("{kind} {name} ({})", object.origin()));
        let rank = rank(kind, &spec, sink);
        let mut rules = rules(&spec, name, sink);
        let of_some_pods = head(&spec, &mut draft, sink);
        let narrower = rules.iter_mut().filter(|_| of_some_pods);
        narrower.for_each(|rule| rule.is_narrower_there = true);
        let place = drafts.len();
        ranked.extend(rules.into_iter().map(|rule| Ranked {
            rank,
            draft: place,
            rule,
        }));
        drafts.push(draft);
        specs.push(spec);
    }
    let denies_the_rest = |ranked: &Ranked<'_>| {
        let rule = &ranked.rule;
        rule.is_deny
            && rule.is_in_force()
            && rule.ports == Ports::Any
            && rule.cidrs.contains(&Cidr::ALL_V4)
    };
    if !ranked.iter().any(denies_the_rest) {
        for (spec, draft) in specs.iter().zip(&mut drafts) {
            let text =
                "what no rule names is left to the policies behind it there, and is denied here";
            sink.note(draft, Note::new(spec, NoteKind::Differs, text));
        }
    }
    ranked.sort_by_key(|ranked| ranked.rank);
    let (places, mut rules): (Vec<usize>, Vec<Carried<'_>>) = ranked
        .into_iter()
        .map(|ranked| (ranked.draft, ranked.rule))
        .unzip();
    first_match_to_deny_wins(&mut rules);
    for (place, rule) in places.into_iter().zip(rules) {
        if let Some(draft) = drafts.get_mut(place) {
            rule.finish(draft, sink);
        }
    }
    sink.drafts.append(&mut drafts);
}

/// Tier and priority: the lower comes first.
fn rank(kind: &str, spec: &Item<'_>, sink: &mut Sink) -> (u8, u32) {
    let tier = match spec.get("tier") {
        None => u8::from(kind.starts_with("Baseline")),
        Some(tier) => match tier.text() {
            Some("Admin") => 0,
            Some("Baseline") => 1,
            Some(_) | None => {
                sink.choice(&tier, "Admin or Baseline");
                0
            }
        },
    };
    let priority = spec.get("priority").map_or(0, |priority| {
        let number = priority.text().and_then(|text| text.parse().ok());
        number.unwrap_or_else(|| {
            sink.shape(&priority, "a number", "priority: 10");
            0
        })
    });
    (tier, priority)
}

/// Notes about the policy as a whole. True if it is about some pods only.
fn head(spec: &Item<'_>, draft: &mut Draft, sink: &mut Sink) -> bool {
    let of_all_pods = spec
        .at("subject", "namespaces")
        .is_some_and(|namespaces| namespaces.says_nothing());
    // All pods of the cluster are as near as it gets to the whole node.
    if let Some(subject) = spec.get("subject").filter(|_| !of_all_pods) {
        let text = format!(
            "applies to the pods {} there; here to the whole node",
            subject.shown()
        );
        sink.note(draft, Note::new(&subject, NoteKind::Differs, text));
    }
    if let Some(ingress) = spec
        .get("ingress")
        .filter(|ingress| !ingress.says_nothing())
    {
        let text = "ingress: only egress is carried over";
        sink.note(draft, Note::new(&ingress, NoteKind::LeftOut, text));
    }
    for (name, field) in spec.fields() {
        let is_known = ["tier", "priority", "subject", "egress", "ingress"].contains(&name);
        if !is_known && !field.says_nothing() {
            let text = format!("the field {name} is not known here");
            sink.note(draft, Note::new(&field, NoteKind::LeftOut, text));
        }
    }
    !of_all_pods
}

fn rules<'n>(spec: &Item<'n>, policy: &str, sink: &mut Sink) -> Vec<Carried<'n>> {
    let items = sink.maps(spec, "egress");
    items
        .into_iter()
        .map(|item| rule(item, policy, sink))
        .collect()
}

fn rule<'n>(item: Item<'n>, policy: &str, sink: &mut Sink) -> Carried<'n> {
    let title = format!("{policy}/{}", item.word("name").unwrap_or("egress"));
    let action = item.get("action");
    let action_text = action.as_ref().and_then(Item::text);
    let mut rule = Carried::new(item.clone(), &title, action_text == Some("Deny"));
    match action_text {
        Some("Accept" | "Allow" | "Deny") => {}
        Some("Pass") => {
            rule.left_out(
                &item,
                "Pass leaves the decision to the policies behind it, which do not exist here",
            );
            return rule;
        }
        Some(_) | None => {
            sink.choice(
                action.as_ref().unwrap_or(&item),
                "action: Accept, Deny or Pass",
            );
            return rule;
        }
    }
    for peer in sink.maps(&item, "to") {
        peer_of(&peer, &mut rule, sink);
    }
    for protocols in sink.maps(&item, "protocols") {
        protocol_of(&protocols, &mut rule, sink);
    }
    for port in sink.maps(&item, "ports") {
        port_of(&port, &mut rule, sink);
    }
    for (name, field) in item.fields() {
        if !matches!(name, "name" | "action" | "to" | "protocols" | "ports")
            && !field.says_nothing()
        {
            rule.left_out(&field, format!("the field {name} is not known here"));
        }
    }
    rule
}

fn peer_of(peer: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    for (name, field) in peer.fields() {
        match name {
            "networks" => {
                for (at, text) in sink.texts(peer, name) {
                    rule.add_network(&at, text, sink);
                }
            }
            "domainNames" => {
                for (at, text) in sink.texts(peer, name) {
                    rule.add_name(&at, text);
                }
            }
            "pods" | "namespaces" | "nodes" => {
                let text = format!(
                    "{name} {}: pods and nodes have no names here; `run --lifeline-cidr` lets the cluster's ranges pass",
                    field.shown()
                );
                rule.left_out(&field, text);
            }
            _ => rule.left_out(&field, format!("the destination {name} is not known here")),
        }
    }
}

/// `tcp: { destinationPort: { number: 443 } }` and its like.
fn protocol_of(item: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    rule.restrict_ports();
    for (name, field) in item.fields() {
        let number = match name {
            "tcp" => protocol::TCP,
            "udp" => protocol::UDP,
            "sctp" => protocol::SCTP,
            "destinationNamedPort" => {
                rule.left_out(
                    &field,
                    format!(
                        "the port name {} means something in pods alone",
                        named(&field.shown())
                    ),
                );
                continue;
            }
            _ => {
                rule.left_out(&field, format!("the protocol {name} is not known here"));
                continue;
            }
        };
        match field.get("destinationPort") {
            None => rule.add_port(PortRange::new(number, 0, u16::MAX)),
            Some(port) => match (port.word("number"), port.get("range")) {
                (Some(text), None) => rule.add_ports(&port, text, name, sink),
                (None, Some(range)) => range_of(&range, name, rule, sink),
                (Some(_), Some(_)) | (None, None) => {
                    sink.shape(
                        &port,
                        "either number or range",
                        "destinationPort: { number: 443 }",
                    );
                }
            },
        }
    }
}

/// `portNumber: { protocol: TCP, port: 443 }` and its like.
fn port_of(item: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    rule.restrict_ports();
    for (name, field) in item.fields() {
        let proto = field.word("protocol").unwrap_or("TCP").to_ascii_lowercase();
        match name {
            "portNumber" => match field.get("port") {
                Some(port) => rule.add_ports(&port, port.text().unwrap_or_default(), &proto, sink),
                None => sink.shape(
                    &field,
                    "a mapping with port",
                    "portNumber: { protocol: TCP, port: 443 }",
                ),
            },
            "portRange" => range_of(&field, &proto, rule, sink),
            "namedPort" => {
                rule.left_out(
                    &field,
                    format!(
                        "the port name {} means something in pods alone",
                        named(&field.shown())
                    ),
                );
            }
            _ => rule.left_out(&field, format!("the field {name} is not known here")),
        }
    }
}

fn range_of(range: &Item<'_>, proto: &str, rule: &mut Carried<'_>, sink: &mut Sink) {
    match (range.word("start"), range.word("end")) {
        (Some(start), Some(end)) => rule.add_ports(range, &format!("{start}-{end}"), proto, sink),
        (Some(_) | None, Some(_) | None) => {
            sink.shape(
                range,
                "a range with start and end",
                "{ start: 8000, end: 8080 }",
            );
        }
    }
}
