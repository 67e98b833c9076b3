//! A DNS server that lies, in the way that the first label of the question says.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::{
    dns,
    forge::{Kind, UNSOLICITED_PORT, ZONE},
    zone,
};
use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};

use crate::client::hex;

/// Options of `probe forge-dns`.
#[derive(Args, Debug)]
pub(crate) struct ForgeDns {
    /// Address to serve on, port 53.
    #[arg(long, default_value = zone::FORGER)]
    listen: IpAddr,
    /// Address from which the answers with a wrong source come.
    #[arg(long, default_value = zone::STRANGER)]
    stranger: IpAddr,
    /// How late the late answer is.
    #[arg(long, default_value_t = 11_000)]
    late_ms: u64,
}

/// The sockets that it sends from.
struct Sockets {
    honest: UdpSocket,
    stranger: UdpSocket,
    other_port: UdpSocket,
}

impl ForgeDns {
    pub(crate) fn run(&self) -> Result<()> {
        let bind = |address: IpAddr, port: u16| {
            UdpSocket::bind((address, port))
                .with_context(|| format!("cannot bind {address}:{port}"))
        };
        let sockets = Arc::new(Sockets {
            honest: bind(self.listen, 53)?,
            stranger: bind(self.stranger, 53)?,
            other_port: bind(self.listen, 5353)?,
        });
        println!("ready");
        let mut buffer = [0; 4096];
        loop {
            let (length, peer) = sockets.honest.recv_from(&mut buffer)?;
            let Ok(query) = Message::from_vec(&buffer[..length]) else {
                continue;
            };
            let Some(question) = query.queries.first().cloned() else {
                continue;
            };
            let label = question.name().iter().next().map(String::from_utf8_lossy);
            let Some(kind) = label.and_then(|label| Kind::of_label(&label.to_lowercase())) else {
                continue;
            };
            let forged = Forged {
                kind,
                id: query.metadata.id,
                question,
            };
            if kind == Kind::Late {
                let sockets = Arc::clone(&sockets);
                let delay = Duration::from_millis(self.late_ms);
                thread::spawn(move || {
                    thread::sleep(delay);
                    forged.send(&sockets, peer)
                });
            } else {
                forged.send(&sockets, peer)?;
            }
        }
    }
}

/// An answer to a question.
struct Forged {
    kind: Kind,
    id: u16,
    question: Query,
}

impl Forged {
    fn send(&self, sockets: &Sockets, peer: SocketAddr) -> Result<()> {
        let to = |socket: &UdpSocket, bytes: &[u8], peer: SocketAddr| -> Result<()> {
            println!("sent {} {peer} {}", self.kind.label(), hex(bytes));
            socket.send_to(bytes, peer).context("cannot send")?;
            Ok(())
        };
        let owner = self.question.name().clone();
        match self.kind {
            Kind::Good | Kind::Late | Kind::Rebinding => to(
                &sockets.honest,
                &self.answer(self.id, &self.question, &owner)?,
                peer,
            ),
            Kind::WrongId => {
                let id = self.id.wrapping_add(1);
                to(
                    &sockets.honest,
                    &self.answer(id, &self.question, &owner)?,
                    peer,
                )
            }
            Kind::WrongQuestion => {
                let other = dns::absolute(&format!("another.{ZONE}"))?;
                let question = Query::query(other.clone(), self.question.query_type());
                to(
                    &sockets.honest,
                    &self.answer(self.id, &question, &other)?,
                    peer,
                )
            }
            Kind::WrongSource => to(
                &sockets.stranger,
                &self.answer(self.id, &self.question, &owner)?,
                peer,
            ),
            Kind::WrongPort => to(
                &sockets.other_port,
                &self.answer(self.id, &self.question, &owner)?,
                peer,
            ),
            Kind::Unsolicited => {
                let peer = SocketAddr::new(peer.ip(), UNSOLICITED_PORT);
                to(
                    &sockets.honest,
                    &self.answer(self.id, &self.question, &owner)?,
                    peer,
                )
            }
            Kind::OffChain => {
                let other = dns::absolute(&format!("another.{ZONE}"))?;
                to(
                    &sockets.honest,
                    &self.answer(self.id, &self.question, &other)?,
                    peer,
                )
            }
            Kind::Loop => {
                let mut bytes = self.answer(self.id, &self.question, &owner)?;
                let pointer = self.record_offset();
                let [high, low] = (0xc000 | pointer as u16).to_be_bytes();
                bytes[pointer] = high;
                bytes[pointer + 1] = low;
                to(&sockets.honest, &bytes, peer)
            }
            Kind::Cut => {
                let mut bytes = self.answer(self.id, &self.question, &owner)?;
                bytes.truncate(bytes.len() - 2);
                to(&sockets.honest, &bytes, peer)
            }
            Kind::Twice => {
                let mut bytes = self.answer(self.id, &self.question, &owner)?;
                to(&sockets.honest, &bytes, peer)?;
                if let IpAddr::V4(second) = self.kind.second() {
                    let from = bytes.len() - 4;
                    bytes[from..].copy_from_slice(&second.octets());
                }
                to(&sockets.honest, &bytes, peer)
            }
            Kind::ErrorCode => {
                let mut bytes = self.answer(self.id, &self.question, &owner)?;
                bytes[3] = (bytes[3] & 0xf0) | ResponseCode::NXDomain.low();
                to(&sockets.honest, &bytes, peer)
            }
            Kind::OtherClass => {
                let mut question = self.question.clone();
                question.set_query_class(DNSClass::CH);
                to(
                    &sockets.honest,
                    &self.answer(self.id, &question, &owner)?,
                    peer,
                )
            }
        }
    }

    /// Where the first record begins: after the header and the question.
    fn record_offset(&self) -> usize {
        let labels: usize = self
            .question
            .name()
            .iter()
            .map(|label| label.len() + 1)
            .sum();
        12 + labels + 1 + 4
    }

    fn answer(&self, id: u16, question: &Query, owner: &Name) -> Result<Vec<u8>> {
        let mut message = Message::response(id, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.recursion_available = true;
        message.add_query(question.clone());
        let data = match question.query_type() {
            RecordType::AAAA => RData::AAAA(AAAA(self.kind.v6())),
            _ => RData::A(A(self.kind.v4())),
        };
        let mut record = Record::from_rdata(owner.clone(), 300, data);
        record.dns_class = question.query_class();
        message.add_answer(record);
        message.to_vec().context("cannot write the answer")
    }
}
