//! Points in time: how tables write them, and the steps between them.
//!
//! A time is a number of milliseconds since 1970, UTC; a time without zone counts as UTC unless a zone is given. In a
//! table whose time column holds whole numbers, it is that number.

use chrono::{
    DateTime, Datelike, MappedLocalTime, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Timelike,
    Utc,
};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
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
    pub(crate) fn parse(&self, value: &str, zone: Option<Tz>) -> Result<Moment, String> {
        match self {
            Self::Steps => {
                let step = value.trim().parse().map_err(|_| format!("{value:?} is not a whole number"))?;
                Ok(Moment::once(step))
            }
            Self::Pattern(pattern) => match parse(value, pattern) {
                None => {
                    Err(format!("{value:?} is not a time of the form {}", pattern.trim_start_matches('@')))
                }
                Some(Parsed::Instant(ms)) => Ok(Moment::once(ms)),
                Some(Parsed::Date(date)) => Ok(Moment::of_date(date, zone)),
                Some(Parsed::Local(local)) => Moment::of_local(local, zone),
            },
        }
    }
}

/// The time of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) time: i64,
    /// The second time, in an hour that comes twice because clocks are put back.
    pub(crate) again: Option<i64>,
}

impl Moment {
    pub(crate) fn once(time: i64) -> Self {
        Self { time, again: None }
    }

    /// The beginning of a day in a zone.
    pub(crate) fn of_date(date: NaiveDate, zone: Option<Tz>) -> Self {
        Self::once(from_local(date.and_time(Default::default()), zone))
    }

    /// A local time in a zone.
    pub(crate) fn of_local(local: NaiveDateTime, zone: Option<Tz>) -> Result<Self, String> {
        let Some(zone) = zone else { return Ok(Self::once(local.and_utc().timestamp_millis())) };
        match zone.from_local_datetime(&local) {
            MappedLocalTime::Single(time) => Ok(Self::once(time.timestamp_millis())),
            MappedLocalTime::Ambiguous(first, second) => {
                Ok(Self { time: first.timestamp_millis(), again: Some(second.timestamp_millis()) })
            }
            MappedLocalTime::None => Err(format!(
                "{local} does not exist in {zone}: clocks were put forward; for a table whose clocks never change, name \
                 a zone such as Etc/GMT-1, one hour ahead of UTC"
            )),
        }
    }
}

enum Parsed {
    Instant(i64),
    Date(NaiveDate),
    Local(NaiveDateTime),
}

fn parse(value: &str, pattern: &str) -> Option<Parsed> {
    let value = value.trim();
    if let Some(date) = pattern.strip_prefix('@') {
        return Some(Parsed::Date(NaiveDate::parse_from_str(value, date).ok()?));
    }
    if pattern.ends_with('z') {
        // chrono does not take the letter Z for an offset
        let with_offset = value.strip_suffix('Z').map(|v| format!("{v}+00:00"));
        let text = with_offset.as_deref().unwrap_or(value);
        return Some(Parsed::Instant(DateTime::parse_from_str(text, pattern).ok()?.timestamp_millis()));
    }
    Some(Parsed::Local(NaiveDateTime::parse_from_str(value, pattern).ok()?))
}

