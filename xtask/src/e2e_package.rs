//! `cargo xtask e2e-package`: the Debian package on a node with a real systemd, in QEMU.
//!
//! The node's disk is a Debian made by debootstrap. Its last service runs `e2e_package.sh`, which installs, upgrades,
//! boots and removes the package under traffic and prints what it found on the second serial port, as `vm-check` does.

use std::{
    fs::{self, File},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    apt::Apt,
    build,
    dist::{Release, VERSION},
    kernels,
    run::{self, Stage, say},
    setup::{self, Group},
    vm::{self, Guest},
};

/// The node's Debian, and the series of its kernel.
const SUITE: &str = "bookworm";
const KERNEL: &str = "6.1";
/// Packages beside the smallest set.
const PACKAGES: &str = "systemd-sysv,iproute2,netcat-openbsd";
/// Modules that its disk needs as well.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// Counts changes of how the disk is made.
const RECIPE: &str = "recipe 1";
const DISK_SIZE: &str = "1G";
/// The node boots once to install, and once to see what a boot does.
const BOOTS: u32 = 2;
/// One boot that has not ended by then has failed.
const LIMIT: Duration = Duration::from_mins(20);

/// Options of `cargo xtask e2e-package`.
#[derive(Args, Debug)]
pub(crate) struct E2ePackage {
    /// Make the node's disk again although it is there.
    #[arg(long)]
    rebuild: bool,
    /// Use this static agent instead of building one.
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

impl E2ePackage {
    /// Sets up, builds, boots and prints a table.
    ///
    /// # Errors
    ///
    /// Not root, a tool fails, or a check does.
    pub(crate) fn run(&self) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "the node's disk has files of root: run `sudo -E env \"PATH=$PATH\" cargo xtask e2e-package`"
            );
        }
        setup::setup(&[Group::Build, Group::Net, Group::Vm, Group::Dist])?;
        let agent = match &self.agent {
            Some(agent) => agent.clone(),
            None => build::build()?,
        };
        if self.rebuild {
            setup::remove_dir(&dir())?;
        }
        let wanted = kernels::fetch(&[KERNEL.to_owned()], false)?;
        let wanted = wanted.into_iter().next().context("no kernel")?;
        let kernel = wanted
            .kernel
            .map_err(|reason| anyhow::anyhow!("no kernel {KERNEL}: {reason}"))?;
        let disk = disk(&agent)?;
        let initramfs = initramfs(&kernel)?;
        let mut guest = Guest::new(KERNEL, &kernel.release);
        let begin = Instant::now();
        for boot in 1..=BOOTS {
            say(&format!("boot {boot} of {BOOTS} ..."));
            if let Err(error) = power_on(&kernel, &initramfs, &disk, boot, &mut guest) {
                guest.trouble = Some(format!("{error:#}"));
                break;
            }
        }
        guest.seconds = begin.elapsed().as_secs_f64();
        for passed in &guest.passed {
            println!("ok      {passed}");
        }
        print!("{}", vm::table(std::slice::from_ref(&guest)));
        fs::remove_file(&disk).context("cannot remove the disk of this run")?;
        if !guest.good() {
            bail!("a check failed; the consoles are in {}", run::shown(&dir()));
        }
        Ok(())
    }
}

/// The folder with everything.
fn dir() -> PathBuf {
    run::target_dir().join("e2e-package")
}

/// The commands that the node runs.
const SCRIPT: &str = include_str!("e2e_package.sh");

/// Runs them when everything else has started, and ends the boot.
const SERVICE: &str = "[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/e2e/script
StandardOutput=journal+console
StandardError=journal+console
TimeoutStartSec=infinity
[Install]
WantedBy=default.target
";

/// Uses the network as soon as there can be one.
const EARLY: &str = "[Unit]
DefaultDependencies=no
After=network-pre.target local-fs.target
Wants=network-pre.target
Before=network.target sysinit.target
[Service]
Type=oneshot
ExecStart=/e2e/script early
[Install]
WantedBy=sysinit.target
";

/// An emulated processor verifies programs for a minute and more.
const PATIENCE: &str = "[Service]
TimeoutStartSec=600
";

/// The node's disk of this run: the Debian that was made once, the packages and the commands.
fn disk(agent: &Path) -> Result<PathBuf> {
    let tree = debian()?;
    let e2e = tree.join("e2e");
    setup::remove_dir(&e2e)?;
    fs::create_dir_all(&e2e).context("cannot create a folder")?;
    let stage = Stage::begin("e2e-package-disk", "the node's disk")?;
    for (name, version) in [
        ("first.deb", VERSION),
        ("second.deb", &format!("{VERSION}+1")),
    ] {
        let dir = dir().join("packages");
        fs::create_dir_all(&dir).context("cannot create a folder")?;
        let package = Release::new(agent.to_path_buf(), version)?.deb(&dir)?;
        fs::copy(&package, e2e.join(name)).context("cannot copy a package")?;
    }
    let script = e2e.join("script");
    fs::write(&script, SCRIPT)
        .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))
        .context("cannot write the node's commands")?;
    let units = tree.join("etc/systemd/system");
    let patience = units.join("egress-agent.service.d");
    fs::create_dir_all(&patience)
        .and_then(|()| fs::write(patience.join("emulated.conf"), PATIENCE))
        .context("cannot write a drop-in")?;
    for (name, text, target) in [
        ("e2e.service", SERVICE, "default.target.wants"),
        ("early.service", EARLY, "sysinit.target.wants"),
    ] {
        fs::write(units.join(name), text).context("cannot write a unit")?;
        let wants = units.join(target);
        fs::create_dir_all(&wants).context("cannot create a folder")?;
        let link = wants.join(name);
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(Path::new("..").join(name), link)
                .context("cannot enable a unit")?;
        }
    }
    let disk = dir().join("disk.img");
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
    stage.done();
    Ok(disk)
}

