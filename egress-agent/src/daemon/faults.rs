//! What impairs the agent although all is enforced: `status` says so, and exits with 1.

use std::time::{Duration, SystemTime};

use super::shared::Shared;
use crate::{
    api::Timestamp,
    cli::{DroppedLines, dropped_log_lines},
};

/// The name of dropped lines of the log among what was lost.
pub(super) const LOG_LINES: &str = "log_lines_dropped";

/// Lines of the log that were dropped longer ago than this are no alarm any more.
const LOG_ALARM: Duration = Duration::from_secs(600);

impl Shared {
    /// Every fault that needs somebody, in a sentence.
    pub(super) fn faults(&self) -> Vec<String> {
        let now = SystemTime::now();
        log_words(dropped_log_lines(), now).into_iter().collect()
    }
}

fn log_words(dropped: DroppedLines, now: SystemTime) -> Option<String> {
    let last = dropped.last?;
    // A clock that was set back makes it look as if it came later: that is recent too.
    let age = now.duration_since(last).unwrap_or_default();
    (age < LOG_ALARM).then(|| {
        format!(
            "{} lines of the log were dropped, the last at {}: whatever takes the agent's stderr is slow, gone or full",
            dropped.count,
            Timestamp::from(last)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_lines_are_an_alarm_for_a_while() {
        let last = SystemTime::now();
        let after = |passed| last.checked_add(passed).expect("in range");
        let dropped = DroppedLines {
            count: 7,
            last: Some(last),
        };
        assert_eq!(log_words(DroppedLines::default(), last), None);
        let words = log_words(dropped, after(LOG_ALARM / 2)).expect("an alarm");
        assert!(
            words.starts_with("7 lines of the log were dropped"),
            "{words}"
        );
        assert_eq!(log_words(dropped, after(LOG_ALARM)), None);
    }
}
