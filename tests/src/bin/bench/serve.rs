//! The servers: requests over TCP, sinks, a DNS server.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    thread,
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{place, wire};

/// One request and its answer over TCP.
pub(crate) const REQUEST_PORT: u16 = 7001;
/// Takes a TCP stream.
pub(crate) const STREAM_PORT: u16 = 7002;
/// Where datagrams end.
pub(crate) const DATAGRAM_PORT: u16 = 7003;
/// Answers the first datagram of a flow to the sink.
pub(crate) const HELLO_PORT: u16 = 7004;
/// Bytes of a request.
pub(crate) const REQUEST_BYTES: usize = 128;
/// Bytes of its answer.
const RESPONSE_BYTES: usize = 1_024;

/// Options of `bench serve`.
#[derive(Args, Debug)]
pub(crate) struct Serve {}

impl Serve {
    pub(crate) fn run(&self) -> Result<()> {
        // With the clients: waking another CPU takes longer than all else, and never equally long.
        place::stay_on(place::CLIENT_CPU);
        let any = Ipv4Addr::UNSPECIFIED;
        let requests = TcpListener::bind((any, REQUEST_PORT)).context("cannot bind")?;
        let streams = TcpListener::bind((any, STREAM_PORT)).context("cannot bind")?;
        // Never read, so that only the senders' work counts.
        let _datagrams = UdpSocket::bind((any, DATAGRAM_PORT)).context("cannot bind")?;
        // One address: an answer from a wildcard socket would come from another one.
        let hello = UdpSocket::bind((hello_address(), HELLO_PORT)).context("cannot bind")?;
        thread::spawn(move || answer_requests(&requests));
        thread::spawn(move || {
            for mut stream in streams.incoming().flatten() {
                thread::spawn(move || {
                    let mut buffer = vec![0; 1 << 18];
                    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
                });
            }
        });
        println!("ready");
        let mut buffer = [0; 2_048];
        loop {
            if let Ok((length, peer)) = hello.recv_from(&mut buffer) {
                let _ = hello.send_to(&buffer[..length], peer);
            }
        }
    }
}

/// Where established flows to the sink lead.
pub(crate) fn hello_address() -> Ipv4Addr {
    Ipv4Addr::from(u32::from(wire::SINK) + 1)
}

fn answer_requests(listener: &TcpListener) {
    let response = [b'a'; RESPONSE_BYTES];
    let mut request = [0; REQUEST_BYTES];
    for mut stream in listener.incoming().flatten() {
        if stream.read_exact(&mut request).is_ok() {
            let _ = stream.write_all(&response);
        }
    }
}

/// Options of `bench dns-server`.
#[derive(Args, Debug)]
pub(crate) struct DnsServer {
    /// Where to answer.
    #[arg(long)]
    listen: SocketAddr,
}

impl DnsServer {
    pub(crate) fn run(&self) -> Result<()> {
        let socket = UdpSocket::bind(self.listen).context("cannot bind")?;
        println!("ready");
        let mut buffer = [0; 2_048];
        loop {
            // An unreachable client of an earlier query is no reason to end.
            let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            if let Some(answer) = wire::answer(&buffer[..length]) {
                let _ = socket.send_to(&answer, peer);
            }
        }
    }
}
