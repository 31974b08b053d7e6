//! `train`: enhancement on mixtures.

use anyhow::Result;
use mamba_core::Params;
use mamba_core::cli::{CommonArgs, TrainingArgs, interrupted};
use mamba_core::run_folder::RunInfo;
use mamba_core::train::{self, Console, Stop, Task, TrainConfig};
use mamba_datasets::registry::resolve_all;
use mamba_speech::Config;
use mamba_speech::losses::LossWeights;
use mamba_speech::mixture::{MixtureConfig, Mixtures};
use mamba_speech::task::{Enhancement, EnhancementConfig};
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `train`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  mamba-speech train --out runs/demo --minutes 2
  mamba-speech train --clean cmu-arctic --noise noise-speech-commands --out runs/arctic --minutes 60
  mamba-speech train --clean speech/ --noise noise/ --out runs/mine --minutes 60
  mamba-speech train --clean speech/ --noise noise/ --out runs/mine --resume")]
pub(crate) struct Args {
    /// Folders of clean speech, or sets of `mamba-speech datasets list` [default: generated voices]
    #[arg(long, value_name = "DIR", requires = "noise")]
    clean: Vec<PathBuf>,

    /// Folders of noise without speech, or sets [default: generated noises]
    #[arg(long, value_name = "DIR", requires = "clean")]
    noise: Vec<PathBuf>,

    /// Folder for the run
    #[arg(long, value_name = "DIR", default_value = "runs/speech")]
    out: PathBuf,

    /// Size of the model: semamba, semamba-small or semamba-stream
    #[arg(long, value_name = "NAME", default_value = "semamba-small")]
    preset: String,

    /// Start from the weights of a checkpoint of the same shape
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,

    /// Optimizer steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    #[command(flatten)]
    training: TrainingArgs,

    #[command(flatten)]
    common: CommonArgs,
}

impl Args {
    /// Preset, then file, then `--set`, then the flags of their own.
    fn resolve(&self) -> Result<EnhancementConfig> {
        let model = Config::preset(&self.preset).ok_or_else(|| {
            let known = Config::PRESETS.join(", ");
            mamba_core::Error::Config(format!("--preset {}: expected one of {known}", self.preset))
        })?;
        let generated = self.clean.is_empty();
        let train = TrainConfig {
            steps: if generated { 200 } else { 4000 },
            batch_size: 4,
            learning_rate: 2e-3,
            warmup: 50,
            betas: (0.8, 0.99),
            weight_decay: 0.01,
            clip: Some(5.0),
            eval_every: if generated { 50 } else { 200 },
            save_every: 100,
            ..TrainConfig::default()
        };
        let data = match generated {
            true => MixtureConfig { segment_size: 16_000, valid_clips: 4, ..MixtureConfig::default() },
            false => MixtureConfig::default(),
        };
        let preset = EnhancementConfig { model, train, data, loss: LossWeights::default() };
        let mut cfg = self.training.settings.resolve(&preset)?;
        self.training.apply(&mut cfg.train);
        cfg.train.steps = self.steps.unwrap_or(cfg.train.steps);
        cfg.validate()?;
        Ok(cfg)
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let cfg = args.resolve()?;
    let mut console = Console::new(args.common.format, args.common.quiet);
    let mixtures = match args.clean.is_empty() {
        true => {
            console
                .note("no --clean and --noise: training on generated voices and noises, as a demonstration");
            Mixtures::generated(&cfg.data)?
        }
        false => Mixtures::load(
            &resolve_all(&args.clean)?,
            &resolve_all(&args.noise)?,
            cfg.model.stft_cfg.sampling_rate,
            &cfg.data,
        )?,
    };
    console.note(&mixtures.describe());
    let (seed, dtype) = (cfg.train.seed, args.common.dtype());
    let params = Params::start(args.init.as_deref(), seed, dtype, &device)?;
    let mut task = Enhancement::new(&cfg, &mixtures, params)?;
    let folder = args.training.folder(&args.out)?;
    console.note(&format!("{} parameters", task.params().count()));
    let settings = serde_json::json!({ "enhancement": &cfg, "clean": &args.clean, "noise": &args.noise });
    let info = RunInfo::new("mamba-speech", env!("CARGO_PKG_VERSION"), &device, cfg.train.seed, settings);
    let stop = Stop::on_signals()?;
    if train::run_recorded(&mut task, &cfg.train, &folder, info, &mut console, &stop)?.is_none() {
        return Ok(interrupted(&console, &args.out));
    }
    let out = args.out.display();
    console.note(&format!(
        "run in {out}: model, metrics, {out}/loss.svg\nnext: mamba-speech enhance noisy.wav --checkpoint {out} --out clean.wav"
    ));
    Ok(ExitCode::SUCCESS)
}
