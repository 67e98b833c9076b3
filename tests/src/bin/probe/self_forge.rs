//! A client that answers itself in the name of the resolver.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use egress_tests::{
    dns,
    packets::{ACK, Ends, PSH, TCP, UDP},
};
use hickory_proto::{
    op::{Message, OpCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sendto, socket};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    client::{Step, at, attempt, print},
    emit::link,
    sys,
};

/// Longest wait for a packet.
const LIMIT: Duration = Duration::from_millis(500);

/// Options of `probe self-forge`.
#[derive(Args, Debug)]
pub(crate) struct SelfForge {
    /// Name to ask for.
    name: String,
    /// Resolver that is asked, and in whose name the answer is forged.
    #[arg(long)]
    server: IpAddr,
    /// An address of this machine, to which the forged answer goes.
    #[arg(long)]
    to: IpAddr,
    /// Address in the forged answer.
    #[arg(long)]
    address: IpAddr,
    /// How the answer is sent.
    #[arg(long, value_enum, default_value = "raw")]
    way: Way,
    /// Ask over TCP.
    #[arg(long)]
    tcp: bool,
}

/// How a forged packet is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// A raw socket.
    Raw,
    /// A packet socket on loopback.
    Packet,
    /// A socket bound to the resolver's address (`IP_FREEBIND`, `IPV6_FREEBIND`).
    Freebind,
    /// A socket bound to the resolver's address (`IP_TRANSPARENT`, `IPV6_TRANSPARENT`).
    Transparent,
}

impl SelfForge {
    /// Asks, and answers itself; done when the forged answer has arrived.
    pub(crate) fn run(&self) -> Result<()> {
        let id = std::process::id() as u16;
        let kind = match self.address {
            IpAddr::V4(_) => RecordType::A,
            IpAddr::V6(_) => RecordType::AAAA,
        };
        let query = dns::query(id, &self.name, kind)?;
        let answer = self.answer(&query)?;
        let report = if self.tcp {
            let wire = self.watch()?;
            attempt(|| self.by_tcp(&wire, &query, &answer))
        } else {
            attempt(|| self.by_udp(&query, &answer))
        };
        print(&report)
    }

    fn answer(&self, query: &[u8]) -> Result<Vec<u8>> {
        let query = Message::from_vec(query)?;
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        for question in query.queries {
            let data = match self.address {
                IpAddr::V4(address) => RData::A(A(address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(address)),
            };
            answer.add_answer(Record::from_rdata(question.name().clone(), 300, data));
            answer.add_query(question);
        }
        answer.to_vec().context("cannot write the answer")
    }

    fn ends(&self) -> Ends {
        Ends {
            from: self.server,
            to: self.to,
        }
    }

    fn by_udp(&self, query: &[u8], answer: &[u8]) -> Step<u16> {
        let own = UdpSocket::bind(self.any()).map_err(at("bind"))?;
        own.set_read_timeout(Some(LIMIT)).map_err(at("socket"))?;
        own.send_to(query, (self.server, 53)).map_err(at("ask"))?;
        let port = own.local_addr().map_err(at("socket"))?.port();
        if matches!(self.way, Way::Raw | Way::Packet) {
            let ends = self.ends();
            self.inject(&ends.packet(UDP, &ends.udp(53, port, answer)))?;
        } else {
            self.lie_from_bound_socket(port, answer)?;
        }
        let mut buffer = [0; 2048];
        let end = Instant::now() + LIMIT;
        while Instant::now() < end {
            let (length, _) = own.recv_from(&mut buffer).map_err(at("receive"))?;
            if buffer[..length] == *answer {
                return Ok(port);
            }
        }
        Err(("receive", io::ErrorKind::TimedOut.into()))
    }

    fn lie_from_bound_socket(&self, port: u16, answer: &[u8]) -> Step<()> {
        let from = SocketAddr::from((self.server, 53));
        let socket = Socket::new(Domain::for_address(from), Type::DGRAM, Some(Protocol::UDP))
            .map_err(at("socket"))?;
        match (self.way, self.server.is_ipv4()) {
            (Way::Transparent, true) => socket.set_ip_transparent_v4(true),
            (Way::Transparent, false) => socket.set_ip_transparent_v6(true),
            (_, true) => socket.set_freebind_v4(true),
            (_, false) => socket.set_freebind_v6(true),
        }
        .map_err(at("socket"))?;
        socket.bind(&from.into()).map_err(at("bind"))?;
        let to = SocketAddr::from((self.to, port));
        socket.send_to(answer, &to.into()).map_err(at("forge"))?;
        Ok(())
    }

    /// Forges the next segment of a real connection to the resolver.
    fn by_tcp(&self, wire: &impl std::os::fd::AsRawFd, query: &[u8], answer: &[u8]) -> Step<u16> {
        let server = SocketAddr::from((self.server, 53));
        let mut stream = TcpStream::connect_timeout(&server, LIMIT).map_err(at("ask"))?;
        stream.set_read_timeout(Some(LIMIT)).map_err(at("socket"))?;
        let port = stream.local_addr().map_err(at("socket"))?.port();
        let numbers = self.numbers(wire, port).map_err(at("watch"))?;
        stream.write_all(&framed(query)).map_err(at("ask"))?;
        let ours = numbers.0.wrapping_add(framed(query).len() as u32);
        let ends = self.ends();
        let segment = ends.tcp((53, port), (numbers.1, ours), PSH | ACK, &framed(answer));
        self.inject(&ends.packet(TCP, &segment))?;
        let mut buffer = vec![0; framed(answer).len()];
        io::Read::read_exact(&mut stream, &mut buffer).map_err(at("receive"))?;
        Ok(port)
    }

    /// A packet socket that sees the resolver's segments.
    fn watch(&self) -> Result<std::os::fd::OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let wire = socket(
            AddressFamily::Packet,
            SockType::Datagram,
            flags,
            SockProtocol::EthAll,
        )
        .context("cannot make a packet socket")?;
        nix::sys::socket::bind(wire.as_raw_fd(), &sys::every_protocol("eth0")?)?;
        Ok(wire)
    }

