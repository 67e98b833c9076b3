//! The node, and the cgroups given with `--scope`, as they come, go and come again.
//!
//! A service's cgroup is removed and made again at each of its restarts, and has another id then. It is its scope at once,
//! with what the scope has learned: the binding of before goes on for the new cgroup. One that is not there yet is waited
//! for; until then, what is in no other scope is the node's.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use egress_common::maps::{CGROUP_LEVELS, NODE_CGROUP};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::shared::{Scope, Shared, lock};
use crate::{
    cli::{RunOptions, UsageError, run::NODE_SCOPE},
    datapath::{cgroup_facts, readable},
    dns::Memory,
    shutdown::Shutdown,
    workload::{PathWatch, cgroup_root},
};

/// How often the cgroups are looked at although nobody reported a change.
const LOOK: Duration = Duration::from_secs(1);

/// The scopes of the options.
#[derive(Debug)]
pub(super) struct OwnScopes {
    node: Arc<Scope>,
    given: Vec<Given>,
    /// Why the last change could not be switched to.
    refused: Option<String>,
}

/// A cgroup given with `--scope`.
#[derive(Debug)]
struct Given {
    path: PathBuf,
    /// As it was last there, or is to be.
    scope: Arc<Scope>,
    is_there: bool,
    /// True if it has been there since the agent began.
    was_there: bool,
}

impl OwnScopes {
    /// Finds the cgroups that are there.
    ///
    /// # Errors
    ///
    /// A path is in no cgroup v2 hierarchy; they lie at too many depths.
    pub(super) fn new(options: &RunOptions, memory: &Memory) -> Result<Self, UsageError> {
        let node = Arc::new(Scope {
            name: NODE_SCOPE.to_owned(),
            cgroup: None,
            cgroup_id: NODE_CGROUP,
            level: None,
            identity: 1,
            answers_dns: true,
            number: memory.scope(NODE_SCOPE),
            pod: None,
        });
        let root = cgroup_root().unwrap_or_default();
        let mut given = Vec::new();
        for (identity, scope) in (2_u32..).zip(&options.scopes) {
            let path = scope.cgroup.clone();
            let found = cgroup_facts(&path).ok();
            let depth = || {
                let below = path.strip_prefix(&root).ok()?;
                i32::try_from(below.components().count()).ok()
            };
            let Some(level) = found.map(|(_, level)| level).or_else(depth) else {
                return Err(UsageError::new(format!(
                    "--scope {}={}: this is not below {}, where cgroup v2 is mounted",
                    scope.name,
                    path.display(),
                    root.display()
                )));
            };
            given.push(Given {
                scope: Arc::new(Scope {
                    name: scope.name.clone(),
                    cgroup: Some(path.clone()),
                    cgroup_id: found.map_or(NODE_CGROUP, |(id, _)| id),
                    level: Some(level),
                    identity,
                    answers_dns: options.resolver_scopes.contains(&scope.name),
                    number: memory.scope(&scope.name),
                    pod: None,
                }),
                path,
                is_there: found.is_some(),
                was_there: found.is_some(),
            });
        }
        let mut levels: Vec<_> = given.iter().map(|given| given.scope.level).collect();
        levels.sort_unstable();
        levels.dedup();
        if levels.len() > CGROUP_LEVELS {
            return Err(UsageError::new(format!(
                "the cgroups of --scope lie at {} different depths, and {CGROUP_LEVELS} are possible",
                levels.len()
            )));
        }
        for waiting in given.iter().filter(|given| !given.is_there) {
            info!(scope = waiting.scope.name, cgroup = %waiting.path.display(), "waits for the scope's cgroup");
        }
        Ok(Self {
            node,
            given,
            refused: None,
        })
    }

    /// One scope for everything.
    pub(super) const fn of_all(scope: Arc<Scope>) -> Self {
        Self {
            node: scope,
            given: Vec::new(),
            refused: None,
        }
    }

    /// The scopes that can be bound, the node first. One whose cgroup is gone keeps what it knows for the next one.
    pub(super) fn known(&self) -> Vec<Arc<Scope>> {
        let given = self.given.iter().filter(|given| given.was_there);
        let given = given.map(|given| Arc::clone(&given.scope));
        std::iter::once(Arc::clone(&self.node))
            .chain(given)
            .collect()
    }

