//! A DNS server whose answers the test has written.

use std::net::{IpAddr, UdpSocket};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::{packets::from_hex, zone};

/// Options of `probe craft-dns`.
#[derive(Args, Debug)]
pub(crate) struct CraftDns {
    /// Address to serve on, port 53.
    #[arg(long, default_value = zone::FORGER)]
    listen: IpAddr,
    /// `LABEL=HEAD,REST` in hexadecimal: to questions whose first label this is (without zero bytes), the id, HEAD (ten
    /// bytes), the question, and REST are sent.
    answers: Vec<String>,
}

/// An answer to questions with a first label.
struct Answer {
    label: Vec<u8>,
    head: Vec<u8>,
    rest: Vec<u8>,
}

impl CraftDns {
    pub(crate) fn run(&self) -> Result<()> {
        let parse = |text: &String| -> Option<Answer> {
            let (label, bytes) = text.split_once('=')?;
            let (head, rest) = bytes.split_once(',')?;
            Some(Answer {
                label: label.as_bytes().to_vec(),
                head: from_hex(head)?,
                rest: from_hex(rest)?,
            })
        };
        let answers: Vec<Answer> = self
            .answers
            .iter()
            .map(|text| parse(text).with_context(|| format!("not LABEL=HEAD,REST: {text}")))
            .collect::<Result<_>>()?;
        let socket = UdpSocket::bind((self.listen, 53)).context("cannot bind")?;
        println!("ready");
        let mut buffer = [0; 4096];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer)?;
            let query = &buffer[..length];
            let Some(question) = question(query) else {
                continue;
            };
            let length = usize::from(question[0]);
            let mut label = question[1..=length].to_ascii_lowercase();
            label.retain(|byte| *byte != 0);
            let Some(answer) = answers.iter().find(|answer| answer.label == label) else {
                continue;
            };
            let bytes = [&query[..2], &answer.head, question, &answer.rest].concat();
            socket.send_to(&bytes, peer)?;
        }
    }
}

/// The first question of a query, with type and class.
fn question(query: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1 + length;
        if length == 0 {
            return query.get(12..at + 4);
        }
    }
}
