//! Typed access to the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, RingBuf, lpm_trie::Key},
};
use egress_common::{
    address::Address,
    flow::{CALLED_PLACES, CalledPorts},
    learned::{Grant, Learned, LearnedKey},
    maps::{
        Alias, AliasKey, Config, Keys, RuleCounters, ScopeUse, WORKLOAD_COUNTER, default_share,
        workload_counter,
    },
    name::{NAME_KEY_BYTES, NameKey, below_key},
    policy::{
        CIDR_KEY_BYTES, CidrRules, EntryKind, NameEntry, NameRules, POLICY_ID_BITS, PortRange,
        RuleEntry, RuleKey, SEARCH_POLICY, Workload, cidr_key,
    },
    query::{Query, QueryBucket, ResolverKey, ResolverPorts, UNBALANCED},
    tally::Tally,
};

use super::{
    LearnedEntry, MapFill,
    bulk::Bulk,
    error::DatapathError,
    reader::{error, learned_entry, sum},
    walk::Walk,
};
use crate::policy::{Compiled, address_from};

type Hash<K, V> = HashMap<MapData, K, V>;

/// The maps that the agent reads and writes.
pub(super) struct Maps {
    pub(super) config: Array<MapData, Config>,
    keys: Array<MapData, Keys>,
    pub(super) workloads: Hash<u64, Workload>,
    names: LpmTrie<MapData, [u8; NAME_KEY_BYTES], NameEntry>,
    pub(super) cidrs: LpmTrie<MapData, [u8; CIDR_KEY_BYTES], CidrRules>,
    rules: Hash<RuleKey, u32>,
    resolvers: Hash<ResolverKey, u32>,
    resolver_ports: Array<MapData, ResolverPorts>,
    called: Array<MapData, CalledPorts>,
    local: Hash<Address, u32>,
    pub(super) learned: Hash<LearnedKey, Learned>,
    pub(super) holds: Hash<u64, u64>,
    queries: Array<MapData, QueryBucket>,
    pub(super) scopes: Hash<u32, ScopeUse>,
    tallies: PerCpuArray<MapData, u64>,
    rule_counters: Hash<u64, RuleCounters>,
    /// The same as `learned`, to be read as a whole.
    pub(super) all_learned: Walk<LearnedKey, Learned>,
    pub(super) all_aliases: Walk<AliasKey, Alias>,
    /// The search domains that this agent has written.
    search_domains: Option<Vec<String>>,
    bulk_names: Bulk<Key<[u8; NAME_KEY_BYTES]>, NameEntry>,
    bulk_cidrs: Bulk<Key<[u8; CIDR_KEY_BYTES]>, CidrRules>,
    bulk_rules: Bulk<RuleKey, u32>,
    /// The policies that this agent has written, by id.
    installed: BTreeMap<u16, Arc<Compiled>>,
    /// The rules that their names teach.
    rules_of: BTreeMap<u16, BTreeSet<u64>>,
    /// True if nothing else is in the maps.
    is_searched: bool,
}

/// The parts of tables that scopes may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// The part of a scope other than the node, in percent; `None` for the default.
    pub percent: Option<u8>,
}

impl Shares {
    /// The share of a scope in a table of this capacity.
    #[must_use]
    pub fn of(self, capacity: u32, is_node: bool) -> u32 {
        match self.percent {
            Some(percent) if !is_node => {
                let share = u64::from(capacity).saturating_mul(u64::from(percent)) / 100;
                u32::try_from(share).unwrap_or(capacity).max(1)
            }
            _ => default_share(capacity, is_node),
        }
    }
}

/// Takes a map out of the object.
pub(super) fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DatapathError>
where
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf
        .take_map(name)
        .ok_or(DatapathError::Missing { what: "map", name })?;
    T::try_from(map).map_err(error("open", name))
}

