//! Points in time as text: RFC 3339, UTC, milliseconds.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time after 1970, in milliseconds; `2026-11-22T02:49:55.120Z` as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    unix_ms: u64,
}

/// A text that is not a [`Timestamp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a time like 2026-11-22T02:49:55.120Z")]
pub struct NotATimestamp;

impl Timestamp {
    /// The time of day, `02:49:55`.
    #[must_use]
    pub fn time_of_day(&self) -> String {
        self.civil().strftime("%H:%M:%S").to_string()
    }

    /// How long after `earlier` it is; nothing if it is before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.unix_ms.saturating_sub(earlier.unix_ms))
    }

    /// The same for the calendar, which ends with the year 9999.
    fn civil(self) -> jiff::Timestamp {
        let unix_ms = i64::try_from(self.unix_ms).unwrap_or(i64::MAX);
        jiff::Timestamp::from_millisecond(unix_ms).unwrap_or(jiff::Timestamp::MAX)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.civil())
    }
}

impl FromStr for Timestamp {
    type Err = NotATimestamp;

    /// Reads RFC 3339, with any offset.
    fn from_str(text: &str) -> Result<Self, NotATimestamp> {
        let Ok(civil) = text.parse::<jiff::Timestamp>() else {
            return Err(NotATimestamp);
        };
        let Ok(unix_ms) = u64::try_from(civil.as_millisecond()) else {
            return Err(NotATimestamp);
        };
        Ok(Self { unix_ms })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix_ms: u64) -> Timestamp {
        Timestamp { unix_ms }
    }

    #[test]
    fn known_instants_are_written_as_date_writes_them() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_795_315_795_120, "2026-11-22T02:49:55.120Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(at(unix_ms).to_string(), text);
            assert_eq!(text.parse(), Ok(at(unix_ms)), "{text}");
        }
        assert_eq!(at(1_795_315_795_120).time_of_day(), "02:49:55");
        let later = UNIX_EPOCH
            .checked_add(Duration::from_millis(7))
            .expect("fits");
        assert_eq!(Timestamp::from(later), at(7));
    }

    #[test]
    fn the_time_between_two_is_never_negative() {
        assert_eq!(at(5_000).since(at(2_000)), Duration::from_secs(3));
        assert_eq!(at(2_000).since(at(5_000)), Duration::ZERO);
    }

    #[test]
    fn days_of_four_centuries_round_trip() {
        const MS_PER_DAY: u64 = 86_400_000;
        for day in (0..146_097).step_by(97) {
            let time = at(day * MS_PER_DAY + 1);
            assert_eq!(time.to_string().parse(), Ok(time));
        }
    }

    #[test]
    fn any_offset_and_precision_is_read() {
        for text in [
            "2026-11-22T02:49:55Z",
            "2026-11-22t02:49:55.000z",
            "2026-11-22T04:49:55.0009+02:00",
        ] {
            assert_eq!(text.parse(), Ok(at(1_795_315_795_000)), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "2026-11-22",
            "2026-11-22T02:49:55",
            "2026-13-22T02:49:55.120Z",
            "1969-11-22T02:49:55.120Z",
            "2026-11-22T24:49:55.120Z",
            "+026-11-22T02:49:55.120Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(NotATimestamp), "{text}");
        }
    }

    #[test]
    fn a_time_beyond_the_calendar_is_its_last_moment() {
        assert_eq!(at(u64::MAX).to_string(), "9999-12-30T22:00:00.999Z");
    }
}
