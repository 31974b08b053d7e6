//! `tag eval`: a model on labelled clips.

use super::report;
use anyhow::Result;
use mamba_core::cli::{CommonArgs, Format};
use mamba_datasets::registry::resolve;
use mamba_speech::TaggerCheckpoint;
use mamba_speech::tagging::{Clips, NamePattern, Sounds, evaluate};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `tag eval`.
#[derive(clap::Args)]
#[command(after_help = "Example:
  mamba-speech tag eval --checkpoint runs/digits --clips fsdd --group theo")]
pub(super) struct Args {
    /// Folder of a run of `tag train`
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Folder of labelled clips, a table of path, label and group (.csv, .tsv), or a set of `mamba-speech datasets list`
    #[arg(long, value_name = "PATH")]
    clips: PathBuf,

    /// How names of files tell class and group, see `tag train --help`
    #[arg(long, value_name = "PATTERN", default_value_t)]
    names: NamePattern,

    /// Measure clips of this group only; repeatable
    #[arg(long, value_name = "NAME")]
    group: Vec<String>,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let tagger = TaggerCheckpoint::open(&args.checkpoint)?.tagger(args.common.dtype(), &device)?;
    let mut clips = Clips::load(&resolve(&args.clips)?, &args.names)?;
    if !args.group.is_empty() {
        clips = clips.by_groups(&args.group).map_err(mamba_core::Error::from)?.0;
    }
    let sounds = Sounds::read(&clips, tagger.labels(), tagger.sample_rate())?;
    let (confusion, _) = evaluate(&tagger, &sounds)?;
    let text = match args.common.format {
        Format::Json => format!("{}\n", report::json(&confusion)),
        Format::Human => report::human(&confusion),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
