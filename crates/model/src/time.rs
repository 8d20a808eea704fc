//! Points in time as the database keeps them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Microseconds since 1970-01-01 UTC. Serialized as RFC 3339 text, stored as an integer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Parses RFC 3339 text; a time without an offset is taken as UTC, a bare date as its midnight.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(t) = text.parse::<jiff::Timestamp>() {
            return Some(Self(t.as_microsecond()));
        }
        let civil = text.parse::<jiff::civil::DateTime>().ok()?;
        let zoned = civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(Self(zoned.timestamp().as_microsecond()))
    }

    pub fn plus(self, d: Duration) -> Self {
        let micros = i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros))
    }

    /// Time from `earlier` to `self`; zero when the clock went backwards.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    pub fn micros(self) -> i64 {
        self.0
    }

    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }
}

/// `2026-01-31T12:00:00.000000Z`.
const LENGTH: usize = 27;
const MICROS_OF_DAY: i64 = 86_400_000_000;
/// Microseconds of the year 10000, from which on a year has more digits.
const TOO_LATE: i64 = 253_402_300_800_000_000;

impl Timestamp {
    /// RFC 3339. Always six digits: text order is time order, and SDKs in Python parse no other length. By hand, because
    /// a page of operations has a thousand of them. `None` for years without four digits, and before 1970.
    fn text(self) -> Option<[u8; LENGTH]> {
        if !(0..TOO_LATE).contains(&self.0) {
            return None;
        }
        // Eras of 400 years that begin in March, so that a leap day is the last of its year.
        let day = self.0 / MICROS_OF_DAY + 719_468;
        let (era, day) = (day / 146_097, day % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = era * 400 + year + i64::from(month <= 2);
        let micros = self.0 % MICROS_OF_DAY;
        let second = micros / 1_000_000;
        let micro = micros % 1_000_000;
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let pairs = [
            (0, year / 100),
            (2, year % 100),
            (5, month),
            (8, day),
            (11, second / 3600),
            (14, second / 60 % 60),
            (17, second % 60),
            (20, micro / 10_000),
            (22, micro / 100 % 100),
            (24, micro % 100),
        ];
        for (at, pair) in pairs {
            text[at] = b'0' + (pair / 10) as u8;
            text[at + 1] = b'0' + (pair % 10) as u8;
        }
        Some(text)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = self.text() {
            return f.write_str(str::from_utf8(&text).unwrap_or_default());
        }
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(t) => write!(f, "{t:.6}"),
            Err(_) => write!(f, "1970-01-01T00:00:00.000000Z"),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.text() {
            Some(text) => s.serialize_str(str::from_utf8(&text).unwrap_or_default()),
            None => s.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a date and time"))
    }
}

/// Nanoseconds since 1970 of RFC 3339 text.
pub fn nanos(text: &str) -> Option<i64> {
    i64::try_from(text.parse::<jiff::Timestamp>().ok()?.as_nanosecond()).ok()
}

/// RFC 3339 with nine digits, as docker stamps lines.
pub fn nanos_text(nanos: i64) -> String {
    match jiff::Timestamp::from_nanosecond(nanos.into()) {
        Ok(time) => format!("{time:.9}"),
        Err(_) => "1970-01-01T00:00:00.000000000Z".to_owned(),
    }
}

/// A point in time in the three spellings that docker's command line takes: RFC 3339, unix seconds, or how long ago (`10m`).
pub fn moment(text: &str, now: Timestamp) -> Option<Timestamp> {
    let text = text.trim();
    let is_number =
        text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || c == '.');
    if is_number {
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let micros: String = fraction.chars().chain(std::iter::repeat('0')).take(6).collect();
        let seconds: i64 = seconds.parse().ok()?;
        return Some(Timestamp(seconds.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)?));
    }
    if let Some(ago) = parse_duration(text) {
        return Some(Timestamp(now.0.checked_sub(ago)?));
    }
    Timestamp::parse(text)
}

