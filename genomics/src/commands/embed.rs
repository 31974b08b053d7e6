//! `embed`: sequences to vectors.

mod pipeline;
mod table;

use anyhow::{Context, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use mamba_core::Error;
use mamba_core::cli::{self, HintExt};
use mamba_core::progress::short;
use mamba_core::train::Stop;
use mamba_datasets::job::{self, Fingerprint, Job, Part, Shard};
use mamba_genomics::CaduceusCheckpoint;
use mamba_genomics::embed::{EmbedOptions, Embedder, Layer, Pool, Sequences, StrandChoice};
use mamba_genomics::fasta::{Duplicates, IndexedFasta};
use mamba_genomics::regions::{self, Region};
use mamba_genomics::tokenizer::{AMBIGUITY_CODES, SequenceCounts};
use mamba_genomics::windows::WindowSpec;
use pipeline::{Done, Output};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use table::Rows;

const PROGRAM: &str = "mamba-genomics embed";

#[derive(clap::Args)]
#[command(after_long_help = "\
Every record, window or base becomes a row: id, positions (0-based, end not included, as in BED), vector.

Files are plain, gzip or bgzip. Lower case reads as upper case, U as T, gaps and IUPAC ambiguity codes as N; how many
of each there were is said at the end.

A finished output is left alone when the same command runs again, and refused when input, model or settings have
changed. The same input and model give the same bytes, whatever the threads, batches and shards.

Example:
  mamba-genomics embed phages.fa.gz --checkpoint runs/phages --out phages.parquet")]
pub(crate) struct Args {
    /// FASTA files or names of data sets, or - for standard input
    #[arg(required = true, value_name = "FASTA")]
    inputs: Vec<PathBuf>,

    /// Folder of the model [default: the small model that comes with this program]
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,

    /// Output: a file (.parquet, .npy with ids beside it, .csv, .tsv), or a directory for parts
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// Replace output that was made from something else
    #[arg(long)]
    overwrite: bool,

    /// Only these parts of records, each as a record of its own: a BED file (0-based, end not included; names from its
    /// fourth column, strands from its sixth), or a list such as chr1:1001-2000,chr2 (1-based, end included)
    #[arg(long, value_name = "BED|LIST")]
    regions: Option<String>,

    /// One row for each record (or region), or for each window
    #[arg(long, value_enum, default_value_t, value_name = "UNIT", help_heading = "Vectors")]
    per: Per,

    /// How the vectors of bases become a row; none: one row for each base
    #[arg(long, value_enum, default_value_t, value_name = "HOW", help_heading = "Vectors")]
    pooling: Pool,

    /// Number of blocks after which vectors are taken (0: the embedding), or last: with the final norm
    #[arg(long, default_value_t, value_name = "K|last", help_heading = "Vectors")]
    layer: Layer,

    /// Which strands a vector tells of
    #[arg(long, value_enum, default_value_t, value_name = "STRANDS", help_heading = "Vectors")]
    strand: StrandChoice,

    /// Bases that the model sees at once; longer records are cut into windows of this length. none: the model sees each
    /// record whole, in memory of 8 bytes for each base and channel (1 Mbp at d_model 256: 2 GiB)
    #[arg(long, default_value = "8192", value_name = "BASES|none", help_heading = "Vectors")]
    window: WindowChoice,

    /// Bases that neighbouring windows share; of a record's vector half on each side is context only
    #[arg(long, default_value_t = 512, value_name = "BASES", help_heading = "Vectors")]
    overlap: usize,

    /// Most bases in a batch, padding counted; changes memory and speed, never the result
    #[arg(long, default_value_t = 8192, value_name = "BASES", help_heading = "Work")]
    batch_tokens: usize,

    /// Make every N-th part from number I on, I from 0: shard 0/4, 1/4, 2/4 and 3/4 make all parts
    #[arg(long, value_name = "I/N", help_heading = "Work")]
    shard: Option<Shard>,

    /// A part ends with the record (for windows and bases: the window) that fills it up to so many bases
    #[arg(long, default_value_t = 4 << 20, value_name = "BASES", help_heading = "Work")]
    part_bases: u64,

    /// Format of the parts
    #[arg(long, default_value = "parquet", value_parser = part_format(), value_name = "FORMAT", help_heading = "Work")]
    part_format: job::Format,

    #[command(flatten)]
    common: cli::CommonArgs,
}

impl Args {
    /// One file into `out` by the model in `checkpoint`: one vector for each 1,024 bases.
    pub(crate) fn for_run(fasta: &Path, checkpoint: &Path, out: &Path, common: cli::CommonArgs) -> Self {
        Self {
            inputs: vec![fasta.to_path_buf()],
            checkpoint: Some(checkpoint.to_path_buf()),
            out: out.to_path_buf(),
            overwrite: true,
            regions: None,
            per: Per::Window,
            pooling: Pool::default(),
            layer: Layer::default(),
            strand: StrandChoice::default(),
            window: WindowChoice(Some(1024)),
            overlap: 0,
            batch_tokens: 16_384,
            shard: None,
            part_bases: 4 << 20,
            part_format: job::Format::Parquet,
            common,
        }
    }
}

/// Bases in a window; none for whole records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowChoice(Option<usize>);

impl std::str::FromStr for WindowChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            _ => text
                .parse()
                .map(|n| Self(Some(n)))
                .map_err(|_| "expected \"none\" or a number of bases".into()),
        }
    }
}