/// A local time in a zone as UTC; one that clocks pass over, as the time to which they are put forward.
fn from_local(local: NaiveDateTime, zone: Option<Tz>) -> i64 {
    let Some(zone) = zone else { return local.and_utc().timestamp_millis() };
    // clocks are put forward by whole quarters of an hour, at most by a day
    let mut later = (0..=96).map(|quarters| local + TimeDelta::minutes(15 * quarters));
    let time = later.find_map(|local| zone.from_local_datetime(&local).earliest());
    time.map_or_else(|| local.and_utc().timestamp_millis(), |time| time.timestamp_millis())
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
    /// The most common distance of different neighbours in sorted times; `None` of fewer than two different times. Whole
    /// days in the zone count as such, though clocks are changed between them.
    pub(crate) fn infer(times: &[i64], notation: &Notation, zone: Option<Tz>) -> Option<Self> {
        let zone = zone.filter(|_| *notation != Notation::Steps);
        let mut counts: HashMap<i64, usize> = HashMap::new();
        for pair in times.windows(2) {
            let days = zone.map(|_| (local(pair[1], zone) - local(pair[0], zone)).num_milliseconds());
            let days = days.filter(|days| *days > 0 && days % DAY == 0);
            *counts.entry(days.unwrap_or(pair[1] - pair[0])).or_default() += 1;
        }
        counts.remove(&0);
        let (&distance, _) = counts.iter().max_by_key(|&(&distance, &count)| (count, -distance))?;
        if *notation == Notation::Steps {
            return Some(Self::Steps(distance));
        }
        // Months are not all of one length.
        let of_a_day = |time: i64| local(time, zone).day().min(28);
        if distance >= 28 * DAY && times.iter().all(|&t| of_a_day(t) == of_a_day(times[0])) {
            let pairs = times.windows(2).filter(|pair| pair[0] != pair[1]);
            let least = pairs.map(|pair| months_between(pair[0], pair[1], zone)).min()?;
            return Some(Self::Months(least.max(1) as u32));
        }
        Some(Self::Milliseconds(distance))
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

    /// A time as text: as ISO 8601, in a zone with its offset; or the step.
    pub fn format(self, time: i64, zone: Option<Tz>) -> String {
        if let Self::Steps(_) = self {
            return time.to_string();
        }
        let local = local(time, zone);
        let pattern = if local.nanosecond() > 0 { "%Y-%m-%dT%H:%M:%S%.3f" } else { "%Y-%m-%dT%H:%M:%S" };
        let offset = zone.map_or_else(String::new, |zone| {
            let utc = DateTime::<Utc>::from_timestamp_millis(time).unwrap_or_default();
            utc.with_timezone(&zone).format("%:z").to_string()
        });
        format!("{}{offset}", local.format(pattern))
    }
}

/// Calendar months from one time to another.
fn months_between(earlier: i64, later: i64, zone: Option<Tz>) -> i64 {
    let month = |time| {
        let date = local(time, zone);
        i64::from(date.year()) * 12 + i64::from(date.month0())
    };
    month(later) - month(earlier)
}

/// The most common time of day; of several the first.
fn most_common(times: impl Iterator<Item = NaiveTime>) -> Option<NaiveTime> {
    let mut counts: HashMap<NaiveTime, usize> = HashMap::new();
    times.for_each(|time| *counts.entry(time).or_default() += 1);
    counts.into_iter().max_by_key(|&(time, count)| (count, Reverse(time))).map(|(time, _)| time)
}

/// How the times of one series go on: days and months are those of its zone, or of UTC where its rows fall on one time of
/// day there, and a month's row falls on the day of the month on which the series' rows fall, or on the last day of a
/// shorter month.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Course {
    frequency: Frequency,
    /// In which times are written.
    zone: Option<Tz>,
    /// Whose days and months count; none for those of UTC.
    calendar: Option<Tz>,
    /// The local time of day of most rows; none where it does not matter.
    clock: Option<NaiveTime>,
    day: u32,
}

impl Course {
    /// The course of a series with rows at these times.
    pub fn new(frequency: Frequency, zone: Option<Tz>, times: &[i64]) -> Self {
        let mut course = Self { frequency, zone, calendar: zone, clock: None, day: 1 };
        let of_days = match frequency {
            Frequency::Milliseconds(step) => step % DAY == 0,
            Frequency::Months(_) => true,
            Frequency::Steps(_) => false,
        };
        if zone.is_some() && of_days {
            course.clock = most_common(times.iter().map(|&time| local(time, zone).time()));
            let in_utc = most_common(times.iter().map(|&time| local(time, None).time()));
            let of_utc = times.iter().filter(|&&time| Some(local(time, None).time()) == in_utc).count();
            if times.iter().filter(|&&time| course.on_the_clock(time)).count() < of_utc {
                (course.calendar, course.clock) = (None, None);
            }
        }
        if let Frequency::Months(_) = frequency {
            course.day = times.iter().map(|&time| local(time, course.calendar).day()).max().unwrap_or(1);
        }
        course
    }

    /// Whether a time is at the rows' time of day, or at the one to which clocks are put forward when they pass over it.
    fn on_the_clock(self, time: i64) -> bool {
        let at = local(time, self.calendar);
        self.clock.is_some_and(|clock| {
            at.time() == clock || from_local(at.date().and_time(clock), self.calendar) == time
        })
    }

    /// The local time from which steps are counted: where clocks passed over the rows' time of day, that time.
    fn start(self, time: i64) -> NaiveDateTime {
        let at = local(time, self.calendar);
        let clock = self.clock.filter(|_| self.on_the_clock(time));
        at.date().and_time(clock.unwrap_or(at.time()))
    }

