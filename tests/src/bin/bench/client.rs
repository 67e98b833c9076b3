//! The clients: each measures one thing and prints its figures as one JSON object.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use nix::{
    errno::Errno,
    time::{ClockId, clock_gettime},
};
use socket2::{Domain, Socket, Type};

use crate::{
    place,
    serve::{self, DATAGRAM_PORT, HELLO_PORT, REQUEST_BYTES, REQUEST_PORT, STREAM_PORT},
    wire,
};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(2);
/// Bytes of a small datagram.
const SMALL: usize = 64;
/// Sink addresses that the first packets of flows go to.
pub(crate) const SINK_COUNT: u32 = 1_000;
/// Where nothing is allowed; routed to the sink.
pub(crate) const DENIED: Ipv4Addr = Ipv4Addr::new(10, 65, 0, 1);
/// Queries on their way at the same time.
const WINDOW: u32 = 32;

/// Figures by name.
pub(crate) type Sample = BTreeMap<String, f64>;

/// Options of `bench client`.
#[derive(Args, Debug)]
pub(crate) struct Client {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Nanoseconds of a packet of an established flow.
    Established { count: u32 },
    /// Nanoseconds of a socket with one packet.
    First { count: u32 },
    /// Nanoseconds of a packet that should be denied.
    Denied { count: u32 },
    /// Nanoseconds of a datagram and its echo.
    Echo { count: u32 },
    /// Connections with a request, each second.
    Connections { ms: u64 },
    /// Bytes of a TCP stream, each second.
    Stream { ms: u64 },
    /// Small datagrams, each second.
    Datagrams { ms: u64 },
    /// One lookup after the other.
    Lookups {
        server: SocketAddr,
        label: String,
        first: u32,
        count: u32,
        #[command(flatten)]
        how: How,
    },
    /// Many lookups at the same time.
    Queries {
        server: SocketAddr,
        first: u32,
        ms: u64,
    },
    /// Lookups, each followed by a datagram and a connect.
    Race {
        server: SocketAddr,
        first: u32,
        count: u32,
    },
    /// Lookups at a given rate.
    Paced {
        server: SocketAddr,
        label: String,
        first: u32,
        count: u32,
        per_s: u32,
    },
}

/// How names are looked up.
#[derive(Args, Clone, Copy, Debug)]
struct How {
    /// Each from a socket of its own, as the C library does.
    #[arg(long)]
    fresh: bool,
    /// The first name again and again.
    #[arg(long)]
    again: bool,
}

impl Client {
    pub(crate) fn run(&self) -> Result<()> {
        place::stay_on(place::CLIENT_CPU);
        let sample = match &self.what {
            What::Established { count } => established(*count)?,
            What::First { count } => first(*count)?,
            What::Denied { count } => denied(*count)?,
            What::Echo { count } => echo(*count)?,
            What::Connections { ms } => connections(Duration::from_millis(*ms))?,
            What::Stream { ms } => stream(Duration::from_millis(*ms))?,
            What::Datagrams { ms } => datagrams(Duration::from_millis(*ms))?,
            What::Lookups {
                server,
                label,
                first,
                count,
                how,
            } => lookups(*server, label, *first, *count, *how)?,
            What::Queries { server, first, ms } => {
                queries(*server, *first, Duration::from_millis(*ms))?
            }
            What::Race {
                server,
                first,
                count,
            } => race(*server, *first, *count)?,
            What::Paced {
                server,
                label,
                first,
                count,
                per_s,
            } => paced(*server, label, *first, *count, *per_s)?,
        };
        println!("{}", serde_json::to_string(&sample)?);
        Ok(())
    }
}

fn sample(figures: &[(&str, f64)]) -> Sample {
    let named = figures
        .iter()
        .map(|(name, value)| ((*name).to_owned(), *value));
    named.collect()
}

/// CPU time of this thread: what others do on a shared machine is not in it.
fn cpu_time() -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("no CPU clock")?;
    Ok(now.into())
}

/// Parts of one measurement, of which the best counts: in the others somebody else had part of the core.
const PARTS: u32 = 16;
/// How long the parts of a measurement of a rate are. Short ones are not shared with others.
const SHORT: Duration = Duration::from_millis(8);
/// The same for a stream, whose buffers take a while to fill.
const LONG: Duration = Duration::from_millis(30);

