//! `info`: what is in a checkpoint.

use anyhow::Result;
use candle_core::{DType, Device};
use mamba_core::cli::{CommonArgs, Format};
use mamba_core::run_folder::RunInfo;
use mamba_speech::checkpoint::{Checkpoint, ModelConfig, model_type};
use mamba_speech::separation::SeparatorConfig;
use mamba_speech::tagging::TaggerConfig;
use mamba_speech::{Config, SeMambaCheckpoint, SeparatorCheckpoint, TaggerCheckpoint};
use serde_json::json;
use std::io::Write as _;
use std::path::{Path, PathBuf};
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
    let (cpu, format) = (Device::Cpu, args.common.format);
    let path = args.checkpoint.as_deref();
    let kind = path.map(model_type).transpose()?;
    // A model is built each time, so that weights that do not go with the settings are told.
    match (path, kind.as_deref()) {
        (Some(path), Some(SeparatorConfig::MODEL_TYPE)) => {
            let checkpoint = SeparatorCheckpoint::open(path)?;
            checkpoint.separator(DType::F32, &cpu)?;
            print(&checkpoint, &describe_separator(checkpoint.config()), Some(path), format)
        }
        (Some(path), Some(TaggerConfig::MODEL_TYPE)) => {
            let checkpoint = TaggerCheckpoint::open(path)?;
            checkpoint.tagger(DType::F32, &cpu)?;
            print(&checkpoint, &describe_tagger(checkpoint.config()), Some(path), format)
        }
        _ => {
            let checkpoint = SeMambaCheckpoint::open_or_bundled(path)?;
            checkpoint.enhancer(DType::F32, &cpu)?;
            print(&checkpoint, &describe_enhancer(checkpoint.config()), path, format)
        }
    }
}

fn describe_enhancer(config: &Config) -> Vec<String> {
    let (model, stft) = (&config.model_cfg, config.stft_cfg);
    let causal = if model.causal { ", causal" } else { "" };
    vec![
        format!(
            "SEMamba{causal}: {} channels, {} time-frequency blocks",
            model.hid_feature, model.num_tfmamba
        ),
        format!("{} Hz, frames of {} samples every {}", stft.sampling_rate, stft.n_fft, stft.hop_size),
    ]
}

fn describe_separator(config: &SeparatorConfig) -> Vec<String> {
    let (SeparatorConfig { n_src, channels, num_blocks, .. }, stft) = (config, config.stft_cfg);
    vec![
        format!(
            "dual-path Mamba for {n_src} talkers: {channels} channels, {num_blocks} time-frequency blocks"
        ),
        format!("{} Hz, frames of {} samples every {}", stft.sampling_rate, stft.n_fft, stft.hop_size),
    ]
}

fn describe_tagger(config: &TaggerConfig) -> Vec<String> {
    let (TaggerConfig { embed_dim, depth, labels, .. }, mel) = (config, config.mel);
    let seconds = config.window() as f64 / f64::from(mel.sampling_rate);
    vec![
        format!("Audio Mamba: {embed_dim} channels, {depth} blocks"),
        format!("{} classes: {}", labels.len(), labels.join(", ")),
        format!("{} Hz, {} mel bands, windows of {seconds:.2} s", mel.sampling_rate, mel.n_mels),
    ]
}

/// `path` is none for the bundled checkpoint.
fn print<C: ModelConfig>(
    checkpoint: &Checkpoint<C>,
    about: &[String],
    path: Option<&Path>,
    format: Format,
) -> Result<ExitCode> {
    let parts = checkpoint.parts();
    let parameters: usize = parts.values().sum();
    let run = path.and_then(|path| std::fs::read(path.join("run.json")).ok());
    let run: Option<RunInfo> = run.map(|text| serde_json::from_slice(&text)).transpose()?;
    let mut out = std::io::stdout().lock();
    if format == Format::Json {
        writeln!(
            out,
            "{}",
            json!({
                "path": checkpoint.path(), "config": checkpoint.config(), "parameters": parameters,
                "parts": parts, "files": checkpoint.files(), "hash": checkpoint.hash()?, "run": run,
            })
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{}", checkpoint.path().display())?;
    for line in about {
        writeln!(out, "  {line}")?;
    }
    writeln!(out, "  {parameters} parameters")?;
    for (part, n) in &parts {
        writeln!(out, "    {part:<16}{n:>10}")?;
    }
    for file in checkpoint.files() {
        writeln!(out, "  {} {} bytes, sha256 {}", file.name, file.bytes, file.sha256)?;
    }
    if let Some(run) = run {
        writeln!(
            out,
            "  trained by {} {}, seed {}, from {}",
            run.program, run.version, run.seed, run.started
        )?;
    }
    if let Some(card) = checkpoint.card() {
        writeln!(out, "\n{card}")?;
    }
    Ok(ExitCode::SUCCESS)
}
