//! Answers that taught nothing although somebody may count on them: what `explain` reports of them.
//!
//! One refusal for a name in a scope, the newest. Bounded: what is oldest makes
//! room. Times are nanoseconds of the clock since boot.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use egress_common::address::Address;

use super::ScopeNumber;

/// Most names with a refusal, over all scopes.
const NAMES: usize = 4_096;

/// Most addresses that are kept of one answer.
const ADDRESSES: usize = 8;

/// Why an answer taught nothing, or not all that it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The server is no trusted resolver.
    Untrusted,
    /// It points to addresses that DNS may not open.
    Rebinding,
    /// An alias leads to this denied name.
    AliasDenied(String),
    /// No query of its socket asks for it.
    NotAsked,
    /// It came too late after its query.
    Late,
}

/// An answer that taught nothing, or not all that it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The scope that asked.
    pub scope: ScopeNumber,
    /// The name that was asked for: lower case, without the final dot.
    pub name: String,
    /// Why.
    pub kind: RefusalKind,
    /// The server that answered.
    pub resolver: Address,
    /// The addresses that it is about.
    pub addresses: Vec<Address>,
    /// When.
    pub at_ns: u64,
}

/// The newest refusals.
#[derive(Debug, Default)]
pub struct Refusals {
    by_name: Mutex<HashMap<(ScopeNumber, String), Refusal>>,
}

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, HashMap<(ScopeNumber, String), Refusal>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a refusal in place of an older one of the same name.
    pub fn record(&self, mut refusal: Refusal) {
        refusal.addresses.truncate(ADDRESSES);
        let mut by_name = self.lock();
        let key = (refusal.scope, refusal.name.clone());
        by_name.insert(key, refusal);
        if by_name.len() > NAMES {
            // Half of them: the look at all that this takes is paid by as many insertions.
            let mut times: Vec<u64> = by_name.values().map(|one| one.at_ns).collect();
            let (_, median, _) = times.select_nth_unstable(NAMES / 2);
            let median = *median;
            by_name.retain(|_, one| one.at_ns > median);
        }
    }

    /// Forgets the refusal of a name, because it has been learned since.
    pub fn forget(&self, scope: ScopeNumber, name: &str) {
        let mut by_name = self.lock();
        if !by_name.is_empty() {
            by_name.remove(&(scope, name.to_owned()));
        }
    }

    /// The refusal of a name in a scope.
    #[must_use]
    pub fn of_name(&self, scope: ScopeNumber, name: &str) -> Option<Refusal> {
        self.lock().get(&(scope, name.to_owned())).cloned()
    }

    /// The refusals of answers that hold an address in a scope, the newest first.
    #[must_use]
    pub fn of_address(&self, scope: ScopeNumber, address: &Address) -> Vec<Refusal> {
        let by_name = self.lock();
        let about = by_name
            .values()
            .filter(|one| one.scope == scope && one.addresses.contains(address));
        let mut found: Vec<Refusal> = about.cloned().collect();
        found.sort_by_key(|one| std::cmp::Reverse(one.at_ns));
        found
    }
}

#[cfg(test)]
mod tests {
    use egress_common::address::from_v4;

    use super::*;
    use crate::dns::{Memory, MemoryLimits};

    fn scopes() -> (ScopeNumber, ScopeNumber) {
        let memory = Memory::new(MemoryLimits::default());
        (memory.scope("node"), memory.scope("pod"))
    }

    fn refusal(scope: ScopeNumber, name: &str, at_ns: u64) -> Refusal {
        Refusal {
            scope,
            name: name.to_owned(),
            kind: RefusalKind::Untrusted,
            resolver: from_v4([192, 0, 2, 53]),
            addresses: vec![from_v4([192, 0, 2, 1])],
            at_ns,
        }
    }

    #[test]
    fn the_newest_refusal_of_a_name_is_kept_for_its_scope() {
        let refusals = Refusals::default();
        let (node, pod) = scopes();
        refusals.record(refusal(node, "a.example", 1));
        refusals.record(Refusal {
            kind: RefusalKind::Rebinding,
            ..refusal(node, "a.example", 2)
        });
        let found = refusals.of_name(node, "a.example").unwrap();
        assert_eq!((found.kind, found.at_ns), (RefusalKind::Rebinding, 2));
        assert_eq!(refusals.of_name(pod, "a.example"), None);
        refusals.record(refusal(node, "b.example", 3));
        let about = refusals.of_address(node, &from_v4([192, 0, 2, 1]));
        let names: Vec<_> = about.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["b.example", "a.example"]);
        assert!(
            refusals
                .of_address(node, &from_v4([192, 0, 2, 2]))
                .is_empty()
        );
        refusals.forget(node, "a.example");
        assert_eq!(refusals.of_name(node, "a.example"), None);
    }

    #[test]
    fn the_oldest_make_room() {
        let refusals = Refusals::default();
        let (node, _) = scopes();
        for number in 1..=5_000_u64 {
            refusals.record(refusal(node, &format!("{number}.example"), number));
            assert!(refusals.lock().len() <= NAMES);
        }
        assert_eq!(refusals.of_name(node, "1.example"), None);
        assert!(refusals.of_name(node, "5000.example").is_some());
    }
}
