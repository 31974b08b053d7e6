//! `backtest`: forecasts from many past origins, held against what came.

use super::table_flags::TableFlags;
use super::{Source, shown};
use anyhow::{Result, anyhow, bail};
use mamba_core::cli::{CommonArgs, Format, HintExt};
use mamba_datasets::AtomicFile;
use mamba_timeseries::forecast::Forecaster;
use mamba_timeseries::picture::{self, ForecastPicture};
use mamba_timeseries::split::Part;
use mamba_timeseries::table::Series;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Origins whose forecasts are made at once.
const BATCH: usize = 64;

/// Flags of `backtest`.
#[derive(clap::Args)]
#[command(
    after_help = "Errors are in the units of each column: mae is the mean absolute error, bias the mean of forecast minus truth; mase is
the mean absolute error over that of repeating the last season of the look-back, so that below 1 is better than that.
The table is read as that of the training was, where the flags under Table do not say otherwise.

Example:
  mamba-timeseries backtest load.csv --checkpoint runs/load --step 24 --out backtest.csv --plot backtest.png"
)]
pub(crate) struct Args {
    /// Table [default: the bundled weather of New York]
    #[arg(value_name = "TABLE")]
    table_file: Option<PathBuf>,

    /// Folder of the model
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Rows between two origins
    #[arg(long, value_name = "ROWS", default_value = "24")]
    step: NonZeroUsize,

    /// Origins at most, the last ones [default: all of the test part]
    #[arg(long, value_name = "N")]
    origins: Option<NonZeroUsize>,

    /// Level of the intervals in percent
    #[arg(long, value_name = "LEVEL", default_value_t = 80, value_parser = clap::value_parser!(u8).range(1..=99))]
    level: u8,

    /// CSV of every forecast: id, origin, step, time, column, forecast, lower, upper, actual
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Replace the file of --out
    #[arg(long)]
    overwrite: bool,

    /// Picture of the last origin of the first series, of the first six columns: .png or .svg; repeatable
    #[arg(long, value_name = "FILE")]
    plot: Vec<PathBuf>,

    #[command(flatten)]
    table: TableFlags,

    #[command(flatten)]
    common: CommonArgs,
}

/// Sums over origins, for one column.
#[derive(Clone, Debug, Default)]
struct Sums {
    /// Absolute error and error, by step of the horizon.
    absolute: Vec<f64>,
    error: Vec<f64>,
    naive: f64,
    inside: usize,
    n: usize,
}

