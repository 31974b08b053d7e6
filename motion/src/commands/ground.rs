//! `ground`: where a motion shows what a text or a label says.

use anyhow::Result;
use mamba_core::cli::{CommonArgs, Format, HintExt};
use mamba_motion::conditions::Asked;
use mamba_motion::dataset::frames_of_file;
use mamba_motion::features::FPS;
use mamba_motion::grounding::GroundingModel;
use mamba_motion::run::GROUNDING;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `ground`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    mamba-motion ground long.bvh --checkpoint runs/text --text \"a person kicks\"\n  \
    mamba-motion ground *.bvh --checkpoint runs/long --label kick --label run --format json")]
pub(crate) struct Args {
    /// Motions: .bvh, DeepMimic .txt, features .npy
    #[arg(value_name = "FILE", required = true)]
    motions: Vec<PathBuf>,

    /// Folder of the training
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// What to look for: a sentence, for a training with --text-encoder; repeatable
    #[arg(long, value_name = "TEXT", required_unless_present = "label")]
    text: Vec<String>,

    /// What to look for: labels separated by /, as `info` lists them; repeatable
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,

    /// Where the training's text encoder lies now [default: where it was]
    #[arg(long, value_name = "DIR")]
    text_encoder: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let usage = |message: String| mamba_core::Error::Config(message);
    if !args.checkpoint.join(GROUNDING).is_dir() {
        let message = format!("{} has no {GROUNDING}", args.checkpoint.display());
        return Err(usage(message))
            .hint("--checkpoint names the --out folder of a training with --parts grounding");
    }
    let model = GroundingModel::open(&args.checkpoint, args.text_encoder.as_deref(), &device)?;
    let shared = model.shared();
    let mut asked: Vec<(&String, Asked)> = Vec::new();
    for label in &args.label {
        asked.push((label, Asked::Labels(shared.labels(label).map_err(|e| usage(e.to_string()))?)));
    }
    for text in &args.text {
        if shared.text.is_none() {
            return Err(usage(format!("--text {text:?}: the training knows labels only")))
                .hint("--label chooses among them; train with --text-encoder for sentences");
        }
        asked.push((text, Asked::Text(text.clone())));
    }
    for path in &args.motions {
        let motion = frames_of_file(path, shared.config.source.skeleton.as_deref())?;
        for (what, asked) in &asked {
            let found = model.ground(&motion, asked)?;
            let seconds = |frame: usize| frame as f64 / FPS;
            match args.common.format {
                Format::Json => {
                    let segments: Vec<_> = found
                        .iter()
                        .map(|found| {
                            let (start, end) = (seconds(found.frames.start), seconds(found.frames.end));
                            serde_json::json!({ "start": start, "end": end, "score": found.score })
                        })
                        .collect();
                    let length = seconds(motion.len());
                    writeln!(
                        std::io::stdout(),
                        "{}",
                        serde_json::json!({ "file": path, "asked": what, "seconds": length, "segments": segments })
                    )?;
                }
                Format::Human => {
                    for found in &found {
                        let (start, end) = (seconds(found.frames.start), seconds(found.frames.end));
                        writeln!(
                            std::io::stdout(),
                            "{}\t{what}\t{start:.2}\t{end:.2}\t{:.3}",
                            path.display(),
                            found.score
                        )?;
                    }
                    if found.is_empty() {
                        eprintln!("{}: {what:?} is not found", path.display());
                    }
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
