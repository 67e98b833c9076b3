//! Links as somebody treats them who has the rights and no care.

#![expect(unsafe_code, reason = "system calls that no library here has")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_OBJ_GET: nix::libc::c_long = 7;
const BPF_LINK_DETACH: nix::libc::c_long = 34;

/// Takes the link that is pinned here off its hook (`bpftool link detach`). It and its pin stay, severed.
///
/// # Errors
///
/// It is no pin of a link, or the kernel refuses.
pub fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let link = bpf(BPF_OBJ_GET, &[path.as_ptr() as u64, 0])?;
    let link = i32::try_from(link).map_err(io::Error::other)?;
    // SAFETY: the kernel just returned it, and nobody else has it.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let number = u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?;
    let mut attr = [0_u8; 8];
    attr[..4].copy_from_slice(&number.to_ne_bytes());
    bpf(BPF_LINK_DETACH, &[u64::from_ne_bytes(attr)]).map(|_| ())
}

fn bpf(command: nix::libc::c_long, attr: &[u64]) -> io::Result<nix::libc::c_long> {
    // SAFETY: the attribute has the size that is given, and what it points to outlives the call.
    let result = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_bpf,
            command,
            attr.as_ptr(),
            size_of_val(attr),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
