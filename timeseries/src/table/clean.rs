//! Rows into an evenly spaced series without missing values, by policies, with counts of what was changed.

use super::layout::Layout;
use super::time::{Course, Frequency, Moment};
use super::{Series, TableOptions};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// Rows that a gap may be filled with: some years of minutes. A longer one is more likely a wrong time.
const MAX_GAP: usize = 2_000_000;

/// What becomes of rows with the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// They are an error.
    #[default]
    Error,
    /// The first counts.
    First,
    /// The last counts.
    Last,
    /// Their mean counts.
    Mean,
    /// Every one is a row of its own.
    Keep,
}

/// What becomes of times without a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Gaps {
    /// A row of missing values is put there.
    #[default]
    Fill,
    /// They are an error.
    Error,
    /// Rows follow each other whatever their times.
    Keep,
}

/// What becomes of missing values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The last value before counts; rows before the first value of every column are left out.
    #[default]
    Forward,
    /// A straight line between the values around it, so that the past is told of the future; at the ends, the nearest.
    Interpolate,
    /// Zero.
    Zero,
    /// The row is left out, whatever that does to the spacing.
    Drop,
    /// They are an error.
    Error,
}

/// What was found and put right, over all series.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Rows read.
    pub rows: usize,
    /// Series.
    pub series: usize,
    /// Time between rows.
    pub frequency: Option<Frequency>,
    /// Rows that stood after a later one.
    pub unsorted: usize,
    /// Rows with the time of another, left out or averaged.
    pub duplicates: usize,
    /// Rows put where there was none.
    pub filled_rows: usize,
    /// Missing values that were given one.
    pub filled_values: usize,
    /// Rows left out for a missing value.
    pub dropped_rows: usize,
    /// Columns that hold no numbers.
    pub skipped_columns: Vec<String>,
    #[serde(skip)]
    policy: Missing,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = |n: usize| if n == 1 { "" } else { "s" };
        write!(f, "{} row{} of {} series", self.rows, s(self.rows), self.series)?;
        if let Some(frequency) = self.frequency {
            write!(f, " every {frequency}")?;
        }
        let filled = match self.policy {
            Missing::Interpolate => "interpolated",
            Missing::Zero => "taken for zero",
            _ => "filled forward",
        };
        for (n, what, how) in [
            (self.unsorted, "row", "sorted"),
            (self.duplicates, "duplicate row", "merged"),
            (self.filled_rows, "missing row", "filled in"),
            (self.filled_values, "missing value", filled),
            (self.dropped_rows, "row", "left out for missing values"),
        ] {
            if n > 0 {
                write!(f, "; {n} {what}{} {how}", s(n))?;
            }
        }
        if !self.skipped_columns.is_empty() {
            write!(f, "; no numbers in {}", self.skipped_columns.join(", "))?;
        }
        Ok(())
    }
}

/// A row as it stands in the table; missing values are NaN.
#[derive(Clone, Debug)]
pub(super) struct RawRow {
    pub(super) moment: Moment,
    pub(super) line: u64,
    pub(super) values: Vec<f64>,
}

/// The rows of one series.
pub(super) struct RawSeries {
    pub(super) id: String,
    rows: Vec<RawRow>,
}

impl RawSeries {
    pub(super) fn new(id: &str) -> Self {
        Self { id: id.to_owned(), rows: Vec::new() }
    }

    /// Adds the next row of the table. In an hour that comes twice, its time is the first one until a row has reached that.
    pub(super) fn push(&mut self, mut row: RawRow) {
        if let (Some(again), Some(last)) = (row.moment.again, self.rows.last())
            && last.moment.time >= row.moment.time
        {
            row.moment.time = again;
        }
        self.rows.push(row);
    }

    /// Sorts the rows, treats duplicates, and says at what distance most rows follow each other.
    pub(super) fn order(
        &mut self,
        path: &Path,
        policy: Duplicates,
        layout: &Layout,
        counts: &mut Counts,
    ) -> Result<Option<Frequency>> {
        counts.rows += self.rows.len();
        let time = |row: &RawRow| row.moment.time;
        counts.unsorted += self.rows.windows(2).filter(|pair| time(&pair[1]) < time(&pair[0])).count();
        self.rows.sort_by_key(time);
        if let Some(pair) = self.rows.windows(2).find(|pair| time(&pair[0]) == time(&pair[1]))
            && policy == Duplicates::Error
        {
            let (first, line) = (pair[0].line, pair[1].line);
            let series = if self.id.is_empty() { ", or name the column of the series by --id" } else { "" };
            let message = format!(
                "the time is that of line {first}; --duplicates first, last or mean merges them{series}"
            );
            return Err(Error::line(path, line, message));
        }
        let before = self.rows.len();
        let rows = std::mem::take(&mut self.rows);
        for same in rows.chunk_by(|a, b| time(a) == time(b)) {
            let mut row = match policy {
                Duplicates::Last => same[same.len() - 1].clone(),
                _ => same[0].clone(),
            };
            if policy == Duplicates::Mean {
                for (i, value) in row.values.iter_mut().enumerate() {
                    let known: Vec<f64> =
                        same.iter().map(|row| row.values[i]).filter(|v| !v.is_nan()).collect();
                    *value = known.iter().sum::<f64>() / known.len() as f64; // NaN where none is known
                }
            }
            match policy {
                Duplicates::Keep => self.rows.extend_from_slice(same),
                _ => self.rows.push(row),
            }
        }
        counts.duplicates += before - self.rows.len();
        Ok(Frequency::infer(&self.times(), &layout.notation, layout.zone))
    }

