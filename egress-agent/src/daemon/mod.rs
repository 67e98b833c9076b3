//! The daemon: loads, switches, listens, sweeps.
//!
//! Tasks: verdict events, DNS copies, upkeep (fall back, expiry), policy files, the
//! node's addresses and resolvers, the API. They share [`Shared`] and end on one
//! signal. Ending leaves the data plane as it is: it needs no agent. Only tasks of
//! their own wait for the disk, and nobody waits for them for long.

mod abort;
mod api;
mod carry;
mod cluster;
mod command;
mod confirm;
mod dns;
mod events;
mod explain;
mod faults;
mod guard;
mod learned;
mod limits;
mod looks;
mod node;
mod notify;
mod observe;
mod plan;
mod pod_interfaces;
mod pods;
mod policy_files;
mod probation;
mod rulesets;
mod scopes;
mod shared;
mod state_writer;
mod sweep;
mod switch;
mod takeover;
mod time;
mod upkeep;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::Context;
use egress_common::maps::NODE_CGROUP;
use tokio::task::{JoinError, JoinSet};
use tracing::{error, info, warn};

use crate::{
    api::{AgentState, ApiListener, Scrape, serve},
    cli::{ExitCode, PodInterfaces, RunOptions, UsageError},
    datapath::{self, Datapath, DatapathError},
    kube, shutdown, signals,
    workload::Interfaces,
};
use cluster::Cluster;
pub use command::Session;
use confirm::Moment;
use node::{Node, NodeWatch};
use plan::Base;
use policy_files::{PolicyFiles, Watched};
use shared::Shared;
use state_writer::StateWriter;

/// Longest time that each step of an end waits for tasks, or for a disk.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Runs the daemon until it is asked to stop.
///
/// # Errors
///
/// A policy, an option or an environment that is not usable, before anything
/// is changed ([`UsageError`]); or what the kernel or the socket refuses.
pub fn run(options: RunOptions) -> anyhow::Result<ExitCode> {
    check_environment(&options)?;
    limits::check(&options)?;
    // Before they are read: what changes meanwhile is a change.
    let files = Watched::look(&options);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(start(options, files));
    // Tasks that wait for a disk without an answer are left behind.
    runtime.shutdown_timeout(END_LIMIT);
    result
}

/// Says exactly what is missing.
fn check_environment(options: &RunOptions) -> anyhow::Result<()> {
    let failed: Vec<String> = datapath::doctor(&options.cgroup, &options.pin_dir)
        .into_iter()
        .filter(|check| !check.ok)
        .map(|check| {
            format!(
                "{}: {}; needed: {}; {}",
                check.name, check.found, check.needed, check.fix
            )
        })
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(UsageError::new(format!(
        "this machine is not ready:\n  {}",
        failed.join("\n  ")
    ))
    .into())
}

