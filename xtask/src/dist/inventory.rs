//! Contents of the agent: a bill of materials, and the licences of others' code.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::{VERSION, files, read};
use crate::{
    run::{self, Stage},
    setup, toolchain,
};

/// Version of the tool that writes the bill.
const CYCLONEDX_VERSION: &str = "0.5";
/// Target whose dependencies are listed.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// How files begin that say under which terms code may be used.
const TERMS: [&str; 5] = ["copying", "copyright", "licen", "notice", "unlicense"];

/// Writes the bill of materials (CycloneDX 1.5, JSON) of the agent.
pub(super) fn materials(dir: &Path) -> Result<PathBuf> {
    let root = toolchain::dir().join("cyclonedx");
    let tool = root.join("bin/cargo-cyclonedx");
    let _lock = setup::lock("cyclonedx")?;
    if !tool.is_file() {
        let stage = Stage::begin("cyclonedx", "cargo-cyclonedx (about two minutes)")?;
        let build = toolchain::dir().join("cyclonedx-build");
        stage.run(
            run::cargo()
                .args(["install", "cargo-cyclonedx", "--locked", "--version"])
                .arg(format!("^{CYCLONEDX_VERSION}"))
                .arg("--root")
                .arg(&root)
                .arg("--target-dir")
                .arg(&build),
        )?;
        setup::remove_dir(&build)?;
        stage.done();
    }
    let stage = Stage::begin("dist-materials", "bill of materials")?;
    let name = format!("egress-agent-{VERSION}.cdx");
    let epoch = run::output(run::command("git").args(["log", "-1", "--format=%ct"]))?;
    stage.run(
        run::command(&tool)
            .args(["cyclonedx", "--format", "json", "--spec-version", "1.5"])
            .args(["--target", TARGET, "--no-build-deps", "--manifest-path"])
            .arg(run::root().join("egress-agent/Cargo.toml"))
            .args(["--override-filename", &name])
            .env("SOURCE_DATE_EPOCH", epoch),
    )?;
    // It writes one beside each package of the workspace.
    let name = format!("{name}.json");
    let path = dir.join(&name);
    let listed = run::output(run::command("git").args(["ls-files", "*Cargo.toml"]))?;
    for manifest in listed.lines() {
        let made = run::root().join(manifest).with_file_name(&name);
        if made.is_file() {
            if manifest == "egress-agent/Cargo.toml" {
                fs::copy(&made, &path).context("cannot keep the bill of materials")?;
            }
            fs::remove_file(&made).with_context(|| format!("cannot remove {}", made.display()))?;
        }
    }
    ensure!(
        path.is_file(),
        "cargo-cyclonedx wrote no {name} for egress-agent"
    );
    stage.done();
    Ok(path)
}

/// Writes the terms of all code of others that is compiled into the agent.
pub(super) fn licences(dir: &Path) -> Result<PathBuf> {
    let stage = Stage::begin("dist-licences", "licences")?;
    let listed = run::output(run::cargo().args([
        "tree",
        "--package",
        "egress-agent",
        "--edges",
        "normal,no-proc-macro",
        "--target",
        TARGET,
        "--prefix",
        "none",
        "--format",
        "{p}|{l}",
    ]))?;
    let mut packages = BTreeMap::new();
    for line in listed.lines() {
        let (package, terms) = line.split_once('|').unwrap_or((line, ""));
        let mut words = package.split_whitespace();
        if let (Some(name), Some(version), None) = (words.next(), words.next(), words.next()) {
            // A package with a third word lies in this repository.
            let version = version.trim_start_matches('v');
            packages.insert(format!("{name}-{version}"), terms.trim_end_matches(" (*)"));
        }
    }
    ensure!(!packages.is_empty(), "cargo tree lists no dependency");
    let mut text = String::from(
        "egress-agent is under MIT or Apache-2.0, at your choice. Code of others that is compiled into it, and its terms:\n",
    );
    for (package, terms) in packages {
        text.push_str(&format!("\n=== {package}: {terms}\n"));
        let source = source(&package)?;
        let mut found = false;
        for file in files(&source)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let name = name.to_lowercase();
            if file.is_file() && TERMS.iter().any(|term| name.starts_with(term)) {
                found = true;
                text.push('\n');
                text.push_str(String::from_utf8_lossy(&read(&file)?).trim());
                text.push('\n');
            }
        }
        if !found {
            text.push_str("(The package carries no text of its terms.)\n");
        }
    }
    let path = dir.join(format!("egress-agent-{VERSION}-licences.txt"));
    fs::write(&path, text).context("cannot write the licences")?;
    stage.done();
    Ok(path)
}

/// Where cargo has unpacked a package.
fn source(package: &str) -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let registries = home.context("neither CARGO_HOME nor HOME is set")?;
    files(&registries.join("registry/src"))?
        .into_iter()
        .map(|registry| registry.join(package))
        .find(|source| source.is_dir())
        .with_context(|| format!("cargo has not unpacked {package}: build the agent first"))
}