/// Nanoseconds of CPU for one turn, in the fastest part of `count` turns.
fn cpu_ns(count: u32, mut turn: impl FnMut(u32) -> Result<()>) -> Result<Sample> {
    let part = (count / PARTS).max(1);
    let mut best = f64::INFINITY;
    // The first part only warms up.
    for index in 0..=PARTS {
        let begin = cpu_time()?;
        for number in 0..part {
            turn(index * part + number)?;
        }
        let ns = (cpu_time()? - begin).as_nanos() as f64 / f64::from(part);
        if index > 0 {
            best = best.min(ns);
        }
    }
    Ok(sample(&[("ns", best)]))
}

/// Operations per second, in the best part of this time; a turn returns how many it did.
fn best_rate(
    length: Duration,
    part: Duration,
    mut turn: impl FnMut() -> Result<f64>,
) -> Result<f64> {
    let mut best = 0_f64;
    let end = Instant::now() + length;
    while Instant::now() < end {
        let begin = Instant::now();
        let mut done = 0.0;
        while begin.elapsed() < part {
            done += turn()?;
        }
        best = best.max(done / begin.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn connected(to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot bind")?;
    socket.connect(to).context("cannot connect")?;
    socket.set_read_timeout(Some(LIMIT)).context("no timeout")?;
    Ok(socket)
}

fn established(count: u32) -> Result<Sample> {
    let socket = connected((serve::hello_address(), HELLO_PORT).into())?;
    // The answer makes the flow an established one for connection tracking too.
    socket.send(b"hello").context("cannot send")?;
    let mut buffer = [0; 16];
    socket.recv(&mut buffer).context("nobody answers")?;
    cpu_ns(count, |_| {
        socket.send(&[0; SMALL]).context("cannot send")?;
        Ok(())
    })
}

fn echo(count: u32) -> Result<Sample> {
    let socket = connected((serve::hello_address(), HELLO_PORT).into())?;
    let mut buffer = [0; 256];
    cpu_ns(count, |_| {
        // As long as an answer with one address; its first byte lets it pass to the far side.
        socket.send(&[b'h'; SMALL]).context("cannot send")?;
        socket.recv(&mut buffer).context("no echo")?;
        Ok(())
    })
}

fn first(count: u32) -> Result<Sample> {
    cpu_ns(count, |number| {
        let to = Ipv4Addr::from(u32::from(wire::SINK) + number % SINK_COUNT);
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).context("no socket")?;
        let to = SocketAddr::from((to, DATAGRAM_PORT));
        socket.connect(&to.into()).context("cannot connect")?;
        socket.send(&[0; SMALL]).context("cannot send")?;
        Ok(())
    })
}

fn denied(count: u32) -> Result<Sample> {
    let socket = connected((DENIED, DATAGRAM_PORT).into())?;
    let (mut sent, mut refused) = (0_u32, 0_u32);
    let mut figures = cpu_ns(count, |_| {
        sent += 1;
        refused += u32::from(socket.send(&[0; SMALL]).is_err());
        Ok(())
    })?;
    let part = f64::from(refused) / f64::from(sent);
    figures.insert("refused".to_owned(), part);
    Ok(figures)
}

/// Addresses behind the servers, all of them learned.
fn reused(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(wire::REUSED) + number % 64)
}

fn connections(length: Duration) -> Result<Sample> {
    let mut count = 0;
    let mut buffer = Vec::new();
    let per_s = best_rate(length, SHORT, || {
        let mut stream =
            TcpStream::connect((reused(count), REQUEST_PORT)).context("cannot connect")?;
        stream
            .write_all(&[b'r'; REQUEST_BYTES])
            .context("cannot ask")?;
        buffer.clear();
        stream.read_to_end(&mut buffer).context("no answer")?;
        ensure!(!buffer.is_empty(), "an empty answer");
        count += 1;
        Ok(1.0)
    })?;
    Ok(sample(&[("per_s", per_s)]))
}

fn stream(length: Duration) -> Result<Sample> {
    let mut stream = TcpStream::connect((reused(0), STREAM_PORT)).context("cannot connect")?;
    let chunk = vec![0; 1 << 16];
    let gbit = best_rate(length, LONG, || {
        stream.write_all(&chunk).context("cannot send")?;
        Ok(chunk.len() as f64 * 8.0 / 1e9)
    })?;
    Ok(sample(&[("gbit_per_s", gbit)]))
}

fn datagrams(length: Duration) -> Result<Sample> {
    let socket = connected((reused(1), DATAGRAM_PORT).into())?;
    let per_s = best_rate(length, SHORT, || {
        for _ in 0..64 {
            socket.send(&[0; SMALL]).context("cannot send")?;
        }
        Ok(64.0)
    })?;
    Ok(sample(&[("per_s", per_s)]))
}

/// Asks and waits for the answer.
fn look_up(socket: &UdpSocket, label: &str, buffer: &mut [u8]) -> Result<Ipv4Addr> {
    let id = label.bytes().fold(7_u16, |id, byte| {
        id.wrapping_mul(31).wrapping_add(u16::from(byte))
    });
    let query = wire::query(id, label);
    socket.send(&query).context("cannot ask")?;
    loop {
        let length = socket.recv(buffer).context("no answer")?;
        let answer = &buffer[..length];
        if answer.starts_with(&id.to_be_bytes()) {
            return wire::last_address(answer).context("an answer without an address");
        }
    }
}

fn lookups(
    server: SocketAddr,
    label: &str,
    first: u32,
    count: u32,
    How { fresh, again }: How,
) -> Result<Sample> {
    let mut socket = connected(server)?;
    let mut buffer = [0; 2_048];
    let mut times = Vec::new();
    for number in first..first + count {
        let label = format!("{label}{}", if again { first } else { number });
        let begin = Instant::now();
        if fresh {
            socket = connected(server)?;
        }
        look_up(&socket, &label, &mut buffer)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    let at = |part: usize| {
        let time = times.get(times.len() * part / 100).or(times.last());
        time.map_or(0.0, |time| time.as_nanos() as f64 / 1e3)
    };
    Ok(sample(&[("p50_us", at(50)), ("p99_us", at(99))]))
}

fn queries(server: SocketAddr, first: u32, length: Duration) -> Result<Sample> {
    let socket = connected(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut buffer = [0; 2_048];
    let mut lost = 0_u32;
    let mut number = first;
    let mut ask = || -> Result<()> {
        number += 1;
        let query = wire::query(number as u16, &format!("r{number}"));
        socket.send(&query).context("cannot ask")?;
        Ok(())
    };
    for _ in 0..WINDOW {
        ask()?;
    }
    let per_s = best_rate(length, SHORT, || {
        if socket.recv(&mut buffer).is_ok() {
            ask()?;
            return Ok(1.0);
        }
        lost += WINDOW;
        for _ in 0..WINDOW {
            ask()?;
        }
        Ok(0.0)
    })?;
    Ok(sample(&[("per_s", per_s), ("lost", f64::from(lost))]))
}

fn is_refused(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EPERM as i32)
}

fn race(server: SocketAddr, first: u32, count: u32) -> Result<Sample> {
    let resolver = connected(server)?;
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot bind")?;
    let mut buffer = [0; 2_048];
    let (mut refused, mut unresolved) = (0_u32, 0_u32);
    for number in first..first + count {
        let Ok(address) = look_up(&resolver, &format!("n{number}"), &mut buffer) else {
            unresolved += 1;
            continue;
        };
        let sent = datagrams.send_to(b"x", (address, DATAGRAM_PORT));
        let stream = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        let to = SocketAddr::V4(SocketAddrV4::new(address, REQUEST_PORT));
        let connected = stream.connect(&to.into());
        let is_lost =
            sent.as_ref().is_err_and(is_refused) || connected.as_ref().is_err_and(is_refused);
        refused += u32::from(is_lost);
    }
    let asked = f64::from(count - unresolved);
    ensure!(asked > 0.0, "nothing was resolved");
    Ok(sample(&[
        ("refused", f64::from(refused)),
        ("asked", asked),
        ("per_million", f64::from(refused) * 1e6 / asked),
    ]))
}

fn paced(server: SocketAddr, label: &str, first: u32, count: u32, per_s: u32) -> Result<Sample> {
    let socket = connected(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buffer = [0; 2_048];
    let begin = Instant::now();
    let batch = (per_s / 500).max(1);
    let mut answered = 0_u32;
    let mut number = first;
    while number < first + count {
        let until = (number + batch).min(first + count);
        for number in number..until {
            let query = wire::query(number as u16, &format!("{label}{number}"));
            socket.send(&query).context("cannot ask")?;
        }
        for _ in number..until {
            answered += u32::from(socket.recv(&mut buffer).is_ok());
        }
        number = until;
        let due = Duration::from_secs_f64(f64::from(number - first) / f64::from(per_s));
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
    }
    let per_s = f64::from(answered) / begin.elapsed().as_secs_f64();
    Ok(sample(&[
        ("per_s", per_s),
        ("answered", f64::from(answered)),
    ]))
}
