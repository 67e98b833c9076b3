//! Sockets that ask a service for names, and lead a query to somebody else.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use egress_tests::dns::{any_like, query};
use hickory_proto::rr::RecordType;
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::client::{Step, at, attempt, print, wait_for};

/// Options of `probe stray`.
#[derive(Args, Debug)]
pub(crate) struct Stray {
    #[arg(value_enum)]
    way: Way,
    /// The service, which a load balancer leads to a resolver.
    #[arg(long)]
    service: IpAddr,
    /// A service that leads nowhere: calls to it fail.
    #[arg(long)]
    broken: IpAddr,
    /// Who is to answer in the resolver's place.
    #[arg(long)]
    stranger: IpAddr,
    /// Its port.
    #[arg(long, default_value_t = 53)]
    stranger_port: u16,
    /// The name that he is asked for.
    #[arg(long)]
    name: String,
    /// What `corked-early` waits for, after `begun`.
    #[arg(long)]
    until: Option<PathBuf>,
}

/// Calls of the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Connect to the stranger, fail to connect to a service, send to the old peer.
    FailedConnect,
    /// Ask the service, then the stranger, by `sendto` on the same socket.
    Sendto,
    /// Ask the service, then begin a datagram for the stranger (`MSG_MORE`) and end it by a call to the service.
    Corked,
    /// Begin a datagram for the stranger (`MSG_MORE`); later connect to the service, and end it.
    CorkedEarly,
    /// Connect to the service, ask, connect to the stranger.
    ConnectAgain,
    /// Connect to the service, `sendto` the stranger.
    ConnectedSendto,
    /// Fail to connect to a service, then connect to the stranger, by TCP.
    TcpConnectAgain,
    /// Two threads on one socket: one asks the service, one the stranger.
    Threads,
    /// The same, each connecting.
    ConnectingThreads,
    /// Connect to the service, ask, fail to send elsewhere, then send on the same connection.
    AfterElsewhere,
    /// Ask the service by `sendto`, then the stranger from a new socket at the same port.
    SamePort,
    /// Connect to port 0 of the stranger, ask the service by `sendto`, then send to the peer.
    PortZero,
}

impl Stray {
    pub(crate) fn run(&self) -> Result<()> {
        print(&attempt(|| self.attempt()))
    }

    fn attempt(&self) -> Step<u16> {
        let asked = query(7, &self.name, RecordType::A)
            .map_err(|error| ("name", io::Error::other(error)))?;
        let other = query(8, "n1.fresh.example.com", RecordType::A)
            .map_err(|error| ("name", io::Error::other(error)))?;
        let service = SocketAddr::from((self.service, 53));
        let broken = SocketAddr::from((self.broken, 53));
        let stranger = SocketAddr::from((self.stranger, self.stranger_port));
        if self.way == Way::TcpConnectAgain {
            return over_tcp(broken, stranger, &asked);
        }
        let open = || UdpSocket::bind(any_like(self.service)).map_err(at("socket"));
        let socket = open()?;
        match self.way {
            Way::FailedConnect => {
                socket.connect(stranger).map_err(at("connect"))?;
                if socket.connect(broken).is_ok() {
                    return Err(("connect", io::Error::other("the broken service works")));
                }
                socket.send(&asked).map_err(at("send"))?;
            }
            Way::Sendto => {
                socket.send_to(&other, service).map_err(at("first"))?;
                hear(&socket, 8)?;
                socket.send_to(&asked, stranger).map_err(at("send"))?;
            }
            Way::Corked => {
                socket.send_to(&other, service).map_err(at("first"))?;
                hear(&socket, 8)?;
                let more = SockRef::from(&socket);
                more.send_to_with_flags(&asked, &SockAddr::from(stranger), libc::MSG_MORE)
                    .map_err(at("send"))?;
                socket.send_to(&[], service).map_err(at("send"))?;
            }
            Way::CorkedEarly => {
                let more = SockRef::from(&socket);
                more.send_to_with_flags(&asked, &SockAddr::from(stranger), libc::MSG_MORE)
                    .map_err(at("begin"))?;
                println!("begun");
                wait_for(self.until.as_deref());
                socket.connect(service).map_err(at("connect"))?;
                socket.send(&[]).map_err(at("send"))?;
            }
            Way::ConnectAgain => {
                socket.connect(service).map_err(at("connect"))?;
                socket.send(&other).map_err(at("first"))?;
                hear(&socket, 8)?;
                socket.connect(stranger).map_err(at("connect"))?;
                socket.send(&asked).map_err(at("send"))?;
            }
            Way::ConnectedSendto => {
                socket.connect(service).map_err(at("connect"))?;
                socket.send_to(&asked, stranger).map_err(at("send"))?;
            }
            Way::Threads | Way::ConnectingThreads => {
                let mut result = Err(("receive", io::ErrorKind::TimedOut.into()));
                for _ in 0..50 {
                    let one = race(open()?, &other, service, &asked, stranger, self.way);
                    result = result.or(one);
                }
                return result;
            }
            Way::AfterElsewhere => {
                socket.connect(service).map_err(at("connect"))?;
                socket.send(&other).map_err(at("first"))?;
                hear(&socket, 8)?;
                // It is refused, and a call all the same.
                let _ = socket.send_to(&[], "192.0.2.9:9");
                socket.send(&asked).map_err(at("send"))?;
            }
            Way::SamePort => {
                socket.send_to(&other, service).map_err(at("first"))?;
                hear(&socket, 8)?;
                let same = socket.local_addr().map_err(at("socket"))?;
                drop(socket);
                let socket = UdpSocket::bind(same).map_err(at("socket"))?;
                socket.send_to(&asked, stranger).map_err(at("send"))?;
                return hear(&socket, 7);
            }
            Way::PortZero => {
                socket.connect((self.stranger, 0)).map_err(at("connect"))?;
                socket.send_to(&other, service).map_err(at("first"))?;
                socket.send(&asked).map_err(at("send"))?;
            }
            Way::TcpConnectAgain => {}
        }
        hear(&socket, 7)
    }
}

