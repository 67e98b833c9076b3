//! The packets that sockets send.
//!
//! A packet of a flow that was allowed before costs its headers, one look into
//! the socket's storage and one compare (`fast.rs`). Everything else comes here: the packet and its socket are read,
//! [`classify`] says what to do, and that is done and recorded.

use aya_ebpf::{bindings::bpf_sock, programs::SkBuffContext};
use aya_log_ebpf::debug;
use egress_common::{
    decision::Decision,
    flow::{Way, role_after},
    maps::Config,
    origin::{Ask, Do, Known, classify, has_memory, is_loose_udp, is_tcp},
    packed::{AddressWords, Facts, Recalled},
    policy::{Binding, Workload},
    tally::Tally,
    verdict::{Hook, Reason, Verdict},
};

use crate::{
    ask::{judge_behind, note_resolver_behind},
    fast, hello,
    learn::keep_open,
    lookup::{has_rule, judge_flow, reported},
    netns, query, record, seen,
    skb::{
        FindPayload as _, Header, Payload, ReadHeader as _, ReadSocket as _, Skb, Socket,
        full_socket, is_on_loopback, loaded_destination,
    },
    source,
    state::State,
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

/// Facts of a packet and its sender that are read before it is classified.
struct Sent<'a> {
    skb: Skb,
    header: Header,
    destination: AddressWords,
    socket: Socket,
    sk: *mut bpf_sock,
    workload: &'a Workload,
    binding: Binding,
    netns: u32,
}

impl Ask for Sent<'_> {
    #[inline(always)]
    fn is_source_foreign(&self) -> bool {
        source::is_local(self.skb.raw, self.header.pack()) == 0
    }

    #[inline(always)]
    fn is_source_resolver(&self) -> bool {
        source::is_resolver(self.skb.raw, self.header.pack()) != 0
    }

    #[inline(always)]
    fn is_kernel_socket(&self) -> bool {
        netns::is_kernel_socket(self.skb.raw) != 0
    }

    #[inline(always)]
    fn recall(&self) -> Recalled {
        // With a peer its own memory is asked before; here it only counts whether it answers.
        if self.socket.peer_port != 0 && !udp::may_be_called(self.header.sport()) {
            return Recalled::NOTHING;
        }
        udp::recall(
            self.skb.raw,
            self.header,
            self.workload.identity,
            self.netns,
        )
    }

    #[inline(always)]
    fn has_rule(&self, rule: u64) -> bool {
        has_rule(&self.binding, rule)
    }
}

/// Judges a packet and records what was decided; returns the program's code.
#[inline(always)]
pub fn skb_egress(ctx: &SkBuffContext) -> i32 {
    if let Some(reason) = fast::reason(ctx.skb.skb) {
        return pass(reason);
    }
    let skb = Skb {
        raw: ctx.skb.skb,
        base: 0,
    };
    let header = Header::read(&skb);
    let Some(config) = workload::config() else {
        return refuse(&skb, header, Reason::NotConfigured, &UNCONFIGURED);
    };
    let Some(workload) = workload::of_skb(config, skb.raw) else {
        return refuse(&skb, header, Reason::NotConfigured, &UNCONFIGURED);
    };
    let binding = workload::binding(config, workload);
    if let Some(reason) = header.refusal() {
        return refuse(&skb, header, reason, &binding);
    }
    let Some(sk) = full_socket(skb.raw) else {
        return refuse(&skb, header, Reason::StateUnavailable, &binding);
    };
    let sent = Sent {
        skb,
        header,
        destination: loaded_destination(&skb, header),
        socket: Socket::read(sk),
        sk,
        workload,
        binding,
        netns: netns::of_packet(skb.raw),
    };
    note_resolver_behind(skb.raw, header.pack());
    let code = judge_packet(ctx, config, &sent);
    if code == Verdict::Allow.cgroup_code() && query::may_be_one(header, &skb, &sent.socket) {
        let payload = Payload::find(&skb).pack();
        let verdict = query::query_leaves(skb.raw, 0, header.pack(), payload, 0);
        if verdict == query::LATER {
            return Verdict::SILENT_DROP;
        }
        if verdict != query::PASSES {
            return refuse(&skb, header, Reason::QueryNotAllowed, &binding);
        }
    }
    // Verifiers before 5.16 forget what a number was that waited on the stack: the mask says that it is a code.
    (record::opaque(code as u32) & 3) as i32
}

