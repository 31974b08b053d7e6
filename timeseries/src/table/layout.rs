//! What the columns of a table are, and its rows as numbers.

use super::clean::RawRow;
use super::time::{Moment, Notation, local};
use super::{Chunk, TableOptions};
use crate::error::{Error, Result};
use chrono_tz::Tz;
use polars::prelude::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;

/// Names that a time column often has.
const TIME_NAMES: [&str; 8] = ["date", "time", "datetime", "timestamp", "ds", "time_hour", "day", "month"];
/// Words for a missing value, in lower case.
const MISSING: [&str; 8] = ["", "na", "n/a", "nan", "null", "none", "-", "?"];
/// Values by which a column is judged.
const LOOK_AT: usize = 200;

/// What stands between a number's whole part and its decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Decimal {
    /// 1234.5
    Point,
    /// 1234,5, or 1.234,5 with thousands
    Comma,
}

/// How the numbers of a table are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Numbers {
    /// With a decimal point.
    Point,
    /// With a decimal comma.
    Comma {
        /// Whether it is known that points group digits, so that `1.234` is a thousand.
        grouped: bool,
    },
}

/// What the columns are.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    time: String,
    pub(super) notation: Notation,
    id: Option<String>,
    pub(super) columns: Vec<String>,
    /// Columns that hold no numbers.
    pub(super) skipped: Vec<String>,
    /// None where the values do not show it; then with a decimal point.
    pub(super) numbers: Option<Numbers>,
    missing: Vec<String>,
    /// The numbers among them.
    missing_numbers: Vec<f64>,
    pub(super) zone: Option<Tz>,
}

/// Rows as numbers; missing ones are NaN.
pub(super) struct Rows {
    ids: Option<Vec<String>>,
    times: Vec<Moment>,
    lines: Vec<u64>,
    /// Column after column.
    values: Vec<Vec<f64>>,
}

impl Rows {
    /// Each row with the id of its series.
    pub(super) fn each(&self) -> impl Iterator<Item = (&str, RawRow)> {
        self.times.iter().enumerate().map(|(i, &moment)| {
            let id = self.ids.as_ref().map_or("", |ids| ids[i].as_str());
            (id, RawRow { moment, line: self.lines[i], values: self.values.iter().map(|c| c[i]).collect() })
        })
    }
}

