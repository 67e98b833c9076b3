//! The file system of a guest.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::payload::Payload;
use crate::{ebpf, kernels, run, setup};

/// The script that the guest's kernel starts; `@RUN@` is the payload's.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/sbin:/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm /etc
mount -t devpts pts /dev/pts
hostname guest
while read -r module; do
    insmod "/modules/$module" || echo "cannot insert $module"
done </modules/list
ip link set lo up
echo "nameserver 127.0.0.1" >/etc/resolv.conf
echo "127.0.0.1 localhost" >/etc/hosts
echo "root:x:0:0:root:/:/bin/sh" >/etc/passwd
echo "root:x:0:" >/etc/group
export EGRESS_VM_GUEST=1 EGRESS_AGENT=/bin/egress-agent EGRESS_PROBE=/bin/probe EGRESS_EBPF_OBJECT=/egress-ebpf RUST_BACKTRACE=1
@RUN@
echo END >/dev/ttyS1
poweroff -f
"#;

/// Makes the guest's file system.
///
/// # Errors
///
/// A program is missing, or a file cannot be copied.
pub(super) fn initramfs(
    kernel: &kernels::Kernel,
    payload: &Payload,
    dir: &Path,
) -> Result<PathBuf> {
    let tree = dir.join("tree");
    for name in [
        "bin", "dev", "etc", "modules", "proc", "run", "sbin", "sys", "tmp",
    ] {
        fs::create_dir_all(tree.join(name)).context("cannot create the guest's folders")?;
    }
    let busybox = run::find_program("busybox").context("no busybox: run `cargo xtask setup`")?;
    let bin = tree.join("bin");
    let programs = payload
        .programs
        .iter()
        .map(|(from, name)| (from.as_path(), *name));
    for (from, name) in programs.chain([(busybox.as_path(), "busybox")]) {
        fs::copy(from, bin.join(name))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    for tool in payload.tools {
        copy_with_libraries(tool, &tree)?;
    }
    if ebpf::object().is_file() {
        fs::copy(ebpf::object(), tree.join("egress-ebpf")).context("cannot copy the object")?;
    }
    let modules = payload.modules.iter().flat_map(|list| list.iter().copied());
    kernels::copy_modules(modules, &kernel.modules, &tree.join("modules"))?;
    let init = tree.join("init");
    fs::write(&init, INIT.replace("@RUN@", &payload.run))
        .and_then(|()| fs::set_permissions(&init, fs::Permissions::from_mode(0o755)))
        .context("cannot write the guest's init")?;
    let archive = dir.join("initramfs.cpio");
    pack(&tree, &archive)?;
    setup::remove_dir(&tree)?;
    Ok(archive)
}

/// Packs a folder into an archive that a kernel takes for its first file system.
///
/// # Errors
///
/// A tool is missing or fails.
pub(crate) fn pack(tree: &Path, archive: &Path) -> Result<()> {
    let status = run::command("sh")
        .arg("-c")
        .arg("find . | cpio --quiet --create --format=newc --owner=0:0 >\"$1\"")
        .arg("sh")
        .arg(archive)
        .current_dir(tree)
        .status()
        .context("cannot start sh")?;
    if !status.success() {
        bail!("cpio failed: is it installed? `cargo xtask setup`");
    }
    Ok(())
}

/// Copies a program of this machine and the libraries that it is linked to: busybox's `ip` knows no veth.
fn copy_with_libraries(name: &str, tree: &Path) -> Result<()> {
    let program =
        run::find_program(name).with_context(|| format!("no {name}: run `cargo xtask setup`"))?;
    let libraries = run::output(run::command("ldd").arg(&program))?;
    let libraries = libraries
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    for library in libraries {
        let to = tree.join(library.trim_start_matches('/'));
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        fs::copy(library, &to).with_context(|| format!("cannot copy {library}"))?;
    }
    fs::copy(&program, tree.join("sbin").join(name))
        .with_context(|| format!("cannot copy {}", program.display()))?;
    Ok(())
}
