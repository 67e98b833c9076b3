//! The packet programs in the kernel, without traffic, beside the same parser and decision on the host.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
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
    decision::{Trouble, decide},
    flow::{Flow, Origin, Way},
    maps::{CGROUP_LEVELS, Config, Interface, LAYOUT_VERSION, NO_LEVEL, NODE_CGROUP},
    packet::{Packet, parse},
    policy::{
        Binding, CIDR_KEY_BYTES, CidrRules, EntryKind, POLICY_ID_BITS, PortRange, RuleEntry,
        Workload, cidr_key, protocol,
    },
    verdict::{Hook, Reason, Verdict, counter_index},
};
use egress_tests::{programs, skip::skip, test_run};
use nix::unistd::Uid;

pub(crate) const BINDING: Binding = Binding {
    scope_id: 1,
    policy_id: 1,
    mode: 0,
    flags: 0,
};

/// Anything is allowed here.
pub(crate) const OPEN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Only 53/udp is allowed here.
pub(crate) const PORTED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Nothing is allowed here.
pub(crate) const DENIED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// No rule speaks of it.
pub(crate) const UNKNOWN: Ipv4Addr = Ipv4Addr::new(203, 0, 112, 1);
/// Anything is allowed here.
pub(crate) const OPEN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// Only 53/udp is allowed here.
pub(crate) const PORTED6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
/// No rule speaks of it.
pub(crate) const UNKNOWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb9, 0, 0, 0, 0, 0, 1);

/// Disjoint networks, so that the host needs no trie: address, prefix of the 128 bits, rules.
pub(crate) fn networks() -> Vec<(Address, u32, CidrRules)> {
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

pub(crate) fn covers(network: &Address, bits: u32, address: &Address) -> bool {
    let shift = 128 - bits;
    u128::from_be_bytes(*network) >> shift == u128::from_be_bytes(*address) >> shift
}

/// The programs can be loaded; if not, prints the reason.
pub(crate) fn ready() -> bool {
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
pub(crate) struct Rig {
    pub(crate) ebpf: Ebpf,
}

impl Rig {
    /// Everything, loaded once and used by one test at a time, which counts; or says why this test does not run.
    pub(crate) fn new() -> Option<MutexGuard<'static, Self>> {
        static RIG: LazyLock<Mutex<Rig>> = LazyLock::new(|| Mutex::new(Rig::configured()));
        ready().then(|| RIG.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Loads everything.
    pub(crate) fn configured() -> Self {
        let mut rig = Self::unconfigured();
        let mut levels = [0; CGROUP_LEVELS];
        levels[0] = NO_LEVEL;
        let config = Config {
            layout_version: LAYOUT_VERSION,
            generation: 1,
            levels,
            ..Config::default()
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
        let interface = Interface {
            header_bytes: 14,
            ..Interface::default()
        };
        HashMap::<_, u32, Interface>::try_from(map)
            .unwrap()
            .insert(test_run::INTERFACE, interface, 0)
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
    pub(crate) fn unconfigured() -> Self {
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
    pub(crate) fn run(&self, hook: Hook, packet: &[u8]) -> Option<i32> {
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

    pub(crate) fn count(&self, hook: Hook, verdict: Verdict, reason: Reason) -> u64 {
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

    /// Runs a judging hook and compares it with the host: the reason that both give, `None` where the kernel makes no
    /// such packet.
    ///
    /// # Errors
    ///
    /// They differ.
    pub(crate) fn compare(&self, hook: Hook, packet: &[u8]) -> Result<Option<Reason>, String> {
        let wanted = on_host(hook, packet);
        let verdict = wanted.verdict(BINDING.mode());
        // A flow that was allowed once is found again as an established one.
        let established = self.count(hook, Verdict::Allow, Reason::EstablishedFlow);
        let before = self.count(hook, verdict, wanted);
        let Some(code) = self.run(hook, packet) else {
            return Ok(None);
        };
        let after = self.count(hook, verdict, wanted);
        let is_counted = after == before + 1
            || (wanted.allows()
                && self.count(hook, Verdict::Allow, Reason::EstablishedFlow) == established + 1);
        let wanted_code = match hook {
            Hook::SkbEgress => verdict.cgroup_code(),
            _ => verdict.tc_code(),
        };
        if is_counted && code == wanted_code {
            return Ok(Some(wanted));
        }
        let counts = self.counts(hook);
        let counts: Vec<_> = counts.iter().filter(|(_, count)| *count > 0).collect();
        Err(format!(
            "{hook:?} on {packet:02x?}: the host says {wanted:?}, the kernel returned {code}, counts {counts:?}"
        ))
    }

    /// As [`Rig::compare`]; a difference fails the test.
    #[track_caller]
    pub(crate) fn agree(&self, hook: Hook, packet: &[u8]) -> Option<Reason> {
        self.compare(hook, packet)
            .unwrap_or_else(|difference| panic!("{difference}"))
    }

    /// Both judging hooks.
    #[track_caller]
    pub(crate) fn agrees(&self, packet: &[u8], wanted: Reason) {
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

/// Reason by the same parser and decision on the host, for a socket of no protocol. Only packets of raw sockets, as the
/// kernel's own are, and frames can be link control.
pub(crate) fn on_host(hook: Hook, bytes: &[u8]) -> Reason {
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
        way: Way::default(),
        origin: Origin::WORKLOAD,
    };
    let cidr = || {
        networks
            .iter()
            .find(|(network, bits, _)| covers(network, *bits, &packet.daddr))
            .map(|(_, _, rules)| rules)
    };
    decide(&flow, &BINDING, 1, cidr, || None, || 0, || Trouble::None).reason
}
