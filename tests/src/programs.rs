//! The programs that tests run: our probe, the agent, tools of the system.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The folder for everything that is built.
#[must_use]
pub fn target_dir() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"));
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

/// Our client and server program: `EGRESS_PROBE`, or beside the running program.
#[must_use]
pub fn probe() -> PathBuf {
    if let Some(path) = env::var_os("EGRESS_PROBE") {
        return path.into();
    }
    let own = env::current_exe().unwrap_or_default();
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("probe"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| target_dir().join("debug/probe"))
}

/// The agent: `EGRESS_AGENT`, or what `cargo xtask build` makes.
#[must_use]
pub fn agent() -> PathBuf {
    env::var_os("EGRESS_AGENT")
        .map_or_else(|| target_dir().join("release/egress-agent"), PathBuf::from)
}

/// An agent with the next layout of the maps: `EGRESS_AGENT_NEXT`, or what `cargo xtask test` makes.
#[must_use]
pub fn next_agent() -> PathBuf {
    env::var_os("EGRESS_AGENT_NEXT")
        .map_or_else(|| target_dir().join("next/egress-agent"), PathBuf::from)
}

/// The eBPF object: `EGRESS_EBPF_OBJECT`, or what `cargo xtask build-ebpf` makes.
#[must_use]
pub fn object() -> PathBuf {
    env::var_os("EGRESS_EBPF_OBJECT")
        .map_or_else(|| target_dir().join("ebpf/egress-ebpf"), PathBuf::from)
}

/// Where a program of this name is, in `PATH` and where Debian keeps root's tools.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
