//! The verdicts that the agent still remembers.

use std::collections::VecDeque;

use super::{model::FlowReport, state::FlowFilter};

/// Verdicts that [`RecentFlows`] remembers by default.
pub const RECENT_FLOWS: usize = 4096;

/// A bounded ring of verdicts, the oldest pushed out first.
#[derive(Clone, Debug)]
pub struct RecentFlows {
    flows: VecDeque<FlowReport>,
    capacity: usize,
}

impl Default for RecentFlows {
    fn default() -> Self {
        Self::new(RECENT_FLOWS)
    }
}

impl RecentFlows {
    /// A ring of this many verdicts.
    #[must_use]
    pub const fn new(capacity: usize) -> Self {
        Self {
            flows: VecDeque::new(),
            capacity,
        }
    }

    /// Remembers a verdict.
    pub fn push(&mut self, flow: FlowReport) {
        if self.capacity == 0 {
            return;
        }
        while self.flows.len() >= self.capacity {
            self.flows.pop_front();
        }
        self.flows.push_back(flow);
    }

    /// What the filter shows, oldest first.
    #[must_use]
    pub fn recent(&self, filter: &FlowFilter) -> Vec<FlowReport> {
        let limit = filter.limit.unwrap_or(usize::MAX);
        let newest_first = self.flows.iter().rev();
        let mut shown: Vec<_> = newest_first
            .filter(|flow| filter.shows(flow))
            .take(limit)
            .cloned()
            .collect();
        shown.reverse();
        shown
    }

    /// How many verdicts are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::{allowed_flow, denied_flow};

    fn ports(flows: &[FlowReport]) -> Vec<u16> {
        flows.iter().filter_map(|flow| flow.port).collect()
    }

    #[test]
    fn the_oldest_is_forgotten_first_and_the_newest_come_last() {
        let mut ring = RecentFlows::new(3);
        assert!(ring.is_empty());
        for port in 1..=5 {
            ring.push(allowed_flow(port));
        }
        assert_eq!(ring.len(), 3);
        assert_eq!(ports(&ring.recent(&FlowFilter::default())), [3, 4, 5]);
    }

    #[test]
    fn a_limit_keeps_the_newest_of_what_is_shown() {
        let mut ring = RecentFlows::default();
        for port in 1..=3 {
            ring.push(denied_flow(port));
            ring.push(allowed_flow(port));
        }
        let filter = FlowFilter {
            denied: true,
            limit: Some(2),
            ..FlowFilter::default()
        };
        assert_eq!(ports(&ring.recent(&filter)), [2, 3]);
    }

    #[test]
    fn a_ring_without_room_remembers_nothing() {
        let mut ring = RecentFlows::new(0);
        ring.push(denied_flow(1));
        assert!(ring.is_empty());
    }
}
