//! `eval`: a checkpoint on the test part of a table, beside the naive forecasts.

use super::{Shares, Source, dataset_for};
use anyhow::{Result, bail};
use candle_core::{DType, Device};
use mamba_core::cli::{CommonArgs, Format};
use mamba_timeseries::checkpoint::ForecastCheckpoint;
use mamba_timeseries::conformal::Calibration;
use mamba_timeseries::dataset::Dataset;
use mamba_timeseries::metrics::Score;
use mamba_timeseries::split::Part;
use mamba_timeseries::table::{Table, TableOptions};
use mamba_timeseries::task::{naive_models, score};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `eval`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  mamba-timeseries eval ETTh1.csv --checkpoint runs/etth1_96")]
pub(crate) struct Args {
    /// Table [default: the bundled weather of New York]
    #[arg(value_name = "TABLE")]
    table_file: Option<PathBuf>,

    /// Folder of a run or a checkpoint
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Shares of training and test rows [default: the split of the run]
    #[arg(long, value_name = "SHARES")]
    split: Option<Shares>,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let checkpoint = ForecastCheckpoint::open(&args.checkpoint)?;
    let config = checkpoint.config();
    let source = Source { path: args.table_file };
    let table = source.read(&TableOptions { columns: config.columns.clone(), ..config.table.clone() })?;
    let split = args.split.map_or(config.split, |Shares(split)| split);
    let data = dataset_for(&table, split, config)?;
    if data.windows(Part::Test).is_empty() {
        bail!("{}: the test part holds no window", source.name());
    }
    Report::new(&args.checkpoint, &data, &table, &device, &args.common)?.print(args.common.format);
    Ok(ExitCode::SUCCESS)
}

/// Figures on the test part.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Over all test windows.
    pub(crate) test: Score,
    /// Over whole batches only, as the papers' code tests.
    pub(crate) test_drop_last: Score,
    /// Over the validation windows.
    pub(crate) valid: Score,
    /// Size of the batches.
    batch_size: usize,
    /// Naive forecasts over all test windows.
    baselines: Vec<(String, Score)>,
    /// Intervals: percent aimed at, share of test values within.
    coverage: Vec<(u8, f64)>,
}

impl Report {
    /// Tests the best model of a folder.
    pub(crate) fn new(
        folder: &Path,
        data: &Dataset,
        table: &Table,
        device: &Device,
        common: &CommonArgs,
    ) -> Result<Self> {
        let checkpoint = ForecastCheckpoint::open(folder)?;
        let config = checkpoint.config();
        let (model, _) = checkpoint.model(DType::F32, device)?;
        let windows = data.windows(Part::Test);
        let mut progress = common.progress(Some(windows.len() as u64), "windows");
        let mut done = 0;
        let seen = |n: usize| {
            progress.inc((n - done) as u64);
            done = n;
        };
        let all = score(&model, config, data, &windows, device, seen)?;
        progress.finish();
        let whole = windows.len() / config.batch_size * config.batch_size;
        let dropped = match whole == windows.len() || whole == 0 {
            true => all.clone(),
            false => {
                // the windows that the papers' code leaves out, taken off again
                let rest = score(&model, config, data, &windows[whole..], device, |_| ())?;
                all.without(&rest)
            }
        };
        let valid = score(&model, config, data, &data.windows(Part::Valid), device, |_| ())?;
        let mut baselines = Vec::new();
        for (name, naive) in naive_models(config.sizes(), table.frequency.season())? {
            baselines
                .push((name.to_string(), score(&naive, config, data, &windows, device, |_| ())?.score()));
        }
        let mut coverage = Vec::new();
        if let Some(calibration) = Calibration::load(folder, config)? {
            for level in [80, 95] {
                if calibration.check_level(level).is_ok() {
                    coverage
                        .push((level, calibration.coverage(level, &model, config, data, &windows, device)?));
                }
            }
        }
        let (test, test_drop_last, valid) = (all.score(), dropped.score(), valid.score());
        Ok(Self { test, test_drop_last, valid, batch_size: config.batch_size, baselines, coverage })
    }

    /// On stdout, for people or as JSON.
    pub(crate) fn print(&self, format: Format) {
        if format == Format::Json {
            println!("{}", serde_json::to_string(self).unwrap_or_default());
            return;
        }
        let line = |name: &str, score: &Score| {
            println!("{name:<32} mse {:.4}  mae {:.4}  ({} windows)", score.mse, score.mae, score.windows);
        };
        println!("errors on standardised values");
        line("test", &self.test);
        line(&format!("test, whole batches of {} only", self.batch_size), &self.test_drop_last);
        line("validation", &self.valid);
        self.baselines.iter().for_each(|(name, score)| line(&format!("{name}, test"), score));
        for (level, share) in &self.coverage {
            println!("intervals of {level} % hold {:.1} % of the test values", 100.0 * share);
        }
    }
}
