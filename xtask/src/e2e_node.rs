//! `cargo xtask e2e-node`: a real node in a virtual machine, with our image as its DaemonSet.
//!
//! The control plane runs here, on loopback ports. The node is a Debian kernel in QEMU with cgroup v2, containerd and
//! kubelet, on a disk that is made of packages, unpacked and not installed.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    apt::Apt,
    image, kernels, kubernetes,
    run::{self, Stage},
    setup::{self, Group},
    vm,
};

/// Debian packages of the node, all from one suite.
const PACKAGES: [&str; 7] = [
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "dnsmasq-base",
    "iproute2",
    "mount",
    "nftables",
];
/// Their suite.
const SUITE: &str = "bookworm";
/// The series of its kernel.
const KERNEL: &str = "6.1";
/// Modules that a node needs as well.
const MODULES: [&str; 14] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "overlay",
    "bridge",
    "nf_tables",
    "nf_conntrack",
    "nf_nat",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_ct",
    "xt_comment",
];
/// Counts changes of how the disk is made.
const RECIPE: &str = "recipe 1";
/// Room for containers; only what is used takes space here.
const DISK_SIZE: &str = "4G";
/// The image that the manifests name.
const AGENT_IMAGE: &str = concat!("localhost/egress-agent:", env!("CARGO_PKG_VERSION"));
/// The image of pods that are clients, and of every pod's first container.
const CLIENT_IMAGE: &str = "localhost/client:1";

/// Options of `cargo xtask e2e-node`.
#[derive(Args, Debug)]
pub(crate) struct E2eNode {
    /// Make the node's disk again although it is there.
    #[arg(long)]
    rebuild: bool,
    /// Use this static agent instead of building one.
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

impl E2eNode {
    /// Sets up, builds, and becomes the program in `tests/` that runs the node and checks.
    ///
    /// # Errors
    ///
    /// Not root, or a tool is missing or fails. On success this does not return.
    pub(crate) fn run(&self) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "the node's disk has files of root: run `sudo -E env \"PATH=$PATH\" cargo xtask e2e-node`"
            );
        }
        setup::setup(&[Group::Build, Group::Net, Group::Vm, Group::Image])?;
        kubernetes::prepare()?;
        let versions = kubernetes::prepare_node()?;
        if self.rebuild {
            setup::remove_dir(&dir())?;
        }
        let kernel = kernel()?;
        let disk = disk(&versions)?;
        let initramfs = initramfs(&kernel)?;
        let images = images(self.agent.as_deref())?;
        let program = driver()?;
        // In our place, so that ctrl-c and the exit status are its own.
        let error = run::command(&program)
            .arg("--kernel")
            .arg(&kernel.image)
            .args(["--cpu", vm::processor(&kernel.release)])
            .arg("--initramfs")
            .arg(initramfs)
            .arg("--disk")
            .arg(disk)
            .arg("--images")
            .arg(images)
            .arg("--manifests")
            .arg(run::root().join("deploy"))
            .args(["--agent-image", AGENT_IMAGE])
            .args(["--client-image", CLIENT_IMAGE])
            .exec();
        Err(error).with_context(|| format!("cannot start {}", run::shown(&program)))
    }
}

/// The folder with everything.
fn dir() -> PathBuf {
    run::target_dir().join("e2e-node")
}

/// The node's kernel.
fn kernel() -> Result<kernels::Kernel> {
    let wanted = kernels::fetch(&[KERNEL.to_owned()], false)?;
    let wanted = wanted.into_iter().next().context("no kernel")?;
    wanted
        .kernel
        .map_err(|reason| anyhow::anyhow!("no kernel {KERNEL}: {reason}"))
}

