//! `info`: what is in a training's folder.

use anyhow::Result;
use mamba_core::cli::{CommonArgs, Format, HintExt};
use mamba_core::run_folder::{Record, RunFolder, RunInfo};
use mamba_core::{checkpoint, progress::short};
use mamba_motion::run::{DENOISER, EVALUATOR, GROUNDING, PEER, STREAM, Shared, VAE};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `info`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  mamba-motion info runs/first")]
pub(crate) struct Args {
    /// Folder of a training
    #[arg(value_name = "DIR")]
    checkpoint: PathBuf,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    args.common.start()?;
    let shared = Shared::read(&args.checkpoint).hint("name the --out folder of a training")?;
    let parts = [EVALUATOR, VAE, DENOISER, PEER, STREAM, GROUNDING]
        .into_iter()
        .filter(|name| args.checkpoint.join(name).join(checkpoint::CONFIG).exists())
        .map(|name| Ok((name, part(&args.checkpoint.join(name))?)));
    let parts: Vec<(&str, Value)> = parts.collect::<Result<_>>()?;
    let mut out = std::io::stdout().lock();
    if args.common.format == Format::Json {
        let parts: serde_json::Map<_, _> =
            parts.into_iter().map(|(name, part)| (name.to_string(), part)).collect();
        writeln!(
            out,
            "{}",
            json!({ "labels": shared.groups, "text_encoder": shared.text.map(|text| text.folder),
            "data": shared.data, "parts": parts })
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{:<12} {}", "run", args.checkpoint.display())?;
    writeln!(out, "{:<12} sha256 {}", "clips", shared.data)?;
    for group in &shared.groups {
        writeln!(out, "{:<12} {}", group.name, group.values.join(", "))?;
    }
    if let Some(text) = &shared.text {
        writeln!(out, "{:<12} told by {}", "sentences", text.folder.display())?;
    }
    for (name, part) in &parts {
        let count = match part["parameters"].as_u64() {
            Some(count) => format!("{} parameters", short(count as f64)),
            None => "no weights yet".to_string(),
        };
        let steps = part["run"]["steps"].as_u64().unwrap_or(0);
        let outcome = part["run"]["outcome"].as_str().unwrap_or("not finished");
        let best = match part["best"].as_object() {
            Some(best) => format!(", best {}", Value::Object(best.clone())),
            None => String::new(),
        };
        writeln!(out, "{name:<12} {count}, {steps} steps, {outcome}{best}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Facts of one run folder; before its first evaluation it has no weights.
fn part(dir: &Path) -> Result<Value> {
    let (parameters, config) = match dir.join(checkpoint::WEIGHTS).exists() {
        true => {
            let loaded = checkpoint::load_dir(dir)?;
            let count: usize = loaded.tensors.values().map(|tensor| tensor.elem_count()).sum();
            (Some(count), loaded.config)
        }
        false => (None, checkpoint::read_json(&dir.join(checkpoint::CONFIG))?),
    };
    let run: Option<RunInfo> = match std::fs::read(dir.join("run.json")) {
        Ok(text) => Some(serde_json::from_slice(&text).map_err(|e| mamba_core::Error::RunFolder {
            path: dir.join("run.json"),
            message: format!("not a run's record: {e}"),
        })?),
        Err(_) => None,
    };
    let best = match dir.join("metrics.jsonl").exists() {
        true => RunFolder::resume(dir)?.records()?.into_iter().rev().find_map(|record| match record {
            Record::Valid { step, metrics, best: true, .. } => {
                Some(json!({ "step": step, "metrics": metrics }))
            }
            _ => None,
        }),
        false => None,
    };
    Ok(json!({ "parameters": parameters, "config": config, "run": run, "best": best }))
}
