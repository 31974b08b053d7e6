//! `eval`: generated motions against held-out ones.

use crate::commands::train::load;
use anyhow::Result;
use candle_core::Device;
use mamba_core::cli::{CommonArgs, Format, HintExt};
use mamba_datasets::registry::resolve_all;
use mamba_motion::dataset::{MotionData, Role};
use mamba_motion::diffusion::Sampler;
use mamba_motion::evaluation::{Comparison, FIGURES, Row};
use mamba_motion::grounding::GroundingModel;
use mamba_motion::run::{
    DENOISER, EVALUATOR, GROUNDING, Generator, PEER, STREAM, SampleOptions, Shared, open_evaluator,
};
use mamba_motion::stream::StreamGenerator;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `eval`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  mamba-motion eval clips/ --checkpoint runs/clips")]
pub(crate) struct Args {
    /// The clips of the training [default: the bundled clips]
    #[arg(value_name = "DATA")]
    data: Vec<PathBuf>,

    /// Folder of the training
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Repetitions with new noise
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    repetitions: u64,

    /// Long motions that the grounding model is asked about
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    questions: u64,

    /// Where the training's text encoder lies now [default: where it was]
    #[arg(long, value_name = "DIR")]
    text_encoder: Option<PathBuf>,

    #[command(flatten)]
    sampling: Sampling,

    #[command(flatten)]
    common: CommonArgs,
}

/// Flags of those who sample.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Sampling {
    /// Scale of the classifier-free guidance; 1 for none
    #[arg(long, value_name = "SCALE", default_value_t = 2.0, value_parser = finite)]
    guidance: f64,

    /// Denoising steps: a number, "10,15,20" for parts of the schedule, or "ddim50" for a fixed stride
    #[arg(long, value_name = "STEPS", default_value = "50")]
    steps: String,

    /// Sample by DDPM, with noise on the way, instead of DDIM
    #[arg(long)]
    ddpm: bool,

    /// Seed of the noise
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
}

fn finite(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x: &f64| x.is_finite());
    number.ok_or_else(|| "expected a finite number".into())
}

impl Sampling {
    pub(crate) fn options(&self) -> SampleOptions {
        let sampler = if self.ddpm { Sampler::Ddpm } else { Sampler::Ddim { eta: 0.0 } };
        SampleOptions { guidance: self.guidance, respacing: self.steps.clone(), sampler, seed: self.seed }
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let shared = Shared::read(&args.checkpoint).hint("--checkpoint names the --out folder of a training")?;
    let data = load(&resolve_all(&args.data)?, &shared.config.source)?;
    if data.fingerprint() != shared.data {
        let message = format!("{} was not trained on these clips", args.checkpoint.display());
        return Err(mamba_core::Error::Config(message)).hint("name the same files as for train");
    }
    let mut report = serde_json::Map::new();
    if args.checkpoint.join(EVALUATOR).is_dir() {
        report.extend(generation(&args, &data, &shared, &device)?);
    }
    if args.checkpoint.join(GROUNDING).is_dir() {
        report.insert("grounding".into(), grounding(&args, &data, &device)?);
    }
    if report.is_empty() {
        let message = format!("{} has neither evaluator nor grounding", args.checkpoint.display());
        return Err(mamba_core::Error::Config(message)).hint("train --parts evaluator --resume adds one");
    }
    if args.common.format == Format::Json {
        writeln!(std::io::stdout(), "{}", serde_json::Value::Object(report))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Figures of generated motions, printed for people, returned for programs.
fn generation(
    args: &Args,
    data: &MotionData,
    shared: &Shared,
    device: &Device,
) -> Result<serde_json::Map<String, serde_json::Value>> {
    let (_, evaluator) = open_evaluator(&args.checkpoint, device)?;
    let comparison = Comparison::new(data, shared, &evaluator, device)?;
    let window = evaluator.config().window;
    let what = if comparison.role == Role::Test { "held-out" } else { "training" };
    if comparison.role == Role::Train {
        eprintln!("no clip is held out: figures are against the training clips themselves");
    }
    eprintln!("{} {what} windows of {window} frames, {} repetitions", comparison.len(), args.repetitions);
    let mut rows: Vec<(&str, Row)> = vec![
        ("held-out clips", comparison.held_out(args.repetitions)?),
        ("training clips", comparison.training(args.repetitions)?),
    ];
    let (encoder, options) = (args.text_encoder.as_deref(), args.sampling.options());
    for (name, folder) in [("Motion Mamba", DENOISER), ("transformer", PEER), ("stream", STREAM)] {
        if !args.checkpoint.join(folder).is_dir() {
            continue;
        }
        let mut progress = args.common.progress(Some(args.repetitions), "repetitions");
        let seen = || progress.inc(1);
        if folder == STREAM {
            let generator = StreamGenerator::open(&args.checkpoint, encoder, device)?;
            rows.push((name, comparison.streamed(&generator, &options, args.repetitions, seen)?));
        } else {
            let generator = Generator::open(&args.checkpoint, folder, encoder, device)?;
            if folder == DENOISER {
                rows.push(("VAE alone", comparison.reconstructed(&generator)?));
            }
            rows.push((name, comparison.generated(&generator, &options, args.repetitions, seen)?));
        }
        progress.finish();
    }
    if args.common.format == Format::Human {
        print_table(&rows)?;
    }
    let figures: serde_json::Map<_, _> = rows
        .iter()
        .map(|(name, row)| Ok((name.to_string(), serde_json::to_value(row)?)))
        .collect::<Result<_, serde_json::Error>>()?;
    let report = serde_json::json!({ "windows": comparison.len(), "window": window, "dim": evaluator.config().dim,
        "role": what, "repetitions": args.repetitions, "figures": figures });
    Ok(report.as_object().cloned().unwrap_or_default())
}

/// Figures of the grounding model, printed for people, returned for programs.
fn grounding(args: &Args, data: &MotionData, device: &Device) -> Result<serde_json::Value> {
    let model = GroundingModel::open(&args.checkpoint, args.text_encoder.as_deref(), device)?;
    let (role, clips) = match data.of_role(Role::Test) {
        none if none.is_empty() => ("training", data.of_role(Role::Train)),
        clips => ("held-out", clips),
    };
    let mut progress = args.common.progress(Some(args.questions), "questions");
    let row = model.evaluate(&clips, args.questions as usize, args.sampling.seed, || progress.inc(1))?;
    progress.finish();
    if args.common.format == Format::Human {
        writeln!(std::io::stdout(), "grounding, {} long motions of {role} clips", args.questions)?;
        for (name, figure) in &row {
            writeln!(std::io::stdout(), "{name:<24}{:>10.4} ± {:.4}", figure.mean, figure.interval)?;
        }
    }
    Ok(serde_json::json!({ "role": role, "questions": args.questions, "figures": row }))
}

/// A line for each figure, a column for each kind of motions.
fn print_table(rows: &[(&str, Row)]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let names: String = rows.iter().map(|(name, _)| format!("{name:>20}")).collect();
    writeln!(out, "{:<18}{names}", "")?;
    for figure in FIGURES {
        let cell = |(_, row): &(&str, Row)| match row.get(figure) {
            Some(f) if f.interval > 0.0 => format!("{:>20}", format!("{:.4} ± {:.4}", f.mean, f.interval)),
            Some(f) => format!("{:>20.4}", f.mean),
            None => format!("{:>20}", "-"),
        };
        writeln!(out, "{figure:<18}{}", rows.iter().map(cell).collect::<String>())?;
    }
    Ok(())
}
