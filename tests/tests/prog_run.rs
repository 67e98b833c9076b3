//! The packet programs on packets that nobody sends: cut, optioned, fragmented, with extension headers, mutated.
//!
//! Each packet goes through the program in the kernel (`BPF_PROG_TEST_RUN`,
//! nothing is attached) and through the same parser and decision on the host:
//! verdict and reason must agree, and what cannot be read must be denied.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "tests panic"
)]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::{CgroupSkb, SchedClassifier, TestRun as _, TestRunOptions},
    util::KernelVersion,
};
use egress_common::{
    address::{Address, from_v4},
    decision::decide,
    flow::{Flow, Origin},
    maps::{CGROUP_LEVELS, Config, LAYOUT_VERSION, NO_LEVEL, NODE_CGROUP},
    packet::{Packet, parse},
    policy::{
        Binding, CIDR_KEY_BYTES, CidrRules, EntryKind, POLICY_ID_BITS, PortRange, RuleEntry,
        Workload, cidr_key, protocol,
    },
    verdict::{Hook, Reason, Verdict, counter_index},
};
use egress_tests::{programs, skip::skip, test_run};
use nix::unistd::Uid;

const BINDING: Binding = Binding {
    scope_id: 1,
    policy_id: 1,
    mode: 0,
    flags: 0,
};

/// Anything is allowed here.
const OPEN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Only 53/udp is allowed here.
const PORTED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Nothing is allowed here.
const DENIED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// No rule speaks of it.
const UNKNOWN: Ipv4Addr = Ipv4Addr::new(203, 0, 112, 1);
/// Anything is allowed here.
const OPEN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// Only 53/udp is allowed here.
const PORTED6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
/// No rule speaks of it.
const UNKNOWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb9, 0, 0, 0, 0, 0, 1);

/// Disjoint networks, so that the host needs no trie: address, prefix of the 128 bits, rules.
fn networks() -> Vec<(Address, u32, CidrRules)> {
    let rules = |kind: EntryKind, ports: PortRange, rule: u64| {
        let mut rules = CidrRules::default();
        rules.entries[0] = RuleEntry {
            rule,
            ports,
            kind: kind as u8,
            _pad: 0,
        };
        rules
    };
    let dns = PortRange::new(protocol::UDP, 53, 53);
    vec![
        (
            from_v4(OPEN.octets()),
            120,
            rules(EntryKind::Allow, PortRange::ANY, 11),
        ),
        (
            from_v4(PORTED.octets()),
            120,
            rules(EntryKind::Allow, dns, 12),
        ),
        (
            from_v4(DENIED.octets()),
            120,
            rules(EntryKind::Deny, PortRange::ANY, 13),
        ),
        (
            OPEN6.octets(),
            48,
            rules(EntryKind::Allow, PortRange::ANY, 14),
        ),
        (PORTED6.octets(), 48, rules(EntryKind::Allow, dns, 15)),
    ]
}

fn covers(network: &Address, bits: u32, address: &Address) -> bool {
    let shift = 128 - bits;
    u128::from_be_bytes(*network) >> shift == u128::from_be_bytes(*address) >> shift
}

/// Whether the programs can be loaded; if not, the reason is printed.
fn ready() -> bool {
    if !Uid::effective().is_root() {
        return skip("needs root");
    }
    let path = programs::object();
    if path.is_file() {
        return true;
    }
    skip(&format!(
        "{} is missing: run `cargo xtask build-ebpf`",
        path.display()
    ))
}

/// The programs with a policy, and nothing attached.
struct Rig {
    ebpf: Ebpf,
}

