//! Tables of time series: CSV (plain or gzip) and Parquet in, clean and evenly spaced series out.
//!
//! ```
//! use mamba_timeseries::table::{Table, TableOptions};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("load.csv");
//! std::fs::write(&path, "day;load;price\n01.01.2021;1,5;7\n02.01.2021;;8\n04.01.2021;2,5;9\n")?;
//! let table = Table::read(&path, &TableOptions::default())?;
//! assert_eq!(table.columns, ["load", "price"]);
//! assert_eq!(table.series[0].values, [1.5, 7.0, 1.5, 8.0, 1.5, 8.0, 2.5, 9.0]);
//! assert_eq!(table.counts.to_string(), "3 rows of 1 series every 1 day; 1 missing row filled in; 3 missing values filled forward");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod clean;
mod csv;
mod layout;
mod parquet;
mod time;

pub use clean::{Counts, Duplicates, Gaps, Missing};
pub use layout::{Decimal, Numbers, columns_named};
pub(crate) use time::local;
pub use time::{Course, Frequency, Notation};

use crate::error::{Error, Result};
use crate::split::{Parts, Split};
use clean::RawSeries;
use layout::Layout;
use polars::prelude::DataFrame;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// How a table is read; every setting is a flag of the commands too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TableOptions {
    /// Column with the time; none for the first that holds times.
    pub time: Option<String>,
    /// Column that names the series a row belongs to; none where all rows are one series.
    pub id: Option<String>,
    /// Columns that the model sees; empty for all numeric ones.
    pub columns: Vec<String>,
    /// Decimal mark; none where it is to be recognised.
    pub decimal: Option<Decimal>,
    /// How the numbers of another table, such as that of the training, were recognised to be written: what holds where
    /// the mark is to be recognised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numbers: Option<Numbers>,
    /// Notation of the times; none where it is to be recognised.
    pub time_format: Option<String>,
    /// Zone of times that do not name one; none for UTC.
    pub time_zone: Option<String>,
    /// Words and numbers that mean a missing value, beside the usual ones.
    pub missing_values: Vec<String>,
    /// Rows with the same time.
    pub duplicates: Duplicates,
    /// Times without a row.
    pub gaps: Gaps,
    /// Missing values.
    pub missing: Missing,
}

impl TableOptions {
    /// Rows as they stand, whatever their times: how the published benchmarks read theirs, of which Weather has gaps and a
    /// time that comes twice.
    pub fn as_they_stand() -> Self {
        Self { duplicates: Duplicates::Keep, gaps: Gaps::Keep, ..Self::default() }
    }

    /// The zone of the times, if one is given.
    pub fn zone(&self) -> Result<Option<chrono_tz::Tz>> {
        let parse = |name: &String| {
            name.parse()
                .map_err(|_| Error::config(format!("there is no time zone {name:?}; try Europe/Berlin")))
        };
        self.time_zone.as_ref().map(parse).transpose()
    }
}

/// One evenly spaced series without missing values.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its id; empty where a table holds one series.
    pub id: String,
    /// Time of every row.
    pub times: Vec<i64>,
    /// Values, row after row.
    pub values: Vec<f64>,
    /// How its times go on.
    pub course: Course,
}

impl Series {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }
}

/// All series of a file.
#[derive(Clone, Debug)]
pub struct Table {
    /// Where it came from.
    pub path: PathBuf,
    /// The columns of values.
    pub columns: Vec<String>,
    /// The series, in the order in which they appear.
    pub series: Vec<Series>,
    /// Time between rows.
    pub frequency: Frequency,
    /// How the times are written.
    pub notation: Notation,
    /// How the numbers are written, where values or options showed it.
    pub numbers: Option<Numbers>,
    /// What was put right.
    pub counts: Counts,
}

impl Table {
    /// Reads a whole file.
    pub fn read(path: &Path, options: &TableOptions) -> Result<Self> {
        let mut reader = TableReader::open(path, options)?;
        let mut raw: Vec<RawSeries> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        while let Some(rows) = reader.rows()? {
            for (id, row) in rows.each() {
                let place = *places.entry(id.to_owned()).or_insert_with(|| {
                    raw.push(RawSeries::new(id));
                    raw.len() - 1
                });
                raw[place].push(row);
            }
        }
        let (layout, mut counts) = (reader.layout, Counts::default());
        let mut frequency = None;
        for series in &mut raw {
            let inferred = series.order(path, options.duplicates, &layout, &mut counts)?;
            frequency = match (frequency, inferred) {
                (Some(first), Some(other)) if first != other && options.gaps != Gaps::Keep => {
                    let id = &series.id;
                    return Err(Error::series(
                        path,
                        id,
                        format!("rows every {other}, other series every {first}"),
                    ));
                }
                (first, inferred) => first.or(inferred),
            };
        }
        let Some(frequency) = frequency else {
            return Err(Error::table(path, "a series needs at least two rows with different times"));
        };
        let series = raw
            .into_iter()
            .map(|series| series.finish(path, &layout, frequency, options, &mut counts))
            .collect::<Result<Vec<_>>>()?;
        counts.series = series.len();
        counts.frequency = Some(frequency);
        counts.skipped_columns = layout.skipped.clone();
        Ok(Self {
            path: path.to_owned(),
            columns: layout.columns,
            series,
            frequency,
            notation: layout.notation,
            numbers: layout.numbers,
            counts,
        })
    }

