//! Where scores go: VCF with INFO fields, or tables.

use super::super::embed::usage;
use anyhow::{Context, Result};
use mamba_datasets::AtomicFile;
use mamba_datasets::job::arrow_array::{ArrayRef, Float32Array, RecordBatch, StringArray, UInt64Array};
use mamba_datasets::job::arrow_schema::{DataType, Field, Schema, SchemaRef};
use mamba_datasets::job::{self, Claim, Claimed, Directory, Job, Part, PartWriter, Shard};
use mamba_genomics::variants::{Score, Skip, VcfRecord, vcf};
use noodles::bgzf;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a table that are collected before they are written.
const BUFFERED_ROWS: usize = 4096;

/// An alternate allele of the output.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row {
    Scored(Score),
    Skipped(Skip),
}

impl Row {
    /// What the manifest counts it as.
    fn kind(&self) -> &'static str {
        match self {
            Self::Scored(_) => "scored",
            Self::Skipped(skip) => skip.word(),
        }
    }
}

/// The INFO definitions, with what the scores were made by; that of the distance only where it is worked out.
pub(super) fn header(header: &[String], reference: &Path, model: &str, distance: bool) -> Vec<String> {
    let reference = reference.file_name().unwrap_or_default().to_string_lossy().replace('"', "'");
    let field = |id: &str, kind: &str, text: &str| {
        format!(
            "##INFO=<ID={id},Number=A,Type={kind},Description=\"{text}\",Source=\"mamba-genomics\",Version=\"{}\">",
            env!("CARGO_PKG_VERSION")
        )
    };
    let model = &model[..model.len().min(12)];
    let [llr, dist, skip] = vcf::KEYS;
    let ratio = format!(
        "Log-likelihood ratio of the alternate against the reference allele, natural logarithm, model {model}, {reference}"
    );
    let mut lines = vec![field(llr, "Float", &ratio)];
    if distance {
        let text = "Distance between the mean vectors of the two haplotypes around the allele";
        lines.push(field(dist, "Float", text));
    }
    lines.push(field(skip, "String", "Why an allele has no score"));
    vcf::header_with(header, &lines)
}

/// What `--out` asks for.
pub(super) enum Output {
    Stdout,
    Vcf { path: PathBuf, bgzip: bool },
    Table(PathBuf),
    Parts { directory: PathBuf, shard: Shard, records: u64 },
}

impl Output {
    pub(super) fn of(out: &Path, shard: Option<Shard>, records: u64) -> Result<Self> {
        let path = out.to_owned();
        let name = out.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let output = if out == Path::new("-") {
            Self::Stdout
        } else if !out.is_dir() && name.ends_with(".vcf") {
            Self::Vcf { path, bgzip: false }
        } else if !out.is_dir() && (name.ends_with(".vcf.gz") || name.ends_with(".vcf.bgz")) {
            Self::Vcf { path, bgzip: true }
        } else if out.is_dir() || out.extension().is_none() {
            return Ok(Self::Parts { directory: path, shard: shard.unwrap_or_default(), records });
        } else {
            match job::Format::from_path(out) {
                Ok(job::Format::Parquet | job::Format::Csv | job::Format::Tsv) => Self::Table(path),
                _ => {
                    let expected = ".vcf, .vcf.gz, .parquet, .csv, .tsv, or a directory";
                    return Err(usage(format!("--out {}: expected {expected}", out.display())).into());
                }
            }
        };
        match shard {
            Some(_) => {
                let out = out.display();
                Err(usage(format!("--shard needs a directory of parts, and --out {out} is one file")).into())
            }
            None => Ok(output),
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self, Self::Parts { .. })
    }

