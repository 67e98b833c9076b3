//! The unix-socket service that the CLI and metrics use: HTTP and JSON.
//!
//! The daemon implements [`AgentState`]; [`serve`] answers requests from it.
//! [`Client`] is the other end, and what travels is in [`model`]: both in `egress-api`. How it is made
//! from the kernel's numbers in [`report`].
//!
//! | route | answer |
//! | --- | --- |
//! | `GET /v1/status` | [`model::Status`] |
//! | `GET /v1/counters` | [`model::CountersReport`] |
//! | `GET /v1/learned?query=&namespace=&pod=` | list of [`model::LearnedAddress`], in the kernel's order |
//! | `GET /v1/flows?denied=&limit=&namespace=&pod=` | list of [`model::FlowReport`], oldest first |
//! | `GET /v1/flows/follow?denied=` | [`model::FollowLine`], one line of JSON each, until the client leaves |
//! | `GET /v1/explain?to=&from=` | [`model::Explanation`] |
//! | `GET /v1/observations` | [`model::Observations`] |
//! | `POST /v1/confirm` | [`model::ConfirmationStatus`]; 409 when none is awaited |
//! | `GET /metrics` | Prometheus text |
//!
//! `GET /metrics` is also answered over TCP, where `--listen` says so ([`Scrape`]).
//!
//! An error is a status of 400, 409, 500 or 503 with `{"error": "…"}`. An answer closes its connection. Lists have a row
//! on each line and are sent in pieces, so that they cost the agent no memory; one that cannot be completed breaks off.
//! Status, counters, confirm and metrics are answered whoever else reads what; of those who read lists, follow verdicts or
//! have other questions, so many are served at a time, and 503 says that there is no place ([`seats`]).

mod convert;
mod follow;
mod list;
mod listener;
mod peer;
mod recent;
pub mod report;
mod scrape;
mod seats;
mod service;
mod state;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use egress_api::{
    Client, ClientError, FlowFilter, LearnedFilter, LearnedQuery, Listing, PodFilter, Row,
    Timestamp, client, model,
};
pub use listener::{ApiListener, Holder, ListenError};
pub use recent::{RECENT_FLOWS, RecentFlows};
pub use scrape::{Scrape, ScrapeError, ScrapeOptions};
pub use service::{ServiceError, serve};
pub use state::{AgentState, BadQuestion, ExplainQuery, NotAwaited, Rows};
