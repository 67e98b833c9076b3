//! One kind of objects, listed and watched for as long as the agent runs.
//!
//! Not the watcher of `kube`: that one keeps bookmarks to itself, so that nobody could say how old the view is, and
//! begins again without delay when a server ends each watch at once.

use std::{
    fmt::Debug,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    pin::pin,
    time::Duration,
};

use futures_util::StreamExt as _;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{ListParams, VersionMatch, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::known::{Item, Kind, Notice};

/// How long a list, or the begin of a watch, may take.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);
/// How long the server is asked to keep a watch, at least and at most: spread, so that not all agents come back at once.
const WATCH_SECONDS: (u32, u32) = (200, 290);
/// How long a watch may be silent. Servers send a bookmark each minute: who misses two may be talking to nobody.
const SILENCE_LIMIT: Duration = Duration::from_secs(130);
/// A watch that lasted so long is no failure.
const STEADY: Duration = Duration::from_secs(10);
/// How soon a server says that it no longer has the version that a watch is to begin with.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);
/// The first and the longest delay after a failure.
const DELAYS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// After how many failures a list that follows an outage waits no longer: 2 to 4 s.
const SOON: u32 = 3;
/// Objects in a page, when the server has to ask its store.
const PAGE: u32 = 500;

/// A kind of objects on the server.
pub(super) struct Follow<K> {
    pub(super) kind: Kind,
    pub(super) api: Api<K>,
    /// The same kind of an older version, for a server that does not know the newer one.
    pub(super) older: Option<Api<K>>,
    /// Which of them, by their fields.
    pub(super) fields: Option<String>,
    /// Which of them, by their labels.
    pub(super) labels: Option<String>,
    /// Reads what matters of an object.
    pub(super) read: Box<dyn Fn(K) -> Option<Item> + Send + Sync>,
    pub(super) notices: mpsc::Sender<(Kind, Notice)>,
}

/// Up to where the kind is known.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Position {
    /// Not: a list has to be at least as new as this version.
    List(String),
    /// Not, and the server does not have that version: only its store knows the newest.
    ListNewest,
    /// Everything up to this version.
    Watch(String),
}

/// Why a list or watch ended before it should.
#[derive(Debug)]
enum Failure {
    /// The server no longer has, or does not have yet, the version that was asked for.
    Version(String),
    /// The server ended it, without a word.
    Ended,
    /// The server does not have this kind.
    UnknownKind,
    Other(String),
    /// Nobody listens any more.
    Stopped,
}

impl<K> Follow<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    /// Lists, then watches, until nobody listens any more.
    pub(super) async fn run(mut self) {
        // Any version: what the server has at hand.
        let mut position = Position::List("0".to_owned());
        let mut failures = 0;
        let mut is_listed_anew = false;
        loop {
            let begin = Instant::now();
            let failure = match &position {
                Position::List(version) => self.list(Some(version)).await,
                Position::ListNewest => self.list(None).await,
                Position::Watch(_) => {
                    let result = self.watch(&mut position).await;
                    if begin.elapsed() >= STEADY {
                        failures = 0;
                        is_listed_anew = false;
                    }
                    result.map(|()| position.clone())
                }
            };
            let failure = match failure {
                Ok(next) => {
                    position = next;
                    continue;
                }
                Err(Failure::Stopped) => return,
                Err(failure) => failure,
            };
            let kind = self.kind;
            debug!(%kind, ?failure, "the watch begins again");
            let mut wait = delay(failures, random());
            match failure {
                Failure::Version(error) => {
                    position = match position {
                        Position::Watch(version) => {
                            // The server answers again: how long it was away is no reason to wait, once; but it
                            // was away for all agents.
                            if !is_listed_anew {
                                wait = delay(failures.min(SOON), random());
                                is_listed_anew = true;
                            }
                            Position::List(version)
                        }
                        Position::List(_) | Position::ListNewest => {
                            let _ = self.tell(Notice::Failed(error)).await;
                            Position::ListNewest
                        }
                    };
                }
                Failure::Other(error) => {
                    let _ = self.tell(Notice::Failed(error)).await;
                }
                Failure::UnknownKind => {
                    if let Some(older) = self.older.take() {
                        self.api = older;
                        continue;
                    }
                    let error = self.kind.unknown().to_owned();
                    let _ = self.tell(Notice::Failed(error)).await;
                }
                Failure::Ended | Failure::Stopped => {}
            }
            sleep(wait).await;
            failures = failures.saturating_add(1);
        }
    }

    /// Lists everything and returns where to watch from.
    async fn list(&self, version: Option<&str>) -> Result<Position, Failure> {
        let mut parameters = ListParams {
            field_selector: self.fields.clone(),
            label_selector: self.labels.clone(),
            resource_version: version.map(str::to_owned),
            version_match: version.map(|_| VersionMatch::NotOlderThan),
            // Servers answer from memory only what is not asked for in pages.
            limit: version.is_none().then_some(PAGE),
            ..ListParams::default()
        };
        let mut items = Vec::new();
        loop {
            let page = answer(self.api.list(&parameters)).await?;
            items.extend(page.items.into_iter().filter_map(&self.read));
            parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if parameters.continue_token.is_some() {
                continue;
            }
            let version = page.metadata.resource_version.unwrap_or_default();
            self.tell(Notice::Listed(items)).await?;
            return Ok(Position::Watch(version));
        }
    }

    /// Watches until the time that was asked for is over.
    async fn watch(&self, position: &mut Position) -> Result<(), Failure> {
        let Position::Watch(version) = position else {
            return Ok(());
        };
        let (least, most) = WATCH_SECONDS;
        let seconds = least.saturating_add(spread(most.saturating_sub(least), random()));
        let parameters = WatchParams {
            field_selector: self.fields.clone(),
            label_selector: self.labels.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let end = Instant::now().checked_add(Duration::from_secs(seconds.saturating_sub(1).into()));
        let events = answer(self.api.watch(&parameters, version)).await?;
        let mut events = pin!(events.peekable());
        let first = timeout(REFUSAL_LIMIT, events.as_mut().peek()).await;
        if !matches!(first, Ok(None | Some(Ok(WatchEvent::Error(_)) | Err(_)))) {
            // From here on it reports everything.
            self.tell(Notice::Heard).await?;
        }
        loop {
            let event = match timeout(SILENCE_LIMIT, events.next()).await {
                Ok(Some(event)) => event.map_err(failure)?,
                Ok(None) if end.is_some_and(|end| Instant::now() < end) => {
                    return Err(Failure::Ended);
                }
                // Silent, or over: the next one begins where this one was.
                Ok(None) | Err(_) => return Ok(()),
            };
            let (object, notice): (K, fn(Item) -> Notice) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    (object, Notice::Changed)
                }
                WatchEvent::Deleted(object) => (object, Notice::Gone),
                WatchEvent::Bookmark(bookmark) => {
                    let new = bookmark.metadata.resource_version;
                    if is_before(&new, version) {
                        let error = format!("the server went back from {version} to {new}");
                        *position = Position::ListNewest;
                        return Err(Failure::Version(error));
                    }
                    *version = new;
                    self.tell(Notice::Heard).await?;
                    continue;
                }
                WatchEvent::Error(status) => return Err(failure(kube::Error::Api(status))),
            };
            if let Some(new) = object.resource_version() {
                *version = new;
            }
            let notice = (self.read)(object).map_or(Notice::Heard, notice);
            self.tell(notice).await?;
        }
    }

    async fn tell(&self, notice: Notice) -> Result<(), Failure> {
        let sent = self.notices.send((self.kind, notice)).await;
        sent.map_err(|_nobody| Failure::Stopped)
    }
}

