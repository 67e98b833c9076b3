//! Finds programs of somebody else that change the address of calls, as load balancers at sockets do.
//!
//! Where none does, the programs need not note whom each socket asks (`egress-ebpf/src/ask.rs`), which costs a socket more
//! than its first packet. The kernel says which programs run for the cgroup; those at cgroups below it, which nobody has
//! seen yet, are not looked for: queries through one teach nothing.

use std::{collections::BTreeSet, fs::File, io, path::Path};

use aya::programs::Program;
use egress_common::verdict::Hook;
use tracing::info;

use super::{Datapath, attached::cgroup_attach_type, error::DatapathError, load::Loaded, sys};

/// The hooks at which addresses of calls can be changed: one for each kind.
const CALLS: [Hook; 4] = [
    Hook::AskConnect4,
    Hook::AskConnect6,
    Hook::AskSendmsg4,
    Hook::AskSendmsg6,
];

/// True if programs other than `own` run for the calls of a cgroup, or if the kernel does not say.
fn has_others(cgroup: &Path, own: &BTreeSet<u32>) -> bool {
    let look = || -> io::Result<bool> {
        let cgroup = File::open(cgroup)?;
        for kind in CALLS.into_iter().filter_map(cgroup_attach_type) {
            let found = sys::programs_for(&cgroup, kind)?;
            if found.iter().any(|id| !own.contains(id)) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    look().unwrap_or(true)
}

impl Loaded {
    /// The ids of this agent's programs.
    pub(super) fn program_ids(&self) -> BTreeSet<u32> {
        let programs = self.ebpf.programs();
        programs.filter_map(|(_, program)| id(program)).collect()
    }
}

fn id(program: &Program) -> Option<u32> {
    program.info().ok().map(|info| info.id())
}

impl Datapath {
    /// Tells the programs that nobody else changes the address of calls, if that is so.
    ///
    /// Only beside one command, whose cgroup nobody else knows: a balancer may come to a node at any time, and what is
    /// asked before an agent has noticed it would teach nothing.
    pub(super) fn begin_unbalanced(&mut self) -> Result<(), DatapathError> {
        if self.loaded.anchors.is_none() && !has_others(&self.loaded.options.cgroup, &self.programs)
        {
            self.maps.set_unbalanced(true)?;
        }
        Ok(())
    }

    /// Looks for programs of somebody else that may change the address of calls. Once there was one, it is noted whom
    /// sockets ask for as long as the maps live.
    ///
    /// # Errors
    ///
    /// The map cannot be read or written.
    pub fn look_for_balancers(&mut self) -> Result<(), DatapathError> {
        if !self.maps.is_unbalanced()? {
            return Ok(());
        }
        if has_others(&self.loaded.options.cgroup, &self.programs) {
            self.maps.set_unbalanced(false)?;
            info!(
                "programs of somebody else may change the address of calls: whom sockets ask is noted from now on"
            );
        }
        Ok(())
    }
}
