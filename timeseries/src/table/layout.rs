//! What the columns of a table are, and its rows as numbers.

use super::clean::RawRow;
use super::time::Notation;
use super::{Chunk, TableOptions};
use crate::error::{Error, Result};
use chrono_tz::Tz;
use polars::prelude::*;
use std::borrow::Cow;
use std::path::Path;

/// Names that a time column often has.
const TIME_NAMES: [&str; 8] = ["date", "time", "datetime", "timestamp", "ds", "time_hour", "day", "month"];
/// Words for a missing value, in lower case.
const MISSING: [&str; 8] = ["", "na", "n/a", "nan", "null", "none", "-", "?"];
/// Values by which a column is judged.
const LOOK_AT: usize = 200;

/// What the columns are.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    time: String,
    pub(super) notation: Notation,
    id: Option<String>,
    pub(super) columns: Vec<String>,
    /// Columns that hold no numbers.
    pub(super) skipped: Vec<String>,
    decimal_comma: bool,
    missing: Vec<String>,
    zone: Option<Tz>,
}

/// Rows as numbers; missing ones are NaN.
pub(super) struct Rows {
    ids: Option<Vec<String>>,
    times: Vec<i64>,
    lines: Vec<u64>,
    /// Column after column.
    values: Vec<Vec<f64>>,
}

impl Rows {
    /// Each row with the id of its series.
    pub(super) fn each(&self) -> impl Iterator<Item = (&str, RawRow)> {
        self.times.iter().enumerate().map(|(i, &time)| {
            let id = self.ids.as_ref().map_or("", |ids| ids[i].as_str());
            (id, RawRow { time, line: self.lines[i], values: self.values.iter().map(|c| c[i]).collect() })
        })
    }
}

impl Layout {
    /// Judges the columns by the first rows.
    pub(super) fn detect(path: &Path, chunk: &Chunk, options: &TableOptions) -> Result<Self> {
        let frame = &chunk.frame;
        let names: Vec<String> = frame.get_column_names().iter().map(|n| n.to_string()).collect();
        let find = |name: &String| {
            let folded = names.iter().find(|known| ascii(known) == *name);
            let known = names.iter().find(|known| *known == name).or(folded);
            known.cloned().ok_or_else(|| {
                let known = names.join(", ");
                Error::table(path, format!("there is no column {name:?}, only {known}"))
            })
        };
        let options = &TableOptions {
            time: options.time.as_ref().map(find).transpose()?,
            id: options.id.as_ref().map(find).transpose()?,
            columns: options.columns.iter().map(find).collect::<Result<_>>()?,
            ..options.clone()
        };
        let missing: Vec<String> = options.missing_values.iter().map(|v| v.trim().to_lowercase()).collect();
        let (time, notation) = time_column(path, chunk, &names, options)?;
        let mut layout = Self {
            time,
            notation,
            id: options.id.clone(),
            columns: options.columns.clone(),
            skipped: Vec::new(),
            decimal_comma: false,
            missing,
            zone: options.zone()?,
        };
        let is_value = |name: &&String| **name != layout.time && Some(*name) != layout.id.as_ref();
        let candidates: Vec<&String> = names.iter().filter(is_value).collect();
        layout.decimal_comma = chunk.separator.is_some_and(|s| s != b',') && {
            let texts = candidates.iter().filter_map(|name| frame.column(name).ok()?.str().ok());
            let mut values = texts.flat_map(|text| text.iter().flatten().take(LOOK_AT));
            values.any(|value| is_decimal_comma(value.trim()))
        };
        if options.columns.is_empty() {
            for name in candidates {
                match layout.is_numeric(frame.column(name).map_err(|e| Error::table(path, e))?) {
                    true => layout.columns.push(name.clone()),
                    false => layout.skipped.push(name.clone()),
                }
            }
        }
        if let Some(name) = options.columns.iter().find(|name| **name == layout.time) {
            return Err(Error::config(format!("column {name:?} holds the times; it cannot be a value too")));
        }
        if layout.columns.is_empty() {
            return Err(Error::table(path, "there is no column of numbers beside the time"));
        }
        Ok(layout)
    }

