//! The bpf(2) commands that aya does not offer: links and pins by what the kernel says they are.
#![expect(unsafe_code, reason = "system calls")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Commands of include/uapi/linux/bpf.h.
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `enum bpf_link_type`.
const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// Most links on one side of an interface that are looked at (`BPF_MPROG_MAX`).
const MAX_LINKS: usize = 64;

/// `union bpf_attr` as most of these commands use it: up to 16 bytes.
#[repr(C, align(8))]
struct Attr([u32; 4]);

/// `union bpf_attr` of `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    _pad: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is initialised and of the size that is given; what it points to outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A descriptor that the kernel just returned.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel just returned it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a pinned object.
pub(super) fn object(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let [low, high] = split(path.as_ptr() as u64);
    owned(bpf(BPF_OBJ_GET, &mut Attr([low, high, 0, 0]))?)
}

/// Pins an object at a path where nothing is.
pub(super) fn pin(object: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let [low, high] = split(path.as_ptr() as u64);
    let fd = raw(object)?;
    bpf(BPF_OBJ_PIN, &mut Attr([low, high, fd, 0])).map(|_| ())
}

/// Kinds of objects that a descriptor may be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A map.
    Map,
    /// A link.
    Link,
    /// A program, or something that this agent does not know.
    Other,
}

/// The kind of object that a descriptor is of.
pub(super) fn kind(object: &impl AsFd) -> Kind {
    let path = format!("/proc/self/fd/{}", object.as_fd().as_raw_fd());
    let name = std::fs::read_link(path).unwrap_or_default();
    match name.to_str() {
        Some("anon_inode:bpf-map") => Kind::Map,
        // The kernel has two names for them, by how they were opened.
        Some("anon_inode:bpf-link" | "anon_inode:bpf_link") => Kind::Link,
        _ => Kind::Other,
    }
}

#[cfg(target_endian = "little")]
const fn split(pointer: u64) -> [u32; 2] {
    [(pointer & 0xffff_ffff) as u32, (pointer >> 32) as u32]
}
#[cfg(target_endian = "big")]
const fn split(pointer: u64) -> [u32; 2] {
    [(pointer >> 32) as u32, (pointer & 0xffff_ffff) as u32]
}

/// Attaches a program by a link of its own: to a cgroup's descriptor or an interface's index, after what is there.
pub(super) fn create_link(
    program: &impl AsFd,
    target: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let program = raw(program)?;
    owned(bpf(
        BPF_LINK_CREATE,
        &mut Attr([program, target, attach_type, 0]),
    )?)
}

/// `BPF_F_BEFORE`: with nothing named, before everything that is there. For cgroups from 6.17 on.
const BPF_F_BEFORE: u32 = 1 << 3;
/// `BPF_F_PREORDER`: before the programs of the cgroups below, too.
const BPF_F_PREORDER: u32 = 1 << 6;

/// The same at a cgroup, before everything that is there, as far as the kernel can do that.
pub(super) fn create_first_link(
    program: &impl AsFd,
    target: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let program = raw(program)?;
    for flags in [BPF_F_BEFORE | BPF_F_PREORDER, BPF_F_BEFORE] {
        let mut attr = Attr([program, target, attach_type, flags]);
        match bpf(BPF_LINK_CREATE, &mut attr) {
            // The kernel does not know the flags.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            created => return owned(created?),
        }
    }
    owned(bpf(
        BPF_LINK_CREATE,
        &mut Attr([program, target, attach_type, 0]),
    )?)
}

/// Puts another program behind a link, atomically.
pub(super) fn update_link(link: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    let link = raw(link)?;
    let program = raw(program)?;
    bpf(BPF_LINK_UPDATE, &mut Attr([link, program, 0, 0])).map(|_| ())
}

/// Takes a link off its hook.
pub(super) fn detach_link(link: &impl AsFd) -> io::Result<()> {
    let link = raw(link)?;
    bpf(BPF_LINK_DETACH, &mut Attr([link, 0, 0, 0])).map(|_| ())
}

