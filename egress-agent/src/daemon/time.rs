//! The clocks.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::api::Timestamp;

/// Now on the monotonic clock, which the kernel programs use; nanoseconds.
pub(super) fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// The wall clock's time of a moment of the monotonic clock.
pub(super) fn wall_clock(at_ns: u64) -> Timestamp {
    let ago = Duration::from_nanos(now_ns().saturating_sub(at_ns));
    let now = SystemTime::now();
    Timestamp::from(now.checked_sub(ago).unwrap_or(now))
}
