//! The agent's links and maps in the kernel: held open, compared with what the kernel says, put back.
//!
//! A pin alone proves nothing: its link may be severed, or lie at another cgroup, and somebody may remove it. So the agent
//! holds the links and the maps themselves. A link counts as attached when the kernel says that it lies at the very
//! cgroup or interface that was asked for and runs the program of this agent. One that does not is replaced: the new one
//! stands before the old one goes.
//!
//! [`Anchors::hold`] compares and mends; it waits for nothing but this module's own lock, so that a long switch of
//! policies does not keep a hook open.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use aya::{
    maps::{HashMap, Map, MapData},
    programs::TcAttachType,
};
use egress_common::{
    maps::{Interface, LEADS_TO_POD, MAP_NAMES},
    verdict::Hook,
};
use nix::{
    fcntl::Flock,
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use tracing::{info, warn};

use super::{
    AttachedHook,
    error::{DatapathError, io_error},
    filter,
    layout::links_dir,
    load::{has_tcx, lock},
    owned::is_link_of_agent,
    snapshot::PutBack,
    sys::{self, LinkFacts, LinkTarget},
};
use crate::workload::{CgroupPaths, PodInterface, cgroup_root};

/// Begins the names of pins that are about to replace others. No interface has a `:` in its name.
pub(super) const NEW: &str = "new:";

/// `enum bpf_attach_type` of the hooks at cgroups; none for those at interfaces, which have two sides.
pub(super) const fn cgroup_attach_type(hook: Hook) -> Option<u32> {
    match hook {
        Hook::SkbIngress => Some(0),
        Hook::SkbEgress => Some(1),
        Hook::SockCreate => Some(2),
        Hook::Connect4 | Hook::AskConnect4 => Some(10),
        Hook::Connect6 | Hook::AskConnect6 => Some(11),
        Hook::AskSendmsg4 => Some(14),
        Hook::AskSendmsg6 => Some(15),
        Hook::TcEgress | Hook::TcIngress => None,
    }
}

/// True if a hook has to come before those of others, which may change what it reads.
pub(super) const fn comes_first(hook: Hook) -> bool {
    matches!(
        hook,
        Hook::AskConnect4 | Hook::AskConnect6 | Hook::AskSendmsg4 | Hook::AskSendmsg6
    )
}

/// How `status` calls a link behind programs of others which has to come before them: the kernel cannot order them, or
/// others were put before it.
pub(super) const BEHIND_OTHERS: &str = "link, behind others";

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
pub(super) const TCX_SIDES: [u32; 2] = [46, 47];

const fn tcx_attach_type(side: TcAttachType) -> u32 {
    let [ingress, egress] = TCX_SIDES;
    match side {
        TcAttachType::Ingress => ingress,
        TcAttachType::Egress | TcAttachType::Custom(_) => egress,
    }
}

/// Where a hook is asked for.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// At a cgroup.
    Cgroup(PathBuf),
    /// At one side of the interface that has this name now.
    Interface(String, TcAttachType),
    /// At one side of this interface, which leads to a pod.
    Pod(PodInterface, TcAttachType),
}

impl Place {
    /// The interface and its side, if it is at one.
    fn interface(&self) -> Option<(&str, TcAttachType)> {
        match self {
            Self::Cgroup(_) => None,
            Self::Interface(name, side) | Self::Pod(PodInterface { name, .. }, side) => {
                Some((name, *side))
            }
        }
    }
}

/// The hook of an interface of the node: the side on which packets leave is judged.
pub(super) fn node_side(hook: Hook) -> TcAttachType {
    if hook == Hook::TcEgress {
        TcAttachType::Egress
    } else {
        TcAttachType::Ingress
    }
}

/// The name of a pin for a hook at an interface. A bpffs takes no `.` in names, interfaces no `:`.
pub(super) fn interface_pin(hook: Hook, separator: char, interface: &str) -> String {
    format!("{}{separator}{}", hook.name(), interface.replace('.', ":"))
}

/// A program of this agent.
struct Program {
    hook: Hook,
    program: OwnedFd,
    id: u32,
    tag: String,
}

/// Device and inode of a file: a pin that is removed and made again has another.
type Identity = (u64, u64);

