//! Loading, adopting and attaching.
//!
//! Maps and links are pinned below one bpffs directory: `layout-N/` and `links/`.
//! An agent loads its programs over the maps of its own layout, which it adopts
//! or makes, and puts them behind the pinned links, one atomic update each;
//! nothing is ever detached on the way.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya knows some thirty kinds of programs; all but four are an error here"
)]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use aya::{Ebpf, EbpfLoader, programs::Program, util::KernelVersion};
use egress_common::{
    maps::{Config, LAYOUT_VERSION, MAP_NAMES, NO_LEVEL},
    verdict::Hook,
};
use nix::fcntl::{Flock, FlockArg};
use tracing::{debug, info, warn};

use super::{
    attached::{Anchors, Place, cgroup_attach_type, interface_pin, node_side},
    error::{DatapathError, io_error},
    kernel_types,
    layout::{self, Foreign, links_dir, own_maps_dir, pinned_config, share},
    maps::Shares,
    owned::{Owned, free_layout_dir},
    pod_interfaces::is_pod_pin,
};

/// The object that `cargo xtask build-ebpf` made; empty when there was none.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress-ebpf"));

/// Kernel that has `bpf_ktime_get_coarse_ns`.
const COARSE_CLOCK_KERNEL: KernelVersion = KernelVersion::new(5, 11, 0);

/// Kernel whose packet programs have `bpf_get_netns_cookie` (commit c221d3744ad3).
const NETNS_KERNEL: KernelVersion = KernelVersion::new(6, 15, 0);

/// Kernel that has TCX.
const TCX_KERNEL: KernelVersion = KernelVersion::new(6, 6, 0);

/// Separates hook and interface in the name of a pin of the node's interface.
const NODE_SEPARATOR: char = '-';

/// True if the kernel has links for programs at interfaces.
pub(super) fn has_tcx() -> bool {
    static HAS_TCX: OnceLock<bool> = OnceLock::new();
    *HAS_TCX.get_or_init(|| kernel_is_at_least(TCX_KERNEL))
}

/// True if the running kernel is at least this one. One whose version cannot be read counts as the oldest.
pub(super) fn kernel_is_at_least(version: KernelVersion) -> bool {
    KernelVersion::current().is_ok_and(|current| current >= version)
}

/// Where and how to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory on a bpffs.
    pub pin_dir: PathBuf,
    /// Cgroup v2 directory that the hooks are attached to.
    pub cgroup: PathBuf,
    /// Interfaces for the tc pair.
    pub interfaces: Vec<String>,
    /// Most learned addresses.
    pub learned_capacity: u32,
    /// The parts of the tables that scopes may use.
    pub shares: Shares,
    /// Level of kernel-side debug messages: 0 is off, 5 is trace.
    pub ebpf_log_level: u8,
}

/// The programs and maps, loaded and pinned.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) options: Options,
    /// The agent's links and pins; none where nothing is pinned.
    pub(super) anchors: Option<Anchors>,
    /// True if maps of an earlier agent of this layout were found.
    pub(super) is_adopted: bool,
    /// Maps of other layouts that were found.
    pub(super) foreign: Vec<Foreign>,
    /// Links that aya does not hold, where nothing is pinned.
    pub(super) links: Vec<OwnedFd>,
    /// True if flows are older than what is known of the ports at which they were called.
    pub(super) has_older_flows: bool,
}

/// Takes the pin directory for this process. bpffs has no regular files, but its directories can be locked.
pub(super) fn lock(pin_dir: &Path) -> Result<Flock<File>, DatapathError> {
    let directory = File::open(pin_dir).map_err(io_error("open", pin_dir))?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            DatapathError::Held {
                path: pin_dir.to_owned(),
                holder: super::holder(pin_dir),
            }
        } else {
            io_error("lock", pin_dir)(errno.into())
        }
    })
}

