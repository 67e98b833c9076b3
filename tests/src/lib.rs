//! Network-namespace worlds that drive the real agent.
//!
//! A [`World`] is three or four network namespaces joined by veth pairs: the
//! *node* whose processes are judged, *dns* with a real resolver, *web* with
//! allowed and forbidden servers, and on demand a *pod* whose packets the node
//! forwards. An [`Agent`] is the real binary, attached to a fresh cgroup of the
//! world; a [`Workload`] runs programs in a cgroup below that one. All of them
//! are guards: they remove all that they made when they are dropped, also by a
//! panic, and the next run removes the leftovers of a killed one.
//!
//! A [`Cluster`] is a real Kubernetes API server on loopback ports, without nodes.
//!
//! Nothing here touches the machine's own interfaces or its root cgroup, and
//! no packet leaves the namespaces.
//!
//! | environment | meaning |
//! | --- | --- |
//! | `EGRESS_AGENT` | the agent; default `target/release/egress-agent` |
//! | `EGRESS_PROBE` | the client and server program; default beside the tests |
//! | `EGRESS_KUBERNETES` | the folder with the API server; default `target/kubernetes/bin` |
//! | `EGRESS_TEST_QUICK` | fewer repetitions |
//! | `EGRESS_TEST_FLOOD_SECONDS` | length of the DNS flood; default 5 |
//! | `EGRESS_TEST_NAMES` | distinct names of the memory test; default 50,000 |
//! | `EGRESS_TEST_KEEP` | keep logs and generated files of failed tests |

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a fixture that is wrong about itself should panic (STYLE §10)"
)]

pub mod agent;
pub mod cgroup;
pub mod disk;
pub mod dns;
pub mod expect;
pub mod forge;
pub mod gate;
pub mod interrupt;
pub mod kubernetes;
pub mod leftovers;
pub mod link;
pub mod namespace;
pub mod own;
pub mod packets;
pub mod process;
pub mod programs;
pub mod report;
pub mod service_tags;
pub mod skip;
pub mod test_run;
pub mod workload;
pub mod world;
pub mod zone;

pub use agent::{Agent, AgentOptions, Confirmation, Counters, Learned, Status};
pub use gate::Gate;
pub use kubernetes::Cluster;
pub use skip::ready;
pub use workload::Workload;
pub use world::{Resolver, World};

use std::{
    thread,
    time::{Duration, Instant},
};

/// Asks until the answer is yes; false when `limit` has passed without one.
pub fn eventually(limit: Duration, mut question: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if question() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