/// The place that a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkTarget {
    /// A cgroup, by its id.
    Cgroup(u64),
    /// An interface, by its index in whichever network namespace it is.
    Interface(u32),
    /// Nothing: the cgroup or the interface is gone, or somebody took the link off.
    Nothing,
}

/// The kernel's facts of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkFacts {
    pub(super) id: u32,
    pub(super) program_id: u32,
    pub(super) target: LinkTarget,
    /// `enum bpf_attach_type`.
    pub(super) attach_type: u32,
}

/// Asks the kernel for the facts of a link; `None` for one of another type than this agent makes.
pub(super) fn link_facts(link: &impl AsFd) -> io::Result<Option<LinkFacts>> {
    let mut info = LinkInfo::default();
    read_info(link, &mut info)?;
    let low = (info.target & 0xffff_ffff) as u32;
    let high = (info.target >> 32) as u32;
    // A cgroup's id is 64 bits long, an interface's index 32; the kernel clears them when the target goes.
    let (target, attach_type) = match info.kind {
        BPF_LINK_TYPE_CGROUP => (LinkTarget::Cgroup(info.target), info.attach_type),
        BPF_LINK_TYPE_TCX if cfg!(target_endian = "little") => (LinkTarget::Interface(low), high),
        BPF_LINK_TYPE_TCX => (LinkTarget::Interface(high), low),
        _ => return Ok(None),
    };
    let is_severed = matches!(target, LinkTarget::Cgroup(0) | LinkTarget::Interface(0));
    Ok(Some(LinkFacts {
        id: info.id,
        program_id: info.program_id,
        target: if is_severed {
            LinkTarget::Nothing
        } else {
            target
        },
        attach_type,
    }))
}

/// The beginning of `struct bpf_link_info` (include/uapi/linux/bpf.h), for cgroup and tcx links.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    _pad: u32,
    /// `cgroup.cgroup_id`, or `tcx.ifindex` and `tcx.attach_type`.
    target: u64,
    /// `cgroup.attach_type`.
    attach_type: u32,
    _rest: [u32; 9],
}

/// The ids of the links on one side of an interface of this network namespace. An interface's index alone does not tell
/// the namespace.
pub(super) fn links_at(interface: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut programs = [0_u32; MAX_LINKS];
    let mut links = [0_u32; MAX_LINKS];
    let mut query = QueryAttr {
        target: interface,
        attach_type,
        program_ids: programs.as_mut_ptr() as u64,
        link_ids: links.as_mut_ptr() as u64,
        count: u32::try_from(MAX_LINKS).unwrap_or(u32::MAX),
        ..QueryAttr::default()
    };
    bpf(BPF_PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.count).unwrap_or(MAX_LINKS);
    Ok(links.into_iter().take(count).collect())
}

/// `BPF_F_QUERY_EFFECTIVE`: with those of the cgroups above, in the order in which they run.
const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// The ids of the programs that run for a cgroup, in their order.
pub(super) fn programs_for(cgroup: &impl AsFd, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut programs = [0_u32; MAX_LINKS];
    let mut query = QueryAttr {
        target: raw(cgroup)?,
        attach_type,
        query_flags: BPF_F_QUERY_EFFECTIVE,
        program_ids: programs.as_mut_ptr() as u64,
        count: u32::try_from(MAX_LINKS).unwrap_or(u32::MAX),
        ..QueryAttr::default()
    };
    bpf(BPF_PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.count).unwrap_or(MAX_LINKS);
    Ok(programs.into_iter().take(count).collect())
}

/// The kernel's facts of a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MapFacts {
    /// `enum bpf_map_type`.
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_bytes: u32,
    pub(super) value_bytes: u32,
    pub(super) capacity: u32,
    pub(super) flags: u32,
    pub(super) name: [u8; OBJECT_NAME_BYTES],
}

/// `BPF_OBJ_NAME_LEN`: longer names are cut, a zero byte ends them.
pub(super) const OBJECT_NAME_BYTES: usize = 16;

