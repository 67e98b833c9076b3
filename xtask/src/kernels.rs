//! Debian's cloud kernels: found, fetched and unpacked below `target/vm/`, without a change to this machine's apt.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt::Apt,
    run::{self, Stage},
    setup, vm,
};

/// Oldest supported to newest.
pub(crate) const DEFAULT: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "newest"];
/// The suites that carry them.
const SUITES: [&str; 5] = ["bullseye", "bookworm", "trixie", "trixie-backports", "sid"];
/// Modules that a guest with an agent needs where the kernel does not have them built in.
pub(crate) const MODULES: [&str; 8] = [
    "veth",
    "dummy",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
];

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub(crate) release: String,
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// The folder of its modules.
    pub(crate) modules: PathBuf,
}

/// A series that was asked for, and the kernel or why there is none.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The series, or `newest`.
    pub(crate) series: String,
    /// The kernel, or the reason.
    pub(crate) kernel: Result<Kernel, String>,
}

/// Fetches the newest kernel of each series unless there is one.
///
/// # Errors
///
/// A tool fails. A series that Debian does not carry is no error here.
pub(crate) fn fetch(series: &[String], refresh: bool) -> Result<Vec<Wanted>> {
    let _lock = setup::lock("kernels")?;
    let dir = vm::dir().join("kernels");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let absent = series.iter().any(|one| unpacked(&dir, one).is_none());
    let mut reasons = BTreeMap::new();
    if absent || refresh {
        reasons = download(series, &dir, refresh)?;
    }
    Ok(series
        .iter()
        .map(|one| Wanted {
            series: one.clone(),
            kernel: unpacked(&dir, one).ok_or_else(|| {
                let reason = reasons.get(one).cloned();
                reason.unwrap_or_else(|| "not in Debian's suites now".to_owned())
            }),
        })
        .collect())
}

/// The unpacked kernel of a series.
fn unpacked(dir: &Path, series: &str) -> Option<Kernel> {
    let dir = dir.join(series);
    let release = fs::read_to_string(dir.join("release")).ok()?;
    let modules = ["usr/lib/modules", "lib/modules"]
        .map(|path| dir.join("tree").join(path).join(&release))
        .into_iter()
        .find(|path| path.is_dir())?;
    let image = [
        dir.join("tree/boot").join(format!("vmlinuz-{release}")),
        modules.join("vmlinuz"),
    ]
    .into_iter()
    .find(|path| path.is_file())?;
    Some(Kernel {
        release,
        image,
        modules,
    })
}

/// Fetches and unpacks kernels; the result has the series that could not be, with the reason.
fn download(series: &[String], dir: &Path, refresh: bool) -> Result<BTreeMap<String, String>> {
    let state = Apt::new(vm::dir().join("apt"), &["deb"], &SUITES)?;
    let stage = Stage::begin("vm-kernels", "Debian's kernels for the virtual machines")?;
    stage.run(state.command("apt-get").arg("update"))?;
    let names = run::output(state.command("apt-cache").arg("pkgnames").arg("linux-"))?;
    let names: Vec<&str> = names.lines().collect();
    let releases: Vec<&str> = names.iter().filter_map(|name| release_of(name)).collect();
    let mut reasons = BTreeMap::new();
    for one in series {
        let Some(release) = pick(&releases, one) else {
            continue;
        };
        let current = unpacked(dir, one);
        if current.is_some_and(|kernel| !refresh || kernel.release == release) {
            continue;
        }
        // Newer packages of this name are empty and depend on these, which hold the image and the modules.
        let packages: Vec<String> = ["image", "binary", "modules"]
            .map(|part| format!("linux-{part}-{release}"))
            .into_iter()
            .filter(|package| names.contains(&package.as_str()))
            .collect();
        let fetched = unpack(&state, &stage, &packages, release, &dir.join(one));
        let complete = fetched.and_then(|()| {
            unpacked(dir, one)
                .map(drop)
                .with_context(|| format!("no image and modules in {}", packages.join(", ")))
        });
        if let Err(error) = complete {
            reasons.insert(one.clone(), format!("cannot be fetched: {error:#}"));
        }
    }
    stage.done();
    Ok(reasons)
}