    /// The time `n` steps after `time`.
    pub fn after(self, time: i64, n: usize) -> i64 {
        let n = n as i64;
        match self.frequency {
            Frequency::Milliseconds(step) if self.calendar.is_some() && step % DAY == 0 => {
                let at = self.start(time);
                let later = at.checked_add_signed(TimeDelta::milliseconds(step * n));
                from_local(later.unwrap_or(at), self.calendar)
            }
            Frequency::Milliseconds(step) | Frequency::Steps(step) => time + step * n,
            Frequency::Months(step) => {
                let at = self.start(time);
                let month = i64::from(at.year()) * 12 + i64::from(at.month0()) + i64::from(step) * n;
                let (year, month) = (month.div_euclid(12) as i32, month.rem_euclid(12) as u32 + 1);
                let date = (1..=self.day).rev().find_map(|day| NaiveDate::from_ymd_opt(year, month, day));
                from_local(date.unwrap_or(at.date()).and_time(at.time()), self.calendar)
            }
        }
    }

    /// How many steps `later` is after `earlier`; `None` when it lies between two steps.
    pub(crate) fn steps_between(self, earlier: i64, later: i64) -> Option<usize> {
        let (steps, exact) = match self.frequency {
            Frequency::Milliseconds(step) if self.calendar.is_some() && step % DAY == 0 => {
                let (a, b) = (self.start(earlier), self.start(later));
                let days = (b.date() - a.date()).num_milliseconds();
                (days / step, days % step == 0 && a.time() == b.time())
            }
            Frequency::Milliseconds(step) | Frequency::Steps(step) => {
                let distance = later - earlier;
                (distance.checked_div(step)?, distance % step == 0)
            }
            Frequency::Months(step) => {
                let steps = months_between(earlier, later, self.calendar) / i64::from(step);
                // a row may stand some days before the end of its month
                let off = self.after(earlier, usize::try_from(steps).ok()?) - later;
                (steps, off.abs() <= 3 * DAY)
            }
        };
        let steps = usize::try_from(steps).ok()?;
        (exact && (steps > 0 || earlier == later)).then_some(steps)
    }

    /// A time as text.
    pub fn format(self, time: i64) -> String {
        self.frequency.format(time, self.zone)
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
            assert_eq!(notation.parse(values[0], None), Ok(Moment::once(ms)), "{values:?} as {notation:?}");
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
        let twice = notation.parse("2021-10-31 02:30", berlin).unwrap();
        assert_eq!(twice.again, Some(twice.time + HOUR));
        let missing = notation.parse("2021-03-28 02:30", berlin).unwrap_err();
        assert!(missing.contains("does not exist in Europe/Berlin"), "{missing}");
    }

    #[test]
    fn frequencies_are_inferred_and_named() {
        let pattern = Notation::Pattern(String::new());
        let of = |times: &[i64]| Frequency::infer(times, &pattern, None).unwrap();
        assert_eq!(of(&[0, HOUR, 2 * HOUR, 5 * HOUR]).to_string(), "1 hour");
        assert_eq!(of(&[0, 10 * MINUTE, 20 * MINUTE]).to_string(), "10 minutes");
        assert_eq!(of(&[0, DAY, 2 * DAY]).season(), 7);
        let month = |m: u32| NaiveDate::from_ymd_opt(2021, m, 1).unwrap().and_time(Default::default());
        let months: Vec<i64> = (1..=6).map(|m| month(m).and_utc().timestamp_millis()).collect();
        assert_eq!(of(&months), Frequency::Months(1));
        let monthly = Course::new(Frequency::Months(1), None, &months);
        assert_eq!(monthly.after(months[0], 5), months[5]);
        assert_eq!(monthly.steps_between(months[1], months[4]), Some(3));
        let hourly = Course::new(Frequency::Milliseconds(HOUR), None, &[]);
        assert_eq!(hourly.steps_between(0, 90 * MINUTE), None);
        assert_eq!(Frequency::infer(&[3, 5, 7, 11], &Notation::Steps, None), Some(Frequency::Steps(2)));
        assert_eq!(Frequency::infer(&[3], &pattern, None), None);
    }

    /// The course of a series with these local times, and the times.
    fn course(times: &[&str], zone: Option<Tz>) -> (Course, Vec<i64>) {
        let notation = detect(times).unwrap();
        let times: Vec<i64> = times.iter().map(|t| notation.parse(t, zone).unwrap().time).collect();
        (Course::new(Frequency::infer(&times, &notation, zone).unwrap(), zone, &times), times)
    }

