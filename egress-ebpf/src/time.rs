//! The clock.

use aya_ebpf::{
    Global,
    helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
};
use egress_common::flow::STAMP_JIFFIES;

/// 1 when the kernel has `bpf_ktime_get_coarse_ns` (5.11). Set by the agent before loading; the verifier then
/// removes the branch that is not taken.
#[unsafe(no_mangle)]
static COARSE_CLOCK: Global<u8> = Global::new(0);

/// Nanoseconds of the monotonic clock. The coarse clock is one tick behind at most, which TTLs do not feel.
#[inline(always)]
pub fn now_ns() -> u64 {
    if COARSE_CLOCK.load() != 0 {
        // SAFETY: the helper takes no arguments and cannot fail.
        unsafe { bpf_ktime_get_coarse_ns() }
    } else {
        // SAFETY: as above.
        unsafe { bpf_ktime_get_ns() }
    }
}

/// Number of the current stretch of [`STAMP_JIFFIES`]: cheaper than any clock.
#[inline(always)]
pub fn stamp_now() -> u16 {
    // SAFETY: the helper takes no arguments and cannot fail.
    (unsafe { bpf_jiffies64() } / STAMP_JIFFIES) as u16
}
