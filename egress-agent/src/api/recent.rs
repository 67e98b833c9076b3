//! The verdicts that the agent still remembers.

use std::{collections::VecDeque, sync::Arc};

use egress_common::verdict::Verdict;

use super::{FlowFilter, model::FlowReport};

/// Verdicts of each kind that [`RecentFlows`] remembers by default.
pub const RECENT_FLOWS: usize = 4096;

/// A bounded ring for each kind of verdict, the oldest pushed out first: what is allowed pushes no denial out.
#[derive(Clone, Debug)]
pub struct RecentFlows {
    rings: [Ring; Verdict::ALL.len()],
    /// How many were remembered, ever.
    count: u64,
    capacity: usize,
}

/// Verdicts of one kind, each with its place among all.
type Ring = VecDeque<(u64, Arc<FlowReport>)>;

impl Default for RecentFlows {
    fn default() -> Self {
        Self::new(RECENT_FLOWS)
    }
}

impl RecentFlows {
    /// Rings of this many verdicts each.
    #[must_use]
    pub const fn new(capacity: usize) -> Self {
        Self {
            rings: [const { Ring::new() }; Verdict::ALL.len()],
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
        while ring.len() >= self.capacity {
            ring.pop_front();
        }
        ring.push_back((self.count, flow));
        self.count = self.count.saturating_add(1);
    }

    /// Verdicts that the filter shows, oldest first.
    #[must_use]
    pub fn recent(&self, filter: &FlowFilter) -> Vec<Arc<FlowReport>> {
        let limit = filter.limit.unwrap_or(usize::MAX);
        let mut shown = Vec::new();
        for ring in &self.rings {
            let newest_first = ring.iter().rev();
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
        self.rings.iter().map(Ring::len).sum()
    }

    /// True if none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rings.iter().all(Ring::is_empty)
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
    fn a_ring_without_room_remembers_nothing() {
        let mut ring = RecentFlows::new(0);
        ring.push(denied_flow(1).into());
        assert!(ring.is_empty());
    }
}
