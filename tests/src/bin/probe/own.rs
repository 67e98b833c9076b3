//! A workload that tries everything, and a watcher of its packets that leave the node.

use std::{
    collections::{HashSet, VecDeque},
    fs::{self, File},
    io::{self, Read as _},
    net::SocketAddr,
    os::fd::AsRawFd as _,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::{
    own::{
        CGROUPS, Call, Kind, May, Net, PLACES, Peer, Plan, Scope, Seen, Setting, Step, Tag, Target,
        Way, may,
    },
    packets::{Ends, ICMP, ICMPV6, IPIP, SYN, TCP, UDP},
};
use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol,
        SockType, UnixAddr, recvmsg, sendmsg, socket, socketpair,
    },
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    exchange::send_from,
    sys::{self, set_option},
};

/// Options of `probe own`.
#[derive(Args, Debug)]
pub(crate) struct Own {
    /// Tells the whole run.
    #[arg(long)]
    seed: u64,
    /// How long.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// How many steps at most.
    #[arg(long, default_value_t = u32::MAX)]
    steps: u32,
    /// Tells this process' calls from another one's, below 8.
    #[arg(long, default_value_t = 0)]
    number: u32,
    /// Cgroups of scope A, below that, of scope B, of the node.
    #[arg(long, required = true, num_args = 4)]
    cgroup: Vec<PathBuf>,
    /// The node's network namespace and the pod's.
    #[arg(long, required = true, num_args = 2)]
    namespace: Vec<PathBuf>,
    /// Print every step.
    #[arg(long)]
    trace: bool,
}

/// A socket, and who made it.
struct Made {
    socket: Socket,
    scope: Scope,
    net: Net,
    kind: Kind,
    v6: bool,
    /// Nothing unusual has been set.
    is_plain: bool,
    peer: Option<(Peer, u16)>,
}

impl Made {
    fn again(&self, socket: Socket) -> Self {
        Self {
            socket,
            is_plain: false,
            ..*self
        }
    }

    const fn is_stream(&self) -> bool {
        matches!(self.kind, Kind::Tcp | Kind::Mptcp)
    }

    fn target(&self, (peer, port): (Peer, u16)) -> Target {
        let proto = if self.is_stream() { TCP } else { UDP };
        Target {
            peer,
            proto,
            port: Some(port),
        }
    }
}

/// The workload.
struct Workload<'a> {
    options: &'a Own,
    namespaces: Vec<File>,
    places: [Option<Made>; PLACES],
    scope: Scope,
    net: Net,
    step: u32,
    ports: u16,
    due: u64,
    sent: u64,
    last: VecDeque<(u32, Step)>,
}

impl Own {
    /// Prints `refused ...` for calls that should have passed, and at the end `done DUE SENT STEPS`.
    pub(crate) fn run(&self) -> Result<()> {
        let open = |path: &PathBuf| {
            File::open(path).with_context(|| format!("cannot open {}", path.display()))
        };
        let mut workload = Workload {
            options: self,
            namespaces: self.namespace.iter().map(open).collect::<Result<_>>()?,
            places: Default::default(),
            scope: Scope::Node,
            net: Net::Node,
            step: 0,
            ports: 0,
            due: 0,
            sent: 0,
            last: VecDeque::new(),
        };
        workload.go_to_cgroup(CGROUPS.len() - 1)?;
        println!("ready");
        let end = Instant::now() + Duration::from_secs(self.seconds);
        for step in Plan::new(self.seed) {
            if workload.step >= self.steps || Instant::now() >= end {
                break;
            }
            if self.trace {
                println!("step {} {step:?}", workload.step);
            }
            // Steps that fail are a part of the trial.
            let _ = workload.take(step);
            workload.step += 1;
            if workload.step.is_multiple_of(32) {
                thread::sleep(Duration::from_millis(4));
            }
        }
        println!("done {} {} {}", workload.due, workload.sent, workload.step);
        Ok(())
    }
}