/// Loads the object over the pinned maps, or over new ones.
pub(super) fn load(options: Options) -> Result<Loaded, DatapathError> {
    if OBJECT.is_empty() {
        return Err(DatapathError::NoObject);
    }
    let maps = own_maps_dir(&options.pin_dir);
    let links = links_dir(&options.pin_dir);
    let pin_dir = &options.pin_dir;
    fs::create_dir_all(pin_dir).map_err(io_error("create", pin_dir))?;
    let lock = lock(pin_dir)?;
    let mut owned = Owned::examine(pin_dir)?;
    if !owned.others.is_empty() {
        if owned.is_empty() {
            return Err(DatapathError::NotOurs {
                path: pin_dir.clone(),
                others: owned.others,
            });
        }
        let others = owned.others.join(", ");
        warn!(
            others,
            "the pin directory also holds what is not an agent's: left alone"
        );
    }
    let is_resized = layout::learned_capacity(&maps)
        .is_some_and(|capacity| capacity != options.learned_capacity);
    if is_resized {
        // The size of a map cannot be changed: one of the new size takes over, as one of another layout does.
        let before = free_layout_dir(pin_dir);
        info!(
            to = options.learned_capacity,
            from = %before.display(),
            "room for learned addresses changes: they are carried over"
        );
        fs::rename(&maps, &before).map_err(io_error("rename", &maps))?;
        owned = Owned::examine(pin_dir)?;
    }
    for directory in [&maps, &links] {
        fs::create_dir_all(directory).map_err(io_error("create", directory))?;
    }
    let found = pinned_config(&maps).map(|config| config.layout_version);
    if let Some(found) = found
        && found != LAYOUT_VERSION
        && found != 0
    {
        return Err(DatapathError::Layout {
            path: maps,
            found,
            expected: LAYOUT_VERSION,
        });
    }
    let foreign = Foreign::find(pin_dir, &owned);
    for empty in owned.maps.iter().filter(|dir| dir.path != maps) {
        // An agent may have been killed between its last map and its folder; one with maps stays.
        let _ = fs::remove_dir(&empty.path);
    }
    for other in &foreign {
        info!(from = %other.dir.display(), to = %maps.display(), "taking over from another layout");
        share(OBJECT, &maps, &other.dir, options.learned_capacity)?;
    }
    let has = |name: &str| maps.join(name).exists();
    let has_older_flows = has("FLOWS") && !has("CALLED");
    let facts = KernelFacts::of_this_kernel()?;
    let mut loader = facts.loader(&options);
    for name in MAP_NAMES {
        loader.map_pin_path(name, maps.join(name));
    }
    let mut ebpf = loader.load(OBJECT).map_err(DatapathError::Load)?;
    for hook in Hook::ALL {
        load_program(&mut ebpf, hook.name())?;
    }
    for name in ["learn", "aliases", "sweep", "own_netns"] {
        load_program(&mut ebpf, name)?;
    }
    let programs = Hook::ALL.iter().map(|hook| {
        let program = ebpf.program(hook.name()).ok_or(DatapathError::Missing {
            what: "program",
            name: hook.name(),
        })?;
        Ok((*hook, program))
    });
    let programs = programs.collect::<Result<Vec<_>, DatapathError>>()?;
    let anchors = Anchors::new(&options.pin_dir, maps, lock, &programs)?;
    Ok(Loaded {
        ebpf,
        options,
        anchors: Some(anchors),
        is_adopted: found == Some(LAYOUT_VERSION),
        foreign,
        links: Vec::new(),
        has_older_flows,
    })
}

/// Facts of the running kernel that the programs need.
pub(super) struct KernelFacts {
    coarse_clock: u8,
    netns_helper: u8,
    offsets: kernel_types::Offsets,
    /// 1 if the programs note the makers of sockets.
    pub(super) note_processes: u8,
}

impl KernelFacts {
    pub(super) fn of_this_kernel() -> Result<Self, DatapathError> {
        let has_netns_helper = kernel_is_at_least(NETNS_KERNEL);
        let offsets = match kernel_types::Offsets::of_this_kernel() {
            Ok(offsets) => offsets,
            Err(error) if !has_netns_helper => return Err(DatapathError::KernelTypes(error)),
            // Only tells the kernel's own raw sockets from those of processes: all are judged then.
            Err(error) => {
                warn!(%error, "what the kernel answers by itself is judged like a process's packets");
                kernel_types::Offsets::default()
            }
        };
        Ok(Self {
            coarse_clock: u8::from(kernel_is_at_least(COARSE_CLOCK_KERNEL)),
            netns_helper: u8::from(has_netns_helper),
            offsets,
            note_processes: 0,
        })
    }

