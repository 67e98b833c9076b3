//! The last known good versions of policies that are wrong now: they stay in force.

use std::sync::Arc;

use tokio::sync::watch;

use super::view::{Policies, PolicyKey, PolicyObject};

/// The last version that compiled, of policies whose newest does not. It is kept on the disk beside the view.
#[derive(Clone, Debug, Default)]
pub struct LastRight(watch::Sender<Policies>);

impl LastRight {
    /// Of the same object, a version that compiled.
    #[must_use]
    pub fn of(&self, key: &PolicyKey, uid: &str) -> Option<Arc<PolicyObject>> {
        let known = self.0.borrow();
        known.get(key).filter(|object| object.uid == uid).cloned()
    }

    /// Takes up a version that compiled, of a policy whose newest does not.
    pub fn keep(&self, key: &PolicyKey, object: Arc<PolicyObject>) {
        self.0.send_if_modified(|known| {
            if known.get(key) == Some(&object) {
                return false;
            }
            known.insert(key.clone(), object);
            true
        });
    }

    /// Forgets versions that nobody needs.
    pub fn retain(&self, is_needed: impl Fn(&PolicyKey, &PolicyObject) -> bool) {
        self.0.send_if_modified(|known| {
            let before = known.len();
            known.retain(|key, object| is_needed(key, object));
            known.len() != before
        });
    }

    /// For who keeps it on the disk.
    pub(super) fn subscribe(&self) -> watch::Receiver<Policies> {
        self.0.subscribe()
    }
}

impl From<Policies> for LastRight {
    fn from(policies: Policies) -> Self {
        Self(watch::Sender::new(policies))
    }
}
