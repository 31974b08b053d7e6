//! Tables: Parquet and delimited text, chunk by chunk, by polars.

use super::Log;
use super::columns::{ColumnNames, Columns, Lines, Place, ids, times};
use super::read::{Each, ReadOptions};
use crate::Ids;
use crate::error::{Error, Result};
use polars::prelude::*;
use std::io::{BufRead, BufReader, Cursor};
use std::path::Path;

/// How fields are separated and quoted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    separator: u8,
    quote: Option<u8>,
}

impl Dialect {
    pub(super) const CSV: Self = Self { separator: b',', quote: Some(b'"') };
    pub(super) const TSV: Self = Self { separator: b'\t', quote: Some(b'"') };
    /// RecBole's atomic files know no quotes.
    pub(super) const INTER: Self = Self { separator: b'\t', quote: None };
}

/// Parquet: one event in a row, or a list of items (and perhaps of times) in a row.
pub(super) fn read_parquet(path: &Path, names: &ColumnNames, rows: usize, each: Each<'_>) -> Result<()> {
    let problem = |e: PolarsError| Error::file(path, e);
    let open = || std::fs::File::open(path).map_err(Error::io("open", path));
    let total = ParquetReader::new(open()?).num_rows().map_err(problem)?;
    let name = PlRefPath::try_from_path(path).map_err(problem)?;
    let options = ScanArgsParquet { glob: false, ..Default::default() };
    let mut frame = LazyFrame::scan_parquet(name, options).map_err(problem)?;
    let schema = frame.collect_schema().map_err(problem)?;
    let found: Vec<String> = schema.iter_names().map(ToString::to_string).collect();
    let columns = names.resolve(path, &found)?;
    let wanted = [Some(&columns.user), Some(&columns.item), columns.time.as_ref()];
    let wanted: Vec<Expr> = wanted.into_iter().flatten().map(|name| col(name.as_str())).collect();
    for start in (0..total).step_by(rows.max(1)) {
        let chunk = frame.clone().slice(start as i64, rows as IdxSize).select(wanted.clone());
        let chunk = chunk.collect().map_err(problem)?;
        each(to_log(chunk, &columns, Place { path, lines: Lines::From(start + 1) })?)?;
    }
    Ok(())
}

/// Delimited text with a header, or with names for its columns. Every value is read as text, so that ids stay what they
/// are.
pub(super) fn read_delimited(
    path: &Path,
    dialect: Dialect,
    options: &ReadOptions,
    rows: usize,
    each: Each<'_>,
) -> Result<()> {
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let mut blocks = Blocks { reader: BufReader::with_capacity(1 << 20, file), path, dialect, line: 1 };
    let separator = char::from(dialect.separator).to_string();
    let header = match &options.header {
        Some(names) => (names.join(&separator) + "\n").into_bytes(),
        None => blocks.read(1)?.bytes,
    };
    let width = fields(&header, dialect);
    loop {
        let block = blocks.read(rows)?;
        if block.lines.is_empty() {
            return Ok(());
        }
        if let Some((line, count)) = block.records().find_map(|(line, record)| {
            let count = fields(record, dialect);
            (count != width).then_some((line, count))
        }) {
            let problem = format!("{count} fields, expected {width} as in the header");
            return Err(Error::Line { path: path.to_owned(), line, problem });
        }
        let frame = CsvReadOptions::default()
            .with_infer_schema_length(Some(0))
            .with_rechunk(true)
            .map_parse_options(|o| o.with_separator(dialect.separator).with_quote_char(dialect.quote))
            .into_reader_with_file_handle(Cursor::new([&header[..], &block.bytes].concat()))
            .finish()
            .map_err(|e| Error::file(path, e))?;
        let found: Vec<String> = frame.get_column_names().iter().map(ToString::to_string).collect();
        let columns = options.columns.resolve(path, &found)?;
        each(to_log(frame, &columns, Place { path, lines: Lines::Each(&block.lines) })?)?;
    }
}

/// Whole records of delimited text.
struct Blocks<'a> {
    reader: BufReader<std::fs::File>,
    path: &'a Path,
    dialect: Dialect,
    /// The next line, from 1.
    line: usize,
}

/// Some records.
#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    /// The line that each record begins in.
    lines: Vec<usize>,
    /// Where it begins in the bytes.
    starts: Vec<usize>,
}

impl Block {
    /// Line and text of each record.
    fn records(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let ends = self.starts.iter().copied().skip(1).chain([self.bytes.len()]);
        self.lines
            .iter()
            .zip(self.starts.iter().zip(ends))
            .map(|(&line, (&start, end))| (line, &self.bytes[start..end]))
    }
}