/// Waits for the answer with this id.
fn hear(socket: &UdpSocket, id: u16) -> Step<u16> {
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .map_err(at("socket"))?;
    let mut buffer = [0; 512];
    loop {
        let (length, _) = socket.recv_from(&mut buffer).map_err(at("receive"))?;
        if length > 2 && buffer[..2] == id.to_be_bytes() {
            return Ok(0);
        }
    }
}

/// One thread calls the service again and again, this one the stranger.
fn race(
    socket: UdpSocket,
    other: &[u8],
    service: SocketAddr,
    asked: &[u8],
    stranger: SocketAddr,
    way: Way,
) -> Step<u16> {
    let socket = Arc::new(socket);
    let is_over = Arc::new(AtomicBool::new(false));
    let (second, over, bytes) = (Arc::clone(&socket), Arc::clone(&is_over), other.to_vec());
    let thread = thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            // Its result does not count.
            let _ = call(&second, &bytes, service, way);
        }
    });
    let mut result = Ok(());
    for _ in 0..100 {
        result = call(&socket, asked, stranger, way);
    }
    is_over.store(true, Ordering::Relaxed);
    let _ = thread.join();
    result.map_err(at("send"))?;
    hear(&socket, 7)
}

fn call(socket: &UdpSocket, bytes: &[u8], to: SocketAddr, way: Way) -> io::Result<()> {
    if way == Way::ConnectingThreads {
        socket.connect(to)?;
        return socket.send(bytes).map(|_| ());
    }
    socket.send_to(bytes, to).map(|_| ())
}

fn over_tcp(broken: SocketAddr, stranger: SocketAddr, asked: &[u8]) -> Step<u16> {
    use std::io::{Read as _, Write as _};
    let socket = Socket::new(
        Domain::for_address(stranger),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .map_err(at("socket"))?;
    if socket.connect(&broken.into()).is_ok() {
        return Err(("connect", io::Error::other("the broken service works")));
    }
    let limit = Duration::from_secs(1);
    socket
        .connect_timeout(&stranger.into(), limit)
        .map_err(at("connect"))?;
    let mut stream = std::net::TcpStream::from(socket);
    stream.set_read_timeout(Some(limit)).map_err(at("socket"))?;
    let mut framed = (asked.len() as u16).to_be_bytes().to_vec();
    framed.extend(asked);
    stream.write_all(&framed).map_err(at("send"))?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).map_err(at("receive"))?;
    Ok(0)
}
