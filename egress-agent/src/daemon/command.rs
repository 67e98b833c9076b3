//! The daemon for one command: one cgroup, nothing pinned, nothing kept, policies that nobody changes.

use std::{
    future::Future,
    sync::{Arc, Mutex},
};

use anyhow::Context as _;
use egress_common::{maps::NODE_CGROUP, verdict::Mode};
use tracing::{debug, warn};

use super::{
    dns, environment, events,
    node::{self, Node, NodeWatch},
    plan::Base,
    policy_files::PolicyFiles,
    scopes::OwnScopes,
    shared::{Scope, Shared},
    state_writer::StateWriter,
    upkeep,
};
use crate::{
    api::model::Observations,
    cli::{RunOptions, UsageError},
    datapath::{self, Datapath, EventRing},
    policy::{Catalog, PolicySet},
    shutdown,
};

/// The name of the command's scope.
const SCOPE: &str = "exec";

/// Programs that judge one cgroup, and what serves them. They end with it.
pub struct Session {
    shared: Arc<Shared>,
    events: EventRing,
}

impl Session {
    /// Loads the programs, writes the policies and attaches to the cgroup: what is in there is judged when this returns.
    /// No thread is started.
    ///
    /// # Errors
    ///
    /// A machine or policies that are not usable ([`UsageError`]), or what the kernel refuses.
    pub fn begin(
        options: RunOptions,
        policies: PolicySet,
        catalog: Catalog,
    ) -> anyhow::Result<Self> {
        let files = PolicyFiles {
            catalog: Arc::new(catalog),
            policies: policies.policies().to_vec(),
        };
        let (node, state_writer) = (Node::open(&options), StateWriter::default());
        let node_now = node.look(&state_writer);
        let base = Base::new(&options, Arc::new(files), &node_now, |_| Vec::new())
            .map_err(UsageError::new)?;
        let mut datapath = Datapath::open_unpinned(datapath::Options {
            pin_dir: options.pin_dir.clone(),
            cgroup: options.cgroup.clone(),
            interfaces: Vec::new(),
            learned_capacity: options.max_learned,
            shares: options.shares,
            ebpf_log_level: options.ebpf_log.number(),
        })
        .map_err(environment)?;
        debug!("programs loaded");
        let events = datapath.take_events().map_err(anyhow::Error::new)?;
        let copies = datapath.take_dns_copies().map_err(anyhow::Error::new)?;
        let mut shared = Shared::new(options, datapath, copies, node, state_writer)?;
        // Everything that the programs see is in the one cgroup; but it is not the node: it answers for no resolver.
        let scope = Arc::new(Scope {
            name: SCOPE.to_owned(),
            cgroup: Some(shared.options.cgroup.clone()),
            cgroup_id: NODE_CGROUP,
            level: None,
            identity: 1,
            answers_dns: false,
            number: shared.memory.scope(SCOPE),
            pod: None,
        });
        shared.scopes = Mutex::new(OwnScopes::of_all(scope));
        shared.begin_with(base)?;
        debug!("policy written");
        shared
            .datapath()
            .attach_unpinned()
            .context("cannot start enforcing")?;
        debug!("programs attached");
        Ok(Self {
            shared: Arc::new(shared),
            events,
        })
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.shared.mode()
    }

    /// Serves the programs until `work` has ended; returns what was seen until then.
    pub async fn serve<T>(self, work: impl Future<Output = T>) -> (T, Observations) {
        let (trigger, stop) = shutdown::channel();
        let mut tasks = tokio::task::JoinSet::new();
        let shared = self.shared;
        tasks.spawn(events::run(Arc::clone(&shared), self.events, stop.clone()));
        tasks.spawn(dns::run(Arc::clone(&shared), stop.clone()));
        tasks.spawn(upkeep::run(Arc::clone(&shared), stop.clone()));
        let watch = NodeWatch::begin();
        tasks.spawn(node::run(Arc::clone(&shared), watch, stop));
        let result = work.await;
        // The last events are in the rings: answers first, which name what was denied.
        let reading = Arc::clone(&shared);
        let read = tokio::task::spawn_blocking(move || {
            reading.dns_looks.catch_up();
            reading.event_looks.catch_up();
        });
        if let Err(error) = read.await {
            warn!(%error, "not all was seen");
        }
        trigger.shut_down();
        while let Some(ended) = tasks.join_next().await {
            let ended = ended.context("a task panicked").and_then(|ended| ended);
            if let Err(error) = ended {
                // The kernel judged without it; what it would have seen is missing.
                warn!(error = format!("{error:#}"), "not all was seen");
            }
        }
        shared.observe_end();
        (result, shared.observed())
    }
}
