//! `cargo xtask dist`: the files of a release, in `target/dist/`.
//!
//! Packages are made of one folder of files, [`Tree`], as they lie on a node. Every time that is written into a file is
//! that of the commit, every owner is root, every list is sorted: two runs with one agent make equal files.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    build, image,
    run::{self, Stage},
    setup::{self, Group},
};

mod inventory;
mod packages;

/// Options of `cargo xtask dist`.
#[derive(Args, Debug)]
pub(crate) struct Dist {
    /// Use this static agent instead of building one.
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Make the packages twice, and fail where the two differ.
    #[arg(long)]
    check: bool,
}

/// The version of everything.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The only architecture that is built for, as Rust says it; the packages' names for it are theirs.
const ARCH: &str = "x86_64";

impl Dist {
    /// Builds everything and says where it is.
    ///
    /// # Errors
    ///
    /// A tool is missing or fails; with `--check`, two builds differ.
    pub(crate) fn run(&self) -> Result<()> {
        setup::setup(&[Group::Build, Group::Image, Group::Dist])?;
        let agent = match &self.agent {
            Some(agent) => agent.clone(),
            None => build::build()?,
        };
        let dir = run::target_dir().join("dist");
        setup::remove_dir(&dir)?;
        let release = Release::new(agent, VERSION)?;
        let mut made = release.packages(&dir)?;
        if self.check {
            let again = release.packages(&dir.join("again"))?;
            for (first, second) in made.iter().zip(&again) {
                ensure!(
                    read(first)? == read(second)?,
                    "{} is not what was made before it of the same files",
                    run::shown(second)
                );
            }
            setup::remove_dir(&dir.join("again"))?;
        }
        made.push(inventory::materials(&dir)?);
        made.push(inventory::licences(&dir)?);
        let archive = image::build(
            &format!("egress-agent:{VERSION}"),
            Some(release.agent.as_path()),
        )?;
        let image = dir.join(format!("egress-agent-{VERSION}-{ARCH}.oci.tar"));
        fs::rename(&archive, &image).context("cannot keep the image")?;
        made.push(image);
        made.push(sums(&dir, &made)?);
        for path in made {
            let size = fs::metadata(&path).map_or(0, |data| data.len());
            println!("{:>10}  {}", size, run::shown(&path));
        }
        Ok(())
    }
}

/// One agent as a release of one version.
pub(crate) struct Release {
    agent: PathBuf,
    version: String,
    /// Time of the commit, seconds since 1970.
    epoch: String,
}

impl Release {
    /// A release of this static agent.
    ///
    /// # Errors
    ///
    /// This is no git repository.
    pub(crate) fn new(agent: PathBuf, version: &str) -> Result<Self> {
        let epoch = run::output(run::command("git").args(["log", "-1", "--format=%ct"]))?;
        Ok(Self {
            agent,
            version: version.to_owned(),
            epoch,
        })
    }

    /// Makes packages and tarballs in a folder, which need not be there.
    fn packages(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let tree = Tree::of(self, &dir.join("tree"))?;
        let made = vec![
            packages::deb(self, &tree, dir)?,
            packages::rpm(self, &tree, dir)?,
            self.tarball(dir)?,
            self.manifests(dir)?,
            self.chart(dir)?,
        ];
        setup::remove_dir(&tree.root)?;
        Ok(made)
    }

    /// Makes the Debian package alone.
    ///
    /// # Errors
    ///
    /// A tool is missing or fails.
    pub(crate) fn deb(&self, dir: &Path) -> Result<PathBuf> {
        let tree = Tree::of(self, &dir.join("tree"))?;
        let made = packages::deb(self, &tree, dir)?;
        setup::remove_dir(&tree.root)?;
        Ok(made)
    }

    /// A command whose output does not depend on when and where it ran.
    fn command(&self, program: &str) -> Command {
        let mut command = run::command(program);
        command
            .env("SOURCE_DATE_EPOCH", &self.epoch)
            .env("TZ", "UTC")
            .env("LC_ALL", "C");
        command
    }

