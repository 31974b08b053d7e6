//! `forecast`: what comes after the last rows of every series.

use super::Source;
use anyhow::{Context, Result, bail};
use mamba_core::cli::CommonArgs;
use mamba_datasets::job::arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use mamba_datasets::job::arrow_schema::{DataType, Field, Schema, SchemaRef};
use mamba_datasets::job::{self, Fingerprint, Job, Part as Output};
use mamba_timeseries::checkpoint::ForecastCheckpoint;
use mamba_timeseries::forecast::{Forecast, Forecaster};
use mamba_timeseries::picture::{self, ForecastPicture};
use mamba_timeseries::table::{Series, SeriesStream, TableOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Series whose forecasts are made at once.
const BATCH: usize = 64;

/// Flags of `forecast`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Each row of the output is one time of one variable of one series: id, time, column, forecast, and a lower and an upper
bound for each level. With --plot the first series is drawn (or the one that --plot-id names).

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

    /// Output: .csv, .tsv, .parquet or .json; - for CSV on standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,

    /// Replace output that was made from something else
    #[arg(long)]
    overwrite: bool,

    /// Levels of the intervals in percent, separated by commas, or none
    #[arg(long, value_name = "LEVELS", default_value = "80,95")]
    level: Levels,

    /// Columns to write and draw, separated by commas [default: all]
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    targets: Vec<String>,

    /// Picture of history and forecast: .png or .svg; repeatable
    #[arg(long, value_name = "FILE")]
    plot: Vec<PathBuf>,

    /// The series to draw
    #[arg(long, value_name = "ID")]
    plot_id: Option<String>,

    /// Rows of history in the picture [default: what the model looks back]
    #[arg(long, value_name = "ROWS")]
    plot_history: Option<usize>,

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
    let checkpoint = ForecastCheckpoint::open(&args.checkpoint)?;
    let config = checkpoint.config();
    let source = Source { path: args.table_file.clone() };
    let options = source.options(&TableOptions { columns: config.columns.clone(), ..config.table.clone() });
    let targets = targets(&args.targets, &config.columns)?;
    source.with_path(|path| {
        let stream = SeriesStream::open(path, &options, config.frequency)?;
        let mut maker = Maker {
            args: &args,
            checkpoint: &checkpoint,
            device: &device,
            targets: &targets,
            forecaster: None,
            drawn: false,
        };
        let mut output = match destination(&args, &checkpoint, path, &maker.schema())? {
            Some(output) => output,
            None => {
                if !args.common.quiet {
                    eprintln!(
                        "{}: finished before from the same table and model: left as it is",
                        args.out.display()
                    );
                }
                return Ok(());
            }
        };
        let (mut batch, mut series) = (Vec::new(), 0);
        let mut progress = args.common.progress(None, "series");
        let mut stream = stream;
        while let Some(next) = stream.next().transpose()? {
            batch.push(next);
            if batch.len() == BATCH {
                series += batch.len();
                output.write(&maker.rows(&std::mem::take(&mut batch), &stream)?)?;
                progress.inc(BATCH as u64);
            }
        }
        series += batch.len();
        progress.inc(batch.len() as u64);
        progress.finish();
        if !batch.is_empty() {
            output.write(&maker.rows(&batch, &stream)?)?;
        }
        if let Some(id) = args.plot_id.as_ref().filter(|_| !maker.drawn) {
            bail!("there is no series {id:?} to draw");
        }
        output.finish()?;
        if !args.common.quiet {
            let drawn =
                args.plot.iter().map(|path| format!("; picture in {}", path.display())).collect::<String>();
            eprintln!("{}\nforecasts of {series} series in {}{drawn}", stream.counts(), args.out.display());
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Places of the columns that are asked for.
fn targets(wanted: &[String], columns: &[String]) -> Result<Vec<usize>> {
    if wanted.is_empty() {
        return Ok((0..columns.len()).collect());
    }
    let place = |name: &String| {
        columns.iter().position(|column| column == name).with_context(|| {
            format!("--targets {name}: the model has no such column, only {}", columns.join(", "))
        })
    };
    wanted.iter().map(place).collect()
}

/// Makes rows of forecasts.
struct Maker<'a> {
    args: &'a Args,
    checkpoint: &'a ForecastCheckpoint,
    device: &'a candle_core::Device,
    targets: &'a [usize],
    forecaster: Option<Forecaster>,
    drawn: bool,
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

    /// Rows of the forecasts of some series.
    fn rows(&mut self, series: &[Series], stream: &SeriesStream) -> Result<RecordBatch> {
        if self.forecaster.is_none() {
            // the frequency is known once the first series has been read
            let frequency = stream.counts().frequency.context("no series was read")?;
            self.forecaster =
                Some(Forecaster::new(self.checkpoint, frequency, &self.args.level.0, self.device)?);
        }
        let Some(forecaster) = &self.forecaster else { bail!("no series was read") };
        let look_backs =
            series.iter().map(|s| forecaster.look_back(s, s.len())).collect::<Result<Vec<_>, _>>()?;
        let forecasts = forecaster.forecast(&look_backs)?;
        let wanted = |series: &Series| self.args.plot_id.as_ref().is_none_or(|id| *id == series.id);
        if !self.drawn
            && let Some(at) = series.iter().position(wanted)
        {
            draw(self.args, forecaster, self.targets, &series[at], &forecasts[at])?;
            self.drawn = true;
        }
        let frequency = forecaster.frequency();
        let n = forecaster.config().columns.len();
        let (mut ids, mut times, mut columns) = (Vec::new(), Vec::new(), Vec::new());
        let mut numbers: Vec<Vec<f64>> = vec![Vec::new(); 1 + 2 * self.args.level.0.len()];
        for (series, forecast) in series.iter().zip(&forecasts) {
            for (step, &time) in forecast.times.iter().enumerate() {
                let time = frequency.format(time);
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
            frequency.format(series.times[series.len() - 1]).replace('T', " ")
        ),
        columns: &forecaster.config().columns,
        shown: targets.iter().copied().take(picture::MAX_PANELS).collect(),
        times: &series.times[start..],
        values: &series.values[start * n..],
        forecast,
        actual: None,
        frequency,
    };
    for path in &args.plot {
        picture::save(path, &picture)?;
    }
    Ok(())
}

/// Where rows go.
enum Sink {
    Part(Box<job::PartWriter>),
    Json(Box<JsonFile>),
    Stdout { header: bool },
}

/// A JSON array that is being written.
struct JsonFile {
    claim: job::Claim,
    file: mamba_datasets::AtomicFile,
    rows: u64,
}

/// Opens the output; `None` when it is finished already.
fn destination(
    args: &Args,
    checkpoint: &ForecastCheckpoint,
    table: &Path,
    schema: &SchemaRef,
) -> Result<Option<Sink>> {
    if args.out == Path::new("-") {
        return Ok(Some(Sink::Stdout { header: true }));
    }
    let mut fingerprint = Fingerprint::new();
    fingerprint.add_input(table)?;
    for (name, _, sha256) in checkpoint.files()? {
        fingerprint.add_hash(name, sha256);
    }
    fingerprint.add_hash("version", env!("CARGO_PKG_VERSION"));
    fingerprint.set_config(&serde_json::json!({
        "config": checkpoint.config(), "levels": args.level.0, "targets": args.targets,
    }))?;
    let job = Job::new("mamba-timeseries forecast", fingerprint).overwrite(args.overwrite);
    if args.out.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        return Ok(match job.claim(&args.out, &[], None)? {
            job::Claimed::Finished(_) => None,
            job::Claimed::Open(claim) => {
                let mut file = mamba_datasets::AtomicFile::create(&args.out)?;
                file.write_all(b"[")?;
                Some(Sink::Json(Box::new(JsonFile { claim, file, rows: 0 })))
            }
        });
    }
    Ok(match job.file(&args.out, schema)? {
        Output::Finished(_) => None,
        Output::Open(part) => Some(Sink::Part(Box::new(part))),
    })
}

impl Sink {
    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match self {
            Self::Part(part) => part.write(batch)?,
            Self::Json(json) => {
                for row in rows_of(batch) {
                    let comma = if json.rows > 0 { ",\n" } else { "\n" };
                    write!(json.file, "{comma}{}", serde_json::Value::Object(row))?;
                    json.rows += 1;
                }
            }
            Self::Stdout { header } => {
                let mut out = std::io::stdout().lock();
                if std::mem::take(header) {
                    let names: Vec<&str> =
                        batch.schema_ref().fields().iter().map(|f| f.name().as_str()).collect();
                    writeln!(out, "{}", names.join(","))?;
                }
                for row in rows_of(batch) {
                    let text = |value: &serde_json::Value| match value.as_str() {
                        Some(text) if text.contains([',', '"', '\n']) => {
                            format!("\"{}\"", text.replace('"', "\"\""))
                        }
                        Some(text) => text.to_owned(),
                        None => value.to_string(),
                    };
                    let cells: Vec<String> =
                        batch.schema_ref().fields().iter().map(|f| text(&row[f.name()])).collect();
                    writeln!(out, "{}", cells.join(","))?;
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Part(part) => drop(part.finish()?),
            Self::Json(json) => {
                let JsonFile { claim, mut file, rows } = *json;
                file.write_all(b"\n]\n")?;
                claim.commit(vec![file], rows)?;
            }
            Self::Stdout { .. } => std::io::stdout().flush()?,
        }
        Ok(())
    }
}

/// The rows of a batch as JSON objects.
fn rows_of(batch: &RecordBatch) -> impl Iterator<Item = serde_json::Map<String, serde_json::Value>> + '_ {
    let cell = |column: &ArrayRef, row: usize| {
        let any = column.as_any();
        match (any.downcast_ref::<StringArray>(), any.downcast_ref::<Float64Array>()) {
            (Some(text), _) => text.value(row).into(),
            (_, Some(numbers)) => numbers.value(row).into(),
            _ => serde_json::Value::Null,
        }
    };
    (0..batch.num_rows()).map(move |row| {
        let fields = batch.schema_ref().fields().iter().zip(batch.columns());
        fields.map(|(field, column)| (field.name().clone(), cell(column, row))).collect()
    })
}
