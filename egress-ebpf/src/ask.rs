//! Calls of a process, before programs of others change the address: `connect()` and `sendto()`.
//!
//! These hooks judge nothing. They come first where the kernel can order programs (6.17), and note of each socket
//! whether it asks trusted resolvers alone ([`egress_common::asked`]). The kernel runs them with the socket's lock held
//! (`BPF_CGROUP_RUN_PROG_INET4_CONNECT_LOCK`, `BPF_CGROUP_RUN_PROG_UDP4_SENDMSG_LOCK`, include/linux/bpf-cgroup.h; a TCP
//! socket's through the whole connect).

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_addr},
    programs::SockAddrContext,
};
use egress_common::{
    asked::{ASKED_NOBODY, ASKED_OTHERS, ASKED_RESOLVERS, asked_after},
    decision::Decision,
    flow::Origin,
    maps::Config,
    packed::{AddressWords, Facts, v4_words},
    policy::{Binding, protocol},
    tally::Tally,
    verdict::{Mode, Reason, Verdict, verdict_of},
};

use crate::{
    connect::v6_words,
    lookup::judge_flow,
    maps::ASKED,
    netns,
    query::is_enforced,
    record,
    resolver::{is_looked_at, is_trusted, may_be_at, may_be_behind, note_port},
    skb::{Header, ReadSocket as _, Socket, full_socket, peer_words},
    workload,
};

/// Notes a datagram to an IPv4 address, also where no resolver can be behind another address yet: it may wait in its socket
/// (`MSG_MORE`) until one can. The kernel reports one without a name as one to port 0, which no process can give
/// (`udp_sendmsg`, net/ipv4/udp.c): it goes to the peer.
#[inline(always)]
pub fn ask_send4(ctx: &SockAddrContext) -> Verdict {
    // SAFETY: the context is valid while the program runs.
    if unsafe { (*ctx.sock_addr).user_port } == 0 {
        return Verdict::Allow;
    }
    // SAFETY: as above.
    let v4 = unsafe { (*ctx.sock_addr).user_ip4 };
    ask(ctx, v4_words(v4))
}

/// The same of an IPv6 address.
#[inline(always)]
pub fn ask_send6(ctx: &SockAddrContext) -> Verdict {
    // SAFETY: the context is valid while the program runs.
    if unsafe { (*ctx.sock_addr).user_port } == 0 {
        return Verdict::Allow;
    }
    ask(ctx, v6_words(ctx))
}

/// Notes a `connect()` to an IPv4 address, where a resolver may be behind another. Elsewhere the peer itself tells that the
/// socket asked before.
#[inline(always)]
pub fn ask4(ctx: &SockAddrContext) -> Verdict {
    if !may_be_behind() {
        return Verdict::Allow;
    }
    // SAFETY: the context is valid while the program runs.
    let v4 = unsafe { (*ctx.sock_addr).user_ip4 };
    ask(ctx, v4_words(v4))
}

/// Notes a `connect()` to an IPv6 address, which may be an IPv4 one.
#[inline(always)]
pub fn ask6(ctx: &SockAddrContext) -> Verdict {
    if !may_be_behind() {
        return Verdict::Allow;
    }
    ask(ctx, v6_words(ctx))
}

#[inline(always)]
fn ask(ctx: &SockAddrContext, destination: AddressWords) -> Verdict {
    // SAFETY: the context is valid while the program runs.
    let proto = unsafe { (*ctx.sock_addr).protocol };
    // SAFETY: as above.
    let port = u16::from_be(unsafe { (*ctx.sock_addr).user_port } as u16);
    // SAFETY: as above.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    let is_udp = proto == u32::from(protocol::UDP);
    if sk.is_null() || (!is_udp && proto != u32::from(protocol::TCP)) {
        return Verdict::Allow;
    }
    let is_resolver = may_be_at(port) && is_trusted(destination, port);
    // A TCP socket's lock is held until its peer is set: only the last call counts, and one elsewhere needs no note.
    let found = if is_udp || is_resolver {
        ASKED.get_or_create(sk)
    } else {
        ASKED.get(sk)
    };
    let Some(asked) = found else {
        return if is_udp && !is_resolver {
            without_memory()
        } else {
            Verdict::Allow
        };
    };
    // SAFETY: the storage lives as long as the socket, whose lock is held: nobody else writes.
    let asked = unsafe { &mut *asked };
    if asked.state == ASKED_OTHERS {
        return Verdict::Allow;
    }
    // To its own peer, which it has by such a call: the kernel itself gives that to `sendto()` for an IPv6 socket with an
    // IPv4 peer (`udpv6_sendmsg`, net/ipv6/udp.c).
    if asked.state == ASKED_RESOLVERS
        && Socket::read(sk).peer_port == port
        && peer_words(sk) == destination
    {
        return Verdict::Allow;
    }
    let is_new = asked.state == ASKED_NOBODY && has_no_peer(sk);
    let is_last_trusted = asked.state == ASKED_RESOLVERS && is_trusted(asked.resolver, asked.port);
    let state = asked_after(asked.state, is_resolver, is_new, is_last_trusted);
    if state == ASKED_RESOLVERS {
        asked.resolver = destination;
        asked.port = port;
    }
    // SAFETY: as above; one store, behind the address.
    unsafe { (&raw mut asked.state).write_volatile(state) };
    Verdict::Allow
}

