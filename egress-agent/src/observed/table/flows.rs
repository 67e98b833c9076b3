//! Flows with a packet lately: their next packets count no more.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use egress_common::verdict::Verdict;

use super::entry::{Key, Packet, clamped};
use crate::api::Timestamp;

/// A flow without a packet for at least this long begins anew.
const FLOW_IDLE: Duration = Duration::from_secs(60);

/// The key that tells the packets of one flow from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) scope: Arc<str>,
    source: (IpAddr, u16),
    destination: (IpAddr, Option<u16>),
    protocol: u8,
    verdict: Verdict,
}

impl Flow {
    /// The flow that a packet belongs to.
    pub(super) fn of(packet: &Packet<'_>) -> Self {
        Self {
            scope: clamped(packet.scope),
            source: (packet.source, packet.source_port),
            destination: (packet.destination, packet.port),
            protocol: packet.protocol,
            verdict: packet.verdict,
        }
    }

    /// True if nothing tells it from others: at connect the source is not chosen yet.
    const fn is_only_tried(&self) -> bool {
        self.source.0.is_unspecified()
    }
}

/// Flows, each with the key that it counts under.
#[derive(Debug, Default)]
pub(super) struct Flows {
    /// Those with a packet lately, and those before.
    recent: [HashMap<Flow, Arc<Key>>; 2],
    since: Option<Timestamp>,
}

impl Flows {
    /// The key of a flow that had a packet lately.
    pub(super) fn known(&mut self, flow: &Flow) -> Option<Arc<Key>> {
        if flow.is_only_tried() {
            return None;
        }
        let [current, before] = &mut self.recent;
        if let Some(key) = current.get(flow) {
            return Some(Arc::clone(key));
        }
        let key = before.remove(flow)?;
        current.insert(flow.clone(), Arc::clone(&key));
        Some(key)
    }

    /// Remembers a flow.
    pub(super) fn insert(&mut self, flow: Flow, key: Arc<Key>) {
        if !flow.is_only_tried() {
            let [current, _] = &mut self.recent;
            current.insert(flow, key);
        }
    }

    /// Forgets those that were silent for too long, or were there before `most` others.
    pub(super) fn forget(&mut self, now: Timestamp, most: usize) {
        let since = *self.since.get_or_insert(now);
        let [current, before] = &mut self.recent;
        if now.since(since) >= FLOW_IDLE.saturating_mul(2) {
            // There was no packet at all for so long.
            current.clear();
        }
        if now.since(since) >= FLOW_IDLE || current.len() >= most {
            *before = std::mem::take(current);
            self.since = Some(now);
        }
    }

    /// How many are held: those with a packet lately, and those before.
    #[cfg(test)]
    pub(super) fn held(&self) -> [usize; 2] {
        self.recent.each_ref().map(HashMap::len)
    }
}
