//! Packets that no socket of their protocol sends.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsRawFd as _,
};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    client::{Step, at, attempt, print},
    ping::checksum,
};

/// Options of `probe frame`.
#[derive(Args, Debug)]
pub(crate) struct Frame {
    address: Ipv4Addr,
    port: u16,
    /// Interface to send on.
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// Source address in the packet.
    #[arg(long)]
    source: Ipv4Addr,
    /// Hardware address of the next hop.
    #[arg(long)]
    gateway: String,
    /// Number of frames.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Ethertype in place of IPv4's, in hexadecimal.
    #[arg(long)]
    ethertype: Option<String>,
}

impl Frame {
    pub(crate) fn run(&self) -> Result<()> {
        let gateway = hardware_address(&self.gateway)?;
        // The address list carries what a packet socket needs to name an interface.
        let link = getifaddrs()
            .context("cannot list the interfaces")?
            .filter(|entry| entry.interface_name == self.interface)
            .find_map(|entry| entry.address?.as_link_addr().copied())
            .context("no such interface")?;
        let own = link
            .addr()
            .context("the interface has no hardware address")?;
        let kind = match &self.ethertype {
            Some(text) => u16::from_str_radix(text, 16).context("not hexadecimal")?,
            None => 0x0800,
        };
        let mut frame = gateway.to_vec();
        frame.extend_from_slice(&own);
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&packet(self.source, self.address, self.port));
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .context("cannot make a packet socket")?;
        let report = attempt(|| {
            for _ in 0..self.count {
                sendto(socket.as_raw_fd(), &frame, &link, MsgFlags::empty())
                    .map_err(|error| ("send", io::Error::from(error)))?;
            }
            Ok(0)
        });
        print(&report)
    }
}

/// Options of `probe raw-ip`.
#[derive(Args, Debug)]
pub(crate) struct RawIp {
    address: IpAddr,
    port: u16,
    /// Write the IPv4 header too, with this source address.
    #[arg(long)]
    source: Option<Ipv4Addr>,
    /// Add an IPv4 option of this many bytes; needs `--source`.
    #[arg(long, default_value_t = 0)]
    options: usize,
    /// Send it as the later fragment of a datagram; needs `--source`.
    #[arg(long)]
    fragment: bool,
}

impl RawIp {
    pub(crate) fn run(&self) -> Result<()> {
        print(&attempt(|| self.attempt()))
    }

    fn attempt(&self) -> Step<u16> {
        let to = SocketAddr::from((self.address, 0));
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::UDP))
            .map_err(at("socket"))?;
        let bytes = match (self.source, self.address) {
            (Some(source), IpAddr::V4(address)) => {
                socket.set_header_included_v4(true).map_err(at("socket"))?;
                let mut bytes = packet(source, address, self.port);
                if self.fragment {
                    bytes[6..8].copy_from_slice(&185_u16.to_be_bytes());
                }
                with_options(&bytes, self.options)
            }
            _ => datagram(self.port),
        };
        socket.send_to(&bytes, &to.into()).map_err(at("send"))?;
        Ok(0)
    }
}

/// Inserts NOP options into an IPv4 packet and corrects its header.
fn with_options(packet: &[u8], bytes: usize) -> Vec<u8> {
    let bytes = bytes.div_ceil(4) * 4;
    let mut long = packet[..20].to_vec();
    long.extend(vec![1; bytes]);
    long.extend_from_slice(&packet[20..]);
    let header = 20 + bytes;
    long[0] = 0x40 | (header / 4) as u8;
    let total = (long.len() as u16).to_be_bytes();
    long[2..4].copy_from_slice(&total);
    long[10..12].fill(0);
    let sum = checksum(&long[..header]).to_be_bytes();
    long[10..12].copy_from_slice(&sum);
    long
}

/// A UDP datagram of `hello` without a checksum, from port 7.
fn datagram(port: u16) -> Vec<u8> {
    let mut bytes = 7_u16.to_be_bytes().to_vec();
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes.extend_from_slice(&13_u16.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(b"hello");
    bytes
}

/// The same in an IPv4 packet.
fn packet(source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> Vec<u8> {
    let datagram = datagram(port);
    let total = (20 + datagram.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&total.to_be_bytes());
    header.extend_from_slice(&[0x12, 0x34, 0, 0, 64, 17, 0, 0]);
    header.extend_from_slice(&source.octets());
    header.extend_from_slice(&destination.octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header.extend_from_slice(&datagram);
    header
}

fn hardware_address(text: &str) -> Result<[u8; 6]> {
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
