//! `train`: enhancement on mixtures.

use anyhow::Result;
use mamba_core::cli::{CommonArgs, HintExt, SettingsArgs};
use mamba_core::run_folder::{RunFolder, RunInfo};
use mamba_core::train::{self, Console, Outcome, Stop, Task, TrainConfig};
use mamba_core::{Params, checkpoint};
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
  mamba-speech train --clean speech/ --noise noise/ --out runs/mine --minutes 60
  mamba-speech train --clean speech/ --noise noise/ --out runs/mine --resume")]
pub(crate) struct Args {
    /// Folders of clean speech [default: generated voices]
    #[arg(long, value_name = "DIR", requires = "noise")]
    clean: Vec<PathBuf>,

    /// Folders of noise [default: generated noises]
    #[arg(long, value_name = "DIR", requires = "clean")]
    noise: Vec<PathBuf>,

    /// Folder for the run
    #[arg(long, value_name = "DIR", default_value = "runs/speech")]
    out: PathBuf,

    /// Go on where the run in --out was saved
    #[arg(long)]
    resume: bool,

    /// Size of the model: semamba, semamba-small or semamba-stream
    #[arg(long, value_name = "NAME", default_value = "semamba-small")]
    preset: String,

    /// Start from the weights of a checkpoint of the same shape
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,

    /// Optimizer steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    /// Stop after so many minutes, saved and evaluated
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,

    /// Segments in a batch
    #[arg(long, value_name = "N")]
    batch: Option<usize>,

    /// Highest learning rate
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,

    #[command(flatten)]
    settings: SettingsArgs,

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
        let mut cfg = self.settings.resolve(&preset)?;
        let train = &mut cfg.train;
        train.seed = self.settings.seed.unwrap_or(train.seed);
        train.steps = self.steps.unwrap_or(train.steps);
        train.batch_size = self.batch.unwrap_or(train.batch_size);
        train.learning_rate = self.learning_rate.unwrap_or(train.learning_rate);
        train.max_minutes = self.minutes.or(train.max_minutes);
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
        false => Mixtures::load(&args.clean, &args.noise, cfg.model.stft_cfg.sampling_rate, &cfg.data)?,
    };
    console.note(&mixtures.describe());
    let params = match &args.init {
        Some(path) => {
            let tensors = checkpoint::load(path, None)?.tensors;
            Params::trainable(tensors, cfg.train.seed, args.common.dtype(), &device)
        }
        None => Params::fresh(cfg.train.seed, args.common.dtype(), &device),
    };
    let folder = match args.resume {
        true => RunFolder::resume(&args.out)?,
        false => RunFolder::create(&args.out).hint("--resume goes on with it")?,
    };
    let mut task = Enhancement::new(&cfg, &mixtures, params)?;
    console.note(&format!("{} parameters", task.params().count()));
    let settings = serde_json::json!({ "enhancement": &cfg, "clean": &args.clean, "noise": &args.noise });
    let mut info = RunInfo::new("mamba-speech", env!("CARGO_PKG_VERSION"), &device, cfg.train.seed, settings);
    folder.save_info(&info)?;
    let report = train::run(&mut task, &cfg.train, &folder, &mut console, &Stop::on_signals()?)?;
    info.finish(&format!("{:?}", report.outcome), report.step);
    folder.save_info(&info)?;
    let out = args.out.display();
    if report.outcome == Outcome::Interrupted {
        console.note(&format!("saved in {out}; the same command with --resume goes on"));
        return Ok(ExitCode::from(mamba_core::cli::INTERRUPTED));
    }
    console.note(&format!(
        "run in {out}: model, metrics, {out}/loss.svg\nnext: mamba-speech enhance noisy.wav --checkpoint {out} --out clean.wav"
    ));
    Ok(ExitCode::SUCCESS)
}
