//! The node's addresses and resolvers.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

/// Where the resolvers stand.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the resolvers that its stub asks.
pub const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";
/// Most bytes that are read: a file of resolvers has some hundred.
const MAX_BYTES: u64 = 1 << 20;

/// The addresses of this network namespace's interfaces, loopback excluded.
///
/// # Errors
///
/// The kernel does not list them.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
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
    Ok(addresses.into_iter().collect())
}

/// Where caches of clusters listen on each node: NodeLocal DNSCache, and LocalDNS of AKS.
const CACHES: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 10, 10)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 10, 11)),
];
/// The interfaces that they make for themselves, whatever their addresses are.
const CACHE_INTERFACES: [&str; 2] = ["nodelocaldns", "localdns"];

/// A cache of the cluster's DNS on this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalCache {
    /// Where it is asked.
    pub address: IpAddr,
    /// The interface that has the address.
    pub interface: String,
}

/// The caches of the cluster's DNS that have an address in this network namespace.
///
/// # Errors
///
/// The kernel does not list the addresses.
pub fn local_caches() -> io::Result<Vec<LocalCache>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = || address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        Some((v4.or_else(v6)?, interface.interface_name))
    });
    Ok(caches_in(addresses))
}

fn caches_in(addresses: impl Iterator<Item = (IpAddr, String)>) -> Vec<LocalCache> {
    let is_link_local =
        |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let caches: BTreeSet<LocalCache> = addresses
        .filter(|(address, interface)| {
            let is_cache =
                CACHES.contains(address) || CACHE_INTERFACES.contains(&interface.as_str());
            is_cache && !is_link_local(address) && !address.is_loopback()
        })
        .map(|(address, interface)| LocalCache { address, interface })
        .collect();
    caches.into_iter().collect()
}

/// The content of resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// The resolvers, without repetitions: those of the file and, behind a stub of systemd-resolved, those that it asks.
    pub resolvers: Vec<IpAddr>,
    /// Those of them that stand only behind the stub.
    pub behind: Vec<IpAddr>,
    /// The search domains, in lower case (resolv.conf(5): the last `search` or `domain` line counts).
    pub search_domains: Vec<String>,
}

impl ResolvConf {
    /// Reads this node's.
    ///
    /// # Errors
    ///
    /// A sentence: a file cannot be read, or names no resolver. resolv.conf(5) then means the resolver on this machine;
    /// more often the file is being written, or the network is not up.
    pub fn read() -> Result<Self, String> {
        Self::read_from(Path::new(RESOLV_CONF), Path::new(RESOLVED_CONF))
    }

    /// Reads what a node of a cluster asks, but for what is on loopback: each pod has a loopback of its own, and could
    /// run a resolver there that teaches whatever it likes.
    ///
    /// # Errors
    ///
    /// As [`Self::read`] has them. That all resolvers are on loopback is none: the cluster's DNS is beside them.
    pub fn read_in_cluster() -> Result<Self, String> {
        Self::read_in_cluster_from(Path::new(RESOLV_CONF), Path::new(RESOLVED_CONF))
    }

    fn read_in_cluster_from(resolv_conf: &Path, resolved_conf: &Path) -> Result<Self, String> {
        let text = text_of(resolv_conf)?;
        let mut resolvers = nameservers(&text);
        if resolvers.is_empty() {
            return Err(format!("{} names no resolver", resolv_conf.display()));
        }
        // A container has its file from the kubelet, as it was when the pod began; this one is the node's own.
        let mut behind = match resolved_conf.exists() {
            true => nameservers(&text_of(resolved_conf)?),
            false => Vec::new(),
        };
        resolvers.retain(|resolver| !resolver.is_loopback());
        behind.retain(|resolver| !resolver.is_loopback() && !resolvers.contains(resolver));
        resolvers.extend(&behind);
        Ok(Self {
            resolvers,
            behind,
            search_domains: searched(&text),
        })
    }

    fn read_from(resolv_conf: &Path, resolved_conf: &Path) -> Result<Self, String> {
        let text = text_of(resolv_conf)?;
        let mut resolvers = nameservers(&text);
        if resolvers.is_empty() {
            return Err(format!("{} names no resolver", resolv_conf.display()));
        }
        let mut behind = Vec::new();
        if resolvers.iter().any(is_systemd_stub) {
            behind = nameservers(&text_of(resolved_conf)?);
            if behind.is_empty() {
                return Err(format!("{} names no resolver", resolved_conf.display()));
            }
            behind.retain(|resolver| !resolvers.contains(resolver));
            resolvers.extend(&behind);
        }
        Ok(Self {
            resolvers,
            behind,
            search_domains: searched(&text),
        })
    }
}