    #[test]
    fn months_keep_their_day_and_end_with_their_last() {
        for (rows, next) in [
            (["2003-02-28", "2003-03-31", "2003-04-30"], ["2003-05-31", "2003-06-30", "2003-07-31"]),
            (["2003-02-28", "2003-03-30", "2003-04-30"], ["2003-05-30", "2003-06-30", "2003-07-30"]),
            (["2002-12-28", "2003-01-28", "2003-02-28"], ["2003-03-28", "2003-04-28", "2003-05-28"]),
            (["2002-10-31", "2003-01-31", "2003-04-30"], ["2003-07-31", "2003-10-31", "2004-01-31"]),
        ] {
            for zone in [None, Some(Tz::Pacific__Auckland)] {
                let (course, times) = course(&rows, zone);
                let after = |n| course.format(course.after(times[2], n))[..10].to_owned();
                assert_eq!([after(1), after(2), after(3)], next, "after {rows:?} in {zone:?}");
                assert_eq!(course.steps_between(times[0], times[2]), Some(2));
            }
        }
        let (course, times) = course(&["2003-01-31", "2003-02-28", "2003-03-31"], None);
        assert_eq!(course.steps_between(times[2] - DAY, times[2]), None, "two rows of one month");
    }

    #[test]
    fn pairs_of_equal_times_do_not_make_quarters_months() {
        let quarters = ["2021-01-31", "2021-01-31", "2021-04-30", "2021-07-31", "2021-07-31"];
        assert_eq!(course(&quarters, None).0.frequency, Frequency::Months(3));
    }

    #[test]
    fn rows_at_one_time_of_day_in_utc_go_on_by_its_days_and_months() {
        let berlin = Some(Tz::Europe__Berlin);
        let days = ["2021-10-29", "2021-10-30", "2021-10-31", "2021-11-01", "2021-11-02"];
        let days = days.map(|day| format!("{day}T00:00:00Z"));
        let (daily, times) = course(&days.each_ref().map(String::as_str), berlin);
        assert_eq!(daily.steps_between(times[0], times[4]), Some(4));
        assert_eq!(daily.after(times[0], 4), times[4]);
        assert_eq!(daily.format(times[4]), "2021-11-02T01:00:00+01:00");
        let months = ["2021-08-01T00:00:00Z", "2021-09-01T00:00:00Z", "2021-10-01T00:00:00Z"];
        for zone in [Tz::Europe__Berlin, Tz::America__New_York] {
            let (monthly, times) = course(&[&months[..], &["2021-12-01T00:00:00Z"]].concat(), Some(zone));
            assert_eq!(monthly.after(times[1], 3), times[3], "in {zone}");
        }
        // one row at another time of day does not change whose days count
        let stray = ["2021-10-30 00:00", "2021-10-31 00:00", "2021-11-01 00:00", "2021-11-01 06:00"];
        let (daily, times) = course(&stray, berlin);
        assert_eq!(daily.steps_between(times[0], times[2]), Some(2));
        assert_eq!(daily.steps_between(times[2], times[3]), None);
    }

    #[test]
    fn days_are_those_of_the_zone() {
        let berlin = Some(Tz::Europe__Berlin);
        let (daily, times) = course(&["2021-03-27", "2021-03-28", "2021-03-29"], berlin);
        assert_eq!(daily.frequency, Frequency::Milliseconds(DAY));
        assert_eq!(times[2] - times[1], 23 * HOUR);
        assert_eq!((daily.after(times[0], 2), daily.steps_between(times[0], times[2])), (times[2], Some(2)));
        assert_eq!(daily.steps_between(times[0], times[2] + HOUR), None);
        assert_eq!(daily.format(times[0]), "2021-03-27T00:00:00+01:00");
        assert_eq!(daily.format(times[2]), "2021-03-29T00:00:00+02:00");
        // a day that begins at one, for midnight is passed over
        let brazil = Some(Tz::America__Sao_Paulo);
        let (daily, times) = course(&["2018-11-02", "2018-11-03", "2018-11-04", "2018-11-05"], brazil);
        assert_eq!(daily.format(times[2]), "2018-11-04T01:00:00-02:00");
        assert_eq!(daily.after(times[0], 2), times[2]);
        let steps = [daily.steps_between(times[1], times[2]), daily.steps_between(times[2], times[3])];
        assert_eq!(steps, [Some(1); 2]);
        assert_eq!(daily.after(times[2], 1), times[3], "the next day begins at midnight");
        let (daily, until) = course(&["2018-11-03", "2018-11-04"], brazil);
        assert_eq!(daily.after(until[1], 1), times[3]);
    }
}
