//! Destinations as people ask for them: `api.example.com`, `192.0.2.1:53/udp`, `[2001:db8::1]:443/tcp`, `host:icmp`.

use std::{fmt, net::IpAddr, str::FromStr};

use egress_common::{
    address::{Address, is_v4},
    flow::{Flow, Origin, Way},
    policy::{PortRange, protocol},
};
use thiserror::Error;

use super::{
    address_from, address_text, name::parse_name_pattern, port_range_text, ports::parse_port_range,
    quoted,
};

/// The port where none is given.
const DEFAULT_PORT: u16 = 443;

/// The remote: a name, or an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// In lower case, without the final dot.
    Name(String),
    /// In the form of the maps.
    Address(Address),
}

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The remote.
    pub host: Host,
    /// IANA protocol number.
    pub proto: u8,
    /// Its port; none for ICMP.
    pub port: Option<u16>,
    /// True if port and protocol are the default, because none was given.
    pub is_default_port: bool,
}

/// Why a text is no destination.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text} is not a destination: {why}; write {hint}")]
pub struct DestinationError {
    /// The text, quoted.
    pub text: String,
    /// The error.
    pub why: String,
    /// The correction.
    pub hint: String,
}

/// The hint when the right form cannot be guessed.
const FORMS: &str = "api.example.com, api.example.com:8080, 192.0.2.1:53/udp, [2001:db8::1]:443/tcp or api.example.com:icmp";

type Wrong = (String, Option<String>);

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        parse(text).map_err(|(why, hint)| DestinationError {
            text: quoted(text),
            why,
            hint: hint.unwrap_or_else(|| FORMS.to_owned()),
        })
    }
}

fn parse(text: &str) -> Result<Destination, Wrong> {
    let wrong = |why: &str| Err((why.to_owned(), None));
    if text.is_empty() {
        return wrong("it is empty");
    }
    if text.contains("://") {
        return wrong("it is a URL");
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Destination::of(Host::Address(address_from(address)), None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let Some((inside, rest)) = rest.split_once(']') else {
            return wrong("the bracket is not closed");
        };
        let Ok(IpAddr::V6(address)) = inside.parse() else {
            return wrong("only an IPv6 address stands in brackets");
        };
        let ports = match rest.strip_prefix(':') {
            Some(ports) => Some(ports),
            None if rest.is_empty() => None,
            None => return wrong("a colon comes after the bracket"),
        };
        let host = Host::Address(address_from(address.to_canonical()));
        return with_ports(host, ports);
    }
    let is_network = text.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<IpAddr>().is_ok() && bits.bytes().all(|byte| byte.is_ascii_digit())
    });
    if is_network {
        return wrong("it is a network, and one address is asked for");
    }
    let (host, ports) = match text.split_once(':') {
        Some((_, ports)) if ports.contains(':') => {
            return Err((
                "an IPv6 address with a port stands in brackets".to_owned(),
                Some("[2001:db8::1]:443/tcp".to_owned()),
            ));
        }
        Some((host, ports)) => (host, Some(ports)),
        None => (text, None),
    };
    if let Some((host, port)) = host.split_once('/') {
        let hint = format!("{host}:{port}");
        return Err(("a colon comes before the port".to_owned(), Some(hint)));
    }
    let host = match host.parse::<IpAddr>() {
        Ok(address) => Host::Address(address_from(address)),
        Err(_) => Host::Name(name(host)?),
    };
    with_ports(host, ports)
}

fn name(text: &str) -> Result<String, Wrong> {
    if text.contains('*') {
        let hint = text.replace('*', "www");
        let why = "it is a pattern, and one name is asked for".to_owned();
        return Err((why, Some(hint)));
    }
    match parse_name_pattern(text) {
        Ok(pattern) => Ok(pattern.name),
        Err(error) => Err((error.why, Some(error.hint))),
    }
}

/// Adds what stands behind the colon: a port for TCP, a port and its protocol, or `icmp`.
fn with_ports(host: Host, ports: Option<&str>) -> Result<Destination, Wrong> {
    let Some(ports) = ports else {
        return Ok(Destination::of(host, None));
    };
    let is_number = !ports.is_empty() && ports.bytes().all(|byte| byte.is_ascii_digit());
    let whole = if is_number {
        format!("{ports}/tcp")
    } else {
        ports.to_owned()
    };
    let range = match parse_port_range(&whole) {
        Ok(range) => range,
        Err(error) => return Err((error.why, None)),
    };
    let icmp = PortRange::new(protocol::ICMP, 0, u16::MAX);
    if range == icmp || (range.proto != protocol::ANY && range.first == range.last) {
        return Ok(Destination::of(host, Some(range)));
    }
    Err(("one port of one protocol is asked for".to_owned(), None))
}

impl Destination {
    /// A destination on the one port of this range, or on the default one.
    fn of(host: Host, range: Option<PortRange>) -> Self {
        let asked = range.unwrap_or(PortRange::new(protocol::TCP, DEFAULT_PORT, DEFAULT_PORT));
        let is_icmp = asked.proto == protocol::ICMP;
        let is_v6 = matches!(&host, Host::Address(address) if !is_v4(address));
        Self {
            host,
            proto: if is_icmp && is_v6 {
                protocol::ICMPV6
            } else {
                asked.proto
            },
            port: (!is_icmp).then_some(asked.first),
            is_default_port: range.is_none(),
        }
    }

