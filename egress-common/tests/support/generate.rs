//! Messages: honest ones made by hickory-proto, and ones with every kind of lie made byte by byte.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{
            A, AAAA, CNAME, HTTPS, MX, NS, SVCB, TXT,
            svcb::{Alpn, IpHint, SvcParamKey, SvcParamValue, Unknown},
        },
    },
};

use super::tape::Tape;

/// TTLs at the edges, and ordinary ones.
const TTLS: &[u32] = &[
    0,
    1,
    29,
    30,
    31,
    60,
    300,
    3600,
    86_400,
    86_401,
    604_800,
    0x7fff_ffff,
    0x8000_0000,
    u32::MAX,
];

/// Types other than A, AAAA and CNAME: NS SOA PTR MX TXT SRV DNAME OPT DS RRSIG NSEC SVCB HTTPS ANY CAA NULL, unknown.
const OTHER_TYPES: &[u16] = &[
    2, 6, 12, 15, 16, 33, 39, 41, 43, 46, 47, 64, 65, 255, 257, 10, 65_280,
];

/// Labels of a name, as they stand in a query.
type LabelList = Vec<Vec<u8>>;

fn label(tape: &mut Tape<'_>) -> Vec<u8> {
    let length = match tape.below(32) {
        31 => 63,
        30 => 1,
        29 => 1 + tape.below(63),
        _ => 1 + tape.below(10),
    };
    let alphabet: &[u8] = match tape.below(8) {
        7 => b"0123456789-",
        6 => b"_-abcXYZ09",
        5 => b"aB",
        _ => b"abcdefghijklmnopqrstuvwxyz",
    };
    let is_odd = tape.chance(12);
    (0..length)
        .map(|_| {
            if is_odd {
                tape.byte()
            } else {
                tape.pick(alphabet)
            }
        })
        .collect()
}

fn wire_bytes(name: &[Vec<u8>]) -> usize {
    name.iter().map(|label| label.len() + 1).sum::<usize>() + 1
}

/// Names that often share their ends, sometimes of the greatest length.
fn names(tape: &mut Tape<'_>) -> Vec<LabelList> {
    let mut names: Vec<LabelList> = Vec::new();
    for _ in 0..2 + tape.below(13) {
        let mut name = LabelList::new();
        let is_long = tape.chance(12);
        for _ in 0..1 + tape.below(4) {
            name.push(label(tape));
        }
        if is_long {
            while wire_bytes(&name) < 192 {
                name.push(vec![b'l'; 63]);
            }
            // 255 bytes on the wire, or one or two more.
            let room = 255_usize.saturating_sub(wire_bytes(&name) + 1);
            name.push(vec![b'm'; (room + tape.below(2)).clamp(1, 63)]);
        } else if !names.is_empty() && tape.chance(170) {
            let other = names[tape.below(names.len())].clone();
            let from = tape.below(other.len());
            name.extend_from_slice(&other[from..]);
        }
        names.push(name);
    }
    names
}

