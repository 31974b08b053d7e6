//! `eval`: a checkpoint on pairs of noisy and clean recordings.

use super::metrics::{PairOfFiles, about, pairs, those_scored, write_csv};
use super::table::ScoreTable;
use anyhow::Result;
use mamba_core::cli::{CommonArgs, Format};
use mamba_speech::SeMambaCheckpoint;
use mamba_speech::audio::read_mono;
use mamba_speech::metrics::score;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `eval`.
#[derive(clap::Args)]
#[command(after_help = "Example:
  mamba-speech eval --checkpoint runs/speech --clean testset/clean --noisy testset/noisy
  mamba-speech eval --clean voicebank-demand-clips/ref_clean --noisy voicebank-demand-clips/ref_noisy")]
pub(crate) struct Args {
    /// Folder of a run or a checkpoint, or upstream's .pth [default: the small model that comes with this program]
    #[arg(long, value_name = "PATH")]
    checkpoint: Option<PathBuf>,

    /// Folder of clean recordings
    #[arg(long, value_name = "DIR")]
    clean: PathBuf,

    /// Folder of noisy recordings of the same names
    #[arg(long, value_name = "DIR")]
    noisy: PathBuf,

    /// Write the scores of every enhanced clip as CSV too
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let enhancer = SeMambaCheckpoint::open_or_bundled(args.checkpoint.as_deref())?
        .enhancer(args.common.dtype(), &device)?;
    let pairs = pairs(&args.clean, &args.noisy)?;
    let mut progress = args.common.progress(Some(pairs.len() as u64), "clips");
    let rate = enhancer.sample_rate();
    let mut scored = |pair: PairOfFiles| -> Result<_> {
        progress.inc(1);
        let (clean, noisy) = (read_mono(&pair.clean, rate)?, read_mono(&pair.other, rate)?);
        let row = |signal: &[f32]| -> Result<_> {
            Ok((pair.name.clone(), score(&clean, signal, rate).map_err(|e| about(&pair.other, e))?))
        };
        Ok((row(&noisy)?, row(&enhancer.enhance(&noisy)?)?))
    };
    let scored: Vec<_> = pairs.into_iter().map(&mut scored).collect();
    progress.finish();
    let (rows, code) = those_scored(scored)?;
    let (before, after): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (before, after) = (ScoreTable { rows: before }, ScoreTable { rows: after });
    write_csv(&after, args.csv.as_deref())?;
    let mut out = std::io::stdout();
    match args.common.format {
        Format::Human => write!(out, "noisy\n{}\nenhanced\n{}", before.human(), after.human())?,
        Format::Json => {
            let mut json = after.json();
            json["noisy"] = before.json();
            writeln!(out, "{json}")?;
        }
    }
    Ok(code)
}
