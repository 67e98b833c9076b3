//! Map folders: one for each layout, beside `links/`.
//!
//! ```text
//! <pin-dir>/layout-1/CONFIG …   maps of layout 1
//! <pin-dir>/layout-2/CONFIG …   maps of layout 2: there while it takes over, alone afterwards
//! <pin-dir>/links/skb_egress …  what is attached, whichever layout its program uses
//! ```
//!
//! The agent writes its own maps anew for another layout. Those that the kernel
//! writes are shared: the same map is pinned in both folders, if the new layout
//! wants it in the same form. So programs of both layouts go on from the same
//! sockets, flows, queries and learned addresses while hooks are switched.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use egress_common::{
    learned::{Learned, LearnedKey},
    maps::{Config, ConfigOfLayout1, KERNEL_MAPS, Keys, LAYOUT_VERSION},
    policy::Workload,
};
use tracing::{info, warn};

use super::{
    LearnedEntry,
    error::{DatapathError, io_error},
    maps::learned_entries,
    owned::{MapsDir, Owned},
};

/// Name of the folder for links.
const LINKS: &str = "links";

pub(super) fn links_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join(LINKS)
}

/// The folder for the maps of this agent's layout.
pub(super) fn own_maps_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("layout-{LAYOUT_VERSION}"))
}

fn pinned_map(dir: &Path, name: &str) -> Option<Map> {
    let data = MapData::from_pin(dir.join(name)).ok()?;
    Map::from_map_data(data).ok()
}

/// The configuration in a folder of maps; `None` when there is none.
pub(super) fn pinned_config(dir: &Path) -> Option<Config> {
    if let Ok(config) = Array::<_, Config>::try_from(pinned_map(dir, "CONFIG")?) {
        return config.get(&0, 0).ok();
    }
    let old = Array::<_, ConfigOfLayout1>::try_from(pinned_map(dir, "CONFIG")?).ok()?;
    let old = old.get(&0, 0).ok()?;
    Some(Config {
        layout_version: old.layout_version,
        generation: old.generation,
        levels: old.levels,
        ..Config::default()
    })
}

/// Type, sizes, capacity and flags of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    capacity: u32,
    flags: u32,
}

/// The shapes that this agent's programs want.
fn wanted_shapes(
    object: &[u8],
    learned_capacity: u32,
) -> Result<BTreeMap<String, Shape>, DatapathError> {
    let object = aya_obj::Object::parse(object)
        .map_err(|error| DatapathError::Load(aya::EbpfError::ParseError(error)))?;
    let shapes = object.maps.iter().map(|(name, map)| {
        let capacity = if name == "LEARNED" {
            learned_capacity
        } else {
            map.max_entries()
        };
        let shape = Shape {
            kind: map.map_type(),
            key_bytes: map.key_size(),
            value_bytes: map.value_size(),
            capacity,
            flags: map.map_flags(),
        };
        (name.clone(), shape)
    });
    Ok(shapes.collect())
}

fn pinned_shape(path: &Path) -> Option<Shape> {
    let info = aya::maps::MapInfo::from_pin(path).ok()?;
    Some(Shape {
        kind: info.map_type().ok()? as u32,
        key_bytes: info.key_size(),
        value_bytes: info.value_size(),
        capacity: info.max_entries(),
        flags: info.map_flags(),
    })
}

/// Pins in `own` what the kernel wrote for another layout and this one can use as it is.
pub(super) fn share(
    object: &[u8],
    own: &Path,
    other: &Path,
    learned_capacity: u32,
) -> Result<(), DatapathError> {
    let wanted = wanted_shapes(object, learned_capacity)?;
    for &name in KERNEL_MAPS {
        let pin = own.join(name);
        // An agent that was killed on its way may have got this far.
        if pin.exists() {
            continue;
        }
        let theirs = other.join(name);
        let (Some(there), Some(here)) = (pinned_shape(&theirs), wanted.get(name)) else {
            continue;
        };
        if there != *here {
            warn!(map = name, from = %other.display(), "map has another form: not shared");
            continue;
        }
        let failed = |source| DatapathError::Map {
            action: "share",
            map: name,
            source,
        };
        let map = MapData::from_pin(&theirs).map_err(failed)?;
        map.pin(&pin)
            .map_err(|error| io_error("pin", &pin)(std::io::Error::other(error)))?;
    }
    Ok(())
}

