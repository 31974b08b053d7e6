//! Parquet, one bounded row group at a time.

use std::mem;
use std::path::Path;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, SchemaRef};
use arrow_select::concat::concat_batches;
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::basic::{Compression, Type};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::Sink;
use crate::{AtomicFile, Error, Result};

/// About how many bytes of values a row group holds; memory is a small multiple of it.
const ROW_GROUP_BYTES: usize = 16 << 20;
const MAX_ROW_GROUP_ROWS: usize = 1 << 16;
/// Bytes taken for a value whose size varies or is not known.
const GUESSED_BYTES: usize = 32;

/// A Parquet file with Snappy compression.
///
/// Row groups have a number of rows that depends on the schema only. Rows are collected until a group is full and
/// written in one piece, because the writer's page borders would otherwise follow the caller's batches.
#[derive(Debug)]
pub struct ParquetSink {
    writer: ArrowWriter<AtomicFile>,
    schema: SchemaRef,
    group_rows: usize,
    held: Vec<RecordBatch>,
    held_rows: usize,
}

impl ParquetSink {
    /// A sink for rows of this schema.
    pub fn new(output: AtomicFile, schema: &SchemaRef) -> Result<Self> {
        let row_bytes: usize = schema.fields().iter().map(|f| value_bytes(f.data_type())).sum();
        let group_rows = (ROW_GROUP_BYTES / row_bytes.max(1)).clamp(1, MAX_ROW_GROUP_ROWS);
        let path = output.target().to_owned();
        let failed = |source| Error::Parquet { path: path.clone(), source };

        let mut properties = WriterProperties::builder()
            .set_created_by("mamba-datasets".to_owned())
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_row_count(Some(group_rows));
        for column in ArrowSchemaConverter::new().convert(schema).map_err(failed)?.columns() {
            // Numbers from a model hardly repeat and are not searched by range.
            if matches!(column.physical_type(), Type::FLOAT | Type::DOUBLE) {
                properties = properties
                    .set_column_dictionary_enabled(column.path().clone(), false)
                    .set_column_statistics_enabled(column.path().clone(), EnabledStatistics::None);
            }
        }
        let writer =
            ArrowWriter::try_new(output, schema.clone(), Some(properties.build())).map_err(failed)?;
        Ok(Self { writer, schema: schema.clone(), group_rows, held: Vec::new(), held_rows: 0 })
    }

    /// Rows in a row group.
    pub fn group_rows(&self) -> usize {
        self.group_rows
    }

    fn write_group(&mut self) -> Result<()> {
        self.held_rows = 0;
        let held = mem::take(&mut self.held);
        let group = concat_batches(&self.schema, &held).map_err(|source| Error::Arrow { source })?;
        drop(held);
        let written = self.writer.write(&group).and_then(|()| self.writer.flush());
        written.map_err(|source| parquet_error(self.writer.inner().target(), source))
    }
}

impl Sink for ParquetSink {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let mut at = 0;
        while at < rows.num_rows() {
            let n = (self.group_rows - self.held_rows).min(rows.num_rows() - at);
            self.held.push(rows.slice(at, n));
            self.held_rows += n;
            at += n;
            if self.held_rows == self.group_rows {
                self.write_group()?;
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<AtomicFile>> {
        if self.held_rows > 0 {
            self.write_group()?;
        }
        let path = self.writer.inner().target().to_owned();
        let output = self.writer.into_inner().map_err(|source| parquet_error(&path, source))?;
        Ok(vec![output])
    }
}

/// Puts a full disk under the writer's error into words.
fn parquet_error(path: &Path, source: ParquetError) -> Error {
    match source {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(io) => Error::io("write", path)(*io),
            Err(inner) => Error::Parquet { path: path.to_owned(), source: ParquetError::External(inner) },
        },
        source => Error::Parquet { path: path.to_owned(), source },
    }
}

fn value_bytes(data_type: &DataType) -> usize {
    match data_type {
        DataType::FixedSizeList(item, n) => usize::try_from(*n).unwrap_or(0) * value_bytes(item.data_type()),
        DataType::Struct(fields) => fields.iter().map(|f| value_bytes(f.data_type())).sum(),
        other => other.primitive_width().unwrap_or(GUESSED_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{embedding_schema, embeddings};

    #[test]
    fn at_most_one_row_group_is_held_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let dim = 4096;
        let schema = embedding_schema([], [], "embedding", dim);
        let output = AtomicFile::create(dir.path().join("x.parquet")).unwrap();
        let temporary = output.temporary().to_owned();
        let mut sink = ParquetSink::new(output, &schema).unwrap();
        let group = sink.group_rows();
        assert_eq!(group, (16 << 20) / (4 * dim));
        let vectors =
            embeddings((0..group * 3 / 4 * dim).map(|i| (i % 65_521) as f32).collect(), dim).unwrap();
        let batch = RecordBatch::try_new(schema, vec![vectors]).unwrap();
        let mut on_disk = 0;
        // Each time three quarters of a group more.
        for held_quarters in [3, 2, 1, 0] {
            sink.write(&batch).unwrap();
            assert_eq!(sink.held_rows, group * held_quarters / 4);
            assert_eq!(sink.writer.in_progress_size(), 0);
            let len = std::fs::metadata(&temporary).unwrap().len();
            assert!(held_quarters == 3 || len > on_disk, "nothing was written out");
            on_disk = len;
        }
    }
}
