//! The status of policies: whether they compile, for how many rules, for whom.
//!
//! One agent of all writes it, and only what differs from what is there. It says what is true of the policy itself;
//! what nodes made of it is reported by their metrics and by the command line.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
    core::{ApiResource, Object},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tracing::{debug, warn};

use super::{
    check::{checked, message},
    crd::{ClusterEgressPolicy, EgressPolicy, PolicyStatus},
    lease::{Election, LeaseTimes, Until},
    request::{RequestError, answer, spread},
    view::{ClusterView, PolicyKey, PolicyObject},
};
use crate::{
    policy::{Catalog, Policy, PolicyErrors},
    shutdown::Shutdown,
};

/// The field manager that writes.
const MANAGER: &str = "egress-agent";
/// The condition that says whether a policy compiles.
const ACCEPTED: &str = "Accepted";
/// Between two writes: each is an event for every agent.
const PACE: Duration = Duration::from_millis(200);
/// How long changes are collected.
const SETTLE: Duration = Duration::from_millis(200);
/// The first and the longest wait after what could not be written.
const RETRIES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(5));
/// The server's answer about an object that is gone.
const NOT_FOUND: u16 = 404;

/// The identity of this agent, and the place of the lease.
#[derive(Clone, Debug)]
pub struct StatusSettings {
    /// A name that no other agent has: the node's.
    pub identity: String,
    /// The agents' namespace.
    pub namespace: String,
    /// The times of the lease.
    pub times: LeaseTimes,
}

/// Writes the status of all policies while this agent is the one that does, until the signal or the end of the feed.
///
/// `view_of` gives the view of what the feed has, if it is what the server has and not a copy of earlier.
pub async fn run<F>(
    client: Client,
    settings: StatusSettings,
    mut feed: watch::Receiver<F>,
    view_of: impl Fn(&F) -> Option<Arc<ClusterView>> + Send,
    mut catalog: watch::Receiver<Catalog>,
    stop: Shutdown,
) where
    F: Send + Sync,
{
    let StatusSettings {
        identity,
        namespace,
        times,
    } = settings;
    let mut election = Election::new(client.clone(), &namespace, identity, times);
    loop {
        tokio::select! {
            biased;
            () = stop.requested() => break,
            () = election.win() => {}
        }
        let mut writer = Writer::new(client.clone(), election.until());
        tokio::select! {
            biased;
            () = stop.requested() => break,
            () = election.keep() => {}
            () = writer.run(&mut feed, &view_of, &mut catalog) => break,
        }
        // Another agent may have the lease now: this one does not ask for it at once.
        tokio::select! {
            () = stop.requested() => break,
            () = sleep(spread(times.look)) => {}
        }
    }
    election.release().await;
}

/// A policy on the server, as far as its status goes.
type Listed = Object<Ignored, Value>;

/// The part of it that is not read.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Ignored {}

/// The status of a policy on the server, and the UID of the policy.
#[derive(Debug)]
struct Written {
    uid: String,
    status: PolicyStatus,
}

/// The UID and generation of policies.
type Versions = HashMap<PolicyKey, (String, i64)>;

/// State of the one agent that writes.
struct Writer {
    client: Client,
    until: Until,
    written: HashMap<PolicyKey, Written>,
    /// Those whose status is right.
    done: Versions,
    /// Those whose status could not be written.
    failed: Versions,
}

impl Writer {
    fn new(client: Client, until: Until) -> Self {
        Self {
            client,
            until,
            written: HashMap::new(),
            done: Versions::new(),
            failed: Versions::new(),
        }
    }

