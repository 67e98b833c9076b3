//! Choices out of bytes, as egress-common's tests make them.

#[path = "../../../egress-common/tests/support/tape.rs"]
pub mod tape;
