//! Packets on given interfaces: those without an INET socket (forwarded, or
//! made by packet sockets), which no cgroup hook sees.
//!
//! On an interface of the node, `tc_egress` lies where packets leave. On the
//! host's end of a pod's interface it lies where they arrive: there they have
//! left the pod. `tc_ingress` lies on the other side of each.
//!
//! A packet is judged under the policy of its socket's cgroup; without a
//! socket, under that of the pod whose interface it is; else under the node's.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use aya_log_ebpf::debug;
use egress_common::{
    decision::Decision,
    flow::{FLOW_IDLE_NS, FlowKey, TCP_IDLE_NS, Way},
    maps::{LEADS_TO_POD, NODE_CGROUP},
    origin::{Ask, Do, classify_frame},
    packed::{Facts, Recalled},
    packet::PacketBytes,
    policy::{Binding, Workload, protocol},
    verdict::{Hook, Reason, Verdict},
};

use crate::{
    dns,
    egress::UNCONFIGURED,
    learn::keep_open,
    lookup::{has_rule, judge, reported},
    maps::INTERFACES,
    netns, query, record,
    resolver::may_be_at,
    skb::{
        AF_INET, AF_INET6, FindPayload as _, Header, Payload, ReadHeader as _, Skb, is_on_loopback,
    },
    udp, workload,
};

/// Ethertypes, IEEE 802 numbers.
const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

/// Most VLAN tags in a frame.
const VLAN_TAGS: u32 = 2;

/// The content of a frame.
enum Frame {
    /// An IP packet.
    Ip(Skb),
    /// ARP, or a frame to an address that no bridge forwards (IEEE 802.1D section 7.12.6).
    LinkControl,
    /// Anything else.
    Other,
    /// The interface is not known.
    Unknown,
}

const LINK_CONTROL: i32 = -1;
const OTHER: i32 = -2;
const UNKNOWN: i32 = -3;

#[inline(always)]
fn frame(ctx: &TcContext) -> Frame {
    match network_header(ctx) {
        LINK_CONTROL => Frame::LinkControl,
        OTHER => Frame::Other,
        UNKNOWN => Frame::Unknown,
        base => Frame::Ip(Skb {
            raw: ctx.skb.skb,
            base: base as u32,
        }),
    }
}

/// Where the network header begins, or one of the constants above. Read from the
/// frame's own bytes: what the kernel has noted of a frame of a packet socket is
/// what its sender claims.
#[inline(never)]
fn network_header(ctx: &TcContext) -> i32 {
    let raw = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let interface = unsafe { (*raw).ifindex };
    // SAFETY: this part of the entry is written before the programs are attached.
    let Some(known) = (unsafe { INTERFACES.get(interface) }) else {
        return UNKNOWN;
    };
    if known.header_bytes == 0 {
        return 0;
    }
    let bytes = Skb { raw, base: 0 };
    let Some([d0, d1, d2, d3, d4, d5]) = bytes.load::<6>(0) else {
        return OTHER;
    };
    let mut at = 12_u32;
    for _ in 0..=VLAN_TAGS {
        let Some(kind) = bytes.load::<2>(at) else {
            return OTHER;
        };
        at = at.wrapping_add(2);
        match u16::from_be_bytes(kind) {
            ETH_P_IP | ETH_P_IPV6 => return at as i32,
            ETH_P_ARP => return LINK_CONTROL,
            ETH_P_8021Q | ETH_P_8021AD => at = at.wrapping_add(2),
            _ => break,
        }
    }
    if [d0, d1, d2, d3, d4] == [0x01, 0x80, 0xc2, 0, 0] && d5 < 0x10 {
        return LINK_CONTROL;
    }
    OTHER
}

/// True if an INET socket sends the packet: the cgroup hooks have judged it.
#[inline(always)]
fn has_inet_socket(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return false;
    }
    // SAFETY: not null; the family is there for every kind of socket.
    let family = unsafe { (*sk).family };
    family == AF_INET || family == AF_INET6
}

/// A pod's interface: the workload that packets without a socket belong to.
fn owner(raw: *mut __sk_buff) -> Option<*mut u64> {
    // SAFETY: the context is valid while the program runs.
    let interface = INTERFACES.get_ptr_mut(unsafe { (*raw).ifindex })?;
    // SAFETY: a map value; the flags are written before the programs are attached.
    if unsafe { (*interface).flags } & LEADS_TO_POD == 0 {
        return None;
    }
    // SAFETY: a field of a map value.
    Some(unsafe { &raw mut (*interface).owner })
}

/// 1 if a packet has left a pod by its interface. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_from_pod(raw: *mut __sk_buff) -> u32 {
    u32::from(owner(raw).is_some())
}

/// On a pod's interface, notes whose sockets send there. Nobody else's do: a socket belongs to the network namespace
/// that it was made in, and only pods that the node trusts with all others can go there.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn frame_note_owner(raw: *mut __sk_buff) -> u32 {
    let (Some(config), Some(owner)) = (workload::config(), owner(raw)) else {
        return 0;
    };
    // SAFETY: an aligned number in a map value.
    let known = unsafe { owner.read_volatile() };
    let id = workload::cgroup_of_skb(config, raw, |id| id == known);
    if id != NODE_CGROUP && id != known {
        // SAFETY: as above; one store.
        unsafe { owner.write_volatile(id) };
    }
    0
}

