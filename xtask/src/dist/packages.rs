//! A folder of files as a package of Debian's and of the rpm kind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{FILE, PROGRAM, Release, Tree, copy, set_rights};
use crate::{
    run::{self, Stage},
    setup,
};

/// Debian's name of the architecture.
const DEBIAN_ARCH: &str = "amd64";
/// Files that a person changes, and a new version asks about.
const CONFIGURATION: &str = "/etc/egress/policies/node.yaml";

/// Makes `egress-agent_VERSION_ARCH.deb`.
pub(super) fn deb(release: &Release, tree: &Tree, dir: &Path) -> Result<PathBuf> {
    let stage = Stage::begin("dist-deb", "Debian package")?;
    let control = tree.at("DEBIAN");
    for script in ["postinst", "prerm", "postrm"] {
        let from = run::root().join("deploy/packages").join(script);
        copy(&from, &control.join(script), PROGRAM)?;
    }
    let size: u64 = sizes(&tree.root)?.div_ceil(1024);
    let text = format!(
        "Package: egress-agent\n\
         Version: {version}\n\
         Architecture: {DEBIAN_ARCH}\n\
         Maintainer: The egress authors <authors@egress.invalid>\n\
         Installed-Size: {size}\n\
         Pre-Depends: init-system-helpers (>= 1.54~)\n\
         Section: net\n\
         Priority: optional\n\
         Description: lets this node reach only the outside names that its owner lists\n\
         \x20An eBPF program drops packets to unknown addresses. Addresses become known when\n\
         \x20DNS answers for allowed names arrive, and are forgotten when their time ends.\n\
         \x20The policy that comes with the package audits: nothing is dropped before it\n\
         \x20says enforce.\n",
        version = release.version
    );
    fs::write(control.join("control"), text)
        .and_then(|()| fs::write(control.join("conffiles"), format!("{CONFIGURATION}\n")))
        .context("cannot describe the package")?;
    for file in ["control", "conffiles"] {
        set_rights(&control.join(file), FILE)?;
    }
    let package = dir.join(format!(
        "egress-agent_{}_{DEBIAN_ARCH}.deb",
        release.version
    ));
    stage.run(
        release
            .command("dpkg-deb")
            .args(["--root-owner-group", "-Zxz", "--build"])
            .arg(&tree.root)
            .arg(&package),
    )?;
    setup::remove_dir(&control)?;
    stage.done();
    Ok(package)
}

/// Makes `egress-agent-VERSION-1.ARCH.rpm`.
pub(super) fn rpm(release: &Release, tree: &Tree, dir: &Path) -> Result<PathBuf> {
    let stage = Stage::begin("dist-rpm", "rpm package")?;
    let work = dir.join("rpm");
    setup::remove_dir(&work)?;
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let mut list = String::from("%defattr(-,root,root)\n");
    for path in paths(&tree.root)? {
        let path = path
            .strip_prefix(&tree.root)
            .context("a file outside of its folder")?;
        let path = format!("/{}", path.display());
        let kind = if path == CONFIGURATION {
            "%config(noreplace) "
        } else if path.starts_with("/usr/share/doc/") || path.starts_with("/usr/share/man/") {
            "%doc "
        } else {
            ""
        };
        list.push_str(&format!("{kind}\"{path}\"\n"));
    }
    fs::write(work.join("list"), list).context("cannot list the package's files")?;
    let define = |name: &str, value: &str| ["--define".to_owned(), format!("{name} {value}")];
    let mut command = release.command("rpmbuild");
    command
        .arg("-bb")
        .args(["--target", "x86_64-linux"])
        .args(define("_topdir", &work.display().to_string()))
        .args(define("package_version", &release.version))
        .args(define("tree", &tree.root.display().to_string()))
        .args(define("list", &work.join("list").display().to_string()))
        .args(define("_buildhost", "localhost"))
        .args(define("_binary_payload", "w9.gzdio"))
        .args(define("use_source_date_epoch_as_buildtime", "1"))
        .args(define("clamp_mtime_to_source_date_epoch", "1"))
        .arg(run::root().join("deploy/packages/egress-agent.spec"));
    stage.run(&mut command)?;
    let name = format!("egress-agent-{}-1.x86_64.rpm", release.version);
    let package = dir.join(&name);
    fs::rename(work.join("RPMS/x86_64").join(&name), &package)
        .context("rpmbuild made another file than it was asked for")?;
    setup::remove_dir(&work)?;
    stage.done();
    Ok(package)
}

/// Every file below a folder, sorted.
fn paths(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in super::files(dir)? {
        if path.is_dir() {
            found.extend(paths(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// Bytes of every file below a folder.
fn sizes(dir: &Path) -> Result<u64> {
    let paths = paths(dir)?;
    Ok(paths
        .iter()
        .map(|path| fs::metadata(path).map_or(0, |data| data.len()))
        .sum())
}
