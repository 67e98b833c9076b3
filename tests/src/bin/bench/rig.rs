//! The packet programs on packets that nobody sends (`BPF_PROG_TEST_RUN`), with maps filled for it; nothing is attached.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, RingBuf, lpm_trie::Key},
    programs::{CgroupSkb, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult},
    util::KernelVersion,
};
use egress_common::{
    address::from_v4,
    dns::{DNS_PORT, Message, question_of},
    hash::SipKey,
    learned::{Grant, LEARN_BATCH, LearnRequest, LearnedKey},
    maps::{CGROUP_LEVELS, Config, Keys, LAYOUT_VERSION, NO_LEVEL, NODE_CGROUP, ScopeUse},
    name::{NAME_KEY_BYTES, below_key, exact_key},
    packed::address_words,
    policy::{
        Binding, CIDR_KEY_BYTES, CidrRules, EntryKind, NameEntry, NameRules, POLICY_ID_BITS,
        PortRange, RuleEntry, Workload, cidr_key, protocol,
    },
    query::{Query, QueryBucket, ResolverKey, ResolverPorts, query_ports},
    tally::Tally,
    verdict::{Hook, Reason, Verdict, counter_index},
};
use egress_tests::{programs, test_run};
use nix::libc;
use socket2::{Domain, Socket, Type};

use crate::wire;

/// Room for a million learned addresses and what the answers add.
const LEARNED_CAPACITY: u32 = 1 << 21;
const SEED: u64 = 7;
/// Key of the hashes of questions.
const QUESTION_KEY: SipKey = SipKey { k0: 8, k1: 9 };
const RULE: u64 = 42;
const BINDING: Binding = Binding {
    scope_id: 1,
    policy_id: 1,
    mode: 0,
    flags: 0,
};
/// The entry of every rule of the bench.
const ALLOWED: RuleEntry = RuleEntry {
    rule: RULE,
    ports: PortRange::ANY,
    kind: EntryKind::Allow as u8,
    _pad: 0,
};
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 53);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Port that the pretended query was sent from.
const OWN_PORT: u16 = 4_000;
/// A protocol without ports, so that each of its packets is judged anew.
const ESP: u8 = 50;
/// Cookies that the next run's socket may have: other processes may make some meanwhile.
const COOKIES: u64 = 4;
/// Longer than a tick of the coarse clock.
const CLOCK_STEP_NS: u64 = 20_000_000;
/// Ethernet header; a type of no IP version, or the kernel would check more than the programs do.
const FRAME: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];

/// The loaded programs and the maps that the bench writes.
pub(crate) struct Rig {
    ebpf: Ebpf,
    queries: Array<MapData, QueryBucket>,
    names: LpmTrie<MapData, [u8; NAME_KEY_BYTES], NameEntry>,
    cidrs: LpmTrie<MapData, [u8; CIDR_KEY_BYTES], CidrRules>,
    rings: [RingBuf<MapData>; 2],
}

