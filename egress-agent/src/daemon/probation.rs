//! The end of enforcing that the kernel itself keeps to: `run --confirm` has to hold whatever becomes of the agent.
//!
//! Before a policy enforces on probation, `CONFIG` gets the moment from which on what enforces audits. A confirmation takes
//! it away, a fall back brings it forward. An agent that is killed, stopped or hung changes nothing about it.

use std::time::Duration;

use super::{
    confirm::{Moment, Over},
    shared::Shared,
    time::now_ns,
};

/// Enforcing ends never.
const NEVER_NS: u64 = 0;
/// Enforcing is over: any moment that has passed.
const OVER_NS: u64 = 1;

impl Shared {
    /// Gives the kernel an end before anything enforces on probation: an agent that is killed on its way leaves no more
    /// than that. Returns the end that it had, for [`Self::undo_probation`]; none where nothing was changed.
    ///
    /// # Errors
    ///
    /// The kernel refuses, and nothing may be switched to.
    pub(super) fn begin_probation(&self, window: Option<Duration>) -> anyhow::Result<Option<u64>> {
        let Some(window) = window else {
            return Ok(None);
        };
        let before_ns = self.datapath().enforce_until()?;
        self.set_enforce_until(after(window))?;
        Ok(Some(before_ns))
    }

    /// Nothing was switched to: enforcing ends when it did before.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn undo_probation(&self, before_ns: Option<u64>) -> anyhow::Result<()> {
        before_ns.map_or(Ok(()), |end_ns| self.set_enforce_until(end_ns))
    }

    /// Makes the kernel's end what follows from the confirmation. Nothing is written where it is that already.
    ///
    /// # Errors
    ///
    /// The kernel refuses; its end is what it was.
    pub(super) fn settle_probation(&self) -> anyhow::Result<()> {
        let end_ns = match self.confirmation.end_of_enforcing(Moment::now()) {
            Over::Never => NEVER_NS,
            Over::In(left) => after(left),
            Over::Now => OVER_NS,
        };
        let told_ns = self.confirmation.told_ns();
        // The two clocks are not read at once: what differs by less is the same end.
        let is_same = match (told_ns, end_ns) {
            (Some(told_ns), end_ns) if told_ns > OVER_NS && end_ns > OVER_NS => {
                told_ns.abs_diff(end_ns) < SAME_NS
            }
            (told_ns, end_ns) => told_ns == Some(end_ns),
        };
        if is_same {
            return Ok(());
        }
        self.set_enforce_until(end_ns)
    }

    fn set_enforce_until(&self, end_ns: u64) -> anyhow::Result<()> {
        self.datapath().set_enforce_until(end_ns)?;
        self.confirmation.told(end_ns);
        Ok(())
    }

    /// True if the kernel audits what enforces at this moment, by the end that this agent has given it.
    pub(super) fn is_enforcing_over(&self, at_ns: u64) -> bool {
        let told_ns = self.confirmation.told_ns();
        told_ns.is_some_and(|end_ns| end_ns != NEVER_NS && end_ns <= at_ns)
    }
}

/// Ends that differ by less are one.
const SAME_NS: u64 = 10_000_000;

/// The moment of the kernel's clock this long after now.
fn after(left: Duration) -> u64 {
    let left_ns = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
    now_ns().saturating_add(left_ns)
}
