//! The side that started a flow, and the packets that need no decision: the one place where they are found out.
//!
//! A hook reads a packet and its socket, [`classify`] (for packets of sockets) or [`classify_frame`] (for packets of an
//! interface) makes a [`Step`] of it, and the hook carries it out: it passes the packet, refuses it, or judges its
//! flow.
//!
//! [`at_once`] is the part of [`classify`] that asks for nothing but the socket's own memory. It is all that the fast
//! path of an established flow runs; packets that it leaves open, the long one classifies again from the start.

use crate::{
    dns::DNS_PORT,
    flow::{Origin, ROLE_PASSIVE, ROLE_PREEXISTING},
    packed::{Header, Recalled, RecalledAs},
    policy::{Workload, protocol},
    verdict::Reason,
};

/// Facts about a socket that a verdict needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// `SOCK_STREAM`.
    pub is_stream: bool,
    /// `SOCK_RAW`, as those are by which the kernel itself answers.
    pub is_raw: bool,
    /// It listens.
    pub listens: bool,
    /// Port of the peer that it is connected to, host byte order; 0 for none.
    pub peer_port: u16,
}

impl Socket {
    /// A socket by its memory, without a look at the socket: raw ones have none, TCP sockets have a role once they sent
    /// or received a packet, and a listener passes by its role.
    #[inline(always)]
    #[must_use]
    pub const fn by_memory(role: u8, peer_port: u16) -> Self {
        Self {
            is_stream: role != 0,
            is_raw: false,
            listens: false,
            peer_port,
        }
    }
}

/// Memory of a socket. Where nothing was stored, every field is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// A `ROLE_` constant.
    pub role: u8,
    /// A UDP packet arrived that this socket had not asked for.
    pub serves: bool,
    /// Its memory of this very flow; never [`RecalledAs::Started`].
    pub recalled: Recalled,
}

impl Known {
    /// Nothing.
    pub const NOTHING: Self = Self {
        role: 0,
        serves: false,
        recalled: Recalled::NOTHING,
    };
}

/// Ways to go on with a packet.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    /// Pass it: for `reason`.
    Pass = 0,
    /// Pass it as part of an established flow, and keep the address open that the rule of `origin` opened.
    KeepOpen = 1,
    /// Refuse it: for `reason`.
    Refuse = 2,
    /// Judge its flow, started by `origin`.
    Judge = 3,
}

/// The way to go on with a packet, and why. Every field is written whatever the case, as in [`Origin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The way.
    pub to: Do,
    /// Why, unless it is to be judged.
    pub reason: Reason,
    /// The side that started its flow, where that counts.
    pub origin: Origin,
}

impl Step {
    /// Pass it.
    #[inline(always)]
    #[must_use]
    pub const fn pass(reason: Reason) -> Self {
        Self {
            to: Do::Pass,
            reason,
            origin: Origin::WORKLOAD,
        }
    }

    /// Pass it, and keep its address open under this rule.
    #[inline(always)]
    #[must_use]
    pub const fn keep_open(rule: u64) -> Self {
        Self {
            to: Do::KeepOpen,
            reason: Reason::EstablishedFlow,
            origin: Origin::resting(rule),
        }
    }

    /// Refuse it.
    #[inline(always)]
    #[must_use]
    pub const fn refuse(reason: Reason) -> Self {
        Self {
            to: Do::Refuse,
            reason,
            origin: Origin::WORKLOAD,
        }
    }

    /// Judge its flow.
    #[inline(always)]
    #[must_use]
    pub const fn judge(origin: Origin) -> Self {
        Self {
            to: Do::Judge,
            reason: Reason::NoRule,
            origin,
        }
    }
}

/// Questions that cost a look-up: each is asked only where its answer counts.
pub trait Ask {
    /// The source is neither loopback, nor an address of the node, nor the packet's own destination.
    fn is_source_foreign(&self) -> bool;
    /// The source is a trusted resolver.
    fn is_source_resolver(&self) -> bool;
    /// The kernel itself made the packet's raw socket, with proof.
    fn is_kernel_socket(&self) -> bool;
    /// Memory of the flow in the table of flows without a socket of their own.
    fn recall(&self) -> Recalled;
    /// The policy still has the rule.
    fn has_rule(&self, rule: u64) -> bool;
}

/// This is a TCP packet of a TCP socket.
#[inline(always)]
#[must_use]
pub const fn is_tcp(socket: &Socket, header: Header) -> bool {
    socket.is_stream && header.proto() == protocol::TCP
}

/// The socket's own memory is about the packet's flow: TCP, and sockets with a peer. A raw socket's packet can be
/// anything, and a fragment without ports could be part of any flow: neither is remembered.
#[inline(always)]
#[must_use]
pub const fn has_memory(socket: &Socket, header: Header) -> bool {
    (is_tcp(socket, header) || socket.peer_port != 0)
        && !socket.is_raw
        && !header.is_later_fragment()
}

/// The table remembers the packet's flow, as its socket has no peer.
#[inline(always)]
#[must_use]
pub const fn is_loose_udp(socket: &Socket, header: Header) -> bool {
    !socket.is_raw && socket.peer_port == 0 && header.proto() == protocol::UDP
}

/// The step for a packet that needs no look-up beyond the socket: almost every one. `None`: it takes more to say.
#[inline(always)]
#[must_use]
pub fn at_once(
    socket: &Socket,
    known: &Known,
    header: Header,
    is_on_loopback: bool,
) -> Option<Step> {
    // A packet from port 53 may claim to be a resolver's, and one of a raw socket anything.
    if socket.is_raw || header.sport() == DNS_PORT {
        return None;
    }
    if is_on_loopback {
        // The long way finds a sender that claims a foreign source on it.
        return if header.is_from_loopback() {
            Some(Step::pass(Reason::Loopback))
        } else {
            None
        };
    }
    of_memory(socket, known, header)
}

