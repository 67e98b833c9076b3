//! Learned addresses for those who ask, a page at a time.

use std::{
    net::IpAddr,
    sync::{Arc, TryLockError},
    time::Duration,
};

use super::{
    shared::{InForce, Shared},
    time::now_ns,
};
use crate::{
    api::{
        LearnedFilter, LearnedQuery,
        model::LearnedAddress,
        report::{LearnedContext, RuleTexts, learned_rows},
    },
    datapath::LearnedPages,
    policy::address_text,
};

/// How long a page waits at a time for a switch of policies, and how often: half a second, so that a client sees that the
/// list goes on.
const GIVE_WAY: Duration = Duration::from_millis(20);
const GIVE_WAY_TIMES: u32 = 25;

/// Rows of learned addresses: what the kernel knows, with what the agent knows of it.
pub(super) struct LearnedRows {
    shared: Arc<Shared>,
    filter: LearnedFilter,
    pages: LearnedPages,
    /// The rules that the texts are of.
    in_force: Option<Arc<InForce>>,
    texts: RuleTexts,
}

impl LearnedRows {
    pub(super) fn new(shared: Arc<Shared>, filter: LearnedFilter) -> Self {
        // Addresses that were looked up just before are there under their names.
        shared.dns_looks.catch_up();
        Self {
            pages: shared.reader.learned(),
            filter,
            in_force: None,
            texts: RuleTexts::default(),
            shared,
        }
    }

    /// The address that is asked for, if it is one.
    fn address(&self) -> Option<IpAddr> {
        match self.filter.query {
            Some(LearnedQuery::Address(address)) => Some(address),
            Some(LearnedQuery::Name(_) | LearnedQuery::Below(_)) | None => None,
        }
    }

    /// Lets a switch of policies have the machine, for a while at most.
    fn give_way(&self) {
        for _ in 0..GIVE_WAY_TIMES {
            match self.shared.wanted.try_lock() {
                Err(TryLockError::WouldBlock) => std::thread::sleep(GIVE_WAY),
                Ok(_) | Err(TryLockError::Poisoned(_)) => return,
            }
        }
    }

    fn page(&mut self) -> anyhow::Result<Option<Vec<LearnedAddress>>> {
        self.give_way();
        let Some(mut entries) = self.shared.reader.next_learned(&mut self.pages)? else {
            return Ok(None);
        };
        if let Some(wanted) = self.address() {
            entries.retain(|entry| address_text(&entry.address) == wanted);
        }
        let in_force = self.shared.in_force();
        let is_same = match (&in_force, &self.in_force) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            _ => false,
        };
        if !is_same {
            self.texts = RuleTexts::default();
            self.in_force = in_force;
        }
        let in_force = self.in_force.as_deref();
        let bound = |scope_id| in_force.and_then(|in_force| in_force.of(scope_id));
        let now_ns = now_ns();
        let context = LearnedContext {
            now_ns,
            names: &|scope_id, address| {
                let Some(bound) = bound(scope_id) else {
                    return Vec::new();
                };
                let memory = &self.shared.memory;
                memory.names_of(bound.scope.number, address, now_ns)
            },
            scope: &|scope_id| bound(scope_id).map(|bound| bound.scope.name.as_str()),
            rule: &|scope_id, rule| bound(scope_id)?.compiled()?.rules.get(&rule),
        };
        let rows = learned_rows(&entries, &self.filter, &context, &mut self.texts);
        Ok(Some(rows))
    }
}

impl Iterator for LearnedRows {
    type Item = anyhow::Result<Vec<LearnedAddress>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.page().transpose()
    }
}
