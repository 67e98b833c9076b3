//! What `run` finds out about the node when it is not told.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

const MOUNTS: &str = "/proc/mounts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the resolvers that its stub asks.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// Where the cgroup v2 tree is mounted; `None` when it is not.
///
/// # Errors
///
/// The mount table cannot be read.
pub fn cgroup2_root() -> io::Result<Option<PathBuf>> {
    fs::read_to_string(MOUNTS).map(|mounts| cgroup2_mount(&mounts))
}

/// The resolvers of this node, without repetitions: those of resolv.conf and,
/// behind a stub of systemd-resolved, those that the stub asks.
///
/// # Errors
///
/// resolv.conf is there and cannot be read.
pub fn resolvers() -> io::Result<Vec<IpAddr>> {
    let read = |path: &str| match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    };
    let mut found = nameservers(&read(RESOLV_CONF)?);
    if found.is_empty() {
        // resolv.conf(5): without a line, the resolver on this machine is asked.
        found.push(IpAddr::from([127, 0, 0, 1]));
    }
    if found.iter().any(is_systemd_stub) {
        for behind in nameservers(&read(RESOLVED_CONF)?) {
            if !found.contains(&behind) {
                found.push(behind);
            }
        }
    }
    Ok(found)
}

/// 127.0.0.53 and 127.0.0.54, systemd-resolved.service(8).
fn is_systemd_stub(address: &IpAddr) -> bool {
    [IpAddr::from([127, 0, 0, 53]), IpAddr::from([127, 0, 0, 54])].contains(address)
}

fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    let mut points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (point, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescaped(point)))
    });
    // A later mount on the same place would hide it, one elsewhere (hybrid mode) does not.
    let first = points.next()?;
    let standard = Path::new("/sys/fs/cgroup");
    if first == standard || points.any(|point| point == standard) {
        return Some(standard.to_owned());
    }
    Some(first)
}

/// Mount points have space, tab, newline and backslash as `\040` and so on, proc_pid_mounts(5).
fn unescaped(point: &str) -> String {
    let mut text = String::with_capacity(point.len());
    let mut rest = point;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let code = after.get(..3).map(|digits| u8::from_str_radix(digits, 8));
        match code {
            Some(Ok(byte)) => {
                text.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            Some(Err(_)) | None => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
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
    fn the_cgroup2_mount_is_found_in_both_layouts() {
        let unified = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(
            cgroup2_mount(unified),
            Some(PathBuf::from("/sys/fs/cgroup"))
        );
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs ro 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        assert_eq!(
            cgroup2_mount(hybrid),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        let twice = "none /run/cg\\040two cgroup2 rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(twice), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(cgroup2_mount("cgroup /sys/fs/cgroup cgroup rw 0 0\n"), None);
        assert_eq!(cgroup2_mount("short\n"), None);
    }

    #[test]
    fn escapes_of_mount_points_are_undone() {
        assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescaped("/a\\9"), "/a\\9");
    }

    #[test]
    fn resolvers_are_read_as_the_c_library_reads_them() {
        let conf = "# comment\nsearch example.com\n nameserver 192.0.2.53 # indented\n\
                    nameserver\t2001:db8::53\nnameserver fe80::1%eth0\nnameserver 192.0.2.53\n\
                    nameserver bogus\nnameserver\n#nameserver 198.51.100.1\n";
        let found: Vec<_> = nameservers(conf).iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["192.0.2.53", "2001:db8::53", "fe80::1"]);
    }

    #[test]
    fn only_the_stubs_of_systemd_hide_other_resolvers() {
        let is_stub = |text: &str| is_systemd_stub(&text.parse().expect("an address"));
        assert!(is_stub("127.0.0.53") && is_stub("127.0.0.54"));
        assert!(!is_stub("127.0.0.1") && !is_stub("192.0.2.53"));
    }
}
