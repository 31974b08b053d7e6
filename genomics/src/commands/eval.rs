//! `eval`: a checkpoint on the held-out part of a genome.

use crate::commands::train::{genome, print_result, test_table};
use anyhow::{Context, Result};
use mamba_core::cli::{CommonArgs, HintExt};
use mamba_core::train::TrainConfig;
use mamba_core::{checkpoint, run_folder::RunInfo};
use mamba_genomics::task::{DataConfig, PretrainConfig, PretrainData};
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `eval`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  mamba-genomics eval genome.fa.gz --checkpoint runs/genome")]
pub(crate) struct Args {
    /// FASTA files [default: the bundled genome of phage lambda]
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
        Ok(text) => {
            let info: RunInfo = serde_json::from_str(&text)
                .with_context(|| format!("cannot read {}", info.display()))
                .hint("without the file, the default split is taken")?;
            let data = info.settings["pretrain"]["data"].clone();
            serde_json::from_value(data).unwrap_or_default()
        }
        Err(_) => DataConfig::default(),
    };
    data.length = args.length.unwrap_or(data.length);
    data.test = args.test.unwrap_or(data.test);
    let cfg = PretrainConfig { model: loaded.parse_config()?, train: TrainConfig::default(), data };
    let genome = genome(&args.fasta)?;
    let data = PretrainData::new(genome, &cfg.data)?;
    let (score, table) = test_table(&cfg, &data, &args.checkpoint, &device, &args.common)?;
    print_result(&args.common, &score, table);
    Ok(ExitCode::SUCCESS)
}
