//! `info`: what is in a checkpoint.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use mamba_core::checkpoint::read_json;
use mamba_core::cli::{self, Format};
use mamba_core::progress::short;
use mamba_core::run_folder::{Record, RunFolder, RunInfo};
use mamba_recsys::knowledge::KtCheckpoint;
use mamba_recsys::{ItemMap, RecCheckpoint};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
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

/// What a checkpoint says of itself, be it a recommender or a knowledge tracer.
struct About {
    config: Value,
    /// What the model knows: items or skills.
    known: (&'static str, ItemMap),
    /// What it was trained on, and how many of these.
    trained_on: (&'static str, u64),
    /// Numbers of parameters by part.
    parameters: BTreeMap<&'static str, usize>,
    hash: Option<String>,
}

impl About {
    fn open(folder: &Path) -> Result<Self> {
        // the weights are those of the configuration
        let is_kt = read_json(&folder.join("config.json"))?.get("n_skills").is_some();
        if is_kt {
            let checkpoint = KtCheckpoint::open(folder)?;
            checkpoint.model(DType::F32, &Device::Cpu)?;
            return Ok(Self {
                config: serde_json::to_value(checkpoint.config())?,
                known: ("skills", checkpoint.skills().clone()),
                trained_on: ("answers", checkpoint.counts().iter().sum()),
                parameters: parameters(checkpoint.tensors()),
                hash: None,
            });
        }
        let checkpoint = RecCheckpoint::open(folder)?;
        checkpoint.recommender(None, DType::F32, &Device::Cpu)?;
        Ok(Self {
            config: serde_json::to_value(checkpoint.config())?,
            known: ("items", checkpoint.items().clone()),
            trained_on: ("events", checkpoint.counts().iter().sum()),
            parameters: parameters(checkpoint.tensors()),
            hash: Some(checkpoint.hash().into()),
        })
    }
}

fn parameters(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<&'static str, usize> {
    let mut parameters = BTreeMap::from([("embeddings", 0), ("network", 0)]);
    for (name, tensor) in tensors {
        let part = if name.contains("_embedding.") { "embeddings" } else { "network" };
        *parameters.entry(part).or_default() += tensor.elem_count();
    }
    parameters
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    args.common.start()?;
    let About { config, known: (known, items), trained_on, parameters, hash } =
        About::open(&args.checkpoint)?;
    let total: usize = parameters.values().sum();
    let (run, best) = (run_info(&args.checkpoint)?, best(&args.checkpoint)?);
    let mut out = std::io::stdout().lock();
    if args.common.format == Format::Json {
        let json = json!({
            "checkpoint": args.checkpoint, "config": config, known: items.ids().len(),
            "parameters": parameters, "total": total, "hash": hash, "run": run,
            "best": best.map(|(step, metrics)| json!({ "step": step, "metrics": metrics })),
        });
        writeln!(out, "{json}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut line = |name: &str, value: String| writeln!(out, "{name:<11} {value}");
    line("checkpoint", args.checkpoint.display().to_string())?;
    line("model", config["model"].to_string())?;
    if let Some(most) = config["max_length"].as_u64() {
        line("histories", format!("the last {most} items"))?;
    }
    let examples: Vec<String> =
        (1..=items.ids().len().min(3)).map(|i| items.id(i as u32).to_string()).collect();
    line(known, format!("{}: {} …", items.ids().len(), examples.join(", ")))?;
    line(trained_on.0, format!("{} trained on", trained_on.1))?;
    let parts: Vec<String> = parameters.iter().map(|(part, n)| format!("{part} {n}")).collect();
    line("parameters", format!("{} ({total}: {})", short(total as f64), parts.join(", ")))?;
    if let Some(hash) = hash {
        line("hash", hash)?;
    }
    if let Some(run) = run {
        line("made by", format!("{} {}", run.program, run.version))?;
        line("command", run.command.join(" "))?;
        let outcome = run.outcome.as_deref().unwrap_or("not finished");
        line(
            "training",
            format!("{} steps, seed {}, {} threads: {outcome}", run.steps, run.seed, run.threads),
        )?;
        line("time", format!("{} to {}", run.started, run.finished.as_deref().unwrap_or("not finished")))?;
    }
    if let Some((step, metrics)) = best {
        let figures = metrics.iter().map(|(name, x)| match x {
            Some(x) => format!("{name} {x:.4}"),
            None => format!("{name} not finite"),
        });
        line("best", format!("{} on validation (step {step})", figures.collect::<Vec<_>>().join(", ")))?;
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
