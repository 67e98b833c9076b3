//! A small DNS client: queries and answers by hickory-proto, sockets by hand.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hickory_proto::{
    op::{Message, Query},
    rr::{
        DNSClass, Name, RData, RecordType,
        rdata::{HTTPS, SVCB, svcb::SvcParamValue},
    },
};

/// A query for one type.
///
/// # Errors
///
/// The name is none.
pub fn query(id: u16, name: &str, kind: RecordType) -> Result<Vec<u8>> {
    let name = absolute(name)?;
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    let mut question = Query::query(name, kind);
    question.set_query_class(DNSClass::IN);
    message.add_query(question);
    message.to_vec().context("cannot write a query")
}

/// A name that is absolute, with or without its final dot; capitals are kept.
///
/// # Errors
///
/// It is none.
pub fn absolute(name: &str) -> Result<Name> {
    let mut name = Name::from_ascii(name).with_context(|| format!("{name} is not a name"))?;
    name.set_fqdn(true);
    Ok(name)
}

/// Addresses in the answer section, those of hints too, with their TTLs.
#[must_use]
pub fn addresses(message: &Message) -> Vec<(IpAddr, u32)> {
    let of = |data: &RData| match data {
        RData::A(address) => vec![IpAddr::V4(address.0)],
        RData::AAAA(address) => vec![IpAddr::V6(address.0)],
        RData::SVCB(service) | RData::HTTPS(HTTPS(service)) => hints(service),
        _ => Vec::new(),
    };
    message
        .answers
        .iter()
        .flat_map(|record| {
            let with_ttl = |address| (address, record.ttl);
            of(&record.data).into_iter().map(with_ttl)
        })
        .collect()
}

fn hints(service: &SVCB) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (_, value) in &service.svc_params {
        match value {
            SvcParamValue::Ipv4Hint(hint) => {
                addresses.extend(hint.0.iter().map(|address| IpAddr::V4(address.0)));
            }
            SvcParamValue::Ipv6Hint(hint) => {
                addresses.extend(hint.0.iter().map(|address| IpAddr::V6(address.0)));
            }
            _ => {}
        }
    }
    addresses
}

/// The unspecified address of the family of `of`, any port.
#[must_use]
pub fn any_like(of: IpAddr) -> SocketAddr {
    match of {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// Asks over UDP from a connected socket of its own and returns the first answer.
///
/// # Errors
///
/// No answer in time.
pub fn ask_udp(server: SocketAddr, query: &[u8], limit: Duration) -> Result<Vec<u8>> {
    let socket = UdpSocket::bind(any_like(server.ip())).context("cannot bind")?;
    socket.connect(server).context("cannot connect")?;
    socket.set_read_timeout(Some(limit)).context("no timeout")?;
    socket.send(query).context("cannot send")?;
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).context("no answer")?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Asks over TCP and returns the answer.
///
/// # Errors
///
/// No connection or no answer in time.
pub fn ask_tcp(server: SocketAddr, query: &[u8], limit: Duration) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, limit).context("cannot connect")?;
    stream.set_read_timeout(Some(limit)).context("no timeout")?;
    write_framed(&mut stream, query)?;
    read_framed(&mut stream)
}

/// Writes a message with its length before it.
///
/// # Errors
///
/// The stream breaks, or the message is too long.
pub fn write_framed(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    let length = u16::try_from(message.len()).context("too long for DNS over TCP")?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).context("cannot send")
}

/// Reads a message with its length before it.
///
/// # Errors
///
/// The stream breaks or ends.
pub fn read_framed(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).context("no length")?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).context("no message")?;
    Ok(message)
}

/// Checks that a server answers, in under `limit`.
///
/// # Errors
///
/// It does not.
pub fn check(server: IpAddr, name: &str, limit: Duration) -> Result<()> {
    let query = query(4711, name, RecordType::A)?;
    let answer = ask_udp((server, 53).into(), &query, limit)?;
    let message = Message::from_vec(&answer).context("unreadable answer")?;
    ensure!(!addresses(&message).is_empty(), "{name} has no address");
    Ok(())
}
