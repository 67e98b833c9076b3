//! The packets that sockets send.
//!
//! A packet of a flow that was allowed before costs its headers, one look into
//! the socket's storage and one compare. Everything else is decided.

use aya_ebpf::{helpers::bpf_skb_cgroup_id, programs::SkBuffContext};
use aya_log_ebpf::debug;
use egress_common::{
    decision::Decision,
    flow::{Flow, Origin, ROLE_ACTIVE, ROLE_PASSIVE, ROLE_PREEXISTING, ROLE_UNKNOWN, SocketState},
    maps::Config,
    packet::Packet,
    policy::{Binding, Workload, protocol},
    verdict::{Hook, Reason, Verdict},
};

use crate::{
    lookup::{has_rule, judge},
    query, record,
    skb::{Skb, Socket, full_socket, read_packet},
    udp, workload,
};

/// Enforced, with no policy: for packets that come before any configuration.
pub const UNCONFIGURED: Binding = Binding {
    scope_id: 0,
    policy_id: u16::MAX,
    mode: 0,
    flags: 0,
};

/// Judges a packet and records what was decided.
#[inline(always)]
pub fn skb_egress(ctx: &SkBuffContext) -> Verdict {
    let skb = Skb {
        raw: ctx.skb.skb,
        base: 0,
    };
    let Some(config) = workload::config() else {
        return refuse(Reason::NotConfigured, &UNCONFIGURED);
    };
    let packet = match read_packet(&skb) {
        Ok(packet) => packet,
        Err(reason) => {
            let binding = workload::of_skb(config, skb.raw).map_or(UNCONFIGURED, |w| w.current);
            return refuse(reason, &binding);
        }
    };
    let Some(sk) = full_socket(skb.raw) else {
        return refuse(Reason::StateUnavailable, &UNCONFIGURED);
    };
    let Some(state) = crate::maps::SOCKETS.get_or_create(sk) else {
        record::tally(egress_common::tally::Tally::SocketStateFailed);
        return refuse(Reason::StateUnavailable, &UNCONFIGURED);
    };
    // SAFETY: the storage lives as long as the socket. Other CPUs may change
    // it meanwhile: each field stands for itself, and the tag covers the rest.
    let state = unsafe { &mut *state };
    let socket = Socket::read(sk);
    let verdict = judge_packet(ctx, config, &skb, &packet, &socket, state);
    if !matches!(verdict, Verdict::Deny) {
        query::note(config, &skb, &packet, sk, &socket);
    }
    verdict
}