fn text_of(path: &Path) -> Result<String, String> {
    let cannot = |error: io::Error| format!("{} cannot be read: {error}", path.display());
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(cannot)?;
    io::Read::read_to_end(&mut io::Read::take(file, MAX_BYTES), &mut bytes).map_err(cannot)?;
    if bytes.contains(&0) {
        return Err(format!("{} is no text", path.display()));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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
    fn a_file_without_a_resolver_is_told_apart_from_one_that_names_this_machine() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, behind) = (
            folder.path().join("resolv.conf"),
            folder.path().join("stub"),
        );
        let read = |text: &[u8]| {
            fs::write(&file, text).expect("is written");
            ResolvConf::read_from(&file, &behind)
        };
        assert!(
            ResolvConf::read_from(&file, &behind).is_err_and(|why| why.contains("cannot be read"))
        );
        for text in [
            &b""[..],
            b"# nothing\n",
            b"options edns0\n",
            b"nameserver bogus\n",
        ] {
            assert!(read(text).is_err_and(|why| why.ends_with("names no resolver")));
        }
        assert!(read(b"\0\xff garbage").is_err_and(|why| why.ends_with("is no text")));
        let here = read(b"search A.example\nnameserver 127.0.0.1\n").expect("is read");
        assert_eq!(here.resolvers, [IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(here.search_domains, ["a.example"]);

        let stub = b"nameserver 127.0.0.53\n";
        assert!(read(stub).is_err_and(|why| why.contains("stub cannot be read")));
        fs::write(&behind, "# No DNS servers known.\n").expect("is written");
        assert!(read(stub).is_err_and(|why| why.ends_with("stub names no resolver")));
        fs::write(&behind, "nameserver 192.0.2.1\n").expect("is written");
        let resolvers = read(stub).expect("is read").resolvers;
        assert_eq!(
            resolvers,
            ["127.0.0.53", "192.0.2.1"].map(|one| one.parse::<IpAddr>().expect("an address"))
        );
    }

    #[test]
    fn in_a_cluster_nothing_on_loopback_is_a_resolver_and_the_nodes_own_file_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, node) = (
            folder.path().join("resolv.conf"),
            folder.path().join("node"),
        );
        let read = || ResolvConf::read_in_cluster_from(&file, &node);
        fs::write(&file, "nameserver 127.0.0.53\n").expect("is written");
        assert_eq!(read().map(|conf| conf.resolvers), Ok(Vec::new()));
        fs::write(&node, "nameserver 192.0.2.1\nnameserver ::1\n").expect("is written");
        let behind = [IpAddr::from([192, 0, 2, 1])];
        let conf = read().expect("is read");
        assert_eq!(
            (&conf.resolvers[..], &conf.behind[..]),
            (&behind[..], &behind[..])
        );
        fs::write(&file, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").expect("is written");
        let conf = read().expect("is read");
        assert_eq!((conf.resolvers.len(), conf.behind.len()), (2, 0));
        fs::write(&file, "").expect("is written");
        assert!(read().is_err_and(|why| why.ends_with("names no resolver")));
    }

    #[test]
    fn caches_on_the_node_are_known_by_their_addresses_or_their_interfaces() {
        let found = caches_in(
            [
                ("169.254.20.10", "dummy0"),
                ("169.254.10.11", "eth1"),
                ("10.96.0.10", "nodelocaldns"),
                ("fd00::10", "localdns"),
                ("fe80::1", "localdns"),
                ("169.254.20.11", "eth0"),
                ("192.0.2.9", "eth0"),
            ]
            .into_iter()
            .map(|(address, interface)| {
                (address.parse().expect("an address"), interface.to_owned())
            }),
        );
        let found: Vec<String> = found
            .iter()
            .map(|cache| cache.address.to_string())
            .collect();
        assert_eq!(
            found,
            ["10.96.0.10", "169.254.10.11", "169.254.20.10", "fd00::10"]
        );
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