/// The cgroup under whose workload a frame is judged (`arrives` 0), or that it goes to.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn frame_cgroup(raw: *mut __sk_buff, arrives: u32) -> u64 {
    let Some(config) = workload::config() else {
        return NODE_CGROUP;
    };
    // SAFETY: the context is valid while the program runs.
    let has_socket = !unsafe { (*raw).__bindgen_anon_2.sk }.is_null();
    if arrives == 0 && has_socket {
        return workload::cgroup_of_skb(config, raw, |_| false);
    }
    match owner(raw) {
        // SAFETY: an aligned number in a map value.
        Some(owner) => unsafe { owner.read_volatile() },
        None => NODE_CGROUP,
    }
}

/// True if the packet came in by this interface: on a pod's, it leaves the pod.
#[inline(always)]
fn arrived_here(ctx: &TcContext) -> bool {
    let raw = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    unsafe { (*raw).ingress_ifindex == (*raw).ifindex }
}

/// Key of the flow that a packet belongs to.
#[inline(always)]
fn key(skb: &Skb, header: Header, leaves: bool) -> FlowKey {
    let raw = skb.raw;
    let (remote_port, local_port) = if leaves {
        (header.dport(), header.sport())
    } else {
        (header.sport(), header.dport())
    };
    let (remote, local) = if leaves {
        (header.destination(skb), header.source(skb))
    } else {
        (header.source(skb), header.destination(skb))
    };
    FlowKey {
        remote,
        local,
        // SAFETY: the context is valid while the program runs.
        owner: unsafe { (*raw).ifindex },
        // The interface is of one network namespace.
        netns: 0,
        remote_port,
        local_port,
        proto: header.proto(),
        by_interface: 1,
        _pad: [0; 2],
    }
}

/// Recalls the flow of a packet that leaves.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn frame_recall(raw: *mut __sk_buff, base: u32, header: u64) -> u64 {
    let Some(config) = workload::config() else {
        return 0;
    };
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let key = key(&skb, header, true);
    udp::find(config.generation, &key, idle_ns(header.proto())).pack()
}

/// Notes that a workload spoke first without a rule: [`udp::store_begun`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn frame_begin(raw: *mut __sk_buff, base: u32, header: u64) -> u32 {
    let Some(config) = workload::config() else {
        return 0;
    };
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let key = key(&skb, header, true);
    udp::store_begun(config.generation, &key, idle_ns(header.proto()));
    0
}

/// Stores an allowed flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn frame_remember(
    raw: *mut __sk_buff,
    base: u32,
    header: u64,
    decision: u64,
) -> u32 {
    let Some(config) = workload::config() else {
        return 0;
    };
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let key = key(&skb, header, true);
    udp::store_allowed(config.generation, &key, decision);
    0
}

/// Time without a packet after which a flow is over.
#[inline(always)]
fn idle_ns(proto: u8) -> u64 {
    if proto == protocol::TCP {
        TCP_IDLE_NS
    } else {
        FLOW_IDLE_NS
    }
}

/// Judges a packet that leaves through the interface.
#[inline(always)]
pub fn tc_egress(ctx: &TcContext) -> Verdict {
    // A frame whose network header is not found yet.
    let whole = Skb {
        raw: ctx.skb.skb,
        base: 0,
    };
    let Some(config) = workload::config() else {
        return refuse(&whole, Header::UNREAD, Reason::NotConfigured, &UNCONFIGURED);
    };
    if has_inet_socket(ctx) {
        if arrived_here(ctx) {
            frame_note_owner(ctx.skb.skb);
        }
        return pass(Reason::SocketJudged);
    }
    let Some(workload) = workload::bound(frame_cgroup(ctx.skb.skb, 0)) else {
        return refuse(&whole, Header::UNREAD, Reason::NotConfigured, &UNCONFIGURED);
    };
    let binding = workload::binding(config, workload);
    let skb = match frame(ctx) {
        Frame::Ip(skb) => skb,
        Frame::LinkControl => return pass(Reason::LinkControl),
        Frame::Other => return refuse(&whole, Header::UNREAD, Reason::UnknownEthertype, &binding),
        Frame::Unknown => return refuse(&whole, Header::UNREAD, Reason::NotConfigured, &binding),
    };
    let header = Header::read(&skb);
    if let Some(reason) = header.refusal() {
        return refuse(&skb, header, reason, &binding);
    }
    let verdict = judge_frame(ctx, &skb, workload, &binding, header);
    let may_be_query = may_be_at(header.dport()) && !header.is_later_fragment();
    if may_be_query
        && !matches!(verdict, Verdict::Deny)
        && matches!(header.proto(), protocol::UDP | protocol::TCP)
    {
        let payload = Payload::find(&skb).pack();
        if query::query_leaves(skb.raw, skb.base, header.pack(), payload, 1) != query::PASSES {
            return refuse(&skb, header, Reason::QueryNotAllowed, &binding);
        }
    }
    verdict
}