fn identity(path: &Path) -> io::Result<Identity> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// A hook that is asked for.
struct HeldHook {
    hook: Hook,
    place: Place,
    /// None before it was attached, and for filters of kernels without TCX.
    link: Option<OwnedFd>,
    /// The pin, as this agent made or found it.
    pin: Option<Identity>,
    /// Why it is not attached, or not pinned.
    trouble: Option<String>,
}

/// A pinned map.
struct HeldMap {
    name: &'static str,
    map: OwnedFd,
    pin: Option<Identity>,
    trouble: Option<String>,
}

/// The kernel's facts of a place now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    at: LinkTarget,
    attach_type: u32,
}

impl Target {
    fn is_of(&self, facts: &LinkFacts) -> bool {
        facts.target == self.at
            && facts.attach_type == self.attach_type
            && match self.at {
                // The same index may be another interface in another namespace.
                LinkTarget::Interface(index) => sys::links_at(index, self.attach_type)
                    .is_ok_and(|links| links.contains(&facts.id)),
                LinkTarget::Cgroup(_) => true,
                LinkTarget::Nothing => false,
            }
    }
}

/// Things that may be done to a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It stood as it should.
    Nothing,
    /// Its link stood; the program was put behind it.
    Replaced,
    /// It was attached.
    Attached,
}

pub(super) struct Attached {
    pin_dir: PathBuf,
    maps_dir: PathBuf,
    /// Where the bpffs is mounted.
    mount_point: PathBuf,
    /// Held as long as the agent runs: only one agent writes the maps.
    lock: Option<Flock<File>>,
    folder: Option<Identity>,
    folder_trouble: Option<String>,
    programs: Vec<Program>,
    interfaces: HashMap<MapData, u32, Interface>,
    hooks: BTreeMap<String, HeldHook>,
    maps: Vec<HeldMap>,
    put_back: PutBack,
    cgroup_paths: CgroupPaths,
}

/// A handle on what keeps the data plane in the kernel.
#[derive(Clone)]
pub struct Anchors(Arc<Mutex<Attached>>);

impl Anchors {
    /// Holds the programs and the maps of this agent, which are loaded and pinned.
    pub(super) fn new(
        pin_dir: &Path,
        maps_dir: PathBuf,
        lock: Flock<File>,
        programs: &[(Hook, &aya::programs::Program)],
    ) -> Result<Self, DatapathError> {
        let mut held = Vec::new();
        for (hook, program) in programs {
            let failed = |source| DatapathError::Program {
                program: hook.name(),
                source,
            };
            let info = program.info().map_err(failed)?;
            let fd = program.fd().map_err(failed)?.as_fd();
            held.push(Program {
                hook: *hook,
                program: fd.try_clone_to_owned().map_err(io_error("hold", pin_dir))?,
                id: info.id(),
                tag: format!("{:016x}", info.tag()),
            });
        }
        let mut maps = Vec::new();
        for name in MAP_NAMES {
            let path = maps_dir.join(name);
            maps.push(HeldMap {
                name,
                map: sys::object(&path).map_err(io_error("open", &path))?,
                pin: identity(&path).ok(),
                trouble: None,
            });
        }
        let path = maps_dir.join("INTERFACES");
        let failed = |source| DatapathError::Map {
            action: "open",
            map: "INTERFACES",
            source,
        };
        let data = MapData::from_pin(&path).map_err(failed)?;
        let interfaces = Map::from_map_data(data).and_then(HashMap::try_from);
        Ok(Self(Arc::new(Mutex::new(Attached {
            pin_dir: pin_dir.to_owned(),
            maps_dir,
            mount_point: mount_point(pin_dir),
            lock: Some(lock),
            folder: identity(pin_dir).ok(),
            folder_trouble: None,
            programs: held,
            interfaces: interfaces.map_err(failed)?,
            hooks: BTreeMap::new(),
            maps,
            put_back: PutBack::default(),
            cgroup_paths: CgroupPaths::default(),
        }))))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Attached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares everything with what the kernel says, and puts back what is not as it should be.
    pub fn hold(&self) {
        self.lock().hold();
    }

    /// The same for the interfaces of the node alone, which have come, gone or changed.
    pub fn hold_interfaces(&self) {
        self.lock()
            .hold_hooks(|place| matches!(place, Place::Interface(..)));
    }

    /// Every hook that is asked for, as the kernel has it now. Pods' interfaces are not among them.
    #[must_use]
    pub fn hooks(&self) -> Vec<AttachedHook> {
        self.lock().hooks()
    }

    /// Everything that is not held as it should be, in sentences: pins, the bpffs, hooks at pods' interfaces.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        self.lock().troubles()
    }

