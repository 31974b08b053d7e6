//! Points in time: how tables write them, and the steps between them.
//!
//! A time is a number of milliseconds since 1970, UTC; a time without zone counts as UTC unless a zone is given. In a
//! table whose time column holds whole numbers, it is that number.

use chrono::{
    DateTime, Datelike, MappedLocalTime, Months, NaiveDate, NaiveDateTime, TimeZone, Timelike, Utc,
};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;

/// Notations that are recognised, the unambiguous ones first. A leading `@` marks a date without time of day.
const NOTATIONS: [&str; 24] = [
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
    "@%Y-%m-%d",
    "@%Y/%m/%d",
    "@%Y%m%d",
    "%d.%m.%Y %H:%M:%S%.f",
    "%d.%m.%Y %H:%M",
    "@%d.%m.%Y",
    "%d/%m/%Y %H:%M:%S%.f",
    "%m/%d/%Y %H:%M:%S%.f",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H.%M.%S",
    "@%d/%m/%Y",
    "@%m/%d/%Y",
    "%m/%d/%Y %I:%M:%S %p",
    "%d/%m/%Y %I:%M:%S %p",
    "%b %d %Y %H:%M:%S",
];

/// How a time column is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notation {
    /// By a pattern of `strftime`.
    Pattern(String),
    /// Whole numbers that count steps.
    Steps,
}

impl Notation {
    /// The notation that fits all of these values; an error says what is wrong with which of them (by place).
    pub(crate) fn detect(values: &[&str]) -> Result<Self, (usize, String)> {
        let mut furthest = (0, String::from("there is no time at all"));
        let mut fitting = Vec::new();
        for pattern in NOTATIONS {
            match values.iter().enumerate().find(|(_, value)| parse(value, pattern).is_none()) {
                None => fitting.push(pattern),
                Some((at, value)) if at >= furthest.0 => {
                    furthest = (at, format!("{value:?} is not a time in a known notation"));
                }
                Some(_) => {}
            }
        }
        let day_first = |pattern: &str| pattern.trim_start_matches('@').starts_with("%d/");
        let month_first = |pattern: &str| pattern.trim_start_matches('@').starts_with("%m/");
        if fitting.iter().any(|p| day_first(p)) && fitting.iter().any(|p| month_first(p)) {
            let value = values.first().unwrap_or(&"");
            return Err((0, format!("{value:?} may begin with the day or with the month")));
        }
        match fitting.first() {
            Some(pattern) if !values.is_empty() => Ok(Self::Pattern((*pattern).to_owned())),
            _ => Err(furthest),
        }
    }

    /// The time that a value stands for.
    pub(crate) fn parse(&self, value: &str, zone: Option<Tz>) -> Result<i64, String> {
        match self {
            Self::Steps => value.trim().parse().map_err(|_| format!("{value:?} is not a whole number")),
            Self::Pattern(pattern) => match parse(value, pattern) {
                None => {
                    Err(format!("{value:?} is not a time of the form {}", pattern.trim_start_matches('@')))
                }
                Some(Parsed::Instant(ms)) => Ok(ms),
                Some(Parsed::Local(local)) => to_utc(local, zone),
            },
        }
    }
}

enum Parsed {
    Instant(i64),
    Local(NaiveDateTime),
}

fn parse(value: &str, pattern: &str) -> Option<Parsed> {
    let value = value.trim();
    if let Some(date) = pattern.strip_prefix('@') {
        return Some(Parsed::Local(
            NaiveDate::parse_from_str(value, date).ok()?.and_time(Default::default()),
        ));
    }
    if pattern.ends_with('z') {
        // chrono does not take the letter Z for an offset
        let with_offset = value.strip_suffix('Z').map(|v| format!("{v}+00:00"));
        let text = with_offset.as_deref().unwrap_or(value);
        return Some(Parsed::Instant(DateTime::parse_from_str(text, pattern).ok()?.timestamp_millis()));
    }
    Some(Parsed::Local(NaiveDateTime::parse_from_str(value, pattern).ok()?))
}

