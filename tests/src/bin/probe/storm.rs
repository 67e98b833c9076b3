//! Floods: DNS answers of names that nobody has asked for before, denied datagrams, connects one after another.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::{
    dns::any_like,
    report::{Steadiness, Storm},
    zone,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::client::{name_of, print};

/// Options of `probe storm-server`.
#[derive(Args, Debug)]
pub(crate) struct StormServer {
    /// Address to serve on, port 53.
    #[arg(long, default_value = zone::SERVER)]
    listen: IpAddr,
    /// Addresses in an answer.
    #[arg(long, default_value_t = 100)]
    records: u32,
    /// The first address.
    #[arg(long, default_value = "11.0.0.0")]
    pool: Ipv4Addr,
    /// Addresses before they come again.
    #[arg(long, default_value_t = 1 << 24)]
    pool_size: u32,
    #[arg(long, default_value_t = 300)]
    ttl: u32,
}

impl StormServer {
    /// Answers questions for `n<number>.…` with the addresses from `number * records` on, by copying bytes.
    pub(crate) fn run(&self) -> Result<()> {
        let socket = UdpSocket::bind((self.listen, 53)).context("cannot bind")?;
        println!("ready");
        let mut query = [0; 512];
        let mut answer = Vec::with_capacity(65_536);
        let [ttl0, ttl1, ttl2, ttl3] = self.ttl.to_be_bytes();
        loop {
            let (length, peer) = socket.recv_from(&mut query).context("cannot receive")?;
            let Some(question) = question(&query[..length]) else {
                continue;
            };
            answer.clear();
            answer.extend([query[0], query[1], 0x81, 0x80, 0, 1]);
            answer.extend((self.records as u16).to_be_bytes());
            answer.extend([0; 4]);
            answer.extend(question);
            let first = number(question).wrapping_mul(self.records);
            for record in 0..self.records {
                let offset = first.wrapping_add(record) % self.pool_size;
                let address = u32::from(self.pool).wrapping_add(offset).to_be_bytes();
                answer.extend([0xc0, 12, 0, 1, 0, 1, ttl0, ttl1, ttl2, ttl3, 0, 4]);
                answer.extend(address);
            }
            // A full buffer is the flood's business.
            let _ = socket.send_to(&answer, peer);
        }
    }
}

/// The question of a query without anything behind it.
fn question(query: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    loop {
        match *query.get(at)? {
            0 => return query.get(12..at + 5),
            length => at += 1 + usize::from(length),
        }
    }
}

/// The digits of the first label.
fn number(question: &[u8]) -> u32 {
    let length = usize::from(question[0]);
    question[1..=length]
        .iter()
        .filter(|byte| byte.is_ascii_digit())
        .fold(0_u32, |number, digit| {
            number
                .wrapping_mul(10)
                .wrapping_add(u32::from(digit - b'0'))
        })
}

/// Options of `probe storm`.
#[derive(Args, Debug)]
pub(crate) struct StormClient {
    /// Resolver to ask.
    #[arg(long, default_value = zone::SERVER)]
    server: IpAddr,
    /// Names are `<label><number>.<zone>`; of several zones each in its turn.
    #[arg(long, required = true)]
    zone: Vec<String>,
    #[arg(long, default_value = "n")]
    label: String,
    /// Number of the first name.
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// Most names.
    #[arg(long, default_value_t = u32::MAX)]
    count: u32,
    /// Longest time.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Most queries per second.
    #[arg(long, default_value_t = 10_000)]
    rate: u32,
    /// Most queries without an answer.
    #[arg(long, default_value_t = 64)]
    window: u32,
}