    /// Things that had to be put back so far.
    #[must_use]
    pub fn put_back(&self) -> PutBack {
        self.lock().put_back.clone()
    }
}

/// The mount that a path lies on, as far as it is there.
fn mount_point(path: &Path) -> PathBuf {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let own = device(&path);
    let ancestors = path.ancestors().take_while(|above| device(above) == own);
    ancestors.last().unwrap_or(&path).to_owned()
}

/// True if a path, or the nearest folder above it that is there, lies on a bpffs.
pub(super) fn is_on_bpffs(path: &Path) -> bool {
    let nearest = path.ancestors().find(|path| path.exists());
    nearest
        .and_then(|path| statfs(path).ok())
        .is_some_and(|facts| facts.filesystem_type() == BPF_FS_MAGIC)
}

impl Attached {
    /// Attaches a hook, unless it is attached as it should be already.
    ///
    /// # Errors
    ///
    /// The kernel refuses it. The hook is held all the same: [`Anchors::hold`] tries again.
    pub(super) fn attach(
        &mut self,
        pin: String,
        hook: Hook,
        place: Place,
    ) -> Result<Done, DatapathError> {
        let mut held = self.hooks.remove(&pin).unwrap_or(HeldHook {
            hook,
            place: place.clone(),
            link: None,
            pin: None,
            trouble: None,
        });
        if let Place::Interface(interface, _) = &place {
            // The map may be new although the link is not.
            self.tell_of_interface(interface)?;
        }
        held.place = place;
        let done = self.keep_hook(&pin, &mut held);
        let pinned = if held.link.is_some() {
            self.keep_hook_pin(&pin, &mut held).map(|_| ())
        } else {
            Ok(())
        };
        self.hooks.insert(pin, held);
        let done = done?;
        pinned?;
        Ok(done)
    }

