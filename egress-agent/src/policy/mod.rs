//! Policies: parse, validate, compile. Pure: no clock, no kernel, no runtime.

mod compiled;

pub use compiled::{Compiled, NamePattern, RuleList, RuleSource};
