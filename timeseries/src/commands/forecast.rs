//! `forecast`: what comes after the last rows of every series.

mod output;

use super::table_flags::TableFlags;
use super::{Source, shown};
use anyhow::{Context, Result, anyhow, bail};
use mamba_core::cli::CommonArgs;
use mamba_datasets::job::Shard;
use mamba_datasets::job::arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use mamba_datasets::job::arrow_schema::{DataType, Field, Schema, SchemaRef};
use mamba_timeseries::checkpoint::{CheckpointConfig, ForecastCheckpoint};
use mamba_timeseries::forecast::{Forecast, Forecaster};
use mamba_timeseries::picture::{self, ForecastPicture};
use mamba_timeseries::table::{Gaps, Series, SeriesStream, columns_named};
use output::destination;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Series whose forecasts are made at once.
const BATCH: usize = 64;

/// Flags of `forecast`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Each row of the output is one time of one variable of one series: id, time, column, forecast, and a lower and an upper
bound for each level. With --plot the first series is drawn (or the one that --plot-id names), with --shard by the shard
that makes its part. Times are in UTC, or with --time-zone in that zone with its offset.

The table is read as that of the training was, where the flags under Table do not say otherwise.

The rows of a series must stand together in the table; then memory does not grow with the number of series. New rows at
the end of a table move the forecast, without training again.

Example:
  mamba-timeseries forecast load.csv --checkpoint runs/load --out forecast.csv --plot forecast.png")]
pub(crate) struct Args {
    /// Table [default: the bundled weather of New York]
    #[arg(value_name = "TABLE")]
    table_file: Option<PathBuf>,

    /// Folder of the model
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Output: .csv, .tsv, .parquet or .json, a directory for parts, or - for standard output: CSV, or with --format json one
    /// object per line
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,

    /// Replace output that was made from something else
    #[arg(long)]
    overwrite: bool,

    /// Levels of the intervals in percent, separated by commas, or none
    #[arg(long, value_name = "LEVELS", default_value = "80,95")]
    level: Levels,

    /// Columns to write and draw, separated by commas [default: all that the model was trained to forecast]
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    targets: Vec<String>,

    /// Picture of history and forecast, of the first six columns: .png or .svg; repeatable
    #[arg(long, value_name = "FILE")]
    plot: Vec<PathBuf>,

    /// The series to draw
    #[arg(long, value_name = "ID")]
    plot_id: Option<String>,

    /// Rows of history in the picture [default: what the model looks back]
    #[arg(long, value_name = "ROWS")]
    plot_history: Option<usize>,

    /// Series in a part
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Work")]
    part_series: u32,

    /// Make every N-th part from number I on, I from 0: shard 0/4, 1/4, 2/4 and 3/4 make all parts
    #[arg(long, value_name = "I/N", help_heading = "Work")]
    shard: Option<Shard>,

    #[command(flatten)]
    table: TableFlags,

    #[command(flatten)]
    common: CommonArgs,
}

/// What `--level` takes.
#[derive(Clone, Debug)]
struct Levels(Vec<u8>);

