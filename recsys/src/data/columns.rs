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
        Ok(Columns {
            user: of(&self.user, &USER, "users")?,
            item: of(&self.item, &ITEM, "items")?,
            time,
        })
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
    /// Line or row of the first value.
    pub(crate) first: usize,
}

impl Place<'_> {
    fn error(&self, column: &Column, row: usize, expected: &'static str) -> Error {
        let value = match column.get(row) {
            Ok(AnyValue::Null) | Err(_) => "nothing".to_string(),
            Ok(AnyValue::String(text)) => format!("{text:?}"),
            Ok(value) => format!("\"{value}\""),
        };
        let column = column.name().to_string();
        Error::Value { path: self.path.to_owned(), line: self.first + row, column, value, expected }
    }
}

/// The ids of a column of whole numbers or text.
pub(crate) fn ids(column: &Column, place: Place<'_>) -> Result<Ids> {
    const EXPECTED: &str = "an id: a whole number or text";
    let bad = |row: usize| place.error(column, row, EXPECTED);
    if let Some(row) = column.is_null().iter().position(|null| null == Some(true)) {
        return Err(bad(row));
    }
    let polars = |e: PolarsError| Error::file(place.path, e);
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
        if is_number {
            let parsed = texts.iter().map(|text| text?.trim().parse::<f64>().ok());
            Float64Chunked::from_iter_options(column.name().clone(), parsed).into_column()
        } else {
            column.cast(&microseconds).and_then(|times| times.cast(&DataType::Int64)).map_err(polars)?
        }
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
