//! Packets that are put together from known fields are read back as these fields, or refused for the planted reason.
//!
//! `tests/fuzz` compares the same parser with etherparse.

#![expect(clippy::arithmetic_side_effects, reason = "test code")]

use egress_common::{
    address::from_v4,
    packet::parse,
    policy::protocol::{DCCP, ICMP, SCTP, TCP, UDP, UDPLITE},
    verdict::Reason,
};
use proptest::{collection::vec, prelude::*};

const SOURCE: u16 = 40_000;
const SEQUENCE: u32 = 0x0102_0304;

/// Header of a transport protocol; returns how much of it comes before the payload.
fn transport(proto: u8, port: u16) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    bytes.extend(SOURCE.to_be_bytes());
    bytes.extend(port.to_be_bytes());
    match proto {
        TCP => {
            bytes.extend(SEQUENCE.to_be_bytes());
            bytes.extend([0, 0, 0, 0, 0x60, 0x12, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
            (bytes, 24)
        }
        UDP | UDPLITE => {
            bytes.extend([0; 4]);
            (bytes, 8)
        }
        _ => (bytes, 0),
    }
}

fn v4(proto: u8, fragment: u16, options: &[u8], rest: &[u8]) -> Vec<u8> {
    let words = u8::try_from(options.len() / 4).expect("few options");
    let length = u16::try_from(options.len() + rest.len()).expect("a length") + 20;
    let mut packet = vec![0x45 + words, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, proto, 0, 0, 10, 0, 0, 1, 192, 0, 2, 9]);
    packet.extend(options);
    packet.extend(rest);
    packet
}

fn v6(first: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(rest.len()).expect("a length").to_be_bytes());
    packet.extend([first, 64]);
    packet.extend([1; 16]);
    packet.extend([2; 16]);
    packet.extend(rest);
    packet
}

fn proto() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![TCP, UDP, UDPLITE, SCTP, DCCP, 47])
}

fn has_ports(proto: u8) -> bool {
    proto != 47
}

/// Options without a source route, padded to words.
fn options() -> impl Strategy<Value = Vec<u8>> {
    let option = prop::sample::select(vec![
        vec![1],
        vec![148, 4, 0, 0],
        vec![7, 7, 4, 9, 9, 9, 9],
        // The number of a source route inside another option is data.
        vec![68, 6, 131, 137, 131, 3],
    ]);
    vec(option, 0..5).prop_map(|options| {
        let mut bytes = options.concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    })
}

/// Extension headers other than fragments: kind and 8-byte blocks behind the first.
fn extensions(most: usize) -> impl Strategy<Value = Vec<(u8, u8)>> {
    vec((prop::sample::select(vec![0, 51, 60]), 0_u8..3), 0..=most)
}

