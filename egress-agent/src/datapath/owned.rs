//! Objects below a pin directory that are provably an agent's.
//!
//! A folder of maps is called `layout-N`; its maps carry the names of their pins in the kernel, and are known by their
//! names or stand beside a `CONFIG` of an agent's form. What `links/` holds are links of the types that agents make,
//! called after their hooks. All else is somebody else's: it is named, and left alone.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use aya::maps::MapType;
use egress_common::{maps::MAP_NAMES, verdict::Hook};

use super::{
    attached::{NEW, TCX_SIDES, cgroup_attach_type, is_on_bpffs},
    error::{DatapathError, io_error},
    layout::links_dir,
    sys::{self, Kind, MapFacts, OBJECT_NAME_BYTES},
};

/// How the folders of maps are called, before their number.
const LAYOUT: &str = "layout-";
/// Sizes that a `CONFIG` may have: seed, layout and generation, and some more.
const CONFIG_BYTES: std::ops::RangeInclusive<u32> = 16..=4_096;
/// The map by which a folder of maps is known.
pub(super) const CONFIG: &str = "CONFIG";

/// A folder of maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MapsDir {
    pub(super) path: PathBuf,
    /// Names of the maps in it that are an agent's.
    pub(super) maps: Vec<String>,
}

/// Objects pinned below a pin directory.
#[derive(Debug, Default)]
pub(super) struct Owned {
    /// Folders of maps, empty ones too.
    pub(super) maps: Vec<MapsDir>,
    /// Links of agents, by the names of their pins.
    pub(super) links: Vec<(String, OwnedFd)>,
    /// Objects of somebody else, by path below the pin directory.
    pub(super) others: Vec<String>,
}

impl Owned {
    /// Looks at everything below a pin directory.
    ///
    /// # Errors
    ///
    /// It is not on a bpffs, or cannot be read.
    pub(super) fn examine(pin_dir: &Path) -> Result<Self, DatapathError> {
        if !is_on_bpffs(pin_dir) {
            return Err(DatapathError::NotBpffs {
                path: pin_dir.to_owned(),
            });
        }
        let mut owned = Self::default();
        let links = links_dir(pin_dir);
        for (name, path, is_dir) in entries(pin_dir)? {
            if is_dir && path == links {
                continue;
            }
            if is_dir && is_layout(&name) {
                let (maps, others) = MapsDir::examine(path)?;
                owned.maps.push(maps);
                owned
                    .others
                    .extend(others.iter().map(|other| format!("{name}/{other}")));
            } else {
                owned.others.push(name);
            }
        }
        if links.is_dir() {
            let is_known = owned.maps.iter().any(|dir| dir.has_config());
            for (name, path, is_dir) in entries(&links)? {
                match sys::object(&path) {
                    Ok(link) if !is_dir && is_link_of_agent(&name, &link, is_known) => {
                        owned.links.push((name, link));
                    }
                    Ok(_) | Err(_) => owned.others.push(format!("links/{name}")),
                }
            }
        }
        owned.others.sort();
        Ok(owned)
    }

    /// True if there is nothing of an agent.
    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty() && self.maps.iter().all(|dir| dir.maps.is_empty())
    }
}

impl MapsDir {
    /// Looks at a folder; gives what is somebody else's in it, too.
    pub(super) fn examine(path: PathBuf) -> Result<(Self, Vec<String>), DatapathError> {
        let mut found = Vec::new();
        for (name, path, is_dir) in entries(&path)? {
            // A pin that was about to replace another is of the map of that name.
            let of = name.strip_prefix(NEW).unwrap_or(&name).to_owned();
            let facts = if is_dir {
                None
            } else {
                map_of_name(&path, &of)
            };
            found.push((name, of, facts));
        }
        let is_own_config = |of: &str, facts: &Option<MapFacts>| {
            of == CONFIG && facts.as_ref().is_some_and(is_config)
        };
        let has_config = found.iter().any(|(_, of, facts)| is_own_config(of, facts));
        let (mut maps, mut others) = (Vec::new(), Vec::new());
        for (name, of, facts) in found {
            let is_known = if of == CONFIG {
                is_own_config(&of, &facts)
            } else {
                has_config || MAP_NAMES.contains(&of.as_str())
            };
            if facts.is_some() && is_known {
                maps.push(name);
            } else {
                others.push(name);
            }
        }
        Ok((Self { path, maps }, others))
    }

    fn has_config(&self) -> bool {
        self.maps.iter().any(|map| map == CONFIG)
    }

    /// The maps in the order in which they can go. Bindings first: an agent that finds them goes on with the policy that
    /// they name, which has to be there. What the folder is known by last.
    pub(super) fn in_order(&self) -> Vec<&str> {
        let mut maps: Vec<&str> = self.maps.iter().map(String::as_str).collect();
        maps.sort_by_key(|name| match *name {
            "WORKLOADS" => 0,
            CONFIG => 2,
            _ => 1,
        });
        maps
    }
}