impl StormClient {
    pub(crate) fn run(&self) -> Result<()> {
        let socket = UdpSocket::bind(any_like(self.server)).context("cannot bind")?;
        socket
            .connect((self.server, 53))
            .context("cannot connect")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let zones: Vec<Vec<u8>> = self.zone.iter().map(|zone| labels(zone)).collect();
        let begin = Instant::now();
        let limit = Duration::from_secs(self.seconds);
        let mut storm = Storm::default();
        let mut waiting = 0;
        let mut buffer = [0; 65_536];
        while storm.sent < u64::from(self.count) && begin.elapsed() < limit {
            let due = begin.elapsed().as_secs_f64() * f64::from(self.rate);
            if waiting < self.window && (storm.sent as f64) < due {
                let number = self.first.wrapping_add(storm.sent as u32);
                let zone = &zones[number as usize % zones.len()];
                if let Err(error) = socket.send(&query(number, &self.label, zone)) {
                    storm.note(&name_of(&error));
                }
                storm.sent += 1;
                waiting += 1;
                if waiting < self.window {
                    continue;
                }
            }
            if waiting == 0 {
                thread::sleep(Duration::from_micros(50));
                continue;
            }
            match socket.recv(&mut buffer) {
                Ok(_) => {
                    storm.answered += 1;
                    waiting -= 1;
                }
                // Answers that have not come by now are lost.
                Err(_) => waiting = 0,
            }
        }
        while waiting > 0 && socket.recv(&mut buffer).is_ok() {
            storm.answered += 1;
            waiting -= 1;
        }
        storm.elapsed_ms = begin.elapsed().as_secs_f64() * 1000.0;
        print(&storm)
    }
}

/// A name in wire format, its end too.
fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn query(number: u32, label: &str, zone: &[u8]) -> Vec<u8> {
    let [high, low] = (number as u16).to_be_bytes();
    let label = format!("{label}{number}");
    let mut bytes = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, label.len() as u8];
    bytes.extend(label.as_bytes());
    bytes.extend(zone);
    bytes.extend([0, 1, 0, 1]);
    bytes
}

/// Options of `probe storm-udp`.
#[derive(Args, Debug)]
pub(crate) struct StormUdp {
    address: IpAddr,
    port: u16,
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
}

impl StormUdp {
    /// Sends datagrams as fast as it can.
    pub(crate) fn run(&self) -> Result<()> {
        if let Some(cpu) = self.cpu {
            let mut set = CpuSet::new();
            set.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &set).context("cannot choose the CPU")?;
        }
        let socket = UdpSocket::bind(any_like(self.address)).context("cannot bind")?;
        let to = SocketAddr::from((self.address, self.port));
        let begin = Instant::now();
        let mut storm = Storm::default();
        while begin.elapsed() < Duration::from_secs(self.seconds) {
            for _ in 0..64 {
                storm.sent += 1;
                match socket.send_to(b"storm", to) {
                    Ok(_) => storm.answered += 1,
                    Err(error) if error.raw_os_error() == Some(nix::libc::EPERM) => {
                        storm.refused += 1;
                    }
                    Err(error) => storm.note(&name_of(&error)),
                }
            }
        }
        storm.elapsed_ms = begin.elapsed().as_secs_f64() * 1000.0;
        print(&storm)
    }
}

/// Options of `probe steady`.
#[derive(Args, Debug)]
pub(crate) struct Steady {
    /// Destinations, each in its turn.
    #[arg(required = true)]
    address: Vec<IpAddr>,
    #[arg(long, default_value_t = 80)]
    port: u16,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Pause after each.
    #[arg(long, default_value_t = 5)]
    pause_ms: u64,
}

impl Steady {
    /// Connects again and again, with an echo each time.
    pub(crate) fn run(&self) -> Result<()> {
        println!("ready");
        let begin = Instant::now();
        let mut steadiness = Steadiness::default();
        for address in self.address.iter().cycle() {
            if begin.elapsed() >= Duration::from_secs(self.seconds) {
                break;
            }
            let one = Instant::now();
            match self.exchange((*address, self.port).into()) {
                Ok(()) => steadiness.ok += 1,
                Err(error) => {
                    steadiness.failed += 1;
                    if steadiness.examples.len() < 5 {
                        steadiness
                            .examples
                            .push(format!("{address}: {}", name_of(&error)));
                    }
                }
            }
            let took_ms = one.elapsed().as_secs_f64() * 1000.0;
            steadiness.slowest_ms = steadiness.slowest_ms.max(took_ms);
            thread::sleep(Duration::from_millis(self.pause_ms));
        }
        print(&steadiness)
    }

    fn exchange(&self, to: SocketAddr) -> io::Result<()> {
        use std::io::{Read as _, Write as _};
        let limit = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&to, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])
    }
}