impl Rig {
    /// Loads the programs with one policy: every name below the bench's zone is allowed, any port.
    ///
    /// # Errors
    ///
    /// The object is missing, or the kernel refuses.
    pub(crate) fn new() -> Result<Self> {
        let path = programs::object();
        let object = std::fs::read(&path).with_context(|| {
            format!(
                "cannot read {}: run `cargo xtask build-ebpf`",
                path.display()
            )
        })?;
        let kernel = KernelVersion::current().context("no kernel version")?;
        let coarse_clock = u8::from(kernel >= KernelVersion::new(5, 11, 0));
        // Before that kernel nothing is learned here: the offsets that it takes are the agent's to find.
        let netns_helper = u8::from(kernel >= KernelVersion::new(6, 15, 0));
        let mut ebpf = EbpfLoader::new()
            .override_global("COARSE_CLOCK", &coarse_clock, true)
            .override_global("NETNS_HELPER", &netns_helper, true)
            .map_max_entries("LEARNED", LEARNED_CAPACITY)
            .load(&object)
            .context("cannot load the programs")?;
        for name in ["skb_egress", "skb_ingress"] {
            let program: &mut CgroupSkb = program_mut(&mut ebpf, name)?.try_into()?;
            program
                .load()
                .with_context(|| format!("{name} is refused"))?;
        }
        let learn: &mut SchedClassifier = program_mut(&mut ebpf, "learn")?.try_into()?;
        learn.load().context("learn is refused")?;
        configure(&mut ebpf)?;
        let take = |ebpf: &mut Ebpf, name: &str| {
            ebpf.take_map(name)
                .with_context(|| format!("no map {name}"))
        };
        let mut rig = Self {
            queries: take(&mut ebpf, "QUERIES")?.try_into()?,
            names: take(&mut ebpf, "NAMES")?.try_into()?,
            cidrs: take(&mut ebpf, "CIDRS")?.try_into()?,
            rings: [
                take(&mut ebpf, "DNS_COPIES")?.try_into()?,
                take(&mut ebpf, "EVENTS")?.try_into()?,
            ],
            ebpf,
        };
        rig.allow(wire::ZONE, true)?;
        Ok(rig)
    }

    /// Allows a name, or everything below it, on any port.
    ///
    /// # Errors
    ///
    /// The map is full.
    pub(crate) fn allow(&mut self, name: &str, below: bool) -> Result<()> {
        let mut rules = NameRules {
            ttl_min_s: 30,
            ttl_max_s: 86_400,
            ..NameRules::default()
        };
        rules.entries[0] = ALLOWED;
        let key = if below { below_key } else { exact_key };
        let (bits, data) = key(BINDING.policy_id, name.as_bytes());
        let entry = NameEntry {
            rules,
            ..NameEntry::default()
        };
        self.names
            .insert(&Key::new(bits, data), entry, 0)
            .context("cannot write NAMES")
    }

    /// Allows a network on any port.
    ///
    /// # Errors
    ///
    /// The map is full.
    pub(crate) fn allow_network(&mut self, address: IpAddr, bits: u32) -> Result<()> {
        let mut rules = CidrRules::default();
        rules.entries[0] = ALLOWED;
        let (address, bits) = match address {
            IpAddr::V4(v4) => (from_v4(v4.octets()), bits + 96),
            IpAddr::V6(v6) => (v6.octets(), bits),
        };
        let key = cidr_key(BINDING.policy_id, &address);
        self.cidrs
            .insert(&Key::new(POLICY_ID_BITS + bits, key), rules, 0)
            .context("cannot write CIDRS")
    }

    /// Lets the kernel learn these addresses.
    ///
    /// # Errors
    ///
    /// The program cannot be run, or does not store them.
    pub(crate) fn learn(&self, addresses: &mut dyn Iterator<Item = Ipv4Addr>) -> Result<()> {
        let program: &SchedClassifier = program(&self.ebpf, "learn")?.try_into()?;
        let mut addresses = addresses.peekable();
        let netns = own_netns()?;
        while addresses.peek().is_some() {
            // As the agent's datapath writes a batch: 16 bytes, then the requests.
            let mut input = vec![0; 16];
            let mut wanted = 0;
            for address in addresses.by_ref().take(LEARN_BATCH) {
                let request = LearnRequest {
                    key: LearnedKey::new(BINDING.scope_id, netns, from_v4(address.octets())),
                    grant: Grant {
                        expires_at_ns: u64::MAX,
                        rule: RULE,
                        ports: PortRange::ANY,
                        ..Grant::default()
                    },
                };
                input.extend_from_slice(&request.to_bytes());
                wanted += 1;
            }
            let input = TestRunOptions {
                data_in: Some(&input),
                ..TestRunOptions::new()
            };
            let result = run(program.test_run(input))?;
            ensure!(
                result.return_value == wanted,
                "the kernel stored {} of {wanted} addresses",
                result.return_value
            );
        }
        Ok(())
    }