    /// Lets hooks go: those whose pins `is_wanted` does not want, held or left by an earlier agent. What is no agent's stays.
    pub(super) fn let_go(&mut self, is_wanted: impl Fn(&str) -> bool) {
        let links = links_dir(&self.pin_dir);
        let found = fs::read_dir(&links).into_iter().flatten().flatten();
        let pinned = found.filter_map(|entry| entry.file_name().into_string().ok());
        let names: BTreeSet<String> = pinned.chain(self.hooks.keys().cloned()).collect();
        for name in names.into_iter().filter(|name| !is_wanted(name)) {
            let path = links.join(&name);
            let held = self.hooks.remove(&name);
            if let Some(held) = held.as_ref().filter(|_| !has_tcx())
                && let Some((interface, side)) = held.place.interface()
            {
                let _ = filter::remove(interface, side, held.hook.name());
            }
            if let Some(link) = held.and_then(|held| held.link) {
                // A link whose cgroup or interface is gone is detached already.
                let _ = sys::detach_link(&link);
            }
            let Ok(pinned) = sys::object(&path) else {
                continue;
            };
            if !is_link_of_agent(&name, &pinned, true) {
                continue;
            }
            let _ = sys::detach_link(&pinned);
            match fs::remove_file(&path) {
                Ok(()) => info!(pin = name, "hook let go"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => warn!(%error, pin = name, "cannot remove the pin of a hook"),
            }
        }
    }

    /// True if a hook stood when the agent looked at it last.
    pub(super) fn is_held(&self, pin: &str) -> bool {
        let held = self.hooks.get(pin);
        held.is_some_and(|held| held.trouble.is_none() && (held.link.is_some() || !has_tcx()))
    }

    /// Forgets an interface that is gone. Indexes are not used again (`dev_index_reserve`): one that stays does no harm.
    pub(super) fn forget_interface(&mut self, index: u32) {
        let _ = self.interfaces.remove(&index);
    }

    /// Tells the programs of an interface that leads to a pod, unless they know it: the kernel may have found its owner.
    pub(super) fn tell_of_pod(
        &mut self,
        interface: &PodInterface,
        owner: u64,
    ) -> Result<(), DatapathError> {
        if self.interfaces.get(&interface.index, 0).is_ok() {
            return Ok(());
        }
        let (_, header_bytes) = super::interface_facts(&interface.name)?;
        let facts = Interface {
            header_bytes,
            flags: LEADS_TO_POD,
            owner,
        };
        self.write_interface(interface.index, facts)
    }

    /// Tells the programs of an interface of the node.
    fn tell_of_interface(&mut self, name: &str) -> Result<(), DatapathError> {
        let (index, header_bytes) = super::interface_facts(name)?;
        let facts = Interface {
            header_bytes,
            ..Interface::default()
        };
        self.write_interface(index, facts)
    }

    fn write_interface(&mut self, index: u32, facts: Interface) -> Result<(), DatapathError> {
        self.interfaces
            .insert(index, facts, 0)
            .map_err(|source| DatapathError::Map {
                action: "write",
                map: "INTERFACES",
                source,
            })
    }

    fn program(&self, hook: Hook) -> Result<&Program, DatapathError> {
        let found = self.programs.iter().find(|program| program.hook == hook);
        found.ok_or(DatapathError::Missing {
            what: "program",
            name: hook.name(),
        })
    }

    /// Attaches a hook, or puts this agent's program behind its link, if that is not so.
    fn keep_hook(&mut self, pin: &str, held: &mut HeldHook) -> Result<Done, DatapathError> {
        if let Some((interface, side)) = held.place.interface()
            && !has_tcx()
        {
            if matches!(held.place, Place::Interface(..)) {
                self.tell_of_interface(interface)?;
            }
            return self.keep_filter(held.hook, interface, side);
        }
        let target = target(held.hook, &held.place)?;
        let path = links_dir(&self.pin_dir).join(pin);
        let link = match held.link.take() {
            Some(link) => Some(link),
            // Of an earlier agent.
            None => {
                held.pin = identity(&path).ok();
                sys::object(&path)
                    .ok()
                    .filter(|link| sys::kind(link) == sys::Kind::Link)
            }
        };
        let facts = link.as_ref().and_then(|link| sys::link_facts(link).ok()?);
        let program = self.program(held.hook)?;
        if let (Some(link), Some(facts)) = (link.as_ref(), facts)
            && target.is_of(&facts)
        {
            let updated = if facts.program_id == program.id {
                Ok(Done::Nothing)
            } else {
                sys::update_link(link, &program.program).map(|()| Done::Replaced)
            };
            if updated.is_ok() {
                held.link = link.as_fd().try_clone_to_owned().ok();
            }
            if let Ok(done) = updated {
                if done == Done::Replaced {
                    info!(hook = pin, "program replaced behind its link");
                }
                return Ok(done);
            }
        }
        if let Place::Interface(interface, _) = &held.place {
            self.tell_of_interface(interface)?;
        }
        let new = match self.create(held.hook, &held.place, target) {
            Ok(new) => new,
            Err(error) => {
                // The old link stays while it cannot be replaced: one at another place is no loss.
                held.link = link;
                return Err(error);
            }
        };
        held.link = Some(new);
        held.pin = None;
        info!(hook = pin, target = %shown(&held.place), "hook attached");
        // The new link has to outlive the agent before the old one goes.
        let pinned = self.keep_hook_pin(pin, held);
        if let Some(old) = link {
            if pinned.is_ok() {
                let _ = sys::detach_link(&old);
            }
            if facts.is_some_and(|facts| facts.target != LinkTarget::Nothing) {
                info!(
                    hook = pin,
                    "the link before it, which was attached elsewhere, is gone"
                );
            }
        }
        Ok(Done::Attached)
    }

    /// The same for kernels without TCX, which have a filter instead of a link.
    fn keep_filter(
        &self,
        hook: Hook,
        interface: &str,
        side: TcAttachType,
    ) -> Result<Done, DatapathError> {
        let name = hook.name();
        let program = self.program(hook)?;
        let attach = |source: io::Error| DatapathError::Attach {
            program: name,
            target: interface.to_owned(),
            source,
        };
        let found = filter::find(interface, side, name).map_err(attach)?;
        if found.is_some_and(|found| found.program_id == program.id) {
            return Ok(Done::Nothing);
        }
        filter::put(interface, side, name, &program.program).map_err(attach)?;
        info!(hook = name, interface, "filter put");
        Ok(if found.is_some() {
            Done::Replaced
        } else {
            Done::Attached
        })
    }

    fn create(&self, hook: Hook, place: &Place, target: Target) -> Result<OwnedFd, DatapathError> {
        let program = self.program(hook)?;
        let attach = |source: io::Error| DatapathError::Attach {
            program: hook.name(),
            target: shown(place),
            source,
        };
        let created = match place {
            Place::Cgroup(path) => {
                let directory = File::open(path).map_err(io_error("open", path))?;
                let fd = u32::try_from(directory.as_raw_fd()).map_err(io::Error::other);
                fd.and_then(|fd| {
                    if comes_first(hook) {
                        sys::create_first_link(&program.program, fd, target.attach_type)
                    } else {
                        sys::create_link(&program.program, fd, target.attach_type)
                    }
                })
            }
            Place::Interface(..) | Place::Pod(..) => match target.at {
                LinkTarget::Interface(index) => {
                    sys::create_link(&program.program, index, target.attach_type)
                }
                LinkTarget::Cgroup(_) | LinkTarget::Nothing => {
                    Err(io::Error::from(io::ErrorKind::NotFound))
                }
            },
        };
        created.map_err(attach)
    }

    /// Pins a hook's link, unless its pin is there; says whether it was not.
    fn keep_hook_pin(&self, pin: &str, held: &mut HeldHook) -> Result<bool, DatapathError> {
        let Some(link) = &held.link else {
            return Ok(false);
        };
        keep_pin(link, &links_dir(&self.pin_dir), pin, &mut held.pin)
    }

    /// Compares everything with what the kernel says, and puts back what is not as it should be.
    fn hold(&mut self) {
        let folder = self.keep_folder();
        let text = folder.err();
        if text != self.folder_trouble {
            match &text {
                Some(error) => warn!(error, "what is attached would go with the agent"),
                None => {
                    info!(pin_dir = %self.pin_dir.display(), "the folder of pins is there again")
                }
            }
            self.folder_trouble = text;
        }
        self.hold_hooks(|_| true);
        if self.folder_trouble.is_none() {
            let mut maps = std::mem::take(&mut self.maps);
            for held in &mut maps {
                let kept = keep_pin(&held.map, &self.maps_dir, held.name, &mut held.pin);
                if matches!(kept, Ok(true)) {
                    self.put_back
                        .note("map", format!("the pin of map {}", held.name));
                }
                self.say(held.name, &mut held.trouble, kept.map(|_| ()));
            }
            self.maps = maps;
        }
    }

    fn hold_hooks(&mut self, is_meant: impl Fn(&Place) -> bool) {
        let has_folder = self.folder_trouble.is_none();
        let meant = self.hooks.iter().filter(|(_, held)| is_meant(&held.place));
        for name in meant.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let Some(mut held) = self.hooks.remove(&name) else {
                continue;
            };
            let kept = self.hold_hook(&name, &mut held, has_folder);
            self.say(&name, &mut held.trouble, kept);
            self.hooks.insert(name, held);
        }
    }

