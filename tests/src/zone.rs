//! Addresses and names of every world.

use std::{fmt::Write as _, fs, net::IpAddr, path::Path};

use anyhow::{Context as _, Result};

/// The node whose processes are judged.
pub const NODE: [&str; 2] = ["10.77.0.2", "fd77::2"];
/// The real resolver: unbound or dnsmasq.
pub const RESOLVER: [&str; 2] = ["10.77.0.53", "fd77::53"];
/// The programmable DNS server (`probe dns-server`).
pub const SERVER: &str = "10.77.0.54";
/// The forging DNS server (`probe forge-dns`).
pub const FORGER: &str = "10.77.0.55";
/// A DNS server that nobody trusts; the forger also sends from here.
pub const STRANGER: &str = "10.77.0.66";
/// The web namespace, through which all server addresses are routed.
pub const WEB: [&str; 2] = ["10.77.0.80", "fd77::80"];
/// The node's side of the pod's network.
pub const POD_GATEWAY: [&str; 2] = ["10.77.1.1", "fd77:1::1"];
/// The pod whose packets the node forwards.
pub const POD: [&str; 2] = ["10.77.1.2", "fd77:1::2"];
/// Every address below these prefixes is a server in the web namespace.
pub const SERVERS: [&str; 2] = ["10.78.0.0/15", "fd78::/15"];
/// Ports on which servers answer, TCP and UDP.
pub const PORTS: &str = "80,443,8000,8080,9000";

/// First address for the names of `probe dns-server`; enough for 32,000 names.
pub const POOL4: &str = "10.78.128.0";
/// The same for IPv6.
pub const POOL6: &str = "fd78:8000::";

/// One name of the resolver's data.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The name.
    pub name: &'static str,
    /// Its TTL in seconds.
    pub ttl: u32,
    /// Its data: addresses, or one name that it is an alias of.
    pub data: &'static [&'static str],
}

