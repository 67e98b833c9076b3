//! The node's addresses and resolvers.

use std::{collections::BTreeSet, fs, net::IpAddr};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the resolvers that its stub asks.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// The addresses of this network namespace's interfaces, loopback excluded.
#[must_use]
pub fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let addresses: BTreeSet<IpAddr> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            if let Some(v4) = address.as_sockaddr_in() {
                return Some(IpAddr::V4(v4.ip()));
            }
            address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
        })
        .filter(|address| !address.is_loopback())
        .collect();
    addresses.into_iter().collect()
}

/// The resolvers of this node, without repetitions: those of resolv.conf and,
/// behind a stub of systemd-resolved, those that the stub asks.
#[must_use]
pub fn system_resolvers() -> Vec<IpAddr> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut found = nameservers(&read(RESOLV_CONF));
    if found.is_empty() {
        // resolv.conf(5): without a line, the resolver on this machine is asked.
        found.push(IpAddr::from([127, 0, 0, 1]));
    }
    if found.iter().any(is_systemd_stub) {
        for behind in nameservers(&read(RESOLVED_CONF)) {
            if !found.contains(&behind) {
                found.push(behind);
            }
        }
    }
    found
}

/// The search domains of this node, in lower case (resolv.conf(5): the last `search` or `domain` line counts).
#[must_use]
pub fn search_domains() -> Vec<String> {
    searched(&fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

fn searched(resolv_conf: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_ascii_whitespace();
        if !matches!(words.next(), Some("search" | "domain")) {
            continue;
        }
        let domains = words.map(|word| word.trim_end_matches('.').to_ascii_lowercase());
        // `search .` asks for nothing but the name itself.
        found = domains.filter(|domain| !domain.is_empty()).collect();
    }
    found
}

/// 127.0.0.53 and 127.0.0.54, systemd-resolved.service(8).
fn is_systemd_stub(address: &IpAddr) -> bool {
    [IpAddr::from([127, 0, 0, 53]), IpAddr::from([127, 0, 0, 54])].contains(address)
}

fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // A link-local address carries its interface: fe80::1%eth0.
        let address = words.next().and_then(|word| word.split('%').next());
        let address = address.and_then(|word| word.parse::<IpAddr>().ok());
        if let Some(address) = address.map(|address| address.to_canonical())
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_the_c_library_reads_them() {
        let conf = "# comment\nsearch example.com\n nameserver 192.0.2.53 # indented\n\
                    nameserver\t2001:db8::53\nnameserver fe80::1%eth0\nnameserver 192.0.2.53\n\
                    nameserver bogus\nnameserver\n#nameserver 198.51.100.1\n";
        let found: Vec<_> = nameservers(conf).iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["192.0.2.53", "2001:db8::53", "fe80::1"]);
    }

    #[test]
    fn the_last_search_line_counts() {
        let found =
            searched("domain one.example\nsearch Two.Example. three.example\nnameserver ::1\n");
        assert_eq!(found, ["two.example", "three.example"]);
        assert!(searched("search .\n").is_empty());
    }

    #[test]
    fn only_the_stubs_of_systemd_hide_other_resolvers() {
        let is_stub = |text: &str| is_systemd_stub(&text.parse().expect("an address"));
        assert!(is_stub("127.0.0.53") && is_stub("127.0.0.54"));
        assert!(!is_stub("127.0.0.1") && !is_stub("192.0.2.53"));
    }
}
