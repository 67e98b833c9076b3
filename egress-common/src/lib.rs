//! Types, parsers and the decision that the kernel programs and the agent share.
//!
//! Everything here is compiled twice: for bpf, where `egress-ebpf` drives it
//! from hooks, and for the host, where tests, `policy check` and the agent use
//! it. Nothing here does I/O or allocates.
//!
//! Words: a *flow* is protocol, addresses and ports plus the workload that
//! sends; a *scope* is the pod, or the node's processes, that profit from a
//! lookup; an address is *learned* when a DNS answer for an allowed name
//! returned it; a *grant* is one port range of a learned address with its own end.
//!
//! Addresses are always 16 bytes in network order, IPv4 stored v4-mapped
//! (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2). Times are nanoseconds of
//! `CLOCK_BOOTTIME`, the clock of `bpf_ktime_get_boot_ns`: it goes on while the machine sleeps.

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(test)]
extern crate std;

pub mod address;
pub mod asked;
pub mod barrier;
pub mod decision;
pub mod dns;
pub mod event;
pub mod flow;
pub mod hash;
pub mod hello;
pub mod learned;
pub mod maps;
pub mod name;
pub mod origin;
pub mod packed;
pub mod packet;
pub mod policy;
pub mod query;
pub mod stream;
pub mod tally;
pub mod verdict;