    /// Nanoseconds of `skb_egress` on the first packet to an address.
    ///
    /// # Errors
    ///
    /// The program cannot be run, or denies it.
    pub(crate) fn first_packet(&self, to: Ipv4Addr) -> Result<f64> {
        let program: &CgroupSkb = program(&self.ebpf, "skb_egress")?.try_into()?;
        let frame = [&FRAME[..], &ipv4(OWN, to, ESP, &[0; 32])].concat();
        let result = run(program.test_run(options(&frame, &test_run::context())))?;
        ensure!(result.return_value == 1, "the packet to {to} was denied");
        Ok(nanoseconds(result.duration))
    }

    /// Nanoseconds of `skb_ingress` on a message that comes from a port of the resolver.
    ///
    /// # Errors
    ///
    /// The program cannot be run.
    pub(crate) fn arrival(&mut self, message: &[u8], port: u16) -> Result<f64> {
        self.expect_answer(message)?;
        let program: &CgroupSkb = program(&self.ebpf, "skb_ingress")?.try_into()?;
        let mut datagram = port.to_be_bytes().to_vec();
        datagram.extend_from_slice(&OWN_PORT.to_be_bytes());
        datagram.extend_from_slice(&(message.len() as u16 + 8).to_be_bytes());
        datagram.extend_from_slice(&[0, 0]);
        datagram.extend_from_slice(message);
        let frame = [&FRAME[..], &ipv4(RESOLVER, OWN, protocol::UDP, &datagram)].concat();
        let result = run(program.test_run(options(&frame, &test_run::context())))?;
        // As the agent would: a full ring costs less than one with room.
        for ring in &mut self.rings {
            while ring.next().is_some() {}
        }
        Ok(nanoseconds(result.duration))
    }

    /// Notes the query that this message answers, for the socket that the next run is given.
    fn expect_answer(&mut self, message: &[u8]) -> Result<()> {
        let asked = Message::from_slice(message).context("the message is too long")?;
        let question = question_of(&asked, &QUESTION_KEY).context("no question")?;
        // The kernel numbers sockets on each CPU one by one.
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).context("no socket")?;
        let cookie = socket.cookie().context("no cookie")?;
        for next in 1..=COOKIES {
            let query = Query {
                // The programs' clock is a coarse one, and must not be behind this.
                sent_at_ns: now_ns()?.saturating_sub(CLOCK_STEP_NS),
                question,
                cookie: cookie + next,
                resolver: address_words(&from_v4(RESOLVER.octets())),
                ports: query_ports(DNS_PORT, OWN_PORT, [message[0], message[1]], protocol::UDP),
                scope_id: BINDING.scope_id,
            };
            let mut bucket = self
                .queries
                .get(&query.bucket(), 0)
                .context("cannot read QUERIES")?;
            bucket.note(&query);
            self.queries
                .set(query.bucket(), bucket, 0)
                .context("cannot write QUERIES")?;
        }
        Ok(())
    }

    /// How often something was tallied.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub(crate) fn tally(&self, tally: Tally) -> Result<u64> {
        self.per_cpu("TALLIES", tally as u32)
    }

    /// How many packets `skb_egress` let pass for this reason.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub(crate) fn passed(&self, reason: Reason) -> Result<u64> {
        let index = counter_index(Hook::SkbEgress, Verdict::Allow, reason);
        self.per_cpu("COUNTERS", index)
    }

    fn per_cpu(&self, name: &str, index: u32) -> Result<u64> {
        let map = self.ebpf.map(name).context("no such map")?;
        let values = PerCpuArray::<_, u64>::try_from(map)?;
        Ok(values.get(&index, 0).context("cannot read")?.iter().sum())
    }
}

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a aya::programs::Program> {
    ebpf.program(name)
        .with_context(|| format!("no program {name}"))
}

fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name)
        .with_context(|| format!("no program {name}"))
}

