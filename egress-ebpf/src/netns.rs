//! The network namespace of a socket: what was taught in one counts in no other.
//!
//! A namespace is known by its cookie, which counts up from boot and is never given twice
//! (`net->net_cookie`, net/core/net_namespace.c). It is read from the socket itself, so that it is right for
//! every socket, whoever made it and when. As a number of 32 bits: a machine that has made more namespaces than that
//! knows none of the later ones, which then neither teach nor profit.
//!
//! `bpf_get_netns_cookie` does it where the hook has it: `sock_create` and `connect4/6` from 5.7, packets from 6.15.
//! For packets on older kernels the socket's pointer to its namespace, and the cookie there, are read as memory,
//! at offsets that the agent takes from the kernel's own type information (BTF) before it loads the programs.
//!
//! Before 5.12 a namespace has a cookie only after somebody asked for it (`net_gen_cookie`), and packets of one that
//! nobody asked for would count nowhere: a server older than the programs could not answer. There its number is
//! `net->hash_mix`, 32 random bits that the kernel draws when it makes the namespace (`setup_net`) and never shows. A
//! process that wants the number of another namespace has to make some four thousand million, a hundred or so a second.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_netns_cookie, bpf_probe_read_kernel},
    programs::SockAddrContext,
};
use egress_common::maps::Config;

use crate::workload;

/// 1 when packet programs have `bpf_get_netns_cookie` (6.15). Set by the agent before loading.
#[unsafe(no_mangle)]
static NETNS_HELPER: Global<u8> = Global::new(0);

/// Offset of `sk_net` in `struct sock`, bytes; 0 when it is not known. Set by the agent before loading.
#[unsafe(no_mangle)]
static SOCK_NET_AT: Global<u32> = Global::new(0);

/// Offset of `net_cookie` in `struct net`, bytes. Set by the agent before loading.
#[unsafe(no_mangle)]
static NET_COOKIE_AT: Global<u32> = Global::new(0);

/// Offset of `hash_mix` in `struct net`, bytes; 0 where every namespace has a cookie from its birth (5.12). Set by the
/// agent before loading.
#[unsafe(no_mangle)]
static NET_MIX_AT: Global<u32> = Global::new(0);

/// Offset of the byte with `sk_kern_sock` in `struct sock`; 0 when it is not known. Set by the agent before loading.
#[unsafe(no_mangle)]
static KERN_SOCK_AT: Global<u32> = Global::new(0);

/// Its bit in that byte, from the lowest. Set by the agent before loading.
#[unsafe(no_mangle)]
static KERN_SOCK_BIT: Global<u32> = Global::new(0);

/// Not known: teaches nothing and profits from nothing.
pub const UNKNOWN: u32 = 0;

/// The namespace of a packet's socket; [`UNKNOWN`] without one.
#[inline(always)]
pub fn of_packet(raw: *mut __sk_buff) -> u32 {
    netns_of_packet(raw)
}

/// Stands for the node's own namespace where that has no number. No namespace
/// gets this one: it would be the last of four thousand million.
const NODE: u32 = u32::MAX;

/// The namespace that a packet counts for at an interface: without a socket it is forwarded, through the node's own.
#[inline(always)]
pub fn of_frame(raw: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*raw).__bindgen_anon_2.sk };
    if !sk.is_null() {
        return of_packet(raw);
    }
    match workload::config() {
        Some(config) if config.node_netns != UNKNOWN => config.node_netns,
        _ => NODE,
    }
}

/// [`of_packet`], verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netns_of_packet(raw: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*raw).__bindgen_anon_2.sk };
    if sk.is_null() {
        return UNKNOWN;
    }
    if NETNS_HELPER.load() != 0 {
        // SAFETY: the helper reads the packet's socket, which is not null.
        return number(unsafe { bpf_get_netns_cookie(raw.cast()) });
    }
    read(sk)
}

/// The namespace of a socket by its memory: a branch that the verifier removes where the helper is.
#[inline(always)]
fn read(sk: *mut bpf_sock) -> u32 {
    let (sock_net_at, net_mix_at) = (SOCK_NET_AT.load(), NET_MIX_AT.load());
    if sock_net_at == 0 {
        return UNKNOWN;
    }
    let Some(net) = field(sk, sock_net_at) else {
        return UNKNOWN;
    };
    if net_mix_at != 0 {
        return match word(net.wrapping_add(u64::from(net_mix_at))) {
            Some(mix) => mix as u32,
            None => UNKNOWN,
        };
    }
    match word(net.wrapping_add(u64::from(NET_COOKIE_AT.load()))) {
        Some(cookie) => number(cookie),
        None => UNKNOWN,
    }
}

/// 1 if the kernel made a packet's socket for itself, as it does the raw sockets by which it answers
/// (`inet_ctl_sock_create`, net/ipv4/af_inet.c): read from the socket (`sk_kern_sock`), so that it is right for sockets
/// older than the programs, too. 0 where the kernel does not say where it keeps that. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_kernel_socket(raw: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*raw).__bindgen_anon_2.sk };
    let at = KERN_SOCK_AT.load();
    if sk.is_null() || at == 0 {
        return 0;
    }
    match field(sk, at) {
        Some(byte) => (byte >> (KERN_SOCK_BIT.load() & 7) & 1) as u32,
        None => 0,
    }
}

/// True if a sender is in another network namespace than the node; false where either is not known.
#[inline(always)]
pub fn is_outside(config: &Config, netns: u32) -> bool {
    netns != UNKNOWN && config.node_netns != UNKNOWN && netns != config.node_netns
}

/// Eight bytes of a socket.
#[inline(always)]
fn field(sk: *mut bpf_sock, at: u32) -> Option<u64> {
    // The verifier forbids arithmetic on the pointer to a socket. Copied as bytes it is a number.
    let sock = word((&raw const sk) as u64)?;
    word(sock.wrapping_add(u64::from(at)))
}

/// Eight bytes of kernel memory; `None` where there is none.
#[inline(always)]
fn word(at: u64) -> Option<u64> {
    let mut word = 0_u64;
    // SAFETY: the buffer has eight bytes; the helper refuses a source that is not mapped.
    let error = unsafe {
        bpf_probe_read_kernel(
            (&raw mut word).cast::<c_void>(),
            size_of::<u64>() as u32,
            at as *const c_void,
        )
    };
    if error == 0 { Some(word) } else { None }
}

/// The namespace of a socket that is connected.
#[inline(always)]
pub fn of_connect(ctx: &SockAddrContext) -> u32 {
    if NET_MIX_AT.load() != 0 {
        // SAFETY: the context is valid while the program runs.
        return read(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk });
    }
    // SAFETY: as above.
    number(unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) })
}

#[inline(always)]
fn number(cookie: u64) -> u32 {
    if cookie >> 32 == 0 {
        cookie as u32
    } else {
        UNKNOWN
    }
}
