//! Ports as rules write them: `443/tcp`, `8000-8080/tcp`, `any/udp`, `icmp`, `any`.

use egress_common::policy::{PortRange, REQUIRE_TLS, protocol};
use thiserror::Error;

use super::{quoted, shown};

/// Why a text is no port range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text} is not a port: {why}; write {hint}")]
pub struct PortsError {
    /// The text, quoted.
    pub text: String,
    /// The error.
    pub why: String,
    /// The correction.
    pub hint: String,
}

/// The hint when the right form cannot be guessed.
pub(crate) const FORMS: &str = "443/tcp, 8000-8080/udp, any/tcp, icmp or any";

/// Reads one port range. Protocols may be in upper case.
///
/// # Errors
/// If it is none; with the form that was probably meant.
pub fn parse_port_range(text: &str) -> Result<PortRange, PortsError> {
    parse(text).map_err(|(why, hint)| PortsError {
        text: quoted(text),
        why,
        hint: hint.unwrap_or_else(|| FORMS.to_owned()),
    })
}

type Wrong = (String, Option<String>);

fn parse(text: &str) -> Result<PortRange, Wrong> {
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "any" => return Ok(PortRange::ANY),
        "icmp" => return Ok(PortRange::new(protocol::ICMP, 0, u16::MAX)),
        "" => return Err(("it is empty".to_owned(), None)),
        _ => {}
    }
    let Some((ports, proto)) = lower.split_once('/') else {
        return Err(without_protocol(&lower));
    };
    if known_protocol(ports).is_some() && is_port_text(proto) {
        let why = "the port comes first".to_owned();
        return Err((why, Some(format!("{proto}/{ports}"))));
    }
    if matches!(proto, "icmp" | "icmpv6") {
        let why = "ICMP has no ports".to_owned();
        return Err((why, Some("icmp".to_owned())));
    }
    let Some(number) = known_protocol(proto) else {
        return Err((format!("unknown protocol {}", quoted(proto)), None));
    };
    if ports == "any" {
        return Ok(PortRange::new(number, 0, u16::MAX));
    }
    if ports == "*" {
        let why = "* is not used here".to_owned();
        return Err((why, Some(format!("any/{proto}"))));
    }
    let (first, last) = match ports.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => {
            let port = port(ports)?;
            (port, port)
        }
    };
    if first > last {
        let why = "the range is reversed".to_owned();
        return Err((why, Some(format!("{last}-{first}/{proto}"))));
    }
    Ok(PortRange::new(number, first, last))
}

/// The error of a text that has no slash.
fn without_protocol(lower: &str) -> Wrong {
    let why = "the protocol is missing".to_owned();
    if is_port_text(lower) {
        return (why, Some(format!("{lower}/tcp")));
    }
    if known_protocol(lower).is_some() {
        return (
            "the ports are missing".to_owned(),
            Some(format!("any/{lower}")),
        );
    }
    match lower {
        "*" | "all" => ("the word is any".to_owned(), Some("any".to_owned())),
        "icmpv6" => (
            "icmp means both versions".to_owned(),
            Some("icmp".to_owned()),
        ),
        "http" => ("ports are numbers".to_owned(), Some("80/tcp".to_owned())),
        "https" => ("ports are numbers".to_owned(), Some("443/tcp".to_owned())),
        "dns" => ("ports are numbers".to_owned(), Some("53/udp".to_owned())),
        _ => (why, None),
    }
}

/// True if the text would be good before `/tcp`.
fn is_port_text(text: &str) -> bool {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    matches!((port(first), port(last)), (Ok(first), Ok(last)) if first <= last)
}

fn known_protocol(text: &str) -> Option<u8> {
    match text {
        "tcp" => Some(protocol::TCP),
        "udp" => Some(protocol::UDP),
        "sctp" => Some(protocol::SCTP),
        _ => None,
    }
}

fn port(text: &str) -> Result<u16, Wrong> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err((format!("{} is not a number", quoted(text)), None));
    }
    if text.len() > 1 && text.starts_with('0') {
        return Err((format!("{} has leading zeros", shown(text)), None));
    }
    let range = || ": ports are 1 to 65535";
    match text.parse::<u16>() {
        Ok(0) => Err((format!("port 0 does not exist{}", range()), None)),
        Ok(port) => Ok(port),
        // All are digits, so the only failure is that it does not fit.
        Err(_) => Err((
            format!("port {} does not exist{}", shown(text), range()),
            None,
        )),
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

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::policy::protocol::{ANY, ICMP, SCTP, TCP, UDP};

    #[test]
    fn every_form_is_read() {
        for (text, proto, first, last) in [
            ("443/tcp", TCP, 443, 443),
            ("1/tcp", TCP, 1, 1),
            ("65535/udp", UDP, 65535, 65535),
            ("8000-8080/tcp", TCP, 8000, 8080),
            ("5-5/tcp", TCP, 5, 5),
            ("53/UDP", UDP, 53, 53),
            ("any", ANY, 0, 65535),
            ("any/tcp", TCP, 0, 65535),
            ("any/udp", UDP, 0, 65535),
            ("any/sctp", SCTP, 0, 65535),
            ("icmp", ICMP, 0, 65535),
        ] {
            assert_eq!(
                parse_port_range(text),
                Ok(PortRange::new(proto, first, last)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_wrong_gets_the_right_form_as_hint() {
        for (text, why, hint) in [
            ("", "it is empty", FORMS),
            ("443", "the protocol is missing", "443/tcp"),
            ("80-90", "the protocol is missing", "80-90/tcp"),
            ("tcp", "the ports are missing", "any/tcp"),
            ("tcp/443", "the port comes first", "443/tcp"),
            ("443/tpc", "unknown protocol \"tpc\"", FORMS),
            ("443/", "unknown protocol \"\"", FORMS),
            ("/tcp", "\"\" is not a number", FORMS),
            (
                "0/tcp",
                "port 0 does not exist: ports are 1 to 65535",
                FORMS,
            ),
            (
                "0-5/tcp",
                "port 0 does not exist: ports are 1 to 65535",
                FORMS,
            ),
            (
                "65536/tcp",
                "port 65536 does not exist: ports are 1 to 65535",
                FORMS,
            ),
            (
                "99999999999999999999/tcp",
                "port 99999999999999999999 does not exist: ports are 1 to 65535",
                FORMS,
            ),
            ("90-80/udp", "the range is reversed", "80-90/udp"),
            ("80-/tcp", "\"\" is not a number", FORMS),
            ("-80/tcp", "\"\" is not a number", FORMS),
            ("+80/tcp", "\"+80\" is not a number", FORMS),
            ("80-90-95/tcp", "\"90-95\" is not a number", FORMS),
            ("*", "the word is any", "any"),
            ("*/udp", "* is not used here", "any/udp"),
            ("https", "ports are numbers", "443/tcp"),
            ("8/icmp", "ICMP has no ports", "icmp"),
            ("icmpv6", "icmp means both versions", "icmp"),
            ("443 /tcp", "\"443 \" is not a number", FORMS),
            ("0443/tcp", "0443 has leading zeros", FORMS),
            ("00/tcp", "00 has leading zeros", FORMS),
            ("443/tcp/udp", "unknown protocol \"tcp/udp\"", FORMS),
        ] {
            let error = parse_port_range(text).unwrap_err();
            assert_eq!(
                (error.why.as_str(), error.hint.as_str()),
                (why, hint),
                "{text}"
            );
        }
    }

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
}
