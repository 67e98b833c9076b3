//! The verdicts that the agent still remembers.

use std::{
    array,
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use egress_common::verdict::Verdict;

use super::{FlowFilter, model::FlowReport};

/// Verdicts of each kind that [`RecentFlows`] remembers by default.
pub const RECENT_FLOWS: usize = 4096;

/// A bounded ring for each kind of verdict: what is allowed pushes no denial out, and no scope pushes out what another one
/// has below its share.
#[derive(Clone, Debug)]
pub struct RecentFlows {
    rings: [Ring; Verdict::ALL.len()],
    /// How many were remembered, ever.
    count: u64,
    capacity: usize,
}

/// Verdicts of one kind, oldest first.
#[derive(Clone, Debug, Default)]
struct Ring {
    /// Each with its place among those of all kinds.
    flows: VecDeque<(u64, Arc<FlowReport>)>,
    /// How many there are of each scope; none of 0.
    scopes: HashMap<String, usize>,
}

impl Ring {
    /// Takes the oldest verdict out of those of scopes that have their share of all, or more.
    fn make_room(&mut self) {
        let share = self.flows.len().checked_div(self.scopes.len()).unwrap_or(0);
        let has_its_share = |(_, flow): &(u64, Arc<FlowReport>)| {
            self.scopes
                .get(&flow.scope)
                .is_none_or(|count| *count >= share)
        };
        // One has: not all are below the mean. Its verdicts are near the front, unless it has just begun.
        let at = self.flows.iter().position(has_its_share).unwrap_or(0);
        let Some((_, flow)) = self.flows.remove(at) else {
            return;
        };
        if let Some(count) = self.scopes.get_mut(&flow.scope) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.scopes.remove(&flow.scope);
            }
        }
    }

    fn push(&mut self, place: u64, flow: Arc<FlowReport>) {
        if let Some(count) = self.scopes.get_mut(&flow.scope) {
            *count = count.saturating_add(1);
        } else {
            self.scopes.insert(flow.scope.clone(), 1);
        }
        self.flows.push_back((place, flow));
    }
}

impl Default for RecentFlows {
    fn default() -> Self {
        Self::new(RECENT_FLOWS)
    }
}

impl RecentFlows {
    /// Rings of this many verdicts each.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            rings: array::from_fn(|_| Ring::default()),
            count: 0,
            capacity,
        }
    }

    /// Remembers a verdict.
    pub fn push(&mut self, flow: Arc<FlowReport>) {
        // A verdict that this agent does not know is kept with the first kind.
        let mut kinds = Verdict::ALL.iter();
        let kind = kinds.position(|verdict| verdict.name() == flow.verdict);
        let Some(ring) = self.rings.get_mut(kind.unwrap_or(0)) else {
            return;
        };
        if self.capacity == 0 {
            return;
        }
        while ring.flows.len() >= self.capacity {
            ring.make_room();
        }
        ring.push(self.count, flow);
        self.count = self.count.saturating_add(1);
    }

    /// Verdicts that the filter shows, oldest first.
    #[must_use]
    pub fn recent(&self, filter: &FlowFilter) -> Vec<Arc<FlowReport>> {
        let limit = filter.limit.unwrap_or(usize::MAX);
        let mut shown = Vec::new();
        for ring in &self.rings {
            let newest_first = ring.flows.iter().rev();
            let of_kind = newest_first.filter(|(_, flow)| filter.shows(flow));
            shown.extend(of_kind.take(limit).cloned());
        }
        shown.sort_unstable_by_key(|(place, _)| *place);
        let first = shown.len().saturating_sub(limit);
        shown.drain(..first);
        shown.into_iter().map(|(_, flow)| flow).collect()
    }

    /// How many verdicts are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rings.iter().map(|ring| ring.flows.len()).sum()
    }

    /// True if none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rings.iter().all(|ring| ring.flows.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::{allowed_flow, denied_flow, flow};
    use egress_common::verdict::Reason;

    fn ports(flows: &[Arc<FlowReport>]) -> Vec<u16> {
        flows.iter().filter_map(|flow| flow.port).collect()
    }

    #[test]
    fn the_oldest_is_forgotten_first_and_the_newest_come_last() {
        let mut ring = RecentFlows::new(3);
        assert!(ring.is_empty());
        for port in 1..=5 {
            ring.push(allowed_flow(port).into());
        }
        assert_eq!(ring.len(), 3);
        assert_eq!(ports(&ring.recent(&FlowFilter::default())), [3, 4, 5]);
    }

    #[test]
    fn a_limit_keeps_the_newest_of_what_is_shown() {
        let mut ring = RecentFlows::default();
        for port in 1..=3 {
            ring.push(denied_flow(port).into());
            ring.push(allowed_flow(port + 10).into());
        }
        let filter = FlowFilter {
            denied: true,
            limit: Some(2),
            ..FlowFilter::default()
        };
        assert_eq!(ports(&ring.recent(&filter)), [2, 3]);
        let all = FlowFilter {
            limit: Some(3),
            ..FlowFilter::default()
        };
        assert_eq!(ports(&ring.recent(&all)), [12, 3, 13]);
    }

    #[test]
    fn no_kind_of_verdict_pushes_another_out() {
        let mut ring = RecentFlows::default();
        ring.push(denied_flow(1).into());
        ring.push(flow(2, Verdict::WouldDeny, Reason::NoRule).into());
        for _ in 0..2 * RECENT_FLOWS {
            ring.push(allowed_flow(3).into());
        }
        assert_eq!(ring.len(), RECENT_FLOWS + 2);
        let denied = FlowFilter {
            denied: true,
            ..FlowFilter::default()
        };
        assert_eq!(ports(&ring.recent(&denied)), [1, 2]);
        // Nor does a flood of denials push the last allowed ones out.
        for _ in 0..2 * RECENT_FLOWS {
            ring.push(denied_flow(4).into());
        }
        let flows = ring.recent(&FlowFilter::default());
        let allowed = flows.iter().filter(|flow| !denied.shows(flow)).count();
        assert_eq!((allowed, flows.len()), (RECENT_FLOWS, 2 * RECENT_FLOWS + 1));
    }

    #[test]
    fn no_scope_pushes_out_what_another_has_below_its_share() {
        let of = |scope: &str, port| {
            let mut flow = denied_flow(port);
            flow.scope = scope.to_owned();
            Arc::new(flow)
        };
        let mut ring = RecentFlows::new(10);
        for port in 1..=3 {
            ring.push(of("polite", port));
        }
        for port in 100..200 {
            ring.push(of("hostile", port));
        }
        let shown = |ring: &RecentFlows| ports(&ring.recent(&FlowFilter::default()));
        assert_eq!(shown(&ring), [1, 2, 3, 193, 194, 195, 196, 197, 198, 199]);
        // Above its share it loses its own oldest, and another newcomer finds room.
        for port in 4..=9 {
            ring.push(of("polite", port));
        }
        ring.push(of("third", 7000));
        let left = shown(&ring);
        assert_eq!((left.len(), left.last()), (10, Some(&7000)));
        assert!(left.contains(&199) && left.contains(&9), "{left:?}");
        for ring in &ring.rings {
            let counted: usize = ring.scopes.values().sum();
            assert_eq!(counted, ring.flows.len());
            assert!(!ring.scopes.values().any(|count| *count == 0));
        }
    }

    #[test]
    fn a_ring_without_room_remembers_nothing() {
        let mut ring = RecentFlows::new(0);
        ring.push(denied_flow(1).into());
        assert!(ring.is_empty());
    }
}
