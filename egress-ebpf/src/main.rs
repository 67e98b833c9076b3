//! The kernel programs: hooks and maps, thin.
//!
//! An entry function reads, decides, records, returns. What is decided is in
//! `egress_common::decision`, what is parsed in `egress_common`.
//!
//! | program | attached to | minimum kernel |
//! | --- | --- | --- |
//! | `connect4`, `connect6` | cgroup, `BPF_CGROUP_INET4_CONNECT`, `BPF_CGROUP_INET6_CONNECT` | 5.10 |
//! | `ask_connect4`, `ask_connect6` | the same, before programs of others where the kernel orders them | 5.10; 6.17 |
//! | `ask_sendmsg4`, `ask_sendmsg6` | cgroup, `BPF_CGROUP_UDP4_SENDMSG`, `BPF_CGROUP_UDP6_SENDMSG`; likewise | 5.10; 6.17 |
//! | `skb_egress`, `skb_ingress` | cgroup, `BPF_CGROUP_INET_EGRESS`, `BPF_CGROUP_INET_INGRESS` | 5.10 |
//! | `sock_create` | cgroup, `BPF_CGROUP_INET_SOCK_CREATE` | 5.10 |
//! | `tc_egress`, `tc_ingress` | interface, TCX (6.6) or clsact | 5.10 |
//! | `learn`, `aliases`, `sweep`, `own_netns` | nothing: the agent runs them | 5.10 |

#![no_std]
#![no_main]
// Two uses: an atomic add, which the target's `core` lacks, and keeping a bound check from being folded away.
#![feature(asm_experimental_arch)]
#![expect(
    unsafe_code,
    reason = "contexts, maps and helpers of the kernel are reached no other way"
)]
#![expect(
    unreachable_pub,
    reason = "nothing is reachable in a program; `pub` is what other modules may use"
)]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a field is named through a pointer and then read: one step, one reason"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes known when it is compiled, and parts of numbers that were packed"
)]
#![expect(
    clippy::arithmetic_side_effects,
    reason = "offsets and codes far from an end; what may wrap says so"
)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is handed over is copied, and a stack has 512 bytes"
)]

mod agent;
mod alias;
mod ask;
mod connect;
mod create;
mod dns;
mod egress;
mod fast;
mod hello;
mod ingress;
mod learn;
mod lookup;
mod maps;
mod netns;
mod process;
mod query;
mod record;
mod resolver;
mod scratch;
mod seen;
mod skb;
mod source;
mod state;
mod stream;
mod tc;
mod time;
mod udp;
mod workload;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, classifier},
    programs::{SkBuffContext, SockAddrContext, SockContext, TcContext},
};
use egress_common::verdict::Verdict;

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    connect::connect4(&ctx).cgroup_code()
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    connect::connect6(&ctx).cgroup_code()
}

#[cgroup_sock_addr(connect4)]
fn ask_connect4(ctx: SockAddrContext) -> i32 {
    ask::ask4(&ctx).cgroup_code()
}

#[cgroup_sock_addr(connect6)]
fn ask_connect6(ctx: SockAddrContext) -> i32 {
    ask::ask6(&ctx).cgroup_code()
}

#[cgroup_sock_addr(sendmsg4)]
fn ask_sendmsg4(ctx: SockAddrContext) -> i32 {
    ask::ask_send4(&ctx).cgroup_code()
}

#[cgroup_sock_addr(sendmsg6)]
fn ask_sendmsg6(ctx: SockAddrContext) -> i32 {
    ask::ask_send6(&ctx).cgroup_code()
}

#[cgroup_sock(sock_create)]
fn sock_create(ctx: SockContext) -> i32 {
    create::sock_create(&ctx);
    Verdict::Allow.cgroup_code()
}

#[cgroup_skb(egress)]
fn skb_egress(ctx: SkBuffContext) -> i32 {
    egress::skb_egress(&ctx)
}

#[cgroup_skb(ingress)]
fn skb_ingress(ctx: SkBuffContext) -> i32 {
    ingress::skb_ingress(&ctx).cgroup_code()
}

#[classifier]
fn tc_egress(ctx: TcContext) -> i32 {
    tc::tc_egress(&ctx).tc_code()
}

#[classifier]
fn tc_ingress(ctx: TcContext) -> i32 {
    tc::tc_ingress(&ctx);
    Verdict::Allow.tc_code()
}

#[classifier]
fn learn(ctx: TcContext) -> i32 {
    agent::learn(&ctx)
}

#[classifier]
fn own_netns(ctx: TcContext) -> i32 {
    agent::own_netns(&ctx)
}

#[classifier]
fn sweep(ctx: TcContext) -> i32 {
    agent::sweep(&ctx)
}

#[classifier]
fn aliases(ctx: TcContext) -> i32 {
    agent::aliases(&ctx)
}

/// Loops, so that a panic that can be reached fails at load.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// GPL-compatible, as the helpers want it (kernel/module/main.c, `license_is_gpl_compatible`).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
