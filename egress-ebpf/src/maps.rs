//! The maps. `egress_common::maps` says who writes which, and when.

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type, bpf_sock,
    },
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    helpers::bpf_sk_storage_get,
    macros::btf_map,
};
use egress_common::{
    address::Address,
    asked::AskedOf,
    event::{EVENT_BUDGETS_CAPACITY, EventBudget, Process, VerdictEvent},
    flow::{CALLED_PLACES, CalledPorts, FlowBucket, SEEN_SOCKETS, SeenSocket, SocketState},
    hello::Hello,
    learned::{Learned, LearnedKey},
    maps::{
        ALIASES_CAPACITY, Alias, AliasKey, CIDRS_CAPACITY, Config, DNS_COPIES_BYTES, EVENTS_BYTES,
        FLOW_BUCKETS, HOLDS_CAPACITY, INTERFACES_CAPACITY, Interface, Keys, LEARNED_CAPACITY,
        LOCAL_CAPACITY, NAMES_CAPACITY, PROCESSES_CAPACITY, QUERY_BUCKETS, RESOLVERS_CAPACITY,
        RULE_COUNTERS_CAPACITY, RULES_CAPACITY, RuleCounters, SCOPES_CAPACITY, ScopeUse,
        WORKLOADS_CAPACITY,
    },
    name::NAME_KEY_BYTES,
    policy::{CIDR_KEY_BYTES, CidrRules, NameEntry, RuleKey, Workload},
    query::{QueryBucket, ResolverKey, ResolverPorts},
    stream::Stream,
    tally::TALLIES as TALLY_COUNT,
    verdict::COUNTERS as COUNTER_COUNT,
};

/// Maps whose entries grant something: a freed entry is not handed out again at once on kernels below 6.1,
/// and `LEARNED` entries name their owner for those above.
const GRANTING: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
pub static KEYS: Array<Keys, 1> = Array::new();

#[btf_map]
pub static WORKLOADS: HashMap<u64, Workload, { WORKLOADS_CAPACITY as usize }, GRANTING> =
    HashMap::new();

#[btf_map]
pub static NAMES: LpmTrie<[u8; NAME_KEY_BYTES], NameEntry, { NAMES_CAPACITY as usize }> =
    LpmTrie::new();

#[btf_map]
pub static CIDRS: LpmTrie<[u8; CIDR_KEY_BYTES], CidrRules, { CIDRS_CAPACITY as usize }> =
    LpmTrie::new();

#[btf_map]
pub static RULES: HashMap<RuleKey, u32, { RULES_CAPACITY as usize }, GRANTING> = HashMap::new();

#[btf_map]
pub static RESOLVERS: HashMap<ResolverKey, u32, { RESOLVERS_CAPACITY as usize }, GRANTING> =
    HashMap::new();

/// A first look, before `RESOLVERS`.
#[btf_map]
pub static RESOLVER_PORTS: Array<ResolverPorts, 1> = Array::new();

#[btf_map]
pub static LOCAL: HashMap<Address, u32, { LOCAL_CAPACITY as usize }, GRANTING> = HashMap::new();

/// By interface index.
#[btf_map]
pub static INTERFACES: HashMap<u32, Interface, { INTERFACES_CAPACITY as usize }, GRANTING> =
    HashMap::new();

#[btf_map]
pub static LEARNED: HashMap<LearnedKey, Learned, { LEARNED_CAPACITY as usize }, GRANTING> =
    HashMap::new();

/// Buckets with a lock each: whoever reads or writes one holds it.
#[btf_map]
pub static QUERIES: Array<QueryBucket, { QUERY_BUCKETS as usize }> = Array::new();

/// Names that allowed names are aliases of, by scope.
#[btf_map]
pub static ALIASES: HashMap<AliasKey, Alias, { ALIASES_CAPACITY as usize }, GRANTING> =
    HashMap::new();

/// Scopes' use of the tables that workloads fill, by scope id.
#[btf_map]
pub static SCOPES: HashMap<u32, ScopeUse, { SCOPES_CAPACITY as usize }, GRANTING> = HashMap::new();

/// Holder ([`holder_word`](egress_common::learned::holder_word)) to the end of its hold-off. Grants nothing: a lost entry means a refusal that could have waited.
#[btf_map]
pub static HOLDS: LruHashMap<u64, u64, { HOLDS_CAPACITY as usize }> = LruHashMap::new();

/// When the last of all entries of `HOLDS` ends, of each kind: while none lasts, nobody looks there.
#[btf_map]
pub static HELD: Array<u64, 2> = Array::new();

/// Buckets with a lock each, for writers; what readers accept proves itself. They clean themselves when no agent does, and a
/// reply whose flow was given up is denied with a reason of its own.
#[btf_map]
pub static FLOWS: Array<FlowBucket, { FLOW_BUCKETS as usize }> = Array::new();

/// UDP sockets that sent one packet, by cookie. Each place has a lock.
#[btf_map]
pub static SEEN: Array<SeenSocket, { SEEN_SOCKETS as usize }> = Array::new();

/// Local UDP ports that were called.
#[btf_map]
pub static CALLED: Array<CalledPorts, { CALLED_PLACES as usize }> = Array::new();

/// The process that made a socket, by its cookie, where the agent wants that; else nobody writes it. Grants nothing.
#[btf_map]
pub static PROCESSES: LruHashMap<u64, Process, { PROCESSES_CAPACITY as usize }> = LruHashMap::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { COUNTER_COUNT as usize }> = PerCpuArray::new();

