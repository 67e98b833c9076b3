//! A compiled policy as the kernel reads it: entries of the name and CIDR tries.
//!
//! The compiler resolves what a longest-prefix match cannot: every entry holds
//! the union of all rules that cover it, best first, so that one lookup and
//! the first entry that matches the port give the answer.

use crate::address::Address;

/// IANA protocol numbers that have a meaning of their own here.
pub mod protocol {
    /// IPv4 ICMP.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// In a rule: any protocol. (0 is IPv6 hop-by-hop, never the protocol of a flow.)
    pub const ANY: u8 = 0;
}

/// Bit of [`PortRange::require`]: the connection begins with a TLS hello that names a destination of the rule.
pub const REQUIRE_TLS: u8 = 1;

/// Ports of one protocol, both ends included.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct PortRange {
    /// IANA protocol number; [`protocol::ANY`] for all. [`protocol::ICMP`] stands for ICMPv6 too.
    pub proto: u8,
    /// Condition that a connection to these ports has to meet before it passes: [`REQUIRE_TLS`], or 0 for none.
    pub require: u8,
    /// First port, host byte order.
    pub first: u16,
    /// Last port, host byte order.
    pub last: u16,
}
const _: () = assert!(size_of::<PortRange>() == 6);

impl PortRange {
    /// Any port of any protocol.
    pub const ANY: Self = Self::new(protocol::ANY, 0, u16::MAX);

    /// The ports `first` to `last` of `proto`.
    #[must_use]
    pub const fn new(proto: u8, first: u16, last: u16) -> Self {
        Self {
            proto,
            require: 0,
            first,
            last,
        }
    }

    /// The same ports, for connections that meet this condition.
    #[must_use]
    pub const fn requiring(self, require: u8) -> Self {
        Self { require, ..self }
    }

    /// The range as one number.
    #[inline(always)]
    #[must_use]
    pub const fn word(&self) -> u64 {
        (self.require as u64) << 40
            | (self.proto as u64) << 32
            | (self.first as u64) << 16
            | self.last as u64
    }

    /// The range covers `port` of `proto`.
    ///
    /// `None` is a flow without ports (ICMP, later fragments, other
    /// protocols): only a range of all ports covers it.
    #[inline(always)]
    #[must_use]
    pub const fn covers(&self, proto: u8, port: Option<u16>) -> bool {
        let proto = if proto == protocol::ICMPV6 {
            protocol::ICMP
        } else {
            proto
        };
        if self.proto != protocol::ANY && self.proto != proto {
            return false;
        }
        match port {
            Some(port) => self.first <= port && port <= self.last,
            None => self.first == 0 && self.last == u16::MAX,
        }
    }
}

/// Kinds of entries of a CIDR. [`EntryKind::ORDER`] is the order in an entry list: the first one wins.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// An address of the node, part of the lifeline: counts for senders in other network namespaces alone. In the
    /// node's own, local packets are on the loopback device; those on another one go to somebody else with this
    /// address.
    Local = 5,
    /// A destination that the node needs to stay manageable: beats deny rules.
    Lifeline = 1,
    /// A deny rule: beats every grant.
    Deny = 2,
    /// An allow rule.
    Allow = 3,
    /// A deny rule of a policy in audit, beside policies that are enforced: decides nothing.
    Audited = 4,
}

impl EntryKind {
    /// Every kind, in the order of an entry list.
    pub const ORDER: [Self; 5] = [
        Self::Local,
        Self::Lifeline,
        Self::Deny,
        Self::Allow,
        Self::Audited,
    ];

    /// Place in [`EntryKind::ORDER`].
    #[must_use]
    pub const fn rank(self) -> u8 {
        match self {
            Self::Local => 0,
            Self::Lifeline => 1,
            Self::Deny => 2,
            Self::Allow => 3,
            Self::Audited => 4,
        }
    }

    /// It is a part of the lifeline.
    #[must_use]
    pub const fn is_lifeline(self) -> bool {
        matches!(self, Self::Local | Self::Lifeline)
    }
}

