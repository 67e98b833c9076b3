//! `cargo xtask build`: the static agent with the object inside.

use std::{fs, path::PathBuf, process::Command};

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
        let say = |agent: &PathBuf, kind: &str| {
            let size = fs::metadata(agent).map_or(0, |data| data.len());
            run::say(&format!("{}: {size} bytes, {kind}", run::shown(agent)));
        };
        say(&build()?, "static");
        if self.next_layout {
            say(&build_next()?, "for tests on this machine");
        }
        Ok(())
    }
}

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
    let built = build_static("egress-agent", "egress-agent")?;
    run::copy_if_changed(&built, &agent()).context("cannot keep the agent")?;
    Ok(agent())
}

/// Builds one static release program and says where it is.
///
/// # Errors
///
/// The build fails, or the program needs a loader after all.
pub(crate) fn build_static(package: &str, bin: &str) -> Result<PathBuf> {
    let stage = Stage::begin(&format!("build-{bin}"), format!("static {bin}"))?;
    let target = host()?;
    // Given a target, cargo keeps the flags away from proc macros, which cannot be static.
    stage.run(
        static_cargo(&target)
            .args(["build", "--release", "--package", package, "--bin", bin])
            .args(["--target", &target]),
    )?;
    let built = run::target_dir().join(&target).join("release").join(bin);
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    ensure!(
        !needs_loader(&bytes),
        "{} is not static: is +crt-static overridden by a cargo config?",
        run::shown(&built)
    );
    stage.done();
    Ok(built)
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
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let object = ebpf::build_next(&dir)?;
    let _lock = setup::lock("agent")?;
    let stage = Stage::begin("build-egress-agent-next", "egress-agent of the next layout")?;
    // Only for tests on this machine: the dev profile, whose dependencies the tests need anyway.
    stage.run(
        run::cargo()
            .env("EGRESS_EBPF_OBJECT", &object)
            .args([
                "build",
                "--package",
                "egress-agent",
                "--bin",
                "egress-agent",
            ])
            .args(ebpf::NEXT_LAYOUT),
    )?;
    let built = run::target_dir().join("debug/egress-agent");
    run::copy_if_changed(&built, &next_agent()).context("cannot keep the agent")?;
    stage.done();
    Ok(next_agent())
}

/// A cargo that links statically and embeds the object.
fn static_cargo(target: &str) -> Command {
    let mut cargo = run::cargo();
    let name = target.to_uppercase().replace('-', "_");
    cargo
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env(
            format!("CARGO_TARGET_{name}_RUSTFLAGS"),
            "-C target-feature=+crt-static",
        )
        .env("EGRESS_EBPF_OBJECT", ebpf::object());
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

/// Whether an ELF program names an interpreter, as one that is not static does.
fn needs_loader(elf: &[u8]) -> bool {
    let interpreter = b"/ld-linux";
    // The name follows the headers, so that the rest need not be searched.
    let head = elf.get(..4096).unwrap_or(elf);
    head.windows(interpreter.len())
        .any(|window| window == interpreter)
}
