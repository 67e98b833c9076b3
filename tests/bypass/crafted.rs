//! Packets that a process writes itself, many kinds in one world: to a denied address none leaves, to an allowed one it does.

use std::time::Duration;

use egress_tests::{
    eventually,
    packets::{Ends, FIN, GRE, ICMP, ICMPV6, IPIP, PSH, SYN, TCP, UDP},
};

use crate::{
    bench::{ALLOWED, Bench, DENIED, node_like},
    table::{Outcome, Technique},
};

/// Payload that must not leave.
const SECRET: &[u8] = b"written by a process";

/// One way to write packets.
struct Craft {
    name: &'static str,
    why: &'static str,
    /// For which families: IPv4, IPv6.
    families: [bool; 2],
    /// The packets; the twin sends the same ones elsewhere.
    packets: fn(&Ends) -> Vec<Vec<u8>>,
    /// One of them leaves to an allowed address; else each is refused wherever it goes.
    passes: bool,
}

impl Craft {
    const fn technique(&self) -> Technique {
        Technique {
            name: self.name,
            outcome: Outcome::Stopped,
            why: self.why,
        }
    }
}

const BOTH: [bool; 2] = [true, true];
const V4: [bool; 2] = [true, false];
const V6: [bool; 2] = [false, true];

/// A datagram with the secret.
fn datagram(ends: &Ends, port: u16) -> Vec<u8> {
    ends.udp(7, port, SECRET)
}

fn with_options(ends: &Ends, options: &[u8]) -> Vec<u8> {
    let header = ends.ipv4().options(options);
    header.packet(UDP, &datagram(ends, 9000))
}

/// The datagram behind extension headers: the first one's number, and their bytes.
fn behind(ends: &Ends, first: u8, headers: &[u8]) -> Vec<u8> {
    let payload = [headers, &datagram(ends, 9000)].concat();
    ends.ipv6(64, first, &payload)
}

/// Payloads of this protocol numbers with the secret behind eight bytes.
fn numbers(ends: &Ends, numbers: &[u8]) -> Vec<Vec<u8>> {
    let payload = [&[0x1b, 0x59, 0x23, 0x28, 0, 40, 0, 0], SECRET].concat();
    let packet = |number: &u8| ends.packet(*number, &payload);
    numbers.iter().map(packet).collect()
}

fn datagrams(ends: &Ends, ports: &[u16]) -> Vec<Vec<u8>> {
    let packet = |port: &u16| ends.packet(UDP, &datagram(ends, *port));
    ports.iter().map(packet).collect()
}

fn segments(ends: &Ends, flags: &[u8]) -> Vec<Vec<u8>> {
    let packet = |flags: &u8| ends.packet(TCP, &ends.tcp((7, 9000), (1, 1), *flags, SECRET));
    flags.iter().map(packet).collect()
}

fn messages(ends: &Ends, hops: u8, kinds: &[u8]) -> Vec<Vec<u8>> {
    let packet = |kind: &u8| {
        let message = ends.icmp(*kind, SECRET);
        if ends.to.is_ipv4() {
            ends.ipv4().hops(hops).packet(ICMP, &message)
        } else {
            ends.ipv6(hops, ICMPV6, &message)
        }
    };
    kinds.iter().map(packet).collect()
}

