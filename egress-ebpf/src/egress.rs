//! The packets that sockets send.
//!
//! A packet of a flow that was allowed before costs its headers, one look into
//! the socket's storage and one compare. Everything else is decided.

use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::debug;
use egress_common::{
    decision::Decision,
    flow::{
        Flow, ROLE_ACTIVE, ROLE_PASSIVE, ROLE_PREEXISTING, ROLE_RAW, ROLE_UNKNOWN, SocketState,
        is_stamp_due,
    },
    maps::Config,
    policy::{Binding, protocol},
    verdict::{Hook, Reason, Verdict},
};

use crate::{
    fast::fast_reason,
    learn::keep_open,
    lookup::{Start, has_rule, judge, reported},
    query, record,
    skb::{Header, Payload, Skb, Socket, full_socket},
    source,
    time::stamp_now,
    udp, workload,
};

/// Enforced, with no policy: for packets that come before any configuration.
pub const UNCONFIGURED: Binding = Binding {
    scope_id: 0,
    policy_id: u16::MAX,
    mode: 0,
    flags: 0,
};

/// Judges a packet and records what was decided; returns the program's code.
#[inline(always)]
pub fn skb_egress(ctx: &SkBuffContext) -> i32 {
    // Comparisons rather than a conversion: one path each for the verifier.
    let reason = fast_reason(ctx.skb.skb);
    if reason == Reason::EstablishedFlow as u32 {
        return pass(Reason::EstablishedFlow);
    }
    if reason == Reason::Reply as u32 {
        return pass(Reason::Reply);
    }
    if reason == Reason::Loopback as u32 {
        return pass(Reason::Loopback);
    }
    let skb = Skb {
        raw: ctx.skb.skb,
        base: 0,
    };
    let Some(config) = workload::config() else {
        return refuse(
            &skb,
            Header::read(&skb),
            Reason::NotConfigured,
            &UNCONFIGURED,
        );
    };
    let header = Header::read(&skb);
    if let Some(reason) = header.refusal() {
        let binding = workload::of_skb(config, skb.raw)
            .map_or(UNCONFIGURED, |workload| workload::binding(config, workload));
        return refuse(&skb, header, reason, &binding);
    }
    let Some(sk) = full_socket(skb.raw) else {
        return refuse(&skb, header, Reason::StateUnavailable, &UNCONFIGURED);
    };
    let Some(state) = crate::maps::SOCKETS.get_or_create(sk) else {
        record::tally(egress_common::tally::Tally::SocketStateFailed);
        return refuse(&skb, header, Reason::StateUnavailable, &UNCONFIGURED);
    };
    // SAFETY: the storage lives as long as the socket. Other CPUs may change
    // it meanwhile: each field stands for itself, and the tag covers the rest.
    let state = unsafe { &mut *state };
    let socket = Socket::read(sk);
    if source::may_be_forged(&skb, header, &socket) {
        let Some(workload) = workload::of_skb(config, skb.raw) else {
            return refuse(&skb, header, Reason::NotConfigured, &UNCONFIGURED);
        };
        let accepted = socket.listens || (socket.is_stream && state.role == ROLE_PASSIVE);
        if source::is_forged(&skb, header, &socket, accepted, workload) {
            let binding = workload::binding(config, workload);
            return refuse(&skb, header, Reason::ForgedSource, &binding);
        }
    }
    let code = judge_packet(ctx, config, &skb, header, &socket, state);
    if code == Verdict::Allow.cgroup_code() && query::may_be_one(header, &skb, &socket) {
        let binding = workload::of_skb(config, skb.raw)
            .map_or(UNCONFIGURED, |workload| workload::binding(config, workload));
        let payload = Payload::find(&skb).pack();
        if binding.restricts_queries()
            && query::query_refused(skb.raw, 0, header.pack(), payload, 0) != 0
        {
            query::copy_refused(skb.raw, 0, header.pack(), payload, binding.pack());
            return refuse(&skb, header, Reason::QueryNotAllowed, &binding);
        }
        // What a raw socket asks teaches nothing: nobody can tell its answer from others.
        if !socket.is_raw {
            query::note_query(skb.raw, header.pack(), payload);
        }
    }
    // Verifiers before 5.16 forget what a number was that waited on the stack: the mask says that it is a code.
    (record::opaque(code as u32) & 3) as i32
}

