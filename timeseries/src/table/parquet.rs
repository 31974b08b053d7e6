//! Parquet files in chunks of rows, of the columns that are needed.

use super::layout::resolve;
use super::{Chunk, TableOptions};
use crate::error::{Error, Result};
use polars::prelude::*;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Rows of a chunk.
const CHUNK: usize = 65_536;

/// A Parquet file, read chunk by chunk.
pub(crate) struct ParquetChunks {
    path: PathBuf,
    columns: Vec<String>,
    unread: Vec<String>,
    rows: usize,
    next: usize,
}

impl ParquetChunks {
    /// Opens a file and chooses what is read of it; a needed column of a type that cannot be read is an error.
    pub(crate) fn open(path: &Path, options: &TableOptions) -> Result<Self> {
        let mut reader = reader(path)?;
        let rows = reader.num_rows().map_err(|e| Error::table(path, e))?;
        if rows == 0 {
            return Err(Error::table(path, "there are no rows"));
        }
        let schema = reader.schema().map_err(|e| Error::table(path, e))?;
        let names: Vec<String> = schema.iter_names().map(|name| name.to_string()).collect();
        let options = resolve(path, &names, options)?;
        let (all, any_time) = (options.columns.is_empty(), options.time.is_none());
        let (mut columns, mut unread) = (Vec::new(), Vec::new());
        for (name, field) in names.into_iter().zip(schema.iter_values()) {
            let named = options.time.iter().chain(&options.id).chain(&options.columns).any(|n| *n == name);
            let kind = Kind::of(&field.dtype);
            let wanted = match kind {
                Kind::Text => all || any_time,
                Kind::Time => any_time,
                Kind::Number | Kind::OtherNumber => all,
                Kind::Categories | Kind::Other => false,
            };
            match named || wanted {
                true if matches!(kind, Kind::Other | Kind::OtherNumber) => {
                    let message = format!(
                        "column {name:?} is of type {:?}, which is not read; write it as text, 32-bit or 64-bit \
                         integers or floats, or name other columns by --columns",
                        field.dtype
                    );
                    return Err(Error::table(path, message));
                }
                true => columns.push(name),
                false if all => unread.push(name),
                false => {}
            }
        }
        Ok(Self { path: path.to_owned(), columns, unread, rows, next: 0 })
    }
}

/// What a column may hold, by its type.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Time,
    /// Text by its place in a dictionary, which ids may be.
    Categories,
    Number,
    /// Numbers of types that are not read.
    OtherNumber,
    /// Other types that are not read.
    Other,
}

impl Kind {
    fn of(dtype: &ArrowDataType) -> Self {
        use ArrowDataType::*;
        match dtype {
            Utf8 | LargeUtf8 | Utf8View => Self::Text,
            Dictionary(_, text, _) if matches!(**text, Utf8 | LargeUtf8 | Utf8View) => Self::Categories,
            Date32 | Date64 => Self::Time,
            Timestamp(_, zone) if TimeZone::opt_try_new(zone.clone()).is_ok() => Self::Time,
            Int32 | Int64 | UInt32 | UInt64 | Float32 | Float64 => Self::Number,
            Int8 | Int16 | Int128 | UInt8 | UInt16 | UInt128 | Float16 => Self::OtherNumber,
            Decimal(..) | Decimal32(..) | Decimal64(..) | Decimal256(..) => Self::OtherNumber,
            _ => Self::Other,
        }
    }
}

fn reader(path: &Path) -> Result<ParquetReader<File>> {
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    Ok(ParquetReader::new(file))
}

impl Iterator for ParquetChunks {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.rows {
            return None;
        }
        let n = CHUNK.min(self.rows - self.next);
        let first = self.next;
        self.next += n;
        let frame = reader(&self.path).and_then(|reader| {
            let columns = Some(self.columns.clone());
            let frame = reader.with_columns(columns).with_slice(Some((first, n))).finish();
            frame.map_err(|e| Error::table(&self.path, e))
        });
        let lines = (first as u64 + 1..=(first + n) as u64).collect();
        Some(frame.map(|frame| Chunk { frame, lines, separator: None, unread: self.unread.clone() }))
    }
}
