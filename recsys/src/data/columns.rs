//! Which columns of a table hold users, items and times, and what their values mean.

use crate::Ids;
use crate::error::{Error, Result};
use crate::ids::canonical_int;
use polars::prelude::*;
use std::path::Path;

/// Names of columns as the caller gives them; what is absent is found by its usual names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnNames {
    /// Users.
    pub user: Option<String>,
    /// Items.
    pub item: Option<String>,
    /// Times.
    pub time: Option<String>,
}

/// The columns of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Users.
    pub user: String,
    /// Items.
    pub item: String,
    /// Times, if there are any.
    pub time: Option<String>,
}

const USER: [&str; 7] = ["user_id", "user", "userid", "uid", "customer_id", "visitorid", "reviewerid"];
const ITEM: [&str; 14] = [
    "item_id",
    "item",
    "itemid",
    "iid",
    "movie_id",
    "movieid",
    "movie",
    "product_id",
    "asin",
    "parent_asin",
    "items",
    "history",
    "item_ids",
    "item_seq",
];
const TIME: [&str; 7] = ["timestamp", "time", "ts", "unixreviewtime", "event_time", "datetime", "date"];

impl ColumnNames {
    /// Finds the columns among those of a table.
    pub fn resolve(&self, path: &Path, found: &[String]) -> Result<Columns> {
        let known = |names: &[&str]| found.iter().find(|name| names.contains(&plain(name).as_str())).cloned();
        let missing = |wanted: String| Error::Column { path: path.to_owned(), wanted, found: found.to_vec() };
        let given = |name: &String| {
            let exact = found.iter().find(|found| *found == name || plain(found) == name.to_lowercase());
            exact.cloned().ok_or_else(|| missing(format!("{name:?}")))
        };
        let time = match &self.time {
            Some(name) => Some(given(name)?),
            None => known(&TIME),
        };
        let of = |name: &Option<String>, names: &[&str], what: &str| match name {
            Some(name) => given(name),
            None => known(names).ok_or_else(|| missing(format!("for {what} ({})", names.join(", ")))),
        };
        Ok(Columns { user: of(&self.user, &USER, "users")?, item: of(&self.item, &ITEM, "items")?, time })
    }
}

/// A column's name in lower case, without the type that RecBole's files add (`user_id:token`).
fn plain(name: &str) -> String {
    name.split(':').next().unwrap_or_default().to_lowercase()
}

/// Where a column's values come from, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) path: &'a Path,
    pub(crate) lines: Lines<'a>,
}

/// The lines of a text file, or rows of a Parquet file, that values come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lines<'a> {
    /// One after the other from this one on.
    From(usize),
    /// The line of each value.
    Each(&'a [usize]),
}

impl Place<'_> {
    fn error(&self, column: &Column, row: usize, expected: &'static str) -> Error {
        let value = match column.get(row) {
            Ok(AnyValue::Null) | Err(_) => "nothing".to_string(),
            // a column of one value owns its text
            Ok(value) => value.get_str().map_or_else(|| format!("\"{value}\""), |text| format!("{text:?}")),
        };
        let column = column.name().to_string();
        Error::Value { path: self.path.to_owned(), line: self.line(row), column, value, expected }
    }

    /// The line or row of a value.
    pub(crate) fn line(&self, row: usize) -> usize {
        match self.lines {
            Lines::From(first) => first + row,
            Lines::Each(lines) => lines.get(row).or(lines.last()).copied().unwrap_or(1),
        }
    }
}

/// The ids of a column of whole numbers or text.
pub(crate) fn ids(column: &Column, place: Place<'_>) -> Result<Ids> {
    const EXPECTED: &str = "an id: a whole number or text";
    let polars = |e: PolarsError| Error::file(place.path, e);
    let texts;
    let column = match column.dtype().is_categorical() || column.dtype().is_enum() {
        true => {
            texts = column.cast(&DataType::String).map_err(polars)?;
            &texts
        }
        false => column,
    };
    let bad = |row: usize| place.error(column, row, EXPECTED);
    if let Some(row) = column.is_null().iter().position(|null| null == Some(true)) {
        return Err(bad(row));
    }
    if column.dtype().is_integer() {
        let numbers = column.cast(&DataType::Int64).map_err(polars)?;
        if let Some(row) = numbers.is_null().iter().position(|null| null == Some(true)) {
            return Err(place.error(column, row, "a whole number of 64 bits"));
        }
        return Ok(Ids::Int(numbers.i64().map_err(polars)?.iter().flatten().collect()));
    }
    let Ok(texts) = column.str() else {
        let problem = format!(
            "column {:?} has type {}, expected whole numbers or text for ids",
            column.name().as_str(),
            column.dtype()
        );
        return Err(Error::file(place.path, problem));
    };
    if let Some(row) = texts.iter().position(|text| text.is_none_or(str::is_empty)) {
        return Err(bad(row));
    }
    let numbers: Option<Vec<i64>> = texts.iter().map(|text| canonical_int(text?)).collect();
    Ok(match numbers {
        Some(numbers) => Ids::Int(numbers),
        None => Ids::Text(texts.iter().flatten().map(str::to_string).collect()),
    })
}