/// Fetches one kernel's packages and unpacks them.
fn unpack(
    state: &Apt,
    stage: &Stage,
    packages: &[String],
    release: &str,
    dir: &Path,
) -> Result<()> {
    setup::remove_dir(dir)?;
    let tree = dir.join("tree");
    fs::create_dir_all(&tree).with_context(|| format!("cannot create {}", tree.display()))?;
    stage.run(
        state
            .command("apt-get")
            .arg("download")
            .args(packages)
            .current_dir(dir),
    )?;
    for package in setup::packages_in(dir)? {
        stage.run(run::command("dpkg").arg("-x").arg(&package).arg(&tree))?;
        fs::remove_file(&package).context("cannot remove a package")?;
    }
    // Written last: without it the kernel counts as not fetched.
    fs::write(dir.join("release"), release).context("cannot keep the kernel's release")
}

/// The release in the name of a signed cloud kernel's package.
fn release_of(package: &str) -> Option<&str> {
    let release = package.strip_prefix("linux-image-")?;
    (release.ends_with("-cloud-amd64") && release.starts_with(|c: char| c.is_ascii_digit()))
        .then_some(release)
}

/// The newest release of a series, or of all.
fn pick<'a>(releases: &[&'a str], series: &str) -> Option<&'a str> {
    let prefix = format!("{series}.");
    releases
        .iter()
        .filter(|release| series == "newest" || release.starts_with(&prefix))
        .max_by_key(|release| numbers(release))
        .copied()
}

/// The numbers in a release, which order releases.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// Copies modules with what they depend on, unpacked, and a `list` of them in the order to insert them.
///
/// # Errors
///
/// A file cannot be read, unpacked or written.
pub(crate) fn copy_modules(
    names: impl IntoIterator<Item = &'static str>,
    from: &Path,
    to: &Path,
) -> Result<()> {
    let mut files = BTreeMap::new();
    find_modules(&from.join("kernel"), &mut files)?;
    let mut order = Vec::new();
    for name in names {
        insert_module(name, &files, to, &mut order)?;
    }
    let mut list = order.join("\n");
    list.push('\n');
    fs::write(to.join("list"), list).context("cannot write the list of modules")
}

/// Finds module files by name.
fn find_modules(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            find_modules(&path, files)?;
        } else if let Some((name, _)) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.split_once(".ko"))
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// Copies a module after those that it depends on. One that is not there is built in.
fn insert_module(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    to: &Path,
    order: &mut Vec<String>,
) -> Result<()> {
    let name = name.replace('-', "_");
    let file_name = format!("{name}.ko");
    let Some(path) = files.get(&name).filter(|_| !order.contains(&file_name)) else {
        return Ok(());
    };
    let bytes = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => unpack_module("xz", path)?,
        Some("zst") => unpack_module("zstd", path)?,
        _ => fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
    };
    for needed in depends(&bytes) {
        insert_module(&needed, files, to, order)?;
    }
    fs::write(to.join(&file_name), bytes).context("cannot write a module")?;
    order.push(file_name);
    Ok(())
}

/// A compressed module's content.
fn unpack_module(program: &str, path: &Path) -> Result<Vec<u8>> {
    let output = run::command(program)
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .with_context(|| format!("cannot start {program}: run `cargo xtask setup`"))?;
    if !output.status.success() {
        bail!("{program} cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}

/// The modules that a module says it depends on.
fn depends(module: &[u8]) -> Vec<String> {
    let field = b"\0depends=";
    let Some(start) = module.windows(field.len()).position(|bytes| bytes == field) else {
        return Vec::new();
    };
    let value = module.iter().skip(start).skip(field.len());
    let value: Vec<u8> = value.copied().take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_number() {
        let names = [
            "linux-image-6.12.94+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-unsigned",
            "linux-image-cloud-amd64",
        ];
        let releases: Vec<&str> = names.iter().filter_map(|name| release_of(name)).collect();
        assert_eq!(releases.len(), 3);
        let newest = Some("6.12.107+deb13-cloud-amd64");
        assert_eq!(pick(&releases, "6.12"), newest);
        assert_eq!(pick(&releases, "newest"), newest);
        assert_eq!(pick(&releases, "6.1"), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(pick(&releases, "6.18"), None);
    }

    #[test]
    fn dependencies_are_read_from_a_module() {
        assert_eq!(depends(b"x\0depends=a,b_c\0y"), ["a", "b_c"]);
        assert!(depends(b"x\0depends=\0y").is_empty());
    }
}
