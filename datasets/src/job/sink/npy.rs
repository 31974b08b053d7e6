//! A NumPy matrix with a table of ids beside it.

use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{Schema, SchemaRef};

use super::delimited::DelimitedSink;
use super::{Sink, rows_error, vector_dim};
use crate::{AtomicFile, Error, Result};

/// The header's size: a multiple of 64 that holds the largest row count.
const HEADER_BYTES: usize = 128;

/// The one column of vectors as a `.npy` matrix of `f32`, rows × dim; the other columns as a `.tsv` beside it, one line
/// for each row of the matrix.
///
/// The number of rows stands in the file's header, which is written when it is known.
#[derive(Debug)]
pub struct NpySink {
    output: AtomicFile,
    ids: Box<DelimitedSink>,
    vectors_at: usize,
    dim: usize,
    rows: u64,
    buffer: Vec<u8>,
}

impl NpySink {
    /// A sink for rows of this schema, which has one column of vectors of `f32`.
    pub fn new(mut output: AtomicFile, ids: AtomicFile, schema: &SchemaRef) -> Result<Self> {
        let dims = schema.fields().iter().map(|f| vector_dim(f.data_type()));
        let vectors: Vec<_> = dims.enumerate().filter_map(|(i, dim)| Some((i, dim?))).collect();
        let &[(vectors_at, dim)] = vectors.as_slice() else {
            let reason = format!("a .npy file needs one column of vectors, found {}", vectors.len());
            return Err(rows_error(&output, reason));
        };
        let others = schema.fields().iter().enumerate().filter(|(i, _)| *i != vectors_at);
        if schema.fields().len() < 2 {
            return Err(rows_error(&output, "a .npy file needs a column of ids beside the vectors"));
        }
        let others = Schema::new(others.map(|(_, field)| field.clone()).collect::<Vec<_>>());
        let ids = Box::new(DelimitedSink::tsv(ids, &Arc::new(others))?);
        let placeholder = output.write_all(&header(0, dim));
        placeholder.map_err(Error::io("write", output.target()))?;
        Ok(Self { output, ids, vectors_at, dim, rows: 0, buffer: Vec::new() })
    }
}

impl Sink for NpySink {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let vectors = rows.column(self.vectors_at).as_fixed_size_list();
        // A slice's values start where the slice does.
        let start = vectors.value_offset_at(0);
        let values = vectors.values().slice(start, rows.num_rows() * self.dim);
        if vectors.null_count() > 0 || values.null_count() > 0 {
            let name = rows.schema_ref().field(self.vectors_at).name().clone();
            return Err(rows_error(
                &self.output,
                format!("column {name:?} has nulls, which .npy cannot hold"),
            ));
        }
        self.buffer.clear();
        let values = values.as_primitive::<Float32Type>().values();
        self.buffer.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let written = self.output.write_all(&self.buffer);
        written.map_err(Error::io("write", self.output.target()))?;
        self.rows += rows.num_rows() as u64;

        let others: Vec<_> = (0..rows.num_columns()).filter(|&i| i != self.vectors_at).collect();
        self.ids.write(&rows.project(&others).map_err(|source| Error::Arrow { source })?)
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<AtomicFile>> {
        let header = header(self.rows, self.dim);
        let written = self.output.seek(SeekFrom::Start(0)).and_then(|_| self.output.write_all(&header));
        written.map_err(Error::io("write", self.output.target()))?;
        let mut files = vec![self.output];
        files.extend(self.ids.finish()?);
        Ok(files)
    }
}

/// A version 1.0 header: magic, version, length of the rest, a Python dictionary, spaces, a line break.
fn header(rows: u64, dim: usize) -> [u8; HEADER_BYTES] {
    let dictionary = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    let mut header = [b' '; HEADER_BYTES];
    header[..8].copy_from_slice(b"\x93NUMPY\x01\x00");
    header[8..10].copy_from_slice(&(HEADER_BYTES as u16 - 10).to_le_bytes());
    header[10..10 + dictionary.len()].copy_from_slice(dictionary.as_bytes());
    header[HEADER_BYTES - 1] = b'\n';
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_shape_fits_the_header() {
        let largest = header(u64::MAX, i32::MAX as usize);
        let text = std::str::from_utf8(&largest[10..]).unwrap();
        assert!(text.contains("(18446744073709551615, 2147483647), } "), "{text}");
        assert!(text.ends_with(" \n"));
        let npy = npyz::NpyHeader::from_reader(&header(1 << 40, 1 << 10)[..]).unwrap();
        assert_eq!(npy.shape(), [1 << 40, 1 << 10]);
    }
}
