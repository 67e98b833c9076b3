//! Flows: their peers, the sides that started them, and the memory of them.

use crate::{
    address::Address,
    hash::{Sip, SipKey},
    learned::bpf_spin_lock,
    packed::AddressWords,
};

/// The side that started a flow.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starter {
    /// This workload, as far as is known.
    Workload = 0,
    /// The remote: the packet is a reply.
    Remote = 1,
    /// A TCP flow older than the programs.
    Preexisting = 2,
    /// The kernel itself, in answer to a packet.
    Kernel = 3,
    /// This workload by a UDP socket that has also served inbound flows.
    Serving = 4,
    /// This workload, and it was allowed under a name rule that the policy still has.
    Resting = 5,
}

/// The side that started a flow, and the rule that it is granted by where one is known.
///
/// Not an enum with a payload: the payload of a variant that has none is a hole, and verifiers before 6.3 refuse to copy
/// a hole. Here every byte is written whatever the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The side.
    pub starter: Starter,
    /// The rule of [`Starter::Resting`]; else 0.
    pub rule: u64,
}

impl Origin {
    /// [`Starter::Workload`].
    pub const WORKLOAD: Self = Self::new(Starter::Workload);
    /// [`Starter::Remote`].
    pub const REMOTE: Self = Self::new(Starter::Remote);
    /// [`Starter::Preexisting`].
    pub const PREEXISTING: Self = Self::new(Starter::Preexisting);
    /// [`Starter::Kernel`].
    pub const KERNEL: Self = Self::new(Starter::Kernel);
    /// [`Starter::Serving`].
    pub const SERVING: Self = Self::new(Starter::Serving);

    const fn new(starter: Starter) -> Self {
        Self { starter, rule: 0 }
    }

    /// [`Starter::Resting`] under this rule.
    #[inline(always)]
    #[must_use]
    pub const fn resting(rule: u64) -> Self {
        Self {
            starter: Starter::Resting,
            rule,
        }
    }
}

/// Facts about the way that a flow takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Way {
    /// The sender is in another network namespace than the node's: for it, an address of the node is a remote.
    pub is_outside: bool,
    /// No device is known yet, and the socket is bound to none: what is local will be on loopback, and its packets decide.
    pub is_unrouted: bool,
}

/// A flow to be judged, named by its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Destination address.
    pub daddr: Address,
    /// Destination port, host byte order; `None` where the protocol has none or a fragment hides it.
    pub dport: Option<u16>,
    /// IANA protocol number.
    pub proto: u8,
    /// This is a fragment whose ports are out of sight.
    pub is_fragment: bool,
    /// The way that it takes.
    pub way: Way,
    /// The side that started it.
    pub origin: Origin,
}

/// Address and port of a flow's peer, in three parts of 48 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer([u64; 3]);

/// Bits of a word of [`SocketState::words`] that hold content; those below hold the version.
const CONTENT_BITS: u32 = 48;
const CONTENT: u64 = (1 << CONTENT_BITS) - 1;
const VERSION_BITS: u32 = 64 - CONTENT_BITS;
const VERSION: u64 = (1 << VERSION_BITS) - 1;

impl Peer {
    /// The parts of an address and a port.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: AddressWords, port: u16) -> Self {
        let [first, second] = address;
        Self([
            first & CONTENT,
            first >> CONTENT_BITS | (second & 0xffff_ffff) << VERSION_BITS,
            second >> 32 | (port as u64) << 32,
        ])
    }
}

impl Peer {
    /// Mark of a flow that audit mode reports: grants nothing, but a sender that could give two flows one mark would
    /// send the second unreported.
    #[inline(always)]
    #[must_use]
    pub const fn mark(self, secret: &SipKey, proto: u8, generation: u32, reason: u8) -> u64 {
        let Self([first, second, third]) = self;
        let facts = (generation as u64) << 16 | (proto as u64) << 8 | reason as u64;
        Sip::new(secret)
            .word(first)
            .word(second)
            .word(third)
            .word(facts)
            .finish()
    }
}

/// Contents of whole [`SocketState::words`], beside the flow itself: how it was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Generation in which it was allowed.
    pub generation: u32,
    /// Rule by which it was; 0 for nothing remembered.
    pub rule: u64,
}

impl Remembered {
    /// Nothing.
    pub const NOTHING: Self = Self {
        generation: 0,
        rule: 0,
    };
}

/// Words of a socket's memory, see [`SocketState::words`].
pub type Words = [u64; 5];

/// The last version: a state that has come so far remembers nothing more.
pub const LAST_VERSION: u16 = u16::MAX;

