//! Finds a compiler that can build `core` for bpf and a linker whose LLVM is new enough for it.
//!
//! Two compilers will do: a rustup nightly with `rust-src`, or Debian's, unpacked below `target/toolchain/` by
//! [`crate::setup`]. The linker is `bpf-linker`, built against Debian's LLVM below the same folder.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// The series of bpf-linker that is known to work.
pub(crate) const LINKER_VERSION: &str = "0.13";
/// Oldest compiler that builds the workspace.
const OLDEST_MINOR: u32 = 95;

/// A compiler that can build `core` for bpf.
#[derive(Clone, Debug)]
pub(crate) enum Compiler {
    /// A rustup nightly with `rust-src`.
    Nightly,
    /// Debian's compiler, below `target/toolchain/`: the wrapper that starts it.
    Debian(PathBuf),
}

/// Tools that build the eBPF object.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) compiler: Compiler,
    /// `bpf-linker`, as a path.
    pub(crate) linker: PathBuf,
}

/// Where fetched compilers and linkers live.
pub(crate) fn dir() -> PathBuf {
    run::target_dir().join("toolchain")
}

/// Where Debian's compiler is unpacked.
pub(crate) fn debian_dir() -> PathBuf {
    dir().join("debian-rust")
}

/// Where the linker for this LLVM is installed.
pub(crate) fn linker_dir(llvm: u32) -> PathBuf {
    dir().join(format!("bpf-linker-llvm-{llvm}"))
}

impl Toolchain {
    /// Finds a compiler and a linker that fit each other, or nothing.
    pub(crate) fn find() -> Option<Self> {
        compilers()
            .into_iter()
            .find_map(|(compiler, llvm)| find_linker(llvm).map(|linker| Self { compiler, linker }))
    }

    /// As [`Toolchain::find`].
    ///
    /// # Errors
    ///
    /// There is none; the message says what to run.
    pub(crate) fn require() -> Result<Self> {
        Self::find().context(
            "no compiler and linker for bpf found: run `cargo xtask setup` (as root) to install them",
        )
    }

    /// A cargo that compiles with this compiler and links bpf with this linker.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = match &self.compiler {
            Compiler::Nightly => {
                let mut rustup = run::command("rustup");
                rustup.args(["run", "nightly", "cargo"]);
                rustup.env_remove("RUSTC");
                rustup
            }
            Compiler::Debian(wrapper) => {
                let mut cargo = run::cargo();
                // The library's source is of an unstable build: only this variable lets a stable compiler use it.
                cargo.env("RUSTC", wrapper).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        let linker = self.linker.display();
        cargo
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env(
                "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
                format!("-C linker={linker} -C link-arg=--btf -C debuginfo=2"),
            );
        cargo
    }
}

/// Where the linter that belongs to Debian's compiler is: the wrapper that starts it.
pub(crate) fn debian_clippy() -> PathBuf {
    debian_dir().join("clippy-driver")
}

/// The compilers on this machine that can build `core`, best first, each with its LLVM's version.
pub(crate) fn compilers() -> Vec<(Compiler, u32)> {
    let mut found = Vec::new();
    if let Some(llvm) = nightly() {
        found.push((Compiler::Nightly, llvm));
    }
    let wrapper = debian_dir().join("rustc");
    if let Some(llvm) = wrapper
        .is_file()
        .then(|| version(&mut run::command(&wrapper)).ok())
        .flatten()
    {
        found.push((Compiler::Debian(wrapper), llvm));
    }
    found
}

/// Where rustup's nightly is.
///
/// # Errors
///
/// There is none.
pub(crate) fn nightly_sysroot() -> Result<PathBuf> {
    // Look, but never install.
    run::output(
        run::command("rustup")
            .args(["run", "nightly", "rustc", "--print", "sysroot"])
            .env("RUSTUP_AUTO_INSTALL", "0"),
    )
    .map(PathBuf::from)
}

/// LLVM version of rustup's nightly if that has the library's source.
fn nightly() -> Option<u32> {
    let rustc = || {
        let mut command = run::command("rustup");
        // Look, but never install.
        command
            .args(["run", "nightly", "rustc"])
            .env("RUSTUP_AUTO_INSTALL", "0");
        command
    };
    nightly_sysroot()
        .ok()?
        .join("lib/rustlib/src/rust/library/core/src/lib.rs")
        .is_file()
        .then(|| version(&mut rustc()).ok())
        .flatten()
}

/// LLVM version of a compiler that is new enough.
fn version(rustc: &mut Command) -> Result<u32> {
    let text = run::output(rustc.arg("-vV"))?;
    let (minor, llvm) = parse_version(&text).context("cannot read the compiler's version")?;
    if minor < OLDEST_MINOR {
        bail!("rustc 1.{minor} is too old");
    }
    Ok(llvm)
}

/// The minor version and LLVM's major version in the output of `rustc -vV`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let minor = field("release: 1.")?.split('.').next()?.parse().ok()?;
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((minor, llvm))
}

/// A linker whose LLVM is at least `llvm`: our own, else one in `PATH`.
pub(crate) fn find_linker(llvm: u32) -> Option<PathBuf> {
    let own = fs::read_dir(dir()).ok().into_iter().flatten().flatten();
    let own = own.filter_map(|entry| {
        let name = entry.file_name();
        let its_llvm: u32 = name
            .to_str()?
            .strip_prefix("bpf-linker-llvm-")?
            .parse()
            .ok()?;
        let program = entry.path().join("bin/bpf-linker");
        (its_llvm >= llvm && program.is_file()).then_some((its_llvm, program))
    });
    own.min().map(|(_, program)| program).or_else(|| {
        let program = run::find_program("bpf-linker")?;
        let version = run::output(run::command(&program).arg("--version")).ok()?;
        let libraries = run::output(run::command("ldd").arg(&program)).ok()?;
        (version.contains(&format!(" {LINKER_VERSION}."))
            && parse_ldd(&libraries).is_some_and(|its_llvm| its_llvm >= llvm))
        .then_some(program)
    })
}

/// The major version of the LLVM library in the output of `ldd`.
fn parse_ldd(text: &str) -> Option<u32> {
    let digits: String = text
        .split_once("libLLVM")?
        .1
        .trim_start_matches(['-', '.'])
        .trim_start_matches("so.")
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_rustc() {
        let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4";
        assert_eq!(parse_version(text), Some((97, 22)));
        assert_eq!(parse_version("release: 2.0"), None);
    }

    #[test]
    fn llvm_is_read_from_both_spellings_of_its_library() {
        assert_eq!(parse_ldd("\tlibLLVM.so.22.1 => /lib/x"), Some(22));
        assert_eq!(parse_ldd("\tlibLLVM-14.so.1 => /lib/x"), Some(14));
        assert_eq!(parse_ldd("\tlibc.so.6 => /lib/x"), None);
    }
}
