//! Times and durations as people write them on a command line.

use std::str::FromStr;
use std::time::Duration;

use common::bus::StreamFrom;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, civil};

/// A duration: `90` (seconds), `90s`, `5m`, `2h`, `1d`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HumanDuration(pub(crate) Duration);

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration such as 90s, 5m, 2h or 1d");
        let mut seconds = 0u64;
        let mut number = String::new();
        for character in text.chars() {
            if character.is_ascii_digit() {
                number.push(character);
                continue;
            }
            let factor = match character {
                's' => 1,
                'm' => 60,
                'h' => 3_600,
                'd' => 86_400,
                _ => return Err(wrong()),
            };
            let count: u64 = number.parse().map_err(|_| wrong())?;
            number.clear();
            seconds = count
                .checked_mul(factor)
                .and_then(|more| seconds.checked_add(more))
                .ok_or_else(wrong)?;
        }
        if !number.is_empty() {
            let rest: u64 = number.parse().map_err(|_| wrong())?;
            seconds = seconds.checked_add(rest).ok_or_else(wrong)?;
        }
        // A year is far beyond what anybody waits for or what the stream keeps.
        if text.is_empty() || seconds > 366 * 86_400 {
            return Err(wrong());
        }
        Ok(Self(Duration::from_secs(seconds)))
    }
}

/// Where to begin in the history of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// The oldest event that is kept.
    First,
    /// So long ago.
    Ago(Duration),
    /// An instant.
    At(Timestamp),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "first" {
            return Ok(Since::First);
        }
        if let Ok(HumanDuration(ago)) = text.parse() {
            return Ok(Since::Ago(ago));
        }
        if let Ok(at) = text.parse::<Timestamp>() {
            return Ok(Since::At(at));
        }
        text.parse::<civil::DateTime>()
            .or_else(|_| text.parse::<civil::Date>().map(civil::Date::into))
            .and_then(|local| local.to_zoned(TimeZone::system()))
            .map(|zoned| Since::At(zoned.timestamp()))
            .map_err(|_| {
                format!("{text:?} is not a time (2026-11-21T14:05:00Z, '2026-11-21 14:05'), a duration (2h) or `first`")
            })
    }
}

impl Since {
    /// The same for the bus.
    pub(crate) fn stream_from(self, now: Timestamp) -> StreamFrom {
        match self {
            Since::First => StreamFrom::First,
            Since::At(at) => StreamFrom::Time(at),
            Since::Ago(ago) => {
                let ago = SignedDuration::try_from(ago).unwrap_or(SignedDuration::ZERO);
                now.checked_sub(ago)
                    .map_or(StreamFrom::First, StreamFrom::Time)
            }
        }
    }

    /// The earliest event time that is wanted: a stream begins at the chunk that holds the instant, so earlier ones come too.
    pub(crate) fn earliest(self, now: Timestamp) -> Option<Timestamp> {
        match self.stream_from(now) {
            StreamFrom::Time(at) => Some(at),
            StreamFrom::First | StreamFrom::Next | StreamFrom::Offset(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let table = [
            ("90", Some(90)),
            ("90s", Some(90)),
            ("5m", Some(300)),
            ("1h30m", Some(5_400)),
            ("1d", Some(86_400)),
            ("", None),
            ("m", None),
            ("-5m", None),
            ("5w", None),
            ("99999999999999999999h", None),
            ("400d", None),
        ];
        for (text, expected) in table {
            let read = text.parse::<HumanDuration>().ok().map(|d| d.0.as_secs());
            assert_eq!(read, expected, "{text:?}");
        }
    }

    #[test]
    fn since_takes_first_a_duration_or_a_time() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let from = |text: &str| text.parse::<Since>().map(|since| since.stream_from(now));
        assert_eq!(from("first"), Ok(StreamFrom::First));
        assert_eq!(
            from("2h"),
            Ok(StreamFrom::Time("2026-11-21T10:00:00Z".parse().unwrap()))
        );
        assert_eq!(
            from("2026-11-20T00:00:00Z"),
            Ok(StreamFrom::Time("2026-11-20T00:00:00Z".parse().unwrap()))
        );
        assert!(from("2026-11-20 10:00").is_ok());
        assert!(from("2026-11-20").is_ok());
        assert!(from("yesterday").is_err());
    }
}
