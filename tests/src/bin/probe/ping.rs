//! ICMP echo.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use egress_tests::packets::checksum;
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::{Step, at, attempt, print};

/// Options of `probe ping`.
#[derive(Args, Debug)]
pub(crate) struct Ping {
    address: IpAddr,
    /// Longest wait.
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
    /// Use the kernel's ping socket instead of a raw one.
    #[arg(long)]
    dgram: bool,
    /// Address to bind to, with `IP_TRANSPARENT` or `IPV6_TRANSPARENT`.
    #[arg(long)]
    transparent: Option<IpAddr>,
    /// Address to bind to, with `IP_FREEBIND` or `IPV6_FREEBIND`.
    #[arg(long)]
    freebind: Option<IpAddr>,
}

impl Ping {
    pub(crate) fn run(&self) -> Result<()> {
        print(&attempt(|| self.attempt()))
    }

    fn attempt(&self) -> Step<u16> {
        let (domain, protocol, request, reply) = match self.address {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
        };
        let kind = if self.dgram { Type::DGRAM } else { Type::RAW };
        let socket = Socket::new(domain, kind, Some(protocol)).map_err(at("socket"))?;
        if let Some(from) = self.transparent.or(self.freebind) {
            match (self.transparent.is_some(), from.is_ipv4()) {
                (true, true) => socket.set_ip_transparent_v4(true),
                (true, false) => socket.set_ip_transparent_v6(true),
                (false, true) => socket.set_freebind_v4(true),
                (false, false) => socket.set_freebind_v6(true),
            }
            .map_err(at("socket"))?;
            let from = SocketAddr::from((from, 0));
            socket.bind(&from.into()).map_err(at("bind"))?;
        }
        let id = std::process::id() as u16;
        let [high, low] = id.to_be_bytes();
        let mut packet = vec![request, 0, 0, 0, high, low, 0, 1];
        packet.extend_from_slice(b"egress-probe");
        if self.address.is_ipv4() {
            let sum = checksum(&packet).to_be_bytes();
            packet[2..4].copy_from_slice(&sum);
        }
        let to = SocketAddr::from((self.address, 0));
        socket.send_to(&packet, &to.into()).map_err(at("send"))?;

        let end = Instant::now() + Duration::from_millis(self.timeout);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(("receive", io::ErrorKind::TimedOut.into()));
            }
            socket.set_read_timeout(Some(left)).map_err(at("socket"))?;
            let mut buffer = [MaybeUninit::uninit(); 2048];
            let (bytes, sender) = receive(&socket, &mut buffer)?;
            // A raw IPv4 socket also shows the IP header.
            let skip = if self.address.is_ipv4() && !self.dgram {
                usize::from(bytes.first().copied().unwrap_or_default() & 15) * 4
            } else {
                0
            };
            let icmp = bytes.get(skip..).unwrap_or_default();
            let is_ours = icmp.first() == Some(&reply)
                && icmp.ends_with(b"egress-probe")
                && (self.dgram || icmp.get(4..6) == Some(&[high, low]));
            if is_ours && sender == Some(self.address) {
                return Ok(0);
            }
        }
    }
}

/// Receives into memory that need not be initialised, and copies out what came.
fn receive(socket: &Socket, buffer: &mut [MaybeUninit<u8>]) -> Step<(Vec<u8>, Option<IpAddr>)> {
    // socket2 hands the memory on to recv; its `Read` gives the same bytes without unsafe.
    let (length, sender) = socket.peek_from(buffer).map_err(at("receive"))?;
    let mut bytes = vec![0; length];
    let mut reader: &Socket = socket;
    let length = io::Read::read(&mut reader, &mut bytes).map_err(at("receive"))?;
    bytes.truncate(length);
    Ok((bytes, sender.as_socket().map(|address| address.ip())))
}
