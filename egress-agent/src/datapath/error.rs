//! Errors between the agent and the kernel.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The binary was built without its programs.
    #[error("this agent was built without its eBPF object: build it with `cargo xtask build`")]
    NoObject,
    /// Another agent holds the pin directory.
    #[error("another agent ({holder}) holds {}: stop it first, or use another --pin-dir", .path.display())]
    Held {
        /// The pin directory.
        path: PathBuf,
        /// The other agent, as far as it is known.
        holder: String,
    },
    /// A file operation.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// The step that failed.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The maps in the folder of one layout are of another.
    #[error(
        "{} holds maps of layout {found} instead of {expected}: run `egress-agent unload` first",
        .path.display()
    )]
    Layout {
        /// The folder.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Version expected.
        expected: u32,
    },
    /// The kernel does not tell where its fields are.
    #[error("cannot tell network namespaces apart")]
    KernelTypes(#[source] super::kernel_types::KernelTypesError),
    /// The object cannot be loaded.
    #[error("cannot load the eBPF object")]
    Load(#[source] aya::EbpfError),
    /// A program does not verify.
    #[error("the kernel refuses program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why, with the verifier's log.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// A program cannot be attached.
    #[error("cannot attach {program} to {target}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// Cgroup or interface.
        target: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pin directory lies where nothing can be pinned.
    #[error(
        "{} is not on a bpffs: nothing of an agent can be there; `findmnt -t bpf` lists them",
        .path.display()
    )]
    NotBpffs {
        /// The pin directory.
        path: PathBuf,
    },
    /// The pin directory is in use by others, and by no agent.
    #[error(
        "{} holds what is not an agent's ({}), which is left alone: give --pin-dir a folder of its own, such as {}",
        .path.display(), .others.join(", "), .path.join("egress").display()
    )]
    NotOurs {
        /// The pin directory.
        path: PathBuf,
        /// The things that are there, by path below it.
        others: Vec<String>,
    },
    /// A map operation.
    #[error("cannot {action} map {map}")]
    Map {
        /// The step that failed.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// Why not.
        #[source]
        source: aya::maps::MapError,
    },
    /// Many entries of a map at once.
    #[error("cannot {action} map {map}")]
    Bulk {
        /// The step that failed.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The object lacks something that the agent expects.
    #[error("the eBPF object has no {what} {name}: it is of another version than the agent")]
    Missing {
        /// `map` or `program`.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
}

/// A file operation's error, for `map_err`.
pub(super) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> DatapathError {
    let path = path.to_owned();
    move |source| DatapathError::Io {
        action,
        path,
        source,
    }
}
