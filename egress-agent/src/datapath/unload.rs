//! Removing everything from the kernel that is an agent's.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use aya::programs::TcAttachType;
use egress_common::verdict::Hook;
use nix::fcntl::Flock;

use super::{
    error::{DatapathError, io_error},
    filter,
    layout::{self, links_dir},
    load::lock,
    owned::Owned,
    sys,
};

/// The sides of an interface, and what is there: the node's interfaces first, then the host's ends of pods'.
const FILTERS: [(TcAttachType, Hook); 4] = [
    (TcAttachType::Egress, Hook::TcEgress),
    (TcAttachType::Ingress, Hook::TcIngress),
    (TcAttachType::Ingress, Hook::TcEgress),
    (TcAttachType::Egress, Hook::TcIngress),
];

/// Objects to remove. None is removed before [`Unload::remove`].
#[derive(Debug)]
pub struct Unload {
    pin_dir: PathBuf,
    owned: Owned,
    filters: Vec<(String, TcAttachType, Hook)>,
    /// Held until all is gone.
    _lock: Option<Flock<File>>,
}

impl Unload {
    /// Finds what is an agent's below `pin_dir`. One that is not there has nothing.
    ///
    /// # Errors
    ///
    /// An agent still holds the directory; it is not on a bpffs, or holds nothing but what is somebody else's.
    pub fn plan(pin_dir: &Path) -> Result<Self, DatapathError> {
        let mut plan = Self {
            pin_dir: pin_dir.to_owned(),
            owned: Owned::default(),
            filters: Vec::new(),
            _lock: None,
        };
        if !pin_dir.exists() {
            return Ok(plan);
        }
        let owned = Owned::examine(pin_dir)?;
        if owned.is_empty() && !owned.others.is_empty() {
            return Err(DatapathError::NotOurs {
                path: pin_dir.to_owned(),
                others: owned.others,
            });
        }
        plan._lock = Some(lock(pin_dir)?);
        // An agent may have pinned more before it ended.
        plan.owned = Owned::examine(pin_dir)?;
        // Hooks that judge go first.
        plan.owned
            .links
            .sort_by_key(|(name, _)| name.contains("ingress") || name.starts_with("ask_"));
        if !plan.owned.is_empty() {
            plan.filters = filters();
        }
        Ok(plan)
    }

    /// Hooks that are to be taken off, by the names of their pins; filters as `HOOK-INTERFACE`.
    #[must_use]
    pub fn hooks(&self) -> Vec<String> {
        let links = self.owned.links.iter().map(|(name, _)| name.clone());
        let filters = self
            .filters
            .iter()
            .map(|(interface, _, hook)| format!("{}-{interface}", hook.name()));
        links.chain(filters).collect()
    }

    /// Maps that are to be unpinned, by path below the pin directory.
    #[must_use]
    pub fn maps(&self) -> Vec<PathBuf> {
        let dirs = self.owned.maps.iter();
        let maps = dirs.flat_map(|dir| dir.in_order().into_iter().map(|map| dir.path.join(map)));
        maps.map(|path| {
            path.strip_prefix(&self.pin_dir)
                .map_or_else(|_| path.clone(), Path::to_owned)
        })
        .collect()
    }

    /// Objects of somebody else, which stay, by path below the pin directory.
    #[must_use]
    pub fn others(&self) -> &[String] {
        &self.owned.others
    }

    /// Removes it.
    ///
    /// # Errors
    ///
    /// A file that cannot be removed.
    pub fn remove(self) -> Result<(), DatapathError> {
        let links = links_dir(&self.pin_dir);
        for (name, link) in &self.owned.links {
            // A link whose cgroup or interface is gone is detached already.
            let _ = sys::detach_link(link);
            let path = links.join(name);
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        for (interface, side, hook) in &self.filters {
            let removed = filter::remove(interface, *side, hook.name());
            removed.map_err(io_error("remove the filter of", Path::new(interface)))?;
        }
        // Of every layout: an agent may have been killed while it took over from another.
        for directory in &self.owned.maps {
            layout::remove_maps(&directory.path)?;
        }
        // Folders go when nothing else is in them; that of a mount stays.
        let _ = fs::remove_dir(&links);
        let _ = fs::remove_dir(&self.pin_dir);
        Ok(())
    }
}

/// The filters of kernels without TCX, on every interface of this network namespace.
fn filters() -> Vec<(String, TcAttachType, Hook)> {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for interface in &interfaces {
        let Ok(interface) = interface.name().to_str() else {
            continue;
        };
        for (side, hook) in FILTERS {
            if let Ok(Some(_)) = filter::find(interface, side, hook.name()) {
                found.push((interface.to_owned(), side, hook));
            }
        }
    }
    found
}
