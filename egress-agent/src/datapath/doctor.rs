//! Checks that this machine has what the programs need.

use std::{fs, path::Path};

use aya::util::KernelVersion;
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use super::load::kernel_is_at_least;

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The thing that is looked at.
    pub name: &'static str,
    /// True if it is enough.
    pub ok: bool,
    /// The state that was found.
    pub found: String,
    /// The state that is needed.
    pub needed: &'static str,
    /// The remedy; empty when it is enough.
    pub fix: String,
}

/// Oldest kernel on which the programs are tested.
const OLDEST_KERNEL: KernelVersion = KernelVersion::new(5, 10, 0);

/// Capabilities by number (include/uapi/linux/capability.h).
const CAPABILITIES: &[(u32, &str)] = &[(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
const CAP_SYS_ADMIN: u32 = 21;

/// Looks at the kernel, the privileges, the cgroup and the bpffs.
#[must_use]
pub fn doctor(cgroup: &Path, pin_dir: &Path) -> Vec<Check> {
    vec![
        kernel(),
        btf(),
        capabilities(),
        cgroup_v2(cgroup),
        bpffs(pin_dir),
        order(),
    ]
}

/// Looks at what programs need that pin nothing.
#[must_use]
pub fn doctor_unpinned(cgroup: &Path) -> Vec<Check> {
    vec![kernel(), btf(), capabilities(), cgroup_v2(cgroup)]
}

fn check(
    name: &'static str,
    needed: &'static str,
    ok: bool,
    found: String,
    fix: impl FnOnce() -> String,
) -> Check {
    Check {
        name,
        ok,
        found,
        needed,
        fix: if ok { String::new() } else { fix() },
    }
}

fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    check(
        "kernel",
        "Linux 5.10 or newer",
        kernel_is_at_least(OLDEST_KERNEL),
        release.trim().to_owned(),
        || "boot a kernel of 5.10 or newer".to_owned(),
    )
}

/// Kernel that orders programs at a cgroup (`BPF_F_BEFORE`).
const ORDERED_KERNEL: KernelVersion = KernelVersion::new(6, 17, 0);

/// Nothing that is required: it only tells what to expect beside a load balancer.
fn order() -> Check {
    check(
        "order of programs",
        "Linux 6.17 or newer, beside a load balancer at sockets that is there first; else nothing",
        true,
        if kernel_is_at_least(ORDERED_KERNEL) {
            "the agent's come first"
        } else {
            "the agent's come after those that are there"
        }
        .to_owned(),
        String::new,
    )
}

fn btf() -> Check {
    let ok = Path::new("/sys/kernel/btf/vmlinux").exists();
    check(
        "kernel type information",
        "/sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)",
        ok,
        if ok { "present" } else { "absent" }.to_owned(),
        || "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions do".to_owned(),
    )
}

fn capabilities() -> Check {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |number: u32| effective.checked_shr(number).unwrap_or(0) & 1 == 1;
    let missing: Vec<&str> = if has(CAP_SYS_ADMIN) && has(12) {
        Vec::new()
    } else {
        CAPABILITIES
            .iter()
            .filter(|(number, _)| !has(*number))
            .map(|(_, name)| *name)
            .collect()
    };
    check(
        "capabilities",
        "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or root",
        missing.is_empty(),
        if missing.is_empty() {
            "enough".to_owned()
        } else {
            format!("without {}", missing.join(", "))
        },
        || "run as root, or give the service these capabilities".to_owned(),
    )
}

fn cgroup_v2(path: &Path) -> Check {
    let needed = "a cgroup v2 directory";
    let shown = path.display().to_string();
    match statfs(path) {
        Ok(facts) if facts.filesystem_type() == CGROUP2_SUPER_MAGIC => {
            check("cgroup", needed, true, shown, String::new)
        }
        Ok(_) => check(
            "cgroup",
            needed,
            false,
            format!("{shown} is not cgroup v2"),
            || {
                "give a directory on a cgroup v2 mount with --cgroup; `findmnt -t cgroup2` lists them, \
             `mount -t cgroup2 none DIR` makes one"
                .to_owned()
            },
        ),
        Err(errno) => check("cgroup", needed, false, format!("{shown}: {errno}"), || {
            "mount cgroup v2, or give its path with --cgroup".to_owned()
        }),
    }
}

fn bpffs(pin_dir: &Path) -> Check {
    let needed = "a directory on a bpffs";
    // The directory itself may not be there yet: its nearest parent decides.
    let nearest = pin_dir.ancestors().find(|path| path.exists());
    let is_bpffs = nearest
        .and_then(|path| statfs(path).ok())
        .is_some_and(|facts| facts.filesystem_type() == BPF_FS_MAGIC);
    let shown = pin_dir.display();
    check(
        "bpffs",
        needed,
        is_bpffs,
        if is_bpffs {
            shown.to_string()
        } else {
            format!("{shown} is not on a bpffs")
        },
        || "mount it (`mount -t bpf bpf /sys/fs/bpf`), or give another --pin-dir".to_owned(),
    )
}
