//! UDP flows of sockets without a peer, and flows that the far end started.

use egress_common::{
    address::is_loopback,
    decision::Decision,
    flow::{
        FLOW_IDLE_NS, Flow, FlowKey, FlowState, Origin, STARTED_BY_FAR_END, STARTED_BY_WORKLOAD,
    },
    maps::Config,
    packet::Packet,
    policy::{Workload, protocol},
    tally::Tally,
};

use crate::{
    maps::{FLOWS, RESOLVERS, SOCKETS},
    record,
    skb::{Skb, Socket, full_socket},
    time::now_ns,
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
    /// It was allowed under this rule in an earlier generation.
    Rested(u64),
}

#[inline(always)]
fn key(workload: &Workload, far: [u8; 16], far_port: u16, near_port: u16) -> FlowKey {
    FlowKey {
        far,
        near: [0; 16],
        owner: workload.identity,
        far_port,
        near_port,
        proto: protocol::UDP,
        by_interface: 0,
        _pad: [0; 2],
    }
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
    flow.tag(
        config.seed,
        0,
        u64::from(key.owner) << 16 | u64::from(key.near_port),
    )
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
    if entry.tag == flow.tag(config.seed, config.generation, entry.rule) {
        return Recalled::Allowed;
    }
    if entry.tag == flow.tag(config.seed, entry.generation, entry.rule) {
        return Recalled::Rested(entry.rule);
    }
    Recalled::Nothing
}

/// What is known of the flow of a packet that leaves.
#[inline(never)]
pub fn recall(config: &Config, workload: &Workload, packet: &Packet, flow: &Flow) -> Recalled {
    let key = key(workload, packet.daddr, packet.dport, packet.sport);
    find(config, &key, flow, FLOW_IDLE_NS)
}

/// Stores an allowed flow of a socket without a peer.
#[inline(never)]
pub fn remember(
    config: &Config,
    workload: &Workload,
    packet: &Packet,
    flow: &Flow,
    decision: &Decision,
) {
    let key = key(workload, packet.daddr, packet.dport, packet.sport);
    store_allowed(config, &key, flow, decision);
}

/// Stores an allowed flow.
#[inline(never)]
pub fn store_allowed(config: &Config, key: &FlowKey, flow: &Flow, decision: &Decision) {
    let state = FlowState {
        tag: flow.tag(config.seed, config.generation, decision.rule),
        rule: decision.rule,
        last_seen_ns: now_ns(),
        generation: config.generation,
        started_by: STARTED_BY_WORKLOAD,
        reason: decision.reason as u8,
        _pad: [0; 2],
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
        started_by: STARTED_BY_FAR_END,
        reason: 0,
        _pad: [0; 2],
    };
    if FLOWS.insert(key, &state, 0).is_err() {
        record::tally(Tally::FlowTableFailed);
    }
    true
}

/// Notes who spoke first when a UDP packet arrives at a socket without a peer.
///
/// Packets of a connected socket come from the peer that it chose, answers of
/// resolvers are allowed by the lifeline, and loopback always is.
#[inline(always)]
pub fn note_inbound(config: &Config, skb: &Skb, packet: &Packet, socket: &Socket) {
    if socket.peer_port != 0 || socket.is_raw || is_loopback(&packet.saddr) {
        return;
    }
    if packet.sport == egress_common::dns::DNS_PORT && RESOLVERS.get_ptr(&packet.saddr).is_some() {
        return;
    }
    let Some(workload) = workload::of_skb(config, skb.raw) else {
        return;
    };
    let key = key(workload, packet.saddr, packet.sport, packet.dport);
    if !store_far_end(config, &key, FLOW_IDLE_NS) {
        return;
    }
    if let Some(state) = full_socket(skb.raw).and_then(|sk| SOCKETS.get_or_create(sk)) {
        // SAFETY: the storage lives as long as the socket; one byte is written.
        unsafe { (*state).serves = 1 };
    }
}
