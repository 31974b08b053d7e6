//! `train`: a forecaster for a table.

use super::table_flags::TableFlags;
use super::{Shares, Source};
use anyhow::{Context, Result};
use candle_core::Device;
use mamba_core::Params;
use mamba_core::cli::{CommonArgs, Format, SettingsArgs, interrupted, open_run};
use mamba_core::run_folder::RunInfo;
use mamba_core::train::{self, Console, Stop};
use mamba_timeseries::checkpoint::{CheckpointConfig, ForecastCheckpoint};
use mamba_timeseries::config::ForecastConfig;
use mamba_timeseries::conformal::Calibration;
use mamba_timeseries::dataset::Dataset;
use mamba_timeseries::models::ModelConfig;
use mamba_timeseries::split::Part;
use mamba_timeseries::table::{Table, TableOptions, columns_named};
use mamba_timeseries::task::{Forecasting, decide};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `train`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    mamba-timeseries train --out runs/weather\n  \
    mamba-timeseries train load.csv --out runs/load --horizon 48 --model bi-mamba-plus\n  \
    mamba-timeseries train load.csv --out runs/load --columns load,temperature,price --targets load\n  \
    mamba-timeseries train etth1 --preset etth1 --horizon 96 --out runs/etth1_96\n  \
    mamba-timeseries train load.csv --out runs/load --resume")]
pub(crate) struct Args {
    /// Table of one or more series: CSV, gzip-compressed CSV or Parquet, or a set of `mamba-timeseries datasets
    /// list` [default: the bundled weather of New York]
    #[arg(value_name = "TABLE")]
    table_file: Option<PathBuf>,

    /// Folder for the run
    #[arg(long, value_name = "DIR", default_value = "runs/timeseries")]
    out: PathBuf,

    /// Go on where the run in --out was saved
    #[arg(long)]
    resume: bool,

    /// The model: s-mamba, bi-mamba-plus, time-machine, mamba-ts, mamba, mamba-simple or dlinear
    #[arg(long, value_name = "NAME", default_value = "s-mamba")]
    model: String,

    /// Settings of the model's paper for a data set: etth1, etth2, ettm1 or weather; rows are taken as they stand, unless
    /// --duplicates or --gaps say otherwise
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,

    /// Rows to forecast [default: 96; 24 for the bundled table]
    #[arg(long, value_name = "ROWS")]
    horizon: Option<usize>,

    /// Rows that the model looks back [default: 96]
    #[arg(long, value_name = "ROWS")]
    look_back: Option<usize>,

    /// Columns that the model sees, separated by commas [default: all numeric ones]
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', help_heading = "Table")]
    columns: Vec<String>,

    /// Columns to forecast, separated by commas; the others that the model sees only help [default: all]
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    targets: Vec<String>,

    /// Shares of training and test rows, for example 0.7,0.2; the rest is for validation
    #[arg(long, value_name = "SHARES")]
    split: Option<Shares>,

    /// Start from the weights of a checkpoint of the same shape
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,

    /// Passes over the training windows
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,

    /// Stop after so many minutes, saved and evaluated
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,

    /// Learning rate at the start
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,

    #[command(flatten)]
    table: TableFlags,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    common: CommonArgs,
}

