//! Questions that the service asks the daemon.

use std::sync::Arc;

use tokio::sync::broadcast;

use super::{
    FlowFilter, LearnedFilter,
    model::{
        ConfirmationStatus, CountersReport, Explanation, FlowReport, LearnedAddress, Observations,
        Status,
    },
};
use crate::policy::Destination;

/// Rows of a long answer, some at a time: what has gone out is not kept.
pub type Rows<T> = Box<dyn Iterator<Item = anyhow::Result<Vec<T>>> + Send>;

/// The daemon as the service sees it.
///
/// Calls read kernel maps and may take milliseconds: the service makes them on
/// threads for blocking work.
pub trait AgentState: Send + Sync + 'static {
    /// Everything that is attached, loaded, filled and lost.
    ///
    /// # Errors
    ///
    /// The kernel's maps cannot be read.
    fn status(&self) -> anyhow::Result<Status>;

    /// The counters.
    ///
    /// # Errors
    ///
    /// The kernel's maps cannot be read.
    fn counters(&self) -> anyhow::Result<CountersReport>;

    /// Live learned addresses, in the kernel's order.
    ///
    /// # Errors
    ///
    /// The kernel's maps cannot be read; the rows may end with that, too.
    fn learned(self: Arc<Self>, filter: LearnedFilter) -> anyhow::Result<Rows<LearnedAddress>>;

    /// Verdicts lately reported by the kernel, oldest first: [`super::RecentFlows::recent`].
    ///
    /// # Errors
    ///
    /// None that the ring itself has.
    fn recent_flows(&self, filter: FlowFilter) -> anyhow::Result<Vec<Arc<FlowReport>>>;

    /// Explains what the kernel decides about a destination.
    ///
    /// # Errors
    ///
    /// [`BadQuestion`]; or the kernel's maps cannot be read.
    fn explain(&self, query: &ExplainQuery) -> anyhow::Result<Explanation>;

    /// Flows that were seen, as far as they are kept.
    ///
    /// # Errors
    ///
    /// None that keeping it has.
    fn observations(&self) -> anyhow::Result<Observations>;

    /// Confirms that enforcing left the node reachable.
    ///
    /// # Errors
    ///
    /// [`NotAwaited`]; or, after a fall back, the policy cannot be switched to.
    fn confirm(&self) -> anyhow::Result<ConfirmationStatus>;

    /// Verdicts from now on.
    fn subscribe(&self) -> broadcast::Receiver<Arc<FlowReport>>;
}

/// A confirmation that nobody waits for, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no confirmation is awaited: {0}")]
pub struct NotAwaited(pub &'static str);

/// A question that names what is not there, with what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadQuestion(pub String);

/// A question for an explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainQuery {
    /// Where to.
    pub destination: Destination,
    /// From where: name of a scope, or path of a cgroup; none for the node.
    pub from: Option<String>,
}
