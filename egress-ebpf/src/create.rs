//! Sockets that processes make: the kernel runs this hook for no other (`kern` in `inet_create`, net/ipv4/af_inet.c).

use aya_ebpf::programs::SockContext;
use egress_common::{flow::ROLE_RAW, tally::Tally};

use crate::{maps::SOCKETS, netns, record, skb::SOCK_RAW};

/// Marks raw sockets, so that they are not taken for the kernel's own.
#[inline(always)]
pub fn sock_create(ctx: &SockContext) {
    // Before 5.12 a namespace has a number only after somebody asked for it.
    netns::of_new_socket(ctx);
    // SAFETY: the context is valid while the program runs.
    if unsafe { (*ctx.sock).type_ } != SOCK_RAW {
        return;
    }
    match SOCKETS.get_or_create(ctx.sock) {
        // SAFETY: the storage lives as long as the socket, which nobody else knows yet.
        Some(state) => unsafe { (*state).role = ROLE_RAW },
        None => record::tally(Tally::SocketStateFailed),
    }
}
