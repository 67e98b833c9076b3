//! Traffic of all kinds at once, until a signal ends it.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::{
    dns::any_like,
    interrupt,
    report::{Load as Report, Traffic},
};
use hickory_proto::rr::RecordType;
use nix::libc;

use crate::{
    client::{name_of, print},
    dns_client::{connect, resolve},
};

/// Longest wait for anything that is allowed: far above what a busy machine takes.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for anything that is forbidden, were it not refused at once.
const FORBIDDEN_LIMIT: Duration = Duration::from_millis(300);
/// So many names have an IPv4 address that is theirs alone; those after them are asked for their IPv6 address.
const FRESH_NAMES_V4: u32 = 30_000;
/// So many fresh names, then the first again: however fast the machine, what is learned fits into the table twice.
const FRESH_NAMES: u32 = 100_000;
/// Names that are not allowed have other addresses than these.
const STALE_NAMES: std::ops::Range<u32> = 30_000..32_000;

/// Options of `probe load`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Load {
    /// An allowed address, on whose ports 80 (TCP) and 443 (UDP) all is echoed.
    allowed: IpAddr,
    /// A forbidden address.
    forbidden: IpAddr,
    /// Resolver for fresh names.
    #[arg(long)]
    server: IpAddr,
    /// Names below this are allowed.
    #[arg(long)]
    zone: String,
    /// Names below this are not.
    #[arg(long)]
    stale_zone: String,
    /// Pause after each exchange, microseconds.
    #[arg(long, default_value_t = 500)]
    pause_us: u64,
}

impl Load {
    /// Prints `ready`, and at SIGTERM what happened.
    pub(crate) fn run(&self) -> Result<()> {
        interrupt::catch().context("cannot catch signals")?;
        println!("ready");
        let run = |work: fn(&Self, u32) -> Step| {
            let load = self.clone();
            thread::spawn(move || load.repeat(|round| work(&load, round)))
        };
        let streams: Vec<_> = (0..2)
            .map(|_| {
                let load = self.clone();
                thread::spawn(move || load.stream())
            })
            .collect();
        let datagrams = {
            let load = self.clone();
            thread::spawn(move || load.datagrams())
        };
        let connects = run(Self::connect_once);
        let lookups = run(Self::look_up_and_connect);
        let forbidden = run(Self::try_forbidden);
        let stale = run(Self::try_stale_name);
        let mut report = Report::default();
        for stream in streams {
            report.streams.add(ended(stream)?);
        }
        report.datagrams = ended(datagrams)?;
        report.connects = ended(connects)?;
        report.lookups = ended(lookups)?;
        report.forbidden = ended(forbidden)?;
        report.forbidden.add(ended(stale)?);
        print(&report)
    }

    /// Does one thing again and again.
    fn repeat(&self, mut work: impl FnMut(u32) -> Step) -> Traffic {
        let mut traffic = Traffic::default();
        let begin = Instant::now();
        for round in 0_u32.. {
            if interrupt::requested() {
                break;
            }
            match work(round) {
                Ok(()) => traffic.done += 1,
                Err(error) => {
                    traffic.failed += 1;
                    if traffic.examples.len() < 5 {
                        let at = begin.elapsed().as_secs_f64();
                        traffic.examples.push(format!("after {at:.3} s: {error}"));
                    }
                }
            }
            thread::sleep(Duration::from_micros(self.pause_us));
        }
        traffic
    }

    /// One TCP stream, as fast as its echo comes back; opened anew only when it breaks.
    fn stream(&self) -> Traffic {
        let to = SocketAddr::from((self.allowed, 80));
        let mut open: Option<TcpStream> = None;
        let out = [7_u8; 16_384];
        let mut back = [0_u8; 16_384];
        self.repeat(|_| {
            let mut stream = match open.take() {
                Some(stream) => stream,
                None => {
                    let stream = TcpStream::connect_timeout(&to, LIMIT).map_err(at("connect"))?;
                    stream.set_read_timeout(Some(LIMIT)).map_err(at("socket"))?;
                    stream
                }
            };
            stream.write_all(&out).map_err(at("send"))?;
            stream.read_exact(&mut back).map_err(at("receive"))?;
            open = Some(stream);
            Ok(())
        })
    }

    /// A UDP flow.
    fn datagrams(&self) -> Traffic {
        let socket = match UdpSocket::bind(any_like(self.allowed)) {
            Ok(socket) => socket,
            Err(error) => {
                return Traffic {
                    failed: 1,
                    examples: vec![error.to_string()],
                    ..Traffic::default()
                };
            }
        };
        self.repeat(|_| {
            socket
                .connect((self.allowed, 443))
                .map_err(at("connect datagrams"))?;
            socket
                .set_read_timeout(Some(LIMIT))
                .map_err(at("datagrams"))?;
            socket.send(b"hello").map_err(at("send datagram"))?;
            socket
                .recv(&mut [0; 16])
                .map(|_| ())
                .map_err(at("receive datagram"))
        })
    }

    fn connect_once(&self, _round: u32) -> Step {
        connect((self.allowed, 80).into(), LIMIT).map_err(at("connect"))
    }

    fn look_up_and_connect(&self, round: u32) -> Step {
        let number = round % FRESH_NAMES;
        let name = format!("n{number}.{}", self.zone);
        let kind = if number < FRESH_NAMES_V4 {
            RecordType::A
        } else {
            RecordType::AAAA
        };
        let address = resolve(self.server, &name, round as u16, kind, false)
            .map_err(|error| format!("{name}: {error:#}"))?;
        connect((address, 80).into(), LIMIT)
            .map_err(|error| format!("{name} {address}: {}", name_of(&error)))
    }

    /// Fails if it gets through: TCP, and UDP in turn.
    fn try_forbidden(&self, round: u32) -> Step {
        if round.is_multiple_of(2) {
            return must_fail(connect((self.forbidden, 80).into(), FORBIDDEN_LIMIT));
        }
        let socket = UdpSocket::bind(any_like(self.forbidden)).map_err(at("socket"))?;
        must_fail(socket.send_to(b"hello", (self.forbidden, 443)).map(|_| ()))
    }

    /// Fails if an address gets open by a name that is not allowed.
    fn try_stale_name(&self, round: u32) -> Step {
        let number = STALE_NAMES.start + round % (STALE_NAMES.end - STALE_NAMES.start);
        let name = format!("n{number}.{}", self.stale_zone);
        let address = resolve(self.server, &name, round as u16, RecordType::A, false)
            .map_err(|error| format!("{name}: {error:#}"))?;
        must_fail(connect((address, 80).into(), FORBIDDEN_LIMIT))
    }
}

/// Result of a step, with the error as text.
type Step = Result<(), String>;

fn at(stage: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{stage}: {}", name_of(&error))
}

/// The twin: only the programs' own error will do.
fn must_fail(result: io::Result<()>) -> Step {
    match result {
        Ok(()) => Err("it got through".to_owned()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        Err(error) => Err(format!("not refused but {}", name_of(&error))),
    }
}

fn ended(thread: thread::JoinHandle<Traffic>) -> Result<Traffic> {
    match thread.join() {
        Ok(traffic) => Ok(traffic),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