/// True if a socket has no peer, not even one at port 0.
#[inline(always)]
fn has_no_peer(sk: *mut bpf_sock) -> bool {
    let peer = peer_words(sk);
    Socket::read(sk).peer_port == 0 && (peer == v4_words(0) || peer == [0, 0])
}

/// A call elsewhere that cannot be noted (a process can use up the memory for options of its own socket) might lead a later
/// query's packets elsewhere: it is refused, where anything is.
#[inline(never)]
fn without_memory() -> Verdict {
    record::tally(Tally::SocketStateFailed);
    match workload::config().and_then(workload::of_current) {
        Some(workload) if !is_enforced(workload) => Verdict::Allow,
        _ => Verdict::Deny,
    }
}

/// The trusted resolver that a socket asks for, if it asks for such alone.
#[inline(always)]
pub fn resolver_of(sk: *mut bpf_sock) -> Option<(AddressWords, u16)> {
    if !may_be_behind() {
        return None;
    }
    let asked = ASKED.get(sk)?;
    // SAFETY: the storage lives as long as the socket; half a write is an address that is trusted or is not.
    let (state, resolver, port) = unsafe { ((*asked).state, (*asked).resolver, (*asked).port) };
    if state == ASKED_RESOLVERS && is_trusted(resolver, port) {
        Some((resolver, port))
    } else {
        None
    }
}

/// The trusted resolver that a packet's socket asks for, with the socket: not of raw sockets, which write their packets
/// themselves, nor of listeners, whose packets answer.
#[inline(always)]
fn of_sender(raw: *mut __sk_buff) -> Option<(AddressWords, u16, *mut bpf_sock)> {
    let sk = full_socket(raw)?;
    let socket = Socket::read(sk);
    if socket.is_raw || socket.listens {
        return None;
    }
    let (resolver, port) = resolver_of(sk)?;
    Some((resolver, port, sk))
}

/// Notes the port to which a packet goes, if its socket asks for a trusted resolver that is behind another address: packets
/// to it, and from it, are then looked at.
#[inline(always)]
pub fn note_resolver_behind(raw: *mut __sk_buff, header: u64) {
    if may_be_behind() {
        note_port_behind(raw, header);
    }
}

/// [`note_resolver_behind`] where there may be one. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn note_port_behind(raw: *mut __sk_buff, header: u64) -> u32 {
    let header = Header::unpack(header);
    let is_asking = header.proto() == protocol::UDP || header.proto() == protocol::TCP;
    if !is_asking || header.is_later_fragment() || is_looked_at(header.dport()) {
        return 0;
    }
    let Some((.., sk)) = of_sender(raw) else {
        return 0;
    };
    // A port to which a pod translates in its own network namespace is no port of a resolver.
    let is_of_call = if has_no_peer(sk) {
        is_in_node(netns::of_packet(raw), workload::config())
    } else {
        Socket::read(sk).peer_port == header.dport()
    };
    if is_of_call {
        note_port(header.dport());
    }
    0
}

/// True if a packet goes where its socket's calls led it, or was translated by the node itself.
#[inline(always)]
pub fn is_led(sk: *mut bpf_sock, to: AddressWords, port: u16, netns: u32) -> bool {
    (port == Socket::read(sk).peer_port && peer_words(sk) == to)
        || is_in_node(netns, workload::config())
}

#[inline(always)]
fn is_in_node(netns: u32, config: Option<&Config>) -> bool {
    config.is_some_and(|config| netns != netns::UNKNOWN && netns == config.node_netns)
}

/// Of what [`resolver_port_behind`] returns: there is one.
const IS_ASKED: u32 = 1 << 16;

