//! One exchange by TCP or datagrams, over a socket with unusual options.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use egress_tests::packets::from_hex;
use nix::{
    libc,
    sys::socket::{ControlMessage, MsgFlags, SockaddrIn, SockaddrIn6, sendmsg},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    client::{Step, at, attempt, print},
    sys,
};

/// Longest wait for a handshake and for the echo.
pub(crate) const LIMIT: Duration = Duration::from_millis(700);
/// Text that is sent.
const TEXT: &[u8] = b"hello";

/// Options of `probe exchange`.
#[derive(Args, Debug)]
pub(crate) struct Exchange {
    address: IpAddr,
    port: u16,
    #[command(flatten)]
    options: Options,
}

/// What is unusual about a socket.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// A stream socket; else datagrams.
    #[arg(long)]
    pub(crate) tcp: bool,
    /// Connect the datagram socket.
    #[arg(long)]
    pub(crate) connected: bool,
    /// Wait for no echo.
    #[arg(long)]
    pub(crate) no_echo: bool,
    /// Protocol number in place of TCP's or UDP's.
    #[arg(long)]
    pub(crate) protocol: Option<i32>,
    /// `SO_MARK`.
    #[arg(long)]
    pub(crate) mark: Option<u32>,
    /// `SO_BINDTODEVICE`.
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// `IP_UNICAST_IF`, `IPV6_UNICAST_IF`.
    #[arg(long)]
    pub(crate) unicast_device: Option<String>,
    /// `SO_ZEROCOPY`, and `MSG_ZEROCOPY` at the send.
    #[arg(long)]
    pub(crate) zerocopy: bool,
    /// Source address, from a control message (`IP_PKTINFO`).
    #[arg(long)]
    pub(crate) packet_info: Option<IpAddr>,
    /// Device to send over, from the same control message.
    #[arg(long, requires = "packet_info")]
    pub(crate) packet_info_device: Option<String>,
    /// `IP_OPTIONS`, in hexadecimal.
    #[arg(long)]
    pub(crate) ip_options: Option<String>,
    /// `IPV6_HOPOPTS`, in hexadecimal.
    #[arg(long)]
    pub(crate) hop_options: Option<String>,
    /// `IPV6_DSTOPTS`, in hexadecimal.
    #[arg(long)]
    pub(crate) destination_options: Option<String>,
    /// `IPV6_RTHDR`, in hexadecimal.
    #[arg(long)]
    pub(crate) routing_header: Option<String>,
    /// Address to bind to.
    #[arg(long)]
    pub(crate) from: Option<SocketAddr>,
    /// `IP_FREEBIND`, `IPV6_FREEBIND`.
    #[arg(long)]
    pub(crate) freebind: bool,
    /// `IP_TRANSPARENT`, `IPV6_TRANSPARENT`.
    #[arg(long)]
    pub(crate) transparent: bool,
    /// `SO_BROADCAST`.
    #[arg(long)]
    pub(crate) broadcast: bool,
    /// What to send, in hexadecimal.
    #[arg(long)]
    pub(crate) bytes: Option<String>,
}

impl Exchange {
    pub(crate) fn run(&self) -> Result<()> {
        print(&attempt(|| {
            let to = SocketAddr::from((self.address, self.port));
            let socket = self.options.open(to).map_err(at("socket"))?;
            self.options.exchange(socket, to)
        }))
    }
}

impl Options {
    /// A socket with these options.
    pub(crate) fn open(&self, to: SocketAddr) -> io::Result<Socket> {
        let (kind, protocol) = if self.tcp {
            (Type::STREAM, Protocol::TCP)
        } else {
            (Type::DGRAM, Protocol::UDP)
        };
        let protocol = self.protocol.map_or(protocol, Protocol::from);
        let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
        self.set(&socket, to.is_ipv4())?;
        if let Some(from) = self.from {
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
        }
        socket.set_read_timeout(Some(LIMIT))?;
        socket.set_write_timeout(Some(LIMIT))?;
        Ok(socket)
    }

