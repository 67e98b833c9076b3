//! The agent under load: tests that fill the machine or measure times, and run one at a time.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    clippy::wildcard_enum_match_arm,
    reason = "tests panic"
)]

mod expiry;
mod flood;
mod races;
mod readers;
mod scale;
mod upgrade;
