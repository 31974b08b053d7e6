//! `protein score`.

use super::{residues, scorer};
use crate::commands::embed::{is_stream, plural, usage};
use crate::commands::sequence_files;
use anyhow::{Context, Result};
use mamba_core::cli::{self, CommonArgs};
use mamba_core::train::Stop;
use mamba_datasets::job::arrow_array::{Float64Array, RecordBatch, StringArray, UInt64Array};
use mamba_datasets::job::arrow_schema::{DataType, Field, Schema};
use mamba_datasets::job::{Fingerprint, Format, Job, Part};
use mamba_genomics::protein::alphabet::{AMINO_ACIDS, Alphabet};
use mamba_genomics::protein::reader::ProteinReader;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

/// Substitutions that are scored between looks at Ctrl-C and writes.
const BATCH: usize = 64;

#[derive(clap::Args)]
#[command(after_long_help = "\
Without --substitutions, a row for each protein: id, residues, log_likelihood (natural logarithm, the sum over its residues),
perplexity. ProtMamba takes each residue given those before it, masked models take each given all others.

With --substitutions, a row for each of them: id, substitution, score: the log-likelihood ratio of the new residues against
those that are there, given all others of the protein (ProtMamba: as a span to fill in). A24G is glycine for the alanine at
position 24; A24G:K30R both. Below 0 the model prefers the protein as it is.

Examples:
  mamba-genomics protein score proteins.fa --checkpoint runs/globins --context globins.fa --out scores.tsv
  mamba-genomics protein score query.fa --checkpoint runs/globins --context globins.a3m --substitutions all --out dms.parquet")]
pub(crate) struct Args {
    /// Proteins: FASTA or A3M, plain, gzip or bgzip, or - for standard input
    #[arg(value_name = "FASTA")]
    input: PathBuf,

    /// Folder of the model
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Homologs that the model reads first (ProtMamba) or beside a protein (MSAMamba): FASTA or A3M
    #[arg(long, value_name = "FASTA")]
    context: Vec<PathBuf>,

    /// Most homologs of the context
    #[arg(long, default_value_t = 64, value_name = "N")]
    context_limit: usize,

    /// Substitutions of the only protein of the input: a file with one in a line, a list (A24G,K30R), or all single ones
    #[arg(long, value_name = "FILE|LIST|all")]
    substitutions: Option<String>,

    /// Output: .parquet, .csv or .tsv
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// Replace output that was made from something else
    #[arg(long)]
    overwrite: bool,

