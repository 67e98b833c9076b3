//! Verdicts of compiled policies, and their reasons, without a kernel.

mod diff;
mod error;
mod evaluate;
mod expectations;
mod nearest;

pub use diff::{Becomes, Difference, PolicyDiff, SettingDifference, diff};
pub use error::AskError;
pub use evaluate::telling;
pub use expectations::{Expectation, Expectations};
pub use nearest::{Near, Nearness};
