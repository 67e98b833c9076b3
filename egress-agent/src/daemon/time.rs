//! The clocks.

use std::{
    fs,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use nix::time::{ClockId, clock_gettime};

use crate::api::Timestamp;

/// Now on the clock of the kernel programs, which goes on while the machine sleeps; nanoseconds.
pub(super) fn now_ns() -> u64 {
    static AHEAD_NS: OnceLock<i64> = OnceLock::new();
    let ahead_ns = *AHEAD_NS.get_or_init(|| {
        let offsets = fs::read_to_string("/proc/self/timens_offsets");
        offsets.map_or(0, |offsets| ahead_ns(&offsets).unwrap_or(0))
    });
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
        .saturating_add_signed(ahead_ns.saturating_neg())
}

/// How far ahead of the kernel's the clock is in the agent's time namespace (`timens_offsets`, since 5.6).
fn ahead_ns(offsets: &str) -> Option<i64> {
    let of_clock = |line: &str| {
        let mut words = line.split_whitespace();
        // Before 5.13 or so the clocks have numbers.
        let is_ours = matches!(words.next()?, "boottime" | "7");
        let (seconds, nanoseconds) = (words.next()?, words.next()?);
        let seconds: i64 = seconds.parse().ok().filter(|_| is_ours)?;
        let nanoseconds: i64 = nanoseconds.parse().ok()?;
        Some(
            seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(nanoseconds),
        )
    };
    offsets.lines().find_map(of_clock)
}

/// The wall clock's time of a moment of the clock since boot.
pub(super) fn wall_clock(at_ns: u64) -> Timestamp {
    let ago = Duration::from_nanos(now_ns().saturating_sub(at_ns));
    let now = SystemTime::now();
    Timestamp::from(now.checked_sub(ago).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_a_time_namespace_are_read_in_both_forms() {
        let words = "monotonic      86400         0\nboottime          -5 999999999\n";
        assert_eq!(ahead_ns(words), Some(-5_000_000_000 + 999_999_999));
        assert_eq!(ahead_ns("1 2 3\n7 86400 0\n"), Some(86_400_000_000_000));
        assert_eq!(ahead_ns(""), None);
    }
}
