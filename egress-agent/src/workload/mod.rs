//! What the node is: its cgroup hierarchy, addresses and resolvers.

mod cgroup;
mod node;

pub use cgroup::{CgroupPaths, cgroup_root};
pub use node::{own_addresses, search_domains, system_resolvers};
