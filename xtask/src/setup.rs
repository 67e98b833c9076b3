//! `cargo xtask setup`: installs what is missing, and only that.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    run::{self, Stage, say},
    toolchain::{self, Compiler, LINKER_VERSION, Toolchain},
};

/// Purpose of a set of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Building the eBPF object and the agent.
    Build,
    /// The demo and the tests in network namespaces.
    Net,
    /// Other kernels in QEMU.
    Vm,
    /// The container image.
    Image,
    /// Packages.
    Dist,
}

impl Group {
    /// The Debian packages that the group needs whatever the compiler is.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Build => &[
                "g++",
                "libc6-dev",
                "libxml2-dev",
                "libzstd-dev",
                "make",
                "zlib1g-dev",
            ],
            Self::Net => &[
                "bind9-dnsutils",
                "curl",
                "dnsmasq-base",
                "iproute2",
                "iputils-ping",
                "netcat-openbsd",
                "nftables",
                "openssl",
                "procps",
                "python3",
                "unbound",
                "util-linux",
            ],
            Self::Vm => &["busybox-static", "cpio", "qemu-system-x86", "xz-utils"],
            Self::Image => &["buildah"],
            Self::Dist => &["debootstrap", "rpm"],
        }
    }
}

/// Options of `cargo xtask setup`.
#[derive(Args, Debug)]
pub(crate) struct Setup {
    /// Install only the tools for this; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Group>,
}

impl Setup {
    /// Installs what is missing.
    ///
    /// # Errors
    ///
    /// Something cannot be installed.
    pub(crate) fn run(&self) -> Result<()> {
        let groups = if self.only.is_empty() {
            Group::value_variants()
        } else {
            &self.only
        };
        setup(groups)?;
        say("setup: everything is there");
        Ok(())
    }
}

/// Holds a lock among the processes that use this target folder until dropped.
///
/// # Errors
///
/// The lock file cannot be made or locked.
pub(crate) fn lock(name: &str) -> Result<File> {
    let dir = run::target_dir();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join(format!(".xtask-{name}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        say(&format!(
            "waiting for another xtask ({})",
            run::shown(&path)
        ));
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Installs what these groups need and what is missing.
///
/// # Errors
///
/// Something cannot be installed: no root, no package, or a tool that fails.
pub(crate) fn setup(groups: &[Group]) -> Result<()> {
    let _lock = lock("setup")?;
    let packages: Vec<&str> = groups
        .iter()
        .flat_map(|group| group.packages())
        .copied()
        .collect();
    install_packages(&packages)?;
    if groups.contains(&Group::Build) && Toolchain::find().is_none() {
        install_toolchain()?;
    }
    Ok(())
}

/// The packages among `wanted` that are not installed.
fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = run::command("dpkg-query");
    query
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(wanted);
    // It fails when it knows nothing about one of them, and prints the rest all the same.
    let output = query
        .output()
        .context("cannot start dpkg-query: this needs Debian, or the tools installed by hand")?;
    let installed = String::from_utf8_lossy(&output.stdout);
    let installed: Vec<&str> = installed
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    Ok(wanted
        .iter()
        .filter(|package| !installed.contains(package))
        .copied()
        .collect())
}

/// Installs the packages among `wanted` that are missing; services among them are neither started nor enabled.
fn install_packages(wanted: &[&str]) -> Result<()> {
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if run::output(run::command("id").arg("-u"))? != "0" {
        bail!("missing packages: run `cargo xtask setup` as root, or `apt-get install {list}`");
    }
    update_lists()?;
    let stage = Stage::begin("apt-install", format!("Debian packages {list}"))?;
    let _quiet = NoServices::begin()?;
    stage.run(
        run::command("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(["-o", "DPkg::Lock::Timeout=600"])
            .args(&missing),
    )?;
    if missing.contains(&"unbound") && Path::new("/run/systemd/system").is_dir() {
        stage.run(run::command("systemctl").args(["disable", "unbound.service"]))?;
    }
    stage.done();
    Ok(())
}

/// Fetches the package lists, once per process at most.
fn update_lists() -> Result<()> {
    static DONE: std::sync::Once = std::sync::Once::new();
    let mut result = Ok(());
    DONE.call_once(|| {
        result = Stage::begin("apt-update", "Debian package lists").and_then(|stage| {
            stage.run(
                run::command("apt-get")
                    .arg("update")
                    .args(["-o", "DPkg::Lock::Timeout=600"]),
            )?;
            stage.done();
            Ok(())
        });
    });
    result
}

/// Keeps package scripts from starting services, while it lives: we want the programs, not their daemons.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn begin() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = Path::new("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None)); // the machine's owner has decided
        }
        fs::write(path, "#!/bin/sh\nexit 101\n")
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(Some(path.to_path_buf())))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            say(&format!("cannot remove {}: {error}", path.display()));
        }
    }
}

