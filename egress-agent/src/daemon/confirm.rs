//! `run --confirm`: enforcing has to be confirmed in time, or the agent falls back to audit.
//!
//! Only the state is kept here; the switch is the ordinary one. Clocks are parameters.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use egress_common::verdict::Mode;

use super::time::now_ns;
use crate::api::{Timestamp, model::ConfirmationStatus};

/// A point in time on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// The time that counts: the kernel's clock, which goes on while the machine sleeps.
    pub(super) since_boot: Duration,
    /// The time that people read.
    pub(super) wall: SystemTime,
}

impl Moment {
    /// This moment.
    pub(super) fn now() -> Self {
        Self {
            since_boot: Duration::from_nanos(now_ns()),
            wall: SystemTime::now(),
        }
    }
}

/// The work that `confirm` has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing more: it came in time.
    Confirmed,
    /// The agent fell back: it has to enforce again, which has to be confirmed anew.
    EnforceAgain,
    /// Nobody waits for it.
    NotAwaited(&'static str),
}

/// The state of the confirmation.
#[derive(Debug)]
pub(super) struct Confirmation {
    /// How long it is awaited; none when it was not asked for.
    window: Option<Duration>,
    state: Mutex<State>,
    /// The end that the kernel was given; none before it was given any.
    told_ns: Mutex<Option<u64>>,
}

/// When enforcing is over, as far as the kernel is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// It goes on.
    Never,
    /// After this long, if nobody confirms.
    In(Duration),
    /// Already.
    Now,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// No policy has enforced yet.
    Idle,
    Awaited {
        deadline: Duration,
        until: Timestamp,
    },
    Confirmed {
        at: Timestamp,
    },
    FellBack {
        at: Timestamp,
        reason: &'static str,
    },
}

impl Confirmation {
    /// A confirmation that is awaited this long, once a policy enforces.
    pub(super) fn new(window: Option<Duration>) -> Self {
        Self {
            window,
            state: Mutex::new(State::Idle),
            told_ns: Mutex::new(None),
        }
    }

    /// How long a confirmation is awaited; none when it was not asked for.
    pub(super) fn window(&self) -> Option<Duration> {
        self.window
    }

    /// How long a confirmation will be awaited of the first policy that enforces, if none has yet.
    pub(super) fn to_come(&self) -> Option<Duration> {
        match *self.state() {
            State::Idle => self.window,
            State::Awaited { .. } | State::Confirmed { .. } | State::FellBack { .. } => None,
        }
    }

    /// When enforcing is over, as things stand now.
    pub(super) fn end_of_enforcing(&self, now: Moment) -> Over {
        match *self.state() {
            State::Idle | State::Confirmed { .. } => Over::Never,
            State::Awaited { deadline, .. } => {
                let left = deadline.saturating_sub(now.since_boot);
                if left.is_zero() {
                    Over::Now
                } else {
                    Over::In(left)
                }
            }
            State::FellBack { .. } => Over::Now,
        }
    }

