//! Removing everything from the kernel.

use std::{fs, io, path::Path};

use aya::programs::{TcAttachType, tc};

use super::{
    error::DatapathError,
    layout::{links_dir, maps_dirs, remove_maps},
    load::lock,
    sys,
};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Hooks taken off.
    pub hooks: Vec<String>,
    /// Maps unpinned.
    pub maps: usize,
}

/// Takes every hook off and unpins everything below `pin_dir`. Hooks that judge go first.
///
/// # Errors
///
/// An agent still holds the directory; a file cannot be removed.
pub fn unload(pin_dir: &Path) -> Result<Removed, DatapathError> {
    let mut removed = Removed::default();
    if !pin_dir.exists() {
        return Ok(removed);
    }
    let _lock = lock(pin_dir)?;
    let mut links = names_in(&links_dir(pin_dir))?;
    links.sort_by_key(|name| name.contains("ingress"));
    for name in links {
        let path = links_dir(pin_dir).join(&name);
        if let Ok(link) = sys::object(&path) {
            // A link whose cgroup or interface is gone is detached already.
            let _ = sys::detach_link(&link);
        }
        remove(&path)?;
        removed.hooks.push(name);
    }
    removed.hooks.extend(remove_clsact());
    // Of every layout: an agent may have been killed while it took over from another.
    for directory in maps_dirs(pin_dir)? {
        removed.maps = removed.maps.saturating_add(remove_maps(&directory)?);
    }
    for directory in [links_dir(pin_dir), pin_dir.to_owned()] {
        if directory.exists() {
            fs::remove_dir(&directory).map_err(|source| DatapathError::Io {
                action: "remove",
                path: directory.clone(),
                source,
            })?;
        }
    }
    Ok(removed)
}

/// Removes the filters of kernels without TCX, on every interface of this network namespace.
fn remove_clsact() -> Vec<String> {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else {
        return Vec::new();
    };
    let mut removed = Vec::new();
    for interface in &interfaces {
        let Ok(interface) = interface.name().to_str() else {
            continue;
        };
        for (kind, program) in [
            (TcAttachType::Egress, "tc_egress"),
            (TcAttachType::Ingress, "tc_ingress"),
            // The host's ends of pods' interfaces.
            (TcAttachType::Ingress, "tc_egress"),
            (TcAttachType::Egress, "tc_ingress"),
        ] {
            if tc::qdisc_detach_program(interface, kind, program).is_ok() {
                removed.push(format!("{program}-{interface}"));
            }
        }
    }
    removed
}

fn names_in(directory: &Path) -> Result<Vec<String>, DatapathError> {
    let failed = |source| DatapathError::Io {
        action: "read",
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries
        .map(|entry| {
            Ok(entry
                .map_err(failed)?
                .file_name()
                .to_string_lossy()
                .into_owned())
        })
        .collect()
}

fn remove(path: &Path) -> Result<(), DatapathError> {
    fs::remove_file(path).map_err(|source| DatapathError::Io {
        action: "remove",
        path: path.to_owned(),
        source,
    })
}
