//! Ports of Cilium's rules, and what they say about what is spoken there.

use egress_common::policy::{PortRange, protocol};

use super::super::{
    input::{Item, named},
    rule::{Carried, ICMP},
    sink::Sink,
};

/// Adds the ports of an item of `toPorts`, and says what else it looks at.
pub(super) fn port_rule(
    item: &Item<'_>,
    to_resolvers: bool,
    rule: &mut Carried<'_>,
    sink: &mut Sink,
) {
    let ports = sink.maps(item, "ports");
    if ports.is_empty() {
        // Every port: that includes all others.
        rule.add_port(PortRange::ANY);
    }
    for port in ports {
        port_protocol(&port, rule, sink);
    }
    for (name, field) in item.fields() {
        match name {
            "ports" => {}
            "rules" if field.is_map() => seven(&field, to_resolvers, rule),
            _ if field.says_nothing() => {}
            _ => rule.differs(
                &field,
                format!("{name} is not looked at here: addresses and ports alone decide"),
            ),
        }
    }
}

/// Rules about what is said on the connection.
fn seven(rules: &Item<'_>, to_resolvers: bool, rule: &mut Carried<'_>) {
    for (name, field) in rules.fields().filter(|(_, field)| !field.says_nothing()) {
        if name != "dns" {
            let text = format!(
                "{name} {}: what is said on a connection is not looked at here",
                field.shown()
            );
            rule.differs(&field, text);
            continue;
        }
        let mut patterns = field
            .items()
            .map(|item| item.word("matchPattern") == Some("*"));
        let is_list = field.items().next().is_some();
        if !is_list || !patterns.all(|is_any| is_any) {
            let here = "here any name may be asked, or with `dns: { queries: allowed }` those that rules allow";
            let what = if to_resolvers {
                "the resolvers"
            } else {
                "this port"
            };
            rule.differs(
                &field,
                format!("only some names may be asked of {what} there; {here}"),
            );
        }
    }
}

fn port_protocol(item: &Item<'_>, rule: &mut Carried<'_>, sink: &mut Sink) {
    rule.restrict_ports();
    let proto = item.word("protocol").unwrap_or("ANY").to_ascii_lowercase();
    let protocols: &[(&str, u8)] = match proto.as_str() {
        "tcp" => &[("tcp", protocol::TCP)],
        "udp" => &[("udp", protocol::UDP)],
        "sctp" => &[("sctp", protocol::SCTP)],
        "any" => &[
            ("tcp", protocol::TCP),
            ("udp", protocol::UDP),
            ("sctp", protocol::SCTP),
        ],
        "icmp" | "icmpv6" => return rule.add_port(ICMP),
        _ => {
            let at = item.get("protocol");
            return sink.choice(at.as_ref().unwrap_or(item), "TCP, UDP, SCTP or ANY");
        }
    };
    let port = item.get("port");
    let text = port.as_ref().and_then(Item::text).unwrap_or("0");
    let at = port.as_ref().unwrap_or(item);
    if text.parse::<u16>() == Ok(0) {
        match protocols {
            [(_, number)] => rule.add_port(PortRange::new(*number, 0, u16::MAX)),
            _ => rule.add_port(PortRange::ANY),
        }
        return;
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        rule.left_out(
            at,
            format!(
                "the port name {} means something in pods alone",
                named(text)
            ),
        );
        return;
    }
    let range = match item.word("endPort") {
        Some(end) if end != "0" => format!("{text}-{end}"),
        Some(_) | None => text.to_owned(),
    };
    for (proto, _) in protocols {
        rule.add_ports(at, &range, proto, sink);
    }
}
