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
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{
        CgroupAttachMode, CgroupSkbAttachType, Program, SchedClassifier, TcAttachType,
        links::FdLink,
        tc::{self, SchedClassifierLink},
    },
    util::KernelVersion,
};
use egress_common::{
    maps::{Config, LAYOUT_VERSION, MAP_NAMES, NO_LEVEL},
    verdict::Hook,
};
use nix::fcntl::{Flock, FlockArg};
use tracing::{debug, info, warn};

use super::{
    AttachedHook,
    error::{DatapathError, io_error},
    kernel_types,
    layout::{Foreign, links_dir, own_maps_dir, pinned_config, share},
    sys,
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

/// Whether the running kernel is at least this one. One that cannot be told counts as the oldest.
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
    /// Level of kernel-side debug messages: 0 is off, 5 is trace.
    pub ebpf_log_level: u8,
}

/// The programs and maps, loaded and pinned.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) options: Options,
    /// Held as long as the agent runs: only one agent writes the maps. None where nothing is pinned.
    pub(super) _lock: Option<Flock<File>>,
    /// clsact hooks, which have no link to pin.
    pub(super) clsact: Vec<AttachedHook>,
    /// Whether maps of an earlier agent of this layout were found.
    pub(super) is_adopted: bool,
    /// Maps of other layouts that were found.
    pub(super) foreign: Vec<Foreign>,
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
    let foreign = Foreign::find(pin_dir)?;
    for other in &foreign {
        info!(from = %other.dir.display(), to = %maps.display(), "taking over from another layout");
        share(OBJECT, &maps, &other.dir, options.learned_capacity)?;
    }
    let facts = KernelFacts::of_this_kernel()?;
    let mut loader = facts.loader(&options);
    for name in MAP_NAMES {
        loader.map_pin_path(name, maps.join(name));
    }
    let mut ebpf = loader.load(OBJECT).map_err(DatapathError::Load)?;
    for hook in Hook::ALL {
        load_program(&mut ebpf, hook.name())?;
    }
    for name in ["learn", "sweep", "own_netns"] {
        load_program(&mut ebpf, name)?;
    }
    Ok(Loaded {
        ebpf,
        options,
        _lock: Some(lock),
        clsact: Vec::new(),
        is_adopted: found == Some(LAYOUT_VERSION),
        foreign,
    })
}

