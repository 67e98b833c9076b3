//! Turns what the kernel counts and stores into what the socket serves. Pure.

mod counters;
mod flow;
mod learned;
mod rule;

pub use counters::{counters_report, lost};
pub use flow::{FlowContext, flow_report};
pub use learned::{LearnedContext, learned_report};
pub use rule::rule_text;