/// A Debian with systemd, made once.
fn debian() -> Result<PathBuf> {
    let _lock = setup::lock("e2e-package")?;
    let (tree, marker) = (dir().join("debian"), dir().join("recipe"));
    if tree.is_dir() && fs::read_to_string(&marker).is_ok_and(|made| made == RECIPE) {
        return Ok(tree);
    }
    let stage = Stage::begin("e2e-package-debian", "a Debian with systemd")?;
    setup::remove_dir(&tree)?;
    fs::create_dir_all(dir()).context("cannot create a folder")?;
    stage.run(
        run::command("debootstrap")
            .args(["--variant=minbase", "--include", PACKAGES, SUITE])
            .arg(&tree)
            .arg(Apt::mirror()?),
    )?;
    for name in ["doc", "locale", "man"] {
        setup::remove_dir(&tree.join("usr/share").join(name))?;
    }
    setup::remove_dir(&tree.join("var/cache/apt"))?;
    setup::remove_dir(&tree.join("var/lib/apt/lists"))?;
    fs::write(&marker, RECIPE).context("cannot keep the recipe's number")?;
    stage.done();
    Ok(tree)
}

/// The program that the kernel starts: it finds the disk, and starts systemd on it.
const FIRST_INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do
    /bin/busybox insmod \"/modules/$module\" || echo \"cannot insert $module\"
done </modules/list
/bin/busybox mount -t ext4 /dev/vda /disk
exec /bin/busybox switch_root /disk /sbin/init
";

/// The first file system, with the modules of disk and programs.
fn initramfs(kernel: &kernels::Kernel) -> Result<PathBuf> {
    let tree = dir().join("initramfs");
    setup::remove_dir(&tree)?;
    for name in ["bin", "dev", "disk", "modules", "proc"] {
        fs::create_dir_all(tree.join(name)).context("cannot create a folder")?;
    }
    let busybox = run::find_program("busybox").context("no busybox: run `cargo xtask setup`")?;
    fs::copy(busybox, tree.join("bin/busybox")).context("cannot copy busybox")?;
    kernels::copy_modules(
        MODULES.into_iter().chain(kernels::MODULES),
        &kernel.modules,
        &tree.join("modules"),
    )?;
    let init = tree.join("init");
    fs::write(&init, FIRST_INIT)
        .and_then(|()| fs::set_permissions(&init, fs::Permissions::from_mode(0o755)))
        .context("cannot write the first init")?;
    let archive = dir().join("initramfs.cpio");
    vm::pack(&tree, &archive)?;
    setup::remove_dir(&tree)?;
    Ok(archive)
}

/// Boots the node and reads what it prints until it turns itself off.
fn power_on(
    kernel: &kernels::Kernel,
    initramfs: &Path,
    disk: &Path,
    boot: u32,
    guest: &mut Guest,
) -> Result<()> {
    let console = dir().join(format!("console-{boot}.log"));
    let results = dir().join(format!("results-{boot}.log"));
    let errors = File::create(dir().join("qemu.log")).context("cannot write qemu's log")?;
    let child = run::command("qemu-system-x86_64")
        .args(["-accel", "tcg", "-smp", "1"])
        .args(["-cpu", vm::processor(&kernel.release)])
        .args(["-m", "1024", "-display", "none", "-monitor", "none"])
        .args(["-nodefaults", "-no-reboot", "-no-user-config"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-serial")
        .arg(format!("file:{}", results.display()))
        .arg("-drive")
        .arg(format!("file={},if=virtio,format=raw", disk.display()))
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg("console=ttyS0 panic=-1 loglevel=4 random.trust_cpu=on systemd.getty_auto=0")
        .stdout(Stdio::null())
        .stderr(errors)
        .process_group(0)
        .spawn()
        .context("cannot start qemu-system-x86_64: run `cargo xtask setup`")?;
    let ended = run::supervise(child, LIMIT, || ());
    let lines = fs::read(&results).unwrap_or_default();
    let text = String::from_utf8_lossy(&lines);
    guest.read(&text);
    for line in text.lines().filter(|line| line.starts_with("SEEN ")) {
        say(line.trim());
    }
    let has_ended = text
        .lines()
        .any(|line| line.trim() == format!("END {boot}"));
    if ended.is_err() || !has_ended {
        eprintln!("{}", run::tail(&console));
    }
    let status = ended?;
    if !status.success() {
        bail!("qemu failed ({status})");
    }
    if !has_ended {
        bail!(
            "boot {boot} stopped before its end, see {}",
            run::shown(&console)
        );
    }
    Ok(())
}
