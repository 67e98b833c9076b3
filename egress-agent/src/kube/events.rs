//! Events at pods: who is denied a destination for the first time reads it in `kubectl describe pod`, and who owns an
//! object that claims another pod's cgroup.
//!
//! An event of its own for each destination of each pod; that it goes on is reported rarely. How many are written is
//! bounded for each pod and for the node, and so is what is remembered.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use egress_common::{hash::fnv1a, verdict::Reason};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use tracing::debug;

use super::{
    request::{RequestError, answer},
    view::Pod,
};
use crate::{shutdown::Shutdown, workload::PodUid};

/// The reporter of events.
const COMPONENT: &str = "egress-agent";
/// Denials that wait to be reported.
const WAITING: usize = 1_024;
/// Most characters of a message.
const MESSAGE_CHARS: usize = 1_000;
/// Most bytes of a pod's name in that of an event, which ends with 17 more of 253.
const NAME_BYTES: usize = 230;
/// The server's answers about an event that has ended, and about one that it has already.
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// A pod was, or in audit would have been, denied a destination.
#[derive(Clone, Debug)]
pub struct Denial {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The name that led to the address, if it is known.
    pub name: Option<String>,
    /// Where to.
    pub address: IpAddr,
    /// Port and protocol as rules write them: `443/tcp`.
    pub port: String,
    /// Why.
    pub reason: Reason,
    /// The rule that denies it, if one does.
    pub rule: Option<String>,
    /// It passed all the same.
    pub is_audit: bool,
}

/// An object claims the cgroup of a pod, to which it has no right.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The object.
    pub pod: Arc<Pod>,
    /// The UID that the cgroup carries.
    pub cgroup: PodUid,
}

/// A report at a pod.
#[derive(Clone, Debug)]
enum Report {
    Denial(Denial),
    Claim(Claim),
}

/// How much is written and remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLimits {
    /// For each pod: so many at once, then one in each interval.
    pub pod: (u32, Duration),
    /// For the node.
    pub node: (u32, Duration),
    /// How long it takes until an event says again that a denial goes on.
    pub again: Duration,
    /// Destinations of pods that are remembered.
    pub remembered: usize,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self {
            pod: (10, Duration::from_secs(1)),
            // Thousands of nodes may begin to deny at once.
            node: (25, Duration::from_secs(10)),
            again: Duration::from_mins(10),
            remembered: 4_096,
        }
    }
}

/// How many requests were made for events, and how many denials nobody reads of.
#[derive(Debug, Default)]
pub struct EventCounts {
    written: AtomicU64,
    not_written: AtomicU64,
}

impl EventCounts {
    /// Events that were written or prolonged.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Denials that should have been reported, but for the limits or because the server did not take them.
    #[must_use]
    pub fn not_written(&self) -> u64 {
        self.not_written.load(Ordering::Relaxed)
    }
}

/// Takes reports of denials; never waits.
#[derive(Clone, Debug)]
pub struct Denials {
    sender: mpsc::Sender<Report>,
    counts: Arc<EventCounts>,
}

impl Denials {
    /// Reports a denial, each one: which of them are written is decided later.
    pub fn tell(&self, denial: Denial) {
        self.send(Report::Denial(denial));
    }

    /// Reports a claim.
    pub fn tell_claim(&self, claim: Claim) {
        self.send(Report::Claim(claim));
    }

