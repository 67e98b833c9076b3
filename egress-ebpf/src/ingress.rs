//! The packets that sockets receive: learned from, and not judged but for calls with a forged source.

use aya_ebpf::programs::SkBuffContext;
use egress_common::{
    decision::Decision,
    flow::ROLE_PASSIVE,
    maps::Config,
    policy::protocol,
    tally::Tally,
    verdict::{Hook, Reason, Verdict},
};

use crate::{
    dns,
    egress::UNCONFIGURED,
    record,
    resolver::may_be_at,
    skb::{Header, ReadHeader as _, ReadSocket as _, Skb, Socket, full_socket},
    source,
    state::State,
    udp, workload,
};

/// Notes who started a flow, and learns from DNS answers.
#[inline(always)]
pub fn skb_ingress(ctx: &SkBuffContext) -> Verdict {
    let skb = Skb {
        raw: ctx.skb.skb,
        base: 0,
    };
    let Some(config) = workload::config() else {
        return Verdict::Allow;
    };
    // A connected socket chose its peer, and only resolvers teach: most packets end here.
    if let Some(sk) = full_socket(skb.raw) {
        let socket = Socket::read(sk);
        if socket.peer_port != 0 && !may_be_at(socket.peer_port) && !socket.listens {
            return Verdict::Allow;
        }
    }
    let header = Header::read(&skb);
    if header.refusal().is_some() || header.is_later_fragment() {
        return Verdict::Allow;
    }
    let Some(sk) = full_socket(skb.raw) else {
        return Verdict::Allow;
    };
    let is_tcp = header.proto() == protocol::TCP;
    if !is_tcp && header.proto() != protocol::UDP {
        return Verdict::Allow;
    }
    let socket = Socket::read(sk);
    if is_tcp && socket.listens {
        // A listener's answer passes as a reply: a call to itself in another's name must not reach it.
        if source::is_looped_and_foreign(&skb, header) {
            return refuse(config, &skb, header);
        }
        // The listener's state is inherited by the socket that it makes of this packet or the next.
        match State::get_or_create(sk) {
            Some(state) => state.set_role(ROLE_PASSIVE),
            None => record::tally(Tally::SocketStateFailed),
        }
        return Verdict::Allow;
    }
    if !is_tcp {
        udp::note_inbound(&skb, header, &socket);
    }
    if !may_be_at(header.sport()) || socket.is_raw || header.opens_tcp() {
        return Verdict::Allow;
    }
    let Some(workload) = workload::of_skb(config, skb.raw) else {
        return Verdict::Allow;
    };
    if source::is_looped_and_foreign(&skb, header) {
        record::tally(Tally::AnswerForged);
        return Verdict::Allow;
    }
    let arrival = dns::arrival_at_socket(&skb, header, sk);
    dns::answer(&skb, header, workload, &arrival);
    Verdict::Allow
}

/// The verdict on a call that came over loopback in the name of somebody who is not here.
#[inline(always)]
fn refuse(config: &Config, skb: &Skb, header: Header) -> Verdict {
    let binding = workload::of_skb(config, skb.raw)
        .map_or(UNCONFIGURED, |workload| workload::binding(config, workload));
    let decision = Decision::without_rule(Reason::ForgedSource, &binding);
    record::count(Hook::SkbIngress, decision.verdict, decision.reason);
    record::report_packet(skb, Hook::SkbIngress, header, &decision, &binding);
    decision.verdict
}
