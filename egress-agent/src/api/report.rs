//! Turns what the kernel counts and stores into what the socket serves. Pure.

mod cause;
mod counters;
mod explanation;
mod flow;
mod learned;
mod rule;

pub use cause::Cause;
pub use counters::{counters_report, lost};
pub use explanation::{AddressFacts, Elsewhere, ExplainFacts, explanation, rule_report};
pub use flow::{FlowContext, flow_report};
pub use learned::{LearnedContext, RuleTexts, learned_rows, sort_learned};
pub use rule::rule_text;
