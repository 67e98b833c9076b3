//! Raw sockets: the sender writes the packet.

use std::net::Ipv6Addr;

use egress_tests::{
    expect::{counted, reached, refused},
    packets::{ACK, Ends, GRE, ICMP, ICMPV6, IPIP, IPV6_IN_IP, PSH, RST, SYN, TCP, UDP},
    report::Attempt,
};

use crate::bench::{ALLOWED, Bench, DENIED, RULES, emit, node_like};

/// Payload that must not leave.
const SECRET: &[u8] = b"the secret of the node";

/// From the node to this address.
fn to(address: &str) -> Ends {
    Ends::new(node_like(address), address)
}

pub(crate) fn raw_sockets() {
    let Some(bench) = Bench::new() else { return };
    bench.stops_both(|address| {
        let datagram = to(address).udp(7, 9000, SECRET);
        emit(&bench.client, address, &datagram, &["--protocol", "17"])
    });
}

pub(crate) fn raw_sockets_with_headers() {
    let Some(bench) = Bench::new() else { return };
    bench.stops_both(|address| {
        let ends = to(address);
        bench.emit(address, &ends.packet(UDP, &ends.udp(7, 9000, SECRET)))
    });
    // Connections of a TCP of one's own.
    bench.stops_both(|address| {
        let ends = to(address);
        bench.emit(
            address,
            &ends.packet(TCP, &ends.tcp((7, 9000), (1, 0), SYN, b"")),
        )
    });
    bench.stops_both(|address| {
        let ends = to(address);
        let flags = PSH | ACK;
        bench.emit(
            address,
            &ends.packet(TCP, &ends.tcp((7, 9000), (1, 1), flags, SECRET)),
        )
    });
}

pub(crate) fn another_destination_in_the_header() {
    let Some(bench) = Bench::new() else { return };
    for (denied, allowed) in DENIED.into_iter().zip(ALLOWED) {
        bench.stops(denied, allowed, |address| {
            let ends = to(address);
            // The kernel is given the allowed one as its destination.
            bench.emit(allowed, &ends.packet(UDP, &ends.udp(7, 9000, SECRET)))
        });
    }
}

pub(crate) fn forged_sources() {
    let Some(bench) = Bench::new() else { return };
    for (denied, allowed, source) in [
        (DENIED[0], ALLOWED[0], "10.77.0.77"),
        (DENIED[1], ALLOWED[1], "fd77::77"),
        (DENIED[0], ALLOWED[0], "127.0.0.1"),
    ] {
        bench.stops(denied, allowed, |address| {
            let ends = Ends::new(source, address);
            bench.emit(address, &ends.packet(UDP, &ends.udp(53, 53, SECRET)))
        });
    }
}

pub(crate) fn loopback_destination_on_the_wire() {
    let Some(bench) = Bench::new() else { return };
    for (denied, loopback) in [
        (DENIED[0], "127.0.0.1"),
        (DENIED[0], "127.9.9.9"),
        (DENIED[1], "::1"),
    ] {
        let ends = to(loopback);
        let packet = ends.packet(UDP, &ends.udp(7, 9000, SECRET));
        // A neighbour on the link reads what the routing sends to it.
        let attempt = bench.emit(denied, &packet);
        assert!(!bench.leaves(SECRET), "{loopback}: {attempt:?}");
        // The twin: over the loopback device it passes.
        reached(&bench.emit(loopback, &packet));
    }
}

pub(crate) fn kernel_answers() {
    let Some(bench) = Bench::new() else { return };
    for (family, protocol, kinds) in [
        (0, ICMP, &[0_u8, 3, 5, 11, 12, 14][..]),
        (1, ICMPV6, &[1, 2, 3, 4, 100, 129]),
    ] {
        let (denied, allowed) = (DENIED[family], ALLOWED[family]);
        for kind in kinds {
            bench.stops(denied, allowed, |address| {
                let ends = to(address);
                bench.emit(address, &ends.packet(protocol, &ends.icmp(*kind, SECRET)))
            });
        }
        for flags in [RST, RST | ACK, ACK] {
            bench.stops(denied, allowed, |address| {
                let ends = to(address);
                let segment = ends.tcp((7, 9000), (0x5ec7_e700, 0x5ec7_e701), flags, b"");
                bench.emit(address, &ends.packet(TCP, &segment))
            });
        }
    }
}

