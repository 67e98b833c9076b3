//! Sockets that processes make.

use aya_ebpf::programs::SockContext;

use crate::{netns, process};

/// Gives the socket's network namespace a number: before 5.12 it has one only after somebody asked for it. Notes the
/// maker, where the agent wants that.
#[inline(always)]
pub fn sock_create(ctx: &SockContext) {
    netns::of_new_socket(ctx);
    process::note(ctx);
}