#[inline(always)]
fn judge_packet(ctx: &SkBuffContext, config: &Config, sent: &Sent<'_>) -> i32 {
    let Sent {
        skb,
        header,
        destination,
        socket,
        workload,
        binding,
        ..
    } = *sent;
    let is_on_loopback = is_on_loopback(skb.raw);
    // A TCP socket's role is stored with its first packet; of others only an allowed flow is.
    let state = if is_tcp(&socket, header) && !is_on_loopback {
        let Some(state) = State::get_or_create(sent.sk) else {
            return refuse(&skb, header, Reason::StateUnavailable, &binding);
        };
        state.enter(
            role_after(state.role(), header.opens_tcp()),
            header.opens_tcp(),
        );
        Some(state)
    } else {
        State::get(sent.sk)
    };
    let known = match state {
        Some(state) => state.known(destination, header, config.generation),
        None if seen::is_for(&socket, header) => seen::known(skb.raw, destination, header),
        None => Known::NOTHING,
    };
    let step = classify(&socket, &known, header, is_on_loopback, workload, sent);
    match step.to {
        Do::Pass => return pass(step.reason),
        Do::Refuse => return refuse(&skb, header, step.reason, &binding),
        Do::KeepOpen => {
            if let Some(state) = state {
                state.stamp(stamp_now());
            }
            keep_open(skb.raw, skb.base, header.pack(), binding.scope_id);
            return pass(step.reason);
        }
        Do::Judge => {}
    }
    let way = Way {
        is_outside: netns::is_outside(config, sent.netns),
        is_unrouted: false,
    };
    let facts = Facts::of_packet(header, way, sent.netns);
    let [first, second] = destination;
    let origin = step.origin;
    let by_address = judge_flow(first, second, facts.pack(), origin.pack(), binding.pack());
    // Programs of others may have changed the address of a resolver. What passes by that is judged with every packet: the
    // socket may ask for somebody else next.
    let packed = judge_behind(skb.raw, destination, facts, origin, &binding, by_address);
    let is_lasting = packed == by_address;
    let packed = hello::follow(skb.raw, header, &binding, packed);
    let decision = Decision::unpack(packed, &binding);
    if is_lasting && decision.is_remembered() {
        if seen::is_for(&socket, header) {
            seen::note(skb.raw, destination, header, decision.rule);
        } else if has_memory(&socket, header) {
            match State::get_or_create(sent.sk) {
                Some(state) => state.remember(destination, header, decision.rule),
                // The flow is decided again with its next packet.
                None => record::tally(Tally::SocketStateFailed),
            }
        } else if is_loose_udp(&socket, header) {
            udp::remember(skb.raw, header, workload.identity, sent.netns, &decision);
        }
    } else if is_loose_udp(&socket, header) && decision.is_begun(origin) {
        udp::begin(skb.raw, header, workload.identity, sent.netns);
    }
    let decision = reported(decision, destination, facts, &binding);
    record::count(Hook::SkbEgress, decision.verdict, decision.reason);
    record::count_decision(&decision, workload);
    // Else every packet of a transfer under audit would be an event, and new flows would find no budget.
    let is_repeated = matches!(decision.verdict, Verdict::WouldDeny)
        && has_memory(&socket, header)
        && State::get_or_create(sent.sk)
            .is_some_and(|state| state.is_audited_again(destination, header, decision.reason));
    if (decision.rule != 0 || !decision.reason.allows()) && !is_repeated {
        record::report_packet(&skb, Hook::SkbEgress, header, &decision, &binding);
    }
    debug!(
        ctx,
        "skb_egress: proto {} port {} verdict {} reason {}",
        header.proto(),
        header.dport(),
        decision.verdict as u8,
        decision.reason as u8
    );
    decision.packet_code()
}

/// Passes a packet that needs no decision: counted, not reported.
#[inline(always)]
fn pass(reason: Reason) -> i32 {
    record::count(Hook::SkbEgress, Verdict::Allow, reason);
    Verdict::Allow.cgroup_code()
}

/// The verdict on a packet that could not be judged by its flow.
#[inline(always)]
fn refuse(skb: &Skb, header: Header, reason: Reason, binding: &Binding) -> i32 {
    let decision = Decision::refusal(reason, binding);
    record::count(Hook::SkbEgress, decision.verdict, decision.reason);
    if !decision.reason.allows() {
        record::report_packet(skb, Hook::SkbEgress, header, &decision, binding);
    }
    decision.verdict.cgroup_code()
}
