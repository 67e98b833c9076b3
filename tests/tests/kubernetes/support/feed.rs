//! A feed from an API server, as the agent has it.

use std::{
    fmt::Write as _,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use egress_agent::{
    kube::{ClusterView, Feed, Settings, start},
    shutdown::{self, Trigger},
};
use tokio::{runtime::Runtime, sync::watch, task::JoinHandle};

/// How long what is to come may take: an agent that could not reach the server asks again after at most half a minute.
pub(crate) const COMES: Duration = Duration::from_mins(1);

/// A running feed; ended on drop.
pub(crate) struct Fed {
    runtime: Runtime,
    receiver: watch::Receiver<Feed>,
    trigger: Trigger,
    task: JoinHandle<anyhow::Result<()>>,
    /// Each view that was published since it was synced.
    seen: Arc<Mutex<Vec<Arc<ClusterView>>>>,
}

impl Fed {
    pub(crate) fn start(kubeconfig: &Path, node_name: &str, state_dir: &Path) -> Self {
        let runtime = Runtime::new().unwrap();
        let (trigger, stop) = shutdown::channel();
        let settings = Settings {
            node_name: node_name.to_owned(),
            kubeconfig: Some(kubeconfig.to_owned()),
            state_dir: state_dir.to_owned(),
        };
        let (_, receiver, task) = runtime.block_on(start(settings, stop)).unwrap();
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let (mut each, views) = (receiver.clone(), Arc::clone(&seen));
        runtime.spawn(async move {
            while each.changed().await.is_ok() {
                let feed = each.borrow_and_update().clone();
                if feed.freshness.is_synced {
                    views.lock().unwrap().push(feed.view);
                }
            }
        });
        Self {
            runtime,
            receiver,
            trigger,
            task,
            seen,
        }
    }

    pub(crate) fn now(&self) -> Feed {
        self.receiver.borrow().clone()
    }

    /// Waits for a feed.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut(&Feed) -> bool) -> Feed {
        let end = Instant::now() + COMES;
        loop {
            let feed = self.now();
            if holds(&feed) {
                return feed;
            }
            assert!(Instant::now() < end, "{what} does not come: {feed:#?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until everything is known and nothing is wrong.
    pub(crate) fn until_synced(&self) -> Feed {
        self.until("everything", |feed| {
            feed.freshness.is_synced && feed.freshness.error.is_none()
        })
    }

    /// Waits for a view, as [`shown`] has it.
    pub(crate) fn until_shown(&self, expected: &str) -> Feed {
        self.until(expected, |feed| shown(&feed.view) == expected)
    }

    /// Each view that was published since it was synced.
    pub(crate) fn seen(&self) -> Vec<Arc<ClusterView>> {
        self.seen.lock().unwrap().clone()
    }

    /// Ends it as the agent does.
    pub(crate) fn stop(self) {
        self.trigger.shut_down();
        self.runtime.block_on(self.task).unwrap().unwrap();
    }
}

/// Pods with their labels and policies, then the node with its own.
pub(crate) fn shown(view: &ClusterView) -> String {
    let mut lines: Vec<String> = view
        .pods
        .values()
        .map(|pod| {
            let mut line = format!("{}/{}", pod.namespace, pod.name);
            for (key, value) in &pod.labels {
                write!(line, " {key}={value}").unwrap();
            }
            for key in view.policies_of(pod) {
                write!(line, " [{key}]").unwrap();
            }
            line
        })
        .collect();
    lines.sort();
    let mut node = "node".to_owned();
    for key in view.policies_of_node() {
        write!(node, " [{key}]").unwrap();
    }
    lines.push(node);
    lines.join("\n")
}
