//! Test runs (`BPF_PROG_TEST_RUN`) as packets of an interface that leads outside.
//!
//! Without a context the kernel runs a program on the loopback device, where every packet passes.

use std::cell::Cell;

use nix::sched::{CloneFlags, unshare};

use crate::namespace::ip;

/// Index of the interface that test runs come by.
pub const INTERFACE: u32 = 77;

/// Offset of `ifindex` in `struct __sk_buff`, include/uapi/linux/bpf.h.
const IFINDEX_AT: usize = 40;
/// Size of that structure.
const CONTEXT_BYTES: usize = 192;

thread_local! {
    static IS_READY: Cell<bool> = const { Cell::new(false) };
}

/// The context of a test run on [`INTERFACE`]. The first call of a thread moves it into a network namespace of its
/// own, which ends with it.
///
/// # Panics
///
/// If there can be no namespace or no interface.
#[must_use]
pub fn context() -> [u8; CONTEXT_BYTES] {
    if !IS_READY.get() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        ip(
            &[],
            &format!("link add test0 index {INTERFACE} type bridge\n"),
        )
        .expect("an interface");
        IS_READY.set(true);
    }
    let mut context = [0; CONTEXT_BYTES];
    context[IFINDEX_AT..IFINDEX_AT + 4].copy_from_slice(&INTERFACE.to_ne_bytes());
    context
}
