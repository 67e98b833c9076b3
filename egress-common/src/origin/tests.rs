//! Every branch, and that the fast path says nothing that the long one does not.

use proptest::prelude::*;

use super::*;
use crate::{
    address::from_v4,
    flow::{ROLE_ACTIVE, ROLE_UNKNOWN},
    packet::{Packet, TCP_ACK, TCP_SYN},
    policy::{ANSWERS_DNS, IS_NODE},
};

const RULE: u64 = 0xab_1234_5678_9abc;

/// Answers with fixed values.
#[derive(Clone, Copy)]
struct Told {
    is_foreign: bool,
    is_resolver: bool,
    is_kernel: bool,
    /// `None`: the table is not to be asked.
    recalled: Option<Recalled>,
    has_rule: bool,
}

const NOTHING: Told = Told {
    is_foreign: false,
    is_resolver: false,
    is_kernel: false,
    recalled: Some(Recalled::NOTHING),
    has_rule: false,
};

impl Ask for Told {
    fn is_source_foreign(&self) -> bool {
        self.is_foreign
    }
    fn is_source_resolver(&self) -> bool {
        self.is_resolver
    }
    fn is_kernel_socket(&self) -> bool {
        self.is_kernel
    }
    fn recall(&self) -> Recalled {
        self.recalled.expect("the table is asked")
    }
    fn has_rule(&self, rule: u64) -> bool {
        assert_ne!(rule, 0);
        self.has_rule
    }
}

const TCP: Socket = Socket {
    is_stream: true,
    is_raw: false,
    listens: false,
    peer_port: 443,
};
const UDP: Socket = Socket {
    is_stream: false,
    ..TCP
};
const LOOSE: Socket = Socket {
    peer_port: 0,
    ..UDP
};
const RAW: Socket = Socket {
    is_raw: true,
    ..LOOSE
};
const POD: Workload = Workload {
    current: crate::policy::Binding {
        scope_id: 1,
        policy_id: 1,
        mode: 0,
        flags: 0,
    },
    next: crate::policy::Binding {
        scope_id: 0,
        policy_id: 0,
        mode: 0,
        flags: 0,
    },
    flags: 0,
    identity: 1,
};
const NODE: Workload = Workload {
    flags: IS_NODE,
    ..POD
};

fn packet(proto: u8, flags: u8) -> Packet {
    Packet {
        saddr: from_v4([10, 0, 0, 2]),
        daddr: from_v4([192, 0, 2, 1]),
        sport: 40_000,
        dport: 443,
        has_ports: matches!(proto, protocol::TCP | protocol::UDP),
        proto,
        flags,
        payload_at: 40,
        end: 50,
        hop_limit: 64,
        ..Packet::EMPTY
    }
}

fn tcp(flags: u8) -> Header {
    Header::new(&packet(protocol::TCP, flags))
}

fn udp() -> Header {
    Header::new(&packet(protocol::UDP, 0))
}

fn from_port_53(proto: u8) -> Header {
    let packet = Packet {
        sport: DNS_PORT,
        ..packet(proto, TCP_ACK)
    };
    Header::new(&packet)
}

fn known(role: u8) -> Known {
    Known {
        role,
        ..Known::NOTHING
    }
}

fn allowed(role: u8, how: RecalledAs) -> Known {
    Known {
        recalled: Recalled::new(how, RULE),
        ..known(role)
    }
}

fn step(socket: &Socket, known: &Known, header: Header, told: &Told) -> Step {
    classify(socket, known, header, false, &POD, told)
}

fn looped(socket: &Socket, known: &Known, header: Header, told: &Told) -> Step {
    classify(socket, known, header, true, &POD, told)
}

#[test]
fn a_listener_and_what_it_accepted_reply() {
    let reply = Step::pass(Reason::Reply);
    let listener = Socket {
        listens: true,
        peer_port: 0,
        ..TCP
    };
    let answers = tcp(TCP_SYN | TCP_ACK);
    assert_eq!(step(&listener, &known(0), answers, &NOTHING), reply);
    let passive = known(ROLE_PASSIVE);
    assert_eq!(step(&TCP, &passive, tcp(TCP_ACK), &NOTHING), reply);
    // A socket that was a listener and connects now opens a flow.
    let opened = step(&TCP, &passive, tcp(TCP_SYN), &NOTHING);
    assert_eq!(opened, Step::judge(Origin::WORKLOAD));
    // The mark of a stream socket says nothing of other protocols.
    let other = step(&UDP, &passive, udp(), &NOTHING);
    assert_eq!(other, Step::judge(Origin::WORKLOAD));
}

