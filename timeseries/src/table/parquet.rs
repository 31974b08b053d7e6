//! Parquet files in chunks of rows.

use super::Chunk;
use crate::error::{Error, Result};
use polars::prelude::*;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Rows of a chunk.
const CHUNK: usize = 65_536;

/// A Parquet file, read chunk by chunk.
pub(crate) struct ParquetChunks {
    path: PathBuf,
    rows: usize,
    next: usize,
}

impl ParquetChunks {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let rows = reader(path)?.num_rows().map_err(|e| Error::table(path, e))?;
        if rows == 0 {
            return Err(Error::table(path, "there are no rows"));
        }
        Ok(Self { path: path.to_owned(), rows, next: 0 })
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
            let frame = reader.with_slice(Some((first, n))).finish();
            frame.map_err(|e| Error::table(&self.path, e))
        });
        let lines = (first as u64 + 1..=(first + n) as u64).collect();
        Some(frame.map(|frame| Chunk { frame, lines, separator: None }))
    }
}
