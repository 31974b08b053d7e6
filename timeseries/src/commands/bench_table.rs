//! `bench-table`: one model over horizons and seeds of a benchmark, trained one after another and tabled.

use super::Source;
use super::eval::Report;
use super::train::Run;
use anyhow::{Context, Result, anyhow};
use mamba_core::checkpoint::{read_json, write_json};
use mamba_core::cli::{CommonArgs, Format, HintExt, INTERRUPTED, SettingsArgs};
use mamba_core::train::Console;
use mamba_timeseries::config::ForecastConfig;
use mamba_timeseries::table::TableOptions;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `bench-table`.
#[derive(clap::Args)]
#[command(
    after_help = "A run that is finished is not made again, so the same command goes on after a stop. The table is of the test part; the
validation error beside it is what settings may be chosen by.

Example:
  mamba-timeseries bench-table ETTh1.csv --preset etth1 --model bi-mamba-plus --horizons 96,192 --seeds 1,2,3 \\
    --out runs/etth1"
)]
pub(crate) struct Args {
    /// Table of the benchmark
    #[arg(value_name = "TABLE")]
    table_file: PathBuf,

    /// Folder for the runs: MODEL-HORIZON-SEED each
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// The data set: etth1, etth2, ettm1 or weather
    #[arg(long, value_name = "NAME")]
    preset: String,

    /// Models, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "s-mamba")]
    model: Vec<String>,

    /// Horizons, separated by commas
    #[arg(long, value_name = "ROWS", value_delimiter = ',', default_value = "96,192,336,720")]
    horizons: Vec<usize>,

    /// Seeds, separated by commas
    #[arg(long, value_name = "SEEDS", value_delimiter = ',', default_value = "1,2,3")]
    seeds: Vec<u64>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    if args.settings.seed.is_some() {
        let message = "--seed is not used here; --seeds names the seeds of the runs".into();
        return Err(mamba_core::Error::Config(message).into());
    }
    let source = Source::new(Some(&args.table_file))?;
    let sha256 = source.with_path(|path| Ok(mamba_datasets::job::sha256_file(path)?.1))?;
    let options = TableOptions::as_they_stand();
    let table = source.read(&options)?;
    let mut rows: Vec<Value> = Vec::new();
    for model in &args.model {
        for &horizon in &args.horizons {
            for &seed in &args.seeds {
                let mut cfg =
                    args.settings.resolve(&ForecastConfig::preset(model, Some(&args.preset), horizon)?)?;
                (cfg.pred_len, cfg.train.seed) = (horizon, seed);
                let out = args.out.join(format!("{model}-{horizon}-{seed}"));
                let result = out.join("test.json");
                let before: Option<Value> = if result.exists() { Some(read_json(&result)?) } else { None };
                let made_from = before.as_ref().and_then(|row| row["table_sha256"].as_str());
                if made_from.is_some_and(|made_from| made_from != sha256) {
                    let error = anyhow!("{} is of another table than {}", result.display(), source.name());
                    return Err(error).hint("name another folder by --out for this table");
                }
                // read as a config, so that settings which came later count as their defaults
                let settings =
                    |row: &Value| serde_json::from_value::<ForecastConfig>(row["settings"].clone()).ok();
                let row = match before
                    .filter(|row| row["table_sha256"].is_string() && settings(row).as_ref() == Some(&cfg))
                {
                    Some(row) => row,
                    None => {
                        let mut console = Console::new(Format::Human, args.common.quiet);
                        console.note(&format!("{model}, horizon {horizon}, seed {seed}"));
                        let dtype = args.common.dtype();
                        let run =
                            Run { cfg: &cfg, options: &options, out: &out, resume: true, init: None, dtype };
                        let Some(trained) = run.train(&table, &device, &mut console)? else {
                            console.note("stopped; the same command goes on");
                            return Ok(ExitCode::from(INTERRUPTED));
                        };
                        let report = Report::new(&out, &trained.data, &table, &device, &args.common)?;
                        let row = json!({
                            "model": model, "horizon": horizon, "seed": seed, "minutes": trained.seconds / 60.0,
                            "report": report, "settings": cfg, "table_sha256": sha256,
                        });
                        write_json(&result, &row)
                            .with_context(|| format!("cannot save {}", result.display()))?;
                        row
                    }
                };
                if args.common.format == Format::Json {
                    writeln!(std::io::stdout(), "{row}")?;
                }
                rows.push(row);
            }
        }
    }
    if args.common.format == Format::Human {
        print(&args, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Means over the seeds, as a Markdown table.
fn print(args: &Args, rows: &[Value]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "| model | horizon | seeds | test MSE | test MAE | whole batches only | validation MSE | minutes a run |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|")?;
    for model in &args.model {
        for horizon in &args.horizons {
            let of = |row: &&Value| row["model"] == model.as_str() && row["horizon"] == *horizon;
            let rows: Vec<&Value> = rows.iter().filter(of).collect();
            let values = |pointer: &str| -> Vec<f64> {
                rows.iter().filter_map(|row| row.pointer(pointer)?.as_f64()).collect()
            };
            let mean = |pointer: &str| {
                let values = values(pointer);
                values.iter().sum::<f64>() / values.len() as f64
            };
            let spread = |pointer: &str| {
                let (values, mean) = (values(pointer), mean(pointer));
                let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
                (squares / (values.len().max(2) - 1) as f64).sqrt()
            };
            let whole = match values("/report/test_drop_last/mse").is_empty() {
                true => "none".into(),
                false => format!(
                    "{:.4} / {:.4}",
                    mean("/report/test_drop_last/mse"),
                    mean("/report/test_drop_last/mae")
                ),
            };
            writeln!(
                out,
                "| {model} | {horizon} | {} | {:.4} ± {:.4} | {:.4} | {whole} | {:.4} | {:.1} |",
                rows.len(),
                mean("/report/test/mse"),
                spread("/report/test/mse"),
                mean("/report/test/mae"),
                mean("/report/valid/mse"),
                mean("/minutes"),
            )?;
        }
    }
    Ok(())
}