    /// Opens the output; none if it is finished already.
    pub(super) fn open(self, job: &Job, header: &[String]) -> Result<Option<Opened>> {
        let sink = match self {
            Self::Stdout => {
                Sink::Vcf(VcfSink::new(Text::Stdout(BufWriter::new(std::io::stdout())), None, header)?)
            }
            Self::Vcf { path, bgzip } => match job.claim(&path, &[], None)? {
                Claimed::Finished(_) => return Ok(None),
                Claimed::Open(claim) => {
                    let file = AtomicFile::create(&path)?;
                    let text = match bgzip {
                        true => Text::Bgzip(Box::new(bgzf::io::Writer::new(file))),
                        false => Text::Plain(file),
                    };
                    Sink::Vcf(VcfSink::new(text, Some(claim), header)?)
                }
            },
            Self::Table(path) => match job.file(&path, &schema())? {
                Part::Finished(_) => return Ok(None),
                Part::Open(writer) => Sink::Table(Table::new(writer)),
            },
            Self::Parts { directory, shard, records } => {
                let directory = job.directory(&directory, job::Format::Parquet, shard)?;
                let parts = Parts { directory, records, part: 0, inside: 0, ours: false };
                return Ok(Some(Opened { sink: None, parts: Some(parts) }));
            }
        };
        Ok(Some(Opened { sink: Some(sink), parts: None }))
    }
}

/// An output that rows are written to.
pub(super) struct Opened {
    sink: Option<Sink>,
    parts: Option<Parts>,
}

enum Sink {
    Vcf(VcfSink),
    Table(Table),
}

/// Cuts the records into parts by their number alone, so that all shards agree.
struct Parts {
    directory: Directory,
    records: u64,
    part: usize,
    /// Records of the part so far.
    inside: u64,
    /// Whether the part is made here.
    ours: bool,
}

impl Opened {
    /// Whether the next record begins another part.
    pub(super) fn part_is_full(&self) -> bool {
        self.parts.as_ref().is_some_and(|parts| parts.inside == parts.records)
    }

    /// Counts a record, and says whether it is to be scored here.
    pub(super) fn next_record(&mut self, finished: &mut u64, others: &mut u64) -> Result<bool> {
        let Some(parts) = &mut self.parts else { return Ok(true) };
        if parts.inside == parts.records {
            parts.part += 1;
            parts.inside = 0;
        }
        if parts.inside == 0 {
            parts.ours = false;
            if !parts.directory.owns(parts.part) {
                *others += 1;
            } else {
                match parts.directory.part(parts.part, &schema())? {
                    Part::Finished(_) => *finished += 1,
                    Part::Open(writer) => {
                        parts.ours = true;
                        self.sink = Some(Sink::Table(Table::new(writer)));
                    }
                }
            }
        }
        parts.inside += 1;
        Ok(parts.ours)
    }

    pub(super) fn write(&mut self, record: &VcfRecord, rows: &[Row]) -> Result<()> {
        match &mut self.sink {
            Some(Sink::Vcf(sink)) => sink.write(record, rows),
            Some(Sink::Table(table)) => table.write(record, rows),
            None => Ok(()),
        }
    }

    /// Finishes the present output, and says whether there was one.
    pub(super) fn close(&mut self) -> Result<bool> {
        match self.sink.take() {
            Some(Sink::Vcf(sink)) => sink.finish()?,
            Some(Sink::Table(table)) => table.finish()?,
            None => return Ok(false),
        }
        Ok(true)
    }
}

/// Lines of VCF text.
enum Text {
    Stdout(BufWriter<std::io::Stdout>),
    Plain(AtomicFile),
    Bgzip(Box<bgzf::io::Writer<AtomicFile>>),
}

struct VcfSink {
    text: Text,
    claim: Option<Claim>,
    rows: u64,
}

impl VcfSink {
    fn new(text: Text, claim: Option<Claim>, header: &[String]) -> Result<Self> {
        let mut sink = Self { text, claim, rows: 0 };
        header.iter().try_for_each(|line| sink.line(line))?;
        Ok(sink)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let written = match &mut self.text {
            Text::Stdout(out) => writeln!(out, "{line}"),
            Text::Plain(file) => writeln!(file, "{line}"),
            Text::Bgzip(file) => writeln!(file, "{line}"),
        };
        written.with_context(|| self.problem())
    }

    fn problem(&self) -> String {
        match &self.claim {
            Some(claim) => format!("cannot write {}", claim.output().display()),
            None => "cannot write to standard output".into(),
        }
    }

