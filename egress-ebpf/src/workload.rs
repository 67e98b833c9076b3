//! Which workload a packet belongs to, by the cgroup of its socket.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_current_ancestor_cgroup_id, bpf_skb_ancestor_cgroup_id},
};
use egress_common::{
    maps::{Config, Keys, NO_LEVEL, NODE_CGROUP},
    policy::{Binding, Workload},
};

use crate::{
    maps::{CONFIG, KEYS, WORKLOADS},
    time::now_ns,
};

/// The configuration; `None` while the agent has written none.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0).filter(|config| config.layout_version != 0)
}

/// The random keys; `None` while the agent has written none.
#[inline(always)]
pub fn keys() -> Option<&'static Keys> {
    KEYS.get(0)
}

/// A random number from which hashes of names within one answer begin ([`egress_common::dns::NameReader::hash`]): no
/// identity, and neither it nor such a hash ever leaves the kernel.
#[inline(always)]
pub fn seed() -> u64 {
    match keys() {
        Some(keys) => keys.flow.k0,
        None => 0,
    }
}

/// The binding by which a workload is judged now: audit once its enforcing is over.
#[inline(always)]
pub fn binding(config: &Config, workload: &Workload) -> Binding {
    config.effective(workload.current, now_ns)
}

/// The workload bound at the deepest level, else the node.
#[inline(always)]
fn find(config: &Config, ancestor: impl Fn(i32) -> u64) -> Option<&'static Workload> {
    for level in config.levels {
        if level == NO_LEVEL {
            break;
        }
        // SAFETY: an entry is replaced as a whole and never changed in place.
        if let Some(workload) = unsafe { WORKLOADS.get(ancestor(level)) } {
            return Some(workload);
        }
    }
    node()
}

/// The node's own workload.
#[inline(always)]
pub fn node() -> Option<&'static Workload> {
    bound(NODE_CGROUP)
}

/// The workload of a packet's socket.
#[inline(always)]
pub fn of_skb(config: &Config, skb: *mut __sk_buff) -> Option<&'static Workload> {
    // SAFETY: the context is valid while the program runs.
    find(config, |level| unsafe {
        bpf_skb_ancestor_cgroup_id(skb, level)
    })
}

/// The cgroup by which a packet's socket is bound, if `is_known` does not tell it before that is looked up; [`NODE_CGROUP`]
/// for none.
#[inline(always)]
pub fn cgroup_of_skb(config: &Config, skb: *mut __sk_buff, is_known: impl Fn(u64) -> bool) -> u64 {
    for level in config.levels {
        if level == NO_LEVEL {
            break;
        }
        // SAFETY: the context is valid while the program runs.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(skb, level) };
        if is_known(id) || WORKLOADS.get_ptr(id).is_some() {
            return id;
        }
    }
    NODE_CGROUP
}

/// The workload that is bound by this cgroup.
#[inline(always)]
pub fn bound(cgroup_id: u64) -> Option<&'static Workload> {
    // SAFETY: an entry is replaced as a whole and never changed in place.
    unsafe { WORKLOADS.get(cgroup_id) }
}

/// The workload of the current task.
#[inline(always)]
pub fn of_current(config: &Config) -> Option<&'static Workload> {
    // SAFETY: the helper reads the current task only.
    find(config, |level| unsafe {
        bpf_get_current_ancestor_cgroup_id(level)
    })
}
