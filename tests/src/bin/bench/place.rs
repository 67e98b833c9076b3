//! The CPU that a process stays on.

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Where clients run, and the servers that answer them.
pub(crate) const CLIENT_CPU: usize = 0;
/// Where snooper and agent run.
pub(crate) const AGENT_CPU: usize = 1;

/// Keeps this process on a CPU; on a machine that does not have it, where it is.
pub(crate) fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}
