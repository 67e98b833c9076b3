//! An answer as other code than the step machines reads it: hickory-proto, and a plain reader where hickory refuses.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::address::{Address, from_v4, is_unteachable};
use hickory_proto::{
    op::{Header, Message, MessageType, OpCode},
    rr::{
        DNSClass, Name, RData, Record as HickoryRecord,
        rdata::{
            HTTPS, SVCB,
            svcb::{IpHint, SvcParamValue},
        },
    },
    serialize::binary::{BinDecodable, BinDecoder},
};

/// Most pointers that the machine follows in one name.
pub const MOST_POINTERS: u32 = 16;

/// A name in wire form, in lower case, without the final zero byte.
pub type Labels = Vec<u8>;

/// The labels as text with dots, without the final one.
pub fn text_of(labels: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut rest = labels;
    while let [length, tail @ ..] = rest {
        let (label, after) = tail.split_at(usize::from(*length));
        if !text.is_empty() {
            text.push(b'.');
        }
        text.extend_from_slice(label);
        rest = after;
    }
    text
}

/// Some byte of a label is one that no rule can match.
pub fn is_unmatchable(labels: &[u8]) -> bool {
    let mut rest = labels;
    while let [length, tail @ ..] = rest {
        let (label, after) = tail.split_at(usize::from(*length));
        let odd = |byte: &u8| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        if label.iter().any(odd) {
            return true;
        }
        rest = after;
    }
    false
}

/// Data of a record of the answer section, as far as addresses depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// A or AAAA of class IN.
    Address {
        /// The address.
        address: Address,
        /// It is an AAAA record.
        from_aaaa: bool,
    },
    /// CNAME of class IN.
    Alias {
        /// Where it leads to.
        target: Labels,
        /// Compression pointers in the target.
        pointers: u32,
    },
    /// SVCB or HTTPS of class IN.
    Service(Service),
    /// A, AAAA, CNAME, SVCB or HTTPS of class IN whose data is not one.
    Broken,
    /// Anything else.
    Other,
}

/// A service binding (RFC 9460).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Where it leads to; empty for the owner.
    pub target: Labels,
    /// Compression pointers in the target.
    pub pointers: u32,
    /// Parameters; none in an alias.
    pub parameters: usize,
    /// Addresses of hints, and whether of an IPv6 one.
    pub hints: Vec<(Address, bool)>,
    /// A hint holds no address.
    pub has_empty_hint: bool,
    /// The bytes behind `parameters` are no parameter, or not in their place.
    pub is_broken: bool,
}

/// A record of the answer section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Owner.
    pub owner: Labels,
    /// Compression pointers in the owner.
    pub pointers: u32,
    /// TTL as RFC 2181 section 8 reads it.
    pub ttl_s: u32,
    /// Data.
    pub data: Data,
}

/// The question and the answer section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Name of the question.
    pub question: Labels,
    /// Compression pointers in it.
    pub pointers: u32,
    /// Type and class of the question.
    pub type_and_class: u32,
    /// Records up to the first that cannot be read.
    pub records: Vec<Record>,
    /// They are all of them.
    pub is_complete: bool,
}

/// The name at a place: labels, first byte behind it, pointers. `None` when it is not a name.
type NameAt = fn(&[u8], usize) -> Option<(Labels, usize, u32)>;

/// Reads a name with hickory-proto, which does not report the pointers.
pub fn hickory_name(message: &[u8], at: usize) -> Option<(Labels, usize, u32)> {
    if at > message.len() {
        return None;
    }
    let mut decoder = BinDecoder::new(message).clone(at as u16);
    let name = Name::read(&mut decoder).ok()?;
    Some((labels_of(&name), decoder.index(), 0))
}