    /// The depths at which cgroups of scopes are, or will be.
    pub(super) fn levels(&self) -> impl Iterator<Item = i32> {
        self.given.iter().filter_map(|given| given.scope.level)
    }

    /// Those whose cgroups are not there now.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Arc<Scope>> {
        let waiting = self.given.iter().filter(|given| !given.is_there);
        waiting.map(|given| &given.scope)
    }

    /// Why a change could not be switched to.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Looks at the cgroups; says whether there is one that was not there.
    fn look(&mut self) -> bool {
        let mut is_new = false;
        for given in &mut self.given {
            let name = &given.scope.name;
            let cgroup = given.path.display();
            let found = cgroup_facts(&given.path).ok();
            let Some((cgroup_id, level)) = found else {
                if given.is_there {
                    info!(scope = name, %cgroup, "the scope's cgroup is gone, and waited for");
                }
                given.is_there = false;
                continue;
            };
            given.is_there = true;
            if given.was_there && given.scope.cgroup_id == cgroup_id {
                continue;
            }
            info!(scope = name, %cgroup, "the scope's cgroup is there");
            given.was_there = true;
            given.scope = Arc::new(given.scope.at(cgroup_id, level));
            is_new = true;
        }
        is_new
    }
}

impl Scope {
    /// The same scope at another cgroup.
    fn at(&self, cgroup_id: u64, level: i32) -> Self {
        Self {
            name: self.name.clone(),
            cgroup: self.cgroup.clone(),
            cgroup_id,
            level: Some(level),
            identity: self.identity,
            answers_dns: self.answers_dns,
            number: self.number,
            pod: self.pod.clone(),
        }
    }
}

/// Follows the cgroups until it is asked to stop.
///
/// # Errors
///
/// A task of the runtime failed.
pub(super) async fn run(shared: Arc<Shared>, stop: Shutdown) -> anyhow::Result<()> {
    let root = cgroup_root().unwrap_or_default();
    let paths: Vec<PathBuf> = shared
        .options
        .scopes
        .iter()
        .map(|scope| scope.cgroup.clone())
        .collect();
    let watch = PathWatch::new()
        .context("no inotify instance: fs.inotify.max_user_instances may be too low");
    let mut watch = match watch.and_then(|watch| Ok(readable(watch)?)) {
        Ok(watch) => Some(watch),
        Err(error) => {
            let error = format!("{error:#}");
            warn!(error, "cgroups of scopes are looked at every second only");
            None
        }
    };
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_watched = true;
    loop {
        if let Some(watch) = &mut watch {
            let watched = watch.get_mut().follow(&root, &paths);
            if let Err(error) = &watched
                && was_watched
            {
                warn!(%error, "cgroups of scopes are looked at every second only: fs.inotify.max_user_watches may be too low");
            }
            was_watched = watched.is_ok();
        }
        let looking = Arc::clone(&shared);
        // Maps: milliseconds, which the runtime's own threads should not wait for.
        tokio::task::spawn_blocking(move || looking.look_at_scopes()).await?;
        tokio::select! {
            _ = look.tick() => {}
            heard = async {
                match &mut watch {
                    Some(watch) => {
                        let mut guard = watch.readable_mut().await?;
                        guard.get_inner_mut().drain()?;
                        guard.clear_ready();
                        Ok::<_, std::io::Error>(())
                    }
                    None => std::future::pending().await,
                }
            } => heard.context("cannot wait for cgroups")?,
            () = stop.requested() => return Ok(()),
        }
    }
}

impl Shared {
    /// Binds what is there now and was not before.
    fn look_at_scopes(&self) {
        let is_new = lock(&self.scopes).look();
        if !is_new && lock(&self.scopes).refused.is_none() {
            return;
        }
        let mut wanted = lock(&self.wanted);
        let Some(base) = wanted.base.clone() else {
            return;
        };
        let refused = self.apply(&mut wanted, base).err();
        let refused = refused.map(|error| format!("{error:#}"));
        let before = std::mem::replace(&mut lock(&self.scopes).refused, refused.clone());
        if let Some(error) = refused.filter(|error| before.as_ref() != Some(error)) {
            error!(
                error,
                "a scope's cgroup cannot be bound; tried again every second"
            );
        }
    }
}
