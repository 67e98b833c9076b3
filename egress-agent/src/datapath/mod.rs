//! The kernel side as the agent sees it: load, attach, pin, write maps, read
//! rings. The only module that uses aya.

mod snapshot;

pub use snapshot::{AttachedHook, Counter, Counters, LearnedEntry, MapFill, RuleCounter};
