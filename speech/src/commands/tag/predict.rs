//! `tag FILE…`: probabilities for recordings of any length.

use super::PredictArgs;
use anyhow::{Result, bail};
use mamba_core::cli::{Format, HintExt};
use mamba_datasets::AtomicFile;
use mamba_datasets::registry::resolve_all;
use mamba_speech::TaggerCheckpoint;
use mamba_speech::audio::files_in;
use mamba_speech::tagging::Tagger;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Tags every recording. One that fails is reported, and the others go on.
pub(super) fn run(args: PredictArgs) -> Result<ExitCode> {
    let device = args.common.start()?;
    let Some(checkpoint) = &args.checkpoint else { bail!("--checkpoint is missing") };
    let tagger = TaggerCheckpoint::open(checkpoint)
        .hint("name the folder of a run of `mamba-speech tag train`")?
        .tagger(args.common.dtype(), &device)?;
    let mut files: Vec<PathBuf> = Vec::new();
    for path in resolve_all(&args.inputs)? {
        if path.is_dir() { files.extend(files_in(&path)?) } else { files.push(path) }
    }
    let mut csv = args.csv.as_ref().map(AtomicFile::create).transpose()?.map(csv::Writer::from_writer);
    if let Some(csv) = &mut csv {
        let columns = ["path", "seconds", "label"].map(String::from);
        csv.write_record(columns.iter().chain(tagger.labels()))?;
    }
    let mut failed = false;
    for path in &files {
        let name = path.display().to_string();
        let (probabilities, seconds) = match tagger.tag_file(path) {
            Ok(tagged) => tagged,
            // With one recording, its error is the program's.
            Err(error) if files.len() == 1 => return Err(error.into()),
            Err(error) => {
                failed = true;
                eprintln!("error: {error}");
                continue;
            }
        };
        let labels = tagger.labels();
        let best = &labels[Tagger::best(&probabilities)];
        if let Some(csv) = &mut csv {
            let values = probabilities.iter().map(f32::to_string);
            csv.write_record(
                [name.clone(), format!("{seconds:.3}"), best.clone()].into_iter().chain(values),
            )?;
        }
        let mut out = std::io::stdout().lock();
        match args.common.format {
            Format::Json => {
                let all: serde_json::Map<String, Value> =
                    labels.iter().cloned().zip(probabilities.iter().map(|&p| json!(p))).collect();
                let probability = probabilities[Tagger::best(&probabilities)];
                let object = json!({
                    "path": name, "seconds": seconds, "label": best, "probability": probability,
                    "probabilities": all,
                });
                writeln!(out, "{object}")?;
            }
            Format::Human => {
                let mut order: Vec<usize> = (0..labels.len()).collect();
                order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
                let shown = order.iter().take(args.top.max(1));
                let shown: Vec<String> =
                    shown.map(|&i| format!("{} {:.3}", labels[i], probabilities[i])).collect();
                writeln!(out, "{name}: {}", shown.join("  "))?;
            }
        }
    }
    if let Some(csv) = csv {
        let file = csv.into_inner().map_err(|e| anyhow::anyhow!("{}", e.error()))?;
        file.commit()?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
