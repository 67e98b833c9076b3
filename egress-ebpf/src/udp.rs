//! UDP flows of sockets without a peer, and flows that the far end started.

use aya_ebpf::bindings::__sk_buff;
use egress_common::{
    address::is_loopback,
    decision::Decision,
    dns::DNS_PORT,
    flow::{
        FLOW_IDLE_NS, Flow, FlowKey, FlowState, Origin, STARTED_BY_FAR_END, STARTED_BY_WORKLOAD,
        is_stamp_due,
    },
    hash::RULE_BITS,
    maps::Config,
    policy::{Workload, protocol},
    tally::Tally,
};

use crate::{
    maps::{FLOWS, RESOLVERS, SOCKETS},
    record,
    skb::{Header, Skb, Socket, full_socket},
    source,
    time::{now_ns, stamp_now},
    workload,
};

/// The time of the last packet is stored when it is older than this.
const TOUCH_NS: u64 = 1_000_000_000;

/// What is known of a flow.
#[derive(Clone, Copy)]
pub enum Recalled {
    /// Nothing.
    Nothing,
    /// The far end spoke first.
    Started,
    /// It was allowed, and nothing has changed since.
    Allowed,
    /// As [`Recalled::Allowed`], under this rule; its address is to be kept open.
    Unstamped(u64),
    /// It was allowed under this rule in an earlier generation.
    Rested(u64),
}

#[inline(always)]
fn key(identity: u32, far: [u8; 16], far_port: u16, near_port: u16) -> FlowKey {
    FlowKey {
        far,
        near: [0; 16],
        owner: identity,
        far_port,
        near_port,
        proto: protocol::UDP,
        by_interface: 0,
        _pad: [0; 2],
    }
}

/// [`Flow::tag`] in a stack frame of its own.
#[inline(never)]
pub fn tag_of(flow: &Flow, seed: u64, generation: u32, rule: u64) -> u64 {
    flow.tag(seed, generation, rule)
}

/// The flow as its tag sees it when the far end started it: no policy, no generation.
#[inline(always)]
pub fn far_end_tag(config: &Config, key: &FlowKey) -> u64 {
    let flow = Flow {
        daddr: key.far,
        dport: Some(key.far_port),
        proto: key.proto,
        is_fragment: false,
        origin: Origin::FarEnd,
    };
    // The near end and the owner are part of it as a rule would be.
    let rule = u64::from(key.owner) << 16 | u64::from(key.near_port);
    tag_of(&flow, workload::seed(), 0, rule)
}

/// Looks a flow up in the table.
#[inline(never)]
pub fn find(config: &Config, key: &FlowKey, flow: &Flow, idle_ns: u64) -> Recalled {
    let Some(entry) = FLOWS.get_ptr_mut(key) else {
        return Recalled::Nothing;
    };
    // SAFETY: the entry may be given to another key meanwhile; its tag is
    // compared below, and a write of the time to it does no harm.
    let entry = unsafe { &mut *entry };
    let now_ns = now_ns();
    if now_ns.wrapping_sub(entry.last_seen_ns) > idle_ns {
        return Recalled::Nothing;
    }
    if now_ns.wrapping_sub(entry.last_seen_ns) > TOUCH_NS {
        entry.last_seen_ns = now_ns;
    }
    if entry.started_by == STARTED_BY_FAR_END {
        return if entry.tag == far_end_tag(config, key) {
            Recalled::Started
        } else {
            Recalled::Nothing
        };
    }
    if entry.tag == tag_of(flow, workload::seed(), config.generation, entry.rule) {
        let now = stamp_now();
        if !is_stamp_due(entry.stamp, now) {
            return Recalled::Allowed;
        }
        entry.stamp = now;
        return Recalled::Unstamped(entry.rule);
    }
    if entry.tag == tag_of(flow, workload::seed(), entry.generation, entry.rule) {
        return Recalled::Rested(entry.rule);
    }
    Recalled::Nothing
}

impl Recalled {
    const STARTED: u64 = 1;
    const ALLOWED: u64 = 2;
    const RESTED: u64 = 3;
    const UNSTAMPED: u64 = 4;

    /// As one number, which is all that a global function can return.
    #[inline(always)]
    pub fn pack(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Started => Self::STARTED << RULE_BITS,
            Self::Allowed => Self::ALLOWED << RULE_BITS,
            Self::Rested(rule) => Self::RESTED << RULE_BITS | rule,
            Self::Unstamped(rule) => Self::UNSTAMPED << RULE_BITS | rule,
        }
    }

    /// Undoes [`Recalled::pack`].
    #[inline(always)]
    pub fn unpack(word: u64) -> Self {
        match word >> RULE_BITS {
            Self::STARTED => Self::Started,
            Self::ALLOWED => Self::Allowed,
            Self::RESTED => Self::Rested(word & ((1 << RULE_BITS) - 1)),
            Self::UNSTAMPED => Self::Unstamped(word & ((1 << RULE_BITS) - 1)),
            _ => Self::Nothing,
        }
    }
}

