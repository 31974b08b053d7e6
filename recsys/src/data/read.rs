//! Files to logs.

use super::columns::{ColumnNames, Columns, Place, ids, times};
use super::{Log, text};
use crate::error::{Error, Result};
use polars::prelude::*;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// RecBole's atomic file: tab-separated, header `user_id:token …`
    Inter,
    /// Comma-separated with a header
    Csv,
    /// Tab-separated with a header
    Tsv,
    /// Parquet
    Parquet,
    /// A line per user: the user, then the items in time order
    Lines,
    /// A line per event in time order: user, item
    Pairs,
    /// MovieLens: `user::item::rating::time`
    Dat,
}

/// How files are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The layout; by the file's ending where it is absent.
    pub layout: Option<Layout>,
    /// Columns of tables.
    pub columns: ColumnNames,
    /// Names of the columns of a CSV or TSV file without a header.
    pub header: Option<Vec<String>>,
}

/// Endings of files that a folder is searched for.
const ENDINGS: [&str; 6] = ["inter", "csv", "tsv", "parquet", "txt", "dat"];

/// The files of a path: itself, or those of a folder with a known ending, by name.
pub fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    let meta = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if !meta.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("read", path))? {
        let file = entry.map_err(Error::io("read", path))?.path();
        let known = file.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
        if known && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(Error::file(path, format!("no file in it ends in {}", ENDINGS.join(", ")))),
        false => Ok(files),
    }
}

/// Reads files and folders into one log.
///
/// # Errors
/// As [`read`]; files of which some have times and others none.
pub fn read_all(paths: &[PathBuf], options: &ReadOptions) -> Result<Log> {
    let mut all: Option<Log> = None;
    for path in paths {
        for file in files_of(path)? {
            let log = read(&file, options)?;
            let Some(all) = &mut all else {
                all = Some(log);
                continue;
            };
            match (&mut all.time, log.time) {
                (Some(time), Some(more)) => time.extend(more),
                (None, None) => {}
                _ => return Err(Error::file(&file, "it and the files before differ in whether events have times")),
            }
            all.user.append(log.user);
            all.item.append(log.item);
        }
    }
    all.ok_or_else(|| Error::Empty("no file was named".into()))
}

/// Reads one file.
///
/// # Errors
/// A file that is not what its layout says, with line, column and value; one without events.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Log> {
    let layout = match options.layout {
        Some(layout) => layout,
        None => layout_of(path)?,
    };
    let log = match layout {
        Layout::Lines => text::read_lines(path)?,
        Layout::Pairs => text::read_pairs(path)?,
        Layout::Dat => text::read_dat(path)?,
        Layout::Inter | Layout::Csv | Layout::Tsv | Layout::Parquet => read_table(path, layout, options)?,
    };
    match log.is_empty() {
        true => Err(Error::file(path, "there are no events in it")),
        false => Ok(log),
    }
}

/// The layout by the ending; of text files by their first lines.
pub(crate) fn layout_of(path: &Path) -> Result<Layout> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    Ok(match ending.as_str() {
        "inter" => Layout::Inter,
        "csv" => Layout::Csv,
        "tsv" => Layout::Tsv,
        "parquet" | "pq" => Layout::Parquet,
        "dat" => Layout::Dat,
        "txt" => {
            let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
            let mut fields = BufReader::new(file).lines().take(1000).map_while(|line| line.ok());
            // Lines of users with one item each look like pairs, and mean the same.
            let pairs = fields.all(|line| matches!(line.split_whitespace().count(), 0 | 2));
            if pairs { Layout::Pairs } else { Layout::Lines }
        }
        _ => {
            let problem = format!("unknown ending; expected one of {}, or a layout by --layout", ENDINGS.join(", "));
            return Err(Error::file(path, problem));
        }
    })
}

fn read_table(path: &Path, layout: Layout, options: &ReadOptions) -> Result<Log> {
    let frame = scan(path, layout, options.header.as_deref())?;
    let (frame, columns) = select(frame, path, &options.columns)?;
    let frame = frame.collect().map_err(|e| blame(path, layout, e))?;
    let first = match (layout, &options.header) {
        (Layout::Parquet, _) | (_, Some(_)) => 1,
        _ => 2, // after the header
    };
    to_log(&frame, &columns, Place { path, first })
}

/// A table as it is in the file; text is read as text.
pub(crate) fn scan(path: &Path, layout: Layout, header: Option<&[String]>) -> Result<LazyFrame> {
    // Opened first for the message of a missing file.
    std::fs::File::open(path).map_err(Error::io("open", path))?;
    let name = PlRefPath::try_from_path(path).map_err(|e| Error::file(path, e))?;
    let frame = match layout {
        Layout::Parquet => LazyFrame::scan_parquet(name, ScanArgsParquet { glob: false, ..Default::default() }),
        _ => {
            let separator = if layout == Layout::Csv { b',' } else { b'\t' };
            LazyCsvReader::new(name)
                .with_glob(false)
                .with_separator(separator)
                .with_has_header(header.is_none())
                .with_quote_char((layout != Layout::Inter).then_some(b'"'))
                .with_infer_schema_length(Some(0))
                .finish()
                .and_then(|frame| match header {
                    Some(names) => renamed(frame, names),
                    None => Ok(frame),
                })
        }
    };
    frame.map_err(|e| blame(path, layout, e))
}

fn renamed(mut frame: LazyFrame, names: &[String]) -> PolarsResult<LazyFrame> {
    let schema = frame.collect_schema()?;
    let old: Vec<PlSmallStr> = schema.iter_names().cloned().collect();
    if old.len() != names.len() {
        polars_bail!(ComputeError: "{} columns, but {} names were given: {}", old.len(), names.len(), names.join(","));
    }
    Ok(frame.rename(old, names, true))
}

/// The columns that matter, found in the table's schema.
pub(crate) fn select(mut frame: LazyFrame, path: &Path, names: &ColumnNames) -> Result<(LazyFrame, Columns)> {
    let schema: Arc<Schema> = frame.collect_schema().map_err(|e| Error::file(path, e))?;
    let found: Vec<String> = schema.iter_names().map(ToString::to_string).collect();
    let columns = names.resolve(path, &found)?;
    let wanted = [Some(&columns.user), Some(&columns.item), columns.time.as_ref()];
    let wanted: Vec<Expr> = wanted.into_iter().flatten().map(|name| col(name.as_str())).collect();
    Ok((frame.select(wanted), columns))
}

/// The events of a table's rows.
pub(crate) fn to_log(frame: &DataFrame, columns: &Columns, place: Place<'_>) -> Result<Log> {
    let column = |name: &str| frame.column(name).map_err(|e| Error::file(place.path, e));
    Ok(Log {
        user: ids(column(&columns.user)?, place)?,
        item: ids(column(&columns.item)?, place)?,
        time: columns.time.as_ref().map(|name| times(column(name)?, place)).transpose()?,
    })
}

/// The error about a table that could not be read: for text the first line with another number of fields than the
/// header, where there is one.
fn blame(path: &Path, layout: Layout, error: PolarsError) -> Error {
    if layout != Layout::Parquet
        && let Ok(file) = std::fs::File::open(path)
        && let Some(error) = text::ragged_line(path, BufReader::new(file), if layout == Layout::Csv { b',' } else { b'\t' })
    {
        return error;
    }
    Error::file(path, error)
}