const fn entry(name: &'static str, ttl: u32, data: &'static [&'static str]) -> Entry {
    Entry { name, ttl, data }
}

/// The data of the resolver, whichever it is.
pub const ENTRIES: &[Entry] = &[
    entry("api.example.com", 300, &["10.78.1.1", "fd78::1:1"]),
    entry("other.example.com", 300, &["10.78.1.2", "fd78::1:2"]),
    entry("v6.example.com", 300, &["fd78::1:3"]),
    entry("www.cdn.example.net", 300, &["10.78.2.1", "fd78::2:1"]),
    entry("a.b.cdn.example.net", 300, &["10.78.2.2", "fd78::2:2"]),
    // The apex, which the wildcard excludes.
    entry("cdn.example.net", 300, &["10.78.2.3", "fd78::2:3"]),
    // Ends like the wildcard's name, but is not below it.
    entry("notcdn.example.net", 300, &["10.78.2.4"]),
    entry("evil.cdn.example.net", 300, &["10.78.2.66", "fd78::2:66"]),
    entry("shared.cdn.example.net", 300, &["10.78.2.7"]),
    entry("evilshared.cdn.example.net", 300, &["10.78.2.7"]),
    // Many sites of one address.
    entry("site1.example.net", 300, &["10.78.2.8"]),
    entry("site2.example.net", 300, &["10.78.2.8"]),
    entry("site3.example.net", 300, &["10.78.2.8"]),
    entry("site4.example.net", 300, &["10.78.2.8"]),
    entry("site5.example.net", 300, &["10.78.2.8"]),
    entry("site6.example.net", 300, &["10.78.2.8"]),
    // An allowed name that leads to a denied one.
    entry("lure.cdn.example.net", 300, &["evil2.cdn.example.net"]),
    entry("evil2.cdn.example.net", 300, &["10.78.2.67"]),
    entry("alias.example.com", 300, &["hop.example.org"]),
    entry("hop.example.org", 300, &["end.example.org"]),
    entry("end.example.org", 300, &["10.78.3.1", "fd78::3:1"]),
    entry("short.example.com", 1, &["10.78.4.1", "fd78::4:1"]),
    entry("brief.example.com", 2, &["10.78.4.2", "fd78::4:2"]),
    entry("fleeting.example.com", 1, &["10.78.4.3"]),
    entry("md-1.blob.example.net", 300, &["10.78.5.1", "fd78::5:1"]),
    entry("md-a-x.blob.example.net", 300, &["10.78.5.2", "fd78::5:2"]),
    entry("um-1.blob.example.net", 300, &["10.78.5.3", "fd78::5:3"]),
    // A label between, and the apex of all these.
    entry("md-1.b.blob.example.net", 300, &["10.78.5.4", "fd78::5:4"]),
    entry("blob.example.net", 300, &["10.78.5.5", "fd78::5:5"]),
    entry("xx.blob.example.net", 300, &["10.78.5.6", "fd78::5:6"]),
    entry("x.blob.example.net", 300, &["10.78.5.7", "fd78::5:7"]),
    entry("md-far.blob.example.net", 300, &["store.example.org"]),
    entry("store.example.org", 300, &["10.78.5.8", "fd78::5:8"]),
    entry("um-lure.blob.example.net", 300, &["md-1.blob.example.net"]),
    entry("reload.example.com", 300, &["10.78.6.1"]),
    entry("new1.example.com", 300, &["10.78.7.1", "fd78::7:1"]),
    entry("new2.example.com", 1, &["10.78.7.2"]),
    entry("new3.example.com", 300, &["10.78.7.3"]),
    // Names that an AKS cluster needs.
    entry("mcr.microsoft.com", 300, &["10.78.11.1"]),
    entry("eastus.data.mcr.microsoft.com", 300, &["10.78.11.2"]),
    entry("shop-1.hcp.eastus.azmk8s.io", 300, &["10.78.11.3"]),
    entry("shop-1.hcp.westus.azmk8s.io", 300, &["10.78.11.4"]),
    entry("forbidden.example.org", 300, &["10.78.9.1", "fd78::9:1"]),
    entry("secret.example.org", 300, &["10.78.9.2", "fd78::9:2"]),
];

/// A service binding of the resolver's data, with addresses in its hints (RFC 9460).
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// The owner, which has no other records.
    pub name: &'static str,
    /// `HTTPS` or `SVCB`.
    pub kind: &'static str,
    /// Priority, target, and parameters before the hints.
    pub head: &'static str,
    /// Addresses of the IPv4 hint.
    pub v4: &'static [&'static str],
    /// Addresses of the IPv6 hint.
    pub v6: &'static [&'static str],
}

/// Service bindings of unbound's data; dnsmasq has none.
pub const SERVICES: &[Service] = &[
    Service {
        name: "hint.cdn.example.net",
        kind: "HTTPS",
        head: "1 . alpn=h2,h3 port=443",
        v4: &["10.78.10.1", "10.78.10.2"],
        v6: &["fd78::10:1", "fd78::10:2"],
    },
    Service {
        name: "_dns.hint.cdn.example.net",
        kind: "SVCB",
        head: "1 .",
        v4: &["10.78.10.3"],
        v6: &["fd78::10:3"],
    },
    Service {
        name: "farhint.cdn.example.net",
        kind: "HTTPS",
        head: "1 far.example.org.",
        v4: &["10.78.10.4"],
        v6: &["fd78::10:4"],
    },
    Service {
        name: "hint.example.org",
        kind: "HTTPS",
        head: "1 .",
        v4: &["10.78.10.65"],
        v6: &["fd78::10:65"],
    },
    Service {
        name: "evilhint.cdn.example.net",
        kind: "HTTPS",
        head: "1 .",
        v4: &["10.78.10.66"],
        v6: &["fd78::10:66"],
    },
    // An allowed name whose service is a denied one's.
    Service {
        name: "lurehint.cdn.example.net",
        kind: "HTTPS",
        head: "1 evilhint.cdn.example.net.",
        v4: &["10.78.10.67"],
        v6: &["fd78::10:67"],
    },
    Service {
        name: "badhint.cdn.example.net",
        kind: "HTTPS",
        head: "1 .",
        v4: &["127.0.0.1", "169.254.169.254", "10.78.10.5"],
        v6: &["::1", "fd00:ec2::254", "fd78::10:5"],
    },
];

