//! Records that the kernel sends to the agent through ring buffers.

use crate::address::Address;

/// Who sends: the process that connects, or that made the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Process {
    /// Its number (thread group), in the machine's own PID namespace; 0 where it is not known.
    pub pid: u32,
    /// What it is called, ended by zeroes.
    pub command: [u8; 16],
}
const _: () = assert!(size_of::<Process>() == 20 && align_of::<Process>() == 4);

impl Process {
    /// Not known.
    pub const UNKNOWN: Self = Self {
        pid: 0,
        command: [0; 16],
    };
}

/// A verdict, as the ring buffer `EVENTS` carries it: denials and first packets of allowed flows, rate-limited.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictEvent {
    /// When, nanoseconds of the monotonic clock.
    pub at_ns: u64,
    /// Cgroup of the sender; 0 where it is not known.
    pub cgroup_id: u64,
    /// Rule that the verdict rests on; 0 for none.
    pub rule: u64,
    /// Source address; zero at connect, where it is not chosen yet.
    pub saddr: Address,
    /// Destination address.
    pub daddr: Address,
    /// Scope of the sender.
    pub scope_id: u32,
    /// Policy that judged.
    pub policy_id: u16,
    /// Source port, host byte order; 0 where there is none.
    pub sport: u16,
    /// Destination port, host byte order; 0 where there is none.
    pub dport: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// A [`Hook`](crate::verdict::Hook) as a number.
    pub hook: u8,
    /// A [`Verdict`](crate::verdict::Verdict) as a number.
    pub verdict: u8,
    /// A [`Reason`](crate::verdict::Reason) as a number.
    pub reason: u8,
    /// Padding, always zero.
    pub _pad: [u8; 2],
    /// Number of the sender's network namespace; 0 where it is not known.
    pub netns: u32,
    /// The sender's process: of a refused `connect()` always; of packets where processes are noted.
    pub process: Process,
    /// Padding, always zero.
    pub _pad2: u32,
}
const _: () = assert!(size_of::<VerdictEvent>() == 104 && align_of::<VerdictEvent>() == 8);

/// Most verdict events per second, CPU and kind (denied, allowed). What is above is counted as suppressed.
pub const EVENTS_PER_SECOND: u32 = 1000;

/// Value of `EVENT_BUDGETS`, one for each CPU and kind: a window of one second.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EventBudget {
    /// Number of the second that `used` counts in.
    pub second: u64,
    /// Events sent in that second.
    pub used: u64,
}
const _: () = assert!(size_of::<EventBudget>() == 16);

/// Head of a copied DNS message or TCP segment in the ring buffer `DNS_COPIES`; `payload_bytes` bytes follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsCopy {
    /// When, nanoseconds of the monotonic clock.
    pub at_ns: u64,
    /// Cookie of the receiving socket; the same for all parts of one stream.
    pub cookie: u64,
    /// The resolver that answered.
    pub resolver: Address,
    /// Scope of the receiver.
    pub scope_id: u32,
    /// Policy of the receiver.
    pub policy_id: u16,
    /// Port of the receiver, host byte order.
    pub port: u16,
    /// TCP only: sequence number of the first payload byte, host byte order.
    pub sequence: u32,
    /// TCP only: the sequence number that the socket expected next, host byte order.
    pub expected_sequence: u32,
    /// Bytes of the whole message or segment.
    pub total_bytes: u32,
    /// Where in the message this part begins.
    pub offset_bytes: u32,
    /// Bytes that follow this head.
    pub payload_bytes: u32,
    /// A [`Tally`](crate::tally::Tally) as a number: what the kernel made of the answer.
    pub outcome: u8,
    /// IANA protocol number: UDP or TCP.
    pub proto: u8,
    /// Padding, always zero.
    pub _pad: [u8; 2],
    /// Number of the receiver's network namespace; 0 where it is not known.
    pub netns: u32,
    /// Padding, always zero.
    pub _pad2: u32,
}
const _: () = assert!(size_of::<DnsCopy>() == 72 && align_of::<DnsCopy>() == 8);
