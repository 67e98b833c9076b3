//! TCP and UDP clients.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::{dns::any_like, report::Attempt};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

/// Options of `probe connect`.
#[derive(Args, Debug)]
pub(crate) struct Connect {
    address: IpAddr,
    port: u16,
    /// Longest wait, for the handshake and for the echo.
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
    /// Only connect.
    #[arg(long)]
    no_echo: bool,
    /// Send with the SYN (TCP fast open), without connect().
    #[arg(long)]
    fast_open: bool,
}

/// A step of an attempt; if it fails, its stage and the error.
pub(crate) type Step<T> = Result<T, (&'static str, io::Error)>;

impl Connect {
    pub(crate) fn run(&self) -> Result<()> {
        print(&attempt(|| self.attempt()))
    }

    fn attempt(&self) -> Step<u16> {
        let limit = Duration::from_millis(self.timeout);
        let to: SocketAddr = (self.address, self.port).into();
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))
            .map_err(at("socket"))?;
        let mut greeted = false;
        if self.fast_open {
            // Waits for the handshake as send does, no longer than the send timeout.
            socket
                .set_write_timeout(Some(limit))
                .map_err(at("socket"))?;
            let flags = nix::libc::MSG_FASTOPEN;
            socket
                .send_to_with_flags(b"hello", &to.into(), flags)
                .map_err(at("send"))?;
            greeted = true;
        } else {
            socket
                .connect_timeout(&to.into(), limit)
                .map_err(at("connect"))?;
        }
        let mut stream = TcpStream::from(socket);
        let port = stream.local_addr().map_or(0, |address| address.port());
        if self.no_echo {
            return Ok(port);
        }
        stream.set_read_timeout(Some(limit)).map_err(at("socket"))?;
        if !greeted {
            stream.write_all(b"hello").map_err(at("send"))?;
        }
        let mut buffer = [0; 5];
        stream.read_exact(&mut buffer).map_err(at("receive"))?;
        if &buffer != b"hello" {
            return Err(("receive", io::ErrorKind::InvalidData.into()));
        }
        Ok(port)
    }
}

/// Options of `probe pieces`.
#[derive(Args, Debug)]
pub(crate) struct Pieces {
    address: IpAddr,
    port: u16,
    /// What to send, in hexadecimal, each part with a write of its own.
    #[arg(required = true)]
    parts: Vec<String>,
    /// Milliseconds between two writes.
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Send the last byte of the first part as urgent data.
    #[arg(long)]
    urgent: bool,
    /// Longest wait for the echo.
    #[arg(long, default_value_t = 1500)]
    timeout: u64,
}

impl Pieces {
    pub(crate) fn run(&self) -> Result<()> {
        let parts = self.parts.iter().map(|part| unhex(part));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        print(&attempt(|| self.attempt(&parts)))
    }

    /// Sends the parts and waits until all of them came back.
    fn attempt(&self, parts: &[Vec<u8>]) -> Step<u16> {
        let limit = Duration::from_millis(self.timeout);
        let to: SocketAddr = (self.address, self.port).into();
        let mut stream = TcpStream::connect_timeout(&to, limit).map_err(at("connect"))?;
        stream.set_nodelay(true).map_err(at("socket"))?;
        stream.set_read_timeout(Some(limit)).map_err(at("socket"))?;
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                std::thread::sleep(Duration::from_millis(self.pause));
            }
            if self.urgent && index == 0 {
                let socket = socket2::SockRef::from(&stream);
                socket.send_out_of_band(part).map_err(at("send"))?;
            } else {
                stream.write_all(part).map_err(at("send"))?;
            }
        }
        let sent = parts.concat();
        let mut echo = vec![0; sent.len()];
        stream.read_exact(&mut echo).map_err(at("receive"))?;
        if echo != sent {
            return Err(("receive", io::ErrorKind::InvalidData.into()));
        }
        Ok(stream.local_addr().map_or(0, |address| address.port()))
    }
}

/// Bytes from hexadecimal digits.
fn unhex(text: &str) -> Result<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
    bytes.collect()
}

/// Options of `probe udp`.
#[derive(Args, Debug)]
pub(crate) struct Udp {
    address: IpAddr,
    port: u16,
    /// Connect the socket and use send.
    #[arg(long, conflicts_with = "unconnected")]
    connected: bool,
    /// Use sendto, the default.
    #[arg(long)]
    unconnected: bool,
    /// Longest wait for the echo.
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
    /// What to send; the echo of `relay ADDRESS PORT` tells how that went.
    #[arg(long, default_value = "hello")]
    text: String,
    /// Port to send from.
    #[arg(long, default_value_t = 0)]
    from_port: u16,
}

impl Udp {
    pub(crate) fn run(&self) -> Result<()> {
        print(&attempt(|| self.attempt()))
    }

