//! Sockets that speak with somebody who may be reached, and turn to another one.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use egress_tests::{
    dns::any_like,
    packets::{Ends, ICMP, ICMPV6},
    zone,
};
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    client::{Step, at, attempt, print},
    exchange::LIMIT,
    sys::{self, set_option},
};

/// Options of `probe turn`.
#[derive(Args, Debug)]
pub(crate) struct Turn {
    #[arg(value_enum)]
    way: Way,
    /// Whom to reach.
    address: IpAddr,
    port: u16,
    /// Somebody who may be reached.
    first: IpAddr,
}

/// Calls of the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Begin a datagram to the other (`MSG_MORE`), end it by a call to the first.
    Cork,
    /// Many datagrams in one buffer (`UDP_SEGMENT`).
    Segment,
    /// `splice` from a pipe.
    Splice,
    /// A kernel's ping socket that is connected to the first.
    Ping,
    /// A raw socket that is connected to the first.
    Raw,
    /// Two threads that connect the same socket to the one and the other, while a third sends.
    Race,
    /// Another socket at the same port as one that speaks with the first.
    SamePort,
    /// A listener that stops, and connects.
    Listener,
    /// A socket that was accepted, is disconnected, and connects.
    Accepted,
    /// The same, by `MSG_FASTOPEN`.
    AcceptedFast,
    /// The same, without a SYN (`TCP_REPAIR`).
    AcceptedRepair,
    /// A connection that failed, and connects elsewhere.
    Failed,
    /// An IPv6 socket that becomes one of IPv4 (`IPV6_ADDRFORM`).
    Form,
    /// A source route in a control message (`IP_RETOPTS`).
    Route,
    /// Another next hop (`IPV6_NEXTHOP`), or no gateway (`SO_DONTROUTE`).
    NextHop,
    /// Sent by the kernel later, and from a ring (`SO_TXTIME` is set).
    Options,
    /// A socket of shared memory communications, which becomes TCP.
    Smc,
}

impl Turn {
    pub(crate) fn run(&self) -> Result<()> {
        print(&attempt(|| self.attempt()))
    }

    fn open(&self, kind: Type, protocol: i32) -> Step<Socket> {
        let domain = Domain::for_address(self.to());
        let socket =
            Socket::new(domain, kind, Some(Protocol::from(protocol))).map_err(at("socket"))?;
        for set in [Socket::set_read_timeout, Socket::set_write_timeout] {
            set(&socket, Some(LIMIT)).map_err(at("socket"))?;
        }
        Ok(socket)
    }

    fn datagrams(&self) -> Step<Socket> {
        self.open(Type::DGRAM, libc::IPPROTO_UDP)
    }

    fn stream(&self) -> Step<Socket> {
        self.open(Type::STREAM, libc::IPPROTO_TCP)
    }

    fn to(&self) -> SocketAddr {
        // For a raw socket the port is a protocol.
        let port = if self.way == Way::Raw { 0 } else { self.port };
        (self.address, port).into()
    }

