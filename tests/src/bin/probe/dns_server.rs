//! A DNS server that answers any name below its zone with addresses from a pool.
//!
//! | first label | answer |
//! | --- | --- |
//! | `n7` | address 7 of the pool |
//! | `many-30-100` | the 30 addresses from number 100 on; UDP cuts what does not fit (TC bit) |
//! | `huge-30-100` | the same, over UDP in any size |
//! | `chain-4-9` | 4 aliases, then address 9 |
//! | `alias-5` | an alias of `n5` in the last zone, and nothing else |
//! | `split-5` | address 5; over TCP byte by byte |
//! | `ttl3-5` | address 5 with TTL 3 |
//! | `rotate-16-1000-0` | 16 of the 1,000 addresses from number 0 on, others in each answer |
//! | `twice-5` | address 5 three times; over UDP the whole answer twice |

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use egress_tests::{dns, zone};
use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};

/// Options of `probe dns-server`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DnsServer {
    /// Address to serve on.
    #[arg(long, default_value = zone::SERVER)]
    listen: IpAddr,
    #[arg(long, default_value_t = 53)]
    port: u16,
    /// Zones; their last labels are not looked at otherwise.
    #[arg(long, required = true)]
    zone: Vec<String>,
    #[arg(long, default_value_t = 300)]
    ttl: u32,
    #[arg(long, default_value = zone::POOL4)]
    pool4: Ipv4Addr,
    #[arg(long, default_value = zone::POOL6)]
    pool6: Ipv6Addr,
    /// Over TCP: sends so many answers in one segment.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Answers of `rotate` so far.
    #[arg(skip)]
    turns: Arc<AtomicU32>,
}

/// Bytes of an answer over UDP without EDNS, RFC 1035 section 4.2.1.
const UDP_BYTES: usize = 512;