/// The times of a column: numbers as they are; dates as microseconds since 1970.
pub(crate) fn times(column: &Column, place: Place<'_>) -> Result<Vec<f64>> {
    const EXPECTED: &str = "a number or a date";
    let polars = |e: PolarsError| Error::file(place.path, e);
    let microseconds = DataType::Datetime(TimeUnit::Microseconds, None);
    let numbers = if column.dtype().is_temporal() {
        column.cast(&microseconds).and_then(|times| times.cast(&DataType::Int64)).map_err(polars)?
    } else if let Ok(texts) = column.str() {
        let is_number = texts.iter().flatten().next().is_none_or(|text| text.trim().parse::<f64>().is_ok());
        let parsed = texts.iter().map(|text| match is_number {
            true => text?.trim().parse::<f64>().ok(),
            false => date(text?.trim()),
        });
        Float64Chunked::from_iter_options(column.name().clone(), parsed).into_column()
    } else {
        column.clone()
    };
    let numbers = numbers.cast(&DataType::Float64).map_err(polars)?;
    let values = numbers.f64().map_err(polars)?;
    match values.iter().position(|time| time.is_none_or(|time| !time.is_finite())) {
        Some(row) => Err(place.error(column, row, EXPECTED)),
        None => Ok(values.iter().flatten().collect()),
    }
}

/// Microseconds since 1970 of `2024-01-31`, with a time of day (`T` or a space before it), a fraction of the second, and
/// `Z` or an offset. The days follow Howard Hinnant's `days_from_civil`.
fn date(text: &str) -> Option<f64> {
    let (day, rest) = text.split_at_checked(10)?;
    let mut parts = day.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days).contains(&day) {
        return None;
    }
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;

    let mut seconds = 0.0;
    if let Some(time) = rest.strip_prefix(['T', ' ']) {
        let (clock, offset) = match time.find(['Z', '+', '-']) {
            Some(place) => time.split_at(place),
            None => (time, ""),
        };
        seconds = clock_seconds(clock)?;
        seconds -= match offset.strip_prefix(['+', '-']) {
            Some(hours) if offset.starts_with('-') => -clock_seconds(hours)?,
            Some(hours) => clock_seconds(hours)?,
            None => 0.0,
        };
    } else if !rest.is_empty() {
        return None;
    }
    Some((days as f64 * 86_400.0 + seconds) * 1e6)
}

/// Seconds of `10:00`, `10:00:59` or `10:00:59.5`.
fn clock_seconds(text: &str) -> Option<f64> {
    let mut parts =
        text.trim().splitn(3, ':').map(|part| part.parse::<f64>().ok().filter(|x| (0.0..61.0).contains(x)));
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0.0))?);
    Some(hours * 3600.0 + minutes * 60.0 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_microseconds_since_1970() {
        let seconds = |text: &str| date(text).map(|time| time / 1e6);
        assert_eq!(seconds("1970-01-01"), Some(0.0));
        assert_eq!(seconds("2024-02-29T12:00:00Z"), Some(1_709_208_000.0));
        assert_eq!(seconds("2024-02-29 14:30:00.5+02:30"), Some(1_709_208_000.5));
        assert_eq!(seconds("1969-12-31 23:59"), Some(-60.0));
        assert_eq!(seconds("2000-02-29T00:00:00-01:00"), Some(951_786_000.0));
        for text in [
            "",
            "soon",
            "2024-13-01",
            "2024-01-32",
            "2024-02-30",
            "2023-02-29",
            "1900-02-29",
            "2024-04-31",
            "2024-01-01x",
            "2024-01-01 99:00",
            "2024-1-1",
            "20240101",
        ] {
            assert_eq!(date(text), None, "{text:?}");
        }
    }
}
