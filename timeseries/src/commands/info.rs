//! `info`: what is in a checkpoint.

use anyhow::Result;
use candle_core::{DType, Device};
use mamba_core::cli::{CommonArgs, Format, HintExt};
use mamba_core::progress::short;
use mamba_core::run_folder::{Record, RunFolder, RunInfo};
use mamba_timeseries::checkpoint::ForecastCheckpoint;
use mamba_timeseries::split::Split;
use serde_json::{Value, json};
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `info`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  mamba-timeseries info runs/load")]
pub(crate) struct Args {
    /// A run folder, or a checkpoint
    #[arg(value_name = "DIR")]
    checkpoint: PathBuf,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    args.common.start()?;
    let checkpoint = ForecastCheckpoint::open(&args.checkpoint)
        .hint("name a folder with config.json and model.safetensors, such as a run of `train`")?;
    let (_, params) = checkpoint.model(DType::F32, &Device::Cpu)?;
    let run = run_info(&args.checkpoint)?;
    let best = best(&args.checkpoint)?;
    let config = checkpoint.config();
    let text = match args.common.format {
        Format::Json => {
            let files: Vec<Value> = checkpoint
                .files()?
                .into_iter()
                .map(|(name, bytes, sha256)| json!({ "name": name, "bytes": bytes, "sha256": sha256 }))
                .collect();
            let value = json!({
                "checkpoint": args.checkpoint, "config": config, "parameters": params.count(), "files": files,
                "run": run, "best": best.map(|(step, metrics)| json!({ "step": step, "metrics": metrics })),
            });
            format!("{value}\n")
        }
        Format::Human => {
            let mut lines = Lines(String::new());
            lines.add("model", config.model.name());
            lines.add("settings", serde_json::to_string(&config.model)?);
            lines.add("sees", format!("{} rows, forecasts {}", config.seq_len, config.pred_len));
            lines.add("columns", config.columns.join(", "));
            if !config.targets.is_empty() {
                lines.add("forecasts", config.targets.join(", "));
            }
            let frequency = config.frequency.map_or_else(|| "not known".to_string(), |f| f.to_string());
            lines.add("rows every", frequency);
            lines.add(
                "split",
                match config.split {
                    Split::Ett { .. } => "12, 4 and 4 months of ETT".to_string(),
                    Split::Ratio { train, test } => format!("{train} training, {test} test"),
                },
            );
            lines.add("parameters", format!("{} ({})", short(params.count() as f64), params.count()));
            for (name, bytes, sha256) in checkpoint.files()? {
                lines.add("weights", format!("{name}, {bytes} bytes, sha256 {sha256}"));
            }
            let has = args.checkpoint.join("calibration.safetensors").exists();
            lines.add("intervals", if has { "calibrated" } else { "none" });
            if let Some(run) = &run {
                lines.add("made by", format!("{} {}", run.program, run.version));
                lines.add("command", run.command.join(" "));
                let outcome = run.outcome.as_deref().unwrap_or("not finished");
                lines.add("training", format!("{} steps, seed {}: {outcome}", run.steps, run.seed));
            }
            if let Some((step, metrics)) = &best {
                let figure = |(name, x): (&String, &Option<f64>)| match x {
                    Some(x) => format!("{name} {x:.4}"),
                    None => format!("{name} not finite"),
                };
                let metrics = metrics.iter().map(figure).collect::<Vec<_>>().join(", ");
                lines.add("best", format!("validation {metrics} (step {step})"));
            }
            lines.0
        }
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// `name  value` lines, values below each other.
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl Display) {
        self.0 += &format!("{name:<11} {value}\n");
    }
}

/// `run.json`, if there is one.
fn run_info(folder: &Path) -> Result<Option<RunInfo>> {
    let path = folder.join("run.json");
    if !path.exists() {
        return Ok(None);
    }
    let problem = |message: String| mamba_core::Error::RunFolder { path: path.clone(), message };
    let text = std::fs::read(&path).map_err(|e| problem(e.to_string()))?;
    Ok(Some(serde_json::from_slice(&text).map_err(|e| problem(format!("not a run's record: {e}")))?))
}

/// Step and figures of an evaluation.
type Best = (u64, std::collections::BTreeMap<String, Option<f64>>);

/// The last evaluation whose weights were kept.
fn best(folder: &Path) -> Result<Option<Best>> {
    if !folder.join("metrics.jsonl").exists() {
        return Ok(None);
    }
    let records = RunFolder::resume(folder)?.records()?;
    Ok(records.into_iter().rev().find_map(|record| match record {
        Record::Valid { step, metrics, best: true, .. } => Some((step, metrics)),
        _ => None,
    }))
}
