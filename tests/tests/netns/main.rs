//! The agent in network namespaces. Several of these tests run side by side: they mostly wait.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "tests panic"
)]

mod aliases;
mod attached;
mod audit;
mod bad_policies;
mod balanced;
mod cidrs;
mod confirm;
mod crash;
mod exec;
mod explain;
mod firewall_guide;
mod flow_log;
mod forged;
mod hello;
mod hellos;
mod inbound;
mod interfaces;
mod learn;
mod lifecycle;
mod log;
mod modes;
mod names;
mod node;
mod pod_interfaces;
mod policy_diff;
mod preexisting;
mod prog_run;
mod queries;
mod reload;
mod resolvers;
mod rig;
mod scopes;
mod scrape;
mod second_packet;
mod service_tags;
mod shares;
mod stars;
mod systemd;
mod transports;
mod tricks;
mod worlds;