/// The first address of a name, IPv4 or IPv6.
///
/// # Panics
///
/// If the zone has none.
#[must_use]
pub fn address(name: &str, v6: bool) -> IpAddr {
    ENTRIES
        .iter()
        .find(|entry| entry.name == name)
        .and_then(|entry| {
            let mut addresses = entry.data.iter().filter_map(|text| text.parse().ok());
            addresses.find(|address: &IpAddr| address.is_ipv6() == v6)
        })
        .unwrap_or_else(|| panic!("the zone has no such address for {name}"))
}

/// Writes unbound's configuration and its data as one zone, the root, so that aliases are followed.
///
/// # Errors
///
/// A file cannot be written.
pub fn write_unbound(dir: &Path) -> Result<std::path::PathBuf> {
    let mut zone = String::from(
        "$ORIGIN .\n. 300 IN SOA ns.example. root.example. 1 3600 600 86400 0\n\
         . 300 IN NS ns.example.\nns.example. 300 IN A 10.77.0.53\n",
    );
    for Entry { name, ttl, data } in ENTRIES {
        for text in *data {
            let (kind, text) = match text.parse() {
                Ok(IpAddr::V4(_)) => ("A", (*text).to_owned()),
                Ok(IpAddr::V6(_)) => ("AAAA", (*text).to_owned()),
                Err(_) => ("CNAME", format!("{text}.")),
            };
            writeln!(zone, "{name}. {ttl} IN {kind} {text}").context("cannot format")?;
        }
    }
    for service in SERVICES {
        let Service {
            name, kind, head, ..
        } = service;
        let (v4, v6) = (service.v4.join(","), service.v6.join(","));
        writeln!(
            zone,
            "{name}. 300 IN {kind} {head} ipv4hint={v4} ipv6hint={v6}"
        )
        .context("cannot format")?;
    }
    let zone_path = dir.join("root.zone");
    fs::write(&zone_path, zone).context("cannot write the zone")?;
    let [v4, v6] = RESOLVER;
    let config = format!(
        "server:\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n directory: \"{dir}\"\n \
         pidfile: \"\"\n use-syslog: no\n num-threads: 1\n interface: {v4}\n interface: {v6}\n \
         access-control: 0.0.0.0/0 allow\n access-control: ::/0 allow\n module-config: \"iterator\"\n \
         minimal-responses: yes\n \
         msg-cache-size: 1m\n rrset-cache-size: 1m\n outgoing-range: 64\n so-reuseport: no\n\
         remote-control:\n control-enable: no\n\
         auth-zone:\n name: \".\"\n zonefile: \"{zone}\"\n for-downstream: yes\n for-upstream: yes\n \
         fallback-enabled: no\n",
        dir = dir.display(),
        zone = zone_path.display(),
    );
    let path = dir.join("unbound.conf");
    fs::write(&path, config).context("cannot write unbound's configuration")?;
    Ok(path)
}

/// Writes dnsmasq's configuration with its data inside.
///
/// # Errors
///
/// The file cannot be written.
pub fn write_dnsmasq(dir: &Path) -> Result<std::path::PathBuf> {
    let [v4, v6] = RESOLVER;
    let mut config = format!(
        "keep-in-foreground\nno-resolv\nno-hosts\nno-poll\nuser=root\ngroup=root\npid-file=\n\
         port=53\nbind-interfaces\nlisten-address={v4}\nlisten-address={v6}\n"
    );
    for Entry { name, ttl, data } in ENTRIES {
        let is_alias = data.iter().any(|text| text.parse::<IpAddr>().is_err());
        let kind = if is_alias { "cname" } else { "host-record" };
        writeln!(config, "{kind}={name},{},{ttl}", data.join(",")).context("cannot format")?;
    }
    let path = dir.join("dnsmasq.conf");
    fs::write(&path, config).context("cannot write dnsmasq's configuration")?;
    Ok(path)
}
