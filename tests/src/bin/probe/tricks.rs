//! Sockets that are used in another way than they were made for.

use std::{
    fs,
    io::{self, Seek as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use egress_tests::dns::any_like;
use io_uring::{IoUring, opcode, squeue, types};
use nix::{
    libc,
    sys::{
        sendfile::sendfile64,
        socket::{
            ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg, setsockopt,
            sockopt,
        },
    },
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    client::{Step, at, attempt, name_of, print},
    exchange::{LIMIT, Options},
    sys,
};

/// Options of `probe trick`.
#[derive(Args, Debug)]
pub(crate) struct Trick {
    #[arg(value_enum)]
    way: Way,
    /// Whom to reach.
    address: IpAddr,
    port: u16,
    /// Somebody who may be reached, with whom the socket speaks before.
    #[arg(long)]
    first: Option<IpAddr>,
    /// A cgroup to move to.
    #[arg(long)]
    cgroup: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// Calls of the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Connect to `first`, then `sendto` the other.
    SendtoElsewhere,
    /// Connect to `first`, speak, connect to the other.
    ConnectAgain,
    /// Connect to `first`, speak, disconnect (`AF_UNSPEC`), connect to the other.
    Disconnect,
    /// `sendmmsg` to both in turn.
    Sendmmsg,
    /// `sendfile` from a file.
    Sendfile,
    /// Connect and send by `io_uring`.
    IoUring,
    /// The same, submitted by a thread of the kernel.
    IoUringPolled,
    /// Send with the SYN, while the far end sends one too.
    SimultaneousOpen,
    /// Make a TCP socket that was never opened (`TCP_REPAIR`).
    Repair,
    /// Make the socket, move to the cgroup, then use it.
    MoveThenUse,
    /// Move to the cgroup, then make the socket and use it.
    MoveThenMake,
}

impl Trick {
    pub(crate) fn run(&self) -> Result<()> {
        print(&attempt(|| self.attempt()))
    }

    fn attempt(&self) -> Step<u16> {
        let to = SocketAddr::from((self.address, self.port));
        let first = SocketAddr::from((self.first.unwrap_or(self.address), self.port));
        let options = &self.options;
        if self.way == Way::MoveThenMake {
            self.move_away().map_err(at("move"))?;
        }
        let socket = options.open(to).map_err(at("socket"))?;
        match self.way {
            Way::SendtoElsewhere => {
                socket.connect(&first.into()).map_err(at("first"))?;
                socket.send_to(b"hello", &to.into()).map_err(at("send"))?;
                Ok(0)
            }
            Way::ConnectAgain | Way::Disconnect => {
                let own = self.speak_first(socket, first)?;
                if self.way == Way::Disconnect {
                    sys::disconnect(&own).map_err(at("disconnect"))?;
                }
                if options.tcp {
                    options.exchange(own, to)
                } else {
                    let options = Options {
                        connected: true,
                        ..options.clone()
                    };
                    options.exchange(own, to)
                }
            }
            Way::Sendmmsg => {
                let sent = sys::sendmmsg(&socket, b"hello", &[first.into(), to.into()])
                    .map_err(at("send"))?;
                // The count stops at the message that failed.
                if sent < 2 {
                    return Err(("send", io::Error::from_raw_os_error(libc::EPERM)));
                }
                Ok(0)
            }
            Way::Sendfile => {
                if options.tcp {
                    socket
                        .connect_timeout(&to.into(), LIMIT)
                        .map_err(at("connect"))?;
                } else {
                    socket.connect(&to.into()).map_err(at("connect"))?;
                }
                let mut file = sys::memory_file().map_err(at("file"))?;
                file.write_all(b"hello").map_err(at("file"))?;
                file.rewind().map_err(at("file"))?;
                sendfile64(socket.as_fd(), file.as_fd(), None, 5)
                    .map_err(|error| ("send", io::Error::from(error)))?;
                Ok(0)
            }
            Way::IoUring => self.uring(&socket, to, None),
            Way::IoUringPolled => self.uring(&socket, to, Some(50)),
            Way::SimultaneousOpen => socket
                .send_to_with_flags(b"hello", &to.into(), libc::MSG_FASTOPEN)
                .map(|_| 0)
                .map_err(at("send")),
            Way::Repair => {
                setsockopt(&socket, sockopt::TcpRepair, &1)
                    .map_err(|error| ("repair", io::Error::from(error)))?;
                socket
                    .bind(&any_like(self.address).into())
                    .map_err(at("bind"))?;
                socket.connect(&to.into()).map_err(at("connect"))?;
                setsockopt(&socket, sockopt::TcpRepair, &0)
                    .map_err(|error| ("repair", io::Error::from(error)))?;
                socket.send(b"hello").map_err(at("send"))?;
                Ok(0)
            }
            Way::MoveThenUse => {
                self.move_away().map_err(at("move"))?;
                options.exchange(socket, to)
            }
            Way::MoveThenMake => options.exchange(socket, to),
        }
    }

    fn speak_first(&self, socket: Socket, first: SocketAddr) -> Step<Socket> {
        let again = socket.try_clone().map_err(at("socket"))?;
        if self.options.tcp {
            self.options.exchange(socket, first).map_err(first_stage)?;
        } else {
            let options = Options {
                connected: true,
                ..self.options.clone()
            };
            options.exchange(socket, first).map_err(first_stage)?;
        }
        Ok(again)
    }

    fn move_away(&self) -> io::Result<()> {
        let cgroup = self.cgroup.as_deref().ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(cgroup)?;
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
    }

    fn uring(&self, socket: &Socket, to: SocketAddr, idle_ms: Option<u32>) -> Step<u16> {
        let mut builder = IoUring::builder();
        if let Some(idle_ms) = idle_ms {
            builder.setup_sqpoll(idle_ms);
        }
        let mut ring: IoUring = builder.build(8).map_err(at("io_uring"))?;
        let address = SockAddr::from(to);
        let descriptor = types::Fd(socket.as_raw_fd());
        if self.options.tcp || self.options.connected {
            let entry =
                opcode::Connect::new(descriptor, address.as_ptr().cast(), address.len()).build();
            sys::submit(&mut ring, &entry).map_err(at("connect"))?;
            let entry = opcode::Send::new(descriptor, b"hello".as_ptr(), 5)
                .build()
                .flags(squeue::Flags::ASYNC);
            sys::submit(&mut ring, &entry).map_err(at("send"))?;
        } else {
            sys::send_message(&mut ring, socket, b"hello", &address).map_err(at("send"))?;
        }
        let mut buffer = [0_u8; 64];
        let socket = socket.try_clone().map_err(at("socket"))?;
        io::Read::read(&mut &socket, &mut buffer).map_err(at("receive"))?;
        Ok(0)
    }
}

fn first_stage((_, error): (&'static str, io::Error)) -> (&'static str, io::Error) {
    ("first", error)
}

/// Options of `probe give`.
#[derive(Args, Debug)]
pub(crate) struct Give {
    /// Unix socket over which it is handed out.
    path: PathBuf,
    /// A stream socket; else datagrams.
    #[arg(long)]
    tcp: bool,
    /// For IPv6.
    #[arg(long)]
    v6: bool,
}

impl Give {
    /// Makes a socket, prints `ready`, and hands it to whoever asks.
    pub(crate) fn run(&self) -> Result<()> {
        let domain = if self.v6 { Domain::IPV6 } else { Domain::IPV4 };
        let (kind, protocol) = if self.tcp {
            (Type::STREAM, Protocol::TCP)
        } else {
            (Type::DGRAM, Protocol::UDP)
        };
        let socket = Socket::new(domain, kind, Some(protocol)).context("cannot make a socket")?;
        let listener = UnixListener::bind(&self.path).context("cannot bind")?;
        println!("ready");
        let (stream, _) = listener.accept()?;
        let descriptors = [socket.as_raw_fd()];
        sendmsg::<UnixAddr>(
            stream.as_raw_fd(),
            &[io::IoSlice::new(b"x")],
            &[ControlMessage::ScmRights(&descriptors)],
            MsgFlags::empty(),
            None,
        )
        .context("cannot hand it over")?;
        Ok(())
    }
}

/// Options of `probe take`.
#[derive(Args, Debug)]
pub(crate) struct Take {
    /// Unix socket over which it is handed out.
    path: PathBuf,
    address: IpAddr,
    port: u16,
    #[command(flatten)]
    options: Options,
}

impl Take {
    /// Takes the socket of `probe give` and uses it.
    pub(crate) fn run(&self) -> Result<()> {
        let stream = UnixStream::connect(&self.path).context("cannot reach the giver")?;
        let mut byte = [0; 1];
        let mut parts = [io::IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let message = recvmsg::<UnixAddr>(
            stream.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        )
        .context("cannot take it")?;
        let Some(ControlMessageOwned::ScmRights(descriptors)) = message.cmsgs()?.next() else {
            bail!("no socket came");
        };
        let descriptor = *descriptors.first().context("no socket came")?;
        let socket = sys::adopt(descriptor);
        socket.set_read_timeout(Some(LIMIT))?;
        let to = SocketAddr::from((self.address, self.port));
        print(&attempt(|| self.options.exchange(socket, to)))
    }
}

/// Options of `probe open`.
#[derive(Args, Debug)]
pub(crate) struct Open {
    /// Protocol number of a stream socket.
    protocol: i32,
}

impl Open {
    /// Says whether this kernel has stream sockets of a protocol: `yes`, or the error.
    pub(crate) fn run(&self) -> Result<()> {
        match Socket::new(Domain::IPV4, Type::STREAM, Some(self.protocol.into())) {
            Ok(_) => println!("yes"),
            Err(error) => println!("{}", name_of(&error)),
        }
        Ok(())
    }
}
