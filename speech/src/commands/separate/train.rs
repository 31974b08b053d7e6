//! `separate train`: on mixtures of read speech.

use anyhow::Result;
use mamba_core::cli::{CommonArgs, HintExt, SettingsArgs};
use mamba_core::run_folder::{RunFolder, RunInfo};
use mamba_core::train::{self, Console, Outcome, Stop, Task, TrainConfig};
use mamba_core::{Params, checkpoint};
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

    /// Go on where the run in --out was saved
    #[arg(long)]
    resume: bool,

    /// Size of the model: dpmamba-small or dpmamba-base
    #[arg(long, value_name = "NAME", default_value = "dpmamba-small")]
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

    /// Mixtures in a batch
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
        let mut cfg = self.settings.resolve(&SeparationConfig { model, train, data })?;
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
    let params = match &args.init {
        Some(path) => {
            let tensors = checkpoint::load(path, None)?.tensors;
            Params::trainable(tensors, cfg.train.seed, args.common.dtype(), &device)
        }
        None => Params::fresh(cfg.train.seed, args.common.dtype(), &device),
    };
    let mut task = Separation::new(&cfg, &talk, params)?;
    let folder = match args.resume {
        true => RunFolder::resume(&args.out)?,
        false => RunFolder::create(&args.out).hint("--resume goes on with it")?,
    };
    console.note(&format!("{} parameters", task.params().count()));
    let settings = serde_json::json!({ "separation": &cfg, "speech": &args.speech });
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
        "run in {out}: model, metrics, {out}/loss.svg\nnext: mamba-speech separate talk.wav --checkpoint {out} --out talkers/"
    ));
    Ok(ExitCode::SUCCESS)
}
