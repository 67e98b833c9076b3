//! The node: its cgroup hierarchy, pods, addresses and resolvers.

mod cgroup;
mod interfaces;
mod node;
mod node_watch;
mod path_watch;
mod pod_cgroup;
mod pod_tree;
mod resolver;

pub use cgroup::{CgroupPaths, cgroup_root};
pub use interfaces::{Interfaces, PodInterface};
pub use node::{LocalCache, RESOLV_CONF, RESOLVED_CONF, ResolvConf, local_caches, own_addresses};
pub use node_watch::{AddressWatch, FileEvents, FileWatch};
pub use path_watch::PathWatch;
pub use pod_cgroup::{Place, PodCgroup, PodUid, Qos, kubepods_above};
pub use pod_tree::{PodEvent, PodTree, PodTreeError};
pub use resolver::{parse_resolver, resolver_text};
