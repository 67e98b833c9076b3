//! Names and the addresses that they resolved to, allowed or not.
//!
//! A *seen name* is a name that an answer led from to an address, until a point
//! in time. Names stay for a while after that, so that a denial of an address
//! whose TTL has just ended still shows the name.
//!
//! Only allowed names matter for what the kernel learns again after a policy
//! change, so denied ones make room first when the memory is full.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use dashmap::DashMap;
use egress_common::address::Address;

use super::journal::is_due;

/// A scope's number in a [`Memory`]: the same for as long as the memory lives, unlike the
/// kernel's scope ids, which are new after every policy change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeNumber(u32);

/// Bounds of a [`Memory`].
#[derive(Clone, Copy, Debug)]
pub struct MemoryLimits {
    /// Most addresses, over all scopes.
    pub addresses: usize,
    /// Most addresses of one scope, unless [`Memory::set_share`] says otherwise.
    pub share: usize,
    /// Most names of one address, in one network namespace.
    pub names_per_address: usize,
    /// How long a name is kept after it has expired.
    pub keep_expired_ns: u64,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            addresses: 131_072,
            share: 131_072,
            names_per_address: 8,
            keep_expired_ns: 600_000_000_000,
        }
    }
}

/// Most names of one address over all network namespaces, as a multiple of those in one: a process can make namespaces.
const NETNS_FACTOR: usize = 4;

/// Most chains that lead to one alias.
const CHAINS_PER_ALIAS: usize = 4;

/// Most aliases of one scope, as a part of its addresses.
const ALIASES_PART: usize = 8;

/// Counts of what the memory had to give up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryCounts {
    /// Addresses thrown out for lack of room.
    pub evicted: u64,
    /// Names thrown out because their address had too many.
    pub names_dropped: u64,
    /// Addresses removed because all their names were long expired.
    pub swept: u64,
}

/// Something that an answer said which the kernel, or the agent, matched to a query of its receiver.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The address.
    pub address: Address,
    /// Network namespace of the receiver; 0 where it is not known.
    pub netns: u32,
    /// The name to show: what was asked for, or, where rules only cover its alias, that one. Lower case, without the final dot.
    pub name: &'a str,
    /// End of the alias chain, where that is another name.
    pub alias: Option<&'a str>,
    /// Every name from the question to the owner of the address, a space between them.
    pub chain: &'a str,
    /// When the answer came.
    pub at_ns: u64,
    /// Shortest TTL on the way, seconds.
    pub ttl_s: u32,
    /// Until when.
    pub expires_at_ns: u64,
    /// True if it opened the address.
    pub is_allowed: bool,
}

/// A name of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenName {
    /// The name to show.
    pub name: Arc<str>,
    /// End of the alias chain, where that is another name.
    pub alias: Option<Arc<str>>,
    /// Every name from the question to the owner of the address, where that is not `name` alone.
    pub chain: Option<Arc<str>>,
    /// When an answer last said so.
    pub at_ns: u64,
    /// Until when; may be past.
    pub expires_at_ns: u64,
    /// Network namespace of the receiver; 0 where it is not known.
    pub netns: u32,
    /// Shortest TTL on the way in the answer that said so last, seconds.
    pub ttl_s: u32,
    /// True if it opened the address when it was resolved last.
    pub allowed: bool,
}

impl SeenName {
    /// Every name from the question to the owner of the address, a space between them.
    #[must_use]
    pub fn chain(&self) -> &str {
        self.chain.as_deref().unwrap_or(&self.name)
    }

    /// The sighting as it is recorded.
    #[must_use]
    pub fn seen(&self, address: Address) -> Seen<'_> {
        Seen {
            address,
            netns: self.netns,
            name: &self.name,
            alias: self.alias.as_deref(),
            chain: self.chain(),
            at_ns: self.at_ns,
            ttl_s: self.ttl_s,
            expires_at_ns: self.expires_at_ns,
            is_allowed: self.allowed,
        }
    }
}

/// Names that lead to an alias, the alias itself last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasChain {
    /// The names, a space between them.
    pub chain: Arc<str>,
    /// Network namespace of the receiver.
    pub netns: u32,
    /// When an answer last said so.
    pub at_ns: u64,
    /// Shortest TTL on the way, seconds.
    pub ttl_s: u32,
    /// Until when.
    pub expires_at_ns: u64,
}

/// Names of one address: one for most, so that most cost no allocation of their own.
#[derive(Debug)]
enum Names {
    One(SeenName),
    Many(Vec<SeenName>),
}

impl Names {
    fn as_slice(&self) -> &[SeenName] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [SeenName] {
        match self {
            Self::One(one) => std::slice::from_mut(one),
            Self::Many(many) => many,
        }
    }

