//! Names that explained addresses.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use crate::api::Timestamp;

/// How long an address keeps its name when no lookup was seen since: the agent may have been restarted.
const EXPLAINED_FOR: Duration = Duration::from_secs(24 * 3600);

/// The name that explained an address, and when it last did.
#[derive(Clone, Debug)]
struct Explained {
    name: Arc<str>,
    at: Timestamp,
}

/// The name that explained an address last, by scope and address.
#[derive(Debug, Default)]
pub(super) struct ExplainedAddresses(HashMap<(Arc<str>, IpAddr), Explained>);

impl ExplainedAddresses {
    /// The name that still explains an address of a scope.
    pub(super) fn name(&self, place: &(Arc<str>, IpAddr), at: Timestamp) -> Option<Arc<str>> {
        let known = self.0.get(place)?;
        (at.since(known.at) < EXPLAINED_FOR).then(|| Arc::clone(&known.name))
    }

    /// Remembers which name explains an address. Only a help: beyond `most` an address stays without a name.
    pub(super) fn insert(
        &mut self,
        place: (Arc<str>, IpAddr),
        name: Arc<str>,
        at: Timestamp,
        most: usize,
    ) {
        if self.0.len() >= most && !self.0.contains_key(&place) {
            self.0.retain(|_, known| at.since(known.at) < EXPLAINED_FOR);
            if self.0.len() >= most {
                return;
            }
        }
        self.0.insert(place, Explained { name, at });
    }

    /// How many addresses have a name.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