pub(crate) fn link_control() {
    let Some(bench) = Bench::new() else { return };
    for kind in 133..=137 {
        bench.stops(DENIED[1], ALLOWED[1], |address| {
            let ends = to(address);
            bench.emit(address, &ends.ipv6(255, ICMPV6, &ends.icmp(kind, SECRET)))
        });
    }
}

pub(crate) fn icmp_tunnels() {
    let Some(bench) = Bench::under(RULES) else {
        return;
    };
    bench.stops_both(|address| bench.client.ping(address));
    // The kernel's ICMPv6 ping sockets keep the error to themselves.
    bench.stops_both(|address| {
        bench
            .client
            .probe(&["ping", "--dgram", address, "--timeout", "300"])
    });
    for (family, protocol, kinds) in [
        (0, ICMP, &[8_u8, 13, 15, 17, 42, 200][..]),
        (1, ICMPV6, &[128, 130, 139, 160, 200]),
    ] {
        for kind in kinds {
            bench.stops(DENIED[family], ALLOWED[family], |address| {
                let ends = to(address);
                bench.emit(address, &ends.packet(protocol, &ends.icmp(*kind, SECRET)))
            });
        }
    }
}

/// An inner packet to the allowed address, in an outer one.
fn stops_inside(outer: u8, shim: &[u8]) {
    let Some(bench) = Bench::new() else { return };
    for inner in ALLOWED {
        let ends = to(inner);
        let mut payload = shim.to_vec();
        payload.extend(ends.packet(UDP, &ends.udp(7, 9000, SECRET)));
        bench.stops_both(|address| bench.emit(address, &to(address).packet(outer, &payload)));
    }
}

pub(crate) fn ipip() {
    stops_inside(IPIP, &[]);
}

pub(crate) fn ipv6_in_ip() {
    stops_inside(IPV6_IN_IP, &[]);
}

pub(crate) fn gre() {
    stops_inside(GRE, &[0, 0, 0x08, 0]);
}

pub(crate) fn other_protocols() {
    let Some(bench) = Bench::new() else { return };
    // SCTP, DCCP, UDP-Lite, ESP, AH, L2TP, OSPF, PIM, an experiment, nothing at all.
    for protocol in [132, 33, 136, 50, 51, 115, 89, 103, 253, 59] {
        bench.stops(DENIED[0], ALLOWED[0], |address| {
            let mut payload = vec![0x1b, 0x59, 0x23, 0x28, 0, 0, 0, 0];
            payload.extend_from_slice(SECRET);
            bench.emit(address, &to(address).packet(protocol, &payload))
        });
    }
    for protocol in [132, 33, 136, 50, 115, 89, 103, 253] {
        bench.stops(DENIED[1], ALLOWED[1], |address| {
            let mut payload = vec![0x1b, 0x59, 0x23, 0x28, 0, 0, 0, 0];
            payload.extend_from_slice(SECRET);
            bench.emit(address, &to(address).packet(protocol, &payload))
        });
    }
}

/// One network open on every port, one on one port.
const PORTS: &str = "allow:\n- { cidrs: [10.79.1.0/24, \"fd79:0:1::/48\"] }\n\
                     - { cidrs: [10.79.2.0/24, \"fd79:0:2::/48\"], ports: [\"9000/udp\"] }";

/// A fragment header of IPv6, RFC 8200 section 4.5.
fn fragment_header(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend((offset << 3 | u16::from(more)).to_be_bytes());
    header.extend([0, 0, 0x12, 0x34]);
    header
}

/// A fragment from the node.
fn fragment(address: &str, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let ends = to(address);
    if address.contains(':') {
        let mut bytes = fragment_header(UDP, offset, more);
        bytes.extend_from_slice(payload);
        return ends.ipv6(64, 44, &bytes);
    }
    ends.ipv4().fragment(offset, more).packet(UDP, payload)
}