    fn push(&mut self, name: SeenName) {
        match self {
            Self::One(one) => *self = Self::Many(vec![one.clone(), name]),
            Self::Many(many) => many.push(name),
        }
    }

    /// Highest for the address that makes room last: allowed before denied, then the latest end.
    fn worth(&self) -> (bool, u64) {
        let worths = self.as_slice().iter().map(worth);
        worths.max().unwrap_or_default()
    }
}

fn worth(name: &SeenName) -> (bool, u64) {
    (name.allowed, name.expires_at_ns)
}

/// Names that one scope resolved.
#[derive(Debug)]
struct ScopeNames {
    /// Most addresses.
    share: usize,
    addresses: HashMap<Address, Names>,
    /// By the alias.
    aliases: HashMap<Arc<str>, Vec<AliasChain>>,
}

impl ScopeNames {
    fn with_share(share: usize) -> Self {
        Self {
            share,
            addresses: HashMap::new(),
            aliases: HashMap::new(),
        }
    }

    /// The addresses of a name that are kept, with their ends, the latest first.
    fn addresses_of(&self, name: &str, is_kept: impl Fn(&SeenName) -> bool) -> Vec<(Address, u64)> {
        let mut found = Vec::new();
        for (address, names) in &self.addresses {
            let names = names.as_slice().iter().filter(|seen| *seen.name == *name);
            let kept = names.filter(|seen| is_kept(seen));
            if let Some(ends) = kept.map(|seen| seen.expires_at_ns).max() {
                found.push((*address, ends));
            }
        }
        found.sort_by_key(|(address, ends)| (std::cmp::Reverse(*ends), *address));
        found
    }

    /// How much of its share it uses, in thousandths.
    fn used_part(&self) -> usize {
        let used = self.addresses.len().saturating_mul(1_000);
        used.checked_div(self.share.max(1)).unwrap_or(0)
    }
}

/// The memory. Every method takes `&self`: readers and the writer share it.
#[derive(Debug)]
pub struct Memory {
    entries: DashMap<ScopeNumber, ScopeNames>,
    scopes: RwLock<HashMap<Arc<str>, ScopeNumber>>,
    /// Numbers that were given.
    numbers: AtomicU32,
    /// Scopes that are forgotten, whose addresses are not yet removed.
    gone: Mutex<HashSet<ScopeNumber>>,
    limits: MemoryLimits,
    addresses: AtomicUsize,
    evicted: AtomicU64,
    names_dropped: AtomicU64,
    swept: AtomicU64,
}

impl Memory {
    /// An empty memory.
    #[must_use]
    pub fn new(limits: MemoryLimits) -> Self {
        Self {
            entries: DashMap::new(),
            scopes: RwLock::default(),
            numbers: AtomicU32::new(0),
            gone: Mutex::default(),
            limits: MemoryLimits {
                addresses: limits.addresses.max(1),
                share: limits.share.max(1),
                names_per_address: limits.names_per_address.max(1),
                ..limits
            },
            addresses: AtomicUsize::new(0),
            evicted: AtomicU64::new(0),
            names_dropped: AtomicU64::new(0),
            swept: AtomicU64::new(0),
        }
    }

    /// The number of a scope, given when its name is first heard.
    pub fn scope(&self, name: &str) -> ScopeNumber {
        let known = self.scopes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = known.get(name) {
            return *number;
        }
        drop(known);
        let mut scopes = self.scopes.write().unwrap_or_else(PoisonError::into_inner);
        *scopes.entry(Arc::from(name)).or_insert_with(|| {
            // Wraps after four thousand million pods.
            ScopeNumber(self.numbers.fetch_add(1, Ordering::Relaxed))
        })
    }

    /// Bounds the addresses of one scope: at its share it loses its own, and nobody else's.
    pub fn set_share(&self, scope: ScopeNumber, addresses: usize) {
        let new = || ScopeNames::with_share(addresses);
        self.entries.entry(scope).or_insert_with(new).share = addresses.max(1);
    }

    /// Forgets a scope; with the next sweep what it resolved. Its number is not given again.
    pub fn forget_scope(&self, name: &str) {
        let mut scopes = self.scopes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = scopes.remove(name) {
            let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            gone.insert(number);
        }
    }

    /// The name of a scope.
    #[must_use]
    pub fn scope_name(&self, scope: ScopeNumber) -> Option<Arc<str>> {
        let scopes = self.scopes.read().unwrap_or_else(PoisonError::into_inner);
        let found = scopes.iter().find(|(_, number)| **number == scope);
        found.map(|(name, _)| Arc::clone(name))
    }

