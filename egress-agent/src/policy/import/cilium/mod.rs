//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy: what they say about egress.

mod ports;

use self::ports::port_rule;
use super::{
    addresses::{all_v6, parse_network, without},
    input::{Item, named, some_of},
    rule::{Carried, ICMP},
    sink::{Note, NoteKind, Sink},
};
use crate::policy::{Cidr, Draft};

/// Fields of a rule that name destinations.
const DESTINATIONS: &[&str] = &[
    "toFQDNs",
    "toCIDR",
    "toCIDRSet",
    "toEntities",
    "toEndpoints",
    "toRequires",
    "toServices",
    "toGroups",
    "toNodes",
];

/// Makes a policy of an object.
pub(super) fn import(object: &Item<'_>, sink: &mut Sink) {
    let name = object.at("metadata", "name");
    let name = name.as_ref().and_then(Item::text).unwrap_or_default();
    let mut draft = sink.draft(name);
    let kind = object.word("kind").unwrap_or_default();
    let namespace = object.at("metadata", "namespace");
    let of = namespace.map_or_else(String::new, |namespace| {
        format!(" of namespace {}", namespace.shown())
    });
    draft
        .comments
        .push(format!("{kind} {name}{of} ({})", object.origin()));
    let mut specs: Vec<Item<'_>> = object.get("spec").into_iter().collect();
    specs.extend(sink.list(object, "specs"));
    if specs.is_empty() {
        sink.shape(object, "an object with a spec", "spec: { egress: [] }");
    }
    for spec in specs {
        if spec.is_map() {
            policy(&spec, kind, &mut draft, sink);
        } else {
            sink.shape(&spec, "a mapping", "spec: { egress: [] }");
        }
    }
    sink.drafts.push(draft);
}

fn policy(spec: &Item<'_>, kind: &str, draft: &mut Draft, sink: &mut Sink) {
    if let Some(text) = spec.word("description") {
        draft.comments.push(text.to_owned());
    }
    for (name, field) in spec.fields() {
        let note = match name {
            "egress" | "egressDeny" | "description" | "labels" => continue,
            // All pods of the cluster are as near as it gets to the whole node.
            "endpointSelector" if field.says_nothing() && kind.contains("Clusterwide") => continue,
            "endpointSelector" => {
                let pods = if field.says_nothing() {
                    "of its namespace".to_owned()
                } else {
                    field.shown()
                };
                let text = format!("applies to the pods {pods} there; here to the whole node");
                Note::new(&field, NoteKind::Differs, text)
            }
            "nodeSelector" => {
                let text = format!(
                    "applies to the nodes {} there; here where it is installed",
                    field.shown()
                );
                Note::new(&field, NoteKind::Differs, text)
            }
            "ingress" | "ingressDeny" if field.says_nothing() => continue,
            "ingress" | "ingressDeny" => Note::new(
                &field,
                NoteKind::LeftOut,
                format!("{name}: only egress is carried over"),
            ),
            "enableDefaultDeny" => {
                if field.word("egress") != Some("false") {
                    continue;
                }
                let text = "what no rule allows passes there and is denied here";
                Note::new(&field, NoteKind::Differs, text)
            }
            _ if field.says_nothing() => continue,
            _ => Note::new(
                &field,
                NoteKind::LeftOut,
                format!("the field {name} is not known here"),
            ),
        };
        sink.note(draft, note);
    }
    if spec.get("egress").is_none() && spec.get("egressDeny").is_none() {
        let text = "says nothing about egress, so that all of it passes there; here it is denied";
        sink.note(draft, Note::new(spec, NoteKind::Differs, text));
    }
    for (list, is_deny) in [("egress", false), ("egressDeny", true)] {
        for item in sink.list(spec, list) {
            if item.is_map() {
                let rule = rule(&item, is_deny, sink);
                rule.finish(draft, sink);
            } else {
                sink.shape(
                    &item,
                    "a mapping",
                    "toFQDNs: [{ matchName: api.example.com }]",
                );
            }
        }
    }
}

fn rule<'n>(item: &Item<'n>, is_deny: bool, sink: &mut Sink) -> Carried<'n> {
    let mut rule = Carried::new(item.clone(), "", is_deny);
    for selector in sink.list(item, "toFQDNs") {
        fqdn(&selector, &mut rule, sink);
    }
    for (at, text) in sink.texts(item, "toCIDR") {
        rule.add_network(&at, text, sink);
    }
    for set in sink.list(item, "toCIDRSet") {
        cidr_set(&set, &mut rule, sink);
    }
    for (at, text) in sink.texts(item, "toEntities") {
        entity(&at, text, &mut rule);
    }
    if item.says_nothing() {
        rule.remark("Selects nothing: it makes the rest denied there, as it is here.");
    }
    let to_resolvers = endpoints(item, &mut rule, sink);
    let has = |name: &&str| item.get(name).is_some();
    let is_limited = ["toPorts", "icmps"].iter().any(has);
    if !DESTINATIONS.iter().any(has) && is_limited {
        rule.add_world();
    }
    for ports in sink.list(item, "toPorts") {
        port_rule(&ports, to_resolvers, &mut rule, sink);
    }
    for icmp in sink.list(item, "icmps") {
        rule.add_port(ICMP);
        rule.differs(&icmp, "every type of ICMP here");
    }
    for (name, field) in item.fields() {
        let is_known = DESTINATIONS.contains(&name) || matches!(name, "toPorts" | "icmps");
        if is_known || field.says_nothing() {
            continue;
        }
        rule.left_out(&field, format!("{name} has no counterpart here"));
    }
    rule
}