/// Reads a name as RFC 1035 section 4.1.4 says it; pointers must lead before the part that holds them.
pub fn plain_name(message: &[u8], at: usize) -> Option<(Labels, usize, u32)> {
    let mut labels = Labels::new();
    let mut end = None;
    let (mut at, mut part_at, mut pointers) = (at, at, 0);
    loop {
        let byte = *message.get(at)?;
        match byte >> 6 {
            0 if byte == 0 => return Some((labels, end.unwrap_or(at + 1), pointers)),
            0 => {
                let label = message.get(at + 1..at + 1 + usize::from(byte))?;
                labels.push(byte);
                labels.extend(label.iter().map(u8::to_ascii_lowercase));
                // 255 bytes with the final zero byte, RFC 1035 section 2.3.4.
                if labels.len() > 254 {
                    return None;
                }
                at += 1 + usize::from(byte);
            }
            3 => {
                let target = usize::from(byte & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                if target >= part_at {
                    return None;
                }
                end = end.or(Some(at + 2));
                at = target;
                part_at = target;
                pointers += 1;
            }
            _ => return None,
        }
    }
}

fn labels_of(name: &Name) -> Labels {
    let mut labels = Labels::new();
    for label in name.iter() {
        labels.push(label.len() as u8);
        labels.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    labels
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([
        *message.get(at)?,
        *message.get(at + 1)?,
    ]))
}

fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16_at(message, at)?) << 16 | u32::from(u16_at(message, at + 2)?))
}

const fn plain_ttl(ttl_s: u32) -> u32 {
    if ttl_s >> 31 == 1 { 0 } else { ttl_s }
}

/// Reads question and answers, taking `name_at` for the names and looking into nothing that addresses do not depend on.
/// `None` when there is no whole question.
pub fn read(message: &[u8], name_at: NameAt) -> Option<Read> {
    let (question, at, pointers) = name_at(message, 12)?;
    let mut read = Read {
        question,
        pointers,
        type_and_class: u32_at(message, at)?,
        records: Vec::new(),
        is_complete: false,
    };
    let mut at = at + 4;
    for _ in 0..u16_at(message, 6)? {
        let Some((record, end)) = read_record(message, at, name_at) else {
            return Some(read);
        };
        read.records.push(record);
        at = end;
    }
    read.is_complete = true;
    Some(read)
}

fn read_record(message: &[u8], at: usize, name_at: NameAt) -> Option<(Record, usize)> {
    let (owner, at, pointers) = name_at(message, at)?;
    let kind = u16_at(message, at)?;
    let class = u16_at(message, at + 2)?;
    let ttl_s = plain_ttl(u32_at(message, at + 4)?);
    let end = at + 10 + usize::from(u16_at(message, at + 8)?);
    let data = message.get(at + 10..end)?;
    let data = match (class, kind) {
        (1, 1) => data.try_into().map_or(Data::Broken, |v4| Data::Address {
            address: from_v4(v4),
            from_aaaa: false,
        }),
        (1, 28) => data
            .try_into()
            .map_or(Data::Broken, |address| Data::Address {
                address,
                from_aaaa: true,
            }),
        (1, 5) => match name_at(message, at + 10) {
            Some((target, target_end, pointers)) if target_end == end => {
                Data::Alias { target, pointers }
            }
            _ => Data::Broken,
        },
        (1, 64 | 65) => {
            read_service(message, at + 10, end, name_at).map_or(Data::Broken, Data::Service)
        }
        _ => Data::Other,
    };
    Some((
        Record {
            owner,
            pointers,
            ttl_s,
            data,
        },
        end,
    ))
}

fn read_service(message: &[u8], at: usize, end: usize, name_at: NameAt) -> Option<Service> {
    let priority = u16_at(message, at)?;
    let (target, mut at, pointers) = name_at(message, at + 2).filter(|(_, at, _)| *at <= end)?;
    let message = &message[..end];
    let mut service = Service {
        target,
        pointers,
        ..Service::default()
    };
    let mut last_key = None;
    while priority != 0 && at < end {
        let value = u16_at(message, at + 2)
            .and_then(|length| message.get(at + 4..at + 4 + usize::from(length)));
        let key = u16_at(message, at).filter(|key| last_key.is_none_or(|last| last < *key));
        let (Some(key), Some(value)) = (key, value) else {
            service.is_broken = true;
            break;
        };
        let bytes = match key {
            4 => 4,
            6 => 16,
            _ => 0,
        };
        if bytes != 0 {
            service.has_empty_hint |= value.is_empty();
            if value.len() % bytes != 0 {
                service.is_broken = true;
                break;
            }
            for one in value.chunks(bytes) {
                let v6 = |_| (one.try_into().expect("16 bytes"), true);
                let v4: Result<[u8; 4], _> = one.try_into();
                let address = v4.map_or_else(v6, |v4| (from_v4(v4), false));
                service.hints.push(address);
            }
        }
        service.parameters += 1;
        last_key = Some(key);
        at += 4 + value.len();
    }
    Some(service)
}

