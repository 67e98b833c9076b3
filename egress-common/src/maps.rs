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
//! | `ALIASES` | kernel only (`learn`, `sweep`), under the entry's lock | DNS |
//! | `SCOPES` | agent, before it binds a scope; kernel, counts | DNS |
//! | `HOLDS`, `HELD` | kernel | denied first packets |
//! | `SOCKETS`, `FLOWS` | kernel | every packet |
//! | `SEEN` | kernel | second packets |
//! | `CALLED` | kernel; agent, once, beside older `FLOWS` | first packets |
//! | `ASKED` | kernel, at `connect()` and `sendto()` | first packets, DNS |
//! | `COUNTERS`, `TALLIES`, `RULE_COUNTERS` | kernel, atomic adds | agent |
//! | `EVENTS`, `DNS_COPIES` | kernel | agent |

use crate::{
    hash::{Sip, SipKey},
    learned::{bpf_spin_lock, holder_word},
    policy::{Binding, NameRules},
    verdict::Mode,
};

/// Version of everything in this crate that is stored in maps. A change of any layout raises it.
///
/// Agents of two layouts read each other's maps while one takes over from the
/// other. So a map of [`KERNEL_MAPS`] whose meaning changes also changes its
/// size or its name. An agent reads another layout's `CONFIG` as [`ConfigOfLayout1`] or this one's [`Config`].
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
    /// From this point on, nanoseconds of the clock since boot, `enforce` reads as `audit`; 0 for never.
    pub enforce_until_ns: u64,
    /// Number of the node's own network namespace (see [`holder_word`]); 0 while it is not known.
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
    /// Policies that enforce only audit by now. Reads the clock only where enforcing has an end.
    #[inline(always)]
    #[must_use]
    pub fn is_enforcing_over(&self, now_ns: impl FnOnce() -> u64) -> bool {
        self.enforce_until_ns != 0 && now_ns() >= self.enforce_until_ns
    }

    /// The binding by which a workload is judged: one that enforces only audits once enforcing is over.
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

/// Key of `ALIASES`: a name that an allowed name is an alias of, of the holder that resolved it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AliasKey {
    /// SipHash of the name under [`Keys::name`]: see [`alias_hash`]. It finds the entry and grants nothing: the name
    /// itself would be a key of 256 bytes, which the kernel hashes as a whole at every look.
    pub name: u64,
    /// The scope.
    pub scope_id: u32,
    /// The network namespace; 0, not known, holds nothing.
    pub netns: u32,
}
const _: () = assert!(size_of::<AliasKey>() == 16 && align_of::<AliasKey>() == 8);

impl AliasKey {
    /// The key of a name of a holder.
    #[inline(always)]
    #[must_use]
    pub const fn new(name: u64, scope_id: u32, netns: u32) -> Self {
        Self {
            name,
            scope_id,
            netns,
        }
    }

    /// The holder as an entry has it.
    #[inline(always)]
    #[must_use]
    pub const fn holder(&self) -> u64 {
        holder_word(self.scope_id, self.netns)
    }
}

/// Words of a name in [`Alias`].
pub const ALIAS_WORDS: usize = 32;

/// A name as [`Alias`] holds it: lower-case text, backwards as in the keys of `NAMES`, zeros behind it.
pub type AliasName = [u64; ALIAS_WORDS];

/// A name as [`Alias`] holds it; `None` when it has more bytes than a name can have.
#[must_use]
pub fn alias_name(name: &str) -> Option<AliasName> {
    let mut bytes = [0; ALIAS_WORDS * 8];
    let (text, _) = bytes.split_at_mut_checked(name.len())?;
    for (slot, byte) in text.iter_mut().zip(name.bytes().rev()) {
        *slot = byte;
    }
    let mut words = [0; ALIAS_WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*chunk);
    }
    Some(words)
}

/// Hash of a name for [`AliasKey::name`]: of its words up to the last that is not zero.
#[inline(always)]
#[must_use]
pub fn alias_hash(key: &SipKey, name: &AliasName) -> u64 {
    let mut state = Sip::new(key);
    for word in name {
        if *word == 0 {
            break;
        }
        state = state.word(*word);
    }
    state.finish()
}