    fn times(&self) -> Vec<i64> {
        self.rows.iter().map(|row| row.moment.time).collect()
    }

    /// The series with gaps and missing values treated.
    pub(super) fn finish(
        self,
        path: &Path,
        layout: &Layout,
        frequency: Frequency,
        options: &TableOptions,
        counts: &mut Counts,
    ) -> Result<Series> {
        counts.policy = options.missing;
        let course = Course::new(frequency, layout.zone, &self.times());
        let (id, columns) = (self.id, &layout.columns);
        let n = columns.len();
        let (mut times, mut values) = (Vec::with_capacity(self.rows.len()), Vec::new());
        let mut previous: Option<i64> = None;
        for row in &self.rows {
            let time = row.moment.time;
            if let Some(previous) = previous.filter(|_| options.gaps != Gaps::Keep) {
                let Some(steps) = course.steps_between(previous, time) else {
                    let (at, before) = (course.format(time), course.format(previous));
                    let message = format!(
                        "{at} is not a whole number of steps ({frequency}) after {before}; --gaps keep ignores the times"
                    );
                    return Err(Error::line(path, row.line, message));
                };
                if steps > 1 && options.gaps == Gaps::Error {
                    let message = format!(
                        "{} rows are missing before {}; --gaps fill puts them in",
                        steps - 1,
                        course.format(time)
                    );
                    return Err(Error::line(path, row.line, message));
                }
                if steps > MAX_GAP {
                    let (at, before) = (course.format(time), course.format(previous));
                    let message = format!(
                        "{} rows would have to be put between {before} and {at}; is a time wrong?",
                        steps - 1
                    );
                    return Err(Error::line(path, row.line, message));
                }
                for step in 1..steps {
                    times.push(course.after(previous, step));
                    values.extend(std::iter::repeat_n(f64::NAN, n));
                }
                counts.filled_rows += steps.saturating_sub(1); // none between rows of the same time
            }
            times.push(time);
            values.extend(&row.values);
            previous = Some(time);
        }
        for (i, column) in columns.iter().enumerate() {
            if values.iter().skip(i).step_by(n).all(|v| v.is_nan()) {
                let message = format!("column {column:?} has no value at all; leave it out of --columns");
                return Err(Error::series(path, &id, message));
            }
        }
        let series = Series { id, times, values, course };
        fill(path, series, columns, options.missing, counts)
    }
}

/// Treats missing values.
fn fill(
    path: &Path,
    mut series: Series,
    columns: &[String],
    policy: Missing,
    counts: &mut Counts,
) -> Result<Series> {
    let n = columns.len();
    let missing = series.values.iter().filter(|v| v.is_nan()).count();
    if missing == 0 {
        return Ok(series);
    }
    match policy {
        Missing::Error => {
            let at = series.values.iter().position(|v| v.is_nan()).unwrap_or(0);
            let (column, time) = (&columns[at % n], series.course.format(series.times[at / n]));
            let message = format!("column {column:?} has no value at {time}; --missing forward fills it");
            return Err(Error::series(path, &series.id, message));
        }
        Missing::Zero => {
            series.values.iter_mut().filter(|v| v.is_nan()).for_each(|v| *v = 0.0);
            counts.filled_values += missing;
        }
        Missing::Drop => counts.dropped_rows += keep(&mut series, n, |row| row.iter().all(|v| !v.is_nan())),
        Missing::Forward => {
            for at in n..series.values.len() {
                if series.values[at].is_nan() {
                    series.values[at] = series.values[at - n];
                }
            }
            let left = series.values.iter().filter(|v| v.is_nan()).count();
            counts.filled_values += missing - left;
            counts.dropped_rows += keep(&mut series, n, |row| row.iter().all(|v| !v.is_nan()));
        }
        Missing::Interpolate => {
            (0..n).for_each(|column| interpolate(&mut series.values, n, column));
            counts.filled_values += missing;
        }
    }
    match series.is_empty() {
        true => Err(Error::series(path, &series.id, "no row is left without missing values")),
        false => Ok(series),
    }
}

/// Keeps the rows for which `good` holds and returns how many went.
fn keep(series: &mut Series, n: usize, good: impl Fn(&[f64]) -> bool) -> usize {
    let rows: Vec<bool> = series.values.chunks(n).map(good).collect();
    let mut flags = rows.iter();
    series.times.retain(|_| *flags.next().unwrap_or(&true));
    let mut at = 0;
    series.values.retain(|_| {
        at += 1;
        rows[(at - 1) / n]
    });
    rows.iter().filter(|&&kept| !kept).count()
}

/// Straight lines between the known values of a column; beyond them, the nearest.
fn interpolate(values: &mut [f64], n: usize, column: usize) {
    let rows = values.len() / n;
    let mut last: Option<usize> = None;
    for row in 0..rows {
        let value = values[row * n + column];
        if value.is_nan() {
            continue;
        }
        let start = last.map_or(value, |last| values[last * n + column]);
        let first = last.map_or(0, |last| last + 1);
        let span = last.map_or(1.0, |last| (row - last) as f64);
        for at in first..row {
            let part = last.map_or(0.0, |last| (at - last) as f64 / span);
            values[at * n + column] = start + (value - start) * part;
        }
        last = Some(row);
    }
    if let Some(last) = last {
        let value = values[last * n + column];
        (last + 1..rows).for_each(|row| values[row * n + column] = value);
    }
}