/// Destinations inside the cluster. Whether all of them are the cluster's resolvers.
fn endpoints(item: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) -> bool {
    let selectors = sink.list(item, "toEndpoints");
    let to_resolvers = !selectors.is_empty() && selectors.iter().all(is_resolver);
    if to_resolvers {
        rule.remark("Nothing to do: trusted resolvers may always be asked (the lifeline).");
    } else {
        for selector in &selectors {
            let text = format!(
                "pods {}: pods have no names here; `run --lifeline-cidr` lets the cluster's ranges pass",
                selector.shown()
            );
            rule.left_out(selector, text);
        }
    }
    for name in ["toRequires", "toServices", "toGroups", "toNodes"] {
        if let Some(field) = item.get(name).filter(|field| !field.says_nothing()) {
            rule.left_out(
                &field,
                format!("{name} {}: has no counterpart here", field.shown()),
            );
        }
    }
    to_resolvers
}

/// Whether a selector means the cluster's DNS.
fn is_resolver(selector: &Item<'_>) -> bool {
    let labels = selector.get("matchLabels");
    labels.is_some_and(|labels| {
        labels.fields().any(|(key, value)| {
            let prefixes = ["k8s:", "k8s.", "any:"];
            let bare = prefixes.iter().find_map(|prefix| key.strip_prefix(prefix));
            match bare.unwrap_or(key) {
                "k8s-app" => matches!(
                    value.text(),
                    Some("kube-dns" | "coredns" | "node-local-dns")
                ),
                "dns.operator.openshift.io/daemonset-dns" => true,
                _ => false,
            }
        })
    })
}

fn fqdn(selector: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    match (selector.get("matchName"), selector.get("matchPattern")) {
        (Some(name), None) => match name.text() {
            Some(text) => rule.add_name(&name, text),
            None => sink.shape(&name, "text", "matchName: api.example.com"),
        },
        (None, Some(pattern)) => match pattern.text() {
            Some(text) => match_pattern(&pattern, text, rule),
            None => sink.shape(&pattern, "text", "matchPattern: \"*.example.com\""),
        },
        (Some(_), Some(_)) | (None, None) => {
            sink.shape(
                selector,
                "either matchName or matchPattern",
                "matchName: api.example.com",
            );
        }
    }
}

fn match_pattern(at: &Item<'_>, text: &str, rule: &mut Carried<'_>) {
    let text = text.trim_end_matches('.');
    if matches!(text, "*" | "**") {
        rule.add_world();
        rule.differs(
            at,
            "every name there; here every address, whether a name led to it or not",
        );
        return;
    }
    if let Some(base) = text.strip_prefix("**.") {
        if !base.contains('*') {
            rule.add_name(at, &format!("*.{base}"));
            rule.remark(format!(
                "{} is one or more labels there, as * is here.",
                named(text)
            ));
            return;
        }
    } else if let Some(base) = text.strip_prefix("*.")
        && !base.contains('*')
    {
        rule.add_name(at, text);
        rule.differs(
            at,
            format!("{}: exactly one label there, one or more here", named(text)),
        );
        return;
    }
    rule.add_name(at, text);
}

fn cidr_set(set: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    for name in ["cidrGroupRef", "cidrGroupSelector"] {
        if let Some(group) = set.get(name) {
            rule.left_out(
                &group,
                format!("the networks of {name} {} stand elsewhere", group.shown()),
            );
            return;
        }
    }
    let Some(cidr) = set.get("cidr") else {
        sink.shape(set, "a mapping with cidr", "cidr: 10.0.0.0/8");
        return;
    };
    let mut networks = |item: &Item<'_>| match parse_network(item.text().unwrap_or_default()) {
        Ok(network) => Some(network),
        Err(error) => {
            sink.wrong(item, error);
            None
        }
    };
    let Some(whole) = networks(&cidr) else {
        return;
    };
    let except = set.get("except");
    let exceptions: Vec<Item<'_>> = except.iter().flat_map(Item::items).collect();
    let cut: Vec<Cidr> = exceptions.iter().filter_map(networks).collect();
    match (without(whole, &cut), &except) {
        (Some(pieces), Some(except)) if !cut.is_empty() => {
            rule.cidrs.extend(pieces);
            let texts = exceptions.iter().filter_map(Item::text);
            rule.remark(format!(
                "{whole} without {} (line {})",
                some_of(texts),
                except.place().line.unwrap_or(0)
            ));
        }
        (Some(pieces), _) => rule.cidrs.extend(pieces),
        (None, _) => rule.left_out(
            set,
            format!("{whole} without its exceptions would be too many networks"),
        ),
    }
}

fn entity(at: &Item<'_>, text: &str, rule: &mut Carried<'_>) {
    match text {
        "all" => rule.add_world(),
        "world" => {
            rule.add_world();
            rule.differs(
                at,
                "world: outside of the cluster there; every address here",
            );
        }
        "world-ipv4" => {
            rule.cidrs.push(Cidr::ALL_V4);
            rule.differs(
                at,
                "world-ipv4: outside of the cluster there; every IPv4 address here",
            );
        }
        "world-ipv6" => {
            rule.cidrs.push(all_v6());
            rule.differs(
                at,
                "world-ipv6: outside of the cluster there; every IPv6 address here",
            );
        }
        "host" => rule.remark("host: the node's own addresses always pass (the lifeline)."),
        "kube-apiserver" => rule.left_out(
            at,
            "kube-apiserver: give its address with `run --api-server`",
        ),
        "cluster" | "remote-node" | "health" | "ingress" | "init" | "unmanaged" => {
            let text = format!(
                "{text}: give the cluster's ranges with `run --lifeline-cidr`, or list them as cidrs"
            );
            rule.left_out(at, text);
        }
        _ => rule.left_out(
            at,
            format!("the entity {} has no counterpart here", named(text)),
        ),
    }
}
