//! Packets that no socket of their protocol sends.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::dns;
use hickory_proto::{
    op::{Message, OpCode},
    rr::{RData, Record, RecordType, rdata::A},
};
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

/// Options of `probe self-forge`.
#[derive(Args, Debug)]
pub(crate) struct SelfForge {
    /// Name to ask for.
    name: String,
    /// Resolver that is asked, and in whose name the answer is forged.
    #[arg(long)]
    server: Ipv4Addr,
    /// An address of this machine, to which the forged answer goes.
    #[arg(long)]
    to: Ipv4Addr,
    /// Address in the forged answer.
    #[arg(long)]
    address: Ipv4Addr,
}

impl SelfForge {
    /// Asks, and answers itself through a raw socket.
    pub(crate) fn run(&self) -> Result<()> {
        let id = std::process::id() as u16;
        let query = dns::query(id, &self.name, RecordType::A)?;
        let own = UdpSocket::bind("0.0.0.0:0").context("cannot bind")?;
        own.set_read_timeout(Some(Duration::from_millis(500)))?;
        own.send_to(&query, (self.server, 53))
            .context("cannot ask")?;
        let query = Message::from_vec(&query)?;
        let mut answer = Message::response(id, OpCode::Query);
        for question in query.queries {
            let data = RData::A(A(self.address));
            answer.add_answer(Record::from_rdata(question.name().clone(), 300, data));
            answer.add_query(question);
        }
        let datagram = udp(53, own.local_addr()?.port(), &answer.to_vec()?);
        let bytes = ipv4(self.server, self.to, &datagram);
        let report = attempt(|| {
            let raw =
                Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).map_err(at("socket"))?;
            raw.set_header_included_v4(true).map_err(at("socket"))?;
            let to = SocketAddr::from((self.to, 0));
            raw.send_to(&bytes, &to.into()).map_err(at("send"))?;
            own.recv_from(&mut [0; 2048]).map_err(at("receive"))?;
            Ok(0)
        });
        print(&report)
    }
}

/// Options of `probe self-call`.
#[derive(Args, Debug)]
pub(crate) struct SelfCall {
    /// Far end that shall seem to have called.
    far: Ipv4Addr,
    /// Its port.
    port: u16,
    /// An address of this machine, to which the forged call goes.
    #[arg(long)]
    to: Ipv4Addr,
}

impl SelfCall {
    /// Forges a datagram from the far end to itself through a raw socket, and answers it.
    pub(crate) fn run(&self) -> Result<()> {
        let own = UdpSocket::bind("0.0.0.0:0").context("cannot bind")?;
        own.set_read_timeout(Some(Duration::from_millis(500)))?;
        let datagram = udp(self.port, own.local_addr()?.port(), b"call");
        let bytes = ipv4(self.far, self.to, &datagram);
        let report = attempt(|| {
            let raw =
                Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).map_err(at("socket"))?;
            raw.set_header_included_v4(true).map_err(at("socket"))?;
            let to = SocketAddr::from((self.to, 0));
            raw.send_to(&bytes, &to.into()).map_err(at("forge"))?;
            let (_, far) = own.recv_from(&mut [0; 2048]).map_err(at("receive"))?;
            own.send_to(b"answer", far).map_err(at("send"))?;
            Ok(0)
        });
        print(&report)
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

/// A UDP datagram of `hello`.
fn datagram(port: u16) -> Vec<u8> {
    udp(7, port, b"hello")
}

/// A UDP datagram without a checksum.
fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = from.to_be_bytes().to_vec();
    bytes.extend_from_slice(&to.to_be_bytes());
    bytes.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(payload);
    bytes
}

/// `hello` in an IPv4 packet.
fn packet(source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> Vec<u8> {
    ipv4(source, destination, &datagram(port))
}

/// A UDP datagram in an IPv4 packet.
fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, datagram: &[u8]) -> Vec<u8> {
    let total = (20 + datagram.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&total.to_be_bytes());
    header.extend_from_slice(&[0x12, 0x34, 0, 0, 64, 17, 0, 0]);
    header.extend_from_slice(&source.octets());
    header.extend_from_slice(&destination.octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header.extend_from_slice(datagram);
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