/// A message that hickory-proto builds: legal names and sections, compressed, aliases in and out of order.
pub fn by_hickory(tape: &mut Tape<'_>) -> Vec<u8> {
    let names: Vec<Name> = names(tape)
        .iter()
        .filter_map(|labels| Name::from_labels(labels.iter().map(Vec::as_slice)).ok())
        .collect();
    let Some(question) = names.first() else {
        return Vec::new();
    };
    let mut message = Message::new(tape.u16(), MessageType::Response, OpCode::Query);
    message.metadata.truncation = tape.chance(10);
    let kind = tape.pick(&[
        RecordType::A,
        RecordType::AAAA,
        RecordType::CNAME,
        RecordType::HTTPS,
    ]);
    message.add_query(Query::query(question.clone(), kind));
    let chain = tape.below(names.len().min(11));
    let mut records = Vec::new();
    for pair in names.windows(2).take(chain) {
        let [from, to] = pair else { continue };
        records.push((from.clone(), RData::CNAME(CNAME(to.clone()))));
    }
    let count = match tape.below(64) {
        63 => 255,
        62 => 100 + tape.below(200),
        _ => 1 + tape.below(11),
    };
    for _ in 0..count {
        let owner = if tape.chance(200) {
            names[chain].clone()
        } else {
            names[tape.below(names.len())].clone()
        };
        records.push((owner, rdata(tape, &names)));
    }
    let swaps = if tape.chance(80) {
        records.len().min(40)
    } else {
        0
    };
    for _ in 0..swaps {
        let (a, b) = (tape.below(records.len()), tape.below(records.len()));
        records.swap(a, b);
    }
    let same_ttl = tape.chance(128).then(|| tape.pick(TTLS));
    for (owner, data) in records {
        let owner = if tape.chance(40) {
            in_other_case(&owner)
        } else {
            owner
        };
        let ttl_s = same_ttl.unwrap_or_else(|| tape.pick(TTLS));
        let mut record = Record::from_rdata(owner, ttl_s, data);
        if tape.chance(4) {
            record.dns_class = DNSClass::CH;
        }
        message.add_answer(record);
    }
    for _ in 0..tape.below(3) {
        let owner = names[tape.below(names.len())].clone();
        message.add_authority(Record::from_rdata(owner.clone(), 60, RData::NS(NS(owner))));
    }
    if tape.chance(128) {
        let owner = names[tape.below(names.len())].clone();
        message.add_additional(Record::from_rdata(
            owner,
            60,
            RData::A(A::new(192, 0, 2, 1)),
        ));
    }
    if tape.chance(128) {
        message.set_edns(Edns::new());
    }
    message.to_vec().unwrap_or_default()
}

fn in_other_case(name: &Name) -> Name {
    let labels: Vec<Vec<u8>> = name
        .iter()
        .map(|label| label.to_ascii_uppercase())
        .collect();
    Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap_or_else(|_| name.clone())
}

fn rdata(tape: &mut Tape<'_>, names: &[Name]) -> RData {
    match tape.below(20) {
        18.. => RData::HTTPS(HTTPS(service(tape, names))),
        17 => RData::SVCB(service(tape, names)),
        16 => RData::AAAA(AAAA(v6(tape).into())),
        15 => RData::TXT(TXT::new(vec!["v=spf1 -all".to_owned()])),
        14 => RData::MX(MX::new(10, names[tape.below(names.len())].clone())),
        13 => RData::CNAME(CNAME(names[tape.below(names.len())].clone())),
        0..=6 => {
            let [a, b, c, d] = v4(tape);
            RData::A(A::new(a, b, c, d))
        }
        _ => RData::AAAA(AAAA(v6(tape).into())),
    }
}

/// How many addresses a hint holds: seldom none, seldom as many as no answer of the kernel's limits has.
fn hint_length(tape: &mut Tape<'_>) -> usize {
    match tape.below(64) {
        0 => 1,
        63 => 0,
        62 => 100 + tape.below(160),
        other => 1 + other % 4,
    }
}

/// A service binding: of the owner itself, of another name, or an alias only.
fn service(tape: &mut Tape<'_>, names: &[Name]) -> SVCB {
    let priority = if tape.chance(32) {
        0
    } else {
        1 + tape.u16() % 9
    };
    let target = if tape.chance(80) {
        names[tape.below(names.len())].clone()
    } else {
        Name::root()
    };
    let mut params = Vec::new();
    if tape.chance(128) {
        let alpn = Alpn(vec!["h2".to_owned(), "h3".to_owned()]);
        params.push((SvcParamKey::Alpn, SvcParamValue::Alpn(alpn)));
    }
    if tape.chance(64) {
        params.push((SvcParamKey::Port, SvcParamValue::Port(tape.u16())));
    }
    if tape.chance(180) {
        let hint = (0..hint_length(tape)).map(|_| A(v4(tape).into())).collect();
        params.push((SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(hint))));
    }
    if tape.chance(150) {
        let hint = (0..hint_length(tape))
            .map(|_| AAAA(v6(tape).into()))
            .collect();
        params.push((SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(hint))));
    }
    if tape.chance(32) {
        let value = Unknown(vec![0; tape.below(9)]);
        params.push((
            SvcParamKey::Key(65_280 + u16::from(tape.byte())),
            SvcParamValue::Unknown(value),
        ));
    }
    SVCB::new(priority, target, params)
}