/// The packed decision on a packet whose socket asks for a trusted resolver, and which goes where a program of somebody
/// else took that: `decision` if it passes by that, else the one on a packet to the resolver itself. Has no stack frame of
/// its own: below it, 5.10 has room for none.
#[inline(always)]
pub fn judge_behind(
    raw: *mut __sk_buff,
    destination: AddressWords,
    facts: Facts,
    origin: Origin,
    binding: &Binding,
    decision: u64,
) -> u64 {
    if !may_be_behind() {
        return decision;
    }
    let [first, second] = destination;
    let asked = resolver_port_behind(raw, first, second, facts.pack(), decision);
    if asked == 0 {
        return decision;
    }
    let facts = facts.at_port(asked as u16);
    judge_flow(
        resolver_word(raw, 0),
        resolver_word(raw, 1),
        facts.pack(),
        origin.pack(),
        binding.pack(),
    )
}

/// The port of the resolver by which a packet is to be judged, with [`IS_ASKED`]; 0 when it is to be judged by `decision`.
/// Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn resolver_port_behind(
    raw: *mut __sk_buff,
    first: u64,
    second: u64,
    facts: u64,
    decision: u64,
) -> u32 {
    if stands(decision) {
        return 0;
    }
    let (Some((_, port, sk)), Some(config)) = (of_sender(raw), workload::config()) else {
        return 0;
    };
    if is_of_call(sk, [first, second], Facts::unpack(facts), config.node_netns) {
        IS_ASKED | u32::from(port)
    } else {
        0
    }
}

/// A word of the address of the resolver that a packet's socket asks for. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn resolver_word(raw: *mut __sk_buff, which: u32) -> u64 {
    match of_sender(raw) {
        Some(([first, second], ..)) => {
            if which == 0 {
                first
            } else {
                second
            }
        }
        None => 0,
    }
}

/// True if a packet goes where its socket's calls led it: to its peer. Without a peer nothing tells address
/// translation, which a pod may do in its own network namespace, from what a program did; in the node's only the node
/// does it.
#[inline(always)]
fn is_of_call(sk: *mut bpf_sock, to: AddressWords, facts: Facts, node_netns: u32) -> bool {
    let Some(port) = facts.port() else {
        return false;
    };
    if has_no_peer(sk) {
        return facts.netns() != netns::UNKNOWN && facts.netns() == node_netns;
    }
    port == Socket::read(sk).peer_port && peer_words(sk) == to
}

/// The same for the destination of a `connect()`. Likewise without a frame.
#[inline(always)]
pub fn judge_call_behind(
    ctx: *mut bpf_sock_addr,
    facts: Facts,
    binding: &Binding,
    decision: u64,
) -> u64 {
    let asked = call_port_behind(ctx, decision);
    if asked == 0 {
        return decision;
    }
    judge_flow(
        call_word_behind(ctx, 0),
        call_word_behind(ctx, 1),
        facts.at_port(asked as u16).pack(),
        Origin::WORKLOAD.pack(),
        binding.pack(),
    )
}

/// The port of the resolver by which a call is to be judged, with [`IS_ASKED`]; 0 when it is to be judged by `decision`.
/// Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn call_port_behind(ctx: *mut bpf_sock_addr, decision: u64) -> u32 {
    if stands(decision) {
        return 0;
    }
    match resolver_of_call(ctx) {
        Some((_, port)) => IS_ASKED | u32::from(port),
        None => 0,
    }
}

/// A word of the address of that resolver. Verified once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn call_word_behind(ctx: *mut bpf_sock_addr, which: u32) -> u64 {
    match resolver_of_call(ctx) {
        Some(([first, second], _)) => {
            if which == 0 {
                first
            } else {
                second
            }
        }
        None => 0,
    }
}

#[inline(always)]
fn resolver_of_call(ctx: *mut bpf_sock_addr) -> Option<(AddressWords, u16)> {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*ctx).__bindgen_anon_1.sk };
    if sk.is_null() { None } else { resolver_of(sk) }
}

/// True if a decision is not asked again for the resolver: it lets the packet pass, or a network that is denied by name
/// refuses it.
#[inline(always)]
fn stands(decision: u64) -> bool {
    let reason = Decision::packed_reason(decision);
    passes(reason) || reason == Reason::DeniedCidr as u8
}

/// True if a reason, by its number, lets a flow pass where policies are enforced.
#[inline(always)]
fn passes(reason: u8) -> bool {
    matches!(
        verdict_of(reason, Mode::Enforce),
        Verdict::Allow | Verdict::WouldDeny
    )
}
