//! DNS answers on the agent's side: no clock, no runtime, no kernel.
//!
//! The kernel learns by itself and sends a copy of every answer. [`Reassembly`]
//! puts copied TCP segments and parts of long messages together; [`Answer`] is
//! a whole message that was read with hickory-proto; [`learn`] is what
//! the kernel would have learned from it; [`Memory`] keeps what was resolved to
//! what, allowed or not, so that a denied address gets its name back; [`Refusals`]
//! keeps which answers taught nothing, and why.
//!
//! Times are nanoseconds of the clock since boot and always a parameter.

mod journal;
mod memory;
mod refusals;
mod slow;
mod stream;
#[cfg(test)]
#[path = "../../../egress-common/tests/support/mod.rs"]
mod support;

pub use journal::Journal;
pub use memory::{AliasChain, Memory, MemoryCounts, MemoryLimits, ScopeNumber, Seen, SeenName};
pub use refusals::{Refusal, RefusalKind, Refusals};
pub use slow::{
    ALIASES, Answer, ChainAddress, ChainName, Lesson, Receiver, SlowError, TaughtAlias, Teaching,
    asked_name, end_of, grants, is_left_to_the_agent, learn,
};
pub use stream::{Reassembly, StreamCounts, StreamLimits, WholeMessage};