impl DnsServer {
    pub(crate) fn run(self) -> Result<()> {
        let udp = UdpSocket::bind((self.listen, self.port)).context("cannot bind UDP")?;
        let tcp = TcpListener::bind((self.listen, self.port)).context("cannot bind TCP")?;
        let server = self.clone();
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let server = server.clone();
                thread::spawn(move || server.serve_stream(stream));
            }
        });
        println!("ready");
        let mut buffer = [0; 4096];
        loop {
            let (length, peer) = udp.recv_from(&mut buffer).context("cannot receive")?;
            if let Some((how, answer)) = self.answer(&buffer[..length], true) {
                send(&udp, &answer, peer);
                if how == How::Twice {
                    send(&udp, &answer, peer);
                }
            }
        }
    }

    fn serve_stream(&self, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut waiting = Vec::new();
        while let Ok(query) = dns::read_framed(&mut stream) {
            let Some((how, answer)) = self.answer(&query, false) else {
                return;
            };
            waiting.push(answer);
            if waiting.len() < self.batch {
                continue;
            }
            let sent = if how == How::Split {
                write_split(&mut stream, &waiting)
            } else {
                framed(&waiting).and_then(|bytes| Ok(stream.write_all(&bytes)?))
            };
            waiting.clear();
            if sent.is_err() {
                return;
            }
        }
    }

    /// The answer, and how to send it.
    fn answer(&self, query: &[u8], over_udp: bool) -> Option<(How, Vec<u8>)> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?.clone();
        let limit = query
            .edns
            .as_ref()
            .map_or(UDP_BYTES, |edns| usize::from(edns.max_payload()));
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.metadata.recursion_desired = true;
        answer.metadata.recursion_available = true;
        answer.add_query(question.clone());
        let plan = self.plan(&question);
        match &plan {
            Some(plan) => {
                answer.add_answers(plan.records.iter().cloned());
            }
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        let mut bytes = answer.to_vec().ok()?;
        let how = plan.map_or(How::Plain, |plan| plan.how);
        if over_udp && bytes.len() > limit && how != How::Huge {
            answer.answers.clear();
            answer.metadata.truncation = true;
            bytes = answer.to_vec().ok()?;
        }
        Some((how, bytes))
    }

    /// The records for a question; `None` for a name that does not exist.
    fn plan(&self, question: &Query) -> Option<Plan> {
        let name = question.name().clone();
        let text = name.to_ascii().to_lowercase();
        let text = text.trim_end_matches('.');
        let zone = self.zone.iter().find(|zone| {
            text.strip_suffix(zone.as_str())
                .is_some_and(|rest| rest.ends_with('.'))
        })?;
        let label = text.split('.').next()?;
        let mut words = label.split('-');
        let word = words.next()?;
        let numbers: Vec<u32> = words.filter_map(|word| word.parse().ok()).collect();
        let mut plan = Plan::default();
        let kind = question.query_type();
        match (word, numbers.as_slice()) {
            ("many" | "huge", [count, first]) => {
                if word == "huge" {
                    plan.how = How::Huge;
                }
                for number in *first..first.checked_add(*count)? {
                    plan.records
                        .extend(self.record(&name, kind, number, self.ttl));
                }
            }
            ("chain", [length, number]) => {
                let mut owner = name;
                for step in 0..*length {
                    let next = dns::absolute(&format!("step{step}-{number}.{zone}")).ok()?;
                    let data = RData::CNAME(CNAME(next.clone()));
                    plan.records.push(Record::from_rdata(owner, self.ttl, data));
                    owner = next;
                }
                plan.records
                    .extend(self.record(&owner, kind, *number, self.ttl));
            }
            ("alias", [number]) => {
                let target = dns::absolute(&format!("n{number}.{}", self.zone.last()?)).ok()?;
                let data = RData::CNAME(CNAME(target));
                plan.records.push(Record::from_rdata(name, self.ttl, data));
            }
            ("split", [number]) => {
                plan.how = How::Split;
                plan.records
                    .extend(self.record(&name, kind, *number, self.ttl));
            }
            ("rotate", [count, of, first]) => {
                let turn = self.turns.fetch_add(1, Ordering::Relaxed);
                for place in 0..*count {
                    let number =
                        first + turn.wrapping_mul(*count).wrapping_add(place) % (*of).max(1);
                    plan.records
                        .extend(self.record(&name, kind, number, self.ttl));
                }
            }
            ("twice", [number]) => {
                plan.how = How::Twice;
                for _ in 0..3 {
                    plan.records
                        .extend(self.record(&name, kind, *number, self.ttl));
                }
            }
            (word, [number]) if word.starts_with("ttl") => {
                let ttl = word.strip_prefix("ttl")?.parse().ok()?;
                plan.records.extend(self.record(&name, kind, *number, ttl));
            }
            (word, []) => {
                let number = word.strip_prefix('n')?.parse().ok()?;
                plan.records
                    .extend(self.record(&name, kind, number, self.ttl));
            }
            _ => return None,
        }
        Some(plan)
    }

    fn record(&self, owner: &Name, kind: RecordType, number: u32, ttl: u32) -> Option<Record> {
        let data = match kind {
            RecordType::A => RData::A(A(Ipv4Addr::from(u32::from(self.pool4) + number))),
            RecordType::AAAA => {
                let address = u128::from(self.pool6) + u128::from(number);
                RData::AAAA(AAAA(Ipv6Addr::from(address)))
            }
            _ => return None,
        };
        Some(Record::from_rdata(owner.clone(), ttl, data))
    }
}

/// Records of an answer, and how it is sent.
#[derive(Debug, Default)]
struct Plan {
    records: Vec<Record>,
    how: How,
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum How {
    #[default]
    Plain,
    /// Over UDP in any size.
    Huge,
    /// Over TCP byte by byte.
    Split,
    /// Over UDP twice.
    Twice,
}

fn send(socket: &UdpSocket, answer: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(answer, peer) {
        eprintln!("cannot answer {peer}: {error}");
    }
}

/// Messages with their lengths before them.
fn framed(messages: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for message in messages {
        let length = u16::try_from(message.len()).context("too long")?;
        bytes.extend(length.to_be_bytes());
        bytes.extend(message);
    }
    Ok(bytes)
}

/// Sends each byte in a segment of its own.
fn write_split(stream: &mut TcpStream, messages: &[Vec<u8>]) -> Result<()> {
    for byte in framed(messages)? {
        stream.write_all(&[byte]).context("cannot send")?;
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
