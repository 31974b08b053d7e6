//! Tables: Parquet and delimited text, chunk by chunk, by polars.

use super::Log;
use super::columns::{ColumnNames, Columns, Place, ids, times};
use super::read::{Each, ReadOptions};
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
        each(to_log(chunk, &columns, Place { path, first: start + 1 })?)?;
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
    let mut header = match &options.header {
        Some(names) => (names.join(&separator) + "\n").into_bytes(),
        None => blocks.read(1)?.1,
    };
    if header.starts_with(b"\xef\xbb\xbf") {
        header.drain(..3);
    }
    loop {
        let (first, lines) = blocks.read(rows)?;
        if lines.is_empty() {
            return Ok(());
        }
        let width = fields(&header, dialect);
        let text = [&header[..], &lines].concat();
        let frame = CsvReadOptions::default()
            .with_infer_schema_length(Some(0))
            .with_rechunk(true)
            .map_parse_options(|o| o.with_separator(dialect.separator).with_quote_char(dialect.quote))
            .into_reader_with_file_handle(Cursor::new(text))
            .finish();
        if let Some(error) = ragged_line(path, &lines, first, width, dialect) {
            return Err(error);
        }
        let frame = frame.map_err(|e| Error::file(path, e))?;
        let found: Vec<String> = frame.get_column_names().iter().map(ToString::to_string).collect();
        let columns = options.columns.resolve(path, &found)?;
        each(to_log(frame, &columns, Place { path, first })?)?;
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

impl Blocks<'_> {
    /// The number of the first line, and the lines of up to `records` records; a line break inside quotes ends none.
    fn read(&mut self, records: usize) -> Result<(usize, Vec<u8>)> {
        let (first, mut bytes, mut quoted) = (self.line, Vec::new(), false);
        let mut count = 0;
        while count < records.max(1) {
            let start = bytes.len();
            if self.reader.read_until(b'\n', &mut bytes).map_err(Error::io("read", self.path))? == 0 {
                break;
            }
            self.line += 1;
            if let Some(quote) = self.dialect.quote {
                quoted ^= bytes[start..].iter().filter(|&&b| b == quote).count() % 2 == 1;
            }
            count += usize::from(!quoted);
        }
        match quoted {
            true => Err(Error::Line {
                path: self.path.to_owned(),
                line: first,
                problem: "a quote is never closed".into(),
            }),
            false => Ok((first, bytes)),
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

/// The first line with another number of fields than the header, as an error. Lines with quoted line breaks are not
/// judged.
fn ragged_line(path: &Path, lines: &[u8], first: usize, expected: usize, dialect: Dialect) -> Option<Error> {
    for (i, line) in lines.split(|&b| b == b'\n').enumerate() {
        let quotes = line.iter().filter(|&&b| Some(b) == dialect.quote).count();
        if quotes % 2 == 1 {
            return None;
        }
        let count = fields(line, dialect);
        if count != expected && !line.is_empty() && line != b"\r" {
            let problem = format!("{count} fields, expected {expected} as in the header");
            return Some(Error::Line { path: path.to_owned(), line: first + i, problem });
        }
    }
    None
}

/// The events of a table's rows.
fn to_log(frame: DataFrame, columns: &Columns, place: Place<'_>) -> Result<Log> {
    let problem = |e: PolarsError| Error::file(place.path, e);
    let is_list = |frame: &DataFrame, name: &str| Ok(frame.column(name).map_err(problem)?.dtype().is_list());
    let mut frame = frame;
    let mut time = columns.time.clone();
    if is_list(&frame, &columns.item)? {
        let mut lists = vec![columns.item.clone()];
        match &time {
            Some(name) if is_list(&frame, name)? => lists.push(name.clone()),
            _ => time = None, // the order of the list is all there is
        }
        // An empty list is no event.
        let options = ExplodeOptions { empty_as_null: false, keep_nulls: false };
        frame = frame
            .explode(lists.iter().map(|name| PlSmallStr::from(name.as_str())), options)
            .map_err(problem)?;
    }
    let column = |name: &str| frame.column(name).map_err(problem);
    Ok(Log {
        user: ids(column(&columns.user)?, place)?,
        item: ids(column(&columns.item)?, place)?,
        time: time.as_ref().map(|name| times(column(name)?, place)).transpose()?,
    })
}
