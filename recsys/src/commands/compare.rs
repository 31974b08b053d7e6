//! `compare`: the results of several runs side by side, with mean and deviation over seeds.

use anyhow::{Context, Result};
use mamba_core::cli::{CommonArgs, Format};
use mamba_datasets::AtomicFile;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The file of a run that holds its results on the test events.
const RESULTS: &str = "results.json";

/// Flags of `compare`.
#[derive(clap::Args)]
#[command(after_help = "Runs of one model on the same data with different seeds are one row.\n\n\
    Example:\n  mamba-recsys compare runs/ml-100k-*")]
pub(crate) struct Args {
    /// Folders of finished runs
    #[arg(value_name = "DIR", required = true)]
    runs: Vec<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

/// The figures that are shown where a result has them, and where they stand in it.
const FIGURES: [(&str, &str); 7] = [
    ("Hit@10", "/hit/10"),
    ("NDCG@10", "/ndcg/10"),
    ("MRR@10", "/mrr/10"),
    ("Hit@50", "/hit/50"),
    ("cover@10", "/coverage"),
    ("AUC", "/auc"),
    ("accuracy", "/accuracy"),
];

/// The figures of a run.
type Figures = [Option<f64>; FIGURES.len()];

/// Writes the results of a run on the test events: rows of a model's name and its metrics.
pub(crate) fn save_results(run: &Path, data: &str, seed: u64, rows: &[Value]) -> Result<()> {
    let mut file = AtomicFile::create(run.join(RESULTS))?;
    writeln!(file, "{}", json!({ "data": data, "seed": seed, "test": rows }))?;
    Ok(file.commit()?)
}

/// What data is called in results: files by their names, without folders.
pub(crate) fn data_name(paths: &[PathBuf], sample: &str) -> String {
    if paths.is_empty() {
        return sample.into();
    }
    let name = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    paths.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    args.common.start()?;
    let mut rows: BTreeMap<(String, String), Vec<Figures>> = BTreeMap::new(); // by data and model
    for run in &args.runs {
        for (key, figures) in results(run)? {
            let runs = rows.entry(key).or_default();
            // Baselines have no seed: every run finds the same.
            if runs.last() != Some(&figures) {
                runs.push(figures);
            }
        }
    }
    let columns: Vec<usize> =
        (0..FIGURES.len()).filter(|&i| rows.values().flatten().any(|run| run[i].is_some())).collect();
    if args.common.format == Format::Json {
        for ((data, model), runs) in &rows {
            let figure = |&i: &usize| {
                let (mean, deviation) = mean_and_deviation(runs, i)?;
                Some((FIGURES[i].0, json!({ "mean": mean, "deviation": deviation })))
            };
            let figures: BTreeMap<&str, Value> = columns.iter().filter_map(figure).collect();
            println!("{}", json!({ "data": data, "model": model, "runs": runs.len(), "figures": figures }));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let longest = |names: &mut dyn Iterator<Item = &String>| names.map(String::len).max().unwrap_or(0);
    let (data_width, model_width) =
        (longest(&mut rows.keys().map(|key| &key.0)), longest(&mut rows.keys().map(|key| &key.1)));
    print!("{:data_width$}  {:model_width$} {:>5}", "", "", "runs");
    columns.iter().for_each(|&i| print!("  {:>15}", FIGURES[i].0));
    println!();
    for ((data, model), runs) in &rows {
        print!("{data:data_width$}  {model:model_width$} {:>5}", runs.len());
        for &i in &columns {
            let text = match mean_and_deviation(runs, i) {
                Some((mean, deviation)) if runs.len() > 1 => format!("{mean:.4} ± {deviation:.4}"),
                Some((mean, _)) => format!("{mean:.4}"),
                None => String::new(),
            };
            print!("  {text:>15}");
        }
        println!();
    }
    Ok(ExitCode::SUCCESS)
}

/// The rows of a run's results.
fn results(run: &Path) -> Result<Vec<((String, String), Figures)>> {
    let path = run.join(RESULTS);
    let text = std::fs::read(&path)
        .with_context(|| format!("cannot read {}, which a finished training leaves", path.display()))?;
    let results: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not valid JSON", path.display()))?;
    let missing = |what: &str| format!("{} has no {what}", path.display());
    let data = results["data"].as_str().with_context(|| missing("data"))?;
    let row = |result: &Value| {
        let model = result["model"].as_str().with_context(|| missing("model"))?;
        let figures = FIGURES.map(|(_, place)| result["metrics"].pointer(place).and_then(Value::as_f64));
        Ok(((data.to_owned(), model.to_owned()), figures))
    };
    results["test"].as_array().with_context(|| missing("test"))?.iter().map(row).collect()
}

/// Mean and sample standard deviation of a figure, if every run has it.
fn mean_and_deviation(runs: &[Figures], figure: usize) -> Option<(f64, f64)> {
    let values: Vec<f64> = runs.iter().map(|run| run[figure]).collect::<Option<_>>()?;
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    Some((mean, (squares / (n - 1.0).max(1.0)).sqrt()))
}