    fn hold_hook(
        &mut self,
        name: &str,
        held: &mut HeldHook,
        has_folder: bool,
    ) -> Result<(), DatapathError> {
        if let Place::Pod(interface, _) = &held.place
            && nix::net::if_::if_nametoindex(interface.name.as_str()) != Ok(interface.index)
        {
            // It is gone: who follows pods' interfaces hears of that, too.
            return Ok(());
        }
        let had_pin = held.pin;
        match self.keep_hook(name, held)? {
            Done::Nothing => {}
            Done::Replaced => self
                .put_back
                .note("program", format!("the program of {name}")),
            Done::Attached => self.put_back.note("hook", format!("hook {name}")),
        }
        // The code that attached it anew has pinned it, or tried to.
        if has_folder && self.keep_hook_pin(name, held)? && had_pin.is_some() {
            self.put_back.note("pin", format!("the pin of {name}"));
        }
        Ok(())
    }

    /// Keeps why something is not as it should be, and logs it when that is new.
    fn say(&self, what: &str, trouble: &mut Option<String>, kept: Result<(), DatapathError>) {
        let text = kept
            .err()
            .map(|error| format!("{:#}", anyhow::Error::new(error)));
        if text != *trouble {
            match &text {
                Some(error) => warn!(what, error, "not as it should be; tried again until it is"),
                None => info!(what, "as it should be again"),
            }
            *trouble = text;
        }
    }

