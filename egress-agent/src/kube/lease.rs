//! The lease: of all agents the one that holds it writes.
//!
//! Nobody compares clocks. The holder counts from before it asked for its renewal and ends at two thirds of the duration;
//! another counts from when it first saw that renewal and takes the lease after the whole of it. The server takes each
//! change only of the version that was seen.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{GetParams, PostParams},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{info, warn};

use super::request::{RequestError, answer, spread};

/// The lease's name.
const NAME: &str = "egress-agent";
/// The HTTP status when somebody else was first.
const CONFLICT: u16 = 409;
const NOT_FOUND: u16 = 404;
/// How long giving the lease back may take.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// The times of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimes {
    /// How long it holds after a renewal; whole seconds.
    pub duration: Duration,
    /// Between two renewals.
    pub renewal: Duration,
    /// Between two looks of those who do not hold it, on the average: each costs the server a read from its memory.
    pub look: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renewal: Duration::from_secs(5),
            look: Duration::from_secs(30),
        }
    }
}

/// One agent's part in the election.
pub(super) struct Election {
    api: Api<Lease>,
    identity: String,
    times: LeaseTimes,
    /// The lease as this agent wrote it last.
    held: Option<Lease>,
    /// Another's renewal, and when it was seen first.
    seen: Option<(Option<LeaseSpec>, Instant)>,
    /// Until when this agent may write.
    until: watch::Sender<Instant>,
}

/// Until when the holder may write.
#[derive(Clone, Debug)]
pub(super) struct Until(watch::Receiver<Instant>);

impl Until {
    /// The end, if it is not over.
    pub(super) fn end(&self) -> Option<Instant> {
        Some(*self.0.borrow()).filter(|end| Instant::now() < *end)
    }
}

impl Election {
    pub(super) fn new(
        client: Client,
        namespace: &str,
        identity: String,
        times: LeaseTimes,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity,
            times,
            held: None,
            seen: None,
            until: watch::Sender::new(Instant::now()),
        }
    }

    /// Until when this agent may write.
    pub(super) fn until(&self) -> Until {
        Until(self.until.subscribe())
    }

    /// Waits until this agent holds the lease.
    pub(super) async fn win(&mut self) {
        let mut is_told = false;
        loop {
            let wait = match self.look().await {
                Ok(None) => {
                    info!("this agent writes the status of policies");
                    return;
                }
                Ok(Some(wait)) => wait,
                Err(error) => {
                    if !is_told {
                        warn!(%error, lease = NAME, "cannot ask who writes the status of policies");
                        is_told = true;
                    }
                    spread(self.times.look)
                }
            };
            sleep(wait).await;
        }
    }

    /// Takes the lease if it is nobody's, or says when to look again.
    async fn look(&mut self) -> Result<Option<Duration>, RequestError> {
        // Any version: one that is old is refused when it is written.
        let lease = match answer(self.api.get_with(NAME, &GetParams::any())).await {
            Ok(lease) => lease,
            Err(error) if error.code() == Some(NOT_FOUND) => Lease {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: None,
            },
            Err(error) => return Err(error),
        };
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref());
        let is_free = holder.is_none_or(|holder| holder.is_empty() || holder == self.identity);
        if !is_free && let Some(wait) = self.wait_for(lease.spec.as_ref()) {
            return Ok(Some(wait));
        }
        match self.write(lease).await {
            Ok(()) => Ok(None),
            // Somebody else was first.
            Err(error) if error.code() == Some(CONFLICT) => Ok(Some(spread(self.times.look))),
            Err(error) => Err(error),
        }
    }

    /// How long to wait before the next look at another's lease; nothing if it has ended.
    fn wait_for(&mut self, spec: Option<&LeaseSpec>) -> Option<Duration> {
        let now = Instant::now();
        let duration = spec
            .and_then(|spec| u64::try_from(spec.lease_duration_seconds?).ok())
            .map_or(self.times.duration, Duration::from_secs);
        match &self.seen {
            Some((seen, since)) if seen.as_ref() == spec => {
                let left = duration.saturating_sub(now.duration_since(*since));
                (!left.is_zero()).then(|| left.min(spread(self.times.look)))
            }
            _ => {
                self.seen = Some((spec.cloned(), now));
                // If it looks over, that is only to be confirmed.
                let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
                let age = renewed.map(|renewed| Timestamp::now().duration_since(renewed.0));
                let age = age.map(|age| Duration::try_from(age).unwrap_or_default());
                let is_over = age.is_none_or(|age| age > duration);
                Some(if is_over {
                    duration
                } else {
                    spread(self.times.look)
                })
            }
        }
    }

    /// Writes that this agent holds the lease from now on.
    async fn write(&mut self, mut lease: Lease) -> Result<(), RequestError> {
        let begin = Instant::now();
        let now = MicroTime(Timestamp::now());
        let before = lease.spec.take().unwrap_or_default();
        let is_same = before.holder_identity.as_ref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or_default();
        let seconds = self.times.duration.as_secs().max(1);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(seconds).ok(),
            acquire_time: before
                .acquire_time
                .filter(|_| is_same)
                .or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(i32::from(!is_same))),
            ..LeaseSpec::default()
        });
        let parameters = PostParams::default();
        let written = if lease.metadata.resource_version.is_some() {
            answer(self.api.replace(NAME, &parameters, &lease)).await?
        } else {
            answer(self.api.create(&parameters, &lease)).await?
        };
        self.held = Some(written);
        let part = self.times.duration.saturating_mul(2).checked_div(3);
        let end = begin.checked_add(part.unwrap_or_default());
        self.until.send_replace(end.unwrap_or(begin));
        Ok(())
    }

    /// Renews the lease until that is no longer possible.
    pub(super) async fn keep(&mut self) {
        let mut wait = spread(self.times.renewal);
        loop {
            let end = *self.until.borrow();
            let renewal = async {
                sleep(wait).await;
                match self.held.clone() {
                    Some(lease) => self.write(lease).await.map(|()| true),
                    None => Ok(false),
                }
            };
            match timeout_at(end, renewal).await {
                Ok(Ok(true)) => wait = spread(self.times.renewal),
                Ok(Err(error)) if error.code() != Some(CONFLICT) => {
                    wait = self.times.renewal.checked_div(5).unwrap_or_default();
                }
                Ok(_) | Err(_) => break,
            }
        }
        self.held = None;
        self.until.send_replace(Instant::now());
        info!("another agent writes the status of policies");
    }

    /// Gives the lease back, so that another need not wait for its end.
    pub(super) async fn release(&mut self) {
        self.until.send_replace(Instant::now());
        let Some(mut lease) = self.held.take() else {
            return;
        };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
        }
        let parameters = PostParams::default();
        let release = self.api.replace(NAME, &parameters, &lease);
        // Without an answer it ends by itself.
        let _ = timeout(RELEASE_LIMIT, release).await;
    }
}