impl Workload<'_> {
    fn go_to_cgroup(&mut self, number: usize) -> io::Result<()> {
        let path = self.options.cgroup[number].join("cgroup.procs");
        fs::write(path, std::process::id().to_string())?;
        self.scope = CGROUPS[number];
        Ok(())
    }

    fn go_to_network(&mut self, net: Net) -> io::Result<()> {
        match net {
            Net::Own => unshare(CloneFlags::CLONE_NEWNET)?,
            Net::Node => setns(&self.namespaces[0], CloneFlags::CLONE_NEWNET)?,
            Net::Pod => setns(&self.namespaces[1], CloneFlags::CLONE_NEWNET)?,
        }
        self.net = net;
        Ok(())
    }

    fn take(&mut self, step: Step) -> io::Result<()> {
        self.last.push_back((self.step, step));
        if self.last.len() > 400 {
            self.last.pop_front();
        }
        match step.call {
            Call::Cgroup(number) => return self.go_to_cgroup(number),
            Call::Network(net) => return self.go_to_network(net),
            Call::Socket(kind, v6) => {
                self.places[step.place] = None;
                let made = self.make(kind, v6)?;
                self.places[step.place] = Some(made);
                return Ok(());
            }
            Call::Close => {
                self.places[step.place] = None;
                return Ok(());
            }
            _ => {}
        }
        let Some(mut made) = self.places[step.place].take() else {
            return Ok(());
        };
        let mut other = None;
        let result = self.use_socket(&mut made, step, &mut other);
        self.places[step.place] = Some(made);
        if let Some(other) = other {
            self.places[step.other] = Some(other);
        }
        result
    }

    fn make(&mut self, kind: Kind, v6: bool) -> io::Result<Made> {
        let icmp = if v6 { ICMPV6 } else { ICMP };
        let (what, protocol) = match kind {
            Kind::Tcp => (Type::STREAM, libc::IPPROTO_TCP),
            Kind::Mptcp => (Type::STREAM, libc::IPPROTO_MPTCP),
            Kind::Udp => (Type::DGRAM, libc::IPPROTO_UDP),
            Kind::UdpLite => (Type::DGRAM, libc::IPPROTO_UDPLITE),
            Kind::Ping => (Type::DGRAM, i32::from(icmp)),
            Kind::RawIcmp => (Type::RAW, i32::from(icmp)),
            Kind::RawUdp => (Type::RAW, libc::IPPROTO_UDP),
            Kind::Packet => (Type::RAW, libc::IPPROTO_RAW),
        };
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, what, Some(Protocol::from(protocol)))?;
        socket.set_nonblocking(true)?;
        if kind == Kind::Packet && v6 {
            socket.set_header_included_v6(true)?;
        }
        let made = Made {
            socket,
            scope: self.scope,
            net: self.net,
            kind,
            v6,
            is_plain: true,
            peer: None,
        };
        if made.is_stream() {
            // The wire knows it by its port.
            self.ports = (self.ports + 1) % 500;
            let port = self.scope.first_port() + self.ports + 500 * self.options.number as u16;
            made.socket.set_reuse_address(true)?;
            let any = egress_tests::dns::any_like(Peer::Open.address(v6));
            made.socket.bind(&SocketAddr::new(any.ip(), port).into())?;
        }
        Ok(made)
    }

    fn use_socket(
        &mut self,
        made: &mut Made,
        step: Step,
        other: &mut Option<Made>,
    ) -> io::Result<()> {
        // An IPv6 socket calls IPv4 addresses, too.
        let is_mapped = made.v6 && step.other.is_multiple_of(4);
        let at = |peer: Peer, port: u16| -> SocketAddr {
            match peer.address(made.v6 && !is_mapped) {
                std::net::IpAddr::V4(v4) if is_mapped => (v4.to_ipv6_mapped(), port).into(),
                address => (address, port).into(),
            }
        };
        match step.call {
            Call::Bind(from, port) => {
                let from = from.map_or_else(
                    || {
                        let any = egress_tests::dns::any_like(Peer::Open.address(made.v6));
                        SocketAddr::new(any.ip(), port)
                    },
                    |peer| at(peer, port),
                );
                made.socket.set_reuse_address(true)?;
                made.is_plain &= from.ip().is_unspecified();
                made.socket.bind(&from.into())?;
            }
            Call::Set(setting) => {
                made.is_plain = false;
                set(made, setting)?;
            }
            Call::Connect(peer, port) => {
                let to = at(peer, self.server_port(made, step, peer).unwrap_or(port));
                let result = made.socket.connect(&to.into());
                let is_due = made.is_plain
                    && made.is_stream()
                    && made.peer.is_none()
                    && [made.scope, self.scope]
                        .iter()
                        .all(|scope| may(*scope, made.net, made.target((peer, port))) == May::Yes);
                if is_due && is_refused(&result) {
                    self.complain(step);
                }
                made.is_plain &= result.is_ok();
                made.peer = Some((peer, port));
            }
            Call::Disconnect => {
                sys::disconnect(&made.socket)?;
                made.peer = None;
                made.is_plain &= !made.is_stream();
            }
            Call::Send(way, peer, port, size) => {
                let to = at(peer, port);
                self.send(made, step, (way, peer, to, size))?;
            }
            Call::Listen => {
                made.is_plain = false;
                made.socket.listen(4)?;
            }
            Call::Accept => {
                let (socket, _) = made.socket.accept()?;
                *other = Some(made.again(socket));
            }
            Call::Shutdown => {
                made.is_plain = false;
                made.socket.shutdown(std::net::Shutdown::Write)?;
            }
            Call::Dup => {
                made.is_plain = false;
                *other = Some(made.again(made.socket.try_clone()?));
            }
            Call::Pass => {
                made.is_plain = false;
                *other = Some(made.again(pass(&made.socket)?));
            }
            Call::Socket(..) | Call::Close | Call::Cgroup(_) | Call::Network(_) => {}
        }
        Ok(())
    }

    /// The port of the stream socket in the other place, to call it here.
    fn server_port(&self, made: &Made, step: Step, peer: Peer) -> Option<u16> {
        let is_here = made.is_stream() && matches!(peer, Peer::Node | Peer::Loopback);
        let server = self.places[step.other].as_ref()?;
        let address = server.socket.local_addr().ok()?.as_socket()?;
        (is_here && server.is_stream()).then_some(address.port())
    }

    fn send(
        &mut self,
        made: &mut Made,
        step: Step,
        (way, peer, to, size): (Way, Peer, SocketAddr, u16),
    ) -> io::Result<()> {
        let target = match way {
            Way::Send => made.peer,
            _ => Some((peer, to.port())),
        };
        let is_due = made.is_plain
            && made.kind == Kind::Udp
            && matches!(way, Way::Send | Way::SendTo)
            && target.is_some_and(|to| may(made.scope, made.net, made.target(to)) == May::Yes);
        let tag = Tag {
            scope: made.scope,
            net: made.net,
            is_due,
            number: self.options.number << 29 | self.step & 0x1fff_ffff,
        };
        let mut bytes = tag.to_bytes();
        while bytes.len() < usize::from(size) {
            bytes.extend(tag.to_bytes());
        }
        let bytes = written(made, way, to, &bytes);
        let address = SockAddr::from(to);
        let result = match way {
            Way::Send => made.socket.send(&bytes),
            Way::SendTo => made.socket.send_to(&bytes, &address),
            Way::More => {
                made.is_plain = false;
                made.socket
                    .send_to_with_flags(&bytes, &address, libc::MSG_MORE)
            }
            Way::FastOpen => made
                .socket
                .send_to_with_flags(&bytes, &address, libc::MSG_FASTOPEN),
            Way::PacketInfo(source) if made.kind != Kind::Packet => {
                let source = source.address(made.v6);
                send_from(&made.socket, &bytes, source, 0, to).map(|()| bytes.len())
            }
            Way::PacketInfo(_) => made.socket.send_to(&bytes, &address),
            Way::Many => {
                let open = SockAddr::from(SocketAddr::new(Peer::Open.address(made.v6), 9000));
                sys::sendmmsg(&made.socket, &bytes, &[open, address])
            }
        };
        if result.is_ok() {
            self.sent += 1;
            self.due += u64::from(is_due);
        } else if is_due && is_refused(&result) {
            self.complain(step);
        }
        result.map(drop)
    }

    /// Prints a call that was refused although it is allowed, and the steps before it.
    fn complain(&self, step: Step) {
        println!(
            "refused seed {} step {} in {:?} {:?}: {step:?}",
            self.options.seed, self.step, self.scope, self.net
        );
        for (number, before) in &self.last {
            let moves = matches!(before.call, Call::Cgroup(_) | Call::Network(_));
            if before.place == step.place || before.other == step.place || moves {
                println!("before {number} {before:?}");
            }
        }
    }
}

