//! Code that the property tests here and the fuzz runner (`tests/fuzz`) share: messages
//! made from a tape of bytes, and the comparison of the step machines with hickory-proto.
//!
//! A *tape* is where a generator takes its choices from: random bytes in the
//! fuzz runner, bytes that proptest can shrink in the property tests.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "test code: a panic is a finding; not every user needs every part"
)]

pub mod compare;
pub mod generate;
pub mod oracle;
pub mod tape;
