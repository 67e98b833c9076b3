//! The peer of a veth pair: a DNS server and servers that accept.

use std::{
    fs::File,
    io::Read as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};
use nix::sched::{CloneFlags, setns};

/// The resolver.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// Names and the last byte of their addresses.
pub(crate) const NAMES: [(&str, u8); 4] = [
    ("allowed.test", 10),
    ("a.wild.test", 11),
    (SHORT_NAME, 12),
    ("forbidden.test", 20),
];
/// The name whose addresses soon expire.
pub(crate) const SHORT_NAME: &str = "short.test";
/// TTL of its answers.
pub(crate) const SHORT_TTL_S: u32 = 15;
/// Port of the servers.
pub(crate) const PORT: u16 = 80;
/// TTL of all other answers.
const TTL_S: u32 = 300;

/// The IPv4 address with this last byte.
pub(crate) const fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, last)
}

/// The IPv6 address with this last byte.
pub(crate) const fn v6(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, last as u16)
}

/// Ends the peer when dropped.
pub(crate) struct Far(Child);

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.0.kill(); // the machine ends soon anyway
        let _ = self.0.wait();
    }
}

/// Makes the namespace and the veth pair and starts the servers.
pub(crate) fn start() -> Result<Far> {
    let mut near = "\
        netns add far\n\
        link add near0 type veth peer name far0 netns far\n\
        addr add 10.9.0.1/24 dev near0\n\
        addr add fd09::1/64 dev near0 nodad\n\
        link set near0 up\n\
        link add pod0 type veth peer name eth0 netns far\n\
        link set pod0 up\n"
        .to_owned();
    let mut far = "link set lo up\n".to_owned();
    for last in [2, 10, 11, 12, 20] {
        far.push_str(&format!("addr add {}/24 dev far0\n", v4(last)));
        far.push_str(&format!("addr add {}/64 dev far0 nodad\n", v6(last)));
    }
    far.push_str("link set far0 up\n");
    for (options, lines) in [(&[][..], &mut near), (&["-n", "far"][..], &mut far)] {
        for line in lines.lines() {
            let mut ip = Command::new("ip");
            ip.args(options).args(line.split(' '));
            let output = ip.output().context("cannot start ip")?;
            ensure!(
                output.status.success(),
                "ip {line}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
    }
    let mut child = Command::new("/proc/self/exe")
        .arg("far")
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the far end")?;
    let mut stdout = child.stdout.take().context("no output of the far end")?;
    let far = Far(child);
    let mut ready = [0; 5];
    stdout
        .read_exact(&mut ready)
        .context("the far end does not come up")?;
    Ok(far)
}

/// The peer's process: enters the namespace and serves until it is killed.
pub(crate) fn serve() -> Result<()> {
    let namespace = File::open("/run/netns/far").context("no namespace")?;
    setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
    let listeners: Vec<SocketAddr> = NAMES
        .iter()
        .flat_map(|(_, last)| [(v4(*last), PORT).into(), (v6(*last), PORT).into()])
        .collect();
    for address in listeners {
        let listener = TcpListener::bind(address).with_context(|| format!("bind {address}"))?;
        thread::spawn(move || {
            for stream in listener.incoming() {
                drop(stream);
            }
        });
    }
    let socket = UdpSocket::bind((RESOLVER, 53)).context("cannot bind the DNS port")?;
    println!("ready");
    let mut buffer = [0; 1500];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).context("cannot receive")?;
        let query = buffer.get(..length).unwrap_or_default();
        if let Some(answer) = answer(query)
            && let Err(error) = socket.send_to(&answer, peer)
        {
            eprintln!("cannot answer {peer}: {error}");
        }
    }
}

/// The answer to a query.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    answer.add_query(question.clone());
    let name = question.name().to_ascii().to_lowercase();
    let name = name.trim_end_matches('.');
    match NAMES.iter().find(|(known, _)| *known == name) {
        Some((_, last)) => {
            let data = if question.query_type() == RecordType::AAAA {
                RData::AAAA(AAAA(v6(*last)))
            } else {
                RData::A(A(v4(*last)))
            };
            let ttl_s = if name == SHORT_NAME {
                SHORT_TTL_S
            } else {
                TTL_S
            };
            answer.add_answer(Record::from_rdata(question.name().clone(), ttl_s, data));
        }
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer.to_vec().ok()
}
