//! Trusted resolvers as they are written: an address, and a port where it is not 53.

use std::net::{IpAddr, SocketAddr};

use egress_common::dns::DNS_PORT;

/// Reads `IP`, `IP:PORT` or `[IP]:PORT`.
///
/// # Errors
///
/// The fault in the text, and the form that it should have.
pub fn parse_resolver(text: &str) -> Result<SocketAddr, String> {
    let resolver = match text.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, DNS_PORT),
        Err(_) => text.parse::<SocketAddr>().map_err(|error| {
            format!("{error}: give an IP address, or IP:PORT ([IP]:PORT for IPv6)")
        })?,
    };
    if resolver.port() == 0 {
        return Err("port 0 is nobody's: leave it out for 53".to_owned());
    }
    Ok(SocketAddr::new(
        resolver.ip().to_canonical(),
        resolver.port(),
    ))
}

/// As [`parse_resolver`] reads it, without the port where it is 53.
#[must_use]
pub fn resolver_text(resolver: &SocketAddr) -> String {
    if resolver.port() == DNS_PORT {
        resolver.ip().to_string()
    } else {
        resolver.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_is_an_address_and_a_port() {
        for (text, shown) in [
            ("192.0.2.53", "192.0.2.53"),
            ("192.0.2.53:53", "192.0.2.53"),
            ("192.0.2.53:5353", "192.0.2.53:5353"),
            ("2001:db8::53", "2001:db8::53"),
            ("[2001:db8::53]:5353", "[2001:db8::53]:5353"),
            ("::ffff:192.0.2.53", "192.0.2.53"),
        ] {
            assert_eq!(
                parse_resolver(text)
                    .map(|one| resolver_text(&one))
                    .as_deref(),
                Ok(shown)
            );
        }
        for text in [
            "dns.example",
            "192.0.2.53:",
            "192.0.2.53:0",
            "192.0.2.53:70000",
            "",
        ] {
            assert!(parse_resolver(text).is_err(), "{text}");
        }
    }
}
