//! A flow that is kept open.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::dns::any_like;
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::{name_of, wait_for};

/// Options of `probe hold`.
#[derive(Args, Debug)]
pub(crate) struct Hold {
    address: IpAddr,
    port: u16,
    /// By a connected UDP socket.
    #[arg(long)]
    udp: bool,
    /// Longest wait for what comes back, milliseconds.
    #[arg(long, default_value_t = 1_000)]
    wait_ms: u64,
    /// By MPTCP.
    #[arg(long)]
    mptcp: bool,
    /// Milliseconds between two bytes.
    #[arg(long, default_value_t = 100)]
    every: u64,
    /// With `--udp`: the peer that the socket is led to after its first byte.
    #[arg(long, requires = "udp")]
    then: Option<SocketAddr>,
    /// A file without which no second byte is sent.
    #[arg(long)]
    until: Option<PathBuf>,
}

impl Hold {
    /// Prints `open`, then `alive N` for each byte that came back, then `broken ERROR`.
    pub(crate) fn run(&self) -> Result<()> {
        if self.udp {
            let socket = UdpSocket::bind(any_like(self.address)).context("cannot bind")?;
            socket
                .connect((self.address, self.port))
                .context("cannot connect")?;
            socket.set_read_timeout(Some(Duration::from_millis(self.wait_ms)))?;
            let mut then = self.then;
            self.keep(|| {
                socket.send(b"x")?;
                socket.recv(&mut [0; 16])?;
                match then.take() {
                    Some(then) => socket.connect(then),
                    None => Ok(()),
                }
            });
        } else {
            let to = SocketAddr::from((self.address, self.port));
            let protocol = if self.mptcp {
                Protocol::MPTCP
            } else {
                Protocol::TCP
            };
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
            socket
                .connect_timeout(&to.into(), Duration::from_secs(2))
                .context("cannot connect")?;
            let mut stream = TcpStream::from(socket);
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_millis(self.wait_ms)))?;
            self.keep(|| {
                stream.write_all(b"x")?;
                match stream.read(&mut [0; 16])? {
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    _ => Ok(()),
                }
            });
        }
        Ok(())
    }

    fn keep(&self, mut exchange: impl FnMut() -> io::Result<()>) {
        for round in 0_u64.. {
            match exchange() {
                Ok(()) if round == 0 => {
                    println!("open");
                    wait_for(self.until.as_deref());
                }
                Ok(()) => println!("alive {round}"),
                Err(error) => {
                    println!("broken {}", name_of(&error));
                    return;
                }
            }
            thread::sleep(Duration::from_millis(self.every));
        }
    }
}
