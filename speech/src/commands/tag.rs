//! `tag`: which of some classes a clip of sound belongs to.

mod eval;
mod predict;
mod report;
mod train;

use anyhow::Result;
use mamba_core::cli::CommonArgs;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `tag`.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  mamba-speech tag train --clips fsdd --out runs/digits
  mamba-speech tag one.wav two.flac recordings/ --checkpoint runs/digits
  mamba-speech tag recordings/ --checkpoint runs/digits --csv classes.csv
  mamba-speech tag eval --checkpoint runs/digits --clips my-digits.csv"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,

    #[command(flatten)]
    predict: PredictArgs,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Train on labelled clips, or cross-validate over their speakers
    Train(Box<train::Args>),
    /// Measure a model on labelled clips
    Eval(eval::Args),
}

/// Flags of `tag` without a verb.
#[derive(clap::Args)]
pub(crate) struct PredictArgs {
    /// Recordings, or folders of them: WAV, FLAC, Ogg Vorbis, MP3
    #[arg(value_name = "PATH", required = true)]
    inputs: Vec<PathBuf>,

    /// Folder of a run of `tag train`
    #[arg(long, value_name = "DIR", required = true)]
    checkpoint: Option<PathBuf>,

    /// Classes to show for each recording
    #[arg(long, value_name = "K", default_value_t = 3)]
    top: usize,

    /// Write the probabilities of all classes as CSV too
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Some(Verb::Train(args)) => train::run(*args),
        Some(Verb::Eval(args)) => eval::run(args),
        None => predict::run(args.predict),
    }
}