    fn write(&mut self, record: &VcfRecord, rows: &[Row]) -> Result<()> {
        let each = |value: &dyn Fn(&Row) -> String| rows.iter().map(value).collect::<Vec<_>>().join(",");
        let number = |score: Option<f32>| score.map_or(".".to_string(), |score| format!("{score:.6}"));
        let score = |row: &Row| match row {
            Row::Scored(score) => Some(*score),
            Row::Skipped(_) => None,
        };
        let [llr, dist, skip] = vcf::KEYS;
        let mut fields = Vec::new();
        if !record.alternates.is_empty() {
            if rows.iter().any(|row| score(row).is_some()) {
                fields.push((llr, each(&|row| number(score(row).map(|s| s.llr)))));
                if rows.iter().filter_map(score).any(|score| score.distance.is_some()) {
                    fields.push((dist, each(&|row| number(score(row).and_then(|s| s.distance)))));
                }
            }
            if rows.iter().any(|row| score(row).is_none()) {
                let reason = |row: &Row| match row {
                    Row::Scored(_) => ".".to_string(),
                    Row::Skipped(skip) => skip.to_string(),
                };
                fields.push((skip, each(&reason)));
            }
        }
        self.rows += 1;
        if let Some(claim) = &mut self.claim {
            rows.iter().for_each(|row| claim.count(row.kind(), 1));
        }
        self.line(&record.with_info(&fields))
    }

    fn finish(self) -> Result<()> {
        let problem = self.problem();
        let file = match self.text {
            Text::Stdout(mut out) => return out.flush().context(problem),
            Text::Plain(file) => file,
            Text::Bgzip(file) => file.finish().context(problem)?,
        };
        if let Some(claim) = self.claim {
            claim.commit(vec![file], self.rows)?;
        }
        Ok(())
    }
}

/// `chrom`, `pos1` (as in VCF), `id`, `ref`, `alt`, `llr`, `distance`, `skip`: a row for each alternate allele.
fn schema() -> SchemaRef {
    let field = |name: &str, kind: DataType, optional: bool| Field::new(name, kind, optional);
    Arc::new(Schema::new(vec![
        field("chrom", DataType::Utf8, false),
        field("pos1", DataType::UInt64, false),
        field("id", DataType::Utf8, true),
        field("ref", DataType::Utf8, false),
        field("alt", DataType::Utf8, true),
        field("llr", DataType::Float32, true),
        field("distance", DataType::Float32, true),
        field("skip", DataType::Utf8, true),
    ]))
}

struct Table {
    writer: PartWriter,
    rows: Vec<(Arc<VcfRecord>, usize, Row)>,
}

impl Table {
    fn new(writer: PartWriter) -> Self {
        Self { writer, rows: Vec::new() }
    }

    fn write(&mut self, record: &VcfRecord, rows: &[Row]) -> Result<()> {
        // The line itself is not needed any more.
        let record = Arc::new(VcfRecord { text: String::new(), ..record.clone() });
        rows.iter().for_each(|row| self.writer.count(row.kind(), 1));
        self.rows.extend(rows.iter().enumerate().map(|(i, &row)| (Arc::clone(&record), i, row)));
        if self.rows.len() >= BUFFERED_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let text = |value: &dyn Fn(&VcfRecord, usize, Row) -> Option<String>| -> ArrayRef {
            Arc::new(rows.iter().map(|(record, i, row)| value(record, *i, *row)).collect::<StringArray>())
        };
        let number = |value: &dyn Fn(Score) -> Option<f32>| -> ArrayRef {
            let value = |row: &Row| match row {
                Row::Scored(score) => value(*score),
                Row::Skipped(_) => None,
            };
            Arc::new(rows.iter().map(|(.., row)| value(row)).collect::<Float32Array>())
        };
        let columns = vec![
            text(&|record, _, _| Some(record.chrom.clone())),
            Arc::new(rows.iter().map(|(record, ..)| Some(record.pos1)).collect::<UInt64Array>()),
            text(&|record, _, _| Some(record.id.clone()).filter(|id| id != ".")),
            text(&|record, _, _| Some(record.reference.clone())),
            text(&|record, i, _| record.alternates.get(i).cloned()),
            number(&|score| Some(score.llr)),
            number(&|score| score.distance),
            text(&|_, _, row| match row {
                Row::Scored(_) => None,
                Row::Skipped(skip) => Some(skip.to_string()),
            }),
        ];
        self.writer.write(&RecordBatch::try_new(schema(), columns)?)?;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.writer.finish()?;
        Ok(())
    }
}
