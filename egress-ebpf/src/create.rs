//! Sockets that processes make.

use aya_ebpf::programs::SockContext;

use crate::process;

/// Notes the maker, where the agent wants that.
#[inline(always)]
pub fn sock_create(ctx: &SockContext) {
    process::note(ctx);
}