/// The headers in a row, the last of which leads to `proto`.
fn headers(kinds: &[(u8, u8)], proto: u8) -> (u8, Vec<u8>) {
    let mut bytes = Vec::new();
    for (index, (kind, blocks)) in kinds.iter().enumerate() {
        let next = kinds.get(index + 1).map_or(proto, |(kind, _)| *kind);
        // An authentication header counts in words, less two.
        let length = if *kind == 51 { blocks * 2 + 2 } else { *blocks };
        let header_bytes = if *kind == 51 { 16 } else { 8 } + 8 * usize::from(*blocks);
        let begin = bytes.len();
        bytes.extend([next, length, 0, 0]);
        bytes.resize(begin + header_bytes, 0);
    }
    (kinds.first().map_or(proto, |(kind, _)| *kind), bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fields_of_an_ipv4_packet_are_read_back(
        proto in proto(), port: u16, options in options(), payload in vec(any::<u8>(), 0..40),
    ) {
        let (mut rest, header_bytes) = transport(proto, port);
        rest.extend(&payload);
        let bytes = v4(proto, 0x4000, &options, &rest);
        let packet = parse(bytes.as_slice()).expect("a packet");
        prop_assert_eq!((packet.saddr, packet.daddr), (from_v4([10, 0, 0, 1]), from_v4([192, 0, 2, 9])));
        prop_assert_eq!((packet.proto, packet.hop_limit), (proto, 64));
        prop_assert_eq!(packet.rule_port(), has_ports(proto).then_some(port));
        prop_assert_eq!(packet.payload_at as usize, 20 + options.len() + header_bytes);
        prop_assert_eq!(packet.end as usize, bytes.len());
        if proto == TCP {
            prop_assert_eq!((packet.sequence, packet.flags), (SEQUENCE, 0x12));
            prop_assert_eq!(packet.payload_bytes() as usize, payload.len());
        }
    }

    #[test]
    fn fields_of_an_ipv6_packet_are_read_back_behind_up_to_eight_headers(
        proto in proto(), port: u16, kinds in extensions(10), payload in vec(any::<u8>(), 0..40),
    ) {
        let (mut rest, header_bytes) = transport(proto, port);
        rest.extend(&payload);
        let (first, mut bytes) = headers(&kinds, proto);
        let before = bytes.len();
        bytes.extend(rest);
        let parsed = parse(v6(first, &bytes).as_slice());
        if kinds.len() > 8 {
            prop_assert_eq!(parsed, Err(Reason::TooManyHeaders));
        } else {
            let packet = parsed.expect("a packet");
            prop_assert_eq!((packet.saddr, packet.daddr), ([1; 16], [2; 16]));
            prop_assert_eq!((packet.proto, packet.is_later_fragment), (proto, false));
            prop_assert_eq!(packet.rule_port(), has_ports(proto).then_some(port));
            prop_assert_eq!(packet.payload_at as usize, 40 + before + header_bytes);
            prop_assert_eq!(packet.end as usize, 40 + bytes.len());
        }
    }

    #[test]
    fn a_later_fragment_shows_no_ports_whatever_its_bytes(
        proto in proto(), offset in 1_u16..0x2000, more: bool, kinds in extensions(5), bytes in vec(any::<u8>(), 0..60),
    ) {
        let packet = v4(proto, offset | u16::from(more) << 13, &[], &bytes);
        let packet = parse(packet.as_slice()).expect("a packet");
        prop_assert!(packet.is_later_fragment && packet.rule_port().is_none() && packet.proto == proto);

        let (first, mut rest) = headers(&kinds, 44);
        rest.extend([proto, 0]);
        rest.extend((offset << 3 | u16::from(more)).to_be_bytes());
        rest.extend([0; 4]);
        rest.extend(&bytes);
        let packet = parse(v6(first, &rest).as_slice()).expect("a packet");
        prop_assert!(packet.is_later_fragment && packet.rule_port().is_none() && packet.proto == proto);
    }

    #[test]
    fn a_source_route_is_refused_wherever_it_stands(
        before in options(), kinds in extensions(6), place: prop::sample::Index, strict: bool, left: u8,
    ) {
        // Padding after the last option ends the list: what comes behind it is not an option.
        let mut options: Vec<u8> = before.into_iter().map(|byte| if byte == 0 { 1 } else { byte }).collect();
        options.truncate(32);
        options.retain(|byte| *byte == 1);
        options.extend([if strict { 137 } else { 131 }, 7, 4, 192, 0, 2, 77]);
        options.resize(options.len().next_multiple_of(4), 1);
        let (rest, _) = transport(TCP, 443);
        prop_assert_eq!(parse(v4(TCP, 0, &options, &rest).as_slice()), Err(Reason::SourceRouted));

        let mut kinds = kinds;
        kinds.insert(place.index(kinds.len() + 1), (43, 0));
        let (first, mut bytes) = headers(&kinds, TCP);
        // Segments left or none, in the first routing header.
        let mut at = 0;
        for (kind, blocks) in &kinds {
            if *kind == 43 {
                break;
            }
            at += if *kind == 51 { 16 } else { 8 } + 8 * usize::from(*blocks);
        }
        bytes[at + 3] = left;
        bytes.extend(rest);
        prop_assert_eq!(parse(v6(first, &bytes).as_slice()), Err(Reason::SourceRouted));
    }

    #[test]
    fn a_packet_that_ends_before_its_ports_is_refused(
        proto in prop::sample::select(vec![TCP, UDP, UDPLITE, SCTP, DCCP, ICMP]), kinds in extensions(4),
    ) {
        let needed = match proto { TCP => 14, UDP | UDPLITE => 8, ICMP => 1, _ => 4 };
        let (rest, _) = transport(proto, 443);
        let whole = v4(proto, 0, &[], &rest);
        for end in 0..20 + needed {
            prop_assert_eq!(parse(&whole[..end]), Err(Reason::Malformed), "{}", end);
        }
        let (first, mut bytes) = headers(&kinds, proto);
        let before = bytes.len();
        bytes.extend(rest);
        let whole = v6(first, &bytes);
        for end in 0..40 + before + needed {
            prop_assert_eq!(parse(&whole[..end]), Err(Reason::Malformed), "{}", end);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_show_ports_that_are_not_theirs(
        first in prop::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x60, 0x6f]), mut bytes in vec(any::<u8>(), 1..200),
    ) {
        bytes[0] = first;
        if let Ok(packet) = parse(bytes.as_slice()) {
            prop_assert!(packet.payload_bytes() == 0 || packet.payload_at < packet.end);
            if let Some(port) = packet.rule_port() {
                let port = port.to_be_bytes();
                prop_assert!(bytes.windows(2).any(|pair| pair == port));
            } else {
                prop_assert_eq!((packet.sport, packet.dport), (0, 0));
            }
        }
    }
}
