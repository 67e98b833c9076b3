//! Target `packet`: the header parser against a plain reader on top of etherparse.

use egress_common::{
    address::{Address, from_v4},
    packet::{Packet, parse},
    verdict::Reason,
};
use etherparse::{
    IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice,
    Ipv6RawExtHeaderSlice, TcpHeaderSlice, UdpHeaderSlice,
};

use crate::{Finding, Target, packets::make, rng::Rng, support::tape::Tape};

/// A packet as the plain reader reads it.
#[derive(Debug, PartialEq, Eq)]
struct Plain {
    saddr: Address,
    daddr: Address,
    proto: u8,
    hop_limit: u8,
    is_later_fragment: bool,
    ports: Option<(u16, u16)>,
    sequence: u32,
    /// TCP flags or ICMP type.
    flags: u8,
    payload_at: usize,
}

/// Most IPv6 extension headers.
const EXTENSIONS: usize = 8;

/// Malformed packets that the parser is known to read nevertheless. None of them changes
/// which addresses, protocol or ports are judged; each is counted in a class of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lax {
    /// An IPv4 option that runs on behind the header.
    option: bool,
    /// An authentication header that says it is 8 bytes long (RFC 4302 section 2.2: 12 or more).
    auth: bool,
    /// Headers of which a part stands behind the end that the length field gives.
    end: bool,
}

fn plain(bytes: &[u8], lax: Lax) -> Result<Plain, Reason> {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => plain_v4(bytes, lax),
        Some(6) => plain_v6(bytes, lax),
        _ => Err(Reason::Malformed),
    }
}

fn plain_v4(bytes: &[u8], lax: Lax) -> Result<Plain, Reason> {
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| Reason::Malformed)?;
    let header_bytes = header.slice().len();
    // Zero: longer than the field can say (BIG TCP).
    let end = match usize::from(header.total_len()) {
        0 => usize::MAX,
        length => length,
    };
    if end < header_bytes {
        return Err(Reason::Malformed);
    }
    let mut options = header.options();
    loop {
        match options {
            [] | [0, ..] => break,
            [1, rest @ ..] => options = rest,
            [131 | 137, ..] => return Err(Reason::SourceRouted),
            [_, length, ..] if *length >= 2 && usize::from(*length) <= options.len() => {
                options = &options[usize::from(*length)..];
            }
            // The length stands behind the header, where the parser may look.
            [_] if lax.option && bytes.get(header_bytes).is_some_and(|length| *length >= 2) => {
                break;
            }
            [_, length, ..] if lax.option && *length >= 2 => break,
            _ => return Err(Reason::Malformed),
        }
    }
    let mut plain = Plain {
        saddr: from_v4(header.source()),
        daddr: from_v4(header.destination()),
        proto: header.protocol().0,
        hop_limit: header.ttl(),
        is_later_fragment: header.fragments_offset().value() != 0,
        ports: None,
        sequence: 0,
        flags: 0,
        payload_at: header_bytes,
    };
    let visible = if lax.end {
        bytes.len()
    } else {
        end.min(bytes.len())
    };
    transport(&bytes[..visible], end, lax, &mut plain)?;
    Ok(plain)
}

fn plain_v6(bytes: &[u8], lax: Lax) -> Result<Plain, Reason> {
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Reason::Malformed)?;
    // RFC 4291 section 2.5.5.2: never on a wire.
    let is_mapped = |address: [u8; 16]| address[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    if is_mapped(header.source()) || is_mapped(header.destination()) {
        return Err(Reason::Malformed);
    }
    let end = match usize::from(header.payload_length()) {
        0 => usize::MAX,
        length => 40 + length,
    };
    let visible = if lax.end {
        bytes.len()
    } else {
        end.min(bytes.len())
    };
    let whole = &bytes[..visible];
    let mut proto = header.next_header().0;
    let mut at = 40;
    let mut is_later_fragment = false;
    let mut walked = 0;
    while matches!(proto, 0 | 43 | 44 | 51 | 60) && !is_later_fragment {
        if walked == EXTENSIONS {
            return Err(Reason::TooManyHeaders);
        }
        walked += 1;
        let rest = whole.get(at..).ok_or(Reason::Malformed)?;
        match proto {
            44 => {
                let fragment =
                    Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| Reason::Malformed)?;
                is_later_fragment = fragment.fragment_offset().value() != 0;
                proto = fragment.next_header().0;
                at += 8;
            }
            51 if lax.auth && rest.get(1) == Some(&0) && rest.len() >= 8 => {
                proto = rest[0];
                at += 8;
            }
            51 => {
                let auth = IpAuthHeaderSlice::from_slice(rest).map_err(|_| Reason::Malformed)?;
                proto = auth.next_header().0;
                at += auth.slice().len();
            }
            _ => {
                // Segments left: fourth byte, RFC 8200 section 4.4.
                if proto == 43 && rest.len() >= 4 {
                    return Err(Reason::SourceRouted);
                }
                let raw = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| Reason::Malformed)?;
                proto = raw.next_header().0;
                at += raw.slice().len();
            }
        }
    }
    let mut plain = Plain {
        saddr: header.source(),
        daddr: header.destination(),
        proto,
        hop_limit: header.hop_limit(),
        is_later_fragment,
        ports: None,
        sequence: 0,
        flags: 0,
        payload_at: at,
    };
    transport(whole, end, lax, &mut plain)?;
    Ok(plain)
}

