//! The packets that sockets receive: never judged, only learned from.

use aya_ebpf::programs::SkBuffContext;
use egress_common::{dns::DNS_PORT, flow::ROLE_PASSIVE, policy::protocol};

use crate::{
    dns,
    maps::SOCKETS,
    record,
    skb::{Header, Skb, Socket, full_socket},
    udp, workload,
};

/// Notes who started a flow, and learns from DNS answers.
#[inline(always)]
pub fn skb_ingress(ctx: &SkBuffContext) {
    let skb = Skb {
        raw: ctx.skb.skb,
        base: 0,
    };
    let Some(config) = workload::config() else {
        return;
    };
    let header = Header::read(&skb);
    if header.refusal().is_some() || header.is_later_fragment() {
        return;
    }
    let Some(sk) = full_socket(skb.raw) else {
        return;
    };
    let is_tcp = header.proto() == protocol::TCP;
    if !is_tcp && header.proto() != protocol::UDP {
        return;
    }
    let socket = Socket::read(sk);
    if is_tcp && socket.listens {
        // The listener's state is inherited by the socket that it makes of this packet or the next.
        match SOCKETS.get_or_create(sk) {
            // SAFETY: the storage lives as long as the socket; one byte is written.
            Some(state) => unsafe { (*state).role = ROLE_PASSIVE },
            None => record::tally(egress_common::tally::Tally::SocketStateFailed),
        }
        return;
    }
    if !is_tcp {
        udp::note_inbound(&skb, header, &socket);
    }
    if header.sport() != DNS_PORT || socket.is_raw || header.opens_tcp() {
        return;
    }
    let Some(workload) = workload::of_skb(config, skb.raw) else {
        return;
    };
    let arrival = dns::arrival_at_socket(&skb, header, sk);
    dns::answer(config, &skb, header, workload, &arrival);
}