    /// Remembers what an answer said. The longest end of a chain stays; the rest is the newest. Says whether that is worth
    /// a line in the journal.
    pub fn record(&self, scope: ScopeNumber, seen: &Seen<'_>, now_ns: u64) -> bool {
        let share = self.limits.share;
        let new = || ScopeNames::with_share(share);
        let mut of_scope = self.entries.entry(scope).or_insert_with(new);
        let is_news = match of_scope.addresses.entry(seen.address) {
            Entry::Occupied(mut entry) => self.update(entry.get_mut(), seen, now_ns),
            Entry::Vacant(entry) => {
                entry.insert(Names::One(seen_name(seen)));
                self.addresses.fetch_add(1, Ordering::Relaxed);
                true
            }
        };
        if of_scope.addresses.len() > of_scope.share {
            let share = of_scope.share;
            self.make_room(&mut of_scope, share, now_ns);
        }
        drop(of_scope);
        if self.addresses.load(Ordering::Relaxed) > self.limits.addresses {
            self.make_room_over_all(now_ns);
        }
        is_news
    }

    fn update(&self, names: &mut Names, seen: &Seen<'_>, now_ns: u64) -> bool {
        let is_same =
            |known: &&mut SeenName| known.netns == seen.netns && known.chain() == seen.chain;
        let known = names.as_mut_slice().iter_mut();
        if let Some(known) = known.into_iter().find(is_same) {
            let is_news = is_due(known.at_ns, seen.at_ns) || known.allowed != seen.is_allowed;
            known.at_ns = known.at_ns.max(seen.at_ns);
            // The end of a name that opened nothing is of its own kind.
            known.expires_at_ns = if known.allowed == seen.is_allowed {
                known.expires_at_ns.max(seen.expires_at_ns)
            } else {
                seen.expires_at_ns
            };
            known.allowed = seen.is_allowed;
            known.ttl_s = seen.ttl_s;
            if *known.name != *seen.name {
                known.name = Arc::from(seen.name);
                known.chain = chain_of(seen);
            }
            if known.alias.as_deref() != seen.alias {
                known.alias = seen.alias.map(Arc::from);
            }
            return is_news;
        }
        let limit = self.limits.names_per_address;
        let is_beside = |name: &&SeenName| name.netns == seen.netns;
        let beside = names.as_slice().iter().filter(is_beside).count();
        let total = names.as_slice().len();
        if beside < limit && total < limit.saturating_mul(NETNS_FACTOR) {
            names.push(seen_name(seen));
            return true;
        }
        // Full: the one that is worth least gives way, of the same network namespace if that is full.
        let slots = names.as_mut_slice().iter_mut();
        let slots = slots.filter(|name| beside < limit || name.netns == seen.netns);
        let slot = slots.min_by_key(|name| {
            let is_live = name.expires_at_ns > now_ns;
            (is_live, worth(name))
        });
        if let Some(slot) = slot {
            *slot = seen_name(seen);
            self.names_dropped.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// Remembers names that lead to an alias, the alias last. Says whether that is worth a line in the journal.
    pub fn note_alias(&self, scope: ScopeNumber, noted: AliasChain, now_ns: u64) -> bool {
        let Some(alias) = noted.chain.rsplit(' ').next().map(Arc::from) else {
            return false;
        };
        let share = self.limits.share;
        let new = || ScopeNames::with_share(share);
        let mut of_scope = self.entries.entry(scope).or_insert_with(new);
        let limit = of_scope.share.checked_div(ALIASES_PART).unwrap_or(0).max(1);
        let aliases = &mut of_scope.aliases;
        if aliases.len() >= limit && !aliases.contains_key(&alias) {
            aliases.retain(|_, chains| chains.iter().any(|chain| chain.expires_at_ns > now_ns));
            // The soonest to end give way, an eighth of them at once.
            let mut ends: Vec<u64> = aliases.values().map(|chains| last_end(chains)).collect();
            if ends.len() >= limit {
                let place = limit.checked_div(8).unwrap_or(0);
                let (_, last, _) = ends.select_nth_unstable(place);
                let last = *last;
                aliases.retain(|_, chains| last_end(chains) > last);
            }
        }
        let chains = aliases.entry(alias).or_default();
        let is_same =
            |known: &&mut AliasChain| known.netns == noted.netns && known.chain == noted.chain;
        if let Some(known) = chains.iter_mut().find(is_same) {
            let is_news = is_due(known.at_ns, noted.at_ns);
            known.at_ns = known.at_ns.max(noted.at_ns);
            known.expires_at_ns = known.expires_at_ns.max(noted.expires_at_ns);
            known.ttl_s = noted.ttl_s;
            return is_news;
        }
        if chains.len() >= CHAINS_PER_ALIAS {
            let oldest = (0_usize..)
                .zip(chains.iter())
                .min_by_key(|(_, one)| one.expires_at_ns);
            if let Some((place, _)) = oldest {
                chains.swap_remove(place);
            }
        }
        chains.push(noted);
        true
    }

    /// The names that lead to an alias in a network namespace, as far as they live.
    #[must_use]
    pub fn alias_chains(
        &self,
        scope: ScopeNumber,
        netns: u32,
        alias: &str,
        now_ns: u64,
    ) -> Vec<AliasChain> {
        let Some(of_scope) = self.entries.get(&scope) else {
            return Vec::new();
        };
        let chains = of_scope.aliases.get(alias).into_iter().flatten();
        chains
            .filter(|one| one.netns == netns && one.expires_at_ns > now_ns)
            .cloned()
            .collect()
    }

    /// Calls `visit` for every chain of a scope that leads to an alias and lives. It must not write to this memory.
    pub fn for_each_alias(
        &self,
        scope: ScopeNumber,
        now_ns: u64,
        mut visit: impl FnMut(&str, &AliasChain),
    ) {
        if let Some(of_scope) = self.entries.get(&scope) {
            for (alias, chains) in &of_scope.aliases {
                for chain in chains.iter().filter(|one| one.expires_at_ns > now_ns) {
                    visit(alias, chain);
                }
            }
        }
    }

    /// The names of an address: live ones first, then by end, the latest first.
    #[must_use]
    pub fn names_of(&self, scope: ScopeNumber, address: &Address, now_ns: u64) -> Vec<SeenName> {
        let Some(of_scope) = self.entries.get(&scope) else {
            return Vec::new();
        };
        let Some(names) = of_scope.addresses.get(address) else {
            return Vec::new();
        };
        let mut names: Vec<SeenName> = names
            .as_slice()
            .iter()
            .filter(|name| name.allowed || self.is_kept(name, now_ns))
            .cloned()
            .collect();
        names.sort_by_key(|name| std::cmp::Reverse(name.expires_at_ns));
        // The same name in two network namespaces is shown once.
        let mut shown = HashSet::new();
        names.retain(|name| shown.insert((Arc::clone(&name.name), name.alias.clone())));
        names
    }

    /// The network namespace in which an address was resolved last.
    #[must_use]
    pub fn last_netns(&self, scope: ScopeNumber, address: &Address) -> Option<u32> {
        let of_scope = self.entries.get(&scope)?;
        let names = of_scope.addresses.get(address)?;
        let known = names.as_slice().iter().filter(|name| name.netns != 0);
        let last = known.max_by_key(|name| (name.allowed, name.at_ns))?;
        Some(last.netns)
    }

    /// The names of an address: the one that was asked for last before `at_ns` first, what was asked for later last.
    #[must_use]
    pub fn names_asked_before(
        &self,
        scope: ScopeNumber,
        address: &Address,
        at_ns: u64,
    ) -> Vec<SeenName> {
        let mut names = self.names_of(scope, address, at_ns);
        names.sort_by_key(|name| (name.at_ns > at_ns, name.at_ns.abs_diff(at_ns)));
        names
    }

    /// The addresses of a name with their ends, the latest first. Looks at every address of the scope: for a user's question.
    #[must_use]
    pub fn addresses_of(&self, scope: ScopeNumber, name: &str, now_ns: u64) -> Vec<(Address, u64)> {
        let Some(of_scope) = self.entries.get(&scope) else {
            return Vec::new();
        };
        of_scope.addresses_of(name, |seen| seen.allowed || self.is_kept(seen, now_ns))
    }

    /// The same for every scope, with one look at every address.
    #[must_use]
    pub fn addresses_by_scope(
        &self,
        name: &str,
        now_ns: u64,
    ) -> HashMap<ScopeNumber, Vec<(Address, u64)>> {
        let mut found = HashMap::new();
        for of_scope in &self.entries {
            let addresses =
                of_scope.addresses_of(name, |seen| seen.allowed || self.is_kept(seen, now_ns));
            if !addresses.is_empty() {
                found.insert(*of_scope.key(), addresses);
            }
        }
        found
    }

    /// Calls `visit` for every scope, with its name.
    pub fn for_each_scope(&self, mut visit: impl FnMut(ScopeNumber, &str)) {
        let scopes = self.scopes.read().unwrap_or_else(PoisonError::into_inner);
        for (name, scope) in &*scopes {
            visit(*scope, name);
        }
    }

    /// Calls `visit` for every name of a scope, expired ones too. It must not write to this memory.
    pub fn for_each(&self, scope: ScopeNumber, mut visit: impl FnMut(Address, &SeenName)) {
        if let Some(of_scope) = self.entries.get(&scope) {
            for (address, names) in &of_scope.addresses {
                for seen in names.as_slice() {
                    visit(*address, seen);
                }
            }
        }
    }

    /// The allowed addresses of a scope, with the network namespaces in which they were resolved, the soonest to end
    /// first.
    #[must_use]
    pub fn by_end(&self, scope: ScopeNumber) -> Vec<(Address, u32)> {
        let mut found: Vec<(u64, Address, u32)> = Vec::new();
        self.for_each(scope, |address, seen| {
            if seen.allowed {
                found.push((seen.expires_at_ns, address, seen.netns));
            }
        });
        found.sort_unstable();
        let found = found.into_iter();
        found.map(|(_, address, netns)| (address, netns)).collect()
    }

    /// Removes what has been expired for longer than the limit says, and what scopes resolved that are gone; returns how
    /// many addresses went. What opened an address stays as long as `is_held` says that the kernel holds it.
    pub fn sweep(
        &self,
        now_ns: u64,
        mut is_held: impl FnMut(ScopeNumber, u32, &Address) -> bool,
    ) -> usize {
        let gone = {
            let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *gone)
        };
        let mut removed = 0_usize;
        self.entries.retain(|scope, of_scope| {
            if gone.contains(scope) {
                removed = removed.saturating_add(of_scope.addresses.len());
                return false;
            }
            of_scope.addresses.retain(|address, names| {
                let mut keeps = |name: &SeenName| {
                    self.is_kept(name, now_ns)
                        || name.allowed && is_held(*scope, name.netns, address)
                };
                let is_kept = match names {
                    Names::One(one) => keeps(one),
                    Names::Many(many) => {
                        many.retain(keeps);
                        !many.is_empty()
                    }
                };
                if let Names::Many(many) = names
                    && let [one] = many.as_slice()
                {
                    *names = Names::One(one.clone());
                }
                removed = removed.saturating_add(usize::from(!is_kept));
                is_kept
            });
            of_scope.aliases.retain(|_, chains| {
                chains.retain(|one| one.expires_at_ns > now_ns);
                !chains.is_empty()
            });
            true
        });
        self.forget(removed);
        self.swept.fetch_add(removed as u64, Ordering::Relaxed);
        removed
    }

    /// How many addresses are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.addresses.load(Ordering::Relaxed)
    }