/// The words for a flow; `version` is 1 or more, and no other write to this state has it.
#[inline(always)]
#[must_use]
pub const fn words_of(peer: Peer, proto: u8, remembered: Remembered, version: u16) -> Words {
    let Peer([first, second, third]) = peer;
    let version = version as u64;
    let fourth =
        (proto as u64) << 40 | (remembered.generation as u64) << 8 | remembered.rule >> 48 & 0xff;
    [
        first << VERSION_BITS | version,
        second << VERSION_BITS | version,
        third << VERSION_BITS | version,
        fourth << VERSION_BITS | version,
        (remembered.rule & CONTENT) << VERSION_BITS | version,
    ]
}

/// The words' memory of a flow: each was loaded once, in any order.
#[inline(always)]
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the generation is cut out of a word"
)]
pub const fn recall(words: Words, peer: Peer, proto: u8) -> Remembered {
    let [first, second, third, fourth, fifth] = words;
    let Peer([a, b, c]) = peer;
    let version = first & VERSION;
    let differs = first ^ (a << VERSION_BITS | version)
        | second ^ (b << VERSION_BITS | version)
        | third ^ (c << VERSION_BITS | version)
        | (fourth ^ first) & VERSION
        | (fifth ^ first) & VERSION
        | fourth >> 56 ^ proto as u64;
    if differs != 0 || version == 0 {
        return Remembered::NOTHING;
    }
    Remembered {
        generation: (fourth >> 24) as u32,
        rule: (fourth >> VERSION_BITS & 0xff) << CONTENT_BITS | fifth >> VERSION_BITS,
    }
}

/// Role of a TCP socket: nothing is known yet.
pub const ROLE_UNKNOWN: u8 = 0;
/// It called `connect`, or its SYN left through the hook.
pub const ROLE_ACTIVE: u8 = 1;
/// It is or was made by a listener.
pub const ROLE_PASSIVE: u8 = 2;
/// It was connected before the programs were attached.
pub const ROLE_PREEXISTING: u8 = 3;

/// The role of a TCP socket that sends a packet.
#[inline(always)]
#[must_use]
pub const fn role_after(role: u8, opens_tcp: bool) -> u8 {
    if opens_tcp {
        ROLE_ACTIVE
    } else if role == ROLE_UNKNOWN {
        // `connect` marks every socket that it lets go on: this one connected before.
        ROLE_PREEXISTING
    } else {
        role
    }
}

/// Value of `SOCKETS`, the socket storage. A socket that a listener makes inherits it (`BPF_F_CLONE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SocketState {
    /// The flow that was allowed last, whole: 48 bits of content in each word, and below it the version of the write.
    /// Address and port fill the first three; then protocol, generation and the upper 8 bits of the rule; then the rest
    /// of the rule.
    ///
    /// Every word proves which write it is of, and every write has a version of its own: writers count it up under the
    /// lock, and at [`LAST_VERSION`] the state is closed, so that none ever comes again. A reader takes no lock: it
    /// loads each word once and accepts five of one version alone. In whatever order it sees the stores, on any
    /// architecture, words of two writes differ in their version, and are no flow. Version 0: never written.
    pub words: Words,
    /// Mark of the flow that audit mode reported last; grants nothing.
    pub audited: u64,
    /// Guards `words` and `version` against other writers.
    pub lock: bpf_spin_lock,
    /// Version of the last write.
    pub version: u16,
    /// Tick of the last [`LIVE_FLOW_NS`] stamp, or report of an audit.
    pub stamp: u16,
    /// A `ROLE_` constant; meaningful for TCP sockets.
    pub role: u8,
    /// 1 when a UDP packet arrived that this socket had not asked for.
    pub serves: u8,
    /// Padding, always zero.
    pub _pad: [u8; 6],
}
const _: () = assert!(size_of::<SocketState>() == 64 && align_of::<SocketState>() == 8);

/// Value of `SEEN`: what a UDP socket with a peer was allowed by its first packet. Most such sockets send no other, or ask
/// a resolver, and memory of their own would cost them more than everything else: the second packet makes it.
///
/// The socket is named by its cookie, which the kernel gives once since boot, and the flow by [`words_of`] in full, so that
/// it grants what the socket's own memory would grant, and ends when that would. Read and written under the lock. Sockets
/// share places: one that comes later takes that of one long before, whose next packet is then decided again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SeenSocket {
    /// Cookie of the socket; 0 for none.
    pub cookie: u64,
    /// As [`SocketState::words`], all of one version.
    pub words: Words,
    /// Guards everything else.
    pub lock: bpf_spin_lock,
    /// As [`SocketState::stamp`].
    pub stamp: u16,
    /// Padding, always zero.
    pub _pad: u16,
}
const _: () = assert!(size_of::<SeenSocket>() == 56 && align_of::<SeenSocket>() == 8);