/// Gets a compiler that can build `core` for bpf, unless there is one, and the linker for its LLVM.
fn install_toolchain() -> Result<()> {
    update_lists()?;
    let available = available_llvm()?;
    let linkable = |llvm: u32| available.iter().copied().find(|other| *other >= llvm);
    // A nightly whose LLVM is newer than any of Debian's cannot be linked: then Debian's own compiler has to do.
    let present = toolchain::compilers()
        .into_iter()
        .find_map(|(compiler, llvm)| Some((compiler, linkable(llvm)?)));
    let (compiler, llvm) = match present {
        Some(present) => present,
        None => {
            unpack_compiler()?;
            toolchain::compilers()
                .into_iter()
                .find_map(|(compiler, llvm)| Some((compiler, linkable(llvm)?)))
                .context("Debian's compiler does not run, or no llvm-NN-dev fits it")?
        }
    };
    match compiler {
        Compiler::Nightly => say("compiler: rustup's nightly with rust-src"),
        Compiler::Debian(path) => say(&format!("compiler: Debian's, {}", run::shown(&path))),
    }
    if toolchain::find_linker(llvm).is_none() {
        install_linker(llvm)?;
    }
    Ok(())
}

/// The major versions of LLVM whose development packages are available, ascending.
fn available_llvm() -> Result<Vec<u32>> {
    let list = run::output(run::command("apt-cache").args([
        "search",
        "--names-only",
        "^llvm-[0-9]+-dev$",
    ]))?;
    let mut versions: Vec<u32> = list
        .lines()
        .filter_map(|line| {
            line.strip_prefix("llvm-")?
                .split_once("-dev")?
                .0
                .parse()
                .ok()
        })
        .collect();
    versions.sort_unstable();
    Ok(versions)
}

