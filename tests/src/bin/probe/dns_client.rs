//! DNS clients.

use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use egress_tests::{
    dns,
    report::{Arrived, Lookup, Series},
};
use hickory_proto::{op::Message, rr::RecordType};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::{hex, name_of, print};

/// Type of record to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
enum Kind {
    A,
    Aaaa,
    Svcb,
    Https,
}

impl Kind {
    const fn record(self) -> RecordType {
        match self {
            Self::A => RecordType::A,
            Self::Aaaa => RecordType::AAAA,
            Self::Svcb => RecordType::SVCB,
            Self::Https => RecordType::HTTPS,
        }
    }
}

/// Options of `probe resolve`.
#[derive(Args, Debug)]
pub(crate) struct Resolve {
    name: String,
    /// Resolver to ask.
    #[arg(long)]
    server: IpAddr,
    #[arg(long, value_enum, ignore_case = true, default_value = "A")]
    r#type: Kind,
    /// Ask over TCP.
    #[arg(long)]
    tcp: bool,
    /// Over TCP: send each byte of the query in a segment of its own.
    #[arg(long, requires = "tcp")]
    split: bool,
    /// Over TCP: ask for these names too, all queries in one segment.
    #[arg(long, requires = "tcp")]
    also: Vec<String>,
    /// Ask from an unconnected socket, which hears everybody.
    #[arg(long)]
    unconnected: bool,
    /// Go on receiving for this long and report everything.
    #[arg(long)]
    collect: Option<u64>,
    /// Longest wait for an answer.
    #[arg(long, default_value_t = 2000)]
    timeout: u64,
    /// Id of the query.
    #[arg(long)]
    id: Option<u16>,
    /// Port to ask from, over UDP.
    #[arg(long, default_value_t = 0)]
    from_port: u16,
    /// Group on `eth0` that the asking socket is a member of.
    #[arg(long)]
    group: Option<std::net::Ipv6Addr>,
}

impl Resolve {
    pub(crate) fn run(&self) -> Result<()> {
        let begin = Instant::now();
        let mut lookup = Lookup::default();
        if let Err(error) = self.ask(&mut lookup) {
            lookup.error = Some(format!("{error:#}"));
        }
        lookup.elapsed_ms = begin.elapsed().as_secs_f64() * 1000.0;
        print(&lookup)
    }

    fn ask(&self, lookup: &mut Lookup) -> Result<()> {
        let id = self.id.unwrap_or(std::process::id() as u16);
        let query = dns::query(id, &self.name, self.r#type.record())?;
        let server = SocketAddr::from((self.server, 53));
        let limit = Duration::from_millis(self.timeout);
        if self.tcp {
            return self.ask_tcp(id, server, limit, lookup);
        }
        let mut own = dns::any_like(self.server);
        own.set_port(self.from_port);
        let socket = UdpSocket::bind(own).context("cannot bind")?;
        if let Some(group) = &self.group {
            let index = nix::net::if_::if_nametoindex("eth0")?;
            socket
                .join_multicast_v6(group, index)
                .context("cannot join")?;
        }
        if self.unconnected {
            socket.send_to(&query, server).context("cannot send")?;
        } else {
            socket.connect(server).context("cannot connect")?;
            socket.send(&query).context("cannot send")?;
        }
        let limit = self.collect.map_or(limit, Duration::from_millis);
        let end = Instant::now() + limit;
        let mut buffer = vec![0; 65_536];
        let mut result = Err(anyhow::anyhow!("no answer"));
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return result;
            }
            socket.set_read_timeout(Some(left))?;
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                return result;
            };
            let bytes = &buffer[..length];
            lookup.arrived.push(Arrived {
                from,
                hex: hex(bytes),
            });
            if result.is_err() {
                result = read(bytes, lookup);
            }
            if self.collect.is_none() && result.is_ok() {
                return result;
            }
        }
    }
}

