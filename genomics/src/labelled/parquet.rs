//! Rows of Parquet files, one record batch at a time.

use super::Row;
use super::table::{Columns, Found, row};
use crate::error::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use mamba_datasets::job::arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use std::fs::File;
use std::path::Path;

pub(super) struct ParquetRows {
    path: String,
    reader: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    /// Next row of the batch.
    next: usize,
    found: Found,
    rows: u64,
    done: bool,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, columns: &Columns, labelled: bool) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| Error::Open { path: name.clone(), source })?;
        let damaged = |error: parquet::errors::ParquetError| Error::Table {
            place: name.clone(),
            reason: format!("cannot be read as Parquet: {error}"),
        };
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(damaged)?;
        let names: Vec<String> = builder.schema().fields().iter().map(|f| f.name().clone()).collect();
        let all = columns.find(&name, &names, labelled)?;
        // Only the columns that are wanted are read; they keep their order.
        let mut wanted: Vec<usize> = [Some(all.sequence), all.label, all.id].into_iter().flatten().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let at = |column: usize| wanted.iter().position(|&c| c == column).unwrap_or_default();
        let found = Found { sequence: at(all.sequence), label: all.label.map(at), id: all.id.map(at) };
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted.iter().copied());
        let reader = builder.with_projection(mask).with_batch_size(1024).build().map_err(damaged)?;
        Ok(Self { path: name, reader, batch: None, next: 0, found, rows: 0, done: false })
    }

    fn read(&mut self) -> Result<Option<Row>> {
        let batch = loop {
            match &self.batch {
                Some(batch) if self.next < batch.num_rows() => break batch,
                _ => {
                    let Some(batch) = self.reader.next() else { return Ok(None) };
                    let damaged = |error| Error::Table {
                        place: self.path.clone(),
                        reason: format!("cannot be read as Parquet: {error}"),
                    };
                    (self.batch, self.next) = (Some(batch.map_err(damaged)?), 0);
                }
            }
        };
        let at = self.next;
        self.next += 1;
        self.rows += 1;
        let place = format!("{}, row {}", self.path, self.rows);
        let text = |column: usize| {
            let name = batch.schema_ref().field(column).name().clone();
            value(batch.column(column).as_ref(), at).map_err(|reason| Error::Table {
                place: place.clone(),
                reason: format!("column {name:?} {reason}"),
            })
        };
        let sequence = text(self.found.sequence)?;
        let label = self.found.label.map(text).transpose()?;
        let id = self.found.id.map(text).transpose()?;
        row(place.clone(), id, self.rows, sequence.trim().as_bytes(), label).map(Some)
    }
}

impl Iterator for ParquetRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let row = self.read().transpose();
        self.done = !matches!(row, Some(Ok(_)));
        row
    }
}

/// The text of one value, or what is wrong with it.
fn value(column: &dyn Array, at: usize) -> std::result::Result<String, String> {
    if column.is_null(at) {
        return Err("is null".into());
    }
    macro_rules! number {
        ($kind:ty) => {
            column.as_primitive::<$kind>().value(at).to_string()
        };
    }
    Ok(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(at).to_string(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(at).to_string(),
        DataType::Utf8View => column.as_string_view().value(at).to_string(),
        DataType::Boolean => column.as_boolean().value(at).to_string(),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        // Categories; a slice of one, so that one key is looked at.
        DataType::Dictionary(..) => {
            let one = column.slice(at, 1);
            let one = one.as_any_dictionary();
            return value(one.values().as_ref(), one.normalized_keys()[0]);
        }
        other => return Err(format!("holds {other}, expected text or numbers")),
    })
}
