//! `connect()` of stream sockets: a courtesy, so that a denied connect fails at
//! once with EPERM instead of waiting for a SYN that is never answered.
//!
//! Datagram sockets are let through: their first packet gets EPERM anyway, and
//! resolvers connect such sockets only to learn a source address (RFC 6724).

use aya_ebpf::{helpers::bpf_get_current_cgroup_id, programs::SockAddrContext};
use aya_log_ebpf::debug;
use egress_common::{
    address::{Address, from_v4},
    decision::Decision,
    flow::{Flow, Origin},
    policy::protocol,
    verdict::{Hook, Reason, Verdict},
};

use crate::{
    egress::UNCONFIGURED,
    lookup::{Start, judge},
    record,
    skb::address_of_words,
    workload,
};

/// `SOCK_STREAM`, include/linux/net.h.
const SOCK_STREAM: u32 = 1;
/// `IPPROTO_MPTCP`, include/uapi/linux/in.h. Its subflows are TCP.
const MPTCP: u32 = 262;

/// Judges a connect to an IPv4 address.
#[inline(always)]
pub fn connect4(ctx: &SockAddrContext) -> Verdict {
    // SAFETY: the context is valid while the program runs.
    let v4 = unsafe { (*ctx.sock_addr).user_ip4 };
    connect(ctx, Hook::Connect4, from_v4(v4.to_ne_bytes()))
}

/// Judges a connect to an IPv6 address.
#[inline(always)]
pub fn connect6(ctx: &SockAddrContext) -> Verdict {
    // SAFETY: the context is valid while the program runs.
    let first = unsafe { (*ctx.sock_addr).user_ip6[0] };
    // SAFETY: as above.
    let second = unsafe { (*ctx.sock_addr).user_ip6[1] };
    // SAFETY: as above.
    let third = unsafe { (*ctx.sock_addr).user_ip6[2] };
    // SAFETY: as above.
    let last = unsafe { (*ctx.sock_addr).user_ip6[3] };
    connect(
        ctx,
        Hook::Connect6,
        address_of_words([first, second, third, last]),
    )
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, hook: Hook, daddr: Address) -> Verdict {
    // SAFETY: the context is valid while the program runs.
    let kind = unsafe { (*ctx.sock_addr).type_ };
    // SAFETY: as above.
    let proto = unsafe { (*ctx.sock_addr).protocol };
    if kind != SOCK_STREAM {
        return Verdict::Allow;
    }
    // SAFETY: as above.
    let port = unsafe { (*ctx.sock_addr).user_port };
    let dport = u16::from_be(port as u16);
    let flow = Flow {
        daddr,
        dport: Some(dport),
        proto: if proto == MPTCP {
            protocol::TCP
        } else {
            proto as u8
        },
        is_fragment: false,
        origin: Origin::Workload,
    };
    let config = workload::config();
    let found = config.and_then(workload::of_current);
    let binding = match (config, found) {
        (Some(config), Some(workload)) => workload::binding(config, workload),
        _ => UNCONFIGURED,
    };
    let decision = match found {
        Some(_) => judge(&flow, Start::WORKLOAD, &binding),
        None => Decision::without_rule(Reason::NotConfigured, &binding),
    };
    // Its SYN is dropped without an error, and sent again.
    if matches!(decision.reason, Reason::HeldOff) {
        return Verdict::Allow;
    }
    record::count(hook, decision.verdict, decision.reason);
    // What is allowed here, or passes under audit, is judged, counted under its rule and reported with its packet.
    if matches!(decision.verdict, Verdict::Deny) {
        if let Some(workload) = found {
            record::count_decision(&decision, workload);
        }
        // SAFETY: the helper reads the current task only.
        let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
        record::report(&record::Facts::of(hook, &decision), &binding, |event| {
            event.daddr = daddr;
            event.dport = dport;
            event.proto = flow.proto;
            event.cgroup_id = cgroup_id;
        });
    }
    debug!(
        ctx,
        "connect: port {} verdict {} reason {}",
        dport,
        decision.verdict as u8,
        decision.reason as u8
    );
    decision.verdict
}
