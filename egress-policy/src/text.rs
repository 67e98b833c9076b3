//! How addresses, ports and patterns are written for people: in the API, the CLI and messages.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use egress_common::{
    address::{Address, from_v4},
    policy::{PortRange, REQUIRE_TLS, protocol},
};

use super::{
    compiled::RuleList,
    name::{NamePattern, Star},
};

/// The address as the standard library has it, IPv4 as IPv4.
#[must_use]
pub fn address_text(address: &Address) -> IpAddr {
    Ipv6Addr::from(*address).to_canonical()
}

/// The address in the form of the maps. A v4-mapped address becomes IPv4.
#[must_use]
pub fn address_from(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => from_v4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The name of a protocol as rules write it, or its number.
#[must_use]
pub fn protocol_text(proto: u8) -> String {
    match proto {
        protocol::ANY => "any".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmpv6".to_owned(),
        protocol::IGMP => "igmp".to_owned(),
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::SCTP => "sctp".to_owned(),
        protocol::UDPLITE => "udplite".to_owned(),
        protocol::DCCP => "dccp".to_owned(),
        other => format!("protocol-{other}"),
    }
}

/// The protocol that [`protocol_text`] writes like this.
#[must_use]
pub fn protocol_number(text: &str) -> Option<u8> {
    // The usual ones first: each look writes a text.
    let usual = [protocol::TCP, protocol::UDP, protocol::ICMP];
    let mut numbers = usual.into_iter().chain(0..=u8::MAX);
    numbers.find(|number| protocol_text(*number) == text)
}

/// One port range as a rule writes it: `443/tcp`, `8000-8080/udp`, `any/tcp`, `icmp`, `any`.
#[must_use]
pub fn port_range_text(range: &PortRange) -> String {
    let name = protocol_text(range.proto);
    let all = range.first == 0 && range.last == u16::MAX;
    match (range.proto, all) {
        (protocol::ANY | protocol::ICMP, true) => name,
        (_, true) => format!("any/{name}"),
        (_, false) if range.first == range.last => format!("{}/{name}", range.first),
        (_, false) => format!("{}-{}/{name}", range.first, range.last),
    }
}

/// Port ranges as a rule writes them, separated by `, `; `any` for none at all.
#[must_use]
pub fn ports_text(ranges: &[PortRange]) -> String {
    if ranges.is_empty() {
        return "any".to_owned();
    }
    let texts: Vec<String> = ranges.iter().map(port_range_text).collect();
    let mut text = texts.join(", ");
    if ranges.iter().any(|range| range.require & REQUIRE_TLS != 0) {
        text.push_str(", require: tls");
    }
    text
}

/// The text without what could steer a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        // Among others the marks that turn the writing direction.
        let steers =
            character.is_control() || matches!(character, '\u{200b}'..='\u{206f}' | '\u{feff}');
        if steers {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.star {
            Star::None => {}
            Star::Below => f.write_str("*.")?,
            Star::Label { prefix, suffix } => write!(f, "{prefix}*{suffix}.")?,
        }
        f.write_str(&self.name)
    }
}

impl RuleList {
    /// The name in JSON and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lifeline => "lifeline",
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::parse_port_range;

    #[test]
    fn ports_print_as_they_are_written() {
        for text in [
            "443/tcp",
            "8000-8080/udp",
            "any/tcp",
            "any/sctp",
            "icmp",
            "any",
        ] {
            let range = parse_port_range(text).unwrap();
            assert_eq!(port_range_text(&range), text);
        }
        assert_eq!(ports_text(&[]), "any");
        let two = [
            PortRange::new(protocol::TCP, 443, 443),
            PortRange::new(protocol::UDP, 53, 54),
        ];
        assert_eq!(ports_text(&two), "443/tcp, 53-54/udp");
        assert_eq!(
            port_range_text(&PortRange::new(47, 0, u16::MAX)),
            "any/protocol-47"
        );
    }

    #[test]
    fn protocols_go_both_ways() {
        for number in 0..=u8::MAX {
            assert_eq!(protocol_number(&protocol_text(number)), Some(number));
        }
        assert_eq!(protocol_number("protocol-256"), None);
    }

    #[test]
    fn addresses_go_both_ways() {
        for text in ["192.0.2.1", "2001:db8::1", "::", "0.0.0.0"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(address_text(&address_from(address)), address);
        }
    }

    #[test]
    fn patterns_print_with_their_star() {
        let text = |star| {
            let name = "example.com".to_owned();
            NamePattern { name, star }.to_string()
        };
        assert_eq!(text(Star::Below), "*.example.com");
        assert_eq!(text(Star::None), "example.com");
        let (prefix, suffix) = ("md-".to_owned(), "x".to_owned());
        assert_eq!(text(Star::Label { prefix, suffix }), "md-*x.example.com");
    }
}