impl Resolve {
    /// Asks for all names over one connection; the addresses of all answers are reported, in the answers' order.
    fn ask_tcp(
        &self,
        id: u16,
        server: SocketAddr,
        limit: Duration,
        lookup: &mut Lookup,
    ) -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&server, limit).context("cannot connect")?;
        stream.set_read_timeout(Some(limit)).context("no timeout")?;
        stream.set_nodelay(true).context("no delay")?;
        let mut bytes = Vec::new();
        for (number, name) in (0..).zip(std::iter::once(&self.name).chain(&self.also)) {
            let query = dns::query(id.wrapping_add(number), name, self.r#type.record())?;
            bytes.extend((query.len() as u16).to_be_bytes());
            bytes.extend(query);
        }
        if self.split {
            for byte in &bytes {
                stream.write_all(&[*byte]).context("cannot send")?;
                thread::sleep(Duration::from_millis(1));
            }
        } else {
            stream.write_all(&bytes).context("cannot send")?;
        }
        let mut addresses = Vec::new();
        for _ in 0..=self.also.len() {
            let answer = dns::read_framed(&mut stream)?;
            lookup.arrived.push(Arrived {
                from: server,
                hex: hex(&answer),
            });
            read(&answer, lookup)?;
            addresses.append(&mut lookup.addresses);
        }
        lookup.addresses = addresses;
        Ok(())
    }
}

/// Reads an answer into the report.
fn read(bytes: &[u8], lookup: &mut Lookup) -> Result<()> {
    let message = Message::from_vec(bytes).context("unreadable answer")?;
    let addresses = dns::addresses(&message);
    lookup.rcode = Some(format!("{:?}", message.metadata.response_code).to_uppercase());
    lookup.truncated = message.metadata.truncation;
    lookup.ttl = addresses.iter().map(|(_, ttl)| *ttl).min();
    lookup.addresses = addresses.into_iter().map(|(address, _)| address).collect();
    Ok(())
}

/// Options of `probe resolve-connect`.
#[derive(Args, Debug)]
pub(crate) struct ResolveConnect {
    /// Number of names.
    #[arg(long, default_value_t = 1000)]
    count: u32,
    /// Number of the first name.
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// Resolver to ask.
    #[arg(long)]
    server: IpAddr,
    /// Names are `n<number>.<zone>`.
    #[arg(long)]
    zone: String,
    #[arg(long, value_enum, ignore_case = true, default_value = "A")]
    r#type: Kind,
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// Ask over TCP.
    #[arg(long)]
    tcp: bool,
    /// CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// Longest wait for a handshake.
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
}

impl ResolveConnect {
    pub(crate) fn run(&self) -> Result<()> {
        if let Some(cpu) = self.cpu {
            let mut set = CpuSet::new();
            set.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &set).context("cannot choose the CPU")?;
        }
        let begin = Instant::now();
        let mut series = Series::default();
        let mut times = Vec::new();
        for number in self.first..self.first.saturating_add(self.count) {
            series.count += 1;
            let name = format!("n{number}.{}", self.zone);
            let one = Instant::now();
            let address = match self.resolve(number, &name) {
                Ok(address) => address,
                Err(error) => {
                    series.unresolved += 1;
                    note(&mut series, format!("{name}: {error:#}"));
                    continue;
                }
            };
            match self.connect(address) {
                Ok(()) => times.push(one.elapsed()),
                Err(error) => {
                    if error.raw_os_error() == Some(nix::libc::EPERM) {
                        series.refused += 1;
                    } else {
                        series.failed += 1;
                    }
                    note(
                        &mut series,
                        format!("{name} {address}: {}", name_of(&error)),
                    );
                }
            }
        }
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        series.median_us = median.as_secs_f64() * 1e6;
        series.elapsed_ms = begin.elapsed().as_secs_f64() * 1000.0;
        print(&series)
    }

    fn resolve(&self, number: u32, name: &str) -> Result<IpAddr> {
        let kind = self.r#type.record();
        resolve(self.server, name, number as u16, kind, self.tcp)
    }

    fn connect(&self, address: IpAddr) -> io::Result<()> {
        let limit = Duration::from_millis(self.timeout);
        connect((address, self.port).into(), limit)
    }
}

/// Asks for a name; the first address of the answer.
pub(crate) fn resolve(
    server: IpAddr,
    name: &str,
    id: u16,
    kind: RecordType,
    over_tcp: bool,
) -> Result<IpAddr> {
    let query = dns::query(id, name, kind)?;
    let server = (server, 53).into();
    let limit = Duration::from_secs(2);
    let answer = if over_tcp {
        dns::ask_tcp(server, &query, limit)?
    } else {
        dns::ask_udp(server, &query, limit)?
    };
    let message = Message::from_vec(&answer).context("unreadable answer")?;
    match dns::addresses(&message).first() {
        Some((address, _)) => Ok(*address),
        None => bail!("no address"),
    }
}

/// Connects by TCP and closes by a reset: no thousands of ports in TIME_WAIT.
pub(crate) fn connect(to: SocketAddr, limit: Duration) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&to.into(), limit)
}

fn note(series: &mut Series, text: String) {
    if series.examples.len() < 5 {
        series.examples.push(text);
    }
}