    fn attempt(&self) -> Step<u16> {
        let to: SocketAddr = (self.address, self.port).into();
        let mut from = any_like(to.ip());
        from.set_port(self.from_port);
        let socket = UdpSocket::bind(from).map_err(at("socket"))?;
        socket
            .set_read_timeout(Some(Duration::from_millis(self.timeout)))
            .map_err(at("socket"))?;
        if self.connected {
            socket.connect(to).map_err(at("connect"))?;
            socket.send(self.text.as_bytes()).map_err(at("send"))?;
        } else {
            socket
                .send_to(self.text.as_bytes(), to)
                .map_err(at("send"))?;
        }
        let mut buffer = [0; 65_536];
        let (length, sender) = socket.recv_from(&mut buffer).map_err(at("receive"))?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        if sender != to || (text != self.text && !text.starts_with("relayed")) {
            return Err((
                "receive",
                io::Error::from_raw_os_error(Errno::EBADMSG as i32),
            ));
        }
        if text == "relayed EPERM" {
            return Err(("relay", io::Error::from_raw_os_error(Errno::EPERM as i32)));
        }
        Ok(socket.local_addr().map_or(0, |address| address.port()))
    }
}

/// Options of `probe flood`.
#[derive(Args, Debug)]
pub(crate) struct Flood {
    address: IpAddr,
    port: u16,
    /// Number of datagrams.
    count: u32,
}

impl Flood {
    /// Sends datagrams as fast as it can and reports the last error, if any was EPERM.
    pub(crate) fn run(&self) -> Result<()> {
        let to = SocketAddr::from((self.address, self.port));
        print(&attempt(|| {
            let socket = UdpSocket::bind(any_like(to.ip())).map_err(at("socket"))?;
            let mut result = Ok(0);
            for _ in 0..self.count {
                if let Err(error) = socket.send_to(b"flood", to) {
                    result = Err(("send", error));
                }
            }
            result
        }))
    }
}

/// Options of `probe listen`.
#[derive(Args, Debug)]
pub(crate) struct Listen {
    port: u16,
    /// Longest wait.
    #[arg(long, default_value_t = 3000)]
    timeout: u64,
}

impl Listen {
    /// Prints `ready`, then the datagram's sender and bytes.
    pub(crate) fn run(&self) -> Result<()> {
        let socket = UdpSocket::bind(("0.0.0.0", self.port)).context("cannot bind")?;
        socket.set_read_timeout(Some(Duration::from_millis(self.timeout)))?;
        println!("ready");
        let mut buffer = [0; 65_536];
        let (length, sender) = socket.recv_from(&mut buffer).context("nothing came")?;
        println!("got {sender} {}", hex(&buffer[..length]));
        Ok(())
    }
}

/// Options of `probe answer`.
#[derive(Args, Debug)]
pub(crate) struct Answer {
    port: u16,
    /// Group to join on `eth0`; an IPv4 socket without one.
    #[arg(long)]
    group: Option<Ipv6Addr>,
}

impl Answer {
    /// Answers datagrams from an unconnected socket; prints `ready`, then who was answered and how that went.
    pub(crate) fn run(&self) -> Result<()> {
        let any = match self.group {
            Some(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        let socket = UdpSocket::bind((any, self.port)).context("cannot bind")?;
        if let Some(group) = &self.group {
            let index = nix::net::if_::if_nametoindex("eth0")?;
            socket
                .join_multicast_v6(group, index)
                .context("cannot join")?;
        }
        println!("ready");
        let mut buffer = [0; 2048];
        loop {
            let (length, sender) = socket.recv_from(&mut buffer)?;
            match socket.send_to(&buffer[..length], sender) {
                Ok(_) => println!("answered {sender}"),
                Err(error) => println!("not {sender} {}", name_of(&error)),
            }
        }
    }
}

/// Puts the stage to an error.
pub(crate) fn at(stage: &'static str) -> impl Fn(io::Error) -> (&'static str, io::Error) {
    move |error| (stage, error)
}

/// Runs one attempt and reports it.
pub(crate) fn attempt(work: impl FnOnce() -> Step<u16>) -> Attempt {
    let begin = Instant::now();
    let result = work();
    let elapsed_ms = begin.elapsed().as_secs_f64() * 1000.0;
    match result {
        Ok(local_port) => Attempt {
            ok: true,
            stage: "done".to_owned(),
            errno: None,
            elapsed_ms,
            local_port,
        },
        Err((stage, error)) => Attempt {
            ok: false,
            stage: stage.to_owned(),
            errno: Some(name_of(&error)),
            elapsed_ms,
            local_port: 0,
        },
    }
}

/// Waits until a file is there, if one is named.
pub(crate) fn wait_for(file: Option<&Path>) {
    while file.is_some_and(|file| !file.exists()) {
        thread::sleep(Duration::from_millis(20));
    }
}

/// Name of an error: `EPERM`; a timeout of our own is `ETIMEDOUT`.
pub(crate) fn name_of(error: &io::Error) -> String {
    if matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    ) {
        return "ETIMEDOUT".to_owned();
    }
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |number| format!("{:?}", Errno::from_raw(number)),
    )
}

/// Prints a report as one line of JSON.
pub(crate) fn print(report: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