/// The step for a packet that leaves, by the socket's role and memory.
#[inline(always)]
fn of_memory(socket: &Socket, known: &Known, header: Header) -> Option<Step> {
    if is_tcp(socket, header) {
        if socket.listens || (known.role == ROLE_PASSIVE && !header.opens_tcp()) {
            return Some(Step::pass(Reason::Reply));
        }
        // A new flow on this socket: the permission of the last one does not count.
        if header.opens_tcp() {
            return None;
        }
    }
    if has_memory(socket, header) {
        of_current(known.recalled)
    } else {
        None
    }
}

/// The step for a flow that passes because nothing has changed since it was allowed.
#[inline(always)]
fn of_current(recalled: Recalled) -> Option<Step> {
    match recalled.how {
        RecalledAs::Allowed => Some(Step::pass(Reason::EstablishedFlow)),
        RecalledAs::Unstamped => Some(Step::keep_open(recalled.rule)),
        RecalledAs::Earlier | RecalledAs::Started | RecalledAs::Begun | RecalledAs::Nothing => None,
    }
}

/// The step for a packet that a socket of `workload` sends. `known.role` is that after this packet
/// ([`role_after`](crate::flow::role_after)).
#[inline(always)]
#[must_use]
pub fn classify(
    socket: &Socket,
    known: &Known,
    header: Header,
    is_on_loopback: bool,
    workload: &Workload,
    ask: &impl Ask,
) -> Step {
    // Made by a listener, or one: it answers in the name that it was called by.
    let has_accepted = socket.listens || (socket.is_stream && known.role == ROLE_PASSIVE);
    if is_on_loopback && !has_accepted && ask.is_source_foreign() {
        return Step::refuse(Reason::ForgedSource);
    }
    if answers_dns(header) && (socket.is_raw || !workload.may_answer()) && ask.is_source_resolver()
    {
        return Step::refuse(Reason::ForgedSource);
    }
    // It does not leave, whatever its address.
    if is_on_loopback {
        return Step::pass(Reason::Loopback);
    }
    if let Some(step) = of_memory(socket, known, header) {
        return step;
    }
    if socket.is_raw {
        return of_raw_socket(header, workload, ask);
    }
    if header.proto() == protocol::UDP {
        let recalled = ask.recall();
        // A server may connect a socket to a peer that spoke first to another one.
        if matches!(recalled.how, RecalledAs::Started) {
            return Step::judge(Origin::REMOTE);
        }
        if is_loose_udp(socket, header) {
            return match of_current(recalled) {
                Some(step) => step,
                None => match of_earlier(recalled, ask) {
                    Some(step) => step,
                    None if known.serves => Step::judge(Origin::SERVING),
                    None => Step::judge(Origin::WORKLOAD),
                },
            };
        }
    }
    if is_tcp(socket, header) && known.role == ROLE_PREEXISTING {
        return Step::judge(Origin::PREEXISTING);
    }
    if has_memory(socket, header)
        && !header.opens_tcp()
        && let Some(step) = of_earlier(known.recalled, ask)
    {
        return step;
    }
    Step::judge(Origin::WORKLOAD)
}

/// The packet could be taken for an answer of DNS. Packets that the kernel itself sends over TCP (resets) carry none.
#[inline(always)]
const fn answers_dns(header: Header) -> bool {
    header.sport() == DNS_PORT
        && (header.proto() == protocol::UDP
            || header.proto() == protocol::TCP && !header.is_kernel_answer())
}

/// A raw socket writes what it likes: only packets of the kernel's own sockets are what they seem to be.
#[inline(always)]
fn of_raw_socket(header: Header, workload: &Workload, ask: &impl Ask) -> Step {
    if header.is_link_control() && (header.stays_on_link() || ask.is_kernel_socket()) {
        return Step::pass(Reason::LinkControl);
    }
    if workload.is_node() && header.is_kernel_answer() && ask.is_kernel_socket() {
        return Step::judge(Origin::KERNEL);
    }
    Step::judge(Origin::WORKLOAD)
}

/// A flow that was allowed in an earlier generation goes on as long as the policy has the rule.
#[inline(always)]
fn of_earlier(recalled: Recalled, ask: &impl Ask) -> Option<Step> {
    if matches!(recalled.how, RecalledAs::Earlier) && ask.has_rule(recalled.rule) {
        Some(Step::judge(Origin::resting(recalled.rule)))
    } else {
        None
    }
}

/// The step for a packet of an interface that no socket sends which the cgroup hooks see.
#[inline(always)]
#[must_use]
pub fn classify_frame(header: Header, is_on_loopback: bool, ask: &impl Ask) -> Step {
    if header.is_link_control() {
        return Step::pass(Reason::LinkControl);
    }
    if is_on_loopback {
        return Step::pass(Reason::Loopback);
    }
    if header.is_later_fragment() || header.opens_tcp() {
        return Step::judge(Origin::WORKLOAD);
    }
    let recalled = ask.recall();
    if matches!(recalled.how, RecalledAs::Started) {
        return Step::judge(Origin::REMOTE);
    }
    match of_current(recalled) {
        Some(step) => step,
        None => match of_earlier(recalled, ask) {
            Some(step) => step,
            None => Step::judge(Origin::WORKLOAD),
        },
    }
}

#[cfg(test)]
mod tests;