    /// A loader of the object, which pins nothing yet.
    pub(super) fn loader<'a>(&'a self, options: &'a Options) -> EbpfLoader<'a> {
        let mut loader = EbpfLoader::new();
        loader
            .override_global("COARSE_CLOCK", &self.coarse_clock, true)
            .override_global("NETNS_HELPER", &self.netns_helper, true)
            .override_global("SOCK_NET_AT", &self.offsets.sock_net, true)
            .override_global("NET_COOKIE_AT", &self.offsets.net_cookie, true)
            .override_global("NET_MIX_AT", &self.offsets.net_mix, true)
            .override_global("KERN_SOCK_AT", &self.offsets.kern_sock, true)
            .override_global("KERN_SOCK_BIT", &self.offsets.kern_sock_bit, true)
            .override_global("NOTE_PROCESSES", &self.note_processes, true)
            .override_global("AYA_LOG_LEVEL", &options.ebpf_log_level, true)
            .map_max_entries("LEARNED", options.learned_capacity);
        if self.note_processes == 0 {
            loader.map_max_entries("PROCESSES", 1);
        }
        loader
    }
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    let program = ebpf.program_mut(name).ok_or(DatapathError::Missing {
        what: "program",
        name,
    })?;
    verify(program, name)
}

/// Lets the kernel verify a program.
pub(super) fn verify(program: &mut Program, name: &'static str) -> Result<(), DatapathError> {
    let loaded = match program {
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => {
            return Err(DatapathError::Missing {
                what: "program",
                name,
            });
        }
    };
    loaded.map_err(|source| DatapathError::Program {
        program: name,
        source,
    })?;
    if let Ok(info) = program.info() {
        debug!(
            program = name,
            instructions = info.verified_instruction_count(),
            "program verified"
        );
    }
    Ok(())
}

impl Loaded {
    /// Attaches these hooks where they are asked for, and puts the new programs behind the links that are there.
    pub(super) fn attach(&mut self, hooks: &[Hook]) -> Result<(), DatapathError> {
        let Some(anchors) = &self.anchors else {
            return self.attach_unpinned();
        };
        let mut anchors = anchors.lock();
        for hook in hooks {
            if cgroup_attach_type(*hook).is_some() {
                let place = Place::Cgroup(self.options.cgroup.clone());
                anchors.attach(hook.name().to_owned(), *hook, place)?;
                continue;
            }
            for interface in &self.options.interfaces {
                let pin = interface_pin(*hook, NODE_SEPARATOR, interface);
                let place = Place::Interface(interface.clone(), node_side(*hook));
                anchors.attach(pin, *hook, place)?;
            }
        }
        Ok(())
    }

    /// Lets go what earlier agents were asked for and this one is not, but for pods' interfaces.
    pub(super) fn let_others_go(&mut self) {
        let interfaces = self.options.interfaces.iter();
        let wanted: BTreeSet<String> = interfaces
            .flat_map(|interface| {
                [Hook::TcEgress, Hook::TcIngress]
                    .map(|hook| interface_pin(hook, NODE_SEPARATOR, interface))
            })
            .chain(Hook::ALL.iter().map(|hook| hook.name().to_owned()))
            .collect();
        if let Some(anchors) = &self.anchors {
            let is_wanted = |pin: &str| wanted.contains(pin) || is_pod_pin(pin);
            anchors.lock().let_go(is_wanted);
        }
    }
}

pub(super) fn program_of<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut Program, DatapathError> {
    ebpf.program_mut(name).ok_or(DatapathError::Missing {
        what: "program",
        name,
    })
}

/// A configuration with nothing bound below the node.
pub(super) fn fresh_config(generation: u32) -> Config {
    Config {
        layout_version: LAYOUT_VERSION,
        generation,
        enforce_until_ns: 0,
        node_netns: 0,
        _pad: 0,
        levels: [NO_LEVEL; egress_common::maps::CGROUP_LEVELS],
    }
}