#[test]
fn an_established_flow_passes_and_a_syn_begins_a_new_one() {
    let current = allowed(ROLE_ACTIVE, RecalledAs::Allowed);
    for (socket, header) in [(TCP, tcp(TCP_ACK)), (UDP, udp())] {
        let established = Step::pass(Reason::EstablishedFlow);
        assert_eq!(step(&socket, &current, header, &NOTHING), established);
        let due = allowed(ROLE_ACTIVE, RecalledAs::Unstamped);
        assert_eq!(step(&socket, &due, header, &NOTHING), Step::keep_open(RULE));
    }
    let new = Step::judge(Origin::WORKLOAD);
    assert_eq!(step(&TCP, &current, tcp(TCP_SYN), &NOTHING), new);
    let has_rule = Told {
        has_rule: true,
        ..NOTHING
    };
    assert_eq!(step(&TCP, &current, tcp(TCP_SYN), &has_rule), new);
}

#[test]
fn what_was_allowed_before_a_switch_goes_on_if_the_policy_has_the_rule() {
    let earlier = allowed(ROLE_ACTIVE, RecalledAs::Earlier);
    let has_rule = Told {
        has_rule: true,
        ..NOTHING
    };
    for (socket, header) in [(TCP, tcp(TCP_ACK)), (UDP, udp())] {
        let resting = Step::judge(Origin::resting(RULE));
        assert_eq!(step(&socket, &earlier, header, &has_rule), resting);
        let new = Step::judge(Origin::WORKLOAD);
        assert_eq!(step(&socket, &earlier, header, &NOTHING), new);
    }
}

#[test]
fn nothing_is_remembered_of_raw_sockets_fragments_and_sockets_without_a_peer() {
    let current = allowed(ROLE_ACTIVE, RecalledAs::Allowed);
    let new = Step::judge(Origin::WORKLOAD);
    let connected_raw = Socket {
        peer_port: 443,
        ..RAW
    };
    assert_eq!(step(&connected_raw, &current, udp(), &NOTHING), new);
    assert_eq!(step(&LOOSE, &current, udp(), &NOTHING), new);
    let fragment = Packet {
        is_later_fragment: true,
        has_ports: false,
        dport: 0,
        ..packet(protocol::UDP, 0)
    };
    let fragment = Header::new(&fragment);
    assert_eq!(step(&UDP, &current, fragment, &NOTHING), new);
}

#[test]
fn a_tcp_flow_is_older_than_the_programs_only_if_its_socket_never_connected() {
    for (role, expected) in [
        (ROLE_PREEXISTING, Origin::PREEXISTING),
        (ROLE_ACTIVE, Origin::WORKLOAD),
        (ROLE_UNKNOWN, Origin::WORKLOAD),
    ] {
        let found = step(&TCP, &known(role), tcp(TCP_ACK), &NOTHING);
        assert_eq!(found, Step::judge(expected));
    }
    use crate::flow::role_after;
    assert_eq!(role_after(ROLE_UNKNOWN, false), ROLE_PREEXISTING);
    for role in [ROLE_ACTIVE, ROLE_PASSIVE, ROLE_PREEXISTING] {
        assert_eq!(role_after(role, false), role);
        assert_eq!(role_after(role, true), ROLE_ACTIVE);
    }
}

#[test]
fn what_is_on_loopback_passes_unless_it_claims_a_far_source() {
    let pass = Step::pass(Reason::Loopback);
    let foreign = Told {
        is_foreign: true,
        ..NOTHING
    };
    let refused = Step::refuse(Reason::ForgedSource);
    for (socket, header) in [
        (TCP, tcp(TCP_SYN)),
        (UDP, udp()),
        (LOOSE, udp()),
        (RAW, udp()),
    ] {
        assert_eq!(looped(&socket, &known(0), header, &NOTHING), pass);
        assert_eq!(looped(&socket, &known(0), header, &foreign), refused);
    }
    // A socket that a listener made answers in the name that it was called by (transparent proxies).
    let passive = known(ROLE_PASSIVE);
    assert_eq!(looped(&TCP, &passive, tcp(TCP_ACK), &foreign), pass);
    // Elsewhere the source does not matter.
    let elsewhere = step(&UDP, &known(0), udp(), &foreign);
    assert_eq!(elsewhere, Step::judge(Origin::WORKLOAD));
}

