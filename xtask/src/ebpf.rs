//! `cargo xtask build-ebpf`: the eBPF object.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    run::{self, Stage},
    setup, stack,
    toolchain::Toolchain,
};

/// Options of `cargo xtask build-ebpf`.
#[derive(Args, Debug)]
pub(crate) struct BuildEbpf {
    /// Say nothing when the object is up to date.
    #[arg(long)]
    quiet_if_fresh: bool,
}

impl BuildEbpf {
    /// Builds the object and says where it is.
    ///
    /// # Errors
    ///
    /// A tool is missing or fails.
    pub(crate) fn run(&self) -> Result<()> {
        let changed = build()?;
        if changed || !self.quiet_if_fresh {
            let size = fs::metadata(object()).map_or(0, |data| data.len());
            run::say(&format!("{}: {size} bytes", run::shown(&object())));
        }
        Ok(())
    }
}

/// Options of `cargo xtask clippy-ebpf`.
#[derive(Args, Debug)]
pub(crate) struct ClippyEbpf {}

impl ClippyEbpf {
    /// Lints the kernel programs, and the parts of egress-common that they use, as they are compiled for the kernel.
    ///
    /// # Errors
    ///
    /// A tool is missing, or there is something to say.
    pub(crate) fn run(&self) -> Result<()> {
        let toolchain = Toolchain::require()?;
        let driver = setup::clippy(&toolchain.compiler)?;
        // As `cargo clippy` does it, which is not in every package of a compiler.
        let status = toolchain
            .cargo()
            .args(["check", "--quiet", "--release", "--package", "egress-ebpf"])
            .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
            .arg("--target-dir")
            .arg(run::target_dir().join("ebpf/clippy"))
            .env("RUSTC_WORKSPACE_WRAPPER", driver)
            .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__")
            .status()
            .context("cannot start cargo")?;
        ensure!(status.success(), "the kernel programs have lints");
        Ok(())
    }
}

/// Options that make the next layout of the maps, for tests of an upgrade (`egress-common/Cargo.toml`).
pub(crate) const NEXT_LAYOUT: [&str; 2] = ["--features", "egress-common/layout-next"];

/// Where the object is: the path that egress-agent's build script embeds.
pub(crate) fn object() -> PathBuf {
    run::target_dir().join("ebpf/egress-ebpf")
}

/// Builds the object, and says whether it has changed.
///
/// # Errors
///
/// A tool is missing or fails.
pub(crate) fn build() -> Result<bool> {
    let target_dir = run::target_dir().join("ebpf/build");
    build_into("build-ebpf", "eBPF object", &target_dir, &[], &object())
}

/// Builds the object of the next layout, and says where it is.
///
/// # Errors
///
/// A tool is missing or fails.
pub(crate) fn build_next(target_dir: &Path) -> Result<PathBuf> {
    let object = target_dir.join("egress-ebpf");
    let title = "eBPF object of the next layout";
    fs::create_dir_all(target_dir)
        .with_context(|| format!("cannot make {}", target_dir.display()))?;
    // The same folder as for the other layout: what the two share is built once.
    let build = run::target_dir().join("ebpf/build");
    build_into("build-ebpf-next", title, &build, &NEXT_LAYOUT, &object)?;
    Ok(object)
}

fn build_into(
    log: &str,
    title: &str,
    target_dir: &Path,
    more: &[&str],
    object: &Path,
) -> Result<bool> {
    let toolchain = Toolchain::require()?;
    let _lock = setup::lock("ebpf")?;
    let stage = Stage::begin(log, title)?;
    stage.run(
        toolchain
            .cargo()
            .args(["build", "--release", "--package", "egress-ebpf"])
            .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
            .args(more)
            .arg("--target-dir")
            .arg(target_dir),
    )?;
    let built: &Path = &target_dir.join("bpfel-unknown-none/release/egress-ebpf");
    stack::check(built)?;
    let changed = run::copy_if_changed(built, object).context("cannot keep the object")?;
    stage.done();
    Ok(changed)
}