fn v4(tape: &mut Tape<'_>) -> [u8; 4] {
    match tape.below(16) {
        15 => [127, 0, 0, tape.byte()],
        14 => [169, 254, 169, 254],
        13 => [0, 0, 0, 0],
        12 => tape.u32().to_be_bytes(),
        _ => [203, 0, 113, tape.byte()],
    }
}

fn v6(tape: &mut Tape<'_>) -> [u8; 16] {
    let mut address = [0; 16];
    match tape.below(16) {
        15 => address[15] = tape.byte() & 3,
        14 => {
            address[10] = 0xff;
            address[11] = 0xff;
            address[12..].copy_from_slice(&v4(tape));
        }
        13 => {
            address[..4].copy_from_slice(&[0, 0x64, 0xff, 0x9b]);
            address[12..].copy_from_slice(&v4(tape));
        }
        12 => address.fill_with(|| tape.byte()),
        _ => {
            address[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            address[15] = tape.byte();
        }
    }
    address
}

/// How names are written.
#[derive(Clone, Copy)]
enum Compression {
    None,
    /// A pointer to the longest known end.
    Ends,
    /// As `Ends`, but to where the last pointer to it stands: chains of pointers.
    Chained,
}

/// Writes messages byte by byte.
struct Writer {
    bytes: Vec<u8>,
    /// Ends of names that were written, and where.
    ends: Vec<(Vec<Vec<u8>>, usize)>,
    compression: Compression,
    mixes_case: bool,
}

impl Writer {
    fn u16(&mut self, number: u16) {
        self.bytes.extend(number.to_be_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.bytes.extend(number.to_be_bytes());
    }

    fn name(&mut self, tape: &mut Tape<'_>, name: &[Vec<u8>]) {
        let mut rest = name;
        while let [first, tail @ ..] = rest {
            let here = self.bytes.len();
            let known = self.ends.iter_mut().find(|(end, _)| end == rest);
            match (self.compression, known) {
                (Compression::Ends, Some((_, at))) => {
                    let pointer = 0xc000 | (*at as u16 & 0x3fff);
                    self.u16(pointer);
                    return;
                }
                (Compression::Chained, Some((_, at))) => {
                    let pointer = 0xc000 | (*at as u16 & 0x3fff);
                    *at = here;
                    self.u16(pointer);
                    return;
                }
                (Compression::Ends | Compression::Chained, None) => {
                    self.ends.push((rest.to_vec(), here));
                }
                (Compression::None, _) => {}
            }
            self.bytes.push(first.len() as u8);
            for byte in first {
                let turn = self.mixes_case && byte.is_ascii_alphabetic() && tape.chance(128);
                self.bytes.push(if turn { byte ^ 0x20 } else { *byte });
            }
            rest = tail;
        }
        self.bytes.push(0);
    }

    /// Owner, type, class, TTL, then the data that `data` writes.
    fn record(
        &mut self,
        tape: &mut Tape<'_>,
        owner: &[Vec<u8>],
        kind: u16,
        ttl_s: u32,
        data: impl FnOnce(&mut Self, &mut Tape<'_>),
    ) {
        self.name(tape, owner);
        self.u16(kind);
        let class = if tape.chance(4) { tape.u16() } else { 1 };
        self.u16(class);
        self.u32(ttl_s);
        let length_at = self.bytes.len();
        self.u16(0);
        data(self, tape);
        let mut length = (self.bytes.len() - length_at - 2) as u16;
        if tape.chance(2) {
            length = length.wrapping_add(u16::from(tape.byte())).wrapping_sub(8);
        }
        self.bytes[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    }
}

/// A message written byte by byte, with a lie now and then.
pub fn by_bytes(tape: &mut Tape<'_>) -> Vec<u8> {
    let names = names(tape);
    let mut writer = Writer {
        bytes: Vec::new(),
        ends: Vec::new(),
        compression: tape.pick(&[
            Compression::Ends,
            Compression::Ends,
            Compression::None,
            Compression::Chained,
        ]),
        mixes_case: tape.chance(100),
    };
    let id = tape.u16();
    writer.u16(id);
    let flags = match tape.below(32) {
        31 => tape.u16(),
        30 => 0x8183,
        29 => 0x8380,
        28 => 0x0100,
        _ => 0x8180,
    };
    writer.u16(flags);
    let questions = if tape.chance(3) { tape.u16() % 4 } else { 1 };
    writer.u16(questions);
    writer.bytes.extend([0; 6]);

    let kind = tape.pick(&[1, 1, 28, 28, 5, 65, 255]);
    writer.name(tape, &names[0]);
    writer.u16(kind);
    writer.u16(1);

    let chain = tape.below(names.len().min(11));
    let records = match tape.below(96) {
        95 => 255,
        94 => 60 + tape.below(240),
        _ => chain + 1 + tape.below(10),
    };
    let is_in_order = tape.chance(150);
    let same_ttl = tape.chance(128).then(|| tape.pick(TTLS));
    for index in 0..records {
        let ttl_s = same_ttl.unwrap_or_else(|| tape.pick(TTLS));
        let alias = if index < chain && is_in_order {
            Some((index, index + 1))
        } else if index < chain {
            Some((chain - 1 - index, chain - index))
        } else if tape.chance(16) {
            Some((tape.below(names.len()), tape.below(names.len())))
        } else {
            None
        };
        if let Some((from, to)) = alias {
            writer.record(tape, &names[from], 5, ttl_s, |writer, tape| {
                writer.name(tape, &names[to]);
            });
            continue;
        }
        let owner = if tape.chance(200) {
            chain
        } else {
            tape.below(names.len())
        };
        match tape.below(10) {
            9 | 8 => service_record(&mut writer, tape, &names, owner, ttl_s),
            7 => other_record(&mut writer, tape, &names, owner, ttl_s),
            0..=3 => writer.record(tape, &names[owner], 1, ttl_s, |writer, tape| {
                let address = v4(tape);
                writer.bytes.extend(address);
            }),
            _ => writer.record(tape, &names[owner], 28, ttl_s, |writer, tape| {
                let address = v6(tape);
                writer.bytes.extend(address);
            }),
        }
    }
    let authority = tape.below(3);
    for _ in 0..authority {
        let owner = tape.below(names.len());
        writer.record(tape, &names[owner], 2, 60, |writer, tape| {
            writer.name(tape, &names[owner]);
        });
    }
    let has_opt = tape.chance(100);
    if has_opt {
        // Root, OPT, 1232 bytes, extended error code and flags, no options.
        let extended = if tape.chance(20) { tape.byte() } else { 0 };
        writer
            .bytes
            .extend([0, 0, 41, 4, 208, extended, 0, 0, 0, 0, 0]);
    }
    let mut counts = [records as u16, authority as u16, u16::from(has_opt)];
    if tape.chance(10) {
        let index = tape.below(3);
        counts[index] = counts[index]
            .wrapping_add(u16::from(tape.byte() & 7))
            .wrapping_sub(3);
    }
    for (index, count) in counts.into_iter().enumerate() {
        writer.bytes[6 + 2 * index..8 + 2 * index].copy_from_slice(&count.to_be_bytes());
    }
    if tape.chance(10) {
        for _ in 0..tape.below(20) {
            let byte = tape.byte();
            writer.bytes.push(byte);
        }
    }
    writer.bytes
}

/// A service binding, with lies in its parameters now and then.
fn service_record(
    writer: &mut Writer,
    tape: &mut Tape<'_>,
    names: &[LabelList],
    owner: usize,
    ttl_s: u32,
) {
    let kind = tape.pick(&[64, 65, 65]);
    writer.record(tape, &names[owner], kind, ttl_s, |writer, tape| {
        let priority = if tape.chance(32) { 0 } else { 1 };
        writer.u16(priority);
        if tape.chance(80) {
            let target = tape.below(names.len());
            writer.name(tape, &names[target]);
        } else {
            writer.bytes.push(0);
        }
        for key in 0..8 {
            if !tape.chance(if matches!(key, 4 | 6) { 180 } else { 30 }) {
                continue;
            }
            // Seldom another key, before or behind its place.
            let key = if tape.chance(3) { tape.u16() % 9 } else { key };
            parameter(writer, tape, key);
        }
        if tape.chance(3) {
            for _ in 0..tape.below(6) {
                let byte = tape.byte();
                writer.bytes.push(byte);
            }
        }
    });
}

fn parameter(writer: &mut Writer, tape: &mut Tape<'_>, key: u16) {
    writer.u16(key);
    let length_at = writer.bytes.len();
    writer.u16(0);
    match key {
        0 => writer.u16(4),
        1 => writer.bytes.extend(b"\x02h2"),
        3 => writer.u16(8443),
        4 => {
            for _ in 0..hint_length(tape) {
                let address = v4(tape);
                writer.bytes.extend(address);
            }
        }
        6 => {
            for _ in 0..hint_length(tape) {
                let address = v6(tape);
                writer.bytes.extend(address);
            }
        }
        _ => {}
    }
    if tape.chance(3) {
        for _ in 0..tape.below(18) {
            let byte = tape.byte();
            writer.bytes.push(byte);
        }
    }
    let mut length = (writer.bytes.len() - length_at - 2) as u16;
    if tape.chance(3) {
        length = length.wrapping_add(tape.u16() % 17).wrapping_sub(8);
    }
    writer.bytes[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
}

fn other_record(
    writer: &mut Writer,
    tape: &mut Tape<'_>,
    names: &[LabelList],
    owner: usize,
    ttl_s: u32,
) {
    let kind = tape.pick(OTHER_TYPES);
    writer.record(
        tape,
        &names[owner],
        kind,
        ttl_s,
        |writer, tape| match kind {
            2 | 12 | 39 => writer.name(tape, &names[owner]),
            16 => writer.bytes.extend(b"\x05v=one"),
            _ => {
                for _ in 0..tape.below(40) {
                    let byte = tape.byte();
                    writer.bytes.push(byte);
                }
            }
        },
    );
}

/// Breaks a message in a few places.
pub fn mutate(tape: &mut Tape<'_>, message: &mut Vec<u8>) {
    for _ in 0..1 + tape.below(4) {
        if message.is_empty() {
            return;
        }
        let at = tape.below(message.len());
        match tape.below(9) {
            0 => message[at] = tape.byte(),
            1 => message[at] ^= 1 << tape.below(8),
            2 => message.truncate(at),
            3 => {
                message.remove(at);
            }
            4 => message.insert(at, tape.byte()),
            // A pointer to anywhere.
            5 => {
                let target = tape.below(message.len() + 2) as u16 | 0xc000;
                for (slot, byte) in message[at..].iter_mut().zip(target.to_be_bytes()) {
                    *slot = byte;
                }
            }
            // A piece of the message once more.
            6 => {
                let end = (at + 1 + tape.below(40)).min(message.len());
                let piece = message[at..end].to_vec();
                let to = tape.below(message.len());
                message.splice(to..to, piece);
            }
            7 => message[at] = tape.pick(&[0, 1, 4, 16, 63, 64, 0x80, 0xc0, 0xff]),
            // A count in the header.
            _ => {
                let slot = 4 + tape.below(8);
                if let Some(byte) = message.get_mut(slot) {
                    *byte = tape.byte() & 3;
                }
            }
        }
    }
}

/// Any message: by hickory-proto or by bytes, broken or not.
pub fn any_message(tape: &mut Tape<'_>) -> Vec<u8> {
    let mut message = if tape.chance(64) {
        by_hickory(tape)
    } else {
        by_bytes(tape)
    };
    if tape.chance(100) {
        mutate(tape, &mut message);
    }
    message
}