    /// True if nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts of what the memory had to give up so far.
    #[must_use]
    pub fn counts(&self) -> MemoryCounts {
        MemoryCounts {
            evicted: self.evicted.load(Ordering::Relaxed),
            names_dropped: self.names_dropped.load(Ordering::Relaxed),
            swept: self.swept.load(Ordering::Relaxed),
        }
    }

    fn is_kept(&self, name: &SeenName, now_ns: u64) -> bool {
        name.expires_at_ns
            .saturating_add(self.limits.keep_expired_ns)
            > now_ns
    }

    fn forget(&self, addresses: usize) {
        self.addresses.fetch_sub(addresses, Ordering::Relaxed);
    }

    /// Throws out what a scope has above `target` and a sixteenth of that: the look at everything that this takes is paid
    /// by as many insertions. Expired ones go first, then those that opened nothing, then the soonest to end.
    fn make_room(&self, of_scope: &mut ScopeNames, target: usize, now_ns: u64) {
        let excess = of_scope.addresses.len().saturating_sub(target);
        if excess == 0 {
            return;
        }
        let goes = excess.saturating_add(target / 16);
        let worth_at = |names: &Names| {
            let (allowed, ends) = names.worth();
            (ends > now_ns, allowed, ends)
        };
        let mut worths: Vec<_> = of_scope.addresses.values().map(worth_at).collect();
        let last = goes.saturating_sub(1).min(worths.len().saturating_sub(1));
        if worths.is_empty() {
            return;
        }
        let (_, highest, _) = worths.select_nth_unstable(last);
        let highest = *highest;
        let mut removed = 0_usize;
        of_scope.addresses.retain(|_, names| {
            let is_gone = removed < goes && worth_at(names) <= highest;
            removed = removed.saturating_add(usize::from(is_gone));
            !is_gone
        });
        self.forget(removed);
        self.evicted.fetch_add(removed as u64, Ordering::Relaxed);
    }