/// Changes bytes of a datagram's packet.
fn changed(ends: &Ends, change: impl Fn(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    let mut packet = ends.packet(UDP, &datagram(ends, 9000));
    change(&mut packet);
    vec![packet]
}

const BY_DESTINATION: &str = "`skb_egress` judges them by their destination";

const fn craft(
    name: &'static str,
    families: [bool; 2],
    packets: fn(&Ends) -> Vec<Vec<u8>>,
) -> Craft {
    Craft {
        name,
        why: BY_DESTINATION,
        families,
        packets,
        passes: true,
    }
}

const fn refused(
    name: &'static str,
    why: &'static str,
    families: [bool; 2],
    packets: fn(&Ends) -> Vec<Vec<u8>>,
) -> Craft {
    Craft {
        name,
        why,
        families,
        packets,
        passes: false,
    }
}

const CRAFTS: &[Craft] = &[
    craft(
        "raw packets with IPv4 options that record: route, timestamps",
        V4,
        |ends| {
            vec![
                with_options(ends, &[7, 7, 4, 0, 0, 0, 0]),
                with_options(ends, &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ]
        },
    ),
    craft(
        "raw packets with the router alert option (IPv4, IPv6 hop by hop)",
        BOTH,
        |ends| {
            vec![if ends.to.is_ipv4() {
                with_options(ends, &[148, 4, 0, 0])
            } else {
                behind(ends, 0, &[UDP, 0, 5, 2, 0, 0, 1, 0])
            }]
        },
    ),
    craft(
        "raw packets whose IPv4 header has its full 60 bytes",
        V4,
        |ends| vec![with_options(ends, &[1; 40])],
    ),
    craft(
        "raw packets with the reserved flag bit, and with every service and congestion bit",
        V4,
        |ends| {
            [
                changed(ends, |packet| packet[6] |= 0x80),
                changed(ends, |packet| packet[1] = 0xff),
            ]
            .concat()
        },
    ),
    craft(
        "raw packets with a flow label and a traffic class",
        V6,
        |ends| {
            changed(ends, |packet| {
                packet[..4].copy_from_slice(&[0x6f, 0xff, 0xff, 0xff])
            })
        },
    ),
    craft("raw packets with a hop limit of one", BOTH, |ends| {
        let at = if ends.to.is_ipv4() { 8 } else { 7 };
        changed(ends, |packet| packet[at] = 1)
    }),
    craft(
        "raw packets with a wrong or no checksum of UDP",
        BOTH,
        |ends| {
            let at = if ends.to.is_ipv4() { 26 } else { 46 };
            [
                changed(ends, |packet| packet[at..at + 2].fill(0)),
                changed(ends, |packet| packet[at] ^= 0x55),
            ]
            .concat()
        },
    ),
    craft("raw packets whose UDP length lies", BOTH, |ends| {
        let at = if ends.to.is_ipv4() { 24 } else { 44 };
        [
            changed(ends, |packet| packet[at..at + 2].fill(0)),
            changed(ends, |packet| packet[at..at + 2].fill(0xff)),
        ]
        .concat()
    }),
    craft("raw packets to and from port 0", BOTH, |ends| {
        vec![
            ends.packet(UDP, &ends.udp(0, 0, SECRET)),
            ends.packet(TCP, &ends.tcp((0, 0), (1, 0), SYN, SECRET)),
        ]
    }),
    craft(
        "raw packets between the ports of DHCP, to one address (67, 68, 546, 547)",
        BOTH,
        |ends| {
            vec![
                ends.packet(UDP, &ends.udp(68, 67, SECRET)),
                ends.packet(UDP, &ends.udp(546, 547, SECRET)),
            ]
        },
    ),
    craft(
        "raw packets from port 53, as a server's answers",
        BOTH,
        |ends| vec![ends.packet(UDP, &ends.udp(53, 40_000, SECRET))],
    ),
    craft(
        "tunnels in UDP: VXLAN, Geneve, GTP, L2TP, Teredo, WireGuard, ESP, QUIC",
        BOTH,
        |ends| datagrams(ends, &[4789, 6081, 2152, 1701, 3544, 51_820, 4500, 443]),
    ),
    craft(
        "names and files by multicast protocols to one address: mDNS, LLMNR, SSDP, TFTP, SNMP, syslog",
        BOTH,
        |ends| datagrams(ends, &[5353, 5355, 1900, 69, 161, 514]),
    ),
    craft(
        "segments with strange flags (SYN and FIN, none, all), with data",
        BOTH,
        |ends| segments(ends, &[SYN | FIN, 0, 0xff, FIN | PSH]),
    ),
    craft("SYN and ACK that nobody asked for", BOTH, |ends| {
        segments(ends, &[0x12])
    }),
    craft(
        "segments with 40 bytes of options (fast open cookie, MPTCP, unknown ones)",
        BOTH,
        |ends| {
            [34, 30, 253]
                .into_iter()
                .map(|kind| {
                    let mut segment = ends.tcp((7, 9000), (1, 0), SYN, b"");
                    segment[12] = 0xf0;
                    segment.extend([kind, 40]);
                    segment.extend([7; 38]);
                    segment.extend(SECRET);
                    ends.packet(TCP, &segment)
                })
                .collect()
        },
    ),
    refused(
        "segments whose header is shorter than a header, or longer than the packet",
        "`skb_egress`: what cannot be read is denied",
        BOTH,
        |ends| {
            [0x40, 0xf0]
                .into_iter()
                .map(|offset| {
                    let mut segment = ends.tcp((7, 9000), (1, 0), SYN, b"");
                    segment[12] = offset;
                    ends.packet(TCP, &segment)
                })
                .collect()
        },
    ),
    craft(
        "routing protocols to one address: EIGRP, OSPF, VRRP, RSVP, PIM",
        BOTH,
        |ends| numbers(ends, &[88, 89, 112, 46, 103]),
    ),
    craft(
        "more protocols around packets: IPComp, EtherIP, MPLS in IP, Mobile IP, ENCAP, UTI",
        BOTH,
        |ends| numbers(ends, &[108, 97, 137, 55, 98, 120]),
    ),
    craft(
        "numbers without a protocol: 61, 99, 143, 253, 254",
        BOTH,
        |ends| numbers(ends, &[61, 99, 143, 253, 254]),
    ),
    craft("IGMP to one address, also with hop limit 1", V4, |ends| {
        let payload = [&[0x16, 0, 0, 0, 239, 1, 1, 1], SECRET].concat();
        vec![
            ends.packet(2, &payload),
            ends.ipv4().hops(1).packet(2, &payload),
        ]
    }),
    craft(
        "multicast listener reports to one address, also with hop limit 1",
        V6,
        |ends| {
            [
                messages(ends, 1, &[130, 131, 132, 143]),
                messages(ends, 64, &[143]),
            ]
            .concat()
        },
    ),
    craft(
        "neighbour discovery with a hop limit below 255",
        V6,
        |ends| messages(ends, 254, &[133, 134, 135, 136, 137]),
    ),
    craft(
        "ICMPv6 that few know: router renumbering, node information, mobile prefixes, FMIPv6, RPL",
        V6,
        |ends| messages(ends, 255, &[138, 139, 140, 144, 146, 147, 154, 155]),
    ),
    craft(
        "ICMP that few know: source quench, router discovery, address masks, traceroute, extended echo",
        V4,
        |ends| messages(ends, 64, &[4, 9, 10, 17, 18, 30, 42, 43]),
    ),
    craft("an authentication header before UDP", V6, |ends| {
        vec![behind(
            ends,
            51,
            &[
                UDP, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        )]
    }),
    craft(
        "a fragment header on a whole packet (atomic fragments)",
        V6,
        |ends| vec![behind(ends, 44, &[UDP, 0, 0, 0, 0, 0, 0, 9])],
    ),
    craft(
        "a fragment header between destination options",
        V6,
        |ends| {
            vec![behind(
                ends,
                60,
                &[
                    44, 0, 1, 4, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 9, UDP, 0, 1, 4, 0, 0, 0, 0,
                ],
            )]
        },
    ),
    craft(
        "extension headers that nobody walks: mobility, HIP, Shim6",
        V6,
        |ends| numbers(ends, &[135, 139, 140]),
    ),
    craft("data behind \"no next header\"", V6, |ends| {
        numbers(ends, &[59])
    }),
    craft(
        "hop-by-hop and destination options of 64 bytes, of unknown kinds",
        V6,
        |ends| {
            let mut header = vec![UDP, 7, 0x3e, 60];
            header.resize(64, 0xaa);
            vec![behind(ends, 60, &header), behind(ends, 0, &header)]
        },
    ),
    craft(
        "first fragments with more to come, whole ports",
        BOTH,
        |ends| {
            vec![if ends.to.is_ipv4() {
                ends.ipv4()
                    .fragment(0, true)
                    .packet(UDP, &datagram(ends, 9000))
            } else {
                behind(ends, 44, &[UDP, 0, 0, 1, 0, 0, 0, 9])
            }]
        },
    ),
    craft(
        "packets in packets in packets (IP in IP three deep)",
        BOTH,
        |ends| {
            let inner = ends.packet(UDP, &datagram(ends, 9000));
            let middle = ends.packet(if ends.to.is_ipv4() { IPIP } else { 41 }, &inner);
            vec![ends.packet(if ends.to.is_ipv4() { IPIP } else { 41 }, &middle)]
        },
    ),
    craft(
        "GRE with keys and sequence numbers, and that of PPTP",
        BOTH,
        |ends| {
            [
                &[0x30, 0, 0x08, 0, 0, 0, 0, 9, 0, 0, 0, 1][..],
                &[0x30, 0x01, 0x88, 0x0b, 0, 20, 0, 1, 0, 0, 0, 1],
            ]
            .map(|head| ends.packet(GRE, &[head, SECRET].concat()))
            .to_vec()
        },
    ),
];

/// Rows of the table.
pub(crate) fn techniques() -> impl Iterator<Item = Technique> {
    CRAFTS.iter().map(Craft::technique)
}

#[test]
fn what_a_process_writes_goes_where_it_may_and_nowhere_else() {
    let Some(bench) = Bench::new() else { return };
    for one in CRAFTS {
        for family in 0..2 {
            if !one.families[family] {
                continue;
            }
            let send = |to: &str| {
                let ends = Ends::new(node_like(to), to);
                let packets = (one.packets)(&ends);
                let attempts = packets.iter().map(|packet| bench.emit(to, packet));
                attempts.collect::<Vec<_>>()
            };
            let (denied, allowed) = (DENIED[family], ALLOWED[family]);
            let (attempts, moved) = bench.agent.counted(|| send(denied));
            assert!(
                attempts.iter().all(|attempt| !attempt.ok),
                "{}: {attempts:?}",
                one.name
            );
            assert!(moved.denied > 0, "{}: {attempts:?}", one.name);
            let before = bench.left_to(allowed);
            let attempts = send(allowed);
            if one.passes {
                let left = || bench.left_to(allowed) > before;
                let has_left = eventually(Duration::from_secs(2), left);
                assert!(has_left, "{}: {attempts:?}", one.name);
            } else {
                assert!(
                    attempts.iter().all(|attempt| !attempt.ok),
                    "{}: {attempts:?}",
                    one.name
                );
            }
        }
    }
    bench.settle();
    for denied in DENIED {
        assert_eq!(bench.left_to(denied), 0);
    }
    assert!(bench.left_with(SECRET) > 0);
}