impl Sums {
    fn line(&self, name: &str, steps: usize) -> serde_json::Value {
        let total = |sums: &[f64]| sums.iter().sum::<f64>() / self.n as f64;
        let origins = self.n / steps;
        let by_step: Vec<f64> = self.absolute.iter().map(|sum| sum / origins as f64).collect();
        serde_json::json!({
            "column": name, "mae": total(&self.absolute), "bias": total(&self.error),
            "mase": self.absolute.iter().sum::<f64>() / self.naive, "coverage": self.inside as f64 / self.n as f64,
            "mae_by_step": by_step,
        })
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let checkpoint = super::open(&args.checkpoint, &args.table)?;
    let config = checkpoint.config();
    let source = Source::new(args.table_file.as_deref())?;
    source.refuse_as_outputs(args.out.as_deref(), &args.plot)?;
    if let Some(out) = args.out.as_ref().filter(|out| out.exists() && !args.overwrite) {
        return Err(anyhow!("{} exists already", out.display())).hint("--overwrite replaces it");
    }
    let table = source.read(&config.table)?;
    let forecaster = Forecaster::new(&checkpoint, table.frequency, &[args.level], &device)?;
    let (h, n, targets) = (config.pred_len, config.columns.len(), config.target_places());

    let mut origins: Vec<(&Series, usize)> = Vec::new();
    for (series, parts) in table.series.iter().zip(table.parts(config.split, config.seq_len, h)?) {
        let mut of_series: Vec<usize> = parts.windows(Part::Test).rev().step_by(args.step.get()).collect();
        of_series.truncate(args.origins.map_or(usize::MAX, usize::from));
        origins.extend(of_series.into_iter().rev().map(|origin| (series, origin)));
    }
    if origins.is_empty() {
        bail!("{}: the test part has no room for an origin", source.name());
    }
    let season = match table.frequency.season() {
        season if season <= config.seq_len => season,
        _ => 1,
    };
    let mut file = match &args.out {
        Some(path) => {
            let mut file = AtomicFile::create(path)?;
            writeln!(file, "id,origin,step,time,column,forecast,lower,upper,actual")?;
            Some(file)
        }
        None => None,
    };
    let time = |time: i64| table.frequency.format(time, forecaster.zone());
    let (shown, words) = shown(&targets, config);
    if let Some(words) = words.filter(|_| !args.plot.is_empty() && !args.common.quiet) {
        eprintln!("{words}");
    }
    let mut sums = vec![Sums { absolute: vec![0.0; h], error: vec![0.0; h], ..Sums::default() }; n];
    let mut progress = args.common.progress(Some(origins.len() as u64), "origins");
    let mut drawn = false;
    for batch in origins.chunks(BATCH) {
        let look_backs = batch.iter().map(|(series, origin)| forecaster.look_back(series, *origin));
        let forecasts = forecaster.forecast(&look_backs.collect::<Result<Vec<_>, _>>()?)?;
        for (&(series, origin), forecast) in batch.iter().zip(&forecasts) {
            let actual = &series.values[origin * n..(origin + h) * n];
            let last_season = &series.values[(origin - season) * n..origin * n];
            let interval = &forecast.intervals[0];
            for (step, &column) in (0..h).flat_map(|step| targets.iter().map(move |column| (step, column))) {
                let i = step * n + column;
                let value = forecast.values[i];
                let sums = &mut sums[column];
                sums.absolute[step] += (value - actual[i]).abs();
                sums.error[step] += value - actual[i];
                sums.naive += (last_season[step % season * n + column] - actual[i]).abs();
                sums.inside += usize::from((interval.lower[i]..=interval.upper[i]).contains(&actual[i]));
                sums.n += 1;
                if let Some(file) = &mut file {
                    let (id, name) = (quoted(&series.id), quoted(&config.columns[column]));
                    let (from, at) = (time(series.times[origin - 1]), time(series.times[origin + step]));
                    let (low, high, actual) = (interval.lower[i], interval.upper[i], actual[i]);
                    writeln!(file, "{id},{from},{},{at},{name},{value},{low},{high},{actual}", step + 1)?;
                }
            }
            let is_last = |s: &Series| std::ptr::eq(s, &table.series[0]);
            let last_of_first = origins.iter().rfind(|(s, _)| is_last(s)).map(|(_, origin)| *origin);
            if !drawn && is_last(series) && Some(origin) == last_of_first {
                let name = if series.id.is_empty() { String::new() } else { format!("{}: ", series.id) };
                let picture = ForecastPicture {
                    title: format!(
                        "{name}forecast from {}",
                        time(series.times[origin - 1]).replace('T', " ")
                    ),
                    columns: &config.columns,
                    shown: shown.clone(),
                    times: &series.times[origin - config.seq_len..origin],
                    values: &series.values[(origin - config.seq_len) * n..origin * n],
                    forecast,
                    actual: Some(actual),
                    frequency: table.frequency,
                    zone: forecaster.zone(),
                };
                args.plot.iter().try_for_each(|path| picture::save(path, &picture))?;
                drawn = true;
            }
        }
        progress.inc(batch.len() as u64);
    }
    progress.finish();
    if let Some(file) = file {
        file.commit()?;
    }
    let lines: Vec<_> = targets.iter().map(|&i| sums[i].line(&config.columns[i], h)).collect();
    let mut out = std::io::stdout().lock();
    if args.common.format == Format::Json {
        writeln!(
            out,
            "{}",
            serde_json::json!({ "origins": origins.len(), "level": args.level, "columns": lines })
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{} origins, {} rows each; intervals of {} %", origins.len(), h, args.level)?;
    writeln!(
        out,
        "{:<24} {:>10} {:>10} {:>10} {:>7} {:>9}   mae after {}",
        "column",
        "mae",
        "bias",
        "mase",
        "",
        "coverage",
        steps(h)
    )?;
    for line in &lines {
        let number = |key: &str| line[key].as_f64().unwrap_or(f64::NAN);
        let at =
            |step: usize| line["mae_by_step"][step].as_f64().map_or(String::new(), |v| format!("{v:.3}"));
        let by_step = [0, h / 2, h - 1].map(at).join(" … ");
        writeln!(
            out,
            "{:<24} {:>10.4} {:>10.4} {:>10.3} {:>7} {:>8.1}%   {by_step}",
            line["column"].as_str().unwrap_or_default(),
            number("mae"),
            number("bias"),
            number("mase"),
            "",
            100.0 * number("coverage"),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn steps(h: usize) -> String {
    format!("1, {} and {h} rows", h / 2 + 1)
}

/// A value of a CSV file.
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}