#[test]
fn only_who_runs_a_resolver_answers_in_its_name() {
    let resolver = Told {
        is_resolver: true,
        ..NOTHING
    };
    let refused = Step::refuse(Reason::ForgedSource);
    for (socket, proto) in [
        (TCP, protocol::TCP),
        (UDP, protocol::UDP),
        (LOOSE, protocol::UDP),
    ] {
        let header = from_port_53(proto);
        for is_on_loopback in [false, true] {
            let asked = |workload: &Workload, told: &Told| {
                classify(&socket, &known(0), header, is_on_loopback, workload, told)
            };
            assert_eq!(asked(&POD, &resolver), refused);
            assert_ne!(asked(&POD, &NOTHING), refused);
            assert_ne!(asked(&NODE, &resolver), refused);
            let answering = Workload {
                flags: ANSWERS_DNS,
                ..POD
            };
            assert_ne!(asked(&answering, &resolver), refused);
        }
    }
    // A raw socket never does, whoever has it; a reset carries no answer.
    let by_raw = classify(
        &RAW,
        &known(0),
        from_port_53(protocol::UDP),
        false,
        &NODE,
        &resolver,
    );
    assert_eq!(by_raw, refused);
    let reset = Packet {
        sport: DNS_PORT,
        flags: 0x04,
        payload_at: 40,
        end: 40,
        ..packet(protocol::TCP, 0)
    };
    let reset = Header::new(&reset);
    assert_ne!(step(&RAW, &known(0), reset, &resolver), refused);
}

#[test]
fn a_raw_socket_is_the_kernels_only_with_proof() {
    let kernel = Told {
        is_kernel: true,
        ..NOTHING
    };
    let echo_reply = Header::new(&packet(protocol::ICMP, 0));
    let of_node = |told: &Told, header| classify(&RAW, &known(0), header, false, &NODE, told);
    let judged = Step::judge(Origin::WORKLOAD);
    assert_eq!(of_node(&kernel, echo_reply), Step::judge(Origin::KERNEL));
    assert_eq!(of_node(&NOTHING, echo_reply), judged);
    assert_eq!(
        step(&RAW, &known(0), echo_reply, &kernel),
        judged,
        "not a node's"
    );
    let request = Header::new(&packet(protocol::ICMP, 8));
    assert_eq!(of_node(&kernel, request), judged, "not an answer");
    // Neighbour discovery: the kernel's to anybody, a process's to the link.
    let advertisement = |daddr| {
        let packet = Packet {
            daddr,
            hop_limit: 255,
            ..packet(protocol::ICMPV6, 136)
        };
        Header::new(&packet)
    };
    let (far, near) = ([0x20; 16], {
        let mut near = [0; 16];
        (near[0], near[1]) = (0xfe, 0x80);
        near
    });
    let passed = Step::pass(Reason::LinkControl);
    for (told, daddr, expected) in [
        (&kernel, far, passed),
        (&NOTHING, far, judged),
        (&NOTHING, near, passed),
    ] {
        assert_eq!(step(&RAW, &known(0), advertisement(daddr), told), expected);
    }
    // No other socket gains from it.
    assert_eq!(
        step(&LOOSE, &known(0), advertisement(near), &kernel),
        judged
    );
}

#[test]
fn a_udp_socket_without_a_peer_goes_by_the_table() {
    let table = |how, has_rule| Told {
        recalled: Some(Recalled::new(how, RULE)),
        has_rule,
        ..NOTHING
    };
    let judged = Step::judge(Origin::WORKLOAD);
    for (how, has_rule, expected) in [
        (RecalledAs::Started, false, Step::judge(Origin::REMOTE)),
        (
            RecalledAs::Allowed,
            false,
            Step::pass(Reason::EstablishedFlow),
        ),
        (RecalledAs::Unstamped, false, Step::keep_open(RULE)),
        (
            RecalledAs::Earlier,
            true,
            Step::judge(Origin::resting(RULE)),
        ),
        (RecalledAs::Earlier, false, judged),
        (RecalledAs::Nothing, true, judged),
    ] {
        assert_eq!(
            step(&LOOSE, &known(0), udp(), &table(how, has_rule)),
            expected
        );
        let connected = step(&UDP, &known(0), udp(), &table(how, has_rule));
        let expected = if how == RecalledAs::Started {
            expected
        } else {
            judged
        };
        assert_eq!(
            connected, expected,
            "the table is about sockets without a peer"
        );
        assert_eq!(step(&RAW, &known(0), udp(), &table(how, has_rule)), judged);
    }
    let serving = Known {
        serves: true,
        ..Known::NOTHING
    };
    assert_eq!(
        step(&LOOSE, &serving, udp(), &NOTHING),
        Step::judge(Origin::SERVING)
    );
    assert_eq!(step(&UDP, &serving, udp(), &NOTHING), judged);
}