/// Maps of another layout, whose programs may still be attached.
pub(super) struct Foreign {
    pub(super) dir: PathBuf,
    pub(super) config: Option<Config>,
    workloads: Option<HashMap<MapData, u64, Workload>>,
    learned: Option<HashMap<MapData, LearnedKey, Learned>>,
    learned_of_layout_1: Option<HashMap<MapData, [u8; 24], [u8; 272]>>,
}

impl Foreign {
    /// Opens what can be read of a folder of maps.
    fn open(dir: PathBuf) -> Self {
        let config = pinned_config(&dir).filter(|config| config.layout_version != 0);
        let workloads = pinned_map(&dir, "WORKLOADS").and_then(|map| map.try_into().ok());
        let learned = pinned_map(&dir, "LEARNED").and_then(|map| map.try_into().ok());
        let learned_of_layout_1 = pinned_map(&dir, "LEARNED").and_then(|map| map.try_into().ok());
        Self {
            dir,
            config,
            workloads,
            learned,
            learned_of_layout_1,
        }
    }

    /// Every folder but this agent's own, the one that was switched last first.
    pub(super) fn find(pin_dir: &Path, owned: &Owned) -> Vec<Self> {
        let own = own_maps_dir(pin_dir);
        let others = owned
            .maps
            .iter()
            .filter(|dir| dir.path != own && !dir.maps.is_empty());
        let mut found: Vec<_> = others.map(|dir| Self::open(dir.path.clone())).collect();
        found.sort_by_key(|foreign| {
            std::cmp::Reverse(foreign.config.map_or(0, |config| config.generation))
        });
        found
    }

    /// The keys of its hashes, where it has such: layout 1 had none.
    pub(super) fn keys(&self) -> Option<Keys> {
        let keys = Array::<_, Keys>::try_from(pinned_map(&self.dir, "KEYS")?).ok()?;
        keys.get(&0, 0).ok()
    }

    /// How a cgroup is bound there.
    pub(super) fn bound(&self, cgroup_id: u64) -> Option<Workload> {
        self.workloads.as_ref()?.get(&cgroup_id, 0).ok()
    }

    /// Every scope that is bound there.
    pub(super) fn scope_ids(&self) -> Vec<u32> {
        let Some(workloads) = &self.workloads else {
            return Vec::new();
        };
        workloads
            .iter()
            .flatten()
            .flat_map(|(_, workload)| [workload.current, workload.next])
            .filter(|binding| binding.policy_id != 0)
            .map(|binding| binding.scope_id)
            .collect()
    }

    /// Entries learned there; none if this agent does not read their form. Those of layout 1, which knew no
    /// network namespaces, have the number 0 for theirs.
    pub(super) fn learned(&self) -> Result<Vec<LearnedEntry>, MapError> {
        match (&self.learned, &self.learned_of_layout_1) {
            (Some(learned), _) => learned_entries(learned),
            (None, Some(learned)) => {
                let entries = learned.iter().map(|item| {
                    let (key, value) = item?;
                    Ok(layout_1::entry(&key, &value))
                });
                let entries = entries.filter(|item| !matches!(item, Err(MapError::KeyNotFound)));
                Ok(entries
                    .collect::<Result<Vec<_>, MapError>>()?
                    .into_iter()
                    .flatten()
                    .collect())
            }
            (None, None) => {
                warn!(from = %self.dir.display(), "learned addresses cannot be read: not carried over");
                Ok(Vec::new())
            }
        }
    }
}

/// Learned addresses as layout 1 held them.
mod layout_1 {
    use egress_common::{
        learned::Grant,
        policy::{NAME_ENTRIES, PortRange},
    };

    use crate::datapath::LearnedEntry;

    fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = bytes.get(at..at.checked_add(2)?)?;
        Some(u16::from_ne_bytes(bytes.try_into().ok()?))
    }

    /// Key: scope, padding, address. Value: owner, lock, padding, grants.
    pub(super) fn entry(key: &[u8; 24], value: &[u8; 272]) -> Option<LearnedEntry> {
        let grants = (0..NAME_ENTRIES).map_while(|index| {
            let at = index.checked_mul(32)?.checked_add(16)?;
            grant(value.get(at..at.checked_add(32)?)?)
        });
        Some(LearnedEntry {
            scope_id: u32::from_ne_bytes(key.get(..4)?.try_into().ok()?),
            netns: 0,
            address: key.get(8..)?.try_into().ok()?,
            grants: grants.collect(),
        })
    }

    /// End, rule, auditor, ports; `None` for a slot that was never used. No use prolongs it.
    fn grant(bytes: &[u8]) -> Option<Grant> {
        let expires_at_ns = u64_at(bytes, 0).filter(|end| *end != 0)?;
        Some(Grant {
            expires_at_ns,
            rule: u64_at(bytes, 8)?,
            auditor: u64_at(bytes, 16)?,
            ports: PortRange::new(*bytes.get(24)?, u16_at(bytes, 26)?, u16_at(bytes, 28)?),
            ..Grant::default()
        })
    }

    #[cfg(test)]
    mod tests {
        use egress_common::{address::from_v4, policy::protocol::TCP};

        use super::*;

        #[test]
        fn an_entry_is_read_as_layout_1_wrote_it() {
            let address = from_v4([192, 0, 2, 7]);
            let key: Vec<u8> = [&7_u32.to_ne_bytes()[..], &[0; 4], &address].concat();
            let grant: Vec<u8> = [
                &99_u64.to_ne_bytes()[..],
                &5_u64.to_ne_bytes(),
                &6_u64.to_ne_bytes(),
                &[TCP, 0],
                &443_u16.to_ne_bytes(),
                &444_u16.to_ne_bytes(),
                &[0; 2],
            ]
            .concat();
            let mut value = [0; 272];
            value[16..48].copy_from_slice(&grant);
            let entry = entry(&key.try_into().expect("24 bytes"), &value).expect("an entry");
            assert_eq!(
                (entry.scope_id, entry.netns, entry.address),
                (7, 0, address)
            );
            let [one] = entry.grants.as_slice() else {
                panic!("{:?}", entry.grants);
            };
            assert_eq!((one.expires_at_ns, one.rule, one.auditor), (99, 5, 6));
            assert_eq!(one.ports, PortRange::new(TCP, 443, 444));
        }
    }
}

/// How many learned addresses fit into the map of a folder.
pub(super) fn learned_capacity(dir: &Path) -> Option<u32> {
    pinned_shape(&dir.join("LEARNED")).map(|shape| shape.capacity)
}

/// How many learned addresses fit into the table that is pinned below a directory; none where there is none.
#[must_use]
pub fn pinned_room(pin_dir: &Path) -> Option<u32> {
    learned_capacity(&own_maps_dir(pin_dir))
}

/// Unpins every map of a folder that is an agent's, and removes the folder if nothing else is in it.
pub(super) fn remove_maps(dir: &Path) -> Result<(), DatapathError> {
    let (owned, others) = MapsDir::examine(dir.to_owned())?;
    for name in owned.in_order() {
        let path = dir.join(name);
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
    }
    if others.is_empty() {
        fs::remove_dir(dir).map_err(io_error("remove", dir))?;
    }
    info!(maps = %dir.display(), "maps removed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use egress_common::maps::MAP_NAMES;

    use super::*;

    #[test]
    fn what_the_agent_writes_is_never_shared() {
        for name in KERNEL_MAPS {
            assert!(MAP_NAMES.contains(name), "{name}");
        }
        for name in [
            "CONFIG",
            "WORKLOADS",
            "NAMES",
            "CIDRS",
            "RULES",
            "INTERFACES",
            "RESOLVERS",
            "LOCAL",
        ] {
            assert!(!KERNEL_MAPS.contains(&name), "{name}");
        }
    }
}
