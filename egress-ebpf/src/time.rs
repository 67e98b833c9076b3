//! The clock.

use aya_ebpf::{
    Global,
    helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
};
use egress_common::{barrier::barrier, flow::STAMP_JIFFIES};

/// 1 when the kernel has `bpf_ktime_get_coarse_ns` (5.11). Set by the agent before loading; the verifier then
/// removes the branch that is not taken.
#[unsafe(no_mangle)]
static COARSE_CLOCK: Global<u8> = Global::new(0);

/// The coarse clock when [`SLEPT_NS`] was taken.
static mut TAKEN_NS: u64 = 0;
/// From the coarse clock, which stands still while the machine sleeps, to the one that goes on.
static mut SLEPT_NS: u64 = 0;

/// Nanoseconds since the machine was started, those in which it slept too: a TTL is over when its time is. One tick behind
/// at most, which TTLs do not feel.
#[inline(always)]
pub fn now_ns() -> u64 {
    if COARSE_CLOCK.load() == 0 {
        // SAFETY: the helper takes no arguments and cannot fail.
        return unsafe { bpf_ktime_get_boot_ns() };
    }
    // Once in each tick: the coarse clock costs a fraction of the other.
    // SAFETY: as above.
    let coarse_ns = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: the word is written whole.
    if unsafe { (&raw const TAKEN_NS).read_volatile() } != coarse_ns {
        // SAFETY: as above.
        let boot_ns = unsafe { bpf_ktime_get_boot_ns() };
        // SAFETY: as above.
        let slept_ns = boot_ns.wrapping_sub(unsafe { bpf_ktime_get_ns() });
        // To the nearest millisecond or so, what passed between the two readings: else the programs of another agent, which
        // an upgrade leaves attached for a while, would have another time, and an answer could be older than its query.
        let slept_ns = slept_ns.wrapping_add(1 << 19) >> 20 << 20;
        // SAFETY: as above.
        unsafe { (&raw mut SLEPT_NS).write_volatile(slept_ns) };
        barrier();
        // SAFETY: as above.
        unsafe { (&raw mut TAKEN_NS).write_volatile(coarse_ns) };
    }
    // A reader that sees the tick sees what was taken in it.
    barrier();
    // SAFETY: as above.
    coarse_ns.wrapping_add(unsafe { (&raw const SLEPT_NS).read_volatile() })
}

/// Number of the current stretch of [`STAMP_JIFFIES`]: cheaper than any clock.
#[inline(always)]
pub fn stamp_now() -> u16 {
    // SAFETY: the helper takes no arguments and cannot fail.
    (unsafe { bpf_jiffies64() } / STAMP_JIFFIES) as u16
}
