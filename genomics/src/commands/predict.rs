//! `predict`: sequences to classes or values, by a fine-tuned model.

use super::predictions::Table;
use anyhow::{Context, Result, bail};
use mamba_core::Error;
use mamba_core::cli::{self, CommonArgs, HintExt};
use mamba_core::progress::short;
use mamba_core::train::Stop;
use mamba_datasets::job::{self, Directory, Fingerprint, Job, Part, PartWriter, Shard};
use mamba_datasets::prefetch;
use mamba_genomics::embed::Sequences;
use mamba_genomics::fasta::Duplicates;
use mamba_genomics::finetune::{Predictor, Target};
use mamba_genomics::labelled::{Columns, Row, Rows};
use mamba_genomics::windows::{WindowSpec, Windows};
use serde_json::json;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const PROGRAM: &str = "mamba-genomics predict";
/// Sequences that are read while the model computes.
const READ_AHEAD: usize = 256;
/// Bases, and sequences, that go through the model together.
const CHUNK_BASES: usize = 1 << 17;
const CHUNK_SEQUENCES: usize = 4096;

#[derive(clap::Args)]
#[command(after_long_help = "\
Every sequence becomes a row: id, the predicted class with the probabilities of all classes, or the predicted value.
FASTA records also get their positions (0-based, end not included).

Memory does not grow with the input. A finished output is left alone when the same command runs again, and refused when
input or model have changed.

Examples:
  mamba-genomics predict sequences.fa.gz --checkpoint runs/enhancers --out enhancers.parquet
  mamba-genomics predict chromosome.fa --checkpoint runs/enhancers --window 200 --overlap 100 --out windows.csv
  mamba-genomics predict library.csv --sequence-column insert --checkpoint runs/mpra --out parts --shard 0/4")]
pub(crate) struct Args {
    /// FASTA files (plain, gzip, bgzip, - for standard input), or tables (.csv, .tsv, .parquet, .csv.gz, .tsv.gz)
    #[arg(required = true, value_name = "FILE")]
    inputs: Vec<PathBuf>,

    /// Folder of a fine-tuning run
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Output: a file (.parquet, .csv, .tsv), or a directory for parts
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// Replace output that was made from something else
    #[arg(long)]
    overwrite: bool,

    /// Column of the sequences in tables
    #[arg(long, value_name = "NAME", default_value = "sequence")]
    sequence_column: String,

    /// Column of the names in tables [default: rows are numbered]
    #[arg(long, value_name = "NAME")]
    id_column: Option<String>,

    /// Cut FASTA records into windows of so many bases, each with a prediction of its own
    #[arg(long, value_name = "BASES")]
    window: Option<usize>,

    /// Bases that neighbouring windows share
    #[arg(long, value_name = "BASES", default_value_t = 0, requires = "window")]
    overlap: usize,

    /// Longest sequence that is taken whole; a longer one is an error
    #[arg(long, value_name = "BASES", default_value_t = 1 << 20)]
    longest: usize,

    /// Make every N-th part from number I on, I from 0
    #[arg(long, value_name = "I/N", help_heading = "Work")]
    shard: Option<Shard>,

    /// Sequences in a part
    #[arg(long, default_value_t = 1 << 18, value_name = "N", help_heading = "Work")]
    part_rows: usize,

    #[command(flatten)]
    common: CommonArgs,
}

/// A sequence to be predicted.
struct Item {
    id: String,
    span: Option<Range<u64>>,
    ids: Vec<u8>,
}