    /// The next sequence number of each end, from the resolver's SYN and ACK: ours, its.
    fn numbers(&self, wire: &impl std::os::fd::AsRawFd, port: u16) -> io::Result<(u32, u32)> {
        let mut buffer = [0; 2048];
        let header = if self.server.is_ipv4() { 20 } else { 40 };
        for _ in 0..1000 {
            let flags = MsgFlags::MSG_DONTWAIT;
            let length = nix::sys::socket::recv(wire.as_raw_fd(), &mut buffer, flags)?;
            let Some(segment) = buffer[..length].get(header..) else {
                continue;
            };
            let word = |at: usize| -> Option<u32> {
                Some(u32::from_be_bytes(
                    segment.get(at..at + 4)?.try_into().ok()?,
                ))
            };
            let ports = 53 << 16 | u32::from(port);
            if word(0) == Some(ports)
                && segment.get(13).is_some_and(|flags| flags & 0x3f == 0x12)
                && let (Some(its), Some(ours)) = (word(4), word(8))
            {
                return Ok((ours, its.wrapping_add(1)));
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Sends a packet with a header of ours.
    fn inject(&self, packet: &[u8]) -> Step<()> {
        if self.way == Way::Packet {
            return on_loopback(packet, self.to.is_ipv4()).map_err(at("forge"));
        }
        let to = SocketAddr::from((self.to, 0));
        let protocol = Some(Protocol::from(255));
        let raw =
            Socket::new(Domain::for_address(to), Type::RAW, protocol).map_err(at("socket"))?;
        if self.to.is_ipv4() {
            raw.set_header_included_v4(true).map_err(at("socket"))?;
        } else {
            raw.set_header_included_v6(true).map_err(at("socket"))?;
        }
        raw.send_to(packet, &to.into()).map_err(at("forge"))?;
        Ok(())
    }

    const fn any(&self) -> SocketAddr {
        match self.server {
            IpAddr::V4(_) => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            IpAddr::V6(_) => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
        }
    }
}

/// Puts a packet on loopback past the IP stack.
fn on_loopback(packet: &[u8], is_v4: bool) -> io::Result<()> {
    let link = link("lo").map_err(|error| io::Error::other(error.to_string()))?;
    let mut frame = vec![0; 12];
    frame.extend(if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend_from_slice(packet);
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    sendto(socket.as_raw_fd(), &frame, &link, MsgFlags::empty())?;
    Ok(())
}

/// A message as TCP carries it: behind its length.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    framed
}
