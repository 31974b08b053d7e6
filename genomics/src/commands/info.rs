//! `info`: what is in a checkpoint.

mod protein;

use anyhow::Result;
use candle_core::{DType, Device};
use mamba_core::cli::{self, HintExt};
use mamba_core::progress::short;
use mamba_core::run_folder::{Record, RunFolder, RunInfo};
use mamba_genomics::checkpoint::WeightFile;
use mamba_genomics::{CaduceusCheckpoint, tokenizer};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
#[command(after_help = "Example:
  mamba-genomics info runs/phages")]
pub(crate) struct Args {
    /// A run folder, a folder from a model hub, or a weight file beside its config.json [default: the small model that
    /// comes with this program]
    #[arg(value_name = "DIR")]
    checkpoint: Option<PathBuf>,

    #[command(flatten)]
    common: cli::CommonArgs,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    args.common.start()?;
    let path = args.checkpoint.as_deref();
    let text = match path.map(|path| protein::describe(path, args.common.format)).transpose()?.flatten() {
        Some(text) => text,
        None => caduceus(path, args.common.format)?,
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn caduceus(path: Option<&Path>, format: cli::Format) -> Result<String> {
    let checkpoint = CaduceusCheckpoint::open(path)
        .hint("name a folder with config.json and model.safetensors, or none for the bundled model")?;
    let facts = Facts::of(&checkpoint, path)?;
    Ok(match format {
        cli::Format::Json => format!("{}\n", facts.json(&checkpoint)?),
        cli::Format::Human => facts.human(&checkpoint)?,
    })
}

/// What is worked out about a checkpoint.
struct Facts {
    /// Number of values by part of the model, and in all.
    parameters: BTreeMap<&'static str, usize>,
    total: usize,
    dtypes: BTreeSet<&'static str>,
    /// `run.json`.
    run: Option<RunInfo>,
    /// Step and figures of the evaluation whose weights these are.
    best: Option<Best>,
}

/// Step of an evaluation, and its figures; none where one is not finite.
type Best = (u64, BTreeMap<String, Option<f64>>);

impl Facts {
    fn of(checkpoint: &CaduceusCheckpoint, path: Option<&Path>) -> Result<Self> {
        let params = checkpoint.params(DType::F32, &Device::Cpu)?;
        let mut parameters = BTreeMap::from([("embedding", 0), ("mixers", 0), ("norms", 0)]);
        for param in params.named() {
            let part = match param.name() {
                name if name.contains(".embeddings.") => "embedding",
                name if name.contains(".mixer.") => "mixers",
                _ => "norms",
            };
            *parameters.entry(part).or_default() += param.tensor().elem_count();
        }
        let head: usize = checkpoint.head().map(|(_, tensor)| tensor.elem_count()).sum();
        if head > 0 {
            parameters.insert("classification head", head);
        }
        let folder = path.filter(|path| path.is_dir());
        let (run, best) = match folder {
            Some(folder) => (run_info(folder)?, best(folder)?),
            None => (None, None),
        };
        let dtypes = checkpoint.tensors().values().map(|tensor| tensor.dtype().as_str()).collect();
        Ok(Self { total: parameters.values().sum(), parameters, dtypes, run, best })
    }

    fn json(&self, checkpoint: &CaduceusCheckpoint) -> Result<Value> {
        let config = checkpoint.config();
        let mut parameters: serde_json::Map<_, _> =
            self.parameters.iter().map(|(part, &n)| (part.replace(' ', "_"), n.into())).collect();
        parameters.insert("total".into(), self.total.into());
        Ok(json!({
            "checkpoint": checkpoint.path(),
            "architecture": "caduceus",
            "kind": if config.rcps { "ps" } else { "ph" },
            "fused_add_norm": config.fused_add_norm,
            "d_model": config.d_model,
            "n_layer": config.n_layer,
            "mixer": config.ssm_cfg.kind(),
            "d_state": config.ssm_cfg.d_state(),
            "d_conv": config.ssm_cfg.d_conv(),
            "expand": config.ssm_cfg.expand(),
            "vocabulary": { "tokens": config.vocab_size, "padded": config.padded_vocab_size() },
            "parameters": parameters,
            "dtype": self.dtypes,
            "files": checkpoint.files(),
            "hash": checkpoint.hash()?,
            "not_used_by_embed": checkpoint.head().map(|(name, _)| name).collect::<Vec<_>>(),
            "run": self.run,
            "best": self.best.as_ref().map(|(step, metrics)| json!({ "step": step, "metrics": metrics })),
            "card": checkpoint.card(),
        }))
    }

    fn human(&self, checkpoint: &CaduceusCheckpoint) -> Result<String> {
        let config = checkpoint.config();
        let mut lines = Lines(String::new());
        lines.add("checkpoint", checkpoint.path().display());
        let kind = match config.rcps {
            true => "Caduceus-PS: both strands, shared parameters",
            false => "Caduceus-Ph: one strand, the other by a second pass",
        };
        let layout = if config.fused_add_norm { "fused add and norm" } else { "unfused add and norm" };
        lines.add("model", format!("{kind}; {layout}"));
        let ssm = &config.ssm_cfg;
        let sizes = format!("d_model {}, {} layers", config.d_model, config.n_layer);
        lines.add(
            "sizes",
            format!(
                "{sizes} of {}, d_state {}, d_conv {}, expand {}",
                ssm.layer(),
                ssm.d_state(),
                ssm.d_conv(),
                ssm.expand()
            ),
        );
        let direction = match (config.bidirectional, config.bidirectional_weight_tie) {
            (false, _) => "left to right only",
            (true, true) => "both directions, tied projections",
            (true, false) => "both directions, projections of their own",
        };
        lines.add("reads", direction);
        let parts = self.parameters.iter().map(|(part, n)| format!("{part} {n}"));
        let parts = parts.collect::<Vec<_>>().join(", ");
        lines.add("parameters", format!("{} ({}: {parts})", short(self.total as f64), self.total));
        lines.add("type", self.dtypes.iter().copied().collect::<Vec<_>>().join(", "));
        let tokens = match config.vocab_size == tokenizer::VOCAB_SIZE {
            true => tokenizer::TOKENS.join(" "),
            false => "not those of this program".into(),
        };
        let padded = config.padded_vocab_size();
        lines.add("vocabulary", format!("{} padded to {padded}: {tokens}", config.vocab_size));
        for file in checkpoint.files() {
            lines.add_file(file);
        }
        for (name, tensor) in checkpoint.head() {
            lines.add("head", format!("{name} {:?}, not used by embed", tensor.dims()));
        }
        if let Some(run) = &self.run {
            run_lines(run, &mut lines);
        }
        best_line(self.best.as_ref(), &mut lines);
        Ok(match checkpoint.card() {
            Some(card) => format!("{}\n{card}", lines.0),
            None => lines.0,
        })
    }
}

fn run_lines(run: &RunInfo, lines: &mut Lines) {
    lines.add("made by", format!("{} {}", run.program, run.version));
    lines.add("command", run.command.join(" "));
    lines.add("training", {
        let outcome = run.outcome.as_deref().unwrap_or("not finished");
        format!(
            "{} steps, seed {}, {} with {} threads: {outcome}",
            run.steps, run.seed, run.device, run.threads
        )
    });
    let finished = run.finished.as_deref().unwrap_or("not finished");
    lines.add("time", format!("{} to {finished}", run.started));
    let files = run.settings.get("fasta").and_then(Value::as_array);
    if let Some(files) = files {
        let names: Vec<_> = files.iter().filter_map(Value::as_str).collect();
        lines.add("data", if names.is_empty() { "bundled genome".into() } else { names.join(", ") });
    }
}

fn best_line(best: Option<&Best>, lines: &mut Lines) {
    let Some((step, metrics)) = best else { return };
    let figure = |(name, x): (&String, &Option<f64>)| match x {
        Some(x) => format!("{name} {x:.4}"),
        None => format!("{name} not finite"),
    };
    let metrics = metrics.iter().map(figure).collect::<Vec<_>>().join(", ");
    lines.add("best", format!("{metrics} (step {step})"));
}

/// `name  value` lines, values below each other.
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl Display) {
        self.0 += &format!("{name:<11} {value}\n");
    }

    fn add_file(&mut self, file: &WeightFile) {
        self.add("weights", format!("{}, {} bytes, sha256 {}", file.name, file.bytes, file.sha256));
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
