//! Flows that were seen, and the policy that would allow them (`policy learn`).
//!
//! An *observation* is what was seen of one destination, port and verdict in a
//! scope: how many flows, when first and last, and who sent them. The [`Table`]
//! holds them within bounds, the [`Store`] keeps them on disk, [`generate`] makes
//! a policy of them. What had to be left out is counted, as losses.

mod generate;
mod ports;
mod store;
mod table;

#[cfg(test)]
mod testing;

pub use generate::{GenerateOptions, Generated, generate, seen_since};
pub use store::{STORE_FILE, Store, Stored};
pub use table::{
    Change, DROPPED, Destination, Key, Packet, Table, TableLimits, is_a_matter_of_rules,
};