impl std::str::FromStr for Levels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let level = |part: &str| part.trim().parse::<u8>().ok().filter(|level| (1..=99).contains(level));
        let levels = text
            .split(',')
            .map(|part| level(part).ok_or(format!("{part:?} is not a whole number from 1 to 99")));
        let mut levels = levels.collect::<Result<Vec<u8>, String>>()?;
        levels.sort_unstable();
        levels.dedup();
        Ok(Self(levels))
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let checkpoint = super::open(&args.checkpoint, &args.table)?;
    let config = checkpoint.config();
    let source = Source::new(args.table_file.as_deref())?;
    source.refuse_as_outputs(Some(&args.out), &args.plot)?;
    let options = source.options(&config.table);
    let targets = targets(&args.targets, config)?;
    let note = |line: &str| {
        if !args.common.quiet {
            eprintln!("{line}");
        }
    };
    source.with_path(|path| {
        // rows that may come at any time are held against the model by the first series' most common distance
        let frequency = config.frequency.filter(|_| options.gaps != Gaps::Keep);
        let mut stream = SeriesStream::open(path, &options, frequency)?;
        let mut maker = Maker {
            args: &args,
            checkpoint: &checkpoint,
            device: &device,
            targets: &targets,
            forecaster: None,
            drawn: false,
            pictures: String::new(),
        };
        if let (_, Some(words)) = shown(&targets, config)
            && !args.plot.is_empty()
        {
            note(&format!("{words}; --targets chooses others"));
        }
        let Some(mut output) = destination(&args, &checkpoint, path, &maker.schema())? else {
            while !args.plot.is_empty()
                && !maker.drawn
                && let Some(next) = stream.next().transpose()?
            {
                maker.draw(&next, &stream)?;
            }
            maker.check_drawn()?;
            let (out, pictures) = (args.out.display(), maker.pictures);
            note(&format!("{out}: finished before from the same table and model: left as it is{pictures}"));
            return Ok(());
        };
        let (mut batch, mut series) = (Vec::new(), 0);
        let mut progress = args.common.progress(None, "series");
        while let Some(next) = stream.next().transpose()? {
            maker.draw(&next, &stream)?;
            // a batch ends with its part
            if batch.len() == BATCH || output.ends_before(series) {
                output.write(&maker.rows(&std::mem::take(&mut batch), &stream)?)?;
            }
            if output.wants(series, &maker.schema())? {
                batch.push(next);
            }
            series += 1;
            progress.inc(1);
        }
        progress.finish();
        output.write(&maker.rows(&batch, &stream)?)?;
        maker.check_drawn()?;
        let left = output.finish()?;
        note(&format!(
            "{}\nforecasts of {series} series in {}{left}{}",
            stream.counts(),
            args.out.display(),
            maker.pictures
        ));
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Places of the columns that are asked for.
fn targets(wanted: &[String], config: &CheckpointConfig) -> Result<Vec<usize>> {
    let forecast = config.target_places();
    if wanted.is_empty() {
        return Ok(forecast);
    }
    let known: Vec<String> = forecast.iter().map(|&i| config.columns[i].clone()).collect();
    let names = columns_named(wanted, &known).map_err(|name| {
        anyhow!("--targets {name}: the model does not forecast such a column, only {}", known.join(", "))
    })?;
    let place = |name: &String| forecast.iter().copied().find(|&i| config.columns[i] == *name);
    Ok(names.iter().filter_map(place).collect())
}

/// Makes rows of forecasts.
struct Maker<'a> {
    args: &'a Args,
    checkpoint: &'a ForecastCheckpoint,
    device: &'a candle_core::Device,
    targets: &'a [usize],
    forecaster: Option<Arc<Forecaster>>,
    /// Whether the series to draw has come.
    drawn: bool,
    /// Words on what became of the pictures.
    pictures: String,
}

impl Maker<'_> {
    fn schema(&self) -> SchemaRef {
        let text = ["id", "time", "column"].map(|name| Field::new(name, DataType::Utf8, false));
        let bounds =
            self.args.level.0.iter().flat_map(|level| [format!("lower_{level}"), format!("upper_{level}")]);
        let numbers = std::iter::once("forecast".to_string()).chain(bounds);
        let numbers = numbers.map(|name| Field::new(name, DataType::Float64, false));
        Arc::new(Schema::new(text.into_iter().chain(numbers).collect::<Vec<_>>()))
    }

    /// The forecaster of rows at the stream's frequency, which is known once the first series has been read.
    fn forecaster(&mut self, stream: &SeriesStream) -> Result<Arc<Forecaster>> {
        if let Some(forecaster) = &self.forecaster {
            return Ok(forecaster.clone());
        }
        let frequency = stream.counts().frequency.context("no series was read")?;
        let forecaster = Forecaster::new(self.checkpoint, frequency, &self.args.level.0, self.device)?;
        Ok(self.forecaster.insert(Arc::new(forecaster)).clone())
    }

    /// Draws the series that was read last if it is the one to draw, and of a part that is made here.
    fn draw(&mut self, series: &Series, stream: &SeriesStream) -> Result<()> {
        if self.drawn || self.args.plot_id.as_ref().is_some_and(|id| *id != series.id) {
            return Ok(());
        }
        self.drawn = true;
        if self.args.plot.is_empty() {
            return Ok(());
        }
        let part = (stream.counts().series - 1) / self.args.part_series as usize;
        if !self.args.shard.unwrap_or_default().owns(part) {
            self.pictures = "; the picture is left to another shard".into();
            return Ok(());
        }
        let forecaster = self.forecaster(stream)?;
        let forecasts = forecaster.forecast(&[forecaster.look_back(series, series.len())?])?;
        draw(self.args, &forecaster, self.targets, series, &forecasts[0])?;
        self.pictures =
            self.args.plot.iter().map(|path| format!("; picture in {}", path.display())).collect();
        Ok(())
    }

    /// Refuses to end without the series that was to be drawn.
    fn check_drawn(&self) -> Result<()> {
        match &self.args.plot_id {
            Some(id) if !self.drawn && !self.args.plot.is_empty() => {
                bail!("there is no series {id:?} to draw")
            }
            _ => Ok(()),
        }
    }

    /// Rows of the forecasts of some series.
    fn rows(&mut self, series: &[Series], stream: &SeriesStream) -> Result<RecordBatch> {
        if series.is_empty() {
            return Ok(RecordBatch::new_empty(self.schema()));
        }
        let forecaster = self.forecaster(stream)?;
        let look_backs =
            series.iter().map(|s| forecaster.look_back(s, s.len())).collect::<Result<Vec<_>, _>>()?;
        let forecasts = forecaster.forecast(&look_backs)?;
        let (frequency, zone) = (forecaster.frequency(), forecaster.zone());
        let n = forecaster.config().columns.len();
        let (mut ids, mut times, mut columns) = (Vec::new(), Vec::new(), Vec::new());
        let mut numbers: Vec<Vec<f64>> = vec![Vec::new(); 1 + 2 * self.args.level.0.len()];
        for (series, forecast) in series.iter().zip(&forecasts) {
            for (step, &time) in forecast.times.iter().enumerate() {
                let time = frequency.format(time, zone);
                for &target in self.targets {
                    let at = step * n + target;
                    ids.push(series.id.as_str());
                    times.push(time.clone());
                    columns.push(forecaster.config().columns[target].as_str());
                    numbers[0].push(forecast.values[at]);
                    for (i, interval) in forecast.intervals.iter().enumerate() {
                        numbers[1 + 2 * i].push(interval.lower[at]);
                        numbers[2 + 2 * i].push(interval.upper[at]);
                    }
                }
            }
        }
        if let Some(at) = numbers[0].iter().position(|v| !v.is_finite()) {
            bail!(
                "series {:?}, column {:?}: the forecast of {} is {}",
                ids[at],
                columns[at],
                times[at],
                numbers[0][at]
            );
        }
        let text: [ArrayRef; 3] = [
            Arc::new(StringArray::from(ids)),
            Arc::new(StringArray::from(times)),
            Arc::new(StringArray::from(columns)),
        ];
        let numbers = numbers.into_iter().map(|column| Arc::new(Float64Array::from(column)) as ArrayRef);
        Ok(RecordBatch::try_new(self.schema(), text.into_iter().chain(numbers).collect())?)
    }
}

fn draw(
    args: &Args,
    forecaster: &Forecaster,
    targets: &[usize],
    series: &Series,
    forecast: &Forecast,
) -> Result<()> {
    let n = forecaster.config().columns.len();
    let history = args.plot_history.unwrap_or(forecaster.seq_len()).clamp(2, series.len());
    let start = series.len() - history;
    let name = if series.id.is_empty() { String::new() } else { format!("{}: ", series.id) };
    let frequency = forecaster.frequency();
    let picture = ForecastPicture {
        title: format!(
            "{name}{} rows, every {frequency}, after {}",
            forecast.times.len(),
            frequency.format(series.times[series.len() - 1], forecaster.zone()).replace('T', " ")
        ),
        columns: &forecaster.config().columns,
        shown: shown(targets, forecaster.config()).0,
        times: &series.times[start..],
        values: &series.values[start * n..],
        forecast,
        actual: None,
        frequency,
        zone: forecaster.zone(),
    };
    for path in &args.plot {
        picture::save(path, &picture)?;
    }
    Ok(())
}