/// Takes a ring buffer out of the object.
pub(super) fn take_ring(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<RingBuf<MapData>, DatapathError> {
    take(ebpf, name)
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            bulk_names: Bulk::open(ebpf, "NAMES")?,
            bulk_cidrs: Bulk::open(ebpf, "CIDRS")?,
            bulk_rules: Bulk::open(ebpf, "RULES")?,
            all_learned: Walk::open(ebpf, "LEARNED")?,
            all_aliases: Walk::open(ebpf, "ALIASES")?,
            installed: BTreeMap::new(),
            rules_of: BTreeMap::new(),
            is_searched: false,
            config: take(ebpf, "CONFIG")?,
            keys: take(ebpf, "KEYS")?,
            workloads: take(ebpf, "WORKLOADS")?,
            names: take(ebpf, "NAMES")?,
            cidrs: take(ebpf, "CIDRS")?,
            rules: take(ebpf, "RULES")?,
            resolvers: take(ebpf, "RESOLVERS")?,
            resolver_ports: take(ebpf, "RESOLVER_PORTS")?,
            called: take(ebpf, "CALLED")?,
            local: take(ebpf, "LOCAL")?,
            learned: take(ebpf, "LEARNED")?,
            holds: take(ebpf, "HOLDS")?,
            queries: take(ebpf, "QUERIES")?,
            scopes: take(ebpf, "SCOPES")?,
            tallies: take(ebpf, "TALLIES")?,
            rule_counters: take(ebpf, "RULE_COUNTERS")?,
            search_domains: None,
        })
    }

    /// Reads the random keys.
    pub(super) fn keys(&self) -> Result<Keys, DatapathError> {
        self.keys.get(&0, 0).map_err(error("read", "KEYS"))
    }

    /// Writes the random keys: once, when the maps are made.
    pub(super) fn set_keys(&mut self, keys: Keys) -> Result<(), DatapathError> {
        self.keys.set(0, keys, 0).map_err(error("write", "KEYS"))
    }

    /// Reads the configuration.
    pub(super) fn config(&self) -> Result<Config, DatapathError> {
        self.config.get(&0, 0).map_err(error("read", "CONFIG"))
    }

    /// Writes the configuration.
    pub(super) fn set_config(&mut self, config: Config) -> Result<(), DatapathError> {
        self.config
            .set(0, config, 0)
            .map_err(error("write", "CONFIG"))
    }

    /// Writes a compiled policy under an id that nothing uses yet.
    pub(super) fn install(
        &mut self,
        policy_id: u16,
        compiled: &Arc<Compiled>,
    ) -> Result<(), DatapathError> {
        // Known before it is written, so that what a failure leaves is removed.
        self.installed.insert(policy_id, Arc::clone(compiled));
        self.rules_of.insert(policy_id, rules_of(compiled));
        let names = compiled.names.entries(policy_id);
        self.bulk_names
            .insert(names.map(|(key, entry)| (name_key(key), entry)))?;
        let cidrs = cidr_keys(policy_id, compiled).zip(compiled.cidrs.values().copied());
        self.bulk_cidrs.insert(cidrs)?;
        let rules = self.rules_of.get(&policy_id).into_iter().flatten();
        self.bulk_rules
            .insert(rules.map(|rule| (rule_key(policy_id, *rule), 1)))
    }

    /// Removes every trace of policies other than `keep`.
    pub(super) fn remove_policies_but(
        &mut self,
        keep: &BTreeSet<u16>,
    ) -> Result<(), DatapathError> {
        let old: Vec<u16> = self.installed.keys().copied().collect();
        for policy_id in old.into_iter().filter(|id| !keep.contains(id)) {
            self.remove_policy(policy_id)?;
        }
        // This agent does not know what earlier ones left. No policy has the id 0.
        let is_known = |id: &u16| *id == 0 || self.installed.contains_key(id);
        if !self.is_searched {
            let is_all_known = keep.iter().all(is_known);
            self.search_and_remove(keep)?;
            self.is_searched = is_all_known;
        }
        Ok(())
    }

    /// Removes a policy that this agent has written.
    fn remove_policy(&mut self, policy_id: u16) -> Result<(), DatapathError> {
        if let Some(compiled) = self.installed.get(&policy_id) {
            let names = compiled.names.entries(policy_id);
            self.bulk_names
                .remove(names.map(|(key, _)| name_key(key)))?;
            self.bulk_cidrs.remove(cidr_keys(policy_id, compiled))?;
        }
        if let Some(rules) = self.rules_of.get(&policy_id) {
            let keys = rules.iter().map(|rule| rule_key(policy_id, *rule));
            self.bulk_rules.remove(keys)?;
        }
        self.installed.remove(&policy_id);
        self.rules_of.remove(&policy_id);
        Ok(())
    }

    /// Looks at every entry and removes those of policies other than `keep`.
    fn search_and_remove(&mut self, keep: &BTreeSet<u16>) -> Result<(), DatapathError> {
        let is_kept = |data: &[u8]| match data {
            [high, low, ..] => keep.contains(&u16::from_be_bytes([*high, *low])),
            _ => false,
        };
        let stale = stale_keys(self.names.keys(), "NAMES", |key| {
            let data = key.data();
            !is_kept(&data) && !data.starts_with(&SEARCH_POLICY.to_be_bytes())
        })?;
        self.bulk_names.remove(stale.into_iter())?;
        let stale = stale_keys(self.cidrs.keys(), "CIDRS", |key| !is_kept(&key.data()))?;
        self.bulk_cidrs.remove(stale.into_iter())?;
        let is_stale = |key: &RuleKey| !keep.contains(&key.policy_id);
        let stale = stale_keys(self.rules.keys(), "RULES", is_stale)?;
        self.bulk_rules.remove(stale.into_iter())
    }

    /// Every cgroup that is bound.
    pub(super) fn workloads(&self) -> Result<Vec<(u64, Workload)>, DatapathError> {
        let mut bound = Vec::new();
        for item in self.workloads.iter() {
            match item {
                Ok(item) => bound.push(item),
                Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(error("read", "WORKLOADS")(source)),
            }
        }
        Ok(bound)
    }

    /// Removes a binding.
    pub(super) fn unbind(&mut self, cgroup_id: u64) -> Result<(), DatapathError> {
        ignore_missing(self.workloads.remove(&cgroup_id), "WORKLOADS")
    }

    /// Makes the trusted resolvers exactly these.
    pub(super) fn set_resolvers(&mut self, wanted: &[SocketAddr]) -> Result<(), DatapathError> {
        let entries = resolver_entries(wanted);
        let keys: Vec<ResolverKey> = entries.keys().copied().collect();
        // The kernel looks at ports first: they are there before their resolvers, and go after them.
        let old: Vec<ResolverKey> = self.resolvers.keys().flatten().collect();
        let both = [&keys[..], &old[..]].concat();
        self.set_resolver_ports(&both)?;
        for (key, port) in &entries {
            self.resolvers
                .insert(key, port, 0)
                .map_err(error("write", "RESOLVERS"))?;
        }
        let stale = stale_keys(self.resolvers.keys(), "RESOLVERS", |key| {
            !entries.contains_key(key)
        })?;
        for key in stale {
            ignore_missing(self.resolvers.remove(&key), "RESOLVERS")?;
        }
        self.set_resolver_ports(&keys)
    }

    fn set_resolver_ports(&mut self, resolvers: &[ResolverKey]) -> Result<(), DatapathError> {
        // Ports that the kernel has found stay; the next packet notes again one that it finds meanwhile.
        let before = self.resolver_ports.get(&0, 0).unwrap_or_default();
        let mut ports = ResolverPorts::of(resolvers).with_found(before.found);
        ports.flags |= before.flags & UNBALANCED;
        self.write_resolver_ports(ports)
    }

    fn write_resolver_ports(&mut self, ports: ResolverPorts) -> Result<(), DatapathError> {
        self.resolver_ports
            .set(0, ports, 0)
            .map_err(error("write", "RESOLVER_PORTS"))
    }

    /// True if nobody else changes the address of calls, as the programs read it here.
    pub(super) fn is_unbalanced(&self) -> Result<bool, DatapathError> {
        let ports = self.resolver_ports.get(&0, 0);
        let ports = ports.map_err(error("read", "RESOLVER_PORTS"))?;
        Ok(ports.flags & UNBALANCED != 0)
    }

    /// Tells the programs so, or the contrary.
    pub(super) fn set_unbalanced(&mut self, is_unbalanced: bool) -> Result<(), DatapathError> {
        let mut ports = self.resolver_ports.get(&0, 0).unwrap_or_default();
        if is_unbalanced {
            ports.flags |= UNBALANCED;
        } else {
            ports.flags &= !UNBALANCED;
        }
        self.write_resolver_ports(ports)
    }

    /// Says of every local port that it may have been called.
    pub(super) fn set_all_called(&mut self) -> Result<(), DatapathError> {
        for place in 0..CALLED_PLACES {
            self.called
                .set(place, CalledPorts::ALL, 0)
                .map_err(error("write", "CALLED"))?;
        }
        Ok(())
    }

    /// When the query was sent that this one is like, if it is not spent.
    pub(super) fn asked_at(&self, wanted: &Query) -> Result<Option<u64>, DatapathError> {
        // Read under its lock.
        let bucket = self
            .queries
            .get(&wanted.bucket(), BPF_F_LOCK)
            .map_err(error("read", "QUERIES"))?;
        Ok(bucket.asked_at(wanted))
    }

    /// Makes the search domains exactly these.
    pub(super) fn set_search_domains(&mut self, wanted: &[String]) -> Result<(), DatapathError> {
        if self.search_domains.as_deref() == Some(wanted) {
            return Ok(());
        }
        let domains = wanted.to_vec();
        let wanted: Vec<Key<[u8; NAME_KEY_BYTES]>> = wanted
            .iter()
            .map(|domain| name_key(below_key(SEARCH_POLICY, domain.as_bytes())))
            .collect();
        let mut rules = NameRules::default();
        let [first, ..] = &mut rules.entries;
        // A name that may be asked teaches nothing here: only that there is an entry counts.
        *first = RuleEntry {
            ports: PortRange::ANY,
            kind: EntryKind::Allow as u8,
            ..RuleEntry::default()
        };
        let entry = NameEntry {
            rules,
            ..NameEntry::default()
        };
        for key in &wanted {
            self.names
                .insert(key, entry, 0)
                .map_err(error("write", "NAMES"))?;
        }
        let id = SEARCH_POLICY.to_be_bytes();
        let stale = stale_keys(self.names.keys(), "NAMES", |key| {
            let data = key.data();
            let is_wanted =
                |one: &Key<_>| one.prefix_len() == key.prefix_len() && one.data() == data;
            data.starts_with(&id) && !wanted.iter().any(is_wanted)
        })?;
        for key in stale {
            ignore_missing(self.names.remove(&key), "NAMES")?;
        }
        self.search_domains = Some(domains);
        Ok(())
    }

    /// Makes the node's own addresses exactly these.
    pub(super) fn set_local(&mut self, wanted: &[Address]) -> Result<(), DatapathError> {
        set_exactly(&mut self.local, "LOCAL", wanted)
    }

    /// True if a policy has a rule that names teach.
    pub(super) fn has_rule(&self, policy_id: u16, rule: u64) -> bool {
        self.rules.get(&rule_key(policy_id, rule), 0).is_ok()
    }

    /// The grants of an address of a holder, live or ended; none where it is not known.
    pub(super) fn grants(&self, key: &LearnedKey) -> Option<Vec<Grant>> {
        let learned = self.learned.get(key, 0).ok()?;
        learned.is_of(key).then(|| used_grants(&learned))
    }

    /// Makes room in the counts for a scope, if there is none yet.
    pub(super) fn add_scope(
        &mut self,
        scope_id: u32,
        is_node: bool,
        shares: Shares,
    ) -> Result<(), DatapathError> {
        if scope_id == 0 || self.scopes.get(&scope_id, 0).is_ok() {
            return Ok(());
        }
        let usage = ScopeUse {
            learned_share: shares.of(self.all_learned.capacity(), is_node),
            aliases_share: shares.of(egress_common::maps::ALIASES_CAPACITY, is_node),
            ..ScopeUse::default()
        };
        self.scopes
            .insert(scope_id, usage, 0)
            .map_err(error("write", "SCOPES"))
    }

    /// Every scope's use.
    pub(super) fn scopes(&self) -> Result<Vec<(u32, ScopeUse)>, DatapathError> {
        let mut found = Vec::new();
        for item in self.scopes.iter() {
            match item {
                Ok(item) => found.push(item),
                Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(error("read", "SCOPES")(source)),
            }
        }
        Ok(found)
    }

    /// A scope's use, if it is known.
    pub(super) fn scope(&self, scope_id: u32) -> Result<Option<ScopeUse>, DatapathError> {
        match self.scopes.get(&scope_id, 0) {
            Ok(usage) => Ok(Some(usage)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(error("read", "SCOPES")(source)),
        }
    }

    /// Forgets a scope of which nothing is left.
    pub(super) fn remove_scope(&mut self, scope_id: u32) -> Result<(), DatapathError> {
        ignore_missing(self.scopes.remove(&scope_id), "SCOPES")
    }

    /// Reads one tally.
    pub(super) fn tally(&self, tally: Tally) -> Result<u64, DatapathError> {
        sum(&self.tallies, u32::from(tally as u8), "TALLIES")
    }

    /// The workloads that have counters.
    pub(super) fn counted_workloads(&self) -> Result<Vec<u32>, DatapathError> {
        let mut found = Vec::new();
        for key in self.rule_counters.keys() {
            let key = key.map_err(error("read", "RULE_COUNTERS"))?;
            if key & WORKLOAD_COUNTER != 0 {
                found.push(identity_of(key));
            }
        }
        Ok(found)
    }

    /// Removes the counters of a workload.
    pub(super) fn forget_workload(&mut self, identity: u32) -> Result<(), DatapathError> {
        let key = workload_counter(identity);
        ignore_missing(self.rule_counters.remove(&key), "RULE_COUNTERS")
    }

    /// Fill of the maps that policies fill. Walking the tries takes the kernel long; the agent alone writes them.
    pub(super) fn fill(&self) -> Vec<MapFill> {
        use egress_common::maps as limits;
        let fill = |name, entries: usize, capacity: u32| MapFill {
            name,
            entries: entries as u64,
            capacity: u64::from(capacity),
        };
        let written = |count: fn(&Compiled) -> usize| {
            let counts = self.installed.values().map(|compiled| count(compiled));
            counts.fold(0, usize::saturating_add)
        };
        let rules = self.rules_of.values().map(BTreeSet::len);
        let rules = rules.fold(0, usize::saturating_add);
        vec![
            fill(
                "NAMES",
                written(|compiled| compiled.names.len()),
                limits::NAMES_CAPACITY,
            ),
            fill(
                "CIDRS",
                written(|compiled| compiled.cidrs.len()),
                limits::CIDRS_CAPACITY,
            ),
            fill("RULES", rules, limits::RULES_CAPACITY),
        ]
    }
}