impl MapFacts {
    /// Its name, as it was given when it was made.
    pub(super) fn name(&self) -> &[u8] {
        object_name(&self.name)
    }
}

fn object_name(name: &[u8; OBJECT_NAME_BYTES]) -> &[u8] {
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Asks the kernel for the facts of a map.
pub(super) fn map_facts(map: &impl AsFd) -> io::Result<MapFacts> {
    let mut facts = MapFacts::default();
    read_info(map, &mut facts)?;
    Ok(facts)
}

/// The name of a program by its id, where this process may ask for it (`CAP_SYS_ADMIN`).
pub(super) fn program_name(id: u32) -> Option<Vec<u8>> {
    let program = owned(bpf(BPF_PROG_GET_FD_BY_ID, &mut Attr([id, 0, 0, 0])).ok()?).ok()?;
    let mut info = ProgramInfo::default();
    read_info(&program, &mut info).ok()?;
    Some(object_name(&info.name).to_vec())
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    head: [u64; 8],
    name: [u8; OBJECT_NAME_BYTES],
}

/// A program at interfaces that lets everything pass to the next one, with its id.
#[cfg(test)]
pub(super) fn test_program(name: &str) -> io::Result<(OwnedFd, u32)> {
    /// `union bpf_attr` of `BPF_PROG_LOAD`.
    #[repr(C)]
    struct LoadAttr {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log: [u64; 2],
        version_and_flags: u64,
        name: [u8; OBJECT_NAME_BYTES],
    }
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    // r0 = -1 (`TC_ACT_UNSPEC`); exit
    let code = [0xffff_ffff_0000_00b7_u64, 0x95];
    let mut named = [0; OBJECT_NAME_BYTES];
    for (to, from) in named.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let mut attr = LoadAttr {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 2],
        version_and_flags: 0,
        name: named,
    };
    let program = owned(bpf(BPF_PROG_LOAD, &mut attr)?)?;
    let mut info = ProgramInfo::default();
    read_info(&program, &mut info)?;
    let [kind_and_id, ..] = info.head;
    let [_, _, _, _, a, b, c, d] = kind_and_id.to_ne_bytes();
    Ok((program, u32::from_ne_bytes([a, b, c, d])))
}

/// Has the kernel fill in the beginning of what it knows of an object.
fn read_info<T>(object: &impl AsFd, info: &mut T) -> io::Result<()> {
    let fd = raw(object)?;
    let bytes = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let [low, high] = split(std::ptr::from_mut(info) as u64);
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut Attr([fd, bytes, low, high])).map(|_| ())
}

/// Gives memory that is free back to the system: reading a large policy needs much more than keeping it.
#[cfg(target_env = "gnu")]
pub fn release_memory() {
    // SAFETY: it has no preconditions, and locks what it looks at.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries do so by themselves, or cannot.
#[cfg(not(target_env = "gnu"))]
pub const fn release_memory() {}

/// The number of a descriptor that the caller keeps open.
fn raw(fd: &impl AsFd) -> io::Result<u32> {
    u32::try_from(fd.as_fd().as_raw_fd()).map_err(io::Error::other)
}

/// `MEMBARRIER_CMD_GLOBAL` of include/uapi/linux/membarrier.h.
const MEMBARRIER_GLOBAL: libc::c_long = 1;

/// Longer than any program runs, for kernels that refuse the command (`nohz_full`).
const PROGRAM_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// Waits until every program that runs now has ended: the command waits for a grace period of RCU
/// (`synchronize_rcu` in kernel/sched/membarrier.c), under which programs run.
pub(super) fn wait_for_programs() {
    // SAFETY: the command takes two numbers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) };
    // With one processor the kernel does not wait: programs do not run while this thread does, unless they were interrupted.
    let is_single = std::thread::available_parallelism().is_ok_and(|count| count.get() == 1);
    if result != 0 || is_single {
        std::thread::sleep(PROGRAM_PAUSE);
    }
}