/// Number of the network namespace in which test runs make their sockets: this process' own.
#[expect(unsafe_code, reason = "an option of sockets that nix does not offer")]
fn own_netns() -> Result<u32> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let mut cookie = 0_u64;
    let mut bytes = libc::socklen_t::try_from(size_of::<u64>())?;
    // SAFETY: the value has eight bytes, as the option and `bytes` say.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut bytes,
        )
    };
    ensure!(result == 0, "the kernel does not number network namespaces");
    Ok(u32::try_from(cookie)?)
}

/// `SO_NETNS_COOKIE` of include/uapi/asm-generic/socket.h, from Linux 5.14 on.
const SO_NETNS_COOKIE: libc::c_int = 71;

fn configure(ebpf: &mut Ebpf) -> Result<()> {
    let map = |name: &'static str| move || format!("no map {name}");
    let mut levels = [0; CGROUP_LEVELS];
    levels[0] = NO_LEVEL;
    let workload = Workload {
        current: BINDING,
        identity: 1,
        ..Workload::default()
    };
    let workloads = ebpf.map_mut("WORKLOADS").with_context(map("WORKLOADS"))?;
    HashMap::<_, u64, Workload>::try_from(workloads)?.insert(NODE_CGROUP, workload, 0)?;
    let usage = ScopeUse {
        learned_share: LEARNED_CAPACITY,
        aliases_share: LEARNED_CAPACITY,
        ..ScopeUse::default()
    };
    let scopes = ebpf.map_mut("SCOPES").with_context(map("SCOPES"))?;
    HashMap::<_, u32, ScopeUse>::try_from(scopes)?.insert(BINDING.scope_id, usage, 0)?;
    let resolvers = ebpf.map_mut("RESOLVERS").with_context(map("RESOLVERS"))?;
    let resolver = ResolverKey::new(from_v4(RESOLVER.octets()), DNS_PORT);
    HashMap::<_, ResolverKey, u32>::try_from(resolvers)?.insert(
        resolver,
        u32::from(DNS_PORT),
        0,
    )?;
    let ports = ebpf
        .map_mut("RESOLVER_PORTS")
        .with_context(map("RESOLVER_PORTS"))?;
    Array::<_, ResolverPorts>::try_from(ports)?.set(0, ResolverPorts::of(&[resolver]), 0)?;
    let config = Config {
        layout_version: LAYOUT_VERSION,
        generation: 1,
        levels,
        ..Config::default()
    };
    let keys = Keys {
        flow: SipKey { k0: SEED, k1: 0 },
        question: QUESTION_KEY,
        ..Keys::default()
    };
    let map_keys = ebpf.map_mut("KEYS").with_context(map("KEYS"))?;
    Array::<_, Keys>::try_from(map_keys)?.set(0, keys, 0)?;
    let configs = ebpf.map_mut("CONFIG").with_context(map("CONFIG"))?;
    Array::<_, Config>::try_from(configs)?.set(0, config, 0)?;
    Ok(())
}

fn options<'a>(input: &'a [u8], context: &'a [u8]) -> TestRunOptions<'a> {
    TestRunOptions {
        data_in: Some(input),
        ctx_in: Some(context),
        ..TestRunOptions::new()
    }
}

fn run(
    result: std::result::Result<TestRunResult, aya::programs::ProgramError>,
) -> Result<TestRunResult> {
    result.context("the kernel does not run the program")
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

fn now_ns() -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    Ok(Duration::from(now).as_nanos() as u64)
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let total = (20 + payload.len()) as u16;
    let mut bytes = vec![0x45, 0];
    bytes.extend_from_slice(&total.to_be_bytes());
    bytes.extend_from_slice(&[0, 1, 0, 0, 64, proto, 0, 0]);
    bytes.extend_from_slice(&from.octets());
    bytes.extend_from_slice(&to.octets());
    bytes.extend_from_slice(payload);
    bytes
}