/// Unpacks Debian's compiler and library source below `target/toolchain/`.
///
/// They are not installed: they conflict with Debian's own rustup package.
fn unpack_compiler() -> Result<()> {
    // The suites' security updates carry a newer compiler under these names than the release's own.
    let families = [
        ["rustc-web", "libstd-rust-web-dev", "rust-web-src"],
        ["rustc", "libstd-rust-dev", "rust-src"],
    ];
    let family = families
        .iter()
        .find(|family| family.iter().all(|package| depends(package).is_ok()))
        .context(
            "apt knows no package rustc-web: install a rustup nightly with rust-src instead",
        )?;
    let [_, library_dev, _] = family;
    let library = depends(library_dev)?
        .into_iter()
        .find(|package| package.starts_with("libstd-rust-"))
        .with_context(|| format!("{library_dev} depends on no libstd-rust package"))?;
    let llvm = depends(&library)?
        .into_iter()
        .find(|package| package.starts_with("libllvm"))
        .with_context(|| format!("{library} depends on no libllvm package"))?;
    install_packages(&[&llvm])?;

    let stage = Stage::begin(
        "unpack-compiler",
        "Debian's Rust compiler and library source",
    )?;
    let fetched = toolchain::dir().join("fetched");
    let aside = toolchain::dir().join("debian-rust.new");
    for dir in [&fetched, &aside] {
        remove_dir(dir)?;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    stage.run(
        run::command("apt-get")
            // apt drops its rights for the download, and then cannot write to root's folder.
            .args(["-o", "APT::Sandbox::User=root", "download"])
            .args(family)
            .arg(&library)
            .current_dir(&fetched),
    )?;
    for package in packages_in(&fetched)? {
        stage.run(run::command("dpkg").arg("-x").arg(&package).arg(&aside))?;
    }
    write_wrapper(&aside.join("rustc"), "rustc")?;
    remove_dir(&toolchain::debian_dir())?;
    fs::rename(&aside, toolchain::debian_dir()).context("cannot keep Debian's compiler")?;
    remove_dir(&fetched)?;
    stage.done();
    Ok(())
}

/// The linter that belongs to a compiler, as a path; Debian's is unpacked beside its compiler if it is not there.
///
/// # Errors
///
/// There is none for this compiler, or it does not run.
pub(crate) fn clippy(compiler: &Compiler) -> Result<PathBuf> {
    let _lock = lock("setup")?;
    let driver = match compiler {
        Compiler::Nightly => toolchain::nightly_sysroot()?.join("bin/clippy-driver"),
        Compiler::Debian(_) => toolchain::debian_clippy(),
    };
    if !driver.is_file() {
        match compiler {
            Compiler::Nightly => {
                bail!(
                    "nightly has no clippy: run `rustup component add clippy --toolchain nightly`"
                )
            }
            Compiler::Debian(_) => unpack_clippy()?,
        }
    }
    run::output(run::command(&driver).arg("--version")).with_context(|| {
        format!(
            "{} does not run: if the compiler beside it is older, remove {} and run `cargo xtask setup`",
            run::shown(&driver),
            run::shown(&toolchain::debian_dir())
        )
    })?;
    Ok(driver)
}

/// Unpacks Debian's linter beside the compiler.
fn unpack_clippy() -> Result<()> {
    update_lists()?;
    // In the order in which [`unpack_compiler`] takes them.
    let package = ["rust-web-clippy", "rust-clippy"]
        .into_iter()
        .find(|package| depends(package).is_ok())
        .context("apt knows no package rust-web-clippy")?;
    let stage = Stage::begin("unpack-clippy", "Debian's Rust linter")?;
    let fetched = toolchain::dir().join("fetched");
    remove_dir(&fetched)?;
    fs::create_dir_all(&fetched).with_context(|| format!("cannot create {}", fetched.display()))?;
    stage.run(
        run::command("apt-get")
            .args(["-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(&fetched),
    )?;
    for package in packages_in(&fetched)? {
        stage.run(
            run::command("dpkg")
                .arg("-x")
                .arg(&package)
                .arg(toolchain::debian_dir()),
        )?;
    }
    write_wrapper(&toolchain::debian_clippy(), "clippy-driver")?;
    remove_dir(&fetched)?;
    stage.done();
    Ok(())
}

/// Writes the script that starts a program of the unpacked compiler: only that sees its libraries.
fn write_wrapper(path: &Path, program: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let script = format!(
        "#!/bin/sh\n\
        here=$(dirname \"$(readlink -f \"$0\")\")\n\
        LD_LIBRARY_PATH=$here/usr/lib/$(uname -m)-linux-gnu exec \"$here/usr/bin/{program}\" \"$@\"\n"
    );
    fs::write(path, script)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The package files in a folder.
pub(crate) fn packages_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    Ok(entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

/// Removes a folder if it is there.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

/// Packages that the candidate version of a package depends on.
fn depends(package: &str) -> Result<Vec<String>> {
    let text = run::output(run::command("apt-cache").args(["show", "--no-all-versions", package]))?;
    Ok(text
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))
        .unwrap_or_default()
        .split(',')
        .filter_map(|one| one.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// Builds bpf-linker against Debian's LLVM of this version.
fn install_linker(llvm: u32) -> Result<()> {
    install_packages(&[&format!("llvm-{llvm}-dev")])?;
    let stage = Stage::begin(
        "bpf-linker",
        format!("bpf-linker {LINKER_VERSION} with LLVM {llvm} (about a minute)"),
    )?;
    let build = toolchain::dir().join("bpf-linker-build");
    stage.run(
        run::cargo()
            .args(["install", "bpf-linker", "--locked", "--version"])
            .arg(format!("^{LINKER_VERSION}"))
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{llvm}"))
            .arg("--root")
            .arg(toolchain::linker_dir(llvm))
            .arg("--target-dir")
            .arg(&build)
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}")),
    )?;
    remove_dir(&build)?;
    stage.done();
    Ok(())
}
