//! Rows of predictions, for `finetune` and `predict`.

use anyhow::{Result, bail};
use mamba_datasets::job::arrow_array::{ArrayRef, Float32Array, RecordBatch, StringArray, UInt64Array};
use mamba_datasets::job::arrow_schema::{DataType, Field, Schema, SchemaRef};
use mamba_genomics::finetune::Target;
use mamba_genomics::metrics::likeliest;
use std::ops::Range;
use std::sync::Arc;

/// | what | columns |
/// |---|---|
/// | all | `id` |
/// | records of FASTA files and windows of them | `start0`, `end0` |
/// | sequences with labels | `label` |
/// | classes | `predicted`, `p_CLASS` for each class |
/// | values | `predicted` |
pub(crate) struct Table {
    schema: SchemaRef,
    target: Target,
    spans: bool,
    labels: bool,
    ids: Vec<String>,
    bounds: [Vec<u64>; 2],
    label: Vec<String>,
    predicted: Vec<String>,
    /// By output.
    values: Vec<Vec<f32>>,
}

impl Table {
    pub(crate) fn new(target: &Target, spans: bool, labels: bool) -> Self {
        let field = |name: &str, kind: DataType| Field::new(name, kind, false);
        let mut fields = vec![field("id", DataType::Utf8)];
        if spans {
            fields.extend(["start0", "end0"].map(|name| field(name, DataType::UInt64)));
        }
        if labels {
            fields.push(field("label", DataType::Utf8));
        }
        match target {
            Target::Classes { names } => {
                fields.push(field("predicted", DataType::Utf8));
                fields.extend(names.iter().map(|name| field(&format!("p_{name}"), DataType::Float32)));
            }
            Target::Value { .. } => fields.push(field("predicted", DataType::Float32)),
        }
        Self {
            schema: Arc::new(Schema::new(fields)),
            target: target.clone(),
            spans,
            labels,
            ids: Vec::new(),
            bounds: [Vec::new(), Vec::new()],
            label: Vec::new(),
            predicted: Vec::new(),
            values: vec![Vec::new(); target.outputs()],
        }
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Adds the prediction of one sequence.
    pub(crate) fn add(
        &mut self,
        id: &str,
        span: Option<Range<u64>>,
        label: Option<&str>,
        prediction: &[f64],
    ) -> Result<()> {
        if let Some(value) = prediction.iter().find(|x| !x.is_finite()) {
            bail!("sequence {id:?}: the model predicts {value}");
        }
        self.ids.push(id.to_string());
        if let Some(span) = span {
            self.bounds[0].push(span.start);
            self.bounds[1].push(span.end);
        }
        if self.labels {
            self.label.push(label.unwrap_or_default().to_string());
        }
        if let Target::Classes { names } = &self.target {
            self.predicted.push(names[likeliest(prediction)].clone());
        }
        self.values.iter_mut().zip(prediction).for_each(|(column, &value)| column.push(value as f32));
        Ok(())
    }

    /// The rows so far; the table is empty afterwards.
    pub(crate) fn take(&mut self) -> Result<RecordBatch> {
        let text = |column: &mut Vec<String>| Arc::new(StringArray::from(std::mem::take(column))) as ArrayRef;
        let mut columns = vec![text(&mut self.ids)];
        if self.spans {
            let bounds = self.bounds.iter_mut().map(std::mem::take);
            columns.extend(bounds.map(|column| Arc::new(UInt64Array::from(column)) as ArrayRef));
        }
        if self.labels {
            columns.push(text(&mut self.label));
        }
        if let Target::Classes { .. } = self.target {
            columns.push(text(&mut self.predicted));
        }
        let values = self.values.iter_mut().map(std::mem::take);
        columns.extend(values.map(|column| Arc::new(Float32Array::from(column)) as ArrayRef));
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}