/// Local time in a zone as UTC. Of an hour that comes twice the first is meant.
fn to_utc(local: NaiveDateTime, zone: Option<Tz>) -> Result<i64, String> {
    let Some(zone) = zone else { return Ok(local.and_utc().timestamp_millis()) };
    match zone.from_local_datetime(&local) {
        MappedLocalTime::Single(time) | MappedLocalTime::Ambiguous(time, _) => Ok(time.timestamp_millis()),
        MappedLocalTime::None => Err(format!("{local} does not exist in {zone}: clocks were put forward")),
    }
}

/// The time of day and date of a time, in a zone or else UTC.
pub(crate) fn local(time: i64, zone: Option<Tz>) -> NaiveDateTime {
    let utc = DateTime::<Utc>::from_timestamp_millis(time).unwrap_or_default();
    match zone {
        Some(zone) => utc.with_timezone(&zone).naive_local(),
        None => utc.naive_utc(),
    }
}

/// The time between two rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frequency {
    /// Milliseconds.
    Milliseconds(i64),
    /// Calendar months.
    Months(u32),
    /// Whole numbers.
    Steps(i64),
}

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

impl Frequency {
    /// The most common distance of different neighbours in sorted times; `None` of fewer than two different times.
    pub(crate) fn infer(times: &[i64], notation: &Notation) -> Option<Self> {
        let mut counts: HashMap<i64, usize> = HashMap::new();
        for pair in times.windows(2) {
            *counts.entry(pair[1] - pair[0]).or_default() += 1;
        }
        counts.remove(&0);
        let (&distance, _) = counts.iter().max_by_key(|&(&distance, &count)| (count, -distance))?;
        if *notation == Notation::Steps {
            return Some(Self::Steps(distance));
        }
        // Months are not all of one length.
        let months = |time: i64| {
            let date = local(time, None);
            date.year() * 12 + date.month0() as i32
        };
        let of_a_day = |time: i64| local(time, None).day().min(28);
        if distance >= 28 * DAY && times.iter().all(|&t| of_a_day(t) == of_a_day(times[0])) {
            let least = times.windows(2).map(|pair| months(pair[1]) - months(pair[0])).min()?;
            return Some(Self::Months(least.max(1) as u32));
        }
        Some(Self::Milliseconds(distance))
    }

    /// The time `n` steps after `time`.
    pub fn after(self, time: i64, n: usize) -> i64 {
        match self {
            Self::Milliseconds(step) | Self::Steps(step) => time + step * n as i64,
            Self::Months(step) => {
                let date = DateTime::<Utc>::from_timestamp_millis(time).unwrap_or_default();
                let later = date.checked_add_months(Months::new(step * n as u32));
                later.unwrap_or(date).timestamp_millis()
            }
        }
    }

    /// How many steps `later` is after `earlier`; `None` when it lies between two steps.
    pub(crate) fn steps_between(self, earlier: i64, later: i64) -> Option<usize> {
        let steps = match self {
            Self::Milliseconds(step) | Self::Steps(step) => (later - earlier).checked_div(step)?,
            Self::Months(step) => {
                let (a, b) = (local(earlier, None), local(later, None));
                i64::from((b.year() - a.year()) * 12 + b.month0() as i32 - a.month0() as i32)
                    / i64::from(step)
            }
        };
        let steps = usize::try_from(steps).ok()?;
        let reached = self.after(earlier, steps);
        let exact = match self {
            // the last day of a month comes on the 28th to the 31st
            Self::Months(_) => (reached - later).abs() <= 3 * DAY,
            _ => reached == later,
        };
        exact.then_some(steps)
    }

    /// Steps of the season that suggests itself: a day of hours or less, a week of days, a year of months.
    pub fn season(self) -> usize {
        match self {
            Self::Milliseconds(step) if step > 0 && step < DAY && DAY % step == 0 => (DAY / step) as usize,
            Self::Milliseconds(DAY) => 7,
            Self::Months(step) if step < 12 && 12 % step == 0 => (12 / step) as usize,
            _ => 1,
        }
    }

    /// A time as text: as ISO 8601, or the step.
    pub fn format(self, time: i64) -> String {
        match self {
            Self::Steps(_) => time.to_string(),
            _ => {
                let local = local(time, None);
                let pattern =
                    if local.nanosecond() > 0 { "%Y-%m-%dT%H:%M:%S%.3f" } else { "%Y-%m-%dT%H:%M:%S" };
                local.format(pattern).to_string()
            }
        }
    }
}

