//! Assertions on attempts, and the text of policies.

use std::net::IpAddr;

use crate::{agent::Counters, report::Attempt};

/// A policy with this text as its `spec`; every line is indented once more.
#[must_use]
pub fn policy(spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: egress.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{ name: test }}\nspec:\n{spec}"
    )
}

/// It got through, there and back.
///
/// # Panics
///
/// If not.
#[track_caller]
pub fn reached(attempt: &Attempt) {
    assert!(attempt.ok, "should have got through: {attempt:?}");
}

/// The kernel refused it at once.
///
/// # Panics
///
/// If not.
#[track_caller]
pub fn refused(attempt: &Attempt) {
    assert!(
        attempt.is_refused(),
        "should have been refused with EPERM: {attempt:?}"
    );
}

/// A verdict was counted for this reason.
///
/// # Panics
///
/// If not.
#[track_caller]
pub fn counted(counters: &Counters, reason: &str) {
    assert!(
        counters.reason(reason) > 0,
        "nothing was counted as {reason}: {:?}",
        counters.by_reason
    );
}

/// A DNS counter moved.
///
/// # Panics
///
/// If not.
#[track_caller]
pub fn tallied(counters: &Counters, tally: &str) {
    assert!(
        counters.dns(tally) > 0,
        "nothing was counted as {tally}: {:?}",
        counters.dns
    );
}

/// An address from its text.
///
/// # Panics
///
/// If it is none.
#[must_use]
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