#[inline(always)]
fn judge_packet(
    ctx: &SkBuffContext,
    config: &Config,
    skb: &Skb,
    header: Header,
    socket: &Socket,
    state: &mut SocketState,
) -> i32 {
    let flow = udp::flow_of(header, skb);
    let mut start = Start::WORKLOAD;
    let is_tcp = socket.is_stream && header.proto() == protocol::TCP;
    if is_tcp {
        if socket.listens || (state.role == ROLE_PASSIVE && !header.opens_tcp()) {
            return pass(Reason::Reply);
        }
        if header.opens_tcp() {
            // A new flow on this socket: what the last one was allowed does not count.
            state.role = ROLE_ACTIVE;
            state.tag = 0;
        } else if state.role == ROLE_UNKNOWN {
            state.role = ROLE_PREEXISTING;
        }
        if state.role == ROLE_PREEXISTING {
            start = Start::PREEXISTING;
        }
    }
    // A socket without a peer of its own keeps its flows in a table instead.
    let is_connected = is_tcp || socket.peer_port != 0;
    if is_connected
        && state.tag != 0
        && state.tag == flow.tag(workload::seed(), config.generation, state.rule)
    {
        let now = stamp_now();
        if is_stamp_due(state.stamp, now) {
            state.stamp = now;
            keep_address_open(config, skb, header, state.rule);
        }
        return pass(Reason::EstablishedFlow);
    }
    // What is on the loopback device does not leave, whatever its address.
    if source::is_on_loopback(skb) {
        return pass(Reason::Loopback);
    }
    let Some(workload) = workload::of_skb(config, skb.raw) else {
        return refuse(skb, header, Reason::NotConfigured, &UNCONFIGURED);
    };
    let binding = workload::binding(config, workload);
    if socket.is_raw {
        // A raw socket writes what it likes: only what the kernel's own sockets send is what it seems to be.
        let by_kernel = state.role != ROLE_RAW;
        if header.is_to_loopback(skb) {
            return refuse(skb, header, Reason::Malformed, &binding);
        }
        if header.is_link_control() && (by_kernel || header.stays_on_link()) {
            return pass(Reason::LinkControl);
        }
        if by_kernel && workload.is_node() && header.is_kernel_answer() {
            start = Start::KERNEL;
        }
    }
    let is_loose_udp = !is_connected && !socket.is_raw && header.proto() == protocol::UDP;
    if is_loose_udp {
        match udp::recall(skb, header, workload) {
            udp::Recalled::Started => start = Start::FAR_END,
            udp::Recalled::Allowed => return pass(Reason::EstablishedFlow),
            udp::Recalled::Unstamped(rule) => {
                keep_open(skb.raw, skb.base, header.pack(), binding.scope_id, rule);
                return pass(Reason::EstablishedFlow);
            }
            udp::Recalled::Rested(rule) if has_rule(&binding, rule) => {
                start = Start::resting(rule);
            }
            udp::Recalled::Rested(_) | udp::Recalled::Nothing if state.serves != 0 => {
                start = Start::SERVING;
            }
            udp::Recalled::Rested(_) | udp::Recalled::Nothing => {}
        }
    } else if header.proto() == protocol::UDP && !socket.is_raw {
        // A server may connect a socket to a peer that spoke first to another one.
        if let udp::Recalled::Started = udp::recall(skb, header, workload) {
            start = Start::FAR_END;
        }
    }
    if is_connected
        && start.is_workload()
        && state.tag != 0
        && state.tag == udp::tag_of(&flow, workload::seed(), state.generation, state.rule)
        && has_rule(&binding, state.rule)
    {
        start = Start::resting(state.rule);
    }
    let decision = judge(&flow, start, &binding);
    if decision.is_remembered() {
        if is_connected {
            remember(config, &flow, &decision, state);
        } else if is_loose_udp {
            udp::remember(skb, header, workload, &decision);
        }
    }
    let decision = reported(decision, &flow, &binding);
    record::count(Hook::SkbEgress, decision.verdict, decision.reason);
    record::count_decision(&decision, workload);
    let is_repeated = is_connected && is_audited_again(config, &flow, &decision, state);
    if (decision.rule != 0 || !decision.reason.allows()) && !is_repeated {
        record::report_packet(skb, Hook::SkbEgress, header, &decision, &binding);
    }
    debug!(
        ctx,
        "skb_egress: proto {} port {} verdict {} reason {}",
        header.proto(),
        header.dport(),
        decision.verdict as u8,
        decision.reason as u8
    );
    code_of(&decision)
}

