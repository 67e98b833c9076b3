//! Lengths of time as policies write them: `30s`, `5m`, `1h30m`, `7d`.

use thiserror::Error;

use super::quoted;

/// Longest length of time that a policy can ask for, seconds.
pub const MAX_TTL_S: u32 = 7 * 24 * 3600;

/// Longest time after a use that a policy can ask for, seconds: what a grant in the kernel can hold.
pub(crate) const MAX_GRACE_S: u32 = 18 * 3600;

/// How long learned addresses live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl {
    /// At least this long, seconds.
    pub min_s: u32,
    /// This long after an allowed flow last used it, seconds.
    pub grace_s: u32,
    /// At most this long, seconds.
    pub max_s: u32,
}

impl Default for Ttl {
    fn default() -> Self {
        Self {
            min_s: 30,
            grace_s: 1800,
            max_s: 24 * 3600,
        }
    }
}

/// Why a text is no length of time, or two do not go together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TtlError {
    /// Not of the form.
    #[error("{0} is not a length of time; write 30s, 5m, 1h30m or 7d")]
    Form(String),
    /// Too long.
    #[error("{0} is too long: a learned address lives for at most 7d; write 7d or less")]
    TooLong(String),
    /// A longest life of nothing.
    #[error("{0} would forget every address at once; write at least 1s, or leave it out for 24h")]
    Zero(String),
    /// Too long after a use.
    #[error(
        "{0} is too long: an address stays open for at most 18h after its last use; write 18h or less"
    )]
    LongGrace(String),
    /// The shortest is longer than the longest.
    #[error("min {min} is longer than max {max}; write a min that is at most the max")]
    Reversed {
        /// The shortest, as text.
        min: String,
        /// The longest, as text.
        max: String,
    },
}

/// Reads a length of time, in seconds. Units go from large to small, each at most once.
///
/// # Errors
/// If it is none, or longer than [`MAX_TTL_S`].
pub fn parse_duration_s(text: &str) -> Result<u32, TtlError> {
    let form = || TtlError::Form(quoted(text));
    let mut total: u64 = 0;
    let mut last_unit = u64::MAX;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at_checked(digits).ok_or_else(form)?;
        let mut tail = tail.chars();
        let unit = match tail.next() {
            Some('d') => 86_400,
            Some('h') => 3600,
            Some('m') => 60,
            Some('s') => 1,
            _ => return Err(form()),
        };
        if number.is_empty() || unit >= last_unit {
            return Err(form());
        }
        // All are digits, so a failure means that it does not fit.
        let number = number.parse().unwrap_or(u64::MAX);
        total = total.saturating_add(unit.saturating_mul(number));
        last_unit = unit;
        rest = tail.as_str();
    }
    if last_unit == u64::MAX {
        return Err(form());
    }
    match u32::try_from(total) {
        Ok(total) if total <= MAX_TTL_S => Ok(total),
        _ => Err(TtlError::TooLong(quoted(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read() {
        for (text, seconds) in [
            ("30s", 30),
            ("0s", 0),
            ("5m", 300),
            ("24h", 86_400),
            ("1h30m", 5400),
            ("1d2h3m4s", 93_784),
            ("7d", MAX_TTL_S),
            ("168h", MAX_TTL_S),
            ("90m", 5400),
        ] {
            assert_eq!(parse_duration_s(text), Ok(seconds), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "", "30", "s", "30S", "-1s", "1.5h", "30 s", "1m1h", "1m1m", "1s1", "1w", "1ms", "٣s",
        ] {
            assert_eq!(
                parse_duration_s(text),
                Err(TtlError::Form(quoted(text))),
                "{text}"
            );
        }
        for text in [
            "8d",
            "7d1s",
            "604801s",
            "99999999999999999999999s",
            "99999999999999999999d1h",
        ] {
            assert_eq!(
                parse_duration_s(text),
                Err(TtlError::TooLong(quoted(text))),
                "{text}"
            );
        }
    }
}
