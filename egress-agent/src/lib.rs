//! The agent: compiles policies into kernel maps, learns what the kernel could
//! not, remembers what was resolved, and serves the CLI.

pub mod api;
pub mod cli;
pub mod daemon;
pub mod datapath;
pub mod dns;
pub mod exec;
pub mod flow_log;
#[cfg(test)]
#[path = "../../egress-policy/src/golden.rs"]
mod golden;
pub mod kube;
pub mod log_queue;
pub mod metrics;
pub mod observed;
pub mod settings;
pub mod shutdown;
pub mod signals;
pub mod store;
pub mod workload;

pub use egress_policy as policy;
