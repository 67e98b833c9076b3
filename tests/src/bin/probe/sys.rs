//! System calls that no safe wrapper offers.

#![expect(unsafe_code, reason = "system calls")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, RawFd},
};

use anyhow::{Context as _, Result};
use io_uring::{IoUring, opcode, squeue, types};
use nix::{
    libc,
    sys::socket::{LinkAddr, SockaddrLike as _},
};
use socket2::{SockAddr, Socket};

/// Sets any socket option.
pub(crate) fn set_option(
    socket: &impl AsFd,
    level: i32,
    name: i32,
    value: &[u8],
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open, and `value` has `length` bytes.
    let result = unsafe { libc::setsockopt(socket, level, name, value.as_ptr().cast(), length) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Address by which a packet socket hears every protocol of an interface.
pub(crate) fn every_protocol(interface: &str) -> Result<LinkAddr> {
    let index = nix::net::if_::if_nametoindex(interface).context("no such interface")?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: it points to a whole sockaddr_ll of this length.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) }
        .context("not a link address")
}

/// Dissolves the association of a socket: connects it to nobody.
pub(crate) fn disconnect(socket: &impl AsFd) -> io::Result<()> {
    let address = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as u16,
        sa_data: [0; 14],
    };
    let length = size_of::<libc::sockaddr>() as u32;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open, and the address has `length` bytes.
    let result = unsafe { libc::connect(socket, &raw const address, length) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends the same bytes to several addresses in one call; how many were sent.
pub(crate) fn sendmmsg(socket: &impl AsFd, bytes: &[u8], to: &[SockAddr]) -> io::Result<usize> {
    let mut part = part(bytes);
    let mut messages: Vec<libc::mmsghdr> = to
        .iter()
        .map(|to| libc::mmsghdr {
            msg_hdr: header(&mut part, to),
            msg_len: 0,
        })
        .collect();
    let socket = socket.as_fd().as_raw_fd();
    let count = messages.len() as u32;
    // SAFETY: every header points to `part` and to an address of `to`, which both live until the call ends.
    let sent = unsafe { libc::sendmmsg(socket, messages.as_mut_ptr(), count, 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(sent as usize)
}

/// Sends with a source route in a control message: by way of `hop`.
pub(crate) fn send_with_route(
    socket: &impl AsFd,
    bytes: &[u8],
    to: &SockAddr,
    hop: std::net::Ipv4Addr,
) -> io::Result<usize> {
    let [a, b, c, d] = hop.octets();
    let data = [131, 7, 4, a, b, c, d, 0];
    let head = size_of::<libc::cmsghdr>();
    // The length, level and kind of `struct cmsghdr`, and what follows it; in words, for its alignment.
    let mut control = vec![head + data.len()];
    let [a, b, c, d] = libc::IPPROTO_IP.to_ne_bytes();
    let [e, f, g, h] = libc::IP_RETOPTS.to_ne_bytes();
    control.push(usize::from_ne_bytes([a, b, c, d, e, f, g, h]));
    control.push(usize::from_ne_bytes(data));
    let mut part = part(bytes);
    let mut message = header(&mut part, to);
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = head + data.len();
    // SAFETY: the header points to `part`, `to` and `control`, which all live until the call ends.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, 0) };
    usize::try_from(sent).map_err(|_negative| io::Error::last_os_error())
}

/// `struct sockaddr_in6` with this address.
pub(crate) fn bytes_of_v6(address: std::net::Ipv6Addr) -> Vec<u8> {
    let mut bytes = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
    bytes.extend([0; 6]);
    bytes.extend(address.octets());
    bytes.extend([0; 4]);
    bytes
}

fn part(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn header(part: &mut libc::iovec, to: &SockAddr) -> libc::msghdr {
    libc::msghdr {
        msg_name: to.as_ptr().cast_mut().cast(),
        msg_namelen: to.len(),
        msg_iov: part,
        msg_iovlen: 1,
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

/// Submits one entry to a ring and waits for what becomes of it.
pub(crate) fn submit(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<i32> {
    // SAFETY: what the entry points to outlives this function, and it waits for the completion.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = loop {
        if let Some(completion) = ring.completion().next() {
            break completion.result();
        }
        std::thread::yield_now();
    };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(result)
}

/// Sends a datagram by a ring.
pub(crate) fn send_message(
    ring: &mut IoUring,
    socket: &impl AsFd,
    bytes: &[u8],
    to: &SockAddr,
) -> io::Result<()> {
    let mut part = part(bytes);
    let header = header(&mut part, to);
    let socket = types::Fd(socket.as_fd().as_raw_fd());
    let entry = opcode::SendMsg::new(socket, &raw const header).build();
    submit(ring, &entry).map(|_| ())
}

/// A file without a name.
pub(crate) fn memory_file() -> io::Result<std::fs::File> {
    // SAFETY: the name is a C string.
    let descriptor = unsafe { libc::memfd_create(c"probe".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { std::fs::File::from_raw_fd(descriptor) })
}

/// Takes over a socket that another process handed to this one.
pub(crate) fn adopt(descriptor: RawFd) -> Socket {
    // SAFETY: the descriptor came with a message and is nobody else's.
    unsafe { Socket::from_raw_fd(descriptor) }
}
