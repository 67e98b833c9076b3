//! The process behind a socket.
//!
//! Packets are sent in softirqs too, where the current task is anybody. So a socket's maker is noted when it makes it, where
//! the agent wants that (`exec`); a `connect()` knows its process anyway.
//! `bpf_get_current_pid_tgid` and `bpf_get_current_comm` are in both hooks from 5.7.

use aya_ebpf::{
    Global,
    bindings::__sk_buff,
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_get_socket_cookie},
    programs::SockContext,
};
use egress_common::event::Process;

use crate::maps::PROCESSES;

/// 1 when the makers of sockets are noted. Set by the agent before loading; the verifier then removes what is not wanted.
#[unsafe(no_mangle)]
static NOTE_PROCESSES: Global<u8> = Global::new(0);

/// The process that runs.
#[inline(always)]
pub fn current() -> Process {
    Process {
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        command: bpf_get_current_comm().unwrap_or_default(),
    }
}

/// Notes who makes a socket.
#[inline(always)]
pub fn note(ctx: &SockContext) {
    if NOTE_PROCESSES.load() == 0 {
        return;
    }
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock.cast()) };
    // The least recently used entry makes room: an event without a process is all that is lost.
    let _ = PROCESSES.insert(cookie, current(), 0);
}

/// The process that made a packet's socket.
#[inline(always)]
pub fn of_packet(raw: *mut __sk_buff) -> Process {
    if NOTE_PROCESSES.load() == 0 {
        return Process::UNKNOWN;
    }
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(raw.cast()) };
    // SAFETY: an entry is written before its socket sends, and not changed after that.
    match unsafe { PROCESSES.get(cookie) } {
        Some(process) => *process,
        None => Process::UNKNOWN,
    }
}
