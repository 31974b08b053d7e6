//! `protein infill`.

use super::{residues, scorer};
use crate::commands::embed::usage;
use anyhow::{Context, Result};
use mamba_core::cli::{self, CommonArgs};
use mamba_core::train::Stop;
use mamba_datasets::AtomicFile;
use mamba_genomics::protein::infill::{Sampling, generate, infill};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
#[command(after_long_help = "\
With a protein and --span, its residues there are taken out and drawn anew, as many as there were, given all that stays.
Without a protein, whole new members of the context's family are drawn. Output is FASTA; each header says what was drawn and
how likely it is (log_likelihood, natural logarithm, of the drawn residues).

Examples:
  mamba-genomics protein infill query.fa --span 24-31 --checkpoint runs/globins --context globins.fa --samples 5
  mamba-genomics protein infill --checkpoint runs/globins --context globins.fa --samples 10 --out new.fa")]
pub(crate) struct Args {
    /// FASTA file of one protein whose spans are filled; without it, new proteins are generated
    #[arg(value_name = "FASTA", requires = "span")]
    input: Option<PathBuf>,

    /// Residues to draw anew, first and last counted from 1, such as 24-31; up to five of them, repeated
    #[arg(long, value_name = "FROM-TO", requires = "input")]
    span: Vec<String>,

    /// Folder of a ProtMamba model
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Homologs that the model reads first: FASTA or A3M
    #[arg(long, value_name = "FASTA")]
    context: Vec<PathBuf>,

    /// Most homologs of the context
    #[arg(long, default_value_t = 64, value_name = "N")]
    context_limit: usize,

    /// How many to draw
    #[arg(long, default_value_t = 1, value_name = "N")]
    samples: u64,

    /// 0: always the likeliest residue; 1: as likely as the model says
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    temperature: f64,

    /// Longest new protein
    #[arg(long, default_value_t = 1024, value_name = "N")]
    max_length: usize,

    /// Seed of the draws
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    seed: u64,

    /// FASTA file to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        return Err(usage(format!("--temperature {}: expected 0 or more", args.temperature)).into());
    }
    if args.samples == 0 || args.max_length == 0 {
        return Err(usage("--samples and --max-length must be at least 1").into());
    }
    let (scorer, config) =
        scorer(&args.checkpoint, &args.context, args.context_limit, &args.common, &device)?;
    let alphabet = config.alphabet();
    let target = match &args.input {
        None => None,
        Some(input) => {
            let mut proteins = residues(std::slice::from_ref(input), alphabet)?;
            let n = proteins.len();
            anyhow::ensure!(n == 1, "{}: expected one protein, found {n}", input.display());
            let (name, residues) = proteins.remove(0);
            let mut spans =
                args.span.iter().map(|text| span(text, residues.len())).collect::<Result<Vec<_>>>()?;
            spans.sort_by_key(|span| span.start);
            Some((name, residues, spans))
        }
    };
    let sampling = Sampling { temperature: args.temperature, seed: args.seed };
    let mut text = String::new();
    let mut progress = args.common.progress(Some(args.samples), "samples");
    let stop = Stop::on_signals()?;
    for sample in 0..args.samples {
        if stop.requested() {
            return Ok(ExitCode::from(cli::INTERRUPTED));
        }
        let (header, drawn) = match &target {
            Some((name, residues, spans)) => {
                let places =
                    spans.iter().map(|s| format!("{}-{}", s.start + 1, s.end)).collect::<Vec<_>>().join(",");
                (
                    format!("{name}_{} infill={places}", sample + 1),
                    infill(&scorer, residues, spans, sampling, sample)?,
                )
            }
            None => {
                (format!("generated_{}", sample + 1), generate(&scorer, args.max_length, sampling, sample)?)
            }
        };
        text.push_str(&format!(">{header} log_likelihood={:.4}\n", drawn.log_likelihood));
        let letters = alphabet.decode(&drawn.residues);
        for line in letters.as_bytes().chunks(60) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        progress.inc(1);
    }
    progress.finish();
    match &args.out {
        Some(out) => write(out, &text)?,
        None => std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write(out: &Path, text: &str) -> Result<()> {
    let mut file = AtomicFile::create(out)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", out.display()))?;
    file.commit()?;
    Ok(())
}

/// `24-31`, both counted from 1 and included, or one residue.
fn span(text: &str, len: usize) -> Result<Range<usize>> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse::<usize>().ok();
    match (number(from), number(to)) {
        (Some(from), Some(to)) if from >= 1 && from <= to && to <= len => Ok(from - 1..to),
        _ => Err(usage(format!("--span {text}: expected FROM-TO between 1 and {len}")).into()),
    }
}
