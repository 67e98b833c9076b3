//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy: what they say about egress.

mod ports;

use self::ports::port_rule;
use super::{
    ImportSubject,
    addresses::{all_v6, parse_network, without},
    input::{Item, named, some_of},
    rule::{Carried, ICMP},
    selectors::{Of, selector, unknown_field, unknown_fields},
    sink::{Note, NoteKind, Sink},
};
use crate::{
    document::Selector,
    vocabulary::Cidr,
    write::{Draft, Target},
};

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

/// The CIDR groups of a source.
struct Groups<'n> {
    groups: Vec<Item<'n>>,
    used: Vec<bool>,
}

impl<'n> Groups<'n> {
    /// The networks of the groups that a name or a selector means; `None` if there are no such groups.
    fn of(&mut self, reference: &Item<'_>) -> Option<Vec<Item<'n>>> {
        let mut networks = Vec::new();
        let mut is_found = false;
        for (group, used) in self.groups.iter().zip(&mut self.used) {
            let name = group.at("metadata", "name");
            let name = name.as_ref().and_then(Item::text);
            let is_it = match reference.text() {
                Some(text) => name == Some(text),
                None => {
                    let wanted = reference.get("matchLabels");
                    let labels = group.at("metadata", "labels");
                    // Expressions are not looked at: such a group counts as not found.
                    reference.get("matchExpressions").is_none()
                        && wanted.is_some_and(|wanted| {
                            wanted.fields().all(|(key, value)| {
                                let label = labels.as_ref().and_then(|labels| labels.word(key));
                                label.is_some() && label == value.text()
                            })
                        })
                }
            };
            if is_it {
                is_found = true;
                *used = true;
                let list = group.at("spec", "externalCIDRs");
                networks.extend(list.iter().flat_map(Item::items));
            }
        }
        is_found.then_some(networks)
    }
}

/// Makes policies of objects, which may name each other's CIDR groups.
pub(super) fn import(objects: &[Item<'_>], subject: ImportSubject, sink: &mut Sink) {
    let is_group = |object: &&Item<'_>| object.word("kind") == Some("CiliumCIDRGroup");
    let groups: Vec<Item<'_>> = objects.iter().filter(is_group).cloned().collect();
    let mut groups = Groups {
        used: vec![false; groups.len()],
        groups,
    };
    for object in objects.iter().filter(|object| !is_group(object)) {
        policies(object, subject, &mut groups, sink);
    }
    for (group, used) in groups.groups.iter().zip(&groups.used) {
        let unknown = unknown_fields(group, OBJECT).into_iter();
        let unknown = unknown.chain(
            group
                .get("spec")
                .into_iter()
                .flat_map(|spec| unknown_fields(&spec, &["externalCIDRs"])),
        );
        for field in unknown {
            let text = unknown_field(&field);
            sink.notes.push(Note::new(&field, NoteKind::LeftOut, text));
        }
        match group.get("spec") {
            Some(spec) => drop(sink.texts(&spec, "externalCIDRs")),
            None => sink.shape(
                group,
                "an object with a spec",
                "spec: { externalCIDRs: [] }",
            ),
        }
        if !used {
            let text = "a CIDR group that no policy in the files names";
            sink.notes.push(Note::new(group, NoteKind::LeftOut, text));
        }
    }
}

/// Fields of an object.
const OBJECT: &[&str] = &["apiVersion", "kind", "metadata", "spec", "specs", "status"];

/// Makes policies of an object, one of each spec.
fn policies(object: &Item<'_>, subject: ImportSubject, groups: &mut Groups<'_>, sink: &mut Sink) {
    let name = object.at("metadata", "name");
    let name = name.as_ref().and_then(Item::text).unwrap_or_default();
    let kind = object.word("kind").unwrap_or_default();
    let namespace = object.at("metadata", "namespace");
    let of = namespace.as_ref().map_or_else(String::new, |namespace| {
        format!(" of namespace {}", namespace.shown())
    });
    let title = format!("{kind} {name}{of} ({})", object.origin());
    let mut specs: Vec<Item<'_>> = object.get("spec").into_iter().collect();
    specs.extend(sink.list(object, "specs"));
    if specs.is_empty() {
        sink.shape(object, "an object with a spec", "spec: { egress: [] }");
    }
    let mut whole = (subject == ImportSubject::Node).then(|| sink.draft(name));
    if let Some(draft) = &mut whole {
        draft.comments.push(title.clone());
    }
    for field in unknown_fields(object, OBJECT) {
        let text = unknown_field(&field);
        sink.notes.push(Note::new(&field, NoteKind::LeftOut, text));
    }
    let namespace = namespace.as_ref().and_then(Item::text);
    for spec in specs {
        if !spec.is_map() {
            sink.shape(&spec, "a mapping", "spec: { egress: [] }");
            continue;
        }
        let says_nothing = spec.get("egress").is_none() && spec.get("egressDeny").is_none();
        if whole.is_none() && says_nothing {
            let text =
                "says nothing about egress, so that it restricts none: no policy is made of it";
            sink.notes.push(Note::new(&spec, NoteKind::LeftOut, text));
            continue;
        }
        if let Some(draft) = &mut whole {
            policy(&spec, kind, None, draft, groups, sink);
            continue;
        }
        let target = match kind {
            "CiliumNetworkPolicy" => Target::Pods {
                namespace: namespace.map(str::to_owned),
                pods: Selector::default(),
            },
            _ if spec.get("nodeSelector").is_some() => Target::Nodes(None),
            _ => Target::AllPods {
                namespaces: None,
                pods: None,
            },
        };
        let mut draft = sink.draft_for(name, target);
        draft.comments.push(title.clone());
        policy(&spec, kind, Some(namespace), &mut draft, groups, sink);
        sink.drafts.push(draft);
    }
    sink.drafts.extend(whole);
}

/// Whose label a key of Cilium is.
fn of_key(key: &str) -> Of {
    let prefixes = ["k8s:", "k8s.", "any:"];
    let bare = prefixes.iter().find_map(|prefix| key.strip_prefix(prefix));
    let key = bare.unwrap_or(key);
    if key == "io.kubernetes.pod.namespace" {
        Of::Namespace("kubernetes.io/metadata.name".to_owned())
    } else if let Some(label) = key.strip_prefix("io.cilium.k8s.namespace.labels.") {
        Of::Namespace(label.to_owned())
    } else if key.starts_with("io.cilium.") || key.contains(':') {
        Of::Unknown
    } else {
        Of::Subject(key.to_owned())
    }
}

/// Takes over whom a policy is for.
fn select(field: &Item<'_>, namespace: Option<&str>, draft: &mut Draft, sink: &mut Sink) {
    let (subject, namespaces) = selector(field, of_key, draft, sink);
    let some = |selector: Selector| (selector != Selector::default()).then_some(selector);
    let own = "kubernetes.io/metadata.name";
    let mut foreign = namespaces.clone();
    if foreign.match_labels.get(own).map(String::as_str) == Some(namespace.unwrap_or("default")) {
        foreign.match_labels.remove(own);
    }
    match &mut draft.target {
        Target::Pods { pods, .. } => {
            *pods = subject;
            if foreign != Selector::default() {
                let text =
                    "looks at labels of the namespace; here it is for pods of its own namespace";
                sink.note(draft, Note::new(field, NoteKind::Differs, text));
            }
        }
        Target::AllPods {
            namespaces: of_namespaces,
            pods,
        } => {
            *of_namespaces = some(namespaces);
            *pods = some(subject);
        }
        Target::Nodes(nodes) => *nodes = some(subject),
        Target::Node => {}
    }
}

/// The policy of a spec. Without a namespace to select in it is for the whole node.
fn policy(
    spec: &Item<'_>,
    kind: &str,
    selects_in: Option<Option<&str>>,
    draft: &mut Draft,
    groups: &mut Groups<'_>,
    sink: &mut Sink,
) {
    if let Some(text) = spec.word("description") {
        draft.comments.push(text.to_owned());
    }
    for (name, field) in spec.fields() {
        let note = match (name, selects_in) {
            ("egress" | "egressDeny" | "description" | "labels", _) => continue,
            ("endpointSelector" | "nodeSelector", Some(namespace)) => {
                select(&field, namespace, draft, sink);
                continue;
            }
            // All pods of the cluster are as near as it gets to the whole node.
            ("endpointSelector", None) if field.says_nothing() && kind.contains("Clusterwide") => {
                continue;
            }
            ("endpointSelector", None) => {
                let pods = if field.says_nothing() {
                    "of its namespace".to_owned()
                } else {
                    field.shown()
                };
                let text = format!("applies to the pods {pods} there; here to the whole node");
                Note::new(&field, NoteKind::Differs, text)
            }
            ("nodeSelector", None) => {
                let text = format!(
                    "applies to the nodes {} there; here where it is installed",
                    field.shown()
                );
                Note::new(&field, NoteKind::Differs, text)
            }
            ("ingress" | "ingressDeny", _) if field.says_nothing() => continue,
            ("ingress" | "ingressDeny", _) => Note::new(
                &field,
                NoteKind::LeftOut,
                format!("{name}: only egress is carried over"),
            ),
            ("enableDefaultDeny", _) => {
                if field.word("egress") != Some("false") {
                    continue;
                }
                let text = "what no rule allows passes there and is denied here";
                Note::new(&field, NoteKind::Differs, text)
            }
            (_, _) if field.says_nothing() => continue,
            (_, _) => Note::new(&field, NoteKind::LeftOut, unknown_field(&field)),
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
                let rule = rule(&item, is_deny, groups, sink);
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

fn rule<'n>(
    item: &Item<'n>,
    is_deny: bool,
    groups: &mut Groups<'_>,
    sink: &mut Sink,
) -> Carried<'n> {
    let mut rule = Carried::new(item.clone(), "", is_deny);
    for selector in sink.maps(item, "toFQDNs") {
        for field in unknown_fields(&selector, &["matchName", "matchPattern"]) {
            rule.left_out(&field, unknown_field(&field));
        }
        fqdn(&selector, &mut rule, sink);
    }
    for (at, text) in sink.texts(item, "toCIDR") {
        rule.add_network(&at, text, sink);
    }
    for set in sink.maps(item, "toCIDRSet") {
        cidr_set(&set, &mut rule, groups, sink);
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
    for ports in sink.maps(item, "toPorts") {
        port_rule(&ports, to_resolvers, &mut rule, sink);
    }
    for icmp in sink.maps(item, "icmps") {
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
    let selectors = sink.maps(item, "toEndpoints");
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

/// True if a selector means the cluster's DNS.
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

fn cidr_set(set: &Item<'_>, rule: &mut Carried<'_>, groups: &mut Groups<'_>, sink: &mut Sink) {
    for field in unknown_fields(
        set,
        &["cidr", "cidrGroupRef", "cidrGroupSelector", "except"],
    ) {
        rule.left_out(&field, unknown_field(&field));
    }
    let except = set.get("except");
    let exceptions = sink.texts(set, "except");
    let exceptions: Vec<Item<'_>> = exceptions.into_iter().map(|(at, _)| at).collect();
    let mut networks = |item: &Item<'_>| match parse_network(item.text().unwrap_or_default()) {
        Ok(network) => Some(network),
        Err(error) => {
            sink.wrong(item, error);
            None
        }
    };
    let cut: Vec<Cidr> = exceptions.iter().filter_map(&mut networks).collect();
    let wholes: Vec<Cidr> = if let Some(group) =
        set.get("cidrGroupRef").or(set.get("cidrGroupSelector"))
    {
        match groups.of(&group) {
            Some(cidrs) => {
                rule.remark(format!("CIDR group {}", group.shown()));
                cidrs.iter().filter_map(&mut networks).collect()
            }
            None => {
                let text = format!(
                    "no CiliumCIDRGroup {} is in the files; give `kubectl get ciliumcidrgroups -o yaml` too",
                    group.shown()
                );
                rule.left_out(set, text);
                return;
            }
        }
    } else if let Some(cidr) = set.get("cidr") {
        networks(&cidr).into_iter().collect()
    } else {
        sink.shape(set, "a mapping with cidr", "cidr: 10.0.0.0/8");
        return;
    };
    for whole in wholes {
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