/// Value of `ALIASES`: while the alias lives, answers about its target teach under these rules.
///
/// Written as `LEARNED` is (see [`learned`](crate::learned)): inserted without rules, filled under the lock, deleted in
/// two steps. Readers copy the rules under the lock and compare holder and name after that, byte for byte: another name
/// with the same hash finds an entry that is not its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    /// [`AliasKey::holder`] of the key; [`DOOMED`](crate::learned::DOOMED) before it is deleted.
    pub holder: u64,
    /// The name.
    pub name: AliasName,
    /// Guards every write, and every read of `rules`.
    pub lock: bpf_spin_lock,
    /// Padding, always zero.
    pub _pad: u32,
    /// When the alias ends, nanoseconds of the clock since boot.
    pub expires_at_ns: u64,
    /// The rules of the name that was asked for.
    pub rules: NameRules,
}
const _: () = assert!(size_of::<Alias>() == 440 && align_of::<Alias>() == 8);

/// A request of the agent to the kernel about an alias.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AliasRequest {
    /// Key of the alias.
    pub key: AliasKey,
    /// [`ALIAS_NOTE`], [`ALIAS_DOOM`] or [`ALIAS_DELETE`].
    pub action: u64,
    /// When it ends; to doom: only an alias that ended before.
    pub expires_at_ns: u64,
    /// Its name; to note it.
    pub name: AliasName,
    /// Its rules; to note it.
    pub rules: NameRules,
}
const _: () = assert!(size_of::<AliasRequest>() == 448 && align_of::<AliasRequest>() == 8);

impl AliasRequest {
    /// The request as the kernel reads it: its memory, byte by byte.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let Self {
            key,
            action,
            expires_at_ns,
            name,
            rules,
        } = self;
        let mut bytes = [0; size_of::<Self>()];
        let mut at = bytes.iter_mut();
        let mut put = |field: &[u8]| {
            for byte in field {
                if let Some(slot) = at.next() {
                    *slot = *byte;
                }
            }
        };
        put(&key.name.to_ne_bytes());
        put(&key.scope_id.to_ne_bytes());
        put(&key.netns.to_ne_bytes());
        put(&action.to_ne_bytes());
        put(&expires_at_ns.to_ne_bytes());
        for word in name {
            put(&word.to_ne_bytes());
        }
        put(&rules.deny.to_ne_bytes());
        put(&rules.auditor.to_ne_bytes());
        put(&rules.ttl_min_s.to_ne_bytes());
        put(&rules.ttl_max_s.to_ne_bytes());
        put(&rules.ttl_grace_s.to_ne_bytes());
        put(&[0; 4]);
        for entry in &rules.entries {
            put(&entry.rule.to_ne_bytes());
            put(&[entry.ports.proto, entry.ports.require]);
            put(&entry.ports.first.to_ne_bytes());
            put(&entry.ports.last.to_ne_bytes());
            put(&[entry.kind, 0]);
        }
        bytes
    }
}

/// Notes the alias, or prolongs it.
pub const ALIAS_NOTE: u64 = 0;
/// Dooms the alias, if it has ended.
pub const ALIAS_DOOM: u64 = 1;
/// Deletes the alias, if it is doomed.
pub const ALIAS_DELETE: u64 = 2;

/// Most aliases in one batch of requests: as many as fit into a page.
pub const ALIAS_BATCH: usize = 7;

/// Value of `SCOPES`: one scope's use of the tables that workloads fill, and its share of them. The agent writes an
/// entry before it binds the scope, the kernel counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ScopeUse {
    /// Entries of `LEARNED`.
    pub learned: u64,
    /// Entries of `ALIASES`.
    pub aliases: u64,
    /// Addresses refused because the scope was at its share.
    pub learned_refused: u64,
    /// Aliases refused likewise.
    pub aliases_refused: u64,
    /// When the scope last woke the agent for lack of room, nanoseconds of the clock since boot.
    pub woken_at_ns: u64,
    /// Most entries of `LEARNED`.
    pub learned_share: u32,
    /// Most entries of `ALIASES`.
    pub aliases_share: u32,
}
const _: () = assert!(size_of::<ScopeUse>() == 48);