impl fmt::Display for Frequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, unit) = match *self {
            Self::Steps(n) => (n, "step"),
            Self::Months(n) if n % 12 == 0 => (i64::from(n) / 12, "year"),
            Self::Months(n) => (i64::from(n), "month"),
            Self::Milliseconds(n) => {
                let units =
                    [(7 * DAY, "week"), (DAY, "day"), (HOUR, "hour"), (MINUTE, "minute"), (SECOND, "second")];
                let unit = units.into_iter().find(|(length, _)| n % length == 0);
                unit.map_or((n, "millisecond"), |(length, unit)| (n / length, unit))
            }
        };
        write!(f, "{n} {unit}{}", if n == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(values: &[&str]) -> Result<Notation, (usize, String)> {
        Notation::detect(values)
    }

    #[test]
    fn notations_are_told_apart() {
        for (values, ms) in [
            (&["2013-01-01T06:00:00Z"][..], 1_357_020_000_000),
            (&["2013-01-01T08:00:00+02:00"], 1_357_020_000_000),
            (&["2013-01-01 06:00:00"], 1_357_020_000_000),
            (&["2004/3/10 18:00"], 1_078_941_600_000),
            (&["10/03/2004 18.00.00"], 1_078_941_600_000),
            (&["31.12.2020"], 1_609_372_800_000),
            (&["20201231"], 1_609_372_800_000),
            (&["1/2/2021", "13/2/2021"], 1_612_137_600_000),
            (&["2/1/2021", "2/13/2021"], 1_612_137_600_000),
        ] {
            let notation = detect(values).unwrap_or_else(|e| panic!("{values:?}: {e:?}"));
            assert_eq!(notation.parse(values[0], None), Ok(ms), "{values:?} as {notation:?}");
        }
        assert!(detect(&["1/2/2021"]).is_err_and(|(_, why)| why.contains("day or with the month")));
        let (at, why) = detect(&["2013-01-01", "2013-01-02", "2013-02-30"]).unwrap_err();
        assert_eq!((at, why.as_str()), (2, "\"2013-02-30\" is not a time in a known notation"));
    }

    #[test]
    fn zones_shift_and_know_of_missing_hours() {
        let notation = detect(&["2021-03-28 01:30"]).unwrap();
        let berlin = Some("Europe/Berlin".parse().unwrap());
        let winter = notation.parse("2021-03-28 01:30", berlin).unwrap();
        assert_eq!(winter, notation.parse("2021-03-28 00:30", None).unwrap());
        let missing = notation.parse("2021-03-28 02:30", berlin).unwrap_err();
        assert!(missing.contains("does not exist in Europe/Berlin"), "{missing}");
    }

    #[test]
    fn frequencies_are_inferred_and_named() {
        let pattern = Notation::Pattern(String::new());
        let of = |times: &[i64]| Frequency::infer(times, &pattern).unwrap();
        assert_eq!(of(&[0, HOUR, 2 * HOUR, 5 * HOUR]).to_string(), "1 hour");
        assert_eq!(of(&[0, 10 * MINUTE, 20 * MINUTE]).to_string(), "10 minutes");
        assert_eq!(of(&[0, DAY, 2 * DAY]).season(), 7);
        let month = |m: u32| NaiveDate::from_ymd_opt(2021, m, 1).unwrap().and_time(Default::default());
        let months: Vec<i64> = (1..=6).map(|m| month(m).and_utc().timestamp_millis()).collect();
        assert_eq!(of(&months), Frequency::Months(1));
        assert_eq!(Frequency::Months(1).after(months[0], 5), months[5]);
        assert_eq!(Frequency::Months(1).steps_between(months[1], months[4]), Some(3));
        assert_eq!(Frequency::Milliseconds(HOUR).steps_between(0, 90 * MINUTE), None);
        assert_eq!(Frequency::infer(&[3, 5, 7, 11], &Notation::Steps), Some(Frequency::Steps(2)));
        assert_eq!(Frequency::infer(&[3], &pattern), None);
    }
}
