//! Bytes that somebody else made: through raw sockets and packet sockets.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd as _,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::packets::{checksum, from_hex};
use nix::{
    ifaddrs::getifaddrs,
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, sendto, socket,
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    client::{Step, at, attempt, hex, print},
    sys,
};

/// Options of `probe emit`.
#[derive(Args, Debug)]
pub(crate) struct Emit {
    /// Where the kernel shall send it.
    address: IpAddr,
    /// The bytes, in hexadecimal.
    bytes: String,
    /// They begin with an IP header.
    #[arg(long)]
    header_included: bool,
    /// Protocol of the raw socket.
    #[arg(long, default_value_t = 255)]
    protocol: i32,
    /// Hop limit, where the kernel writes the header.
    #[arg(long)]
    hops: Option<u32>,
    /// Interface, for addresses of a link.
    #[arg(long)]
    interface: Option<String>,
    /// Say `open` once the socket is there, and send when this file is.
    #[arg(long)]
    once: Option<PathBuf>,
}

impl Emit {
    pub(crate) fn run(&self) -> Result<()> {
        let bytes = from_hex(&self.bytes).context("not hexadecimal")?;
        print(&attempt(|| self.attempt(&bytes)))
    }

    fn attempt(&self, bytes: &[u8]) -> Step<u16> {
        let to = self.destination().map_err(at("socket"))?;
        let protocol = Some(Protocol::from(self.protocol));
        let socket =
            Socket::new(Domain::for_address(to), Type::RAW, protocol).map_err(at("socket"))?;
        if self.header_included && to.is_ipv4() {
            socket.set_header_included_v4(true).map_err(at("socket"))?;
        } else if self.header_included {
            socket.set_header_included_v6(true).map_err(at("socket"))?;
        }
        socket.set_broadcast(true).map_err(at("socket"))?;
        if let Some(interface) = &self.interface {
            socket
                .bind_device(Some(interface.as_bytes()))
                .map_err(at("socket"))?;
        }
        if let Some(hops) = self.hops {
            if to.is_ipv4() {
                socket.set_ttl_v4(hops).map_err(at("socket"))?;
            } else {
                socket.set_unicast_hops_v6(hops).map_err(at("socket"))?;
                socket.set_multicast_hops_v6(hops).map_err(at("socket"))?;
            }
        }
        if let Some(file) = &self.once {
            println!("open");
            while !file.exists() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        socket.send_to(bytes, &to.into()).map_err(at("send"))?;
        Ok(0)
    }

    fn destination(&self) -> io::Result<SocketAddr> {
        Ok(match (self.address, &self.interface) {
            (IpAddr::V6(address), Some(interface)) => {
                let index = if_nametoindex(interface.as_str())?;
                SocketAddrV6::new(address, 0, 0, index).into()
            }
            _ => (self.address, 0).into(),
        })
    }
}

/// Options of `probe emit-frame`.
#[derive(Args, Debug)]
pub(crate) struct EmitFrame {
    /// What follows the link-layer header, in hexadecimal.
    bytes: String,
    /// Interface to send on.
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// Hardware address of the receiver.
    #[arg(long, default_value = "00:00:00:00:00:00")]
    gateway: String,
    /// Ethertype, in hexadecimal.
    #[arg(long, default_value = "0800")]
    ethertype: String,
    /// Go past the queueing discipline.
    #[arg(long)]
    bypass_qdisc: bool,
}

impl EmitFrame {
    pub(crate) fn run(&self) -> Result<()> {
        let kind = u16::from_str_radix(&self.ethertype, 16).context("not hexadecimal")?;
        let link = link(&self.interface)?;
        let own = link.addr().unwrap_or_default();
        let mut frame = hardware_address(&self.gateway)?.to_vec();
        frame.extend(own);
        frame.extend(kind.to_be_bytes());
        frame.extend(from_hex(&self.bytes).context("not hexadecimal")?);
        let report = attempt(|| {
            let error = |error: nix::Error| ("send", io::Error::from(error));
            let kind = SockType::Raw;
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Packet, kind, flags, None).map_err(error)?;
            if self.bypass_qdisc {
                let (level, name) = (nix::libc::SOL_PACKET, nix::libc::PACKET_QDISC_BYPASS);
                sys::set_option(&socket, level, name, &1_i32.to_ne_bytes())
                    .map_err(at("socket"))?;
            }
            let flags = MsgFlags::empty();
            sendto(socket.as_raw_fd(), &frame, &link, flags).map_err(error)?;
            Ok(0)
        });
        print(&report)
    }
}

/// The link address by which a packet socket names an interface; the address list carries it.
pub(crate) fn link(interface: &str) -> Result<LinkAddr> {
    getifaddrs()
        .context("cannot list the interfaces")?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .context("no such interface")
}

pub(crate) fn hardware_address(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16))
        .collect::<Result<_, _>>()
        .context("not a hardware address")?;
    bytes
        .try_into()
        .ok()
        .context("a hardware address has six bytes")
}

/// Options of `probe watch`.
#[derive(Args, Debug)]
pub(crate) struct Watch {
    /// Interface to watch.
    interface: String,
}

impl Watch {
    /// Prints `wire PROTOCOL SOURCE DESTINATION BYTES` for each packet that comes in; `-` where it is no IP packet.
    pub(crate) fn run(&self) -> Result<()> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .context("cannot make a packet socket")?;
        nix::sys::socket::bind(socket.as_raw_fd(), &sys::every_protocol(&self.interface)?)
            .context("cannot bind")?;
        let (level, name) = (nix::libc::SOL_PACKET, nix::libc::PACKET_IGNORE_OUTGOING);
        sys::set_option(&socket, level, name, &1_i32.to_ne_bytes()).context("cannot set")?;
        println!("ready");
        let mut buffer = vec![0; 65_536];
        loop {
            let length = nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .context("cannot receive")?;
            let bytes = &buffer[..length];
            match ends(bytes) {
                Some((protocol, from, to)) => {
                    println!("wire {protocol} {from} {to} {}", hex(bytes));
                }
                None => println!("wire - - - {}", hex(bytes)),
            }
        }
    }
}

/// Protocol number, source and destination of a packet.
fn ends(bytes: &[u8]) -> Option<(u8, IpAddr, IpAddr)> {
    let v4 = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(octets.into())
    };
    let v6 = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
        Some(octets.into())
    };
    match bytes.first()? >> 4 {
        4 if checksum(bytes.get(..20)?) == 0 || bytes.first()? & 15 > 5 => {
            Some((*bytes.get(9)?, v4(12)?, v4(16)?))
        }
        6 => Some((*bytes.get(6)?, v6(8)?, v6(24)?)),
        _ => None,
    }
}