/// The workload that counters with this key are of.
pub(super) const fn identity_of(key: u64) -> u32 {
    let [_, _, _, _, a, b, c, d] = key.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Every entry of a map of learned addresses.
pub(super) fn learned_entries(
    learned: &Hash<LearnedKey, Learned>,
) -> Result<Vec<LearnedEntry>, MapError> {
    let mut entries = Vec::new();
    for item in learned.iter() {
        let (key, value) = match item {
            Ok(item) => item,
            Err(MapError::KeyNotFound) => continue,
            Err(error) => return Err(error),
        };
        entries.push(learned_entry(&key, &value));
    }
    Ok(entries)
}

fn name_key((bits, data): NameKey) -> Key<[u8; NAME_KEY_BYTES]> {
    Key::new(bits, data)
}

/// The keys of a policy's networks, in the order of the map.
fn cidr_keys(
    policy_id: u16,
    compiled: &Compiled,
) -> impl Iterator<Item = Key<[u8; CIDR_KEY_BYTES]>> {
    compiled.cidrs.keys().map(move |(address, prefix)| {
        let bits = POLICY_ID_BITS.wrapping_add(u32::from(*prefix));
        Key::new(bits, cidr_key(policy_id, address))
    })
}

/// The rules that a policy's names teach.
fn rules_of(compiled: &Compiled) -> BTreeSet<u64> {
    let entries = compiled.names.rules().flat_map(|rules| &rules.entries);
    let used = entries.filter(|entry| entry.kind != 0);
    used.map(|entry| entry.rule).collect()
}

/// The key of a rule that a policy has.
fn rule_key(policy_id: u16, rule: u64) -> RuleKey {
    RuleKey {
        rule,
        policy_id,
        _pad: [0; 6],
    }
}

pub(super) fn used_grants(value: &Learned) -> Vec<Grant> {
    value
        .grants
        .iter()
        .take_while(|grant| grant.expires_at_ns != 0)
        .copied()
        .collect()
}

fn stale_keys<K>(
    keys: impl Iterator<Item = Result<K, MapError>>,
    map: &'static str,
    is_stale: impl Fn(&K) -> bool,
) -> Result<Vec<K>, DatapathError> {
    let mut stale = Vec::new();
    for key in keys {
        let key = key.map_err(error("read", map))?;
        if is_stale(&key) {
            stale.push(key);
        }
    }
    Ok(stale)
}

fn ignore_missing(result: Result<(), MapError>, map: &'static str) -> Result<(), DatapathError> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(ref cause))
            if cause.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(source) => Err(error("delete from", map)(source)),
    }
}