impl SeenSocket {
    /// The version of its words, which the lock keeps together.
    pub const VERSION: u16 = 1;

    /// The place of a socket. Cookies count up, on each CPU in batches, so that neighbours have places of their own.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the mask leaves 14 bits")]
    pub const fn place(cookie: u64) -> u32 {
        cookie as u32 & (SEEN_SOCKETS - 1)
    }
}

/// Places of `SEEN`, a power of two.
pub const SEEN_SOCKETS: u32 = 16_384;
const _: () = assert!(SEEN_SOCKETS.is_power_of_two());

/// Value of `CALLED`: for each of 64 local UDP ports, whether a socket at it was ever called by a remote that it had not
/// asked. Where none was, no reply can leave, and sockets with a peer need not look into `FLOWS`. Behind the places of the
/// ports lie those of the places: whether any port of one was called, so that almost always a byte is read that is in the
/// cache. Bytes, not bits: each is stored whole, the port's before its place's, and both before the flow. Never taken away:
/// who is called at many ports makes first packets from them as slow as they would be without.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalledPorts(pub [u8; 64]);

impl CalledPorts {
    /// All of them may have been called: what is said where nobody knows.
    pub const ALL: Self = Self([1; 64]);
}

impl CalledPorts {
    /// Where the byte of a port is: its place, and which byte there.
    #[inline(always)]
    #[must_use]
    pub const fn at(port: u16) -> (u32, u32) {
        (port as u32 >> 6, port as u32 & 63)
    }

    /// Where the byte of a port's place is.
    #[inline(always)]
    #[must_use]
    pub const fn above(port: u16) -> (u32, u32) {
        (PORT_PLACES | port as u32 >> 12, port as u32 >> 6 & 63)
    }
}

/// Places of ports.
const PORT_PLACES: u32 = 1 << 10;
/// Places of `CALLED`.
pub const CALLED_PLACES: u32 = PORT_PLACES + (1 << 4);

/// A flow that a name rule allowed keeps its address open for new flows this long after its last stamp.
pub const LIVE_FLOW_NS: u64 = 180 * 1_000_000_000;

/// Jiffies of one tick of stamps: 1 s at 1,000 Hz, 10 s at 100 Hz.
pub const STAMP_JIFFIES: u64 = 1_024;

/// A flow whose last stamp was at the tick `last` is to be stamped. Only flows that have lived through a whole tick
/// are: short flows, one after the other, do not keep an address open.
#[inline(always)]
#[must_use]
pub const fn is_stamp_due(last: u16, now: u16) -> bool {
    now.wrapping_sub(last) >= 2
}

/// A flow of `FLOWS`: one without a socket of its own (unconnected UDP, forwarded packets).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FlowKey {
    /// The remote's address.
    pub remote: AddressWords,
    /// The local address; zero where the owner is a workload and the socket may send from any of its addresses.
    pub local: AddressWords,
    /// Owner: the identity of a workload, or an interface.
    pub owner: u32,
    /// Network namespace of the socket; 0 for packets of an interface.
    pub netns: u32,
    /// Port of the remote, host byte order.
    pub remote_port: u16,
    /// Local port, host byte order.
    pub local_port: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// 1 when `owner` is an interface index.
    pub by_interface: u8,
    /// Padding, always zero.
    pub _pad: [u8; 2],
}
const _: () = assert!(size_of::<FlowKey>() == 48 && align_of::<FlowKey>() == 8);

impl FlowKey {
    /// Flows of this key may be remembered: a socket whose network namespace is not known could be anywhere.
    #[inline(always)]
    #[must_use]
    pub const fn is_placed(&self) -> bool {
        self.netns != 0 || self.by_interface != 0
    }
}

/// The remote spoke first.
pub const STARTED_BY_REMOTE: u8 = 1;
/// The workload spoke first.
pub const STARTED_BY_WORKLOAD: u8 = 2;

/// A UDP flow without a packet for this long is over.
pub const FLOW_IDLE_NS: u64 = 180 * 1_000_000_000;
/// A forwarded TCP flow without a packet for this long is over: longer than the established connection idle-timeout of
/// RFC 5382 (REQ-5), two hours and four minutes.
pub const TCP_IDLE_NS: u64 = 7_500 * 1_000_000_000;

mod table;

pub use table::{FLOW_SLOTS, FlowBucket, FlowFacts, FlowState};

#[cfg(test)]
mod tests;
