//! The answer to `outboundNetworkDependenciesEndpoints`: what an Azure service needs to reach.

use egress_common::policy::{PortRange, protocol};

use super::{
    input::{Item, named},
    rule::{Carried, ICMP},
    sink::Sink,
};
use crate::write::Draft;

/// Makes a policy of the categories of each file.
pub(super) fn import(categories: &[Item<'_>], sink: &mut Sink) {
    for of_file in categories.chunk_by(|a, b| a.file() == b.file()) {
        let Some(first) = of_file.first() else {
            continue;
        };
        let stem = first.file().file_stem().map(|stem| stem.to_string_lossy());
        let mut draft = sink.draft(stem.as_deref().unwrap_or_default());
        for category in of_file {
            // Machine Learning puts everything one level down.
            let properties = category.get("properties");
            rules(properties.as_ref().unwrap_or(category), &mut draft, sink);
        }
        sink.drafts.push(draft);
    }
}

/// A rule for each group of endpoints that follow each other and have the same ports.
fn rules(category: &Item<'_>, draft: &mut Draft, sink: &mut Sink) {
    let title = category.word("category").unwrap_or("no category");
    let mut rule: Option<Carried<'_>> = None;
    for endpoint in sink.list(category, "endpoints") {
        let next = endpoint_rule(&endpoint, title, sink);
        match &mut rule {
            Some(rule) if rule.ports == next.ports => rule.join(next),
            _ => {
                if let Some(rule) = rule.replace(next) {
                    rule.finish(draft, sink);
                }
            }
        }
    }
    if let Some(rule) = rule {
        rule.finish(draft, sink);
    }
}

fn endpoint_rule<'n>(endpoint: &Item<'n>, title: &str, sink: &mut Sink) -> Carried<'n> {
    let mut rule = Carried::new(endpoint.clone(), title, false);
    let details = sink.list(endpoint, "endpointDetails");
    // Other services write the port beside the name.
    let beside = endpoint.get("port").map(|_| endpoint.clone());
    for detail in details.iter().chain(&beside) {
        port(detail, &mut rule, sink);
    }
    match endpoint.get("domainName") {
        Some(name) => domain_name(&name, &mut rule),
        None => {
            for address in details.iter().filter_map(|detail| detail.get("ipAddress")) {
                rule.add_network(&address, address.text().unwrap_or_default(), sink);
            }
        }
    }
    if let Some(text) = endpoint.word("description") {
        rule.remark(text);
    }
    rule
}

fn port(detail: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    let text = detail.word("protocol").unwrap_or("tcp");
    let (proto, number) = match text.to_ascii_lowercase().as_str() {
        "tcp" | "http" | "https" | "tls" | "mssql" | "amqp" | "amqps" => ("tcp", protocol::TCP),
        "udp" | "ntp" => ("udp", protocol::UDP),
        "icmp" => return rule.add_port(ICMP),
        "any" | "*" => return rule.add_port(PortRange::ANY),
        _ => {
            rule.differs(
                detail,
                format!("the protocol {} is taken for TCP here", named(text)),
            );
            ("tcp", protocol::TCP)
        }
    };
    match detail.get("port") {
        Some(port) => rule.add_ports(&port, port.text().unwrap_or_default(), proto, sink),
        None => rule.add_port(PortRange::new(number, 0, u16::MAX)),
    }
}

/// A name, or what some services write in its place: a URL, or a name with a leading dot.
fn domain_name(at: &Item<'_>, rule: &mut Carried<'_>) {
    let text = at.text().unwrap_or_default();
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if !matches!(path, "" | "/" | "/*") {
        rule.differs(at, format!("the path of {} is not looked at", named(text)));
    }
    match host.strip_prefix('.') {
        Some(base) => rule.add_name(at, &format!("*.{base}")),
        None => rule.add_name(at, host),
    }
}