/// Facts of a frame and its owner that are read before it is classified.
struct Sent<'a> {
    skb: Skb,
    header: Header,
    binding: &'a Binding,
}

impl Ask for Sent<'_> {
    /// Frames claim what they like; nothing is believed of them.
    #[inline(always)]
    fn is_source_foreign(&self) -> bool {
        true
    }

    #[inline(always)]
    fn is_source_resolver(&self) -> bool {
        true
    }

    #[inline(always)]
    fn is_kernel_socket(&self) -> bool {
        false
    }

    #[inline(always)]
    fn recall(&self) -> Recalled {
        let Skb { raw, base } = self.skb;
        Recalled::unpack(frame_recall(raw, base, self.header.pack()))
    }

    #[inline(always)]
    fn has_rule(&self, rule: u64) -> bool {
        has_rule(self.binding, rule)
    }
}

#[inline(always)]
fn judge_frame(
    ctx: &TcContext,
    skb: &Skb,
    workload: &Workload,
    binding: &Binding,
    header: Header,
) -> Verdict {
    let sent = Sent {
        skb: *skb,
        header,
        binding,
    };
    let step = classify_frame(header, is_on_loopback(skb.raw), &sent);
    match step.to {
        Do::Pass => return pass(step.reason),
        Do::Refuse => return refuse(skb, header, step.reason, binding),
        Do::KeepOpen => {
            keep_open(skb.raw, skb.base, header.pack(), binding.scope_id);
            return pass(step.reason);
        }
        Do::Judge => {}
    }
    let destination = header.destination(skb);
    let way = Way {
        is_outside: is_from_pod(skb.raw) != 0,
        is_unrouted: false,
    };
    let facts = Facts::of_packet(header, way, netns::of_frame(skb.raw));
    let mut decision = judge(destination, facts, step.origin, binding);
    // Nothing here follows what a frame's connection says of itself.
    if matches!(decision.reason, Reason::AwaitsName) {
        decision = Decision::new(Reason::HelloUnseen, decision.rule, binding);
    }
    if decision.is_remembered() && header.has_ports() {
        frame_remember(skb.raw, skb.base, header.pack(), decision.pack());
    } else if header.proto() == protocol::UDP && decision.is_begun(step.origin) {
        frame_begin(skb.raw, skb.base, header.pack());
    }
    let decision = reported(decision, destination, facts, binding);
    record::count(Hook::TcEgress, decision.verdict, decision.reason);
    record::count_decision(&decision, workload);
    if decision.rule != 0 || !decision.reason.allows() {
        record::report_packet(skb, Hook::TcEgress, header, &decision, binding);
    }
    debug!(
        ctx,
        "tc_egress: proto {} port {} verdict {} reason {}",
        header.proto(),
        header.dport(),
        decision.verdict as u8,
        decision.reason as u8
    );
    decision.verdict
}

/// Notes who started a flow, and learns from DNS answers to forwarded queries.
#[inline(always)]
pub fn tc_ingress(ctx: &TcContext) {
    if workload::config().is_none() {
        return;
    }
    let Frame::Ip(skb) = frame(ctx) else {
        return;
    };
    let header = Header::read(&skb);
    if header.refusal().is_some() {
        return;
    }
    if header.is_later_fragment() {
        return;
    }
    if header.proto() != protocol::TCP || header.opens_tcp() {
        frame_note_flow(skb.raw, skb.base, header.pack());
    }
    // DNS over TCP of forwarded senders is not learned: without a socket nothing here detects a forged segment.
    if header.proto() == protocol::UDP && may_be_at(header.sport()) {
        let Some(workload) = workload::bound(frame_cgroup(skb.raw, 1)) else {
            return;
        };
        let arrival = dns::Arrival {
            cookie: query::frame_cookie(skb.raw, header.destination(&skb)),
            expected_sequence: 0,
            is_connected: 1,
            asked_at_ns: 0,
            asks_resolvers: false,
        };
        dns::answer(&skb, header, workload, &arrival);
    }
}

/// Stores that the remote spoke first, unless the flow is known already.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn frame_note_flow(raw: *mut __sk_buff, base: u32, header: u64) -> u32 {
    let Some(config) = workload::config() else {
        return 0;
    };
    let skb = Skb { raw, base };
    let header = Header::unpack(header);
    let key = key(&skb, header, false);
    udp::store_remote(config.generation, &key, idle_ns(header.proto()));
    0
}

/// Passes a packet that needs no decision: counted, not reported.
#[inline(always)]
fn pass(reason: Reason) -> Verdict {
    record::count(Hook::TcEgress, Verdict::Allow, reason);
    Verdict::Allow
}

/// The verdict on a frame that could not be judged by its flow.
#[inline(always)]
fn refuse(skb: &Skb, header: Header, reason: Reason, binding: &Binding) -> Verdict {
    let decision = Decision::refusal(reason, binding);
    record::count(Hook::TcEgress, decision.verdict, decision.reason);
    if !decision.reason.allows() {
        record::report_packet(skb, Hook::TcEgress, header, &decision, binding);
    }
    decision.verdict
}