    /// The parts of every series; one without room for a window is an error.
    pub fn parts(&self, split: Split, seq_len: usize, pred_len: usize) -> Result<Vec<Parts>> {
        let parts = |series: &Series| {
            let parts = split.parts(series.len(), seq_len, pred_len);
            parts.map_err(|error| match error {
                mamba_core::Error::Config(_) => error.into(),
                other => Error::series(&self.path, &series.id, other),
            })
        };
        self.series.iter().map(parts).collect()
    }
}

/// Reads the series of a file one after another, in constant memory: the rows of a series must stand together.
pub struct SeriesStream {
    reader: TableReader,
    options: TableOptions,
    frequency: Option<Frequency>,
    rows: std::vec::IntoIter<(String, clean::RawRow)>,
    current: Option<RawSeries>,
    /// Hashes of the ids that are done.
    seen: HashSet<u64>,
    counts: Counts,
    failed: bool,
}

impl SeriesStream {
    /// Opens a file; `frequency` is what the rows must come at, or else that of the first series.
    pub fn open(path: &Path, options: &TableOptions, frequency: Option<Frequency>) -> Result<Self> {
        Ok(Self {
            reader: TableReader::open(path, options)?,
            options: options.clone(),
            frequency,
            rows: Vec::new().into_iter(),
            current: None,
            seen: HashSet::new(),
            counts: Counts::default(),
            failed: false,
        })
    }

    /// The columns of values.
    pub fn columns(&self) -> &[String] {
        &self.reader.layout.columns
    }

    /// What was put right so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    fn step(&mut self) -> Result<Option<Series>> {
        loop {
            let Some((id, row)) = self.rows.next() else {
                match self.reader.rows()? {
                    Some(rows) => {
                        let rows: Vec<_> = rows.each().map(|(id, row)| (id.to_owned(), row)).collect();
                        self.rows = rows.into_iter();
                        continue;
                    }
                    None => return self.current.take().map(|series| self.finish(series)).transpose(),
                }
            };
            if self.current.as_ref().is_some_and(|series| series.id == id) {
                self.current.iter_mut().for_each(|series| series.push(row.clone()));
                continue;
            }
            if !self.seen.insert(hash(&id)) {
                let message = "its rows do not stand together; sort the table by id";
                return Err(Error::series(&self.reader.path, &id, message));
            }
            let mut series = RawSeries::new(&id);
            series.push(row);
            if let Some(done) = self.current.replace(series) {
                return self.finish(done).map(Some);
            }
        }
    }

    fn finish(&mut self, mut series: RawSeries) -> Result<Series> {
        let (path, layout) = (&self.reader.path, &self.reader.layout);
        let inferred = series.order(path, self.options.duplicates, layout, &mut self.counts)?;
        let Some(frequency) = self.frequency.or(inferred) else {
            return Err(Error::series(path, &series.id, "needs at least two rows with different times"));
        };
        if let Some(found) = inferred.filter(|found| *found != frequency && self.options.gaps != Gaps::Keep) {
            return Err(Error::series(
                path,
                &series.id,
                format!("rows every {found}, expected every {frequency}"),
            ));
        }
        self.frequency = Some(frequency);
        self.counts.series += 1;
        self.counts.frequency = Some(frequency);
        series.finish(path, layout, frequency, &self.options, &mut self.counts)
    }
}

impl Iterator for SeriesStream {
    type Item = Result<Series>;

    /// After an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.step();
        self.failed = next.is_err();
        next.transpose()
    }
}

fn hash(id: &str) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(id)
}

/// Rows of a file as they stand in it.
pub(crate) struct Chunk {
    pub(crate) frame: DataFrame,
    /// Line (CSV) or row (Parquet) of each, from 1.
    pub(crate) lines: Vec<u64>,
    /// Of CSV.
    pub(crate) separator: Option<u8>,
    /// Columns beyond those of the frame.
    pub(crate) unread: Vec<String>,
}

/// A file and what its columns are.
struct TableReader {
    path: PathBuf,
    chunks: Box<dyn Iterator<Item = Result<Chunk>> + Send>,
    first: Option<Chunk>,
    layout: Layout,
}

impl TableReader {
    fn open(path: &Path, options: &TableOptions) -> Result<Self> {
        let parquet = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"));
        let mut chunks: Box<dyn Iterator<Item = Result<Chunk>> + Send> = match parquet {
            true => Box::new(parquet::ParquetChunks::open(path, options)?),
            false => Box::new(csv::CsvChunks::open(path)?),
        };
        let first = chunks.next().unwrap_or_else(|| Err(Error::table(path, "there are no rows")))?;
        let layout = Layout::detect(path, &first, options)?;
        Ok(Self { path: path.to_owned(), chunks, first: Some(first), layout })
    }

    /// The rows of the next chunk.
    fn rows(&mut self) -> Result<Option<layout::Rows>> {
        let chunk = match self.first.take() {
            Some(chunk) => chunk,
            None => match self.chunks.next() {
                Some(chunk) => chunk?,
                None => return Ok(None),
            },
        };
        self.layout.rows(&self.path, &chunk).map(Some)
    }
}
