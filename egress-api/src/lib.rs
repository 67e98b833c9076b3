//! What is said over the agent's unix socket, and the end that asks: HTTP and JSON.
//!
//! What travels is in [`model`]; [`Client`] asks. The other end is in the agent. Nothing here knows the kernel, a
//! policy or a cluster.

pub mod client;
mod filter;
pub mod model;
pub mod socket;
mod timestamp;

pub use client::{Client, ClientError, Listing, Row};
pub use filter::{FlowFilter, LearnedFilter, LearnedQuery, PodFilter};
pub use timestamp::{NotATimestamp, Timestamp};
