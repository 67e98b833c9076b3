//! The packet programs on packets that nobody sends: cut, optioned, fragmented, with extension headers, mutated.
//!
//! Each packet goes through the program in the kernel (`BPF_PROG_TEST_RUN`,
//! nothing is attached) and through the same parser and decision on the host:
//! verdict and reason must agree, and unreadable packets must be denied.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use egress_common::{
    address::from_v4,
    verdict::{Hook, Reason, Verdict},
};
use egress_tests::test_run;

use crate::rig::{
    DENIED, OPEN, OPEN6, PORTED, PORTED6, Rig, UNKNOWN, UNKNOWN6, covers, networks, ready,
};

fn udp(port: u16) -> Vec<u8> {
    let mut bytes = 4000_u16.to_be_bytes().to_vec();
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes.extend_from_slice(&[0, 12, 0, 0]);
    bytes.extend_from_slice(b"data");
    bytes
}

fn tcp(port: u16, flags: u8) -> Vec<u8> {
    let mut bytes = 4000_u16.to_be_bytes().to_vec();
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

/// An IPv4 packet with these options (a multiple of four bytes), fragment field and payload.
fn ipv4(to: Ipv4Addr, proto: u8, options: &[u8], fragment: u16, payload: &[u8]) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let header = 20 + options.len();
    let total = (header + payload.len()) as u16;
    let mut bytes = vec![0x40 | (header / 4) as u8, 0];
    bytes.extend_from_slice(&total.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes.extend_from_slice(&fragment.to_be_bytes());
    bytes.extend_from_slice(&[64, proto, 0, 0, 10, 0, 0, 1]);
    bytes.extend_from_slice(&to.octets());
    bytes.extend_from_slice(options);
    bytes.extend_from_slice(payload);
    bytes
}

/// An IPv6 packet whose extension headers are given as (number, bytes after the next-header byte).
fn ipv6(to: Ipv6Addr, headers: &[(u8, Vec<u8>)], proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for (index, (_, rest)) in headers.iter().enumerate() {
        body.push(headers.get(index + 1).map_or(proto, |(next, _)| *next));
        body.extend_from_slice(rest);
    }
    body.extend_from_slice(payload);
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend_from_slice(&(body.len() as u16).to_be_bytes());
    bytes.push(headers.first().map_or(proto, |(next, _)| *next));
    bytes.push(64);
    bytes.extend_from_slice(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).octets());
    bytes.extend_from_slice(&to.octets());
    bytes.extend_from_slice(&body);
    bytes
}

/// An options header of `8 * (1 + more)` bytes, filled with one PadN.
fn padding(more: u8) -> Vec<u8> {
    let length = 8 * (1 + usize::from(more));
    let mut rest = vec![more, 1, (length - 4) as u8];
    rest.resize(length - 1, 0);
    rest
}

/// A fragment header.
fn fragment(offset: u16, has_more: bool) -> Vec<u8> {
    let [high, low] = (offset << 3 | u16::from(has_more)).to_be_bytes();
    vec![0, high, low, 0, 0, 0, 1]
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?).into()),
        _ => Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?).into()),
    }
}

#[test]
fn whole_packets_are_judged_by_their_destination_and_port() {
    let Some(rig) = Rig::new() else { return };
    rig.agrees(&ipv4(OPEN, 17, &[], 0, &udp(9)), Reason::CidrRule);
    rig.agrees(&ipv4(OPEN, 6, &[], 0, &tcp(9, 2)), Reason::CidrRule);
    rig.agrees(&ipv4(PORTED, 17, &[], 0, &udp(53)), Reason::CidrRule);
    rig.agrees(&ipv4(PORTED, 17, &[], 0, &udp(54)), Reason::NoRule);
    rig.agrees(&ipv4(PORTED, 6, &[], 0, &tcp(53, 2)), Reason::NoRule);
    rig.agrees(&ipv4(DENIED, 17, &[], 0, &udp(53)), Reason::DeniedCidr);
    rig.agrees(&ipv4(UNKNOWN, 17, &[], 0, &udp(53)), Reason::NoRule);
    rig.agrees(&ipv6(OPEN6, &[], 17, &udp(9)), Reason::CidrRule);
    rig.agrees(&ipv6(PORTED6, &[], 17, &udp(53)), Reason::CidrRule);
    rig.agrees(&ipv6(PORTED6, &[], 6, &tcp(53, 2)), Reason::NoRule);
    rig.agrees(&ipv6(UNKNOWN6, &[], 17, &udp(53)), Reason::NoRule);
    for proto in [1, 41, 47, 50, 132, 255] {
        rig.agrees(&ipv4(OPEN, proto, &[], 0, &[8; 32]), Reason::CidrRule);
        rig.agrees(&ipv4(UNKNOWN, proto, &[], 0, &[8; 32]), Reason::NoRule);
    }
}