/// One rule for one port range.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RuleEntry {
    /// Identity of the rule: the same content has the same number in every generation.
    pub rule: u64,
    /// The ports that it is about.
    pub ports: PortRange,
    /// An [`EntryKind`]; 0 ends the list.
    pub kind: u8,
    /// Padding, always zero.
    pub _pad: u8,
}
const _: () = assert!(size_of::<RuleEntry>() == 16 && align_of::<RuleEntry>() == 8);

impl RuleEntry {
    /// It opens its ports.
    #[must_use]
    pub const fn opens(&self) -> bool {
        self.kind == EntryKind::Allow as u8
            || self.kind == EntryKind::Lifeline as u8
            || self.kind == EntryKind::Local as u8
    }
}

/// Most entries that one CIDR can hold.
pub const CIDR_ENTRIES: usize = 16;

/// Value of the CIDR trie: every rule that covers the prefix, in the order of [`EntryKind::ORDER`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CidrRules {
    /// The entries; the first one whose ports match decides.
    pub entries: [RuleEntry; CIDR_ENTRIES],
}
const _: () = assert!(size_of::<CidrRules>() == 256);

impl CidrRules {
    /// The first entry that covers the port, policies in audit left aside, and addresses of the node unless
    /// `counts_local`. Not inlined: the kernel's stack is small.
    #[inline(never)]
    #[must_use]
    pub fn find(&self, proto: u8, port: Option<u16>, counts_local: bool) -> Option<&RuleEntry> {
        for entry in &self.entries {
            if entry.kind == 0 || entry.kind == EntryKind::Audited as u8 {
                return None;
            }
            if !counts_local && entry.kind == EntryKind::Local as u8 {
                continue;
            }
            if entry.ports.covers(proto, port) {
                return Some(entry);
            }
        }
        None
    }

    /// Identity of the rule by which a policy in audit denies the port; 0 for none.
    #[inline(never)]
    #[must_use]
    pub fn auditor(&self, proto: u8, port: Option<u16>) -> u64 {
        for entry in &self.entries {
            if entry.kind == 0 {
                return 0;
            }
            if entry.kind == EntryKind::Audited as u8 && entry.ports.covers(proto, port) {
                return entry.rule;
            }
        }
        0
    }
}

/// Bytes of a CIDR trie key: the trie puts the value behind it, which has to be aligned.
pub const CIDR_KEY_BYTES: usize = 24;

/// Data of a CIDR trie key: policy id (big endian), the address, zeros. Prefix lengths count the id's 16 bits.
#[must_use]
#[inline(always)]
pub const fn cidr_key(policy_id: u16, address: &Address) -> [u8; CIDR_KEY_BYTES] {
    let [high, low] = policy_id.to_be_bytes();
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [
        high, low, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, 0, 0, 0, 0, 0, 0,
    ]
}

/// Bits of the policy id that every trie key starts with.
pub const POLICY_ID_BITS: u32 = 16;

/// Prefix length of a CIDR trie key for one address.
pub const CIDR_KEY_BITS: u32 = POLICY_ID_BITS + 128;

/// Most port ranges that one name, and one learned address, can hold.
pub const NAME_ENTRIES: usize = 8;

/// Longest time that a use keeps an address open, seconds.
pub const GRACE_MAX_S: u32 = u16::MAX as u32;

/// Every rule that covers a name.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NameRules {
    /// Identity of the deny rule that covers the name; 0 for none. A denied name teaches nothing.
    pub deny: u64,
    /// Identity of the rule by which a policy in audit denies the name; 0 for none. Grants that the name teaches carry
    /// it.
    pub auditor: u64,
    /// Shortest life of a grant that the name teaches, seconds.
    pub ttl_min_s: u32,
    /// Longest life of a grant that the name teaches, seconds.
    pub ttl_max_s: u32,
    /// An allowed flow keeps its grant by the name open this long, seconds; at most [`GRACE_MAX_S`].
    pub ttl_grace_s: u32,
    /// Padding, always zero.
    pub _pad: u32,
    /// The grants that the name teaches; kind 0 ends the list.
    pub entries: [RuleEntry; NAME_ENTRIES],
}
const _: () = assert!(size_of::<NameRules>() == 160 && align_of::<NameRules>() == 8);