/// What a run has done.
#[derive(Default)]
struct Done {
    rows: u64,
    bases: u64,
    written: u64,
    finished: u64,
    others: u64,
    interrupted: bool,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let started = Instant::now();
    let predictor = Predictor::open(&args.checkpoint, args.common.dtype(), &device)
        .hint("train a model with `mamba-genomics finetune`")?;
    let done = predict(&args, &predictor).map_err(|error| {
        match error.downcast_ref::<mamba_genomics::Error>().and_then(mamba_genomics::Error::hint) {
            Some(hint) => Err::<(), _>(error).hint(hint).expect_err("it is an error"),
            None => error,
        }
    })?;
    if done.interrupted {
        eprintln!(
            "stopped: finished parts are kept, the unfinished one is dropped; the same command goes on"
        );
        return Ok(ExitCode::from(cli::INTERRUPTED));
    }
    let seconds = started.elapsed().as_secs_f64();
    if args.common.format == cli::Format::Json {
        let summary = json!({
            "out": args.out, "checkpoint": args.checkpoint, "rows": done.rows, "bases": done.bases, "seconds": seconds,
            "outputs": { "written": done.written, "finished_before": done.finished, "of_other_shards": done.others },
        });
        writeln!(std::io::stdout(), "{summary}").context("cannot write the summary")?;
    }
    if !args.common.quiet {
        let out = args.out.display();
        if done.finished > 0 {
            eprintln!("{out}: {} outputs finished before: left as they are", done.finished);
        }
        if done.written > 0 {
            let rate = short(done.bases as f64 / seconds.max(1e-9));
            eprintln!("{out}: {} rows in {} outputs; {rate} bases/s", done.rows, done.written);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn predict(args: &Args, predictor: &Predictor) -> Result<Done> {
    if args.part_rows == 0 || args.longest == 0 {
        return Err(usage("--part-rows and --longest must be at least 1"));
    }
    let tables = args.inputs.iter().filter(|path| is_table(path)).count();
    if tables > 0 && tables < args.inputs.len() {
        return Err(usage("either tables or FASTA files, not both in one run"));
    }
    let inputs = if tables > 0 { args.inputs.clone() } else { super::sequence_files(&args.inputs)? };
    let columns =
        Columns { sequence: args.sequence_column.clone(), id: args.id_column.clone(), ..Columns::default() };
    let directory = args.out.is_dir() || args.out.extension().is_none();
    if !directory && args.shard.is_some() {
        let out = args.out.display();
        return Err(usage(format!("--shard needs a directory of parts, and --out {out} is one file")));
    }
    if inputs.iter().any(|path| path == Path::new("-")) && directory {
        return Err(usage("parts need input files, a stream can be read only once"));
    }
    let job = Job::new(PROGRAM, fingerprint(args, &inputs, predictor, directory)?).overwrite(args.overwrite);
    let mut table = Table::new(predictor.target(), tables == 0, false);
    let mut output = match directory {
        false => match job.file(&args.out, table.schema())? {
            Part::Finished(manifest) => {
                return Ok(Done { rows: manifest.rows, finished: 1, ..Done::default() });
            }
            Part::Open(writer) => Output { directory: None, writer: Some(writer), part: 0, rows: 0 },
        },
        true => {
            let directory = job.directory(&args.out, job::Format::Parquet, args.shard.unwrap_or_default())?;
            Output { directory: Some(directory), writer: None, part: 0, rows: args.part_rows }
        }
    };
    let items: Box<dyn Iterator<Item = mamba_genomics::Result<Item>> + Send> = match (tables > 0, args.window)
    {
        (true, _) => Box::new(Tables { files: inputs.into_iter(), columns, rows: None }),
        (false, window) => {
            // A record that fits is one window; the first window of a longer one shows that it does not.
            let whole = args.longest.saturating_add(1);
            let spec = WindowSpec::new(window.unwrap_or(whole), args.overlap).map_err(usage)?;
            let windows = Windows::new(Sequences::files(inputs, Duplicates::Error), spec);
            Box::new(windows.map(|window| {
                window.map(|w| Item {
                    id: w.record.name.clone(),
                    span: Some(w.window.start0..w.window.end0),
                    ids: w.ids,
                })
            }))
        }
    };
    let (mut done, stop) = (Done::default(), Stop::on_signals()?);
    let mut progress = args.common.progress(None, "bp");
    let (mut chunk, mut bases) = (Vec::new(), 0);
    let mut items = prefetch(items, READ_AHEAD)?;
    loop {
        let item = items.next().transpose()?;
        let last = item.is_none();
        if let Some(item) = item {
            if args.window.is_none() && item.ids.len() > args.longest {
                let (id, longest) = (&item.id, args.longest);
                bail!(
                    "sequence {id:?} has more than {longest} bases; --window cuts it, --longest takes it whole"
                );
            }
            bases += item.ids.len();
            chunk.push(item);
        }
        let room = if directory { args.part_rows.min(CHUNK_SEQUENCES) } else { CHUNK_SEQUENCES };
        if !(last || bases >= CHUNK_BASES || chunk.len() >= room || output.ends_after(chunk.len())) {
            continue;
        }
        if stop.requested() {
            return Ok(Done { interrupted: true, ..done });
        }
        if !chunk.is_empty() && output.begin(table.schema(), &mut done)? {
            let sequences: Vec<&[u8]> = chunk.iter().map(|item: &Item| item.ids.as_slice()).collect();
            for (item, row) in chunk.iter().zip(predictor.predict(&sequences)?) {
                table.add(&item.id, item.span.clone(), None, &row)?;
            }
            done.bases += bases as u64;
        }
        output.write(&mut table, chunk.len(), last, &mut done)?;
        progress.inc(bases as u64);
        (chunk, bases) = (Vec::new(), 0);
        if last {
            break;
        }
    }
    progress.finish();
    Ok(done)
}

/// One file, or the parts of a directory, cut by their number of rows alone so that all shards agree.
struct Output {
    directory: Option<Directory>,
    writer: Option<PartWriter>,
    /// Rows so far, of all shards' parts.
    part: usize,
    /// Rows in a part; 0 for one file.
    rows: usize,
}

impl Output {
    /// Whether the part is full after `n` more rows.
    fn ends_after(&self, n: usize) -> bool {
        self.rows > 0 && self.part % self.rows + n >= self.rows
    }

    /// Opens the part that the next row belongs to, if it begins here; whether its rows are to be made.
    fn begin(&mut self, schema: &job::arrow_schema::SchemaRef, done: &mut Done) -> Result<bool> {
        if let Some(directory) = &self.directory
            && self.part.is_multiple_of(self.rows)
        {
            let part = self.part / self.rows;
            if !directory.owns(part) {
                done.others += 1;
            } else {
                match directory.part(part, schema)? {
                    Part::Finished(_) => done.finished += 1,
                    Part::Open(writer) => self.writer = Some(writer),
                }
            }
        }
        Ok(self.writer.is_some())
    }

    /// Writes the rows of the table, if this part is made; `n` rows have been read. Finishes a full part, and the last.
    fn write(&mut self, table: &mut Table, n: usize, last: bool, done: &mut Done) -> Result<()> {
        self.part += n;
        if table.len() > 0
            && let Some(writer) = &mut self.writer
        {
            writer.write(&table.take()?)?;
        }
        let full = self.rows > 0 && self.part.is_multiple_of(self.rows);
        if (last || full)
            && let Some(writer) = self.writer.take()
        {
            done.rows += writer.finish()?.rows;
            done.written += 1;
        }
        Ok(())
    }
}

/// The rows of some tables, opened one after the other.
struct Tables {
    files: std::vec::IntoIter<PathBuf>,
    columns: Columns,
    rows: Option<Rows>,
}

impl Iterator for Tables {
    type Item = mamba_genomics::Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.as_mut().and_then(Rows::next) {
                return Some(row.map(|Row { id, ids, .. }| Item { id, span: None, ids }));
            }
            match Rows::open(&self.files.next()?, &self.columns, false) {
                Ok(rows) => self.rows = Some(rows),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn is_table(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    [".csv", ".tsv", ".parquet"].iter().any(|ending| name.ends_with(ending))
}

/// Everything that decides the output's bytes.
fn fingerprint(
    args: &Args,
    inputs: &[PathBuf],
    predictor: &Predictor,
    directory: bool,
) -> Result<Fingerprint> {
    let mut fingerprint = Fingerprint::new();
    for path in inputs {
        if path == Path::new("-") {
            let now = std::time::SystemTime::now();
            let now = now.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
            fingerprint.add_hash("standard input", format!("read at {now} ns"));
        } else {
            std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            fingerprint.add_input(path)?;
        }
    }
    let kind = match predictor.target() {
        Target::Classes { .. } => "classes",
        Target::Value { .. } => "values",
    };
    fingerprint
        .add_hash("model", predictor.hash())
        .add_hash("version", env!("CARGO_PKG_VERSION"))
        .set_config(&json!({
            "predicts": kind, "sequence_column": args.sequence_column, "id_column": args.id_column,
            "window": args.window, "overlap": args.overlap,
            "dtype": format!("{:?}", args.common.dtype).to_lowercase(),
            "part_rows": directory.then_some(args.part_rows),
        }))?;
    Ok(fingerprint)
}

/// A wrong flag: exit code 2.
fn usage(error: impl ToString) -> anyhow::Error {
    Error::Config(error.to_string()).into()
}