fn transport(whole: &[u8], end: usize, lax: Lax, plain: &mut Plain) -> Result<(), Reason> {
    if plain.is_later_fragment {
        let is_in = lax.end || plain.payload_at <= end;
        return is_in.then_some(()).ok_or(Reason::Malformed);
    }
    let rest = whole.get(plain.payload_at..).ok_or(Reason::Malformed)?;
    match plain.proto {
        6 => {
            let tcp = TcpHeaderSlice::from_slice(rest).map_err(|_| Reason::Malformed)?;
            plain.ports = Some((tcp.source_port(), tcp.destination_port()));
            plain.sequence = tcp.sequence_number();
            plain.flags = tcp.slice()[13];
            plain.payload_at += tcp.slice().len();
        }
        17 | 136 => {
            let udp = UdpHeaderSlice::from_slice(rest).map_err(|_| Reason::Malformed)?;
            plain.ports = Some((udp.source_port(), udp.destination_port()));
            plain.payload_at += 8;
        }
        132 | 33 => {
            let ports = rest.first_chunk::<4>().ok_or(Reason::Malformed)?;
            let [s0, s1, d0, d1] = *ports;
            plain.ports = Some((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])));
        }
        1 | 58 => plain.flags = *rest.first().ok_or(Reason::Malformed)?,
        _ => {}
    }
    let is_in = plain.payload_at <= end;
    is_in.then_some(()).ok_or(Reason::Malformed)
}

/// Classes of packets.
const CLASSES: &[&str] = &[
    "agree v4",
    "agree v6",
    "agree later fragment",
    "agree refused",
    "tolerated cut",
    "lax option",
    "lax auth header",
    "lax end",
    "lax in several ways",
];

fn compare(bytes: &[u8]) -> Result<usize, Finding> {
    let machine = parse(bytes);
    let strict = plain(bytes, Lax::default());
    match (machine, strict) {
        (Err(_), Err(_)) => Ok(3),
        (Ok(packet), Ok(plain)) => {
            if !is_same(&packet, &plain) {
                return Err(Finding(format!("{packet:?} instead of {plain:?}")));
            }
            Ok(match (plain.is_later_fragment, bytes[0] >> 4) {
                (true, _) => 2,
                (false, 4) => 0,
                _ => 1,
            })
        }
        (Ok(packet), Err(Reason::Malformed)) => read_though_malformed(bytes, &packet),
        (machine, plain) => Err(Finding(format!("{machine:?} instead of {plain:?}"))),
    }
}

/// The class of a packet that the parser reads and the plain reader does not.
fn read_though_malformed(bytes: &[u8], packet: &Packet) -> Result<usize, Finding> {
    let ways = [
        (
            5,
            Lax {
                option: true,
                ..Lax::default()
            },
        ),
        (
            6,
            Lax {
                auth: true,
                ..Lax::default()
            },
        ),
        (
            7,
            Lax {
                end: true,
                ..Lax::default()
            },
        ),
        (
            8,
            Lax {
                option: true,
                auth: true,
                end: true,
            },
        ),
    ];
    for (class, lax) in ways {
        if let Ok(plain) = plain(bytes, lax)
            && is_same(packet, &plain)
        {
            return Ok(class);
        }
    }
    // The fields that a verdict needs are there, but not all that the length fields promise.
    if packet.end as usize > bytes.len() || packet.payload_at as usize > bytes.len() {
        let mut whole = bytes.to_vec();
        whole.resize(bytes.len() + 4096, 0);
        let lax = Lax {
            option: true,
            auth: true,
            end: true,
        };
        if let Ok(plain) = plain(&whole, lax)
            && is_same(packet, &plain)
        {
            return Ok(4);
        }
    }
    Err(Finding(format!("{packet:?} though it is malformed")))
}

fn is_same(packet: &Packet, plain: &Plain) -> bool {
    let ports = packet.has_ports.then_some((packet.sport, packet.dport));
    (packet.saddr, packet.daddr) == (plain.saddr, plain.daddr)
        && packet.proto == plain.proto
        && packet.hop_limit == plain.hop_limit
        && packet.is_later_fragment == plain.is_later_fragment
        && ports == plain.ports
        && packet.sequence == plain.sequence
        && packet.flags == plain.flags
        && packet.payload_at as usize == plain.payload_at
        && packet.rule_port() == plain.ports.map(|(_, dport)| dport)
}

/// The target.
pub struct Packets;

impl Target for Packets {
    fn name(&self) -> &'static str {
        "packet"
    }

    fn classes(&self) -> Vec<String> {
        CLASSES.iter().map(|class| (*class).to_owned()).collect()
    }

    fn make(&self, rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
        let choice = rng.u64();
        let mut bytes = [0; 256];
        rng.fill(&mut bytes);
        let tape = &mut Tape::new(&bytes);
        let mut packet = if choice & 15 == 0 {
            // Bytes behind a first one that looks like a version.
            let mut packet = bytes[..tape.below(200)].to_vec();
            if let Some(first) = packet.first_mut() {
                *first = tape.pick(&[0x45, 0x46, 0x4f, 0x60, 0x60, 0x61]);
            }
            packet
        } else if !corpus.is_empty() && choice >> 4 & 3 == 0 {
            corpus[(choice >> 16) as usize % corpus.len()].clone()
        } else {
            make(tape)
        };
        if choice >> 8 & 3 == 0 {
            for _ in 0..1 + tape.below(4) {
                if !packet.is_empty() {
                    let at = tape.below(packet.len());
                    packet[at] = tape.byte();
                }
            }
        }
        packet
    }

    fn check(&self, input: &[u8]) -> Result<usize, Finding> {
        compare(input)
    }

    fn refusals(&self) -> &'static [&'static str] {
        &["malformed", "source routed", "too many headers", "other"]
    }

    fn refusal(&self, input: &[u8]) -> Option<usize> {
        match parse(input).err()? {
            Reason::Malformed => Some(0),
            Reason::SourceRouted => Some(1),
            Reason::TooManyHeaders => Some(2),
            _ => Some(3),
        }
    }
}