impl NameRules {
    /// They neither allow nor deny.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        let [first, ..] = &self.entries;
        self.deny == 0 && first.kind == 0
    }

    /// The grace of grants that the name teaches, as they hold it.
    #[inline(always)]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "compared before; the programs have no checked conversion"
    )]
    pub const fn grace_s(&self) -> u16 {
        if self.ttl_grace_s > GRACE_MAX_S {
            u16::MAX
        } else {
            self.ttl_grace_s as u16
        }
    }

    /// How long an address lives that an answer with this TTL teaches, in seconds.
    #[inline(always)]
    #[must_use]
    pub const fn lifetime_s(&self, ttl_s: u32) -> u32 {
        // RFC 2181 section 8: a TTL with its top bit set is zero.
        let ttl_s = if ttl_s >> 31 == 1 { 0 } else { ttl_s };
        let ttl_s = if ttl_s < self.ttl_min_s {
            self.ttl_min_s
        } else {
            ttl_s
        };
        if ttl_s > self.ttl_max_s {
            self.ttl_max_s
        } else {
            ttl_s
        }
    }
}

/// Value of the name trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NameEntry {
    /// The rules of every pattern that covers all names which begin (reversed) with the key; may be empty.
    pub rules: NameRules,
    /// Set of the patterns with `*` inside the first label that end like the key; 0 for none. A name whose first label
    /// begins like one of them has the rules that stand there instead.
    pub labels: u32,
    /// Bytes behind the first label of the names that the set is about, dots included.
    pub tail_bytes: u32,
}
const _: () = assert!(size_of::<NameEntry>() == 168 && align_of::<NameEntry>() == 8);

/// The workload keeps TCP flows that are older than the programs.
pub const KEEP_PREEXISTING: u8 = 1;
/// Some name of the policy is denied: aliases have to be matched as well.
pub const HAS_DENIED_NAMES: u8 = 2;

/// Only queries for allowed names may be asked, and only of trusted resolvers.
pub const ONLY_ALLOWED_QUERIES: u8 = 4;
/// A policy in audit stands beside those that are enforced, and denies something.
pub const HAS_AUDITORS: u8 = 8;

/// Policy id under which `NAMES` holds the search domains: names below them may always be asked. No policy has it.
pub const SEARCH_POLICY: u16 = u16::MAX - 1;

/// The policy that applies to a workload, and the scope that it learns into.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Binding {
    /// Scope that profits from the workload's lookups. New for every switch of its policy.
    pub scope_id: u32,
    /// The policy; 0 restricts nothing.
    pub policy_id: u16,
    /// A [`Mode`](crate::verdict::Mode) as a number; anything but 1 enforces.
    pub mode: u8,
    /// [`KEEP_PREEXISTING`], [`HAS_DENIED_NAMES`], [`ONLY_ALLOWED_QUERIES`], [`HAS_AUDITORS`].
    pub flags: u8,
}
const _: () = assert!(size_of::<Binding>() == 8);

impl Binding {
    /// Only queries for allowed names may be asked.
    #[inline(always)]
    #[must_use]
    pub const fn restricts_queries(&self) -> bool {
        self.flags & ONLY_ALLOWED_QUERIES != 0
    }

    /// The mode that applies.
    #[inline(always)]
    #[must_use]
    pub const fn mode(&self) -> crate::verdict::Mode {
        if self.mode == crate::verdict::Mode::Audit as u8 {
            crate::verdict::Mode::Audit
        } else {
            crate::verdict::Mode::Enforce
        }
    }
}