/// Keeps the address of a live flow open for new flows of its workload.
#[inline(always)]
fn keep_address_open(config: &Config, skb: &Skb, header: Header, rule: u64) {
    if let Some(workload) = workload::of_skb(config, skb.raw) {
        keep_open(
            skb.raw,
            skb.base,
            header.pack(),
            workload.current.scope_id,
            rule,
        );
    }
}

/// Stores an allowed flow, so that its next packet needs no decision.
#[inline(always)]
fn remember(config: &Config, flow: &Flow, decision: &Decision, state: &mut SocketState) {
    // Order does not matter: the tag covers rule and generation, so a
    // half-written state matches nothing and the flow is decided again.
    state.rule = decision.rule;
    state.generation = config.generation;
    state.stamp = stamp_now();
    state.tag = udp::tag_of(flow, workload::seed(), config.generation, decision.rule);
}

/// Whether audit mode reported the flow just before: else every packet of a transfer would be an event, and new flows
/// would find no budget. A socket without an allowed flow has no tag; the place of its rule holds the mark.
#[inline(always)]
fn is_audited_again(
    config: &Config,
    flow: &Flow,
    decision: &Decision,
    state: &mut SocketState,
) -> bool {
    if !matches!(decision.verdict, Verdict::WouldDeny) || state.tag != 0 {
        return false;
    }
    let now = stamp_now();
    let mark = flow.tag(workload::seed(), config.generation, decision.reason as u64);
    if state.rule == mark && !is_stamp_due(state.stamp, now) {
        return true;
    }
    state.rule = mark;
    state.stamp = now;
    false
}

/// Passes a packet that needs no decision: counted, not reported.
#[inline(always)]
fn pass(reason: Reason) -> i32 {
    record::count(Hook::SkbEgress, Verdict::Allow, reason);
    Verdict::Allow.cgroup_code()
}

/// The code of a decision. What is held off is dropped without an error: TCP sends it again, and so do resolvers.
#[inline(always)]
fn code_of(decision: &Decision) -> i32 {
    if matches!(decision.verdict, Verdict::Deny) && matches!(decision.reason, Reason::HeldOff) {
        Verdict::SILENT_DROP
    } else {
        decision.verdict.cgroup_code()
    }
}

/// The verdict on a packet that could not be judged by its flow.
#[inline(always)]
fn refuse(skb: &Skb, header: Header, reason: Reason, binding: &Binding) -> i32 {
    // Who is not restricted may send what cannot be read; in another's name it may not.
    if binding.policy_id == 0 && !matches!(reason, Reason::ForgedSource) {
        return pass(Reason::NoPolicy);
    }
    let decision = Decision::without_rule(reason, binding);
    record::count(Hook::SkbEgress, decision.verdict, reason);
    record::report_packet(skb, Hook::SkbEgress, header, &decision, binding);
    decision.verdict.cgroup_code()
}