    /// The program with what belongs to it, for nodes without a package manager of these two kinds.
    fn tarball(&self, dir: &Path) -> Result<PathBuf> {
        let name = format!("egress-agent-{}-linux-{ARCH}", self.version);
        let tree = dir.join(&name);
        setup::remove_dir(&tree)?;
        copy(&self.agent, &tree.join("egress-agent"), PROGRAM)?;
        for file in [
            "CHANGELOG.md",
            "LICENSE-APACHE",
            "LICENSE-MIT",
            "README.md",
            "SECURITY.md",
            "deploy/systemd/egress-agent.service",
            "deploy/systemd/policies/node.yaml",
        ] {
            copy(&run::root().join(file), &tree.join(file), FILE)?;
        }
        manuals(&tree.join("man"))?;
        completions(&self.agent, |shell| {
            Some(tree.join("completions").join(shell))
        })?;
        self.pack(dir, &name)
    }

    /// The objects for a cluster.
    fn manifests(&self, dir: &Path) -> Result<PathBuf> {
        self.part(dir, "egress-deploy", "deploy")
    }

    /// The chart alone: `helm install` takes the archive as it is.
    fn chart(&self, dir: &Path) -> Result<PathBuf> {
        self.part(dir, "egress-chart", "deploy/chart")
    }

    /// A folder as it is in the repository, with files in the place of links.
    fn part(&self, dir: &Path, name: &str, folder: &str) -> Result<PathBuf> {
        let name = format!("{name}-{}", self.version);
        let tree = dir.join(&name);
        setup::remove_dir(&tree)?;
        let listed = run::output(run::command("git").args(["ls-files", folder]))?;
        for file in listed.lines().filter(|file| !file.contains("/packages/")) {
            let to = Path::new(file).strip_prefix(folder)?;
            copy(&run::root().join(file), &tree.join(to), FILE)?;
        }
        self.pack(dir, &name)
    }

    /// Packs `DIR/NAME` to `DIR/NAME.tar.gz`, and removes the folder.
    fn pack(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let archive = dir.join(format!("{name}.tar.gz"));
        let stage = Stage::begin(&format!("dist-{name}"), format!("{name}.tar.gz"))?;
        stage.run(
            self.command("tar")
                .args(["--create", "--sort=name", "--format=gnu"])
                .args(["--owner=0", "--group=0", "--numeric-owner"])
                .arg(format!("--mtime=@{}", self.epoch))
                .args(["--use-compress-program", "gzip -9n", "--directory"])
                .arg(dir)
                .arg("--file")
                .arg(&archive)
                .arg(name),
        )?;
        setup::remove_dir(&dir.join(name))?;
        stage.done();
        Ok(archive)
    }
}

/// Rights of programs, and of other files.
const PROGRAM: u32 = 0o755;
const FILE: u32 = 0o644;

/// The files of a package, below a folder that stands for `/`.
struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Writes the agent's files on a node: program, unit, first policy, manual, completions.
    fn of(release: &Release, root: &Path) -> Result<Self> {
        setup::remove_dir(root)?;
        let tree = Self {
            root: root.to_path_buf(),
        };
        copy(&release.agent, &tree.at("usr/bin/egress-agent"), PROGRAM)?;
        let unit = fs::read_to_string(run::root().join("deploy/systemd/egress-agent.service"))
            .context("cannot read the unit")?;
        tree.write(
            "usr/lib/systemd/system/egress-agent.service",
            &packaged_unit(&unit)?,
        )?;
        for (from, to) in [
            (
                "deploy/systemd/policies/node.yaml",
                "etc/egress/policies/node.yaml",
            ),
            (
                "deploy/packages/tmpfiles.conf",
                "usr/lib/tmpfiles.d/egress-agent.conf",
            ),
            ("README.md", "usr/share/doc/egress-agent/README.md"),
            ("CHANGELOG.md", "usr/share/doc/egress-agent/CHANGELOG.md"),
            (
                "LICENSE-APACHE",
                "usr/share/doc/egress-agent/LICENSE-APACHE",
            ),
            ("LICENSE-MIT", "usr/share/doc/egress-agent/LICENSE-MIT"),
        ] {
            copy(&run::root().join(from), &tree.at(to), FILE)?;
        }
        let man = tree.at("usr/share/man/man1");
        manuals(&man)?;
        for page in files(&man)? {
            run::output(release.command("gzip").arg("-9n").arg(page))?;
        }
        completions(&release.agent, |shell| {
            let to = match shell {
                "bash" => "usr/share/bash-completion/completions/egress-agent",
                "fish" => "usr/share/fish/vendor_completions.d/egress-agent.fish",
                "zsh" => "usr/share/zsh/vendor-completions/_egress-agent",
                _ => return None,
            };
            Some(tree.at(to))
        })?;
        Ok(tree)
    }

    /// Where a file of the node is in this folder.
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.at(path);
        run::write_if_changed(&path, text.as_bytes())?;
        set_rights(&path, FILE)
    }
}

