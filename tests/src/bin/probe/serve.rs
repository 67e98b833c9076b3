//! TCP echo and HTTP, UDP echo.

use std::{
    io::{IoSlice, IoSliceMut, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
    recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::{name_of, wait_for};

/// Options of `probe serve`.
#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// TCP ports.
    #[arg(long, value_delimiter = ',')]
    tcp: Vec<u16>,
    /// UDP ports.
    #[arg(long, value_delimiter = ',')]
    udp: Vec<u16>,
    /// UDP ports of IPv4, each peer answered by a socket of its own that is connected to it.
    #[arg(long, value_delimiter = ',')]
    udp_connected: Vec<u16>,
    /// A file without which these answer nobody.
    #[arg(long)]
    until: Option<PathBuf>,
    /// TCP ports, by MPTCP where the client speaks it.
    #[arg(long, value_delimiter = ',')]
    mptcp: Vec<u16>,
    /// TCP ports whose connections are accepted by the kernel and by nobody else.
    #[arg(long, value_delimiter = ',')]
    silent: Vec<u16>,
}

impl Serve {
    pub(crate) fn run(&self) -> Result<()> {
        for address in [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ] {
            for (ports, protocol) in [(&self.tcp, Protocol::TCP), (&self.mptcp, Protocol::MPTCP)] {
                for port in ports {
                    let listener = listen((address, *port).into(), protocol)?;
                    thread::spawn(move || accept(&listener));
                }
            }
            for port in &self.silent {
                std::mem::forget(listen((address, *port).into(), Protocol::TCP)?);
            }
            for port in &self.udp {
                let socket = bind_udp((address, *port).into())?;
                thread::spawn(move || echo_datagrams(&socket));
            }
        }
        for port in &self.udp_connected {
            let socket = bind_again(*port)?;
            let until = self.until.clone();
            thread::spawn(move || answer_by_others(&socket, until.as_deref()));
        }
        println!("ready");
        loop {
            thread::park();
        }
    }
}

fn listen(address: SocketAddr, protocol: Protocol) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket
        .bind(&address.into())
        .with_context(|| format!("cannot bind {address}"))?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else {
            continue;
        };
        println!("tcp {local} {peer}");
        thread::spawn(move || serve_stream(stream, local));
    }
}

/// Answers `GET` as a web server does and everything else by its echo.
fn serve_stream(mut stream: TcpStream, local: SocketAddr) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 16_384];
    while let Ok(length) = stream.read(&mut buffer) {
        let bytes = &buffer[..length];
        if bytes.is_empty() {
            return;
        }
        if bytes.starts_with(b"GET ") {
            let body = format!("hello from {local}\n");
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            return;
        }
        if stream.write_all(bytes).is_err() {
            return;
        }
    }
}

/// A UDP socket that reports to which of our addresses a datagram was sent.
fn bind_udp(address: SocketAddr) -> Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    socket
        .bind(&address.into())
        .with_context(|| format!("cannot bind {address}"))?;
    Ok(socket.into())
}

/// Echoes datagrams from the address that they were sent to, by sendmsg on the one unconnected socket.
fn echo_datagrams(socket: &UdpSocket) {
    let port = socket.local_addr().map_or(0, |address| address.port());
    let mut buffer = [0; 65_536];
    loop {
        let mut space = nix::cmsg_space!(nix::libc::in6_pktinfo, nix::libc::in_pktinfo);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let Ok(message) = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        ) else {
            continue;
        };
        let length = message.bytes;
        let (Some(peer), Ok(mut controls)) = (message.address, message.cmsgs()) else {
            continue;
        };
        let Some(control) = controls.next() else {
            continue;
        };
        match control {
            ControlMessageOwned::Ipv4PacketInfo(mut info) => {
                let Some(to) = peer.as_sockaddr_in().copied() else {
                    continue;
                };
                let local = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
                let from = SocketAddr::from((to.ip(), to.port()));
                println!("udp {local}:{port} {from} {length}");
                info.ipi_ifindex = 0;
                info.ipi_spec_dst = info.ipi_addr;
                let answer = answer(socket, &buffer[..length]);
                let _ = sendmsg::<SockaddrIn>(
                    socket.as_raw_fd(),
                    &[IoSlice::new(&answer)],
                    &[ControlMessage::Ipv4PacketInfo(&info)],
                    MsgFlags::empty(),
                    Some(&to),
                );
            }
            ControlMessageOwned::Ipv6PacketInfo(mut info) => {
                let Some(to) = peer.as_sockaddr_in6().copied() else {
                    continue;
                };
                let local = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let from = SocketAddr::from((to.ip(), to.port()));
                println!("udp [{local}]:{port} {from} {length}");
                info.ipi6_ifindex = 0;
                let answer = answer(socket, &buffer[..length]);
                let _ = sendmsg::<SockaddrIn6>(
                    socket.as_raw_fd(),
                    &[IoSlice::new(&answer)],
                    &[ControlMessage::Ipv6PacketInfo(&info)],
                    MsgFlags::empty(),
                    Some(&to),
                );
            }
            _ => {}
        }
    }
}

/// A UDP socket at a port that others have, too.
fn bind_again(port: u16) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket
        .bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())
        .with_context(|| format!("cannot bind port {port}"))?;
    Ok(socket.into())
}

/// Echoes each datagram by a new socket at the same port, connected to who sent it, once a file is there.
fn answer_by_others(socket: &UdpSocket, until: Option<&Path>) {
    let port = socket.local_addr().map_or(0, |address| address.port());
    let mut buffer = [0; 1_500];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        println!("udp {peer} called");
        wait_for(until);
        let answered = bind_again(port).and_then(|own| {
            own.connect(peer)?;
            own.send(&buffer[..length])?;
            Ok(())
        });
        println!(
            "udp {peer} {}",
            if answered.is_ok() {
                "answered"
            } else {
                "refused"
            }
        );
    }
}

/// The echo; `relay ADDRESS PORT` first sends a datagram there from this very socket and reports how that went.
fn answer(socket: &UdpSocket, bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let mut words = text.split(' ');
    if words.next() != Some("relay") {
        return bytes.to_vec();
    }
    let to = words.next().and_then(|word| word.parse::<IpAddr>().ok());
    let port = words.next().and_then(|word| word.parse::<u16>().ok());
    let (Some(to), Some(port)) = (to, port) else {
        return b"relayed nowhere".to_vec();
    };
    match socket.send_to(b"relayed", (to, port)) {
        Ok(_) => b"relayed ok".to_vec(),
        Err(error) => format!("relayed {}", name_of(&error)).into_bytes(),
    }
}
