//! Kubernetes: the custom resources that policies are.
//!
//! A resource's spec is the spec of policy files, [`crate::policy::Spec`]; there is one schema for both. What the API
//! server refuses by itself is the structural form of that schema, what it cannot say is left to the compiler, whose
//! answer stands in the status.

mod check;
mod copy;
mod crd;
pub mod events;
mod follow;
mod known;
mod last_right;
mod lease;
mod request;
mod status;
mod structural;
mod view;
mod watch;

pub use check::{checked, compile_alone, policy_of};
pub use crd::{
    ClusterEgressPolicy, ClusterPolicySpec, EgressPolicy, PolicySpec, PolicyStatus, crds,
};
pub use last_right::LastRight;
pub use lease::LeaseTimes;
pub use status::{StatusSettings, run as write_status};
pub use view::{ClusterView, Labels, Pod, Policies, PolicyKey, PolicyObject};
pub use watch::{Feed, FeedError, Freshness, Settings, Started, start};