    /// The end that the kernel was given.
    pub(super) fn told_ns(&self) -> Option<u64> {
        *self.told_ns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel was given this end.
    pub(super) fn told(&self, end_ns: u64) {
        *self.told_ns.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_ns);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A policy is in force: the time begins with the first that enforces.
    pub(super) fn in_force(&self, mode: Mode, now: Moment) {
        let Some(window) = self.window else {
            return;
        };
        let mut state = self.state();
        if let (State::Idle, Mode::Enforce) = (*state, mode) {
            *state = Self::awaited(window, now);
        }
    }

    fn awaited(window: Duration, now: Moment) -> State {
        let end = |time: Option<SystemTime>| time.unwrap_or(now.wall);
        State::Awaited {
            deadline: now.since_boot.saturating_add(window),
            until: Timestamp::from(end(now.wall.checked_add(window))),
        }
    }

    /// True if the time ends with this call. From then on the agent is to audit.
    pub(super) fn expire(&self, now: Moment) -> bool {
        let mut state = self.state();
        match *state {
            State::Awaited { deadline, .. } if deadline <= now.since_boot => {
                *state = State::FellBack {
                    at: Timestamp::from(now.wall),
                    reason: "it was not confirmed in time",
                };
                true
            }
            State::Idle
            | State::Awaited { .. }
            | State::Confirmed { .. }
            | State::FellBack { .. } => false,
        }
    }

    /// The agent ends: what is not confirmed now never will be. Says whether to fall back.
    pub(super) fn give_up(&self, now: Moment) -> bool {
        let mut state = self.state();
        let is_awaited = matches!(*state, State::Awaited { .. });
        if is_awaited {
            *state = State::FellBack {
                at: Timestamp::from(now.wall),
                reason: "the agent ended before it was confirmed",
            };
        }
        is_awaited
    }

    /// Somebody confirms.
    pub(super) fn confirm(&self, now: Moment) -> Answer {
        if self.window.is_none() {
            return Answer::NotAwaited("the agent was started without --confirm");
        }
        let mut state = self.state();
        match *state {
            State::Idle => Answer::NotAwaited("no policy has enforced yet"),
            State::Confirmed { .. } => Answer::NotAwaited("it was confirmed before"),
            // Too late: what upkeep would find at its next look.
            State::Awaited { deadline, .. } if deadline <= now.since_boot => Answer::EnforceAgain,
            State::Awaited { .. } => {
                *state = State::Confirmed {
                    at: Timestamp::from(now.wall),
                };
                Answer::Confirmed
            }
            State::FellBack { .. } => Answer::EnforceAgain,
        }
    }

    /// The agent enforces again after it fell back, if its policy does: the time begins anew.
    pub(super) fn enforced_again(&self, mode: Mode, now: Moment) {
        *self.state() = State::Idle;
        self.in_force(mode, now);
    }

    /// True if the agent fell back: it audits, whatever the policies say.
    pub(super) fn is_fallen_back(&self) -> bool {
        matches!(*self.state(), State::FellBack { .. })
    }

    /// The status that is shown; none without `--confirm`.
    pub(super) fn status(&self, now: Moment) -> Option<ConfirmationStatus> {
        self.window?;
        let status = match *self.state() {
            State::Idle => ConfirmationStatus {
                state: "idle".into(),
                ..ConfirmationStatus::default()
            },
            State::Awaited { deadline, until } => ConfirmationStatus {
                state: "awaited".into(),
                until: Some(until),
                remaining_s: Some(
                    deadline
                        .saturating_sub(now.since_boot)
                        .as_millis()
                        .div_ceil(1000)
                        .try_into()
                        .unwrap_or(u64::MAX),
                ),
                ..ConfirmationStatus::default()
            },
            State::Confirmed { at } => ConfirmationStatus {
                state: "confirmed".into(),
                at: Some(at),
                ..ConfirmationStatus::default()
            },
            State::FellBack { at, reason } => ConfirmationStatus {
                state: "fell_back".into(),
                at: Some(at),
                reason: Some(reason.to_owned()),
                ..ConfirmationStatus::default()
            },
        };
        Some(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    fn after(start: Moment, passed: Duration) -> Moment {
        Moment {
            since_boot: start.since_boot.saturating_add(passed),
            wall: start.wall.checked_add(passed).expect("in range"),
        }
    }

    fn state(confirmation: &Confirmation, now: Moment) -> String {
        confirmation.status(now).expect("asked for").state.into()
    }

    #[test]
    fn without_the_option_nothing_is_awaited() {
        let now = Moment::now();
        let confirmation = Confirmation::new(None);
        confirmation.in_force(Mode::Enforce, now);
        assert!(!confirmation.expire(after(now, WINDOW)));
        assert!(!confirmation.give_up(now));
        assert_eq!(confirmation.status(now), None);
        assert!(matches!(confirmation.confirm(now), Answer::NotAwaited(_)));
    }

    #[test]
    fn it_falls_back_at_the_end_of_the_window_and_not_before() {
        let start = Moment::now();
        let confirmation = Confirmation::new(Some(WINDOW));
        confirmation.in_force(Mode::Enforce, start);
        let last = after(start, WINDOW - Duration::from_millis(1));
        assert!(!confirmation.expire(last));
        assert_eq!(state(&confirmation, last), "awaited");
        let status = confirmation.status(last).expect("asked for");
        assert_eq!(status.remaining_s, Some(1));
        assert_eq!(
            status.until,
            Some(Timestamp::from(after(start, WINDOW).wall))
        );
        let end = after(start, WINDOW);
        assert!(confirmation.expire(end));
        assert!(!confirmation.expire(end), "once");
        assert!(confirmation.is_fallen_back());
        let status = confirmation.status(end).expect("asked for");
        assert_eq!(status.state, "fell_back");
        assert_eq!(status.at, Some(Timestamp::from(end.wall)));
        assert!(status.reason.expect("a reason").contains("in time"));
    }

    #[test]
    fn confirmed_it_stays_also_over_other_policies() {
        let start = Moment::now();
        let confirmation = Confirmation::new(Some(WINDOW));
        confirmation.in_force(Mode::Enforce, start);
        assert_eq!(confirmation.confirm(start), Answer::Confirmed);
        let late = after(start, 2 * WINDOW);
        confirmation.in_force(Mode::Audit, late);
        confirmation.in_force(Mode::Enforce, late);
        assert!(!confirmation.expire(late) && !confirmation.is_fallen_back());
        assert_eq!(state(&confirmation, late), "confirmed");
        assert!(matches!(confirmation.confirm(late), Answer::NotAwaited(_)));
        assert!(!confirmation.give_up(late));
    }

    #[test]
    fn a_reload_does_not_prolong_the_window() {
        let start = Moment::now();
        let confirmation = Confirmation::new(Some(WINDOW));
        confirmation.in_force(Mode::Enforce, start);
        confirmation.in_force(Mode::Enforce, after(start, WINDOW / 2));
        assert!(confirmation.expire(after(start, WINDOW)));
    }

    #[test]
    fn the_window_begins_with_the_first_policy_that_enforces() {
        let start = Moment::now();
        let confirmation = Confirmation::new(Some(WINDOW));
        confirmation.in_force(Mode::Audit, start);
        let later = after(start, 10 * WINDOW);
        assert!(!confirmation.expire(later));
        assert_eq!(state(&confirmation, later), "idle");
        assert!(matches!(confirmation.confirm(later), Answer::NotAwaited(_)));
        confirmation.in_force(Mode::Enforce, later);
        assert_eq!(state(&confirmation, later), "awaited");
    }

    #[test]
    fn after_a_fall_back_a_confirmation_enforces_on_probation() {
        let start = Moment::now();
        let confirmation = Confirmation::new(Some(WINDOW));
        confirmation.in_force(Mode::Enforce, start);
        let end = after(start, WINDOW);
        // Too late, although nobody has looked yet.
        assert_eq!(confirmation.confirm(end), Answer::EnforceAgain);
        assert!(confirmation.expire(end));
        assert_eq!(confirmation.confirm(end), Answer::EnforceAgain);
        assert!(confirmation.is_fallen_back(), "until the switch is done");
        confirmation.in_force(Mode::Audit, end);
        assert!(confirmation.is_fallen_back(), "a reload changes nothing");
        confirmation.enforced_again(Mode::Enforce, end);
        assert_eq!(state(&confirmation, end), "awaited");
        assert!(confirmation.expire(after(end, WINDOW)));
    }

    #[test]
    fn the_kernel_is_to_audit_from_the_deadline_on_and_never_once_confirmed() {
        let start = Moment::now();
        let confirmation = Confirmation::new(Some(WINDOW));
        assert_eq!(confirmation.to_come(), Some(WINDOW));
        assert_eq!(confirmation.end_of_enforcing(start), Over::Never);
        confirmation.in_force(Mode::Enforce, start);
        assert_eq!(confirmation.to_come(), None, "a reload gives no more time");
        let last = after(start, WINDOW - Duration::from_millis(1));
        let left = Over::In(Duration::from_millis(1));
        assert_eq!(confirmation.end_of_enforcing(last), left);
        let end = after(start, WINDOW);
        assert_eq!(confirmation.end_of_enforcing(end), Over::Now);
        assert!(confirmation.expire(end));
        assert_eq!(confirmation.end_of_enforcing(end), Over::Now);
        confirmation.enforced_again(Mode::Enforce, end);
        assert_eq!(confirmation.end_of_enforcing(end), Over::In(WINDOW));
        assert_eq!(confirmation.confirm(end), Answer::Confirmed);
        let late = after(end, 10 * WINDOW);
        assert_eq!(confirmation.end_of_enforcing(late), Over::Never);
    }

    #[test]
    fn an_end_before_the_confirmation_falls_back() {
        let start = Moment::now();
        let confirmation = Confirmation::new(Some(WINDOW));
        assert!(!confirmation.give_up(start), "nothing enforces yet");
        confirmation.in_force(Mode::Enforce, start);
        assert!(confirmation.give_up(start));
        assert!(confirmation.is_fallen_back());
    }
}