/// The workload is the node's own processes, whose kernel replies pass.
pub const IS_NODE: u32 = 1;
/// The workload runs a trusted resolver: it may send from its address and port.
pub const ANSWERS_DNS: u32 = 2;

impl Workload {
    /// These are the node's own processes.
    #[inline(always)]
    #[must_use]
    pub const fn is_node(&self) -> bool {
        self.flags & IS_NODE != 0
    }

    /// It may answer in the name of a trusted resolver.
    #[inline(always)]
    #[must_use]
    pub const fn may_answer(&self) -> bool {
        self.flags & (IS_NODE | ANSWERS_DNS) != 0
    }
}

/// Value of the workload map. Replaced as a whole, so that a switch is atomic.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Workload {
    /// The binding that judges its packets now.
    pub current: Binding,
    /// The one that will judge them after the switch that is being prepared: answers
    /// teach both, so that nothing is lost between. `policy_id` 0: no switch.
    pub next: Binding,
    /// [`IS_NODE`], [`ANSWERS_DNS`].
    pub flags: u32,
    /// Number of the workload that no switch changes; owns its UDP flows.
    pub identity: u32,
}
const _: () = assert!(size_of::<Workload>() == 24);

/// Key of `RULES`: the name rules that a policy has. A flow that one of them grants goes on after its TTL.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleKey {
    /// Identity of the rule.
    pub rule: u64,
    /// The policy.
    pub policy_id: u16,
    /// Padding, always zero: the kernel hashes every byte of a key.
    pub _pad: [u8; 6],
}
const _: () = assert!(size_of::<RuleKey>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_covers_its_ends_and_nothing_beyond() {
        let range = PortRange::new(protocol::TCP, 8000, 8080);
        for (port, covered) in [(7999, false), (8000, true), (8080, true), (8081, false)] {
            assert_eq!(range.covers(protocol::TCP, Some(port)), covered, "{port}");
        }
        assert!(!range.covers(protocol::UDP, Some(8000)));
    }

    #[test]
    fn a_flow_without_ports_matches_only_all_ports() {
        assert!(!PortRange::new(protocol::UDP, 53, 53).covers(protocol::UDP, None));
        assert!(PortRange::new(protocol::UDP, 0, u16::MAX).covers(protocol::UDP, None));
        assert!(PortRange::ANY.covers(47, None));
        assert!(!PortRange::new(protocol::TCP, 0, u16::MAX).covers(47, None));
    }

    #[test]
    fn icmp_in_a_rule_means_both_versions() {
        let icmp = PortRange::new(protocol::ICMP, 0, u16::MAX);
        assert!(icmp.covers(protocol::ICMP, None) && icmp.covers(protocol::ICMPV6, None));
        assert!(!icmp.covers(protocol::UDP, None));
    }

    #[test]
    fn the_first_entry_that_covers_the_port_wins() {
        let mut rules = CidrRules::default();
        let entry = |rule, kind, ports| RuleEntry {
            rule,
            ports,
            kind,
            _pad: 0,
        };
        rules.entries[0] = entry(1, 2, PortRange::new(protocol::TCP, 22, 22));
        rules.entries[1] = entry(2, 3, PortRange::ANY);
        assert_eq!(
            rules.find(protocol::TCP, Some(22), true).map(|e| e.rule),
            Some(1)
        );
        assert_eq!(
            rules.find(protocol::TCP, Some(23), true).map(|e| e.rule),
            Some(2)
        );
    }

    #[test]
    fn lifetime_is_clamped_and_a_negative_ttl_is_zero() {
        let rules = NameRules {
            ttl_min_s: 30,
            ttl_max_s: 86_400,
            ..NameRules::default()
        };
        for (ttl, life) in [
            (0, 30),
            (29, 30),
            (31, 31),
            (86_401, 86_400),
            (0x7fff_ffff, 86_400),
            (0x8000_0000, 30),
        ] {
            assert_eq!(rules.lifetime_s(ttl), life, "{ttl}");
        }
    }
}
