//! What was resolved to what, allowed or not.
//!
//! A *seen name* is a name that an answer led from to an address, until a point
//! in time. Names stay for a while after that, so that a denial of an address
//! whose TTL has just ended still shows the name.
//!
//! Only allowed names matter for what the kernel learns again after a policy
//! change, so denied ones make room first when the memory is full.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use dashmap::{DashMap, mapref::entry::Entry as MapEntry};
use egress_common::address::Address;

/// A scope's number in a [`Memory`]: the same for as long as the memory lives, unlike the
/// kernel's scope ids, which are new after every policy change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeNumber(u32);

/// Bounds of a [`Memory`].
#[derive(Clone, Copy, Debug)]
pub struct MemoryLimits {
    /// Most addresses, over all scopes.
    pub addresses: usize,
    /// Most names of one address.
    pub names_per_address: usize,
    /// How long a name is kept after it has expired.
    pub keep_expired_ns: u64,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            addresses: 131_072,
            names_per_address: 8,
            keep_expired_ns: 600_000_000_000,
        }
    }
}

/// What the memory had to give up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryCounts {
    /// Addresses thrown out for lack of room.
    pub evicted: u64,
    /// Names thrown out because their address had too many.
    pub names_dropped: u64,
    /// Addresses removed because all their names were long expired.
    pub swept: u64,
}

/// Something that an answer said.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The address.
    pub address: Address,
    /// The name that was asked for: lower case, without the final dot.
    pub name: &'a str,
    /// End of the alias chain, where the address is not the name's own.
    pub alias: Option<&'a str>,
    /// When the answer came.
    pub at_ns: u64,
    /// Until when.
    pub expires_at_ns: u64,
    /// Whether a rule allows the name.
    pub is_allowed: bool,
}

/// A name of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenName {
    /// The name that was asked for.
    pub name: Arc<str>,
    /// End of the alias chain, where the address is not the name's own.
    pub alias: Option<Arc<str>>,
    /// When an answer last said so.
    pub at_ns: u64,
    /// Until when; may be past.
    pub expires_at_ns: u64,
    /// Whether a rule allowed the name when it was resolved.
    pub allowed: bool,
}

/// A name that still lives, for carrying over.
#[derive(Clone, Copy, Debug)]
pub struct LiveName<'a> {
    /// Scope that resolved it.
    pub scope: ScopeNumber,
    /// The address.
    pub address: Address,
    /// The name and until when.
    pub seen: &'a SeenName,
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

    /// What makes room last: allowed before denied, then the latest end.
    fn worth(&self) -> (bool, u64) {
        let worths = self.as_slice().iter().map(worth);
        worths.max().unwrap_or_default()
    }
}

fn worth(name: &SeenName) -> (bool, u64) {
    (name.allowed, name.expires_at_ns)
}

/// The memory. Every method takes `&self`: readers and the writer share it.
#[derive(Debug)]
pub struct Memory {
    entries: DashMap<(ScopeNumber, Address), Names>,
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