impl Blocks<'_> {
    /// Up to `records` records; a line break inside quotes ends none, and a blank line is none.
    fn read(&mut self, records: usize) -> Result<Block> {
        let mut block = Block::default();
        let mut opened = None; // the line of a quote that is not closed yet
        while opened.is_some() || block.lines.len() < records.max(1) {
            let start = block.bytes.len();
            let read = self.reader.read_until(b'\n', &mut block.bytes);
            if read.map_err(Error::io("read", self.path))? == 0 {
                break;
            }
            let line = self.line;
            self.line += 1;
            if line == 1 && block.bytes.starts_with(b"\xef\xbb\xbf") {
                block.bytes.drain(..3);
            }
            let text = &block.bytes[start..];
            let quotes = text.iter().filter(|&&b| Some(b) == self.dialect.quote).count();
            if opened.is_none() {
                if text.trim_ascii().is_empty() && !text.contains(&self.dialect.separator) {
                    block.bytes.truncate(start);
                    continue;
                }
                block.lines.push(line);
                block.starts.push(start);
            }
            if quotes % 2 == 1 {
                opened = if opened.is_none() { Some(line) } else { None };
            }
        }
        match opened {
            Some(line) => {
                let problem = "a quote is never closed".into();
                Err(Error::Line { path: self.path.to_owned(), line, problem })
            }
            None => Ok(block),
        }
    }
}

/// Number of fields in a line.
fn fields(line: &[u8], dialect: Dialect) -> usize {
    let mut quoted = false;
    let separators = line.iter().filter(|&&b| {
        quoted ^= Some(b) == dialect.quote;
        b == dialect.separator && !quoted
    });
    separators.count() + 1
}

/// The events of a table's rows.
fn to_log(frame: DataFrame, columns: &Columns, place: Place<'_>) -> Result<Log> {
    let problem = |e: PolarsError| Error::file(place.path, e);
    let column = |name: &str| frame.column(name).map_err(problem);
    let (user, item) = (column(&columns.user)?, column(&columns.item)?);
    let time = columns.time.as_ref().map(|name| column(name)).transpose()?;
    if item.dtype().is_list() {
        // Beside times that are no lists, the order of the list is all there is.
        return lists_to_log(user, item, time.filter(|time| time.dtype().is_list()), place);
    }
    Ok(Log {
        user: ids(user, place)?,
        item: ids(item, place)?,
        time: time.map(|time| times(time, place)).transpose()?,
        idle: Ids::default(),
    })
}

/// The events of users with lists of items, and perhaps of times.
fn lists_to_log(user: &Column, item: &Column, time: Option<&Column>, place: Place<'_>) -> Result<Log> {
    let problem = |e: PolarsError| Error::file(place.path, e);
    let lengths = |column: &Column| -> Result<Vec<usize>> {
        let lists = column.list().map_err(problem)?;
        Ok(lists.amortized_iter().map(|list| list.map_or(0, |list| list.as_ref().len())).collect())
    };
    let items = lengths(item)?;
    if let Some(time) = time {
        let times = lengths(time)?;
        if let Some(row) = (0..items.len()).find(|&row| items[row] != times[row]) {
            let (line, (items, times)) = (place.line(row), (items[row], times[row]));
            let problem = format!(
                "{items} items in {:?}, {times} times in {:?}",
                item.name().as_str(),
                time.name().as_str()
            );
            return Err(Error::Line { path: place.path.to_owned(), line, problem });
        }
    }
    let mut rows = Vec::new(); // of each event
    let mut idle = Vec::new();
    for (row, &len) in items.iter().enumerate() {
        rows.extend(std::iter::repeat_n(row as IdxSize, len));
        if len == 0 {
            idle.push(row as IdxSize);
        }
    }
    let lines = |rows: &[IdxSize]| rows.iter().map(|&row| place.line(row as usize)).collect::<Vec<_>>();
    let users_of = |rows: &[IdxSize], lines: &[usize]| -> Result<Ids> {
        let users = user.take_slice(rows).map_err(problem)?;
        ids(&users, Place { lines: Lines::Each(lines), ..place })
    };
    let options = ExplodeOptions { empty_as_null: false, keep_nulls: false };
    let flat = |column: &Column| column.explode(options).map_err(problem);
    let event_lines = lines(&rows);
    let events = Place { lines: Lines::Each(&event_lines), ..place };
    Ok(Log {
        user: users_of(&rows, &event_lines)?,
        item: ids(&flat(item)?, events)?,
        time: time.map(|time| times(&flat(time)?, events)).transpose()?,
        idle: users_of(&idle, &lines(&idle))?,
    })
}
