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

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
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
    /// Address to serve on, port 53.
    #[arg(long, default_value = zone::SERVER)]
    listen: IpAddr,
    /// Zones; their last labels are not looked at otherwise.
    #[arg(long, required = true)]
    zone: Vec<String>,
    #[arg(long, default_value_t = 300)]
    ttl: u32,
    #[arg(long, default_value = zone::POOL4)]
    pool4: Ipv4Addr,
    #[arg(long, default_value = zone::POOL6)]
    pool6: Ipv6Addr,
}

/// Bytes of an answer over UDP without EDNS, RFC 1035 section 4.2.1.
const UDP_BYTES: usize = 512;

impl DnsServer {
    pub(crate) fn run(self) -> Result<()> {
        let udp = UdpSocket::bind((self.listen, 53)).context("cannot bind UDP")?;
        let tcp = TcpListener::bind((self.listen, 53)).context("cannot bind TCP")?;
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
            if let Some((_, answer)) = self.answer(&buffer[..length], true) {
                send(&udp, &answer, peer);
            }
        }
    }

    fn serve_stream(&self, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        while let Ok(query) = dns::read_framed(&mut stream) {
            let Some((is_split, answer)) = self.answer(&query, false) else {
                return;
            };
            let sent = if is_split {
                write_split(&mut stream, &answer)
            } else {
                dns::write_framed(&mut stream, &answer)
            };
            if sent.is_err() {
                return;
            }
        }
    }

    /// The answer, and whether it shall be split.
    fn answer(&self, query: &[u8], over_udp: bool) -> Option<(bool, Vec<u8>)> {
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
        let (is_huge, is_split) = plan.map_or((false, false), |plan| (plan.is_huge, plan.is_split));
        if over_udp && bytes.len() > limit && !is_huge {
            answer.answers.clear();
            answer.metadata.truncation = true;
            bytes = answer.to_vec().ok()?;
        }
        Some((is_split, bytes))
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
                plan.is_huge = word == "huge";
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
                plan.is_split = true;
                plan.records
                    .extend(self.record(&name, kind, *number, self.ttl));
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

/// What an answer holds and how it is sent.
#[derive(Debug, Default)]
struct Plan {
    records: Vec<Record>,
    is_huge: bool,
    is_split: bool,
}

fn send(socket: &UdpSocket, answer: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(answer, peer) {
        eprintln!("cannot answer {peer}: {error}");
    }
}

/// Sends each byte in a segment of its own.
fn write_split(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    let length = u16::try_from(message.len()).context("too long")?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    for byte in bytes {
        stream.write_all(&[byte]).context("cannot send")?;
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