    #[command(flatten)]
    common: CommonArgs,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let format = Format::from_path(&args.out).map_err(usage)?;
    if format == Format::Npy {
        return Err(usage(format!("--out {}: expected .parquet, .csv or .tsv", args.out.display())).into());
    }
    let (scorer, config) =
        scorer(&args.checkpoint, &args.context, args.context_limit, &args.common, &device)?;
    let alphabet = config.alphabet();
    let fingerprint = fingerprint(&args)?;
    let job = Job::new("mamba-genomics protein score", fingerprint).overwrite(args.overwrite);
    let stop = Stop::on_signals()?;
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let number = |name: &str| Field::new(name, DataType::Float64, false);
    let schema = Arc::new(Schema::new(match args.substitutions {
        None => {
            let residues = Field::new("residues", DataType::UInt64, false);
            vec![text("id"), residues, number("log_likelihood"), number("perplexity")]
        }
        Some(_) => vec![text("id"), text("substitution"), number("score")],
    }));
    let mut part = match job.file(&args.out, &schema)? {
        Part::Finished(_) => {
            if !args.common.quiet {
                eprintln!("{}: finished before from the same input, model and settings", args.out.display());
            }
            return Ok(ExitCode::SUCCESS);
        }
        Part::Open(part) => part,
    };
    let interrupted = || {
        eprintln!("stopped: the unfinished output is dropped");
        Ok(ExitCode::from(cli::INTERRUPTED))
    };
    match &args.substitutions {
        None => {
            let mut progress = args.common.progress(None, "proteins");
            let path = sequence_files(std::slice::from_ref(&args.input))?.remove(0);
            for protein in ProteinReader::open(path, alphabet)? {
                if stop.requested() {
                    return interrupted();
                }
                let protein = protein?;
                let residues = protein.residues(alphabet);
                let sum: f64 = scorer.log_likelihoods(&residues)?.iter().sum();
                anyhow::ensure!(sum.is_finite(), "record {:?}: its log-likelihood is {sum}", protein.name);
                let perplexity = (-sum / residues.len() as f64).exp();
                part.write(&RecordBatch::try_new(
                    schema.clone(),
                    vec![
                        Arc::new(StringArray::from(vec![protein.name])),
                        Arc::new(UInt64Array::from(vec![residues.len() as u64])),
                        Arc::new(Float64Array::from(vec![sum])),
                        Arc::new(Float64Array::from(vec![perplexity])),
                    ],
                )?)?;
                progress.inc(1);
            }
            progress.finish();
        }
        Some(substitutions) => {
            let mut proteins = residues(std::slice::from_ref(&args.input), alphabet)?;
            anyhow::ensure!(
                proteins.len() == 1,
                "{}: substitutions need one protein, found {}",
                args.input.display(),
                proteins.len()
            );
            let (name, residues) = proteins.remove(0);
            let changes = parse_all(substitutions, &residues, alphabet)?;
            let mut progress = args.common.progress(Some(changes.len() as u64), "substitutions");
            for changes in changes.chunks(BATCH * AMINO_ACIDS.len()) {
                if stop.requested() {
                    return interrupted();
                }
                let parsed: Vec<_> = changes.iter().map(|(_, change)| change.clone()).collect();
                let scores = scorer.substitutions(&residues, &parsed)?;
                part.write(&RecordBatch::try_new(
                    schema.clone(),
                    vec![
                        Arc::new(StringArray::from(vec![name.as_str(); changes.len()])),
                        Arc::new(changes.iter().map(|(text, _)| Some(text)).collect::<StringArray>()),
                        Arc::new(Float64Array::from(scores)),
                    ],
                )?)?;
                progress.inc(changes.len() as u64);
            }
            progress.finish();
        }
    }
    let rows = part.finish()?.rows;
    if !args.common.quiet {
        eprintln!("{}: {}", args.out.display(), plural(rows, "row"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything that decides the output's bytes.
fn fingerprint(args: &Args) -> Result<Fingerprint> {
    let mut fingerprint = Fingerprint::new();
    let mut inputs = sequence_files(std::slice::from_ref(&args.input))?;
    inputs.extend(sequence_files(&args.context)?);
    for path in &inputs {
        if is_stream(path) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
            fingerprint.add_hash(format!("stream {}", path.display()), format!("read at {now} ns"));
        } else {
            std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            fingerprint.add_input(path)?;
        }
    }
    for file in mamba_core::checkpoint::load(&args.checkpoint, None)?.files {
        fingerprint.add_hash_of("model", &file)?;
    }
    let substitutions = match &args.substitutions {
        Some(text) if std::path::Path::new(text).is_file() => Some(std::fs::read_to_string(text)?),
        other => other.clone(),
    };
    fingerprint.add_hash("version", env!("CARGO_PKG_VERSION")).set_config(&json!({
        "substitutions": substitutions, "context_limit": args.context_limit,
        "dtype": format!("{:?}", args.common.dtype).to_lowercase(),
    }))?;
    Ok(fingerprint)
}

/// A substitution as it was written, and its positions (from 0) with new tokens.
type Change = (String, Vec<(usize, u32)>);

fn parse_all(argument: &str, residues: &[u32], alphabet: Alphabet) -> Result<Vec<Change>> {
    if argument == "all" {
        let letter = |token: u32| alphabet.decode(&[token]);
        let all = residues.iter().enumerate().filter(|(_, old)| alphabet.is_amino_acid(**old)).flat_map(
            |(i, &old)| {
                alphabet
                    .amino_acids()
                    .filter(move |&new| new != old)
                    .map(move |new| (format!("{}{}{}", letter(old), i + 1, letter(new)), vec![(i, new)]))
            },
        );
        return Ok(all.collect());
    }
    let path = std::path::Path::new(argument);
    let (origin, text) = match path.is_file() {
        true => (argument, std::fs::read_to_string(path).with_context(|| format!("cannot read {argument}"))?),
        false => ("--substitutions", argument.replace(',', "\n")),
    };
    let mut changes = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let change = line.split(':').map(|one| parse(one, residues, alphabet)).collect::<Result<_, String>>();
        let change = change.map_err(|problem| usage(format!("{origin}:{}: {problem}", number + 1)))?;
        changes.push((line.to_owned(), change));
    }
    if changes.is_empty() {
        return Err(usage(format!("{origin}: no substitution")).into());
    }
    Ok(changes)
}

/// `A24G`.
fn parse(text: &str, residues: &[u32], alphabet: Alphabet) -> Result<(usize, u32), String> {
    let expected = || format!("{text:?} is no substitution, expected one such as A24G");
    let &[old, ref middle @ .., new] = text.as_bytes() else { return Err(expected()) };
    let position: usize =
        std::str::from_utf8(middle).ok().and_then(|n| n.parse().ok()).ok_or_else(expected)?;
    let token =
        |byte: u8| alphabet.token(byte).filter(|&token| alphabet.is_amino_acid(token)).ok_or_else(expected);
    let (old, new) = (token(old)?, token(new)?);
    let there = position.checked_sub(1).and_then(|i| residues.get(i)).copied().ok_or_else(|| {
        format!("{text:?} lies outside the protein, which has residues 1 to {}", residues.len())
    })?;
    if there != old {
        return Err(format!("{text:?}: residue {position} is {}", alphabet.decode(&[there])));
    }
    Ok((position - 1, new))
}
