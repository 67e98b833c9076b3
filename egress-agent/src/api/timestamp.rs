//! Points in time as text: RFC 3339, UTC, milliseconds.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const MS_PER_DAY: u64 = 86_400_000;

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
        let (hour, minute, second, _) = self.clock();
        format!("{hour:02}:{minute:02}:{second:02}")
    }

    /// How long after `earlier` it is; nothing if it is before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.unix_ms.saturating_sub(earlier.unix_ms))
    }

    fn clock(self) -> (u64, u64, u64, u64) {
        let ms = self.unix_ms % MS_PER_DAY;
        let second = ms / 1000;
        (
            second / 3600,
            second / 60 % 60,
            second % 60,
            ms.checked_rem(1000).unwrap_or_default(),
        )
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

/// Year, month and day of a number of days after 1970-01-01, after
/// <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "a u64 of milliseconds has fewer than 2^38 days"
)]
const fn civil_from_days(days: u64) -> (u64, u64, u64) {
    // Days since 0000-03-01, so that the leap day ends a year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// The inverse of [`civil_from_days`] for years from 1970.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "the caller gives a year of four digits from 1970"
)]
const fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.unix_ms / MS_PER_DAY);
        let (hour, minute, second, ms) = self.clock();
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z"
        )
    }
}

impl FromStr for Timestamp {
    type Err = NotATimestamp;

    fn from_str(text: &str) -> Result<Self, NotATimestamp> {
        const SHAPE: &[u8] = b"0000-00-00T00:00:00.000Z";
        let fits = |(byte, shape): (u8, &u8)| match shape {
            b'0' => byte.is_ascii_digit(),
            literal => byte == *literal,
        };
        if text.len() != SHAPE.len() || !text.bytes().zip(SHAPE).all(fits) {
            return Err(NotATimestamp);
        }
        let number = |from: usize, to: usize| -> Result<u64, NotATimestamp> {
            let digits = text.get(from..to).and_then(|digits| digits.parse().ok());
            digits.ok_or(NotATimestamp)
        };
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        let is_real = year >= 1970
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !is_real {
            return Err(NotATimestamp);
        }
        let seconds = [(hour, 3600), (minute, 60), (second, 1)]
            .into_iter()
            .map(|(count, unit): (u64, u64)| count.saturating_mul(unit))
            .sum::<u64>();
        Ok(Self {
            unix_ms: days_from_civil(year, month, day)
                .saturating_mul(MS_PER_DAY)
                .saturating_add(seconds.saturating_mul(1000))
                .saturating_add(number(20, 23)?),
        })
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
    fn every_day_of_four_centuries_round_trips() {
        for day in 0..146_097 {
            let time = at(day * MS_PER_DAY + 1);
            assert_eq!(time.to_string().parse(), Ok(time));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "2026-11-22",
            "2026-11-22T02:49:55Z",
            "2026-13-22T02:49:55.120Z",
            "1969-11-22T02:49:55.120Z",
            "2026-11-22T24:49:55.120Z",
            "+026-11-22T02:49:55.120Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(NotATimestamp), "{text}");
        }
    }
}