async fn start(options: RunOptions, files: Watched) -> anyhow::Result<ExitCode> {
    let (trigger, stop) = shutdown::channel();
    let reload = signals::listen(&trigger, &stop).context("cannot wait for signals")?;
    let mut tasks = JoinSet::new();
    let joined = match &options.kubernetes {
        None => None,
        Some(kubernetes) => {
            let settings = kube::Settings {
                node_name: kubernetes.node_name.clone(),
                kubeconfig: kubernetes.kubeconfig.clone(),
                state_dir: options.state_dir.clone(),
            };
            let started = kube::start(settings, stop.clone()).await;
            let (client, feed, task) = started.map_err(UsageError::new)?;
            tasks.spawn(async { task.await.context("the watches panicked")? });
            Some((client, feed))
        }
    };
    let mut cluster = match &joined {
        None => None,
        Some((_, feed)) => Some(Cluster::new(feed.borrow().clone(), &options)?),
    };
    let state_writer = StateWriter::default();
    let node = Node::open(&options);
    let node_watch = NodeWatch::begin();
    let node_now = node.look(&state_writer);
    // The agent reports what is wrong before it changes anything.
    let policies = PolicyFiles::read(&options).map_err(UsageError::new)?;
    let base = Base::new(&options, Arc::new(policies), &node_now, |catalog| {
        let cluster = cluster.as_mut();
        cluster.map_or_else(Vec::new, |cluster| cluster.node_policies(catalog))
    })
    .map_err(UsageError::new)?;
    let interfaces = match options.pod_interfaces {
        None => None,
        Some(PodInterfaces::Auto) => {
            Some(Interfaces::watch().context("cannot watch the interfaces")?)
        }
    };
    let listener = ApiListener::bind(&options.socket).map_err(anyhow::Error::new)?;
    let scrape = match &options.scrape {
        None => None,
        Some(scrape) => Some(Scrape::bind(scrape).map_err(UsageError::new)?),
    };
    let mut datapath = Datapath::open(datapath::Options {
        pin_dir: options.pin_dir.clone(),
        cgroup: options.cgroup.clone(),
        interfaces: options.interfaces.clone(),
        learned_capacity: options.max_learned,
        shares: options.shares,
        ebpf_log_level: options.ebpf_log.number(),
    })
    .map_err(environment)?;
    let events = datapath.take_events().map_err(anyhow::Error::new)?;
    let copies = datapath.take_dns_copies().map_err(anyhow::Error::new)?;
    let log = datapath
        .take_log()
        .context("cannot read the programs' messages")?;
    let is_adopted = datapath.is_adopted();

    let shared = Arc::new(Shared::new(options, datapath, copies, node, state_writer)?);
    let pod_tree = shared.join(cluster)?;
    if let Err(error) = begin(&shared, base) {
        end_unconfirmed(&shared);
        return Err(error);
    }
    datapath::release_memory();
    info!(
        is_adopted,
        mode = shared.mode().name(),
        "data plane attached"
    );
    notify::ready(shared.mode().name());

    if let (Some((client, feed)), Some(tree)) = (joined, pod_tree) {
        cluster::tell(&shared, client, &feed, &mut tasks, &stop);
        tasks.spawn(cluster::run(Arc::clone(&shared), tree, feed, stop.clone()));
    }
    if let Some(interfaces) = interfaces {
        tasks.spawn(pod_interfaces::run(
            Arc::clone(&shared),
            interfaces,
            stop.clone(),
        ));
    }
    if let Some(anchors) = shared.anchors.clone() {
        tasks.spawn(guard::run(anchors.clone(), stop.clone()));
        if !shared.options.interfaces.is_empty() {
            tasks.spawn(guard::follow_interfaces(anchors, stop.clone()));
        }
    }
    if !shared.options.scopes.is_empty() {
        tasks.spawn(scopes::run(Arc::clone(&shared), stop.clone()));
    }
    tasks.spawn(events::run(Arc::clone(&shared), events, stop.clone()));
    tasks.spawn(dns::run(Arc::clone(&shared), stop.clone()));
    tasks.spawn(upkeep::run(Arc::clone(&shared), stop.clone()));
    tasks.spawn(policy_files::run(
        Arc::clone(&shared),
        files,
        reload,
        stop.clone(),
    ));
    tasks.spawn(node::run(Arc::clone(&shared), node_watch, stop.clone()));
    if let Some(log) = log {
        tasks.spawn(events::run_log(log, stop.clone()));
    }
    let state: Arc<dyn AgentState> = Arc::clone(&shared) as _;
    if let Some(scrape) = scrape {
        let (state, stop) = (Arc::clone(&state), stop.clone());
        tasks.spawn(async move {
            let served = scrape.serve(state, stop).await;
            served.context("cannot answer scrapers: --listen")
        });
    }
    let ending = stop.clone();
    tasks.spawn(async move {
        serve(listener, state, stop)
            .await
            .context("cannot serve the socket")
    });
    let result = until_all_end(&mut tasks, &trigger, &ending).await;
    notify::stopping();
    end_unconfirmed(&shared);
    // A pin that was removed a moment ago would be missed when the agent holds nothing any more.
    if let Some(anchors) = &shared.anchors {
        anchors.hold();
    }
    shared.observe_end();
    if let Some(log) = &shared.flow_log {
        log.finish();
    }
    let is_kept = shared.journal.settle(END_LIMIT);
    if !shared.state_writer.flush(END_LIMIT) || !is_kept {
        warn!("the disk does not answer: the last state is not written");
    }
    info!("agent stopped; the data plane stays");
    result
}

