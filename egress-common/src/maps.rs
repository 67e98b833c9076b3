//! Names, sizes and layouts of the maps: the contract between the programs and the agent.
//!
//! | map | written by | read by |
//! | --- | --- | --- |
//! | `CONFIG` | agent, whole value | every hook |
//! | `KEYS` | agent, once, when the maps are made | every hook |
//! | `WORKLOADS` | agent; replacing an entry is the switch | every hook, on a flow's first packet |
//! | `NAMES`, `CIDRS`, `RULES` | agent, only under policy ids that no workload uses yet or any more | DNS; first packets |
//! | `RESOLVERS`, `LOCAL` | agent | DNS |
//! | `INTERFACES` | agent, before it attaches; kernel, `owner` | tc hooks |
//! | `LEARNED` | kernel only (`learn`, `sweep`), under the entry's lock | first packets |
//! | `QUERIES` | kernel | kernel, on the answer |
//! | `ALIASES` | kernel; agent, entries of scopes to come and dead ones | DNS |
//! | `HOLDS` | kernel | denied first packets |
//! | `SOCKETS`, `FLOWS` | kernel | every packet |
//! | `COUNTERS`, `TALLIES`, `RULE_COUNTERS` | kernel, atomic adds | agent |
//! | `EVENTS`, `DNS_COPIES` | kernel | agent |

use crate::{
    address::Address,
    hash::{SipKey, mix},
    policy::{Binding, NameRules},
    verdict::Mode,
};

/// Version of everything in this crate that is stored in maps. A change of any layout raises it.
///
/// Agents of two layouts read each other's maps while one takes over from the
/// other. So a map of [`KERNEL_MAPS`] whose meaning changes also changes its
/// size or its name. What an agent reads of another layout's `CONFIG` is [`ConfigOfLayout1`] or this one's [`Config`].
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "layout-next") {
    THIS_LAYOUT + 1
} else {
    THIS_LAYOUT
};
const THIS_LAYOUT: u32 = 2;

/// Value of `CONFIG` (array of one).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Config {
    /// [`LAYOUT_VERSION`] of the agent that made the maps; 0 while nothing is configured.
    pub layout_version: u32,
    /// Raised at every switch: sockets then check what they remember against the new policy.
    pub generation: u32,
    /// From this point on, nanoseconds of the monotonic clock, `enforce` reads as `audit`; 0 for never.
    pub enforce_until_ns: u64,
    /// Number of the node's own network namespace (see [`Holder`](crate::learned::Holder)); 0 while it is not known.
    pub node_netns: u32,
    /// Padding, always zero.
    pub _pad: u32,
    /// Levels (distance from the cgroup root) at which workloads are bound, deepest first; [`NO_LEVEL`] ends the list.
    pub levels: [i32; CGROUP_LEVELS],
}
const _: () = assert!(size_of::<Config>() == 40);

/// Value of `CONFIG` in layout 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ConfigOfLayout1 {
    /// Key of that layout's hashes.
    pub seed: u64,
    /// 1.
    pub layout_version: u32,
    /// As [`Config::generation`].
    pub generation: u32,
    /// As [`Config::levels`].
    pub levels: [i32; CGROUP_LEVELS],
}
const _: () = assert!(size_of::<ConfigOfLayout1>() == 32);

/// Value of `KEYS` (array of one): random, written before any program runs, never changed while the maps live, readable
/// by root only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Keys {
    /// For flows in `FLOWS`.
    pub flow: SipKey,
    /// For questions in `QUERIES`.
    pub question: SipKey,
    /// For names in `ALIASES`.
    pub name: SipKey,
}
const _: () = assert!(size_of::<Keys>() == 48);

impl Config {
    /// Whether what enforces audits by now. Reads the clock only where enforcing has an end.
    #[inline(always)]
    #[must_use]
    pub fn is_enforcing_over(&self, now_ns: impl FnOnce() -> u64) -> bool {
        self.enforce_until_ns != 0 && now_ns() >= self.enforce_until_ns
    }

    /// The binding by which a workload is judged: what enforces audits once that is over.
    #[inline(always)]
    #[must_use]
    pub fn effective(&self, binding: Binding, now_ns: impl FnOnce() -> u64) -> Binding {
        if self.is_enforcing_over(now_ns) {
            Binding {
                mode: Mode::Audit as u8,
                ..binding
            }
        } else {
            binding
        }
    }
}

/// Most distinct cgroup depths at which workloads can be bound.
pub const CGROUP_LEVELS: usize = 4;