#[test]
fn a_frame_goes_by_the_table_of_its_interface() {
    let table = |how, has_rule| Told {
        recalled: Some(Recalled::new(how, RULE)),
        has_rule,
        ..NOTHING
    };
    let judged = Step::judge(Origin::WORKLOAD);
    for (how, has_rule, expected) in [
        (RecalledAs::Started, false, Step::judge(Origin::REMOTE)),
        (
            RecalledAs::Allowed,
            false,
            Step::pass(Reason::EstablishedFlow),
        ),
        (RecalledAs::Unstamped, false, Step::keep_open(RULE)),
        (
            RecalledAs::Earlier,
            true,
            Step::judge(Origin::resting(RULE)),
        ),
        (RecalledAs::Earlier, false, judged),
        (RecalledAs::Nothing, true, judged),
    ] {
        for header in [udp(), tcp(TCP_ACK)] {
            assert_eq!(
                classify_frame(header, false, &table(how, has_rule)),
                expected
            );
        }
        let told = Told {
            recalled: None,
            ..NOTHING
        };
        let fragment = Packet {
            is_later_fragment: true,
            ..packet(protocol::UDP, 0)
        };
        for header in [tcp(TCP_SYN), Header::new(&fragment)] {
            assert_eq!(classify_frame(header, false, &told), judged);
        }
    }
    let discovery = Packet {
        hop_limit: 255,
        ..packet(protocol::ICMPV6, 135)
    };
    let discovery = Header::new(&discovery);
    assert_eq!(
        classify_frame(discovery, false, &NOTHING),
        Step::pass(Reason::LinkControl)
    );
    assert_eq!(
        classify_frame(udp(), true, &NOTHING),
        Step::pass(Reason::Loopback)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The long path gives the same step as the fast one, whatever its look-ups would answer.
    #[test]
    fn the_fast_path_is_a_part_of_the_long_one(
        socket in (any::<bool>(), any::<bool>(), any::<bool>(), prop_oneof![Just(0_u16), Just(DNS_PORT), Just(443)]),
        role in 0_u8..4, serves: bool, memory in prop_oneof![Just(0_u64), Just(2), Just(3), Just(4)],
        packet in (prop_oneof![Just(protocol::TCP), Just(protocol::UDP), any::<u8>()], any::<u8>(), any::<bool>(),
            prop_oneof![Just(DNS_PORT), Just(1)], prop_oneof![Just(from_v4([127, 0, 0, 1])), Just(from_v4([10, 0, 0, 1]))]),
        is_on_loopback: bool, flags in 0_u32..4,
        told in (any::<bool>(), any::<bool>(), any::<bool>(), 0_u64..5),
    ) {
        let (is_stream, is_raw, listens, peer_port) = socket;
        let socket = Socket { is_stream, is_raw: is_raw && !is_stream, listens: listens && is_stream, peer_port };
        let recalled = Recalled::unpack(memory << crate::hash::RULE_BITS | RULE);
        let known = Known { role, serves, recalled };
        let (proto, tcp_flags, is_later_fragment, sport, saddr) = packet;
        let packet = Packet { proto, flags: tcp_flags, is_later_fragment, sport, saddr, has_ports: !is_later_fragment, ..Packet::EMPTY };
        let header = Header::new(&packet);
        let (is_resolver, is_kernel, has_rule, how) = told;
        let told = Told {
            // A source in 127.0.0.0/8 is not foreign (`source_is_local`).
            is_foreign: !header.is_from_loopback(),
            is_resolver, is_kernel, has_rule,
            recalled: Some(Recalled::unpack(how << crate::hash::RULE_BITS | RULE)),
        };
        let workload = Workload { flags, ..POD };
        if let Some(step) = at_once(&socket, &known, header, is_on_loopback) {
            prop_assert_eq!(classify(&socket, &known, header, is_on_loopback, &workload, &told), step);
            prop_assert!(step.to != Do::Refuse && step.to != Do::Judge);
        }
        // The socket as its memory shows it. Raw sockets have none; only TCP sockets have a role, and all that sent do;
        // a listener's is passive; what opens a flow takes the long way.
        let known = match (socket.is_raw, socket.is_stream) {
            (true, _) => Known::NOTHING,
            (false, true) if socket.listens => Known { role: ROLE_PASSIVE, ..known },
            (false, true) => Known { role: role.max(1), ..known },
            (false, false) => Known { role: 0, ..known },
        };
        let is_whole = proto != protocol::TCP || socket.is_stream || socket.is_raw;
        let seen = Socket::by_memory(known.role, peer_port);
        if is_whole && !header.opens_tcp()
            && let Some(step) = at_once(&seen, &known, header, is_on_loopback)
        {
            prop_assert_eq!(classify(&socket, &known, header, is_on_loopback, &workload, &told), step);
        }
    }
}
