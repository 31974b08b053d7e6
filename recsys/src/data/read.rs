//! Files to logs.

use super::columns::ColumnNames;
use super::{Log, table, text};
use crate::error::{Error, Result};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

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
/// As [`for_each_chunk`]; no event at all.
pub fn read_all(paths: &[PathBuf], options: &ReadOptions) -> Result<Log> {
    let mut all: Option<Log> = None;
    for path in paths {
        for file in files_of(path)? {
            for_each_chunk(&file, options, CHUNK, &mut |log| {
                let Some(all) = &mut all else {
                    all = Some(log);
                    return Ok(());
                };
                match (&mut all.time, log.time) {
                    (Some(time), Some(more)) => time.extend(more),
                    (None, None) => {}
                    _ => {
                        return Err(Error::file(
                            &file,
                            "it and the files before differ in whether events have times",
                        ));
                    }
                }
                all.user.append(log.user);
                all.item.append(log.item);
                all.idle.append(log.idle);
                Ok(())
            })?;
        }
    }
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    all.filter(|log| !log.is_empty())
        .ok_or_else(|| Error::Empty(format!("there are no events in {}", names.join(", "))))
}

/// Rows of a chunk where the caller does not care.
pub(crate) const CHUNK: usize = 1 << 18;

/// Takes one chunk of events.
pub(crate) type Each<'a> = &'a mut dyn FnMut(Log) -> Result<()>;

/// Reads one file in chunks of about `rows` rows, in memory that does not grow with the file. Ids are numbers or text by
/// chunk; [`Ids::append`](crate::Ids::append) reconciles them.
///
/// # Errors
/// A file that is not what its layout says, with line, column and value.
pub fn for_each_chunk(
    path: &Path,
    options: &ReadOptions,
    rows: usize,
    each: &mut dyn FnMut(Log) -> Result<()>,
) -> Result<()> {
    let layout = match options.layout {
        Some(layout) => layout,
        None => layout_of(path)?,
    };
    match layout {
        Layout::Lines => text::read_lines(path, rows, each),
        Layout::Pairs => text::read_pairs(path, rows, each),
        Layout::Dat => text::read_dat(path, rows, each),
        Layout::Parquet => table::read_parquet(path, &options.columns, rows, each),
        Layout::Inter => table::read_delimited(path, table::Dialect::INTER, options, rows, each),
        Layout::Csv => table::read_delimited(path, table::Dialect::CSV, options, rows, each),
        Layout::Tsv => table::read_delimited(path, table::Dialect::TSV, options, rows, each),
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
            let problem =
                format!("unknown ending; expected one of {}, or a layout by --layout", ENDINGS.join(", "));
            return Err(Error::file(path, problem));
        }
    })
}
