//! `info`: what is in a checkpoint.

use anyhow::Result;
use candle_core::{DType, Device};
use mamba_core::cli::{CommonArgs, Format};
use mamba_core::run_folder::RunInfo;
use mamba_speech::SeMambaCheckpoint;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `info`.
#[derive(clap::Args)]
#[command(after_help = "Example:
  mamba-speech info runs/speech")]
pub(crate) struct Args {
    /// A run folder, a checkpoint folder, a weight file or upstream's .pth [default: the small model that comes with this
    /// program]
    #[arg(value_name = "PATH")]
    checkpoint: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    args.common.start()?;
    let checkpoint = SeMambaCheckpoint::open_or_bundled(args.checkpoint.as_deref())?;
    let params = checkpoint.params(DType::F32, &Device::Cpu)?;
    let mut parts: BTreeMap<String, usize> = BTreeMap::new();
    for param in params.named() {
        let part = param.name().split('.').next().unwrap_or_default().to_string();
        *parts.entry(part).or_default() += param.tensor().elem_count();
    }
    let run = args.checkpoint.and_then(|path| std::fs::read(path.join("run.json")).ok());
    let run: Option<RunInfo> = run.map(|text| serde_json::from_slice(&text)).transpose()?;
    if args.common.format == Format::Json {
        println!(
            "{}",
            json!({
                "path": checkpoint.path(), "config": checkpoint.config(), "parameters": params.count(),
                "parts": parts, "files": checkpoint.files(), "hash": checkpoint.hash()?, "run": run,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    let config = checkpoint.config();
    println!("{}", checkpoint.path().display());
    println!(
        "  SEMamba{}: {} channels, {} time-frequency blocks, {} parameters",
        if config.model_cfg.causal { ", causal" } else { "" },
        config.model_cfg.hid_feature,
        config.model_cfg.num_tfmamba,
        params.count()
    );
    for (part, n) in &parts {
        println!("    {part:<16}{n:>10}");
    }
    let stft = config.stft_cfg;
    println!("  {} Hz, frames of {} samples every {}", stft.sampling_rate, stft.n_fft, stft.hop_size);
    for file in checkpoint.files() {
        println!("  {} {} bytes, sha256 {}", file.name, file.bytes, file.sha256);
    }
    if let Some(run) = run {
        println!("  trained by {} {}, seed {}, from {}", run.program, run.version, run.seed, run.started);
    }
    if let Some(card) = checkpoint.card() {
        println!("\n{card}");
    }
    Ok(ExitCode::SUCCESS)
}