#[test]
fn a_packet_of_any_length_is_judged_as_on_the_host_and_denied_while_its_header_is_cut() {
    let Some(rig) = Rig::new() else { return };
    let longest = [
        ipv4(OPEN, 17, &[1; 8], 0, &[&udp(9)[..], &[0; 64]].concat()),
        ipv4(OPEN, 6, &[], 0, &[&tcp(9, 2)[..], &[0; 64]].concat()),
        ipv4(OPEN, 1, &[], 0, &[8; 64]),
        ipv6(OPEN6, &[], 17, &[&udp(9)[..], &[0; 64]].concat()),
        ipv6(OPEN6, &[(HOP_BY_HOP, padding(0))], 6, &tcp(9, 2)),
        ipv6(OPEN6, &[], 58, &[128; 64]),
        vec![0; 64],
        vec![0xff; 64],
        vec![0x45; 64],
        vec![0x4f; 64],
        vec![0x60; 64],
    ];
    for packet in &longest {
        for length in 0..=64.min(packet.len()) {
            let cut = &packet[..length];
            for hook in [Hook::SkbEgress, Hook::TcEgress] {
                let reason = rig.agree(hook, cut);
                let header = if packet[0] >> 4 == 6 { 40 } else { 20 };
                if length > 0 && length < header {
                    assert_eq!(reason, Some(Reason::Malformed), "{hook:?} {cut:02x?}");
                }
            }
        }
    }
    // After the others: ingress notes who started a flow, and some of these have the same far and near end.
    for packet in &longest {
        for length in 0..=64.min(packet.len()) {
            for hook in [Hook::SkbIngress, Hook::TcIngress] {
                if let Some(code) = rig.run(hook, &packet[..length]) {
                    assert!(code == 1 || code == -1);
                }
            }
        }
    }
}

#[test]
fn a_frame_of_any_length_at_an_interface_is_never_waved_through() {
    let Some(rig) = Rig::new() else { return };
    let program: &SchedClassifier = rig.ebpf.program("tc_egress").unwrap().try_into().unwrap();
    for kind in [
        [0x08, 0x00],
        [0x86, 0xdd],
        [0x81, 0x00],
        [0x88, 0xa8],
        [0x88, 0xb5],
        [0, 0],
    ] {
        for length in 0..=64_usize {
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 5];
            frame.extend_from_slice(&kind);
            frame.resize(frame.len() + length, 0);
            let options = TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&test_run::context()),
                ..TestRunOptions::new()
            };
            let result = program.test_run(options).unwrap();
            assert_eq!(
                result.return_value as i32,
                Verdict::Deny.tc_code(),
                "{frame:02x?}"
            );
        }
    }
    assert!(rig.count(Hook::TcEgress, Verdict::Deny, Reason::UnknownEthertype) > 0);
    assert!(rig.count(Hook::TcEgress, Verdict::Deny, Reason::Malformed) > 0);
}

#[test]
fn ipv4_options_move_the_ports_and_source_routes_are_denied() {
    let Some(rig) = Rig::new() else { return };
    for words in 1..=10 {
        let nops = vec![1; words * 4];
        rig.agrees(&ipv4(PORTED, 17, &nops, 0, &udp(53)), Reason::CidrRule);
        rig.agrees(&ipv4(PORTED, 17, &nops, 0, &udp(54)), Reason::NoRule);
    }
    // Router alert (RFC 2113), end of list, record route, timestamp.
    for options in [
        &[148, 4, 0, 0][..],
        &[0, 0, 0, 0],
        &[7, 7, 4, 0, 0, 0, 0, 0],
        &[68, 8, 5, 0, 0, 0, 0, 0],
        &[1, 1, 1, 148, 4, 0, 0, 0],
    ] {
        rig.agrees(&ipv4(PORTED, 17, options, 0, &udp(53)), Reason::CidrRule);
    }
    // Loose and strict source routes, also behind other options.
    for options in [
        &[131, 7, 4, 10, 0, 0, 9, 0][..],
        &[137, 7, 4, 10, 0, 0, 9, 0],
        &[1, 1, 1, 1, 131, 7, 4, 10, 0, 0, 9, 0],
        &[148, 4, 0, 0, 137, 7, 4, 10, 0, 0, 9, 0],
    ] {
        rig.agrees(&ipv4(OPEN, 17, options, 0, &udp(53)), Reason::SourceRouted);
    }
    // Lengths of zero and one, and beyond the header.
    for options in [
        &[148, 0, 0, 0][..],
        &[148, 1, 0, 0],
        &[148, 5, 0, 0],
        &[7, 40, 4, 0],
        &[1, 1, 1, 148],
    ] {
        rig.agrees(&ipv4(OPEN, 17, options, 0, &udp(53)), Reason::Malformed);
    }
}