/// Ends the list of levels.
pub const NO_LEVEL: i32 = -1;

/// Key of `WORKLOADS` for everything that is bound nowhere else: the node.
pub const NODE_CGROUP: u64 = 0;

/// Key of `QUERIES`: a query that a socket sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryKey {
    /// Cookie of the socket.
    pub cookie: u64,
    /// The resolver that was asked.
    pub resolver: Address,
    /// The query's id as its two bytes stand in the message.
    pub id: [u8; 2],
    /// The port that it was sent from, host byte order.
    pub port: u16,
    /// IANA protocol number: UDP or TCP.
    pub proto: u8,
    /// Padding, always zero.
    pub _pad: [u8; 3],
}
const _: () = assert!(size_of::<QueryKey>() == 32 && align_of::<QueryKey>() == 8);

/// Key of `ALIASES`: a name that an allowed name is an alias of, in the scope that resolved it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AliasKey {
    /// Keyed hash of the name, in lower case.
    pub name: u64,
    /// The scope.
    pub scope_id: u32,
    /// Padding, always zero: the kernel hashes every byte of a key.
    pub _pad: u32,
}
const _: () = assert!(size_of::<AliasKey>() == 16 && align_of::<AliasKey>() == 8);

impl AliasKey {
    /// The key of a name in a scope.
    #[inline(always)]
    #[must_use]
    pub const fn new(name: u64, scope_id: u32) -> Self {
        Self {
            name,
            scope_id,
            _pad: 0,
        }
    }

    /// What the entry of this key carries as its `owner`.
    #[inline(always)]
    #[must_use]
    pub const fn owner(&self) -> u64 {
        mix(self.name, self.scope_id as u64)
    }
}

/// Value of `ALIASES`: while the alias lives, answers about its target teach under these rules.
///
/// An entry is replaced as a whole, except for its end, which only grows. A freed entry may be given to another key
/// while a reader still copies it: readers compare `owner`, which comes first, after the copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Alias {
    /// [`AliasKey::owner`] of the key.
    pub owner: u64,
    /// When the alias ends, nanoseconds of the monotonic clock.
    pub expires_at_ns: u64,
    /// The rules of the name that was asked for.
    pub rules: NameRules,
}
const _: () = assert!(size_of::<Alias>() == 168 && align_of::<Alias>() == 8);

/// After an answer that the kernel leaves to the agent, what its scope cannot reach yet is held off this long rather
/// than refused.
pub const HOLD_NS: u64 = 1_000_000_000;

/// Bit of a key of `HOLDS`, beside the scope: there was no room for one of its addresses.
pub const HOLDS_FULL: u32 = 1 << 31;

/// A denial says this long that the table was full.
pub const FULL_NS: u64 = 60 * 1_000_000_000;

/// Value of `QUERIES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Keyed hash of the question: name in lower case, type, class.
    pub question: u64,
    /// When it was sent, nanoseconds of the monotonic clock.
    pub sent_at_ns: u64,
}
const _: () = assert!(size_of::<Query>() == 16);

/// An answer that comes later than this after its query teaches nothing.
pub const ANSWER_LATE_NS: u64 = 10 * 1_000_000_000;

/// Value of `INTERFACES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Interface {
    /// Bytes of its link-layer header.
    pub header_bytes: u32,
    /// [`LEADS_TO_POD`].
    pub flags: u32,
    /// On the host's end of a pod's interface: the cgroup under whose workload a frame without a socket is judged. The
    /// agent writes one whose workload may do little; the kernel the cgroup of the pod whose sockets it sees there.
    /// One aligned store, so that a reader has the one or the other.
    pub owner: u64,
}
const _: () = assert!(size_of::<Interface>() == 16 && align_of::<Interface>() == 8);

/// Flag of an [`Interface`]: the host's end of a pod's interface. What arrives there has left the pod.
pub const LEADS_TO_POD: u32 = 1;

/// Value of `RULE_COUNTERS`: decisions that rest on a rule (first packets of flows, refused connects), and those of a
/// workload that rest on a rule or on the lack of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RuleCounters {
    /// One for each [`Verdict`](crate::verdict::Verdict), by its number; a power of two of them.
    pub decisions: [u64; 4],
}
const _: () = assert!(size_of::<RuleCounters>() == 32);

/// Key of `RULE_COUNTERS` for the decisions of a workload, by its `identity`. No rule has this number: an identity of a
/// rule has [`RULE_BITS`](crate::hash::RULE_BITS) bits.
#[must_use]
pub const fn workload_counter(identity: u32) -> u64 {
    WORKLOAD_COUNTER | identity as u64
}