    /// Makes the folder of pins again when it is gone, with the bpffs that it lies on if need be.
    fn keep_folder(&mut self) -> Result<(), String> {
        let now = identity(&self.pin_dir).ok();
        if now.is_some() && now == self.folder && is_on_bpffs(&self.pin_dir) {
            return Ok(());
        }
        let shown = self.pin_dir.display();
        if !is_on_bpffs(&self.pin_dir) {
            let none: Option<&str> = None;
            let mounted = mount(
                Some("bpf"),
                &self.mount_point,
                Some("bpf"),
                MsFlags::empty(),
                none,
            );
            if let Err(errno) = mounted {
                return Err(format!(
                    "{shown} is on no bpffs any more, and the agent cannot mount one: {errno}; \
                     `mount -t bpf bpf {}`",
                    self.mount_point.display()
                ));
            }
            self.put_back.note(
                "bpffs",
                format!("the bpffs at {}", self.mount_point.display()),
            );
            if !is_on_bpffs(&self.pin_dir) {
                return Err(format!("{shown} is on no bpffs"));
            }
        }
        fs::create_dir_all(&self.pin_dir)
            .map_err(|error| format!("cannot make {shown}: {error}"))?;
        // The lock on the folder before has no more use; nobody else can have this one, unless another agent was first.
        let lock =
            lock(&self.pin_dir).map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        self.lock = Some(lock);
        self.folder = identity(&self.pin_dir).ok();
        Ok(())
    }

    fn hooks(&mut self) -> Vec<AttachedHook> {
        let names: Vec<String> = self.hooks.keys().cloned().collect();
        let mut found = Vec::new();
        for name in names {
            let Some(held) = self.hooks.remove(&name) else {
                continue;
            };
            if !matches!(held.place, Place::Pod(..)) {
                found.push(self.as_attached(&name, &held));
            }
            self.hooks.insert(name, held);
        }
        found.sort_by_key(|hook| hook.hook as u8);
        found
    }

    /// A hook as the kernel has it now.
    fn as_attached(&mut self, pin: &str, held: &HeldHook) -> AttachedHook {
        let (id, tag) = self
            .program(held.hook)
            .map_or((0, String::new()), |program| {
                (program.id, program.tag.clone())
            });
        let mut told = AttachedHook {
            hook: held.hook,
            target: shown(&held.place),
            kind: match held.place {
                Place::Cgroup(_) => "link",
                Place::Interface(..) | Place::Pod(..) if has_tcx() => "tcx",
                Place::Interface(..) | Place::Pod(..) => "clsact",
            },
            is_attached: false,
            is_pinned: true,
            program_tag: tag,
            trouble: held.trouble.clone(),
        };
        if let Some((interface, side)) = held.place.interface()
            && !has_tcx()
        {
            let found = filter::find(interface, side, held.hook.name());
            let found = found.ok().flatten();
            told.is_attached = found.is_some_and(|found| found.program_id == id);
            return told;
        }
        let path = links_dir(&self.pin_dir).join(pin);
        told.is_pinned = held.pin.is_some() && identity(&path).ok() == held.pin;
        let facts = held
            .link
            .as_ref()
            .and_then(|link| sys::link_facts(link).ok()?);
        let asked = target(held.hook, &held.place).ok();
        let Some(facts) = facts else {
            return told;
        };
        let is_at = asked.is_some_and(|asked| asked.is_of(&facts));
        told.is_attached = is_at && facts.program_id == id;
        if !is_at {
            told.target = self.found_at(&facts, &told.target);
        }
        if told.is_attached && comes_first(held.hook) && self.is_behind_others(held, id) {
            told.kind = BEHIND_OTHERS;
        }
        if told.trouble.is_none() && !told.is_attached {
            told.trouble = Some(if !is_at {
                format!("it is asked for at {}", shown(&held.place))
            } else {
                "another program is behind its link".to_owned()
            });
        }
        told
    }