fn is_refused<T>(result: &io::Result<T>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.raw_os_error() == Some(Errno::EPERM as i32))
}

/// Bytes for the kernel: with headers where the process writes them.
fn written(made: &Made, way: Way, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let source = match way {
        Way::PacketInfo(source) => source,
        _ => Peer::Node,
    };
    let ip = to.ip().to_canonical();
    let ends = Ends {
        from: source.address(ip.is_ipv6()),
        to: ip,
    };
    let (icmp, echo) = if ip.is_ipv4() {
        (ICMP, 8)
    } else {
        (ICMPV6, 128)
    };
    match made.kind {
        Kind::Ping => ends.icmp(echo, bytes),
        Kind::RawIcmp => {
            let kind = match to.port() {
                443 => echo + 1 - 9 * u8::from(ip.is_ipv4()),
                9000 => 3,
                _ => echo,
            };
            ends.icmp(kind, bytes)
        }
        Kind::RawUdp => ends.udp(7001, to.port(), bytes),
        Kind::Packet => {
            let (protocol, payload) = match to.port() {
                80 => (icmp, ends.icmp(echo, bytes)),
                7001 => (TCP, ends.tcp((7001, 443), (1, 0), SYN, bytes)),
                9001 => (IPIP, ends.packet(UDP, &ends.udp(7001, 9000, bytes))),
                port => (UDP, ends.udp(7001, port, bytes)),
            };
            match way {
                Way::More if ip.is_ipv4() => {
                    ends.ipv4().fragment(185, true).packet(protocol, &payload)
                }
                Way::FastOpen if ip.is_ipv4() => ends
                    .ipv4()
                    .options(&[131, 7, 4, 10, 78, 9, 1])
                    .packet(protocol, &payload),
                _ => ends.packet(protocol, &payload),
            }
        }
        Kind::Tcp | Kind::Mptcp | Kind::Udp | Kind::UdpLite => bytes.to_vec(),
    }
}

