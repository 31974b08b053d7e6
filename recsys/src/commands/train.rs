//! `train`: a model on an interaction log.

use super::compare::{Settings, data_name, save_results, settings_digest};
use super::eval::{Table, saved_config, test};
use super::log::LogArgs;
use anyhow::Result;
use mamba_core::cli::{CommonArgs, TrainingArgs, interrupted};
use mamba_core::optim::Decay;
use mamba_core::run_folder::{RunFolder, RunInfo};
use mamba_core::train::{self, Console, Stop, Task, TrainConfig};
use mamba_core::{Error, Mamba2Config, Params};
use mamba_recsys::ModelConfig;
use mamba_recsys::checkpoint::{RecCheckpoint, write_or_compare_items};
use mamba_recsys::config::{DataConfig, EvalConfig, ObjectiveConfig, Positions, RunConfig};
use mamba_recsys::data::{Dataset, Log, Split};
use mamba_recsys::sampler::Sampler;
use mamba_recsys::task::{Training, TrainingData};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `train`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    mamba-recsys train\n  \
    mamba-recsys train --data ml-100k.inter --out runs/ml-100k\n  \
    mamba-recsys train --data events.parquet --user-column customer --out runs/shop --set model.num_layers=2\n  \
    mamba-recsys train --data events.parquet --user-column customer --out runs/shop --set model.num_layers=2 --resume")]
pub(crate) struct Args {
    #[command(flatten)]
    log: LogArgs,

    /// Folder for the run
    #[arg(long, value_name = "DIR", default_value = "runs/recsys")]
    out: PathBuf,

    /// The model
    #[arg(long, value_name = "NAME", default_value = "mamba4rec", value_parser = ModelConfig::NAMES)]
    model: String,

    /// Mixer of mamba4rec and echomamba4rec: Mamba-1, as in their papers, or Mamba-2
    #[arg(long, value_name = "KIND", default_value = "mamba1", value_parser = ["mamba1", "mamba2"])]
    mixer: String,

    /// Passes over the training events at most
    #[arg(long, value_name = "N")]
    epochs: Option<f64>,

    /// Most items of a history that the model sees
    #[arg(long, value_name = "ITEMS")]
    max_length: Option<usize>,

    #[command(flatten)]
    training: TrainingArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Passes over the data by default, for a log and for the generated sample.
const EPOCHS: [f64; 2] = [100.0, 25.0];

impl Args {
    /// Preset, then file, then `--set`, then the flags of their own. Steps and evaluations follow the length of an epoch,
    /// which the data decides, so the settings of the data are resolved first.
    fn resolve(&self, log: &Log) -> Result<RunConfig> {
        let mut model =
            ModelConfig::named(&self.model).ok_or_else(|| Error::Config("unknown model".into()))?;
        if self.mixer == "mamba2" {
            let name = model.name();
            let mixer = model.mixer_mut().ok_or_else(|| Error::Config(format!("{name} has no --mixer")))?;
            *mixer = Mamba2Config { d_state: 32, headdim: 32, ..Mamba2Config::default() }.into();
        }
        let sample = self.log.data.is_empty();
        let train = TrainConfig {
            batch_size: if model.is_causal() { 64 } else { 512 },
            learning_rate: if sample { 3e-3 } else { 1e-3 },
            weight_decay: 0.0,
            betas: (0.9, 0.999),
            clip: Some(5.0),
            warmup: 100,
            schedule: Decay::Cosine,
            log_every: 50,
            patience: Some(10),
            ..TrainConfig::default()
        };
        let data = DataConfig { max_length: self.max_length.unwrap_or(200), ..DataConfig::default() };
        let positions = if model.is_causal() { Positions::All } else { Positions::Last };
        let (objective, eval) =
            (ObjectiveConfig { positions, ..ObjectiveConfig::default() }, EvalConfig::default());
        let mut cfg = RunConfig { model, data, objective, eval, train };

        let first = self.with_flags(self.training.settings.resolve(&cfg)?);
        let dataset = Dataset::new(log, &first.data.filter)?;
        let split = Split::new(&dataset, &first.data.split)?;
        let length = first.data.max_length.max(1);
        let sampler = Sampler::new(&dataset, &split, &first.objective, length, 0);
        let epoch = sampler.steps_per_epoch(first.train.batch_size.max(1));
        let epochs = self.epochs.unwrap_or(EPOCHS[usize::from(sample)]);
        if !(epochs > 0.0 && epochs.is_finite()) {
            return Err(Error::Config(format!("--epochs {epochs}: must be above 0")).into());
        }
        cfg.train.steps = ((epoch as f64 * epochs) as u64).max(1);
        (cfg.train.eval_every, cfg.train.save_every) = (epoch.max(1), epoch.max(1));
        let cfg = self.with_flags(self.training.settings.resolve(&cfg)?);
        cfg.validate()?;
        Ok(cfg)
    }

