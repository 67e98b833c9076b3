//! The unix-socket service that the CLI and metrics use: HTTP and JSON.
//!
//! The daemon implements [`AgentState`]; [`serve`] answers requests from it.
//! [`Client`] is the other end. What travels is in [`model`], how it is made
//! from the kernel's numbers in [`report`].
//!
//! | route | answer |
//! | --- | --- |
//! | `GET /v1/status` | [`model::Status`] |
//! | `GET /v1/counters` | [`model::CountersReport`] |
//! | `GET /v1/learned?query=` | [`model::LearnedReport`] |
//! | `GET /v1/flows?denied=&limit=` | list of [`model::FlowReport`], oldest first |
//! | `GET /v1/flows/follow?denied=` | [`model::FollowLine`], one line of JSON each, until the client leaves |
//! | `GET /v1/explain?to=&from=` | [`model::Explanation`] |
//! | `GET /v1/observations` | [`model::Observations`] |
//! | `POST /v1/confirm` | [`model::ConfirmationStatus`]; 409 when none is awaited |
//! | `GET /metrics` | Prometheus text |
//!
//! An error is a status of 400, 409 or 500 with `{"error": "…"}`. An answer closes its connection; of clients that are
//! many or slow, some lose theirs.

pub mod client;
mod follow;
mod listener;
pub mod model;
mod peer;
mod recent;
pub mod report;
mod service;
mod state;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod timestamp;

pub use client::{Client, ClientError};
pub use listener::{ApiListener, Holder, ListenError};
pub use recent::{RECENT_FLOWS, RecentFlows};
pub use service::{ServiceError, serve};
pub use state::{
    AgentState, BadQuestion, ExplainQuery, FlowFilter, LearnedQuery, NotAwaited, PodFilter,
};
pub use timestamp::Timestamp;
