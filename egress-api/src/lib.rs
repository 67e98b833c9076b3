//! The interface of the agent's unix socket, HTTP and JSON, and its client.
//!
//! [`model`] holds the messages; [`Client`] asks. The server is in the agent. Nothing here knows the kernel, a policy
//! or a cluster.

pub mod client;
mod filter;
pub mod model;
pub mod socket;
mod timestamp;

pub use client::{Client, ClientError, Listing, Row};
pub use filter::{FlowFilter, LearnedFilter, LearnedQuery, PodFilter};
pub use timestamp::{NotATimestamp, Timestamp};