/// Bases of a whole record that go through the model together.
const CHUNK: usize = 1 << 15;

/// What gets a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Per {
    #[default]
    Record,
    Window,
}

fn part_format() -> impl TypedValueParser<Value = job::Format> {
    PossibleValuesParser::new(["parquet", "npy", "csv", "tsv"])
        .try_map(|ending| job::Format::from_path(&Path::new("part").with_extension(ending)))
}

pub(crate) fn run(mut args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    args.inputs = super::sequence_files(&args.inputs)?;
    let started = Instant::now();
    match embed(&args, &device) {
        Ok(outcome) if outcome.done.interrupted => {
            eprintln!(
                "stopped: {} finished and kept, the unfinished output dropped; the same command goes on",
                plural(outcome.done.written + outcome.done.finished, "part")
            );
            Ok(ExitCode::from(cli::INTERRUPTED))
        }
        Ok(outcome) => {
            report(&args, &outcome, started)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(with_hint(error)),
    }
}

/// What came of a run.
struct Outcome {
    checkpoint: CaduceusCheckpoint,
    dim: usize,
    done: Done,
}

fn embed(args: &Args, device: &candle_core::Device) -> Result<Outcome> {
    let spec = match args.window {
        WindowChoice(Some(window)) => WindowSpec::new(window, args.overlap),
        WindowChoice(None) => WindowSpec::new(u32::MAX as usize, 0),
    };
    let spec = spec.map_err(usage)?;
    if args.window == WindowChoice(None) && args.per == Per::Window {
        return Err(usage("--per window needs a window: --window none sees each record whole").into());
    }
    let (directory, format) = destination(args)?;
    if args.per == Per::Window && args.pooling == Pool::None {
        return Err(usage(
            "--per window needs --pooling mean or max: with none there is a row for each base",
        )
        .into());
    }
    if args.batch_tokens == 0 || args.part_bases == 0 {
        return Err(usage("--batch-tokens and --part-bases must be at least 1").into());
    }
    let is_stream = args.inputs.iter().any(|path| is_stream(path));
    if is_stream && directory {
        let out = args.out.display();
        return Err(
            usage(format!("--out {out}: parts need input files, a stream can be read only once")).into()
        );
    }

    let checkpoint = CaduceusCheckpoint::open(args.checkpoint.as_deref())
        .hint("train a model with `mamba-genomics train`, or leave --checkpoint out for the bundled one")?;
    let options = EmbedOptions { pooling: args.pooling, layer: args.layer, strand: args.strand };
    let mut embedder = Embedder::new(&checkpoint, options, args.common.dtype(), device)?;
    if args.window == WindowChoice(None) {
        embedder = embedder.in_chunks_of(CHUNK);
    }
    let regions = args.regions.as_deref().map(|argument| open_regions(&args.inputs, argument)).transpose()?;
    let region_list: Option<Arc<[Region]>> = regions.as_ref().map(|(_, regions)| regions.as_slice().into());

    let fingerprint = fingerprint(args, &checkpoint, directory, region_list.as_deref())?;
    let job = Job::new(PROGRAM, fingerprint).overwrite(args.overwrite);
    let rows = Rows::new(args.per, args.pooling, region_list, embedder.dim());
    let shard = args.shard.unwrap_or_default();
    let made_directory = directory && !args.out.exists();
    let result = (|| {
        let output = match directory {
            false => match job.file(&args.out, rows.schema())? {
                Part::Finished(manifest) => return Ok(Done::finished(&manifest)),
                Part::Open(writer) => Output::File(Box::new(writer)),
            },
            true => {
                Output::Parts { directory: job.directory(&args.out, format, shard)?, bases: args.part_bases }
            }
        };
        let (sequences, total) = match regions {
            Some((fasta, regions)) => {
                let total = regions.iter().map(Region::len).sum();
                (Sequences::regions(fasta, regions), Some(total))
            }
            None if is_stream => (Sequences::files(&args.inputs, Duplicates::Error), None),
            None => {
                // Hours of work should not end at a bad character in the last line.
                let total = Sequences::files(&args.inputs, Duplicates::Error).check()?.bases;
                (Sequences::files(&args.inputs, Duplicates::Allow), Some(total))
            }
        };
        // How much of it is this shard's shows on the way.
        let progress = args.common.progress(total.filter(|_| shard == Shard::WHOLE), "bp");
        let stop = Stop::on_signals()?;
        pipeline::run(sequences, &embedder, rows, spec, args.batch_tokens, output, progress, &stop)
    })();
    if made_directory {
        // Succeeds only while it is empty.
        let _ = std::fs::remove_dir(&args.out);
    }
    Ok(Outcome { checkpoint, dim: embedder.dim(), done: result? })
}

/// Whether the output is a directory of parts, and the format of its files.
fn destination(args: &Args) -> Result<(bool, job::Format)> {
    let out = &args.out;
    if out.is_dir() || out.extension().is_none() {
        return Ok((true, args.part_format));
    }
    if args.shard.is_some() {
        let out = out.display();
        return Err(usage(format!("--shard needs a directory of parts, and --out {out} is one file")).into());
    }
    Ok((false, job::Format::from_path(out).map_err(usage)?))
}

/// Input that can be read only once.
pub(crate) fn is_stream(path: &Path) -> bool {
    path == Path::new("-") || path.metadata().is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

fn open_regions(inputs: &[PathBuf], argument: &str) -> Result<(IndexedFasta, Vec<Region>)> {
    let fasta = IndexedFasta::open(inputs)?;
    let regions = regions::from_argument(argument, fasta.records())?;
    Ok((fasta, regions))
}

/// Everything that decides the output's bytes.
fn fingerprint(
    args: &Args,
    checkpoint: &CaduceusCheckpoint,
    directory: bool,
    regions: Option<&[Region]>,
) -> Result<Fingerprint> {
    let mut fingerprint = Fingerprint::new();
    for path in &args.inputs {
        if is_stream(path) {
            // Its content is not known before it is read, so no two streams are taken for the same.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
            fingerprint.add_hash(format!("stream {}", path.display()), format!("read at {now} ns"));
        } else {
            // Opened first for the message of a missing file.
            std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            fingerprint.add_input(path)?;
        }
    }
    let regions = regions.map(|regions| {
        let line = |r: &Region| {
            let (name, strand) = (r.name.as_deref().unwrap_or(""), r.strand);
            format!("{}\t{}\t{}\t{name}\t{strand}\n", r.record_name, r.start0, r.end0)
        };
        let text: String = regions.iter().map(line).collect();
        format!("{} regions, sha256 {}", regions.len(), job::sha256(text.as_bytes()))
    });
    fingerprint
        .add_hash("model", checkpoint.hash()?)
        .add_hash("version", env!("CARGO_PKG_VERSION"))
        .set_config(&json!({
            "per": args.per, "pooling": args.pooling, "layer": args.layer, "strand": args.strand,
            "window": args.window.0, "overlap": args.window.0.map(|_| args.overlap), "regions": regions,
            "dtype": format!("{:?}", args.common.dtype).to_lowercase(),
            "part_bases": directory.then_some(args.part_bases),
        }))?;
    Ok(fingerprint)
}

fn report(args: &Args, outcome: &Outcome, started: Instant) -> Result<()> {
    let Outcome { checkpoint, dim, done } = outcome;
    let seconds = started.elapsed().as_secs_f64();
    let rate = done.bases as f64 / done.seconds.max(1e-9);
    if args.common.format == cli::Format::Json {
        let Done { rows, records, bases, written, finished, others, counts, .. } = done;
        let summary = json!({
            "out": args.out, "checkpoint": checkpoint.path(), "rows": rows, "dim": dim, "records": records,
            "bases": bases, "input": counts.as_ref().map(counts_json), "seconds": seconds, "bases_per_second": rate,
            "outputs": { "written": written, "finished_before": finished, "of_other_shards": others },
        });
        writeln!(std::io::stdout(), "{summary}").context("cannot write the summary")?;
    }
    if args.common.quiet {
        return Ok(());
    }
    let out = args.out.display();
    if done.finished > 0 {
        let what = if done.finished == 1 { "output".to_string() } else { format!("{} parts", done.finished) };
        eprintln!("{out}: {what} finished before from the same input, model and settings: left as it is");
    }
    if let Some(counts) = &done.counts {
        eprintln!("{}: {counts}", plural(done.records, "record"));
    }
    if done.written > 0 {
        let parts = if done.written == 1 { String::new() } else { format!(" in {} parts", done.written) };
        eprintln!("{out}: {} of {dim} values{parts}; {} bp/s", plural(done.rows, "row"), short(rate));
    }
    Ok(())
}

fn counts_json(counts: &SequenceCounts) -> serde_json::Value {
    let codes = AMBIGUITY_CODES.iter().zip(counts.ambiguous).filter(|&(_, n)| n > 0);
    let codes: BTreeMap<String, u64> = codes.map(|(&code, n)| (char::from(code).to_string(), n)).collect();
    let mut json: serde_json::Map<_, _> =
        named_counts(counts).map(|(name, n)| (name.to_string(), n.into())).into_iter().collect();
    json.insert("ambiguity_codes".into(), json!(codes));
    json.into()
}

pub(crate) fn plural(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A wrong flag: exit code 2.
pub(crate) fn usage(error: impl ToString) -> Error {
    Error::Config(error.to_string())
}

/// Adds what the user could do about an error.
pub(crate) fn with_hint(error: anyhow::Error) -> anyhow::Error {
    use mamba_datasets::Error as Output;
    let hint = match (error.downcast_ref::<mamba_genomics::Error>(), error.downcast_ref::<Output>()) {
        (Some(input), _) => input.hint(),
        (_, Some(Output::Exists { .. } | Output::Altered { .. })) => {
            Some("--overwrite replaces it".to_string())
        }
        _ => None,
    };
    match hint {
        Some(hint) => Err::<(), _>(error).hint(hint).expect_err("it is an error"),
        None => error,
    }
}

/// How many of each kind of character.
fn named_counts(counts: &SequenceCounts) -> [(&'static str, u64); 6] {
    [
        ("bases", counts.bases),
        ("n", counts.n),
        ("ambiguous", counts.ambiguous_total()),
        ("soft_masked", counts.soft_masked),
        ("gaps", counts.gaps),
        ("uracil", counts.uracil),
    ]
}