/// The same from a message that hickory-proto has read as a whole.
pub fn read_hickory(message: &Message) -> Option<Read> {
    let query = message.queries.first()?;
    Some(Read {
        question: labels_of(query.name()),
        pointers: 0,
        type_and_class: u32::from(u16::from(query.query_type())) << 16
            | u32::from(u16::from(query.query_class())),
        records: message.answers.iter().map(hickory_record).collect(),
        is_complete: true,
    })
}

fn hickory_record(record: &HickoryRecord) -> Record {
    let data = match (record.dns_class, &record.data) {
        (DNSClass::IN, RData::A(a)) => Data::Address {
            address: from_v4(a.octets()),
            from_aaaa: false,
        },
        (DNSClass::IN, RData::AAAA(aaaa)) => Data::Address {
            address: aaaa.octets(),
            from_aaaa: true,
        },
        (DNSClass::IN, RData::CNAME(target)) => Data::Alias {
            target: labels_of(target),
            pointers: 0,
        },
        (DNSClass::IN, RData::SVCB(service) | RData::HTTPS(HTTPS(service))) => {
            Data::Service(hickory_service(service))
        }
        _ => Data::Other,
    };
    Record {
        owner: labels_of(&record.name),
        pointers: 0,
        ttl_s: plain_ttl(record.ttl),
        data,
    }
}

fn hickory_service(service: &SVCB) -> Service {
    let mut read = Service {
        target: labels_of(&service.target_name),
        ..Service::default()
    };
    if service.svc_priority == 0 {
        return read;
    }
    read.parameters = service.svc_params.len();
    for (_, value) in &service.svc_params {
        if let SvcParamValue::Ipv4Hint(IpHint(hint)) = value {
            read.has_empty_hint |= hint.is_empty();
            let addresses = hint.iter().map(|a| (from_v4(a.octets()), false));
            read.hints.extend(addresses);
        }
        if let SvcParamValue::Ipv6Hint(IpHint(hint)) = value {
            read.has_empty_hint |= hint.is_empty();
            let addresses = hint.iter().map(|aaaa| (aaaa.octets(), true));
            read.hints.extend(addresses);
        }
    }
    read
}

/// The same without the facts that only the plain reader reports.
pub fn without_pointers(mut read: Read) -> Read {
    read.pointers = 0;
    for record in &mut read.records {
        record.pointers = 0;
        if let Data::Alias { pointers, .. } | Data::Service(Service { pointers, .. }) =
            &mut record.data
        {
            *pointers = 0;
        }
    }
    read
}

/// Kind of a message by its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// An answer to one question without an error.
    Answer {
        /// TC bit.
        is_truncated: bool,
    },
    /// An answer with an error code in the header.
    ErrorCode,
    /// Anything else.
    NotAnAnswer,
}

/// Reads the header with hickory-proto.
pub fn head(message: &[u8]) -> Head {
    match Header::read(&mut BinDecoder::new(message)) {
        Ok(header)
            if header.message_type == MessageType::Response
                && header.op_code == OpCode::Query
                && header.counts.queries == 1 =>
        {
            if header.response_code.low() == 0 {
                Head::Answer {
                    is_truncated: header.truncation,
                }
            } else {
                Head::ErrorCode
            }
        }
        _ => Head::NotAnAnswer,
    }
}