/// The node's disk: packages and kubelet, made once.
fn disk(versions: &str) -> Result<PathBuf> {
    let _lock = setup::lock("e2e-node")?;
    let dir = dir();
    let (disk, marker) = (dir.join("disk.img"), dir.join("versions"));
    let versions = format!("{RECIPE}\n{versions}");
    if disk.is_file() && fs::read_to_string(&marker).is_ok_and(|made| made == versions) {
        return Ok(disk);
    }
    let stage = Stage::begin("e2e-node-disk", "the node's disk")?;
    let tree = dir.join("tree");
    setup::remove_dir(&tree)?;
    for name in ["dev", "proc", "run", "sys", "tmp", "node"] {
        fs::create_dir_all(tree.join(name)).context("cannot create a folder")?;
    }
    let apt = Apt::new(dir.join("apt"), &["deb"], &[SUITE])?;
    stage.run(apt.command("apt-get").arg("update"))?;
    // With all that they depend on: this apt takes nothing for installed.
    stage.run(
        apt.command("apt-get")
            .args(["install", "--download-only", "--yes"])
            .arg("--no-install-recommends")
            .args(PACKAGES),
    )?;
    for package in setup::packages_in(&dir.join("apt/cache/archives"))? {
        stage.run(run::command("dpkg").arg("-x").arg(&package).arg(&tree))?;
    }
    fs::copy(kubernetes::program("kubelet"), tree.join("usr/bin/kubelet"))
        .context("cannot copy kubelet")?;
    for name in ["doc", "locale", "man"] {
        setup::remove_dir(&tree.join("usr/share").join(name))?;
    }
    if disk.is_file() {
        fs::remove_file(&disk).context("cannot remove the old disk")?;
    }
    stage.run(
        run::command("mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .arg(&tree)
            .arg(&disk)
            .arg(DISK_SIZE),
    )?;
    setup::remove_dir(&tree)?;
    setup::remove_dir(&dir.join("apt"))?;
    fs::write(&marker, versions).context("cannot keep the versions")?;
    stage.done();
    Ok(disk)
}

/// The program that the kernel starts: it finds the disk and switches to it.
const FIRST_INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do
    /bin/busybox insmod \"/modules/$module\" || echo \"cannot insert $module\"
done </modules/list
/bin/busybox mount -t ext4 /dev/vda /disk
/bin/busybox cp /node-init /disk/node/init
exec /bin/busybox switch_root /disk /bin/busybox sh /node/init
";

/// The disk's init: mounts file systems, then runs commands that come through a port from outside.
const INIT: &str = include_str!("e2e_node_init.sh");

/// The first file system, with the modules that the disk needs, and all others.
fn initramfs(kernel: &kernels::Kernel) -> Result<PathBuf> {
    let tree = dir().join("initramfs");
    setup::remove_dir(&tree)?;
    for name in ["bin", "dev", "disk", "modules", "proc"] {
        fs::create_dir_all(tree.join(name)).context("cannot create a folder")?;
    }
    fs::copy(busybox()?, tree.join("bin/busybox")).context("cannot copy busybox")?;
    kernels::copy_modules(
        MODULES.into_iter().chain(kernels::MODULES),
        &kernel.modules,
        &tree.join("modules"),
    )?;
    fs::write(tree.join("node-init"), INIT).context("cannot write the node's init")?;
    let init = tree.join("init");
    fs::write(&init, FIRST_INIT)
        .and_then(|()| fs::set_permissions(&init, fs::Permissions::from_mode(0o755)))
        .context("cannot write the first init")?;
    let archive = dir().join("initramfs.cpio");
    vm::pack(&tree, &archive)?;
    setup::remove_dir(&tree)?;
    Ok(archive)
}

fn busybox() -> Result<PathBuf> {
    run::find_program("busybox").context("no busybox: run `cargo xtask setup`")
}

/// The images in one archive, which the node reads as a disk.
fn images(agent: Option<&Path>) -> Result<PathBuf> {
    let agent = image::build(AGENT_IMAGE, agent)?;
    let dir = dir().join("images");
    setup::remove_dir(&dir)?;
    let bin = dir.join("context/bin");
    fs::create_dir_all(&bin).context("cannot create a folder")?;
    fs::copy(busybox()?, bin.join("busybox")).context("cannot copy busybox")?;
    for name in run::output(run::command(busybox()?).arg("--list"))?.lines() {
        if name != "busybox" {
            symlink("busybox", bin.join(name)).context("cannot make a link")?;
        }
    }
    let recipe = dir.join("Containerfile");
    fs::write(
        &recipe,
        "FROM scratch\nCOPY bin /bin\nENV PATH=/bin\nCMD [\"/bin/sleep\", \"infinity\"]\n",
    )
    .context("cannot write a recipe")?;
    let client = image::archive(&dir, &recipe, "client", CLIENT_IMAGE)?;
    let archive = dir.join("images.tar");
    let mut tar = run::command("tar");
    tar.arg("--create").arg("--file").arg(&archive);
    for file in [&agent, &client] {
        let name = file.file_name().context("an image without a name")?;
        let folder = file.parent().unwrap_or(Path::new("/"));
        tar.arg("--directory").arg(folder).arg(name);
    }
    run::output(&mut tar)?;
    Ok(archive)
}

/// Builds the program that runs the node and checks.
fn driver() -> Result<PathBuf> {
    let stage = Stage::begin("build-e2e-node", "the program that checks")?;
    stage.run(
        run::cargo()
            .args(["build", "--package", "egress-tests", "--bin", "e2e-node"])
            .arg("--target-dir")
            .arg(run::target_dir()),
    )?;
    stage.done();
    Ok(run::target_dir().join("debug/e2e-node"))
}
