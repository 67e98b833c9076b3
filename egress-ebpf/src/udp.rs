//! UDP flows of sockets without a peer, and flows that the remote started.

use aya_ebpf::bindings::__sk_buff;
use egress_common::{
    address::is_loopback,
    decision::Decision,
    flow::{
        FLOW_IDLE_NS, FlowKey, FlowState, STARTED_BY_REMOTE, STARTED_BY_WORKLOAD, is_stamp_due,
    },
    hash::SipKey,
    packed::{AddressWords, Recalled, RecalledAs, address_of},
    policy::protocol,
    tally::Tally,
};

use crate::{
    maps::FLOWS,
    netns, record,
    resolver::{is_trusted, may_be_at},
    skb::{Header, ReadHeader as _, Skb, Socket, full_socket},
    source,
    state::State,
    time::{now_ns, stamp_now},
    workload,
};

/// The time of the last packet is stored when it is older than this.
const TOUCH_NS: u64 = 1_000_000_000;

#[inline(always)]
fn key(
    identity: u32,
    netns: u32,
    remote: AddressWords,
    remote_port: u16,
    local_port: u16,
) -> FlowKey {
    FlowKey {
        remote,
        local: [0; 2],
        owner: identity,
        netns,
        remote_port,
        local_port,
        proto: protocol::UDP,
        by_interface: 0,
        _pad: [0; 2],
    }
}

/// [`FlowState::tag_for`] in a stack frame of its own.
#[inline(never)]
fn tag_of(state: &FlowState, key: &FlowKey, secret: &SipKey) -> u64 {
    state.tag_for(key, secret)
}

/// Looks a flow up in the table.
#[inline(never)]
pub fn find(generation: u32, key: &FlowKey, idle_ns: u64) -> Recalled {
    let (true, Some(keys)) = (key.is_placed(), workload::keys()) else {
        return Recalled::NOTHING;
    };
    let Some(entry) = FLOWS.get_ptr_mut(key) else {
        return Recalled::NOTHING;
    };
    // SAFETY: the entry may be given to another key meanwhile, and be half-written: the tag of what is copied here is
    // compared below, and a write of the time or the stamp to it does no harm.
    let state = unsafe { entry.read_volatile() };
    if state.tag != tag_of(&state, key, &keys.flow) {
        return Recalled::NOTHING;
    }
    let now_ns = now_ns();
    let idle_for_ns = now_ns.wrapping_sub(state.last_seen_ns);
    if idle_for_ns > idle_ns {
        return Recalled::NOTHING;
    }
    if idle_for_ns > TOUCH_NS {
        // SAFETY: as above.
        unsafe { (&raw mut (*entry).last_seen_ns).write_volatile(now_ns) };
    }
    if state.started_by == STARTED_BY_REMOTE {
        return Recalled::new(RecalledAs::Started, 0);
    }
    if state.generation != generation {
        return Recalled::new(RecalledAs::Earlier, state.rule);
    }
    let now = stamp_now();
    if !is_stamp_due(state.stamp, now) {
        return Recalled::new(RecalledAs::Allowed, state.rule);
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*entry).stamp).write_volatile(now) };
    Recalled::new(RecalledAs::Unstamped, state.rule)
}

/// What is known of the flow of a packet that leaves.
#[inline(always)]
pub fn recall(raw: *mut __sk_buff, header: Header, identity: u32, netns: u32) -> Recalled {
    Recalled::unpack(udp_recall(raw, header.pack(), identity, netns))
}

/// [`recall`], verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn udp_recall(raw: *mut __sk_buff, header: u64, identity: u32, netns: u32) -> u64 {
    let Some(config) = workload::config() else {
        return 0;
    };
    let key = key_of(raw, Header::unpack(header), identity, netns);
    find(config.generation, &key, FLOW_IDLE_NS).pack()
}

/// Key of the flow of a packet that leaves.
#[inline(always)]
fn key_of(raw: *mut __sk_buff, header: Header, identity: u32, netns: u32) -> FlowKey {
    let destination = header.destination(&Skb { raw, base: 0 });
    key(identity, netns, destination, header.dport(), header.sport())
}

/// Stores an allowed flow of a socket without a peer.
#[inline(always)]
pub fn remember(
    raw: *mut __sk_buff,
    header: Header,
    identity: u32,
    netns: u32,
    decision: &Decision,
) {
    udp_remember(raw, header.pack(), identity, netns, decision.pack());
}

/// [`remember`], verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn udp_remember(
    raw: *mut __sk_buff,
    header: u64,
    identity: u32,
    netns: u32,
    decision: u64,
) -> u32 {
    let Some(config) = workload::config() else {
        return 0;
    };
    let key = key_of(raw, Header::unpack(header), identity, netns);
    store_allowed(config.generation, &key, decision);
    0
}

/// Stores an allowed flow; `decision` is packed.
#[inline(always)]
pub fn store_allowed(generation: u32, key: &FlowKey, decision: u64) {
    let state = FlowState {
        tag: 0,
        rule: Decision::packed_rule(decision),
        last_seen_ns: now_ns(),
        generation,
        stamp: stamp_now(),
        started_by: STARTED_BY_WORKLOAD,
        _pad: 0,
    };
    store(key, state);
}

#[inline(never)]
fn store(key: &FlowKey, mut state: FlowState) {
    let (true, Some(keys)) = (key.is_placed(), workload::keys()) else {
        return;
    };
    state.tag = tag_of(&state, key, &keys.flow);
    if FLOWS.insert(key, &state, 0).is_err() {
        record::tally(Tally::FlowTableFailed);
    }
}

/// Stores that the remote spoke first, unless the flow is known already.
#[inline(always)]
pub fn store_remote(generation: u32, key: &FlowKey, idle_ns: u64) -> bool {
    if !key.is_placed() {
        return false;
    }
    let known = find(generation, key, idle_ns);
    if !matches!(known.how, RecalledAs::Nothing) {
        return matches!(known.how, RecalledAs::Started);
    }
    let state = FlowState {
        tag: 0,
        rule: 0,
        last_seen_ns: now_ns(),
        generation: 0,
        stamp: 0,
        started_by: STARTED_BY_REMOTE,
        _pad: 0,
    };
    store(key, state);
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
    let source = header.source(&skb);
    if is_loopback(&address_of(source)) {
        return 0;
    }
    if may_be_at(header.sport()) && is_trusted(source, header.sport()) {
        return 0;
    }
    let Some(config) = workload::config() else {
        return 0;
    };
    let Some(workload) = workload::of_skb(config, raw) else {
        return 0;
    };
    let netns = netns::of_packet(raw);
    let key = key(
        workload.identity,
        netns,
        source,
        header.sport(),
        header.dport(),
    );
    if !store_remote(config.generation, &key, FLOW_IDLE_NS) {
        return 0;
    }
    if let Some(state) = full_socket(raw).and_then(State::get_or_create) {
        state.set_serves();
    }
    0
}
