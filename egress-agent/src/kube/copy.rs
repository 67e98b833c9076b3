//! The copy of the view on the disk: enforced while the server is away from the start.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::warn;

use super::{
    last_right::LastRight,
    view::{ClusterView, Policies},
    watch::Feed,
};
use crate::{
    api::Timestamp,
    shutdown::Shutdown,
    store::{Kept, Store},
};

/// How long after a change it is written: what comes meanwhile is written with it.
const DELAY: Duration = Duration::from_secs(1);
/// How many times as long as writing takes nothing is written, so that large clusters do not keep the disk busy.
const REST: u32 = 99;
/// How old it may become while nothing changes: `status` says its age when it is all that there is.
const LONGEST: Duration = Duration::from_mins(10);

/// The view as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Copy {
    version: u32,
    node_name: String,
    /// When the view was last known to be what the server has.
    pub(super) heard_at: Timestamp,
    pub(super) view: Arc<ClusterView>,
    /// Of policies that are wrong in the view: what stays in force of them.
    #[serde(default)]
    pub(super) last_right: Policies,
}

impl Kept for Copy {
    const FILE: &'static str = "cluster.json";
    const VERSION: u32 = 1;
    const MAX_BYTES: u64 = 256 << 20;
    const LOST: &'static str = "pods and policies are known when the API server has told them";
}

/// The copy that the last agent of this node left.
///
/// # Errors
///
/// The copy that is there cannot be used.
pub(super) fn load(store: &Store<Copy>, node_name: &str) -> Result<Option<Copy>, String> {
    match store.load() {
        Ok(Some(copy)) if copy.node_name != node_name => Err(format!(
            "{}: is of the node {}, not of {node_name}; {}",
            store.file().display(),
            copy.node_name,
            Copy::LOST
        )),
        Ok(copy) => Ok(copy),
        Err(error) => Err(format!("{:#}", anyhow::Error::new(error))),
    }
}

/// Writes what the feed has: soon after a change, now and then, and at the end. Reports why it cannot.
pub(super) async fn keep(
    store: Store<Copy>,
    node_name: String,
    mut feed: watch::Receiver<Feed>,
    last_right: LastRight,
    errors: watch::Sender<Option<String>>,
    stop: Shutdown,
) {
    let mut keeper = Keeper {
        store,
        written: None,
        rest: DELAY,
    };
    let mut last_right = last_right.subscribe();
    loop {
        tokio::select! {
            () = stop.requested() => {}
            Ok(()) = feed.changed() => {}
            Ok(()) = last_right.changed() => {}
            () = sleep(LONGEST) => {}
        }
        tokio::select! {
            () = stop.requested() => {}
            () = sleep(keeper.rest) => {}
        }
        let is_last = stop.is_requested();
        let right = last_right.borrow_and_update().clone();
        let copy = copy_of(&feed.borrow_and_update(), right, &node_name);
        if let Some(copy) = copy.filter(|copy| keeper.is_due(copy, is_last)) {
            let error = keeper.write(copy).await.err();
            errors.send_if_modified(|known| {
                let is_new = *known != error;
                if let Some(error) = error.as_ref().filter(|_| is_new) {
                    warn!(error, "the cluster cannot be kept on the disk");
                }
                *known = error;
                is_new
            });
        }
        if is_last {
            return;
        }
    }
}

/// The last copy that was written, and when the next may be.
struct Keeper {
    store: Store<Copy>,
    written: Option<Copy>,
    rest: Duration,
}

impl Keeper {
    /// True if a copy is to be written: it is another, or the one on the disk says that it is too old.
    fn is_due(&self, copy: &Copy, is_last: bool) -> bool {
        let Some(written) = &self.written else {
            return true;
        };
        let allowed = if is_last { Duration::ZERO } else { LONGEST };
        let age = copy.heard_at.since(written.heard_at);
        let is_same =
            Arc::ptr_eq(&written.view, &copy.view) && written.last_right == copy.last_right;
        !is_same || age > allowed
    }

    async fn write(&mut self, copy: Copy) -> Result<(), String> {
        let begin = Instant::now();
        let (store, new) = (self.store.clone(), copy.clone());
        let saved = spawn_blocking(move || store.save(&new)).await;
        self.rest = begin.elapsed().saturating_mul(REST).max(DELAY);
        saved
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        self.written = Some(copy);
        Ok(())
    }
}

/// The copy to keep of a feed; none before the server reported everything.
fn copy_of(feed: &Feed, last_right: Policies, node_name: &str) -> Option<Copy> {
    let heard_at = feed
        .freshness
        .heard_at
        .filter(|_| feed.freshness.is_synced)?;
    Some(Copy {
        version: Copy::VERSION,
        node_name: node_name.to_owned(),
        heard_at,
        view: Arc::clone(&feed.view),
        last_right,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kube::PolicyObject, policy::Spec};

    #[test]
    fn what_stays_in_force_is_kept_and_need_not_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::<Copy>::in_folder(folder.path());
        let object = PolicyObject {
            uid: "1".to_owned(),
            generation: 7,
            spec: Spec::default(),
        };
        let mut copy = Copy {
            version: Copy::VERSION,
            node_name: "n1".to_owned(),
            heard_at: std::time::UNIX_EPOCH.into(),
            view: Arc::default(),
            last_right: [("shop/web".parse().unwrap(), Arc::new(object))].into(),
        };
        store.save(&copy).unwrap();
        assert_eq!(load(&store, "n1").unwrap().unwrap(), copy);

        let text = std::fs::read_to_string(store.file()).unwrap();
        let mut older: serde_json::Value = serde_json::from_str(&text).unwrap();
        older.as_object_mut().unwrap().remove("last_right").unwrap();
        std::fs::write(store.file(), older.to_string()).unwrap();
        copy.last_right.clear();
        assert_eq!(load(&store, "n1").unwrap().unwrap(), copy);
    }
}