/// Waits for the tasks, as long as an end waits for them. The first that fails or panics ends the others; one that ends
/// well was asked to.
async fn until_all_end(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    trigger: &shutdown::Trigger,
    stop: &shutdown::Shutdown,
) -> anyhow::Result<ExitCode> {
    let mut result = Ok(ExitCode::Ok);
    while let Some(ended) = next_end(tasks, stop).await {
        let ended = ended.context("a task panicked").and_then(|ended| ended);
        if let Err(error) = ended {
            warn!(error = format!("{error:#}"), "task failed");
            trigger.shut_down();
            if result.is_ok() {
                result = Err(error);
            }
        }
    }
    result
}

/// The next end of a task. Once they are asked to end, those that do not in time are not waited for.
async fn next_end(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    stop: &shutdown::Shutdown,
) -> Option<Result<anyhow::Result<()>, JoinError>> {
    if !stop.is_requested() {
        tokio::select! {
            ended = tasks.join_next() => return ended,
            () = stop.requested() => {}
        }
    }
    match tokio::time::timeout(END_LIMIT, tasks.join_next()).await {
        Ok(ended) => ended,
        Err(_) => {
            warn!(
                tasks = tasks.len(),
                "tasks do not end in time: not waited for"
            );
            None
        }
    }
}

/// Brings the policy and the programs into force, whatever was there before.
fn begin(shared: &Shared, base: Base) -> anyhow::Result<()> {
    let is_taking_over = shared.datapath().is_taking_over();
    if is_taking_over && shared.is_bound() {
        // An agent was killed while it took over. What it left is finished under its policy.
        shared
            .take_over()
            .context("cannot take over from another layout")?;
        return shared.begin_with(base);
    }
    shared.begin_with(base)?;
    if is_taking_over {
        return shared
            .take_over()
            .context("cannot take over from another layout");
    }
    let mut datapath = shared.datapath();
    if shared.options.pod_interfaces.is_none() {
        // Those of an agent that was asked to.
        datapath.set_pod_interfaces(&BTreeSet::new(), NODE_CGROUP);
    }
    datapath
        .attach_learning()
        .and_then(|()| datapath.attach_judging())
        .context("cannot start enforcing")
}

/// Nobody can confirm any more: what was not confirmed is not left enforced.
fn end_unconfirmed(shared: &Shared) {
    if !shared.confirmation.give_up(Moment::now()) {
        return;
    }
    match shared.fall_back() {
        Ok(()) => warn!("not confirmed before the end: fell back to audit"),
        Err(error) => error!(error = format!("{error:#}"), "still enforcing"),
    }
}

/// Errors that say that the machine, not the agent, has to change.
fn environment(error: DatapathError) -> anyhow::Error {
    let is_environment = matches!(
        error,
        DatapathError::NoObject
            | DatapathError::Held { .. }
            | DatapathError::Layout { .. }
            | DatapathError::NotBpffs { .. }
            | DatapathError::NotOurs { .. }
    );
    let error = anyhow::Error::new(error);
    if is_environment {
        UsageError::new(error).into()
    } else {
        error.context("cannot load the data plane")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_ends_the_others_and_is_a_failure() {
        let (trigger, stop) = shutdown::channel();
        let mut tasks = JoinSet::new();
        let others = stop.clone();
        tasks.spawn(async move {
            others.requested().await;
            Ok(())
        });
        tasks.spawn(async { panic!("a fault in it") });
        let ended = until_all_end(&mut tasks, &trigger, &stop).await;
        let error = ended.expect_err("a failure");
        assert!(
            format!("{error:#}").contains("a task panicked"),
            "{error:#}"
        );
        assert!(stop.is_requested() && tasks.is_empty());
    }
}