/// What is known of the flow of a packet that leaves.
#[inline(always)]
pub fn recall(skb: &Skb, header: Header, workload: &Workload) -> Recalled {
    Recalled::unpack(udp_recall(skb.raw, header.pack(), workload.identity))
}

/// [`recall`], verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn udp_recall(raw: *mut __sk_buff, header: u64, identity: u32) -> u64 {
    let Some(config) = workload::config() else {
        return 0;
    };
    let skb = Skb { raw, base: 0 };
    let header = Header::unpack(header);
    let flow = flow_of(header, &skb);
    let key = key(identity, flow.daddr, header.dport(), header.sport());
    find(config, &key, &flow, FLOW_IDLE_NS).pack()
}

/// Stores an allowed flow of a socket without a peer.
#[inline(always)]
pub fn remember(skb: &Skb, header: Header, workload: &Workload, decision: &Decision) {
    udp_remember(skb.raw, header.pack(), workload.identity, decision.pack());
}

/// [`remember`], verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn udp_remember(
    raw: *mut __sk_buff,
    header: u64,
    identity: u32,
    decision: u64,
) -> u32 {
    let Some(config) = workload::config() else {
        return 0;
    };
    let skb = Skb { raw, base: 0 };
    let header = Header::unpack(header);
    let flow = flow_of(header, &skb);
    let key = key(identity, flow.daddr, header.dport(), header.sport());
    store_allowed(config, &key, &flow, decision);
    0
}

/// The flow of a packet that leaves, as its tag sees it.
#[inline(always)]
pub fn flow_of(header: Header, skb: &Skb) -> Flow {
    Flow {
        daddr: header.daddr(skb),
        dport: header.rule_port(),
        proto: header.proto(),
        is_fragment: header.is_later_fragment(),
        origin: Origin::Workload,
    }
}

/// Stores an allowed flow; `decision` is packed.
#[inline(never)]
pub fn store_allowed(config: &Config, key: &FlowKey, flow: &Flow, decision: u64) {
    let rule = decision & ((1 << RULE_BITS) - 1);
    let state = FlowState {
        tag: tag_of(flow, workload::seed(), config.generation, rule),
        rule,
        last_seen_ns: now_ns(),
        generation: config.generation,
        stamp: stamp_now(),
        started_by: STARTED_BY_WORKLOAD,
        _pad: 0,
    };
    if FLOWS.insert(key, &state, 0).is_err() {
        record::tally(Tally::FlowTableFailed);
    }
}

/// Stores that the far end spoke first, unless the flow is known already.
#[inline(never)]
pub fn store_far_end(config: &Config, key: &FlowKey, idle_ns: u64) -> bool {
    let now_ns = now_ns();
    if let Some(entry) = FLOWS.get_ptr_mut(key) {
        // SAFETY: as in `find`.
        let entry = unsafe { &mut *entry };
        if now_ns.wrapping_sub(entry.last_seen_ns) <= idle_ns {
            if entry.started_by == STARTED_BY_FAR_END
                && now_ns.wrapping_sub(entry.last_seen_ns) > TOUCH_NS
            {
                entry.last_seen_ns = now_ns;
            }
            return entry.started_by == STARTED_BY_FAR_END;
        }
    }
    let state = FlowState {
        tag: far_end_tag(config, key),
        rule: 0,
        last_seen_ns: now_ns,
        generation: 0,
        stamp: 0,
        started_by: STARTED_BY_FAR_END,
        _pad: 0,
    };
    if FLOWS.insert(key, &state, 0).is_err() {
        record::tally(Tally::FlowTableFailed);
    }
    true
}

/// Notes who spoke first when a UDP packet arrives at a socket without a peer.
///
/// Packets of a connected socket come from the peer that it chose, answers of
/// resolvers are allowed by the lifeline, and what came over the loopback
/// device is answered over it, which is always allowed: a forged call over it
/// opens no way out.
#[inline(always)]
pub fn note_inbound(skb: &Skb, header: Header, socket: &Socket) {
    if socket.peer_port != 0
        || socket.is_raw
        || header.is_later_fragment()
        || source::is_looped(skb)
    {
        return;
    }
    udp_note_inbound(skb.raw, header.pack());
}

/// [`note_inbound`], verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn udp_note_inbound(raw: *mut __sk_buff, header: u64) -> u32 {
    let skb = Skb { raw, base: 0 };
    let header = Header::unpack(header);
    let saddr = header.saddr(&skb);
    if is_loopback(&saddr) {
        return 0;
    }
    if header.sport() == DNS_PORT && RESOLVERS.get_ptr(&saddr).is_some() {
        return 0;
    }
    let Some(config) = workload::config() else {
        return 0;
    };
    let Some(workload) = workload::of_skb(config, raw) else {
        return 0;
    };
    let key = key(workload.identity, saddr, header.sport(), header.dport());
    if !store_far_end(config, &key, FLOW_IDLE_NS) {
        return 0;
    }
    if let Some(state) = full_socket(raw).and_then(|sk| SOCKETS.get_or_create(sk)) {
        // SAFETY: the storage lives as long as the socket; one byte is written.
        unsafe { (*state).serves = 1 };
    }
    0
}