    /// Whether most of the first values are numbers. A column without any value counts as one, so that it is
    /// reported as missing instead of being passed over.
    fn is_numeric(&self, column: &Column) -> bool {
        let Ok(text) = column.str() else { return column.dtype().is_primitive_numeric() };
        let values: Vec<&str> = text.iter().flatten().filter(|v| !self.is_missing(v)).take(LOOK_AT).collect();
        let numbers = values.iter().filter(|v| self.number(v).is_some()).count();
        numbers * 2 > values.len() || values.is_empty()
    }

    fn is_missing(&self, value: &str) -> bool {
        let value = value.trim();
        MISSING.iter().any(|word| value.eq_ignore_ascii_case(word))
            || self.missing.iter().any(|word| value.eq_ignore_ascii_case(word))
    }

    fn number(&self, value: &str) -> Option<f64> {
        let value = value.trim();
        match self.decimal_comma {
            // 1.234,5 writes thousands with points
            true => value.replace('.', "").replace(',', ".").parse().ok(),
            false => value.parse().ok(),
        }
    }

    /// A chunk's rows as numbers.
    pub(super) fn rows(&self, path: &Path, chunk: &Chunk) -> Result<Rows> {
        let column = |name: &str| chunk.frame.column(name).map_err(|e| Error::table(path, e));
        let ids = match &self.id {
            None => None,
            Some(name) => Some(self.ids(path, chunk, column(name)?)?),
        };
        let times = self.times(path, chunk, column(&self.time)?)?;
        let values = self.columns.iter().map(|name| self.values(path, chunk, column(name)?));
        let values = values.collect::<Result<Vec<_>>>()?;
        Ok(Rows { ids, times, lines: chunk.lines.clone(), values })
    }

    fn ids(&self, path: &Path, chunk: &Chunk, column: &Column) -> Result<Vec<String>> {
        let text = column.cast(&DataType::String).map_err(|e| Error::table(path, e))?;
        let text = text.str().map_err(|e| Error::table(path, e))?;
        let id = |(value, &line): (Option<&str>, &u64)| match value {
            Some(value) if !value.is_empty() => Ok(value.to_owned()),
            _ => Err(Error::line(path, line, format!("column {:?}: there is no id", column.name()))),
        };
        text.iter().zip(&chunk.lines).map(id).collect()
    }

    fn times(&self, path: &Path, chunk: &Chunk, column: &Column) -> Result<Vec<i64>> {
        let blame =
            |line: u64, why: &str| Error::line(path, line, format!("column {:?}: {why}", column.name()));
        if let Ok(text) = column.str() {
            let time = |(value, &line): (Option<&str>, &u64)| {
                let value = value.ok_or_else(|| blame(line, "there is no time"))?;
                self.notation.parse(value, self.zone).map_err(|why| blame(line, &why))
            };
            return text.iter().zip(&chunk.lines).map(time).collect();
        }
        let numbers = whole_times(column).map_err(|e| Error::table(path, e))?;
        let numbers = numbers.i64().map_err(|e| Error::table(path, e))?;
        let time = |(value, &line): (Option<i64>, &u64)| value.ok_or_else(|| blame(line, "there is no time"));
        numbers.iter().zip(&chunk.lines).map(time).collect()
    }

    fn values(&self, path: &Path, chunk: &Chunk, column: &Column) -> Result<Vec<f64>> {
        let blame =
            |line: u64, why: String| Error::line(path, line, format!("column {:?}: {why}", column.name()));
        let finite = |value: f64, line: u64| match value.is_infinite() {
            true => Err(blame(line, format!("{value} is not a finite number"))),
            false => Ok(value),
        };
        if let Ok(text) = column.str() {
            let value = |(value, &line): (Option<&str>, &u64)| match value {
                None => Ok(f64::NAN),
                Some(value) if self.is_missing(value) => Ok(f64::NAN),
                Some(value) => {
                    let number = self
                        .number(value)
                        .ok_or_else(|| blame(line, format!("{value:?} is not a number")))?;
                    finite(number, line)
                }
            };
            return text.iter().zip(&chunk.lines).map(value).collect();
        }
        if !column.dtype().is_primitive_numeric() {
            return Err(Error::table(
                path,
                format!("column {:?} holds {}, not numbers", column.name(), column.dtype()),
            ));
        }
        let given: Vec<f64> = self.missing.iter().filter_map(|word| word.parse().ok()).collect();
        let numbers = column.cast(&DataType::Float64).map_err(|e| Error::table(path, e))?;
        let numbers = numbers.f64().map_err(|e| Error::table(path, e))?;
        let value = |(value, &line): (Option<f64>, &u64)| match value {
            Some(value) if !given.contains(&value) => finite(value, line),
            _ => Ok(f64::NAN),
        };
        numbers.iter().zip(&chunk.lines).map(value).collect()
    }
}

