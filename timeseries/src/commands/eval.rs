//! `eval`: a checkpoint on the test part of a table, beside the naive forecasts.

use super::table_flags::TableFlags;
use super::{Shares, Source, dataset_for};
use anyhow::{Result, bail};
use candle_core::{DType, Device};
use mamba_core::cli::{CommonArgs, Format};
use mamba_timeseries::checkpoint::ForecastCheckpoint;
use mamba_timeseries::conformal::Calibration;
use mamba_timeseries::dataset::Dataset;
use mamba_timeseries::metrics::Score;
use mamba_timeseries::split::Part;
use mamba_timeseries::table::Table;
use mamba_timeseries::task::{naive_models, score};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `eval`.
#[derive(clap::Args)]
#[command(after_help = "\
The table is read as that of the training was, where the flags under Table do not say otherwise.

Example:
  mamba-timeseries eval ETTh1.csv --checkpoint runs/etth1_96")]
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
    table: TableFlags,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let checkpoint = super::open(&args.checkpoint, &args.table)?;
    let config = checkpoint.config();
    let source = Source::new(args.table_file.as_deref())?;
    let table = source.read(&config.table)?;
    config.check_frequency(table.frequency)?;
    let split = args.split.map_or(config.split, |Shares(split)| split);
    let data = dataset_for(&table, split, config)?;
    if data.windows(Part::Test).is_empty() {
        bail!("{}: the test part holds no window", source.name());
    }
    Report::new(&args.checkpoint, &data, &table, &device, &args.common)?.print(args.common.format)?;
    Ok(ExitCode::SUCCESS)
}

/// Figures on the test part.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Over all test windows.
    pub(crate) test: Score,
    /// Over whole batches only, as the papers' code tests; none where there is no whole batch.
    pub(crate) test_drop_last: Option<Score>,
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
        let dropped = match whole {
            0 => None,
            _ if whole == windows.len() => Some(all.clone()),
            _ => {
                // the windows that the papers' code leaves out, taken off again
                let rest = score(&model, config, data, &windows[whole..], device, |_| ())?;
                Some(all.without(&rest))
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
        let (test, test_drop_last, valid) = (all.score(), dropped.map(|sums| sums.score()), valid.score());
        Ok(Self { test, test_drop_last, valid, batch_size: config.batch_size, baselines, coverage })
    }

    /// On stdout, for people or as JSON.
    pub(crate) fn print(&self, format: Format) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if format == Format::Json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
            return Ok(());
        }
        let line = |name: &str, score: &Score| {
            format!("{name:<32} mse {:.4}  mae {:.4}  ({} windows)\n", score.mse, score.mae, score.windows)
        };
        let whole = format!("test, whole batches of {} only", self.batch_size);
        let mut text = String::from("errors on standardised values\n");
        text += &line("test", &self.test);
        text += &match &self.test_drop_last {
            Some(score) => line(&whole, score),
            None => format!("{whole:<32} none: there are fewer windows\n"),
        };
        text += &line("validation", &self.valid);
        text.extend(self.baselines.iter().map(|(name, score)| line(&format!("{name}, test"), score)));
        for (level, share) in &self.coverage {
            text += &format!("intervals of {level} % hold {:.1} % of the test values\n", 100.0 * share);
        }
        Ok(out.write_all(text.as_bytes())?)
    }
}