#[inline(always)]
fn judge_packet(
    ctx: &SkBuffContext,
    config: &Config,
    skb: &Skb,
    packet: &Packet,
    socket: &Socket,
    state: &mut SocketState,
) -> Verdict {
    let mut flow = Flow {
        daddr: packet.daddr,
        dport: packet.rule_port(),
        proto: packet.proto,
        is_fragment: packet.is_later_fragment,
        origin: Origin::Workload,
    };
    let is_tcp = socket.is_stream && packet.proto == protocol::TCP;
    if is_tcp {
        if socket.listens || (state.role == ROLE_PASSIVE && !packet.opens_tcp()) {
            return pass(Reason::Reply);
        }
        if packet.opens_tcp() {
            // A new flow on this socket: what the last one was allowed does not count.
            state.role = ROLE_ACTIVE;
            state.tag = 0;
        } else if state.role == ROLE_UNKNOWN {
            state.role = ROLE_PREEXISTING;
        }
        if state.role == ROLE_PREEXISTING {
            flow.origin = Origin::Preexisting;
        }
    }
    // A socket without a peer of its own keeps its flows in a table instead.
    let is_connected = is_tcp || socket.peer_port != 0;
    if is_connected
        && state.tag != 0
        && state.tag == flow.tag(config.seed, config.generation, state.rule)
    {
        return pass(Reason::EstablishedFlow);
    }
    let Some(workload) = workload::of_skb(config, skb.raw) else {
        return refuse(Reason::NotConfigured, &UNCONFIGURED);
    };
    let binding = workload.current;
    if packet.is_link_control() {
        return pass(Reason::LinkControl);
    }
    if socket.is_raw && workload.is_node != 0 && packet.is_kernel_answer() {
        flow.origin = Origin::Kernel;
    }
    let is_loose_udp = !is_connected && !socket.is_raw && packet.proto == protocol::UDP;
    if is_loose_udp {
        match udp::recall(config, workload, packet, &flow) {
            udp::Recalled::Started => flow.origin = Origin::FarEnd,
            udp::Recalled::Allowed => return pass(Reason::EstablishedFlow),
            udp::Recalled::Rested(rule) if has_rule(&binding, rule) => {
                flow.origin = Origin::Resting(rule);
            }
            udp::Recalled::Rested(_) | udp::Recalled::Nothing if state.serves != 0 => {
                flow.origin = Origin::WorkloadServing;
            }
            udp::Recalled::Rested(_) | udp::Recalled::Nothing => {}
        }
    } else if packet.proto == protocol::UDP && !socket.is_raw {
        // A server may connect a socket to a peer that spoke first to another one.
        if let udp::Recalled::Started = udp::recall(config, workload, packet, &flow) {
            flow.origin = Origin::FarEnd;
        }
    }
    if is_connected
        && matches!(flow.origin, Origin::Workload)
        && state.tag != 0
        && state.tag == flow.tag(config.seed, state.generation, state.rule)
        && has_rule(&binding, state.rule)
    {
        flow.origin = Origin::Resting(state.rule);
    }
    let decision = judge(&flow, &binding);
    if decision.verdict as u8 == Verdict::Allow as u8 {
        remember(
            config,
            workload,
            packet,
            &flow,
            &decision,
            state,
            is_connected,
            is_loose_udp,
        );
    }
    finish(ctx, Hook::SkbEgress, &decision, &binding, packet)
}

/// Stores an allowed flow, so that its next packet needs no decision.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn remember(
    config: &Config,
    workload: &Workload,
    packet: &Packet,
    flow: &Flow,
    decision: &Decision,
    state: &mut SocketState,
    is_connected: bool,
    is_loose_udp: bool,
) {
    if decision.rule == 0 {
        return;
    }
    if is_connected {
        // Order does not matter: the tag covers rule and generation, so a
        // half-written state matches nothing and the flow is decided again.
        state.rule = decision.rule;
        state.generation = config.generation;
        state.reason = decision.reason as u8;
        state.tag = flow.tag(config.seed, config.generation, decision.rule);
    } else if is_loose_udp {
        udp::remember(config, workload, packet, flow, decision);
    }
}

/// Counts, reports and returns a verdict.
#[inline(always)]
pub fn finish(
    ctx: &SkBuffContext,
    hook: Hook,
    decision: &Decision,
    binding: &Binding,
    packet: &Packet,
) -> Verdict {
    record::count(hook, decision.verdict, decision.reason);
    record::count_rule(decision);
    if decision.rule != 0 || !decision.reason.allows() {
        // SAFETY: the context is valid while the program runs.
        let cgroup_id = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
        record::report(hook, decision, binding, |event| {
            record::fill_packet(event, packet);
            event.cgroup_id = cgroup_id;
        });
    }
    debug!(
        ctx,
        "skb_egress: proto {} port {} verdict {} reason {}",
        packet.proto,
        packet.dport,
        decision.verdict as u8,
        decision.reason as u8
    );
    decision.verdict
}

/// Passes a packet that needs no decision: counted, not reported.
#[inline(always)]
fn pass(reason: Reason) -> Verdict {
    record::count(Hook::SkbEgress, Verdict::Allow, reason);
    Verdict::Allow
}

/// The verdict on a packet that could not be judged by its flow.
#[inline(always)]
fn refuse(reason: Reason, binding: &Binding) -> Verdict {
    let decision = Decision::without_rule(reason, binding);
    record::count(Hook::SkbEgress, decision.verdict, reason);
    record::report(Hook::SkbEgress, &decision, binding, |_| {});
    decision.verdict
}