    /// True if programs of others run before a hook that has to come first.
    fn is_behind_others(&self, held: &HeldHook, id: u32) -> bool {
        let (Place::Cgroup(path), Some(kind)) = (&held.place, cgroup_attach_type(held.hook)) else {
            return false;
        };
        let found = File::open(path).and_then(|cgroup| sys::programs_for(&cgroup, kind));
        let is_own = |id: &u32| self.programs.iter().any(|program| program.id == *id);
        let found = found.unwrap_or_default();
        let mut before = found.iter().take_while(|found| **found != id);
        before.any(|found| !is_own(found))
    }

    /// Where a link is, in words.
    fn found_at(&mut self, facts: &LinkFacts, asked: &str) -> String {
        match facts.target {
            LinkTarget::Nothing => asked.to_owned(),
            LinkTarget::Interface(index) => format!("interface {index}"),
            LinkTarget::Cgroup(id) => {
                let now_ns = SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .map_or(1, |since| {
                        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
                    });
                let root = cgroup_root().unwrap_or_default();
                match self.cgroup_paths.path(id, now_ns) {
                    Some(path) => format!("{}{path}", root.display()),
                    None => format!("the cgroup with id {id}, which is gone"),
                }
            }
        }
    }

    fn troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> = self.folder_trouble.iter().cloned().collect();
        let hooks = self.hooks.iter().filter_map(|(name, held)| {
            let trouble = held.trouble.as_ref()?;
            Some(format!(
                "hook {name} is not as it should be, and tried again: {trouble}"
            ))
        });
        troubles.extend(hooks);
        let maps = self.maps.iter().filter_map(|held| {
            let trouble = held.trouble.as_ref()?;
            Some(format!(
                "map {} is not pinned, and goes with the agent: {trouble}",
                held.name
            ))
        });
        troubles.extend(maps);
        troubles
    }
}

/// Asks the kernel for its facts of a place.
fn target(hook: Hook, place: &Place) -> Result<Target, DatapathError> {
    match place {
        Place::Cgroup(path) => {
            let metadata = fs::metadata(path).map_err(io_error("look at cgroup", path))?;
            Ok(Target {
                at: LinkTarget::Cgroup(metadata.ino()),
                attach_type: cgroup_attach_type(hook).ok_or(DatapathError::Missing {
                    what: "hook at cgroups",
                    name: hook.name(),
                })?,
            })
        }
        Place::Interface(name, side) => {
            let index = nix::net::if_::if_nametoindex(name.as_str());
            let failed = io_error("look at interface", Path::new(name));
            Ok(Target {
                at: LinkTarget::Interface(index.map_err(|errno| failed(errno.into()))?),
                attach_type: tcx_attach_type(*side),
            })
        }
        Place::Pod(interface, side) => Ok(Target {
            at: LinkTarget::Interface(interface.index),
            attach_type: tcx_attach_type(*side),
        }),
    }
}

fn shown(place: &Place) -> String {
    match place {
        Place::Cgroup(path) => path.display().to_string(),
        Place::Interface(name, _) | Place::Pod(PodInterface { name, .. }, _) => name.clone(),
    }
}

/// Pins an object below a folder, unless the pin that is known is there; says whether it was not.
fn keep_pin(
    object: &OwnedFd,
    folder: &Path,
    name: &str,
    pin: &mut Option<Identity>,
) -> Result<bool, DatapathError> {
    let path = folder.join(name);
    if pin.is_some() && identity(&path).ok() == *pin {
        return Ok(false);
    }
    if !is_on_bpffs(folder) {
        let gone = io::Error::other("no bpffs is mounted there any more");
        return Err(io_error("pin", &path)(gone));
    }
    fs::create_dir_all(folder).map_err(io_error("create", folder))?;
    if fs::symlink_metadata(&path).is_err() {
        sys::pin(object, &path).map_err(io_error("pin", &path))?;
    } else {
        // In one step: an agent that is killed here leaves the one or the other.
        let new = folder.join(format!("{NEW}{name}"));
        let _ = fs::remove_file(&new);
        sys::pin(object, &new).map_err(io_error("pin", &new))?;
        fs::rename(&new, &path).map_err(io_error("rename", &new))?;
    }
    *pin = Some(identity(&path).map_err(io_error("look at", &path))?);
    Ok(true)
}