pub(crate) fn later_fragments() {
    let Some(bench) = Bench::under(PORTS) else {
        return;
    };
    for (open, one_port, denied) in [
        ("10.79.1.1", "10.79.2.1", DENIED[0]),
        ("fd79:0:1::1", "fd79:0:2::1", DENIED[1]),
    ] {
        let send = |address: &str| bench.emit(address, &fragment(address, 185, false, SECRET));
        let (_, moved) = bench.stops(one_port, open, send);
        counted(&moved, "fragment");
        bench.stops(denied, open, send);
    }
}

pub(crate) fn tiny_fragments() {
    let Some(bench) = Bench::under(PORTS) else {
        return;
    };
    for (one_port, denied) in [("10.79.2.1", DENIED[0]), ("fd79:0:2::1", DENIED[1])] {
        // The first fragment holds the ports and nothing else; the port is what counts.
        let first = |address: &str, port: u16| -> Attempt {
            let ends = to(address);
            let datagram = ends.udp(7, port, SECRET);
            bench.emit(address, &fragment(address, 0, true, &datagram[..8]))
        };
        refused(&first(denied, 9000));
        refused(&first(one_port, 9001));
        reached(&first(one_port, 9000));
        // Not even the ports.
        let cut = |address: &str| bench.emit(address, &fragment(address, 0, true, &[0; 2]));
        refused(&cut(one_port));
        refused(&cut(denied));
        // A fragment that would write other ports over those that were judged.
        let again = to(one_port).udp(7, 9001, SECRET);
        refused(&bench.emit(one_port, &fragment(one_port, 1, false, &again)));
        assert!(!bench.leaves(SECRET));
        assert_eq!(bench.left_to(denied), 0);
    }
}

pub(crate) fn raw_source_routing() {
    let Some(bench) = Bench::new() else { return };
    let ends = to(ALLOWED[0]);
    let datagram = ends.udp(7, 9000, SECRET);
    let with = |options: &[u8]| {
        let packet = ends.ipv4().options(options).packet(UDP, &datagram);
        bench.agent.counted(|| bench.emit(ALLOWED[0], &packet))
    };
    for route in [
        &[131, 7, 4, 10, 78, 9, 1][..],
        &[137, 7, 4, 10, 78, 9, 1],
        // Behind others.
        &[1, 1, 7, 7, 4, 0, 0, 0, 0, 131, 7, 4, 10, 78, 9, 1],
    ] {
        let (attempt, moved) = with(route);
        refused(&attempt);
        counted(&moved, "source_routed");
    }
    // A length that would hide what follows.
    refused(&with(&[7, 40, 4, 0]).0);
    reached(&with(&[7, 7, 4, 0, 0, 0, 0, 1]).0);
    // Routing header, types 0, 2 and 4: the real destination is inside.
    let ends = to(ALLOWED[1]);
    let datagram = ends.udp(7, 9000, SECRET);
    let routed = |kind: u8, left: u8| {
        let mut bytes = vec![UDP, 2, kind, left, 0, 0, 0, 0];
        bytes.extend("fd78::9:1".parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend(&datagram);
        let packet = ends.ipv6(64, 43, &bytes);
        bench.agent.counted(|| bench.emit(ALLOWED[1], &packet))
    };
    for (kind, left) in [(0, 1), (2, 1), (4, 1), (0, 0), (4, 0)] {
        let (attempt, moved) = routed(kind, left);
        refused(&attempt);
        counted(&moved, "source_routed");
    }
    assert!(bench.leaves(SECRET));
    // The twin, whose UDP header follows the options.
    let left = bench.wire(|words| ["17", "43"].contains(&words[0]) && ALLOWED.contains(&words[2]));
    assert_eq!(left, 1);
}

pub(crate) fn many_extension_headers() {
    let Some(bench) = Bench::new() else { return };
    let chain = |address: &str, count: usize| {
        let ends = to(address);
        let mut bytes = Vec::new();
        for left in (0..count).rev() {
            bytes.extend([if left == 0 { UDP } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        bytes.extend(ends.udp(7, 9000, SECRET));
        bench.emit(address, &ends.ipv6(64, 60, &bytes))
    };
    bench.stops(DENIED[1], ALLOWED[1], |address| chain(address, 7));
    let (attempt, moved) = bench.agent.counted(|| chain(ALLOWED[1], 9));
    refused(&attempt);
    counted(&moved, "too_many_headers");
}