    /// Writes what changes until the feed ends.
    async fn run<F: Send + Sync>(
        &mut self,
        feed: &mut watch::Receiver<F>,
        view_of: &(impl Fn(&F) -> Option<Arc<ClusterView>> + Send),
        catalog: &mut watch::Receiver<Catalog>,
    ) {
        let (first, longest) = RETRIES;
        let mut wait = first;
        while let Err(error) = self.list().await {
            warn!(%error, "cannot read the status of policies");
            sleep(spread(wait)).await;
            wait = wait.saturating_mul(2).min(longest);
        }
        wait = first;
        let mut retry_at = None;
        let mut is_catalog_open = true;
        loop {
            let view = view_of(&feed.borrow_and_update());
            let rules = catalog.borrow_and_update().clone();
            if let Some(view) = view {
                self.write_all(&view, &rules).await;
            }
            if self.failed.is_empty() {
                (wait, retry_at) = (first, None);
            } else if retry_at.is_none() {
                retry_at = Instant::now().checked_add(spread(wait));
                wait = wait.saturating_mul(2).min(longest);
            }
            tokio::select! {
                changed = feed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    sleep(SETTLE).await;
                }
                changed = catalog.changed(), if is_catalog_open => {
                    is_catalog_open = changed.is_ok();
                    // Rules that refer to it are checked with it.
                    self.done.clear();
                }
                () = until(retry_at) => {
                    self.failed.clear();
                    retry_at = None;
                }
            }
        }
    }

    fn api(&self, namespace: Option<&str>, is_of_cluster: bool) -> Api<Listed> {
        let client = self.client.clone();
        if is_of_cluster {
            return Api::all_with(client, &ApiResource::erase::<ClusterEgressPolicy>(&()));
        }
        let resource = ApiResource::erase::<EgressPolicy>(&());
        match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        }
    }

    /// Reads every status once.
    async fn list(&mut self) -> Result<(), RequestError> {
        for is_of_cluster in [false, true] {
            let listed = self.api(None, is_of_cluster);
            for object in answer(listed.list(&ListParams::default())).await? {
                let metadata = object.metadata;
                let (Some(name), Some(uid)) = (metadata.name, metadata.uid) else {
                    continue;
                };
                let status = object.status.unwrap_or_default();
                let written = Written {
                    uid,
                    // One that cannot be read is to be written anew.
                    status: serde_json::from_value(status).unwrap_or_default(),
                };
                let namespace = metadata.namespace;
                self.written.insert(PolicyKey { namespace, name }, written);
            }
        }
        Ok(())
    }

    /// Writes every status that is not right, but for those that failed lately.
    async fn write_all(&mut self, view: &ClusterView, catalog: &Catalog) {
        let policies = view.policies.as_ref();
        self.written.retain(|key, _| policies.contains_key(key));
        self.done.retain(|key, _| policies.contains_key(key));
        self.failed.retain(|key, _| policies.contains_key(key));
        for (key, object) in policies {
            let version = (object.uid.clone(), object.generation);
            let is_of = |versions: &Versions| versions.get(key) == Some(&version);
            if is_of(&self.done) || is_of(&self.failed) {
                continue;
            }
            match self.write(key, object, catalog).await {
                Ok(()) => {
                    self.failed.remove(key);
                    self.done.insert(key.clone(), version);
                }
                // The view follows.
                Err(error) if error.code() == Some(NOT_FOUND) => {}
                Err(error) => {
                    warn!(policy = %key, %error, "cannot write the status");
                    self.failed.insert(key.clone(), version);
                    if error.code().is_none() {
                        // The others would fail as well.
                        return;
                    }
                }
            }
        }
    }

    async fn write(
        &mut self,
        key: &PolicyKey,
        object: &Arc<PolicyObject>,
        catalog: &Catalog,
    ) -> Result<(), RequestError> {
        let written = self.written.get(key);
        let written = written.filter(|written| written.uid == object.uid);
        let before = written.map(|written| &written.status);
        let newest = before.and_then(|status| status.observed_generation);
        if newest.is_some_and(|newest| newest > object.generation) {
            // The view is behind.
            return Ok(());
        }
        let result = {
            let (key, object, catalog) = (key.clone(), Arc::clone(object), catalog.clone());
            // It can be large; the others of this thread do not wait for it.
            tokio::task::spawn_blocking(move || checked(&key, &object, &catalog)).await
        };
        let Ok(result) = result else {
            return Ok(());
        };
        let status = status_of(key, object, result, before, Timestamp::now());
        if before == Some(&status) {
            return Ok(());
        }
        let Some(end) = self.until.end() else {
            // Another is to write it.
            return Ok(());
        };
        let api = self.api(key.namespace.as_deref(), key.namespace.is_none());
        let patch = Patch::Merge(patch_of(&status));
        let parameters = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let request = answer(api.patch_status(&key.name, &parameters, &patch));
        let Ok(patched) = timeout_at(end, request).await else {
            return Ok(());
        };
        patched?;
        debug!(policy = %key, "status written");
        let uid = object.uid.clone();
        self.written.insert(key.clone(), Written { uid, status });
        sleep(PACE).await;
        Ok(())
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// The status that a policy is to have.
fn status_of(
    key: &PolicyKey,
    object: &PolicyObject,
    result: Result<Policy, PolicyErrors>,
    before: Option<&PolicyStatus>,
    now: Timestamp,
) -> PolicyStatus {
    let (status, reason, text, rules) = match &result {
        Ok(policy) => {
            let count = policy.allow.len().saturating_add(policy.deny.len());
            let text = match count {
                1 => "1 rule".to_owned(),
                _ => format!("{count} rules"),
            };
            ("True", "Compiles", text, u32::try_from(count).ok())
        }
        Err(errors) => ("False", "Invalid", message(errors), None),
    };
    let known = before.map_or(&[][..], |before| &before.conditions);
    let same = known
        .iter()
        .find(|condition| condition.type_ == ACCEPTED && condition.status == status);
    let accepted = Condition {
        type_: ACCEPTED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: text,
        observed_generation: Some(object.generation),
        last_transition_time: same.map_or(Time(now), |condition| {
            condition.last_transition_time.clone()
        }),
    };
    let others = known.iter().filter(|condition| condition.type_ != ACCEPTED);
    PolicyStatus {
        observed_generation: Some(object.generation),
        rules,
        subjects: Some(object.spec.subjects(key.namespace.as_deref())),
        conditions: std::iter::once(accepted).chain(others.cloned()).collect(),
    }
}

/// A merge patch that leaves nothing of what was there.
fn patch_of(status: &PolicyStatus) -> Value {
    json!({ "status": {
        "observedGeneration": status.observed_generation,
        "rules": status.rules,
        "subjects": status.subjects,
        "conditions": status.conditions,
    } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Spec;

    fn object(generation: i64, spec: &str) -> PolicyObject {
        PolicyObject {
            uid: "1".to_owned(),
            generation,
            spec: serde_yaml_ng::from_str::<Spec>(spec).unwrap(),
        }
    }

    fn status(object: &PolicyObject, before: Option<&PolicyStatus>, second: i64) -> PolicyStatus {
        let key = "shop/payments".parse().unwrap();
        let result = checked(&key, object, &Catalog::default());
        let now = Timestamp::from_second(second).unwrap();
        status_of(&key, object, result, before, now)
    }

    const GOOD: &str = "{ podSelector: { matchLabels: { app: payments } }, allow: [{ names: [api.example.com] }] }";
    const BAD: &str = "{ allow: [{ names: ['*.*.example.com'] }] }";

    #[test]
    fn the_time_of_a_condition_is_that_of_its_last_change() {
        let first = status(&object(1, GOOD), None, 100);
        assert_eq!(first.rules, Some(1));
        assert_eq!(first.subjects.as_deref(), Some("pods app=payments in shop"));
        let condition = &first.conditions[0];
        let shown = (
            condition.status.as_str(),
            condition.reason.as_str(),
            condition.message.as_str(),
        );
        assert_eq!(shown, ("True", "Compiles", "1 rule"));
        // Nothing is new.
        assert_eq!(status(&object(1, GOOD), Some(&first), 200), first);
        let edited = GOOD.replace("api.", "web.");
        let second = status(&object(2, &edited), Some(&first), 300);
        assert_eq!(second.observed_generation, Some(2));
        assert_eq!(second.conditions[0].observed_generation, Some(2));
        assert_eq!(
            second.conditions[0].last_transition_time,
            condition.last_transition_time
        );
        let third = status(&object(3, BAD), Some(&second), 400);
        assert_eq!(third.rules, None);
        assert_eq!(patch_of(&third)["status"]["rules"], Value::Null);
        let condition = &third.conditions[0];
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("False", "Invalid")
        );
        assert!(
            condition.message.starts_with("spec.allow[0].names[0]: "),
            "{}",
            condition.message
        );
        assert_eq!(condition.last_transition_time.0.as_second(), 400);
    }

    #[test]
    fn conditions_of_others_stay() {
        let mut before = status(&object(1, GOOD), None, 100);
        let other = Condition {
            type_: "Reviewed".to_owned(),
            ..before.conditions[0].clone()
        };
        before.conditions.insert(0, other.clone());
        let after = status(&object(2, BAD), Some(&before), 200);
        assert_eq!(after.conditions.len(), 2);
        assert!(after.conditions.contains(&other));
    }
}