impl Layout {
    /// Judges the columns by the first rows.
    pub(super) fn detect(path: &Path, chunk: &Chunk, options: &TableOptions) -> Result<Self> {
        let frame = &chunk.frame;
        let names: Vec<String> = frame.get_column_names().iter().map(|n| n.to_string()).collect();
        let options = &resolve(path, &names, options)?;
        let missing: Vec<String> = options.missing_values.iter().map(|v| v.trim().to_lowercase()).collect();
        let (time, notation) = time_column(path, chunk, &names, options)?;
        let mut layout = Self {
            time,
            notation,
            id: options.id.clone(),
            columns: options.columns.clone(),
            skipped: chunk.unread.clone(),
            numbers: None,
            missing_numbers: missing.iter().filter_map(|word| word.parse().ok()).collect(),
            missing,
            zone: options.zone()?,
        };
        let is_value = |name: &&String| **name != layout.time && Some(*name) != layout.id.as_ref();
        let candidates: Vec<&String> = names.iter().filter(is_value).collect();
        layout.numbers = match options.decimal {
            Some(Decimal::Point) => Some(Numbers::Point),
            Some(Decimal::Comma) => Some(Numbers::Comma { grouped: true }),
            None if chunk.separator.is_some_and(|s| s != b',') => {
                let chosen: Vec<&String> = options.columns.iter().collect();
                let columns = if chosen.is_empty() { &candidates } else { &chosen };
                match options.numbers {
                    None => numbers(path, chunk, columns)?,
                    // points may be found to group digits
                    Some(known @ Numbers::Comma { grouped: false }) => match numbers(path, chunk, columns)? {
                        Some(found @ Numbers::Comma { .. }) => Some(found),
                        _ => Some(known),
                    },
                    known => known,
                }
            }
            None => None,
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
        let numbers = values.iter().filter(|v| self.number(v).is_some() || may_be_point(v.trim())).count();
        numbers * 2 > values.len() || values.is_empty()
    }

    fn is_missing(&self, value: &str) -> bool {
        let value = value.trim();
        MISSING.iter().any(|word| value.eq_ignore_ascii_case(word))
            || self.missing.iter().any(|word| value.eq_ignore_ascii_case(word))
    }

    fn number(&self, value: &str) -> Option<f64> {
        let value = value.trim();
        match self.numbers {
            None | Some(Numbers::Point) => value.parse().ok(),
            Some(Numbers::Comma { grouped: false }) if may_be_point(value) => None,
            Some(Numbers::Comma { .. }) => of_comma(value),
        }
    }

    /// Why a value is not a number, and which flag would make it one.
    fn no_number(&self, value: &str) -> String {
        let advice = match self.numbers {
            None | Some(Numbers::Point) if of_comma(value).is_some() => {
                "; --decimal comma reads decimal commas"
            }
            Some(Numbers::Comma { .. }) if may_be_point(value) => {
                " where others have a decimal comma; --decimal comma or point says how numbers are written"
            }
            _ => "",
        };
        format!("{value:?} is not a number{advice}")
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

    fn times(&self, path: &Path, chunk: &Chunk, column: &Column) -> Result<Vec<Moment>> {
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
        let time = |(value, &line): (Option<i64>, &u64)| {
            let value = value.ok_or_else(|| blame(line, "there is no time"))?;
            match column.dtype() {
                DataType::Date => Ok(Moment::of_date(local(value, None).date(), self.zone)),
                DataType::Datetime(_, None) => {
                    Moment::of_local(local(value, None), self.zone).map_err(|why| blame(line, &why))
                }
                _ => Ok(Moment::once(value)),
            }
        };
        numbers.iter().zip(&chunk.lines).map(time).collect()
    }

    fn values(&self, path: &Path, chunk: &Chunk, column: &Column) -> Result<Vec<f64>> {
        let blame =
            |line: u64, why: String| Error::line(path, line, format!("column {:?}: {why}", column.name()));
        let checked = |value: f64, line: u64| match value.is_infinite() {
            _ if self.missing_numbers.contains(&value) => Ok(f64::NAN),
            true => Err(blame(line, format!("{value} is not a finite number"))),
            false => Ok(value),
        };
        if let Ok(text) = column.str() {
            let value = |(value, &line): (Option<&str>, &u64)| match value {
                None => Ok(f64::NAN),
                Some(value) if self.is_missing(value) => Ok(f64::NAN),
                Some(value) => {
                    let number = self.number(value).ok_or_else(|| blame(line, self.no_number(value)))?;
                    checked(number, line)
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
        let numbers = column.cast(&DataType::Float64).map_err(|e| Error::table(path, e))?;
        let numbers = numbers.f64().map_err(|e| Error::table(path, e))?;
        let value = |(value, &line): (Option<f64>, &u64)| checked(value.unwrap_or(f64::NAN), line);
        numbers.iter().zip(&chunk.lines).map(value).collect()
    }
}

/// A name as it is left where only ASCII is kept: every other byte a question mark.
fn ascii(name: &str) -> String {
    name.bytes().map(|b| if b.is_ascii() { char::from(b) } else { '?' }).collect()
}

/// A number with a decimal comma: `1,5` or `1.234,5`, whose points stand between groups of three digits.
fn of_comma(value: &str) -> Option<f64> {
    let (whole, decimals) = value.split_once(',').unwrap_or((value, ""));
    let mut groups = whole.trim_start_matches(['-', '+']).split('.');
    let digits = |text: &str, n: std::ops::RangeInclusive<usize>| {
        n.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
    };
    if whole.contains('.')
        && !(groups.next().is_some_and(|g| digits(g, 1..=3)) && groups.all(|g| digits(g, 3..=3)))
    {
        return None;
    }
    let whole = whole.replace('.', "");
    if value.contains(',') { format!("{whole}.{decimals}").parse().ok() } else { whole.parse().ok() }
}

/// Whether a value is a number with a decimal point, such as `1.5`, or `1.234`, which may also be a thousand.
fn may_be_point(value: &str) -> bool {
    value.contains('.') && value.parse::<f64>().is_ok()
}

/// How the first numbers of text columns are written, where commas do not separate them; none where no value shows it. Both
/// ways are an error.
fn numbers(path: &Path, chunk: &Chunk, columns: &[&String]) -> Result<Option<Numbers>> {
    let mut values = Vec::new();
    for name in columns {
        let Ok(text) = chunk.frame.column(name).and_then(|column| column.str()) else { continue };
        let known = text.iter().zip(&chunk.lines).filter_map(|(value, &line)| Some((value?.trim(), line)));
        values.extend(known.take(LOOK_AT).map(|(value, line)| (*name, value, line)));
    }
    let with_comma = |value: &str| value.contains(',') && of_comma(value).is_some();
    let Some((first, comma, _)) = values.iter().find(|(_, value, _)| with_comma(value)) else {
        let point = |value: &str| may_be_point(value) && of_comma(value).is_none();
        return Ok(values.iter().any(|(_, value, _)| point(value)).then_some(Numbers::Point));
    };
    let grouped = values.iter().any(|(_, value, _)| value.contains('.') && with_comma(value));
    let other = |value: &str| may_be_point(value) && !(grouped && of_comma(value).is_some());
    match values.iter().find(|(_, value, _)| other(value)) {
        None => Ok(Some(Numbers::Comma { grouped })),
        Some((name, point, line)) => {
            let message = format!(
                "column {name:?}: {point:?} where column {first:?} has {comma:?}; --decimal comma or point says how \
                 numbers are written"
            );
            Err(Error::line(path, *line, message))
        }
    }
}

/// The options with names as the table has them.
pub(super) fn resolve(path: &Path, known: &[String], options: &TableOptions) -> Result<TableOptions> {
    let unknown =
        |name: String| Error::table(path, format!("there is no column {name:?}, only {}", known.join(", ")));
    let find = |name: &String| column_named(name, known).cloned().ok_or_else(|| unknown(name.clone()));
    Ok(TableOptions {
        time: options.time.as_ref().map(find).transpose()?,
        id: options.id.as_ref().map(find).transpose()?,
        columns: columns_named(&options.columns, known).map_err(unknown)?,
        ..options.clone()
    })
}

/// The columns that are meant by the parts of a list which was cut at its commas, though names may hold commas themselves;
/// an error is the part that no name begins with.
pub fn columns_named(parts: &[String], known: &[String]) -> Result<Vec<String>, String> {
    let most = 1 + known.iter().map(|name| name.matches(',').count()).max().unwrap_or(0);
    let (mut rest, mut found) = (parts, Vec::new());
    while !rest.is_empty() {
        let joined = |n: usize| Some((n, column_named(&rest[..n].join(","), known)?));
        let (n, name) = (1..=most.min(rest.len())).rev().find_map(joined).ok_or_else(|| rest[0].clone())?;
        found.push(name.clone());
        rest = &rest[n..];
    }
    Ok(found)
}

/// The column of a name, which may lack the spaces around it or have question marks in place of what is not ASCII.
fn column_named<'a>(name: &str, known: &'a [String]) -> Option<&'a String> {
    let trimmed = |known: &&String| known.trim() == name.trim();
    let exact = known.iter().find(|known| *known == name);
    exact.or(known.iter().find(trimmed)).or(known.iter().find(|known| ascii(known) == name))
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
        match notation(column, name, options, named) {
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
fn notation(
    column: &Column,
    name: &str,
    options: &TableOptions,
    named: bool,
) -> Result<Notation, (usize, String)> {
    if matches!(column.dtype(), DataType::Date | DataType::Datetime(..)) {
        return Ok(Notation::Pattern("Parquet".into()));
    }
    let steps = format!("; --time {name:?} takes whole numbers as steps");
    if column.dtype().is_integer() {
        return if named { Ok(Notation::Steps) } else { Err((0, format!("holds whole numbers{steps}"))) };
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
        Err((at, why)) if values.iter().all(|v| v.trim().parse::<i64>().is_ok()) => {
            if named {
                Ok(Notation::Steps)
            } else {
                Err((at, why + &steps))
            }
        }
        result => result,
    }
}