/// True if a folder of this name holds maps.
fn is_layout(name: &str) -> bool {
    let number = name.strip_prefix(LAYOUT);
    number.is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// A name for the folder of maps that another one takes the place of: no layout has the number 0.
pub(super) fn free_layout_dir(pin_dir: &Path) -> PathBuf {
    let mut name = format!("{LAYOUT}0");
    while fs::symlink_metadata(pin_dir.join(&name)).is_ok() {
        name.push('0');
    }
    pin_dir.join(name)
}

/// The facts of the map that is pinned here, if it was made under this name.
fn map_of_name(path: &Path, name: &str) -> Option<MapFacts> {
    let is_file = fs::symlink_metadata(path).ok()?.file_type().is_file();
    let map = sys::object(path)
        .ok()
        .filter(|map| is_file && sys::kind(map) == Kind::Map)?;
    let facts = sys::map_facts(&map).ok()?;
    is_name(facts.name(), name).then_some(facts)
}

/// True if the kernel's name of an object is this one, which it cuts.
fn is_name(of_kernel: &[u8], name: &str) -> bool {
    let name = name.as_bytes();
    let most = OBJECT_NAME_BYTES.saturating_sub(1);
    of_kernel == name.get(..most).unwrap_or(name)
}

/// True if a map has the form of a `CONFIG`, whose size may be another in another layout.
fn is_config(facts: &MapFacts) -> bool {
    facts.kind == MapType::Array as u32
        && facts.key_bytes == 4
        && CONFIG_BYTES.contains(&facts.value_bytes)
        && facts.capacity == 1
}

/// True if a link is of an agent. Names of hooks that this agent does not know, of a later one, count where an agent's
/// maps are beside them and the program is called like the hook.
pub(super) fn is_link_of_agent(pin: &str, link: &OwnedFd, is_known: bool) -> bool {
    if sys::kind(link) != Kind::Link {
        return false;
    }
    let Ok(Some(facts)) = sys::link_facts(link) else {
        return false;
    };
    let pin = pin.strip_prefix(NEW).unwrap_or(pin);
    let hook = pin.split(['-', '@']).next().unwrap_or(pin);
    let program = sys::program_name(facts.program_id);
    let has_name = program.as_ref().map(|program| is_name(program, hook));
    let mut hooks = Hook::ALL.iter().copied();
    match hooks.find(|known| known.name() == hook) {
        Some(known) => {
            let is_type = match cgroup_attach_type(known) {
                Some(attach_type) => facts.attach_type == attach_type,
                None => TCX_SIDES.contains(&facts.attach_type),
            };
            // A link that is severed may tell no program.
            is_type && has_name.unwrap_or(true)
        }
        None => is_known && has_name.unwrap_or(false),
    }
}

/// Names, paths, and whether they are folders; what goes away meanwhile is not there.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf, bool)>, DatapathError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("read", folder)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("read", folder))?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let name = entry.file_name().to_string_lossy().into_owned();
        // A bpffs takes no `.` in names, but for the kernel's own `maps.debug` and `progs.debug`.
        if name.contains('.') {
            continue;
        }
        found.push((name, entry.path(), is_dir));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_maps_have_a_number() {
        for name in ["layout-1", "layout-77", "layout-0", "layout-00"] {
            assert!(is_layout(name), "{name}");
        }
        for name in [
            "layout-",
            "layout",
            "layout-1a",
            "layout-old",
            "maps",
            "cilium",
            "links",
        ] {
            assert!(!is_layout(name), "{name}");
        }
    }

    #[test]
    fn the_kernel_cuts_names() {
        assert!(is_name(b"RULE_COUNTERS", "RULE_COUNTERS"));
        assert!(is_name(b"A_NAME_OF_SIXTE", "A_NAME_OF_SIXTEEN_AND_MORE"));
        assert!(!is_name(b"A_NAME_OF_SIXT", "A_NAME_OF_SIXTEEN_AND_MORE"));
        assert!(!is_name(b"", "CONFIG"));
    }

    #[test]
    fn the_configuration_has_a_form_of_its_own() {
        let config = MapFacts {
            kind: MapType::Array as u32,
            key_bytes: 4,
            value_bytes: 32,
            capacity: 1,
            ..MapFacts::default()
        };
        assert!(is_config(&config));
        let larger = MapFacts {
            value_bytes: 64,
            ..config
        };
        assert!(is_config(&larger));
        for other in [
            MapFacts {
                kind: MapType::Hash as u32,
                ..config
            },
            MapFacts {
                value_bytes: 8,
                ..config
            },
            MapFacts {
                capacity: 4,
                ..config
            },
        ] {
            assert!(!is_config(&other), "{other:?}");
        }
    }

    #[test]
    fn bindings_go_first_and_the_configuration_last() {
        let dir = MapsDir {
            path: PathBuf::new(),
            maps: ["ALIASES", "CONFIG", "WORKLOADS", "new:CONFIG"]
                .map(str::to_owned)
                .to_vec(),
        };
        assert_eq!(
            dir.in_order(),
            ["WORKLOADS", "ALIASES", "new:CONFIG", "CONFIG"]
        );
    }

    #[test]
    fn what_is_not_on_a_bpffs_is_not_looked_at() {
        let folder = tempfile::tempdir().expect("a folder");
        let examined = Owned::examine(folder.path());
        assert!(
            matches!(examined, Err(DatapathError::NotBpffs { .. })),
            "{examined:?}"
        );
    }
}