/// What keys of workloads have, and those of rules have not.
pub const WORKLOAD_COUNTER: u64 = 1 << 63;

/// Default capacity of `LEARNED`. The agent can load another. While a policy is switched, every address lies there twice.
pub const LEARNED_CAPACITY: u32 = 524_288;
/// Capacity of `NAMES`.
pub const NAMES_CAPACITY: u32 = 262_144;
/// Capacity of `CIDRS`.
pub const CIDRS_CAPACITY: u32 = if cfg!(feature = "layout-next") {
    262_144 + 1
} else {
    262_144
};
/// Capacity of `WORKLOADS`.
pub const WORKLOADS_CAPACITY: u32 = 4_096;
/// Capacity of `RESOLVERS`.
pub const RESOLVERS_CAPACITY: u32 = 256;
/// Capacity of `LOCAL`.
pub const LOCAL_CAPACITY: u32 = 4_096;
/// Capacity of `QUERIES`: with 2 s between query and answer, 32,000 queries per second.
pub const QUERIES_CAPACITY: u32 = 65_536;
/// Capacity of `ALIASES`.
pub const ALIASES_CAPACITY: u32 = 65_536;
/// Capacity of `HOLDS`.
pub const HOLDS_CAPACITY: u32 = 8_192;
/// Capacity of `FLOWS`.
pub const FLOWS_CAPACITY: u32 = 65_536;
/// Capacity of `RULE_COUNTERS`.
pub const RULE_COUNTERS_CAPACITY: u32 = if cfg!(feature = "layout-next") {
    262_144 + 1
} else {
    262_144
};
/// Capacity of `RULES`.
pub const RULES_CAPACITY: u32 = 262_144;
/// Capacity of `INTERFACES`.
pub const INTERFACES_CAPACITY: u32 = 4_096;
/// Bytes of `EVENTS`.
pub const EVENTS_BYTES: u32 = 1 << 20;
/// Bytes of `DNS_COPIES`.
pub const DNS_COPIES_BYTES: u32 = 1 << 22;

/// Names of every map, which are also the names of their pins.
pub const MAP_NAMES: &[&str] = &[
    "CONFIG",
    "KEYS",
    "WORKLOADS",
    "NAMES",
    "CIDRS",
    "RULES",
    "INTERFACES",
    "RESOLVERS",
    "LOCAL",
    "LEARNED",
    "QUERIES",
    "ALIASES",
    "HOLDS",
    "SOCKETS",
    "FLOWS",
    "COUNTERS",
    "TALLIES",
    "RULE_COUNTERS",
    "EVENT_BUDGETS",
    "EVENTS",
    "DNS_COPIES",
];

/// Most sockets whose process is noted, where that is on. The map is never pinned.
pub const PROCESSES_CAPACITY: u32 = 8_192;

/// Those that the kernel writes. Programs of another layout go on with the same ones, if they have the same form.
pub const KERNEL_MAPS: &[&str] = &[
    "LEARNED",
    "QUERIES",
    "ALIASES",
    "HOLDS",
    "SOCKETS",
    "FLOWS",
    "COUNTERS",
    "TALLIES",
    "RULE_COUNTERS",
    "EVENT_BUDGETS",
    "EVENTS",
    "DNS_COPIES",
];

#[cfg(feature = "user")]
mod user {
    //! `aya::Pod` for keys and values.
    #![expect(unsafe_code, reason = "Pod is an unsafe trait")]

    use super::{
        Alias, AliasKey, Config, ConfigOfLayout1, Interface, Keys, Query, QueryKey, RuleCounters,
    };
    use crate::{
        event::EventBudget,
        flow::{FlowKey, FlowState, SocketState},
        learned::{Learned, LearnedKey},
        policy::{CidrRules, NameEntry, RuleKey, Workload},
    };

    macro_rules! pod {
        ($($t:ty),+ $(,)?) => {
            $(
                // SAFETY: repr(C) of fixed-width integers and byte arrays, padding is a
                // field, and the size is asserted beside the type: any bit pattern is valid.
                unsafe impl aya::Pod for $t {}
            )+
        };
    }
    pod!(
        Alias,
        AliasKey,
        Config,
        ConfigOfLayout1,
        Interface,
        Keys,
        Query,
        QueryKey,
        RuleCounters,
        EventBudget,
        FlowKey,
        FlowState,
        SocketState,
        Learned,
        LearnedKey,
        CidrRules,
        NameEntry,
        RuleKey,
        Workload,
    );
}
