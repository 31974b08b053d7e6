//! `eval`: a checkpoint on the held-out part of a genome.

use crate::commands::train::{genome, print_result, test_table};
use anyhow::{Context, Result};
use mamba_core::cli::CommonArgs;
use mamba_core::train::TrainConfig;
use mamba_core::{checkpoint, run_folder::RunInfo};
use mamba_genomics::task::{DataConfig, PretrainConfig, PretrainData};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `eval`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  mamba-genomics eval genome.fa.gz --checkpoint runs/genome")]
pub(crate) struct Args {
    /// FASTA files, or names of data sets [default: the bundled genome of phage lambda]
    #[arg(value_name = "FASTA")]
    fasta: Vec<PathBuf>,

    /// Folder of a run or a checkpoint
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Bases in a window [default: that of the run]
    #[arg(long, value_name = "BASES")]
    length: Option<usize>,

    /// Share of bases held out for the test [default: that of the run]
    #[arg(long, value_name = "SHARE")]
    test: Option<f64>,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let loaded = checkpoint::load_dir(&args.checkpoint)?;
    // A run says how it split its genome; a checkpoint from elsewhere is tested on the default split.
    let info = args.checkpoint.join("run.json");
    let mut data = match std::fs::read_to_string(&info) {
        Ok(text) => split_of_run(&text).with_context(|| format!("cannot read {}", info.display()))?,
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", info.display())),
    }
    .unwrap_or_else(|| {
        eprintln!(
            "{} does not say how it split its genome: testing on the default split, which it may have been trained on",
            args.checkpoint.display()
        );
        DataConfig::default()
    });
    data.length = args.length.unwrap_or(data.length);
    data.test = args.test.unwrap_or(data.test);
    let (model, train) = (loaded.parse_config()?, TrainConfig::default());
    let cfg = PretrainConfig { model, train, data, length_warmup: None, recompute: false };
    let genome = genome(&args.fasta)?;
    let data = PretrainData::new(genome, &cfg.data)?;
    let (score, table) = test_table(&cfg, &data, &args.checkpoint, &device, &args.common)?;
    print_result(&args.common, &score, table)?;
    Ok(ExitCode::SUCCESS)
}

/// The windows and the split that `run.json` tells of, if it is of a pre-training run.
fn split_of_run(text: &str) -> Result<Option<DataConfig>> {
    let info: RunInfo = serde_json::from_str(text)?;
    let data = info.settings.pointer("/pretrain/data").cloned();
    Ok(data.map(serde_json::from_value).transpose()?)
}