/// The unit as a package has it: its program in `/usr/bin`, and no word on how to install it by hand.
fn packaged_unit(unit: &str) -> Result<String> {
    let lines = unit
        .lines()
        .filter(|line| !line.starts_with("# install ") && !line.starts_with("# systemctl daemon-"));
    let mut text: String = lines.flat_map(|line| [line, "\n"]).collect();
    text = text.replace("/usr/local/bin", "/usr/bin");
    ensure!(
        text.contains("ExecStart=/usr/bin/egress-agent run"),
        "deploy/systemd/egress-agent.service starts another program than /usr/local/bin/egress-agent"
    );
    Ok(text.trim_start_matches("#\n").to_owned())
}

/// Writes the manual's pages into a folder.
fn manuals(dir: &Path) -> Result<()> {
    let pages = run::target_dir().join("man");
    if !pages.is_dir() {
        let stage = Stage::begin("dist-man", "manual pages")?;
        stage.run(
            run::cargo()
                .args(["test", "--package", "egress-agent", "--test", "man"])
                .env("EGRESS_BLESS", "1"),
        )?;
        stage.done();
    }
    for page in files(&pages)? {
        let name = page.file_name().context("a page without a name")?;
        copy(&page, &dir.join(name), FILE)?;
    }
    Ok(())
}

/// Writes what shells need to complete commands, where `place` says.
fn completions(agent: &Path, place: impl Fn(&str) -> Option<PathBuf>) -> Result<()> {
    for shell in ["bash", "fish", "zsh"] {
        let text = run::output(run::command(agent).args(["completions", shell]))?;
        if let Some(path) = place(shell) {
            run::write_if_changed(&path, format!("{text}\n").as_bytes())?;
            set_rights(&path, FILE)?;
        }
    }
    Ok(())
}

/// The checksums of these files, to `SHA256SUMS`.
fn sums(dir: &Path, made: &[PathBuf]) -> Result<PathBuf> {
    let mut command = run::command("sha256sum");
    command.current_dir(dir);
    for path in made {
        command.arg(path.file_name().context("a file without a name")?);
    }
    let path = dir.join("SHA256SUMS");
    let text = run::output(&mut command)?;
    fs::write(&path, format!("{text}\n")).context("cannot write the checksums")?;
    Ok(path)
}

/// The files in a folder, sorted.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn copy(from: &Path, to: &Path, rights: u32) -> Result<()> {
    run::write_if_changed(to, &read(from)?)?;
    set_rights(to, rights)
}

fn set_rights(path: &Path, rights: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(rights))
        .with_context(|| format!("cannot change the rights of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_starts_its_own_program() {
        let unit = fs::read_to_string(run::root().join("deploy/systemd/egress-agent.service"));
        let unit = packaged_unit(&unit.unwrap_or_default());
        let unit = unit.unwrap_or_default();
        assert!(unit.starts_with("# Stopping ends the agent"), "{unit}");
        assert!(unit.contains("RequiresMountsFor=/usr/bin /etc/egress"));
        assert!(!unit.contains("/usr/local"));
    }

    #[test]
    fn a_unit_that_starts_something_else_is_refused() {
        assert!(packaged_unit("[Service]\nExecStart=/opt/agent run\n").is_err());
    }

    #[test]
    fn the_chart_in_its_archive_is_files_and_no_links() {
        let dir = run::target_dir().join("tmp/dist-chart");
        let release = Release::new(PathBuf::new(), "1.2.3").expect("this is a repository");
        let archive = release.chart(&dir).expect("it is packed");
        let mut tar = run::command("tar");
        let listed = run::output(tar.args(["--list", "--verbose", "--file"]).arg(&archive));
        let listed = listed.expect("it is an archive");
        assert!(
            !listed.lines().any(|line| line.starts_with('l')),
            "{listed}"
        );
        for file in [
            "Chart.yaml",
            "base/daemonset.yaml",
            "templates/daemonset.yaml",
        ] {
            let file = format!(" egress-chart-1.2.3/{file}");
            assert!(listed.lines().any(|line| line.ends_with(&file)), "{listed}");
        }
        setup::remove_dir(&dir).expect("it can be removed");
    }
}
