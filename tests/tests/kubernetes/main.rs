//! The agent and what is in `deploy/` at a real Kubernetes API server.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests panic"
)]

mod account;
mod chart;
mod crds;
mod deploy;
mod load;
mod outage;
mod pods;
mod status;
mod support;
mod watch;
