//! One test for each bypass, as a workload with root in its container would try it.
//!
//! [`table`] is the one list: the tests and the table of docs/security.md are made from
//! it (`cargo xtask docs`). Each test has an allowed twin, so that none can
//! pass by breaking the network, and a watcher at the other end of the node's
//! wire, which sees what left, whatever the kernel reported to the sender.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "tests panic"
)]

mod answers;
mod bench;
mod crafted;
mod forged;
mod moved;
mod networks;
mod own;
mod page;
mod raw;
mod sockets;
mod table;
mod turned;