fn set(made: &Made, setting: Setting) -> io::Result<()> {
    let socket = &made.socket;
    let number = |on: bool| i32::from(on).to_ne_bytes();
    let (ip, udp) = (libc::IPPROTO_IP, libc::IPPROTO_UDP);
    match setting {
        Setting::Mark => socket.set_mark(51_966),
        Setting::Device(name) => socket.bind_device(Some(name.as_bytes())),
        Setting::Freebind if made.v6 => socket.set_freebind_v6(true),
        Setting::Freebind => socket.set_freebind_v4(true),
        Setting::Transparent if made.v6 => socket.set_ip_transparent_v6(true),
        Setting::Transparent => socket.set_ip_transparent_v4(true),
        Setting::Route if made.v6 => {
            let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
            header.extend([0; 16]);
            if let std::net::IpAddr::V6(hop) = Peer::Never.address(true) {
                header.extend(hop.octets());
            }
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &header)
        }
        Setting::Route => set_option(socket, ip, libc::IP_OPTIONS, &[131, 7, 4, 10, 78, 9, 1, 0]),
        Setting::Extension => {
            let header = [0, 0, 1, 4, 0, 0, 0, 0];
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &header)
        }
        Setting::Segment => set_option(socket, udp, libc::UDP_SEGMENT, &130_i32.to_ne_bytes()),
        Setting::Cork(on) if made.is_stream() => socket.set_tcp_cork(on),
        Setting::Cork(on) => set_option(socket, udp, libc::UDP_CORK, &number(on)),
        Setting::Repair(on) => set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &number(on)),
        Setting::UnicastDevice => {
            let index = nix::net::if_::if_nametoindex("eth0")?.to_be_bytes();
            set_option(socket, ip, libc::IP_UNICAST_IF, &index)
        }
        Setting::Hops(hops) if made.v6 => socket.set_unicast_hops_v6(hops.into()),
        Setting::Hops(hops) => socket.set_ttl_v4(hops.into()),
        Setting::Discover(how) => {
            let how = i32::from(how).to_ne_bytes();
            set_option(socket, ip, libc::IP_MTU_DISCOVER, &how)
        }
    }
}

