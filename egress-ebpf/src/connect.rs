//! `connect()` of stream sockets: a courtesy, so that a denied connect fails at
//! once with EPERM instead of waiting for a SYN that is never answered.
//!
//! Datagram sockets are let through: their first packet gets EPERM anyway, and
//! resolvers connect such sockets only to learn a source address (RFC 6724).

use aya_ebpf::{helpers::bpf_get_current_cgroup_id, programs::SockAddrContext};
use aya_log_ebpf::debug;
use egress_common::{
    address::is_loopback,
    decision::Decision,
    flow::{Flow, Origin, ROLE_ACTIVE, Way},
    maps::Config,
    packed::{AddressWords, Facts, address_of, v4_words},
    policy::{Binding, protocol},
    tally::Tally,
    verdict::{Hook, Reason, Verdict},
};

use crate::{
    ask::judge_call_behind, egress::UNCONFIGURED, hello, lookup::judge_flow, netns, process,
    record, skb::LOOPBACK_IFINDEX, state::State, workload,
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
    connect(ctx, Hook::Connect4, v4_words(v4))
}

/// Judges a connect to an IPv6 address.
#[inline(always)]
pub fn connect6(ctx: &SockAddrContext) -> Verdict {
    connect(ctx, Hook::Connect6, v6_words(ctx))
}

/// The IPv6 address of a call.
#[inline(always)]
pub fn v6_words(ctx: &SockAddrContext) -> AddressWords {
    // SAFETY: the context is valid while the program runs.
    let first = unsafe { (*ctx.sock_addr).user_ip6[0] };
    // SAFETY: as above.
    let second = unsafe { (*ctx.sock_addr).user_ip6[1] };
    // SAFETY: as above.
    let third = unsafe { (*ctx.sock_addr).user_ip6[2] };
    // SAFETY: as above.
    let last = unsafe { (*ctx.sock_addr).user_ip6[3] };
    [half(first, second), half(third, last)]
}

#[inline(always)]
fn half(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Which way the connection will take. No route is chosen yet: what is local will be on loopback, unless the socket is
/// bound to another device (or to a VRF, which is one). Its packets decide.
#[inline(always)]
fn way(ctx: &SockAddrContext, config: Option<&Config>, netns: u32) -> Way {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    let device = if sk.is_null() {
        0
    } else {
        // SAFETY: not null; a full socket, which the verifier checks.
        unsafe { (*sk).bound_dev_if }
    };
    Way {
        is_outside: config.is_some_and(|config| netns::is_outside(config, netns)),
        is_unrouted: device == 0 || device == LOOPBACK_IFINDEX,
    }
}

/// Marks a socket that may connect: if its SYN is never seen (`TCP_REPAIR`), its flow is still not one that is older than
/// the programs. Costs nothing more: a SYN would make the state anyway, and what goes to loopback needs none.
#[inline(always)]
fn mark(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return false;
    }
    match State::get_or_create(sk) {
        Some(state) => {
            state.enter(ROLE_ACTIVE, true);
            hello::forget(sk);
            true
        }
        None => {
            record::tally(Tally::SocketStateFailed);
            false
        }
    }
}

/// Reports a denial; in a stack frame of its own.
#[inline(never)]
fn report(denial: &record::Facts, binding: &Binding, destination: &AddressWords, facts: u64) {
    let facts = Facts::unpack(facts);
    // SAFETY: the helper reads the current task only.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    record::report(denial, binding, |event| {
        event.daddr = address_of(*destination);
        event.dport = facts.port().unwrap_or(0);
        event.proto = facts.proto();
        event.cgroup_id = cgroup_id;
        event.netns = facts.netns();
        event.process = process::current();
    });
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, hook: Hook, destination: AddressWords) -> Verdict {
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
    let netns = netns::of_connect(ctx);
    let config = workload::config();
    let daddr = address_of(destination);
    let flow = Flow {
        daddr,
        dport: Some(dport),
        proto: if proto == MPTCP {
            protocol::TCP
        } else {
            proto as u8
        },
        is_fragment: false,
        way: way(ctx, config, netns),
        origin: Origin::WORKLOAD,
    };
    let facts = Facts::of_flow(&flow, netns);
    let found = config.and_then(workload::of_current);
    let binding = match (config, found) {
        (Some(config), Some(workload)) => workload::binding(config, workload),
        _ => UNCONFIGURED,
    };
    let mut decision = match found {
        Some(_) => {
            let [first, second] = destination;
            let origin = Origin::WORKLOAD.pack();
            let packed = judge_flow(first, second, facts.pack(), origin, binding.pack());
            // Programs of others may have changed the address of a resolver.
            let packed = judge_call_behind(ctx.sock_addr, facts, &binding, packed);
            Decision::unpack(packed, &binding)
        }
        None => Decision::without_rule(Reason::NotConfigured, &binding),
    };
    let is_deferred = matches!(decision.reason, Reason::HeldOff);
    if (is_deferred || !matches!(decision.verdict, Verdict::Deny))
        && !is_loopback(&daddr)
        && !mark(ctx)
    {
        decision = Decision::refusal(Reason::StateUnavailable, &binding);
    } else if is_deferred {
        // Its SYN is dropped without an error, and sent again.
        return Verdict::Allow;
    }
    record::count(hook, decision.verdict, decision.reason);
    // A flow allowed here, or passed under audit, is judged, counted under its rule and reported with its packet.
    if matches!(decision.verdict, Verdict::Deny) {
        if let Some(workload) = found {
            record::count_decision(&decision, workload);
        }
        let denial = record::Facts::of(hook, &decision);
        report(&denial, &binding, &destination, facts.pack());
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