/// A name as it is left where only ASCII is kept: every other byte a question mark.
fn ascii(name: &str) -> String {
    name.bytes().map(|b| if b.is_ascii() { char::from(b) } else { '?' }).collect()
}

/// `1,5` or `1.234,5`.
fn is_decimal_comma(value: &str) -> bool {
    let Some((whole, decimals)) = value.rsplit_once(',') else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits(decimals) && digits(&whole.trim_start_matches(['-', '+']).replace('.', ""))
}

/// Times of a typed column as milliseconds, whole numbers as they are.
fn whole_times(column: &Column) -> PolarsResult<Column> {
    match column.dtype() {
        DataType::Date | DataType::Datetime(..) => {
            column.cast(&DataType::Datetime(TimeUnit::Milliseconds, None))?.cast(&DataType::Int64)
        }
        _ => column.cast(&DataType::Int64),
    }
}

/// The time column and its notation: the one that is named, or the first that holds times.
fn time_column(
    path: &Path,
    chunk: &Chunk,
    names: &[String],
    options: &TableOptions,
) -> Result<(String, Notation)> {
    let candidates: Vec<&String> = match &options.time {
        Some(name) => vec![name],
        None => {
            // well-known names first, then the order of the table
            let known = |name: &String| !TIME_NAMES.contains(&name.to_lowercase().as_str());
            let mut names: Vec<&String> = names.iter().filter(|n| Some(*n) != options.id.as_ref()).collect();
            names.sort_by_key(|name| known(name));
            names
        }
    };
    let mut problem = None;
    for name in candidates {
        let column = chunk.frame.column(name).map_err(|e| Error::table(path, e))?;
        let named = options.time.is_some();
        match notation(column, options, named) {
            Ok(notation) => return Ok((name.clone(), notation)),
            Err((at, why)) => {
                let line = chunk.lines.get(at).copied().unwrap_or(1);
                let likely = named || TIME_NAMES.contains(&name.to_lowercase().as_str());
                if problem.is_none() && likely {
                    problem = Some(Error::line(path, line, format!("column {name:?}: {why}")));
                }
            }
        }
    }
    Err(problem.unwrap_or_else(|| Error::table(path, "no column holds times; name one by --time")))
}

/// The notation of a column, or the place of a value that is no time and why.
fn notation(column: &Column, options: &TableOptions, named: bool) -> Result<Notation, (usize, String)> {
    if matches!(column.dtype(), DataType::Date | DataType::Datetime(..)) {
        return Ok(Notation::Pattern("Parquet".into()));
    }
    if column.dtype().is_integer() && named {
        return Ok(Notation::Steps);
    }
    let text = column.str().map_err(|_| (0, format!("holds {}, not times", column.dtype())))?;
    if let Some(pattern) = &options.time_format {
        let has_time = ["%H", "%I", "%T", "%R", "%s"].iter().any(|part| pattern.contains(part));
        let pattern = if has_time { Cow::Borrowed(pattern) } else { Cow::Owned(format!("@{pattern}")) };
        return Ok(Notation::Pattern(pattern.into_owned()));
    }
    if let Some(at) = text.iter().position(|value| value.is_none_or(|v| v.trim().is_empty())) {
        return Err((at, "there is no time".into()));
    }
    let values: Vec<&str> = text.iter().flatten().collect();
    match Notation::detect(&values) {
        Err(_) if named && values.iter().all(|v| v.trim().parse::<i64>().is_ok()) => Ok(Notation::Steps),
        result => result,
    }
}