/// Waits for an answer, but not for ever.
async fn answer<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match timeout(ANSWER_LIMIT, answer).await {
        Ok(answer) => answer.map_err(failure),
        Err(_) => {
            let seconds = ANSWER_LIMIT.as_secs();
            Err(Failure::Other(format!("no answer within {seconds} s")))
        }
    }
}

/// The meaning of an error.
fn failure(error: kube::Error) -> Failure {
    let kube::Error::Api(status) = error else {
        return Failure::Other(format!("{:#}", anyhow::Error::new(error)));
    };
    match status.code {
        410 | 504 => Failure::Version(status.message),
        404 => Failure::UnknownKind,
        _ => Failure::Other(status.message),
    }
}

/// True if the server's store holds less than it did: it was restored from an old copy.
fn is_before(version: &str, known: &str) -> bool {
    match (version.parse::<u64>(), known.parse::<u64>()) {
        (Ok(version), Ok(known)) => version < known,
        _ => false,
    }
}

/// How long to wait after so many failures in a row: twice as long each time, up to a bound, half of it as jitter.
fn delay(failures: u32, random: u32) -> Duration {
    let (first, longest) = DELAYS;
    let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
    let most = first.saturating_mul(factor).min(longest);
    let half = u32::try_from(most.as_millis()).unwrap_or(u32::MAX) / 2;
    Duration::from_millis(half.saturating_add(spread(half, random)).into())
}

/// A number up to `most`.
fn spread(most: u32, random: u32) -> u32 {
    random
        .checked_rem(most.saturating_add(1))
        .unwrap_or_default()
}

/// Any number: hashers begin with keys that nobody can guess.
fn random() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().build_hasher().finish().to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_their_bound_and_are_spread() {
        let ms = |failures, random| delay(failures, random).as_millis();
        assert_eq!((ms(0, 0), ms(0, 250)), (250, 500));
        assert_eq!((ms(1, 0), ms(1, 500)), (500, 1000));
        assert_eq!((ms(5, 0), ms(5, 8000)), (8000, 16_000));
        for failures in [6, 7, 31, 32, u32::MAX] {
            assert_eq!((ms(failures, 0), ms(failures, 15_000)), (15_000, 30_000));
            assert!((15_000..=30_000).contains(&ms(failures, random())));
        }
        let different = |_| random();
        assert_ne!((0..4).map(different).max(), (0..4).map(different).min());
    }

    #[test]
    fn a_server_that_lost_versions_is_noticed() {
        assert!(is_before("99", "100"));
        for (version, known) in [("100", "100"), ("101", "100"), ("x", "100"), ("99", "")] {
            assert!(!is_before(version, known), "{version} {known}");
        }
    }
}
