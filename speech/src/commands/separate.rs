//! `separate`: what each of some talkers says at once.

mod eval;
mod files;
mod train;

use anyhow::Result;
use mamba_core::cli::CommonArgs;
use mamba_datasets::job::Shard;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `separate`.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Each talker of talk.wav gets a file: talk_1.wav, talk_2.wav, of the length and rate of the recording, with one channel. \
Which is which is the model's choice; it stays the same through a recording as long as chunks can be told together.

Examples:
  mamba-speech separate train --speech cmu-arctic --speech vctk-excerpt --out runs/talk --minutes 60
  mamba-speech separate talk.wav --checkpoint runs/talk --out talkers/
  mamba-speech separate recordings/ --checkpoint runs/talk --out talkers/ --shard 0/4
  mamba-speech separate eval --checkpoint runs/talk --speech cmu-arctic"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,

    #[command(flatten)]
    files: FilesArgs,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Train on mixtures of read speech, made on the fly
    Train(Box<train::Args>),
    /// Measure a model on mixtures of held-out sentences, or on mixtures in files
    Eval(eval::Args),
}

/// Flags of `separate` without a verb.
#[derive(clap::Args)]
pub(crate) struct FilesArgs {
    /// Recordings, or folders of them: WAV, FLAC, Ogg Vorbis, MP3
    #[arg(value_name = "PATH", required = true)]
    inputs: Vec<PathBuf>,

    /// Folder of a run of `separate train`
    #[arg(long, value_name = "DIR", required = true)]
    checkpoint: Option<PathBuf>,

    /// Folder for the results, in which sub-folders are kept
    #[arg(long, value_name = "DIR", required = true)]
    out: Option<PathBuf>,

    /// Seconds of sound that are processed at once; a third of it is shared with the next chunk
    #[arg(long, value_name = "SECONDS", default_value_t = 12.0)]
    chunk: f64,

    /// Make every N-th recording only, counted from I: for many machines
    #[arg(long, value_name = "I/N", default_value_t = Shard::WHOLE)]
    shard: Shard,

    /// Replace results that were made from another recording, model or setting
    #[arg(long)]
    overwrite: bool,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Some(Verb::Train(args)) => train::run(*args),
        Some(Verb::Eval(args)) => eval::run(args),
        None => files::run(args.files),
    }
}