#[test]
fn ipv4_headers_that_contradict_themselves_are_denied() {
    let Some(rig) = Rig::new() else { return };
    let good = ipv4(OPEN, 17, &[], 0, &udp(53));
    for first in (0..=0xff_u8).filter(|first| *first != 0x45) {
        let mut packet = good.clone();
        packet[0] = first;
        for hook in [Hook::SkbEgress, Hook::TcEgress] {
            let reason = rig.agree(hook, &packet);
            if first >> 4 != 4 || first & 0xf < 5 {
                assert_eq!(reason, Some(Reason::Malformed), "{first:#x}");
            }
        }
    }
    for total in 1..28_u16 {
        let mut packet = good.clone();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        for hook in [Hook::SkbEgress, Hook::TcEgress] {
            let reason = rig.agree(hook, &packet);
            if total < 20 {
                assert_eq!(reason, Some(Reason::Malformed), "total length {total}");
            }
        }
    }
}

#[test]
fn fragments_are_judged_by_ports_where_they_have_them() {
    let Some(rig) = Rig::new() else { return };
    const MORE: u16 = 0x2000;
    rig.agrees(&ipv4(PORTED, 17, &[], MORE, &udp(53)), Reason::CidrRule);
    rig.agrees(&ipv4(PORTED, 17, &[], MORE, &udp(54)), Reason::NoRule);
    // Later fragments show no ports, whatever stands where the ports would be.
    for field in [1, MORE | 1, 185, 0x1fff] {
        rig.agrees(&ipv4(PORTED, 17, &[], field, &udp(53)), Reason::Fragment);
        rig.agrees(&ipv4(PORTED, 6, &[], field, &tcp(53, 2)), Reason::Fragment);
        rig.agrees(&ipv4(OPEN, 17, &[], field, &udp(53)), Reason::CidrRule);
        rig.agrees(&ipv4(DENIED, 17, &[], field, &udp(53)), Reason::DeniedCidr);
        rig.agrees(&ipv4(OPEN, 17, &[], field, b"x"), Reason::CidrRule);
    }
    // A first fragment too short for its ports.
    for length in 0..4 {
        rig.agrees(
            &ipv4(OPEN, 17, &[], MORE, &udp(53)[..length]),
            Reason::Malformed,
        );
    }
    let first = [(FRAGMENT, fragment(0, true))];
    rig.agrees(&ipv6(PORTED6, &first, 17, &udp(53)), Reason::CidrRule);
    rig.agrees(&ipv6(PORTED6, &first, 17, &udp(54)), Reason::NoRule);
    let atomic = [(FRAGMENT, fragment(0, false))];
    rig.agrees(&ipv6(PORTED6, &atomic, 17, &udp(53)), Reason::CidrRule);
    for (offset, has_more) in [(1, true), (1, false), (185, true), (0x1fff, false)] {
        let later = [(FRAGMENT, fragment(offset, has_more))];
        rig.agrees(&ipv6(PORTED6, &later, 17, &udp(53)), Reason::Fragment);
        rig.agrees(&ipv6(OPEN6, &later, 17, &udp(53)), Reason::CidrRule);
        rig.agrees(&ipv6(UNKNOWN6, &later, 17, &udp(53)), Reason::Fragment);
    }
}