impl Rig {
    /// Everything, loaded once and used by one test at a time, which counts; or says why this test does not run.
    fn new() -> Option<MutexGuard<'static, Self>> {
        static RIG: LazyLock<Mutex<Rig>> = LazyLock::new(|| Mutex::new(Rig::configured()));
        ready().then(|| RIG.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Loads everything.
    fn configured() -> Self {
        let mut rig = Self::unconfigured();
        let mut levels = [0; CGROUP_LEVELS];
        levels[0] = NO_LEVEL;
        let config = Config {
            seed: 7,
            layout_version: LAYOUT_VERSION,
            generation: 1,
            levels,
        };
        let workload = Workload {
            current: BINDING,
            identity: 1,
            ..Workload::default()
        };
        let map = rig.ebpf.map_mut("WORKLOADS").unwrap();
        HashMap::<_, u64, Workload>::try_from(map)
            .unwrap()
            .insert(NODE_CGROUP, workload, 0)
            .unwrap();
        let map = rig.ebpf.map_mut("CIDRS").unwrap();
        let mut cidrs = LpmTrie::<_, [u8; CIDR_KEY_BYTES], CidrRules>::try_from(map).unwrap();
        for (address, bits, rules) in networks() {
            let data = cidr_key(BINDING.policy_id, &address);
            cidrs
                .insert(&Key::new(POLICY_ID_BITS + bits, data), rules, 0)
                .unwrap();
        }
        // Test runs come by this interface, with an Ethernet header.
        let map = rig.ebpf.map_mut("INTERFACES").unwrap();
        HashMap::<_, u32, u32>::try_from(map)
            .unwrap()
            .insert(test_run::INTERFACE, 14, 0)
            .unwrap();
        // Last, as the agent does: from now on there is a configuration.
        let map = rig.ebpf.map_mut("CONFIG").unwrap();
        Array::<_, Config>::try_from(map)
            .unwrap()
            .set(0, config, 0)
            .unwrap();
        rig
    }

    /// Loads the programs alone.
    fn unconfigured() -> Self {
        let object = std::fs::read(programs::object()).unwrap();
        let coarse_clock =
            u8::from(KernelVersion::current().unwrap() >= KernelVersion::new(5, 11, 0));
        let mut ebpf = EbpfLoader::new()
            .override_global("COARSE_CLOCK", &coarse_clock, true)
            .load(&object)
            .unwrap();
        for name in ["skb_egress", "skb_ingress"] {
            let program: &mut CgroupSkb = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        for name in ["tc_egress", "tc_ingress"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        Self { ebpf }
    }

    /// Runs a hook on an IP packet; `None` where the kernel itself refuses to make such a packet.
    fn run(&self, hook: Hook, packet: &[u8]) -> Option<i32> {
        // The type is that of no IP version, or the kernel would fill in the
        // socket's family (and refuse short headers): the programs look at the bytes.
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        match hook {
            Hook::SkbEgress | Hook::SkbIngress => frame.extend_from_slice(&[0x88, 0xb5]),
            _ => {
                let version = packet.first().map_or(4, |byte| byte >> 4);
                let kind = if version == 6 {
                    [0x86, 0xdd]
                } else {
                    [0x08, 0x00]
                };
                frame.extend_from_slice(&[0x81, 0x00, 0, 5]);
                frame.extend_from_slice(&kind);
            }
        }
        frame.extend_from_slice(packet);
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&test_run::context()),
            ..TestRunOptions::new()
        };
        let program = self.ebpf.program(hook.name()).unwrap();
        let result = match hook {
            Hook::SkbEgress | Hook::SkbIngress => {
                let program: &CgroupSkb = program.try_into().unwrap();
                program.test_run(options)
            }
            _ => {
                let program: &SchedClassifier = program.try_into().unwrap();
                program.test_run(options)
            }
        };
        match result {
            Ok(result) => Some(result.return_value as i32),
            Err(error) => {
                assert!(packet.is_empty(), "{hook:?} on {packet:02x?}: {error:?}");
                None
            }
        }
    }

    fn count(&self, hook: Hook, verdict: Verdict, reason: Reason) -> u64 {
        let map = self.ebpf.map("COUNTERS").unwrap();
        let counters = PerCpuArray::<_, u64>::try_from(map).unwrap();
        let values = counters
            .get(&counter_index(hook, verdict, reason), 0)
            .unwrap();
        values.iter().sum()
    }

    fn counts(&self, hook: Hook) -> Vec<(Reason, u64)> {
        let mut counts = Vec::new();
        for reason in Reason::ALL {
            let count = Verdict::ALL
                .iter()
                .map(|verdict| self.count(hook, *verdict, *reason))
                .sum();
            counts.push((*reason, count));
        }
        counts
    }

    /// Runs a judging hook and compares it with the host.
    #[track_caller]
    fn agree(&self, hook: Hook, packet: &[u8]) -> Option<Reason> {
        let wanted = on_host(hook, packet);
        let verdict = wanted.verdict(BINDING.mode());
        // What was allowed once is found again as an established flow.
        let established = self.count(hook, Verdict::Allow, Reason::EstablishedFlow);
        let before = self.count(hook, verdict, wanted);
        let code = self.run(hook, packet)?;
        let after = self.count(hook, verdict, wanted);
        let is_counted = after == before + 1
            || (wanted.allows()
                && self.count(hook, Verdict::Allow, Reason::EstablishedFlow) == established + 1);
        let wanted_code = match hook {
            Hook::SkbEgress => verdict.cgroup_code(),
            _ => verdict.tc_code(),
        };
        assert!(
            is_counted && code == wanted_code,
            "{hook:?} on {packet:02x?}: the host says {wanted:?}, the kernel returned {code}, counts {:?}",
            self.counts(hook)
                .iter()
                .filter(|(_, count)| *count > 0)
                .collect::<Vec<_>>()
        );
        Some(wanted)
    }

    /// Both judging hooks.
    #[track_caller]
    fn agrees(&self, packet: &[u8], wanted: Reason) {
        for hook in [Hook::SkbEgress, Hook::TcEgress] {
            assert_eq!(
                self.agree(hook, packet),
                Some(wanted),
                "{hook:?} {packet:02x?}"
            );
        }
        for hook in [Hook::SkbIngress, Hook::TcIngress] {
            let code = self.run(hook, packet).unwrap();
            let pass = if hook == Hook::SkbIngress { 1 } else { -1 };
            assert_eq!(code, pass, "{hook:?} passes everything");
        }
    }
}

/// What the same parser and decision say on the host, for a socket of no protocol. Only raw sockets, as the kernel's own
/// are, and frames can be link control.
fn on_host(hook: Hook, bytes: &[u8]) -> Reason {
    match parse(bytes) {
        Ok(packet) if packet.is_link_control() && hook == Hook::TcEgress => Reason::LinkControl,
        Ok(packet) => judge(&packet),
        Err(reason) => reason,
    }
}

fn judge(packet: &Packet) -> Reason {
    let networks = networks();
    let flow = Flow {
        daddr: packet.daddr,
        dport: packet.rule_port(),
        proto: packet.proto,
        is_fragment: packet.is_later_fragment,
        origin: Origin::Workload,
    };
    let cidr = || {
        networks
            .iter()
            .find(|(network, bits, _)| covers(network, *bits, &packet.daddr))
            .map(|(_, _, rules)| rules)
    };
    decide(&flow, &BINDING, 1, cidr, || None, || false).reason
}

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