    fn with_flags(&self, mut cfg: RunConfig) -> RunConfig {
        self.training.apply(&mut cfg.train);
        cfg.data.max_length = self.max_length.unwrap_or(cfg.data.max_length);
        cfg
    }
}

/// Refuses to go on with a saved run under settings that make it another; those of the loop itself, the loop compares.
fn refuse_other_settings(out: &Path, cfg: &RunConfig) -> Result<()> {
    let (saved, now) = (serde_json::to_value(saved_config(out)?)?, serde_json::to_value(cfg)?);
    Ok(train::refuse_other_settings(out, &saved, &now, |path| path == "train")?)
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let mut console = Console::new(args.common.format, args.common.quiet);
    let log = args.log.read()?;
    let cfg = args.resolve(&log)?;
    let data = TrainingData::new(&log, &cfg.data)?;
    let (dataset, split) = (&data.dataset, &data.split);
    console.note(&format!(
        "{} events; {} of {} users with {} items stay; {} to train on, {} to validate, {} to test",
        log.len(),
        dataset.events(),
        dataset.users.len(),
        dataset.items.ids().len(),
        split.train.iter().sum::<usize>(),
        split.valid.len(),
        split.test.len()
    ));
    drop(log);

    let params = Params::fresh(cfg.train.seed, args.common.dtype(), &device);
    if args.training.resume && RunFolder::is_saved(&args.out) {
        refuse_other_settings(&args.out, &cfg)?;
    }
    let folder = args.training.folder(&args.out)?;
    let mut task = Training::new(&cfg, &data, params)?;
    console.note(&format!(
        "{}: {} parameters; {} steps of {} sequences are an epoch",
        cfg.model.name(),
        task.params().count(),
        task.steps_per_epoch(),
        cfg.train.batch_size
    ));
    let settings = serde_json::json!({ "recsys": &cfg, "data": &args.log.data });
    let info = RunInfo::new("mamba-recsys", env!("CARGO_PKG_VERSION"), &device, cfg.train.seed, settings);
    write_or_compare_items(&args.out, &dataset.items, &data.popularity)?;
    let stop = Stop::on_signals()?;
    if train::run_recorded(&mut task, &cfg.train, &folder, info, &mut console, &stop)?.is_none() {
        return Ok(interrupted(&console, &args.out));
    }
    drop(task);

    let checkpoint = RecCheckpoint::open(&args.out)?;
    let recommender = checkpoint.recommender(None, args.common.dtype(), &device)?;
    let mut table = Table::new(&cfg, &data);
    table.add(cfg.model.name(), test(&recommender, &data, &cfg.eval, &args.common)?);
    table.add_baselines(&args.common)?;
    let data_name = data_name(&args.log.data, "generated sample");
    let settings =
        Settings { model: settings_digest(&cfg)?, baselines: settings_digest(&(&cfg.data, &cfg.eval))? };
    save_results(&args.out, &data_name, cfg.train.seed, &settings, &table.rows())?;
    table.print(&args.common)?;
    let out = args.out.display();
    console.note(&format!("run in {out}: model, items, metrics, {out}/loss.svg"));
    Ok(ExitCode::SUCCESS)
}