    /// All scopes together have too many: the one that uses most of its share gives way.
    fn make_room_over_all(&self, now_ns: u64) {
        let fullest = self
            .entries
            .iter()
            .max_by_key(|of_scope| of_scope.used_part())
            .map(|of_scope| *of_scope.key());
        let Some(mut of_scope) = fullest.and_then(|scope| self.entries.get_mut(&scope)) else {
            return;
        };
        let excess = self.len().saturating_sub(self.limits.addresses);
        let target = of_scope.addresses.len().saturating_sub(excess);
        self.make_room(&mut of_scope, target, now_ns);
    }
}

fn last_end(chains: &[AliasChain]) -> u64 {
    let ends = chains.iter().map(|one| one.expires_at_ns);
    ends.max().unwrap_or(0)
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(MemoryLimits::default())
    }
}

fn chain_of(seen: &Seen<'_>) -> Option<Arc<str>> {
    (seen.chain != seen.name).then(|| Arc::from(seen.chain))
}

fn seen_name(seen: &Seen<'_>) -> SeenName {
    SeenName {
        name: Arc::from(seen.name),
        alias: seen.alias.map(Arc::from),
        chain: chain_of(seen),
        netns: seen.netns,
        ttl_s: seen.ttl_s,
        at_ns: seen.at_ns,
        expires_at_ns: seen.expires_at_ns,
        allowed: seen.is_allowed,
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "test code")]
mod tests {
    use egress_common::address::from_v4;