#[test]
fn ipv6_extension_headers_are_walked_or_denied() {
    let Some(rig) = Rig::new() else { return };
    let chains: [Vec<(u8, Vec<u8>)>; 6] = [
        vec![(HOP_BY_HOP, padding(0))],
        vec![(DESTINATION, padding(0))],
        vec![(HOP_BY_HOP, padding(3)), (DESTINATION, padding(30))],
        vec![
            (HOP_BY_HOP, padding(0)),
            (DESTINATION, padding(0)),
            (FRAGMENT, fragment(0, false)),
        ],
        // An authentication header counts in words of four bytes, less two.
        vec![(AUTHENTICATION, [&[4][..], &[0; 22]].concat())],
        vec![(DESTINATION, padding(0)); 7],
    ];
    for chain in &chains {
        rig.agrees(&ipv6(PORTED6, chain, 17, &udp(53)), Reason::CidrRule);
        rig.agrees(&ipv6(PORTED6, chain, 17, &udp(54)), Reason::NoRule);
        rig.agrees(&ipv6(PORTED6, chain, 6, &tcp(53, 2)), Reason::NoRule);
        rig.agrees(&ipv6(UNKNOWN6, chain, 17, &udp(53)), Reason::NoRule);
    }
    for count in 9..40 {
        let chain = vec![(DESTINATION, padding(0)); count];
        rig.agrees(&ipv6(OPEN6, &chain, 17, &udp(53)), Reason::TooManyHeaders);
    }
    // Routing headers with segments left: type 0 (RFC 5095), 2, 4.
    for kind in [0, 2, 4] {
        let mut rest = vec![2, kind, 1, 0, 0, 0, 0];
        rest.extend_from_slice(&UNKNOWN6.octets());
        let packet = ipv6(OPEN6, &[(ROUTING, rest)], 17, &udp(53));
        for hook in [Hook::SkbEgress, Hook::TcEgress] {
            let reason = rig.agree(hook, &packet).unwrap();
            assert!(!reason.allows(), "type {kind}: {reason:?}");
        }
    }
    // Cut at every byte of the chain.
    let whole = ipv6(OPEN6, &chains[3], 17, &udp(53));
    for length in 1..whole.len() - 4 {
        for hook in [Hook::SkbEgress, Hook::TcEgress] {
            let reason = rig.agree(hook, &whole[..length]).unwrap();
            if length < 40 + 24 + 4 {
                assert!(!reason.allows(), "{length}: {reason:?}");
            }
        }
    }
    // A length that leads beyond the packet.
    let mut beyond = padding(0);
    beyond[0] = 255;
    rig.agrees(
        &ipv6(OPEN6, &[(HOP_BY_HOP, beyond)], 17, &udp(53)),
        Reason::Malformed,
    );
}

#[test]
fn mutated_packets_never_get_another_verdict_than_on_the_host() {
    let Some(rig) = Rig::new() else { return };
    let seeds = [
        ipv4(OPEN, 17, &[1, 1, 1, 1], 0, &udp(53)),
        ipv4(PORTED, 17, &[], 0, &udp(53)),
        ipv4(PORTED, 6, &[148, 4, 0, 0], 0, &tcp(53, 2)),
        ipv4(DENIED, 1, &[], 0, &[8; 16]),
        ipv6(
            OPEN6,
            &[(HOP_BY_HOP, padding(0)), (DESTINATION, padding(1))],
            17,
            &udp(53),
        ),
        ipv6(PORTED6, &[(FRAGMENT, fragment(0, true))], 17, &udp(53)),
        ipv6(UNKNOWN6, &[], 58, &[135; 24]),
    ];
    // A linear congruential generator (Knuth, MMIX): the same packets in every run.
    let mut state = 2026_u64;
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut allowed = 0_u32;
    for round in 0..20_000 {
        let mut packet = seeds[next(seeds.len())].clone();
        for _ in 0..=next(4) {
            // Headers rather than payload.
            let at = next(packet.len().min(72));
            packet[at] = match next(3) {
                0 => next(256) as u8,
                1 => packet[at] ^ (1 << next(8)),
                _ => [0, 1, 4, 6, 17, 43, 44, 51, 58, 60, 0x45, 0x60, 0xff][next(13)],
            };
        }
        if next(8) == 0 {
            packet.truncate(next(packet.len()).max(1));
        }
        let hook = if round % 2 == 0 {
            Hook::SkbEgress
        } else {
            Hook::TcEgress
        };
        let reason = rig.agree(hook, &packet).unwrap();
        if reason.allows() {
            allowed += 1;
            let to = destination(&packet).unwrap();
            let is_open = to.is_loopback()
                || reason == Reason::LinkControl
                || networks().iter().any(|(network, bits, _)| {
                    let address = match to {
                        IpAddr::V4(v4) => from_v4(v4.octets()),
                        IpAddr::V6(v6) => v6.octets(),
                    };
                    covers(network, *bits, &address)
                });
            assert!(is_open, "{reason:?} {packet:02x?}");
        }
    }
    assert!(allowed > 1000, "only {allowed} of the packets were good");
}

#[test]
fn without_a_configuration_everything_is_denied() {
    if !ready() {
        return;
    }
    let rig = Rig::unconfigured();
    for packet in [
        ipv4(OPEN, 17, &[], 0, &udp(9)),
        ipv6(OPEN6, &[], 17, &udp(9)),
        vec![0],
    ] {
        assert_eq!(rig.run(Hook::SkbEgress, &packet), Some(0));
        assert_eq!(rig.run(Hook::TcEgress, &packet), Some(2));
        assert_eq!(rig.run(Hook::SkbIngress, &packet), Some(1));
        assert_eq!(rig.run(Hook::TcIngress, &packet), Some(-1));
    }
    assert_eq!(
        rig.count(Hook::SkbEgress, Verdict::Deny, Reason::NotConfigured),
        3
    );
    assert_eq!(
        rig.count(Hook::TcEgress, Verdict::Deny, Reason::NotConfigured),
        3
    );
}
