//! Requests that end: with an answer, or after a while without.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

use thiserror::Error;
use tokio::time::timeout;

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Why a request came to nothing.
#[derive(Debug, Error)]
pub(super) enum RequestError {
    /// The server, in its own words.
    #[error("{0} ({1})")]
    Refused(String, u16),
    /// It cannot be reached, or its answer cannot be read.
    #[error(transparent)]
    Failed(kube::Error),
    /// Nothing came.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
}

impl RequestError {
    /// The HTTP status with which the server refused.
    pub(super) const fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(_, code) => Some(*code),
            Self::Failed(_) | Self::NoAnswer(_) => None,
        }
    }
}

/// The answer to a request.
pub(super) async fn answer<T>(
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, RequestError> {
    match timeout(ANSWER_LIMIT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => {
            Err(RequestError::Refused(status.message.clone(), status.code))
        }
        Ok(Err(error)) => Err(RequestError::Failed(error)),
        Err(_) => Err(RequestError::NoAnswer(ANSWER_LIMIT)),
    }
}

/// A length between two thirds and four thirds of this one: not all agents do something at once.
pub(super) fn spread(length: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 1_000;
    let part = u32::try_from(random).unwrap_or_default();
    let third = length.checked_div(3).unwrap_or_default();
    let more = third
        .saturating_mul(2)
        .saturating_mul(part)
        .checked_div(1_000);
    third
        .saturating_mul(2)
        .saturating_add(more.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_spread_around_the_middle() {
        let length = Duration::from_secs(30);
        let all: Vec<Duration> = (0..200).map(|_| spread(length)).collect();
        let (least, most) = (Duration::from_secs(20), Duration::from_secs(40));
        assert!(
            all.iter().all(|one| (least..=most).contains(one)),
            "{all:?}"
        );
        assert!(all.iter().any(|one| *one < length) && all.iter().any(|one| *one > length));
    }
}
