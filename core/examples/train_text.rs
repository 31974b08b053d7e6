//! Trains a byte-level Mamba language model on plain text; the example `generate` writes with it.

mod support;

use anyhow::Result;
use clap::Parser;
use mamba_core::cli::{CommonArgs, Format, SettingsArgs, interrupted, open_run, run_main};
use mamba_core::lm::{LmConfig, MambaLm};
use mamba_core::run_folder::RunInfo;
use mamba_core::text::Tokenizer;
use mamba_core::train::{self, Console, Stop, TrainConfig};
use mamba_core::{Error, Params, checkpoint};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::f64::consts::LN_2;
use std::path::PathBuf;
use std::process::ExitCode;
use support::{Text, TextModel, mean_loss};

/// Train a byte-level Mamba language model on plain text
///
/// The first 90 % of the text are trained on, the next 5 % choose the best weights, the last 5 % are the test.
#[derive(Parser)]
#[command(after_help = "Example:\n  \
    cargo run --profile release -p mamba-core --features train,cli,lm --example train_text -- book.txt --out runs/book --minutes 10\n  \
    cargo run --profile release -p mamba-core --features train,cli,lm --example generate -- --checkpoint runs/book --prompt 'In the'")]
struct Args {
    /// Plain text of any encoding
    #[arg(value_name = "FILE")]
    text: PathBuf,

    /// Folder for the run
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Go on where the run in --out was saved
    #[arg(long)]
    resume: bool,

    /// Stop after so many minutes, saved and evaluated
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,

    /// Optimizer steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// All settings; `--set train.batch_size=4`, `--set model.d_model=128`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    model: LmConfig,
    train: TrainConfig,
    /// Bytes of a training sequence.
    length: usize,
}

impl Config {
    fn preset() -> Self {
        Self {
            model: LmConfig { d_model: 192, n_layer: 4, vocab_size: 256, ..Default::default() },
            train: TrainConfig {
                steps: 3000,
                batch_size: 8,
                learning_rate: 4e-3,
                warmup: 100,
                eval_every: 250,
                save_every: 250,
                log_every: 50,
                ..Default::default()
            },
            length: 256,
        }
    }

    fn validate(&self) -> Result<(), Error> {
        self.model.validate()?;
        self.train.validate()?;
        if self.length == 0 || self.model.vocab_size < 256 {
            let message = format!(
                "length {} must be at least 1 and vocab_size {} at least 256",
                self.length, self.model.vocab_size
            );
            return Err(Error::Config(message));
        }
        Ok(())
    }
}

fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let mut cfg = args.settings.resolve(&Config::preset())?;
    cfg.train.seed = args.settings.seed.unwrap_or(cfg.train.seed);
    cfg.train.steps = args.steps.unwrap_or(cfg.train.steps);
    cfg.train.max_minutes = args.minutes.or(cfg.train.max_minutes);
    cfg.validate()?;
    let mut console = Console::new(args.common.format, args.common.quiet);
    let text = Text::of_bytes(&args.text, cfg.length)?;
    let folder = open_run(&args.out, args.resume)?;
    let params = Params::fresh(cfg.train.seed, args.common.dtype(), &device);
    let lm = MambaLm::new(&cfg.model, &params.builder())?;
    console.note(&format!(
        "{} parameters; {} bytes to train on, {} for validation, {} for the test",
        params.count(),
        text.train.len(),
        text.valid.len(),
        text.test.len()
    ));
    Tokenizer::bytes().save(folder.dir())?;
    let settings = json!({ "config": &cfg, "text": &args.text });
    let info = RunInfo::new("train_text", env!("CARGO_PKG_VERSION"), &device, cfg.train.seed, settings);
    let (model, length) = (&cfg.model, cfg.length);
    let mut task = TextModel { model, train: &cfg.train, length, text: &text, params, lm, unit: "B" };
    let stop = Stop::on_signals()?;
    let Some(report) = train::run_recorded(&mut task, &cfg.train, &folder, info, &mut console, &stop)? else {
        return Ok(interrupted(&console, &args.out));
    };
    let best = MambaLm::load(checkpoint::load_dir(&args.out)?, args.common.dtype(), &device)?;
    let bits = mean_loss(&best, &text.test, &device)? / LN_2;
    match args.common.format {
        Format::Json => println!("{}", json!({ "test_bits_per_byte": bits, "step": report.step })),
        Format::Human => println!("test  bits per byte {bits:.4} over {} bytes", text.test.len()),
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let args = Args::parse();
    run_main(|| run(args))
}
