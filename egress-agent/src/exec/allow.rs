//! The argument of `--allow`: `NAME[:PORTS][/PROTOCOL]` or `CIDR[:PORTS][/PROTOCOL]`.

use std::{
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use thiserror::Error;

use crate::policy::{Cidr, SpecRule, parse_name_pattern, parse_port_range};

/// A text that is no `--allow`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0}; write NAME[:PORTS][/PROTOCOL] or CIDR[:PORTS][/PROTOCOL], such as api.github.com, '*.npmjs.org:443', \
     ntp.example.org:123/udp, 10.0.0.0/8 or [2001:db8::/32]:443"
)]
pub struct AllowError(String);

/// One destination that is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow(SpecRule);

impl Allow {
    /// The rule that says the same.
    #[must_use]
    pub const fn rule(&self) -> &SpecRule {
        &self.0
    }
}

/// The parts of a text.
struct Parts<'a> {
    host: &'a str,
    ports: Option<&'a str>,
    protocol: Option<&'a str>,
}

impl FromStr for Allow {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        let parts = Parts::of(text).map_err(AllowError)?;
        let ports = parts.port_texts().map_err(AllowError)?;
        let mut rule = SpecRule {
            ports: (!ports.is_empty()).then_some(ports),
            ..SpecRule::default()
        };
        if let Ok(address) = parts.host.parse::<IpAddr>() {
            rule.cidrs.push(Cidr::from(address).to_string());
        } else if parts.host.contains('/') {
            let cidr: Cidr = parts
                .host
                .parse()
                .map_err(|error: crate::policy::CidrError| AllowError(error.to_string()))?;
            rule.cidrs.push(cidr.to_string());
        } else {
            parse_name_pattern(parts.host).map_err(|error| AllowError(error.to_string()))?;
            rule.names.push(parts.host.to_owned());
        }
        Ok(Self(rule))
    }
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Self, String> {
        if text.contains("://") {
            return Err("this is a URL: give its name and port alone".to_owned());
        }
        let (host, after) = if let Some(inside) = text.strip_prefix('[') {
            let Some((host, after)) = inside.split_once(']') else {
                return Err("the bracket is not closed".to_owned());
            };
            let (address, _) = host.split_once('/').unwrap_or((host, ""));
            if address.parse::<Ipv6Addr>().is_err() {
                return Err("only an IPv6 address or network stands in brackets".to_owned());
            }
            (host, after)
        } else if text.matches(':').count() > 1 {
            // An IPv6 address without brackets has no port.
            (text, "")
        } else if let Some(at) = text.find(':') {
            text.split_at(at)
        } else {
            match text.rsplit_once('/') {
                Some((host, last)) if !last.bytes().all(|byte| byte.is_ascii_digit()) => {
                    (host, text.get(host.len()..).unwrap_or_default())
                }
                _ => (text, ""),
            }
        };
        let Some(after) = after.strip_prefix(':') else {
            return match after.strip_prefix('/') {
                Some("") => Err("the protocol is missing after the `/`".to_owned()),
                Some(protocol) => Ok(Self {
                    host,
                    ports: None,
                    protocol: Some(protocol),
                }),
                None if after.is_empty() => Ok(Self {
                    host,
                    ports: None,
                    protocol: None,
                }),
                None => Err(format!("{after} is neither :PORTS nor /PROTOCOL")),
            };
        };
        let (ports, protocol) = match after.split_once('/') {
            Some((ports, protocol)) => (ports, Some(protocol)),
            None => (after, None),
        };
        if ports.is_empty() {
            return Err("the port is missing after the `:`".to_owned());
        }
        Ok(Self {
            host,
            ports: Some(ports),
            protocol,
        })
    }

    /// The ports as rules write them; none: any.
    fn port_texts(&self) -> Result<Vec<String>, String> {
        let texts: Vec<String> = match (self.ports, self.protocol) {
            (None, None) => return Ok(Vec::new()),
            (None, Some(protocol)) if protocol.eq_ignore_ascii_case("icmp") => {
                vec![protocol.to_owned()]
            }
            (None, Some(protocol)) => vec![format!("any/{protocol}")],
            (Some(ports), protocol) => {
                let protocol = protocol.unwrap_or("tcp");
                let each = ports.split(',');
                each.map(|port| format!("{port}/{protocol}")).collect()
            }
        };
        for text in &texts {
            parse_port_range(text).map_err(|error| error.to_string())?;
        }
        Ok(texts)
    }
}

