//! `compare`: the results of several runs side by side, with mean and deviation over seeds.

use anyhow::{Context, Result};
use mamba_core::cli::{CommonArgs, Format};
use mamba_datasets::AtomicFile;
use mamba_datasets::job::sha256;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The file of a run that holds its results on the test events.
const RESULTS: &str = "results.json";

/// Flags of `compare`.
#[derive(clap::Args)]
#[command(after_help = "Runs of one model on the same data that differ in their seeds only are one row.\n\n\
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

/// Digests of the settings that decide the figures of a run, except its seed.
#[derive(Serialize)]
pub(crate) struct Settings {
    /// Those of its model, the first row of its results.
    pub(crate) model: String,
    /// Those of what its model is compared with, the other rows.
    pub(crate) baselines: String,
}

/// A digest of settings without `train.seed`.
pub(crate) fn settings_digest(settings: &impl Serialize) -> Result<String> {
    let mut settings = serde_json::to_value(settings)?;
    if let Some(train) = settings.pointer_mut("/train").and_then(Value::as_object_mut) {
        train.remove("seed");
    }
    Ok(sha256(settings.to_string().as_bytes()))
}

/// Writes the results of a run on the test events: rows of a model's name and its metrics.
pub(crate) fn save_results(
    run: &Path,
    data: &str,
    seed: u64,
    settings: &Settings,
    rows: &[Value],
) -> Result<()> {
    let mut file = AtomicFile::create(run.join(RESULTS))?;
    writeln!(file, "{}", json!({ "data": data, "seed": seed, "settings": settings, "test": rows }))?;
    Ok(file.commit()?)
}

/// What runs must share to be one row: data, model and a digest of the settings.
type Key = (String, String, String);

/// Runs that differ in their seeds only.
struct Seeds {
    /// The folder of the first.
    first: PathBuf,
    figures: Vec<Figures>,
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
    let mut rows: BTreeMap<Key, Seeds> = BTreeMap::new();
    for run in &args.runs {
        for (key, figures) in results(run)? {
            let seeds = rows.entry(key).or_insert_with(|| Seeds { first: run.clone(), figures: Vec::new() });
            // Baselines have no seed: every run finds the same.
            if seeds.figures.last() != Some(&figures) {
                seeds.figures.push(figures);
            }
        }
    }
    let all = || rows.values().flat_map(|seeds| &seeds.figures);
    let columns: Vec<usize> = (0..FIGURES.len()).filter(|&i| all().any(|run| run[i].is_some())).collect();
    let mut out = std::io::stdout().lock();
    if args.common.format == Format::Json {
        for ((data, model, settings), Seeds { first, figures: runs }) in &rows {
            let figure = |&i: &usize| {
                let (mean, deviation) = mean_and_deviation(runs, i)?;
                Some((FIGURES[i].0, json!({ "mean": mean, "deviation": deviation })))
            };
            let figures: BTreeMap<&str, Value> = columns.iter().filter_map(figure).collect();
            let json = json!({
                "data": data, "model": model, "settings": settings, "first_run": first, "runs": runs.len(), "figures": figures
            });
            writeln!(out, "{json}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Rows of one model with several settings are told apart by a folder.
    let name = |(data, model, _): &Key, seeds: &Seeds| {
        let alike = rows.keys().filter(|key| (&key.0, &key.1) == (data, model)).count();
        if alike > 1 { format!("{model} as in {}", seeds.first.display()) } else { model.clone() }
    };
    let data_width = rows.keys().map(|key| key.0.len()).max().unwrap_or(0);
    let model_width = rows.iter().map(|(key, seeds)| name(key, seeds).len()).max().unwrap_or(0);
    write!(out, "{:data_width$}  {:model_width$} {:>5}", "", "", "runs")?;
    columns.iter().try_for_each(|&i| write!(out, "  {:>15}", FIGURES[i].0))?;
    writeln!(out)?;
    for (key, seeds) in &rows {
        let (data, model, runs) = (&key.0, name(key, seeds), &seeds.figures);
        write!(out, "{data:data_width$}  {model:model_width$} {:>5}", runs.len())?;
        for &i in &columns {
            let text = match mean_and_deviation(runs, i) {
                Some((mean, deviation)) if runs.len() > 1 => format!("{mean:.4} ± {deviation:.4}"),
                Some((mean, _)) => format!("{mean:.4}"),
                None => String::new(),
            };
            write!(out, "  {text:>15}")?;
        }
        writeln!(out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The rows of a run's results.
fn results(run: &Path) -> Result<Vec<(Key, Figures)>> {
    let path = run.join(RESULTS);
    let text = std::fs::read(&path)
        .with_context(|| format!("cannot read {}, which a finished training leaves", path.display()))?;
    let results: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not valid JSON", path.display()))?;
    let missing = |what: &str| format!("{} has no {what}", path.display());
    let data = results["data"].as_str().with_context(|| missing("data"))?;
    // Settings that are not known are those of no other run.
    let settings = |of: &str| match results["settings"][of].as_str() {
        Some(digest) => digest.to_owned(),
        None => run.display().to_string(),
    };
    let row = |(place, result): (usize, &Value)| {
        let model = result["model"].as_str().with_context(|| missing("model"))?;
        let figures = FIGURES.map(|(_, place)| result["metrics"].pointer(place).and_then(Value::as_f64));
        let settings = settings(if place == 0 { "model" } else { "baselines" });
        Ok(((data.to_owned(), model.to_owned(), settings), figures))
    };
    results["test"].as_array().with_context(|| missing("test"))?.iter().enumerate().map(row).collect()
}

/// Mean and sample standard deviation of a figure, if every run has it.
fn mean_and_deviation(runs: &[Figures], figure: usize) -> Option<(f64, f64)> {
    let values: Vec<f64> = runs.iter().map(|run| run[figure]).collect::<Option<_>>()?;
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    Some((mean, (squares / (n - 1.0).max(1.0)).sqrt()))
}
