//! What the node is: its cgroup hierarchy, addresses and resolvers.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

/// Where cgroup v2 is mounted: `/sys/fs/cgroup` on most machines.
#[must_use]
pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    cgroup_root_in(&mounts)
}

fn cgroup_root_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })
}

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

/// systemd-resolved's stub: behind it stand the resolvers of another file.
const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
const RESOLV_CONF: &str = "/etc/resolv.conf";
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// The resolvers that this machine asks: those of resolv.conf, and behind systemd-resolved's stub its own.
#[must_use]
pub fn system_resolvers() -> Vec<IpAddr> {
    let read = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default();
    let mut resolvers = nameservers(&read(RESOLV_CONF));
    if resolvers.contains(&STUB) {
        for resolver in nameservers(&read(RESOLVED_CONF)) {
            if !resolvers.contains(&resolver) {
                resolvers.push(resolver);
            }
        }
    }
    resolvers
}

/// The `nameserver` lines of a resolv.conf; as resolv.conf(5) says, none means the local machine.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // A link-local address may carry its interface: fe80::1%eth0.
        let address = words
            .next()
            .and_then(|word| word.split('%').next())
            .and_then(|word| word.parse().ok());
        if let Some(address) = address
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    if found.is_empty() {
        found.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
        found.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_mount_is_found_beside_version_1() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(
            cgroup_root_in(mounts),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        assert_eq!(cgroup_root_in("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn nameservers_are_read_once_and_without_their_zone() {
        let text = "# comment\nsearch example.com\nnameserver 192.0.2.53\n\
                    nameserver fe80::1%eth0\nnameserver 192.0.2.53\noptions edns0\n";
        let expected: Vec<IpAddr> = vec![
            "192.0.2.53".parse().expect("an address"),
            "fe80::1".parse().expect("an address"),
        ];
        assert_eq!(nameservers(text), expected);
    }

    #[test]
    fn without_a_nameserver_the_local_machine_is_asked() {
        assert_eq!(nameservers("search example.com\n").len(), 2);
    }
}
