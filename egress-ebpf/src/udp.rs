//! UDP flows of sockets without a peer, and flows that the remote started.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_spin_lock, bpf_spin_unlock},
};
use egress_common::{
    address::is_loopback,
    decision::Decision,
    flow::{
        CalledPorts, FLOW_IDLE_NS, FLOW_SLOTS, FlowFacts, FlowKey, FlowState, STARTED_BY_REMOTE,
        STARTED_BY_WORKLOAD, is_stamp_due,
    },
    hash::SipKey,
    packed::{AddressWords, Recalled, RecalledAs, address_of},
    policy::protocol,
    tally::Tally,
};

use crate::{
    ask::resolver_of,
    maps::{CALLED, FLOWS},
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

/// [`FlowKey::id`] in a stack frame of its own.
#[inline(never)]
fn id_of(key: &FlowKey, secret: &SipKey) -> u64 {
    key.id(secret)
}

/// [`FlowFacts::tag`] in a stack frame of its own.
#[inline(never)]
fn tag_of(facts: &FlowFacts, id: u64, secret: &SipKey) -> u64 {
    facts.tag(id, secret)
}

/// Slot of the flow with this id in its bucket, counted from 1; 0 for none. Takes no lock. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_place(id: u64) -> u32 {
    let Some(bucket) = FLOWS.get_ptr_mut(FlowKey::bucket(id)) else {
        return 0;
    };
    // SAFETY: the bucket is a map value.
    let ids = unsafe { &raw const (*bucket).ids }.cast::<u64>();
    for at in 0..FLOW_SLOTS {
        // SAFETY: an index of the array; aligned, loaded whole.
        let held = unsafe { ids.add(at).read_volatile() };
        if held == id {
            return at as u32 + 1;
        }
    }
    0
}

/// Reads what a slot holds, and its tag.
#[inline(always)]
fn read(flow: *const FlowState) -> (FlowFacts, u64) {
    // SAFETY: the slot is a part of a map value; each field is loaded once, and what grants is proved by the tag.
    let rule = unsafe { (&raw const (*flow).rule).read_volatile() };
    // SAFETY: as above.
    let generation = unsafe { (&raw const (*flow).generation).read_volatile() };
    // SAFETY: as above.
    let stamp = unsafe { (&raw const (*flow).stamp).read_volatile() };
    // SAFETY: as above.
    let started_by = unsafe { (&raw const (*flow).started_by).read_volatile() };
    // SAFETY: as above.
    let tag = unsafe { (&raw const (*flow).tag).read_volatile() };
    let facts = FlowFacts {
        rule,
        generation,
        stamp,
        started_by,
    };
    (facts, tag)
}

/// Looks a flow up in the table.
#[inline(never)]
pub fn find(generation: u32, key: &FlowKey, idle_ns: u64) -> Recalled {
    let (true, Some(keys)) = (key.is_placed(), workload::keys()) else {
        return Recalled::NOTHING;
    };
    let id = id_of(key, &keys.flow);
    let place = flow_place(id);
    if place == 0 {
        return Recalled::NOTHING;
    }
    let at = record::opaque(place.wrapping_sub(1)) as usize & (FLOW_SLOTS - 1);
    let Some(bucket) = FLOWS.get_ptr_mut(FlowKey::bucket(id)) else {
        return Recalled::NOTHING;
    };
    // SAFETY: the bucket is a map value.
    let flows = unsafe { &raw mut (*bucket).flows }.cast::<FlowState>();
    // SAFETY: the mask leaves an index of the array.
    let flow = unsafe { flows.add(at) };
    let (mut facts, mut tag) = read(flow);
    if tag != tag_of(&facts, id, &keys.flow) {
        // It is written at this moment, or was given to another flow.
        // SAFETY: the bucket is a map value with a lock that the kernel knows.
        let lock = unsafe { &raw mut (*bucket).lock };
        // SAFETY: no lock is held, and nothing below calls a function before the unlock.
        unsafe { bpf_spin_lock(lock.cast()) };
        (facts, tag) = read(flow);
        // SAFETY: the lock is held.
        unsafe { bpf_spin_unlock(lock.cast()) };
        if tag != tag_of(&facts, id, &keys.flow) {
            return Recalled::NOTHING;
        }
    }
    // SAFETY: the slot is a part of a map value; a key that is half another's is not this one.
    if !key.is(unsafe { &(*flow).key }) {
        return Recalled::NOTHING;
    }
    let now_ns = now_ns();
    // SAFETY: the bucket is a map value.
    let seen = unsafe { &raw mut (*bucket).seen_ns }.cast::<u64>();
    // SAFETY: as for the flow.
    let seen = unsafe { seen.add(at) };
    // SAFETY: aligned, loaded whole. It may be another's by now: then this flow was given up just now.
    let idle_for_ns = now_ns.wrapping_sub(unsafe { seen.read_volatile() });
    // Another CPU's clock may be ahead.
    if idle_for_ns > idle_ns && idle_for_ns >> 63 == 0 {
        return Recalled::NOTHING;
    }
    if idle_for_ns > TOUCH_NS {
        // SAFETY: aligned, stored whole; where the flow was given up, another one looks younger, which grants nothing.
        unsafe { seen.write_volatile(now_ns) };
    }
    if facts.started_by == STARTED_BY_REMOTE {
        return Recalled::new(RecalledAs::Started, 0);
    }
    if facts.rule == 0 {
        return Recalled::new(RecalledAs::Begun, 0);
    }
    if facts.generation != generation {
        return Recalled::new(RecalledAs::Earlier, facts.rule);
    }
    let now = stamp_now();
    if !is_stamp_due(facts.stamp, now) {
        return Recalled::new(RecalledAs::Allowed, facts.rule);
    }
    // SAFETY: as for the time.
    unsafe { (&raw mut (*flow).stamp).write_volatile(now) };
    Recalled::new(RecalledAs::Unstamped, facts.rule)
}