/// Go's `1h30m`, in microseconds.
fn parse_duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut micros = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit_length = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_length);
        let scale = match unit {
            "h" => 3600e6,
            "m" => 60e6,
            "s" => 1e6,
            "ms" => 1e3,
            _ => return None,
        };
        micros += number.parse::<f64>().ok()? * scale;
        rest = after;
    }
    (micros.is_finite() && !text.is_empty() && micros < 1e17).then_some(micros as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_is_written_as_the_calendar_has_it() {
        let calendar = |micros| format!("{:.6}", jiff::Timestamp::from_microsecond(micros).expect("a moment"));
        let (mut micros, mut step) = (0, 0);
        // The calendar of the library ends a day before the year does.
        while micros < TOO_LATE - 2 * MICROS_OF_DAY {
            for moment in [micros, micros - 1, micros + step] {
                assert_eq!(Timestamp(moment).to_string(), calendar(moment));
            }
            // Whole days and odd ones, to the end of the year 9999 and around leap days.
            micros += MICROS_OF_DAY * (step % 290) + step % 7;
            step += 1;
        }
        for text in ["2000-02-29T23:59:59.999999Z", "2100-03-01T00:00:00.000000Z", "9999-12-30T21:59:59.999999Z"] {
            assert_eq!(Timestamp::parse(text).expect(text).to_string(), text);
            assert_eq!(serde_json::to_string(&Timestamp::parse(text)).expect("JSON"), format!("\"{text}\""));
        }
        assert_eq!(Timestamp(-1).to_string(), "1969-12-31T23:59:59.999999Z");
        assert_eq!(Timestamp(i64::MAX).to_string(), "1970-01-01T00:00:00.000000Z");
    }

    #[test]
    fn nanoseconds_as_docker_writes_them() {
        for text in
            ["2026-11-21T20:49:11.000000001Z", "1970-01-01T00:00:00.000000000Z", "2100-12-31T23:59:59.999999999Z"]
        {
            assert_eq!(nanos_text(nanos(text).expect(text)), text);
        }
        assert_eq!(nanos("2026-11-21T20:49:11.5Z"), nanos("2026-11-21T21:49:11.5+01:00"));
        assert_eq!(nanos("soon"), None);
        nanos_text(i64::MIN);
        nanos_text(i64::MAX);
    }

    #[test]
    fn text_round_trips_with_six_digits() {
        let t = Timestamp(1_763_669_250_000_001);
        assert_eq!(t.to_string(), "2025-11-20T20:07:30.000001Z");
        assert_eq!(Timestamp::parse(&t.to_string()), Some(t));
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00.000000Z");
    }

    #[test]
    fn accepts_what_people_write() {
        let midnight = Timestamp::parse("2025-11-20").expect("a date");
        assert_eq!(midnight.to_string(), "2025-11-20T00:00:00.000000Z");
        assert!(Timestamp::parse("2025-11-20T10:00:00+02:00").is_some());
        assert!(Timestamp::parse("2025-11-20T10:00:00").is_some());
        assert!(Timestamp::parse("yesterday").is_none());
        assert!(Timestamp::parse("").is_none());
    }

    #[test]
    fn times_as_docker_takes_them() {
        let now = Timestamp(1_000_000_000_000_000);
        for (text, micros) in [
            ("1750000000", 1_750_000_000_000_000),
            ("1750000000.5", 1_750_000_000_500_000),
            ("10m", now.0 - 600_000_000),
            ("1h30m", now.0 - 5_400_000_000),
            ("1.5s", now.0 - 1_500_000),
            ("2025-06-15T15:06:40Z", 1_750_000_000_000_000),
            ("2025-06-15T15:06:40", 1_750_000_000_000_000),
        ] {
            assert_eq!(moment(text, now), Some(Timestamp(micros)), "{text}");
        }
        for text in ["", "yesterday", "10", "-5m", "5x", "99999999999999999999", "1e9"] {
            let parsed = moment(text, now);
            assert!(parsed.is_none() || text == "10", "{text}: {parsed:?}");
        }
    }
}
