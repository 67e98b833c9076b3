//! `cargo xtask build`: the static agent with the object inside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    ebpf,
    run::{self, Stage},
    setup,
};

/// Options of `cargo xtask build`.
#[derive(Args, Debug)]
pub(crate) struct Build {
    /// Also build an agent with the next layout of the maps, for the tests of an upgrade.
    #[arg(long)]
    next_layout: bool,
}

impl Build {
    /// Builds the object, then the agent, and says where it is.
    ///
    /// # Errors
    ///
    /// A tool is missing or fails.
    pub(crate) fn run(&self) -> Result<()> {
        let mut agents = vec![build()?];
        if self.next_layout {
            agents.push(build_next()?);
        }
        for agent in agents {
            let size = fs::metadata(&agent).map_or(0, |data| data.len());
            run::say(&format!("{}: {size} bytes, static", run::shown(&agent)));
        }
        Ok(())
    }
}

/// The agent's package and program.
const AGENT: &str = "egress-agent";

/// Where the static agent is.
pub(crate) fn agent() -> PathBuf {
    run::target_dir().join("release/egress-agent")
}

/// Builds the object and the agent that carries it, and says where the agent is.
///
/// # Errors
///
/// A tool is missing or fails, or the agent is not static.
pub(crate) fn build() -> Result<PathBuf> {
    ebpf::build()?;
    let _lock = setup::lock("agent")?;
    let built = build_static(AGENT, &[AGENT])?;
    run::copy_if_changed(&built, &agent()).context("cannot keep the agent")?;
    Ok(agent())
}

/// Builds static release programs and says where the first of them is; the others are beside it.
///
/// # Errors
///
/// The build fails, or a program needs a loader after all.
pub(crate) fn build_static(package: &str, bins: &[&str]) -> Result<PathBuf> {
    let list = bins.join(" and ");
    let log = format!("build-{}", bins.join("-"));
    let stage = Stage::begin(&log, format!("static {list}"))?;
    build_static_with(stage, package, bins, &ebpf::object(), &[])
}

/// Where the agent of the next layout is: the tests of an upgrade look for it there.
pub(crate) fn next_agent() -> PathBuf {
    run::target_dir().join("next/egress-agent")
}

/// Builds an agent as the next layout of the maps would make it, for the tests of an upgrade.
///
/// # Errors
///
/// A tool is missing or fails.
pub(crate) fn build_next() -> Result<PathBuf> {
    let dir = run::target_dir().join("next");
    let object = ebpf::build_next(&dir)?;
    let _lock = setup::lock("agent")?;
    let stage = Stage::begin(
        "build-egress-agent-next",
        "static egress-agent of the next layout",
    )?;
    let more = [
        "--features",
        "egress-agent/layout-next",
        // Only tests use it: half the time to build.
        "--config",
        "profile.release.package.egress-agent.opt-level=1",
        "--config",
        "profile.release.package.egress-policy.opt-level=1",
    ];
    let built = build_static_with(stage, AGENT, &[AGENT], &object, &more)?;
    run::copy_if_changed(&built, &next_agent()).context("cannot keep the agent")?;
    Ok(next_agent())
}

/// Builds a static test program of a package, and says where it is. The package's own programs are beside it.
///
/// # Errors
///
/// The build fails, or the program needs a loader after all.
pub(crate) fn build_static_test(package: &str, test: &str) -> Result<PathBuf> {
    let target = host()?;
    let log = format!("build-{test}");
    let stage = Stage::begin(&log, format!("static {test}"))?;
    let mut cargo = static_cargo(&target, &ebpf::object());
    cargo
        .args(["test", "--no-run", "--release", "--package", package])
        .args(["--package", AGENT, "--target", &target])
        .args(["--test", test]);
    stage.run(&mut cargo)?;
    // As cargo says it: `Executable tests/main.rs (target/…/deps/name-0123456789abcdef)`.
    let text = stage.output();
    let built = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Executable ")?.split_once('('))
        .map(|(_, path)| Path::new(path.trim_end_matches(')')))
        .find(|path| file_name(path).starts_with(&format!("{test}-")))
        .with_context(|| format!("cargo does not say where {test} is"))?;
    let folder = run::target_dir().join(&target).join("release");
    let program = folder.join(test);
    run::copy_if_changed(built, &program).context("cannot keep the test program")?;
    stage.done();
    Ok(program)
}

fn file_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn build_static_with(
    stage: Stage,
    package: &str,
    bins: &[&str],
    object: &Path,
    more: &[&str],
) -> Result<PathBuf> {
    let target = host()?;
    let mut cargo = static_cargo(&target, object);
    cargo
        .args(["build", "--release", "--package", package])
        // Selected even where it is not built: with the agent's features, what the two share is compiled once.
        .args(["--package", AGENT])
        // Given a target, cargo keeps the flags away from proc macros, which cannot be static.
        .args(["--target", &target])
        .args(more);
    for bin in bins {
        cargo.args(["--bin", bin]);
    }
    stage.run(&mut cargo)?;
    let folder = run::target_dir().join(&target).join("release");
    let mut programs = bins.iter().map(|bin| folder.join(bin));
    for built in programs.clone() {
        let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
        ensure!(
            !needs_loader(&bytes),
            "{} is not static: is +crt-static overridden by a cargo config?",
            run::shown(&built)
        );
    }
    stage.done();
    programs.next().context("no program is to be built")
}

/// A cargo that links statically and embeds this object.
fn static_cargo(target: &str, object: &Path) -> Command {
    let mut cargo = run::cargo();
    let name = target.to_uppercase().replace('-', "_");
    cargo
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env(
            format!("CARGO_TARGET_{name}_RUSTFLAGS"),
            "-C target-feature=+crt-static",
        )
        .env("EGRESS_EBPF_OBJECT", object);
    cargo
}

/// The target triple of this machine.
fn host() -> Result<String> {
    let version = run::output(run::command("rustc").arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc does not tell its host")
}

/// The ELF program names an interpreter, as one that is not static does.
fn needs_loader(elf: &[u8]) -> bool {
    let interpreter = b"/ld-linux";
    // The name follows the headers, so that the rest need not be searched.
    let head = elf.get(..4096).unwrap_or(elf);
    head.windows(interpreter.len())
        .any(|window| window == interpreter)
}