/// True if a socket at a local port may have been called by a remote that it had not asked.
#[inline(always)]
pub fn may_be_called(port: u16) -> bool {
    let is_set = |place| {
        called(place).is_none_or(|byte| {
            // SAFETY: a byte of a map value.
            unsafe { byte.read_volatile() != 0 }
        })
    };
    is_set(CalledPorts::above(port)) && is_set(CalledPorts::at(port))
}

#[inline(always)]
fn called((place, byte): (u32, u32)) -> Option<*mut u8> {
    let bytes = CALLED.get_ptr_mut(place)?;
    let at = record::opaque(byte) as usize & 63;
    // SAFETY: the mask leaves an index of the array.
    Some(unsafe { bytes.cast::<u8>().add(at) })
}

/// Notes that a local port was called.
#[inline(always)]
fn note_called(port: u16) {
    for place in [CalledPorts::at(port), CalledPorts::above(port)] {
        if let Some(byte) = called(place) {
            // SAFETY: a byte of a map value.
            unsafe { byte.write_volatile(1) };
        }
    }
}

/// Recalls the flow of a packet that leaves.
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

/// Notes that the workload spoke first in a flow that passed without a rule: [`store_begun`].
#[inline(always)]
pub fn begin(raw: *mut __sk_buff, header: Header, identity: u32, netns: u32) {
    udp_begin(raw, header.pack(), identity, netns);
}

/// [`begin`], verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn udp_begin(raw: *mut __sk_buff, header: u64, identity: u32, netns: u32) -> u32 {
    let Some(config) = workload::config() else {
        return 0;
    };
    let key = key_of(raw, Header::unpack(header), identity, netns);
    store_begun(config.generation, &key, FLOW_IDLE_NS);
    0
}

/// Stores a flow that the workload started and no rule allows: it passes because its policy is in audit, or because there
/// is none. It grants nothing; without it the remote's answer would count as a call, whose replies pass under any policy.
#[inline(always)]
pub fn store_begun(generation: u32, key: &FlowKey, idle_ns: u64) {
    if matches!(find(generation, key, idle_ns).how, RecalledAs::Nothing) {
        let facts = FlowFacts {
            rule: 0,
            generation: 0,
            stamp: 0,
            started_by: STARTED_BY_WORKLOAD,
        };
        store(key, &facts);
    }
}

/// Stores an allowed flow; `decision` is packed.
#[inline(always)]
pub fn store_allowed(generation: u32, key: &FlowKey, decision: u64) {
    let facts = FlowFacts {
        rule: Decision::packed_rule(decision),
        generation,
        stamp: stamp_now(),
        started_by: STARTED_BY_WORKLOAD,
    };
    store(key, &facts);
}

/// Stores a flow; returns who started what is known now.
#[inline(never)]
fn store(key: &FlowKey, facts: &FlowFacts) -> u8 {
    let (true, Some(keys)) = (key.is_placed(), workload::keys()) else {
        return 0;
    };
    let id = id_of(key, &keys.flow);
    let tag = tag_of(facts, id, &keys.flow);
    let now_ns = now_ns();
    let Some(bucket) = FLOWS.get_ptr_mut(FlowKey::bucket(id)) else {
        record::tally(Tally::FlowTableFailed);
        return 0;
    };
    // SAFETY: the bucket is a map value with a lock that the kernel knows.
    let lock = unsafe { &raw mut (*bucket).lock };
    // SAFETY: no lock is held, and nothing below calls a function before the unlock.
    unsafe { bpf_spin_lock(lock.cast()) };
    // SAFETY: the lock is held.
    let started_by = unsafe { (*bucket).note(id, key, facts, tag, now_ns) };
    // SAFETY: the lock is held.
    unsafe { bpf_spin_unlock(lock.cast()) };
    started_by
}

/// Stores that the remote spoke first, unless the flow is known already.
#[inline(always)]
pub fn store_remote(generation: u32, key: &FlowKey, idle_ns: u64) -> bool {
    let known = find(generation, key, idle_ns);
    if !matches!(known.how, RecalledAs::Nothing) {
        return matches!(known.how, RecalledAs::Started);
    }
    let facts = FlowFacts {
        rule: 0,
        generation: 0,
        stamp: 0,
        started_by: STARTED_BY_REMOTE,
    };
    // Before the flow: who could find that looks for it.
    if key.by_interface == 0 && !may_be_called(key.local_port) {
        note_called(key.local_port);
    }
    store(key, &facts) == STARTED_BY_REMOTE
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
    if may_be_at(header.sport())
        && (is_trusted(source, header.sport())
            || full_socket(raw).is_some_and(|sk| resolver_of(sk).is_some()))
    {
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