impl Args {
    /// Preset, then file, then `--set`, then the flags of their own.
    fn resolve(&self) -> Result<ForecastConfig> {
        let bundled = self.table_file.is_none();
        let horizon = self.horizon.unwrap_or(if bundled { 24 } else { 96 });
        let mut preset = ForecastConfig::preset(&self.model, self.preset.as_deref(), horizon)?;
        if bundled {
            // about a minute on two cores
            (preset.train.epochs, preset.train.window_stride) = (4, 3);
        }
        let mut cfg = self.settings.resolve(&preset)?;
        cfg.pred_len = self.horizon.unwrap_or(cfg.pred_len);
        cfg.seq_len = self.look_back.unwrap_or(cfg.seq_len);
        cfg.split = self.split.map_or(cfg.split, |Shares(split)| split);
        if !self.targets.is_empty() {
            cfg.targets.clone_from(&self.targets);
        }
        let train = &mut cfg.train;
        train.seed = self.settings.seed.unwrap_or(train.seed);
        train.epochs = self.epochs.unwrap_or(train.epochs);
        train.learning_rate = self.learning_rate.unwrap_or(train.learning_rate);
        train.max_minutes = self.minutes.or(train.max_minutes);
        Ok(cfg)
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let mut cfg = args.resolve()?;
    let mut console = Console::new(args.common.format, args.common.quiet);
    let source = Source::new(args.table_file.as_deref())?;
    let defaults = match &args.preset {
        // as the papers' code reads the benchmarks
        Some(_) => TableOptions::as_they_stand(),
        None => TableOptions::default(),
    };
    let options = args.table.over(TableOptions { columns: args.columns.clone(), ..defaults });
    let options = source.options(&options);
    let table = source.read(&options)?;
    if let Ok(targets) = columns_named(&cfg.targets, &table.columns) {
        cfg.targets = targets;
    }
    console.note(&format!("{}: {}", source.name(), table.counts));
    let init = args.init.as_deref();
    let dtype = args.common.dtype();
    let run = Run { cfg: &cfg, options: &options, out: &args.out, resume: args.resume, init, dtype };
    let Some(trained) = run.train(&table, &device, &mut console)? else {
        return Ok(interrupted(&console, &args.out));
    };
    if !trained.data.windows(Part::Test).is_empty() {
        let report = super::eval::Report::new(&args.out, &trained.data, &table, &device, &args.common)?;
        report.print(args.common.format)?;
    }
    let (out, path) = (args.out.display(), args.table_file.as_ref().map(|p| format!(" {}", p.display())));
    if args.common.format == Format::Human {
        console.note(&format!(
            "run in {out}: model, metrics, {out}/loss.svg\nnext: mamba-timeseries forecast{} --checkpoint {out} --out forecast.csv --plot forecast.png",
            path.unwrap_or_default()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// One training run.
pub(crate) struct Run<'a> {
    pub(crate) cfg: &'a ForecastConfig,
    pub(crate) options: &'a TableOptions,
    pub(crate) out: &'a Path,
    pub(crate) resume: bool,
    pub(crate) init: Option<&'a Path>,
    /// Type of weights and activations.
    pub(crate) dtype: candle_core::DType,
}

/// What a finished run was made on.
pub(crate) struct Trained {
    pub(crate) data: Dataset,
    pub(crate) seconds: f64,
}

impl Run<'_> {
    /// Trains, and calibrates intervals on the validation part; `None` when interrupted, with all saved.
    pub(crate) fn train(
        &self,
        table: &Table,
        device: &Device,
        console: &mut Console,
    ) -> Result<Option<Trained>> {
        let cfg = self.cfg;
        let zone = self.options.time_zone.as_deref().and_then(|zone| zone.parse().ok());
        let lengths = (cfg.seq_len, cfg.pred_len);
        let data = Dataset::new(table, cfg.split, lengths, zone, None)?;
        let saved = CheckpointConfig {
            format: CheckpointConfig::FORMAT.into(),
            seq_len: cfg.seq_len,
            pred_len: cfg.pred_len,
            model: decide(&cfg.model, &data),
            columns: data.columns().to_vec(),
            targets: cfg.targets.clone(),
            scaler: data.scaler().clone(),
            frequency: Some(table.frequency),
            split: cfg.split,
            table: TableOptions { numbers: table.numbers, ..self.options.clone() },
            batch_size: cfg.train.batch_size,
        };
        if let (ModelConfig::BiMambaPlus(asked), ModelConfig::BiMambaPlus(decided)) =
            (&cfg.model, &saved.model)
            && asked.channel_independent.is_none()
        {
            let mixes = decided.channel_independent == Some(false);
            console.note(if mixes {
                "the variables are related: they are mixed"
            } else {
                "the variables are kept apart"
            });
        }
        saved.model.validate(saved.sizes())?;
        saved.validate_targets()?;
        let params = Params::start(self.init, cfg.train.seed, self.dtype, device)?;
        let mut task = Forecasting::new(cfg, &saved, &data, params)?;
        let train_config = cfg.train.to_train_config(task.steps_per_epoch());
        train_config.validate()?;
        let folder = open_run(self.out, self.resume)?;
        console.note(&format!(
            "{} of {} variables: {} parameters; windows: {} to train on, {} for validation, {} for the test",
            cfg.model.name(),
            data.columns().len(),
            train::Task::params(&task).count(),
            data.windows(Part::Train).len(),
            data.windows(Part::Valid).len(),
            data.windows(Part::Test).len(),
        ));
        let settings = serde_json::json!({ "forecast": cfg, "table": table.path.file_name().map(|n| n.to_string_lossy()) });
        let info =
            RunInfo::new("mamba-timeseries", env!("CARGO_PKG_VERSION"), device, cfg.train.seed, settings);
        let stop = Stop::on_signals()?;
        let Some(report) = train::run_recorded(&mut task, &train_config, &folder, info, console, &stop)?
        else {
            return Ok(None);
        };
        drop(task);
        let opened = ForecastCheckpoint::open(self.out)?;
        let (model, _) = opened.model(candle_core::DType::F32, device)?;
        let valid = data.windows(Part::Valid);
        let calibration = Calibration::fit(&model, &saved, &data, &valid, device)?;
        calibration.save(self.out).context("cannot save the intervals")?;
        Ok(Some(Trained { data, seconds: report.seconds }))
    }
}
