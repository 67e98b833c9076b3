//! Flows: what a packet belongs to, who started it, and what is remembered of it.

use crate::{
    address::Address,
    hash::{mix, mix_address},
};

/// Who started the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This workload, as far as is known.
    Workload,
    /// The far end: the packet is a reply.
    FarEnd,
    /// A TCP flow older than the programs.
    Preexisting,
    /// The kernel itself, in answer to a packet.
    Kernel,
    /// This workload by a UDP socket that has also served inbound flows.
    WorkloadServing,
    /// This workload, and it was allowed under a name rule that the policy still has.
    Resting(u64),
}

/// What is judged: the far end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Destination address.
    pub daddr: Address,
    /// Destination port, host byte order; `None` where the protocol has none or a fragment hides it.
    pub dport: Option<u16>,
    /// IANA protocol number.
    pub proto: u8,
    /// Whether this is a fragment whose ports are out of sight.
    pub is_fragment: bool,
    /// Who started it.
    pub origin: Origin,
}

impl Flow {
    /// A tag that only this flow has, in this generation, resting on this rule.
    ///
    /// Sockets remember an allowed flow as one 64-bit tag: a single word is
    /// written and read at once, so two threads that race on one socket can
    /// never make a mixture of two flows pass for a third.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self, seed: u64, generation: u32, rule: u64) -> u64 {
        let port = match self.dport {
            Some(port) => 1 << 16 | port as u64,
            None => 0,
        };
        let word = (generation as u64) << 32 | (self.proto as u64) << 24 | port;
        // Zero means "no tag".
        mix(mix(mix_address(seed, &self.daddr), word), rule) | 1
    }
}

/// Role of a TCP socket: nothing is known yet.
pub const ROLE_UNKNOWN: u8 = 0;
/// Its SYN left through the hook.
pub const ROLE_ACTIVE: u8 = 1;
/// It is or was made by a listener.
pub const ROLE_PASSIVE: u8 = 2;
/// It was connected before the programs were attached.
pub const ROLE_PREEXISTING: u8 = 3;

/// A raw socket that a process made; the kernel's own are raw too, and unknown.
pub const ROLE_RAW: u8 = 4;

/// Value of `SOCKETS`, the socket storage. A socket that a listener makes inherits it (`BPF_F_CLONE`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SocketState {
    /// [`Flow::tag`] of the flow that was allowed last; 0 for none.
    pub tag: u64,
    /// Rule that the tag was made with. Without a tag: mark of the flow that audit mode reported last.
    pub rule: u64,
    /// Generation that the tag was made with.
    pub generation: u32,
    /// A `ROLE_` constant; meaningful for TCP and raw sockets.
    pub role: u8,
    /// 1 when a UDP packet arrived that this socket had not asked for.
    pub serves: u8,
    /// Tick of the last [`LIVE_FLOW_NS`] stamp.
    pub stamp: u16,
}
const _: () = assert!(size_of::<SocketState>() == 24);

/// A flow that a name rule allowed keeps its address open for new flows this long after its last stamp.
pub const LIVE_FLOW_NS: u64 = 180 * 1_000_000_000;

/// Jiffies of one tick of stamps: 1 s at 1,000 Hz, 10 s at 100 Hz.
pub const STAMP_JIFFIES: u64 = 1_024;

/// Whether a flow whose last stamp was at the tick `last` is to be stamped. Only flows that have lived through a whole
/// tick are: short flows, one after the other, do not keep an address open.
#[inline(always)]
#[must_use]
pub const fn is_stamp_due(last: u16, now: u16) -> bool {
    now.wrapping_sub(last) >= 2
}

/// Key of `FLOWS`: a flow without a socket of its own (unconnected UDP, forwarded packets).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Far end.
    pub far: Address,
    /// Near end; zero where the owner is a scope and the socket may send from any of its addresses.
    pub near: Address,
    /// Owner: a scope, or an interface.
    pub owner: u32,
    /// Port of the far end, host byte order.
    pub far_port: u16,
    /// Port of the near end, host byte order.
    pub near_port: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// 1 when `owner` is an interface index.
    pub by_interface: u8,
    /// Padding, always zero: the kernel hashes every byte of a key.
    pub _pad: [u8; 2],
}
const _: () = assert!(size_of::<FlowKey>() == 44);

/// The far end spoke first.
pub const STARTED_BY_FAR_END: u8 = 1;
/// The workload spoke first.
pub const STARTED_BY_WORKLOAD: u8 = 2;

/// Value of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlowState {
    /// [`Flow::tag`] of the allowed flow; for flows of the far end the tag in generation 0 under rule 0.
    pub tag: u64,
    /// Rule that the tag was made with.
    pub rule: u64,
    /// Last packet, nanoseconds of the monotonic clock.
    pub last_seen_ns: u64,
    /// Generation that the tag was made with.
    pub generation: u32,
    /// Tick of the last [`LIVE_FLOW_NS`] stamp.
    pub stamp: u16,
    /// Who spoke first.
    pub started_by: u8,
    /// Padding, always zero.
    pub _pad: u8,
}
const _: () = assert!(size_of::<FlowState>() == 32);

/// A UDP flow without a packet for this long is over.
pub const FLOW_IDLE_NS: u64 = 180 * 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::from_v4;

    #[test]
    fn a_tag_depends_on_every_part_of_the_flow() {
        let flow = Flow {
            daddr: from_v4([192, 0, 2, 1]),
            dport: Some(443),
            proto: 6,
            is_fragment: false,
            origin: Origin::Workload,
        };
        let tag = flow.tag(1, 2, 3);
        let others = [
            Flow {
                daddr: from_v4([192, 0, 2, 2]),
                ..flow
            }
            .tag(1, 2, 3),
            Flow {
                dport: Some(444),
                ..flow
            }
            .tag(1, 2, 3),
            Flow {
                dport: None,
                ..flow
            }
            .tag(1, 2, 3),
            Flow { proto: 17, ..flow }.tag(1, 2, 3),
            flow.tag(2, 2, 3),
            flow.tag(1, 3, 3),
            flow.tag(1, 2, 4),
        ];
        assert!(others.iter().all(|other| *other != tag));
        assert_ne!(tag, 0);
    }
}