/// What the programs are told of the kernel that runs.
pub(super) struct KernelFacts {
    coarse_clock: u8,
    netns_helper: u8,
    offsets: kernel_types::Offsets,
    /// Whether the makers of sockets are noted.
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
    /// Attaches these hooks where they are not attached yet, and puts the new programs behind the others.
    pub(super) fn attach(&mut self, hooks: &[Hook]) -> Result<(), DatapathError> {
        let cgroup = self.options.cgroup.clone();
        for hook in hooks {
            match hook {
                Hook::SockCreate
                | Hook::SkbIngress
                | Hook::SkbEgress
                | Hook::Connect4
                | Hook::Connect6 => {
                    self.attach_cgroup(*hook, &cgroup)?;
                }
                Hook::TcIngress | Hook::TcEgress => {
                    for interface in self.options.interfaces.clone() {
                        self.attach_interface(*hook, &interface)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Interfaces that an earlier agent was given and this one was not; its links are still there.
    pub(super) fn other_interfaces(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(links_dir(&self.options.pin_dir)) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let interface = name
                    .strip_prefix(Hook::TcEgress.name())?
                    .strip_prefix('-')?;
                let is_given = self.options.interfaces.iter().any(|one| one == interface);
                (!is_given).then(|| interface.to_owned())
            })
            .collect()
    }

    /// Puts the new program behind the links of interfaces that this agent was not given.
    pub(super) fn replace_other(&mut self, hook: Hook) -> Result<(), DatapathError> {
        for interface in self.other_interfaces() {
            let name = hook.name();
            let pin = links_dir(&self.options.pin_dir).join(format!("{name}-{interface}"));
            if !is_attached(&pin) {
                continue;
            }
            let Program::SchedClassifier(program) = program_of(&mut self.ebpf, name)? else {
                continue;
            };
            let fd = program.fd().map_err(|source| DatapathError::Program {
                program: name,
                source,
            })?;
            replace(&pin, name, fd.as_fd())?;
        }
        Ok(())
    }

    fn attach_cgroup(&mut self, hook: Hook, cgroup: &Path) -> Result<(), DatapathError> {
        let name = hook.name();
        let pin = links_dir(&self.options.pin_dir).join(name);
        let program = program_of(&mut self.ebpf, name)?;
        let fd = match program {
            Program::CgroupSkb(program) => program.fd(),
            Program::CgroupSockAddr(program) => program.fd(),
            Program::CgroupSock(program) => program.fd(),
            _ => {
                return Err(DatapathError::Missing {
                    what: "program",
                    name,
                });
            }
        }
        .map_err(|source| DatapathError::Program {
            program: name,
            source,
        })?;
        if pin.exists() {
            return replace(&pin, name, fd.as_fd());
        }
        let target = cgroup.display().to_string();
        let directory = File::open(cgroup).map_err(io_error("open", cgroup))?;
        let attach = |source| DatapathError::Attach {
            program: name,
            target: target.clone(),
            source,
        };
        // The kernel wants flags 0 for links; several links still coexist.
        let mode = CgroupAttachMode::Single;
        let link: FdLink = match program {
            Program::CgroupSkb(program) => {
                let kind = if hook == Hook::SkbEgress {
                    CgroupSkbAttachType::Egress
                } else {
                    CgroupSkbAttachType::Ingress
                };
                let id = program.attach(directory, kind, mode).map_err(attach)?;
                let link = program.take_link(id).map_err(attach)?;
                fd_link(link.try_into(), name)?
            }
            Program::CgroupSockAddr(program) => {
                let id = program.attach(directory, mode).map_err(attach)?;
                let link = program.take_link(id).map_err(attach)?;
                fd_link(link.try_into(), name)?
            }
            Program::CgroupSock(program) => {
                let id = program.attach(directory, mode).map_err(attach)?;
                let link = program.take_link(id).map_err(attach)?;
                fd_link(link.try_into(), name)?
            }
            _ => {
                return Err(DatapathError::Missing {
                    what: "program",
                    name,
                });
            }
        };
        pin_link(link, &pin, name)?;
        info!(hook = name, cgroup = %target, "hook attached");
        Ok(())
    }

    fn attach_interface(&mut self, hook: Hook, interface: &str) -> Result<(), DatapathError> {
        let name = hook.name();
        let pin = links_dir(&self.options.pin_dir).join(format!("{name}-{interface}"));
        let kind = if hook == Hook::TcEgress {
            TcAttachType::Egress
        } else {
            TcAttachType::Ingress
        };
        let is_new = !pin.exists();
        self.attach_tc(hook, interface, kind, &pin)?;
        if is_new && !pin.exists() {
            self.clsact.push(AttachedHook {
                hook,
                target: interface.to_owned(),
                kind: "clsact",
                is_attached: true,
            });
        }
        if is_new {
            info!(hook = name, interface, "hook attached");
        }
        Ok(())
    }

    /// Puts a program on one side of an interface: behind the link that is pinned at `pin`, or with a new one there.
    /// Kernels without TCX get a filter, which has no link.
    pub(super) fn attach_tc(
        &mut self,
        hook: Hook,
        interface: &str,
        kind: TcAttachType,
        pin: &Path,
    ) -> Result<(), DatapathError> {
        let name = hook.name();
        let Program::SchedClassifier(program) = program_of(&mut self.ebpf, name)? else {
            return Err(DatapathError::Missing {
                what: "program",
                name,
            });
        };
        if pin.exists() {
            let fd = program.fd().map_err(|source| DatapathError::Program {
                program: name,
                source,
            })?;
            return replace(pin, name, fd.as_fd());
        }
        let attach = |source| DatapathError::Attach {
            program: name,
            target: interface.to_owned(),
            source,
        };
        if kernel_is_at_least(TCX_KERNEL) {
            let id = program.attach(interface, kind).map_err(attach)?;
            let link = program.take_link(id).map_err(attach)?;
            pin_link(fd_link(link.try_into(), name)?, pin, name)
        } else {
            attach_clsact(program, interface, kind, name).map_err(attach)
        }
    }

    /// Every hook that should be there, and whether the kernel still has it.
    pub(super) fn hooks(&self) -> Vec<AttachedHook> {
        let links = links_dir(&self.options.pin_dir);
        let cgroup = self.options.cgroup.display().to_string();
        let mut hooks: Vec<AttachedHook> = [
            Hook::Connect4,
            Hook::Connect6,
            Hook::SkbEgress,
            Hook::SkbIngress,
            Hook::SockCreate,
        ]
        .into_iter()
        .map(|hook| AttachedHook {
            hook,
            target: cgroup.clone(),
            kind: "link",
            is_attached: is_attached(&links.join(hook.name())),
        })
        .collect();
        hooks.extend(self.clsact.iter().cloned());
        for interface in &self.options.interfaces {
            for hook in [Hook::TcEgress, Hook::TcIngress] {
                let is_clsact = self
                    .clsact
                    .iter()
                    .any(|other| other.hook == hook && other.target == *interface);
                if !is_clsact {
                    let pin = links.join(format!("{}-{interface}", hook.name()));
                    hooks.push(AttachedHook {
                        hook,
                        target: interface.clone(),
                        kind: "tcx",
                        is_attached: is_attached(&pin),
                    });
                }
            }
        }
        hooks
    }
}

/// Priority of the clsact filters: early, and unlikely to be used by others.
const CLSACT_PRIORITY: u16 = 0xe6;
/// Handle of the clsact filters, by which a new agent replaces them.
const CLSACT_HANDLE: tc::TcHandle = tc::TcHandle::new(0, 1);

fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    kind: TcAttachType,
    name: &str,
) -> Result<(), aya::programs::ProgramError> {
    // It is there already on every interface that was given before.
    let _ = tc::qdisc_add_clsact(interface);
    // A filter of an earlier agent is replaced in one step.
    let earlier =
        SchedClassifierLink::attached(interface, kind, CLSACT_PRIORITY, CLSACT_HANDLE, None);
    let replaced = earlier
        .map_err(aya::programs::ProgramError::IOError)
        .and_then(|link| program.attach_to_link(link));
    let id = match replaced {
        Ok(id) => id,
        Err(_) => program.attach_with_options(
            interface,
            kind,
            tc::TcAttachOptions::Netlink(tc::NlOptions {
                priority: CLSACT_PRIORITY,
                handle: CLSACT_HANDLE,
                ..tc::NlOptions::default()
            }),
        )?,
    };
    let link = program.take_link(id)?;
    debug!(program = name, interface, "clsact filter added");
    // The filter stays when the agent ends.
    std::mem::forget(link);
    Ok(())
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

fn fd_link<E>(link: Result<FdLink, E>, name: &str) -> Result<FdLink, DatapathError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    link.map_err(|error| DatapathError::Link {
        action: "take",
        program: name.to_owned(),
        source: io::Error::other(error),
    })
}

fn pin_link(link: FdLink, pin: &Path, name: &str) -> Result<(), DatapathError> {
    link.pin(pin)
        .map(|_| ())
        .map_err(|error| DatapathError::Link {
            action: "pin",
            program: name.to_owned(),
            source: io::Error::other(error),
        })
}

/// Puts a program behind a pinned link.
fn replace(pin: &Path, name: &str, program: impl AsFd) -> Result<(), DatapathError> {
    let update = |source| DatapathError::Link {
        action: "update",
        program: name.to_owned(),
        source,
    };
    let link = sys::object(pin).map_err(update)?;
    sys::update_link(&link, &program).map_err(update)?;
    info!(hook = name, "program replaced behind its link");
    Ok(())
}

/// Whether the link that is pinned here is on its hook.
pub(super) fn is_attached(pin: &Path) -> bool {
    sys::object(pin).is_ok_and(|link| sys::is_attached(&link))
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