    fn attempt(&self) -> Step<u16> {
        let (to, first) = (
            SockAddr::from(self.to()),
            SockAddr::from(SocketAddr::new(self.first, self.to().port())),
        );
        let sent = |result: io::Result<usize>| result.map(|_| 0).map_err(at("send"));
        match self.way {
            Way::Cork => {
                let socket = self.datagrams()?;
                let begun = socket.send_to_with_flags(b"hello", &to, libc::MSG_MORE);
                begun.map_err(at("send"))?;
                sent(socket.send_to(b"more", &first))
            }
            Way::Segment => {
                let socket = self.datagrams()?;
                let size = 100_i32.to_ne_bytes();
                set_option(&socket, libc::IPPROTO_UDP, libc::UDP_SEGMENT, &size)
                    .map_err(at("socket"))?;
                sent(socket.send_to(&[7; 1000], &to))
            }
            Way::Splice => {
                let socket = self.datagrams()?;
                socket.connect(&to).map_err(at("connect"))?;
                let (end, begin) = nix::unistd::pipe()
                    .map_err(io::Error::from)
                    .map_err(at("socket"))?;
                nix::unistd::write(&begin, b"hello")
                    .map_err(io::Error::from)
                    .map_err(at("socket"))?;
                let flags = nix::fcntl::SpliceFFlags::empty();
                let moved = nix::fcntl::splice(&end, None, &socket, None, 5, flags);
                sent(moved.map_err(io::Error::from))
            }
            Way::Ping | Way::Raw => {
                let icmp = if self.address.is_ipv4() { ICMP } else { ICMPV6 };
                let is_ping = self.way == Way::Ping;
                let kind = if is_ping { Type::DGRAM } else { Type::RAW };
                let socket = self.open(kind, i32::from(icmp))?;
                socket.connect(&first).map_err(at("connect"))?;
                let ends = Ends {
                    from: self.address,
                    to: self.address,
                };
                let echo = if self.address.is_ipv4() { 8 } else { 128 };
                let message = ends.icmp(echo, b"hello");
                socket.send_to(&message, &to).map_err(at("send"))?;
                if is_ping {
                    // ICMPv6 ping sockets keep the error to themselves.
                    socket
                        .recv(&mut [std::mem::MaybeUninit::uninit(); 64])
                        .map_err(at("receive"))?;
                }
                Ok(0)
            }
            Way::Race => self.race(&to, &first),
            Way::SamePort => {
                let speaking = self.datagrams()?;
                let other = self.datagrams()?;
                for socket in [&speaking, &other] {
                    socket.set_reuse_port(true).map_err(at("socket"))?;
                }
                speaking
                    .bind(&any_like(self.address).into())
                    .map_err(at("bind"))?;
                let own = speaking.local_addr().map_err(at("bind"))?;
                other.bind(&own).map_err(at("bind"))?;
                speaking.send_to(b"hello", &first).map_err(at("first"))?;
                sent(other.send_to(b"hello", &to))
            }
            Way::Listener => {
                let socket = self.stream()?;
                socket
                    .bind(&any_like(self.address).into())
                    .map_err(at("bind"))?;
                socket.listen(1).map_err(at("listen"))?;
                socket
                    .shutdown(std::net::Shutdown::Both)
                    .map_err(at("listen"))?;
                sys::disconnect(&socket).map_err(at("listen"))?;
                socket.connect(&to).map_err(at("connect"))?;
                sent(socket.send(b"hello"))
            }
            Way::Accepted | Way::AcceptedFast | Way::AcceptedRepair => self.accepted(&to),
            Way::Failed => {
                let socket = self.stream()?;
                let nobody = SockAddr::from(SocketAddr::new(self.first, 9));
                if socket.connect(&nobody).is_ok() {
                    return Err(("first", io::ErrorKind::InvalidData.into()));
                }
                socket.connect(&to).map_err(at("connect"))?;
                sent(socket.send(b"hello"))
            }
            Way::Form => {
                let mapped = |address: IpAddr| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped(),
                    IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED,
                };
                let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))
                    .map_err(at("socket"))?;
                let first = SocketAddr::from((mapped(self.first), self.port));
                socket.connect(&first.into()).map_err(at("first"))?;
                socket.send(b"hello").map_err(at("first"))?;
                let v4 = libc::AF_INET.to_ne_bytes();
                // IPV6_ADDRFORM, include/uapi/linux/in6.h.
                set_option(&socket, libc::IPPROTO_IPV6, 1, &v4).map_err(at("socket"))?;
                sent(socket.send_to(b"hello", &to))
            }
            Way::Route => {
                let socket = self.datagrams()?;
                let IpAddr::V4(hop) = self.first else {
                    return Err(("socket", io::ErrorKind::Unsupported.into()));
                };
                sent(sys::send_with_route(&socket, b"hello", &to, hop))
            }
            Way::NextHop => {
                let socket = self.datagrams()?;
                if let (IpAddr::V6(_), Ok(IpAddr::V6(gateway))) =
                    (self.address, zone::WEB[1].parse::<IpAddr>())
                {
                    let hop = sys::bytes_of_v6(gateway);
                    set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_NEXTHOP, &hop)
                        .map_err(at("socket"))?;
                }
                sent(socket.send_to(b"hello", &to))
            }
            Way::Options => {
                let socket = self.datagrams()?;
                // SO_TXTIME: a clock and flags; then the class, and how fast.
                let clock = [1_i32.to_ne_bytes(), [0; 4]].concat();
                for (name, value) in [
                    (libc::SO_TXTIME, &clock[..]),
                    (libc::SO_PRIORITY, &6_i32.to_ne_bytes()),
                    (libc::SO_MAX_PACING_RATE, &1_000_000_u32.to_ne_bytes()),
                ] {
                    set_option(&socket, libc::SOL_SOCKET, name, value).map_err(at("socket"))?;
                }
                sent(socket.send_to(b"hello", &to))
            }
            Way::Smc => {
                // AF_SMC, and its protocols for IPv4 and IPv6.
                let protocol = Protocol::from(i32::from(self.address.is_ipv6()));
                let socket = Socket::new(Domain::from(43), Type::STREAM, Some(protocol))
                    .map_err(at("socket"))?;
                socket.connect(&to).map_err(at("connect"))?;
                sent(socket.send(b"hello"))
            }
        }
    }

    /// A socket of a call to oneself, which the kernel takes for one that answers.
    fn accepted(&self, to: &SockAddr) -> Step<u16> {
        let listener = self.stream()?;
        let loopback: IpAddr = if self.address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        };
        // Not to loopback, which would be the source of what it sends.
        listener
            .bind(&any_like(self.address).into())
            .map_err(at("bind"))?;
        listener.listen(1).map_err(at("listen"))?;
        let own = listener.local_addr().map_err(at("listen"))?;
        let port = own.as_socket().map_or(0, |own| own.port());
        let caller = self.stream()?;
        caller
            .connect(&SocketAddr::new(loopback, port).into())
            .map_err(at("first"))?;
        let (socket, _) = listener.accept().map_err(at("first"))?;
        socket
            .set_write_timeout(Some(LIMIT))
            .map_err(at("socket"))?;
        sys::disconnect(&socket).map_err(at("disconnect"))?;
        let repair = |on: i32| {
            set_option(
                &socket,
                libc::IPPROTO_TCP,
                libc::TCP_REPAIR,
                &on.to_ne_bytes(),
            )
        };
        let result = match self.way {
            Way::AcceptedFast => socket.send_to_with_flags(b"hello", to, libc::MSG_FASTOPEN),
            Way::AcceptedRepair => {
                repair(1).map_err(at("repair"))?;
                socket.connect(to).map_err(at("connect"))?;
                repair(0).map_err(at("repair"))?;
                socket.send(b"hello")
            }
            _ => {
                socket.connect(to).map_err(at("connect"))?;
                socket.send(b"hello")
            }
        };
        result.map(|_| 0).map_err(at("send"))
    }

    fn race(&self, to: &SockAddr, first: &SockAddr) -> Step<u16> {
        let socket = self.datagrams()?;
        socket.connect(to).map_err(at("connect"))?;
        let (mut refused, is_over) = (None, AtomicBool::new(false));
        thread::scope(|scope| {
            for peer in [to, first] {
                let (socket, is_over) = (&socket, &is_over);
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        // Its result does not count.
                        let _ = socket.connect(peer);
                    }
                });
            }
            let end = Instant::now() + Duration::from_millis(100);
            while Instant::now() < end {
                if let Err(error) = socket.send(b"hello")
                    && error.raw_os_error() == Some(libc::EPERM)
                {
                    refused = Some(error);
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        match refused {
            Some(error) => Err(("send", error)),
            None => Ok(0),
        }
    }
}