    fn send(&self, report: Report) {
        if self.sender.try_send(report).is_err() {
            self.counts.not_written.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts of what became of all reports.
    #[must_use]
    pub fn counts(&self) -> &EventCounts {
        &self.counts
    }
}

/// Reported denials, for [`run`].
#[derive(Debug)]
pub struct Told {
    receiver: mpsc::Receiver<Report>,
    counts: Arc<EventCounts>,
}

/// Where denials are reported, and where they come out.
#[must_use]
pub fn channel() -> (Denials, Told) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let counts = Arc::new(EventCounts::default());
    let told = Told {
        receiver,
        counts: Arc::clone(&counts),
    };
    (Denials { sender, counts }, told)
}

/// Writes events until the signal, or until nobody can report denials any more.
pub async fn run(
    client: Client,
    node_name: String,
    limits: EventLimits,
    mut told: Told,
    stop: Shutdown,
) {
    let mut journal = Journal::new(limits);
    loop {
        let report = tokio::select! {
            biased;
            () = stop.requested() => return,
            report = told.receiver.recv() => report,
        };
        let Some(report) = report else {
            return;
        };
        let key = report.key();
        let (known, more) = match journal.take(&key, Instant::now()) {
            Taken::Known => continue,
            Taken::TooMany => {
                told.counts.not_written.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Taken::Write { known, more } => (known, more),
        };
        let api = Api::namespaced(client.clone(), &report.pod().namespace);
        let written = tokio::select! {
            biased;
            () = stop.requested() => return,
            written = write(&api, event(&report, &key, &node_name), known, more) => written,
        };
        match written {
            Ok(count) => {
                journal.written(key, count, Instant::now());
                told.counts.written.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                let pod = report.pod();
                debug!(pod = pod.name, namespace = pod.namespace, %error, "event not written");
                journal.known.remove(&key);
                told.counts.not_written.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Creates an event, or says that it happened more often than known. Returns how often it says so.
async fn write(
    api: &Api<Event>,
    mut event: Event,
    known: i32,
    more: i32,
) -> Result<i32, RequestError> {
    let name = event.metadata.name.clone().unwrap_or_default();
    let last = event.last_timestamp.clone();
    let parameters = PatchParams {
        field_manager: Some(COMPONENT.to_owned()),
        ..PatchParams::default()
    };
    if known > 0 {
        let count = known.saturating_add(more);
        let patch = Patch::Merge(json!({ "count": count, "lastTimestamp": last }));
        match answer(api.patch(&name, &parameters, &patch)).await {
            // Servers keep events for an hour or so.
            Err(error) if error.code() == Some(NOT_FOUND) => {}
            result => return result.map(|_| count),
        }
    }
    event.count = Some(more);
    match answer(api.create(&PostParams::default(), &event)).await {
        Err(error) if error.code() == Some(CONFLICT) => {
            // An agent before this one wrote it.
            let patch = Patch::Merge(json!({ "lastTimestamp": last }));
            let patched = answer(api.patch(&name, &parameters, &patch)).await?;
            Ok(patched.count.unwrap_or(1))
        }
        result => result.map(|_| more),
    }
}

fn event(report: &Report, key: &Key, node_name: &str) -> Event {
    let pod = report.pod();
    let (type_, reason) = report.kind();
    let now = Time(Timestamp::now());
    Event {
        metadata: ObjectMeta {
            name: Some(key.event_name(&pod.name)),
            namespace: Some(pod.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.events_uid().to_owned()),
            ..ObjectReference::default()
        },
        type_: Some(type_.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(report.message()),
        source: Some(EventSource {
            component: Some(COMPONENT.to_owned()),
            host: Some(node_name.to_owned()),
        }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node_name.to_owned()),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        ..Event::default()
    }
}

impl Report {
    const fn pod(&self) -> &Arc<Pod> {
        match self {
            Self::Denial(denial) => &denial.pod,
            Self::Claim(claim) => &claim.pod,
        }
    }

    fn key(&self) -> Key {
        match self {
            Self::Denial(denial) => Key::of(denial),
            Self::Claim(claim) => Key {
                pod_uid: claim.pod.uid.clone(),
                destination: format!("cgroup {}", claim.cgroup),
                is_audit: false,
            },
        }
    }

    /// Type and reason of the event.
    const fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::Denial(Denial { is_audit: true, .. }) => ("Normal", "EgressWouldBeDenied"),
            Self::Denial(_) => ("Warning", "EgressDenied"),
            Self::Claim(_) => ("Warning", "EgressPodUnknown"),
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Denial(denial) => denial.message(),
            // Readers of this namespace's events learn of no other namespace.
            Self::Claim(Claim { cgroup, .. }) => format!(
                "The annotations say that this object stands for a static pod with the UID {cgroup}, but another object \
                 has or claims that UID: this one has no pod, and its policies are not applied. What to do: delete the \
                 object if kubelet did not make it"
            ),
        }
    }
}

impl Denial {
    /// `api.example.com (192.0.2.1):443/tcp`.
    fn destination(&self) -> String {
        match (&self.name, self.address) {
            (Some(name), address) => format!("{name} ({address}):{}", self.port),
            (None, IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            (None, IpAddr::V4(address)) => format!("{address}:{}", self.port),
        }
    }

    /// The denial, its reason, and the remedy.
    fn message(&self) -> String {
        let verdict = if self.is_audit {
            "passes in audit, but would be denied"
        } else {
            "is denied"
        };
        let rule = self.rule.as_ref().map(|rule| format!(" ({rule})"));
        let text = format!(
            "{} {verdict}: {}{}. {}",
            self.destination(),
            self.reason.words(),
            rule.unwrap_or_default(),
            self.advice(),
        );
        text.chars().take(MESSAGE_CHARS).collect()
    }

    fn advice(&self) -> String {
        let port = &self.port;
        let rule = match (&self.name, self.address) {
            (Some(name), _) => format!("{{ names: [{name}], ports: [{port}] }}"),
            (None, address) => format!("{{ cidrs: ['{address}'], ports: [{port}] }}"),
        };
        if matches!(self.reason, Reason::NoRule | Reason::PortNotAllowed) {
            return format!(
                "If the pod needs it, add to spec.allow of an EgressPolicy that selects the pod: {rule}"
            );
        }
        format!("What to do: {}", self.reason.advice())
    }
}

/// The subject of one event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    pod_uid: String,
    /// Several addresses of one name are one destination.
    destination: String,
    is_audit: bool,
}

impl Key {
    fn of(denial: &Denial) -> Self {
        let host = match &denial.name {
            Some(name) => name.clone(),
            None => denial.address.to_string(),
        };
        Self {
            pod_uid: denial.pod.uid.clone(),
            destination: format!("{host} {}", denial.port),
            is_audit: denial.is_audit,
        }
    }

    /// The same from every agent, so that one that starts again finds the event.
    fn event_name(&self, pod: &str) -> String {
        let Self {
            pod_uid,
            destination,
            is_audit,
        } = self;
        let hash = fnv1a(format!("{pod_uid} {destination} {is_audit}").as_bytes());
        let pod = pod
            .get(..NAME_BYTES)
            .unwrap_or(pod)
            .trim_end_matches(['-', '.']);
        format!("{pod}.{hash:016x}")
    }
}

/// So many at once, then one in each interval.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// When it is full again.
    full_at: Instant,
}

impl Bucket {
    /// When it would be full after one more, if there is one left.
    fn after_one(self, (burst, interval): (u32, Duration), now: Instant) -> Option<Self> {
        let full_at = self.full_at.max(now).checked_add(interval)?;
        let most = interval.saturating_mul(burst);
        (full_at.duration_since(now) <= most).then_some(Self { full_at })
    }
}

/// An event that was written.
#[derive(Debug)]
struct Entry {
    /// How often it says that it happened.
    known: i32,
    /// How often it happened since.
    more: i32,
    written_at: Instant,
    seen_at: Instant,
}

/// The step that a denial asks for.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    /// Its event is there, and says enough.
    Known,
    /// Nothing: others come first.
    TooMany,
    /// Its event is to say that it happened more often than known: never, if there is none.
    Write { known: i32, more: i32 },
}

/// Events that were written.
#[derive(Debug)]
struct Journal {
    limits: EventLimits,
    node: Bucket,
    pods: HashMap<String, Bucket>,
    known: HashMap<Key, Entry>,
}

impl Journal {
    fn new(limits: EventLimits) -> Self {
        Self {
            limits,
            node: Bucket {
                full_at: Instant::now(),
            },
            pods: HashMap::new(),
            known: HashMap::new(),
        }
    }

    fn take(&mut self, key: &Key, now: Instant) -> Taken {
        let again = self.limits.again;
        let mut written = (0, 1);
        if let Some(entry) = self.known.get_mut(key) {
            entry.more = entry.more.saturating_add(1);
            entry.seen_at = now;
            if now.duration_since(entry.written_at) < again {
                return Taken::Known;
            }
            written = (entry.known, entry.more);
        }
        let (known, more) = written;
        if self.has_room(&key.pod_uid, now) {
            Taken::Write { known, more }
        } else if known > 0 {
            // The next event reports it.
            Taken::Known
        } else {
            Taken::TooMany
        }
    }

    /// True if one more may be written for a pod; then it counts.
    fn has_room(&mut self, pod_uid: &str, now: Instant) -> bool {
        let limits = self.limits;
        if self.pods.len() >= limits.remembered {
            self.pods.retain(|_, bucket| bucket.full_at > now);
        }
        let is_known = self.pods.contains_key(pod_uid);
        if !is_known && self.pods.len() >= limits.remembered {
            return false;
        }
        let full = Bucket { full_at: now };
        let pod = self.pods.get(pod_uid).copied().unwrap_or(full);
        let after = (
            pod.after_one(limits.pod, now),
            self.node.after_one(limits.node, now),
        );
        let (Some(pod), Some(node)) = after else {
            return false;
        };
        self.pods.insert(pod_uid.to_owned(), pod);
        self.node = node;
        true
    }

    fn written(&mut self, key: Key, known: i32, now: Instant) {
        if self.known.len() >= self.limits.remembered && !self.known.contains_key(&key) {
            let oldest = self.known.iter().min_by_key(|(_, entry)| entry.seen_at);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.known.remove(&oldest);
            }
        }
        let entry = Entry {
            known,
            more: 0,
            written_at: now,
            seen_at: now,
        };
        self.known.insert(key, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(name: Option<&str>, address: &str) -> Denial {
        Denial {
            pod: Arc::new(Pod {
                namespace: "shop".to_owned(),
                name: "web-1".to_owned(),
                uid: "u1".to_owned(),
                ..Pod::default()
            }),
            name: name.map(str::to_owned),
            address: address.parse().unwrap(),
            port: "443/tcp".to_owned(),
            reason: Reason::NoRule,
            rule: None,
            is_audit: false,
        }
    }

    fn key(pod: u32, destination: u32) -> Key {
        Key {
            pod_uid: pod.to_string(),
            destination: destination.to_string(),
            is_audit: false,
        }
    }

    const LIMITS: EventLimits = EventLimits {
        pod: (3, Duration::from_secs(1)),
        node: (5, Duration::from_secs(2)),
        again: Duration::from_mins(10),
        remembered: 8,
    };

    const NEW: Taken = Taken::Write { known: 0, more: 1 };

    #[test]
    fn a_message_says_what_why_and_what_to_do() {
        let no_rule = denial(Some("api.example.com"), "192.0.2.1");
        assert_eq!(
            no_rule.message(),
            "api.example.com (192.0.2.1):443/tcp is denied: no rule allows the destination, and no allowed name \
             resolved to it in this scope. If the pod needs it, add to spec.allow of an EgressPolicy that selects the \
             pod: { names: [api.example.com], ports: [443/tcp] }"
        );
        let of_rule = Denial {
            reason: Reason::DeniedCidr,
            rule: Some("shop/base deny[0] 2001:db8::/32".to_owned()),
            is_audit: true,
            ..denial(None, "2001:db8::1")
        };
        assert_eq!(
            of_rule.message(),
            "[2001:db8::1]:443/tcp passes in audit, but would be denied: a deny rule covers the destination \
             (shop/base deny[0] 2001:db8::/32). What to do: narrow the deny rule: it beats every rule that allows"
        );
    }

    #[test]
    fn a_claim_names_the_uid_and_no_other_pod() {
        let uid = "0f6c1d2e-3a4b-4c5d-8e6f-708192a3b4c5";
        let report = Report::Claim(Claim {
            pod: denial(None, "192.0.2.1").pod,
            cgroup: PodUid::new(uid).unwrap(),
        });
        let event = event(&report, &report.key(), "n1");
        assert_eq!(event.reason.as_deref(), Some("EgressPodUnknown"));
        assert_eq!(event.involved_object.name.as_deref(), Some("web-1"));
        assert!(event.message.is_some_and(|message| message.contains(uid)));
    }

    #[test]
    fn addresses_of_one_name_are_one_destination() {
        let one = Key::of(&denial(Some("api.example.com"), "192.0.2.1"));
        assert_eq!(one, Key::of(&denial(Some("api.example.com"), "192.0.2.2")));
        assert_ne!(one, Key::of(&denial(None, "192.0.2.1")));
        let event = one.event_name("web-1");
        assert!(event.starts_with("web-1.") && event.len() == 22, "{event}");
        let long = one.event_name(&format!(
            "{}-{}",
            "a".repeat(NAME_BYTES - 1),
            "b".repeat(23)
        ));
        assert!(
            long.starts_with(&format!("{}.", "a".repeat(NAME_BYTES - 1))),
            "{long}"
        );
    }

    #[test]
    fn what_goes_on_is_told_rarely_and_with_its_number() {
        let mut journal = Journal::new(LIMITS);
        let begin = Instant::now();
        assert_eq!(journal.take(&key(1, 1), begin), NEW);
        journal.written(key(1, 1), 1, begin);
        for second in 1..600 {
            let now = begin + Duration::from_secs(second);
            assert_eq!(journal.take(&key(1, 1), now), Taken::Known);
        }
        let now = begin + LIMITS.again;
        let again = Taken::Write {
            known: 1,
            more: 600,
        };
        assert_eq!(journal.take(&key(1, 1), now), again);
        journal.written(key(1, 1), 601, now);
        assert_eq!(journal.take(&key(1, 1), now), Taken::Known);
    }

    #[test]
    fn pods_and_the_node_have_their_limits() {
        let mut journal = Journal::new(LIMITS);
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut destination = 0;
        let mut count = |pod, ms| {
            let mut written = 0;
            for _ in 0..20 {
                destination += 1;
                let key = key(pod, destination);
                if journal.take(&key, at(ms)) == NEW {
                    journal.written(key, 1, at(ms));
                    written += 1;
                }
            }
            written
        };
        assert_eq!(count(1, 0), 3);
        assert_eq!(count(1, 999), 0);
        assert_eq!(count(1, 1_000), 1);
        // The node has two tokens left of five, of which none came back.
        assert_eq!(count(2, 1_000), 1);
        assert_eq!(count(2, 2_000), 1);
        assert_eq!(count(3, 2_000), 0);
        assert_eq!(count(3, 4_000), 1);
        assert_eq!(count(4, 1_000_000), 3);
        assert_eq!(count(5, 1_000_000), 2);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_forgotten() {
        let mut journal = Journal::new(EventLimits {
            pod: (1_000, Duration::from_secs(1)),
            node: (1_000, Duration::from_secs(1)),
            ..LIMITS
        });
        let begin = Instant::now();
        for index in 0..100_u32 {
            let now = begin + Duration::from_secs(2_000 * u64::from(index));
            assert_eq!(journal.take(&key(index, index), now), NEW);
            journal.written(key(index, index), 1, now);
            assert!(journal.known.len() <= 8 && journal.pods.len() <= 8);
        }
        let now = begin + Duration::from_secs(200_000);
        assert!(journal.known.contains_key(&key(99, 99)));
        assert!(!journal.known.contains_key(&key(0, 0)));
        assert_eq!(journal.take(&key(0, 0), now), NEW);
    }
}