/// Names and addresses that the alias chain of the question reaches.
#[derive(Debug, Default)]
pub struct Reach {
    /// Names on the chain, and for how long the best way to each is good.
    pub names: BTreeMap<Labels, u32>,
    /// Addresses on the chain with the TTL of each record, cut to that of the best way to it.
    pub addresses: BTreeSet<(Address, bool, u32)>,
    /// Addresses of records on the chain.
    pub address_count: u32,
    /// Those of them whose address may not be taught.
    pub unteachable: u32,
    /// Records off the chain on which addresses can depend (broken ones too).
    pub off_chain: u32,
    /// Some name is reached by more than one alias, so that its TTL depends on the order of records.
    pub is_ambiguous: bool,
    /// A record on the chain is broken.
    pub has_broken: bool,
    /// A service binding on the chain has an empty hint.
    pub has_empty_hint: bool,
    /// A name that has to be read holds more pointers than the machine follows: of the question, any.
    pub has_many_pointers: bool,
}

impl Record {
    /// The name that it makes its owner an alias of, and the pointers in it.
    fn target(&self) -> Option<(&Labels, u32)> {
        match &self.data {
            Data::Alias { target, pointers } => Some((target, *pointers)),
            Data::Service(service) => {
                Some((&service.target, service.pointers)).filter(|(target, _)| !target.is_empty())
            }
            Data::Address { .. } | Data::Broken | Data::Other => None,
        }
    }

    /// The most steps that the machine takes for it in one pass.
    pub fn steps(&self) -> usize {
        if let Data::Service(service) = &self.data {
            // A step behind the last parameter and behind each hint, and one for each of them.
            6 + service.parameters + service.hints.len()
        } else {
            3
        }
    }
}

impl Reach {
    /// Longest life of an address on the chain.
    pub fn best_ttl(&self, address: &Address) -> Option<u32> {
        let of = |(at, _, ttl_s): &(Address, bool, u32)| (at == address).then_some(*ttl_s);
        self.addresses.iter().filter_map(of).max()
    }
}

/// Follows the aliases from the question until nothing new is found.
pub fn reach(read: &Read) -> Reach {
    let mut reach = Reach {
        // In the question, none at all: its bytes were compared with the query.
        has_many_pointers: read.pointers != 0,
        ..Reach::default()
    };
    reach.names.insert(read.question.clone(), u32::MAX);
    let mut has_changed = true;
    while has_changed {
        has_changed = false;
        for record in &read.records {
            let Some((target, _)) = record.target() else {
                continue;
            };
            let Some(way) = reach.names.get(&record.owner).copied() else {
                continue;
            };
            let way = way.min(record.ttl_s);
            let known = reach.names.get(target).copied();
            if known.is_none_or(|known| known < way) {
                reach.names.insert(target.clone(), way);
                has_changed = true;
            }
        }
    }
    let mut met = BTreeSet::new();
    for record in &read.records {
        reach.has_many_pointers |= record.pointers > MOST_POINTERS;
        let way = reach.names.get(&record.owner).copied();
        if record.data == Data::Other {
            continue;
        }
        let Some(way) = way else {
            reach.off_chain += 1;
            continue;
        };
        if let Some((target, pointers)) = record.target() {
            reach.has_many_pointers |= pointers > MOST_POINTERS;
            if *target != read.question && !met.insert(target) {
                reach.is_ambiguous = true;
            }
        }
        let addresses = match &record.data {
            Data::Address { address, from_aaaa } => &[(*address, *from_aaaa)][..],
            Data::Service(service) => {
                reach.has_broken |= service.is_broken;
                reach.has_empty_hint |= service.has_empty_hint;
                &service.hints
            }
            Data::Broken => {
                reach.has_broken = true;
                &[]
            }
            Data::Alias { .. } | Data::Other => &[],
        };
        for (address, from_aaaa) in addresses {
            reach.address_count += 1;
            reach.unteachable += u32::from(is_unteachable(address, *from_aaaa));
            let ttl_s = record.ttl_s.min(way);
            reach.addresses.insert((*address, *from_aaaa, ttl_s));
        }
    }
    reach
}