#[btf_map]
pub static TALLIES: PerCpuArray<u64, { TALLY_COUNT as usize }> = PerCpuArray::new();

#[btf_map]
pub static RULE_COUNTERS: HashMap<
    u64,
    RuleCounters,
    { RULE_COUNTERS_CAPACITY as usize },
    GRANTING,
> = HashMap::new();

/// For each scope and for all: one budget for denials, one for allowed flows.
#[btf_map]
pub static EVENT_BUDGETS: PerCpuArray<EventBudget, { EVENT_BUDGETS_CAPACITY as usize }> =
    PerCpuArray::new();

#[btf_map]
pub static EVENTS: RingBuf<VerdictEvent, { EVENTS_BYTES as usize }> = RingBuf::new();

#[btf_map]
pub static DNS_COPIES: RingBuf<u8, { DNS_COPIES_BYTES as usize }> = RingBuf::new();

/// Socket storage that the sockets which a listener makes inherit. As aya's
/// `SkStorage`, which has neither the flag nor access by socket.
#[repr(C)]
pub struct Sockets {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const SocketState,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the pointers are placeholders for the loader and never read.
unsafe impl Sync for Sockets {}

#[btf_map]
pub static SOCKETS: Sockets = Sockets {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    max_entries: core::ptr::null(),
    map_flags: core::ptr::null(),
};

impl Sockets {
    /// The state of a socket, if it has one. What is no full socket has none.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> Option<*mut SocketState> {
        self.find(sk, 0)
    }

    /// The state of a full socket, made when it has none; `None` when there is no memory for it.
    #[inline(always)]
    pub fn get_or_create(&self, sk: *mut bpf_sock) -> Option<*mut SocketState> {
        self.find(sk, u64::from(BPF_SK_STORAGE_GET_F_CREATE))
    }

    #[inline(always)]
    fn find(&self, sk: *mut bpf_sock, flags: u64) -> Option<*mut SocketState> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: `sk` is a socket, which the verifier checks.
        let state = unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), flags) };
        if state.is_null() {
            None
        } else {
            Some(state.cast())
        }
    }
}

/// Socket storage of connections to resolvers, made by their first packet. Not inherited.
#[repr(C)]
pub struct Streams {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Stream,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the pointers are placeholders for the loader and never read.
unsafe impl Sync for Streams {}

#[btf_map]
pub static STREAMS: Streams = Streams {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    max_entries: core::ptr::null(),
    map_flags: core::ptr::null(),
};

impl Streams {
    #[inline(always)]
    fn storage(&self, sk: *mut bpf_sock, flags: u32) -> Option<*mut Stream> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: `sk` is a full socket, which the verifier checks.
        let stream =
            unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), u64::from(flags)) };
        if stream.is_null() {
            None
        } else {
            Some(stream.cast())
        }
    }

    /// The stream of a full socket.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> Option<*mut Stream> {
        self.storage(sk, 0)
    }

    /// The same, made when there is none; `None` when there is no memory for it.
    #[inline(always)]
    pub fn get_or_create(&self, sk: *mut bpf_sock) -> Option<*mut Stream> {
        self.storage(sk, BPF_SK_STORAGE_GET_F_CREATE)
    }
}

/// Socket storage of whom a socket has asked. Not inherited.
#[repr(C)]
pub struct AskedSockets {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const AskedOf,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the pointers are placeholders for the loader and never read.
unsafe impl Sync for AskedSockets {}

#[btf_map]
pub static ASKED: AskedSockets = AskedSockets {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    max_entries: core::ptr::null(),
    map_flags: core::ptr::null(),
};

impl AskedSockets {
    #[inline(always)]
    fn storage(&self, sk: *mut bpf_sock, flags: u32) -> Option<*mut AskedOf> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: `sk` is a socket, which the verifier checks.
        let asked =
            unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), u64::from(flags)) };
        if asked.is_null() {
            None
        } else {
            Some(asked.cast())
        }
    }

    /// The facts of a full socket.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> Option<*mut AskedOf> {
        self.storage(sk, 0)
    }

    /// The same, made when there is nothing; `None` when there is no memory for it.
    #[inline(always)]
    pub fn get_or_create(&self, sk: *mut bpf_sock) -> Option<*mut AskedOf> {
        self.storage(sk, BPF_SK_STORAGE_GET_F_CREATE)
    }
}

/// Socket storage of TCP connections that are to name their destination, made by their SYN. Not inherited.
#[repr(C)]
pub struct Hellos {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Hello,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the pointers are placeholders for the loader and never read.
unsafe impl Sync for Hellos {}

#[btf_map]
pub static HELLOS: Hellos = Hellos {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    max_entries: core::ptr::null(),
    map_flags: core::ptr::null(),
};

impl Hellos {
    #[inline(always)]
    fn storage(&self, sk: *mut bpf_sock, flags: u32) -> Option<*mut Hello> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: `sk` is a full socket, which the verifier checks.
        let hello =
            unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), u64::from(flags)) };
        if hello.is_null() {
            None
        } else {
            Some(hello.cast())
        }
    }

    /// The hello of a full socket.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> Option<*mut Hello> {
        self.storage(sk, 0)
    }

    /// The same, made when there is none; `None` when there is no memory for it.
    #[inline(always)]
    pub fn get_or_create(&self, sk: *mut bpf_sock) -> Option<*mut Hello> {
        self.storage(sk, BPF_SK_STORAGE_GET_F_CREATE)
    }
}