/// `BPF_F_LOCK`, include/uapi/linux/bpf.h.
const BPF_F_LOCK: u64 = 4;

/// Address of a container engine's resolver inside of a container: the engine translates its port to another one of the
/// same address (Docker's embedded DNS server).
const ENGINE_RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// The entries of the trusted resolvers, and the port that each stands for.
fn resolver_entries(resolvers: &[SocketAddr]) -> BTreeMap<ResolverKey, u32> {
    let mut entries = BTreeMap::new();
    for resolver in resolvers {
        let address = address_from(resolver.ip());
        let port = u32::from(resolver.port());
        entries.insert(ResolverKey::new(address, resolver.port()), port);
        if resolver.ip() == ENGINE_RESOLVER {
            entries.insert(ResolverKey::new(address, 0), port);
        }
    }
    entries
}

fn set_exactly<K: Pod + Eq>(
    map: &mut Hash<K, u32>,
    name: &'static str,
    wanted: &[K],
) -> Result<(), DatapathError> {
    for key in wanted {
        map.insert(key, 1, 0).map_err(error("write", name))?;
    }
    let stale = stale_keys(map.keys(), name, |key| !wanted.contains(key))?;
    for key in stale {
        ignore_missing(map.remove(&key), name)?;
    }
    Ok(())
}
