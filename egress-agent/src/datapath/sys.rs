//! The bpf(2) commands that aya does not offer: link update and pinned links.
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
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `enum bpf_link_type`.
const BPF_LINK_TYPE_TCX: u32 = 11;

/// `union bpf_attr` as these commands use it: up to 16 bytes.
#[repr(C, align(8))]
struct Attr([u32; 4]);

fn bpf(command: libc::c_long, attr: &Attr) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is 16 initialised bytes; what they point to outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<Attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Opens a pinned object.
pub(super) fn object(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let [low, high] = split(path.as_ptr() as u64);
    let result = bpf(BPF_OBJ_GET, &Attr([low, high, 0, 0]))?;
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel just returned it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(target_endian = "little")]
const fn split(pointer: u64) -> [u32; 2] {
    [(pointer & 0xffff_ffff) as u32, (pointer >> 32) as u32]
}
#[cfg(target_endian = "big")]
const fn split(pointer: u64) -> [u32; 2] {
    [(pointer >> 32) as u32, (pointer & 0xffff_ffff) as u32]
}

/// Puts another program behind a link, atomically.
pub(super) fn update_link(link: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    let link = raw(link)?;
    let program = raw(program)?;
    bpf(BPF_LINK_UPDATE, &Attr([link, program, 0, 0])).map(|_| ())
}

/// Takes a link off its hook.
pub(super) fn detach_link(link: &impl AsFd) -> io::Result<()> {
    let link = raw(link)?;
    bpf(BPF_LINK_DETACH, &Attr([link, 0, 0, 0])).map(|_| ())
}

/// Whether a link is still on its hook: one whose cgroup or interface is gone is not, although its pin opens.
pub(super) fn is_attached(link: &impl AsFd) -> bool {
    let mut info = LinkInfo::default();
    let Ok(fd) = raw(link) else {
        return false;
    };
    let [low, high] = split(std::ptr::from_mut(&mut info) as u64);
    let Ok(bytes) = u32::try_from(size_of::<LinkInfo>()) else {
        return false;
    };
    if bpf(BPF_OBJ_GET_INFO_BY_FD, &Attr([fd, bytes, low, high])).is_err() {
        return false;
    }
    // A cgroup's id is 64 bits long, an interface's index 32; the kernel clears them when the target goes.
    match info.kind {
        BPF_LINK_TYPE_TCX => info.target & 0xffff_ffff != 0,
        _ => info.target != 0,
    }
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
    rest: [u64; 5],
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
