//! `info`: what is in a checkpoint.

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use mamba_core::cli::{self, Format};
use mamba_core::progress::short;
use mamba_core::run_folder::{Record, RunFolder, RunInfo};
use mamba_recsys::RecCheckpoint;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `info`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  mamba-recsys info runs/ml-100k")]
pub(crate) struct Args {
    /// A run folder
    #[arg(value_name = "DIR", default_value = "runs/recsys")]
    checkpoint: PathBuf,

    #[command(flatten)]
    common: cli::CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    args.common.start()?;
    let checkpoint = RecCheckpoint::open(&args.checkpoint)?;
    checkpoint.recommender(None, DType::F32, &Device::Cpu)?; // the weights are those of the configuration
    let mut parameters: BTreeMap<&str, usize> = BTreeMap::from([("item embedding", 0), ("network", 0)]);
    for (name, tensor) in checkpoint.tensors() {
        let part = if name.starts_with("item_embedding") { "item embedding" } else { "network" };
        *parameters.entry(part).or_default() += tensor.elem_count();
    }
    let total: usize = parameters.values().sum();
    let (run, best) = (run_info(&args.checkpoint)?, best(&args.checkpoint)?);
    let (config, items) = (checkpoint.config(), checkpoint.items());
    if args.common.format == Format::Json {
        let json = json!({
            "checkpoint": checkpoint.path(), "config": config, "items": items.ids().len(),
            "parameters": parameters, "total": total, "hash": checkpoint.hash(), "run": run,
            "best": best.map(|(step, metrics)| json!({ "step": step, "metrics": metrics })),
        });
        println!("{json}");
        return Ok(ExitCode::SUCCESS);
    }
    let line = |name: &str, value: String| println!("{name:<11} {value}");
    line("checkpoint", checkpoint.path().display().to_string());
    line("model", serde_json::to_string(&config.model)?);
    line("histories", format!("the last {} items", config.max_length));
    let examples: Vec<String> =
        (1..=items.ids().len().min(3)).map(|i| items.id(i as u32).to_string()).collect();
    line("items", format!("{}: {} …", items.ids().len(), examples.join(", ")));
    line("events", checkpoint.counts().iter().sum::<u64>().to_string() + " trained on");
    let parts: Vec<String> = parameters.iter().map(|(part, n)| format!("{part} {n}")).collect();
    line("parameters", format!("{} ({total}: {})", short(total as f64), parts.join(", ")));
    line("hash", checkpoint.hash().into());
    if let Some(run) = run {
        line("made by", format!("{} {}", run.program, run.version));
        line("command", run.command.join(" "));
        let outcome = run.outcome.as_deref().unwrap_or("not finished");
        line(
            "training",
            format!("{} steps, seed {}, {} threads: {outcome}", run.steps, run.seed, run.threads),
        );
        line("time", format!("{} to {}", run.started, run.finished.as_deref().unwrap_or("not finished")));
    }
    if let Some((step, metrics)) = best {
        let figures = metrics.iter().map(|(name, x)| match x {
            Some(x) => format!("{name} {x:.4}"),
            None => format!("{name} not finite"),
        });
        line("best", format!("{} on validation (step {step})", figures.collect::<Vec<_>>().join(", ")));
    }
    Ok(ExitCode::SUCCESS)
}

/// `run.json`, if there is one.
fn run_info(folder: &Path) -> Result<Option<RunInfo>> {
    let path = folder.join("run.json");
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let info =
        serde_json::from_slice(&text).with_context(|| format!("{} is not a run's record", path.display()))?;
    Ok(Some(info))
}

/// Step and figures of the evaluation whose weights these are.
type Best = (u64, BTreeMap<String, Option<f64>>);

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
