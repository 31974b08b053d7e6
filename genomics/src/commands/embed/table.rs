//! Rows of the output: columns, and vectors that are checked before they go in.

use super::Per;
use anyhow::{Result, bail};
use mamba_datasets::job::arrow_array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use mamba_datasets::job::arrow_schema::SchemaRef;
use mamba_datasets::job::{PartWriter, embedding_schema, embeddings};
use mamba_genomics::embed::Pool;
use mamba_genomics::fasta::SeqRecord;
use mamba_genomics::regions::{Region, Strand};
use std::ops::Range;
use std::sync::Arc;

/// Values that are collected before they are written.
const BUFFERED_VALUES: usize = 1 << 20;

/// | rows | columns |
/// |---|---|
/// | records, windows | `id`, `start0`, `end0`, `embedding` |
/// | regions, windows of regions | `id`, `record`, `strand`, `start0`, `end0`, `embedding` |
/// | bases | the same with `position0` in place of `start0` and `end0` |
///
/// Positions are those of the record in the file, also in a region of the minus strand.
pub(crate) struct Rows {
    schema: SchemaRef,
    pub(crate) per: Per,
    pub(crate) pooling: Pool,
    regions: Option<Arc<[Region]>>,
    dim: usize,
    text: Vec<Vec<String>>,
    numbers: Vec<Vec<u64>>,
    values: Vec<f32>,
}

impl Rows {
    pub(crate) fn new(per: Per, pooling: Pool, regions: Option<Arc<[Region]>>, dim: usize) -> Self {
        let text: &[&str] = if regions.is_some() { &["id", "record", "strand"] } else { &["id"] };
        let numbers: &[&str] = if pooling == Pool::None { &["position0"] } else { &["start0", "end0"] };
        Self {
            schema: embedding_schema(text.iter().copied(), numbers.iter().copied(), "embedding", dim),
            text: vec![Vec::new(); text.len()],
            numbers: vec![Vec::new(); numbers.len()],
            values: Vec::new(),
            per,
            pooling,
            regions,
            dim,
        }
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Adds the row of bases `span` of a record, or a row for each of them.
    pub(crate) fn add(&mut self, record: &SeqRecord, span: Range<u64>, vectors: Vec<f32>) -> Result<()> {
        if let Some(at) = vectors.iter().position(|x| !x.is_finite()) {
            let value = vectors[at];
            let bases = match self.pooling {
                Pool::None => format!("base {}", span.start + (at / self.dim) as u64 + 1),
                _ => format!("bases {}-{}", span.start + 1, span.end),
            };
            let channel = at % self.dim;
            bail!("record {:?}, {bases}: value {channel} of the vector is {value}", record.name);
        }
        let step = if self.pooling == Pool::None { 1 } else { span.end - span.start };
        for start0 in span.step_by(step as usize) {
            let mut span = start0..start0 + step;
            self.text[0].push(record.name.clone());
            if let Some(region) = self.regions.as_deref().map(|regions| &regions[record.index]) {
                self.text[1].push(region.record_name.clone());
                self.text[2].push(region.strand.to_string());
                span = match region.strand {
                    Strand::Plus => region.start0 + span.start..region.start0 + span.end,
                    Strand::Minus => region.end0 - span.end..region.end0 - span.start,
                };
            }
            let bounds = [span.start, span.end];
            self.numbers.iter_mut().zip(bounds).for_each(|(column, bound)| column.push(bound));
        }
        self.values.extend(vectors);
        Ok(())
    }

    /// Writes the rows out if there are many.
    pub(crate) fn write_some(&mut self, part: &mut PartWriter) -> Result<()> {
        if self.values.len() >= BUFFERED_VALUES { self.write_all(part) } else { Ok(()) }
    }

    /// Writes the rows out.
    pub(crate) fn write_all(&mut self, part: &mut PartWriter) -> Result<()> {
        let text = self
            .text
            .iter_mut()
            .map(|column| Arc::new(StringArray::from(std::mem::take(column))) as ArrayRef);
        let numbers = self
            .numbers
            .iter_mut()
            .map(|column| Arc::new(UInt64Array::from(std::mem::take(column))) as ArrayRef);
        let vectors = embeddings(std::mem::take(&mut self.values), self.dim)?;
        let columns = text.chain(numbers).chain([vectors]).collect();
        part.write(&RecordBatch::try_new(self.schema.clone(), columns)?)?;
        Ok(())
    }
}
