//! Network rules: addresses, service tags and names, on ports.

use std::net::IpAddr;

use egress_common::policy::PortRange;

use super::{
    super::{
        addresses::range,
        input::{Item, named},
        rule::ICMP,
    },
    last_part,
    rules::Reader,
};
use crate::vocabulary::address_from;

impl Reader<'_, '_> {
    /// Addresses, names and service tags, on ports.
    pub(super) fn network(&mut self) {
        for (at, text) in self.texts("destinationAddresses") {
            self.destination(&at, text);
        }
        for (at, text) in self.texts("destinationFqdns") {
            self.rule.add_name(&at, text);
        }
        for (at, text) in self.texts("destinationIpGroups") {
            let Some(addresses) = self.context.ip_groups.get(&last_part(text)) else {
                let name = named(text.rsplit('/').next().unwrap_or(text));
                let text = format!(
                    "the IP group {name} is not in the files; give `az network ip-group list -o json` too"
                );
                self.rule.left_out(&at, text);
                continue;
            };
            self.rule.remark(format!(
                "IP group {}",
                text.rsplit('/').next().unwrap_or(text)
            ));
            for address in addresses {
                self.destination(address, address.text().unwrap_or_default());
            }
        }
        let name = if self.item.get("ipProtocols").is_some() {
            "ipProtocols"
        } else {
            "protocols"
        };
        let protocols = self.texts(name);
        let ports = self.texts("destinationPorts");
        self.rule.restrict_ports();
        for (at, text) in protocols {
            self.network_protocol(&at, text, &ports);
        }
    }

    fn network_protocol(&mut self, at: &Item<'_>, text: &str, ports: &[(Item<'_>, &str)]) {
        let is_any = ports
            .iter()
            .any(|(_, port)| matches!(*port, "*" | "0-65535"));
        let names: &[&str] = match text.to_lowercase().as_str() {
            "tcp" => &["tcp"],
            "udp" => &["udp"],
            "icmp" => return self.rule.add_port(ICMP),
            "any" if is_any => {
                return self.rule.add_port(PortRange::ANY);
            }
            "any" => &["tcp", "udp"],
            _ => return self.sink.choice(at, "TCP, UDP, ICMP or Any"),
        };
        for name in names {
            for (at, port) in ports {
                self.rule.add_ports(at, port, name, self.sink);
            }
        }
    }

    /// An address, a network, a range, `*`, or a service tag.
    fn destination(&mut self, at: &Item<'_>, text: &str) {
        if text == "*" {
            return self.rule.add_world();
        }
        if let Some((first, last)) = text.split_once('-')
            && let (Ok(first), Ok(last)) = (
                first.trim().parse::<IpAddr>(),
                last.trim().parse::<IpAddr>(),
            )
        {
            let networks = range(&address_from(first), &address_from(last));
            if networks.is_empty() {
                self.sink
                    .choice(at, "a range from the lower to the higher address");
            }
            self.rule.cidrs.extend(networks);
            return;
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !text.starts_with(|c: char| c.is_ascii_alphabetic()) || !text.chars().all(is_word) {
            return self.rule.add_network(at, text, self.sink);
        }
        match text.to_lowercase().as_str() {
            "internet" | "virtualnetwork" | "azureloadbalancer" => {
                let text = format!("{} is no list of addresses", named(text));
                self.rule.left_out(at, text);
            }
            _ => self.rule.service_tags.push(text.to_owned()),
        }
    }
}
