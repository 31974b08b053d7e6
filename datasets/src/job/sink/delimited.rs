//! Comma- and tab-separated text.

use std::io::Write;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, SchemaRef};

use super::text::{Dialect, is_supported, push_value};
use super::{Sink, rows_error, vector_dim};
use crate::{AtomicFile, Error, Result};

/// A text table with a header line. A column of vectors `e` becomes the columns `e_0`, `e_1` …; a null is an empty
/// field.
#[derive(Debug)]
pub struct DelimitedSink {
    output: AtomicFile,
    dialect: Dialect,
    line: String,
}

impl DelimitedSink {
    /// Comma-separated, quoted as RFC 4180 says.
    pub fn csv(output: AtomicFile, schema: &SchemaRef) -> Result<Self> {
        Self::new(output, schema, Dialect::Csv)
    }

    /// Tab-separated; tabs, line breaks and backslashes inside a field become `\t`, `\n`, `\r`, `\\`.
    pub fn tsv(output: AtomicFile, schema: &SchemaRef) -> Result<Self> {
        Self::new(output, schema, Dialect::Tsv)
    }

    fn new(output: AtomicFile, schema: &SchemaRef, dialect: Dialect) -> Result<Self> {
        let mut names = Vec::new();
        for field in schema.fields() {
            match vector_dim(field.data_type()) {
                Some(dim) => names.extend((0..dim).map(|i| format!("{}_{i}", field.name()))),
                None if is_supported(field.data_type()) => names.push(field.name().clone()),
                None => {
                    let reason =
                        format!("a text table cannot hold column {:?} ({})", field.name(), field.data_type());
                    return Err(rows_error(&output, reason));
                }
            }
        }
        let mut sink = Self { output, dialect, line: String::new() };
        for (i, name) in names.iter().enumerate() {
            sink.separate(i);
            sink.dialect.push(name, &mut sink.line);
        }
        sink.end_line()?;
        Ok(sink)
    }

    fn separate(&mut self, place: usize) {
        if place > 0 {
            self.line.push(self.dialect.separator());
        }
    }

    fn end_line(&mut self) -> Result<()> {
        self.line.push('\n');
        let written = self.output.write_all(self.line.as_bytes());
        written.map_err(Error::io("write", self.output.target()))?;
        self.line.clear();
        Ok(())
    }
}

impl Sink for DelimitedSink {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        for row in 0..rows.num_rows() {
            let mut place = 0;
            for column in rows.columns() {
                if let DataType::FixedSizeList(_, dim) = column.data_type() {
                    let vectors = column.as_fixed_size_list();
                    let values = vectors.is_valid(row).then(|| vectors.value(row));
                    for i in 0..*dim as usize {
                        self.separate(place);
                        place += 1;
                        if let Some(values) = &values {
                            push_value(values, i, self.dialect, &mut self.line);
                        }
                    }
                } else {
                    self.separate(place);
                    place += 1;
                    push_value(column, row, self.dialect, &mut self.line);
                }
            }
            self.end_line()?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<AtomicFile>> {
        Ok(vec![self.output])
    }
}