    use super::*;

    fn v4(number: u32) -> Address {
        from_v4(number.to_be_bytes())
    }

    fn seen(address: u32, name: &str, expires_at_ns: u64, is_allowed: bool) -> Seen<'_> {
        Seen {
            address: v4(address),
            netns: 0,
            name,
            alias: None,
            chain: name,
            at_ns: 0,
            ttl_s: 0,
            expires_at_ns,
            is_allowed,
        }
    }

    fn small(addresses: usize, names_per_address: usize) -> Memory {
        Memory::new(MemoryLimits {
            addresses,
            share: addresses,
            names_per_address,
            keep_expired_ns: 50,
        })
    }

    fn held(memory: &Memory) -> usize {
        let counts = memory.entries.iter().map(|one| one.addresses.len());
        counts.sum()
    }

    fn names(memory: &Memory, scope: ScopeNumber, address: u32, now_ns: u64) -> Vec<String> {
        let names = memory.names_of(scope, &v4(address), now_ns);
        names.iter().map(|seen| seen.name.to_string()).collect()
    }

    #[test]
    fn an_address_gets_the_names_of_its_own_scope_back() {
        let memory = small(100, 8);
        let (node, pod) = (memory.scope("node"), memory.scope("pod a"));
        assert_ne!(node, pod);
        assert_eq!(memory.scope("node"), node);
        assert_eq!(memory.scope_name(pod).as_deref(), Some("pod a"));
        memory.record(node, &seen(1, "a.example", 100, true), 0);
        memory.record(node, &seen(1, "b.example", 200, false), 0);
        memory.record(pod, &seen(1, "c.example", 300, false), 0);
        assert_eq!(names(&memory, node, 1, 0), ["b.example", "a.example"]);
        assert_eq!(names(&memory, pod, 1, 0), ["c.example"]);
        assert_eq!(names(&memory, pod, 2, 0), [""; 0]);
        assert_eq!(memory.addresses_of(node, "a.example", 0), [(v4(1), 100)]);
        assert_eq!(memory.addresses_of(pod, "a.example", 0), []);
        assert_eq!(memory.len(), 2);
    }

    #[test]
    fn the_name_that_was_asked_for_last_before_a_moment_comes_first() {
        let memory = small(100, 8);
        let node = memory.scope("node");
        let asked = |name, at_ns, ends| {
            let seen = Seen {
                at_ns,
                ..seen(1, name, ends, false)
            };
            memory.record(node, &seen, at_ns);
        };
        let names = |at_ns| -> Vec<String> {
            let names = memory.names_asked_before(node, &v4(1), at_ns);
            names.iter().map(|seen| seen.name.to_string()).collect()
        };
        asked("a.example", 10, 900);
        asked("b.example", 20, 300);
        asked("c.example", 40, 500);
        assert_eq!(names(30), ["b.example", "a.example", "c.example"]);
        assert_eq!(names(40), ["c.example", "b.example", "a.example"]);
        asked("a.example", 50, 100);
        assert_eq!(names(60), ["a.example", "c.example", "b.example"]);
        // Before all of them: what was asked for soonest after.
        assert_eq!(names(5), ["b.example", "c.example", "a.example"]);
    }

    #[test]
    fn the_longest_end_stays_and_alias_and_permission_are_the_newest() {
        let memory = small(100, 8);
        let node = memory.scope("node");
        memory.record(node, &seen(1, "a.example", 100, false), 0);
        // The end of a name that was only seen is of another kind.
        memory.record(node, &seen(1, "a.example", 90, true), 0);
        memory.record(node, &seen(1, "a.example", 80, true), 0);
        let names = memory.names_of(node, &v4(1), 0);
        let [only] = names.as_slice() else {
            panic!("{names:?}");
        };
        assert_eq!((only.expires_at_ns, only.allowed), (90, true));
        assert_eq!((only.alias.as_deref(), only.chain()), (None, "a.example"));
        let by_alias = Seen {
            alias: Some("cdn.example"),
            chain: "a.example cdn.example",
            ..seen(1, "a.example", 95, true)
        };
        memory.record(node, &by_alias, 0);
        memory.record(
            node,
            &Seen {
                netns: 7,
                ..by_alias
            },
            0,
        );
        let names = memory.names_of(node, &v4(1), 0);
        let shown: Vec<_> = names
            .iter()
            .map(|name| (name.chain(), name.expires_at_ns))
            .collect();
        assert_eq!(shown, [("a.example cdn.example", 95), ("a.example", 90)]);
        let mut facts = 0;
        memory.for_each(node, |_, _| facts += 1);
        assert_eq!(facts, 3, "each network namespace has its own");
    }

    fn noted(chain: &str, netns: u32, expires_at_ns: u64) -> AliasChain {
        AliasChain {
            chain: Arc::from(chain),
            netns,
            at_ns: 0,
            ttl_s: 0,
            expires_at_ns,
        }
    }

    #[test]
    fn an_alias_keeps_the_chains_that_led_to_it() {
        let memory = small(100, 8);
        let node = memory.scope("node");
        let chains = |netns, now_ns| -> Vec<String> {
            let chains = memory.alias_chains(node, netns, "edge.example", now_ns);
            chains.iter().map(|one| one.chain.to_string()).collect()
        };
        memory.note_alias(node, noted("a.example edge.example", 1, 100), 0);
        memory.note_alias(node, noted("a.example edge.example", 1, 90), 0);
        memory.note_alias(node, noted("b.example edge.example", 1, 50), 0);
        memory.note_alias(node, noted("c.example edge.example", 2, 100), 0);
        assert_eq!(
            chains(1, 49),
            ["a.example edge.example", "b.example edge.example"]
        );
        assert_eq!(chains(1, 99), ["a.example edge.example"]);
        assert_eq!(chains(3, 0), [""; 0]);
        for other in ["d", "e", "f"] {
            memory.note_alias(
                node,
                noted(&format!("{other}.example edge.example"), 1, 200),
                0,
            );
        }
        assert_eq!(
            chains(1, 0).len(),
            CHAINS_PER_ALIAS - 1,
            "the soonest to end gave way"
        );
        for other in 0..1_000 {
            memory.note_alias(
                node,
                noted(&format!("a.example {other}.example"), 1, 1_000 + other),
                0,
            );
        }
        let mut aliases = 0;
        memory.for_each_alias(node, 0, |_, _| aliases += 1);
        assert!(aliases <= 12, "{aliases}");
    }

    #[test]
    fn a_scope_at_its_share_loses_its_own_and_the_fullest_gives_way_to_all() {
        let memory = Memory::new(MemoryLimits {
            share: 100,
            ..small(400, 8).limits
        });
        let (node, pod) = (memory.scope("node"), memory.scope("pod"));
        memory.set_share(node, 400);
        for address in 0..200 {
            memory.record(node, &seen(address, "a.example", 1_000, true), 0);
        }
        for address in 0..10_000 {
            memory.record(pod, &seen(address, "b.example", 9_000, true), 0);
        }
        let of = |scope| {
            let mut count = 0;
            memory.for_each(scope, |_, _| count += 1);
            count
        };
        assert_eq!(of(node), 200);
        assert!((90..=100).contains(&of(pod)), "{}", of(pod));
        let other = memory.scope("other");
        memory.set_share(other, 400);
        for address in 0..390 {
            memory.record(other, &seen(address, "c.example", 9_000, true), 0);
        }
        assert!(of(node) >= 100 && memory.len() <= 400, "{}", of(node));
        assert_eq!(memory.len(), of(node) + of(pod) + of(other));
    }

    #[test]
    fn addresses_are_told_by_end_with_their_network_namespace() {
        let memory = small(100, 8);
        let node = memory.scope("node");
        for (address, ends) in [(1, 300), (2, 100), (3, 200)] {
            memory.record(node, &seen(address, "a.example", ends, true), 0);
        }
        memory.record(node, &seen(4, "b.example", 1, false), 0);
        assert_eq!(memory.by_end(node)[..2], [(v4(2), 0), (v4(3), 0)]);
        assert_eq!(memory.by_end(node).len(), 3);
    }

    #[test]
    fn a_name_stays_for_a_while_after_its_end_and_then_goes() {
        let memory = small(100, 8);
        let node = memory.scope("node");
        memory.record(node, &seen(1, "a.example", 100, true), 0);
        memory.record(node, &seen(1, "b.example", 120, true), 0);
        memory.record(node, &seen(1, "seen.example", 100, false), 0);
        let sweep =
            |now_ns| memory.sweep(now_ns, |_, _, address| now_ns < 190 && *address == v4(2));
        assert_eq!(names(&memory, node, 1, 149).len(), 3);
        assert_eq!(names(&memory, node, 1, 150), ["b.example", "a.example"]);
        assert_eq!(sweep(150), 0);
        assert_eq!(sweep(169), 0);
        memory.record(node, &seen(2, "held.example", 100, true), 0);
        memory.record(node, &seen(2, "lost.example", 100, false), 0);
        assert_eq!(sweep(170), 1);
        assert_eq!(
            names(&memory, node, 2, 170),
            ["held.example"],
            "the kernel holds it"
        );
        assert_eq!(sweep(190), 1);
        assert!(memory.is_empty());
        assert_eq!(memory.counts().swept, 2);
    }

    #[test]
    fn a_full_memory_gives_up_expired_then_denied_then_the_soonest_to_end() {
        let memory = small(16, 8);
        let node = memory.scope("node");
        memory.record(node, &seen(1, "expired.example", 5, true), 0);
        memory.record(node, &seen(2, "denied.example", 900, false), 0);
        for address in 3..=16 {
            memory.record(
                node,
                &seen(address, "a.example", 100 + u64::from(address), true),
                0,
            );
        }
        assert_eq!(memory.counts().evicted, 0);
        // Each time one for the excess, and a sixteenth of sixteen.
        memory.record(node, &seen(17, "new.example", 500, true), 10);
        assert!(names(&memory, node, 1, 10).is_empty() && names(&memory, node, 2, 10).is_empty());
        assert_eq!((memory.len(), memory.counts().evicted), (15, 2));
        memory.record(node, &seen(18, "new.example", 500, true), 10);
        memory.record(node, &seen(19, "new.example", 500, true), 10);
        assert!(names(&memory, node, 3, 10).is_empty() && names(&memory, node, 4, 10).is_empty());
        assert_eq!(names(&memory, node, 19, 10), ["new.example"]);
        assert_eq!((memory.len(), memory.counts().evicted), (15, 4));
    }

    #[test]
    fn a_flood_of_denied_names_does_not_push_out_allowed_ones() {
        let memory = small(1_000, 8);
        let node = memory.scope("node");
        for address in 0..500 {
            memory.record(node, &seen(address, "good.example", 1_000, true), 0);
        }
        for address in 10_000..30_000 {
            memory.record(node, &seen(address, "bad.example", u64::MAX, false), 0);
        }
        assert!(memory.len() <= 1_000);
        assert_eq!(memory.len(), held(&memory));
        assert_eq!(memory.addresses_of(node, "good.example", 0).len(), 500);
    }

    #[test]
    fn an_address_with_too_many_names_keeps_the_allowed_and_the_latest() {
        let memory = small(10, 2);
        let node = memory.scope("node");
        memory.record(node, &seen(1, "a.example", 100, true), 0);
        memory.record(node, &seen(1, "b.example", 900, false), 0);
        memory.record(node, &seen(1, "c.example", 200, true), 0);
        assert_eq!(names(&memory, node, 1, 0), ["c.example", "a.example"]);
        assert_eq!(memory.counts().names_dropped, 1);
    }

    #[test]
    fn counts_hold_when_threads_write_at_once() {
        let memory = small(300, 4);
        let node = memory.scope("node");
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                let memory = &memory;
                scope.spawn(move || {
                    for step in 0..3_000_u32 {
                        let address = step.wrapping_mul(7919 + thread) % 2_000;
                        let ends = u64::from(step) + 100;
                        memory.record(node, &seen(address, "a.example", ends, true), step.into());
                        if step % 500 == 0 {
                            memory.sweep(step.into(), |_, _, _| false);
                        }
                    }
                });
            }
        });
        assert_eq!(memory.len(), held(&memory));
        assert!(memory.len() <= 300);
    }

    /// Resident bytes of this process.
    fn resident_bytes() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
        let pages: usize = text
            .split(' ')
            .nth(1)
            .and_then(|n| n.parse().ok())
            .expect("pages");
        pages * 4096
    }

    /// Run alone, it measures: `cargo test -p egress-agent memory_per_address -- --ignored --nocapture`.
    #[test]
    #[ignore = "measures resident memory, which other tests disturb"]
    fn memory_per_address() {
        let memory = Memory::default();
        let node = memory.scope("node");
        let names: Vec<String> = (0..100_000)
            .map(|index| format!("host-{index:06}.region.example.com"))
            .collect();
        let before = resident_bytes();
        for (address, name) in (0_u32..).zip(&names) {
            memory.record(node, &seen(address, name, u64::MAX, true), 0);
        }
        let used = resident_bytes() - before;
        println!(
            "{} bytes for each of 100,000 addresses with a name of {} bytes",
            used / names.len(),
            names[0].len()
        );
        assert!(used / names.len() <= 200);
    }
}
