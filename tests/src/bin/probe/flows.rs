//! Flows in numbers: datagrams from many sockets to many peers, and a server that answers late.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Args;
use egress_tests::{
    dns::{any_like, query},
    report::Storm,
};
use hickory_proto::rr::RecordType;

use crate::client::{name_of, print};

/// Options of `probe spread`.
#[derive(Args, Debug)]
pub(crate) struct Spread {
    /// The first peer; the others follow it.
    address: Ipv4Addr,
    port: u16,
    /// Sockets that send, one after another.
    #[arg(long)]
    sockets: u32,
    /// Peers that each of them sends to.
    #[arg(long)]
    peers: u32,
    /// Ask for this name; else the datagrams are empty.
    #[arg(long)]
    ask: Option<String>,
}

impl Spread {
    /// Sends two datagrams from each socket to each peer, and reports how each went.
    pub(crate) fn run(&self) -> Result<()> {
        let begin = Instant::now();
        let mut storm = Storm::default();
        let bytes = match &self.ask {
            Some(name) => query(7, name, RecordType::A)?,
            None => Vec::new(),
        };
        for _ in 0..self.sockets {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot bind")?;
            socket.set_nonblocking(true)?;
            for peer in 0..2 * self.peers {
                let peer = Ipv4Addr::from_bits(self.address.to_bits() + peer % self.peers);
                storm.sent += 1;
                if let Err(error) = socket.send_to(&bytes, (peer, self.port)) {
                    storm.refused += 1;
                    storm.note(&name_of(&error));
                }
            }
        }
        storm.elapsed_ms = begin.elapsed().as_secs_f64() * 1000.0;
        print(&storm)
    }
}

/// Options of `probe call`.
#[derive(Args, Debug)]
pub(crate) struct Call {
    address: IpAddr,
    port: u16,
    /// Sockets that call once.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// What is sent.
    #[arg(long, default_value = "call")]
    text: String,
    /// From sockets that are connected to the address.
    #[arg(long)]
    connected: bool,
}

impl Call {
    /// Sends a datagram from each of some sockets, and waits for no answer.
    pub(crate) fn run(&self) -> Result<()> {
        let to = SocketAddr::from((self.address, self.port));
        let mut storm = Storm::default();
        for _ in 0..self.count {
            let socket = UdpSocket::bind(any_like(self.address)).context("cannot bind")?;
            if self.connected {
                socket.connect(to)?;
                socket.send(self.text.as_bytes())?;
            } else {
                socket.send_to(self.text.as_bytes(), to)?;
            }
            storm.sent += 1;
        }
        print(&storm)
    }
}

/// Options of `probe answer-late`.
#[derive(Args, Debug)]
pub(crate) struct AnswerLate {
    port: u16,
}

impl AnswerLate {
    /// Prints `ready`, and how many have called; after `answer` comes, how many of these could be answered.
    pub(crate) fn run(&self) -> Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, self.port)).context("cannot bind")?;
        println!("ready");
        let mut callers = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            let (length, sender) = socket.recv_from(&mut buffer)?;
            if &buffer[..length] != b"answer" {
                callers.push(sender);
                println!("called {}", callers.len());
                continue;
            }
            let sent = callers.iter().map(|caller| socket.send_to(b"late", caller));
            let answered = sent.filter(Result::is_ok).count();
            println!("answered {answered} of {}", callers.len());
        }
    }
}
