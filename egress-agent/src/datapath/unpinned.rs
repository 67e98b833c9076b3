//! Programs for one cgroup, with nothing pinned: they end with the processes that hold their links.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya knows some thirty kinds of programs; all but three are an error here"
)]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    panic::resume_unwind,
    thread,
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSkbAttachType, Program},
};
use egress_common::verdict::Hook;

use super::{
    attached::{cgroup_attach_type, comes_first},
    error::{DatapathError, io_error},
    load::{KernelFacts, Loaded, OBJECT, Options, program_of, verify},
    sys,
};

/// The hooks of a cgroup, in the order in which they are attached: those that learn, then packets, then connects.
const HOOKS: [Hook; 9] = [
    Hook::SockCreate,
    Hook::AskConnect4,
    Hook::AskConnect6,
    Hook::AskSendmsg4,
    Hook::AskSendmsg6,
    Hook::SkbIngress,
    Hook::SkbEgress,
    Hook::Connect4,
    Hook::Connect6,
];

/// Loads what a cgroup needs. Interfaces are not judged, so the tc programs stay away.
pub(super) fn load(options: Options) -> Result<Loaded, DatapathError> {
    if OBJECT.is_empty() {
        return Err(DatapathError::NoObject);
    }
    let mut facts = KernelFacts::of_this_kernel()?;
    facts.note_processes = 1;
    let mut ebpf = facts
        .loader(&options)
        .load(OBJECT)
        .map_err(DatapathError::Load)?;
    verify_all(&mut ebpf)?;
    Ok(Loaded {
        ebpf,
        options,
        anchors: None,
        is_adopted: false,
        foreign: Vec::new(),
        links: Vec::new(),
        has_older_flows: false,
    })
}

/// Lets the kernel verify the programs, all at once: that is most of what a start takes.
fn verify_all(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let mut names = HOOKS.map(Hook::name).to_vec();
    names.extend(["learn", "sweep", "own_netns"]);
    let programs: Vec<(&'static str, &mut Program)> = ebpf
        .programs_mut()
        .filter_map(|(found, program)| {
            let name = names.iter().find(|name| **name == found)?;
            Some((*name, program))
        })
        .collect();
    if let Some(name) = names
        .iter()
        .find(|name| programs.iter().all(|(found, _)| found != *name))
    {
        return Err(DatapathError::Missing {
            what: "program",
            name,
        });
    }
    thread::scope(|scope| {
        let verifying: Vec<_> = programs
            .into_iter()
            .map(|(name, program)| scope.spawn(move || verify(program, name)))
            .collect();
        let results = verifying.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        });
        // All of them are waited for.
        let results: Vec<_> = results.collect();
        results.into_iter().collect()
    })
}

impl Loaded {
    /// Attaches the hooks; aya holds the links as long as the programs.
    pub(super) fn attach_unpinned(&mut self) -> Result<(), DatapathError> {
        let cgroup = &self.options.cgroup;
        let target = cgroup.display().to_string();
        for hook in HOOKS {
            let name = hook.name();
            let directory = File::open(cgroup).map_err(io_error("open", cgroup))?;
            // The kernel wants flags 0 for links; several links still coexist.
            let mode = CgroupAttachMode::Single;
            if comes_first(hook) {
                let program = program_of(&mut self.ebpf, name)?;
                let failed = |source| DatapathError::Attach {
                    program: name,
                    target: target.clone(),
                    source,
                };
                let fd = program.fd().map_err(|source| DatapathError::Program {
                    program: name,
                    source,
                })?;
                let link = create_first(fd, &directory, hook).map_err(failed)?;
                self.links.push(link);
                continue;
            }
            let attached = match program_of(&mut self.ebpf, name)? {
                Program::CgroupSkb(program) => {
                    let kind = if hook == Hook::SkbEgress {
                        CgroupSkbAttachType::Egress
                    } else {
                        CgroupSkbAttachType::Ingress
                    };
                    program.attach(directory, kind, mode).map(|_link| ())
                }
                Program::CgroupSockAddr(program) => program.attach(directory, mode).map(|_link| ()),
                Program::CgroupSock(program) => program.attach(directory, mode).map(|_link| ()),
                _ => {
                    return Err(DatapathError::Missing {
                        what: "program",
                        name,
                    });
                }
            };
            attached.map_err(|source| DatapathError::Attach {
                program: name,
                target: target.clone(),
                source: io::Error::other(source),
            })?;
        }
        Ok(())
    }
}

/// Attaches a hook that comes before those of others.
fn create_first(program: &impl AsFd, cgroup: &File, hook: Hook) -> io::Result<OwnedFd> {
    let target = u32::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    let attach_type = cgroup_attach_type(hook).ok_or(io::ErrorKind::InvalidInput)?;
    sys::create_first_link(program, target, attach_type)
}
