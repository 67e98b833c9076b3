//! Faults that impair the agent although all is enforced: `status` says so, and exits with 1.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use super::shared::Shared;
use crate::{
    api::Timestamp,
    log_queue::{DroppedLines, dropped_log_lines},
    store::unwritten,
};

/// The name of dropped lines of the log among what was lost.
pub(super) const LOG_LINES: &str = "log_lines_dropped";
/// The same of the flow log.
pub(super) const FLOW_LOG_LINES: &str = "flow_log_lines_dropped";

/// How long an agent that starts may take to hear of its cluster.
const HEARD_GRACE: Duration = Duration::from_secs(15);
const NEVER_HEARD: &str = "the API server was never heard and nothing of before is known: pods have the lifeline alone \
                           (--pending-pods), the node has no policy of the cluster";

/// Lines of the log that were dropped longer ago than this are no alarm any more.
const LOG_ALARM: Duration = Duration::from_secs(600);

/// State that has not been written for longer is an alarm: what failed is tried again after a minute.
const STATE_ALARM: Duration = Duration::from_secs(90);

impl Shared {
    /// Every fault that needs somebody, in a sentence.
    pub(super) fn faults(&self) -> Vec<String> {
        let now = SystemTime::now();
        let mut faults = self.node.faults();
        faults.extend(self.is_cluster_unknown().then(|| NEVER_HEARD.to_owned()));
        let unwritten = unwritten::longer_than(STATE_ALARM).into_iter();
        faults.extend(unwritten.map(|(file, age)| state_words(&file, age)));
        faults.extend(log_words("the log", dropped_log_lines(), now));
        let flow_log = self.flow_log.as_ref();
        faults.extend(flow_log.and_then(|log| log_words("the flow log", log.dropped(), now)));
        faults
    }
}

impl Shared {
    /// True if nothing is known of the cluster, neither from the API server nor from before.
    fn is_cluster_unknown(&self) -> bool {
        let is_early = self.started.elapsed() < HEARD_GRACE;
        let feed = self.feed.get();
        !is_early && feed.is_some_and(|feed| feed.borrow().freshness.heard_at.is_none())
    }
}

fn state_words(file: &Path, age: Duration) -> String {
    format!(
        "state is not written for {} min: {}: the disk is full or does not answer; a restart would begin with older state",
        age.as_secs().div_euclid(60),
        file.display()
    )
}

fn log_words(what: &str, dropped: DroppedLines, now: SystemTime) -> Option<String> {
    let last = dropped.last?;
    // A clock that was set back makes it look as if it came later: that is recent too.
    let age = now.duration_since(last).unwrap_or_default();
    (age < LOG_ALARM).then(|| {
        format!(
            "{} lines of {what} were dropped, the last at {}: whatever takes them is slow, gone or full",
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
        assert_eq!(log_words("the log", DroppedLines::default(), last), None);
        let words = log_words("the log", dropped, after(LOG_ALARM / 2)).expect("an alarm");
        assert!(
            words.starts_with("7 lines of the log were dropped"),
            "{words}"
        );
        assert_eq!(log_words("the log", dropped, after(LOG_ALARM)), None);
    }
}
