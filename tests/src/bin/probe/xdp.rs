//! A frame by an `AF_XDP` socket, in copy mode.

#![expect(unsafe_code, reason = "system calls and memory shared with the kernel")]

use std::{
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::packets::from_hex;
use nix::libc;

use crate::{
    client::{Step, at, attempt, print},
    emit::{hardware_address, link},
    sys,
};

/// Memory that is shared with the kernel for frames: one page.
const AREA_BYTES: usize = 4096;
/// Entries of each ring.
const ENTRIES: u32 = 64;
/// How long the kernel may take to give the queue of a closed socket back.
const LONGEST_RELEASE: Duration = Duration::from_secs(5);

/// Options of `probe xdp`.
#[derive(Args, Debug)]
pub(crate) struct Xdp {
    /// What follows the link-layer header, in hexadecimal; IPv4.
    bytes: String,
    /// Interface to send on.
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// Hardware address of the receiver.
    #[arg(long)]
    gateway: String,
}

impl Xdp {
    pub(crate) fn run(&self) -> Result<()> {
        let mut frame = hardware_address(&self.gateway)?.to_vec();
        frame.extend(link(&self.interface)?.addr().unwrap_or_default());
        frame.extend([0x08, 0x00]);
        frame.extend(from_hex(&self.bytes).context("not hexadecimal")?);
        let index = nix::net::if_::if_nametoindex(self.interface.as_str())?;
        print(&attempt(|| send(&frame, index)))
    }
}

fn send(frame: &[u8], interface: u32) -> Step<u16> {
    // SAFETY: the call takes numbers only.
    let socket = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(("socket", io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let area = map(AREA_BYTES, -1, 0).map_err(at("area"))?;
    // SAFETY: a frame is shorter than the area, which nobody else knows yet.
    unsafe { ptr::copy_nonoverlapping(frame.as_ptr(), area.as_ptr(), frame.len()) };

    let mut register = Vec::new();
    register.extend((area.as_ptr() as u64).to_ne_bytes());
    register.extend((AREA_BYTES as u64).to_ne_bytes());
    // Size of a frame, headroom, flags, and what later kernels added.
    for word in [2048_u32, 0, 0, 0] {
        register.extend(word.to_ne_bytes());
    }
    let entries = ENTRIES.to_ne_bytes();
    for (name, value) in [
        (libc::XDP_UMEM_REG, register.as_slice()),
        (libc::XDP_UMEM_FILL_RING, &entries),
        (libc::XDP_UMEM_COMPLETION_RING, &entries),
        (libc::XDP_TX_RING, &entries),
    ] {
        sys::set_option(&socket, libc::SOL_XDP, name, value).map_err(at("rings"))?;
    }

    let mut offsets = mem::MaybeUninit::<libc::xdp_mmap_offsets>::zeroed();
    let mut length = size_of::<libc::xdp_mmap_offsets>() as libc::socklen_t;
    // SAFETY: the buffer has `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_MMAP_OFFSETS,
            offsets.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(("offsets", io::Error::last_os_error()));
    }
    // SAFETY: numbers, all of them zero or filled by the kernel.
    let offsets = unsafe { offsets.assume_init() };
    let bytes = offsets.tx.desc as usize + ENTRIES as usize * size_of::<libc::xdp_desc>();
    let ring = map(bytes, socket.as_raw_fd(), libc::XDP_PGOFF_TX_RING).map_err(at("ring"))?;

    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_COPY,
        sxdp_ifindex: interface,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    let length = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    let until = Instant::now() + LONGEST_RELEASE;
    // SAFETY: the address has `length` bytes.
    while unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        let error = io::Error::last_os_error();
        // The kernel gives the queue of a closed socket back some time after its end (net/xdp/xdp_umem.c).
        if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() > until {
            return Err(("bind", error));
        }
        thread::sleep(Duration::from_millis(20));
    }

    let descriptor = libc::xdp_desc {
        addr: 0,
        len: frame.len() as u32,
        options: 0,
    };
    // SAFETY: the kernel says where the first entry lies inside of what is mapped.
    let first = unsafe { ring.as_ptr().add(offsets.tx.desc as usize) };
    // SAFETY: it is aligned as the kernel laid it out, and the kernel reads it only after the count below.
    unsafe { first.cast::<libc::xdp_desc>().write(descriptor) };
    // SAFETY: as above.
    let producer = unsafe { ring.as_ptr().add(offsets.tx.producer as usize) };
    // SAFETY: the count is an aligned word that both sides access atomically.
    let producer = unsafe { AtomicU32::from_ptr(producer.cast()) };
    producer.store(1, Ordering::Release);
    // SAFETY: nothing is pointed to.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            ptr::null(),
            0,
        )
    };
    if sent < 0 {
        return Err(("send", io::Error::last_os_error()));
    }
    Ok(0)
}

/// Maps memory, or a ring of the socket; it stays until the process ends.
fn map(bytes: usize, socket: i32, offset: libc::off_t) -> io::Result<NonNull<u8>> {
    let anonymous = if socket < 0 { libc::MAP_ANONYMOUS } else { 0 };
    // SAFETY: new memory at an address that the kernel chooses.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE | anonymous,
            socket,
            offset,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}