    fn set(&self, socket: &Socket, is_v4: bool) -> io::Result<()> {
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        if let Some(device) = &self.unicast_device {
            let index = nix::net::if_::if_nametoindex(device.as_str())?.to_be_bytes();
            let (level, name) = if is_v4 {
                (libc::IPPROTO_IP, libc::IP_UNICAST_IF)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF)
            };
            sys::set_option(socket, level, name, &index)?;
        }
        socket.set_broadcast(self.broadcast)?;
        if self.zerocopy {
            let on = 1_i32.to_ne_bytes();
            sys::set_option(socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &on)?;
        }
        if self.freebind {
            if is_v4 {
                socket.set_freebind_v4(true)?;
            } else {
                socket.set_freebind_v6(true)?;
            }
        }
        if self.transparent {
            if is_v4 {
                socket.set_ip_transparent_v4(true)?;
            } else {
                socket.set_ip_transparent_v6(true)?;
            }
        }
        for (level, name, value) in [
            (libc::IPPROTO_IP, libc::IP_OPTIONS, &self.ip_options),
            (libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, &self.hop_options),
            (
                libc::IPPROTO_IPV6,
                libc::IPV6_DSTOPTS,
                &self.destination_options,
            ),
            (libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &self.routing_header),
        ] {
            if let Some(value) = value {
                let value = from_hex(value).ok_or(io::ErrorKind::InvalidInput)?;
                sys::set_option(socket, level, name, &value)?;
            }
        }
        Ok(())
    }

    /// Sends, and waits for what comes back.
    pub(crate) fn exchange(&self, socket: Socket, to: SocketAddr) -> Step<u16> {
        if self.tcp {
            socket
                .connect_timeout(&to.into(), LIMIT)
                .map_err(at("connect"))?;
            return self.speak(socket);
        }
        let bytes = self.bytes();
        if self.connected {
            socket.connect(&to.into()).map_err(at("connect"))?;
            socket
                .send_with_flags(&bytes, self.flags())
                .map_err(at("send"))?;
        } else if let Some(source) = self.packet_info {
            let device = match &self.packet_info_device {
                Some(device) => nix::net::if_::if_nametoindex(device.as_str())
                    .map_err(io::Error::from)
                    .map_err(at("socket"))?,
                None => 0,
            };
            send_from(&socket, &bytes, source, device, to).map_err(at("send"))?;
        } else {
            let flags = self.flags();
            socket
                .send_to_with_flags(&bytes, &to.into(), flags)
                .map_err(at("send"))?;
        }
        if self.no_echo {
            return Ok(0);
        }
        let socket = UdpSocket::from(socket);
        let mut buffer = [0; 65_536];
        let (length, sender) = socket.recv_from(&mut buffer).map_err(at("receive"))?;
        if buffer[..length] != bytes[..] || sender.ip().to_canonical() != to.ip().to_canonical() {
            return Err(("receive", io::ErrorKind::InvalidData.into()));
        }
        Ok(socket.local_addr().map_or(0, |address| address.port()))
    }

    /// Sends over a connected stream and waits for the echo.
    pub(crate) fn speak(&self, socket: Socket) -> Step<u16> {
        let bytes = self.bytes();
        socket
            .send_with_flags(&bytes, self.flags())
            .map_err(at("send"))?;
        let mut stream = TcpStream::from(socket);
        stream.flush().map_err(at("send"))?;
        if self.no_echo {
            return Ok(0);
        }
        let mut buffer = vec![0; bytes.len()];
        stream.read_exact(&mut buffer).map_err(at("receive"))?;
        Ok(stream.local_addr().map_or(0, |address| address.port()))
    }

    fn bytes(&self) -> Vec<u8> {
        let bytes = self.bytes.as_deref().and_then(from_hex);
        bytes.unwrap_or_else(|| TEXT.to_vec())
    }

    const fn flags(&self) -> i32 {
        if self.zerocopy { libc::MSG_ZEROCOPY } else { 0 }
    }
}

/// Sends with the source address in a control message.
pub(crate) fn send_from(
    socket: &Socket,
    bytes: &[u8],
    source: IpAddr,
    device: u32,
    to: SocketAddr,
) -> io::Result<()> {
    let parts = [io::IoSlice::new(bytes)];
    let (socket, flags) = (socket.as_raw_fd(), MsgFlags::empty());
    match (source, to) {
        (IpAddr::V4(source), SocketAddr::V4(to)) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: device as i32,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(source.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(socket, &parts, &control, flags, Some(&SockaddrIn::from(to)))?;
        }
        (IpAddr::V6(source), SocketAddr::V6(to)) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: source.octets(),
                },
                ipi6_ifindex: device,
            };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(
                socket,
                &parts,
                &control,
                flags,
                Some(&SockaddrIn6::from(to)),
            )?;
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    Ok(())
}
