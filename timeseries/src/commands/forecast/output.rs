//! Where the rows of `forecast` go.

use super::Args;
use anyhow::Result;
use mamba_core::cli::Format;
use mamba_datasets::job::arrow_array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray};
use mamba_datasets::job::arrow_schema::SchemaRef;
use mamba_datasets::job::{self, Fingerprint, Job, Part as Output};
use mamba_timeseries::checkpoint::ForecastCheckpoint;
use std::io::Write;
use std::path::Path;

/// Where rows go.
pub(super) enum Sink {
    Part(Box<job::PartWriter>),
    Json(Box<JsonFile>),
    Stdout { format: Format, header: bool },
    Parts(Box<Parts>),
}

/// A JSON array that is being written.
pub(super) struct JsonFile {
    claim: job::Claim,
    file: mamba_datasets::AtomicFile,
    rows: u64,
}

/// A directory of parts, cut by the number of series alone, so that all shards agree.
pub(super) struct Parts {
    directory: job::Directory,
    series: usize,
    /// The part of the last series, and its writer if it is to be made here.
    current: Option<(usize, Option<job::PartWriter>)>,
    finished: usize,
    others: usize,
}

impl Parts {
    fn open(&mut self, part: usize, schema: &SchemaRef) -> Result<()> {
        self.close()?;
        let mut writer = None;
        match self.directory.owns(part) {
            false => self.others += 1,
            true => match self.directory.part(part, schema)? {
                Output::Finished(_) => self.finished += 1,
                Output::Open(open) => writer = Some(open),
            },
        }
        self.current = Some((part, writer));
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if let Some((_, Some(writer))) = self.current.take() {
            writer.finish()?;
        }
        Ok(())
    }
}

/// Opens the output; `None` when it is finished already.
pub(super) fn destination(
    args: &Args,
    checkpoint: &ForecastCheckpoint,
    table: &Path,
    schema: &SchemaRef,
) -> Result<Option<Sink>> {
    let stdout = args.out == Path::new("-");
    let parts = !stdout && (args.out.is_dir() || args.out.extension().is_none());
    if args.shard.is_some() && !parts {
        let message =
            format!("--shard needs a directory of parts, and --out {} is one file", args.out.display());
        return Err(mamba_core::Error::Config(message).into());
    }
    if stdout {
        return Ok(Some(Sink::Stdout { format: args.common.format, header: true }));
    }
    let mut fingerprint = Fingerprint::new();
    fingerprint.add_input(table)?;
    for (name, _, sha256) in checkpoint.files()? {
        fingerprint.add_hash(name, sha256);
    }
    fingerprint.add_hash("version", env!("CARGO_PKG_VERSION"));
    fingerprint.set_config(&serde_json::json!({
        "config": checkpoint.config(), "levels": args.level.0, "targets": args.targets,
        "part_series": parts.then_some(args.part_series),
    }))?;
    let job = Job::new("mamba-timeseries forecast", fingerprint).overwrite(args.overwrite);
    if parts {
        let directory = job.directory(&args.out, job::Format::Parquet, args.shard.unwrap_or_default())?;
        let series = args.part_series as usize;
        return Ok(Some(Sink::Parts(Box::new(Parts {
            directory,
            series,
            current: None,
            finished: 0,
            others: 0,
        }))));
    }
    if args.out.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        return Ok(match job.claim(&args.out, &[], None)? {
            job::Claimed::Finished(_) => None,
            job::Claimed::Open(claim) => {
                let mut file = mamba_datasets::AtomicFile::create(&args.out)?;
                file.write_all(b"[")?;
                Some(Sink::Json(Box::new(JsonFile { claim, file, rows: 0 })))
            }
        });
    }
    Ok(match job.file(&args.out, schema)? {
        Output::Finished(_) => None,
        Output::Open(part) => Some(Sink::Part(Box::new(part))),
    })
}

impl Sink {
    /// Whether the series of this number, from 0, begins a new part.
    pub(super) fn ends_before(&self, series: usize) -> bool {
        match self {
            Self::Parts(parts) => series > 0 && series.is_multiple_of(parts.series),
            _ => false,
        }
    }

    /// Whether the series of this number is to be forecast here; asked in order.
    pub(super) fn wants(&mut self, series: usize, schema: &SchemaRef) -> Result<bool> {
        let Self::Parts(parts) = self else { return Ok(true) };
        let part = series / parts.series;
        if parts.current.as_ref().is_none_or(|(current, _)| *current != part) {
            parts.open(part, schema)?;
        }
        Ok(parts.current.as_ref().is_some_and(|(_, writer)| writer.is_some()))
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        match self {
            Self::Part(part) => part.write(batch)?,
            Self::Parts(parts) => {
                if let Some((_, Some(writer))) = &mut parts.current {
                    writer.write(batch)?;
                }
            }
            Self::Json(json) => {
                for row in rows_of(batch) {
                    let comma = if json.rows > 0 { ",\n" } else { "\n" };
                    write!(json.file, "{comma}{}", serde_json::Value::Object(row))?;
                    json.rows += 1;
                }
            }
            Self::Stdout { format: Format::Json, .. } => {
                let mut out = std::io::stdout().lock();
                for row in rows_of(batch) {
                    writeln!(out, "{}", serde_json::Value::Object(row))?;
                }
            }
            Self::Stdout { header, .. } => {
                let mut out = std::io::stdout().lock();
                if std::mem::take(header) {
                    let names: Vec<&str> =
                        batch.schema_ref().fields().iter().map(|f| f.name().as_str()).collect();
                    writeln!(out, "{}", names.join(","))?;
                }
                for row in rows_of(batch) {
                    let text = |value: &serde_json::Value| match value.as_str() {
                        Some(text) if text.contains([',', '"', '\n']) => {
                            format!("\"{}\"", text.replace('"', "\"\""))
                        }
                        Some(text) => text.to_owned(),
                        None => value.to_string(),
                    };
                    let cells: Vec<String> =
                        batch.schema_ref().fields().iter().map(|f| text(&row[f.name()])).collect();
                    writeln!(out, "{}", cells.join(","))?;
                }
            }
        }
        Ok(())
    }

    /// Closes the output and says what was left alone.
    pub(super) fn finish(self) -> Result<String> {
        match self {
            Self::Part(part) => drop(part.finish()?),
            Self::Json(json) => {
                let JsonFile { claim, mut file, rows } = *json;
                file.write_all(b"\n]\n")?;
                claim.commit(vec![file], rows)?;
            }
            Self::Stdout { .. } => std::io::stdout().flush()?,
            Self::Parts(mut parts) => {
                parts.close()?;
                let (finished, others) = (parts.finished, parts.others);
                return Ok(format!("; {finished} parts finished before, {others} left to other shards"));
            }
        }
        Ok(String::new())
    }
}

/// The rows of a batch as JSON objects.
fn rows_of(batch: &RecordBatch) -> impl Iterator<Item = serde_json::Map<String, serde_json::Value>> + '_ {
    let cell = |column: &ArrayRef, row: usize| {
        let any = column.as_any();
        match (any.downcast_ref::<StringArray>(), any.downcast_ref::<Float64Array>()) {
            (Some(text), _) => text.value(row).into(),
            (_, Some(numbers)) => numbers.value(row).into(),
            _ => serde_json::Value::Null,
        }
    };
    (0..batch.num_rows()).map(move |row| {
        let fields = batch.schema_ref().fields().iter().zip(batch.columns());
        fields.map(|(field, column)| (field.name().clone(), cell(column, row))).collect()
    })
}
