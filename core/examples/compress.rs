//! Reduces the states of a trained language model by balanced truncation, and trains what is left on.

mod support;

use anyhow::Result;
use clap::Parser;
use mamba_core::cli::{CommonArgs, Format, HintExt, INTERRUPTED, SettingsArgs, run_main};
use mamba_core::lm::{LmConfig, MambaLm, SsmConfig};
use mamba_core::memory::compress::{Reduction, compress};
use mamba_core::run_folder::{RunFolder, RunInfo};
use mamba_core::text::{TOKENIZER, Tokenizer};
use mamba_core::train::{self, Console, Outcome, Stop, TrainConfig};
use mamba_core::{Error, Params, checkpoint};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use support::{Text, TextModel, mean_loss};

/// Reduce the states of a trained language model (Mamba-1, S4D)
///
/// Prints the Hankel singular values of every layer, and the loss on the last 5 % of a text before, after, and after training
/// what is left on the first 90 %. Writes the smaller checkpoint.
#[derive(Parser)]
#[command(after_help = "Example:\n  \
    cargo run --profile release -p mamba-core --features train,cli,lm --example train_text -- book.txt --out runs/book --minutes 10\n  \
    cargo run --profile release -p mamba-core --features train,cli,lm --example compress -- book.txt --checkpoint runs/book \\\n    \
    --d-state 4 --out runs/small --minutes 2")]
struct Args {
    /// Plain text, as the model was trained on
    #[arg(value_name = "FILE")]
    text: PathBuf,

    /// Folder with config.json, weights and tokenizer.json
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// States that are kept of each channel
    #[arg(long, value_name = "N")]
    d_state: usize,

    /// Folder for the smaller model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Train on for so many minutes at most
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,

    /// Train on for so many steps at most
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// All settings; `--set train.batch_size=4`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    train: TrainConfig,
    /// Tokens of a training sequence.
    length: usize,
}

impl Config {
    fn preset() -> Self {
        Self {
            train: TrainConfig {
                steps: 500,
                batch_size: 8,
                learning_rate: 1e-3,
                warmup: 20,
                eval_every: 100,
                save_every: 100,
                log_every: 50,
                ..Default::default()
            },
            length: 256,
        }
    }
}

fn table(reductions: &[Reduction], d_state: usize) -> String {
    let mut text = String::from("Hankel singular values, mean over the channels of a layer:\n");
    for r in reductions {
        let values: Vec<String> = r.hankel.iter().map(|s| format!("{s:.2e}")).collect();
        let dropped = 100.0 * r.dropped(d_state);
        text += &format!("{}  {}\n", r.mixer, values.join(" "));
        text += &match &r.kept {
            Some(kept) => {
                format!("    beyond {d_state}: {dropped:.2} % of their sum; states kept: {kept:?}\n")
            }
            None => format!("    beyond {d_state}, dropped: {dropped:.2} % of their sum\n"),
        };
    }
    text
}

fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let mut cfg = args.settings.resolve(&Config::preset())?;
    cfg.train.seed = args.settings.seed.unwrap_or(cfg.train.seed);
    cfg.train.steps = args.steps.unwrap_or(cfg.train.steps);
    cfg.train.max_minutes = args.minutes.or(cfg.train.max_minutes);
    cfg.train.validate()?;
    let tokenizer = Tokenizer::load(&args.checkpoint)
        .hint(format!("a checkpoint folder has a {TOKENIZER} beside its config.json"))?;
    let text = Text::of(&args.text, &tokenizer, cfg.length)?;
    let stored = checkpoint::load_dir(&args.checkpoint)?;
    let mut model = LmConfig::from_json(&stored.config)?;
    if tokenizer.vocab_size() > model.padded_vocab_size() {
        let (tokens, model) = (tokenizer.vocab_size(), model.padded_vocab_size());
        return Err(Error::Config(format!("{TOKENIZER} has {tokens} tokens, the model {model}")).into());
    }
    let mut tensors = stored.tensors.clone();
    let (mixer, reductions) = compress(&mut tensors, &model.ssm_cfg.mixer, args.d_state)?;
    let folder = RunFolder::create(&args.out)?;
    let dtype = args.common.dtype();
    let before = mean_loss(&MambaLm::load(stored, dtype, &device)?, &text.test, &device)?;

    let states = model.ssm_cfg.mixer.d_state();
    model.ssm_cfg = SsmConfig { mixer };
    let params = Params::trainable(tensors, cfg.train.seed, dtype, &device);
    let lm = MambaLm::new(&model, &params.builder())?;
    params.check()?;
    let after = mean_loss(&lm, &text.test, &device)?;
    let mut console = Console::new(args.common.format, args.common.quiet);
    console.note(&table(&reductions, args.d_state));
    console.note(&format!("test loss {before:.4} with {states} states, {after:.4} with {}", args.d_state));

    tokenizer.save(folder.dir())?;
    let settings = json!({ "config": &cfg, "text": &args.text, "checkpoint": &args.checkpoint });
    let mut info = RunInfo::new("compress", env!("CARGO_PKG_VERSION"), &device, cfg.train.seed, settings);
    folder.save_info(&info)?;
    let (train, length) = (&cfg.train, cfg.length);
    let mut task = TextModel { model: &model, train, length, text: &text, params, lm, unit: "tok" };
    let report = train::run(&mut task, &cfg.train, &folder, &mut console, &Stop::on_signals()?)?;
    info.finish(&format!("{:?}", report.outcome), report.step);
    folder.save_info(&info)?;
    let best = MambaLm::load(checkpoint::load_dir(&args.out)?, dtype, &device)?;
    let trained = mean_loss(&best, &text.test, &device)?;
    match args.common.format {
        Format::Json => println!(
            "{}",
            json!({"states": states, "d_state": args.d_state, "loss_before": before, "loss_truncated": after,
                "loss_trained": trained, "steps": report.step,
                "layers": reductions.iter().map(|r| json!({"mixer": r.mixer, "hankel": r.hankel,
                    "dropped": r.dropped(args.d_state), "kept": r.kept})).collect::<Vec<_>>()})
        ),
        Format::Human => println!(
            "test loss in nats per token: {before:.4} with {states} states, {after:.4} with {}, {trained:.4} after {} steps of training",
            args.d_state, report.step
        ),
    }
    Ok(match report.outcome {
        Outcome::Interrupted => ExitCode::from(INTERRUPTED),
        _ => ExitCode::SUCCESS,
    })
}

fn main() -> ExitCode {
    let args = Args::parse();
    run_main(|| run(args))
}