/// Hands a socket to this process itself, as one that comes from elsewhere.
fn pass(socket: &Socket) -> io::Result<Socket> {
    let (giver, taker) = socketpair(
        AddressFamily::Unix,
        SockType::Datagram,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    let descriptors = [socket.as_raw_fd()];
    sendmsg::<UnixAddr>(
        giver.as_raw_fd(),
        &[io::IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::empty(),
        None,
    )?;
    let mut byte = [0; 1];
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::empty();
    let message = recvmsg::<UnixAddr>(taker.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    match message.cmsgs()?.next() {
        Some(ControlMessageOwned::ScmRights(descriptors)) if descriptors.len() == 1 => {
            Ok(sys::adopt(descriptors[0]))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Options of `probe own-watch`.
#[derive(Args, Debug)]
pub(crate) struct OwnWatch {
    /// Interface to watch.
    interface: String,
}

impl OwnWatch {
    /// Prints `forbidden ...` for each packet that must not be here, and twice a second `seen DUE TAGGED ALL`.
    pub(crate) fn run(&self) -> Result<()> {
        let socket = Socket::from(
            socket(
                AddressFamily::Packet,
                SockType::Datagram,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .context("cannot make a packet socket")?,
        );
        nix::sys::socket::bind(socket.as_raw_fd(), &sys::every_protocol(&self.interface)?)
            .context("cannot bind")?;
        let (level, name) = (libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING);
        set_option(&socket, level, name, &1_i32.to_ne_bytes()).context("cannot set")?;
        let room = (64_i32 << 20).to_ne_bytes();
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &room).context("cannot set")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        println!("ready");
        let mut buffer = vec![0; 65_536];
        let (mut due, mut tagged, mut all) = (HashSet::new(), 0_u64, 0_u64);
        let mut told = Instant::now();
        loop {
            if told.elapsed() > Duration::from_millis(500) {
                println!("seen {} {tagged} {all}", due.len());
                told = Instant::now();
            }
            let length = match (&socket).read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context("cannot receive"),
            };
            let packet = &buffer[..length];
            let Some(seen) = Seen::read(packet) else {
                continue;
            };
            all += 1;
            let tag = Tag::find(packet);
            tagged += u64::from(tag.is_some());
            if seen.may(tag) == May::No {
                println!("forbidden {seen:?} {tag:?} {}", crate::client::hex(packet));
            } else if let Some(tag) = tag
                && tag.is_due
            {
                due.insert(tag.number);
            }
        }
    }
}
