//! `eval`: generated motions against held-out ones.

use crate::commands::train::load;
use anyhow::Result;
use mamba_core::cli::{CommonArgs, Format, HintExt};
use mamba_motion::dataset::Role;
use mamba_motion::diffusion::Sampler;
use mamba_motion::evaluation::{Comparison, FIGURES, Row};
use mamba_motion::run::{DENOISER, Generator, PEER, SampleOptions, Shared, open_evaluator};
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

    #[command(flatten)]
    sampling: Sampling,

    #[command(flatten)]
    common: CommonArgs,
}

/// Flags of those who sample.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Sampling {
    /// Scale of the classifier-free guidance; 1 for none
    #[arg(long, value_name = "SCALE", default_value_t = 2.0)]
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
    let data = load(&args.data, &shared.config.source)?;
    if data.fingerprint() != shared.data {
        let message = format!("{} was not trained on these clips", args.checkpoint.display());
        return Err(mamba_core::Error::Config(message)).hint("name the same files as for train");
    }
    let (_, evaluator) = open_evaluator(&args.checkpoint, &device)?;
    let comparison = Comparison::new(&data, &shared, &evaluator, &device)?;
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
    for (name, folder) in [("Motion Mamba", DENOISER), ("transformer", PEER)] {
        if folder == PEER && !args.checkpoint.join(PEER).exists() {
            continue;
        }
        let generator = Generator::open(&args.checkpoint, folder, &device)?;
        if folder == DENOISER {
            rows.push(("VAE alone", comparison.reconstructed(&generator)?));
        }
        let mut progress = args.common.progress(Some(args.repetitions), "repetitions");
        let options = args.sampling.options();
        rows.push((name, comparison.generated(&generator, &options, args.repetitions, || progress.inc(1))?));
        progress.finish();
    }
    match args.common.format {
        Format::Json => {
            let figures: serde_json::Map<_, _> = rows
                .iter()
                .map(|(name, row)| Ok((name.to_string(), serde_json::to_value(row)?)))
                .collect::<Result<_, serde_json::Error>>()?;
            let windows = comparison.len();
            let dim = evaluator.config().dim;
            println!(
                "{}",
                serde_json::json!({ "windows": windows, "window": window, "dim": dim, "role": what,
                "repetitions": args.repetitions, "figures": figures })
            );
        }
        Format::Human => print_table(&rows),
    }
    Ok(ExitCode::SUCCESS)
}

/// A line for each figure, a column for each kind of motions.
fn print_table(rows: &[(&str, Row)]) {
    let names: String = rows.iter().map(|(name, _)| format!("{name:>20}")).collect();
    println!("{:<18}{names}", "");
    for figure in FIGURES {
        let cell = |(_, row): &(&str, Row)| match row.get(figure) {
            Some(f) if f.interval > 0.0 => format!("{:>20}", format!("{:.4} ± {:.4}", f.mean, f.interval)),
            Some(f) => format!("{:>20.4}", f.mean),
            None => format!("{:>20}", "-"),
        };
        println!("{figure:<18}{}", rows.iter().map(cell).collect::<String>());
    }
}