/// The part of a table that one pod may use, unless an option says otherwise: enough for 64 of them.
pub const SHARES: u32 = 64;
/// A pod may always use this many entries of a table.
pub const LEAST_SHARE: u32 = 4_096;

/// The share of a scope in a table of this capacity: the node's processes a quarter, a pod what [`SHARES`] says.
#[must_use]
pub const fn default_share(capacity: u32, is_node: bool) -> u32 {
    if is_node {
        return if capacity < 4 { capacity } else { capacity / 4 };
    }
    let share = capacity / SHARES;
    let share = if share < LEAST_SHARE {
        LEAST_SHARE
    } else {
        share
    };
    // In a small table nobody takes more than half.
    let half = if capacity < 2 { 1 } else { capacity / 2 };
    if share < half { share } else { half }
}

/// After an answer that the kernel leaves to the agent, flows that its scope may not send yet are deferred this long
/// rather than refused.
pub const HOLD_NS: u64 = 1_000_000_000;

/// Bit of a key of `HOLDS`, beside the holder ([`holder_word`]): there was no room for one of its addresses.
pub const HOLDS_FULL: u64 = 1 << 63;

/// A denial says this long that the table was full.
pub const FULL_NS: u64 = 60 * 1_000_000_000;

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

/// Flag of an [`Interface`]: the host's end of a pod's interface. Packets that arrive there have left the pod.
pub const LEADS_TO_POD: u32 = 1;

/// Value of `RULE_COUNTERS`: decisions by a rule (first packets of flows, refused connects), and those of a workload by
/// a rule or for lack of one.
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

/// Bit that keys of workloads have, and those of rules have not.
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
/// Buckets of `QUERIES`, a power of two; each has four places. With 2 s between query and answer, 32,000 queries per second.
pub const QUERY_BUCKETS: u32 = 16_384;
/// Capacity of `ALIASES`.
pub const ALIASES_CAPACITY: u32 = 65_536;
/// Capacity of `SCOPES`: every workload before and after a switch.
pub const SCOPES_CAPACITY: u32 = 2 * WORKLOADS_CAPACITY;
/// Capacity of `HOLDS`.
pub const HOLDS_CAPACITY: u32 = 8_192;
/// Buckets of `FLOWS`, a power of two; each has [`FLOW_SLOTS`](crate::flow::FLOW_SLOTS) places: 65,536 flows.
pub const FLOW_BUCKETS: u32 = 4_096;
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
    "RESOLVER_PORTS",
    "LOCAL",
    "LEARNED",
    "QUERIES",
    "STREAMS",
    "ASKED",
    "HELLOS",
    "ALIASES",
    "SCOPES",
    "HOLDS",
    "HELD",
    "SOCKETS",
    "SEEN",
    "FLOWS",
    "CALLED",
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
    "STREAMS",
    "ASKED",
    "HELLOS",
    "ALIASES",
    "SCOPES",
    "HOLDS",
    "HELD",
    "SOCKETS",
    "SEEN",
    "FLOWS",
    "CALLED",
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
        Alias, AliasKey, Config, ConfigOfLayout1, Interface, Keys, RuleCounters, ScopeUse,
    };
    use crate::{
        asked::AskedOf,
        event::EventBudget,
        flow::{CalledPorts, FlowBucket, SeenSocket, SocketState},
        learned::{Learned, LearnedKey},
        policy::{CidrRules, NameEntry, RuleKey, Workload},
        query::{QueryBucket, ResolverKey, ResolverPorts},
        stream::Stream,
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
        AskedOf,
        Config,
        ConfigOfLayout1,
        Interface,
        Keys,
        QueryBucket,
        Stream,
        ResolverKey,
        ResolverPorts,
        RuleCounters,
        ScopeUse,
        EventBudget,
        FlowBucket,
        SocketState,
        SeenSocket,
        CalledPorts,
        Learned,
        LearnedKey,
        CidrRules,
        NameEntry,
        RuleKey,
        Workload,
    );
}
