//! DNS messages as the bench's server, clients and program runs write them.
//!
//! | first label | answer |
//! | --- | --- |
//! | `s7` | address 7 of the sink: packets to it end at the far side of a veth pair |
//! | `r7`, `r16-7` | one, or 16, of 4,096 addresses that come again and again |
//! | `n7`, `n16-7` | one address, or 16, that no other name has |
//! | `c2-7` | two aliases, then an address that comes again |

use std::net::Ipv4Addr;

/// Zone below which every name exists.
pub(crate) const ZONE: &str = "bench.example.com";
/// First address of the sink.
pub(crate) const SINK: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
/// First of the addresses that come again.
pub(crate) const REUSED: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 0);
/// How many of those there are.
const REUSED_COUNT: u32 = 4_096;
/// First of the addresses that come once.
pub(crate) const WIDE: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// How many of those there are.
const WIDE_COUNT: u32 = 1 << 23;

const HEADER_BYTES: usize = 12;
const TTL_S: u32 = 3_600;

/// A query for the IPv4 addresses of a first label below the zone.
pub(crate) fn query(id: u16, label: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for part in std::iter::once(label).chain(ZONE.split('.')) {
        bytes.push(part.len() as u8);
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

/// The answer that a first label asks for: aliases, addresses, the first of them.
fn plan(label: &str) -> Option<(u8, u32, Ipv4Addr)> {
    let (kind, rest) = label.split_at_checked(1)?;
    let (count, number) = rest.split_once('-').unwrap_or(("1", rest));
    let (count, number): (u32, u32) = (count.parse().ok()?, number.parse().ok()?);
    let at = |base: Ipv4Addr, number: u32| Ipv4Addr::from(u32::from(base) + number);
    Some(match kind {
        "s" => (0, 1, at(SINK, number % 65_536)),
        "r" => (0, count, at(REUSED, number % (REUSED_COUNT - count))),
        "n" => (0, count, at(WIDE, number * count % (WIDE_COUNT - count))),
        "c" => (
            u8::try_from(count).ok()?,
            1,
            at(REUSED, number % REUSED_COUNT),
        ),
        _ => return None,
    })
}

/// The answer to a query; `None` for what is none, or a name that does not exist.
pub(crate) fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let length = usize::from(*query.get(HEADER_BYTES)?);
    let label = query.get(HEADER_BYTES + 1..HEADER_BYTES + 1 + length)?;
    let (aliases, count, first) = plan(std::str::from_utf8(label).ok()?)?;
    let parent = HEADER_BYTES + 1 + length;
    let mut end = parent;
    while let Some(length @ 1..) = query.get(end) {
        end += 1 + usize::from(*length);
    }
    let mut bytes = query.get(..end + 5)?.to_vec();
    bytes[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes[7] = aliases + count as u8;
    let mut owner = HEADER_BYTES;
    let pointer = |at: usize| (0xc000 | at as u16).to_be_bytes();
    for number in 0..aliases {
        bytes.extend_from_slice(&pointer(owner));
        bytes.extend_from_slice(&[0, 5, 0, 1]);
        bytes.extend_from_slice(&TTL_S.to_be_bytes());
        bytes.extend_from_slice(&[0, 5]);
        owner = bytes.len();
        bytes.extend_from_slice(&[2, b'a', b'0' + number]);
        bytes.extend_from_slice(&pointer(parent));
    }
    for number in 0..count {
        bytes.extend_from_slice(&pointer(owner));
        bytes.extend_from_slice(&[0, 1, 0, 1]);
        bytes.extend_from_slice(&TTL_S.to_be_bytes());
        bytes.extend_from_slice(&[0, 4]);
        bytes.extend_from_slice(&Ipv4Addr::from(u32::from(first) + number).octets());
    }
    Some(bytes)
}

/// The last address of an answer of ours, which ends with it.
pub(crate) fn last_address(answer: &[u8]) -> Option<Ipv4Addr> {
    let address: [u8; 4] = *answer.last_chunk()?;
    // The answer count, or there is no address at the end.
    (answer.get(6..8)? != [0, 0]).then(|| address.into())
}

#[cfg(test)]
mod tests {
    use egress_tests::dns;
    use hickory_proto::op::Message;

    use super::*;

    #[test]
    fn answers_are_what_hickory_reads() {
        for (label, aliases, count) in [("s7", 0, 1), ("n16-3", 0, 16), ("c2-5", 2, 1)] {
            let query = query(7, label);
            assert!(Message::from_vec(&query).is_ok());
            let bytes = answer(&query).unwrap();
            let message = Message::from_vec(&bytes).unwrap();
            let addresses = dns::addresses(&message);
            assert_eq!(addresses.len(), count, "{label}");
            assert_eq!(message.answers.len(), aliases + count, "{label}");
            let last = last_address(&bytes).unwrap();
            assert_eq!(addresses.last().unwrap().0, last, "{label}");
        }
    }
}
