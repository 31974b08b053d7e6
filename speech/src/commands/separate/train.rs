//! `separate train`: on mixtures of read speech.

use anyhow::Result;
use mamba_core::Params;
use mamba_core::cli::{CommonArgs, TrainingArgs, interrupted};
use mamba_core::run_folder::RunInfo;
use mamba_core::train::{self, Console, Stop, Task, TrainConfig};
use mamba_datasets::registry::resolve_all;
use mamba_speech::separation::{Separation, SeparationConfig, SeparatorConfig, Talk, TalkConfig};
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `separate train`.
#[derive(clap::Args)]
#[command(after_help = "\
A talker is a folder below one of --speech, or that folder itself if clips lie in it. Sentences are held out: what follows the \
last _ in the name of a clip.

Examples:
  mamba-speech separate train --out runs/demo --minutes 2
  mamba-speech separate train --speech cmu-arctic --speech vctk-excerpt --out runs/talk --minutes 60
  mamba-speech separate train --speech LibriSpeech/train-clean-100 --preset dpmamba-base --out runs/libri")]
pub(super) struct Args {
    /// Folders of read speech, one folder for each talker, or sets of `mamba-speech datasets list` [default: generated voices]
    #[arg(long, value_name = "DIR")]
    speech: Vec<PathBuf>,

    /// Folder for the run
    #[arg(long, value_name = "DIR", default_value = "runs/separate")]
    out: PathBuf,

    /// Size of the model: dpmamba-small or dpmamba-base
    #[arg(long, value_name = "NAME", default_value = "dpmamba-small")]
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
    fn resolve(&self) -> Result<SeparationConfig> {
        let model = SeparatorConfig::preset(&self.preset).ok_or_else(|| {
            let known = SeparatorConfig::PRESETS.join(", ");
            mamba_core::Error::Config(format!("--preset {}: expected one of {known}", self.preset))
        })?;
        let generated = self.speech.is_empty();
        let train = TrainConfig {
            steps: if generated { 100 } else { 4000 },
            batch_size: 4,
            learning_rate: 2e-3,
            min_lr_ratio: 0.03,
            warmup: 50,
            betas: (0.9, 0.99),
            weight_decay: 0.01,
            clip: Some(5.0),
            ema: (!generated).then_some(0.99),
            eval_every: if generated { 50 } else { 200 },
            save_every: 100,
            ..TrainConfig::default()
        };
        let data = match generated {
            true => TalkConfig { segment_size: 8192, valid_mixtures: 4, ..TalkConfig::default() },
            false => TalkConfig::default(),
        };
        let mut cfg = self.training.settings.resolve(&SeparationConfig { model, train, data })?;
        self.training.apply(&mut cfg.train);
        cfg.train.steps = self.steps.unwrap_or(cfg.train.steps);
        cfg.validate()?;
        Ok(cfg)
    }
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let cfg = args.resolve()?;
    let mut console = Console::new(args.common.format, args.common.quiet);
    let (n_src, rate) = (cfg.model.n_src, cfg.model.stft_cfg.sampling_rate);
    let talk = match args.speech.is_empty() {
        true => {
            console.note("no --speech: training on generated voices, as a demonstration");
            Talk::generated(n_src, rate, &cfg.data)?
        }
        false => Talk::load(&resolve_all(&args.speech)?, n_src, rate, &cfg.data)?,
    };
    console.note(&talk.describe());
    let (seed, dtype) = (cfg.train.seed, args.common.dtype());
    let params = Params::start(args.init.as_deref(), seed, dtype, &device)?;
    let mut task = Separation::new(&cfg, &talk, params)?;
    let folder = args.training.folder(&args.out)?;
    console.note(&format!("{} parameters", task.params().count()));
    let settings = serde_json::json!({ "separation": &cfg, "speech": &args.speech });
    let info = RunInfo::new("mamba-speech", env!("CARGO_PKG_VERSION"), &device, cfg.train.seed, settings);
    let stop = Stop::on_signals()?;
    if train::run_recorded(&mut task, &cfg.train, &folder, info, &mut console, &stop)?.is_none() {
        return Ok(interrupted(&console, &args.out));
    }
    let out = args.out.display();
    console.note(&format!(
        "run in {out}: model, metrics, {out}/loss.svg\nnext: mamba-speech separate talk.wav --checkpoint {out} --out talkers/"
    ));
    Ok(ExitCode::SUCCESS)
}