/// The `--allow` that allows a destination, quoted for a shell where it has to be.
#[must_use]
pub fn argument(host: &str, port: Option<u16>, protocol: &str) -> String {
    let host = match host.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => host.to_owned(),
    };
    let text = match port {
        Some(port) if protocol == "tcp" => format!("{host}:{port}"),
        Some(port) => format!("{host}:{port}/{protocol}"),
        None => format!("{host}/{protocol}"),
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    if text.bytes().all(is_plain) {
        format!("--allow {text}")
    } else {
        format!("--allow '{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
        let Allow(rule) = text
            .parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        (rule.names, rule.cidrs, rule.ports.unwrap_or_default())
    }

    #[test]
    fn a_name_has_any_port_unless_it_says_which() {
        for (text, ports) in [
            ("api.github.com", vec![]),
            ("api.github.com:443", vec!["443/tcp"]),
            ("api.github.com:443/udp", vec!["443/udp"]),
            ("api.github.com:80,443", vec!["80/tcp", "443/tcp"]),
            ("api.github.com:8000-8100/sctp", vec!["8000-8100/sctp"]),
            ("api.github.com/udp", vec!["any/udp"]),
            ("api.github.com/icmp", vec!["icmp"]),
        ] {
            let (names, cidrs, found) = rule(text);
            assert_eq!(names, ["api.github.com"], "{text}");
            assert!(cidrs.is_empty(), "{text}");
            assert_eq!(found, ports, "{text}");
        }
        assert_eq!(rule("*.npmjs.org:443").0, ["*.npmjs.org"]);
    }

    #[test]
    fn a_network_is_told_from_a_name_with_a_protocol() {
        for (text, cidr, ports) in [
            ("10.0.0.0/8", "10.0.0.0/8", vec![]),
            ("10.1.2.3", "10.1.2.3/32", vec![]),
            ("10.0.0.0/8:443", "10.0.0.0/8", vec!["443/tcp"]),
            ("10.1.2.3/udp", "10.1.2.3/32", vec!["any/udp"]),
            ("10.0.0.0/8/udp", "10.0.0.0/8", vec!["any/udp"]),
            ("2001:db8::/32", "2001:db8::/32", vec![]),
            ("2001:db8::1", "2001:db8::1/128", vec![]),
            ("[2001:db8::1]:443", "2001:db8::1/128", vec!["443/tcp"]),
            ("[2001:db8::/32]:443/udp", "2001:db8::/32", vec!["443/udp"]),
            ("[2001:db8::1]/icmp", "2001:db8::1/128", vec!["icmp"]),
        ] {
            let (names, cidrs, found) = rule(text);
            assert!(names.is_empty(), "{text}");
            assert_eq!(
                (cidrs, found),
                (
                    vec![cidr.to_owned()],
                    ports.iter().map(|p| (*p).to_owned()).collect()
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn an_error_says_what_is_wrong_and_what_would_be_right() {
        for (text, why) in [
            ("", ""),
            ("https://api.github.com", "this is a URL"),
            ("api.github.com:", "the port is missing"),
            ("api.github.com:https", "https/tcp"),
            ("api.github.com:0", "port 0 does not exist"),
            ("api.github.com:99999", "99999"),
            ("api.github.com:443/quic", "unknown protocol"),
            ("api.github.com/", ""),
            ("a b.example", ""),
            ("*", ""),
            ("10.0.0.1/8", ""),
            ("10.0.0.0/33", ""),
            ("[2001:db8::1", "the bracket is not closed"),
            ("[api.github.com]:443", "only an IPv6"),
            ("[2001:db8::1]443", "is neither"),
        ] {
            let error = text.parse::<Allow>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
            assert!(error.contains("such as api.github.com"), "{text}: {error}");
        }
    }

    #[test]
    fn an_argument_reads_back_as_what_it_allows() {
        assert_eq!(
            argument("api.github.com", Some(443), "tcp"),
            "--allow api.github.com:443"
        );
        assert_eq!(
            argument("ntp.example", Some(123), "udp"),
            "--allow ntp.example:123/udp"
        );
        assert_eq!(argument("10.1.2.3", None, "icmp"), "--allow 10.1.2.3/icmp");
        assert_eq!(
            argument("2001:db8::1", Some(443), "tcp"),
            "--allow '[2001:db8::1]:443'"
        );
        // A name that came from the network ends no quote.
        assert_eq!(
            argument("a';rm -rf", None, "icmp"),
            "--allow 'a'\\'';rm -rf/icmp'"
        );
        for text in ["api.github.com:443", "[2001:db8::1]:443", "10.1.2.3/icmp"] {
            text.parse::<Allow>().expect("reads back");
        }
    }
}