    /// Remembers what an answer said. The longest end of a name stays; alias and permission are the newest.
    pub fn record(&self, scope: ScopeNumber, seen: &Seen<'_>, now_ns: u64) {
        match self.entries.entry((scope, seen.address)) {
            MapEntry::Occupied(mut entry) => self.update(entry.get_mut(), seen, now_ns),
            MapEntry::Vacant(entry) => {
                entry.insert(Names::One(seen_name(seen)));
                self.addresses.fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.addresses.load(Ordering::Relaxed) > self.limits.addresses {
            self.make_room(now_ns);
        }
    }

    fn update(&self, names: &mut Names, seen: &Seen<'_>, now_ns: u64) {
        let known = names.as_mut_slice().iter_mut();
        if let Some(known) = known.into_iter().find(|known| *known.name == *seen.name) {
            known.at_ns = known.at_ns.max(seen.at_ns);
            known.expires_at_ns = known.expires_at_ns.max(seen.expires_at_ns);
            known.allowed = seen.is_allowed;
            if known.alias.as_deref() != seen.alias {
                known.alias = seen.alias.map(Arc::from);
            }
            return;
        }
        if names.as_slice().len() < self.limits.names_per_address {
            names.push(seen_name(seen));
            return;
        }
        // Full: the one that is worth least gives way, expired ones first.
        let slot = names.as_mut_slice().iter_mut().min_by_key(|name| {
            let is_live = name.expires_at_ns > now_ns;
            (is_live, worth(name))
        });
        if let Some(slot) = slot {
            *slot = seen_name(seen);
            self.names_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The names of an address: live ones first, then by end, the latest first.
    #[must_use]
    pub fn names_of(&self, scope: ScopeNumber, address: &Address, now_ns: u64) -> Vec<SeenName> {
        let Some(names) = self.entries.get(&(scope, *address)) else {
            return Vec::new();
        };
        let mut names: Vec<SeenName> = names
            .as_slice()
            .iter()
            .filter(|name| self.is_kept(name, now_ns))
            .cloned()
            .collect();
        names.sort_by_key(|name| std::cmp::Reverse(name.expires_at_ns));
        names
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

    /// The addresses of a name with their ends, the latest first. Looks at every address: for a user's question.
    #[must_use]
    pub fn addresses_of(&self, scope: ScopeNumber, name: &str, now_ns: u64) -> Vec<(Address, u64)> {
        let mut by_scope = self.addresses_by_scope(name, now_ns);
        by_scope.remove(&scope).unwrap_or_default()
    }

    /// The same for every scope, with one look at every address.
    #[must_use]
    pub fn addresses_by_scope(
        &self,
        name: &str,
        now_ns: u64,
    ) -> HashMap<ScopeNumber, Vec<(Address, u64)>> {
        let mut found: HashMap<_, Vec<_>> = HashMap::new();
        for entry in &self.entries {
            let (scope, address) = *entry.key();
            let mut names = entry.value().as_slice().iter();
            if let Some(seen) = names.find(|seen| *seen.name == *name)
                && self.is_kept(seen, now_ns)
            {
                let addresses = found.entry(scope).or_default();
                addresses.push((address, seen.expires_at_ns));
            }
        }
        for addresses in found.values_mut() {
            addresses.sort_by_key(|(address, ends)| (std::cmp::Reverse(*ends), *address));
        }
        found
    }

    /// Calls `visit` for every name that has not expired. It must not write to this memory.
    pub fn for_each_live(&self, now_ns: u64, mut visit: impl FnMut(LiveName<'_>)) {
        for entry in &self.entries {
            let (scope, address) = *entry.key();
            for seen in entry.value().as_slice() {
                if seen.expires_at_ns > now_ns {
                    visit(LiveName {
                        scope,
                        address,
                        seen,
                    });
                }
            }
        }
    }

    /// Removes what has been expired for longer than the limit says, and what scopes resolved that are gone; returns how
    /// many addresses went.
    pub fn sweep(&self, now_ns: u64) -> usize {
        let gone = {
            let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *gone)
        };
        let mut removed = 0_usize;
        self.entries.retain(|(scope, _), names| {
            if let Names::Many(many) = names {
                many.retain(|name| self.is_kept(name, now_ns));
                if let [one] = many.as_slice() {
                    *names = Names::One(one.clone());
                }
            }
            let mut left = names.as_slice().iter();
            let keeps = !gone.contains(scope) && left.any(|name| self.is_kept(name, now_ns));
            removed = removed.saturating_add(usize::from(!keeps));
            keeps
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

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the memory had to give up so far.
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

    /// Throws out what is long expired and, if that is not enough, a sixteenth of
    /// all: the look at everything that this takes is paid by as many insertions.
    fn make_room(&self, now_ns: u64) {
        self.sweep(now_ns);
        let limit = self.limits.addresses;
        let excess = self.len().saturating_sub(limit);
        if excess == 0 {
            return;
        }
        let target = excess.saturating_add(limit / 16);
        let worth_at = |names: &Names| {
            let (allowed, ends) = names.worth();
            (ends > now_ns, allowed, ends)
        };
        let mut worths: Vec<_> = self
            .entries
            .iter()
            .map(|entry| worth_at(entry.value()))
            .collect();
        let last = target.saturating_sub(1).min(worths.len().saturating_sub(1));
        if worths.is_empty() {
            return;
        }
        let (_, highest, _) = worths.select_nth_unstable(last);
        let highest = *highest;
        let mut removed = 0_usize;
        self.entries.retain(|_, names| {
            let goes = removed < target && worth_at(names) <= highest;
            removed = removed.saturating_add(usize::from(goes));
            !goes
        });
        self.forget(removed);
        self.evicted.fetch_add(removed as u64, Ordering::Relaxed);
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(MemoryLimits::default())
    }
}

fn seen_name(seen: &Seen<'_>) -> SeenName {
    SeenName {
        name: Arc::from(seen.name),
        alias: seen.alias.map(Arc::from),
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
            name,
            alias: None,
            at_ns: 0,
            expires_at_ns,
            is_allowed,
        }
    }

    fn small(addresses: usize, names_per_address: usize) -> Memory {
        Memory::new(MemoryLimits {
            addresses,
            names_per_address,
            keep_expired_ns: 50,
        })
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
        let newer = Seen {
            alias: Some("cdn.example"),
            ..seen(1, "a.example", 90, true)
        };
        memory.record(node, &newer, 0);
        let [only] = memory
            .names_of(node, &v4(1), 0)
            .try_into()
            .expect("one name");
        assert_eq!((only.expires_at_ns, only.allowed), (100, true));
        assert_eq!(only.alias.as_deref(), Some("cdn.example"));
    }

    #[test]
    fn a_name_stays_for_a_while_after_its_end_and_then_goes() {
        let memory = small(100, 8);
        let node = memory.scope("node");
        memory.record(node, &seen(1, "a.example", 100, true), 0);
        memory.record(node, &seen(1, "b.example", 120, true), 0);
        let live = |now_ns| {
            let mut count = 0;
            memory.for_each_live(now_ns, |_| count += 1);
            count
        };
        assert_eq!((live(99), live(100), live(119), live(120)), (2, 1, 1, 0));
        assert_eq!(names(&memory, node, 1, 149), ["b.example", "a.example"]);
        assert_eq!(names(&memory, node, 1, 150), ["b.example"]);
        assert_eq!(memory.sweep(150), 0);
        assert_eq!(memory.sweep(169), 0);
        assert_eq!(memory.sweep(170), 1);
        assert!(memory.is_empty());
        assert_eq!(memory.counts().swept, 1);
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
        assert_eq!(memory.len(), memory.entries.len());
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
                            memory.sweep(step.into());
                        }
                    }
                });
            }
        });
        assert_eq!(memory.len(), memory.entries.len());
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