    /// The same port of this address.
    #[must_use]
    pub fn at(&self, address: Address) -> Self {
        Self {
            host: Host::Address(address),
            proto: match self.proto {
                protocol::ICMP | protocol::ICMPV6 if is_v4(&address) => protocol::ICMP,
                protocol::ICMP | protocol::ICMPV6 => protocol::ICMPV6,
                other => other,
            },
            ..*self
        }
    }

    /// The name, if it is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Name(name) => Some(name),
            Host::Address(_) => None,
        }
    }

    /// Its port and protocol, as a rule would write them.
    #[must_use]
    pub fn ports(&self) -> PortRange {
        match (self.port, self.proto) {
            (Some(port), proto) => PortRange::new(proto, port, port),
            (None, protocol::ICMP | protocol::ICMPV6) => {
                PortRange::new(protocol::ICMP, 0, u16::MAX)
            }
            (None, proto) => PortRange::new(proto, 0, u16::MAX),
        }
    }

    /// The flow that a workload starts to it at this address, before a device is chosen: what is local is reached over
    /// loopback, or, from another network namespace, as an address of the node.
    #[must_use]
    pub const fn flow(&self, address: Address) -> Flow {
        Flow {
            daddr: address,
            dport: self.port,
            proto: self.proto,
            is_fragment: false,
            way: Way {
                is_outside: true,
                is_unrouted: true,
            },
            origin: Origin::WORKLOAD,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => write!(f, "{}", address_text(address)),
        }
    }
}

impl fmt::Display for Destination {
    /// A form that is read: `api.example.com:443/tcp`; the alternate one leaves out a port that was not given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) if !is_v4(address) => write!(f, "[{}]", address_text(address))?,
            host @ (Host::Name(_) | Host::Address(_)) => write!(f, "{host}")?,
        }
        if f.alternate() && self.is_default_port {
            return Ok(());
        }
        write!(f, ":{}", port_range_text(&self.ports()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Destination {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn destinations_are_read_and_print_whole() {
        for (text, whole) in [
            ("api.example.com", "api.example.com:443/tcp"),
            ("API.Example.com.", "api.example.com:443/tcp"),
            ("api.example.com:80", "api.example.com:80/tcp"),
            ("api.example.com:53/UDP", "api.example.com:53/udp"),
            ("api.example.com:icmp", "api.example.com:icmp"),
            ("localhost", "localhost:443/tcp"),
            ("192.0.2.1", "192.0.2.1:443/tcp"),
            ("192.0.2.1:123/udp", "192.0.2.1:123/udp"),
            ("2001:db8::1", "[2001:db8::1]:443/tcp"),
            ("[2001:db8::1]", "[2001:db8::1]:443/tcp"),
            ("[2001:db8::1]:80/sctp", "[2001:db8::1]:80/sctp"),
            ("::ffff:192.0.2.1", "192.0.2.1:443/tcp"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80/tcp"),
            ("[2001:db8::1]:icmp", "[2001:db8::1]:icmp"),
        ] {
            let destination = read(text);
            assert_eq!(destination.to_string(), whole, "{text}");
            let again = read(whole);
            assert_eq!(again.host, destination.host, "{text}");
            assert_eq!(
                (again.port, again.proto),
                (destination.port, destination.proto)
            );
            assert!(!again.is_default_port);
        }
        assert!(read("api.example.com").is_default_port);
        assert_eq!(format!("{:#}", read("2001:db8::1")), "[2001:db8::1]");
        assert_eq!(format!("{:#}", read("a.example:443")), "a.example:443/tcp");
        assert!(!read("api.example.com:443").is_default_port);
    }

    #[test]
    fn icmp_is_that_of_the_address() {
        assert_eq!(read("192.0.2.1:icmp").proto, protocol::ICMP);
        assert_eq!(read("[2001:db8::1]:icmp").proto, protocol::ICMPV6);
        let v6 = address_from("2001:db8::1".parse().unwrap());
        assert_eq!(read("api.example.com:icmp").at(v6).proto, protocol::ICMPV6);
    }

    #[test]
    fn other_texts_are_refused_with_the_right_form() {
        for (text, why, hint) in [
            ("", "it is empty", FORMS),
            ("https://api.example.com/", "it is a URL", FORMS),
            ("[2001:db8::1", "the bracket is not closed", FORMS),
            (
                "[192.0.2.1]:80",
                "only an IPv6 address stands in brackets",
                FORMS,
            ),
            ("[2001:db8::1]80", "a colon comes after the bracket", FORMS),
            (
                "2001:db8::1:443/tcp",
                "an IPv6 address with a port stands in brackets",
                "[2001:db8::1]:443/tcp",
            ),
            (
                "10.0.0.1/8",
                "it is a network, and one address is asked for",
                FORMS,
            ),
            (
                "api.example.com/443",
                "a colon comes before the port",
                "api.example.com:443",
            ),
            (
                "*.example.com",
                "it is a pattern, and one name is asked for",
                "www.example.com",
            ),
            (
                "api.example.com:0",
                "port 0 does not exist: ports are 1 to 65535",
                FORMS,
            ),
            (
                "api.example.com:65536",
                "port 65536 does not exist: ports are 1 to 65535",
                FORMS,
            ),
            (
                "api.example.com:any/tcp",
                "one port of one protocol is asked for",
                FORMS,
            ),
            ("api.example.com:", "it is empty", FORMS),
        ] {
            let error = text.parse::<Destination>().unwrap_err();
            assert_eq!(
                (error.why.as_str(), error.hint.as_str()),
                (why, hint),
                "{text}"
            );
        }
    }
}
