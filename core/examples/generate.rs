//! Continues a prompt with a language model: any Mamba checkpoint folder with a `tokenizer.json`.

use anyhow::Result;
use clap::Parser;
use mamba_core::cli::{CommonArgs, Format, HintExt, run_main};
use mamba_core::generate::{Ending, Generation, Sampling};
use mamba_core::lm::MambaLm;
use mamba_core::text::{TOKENIZER, Tokenizer};
use mamba_core::{Error, WeightFormat, checkpoint};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Continue a prompt with a Mamba language model
#[derive(Parser)]
#[command(after_help = "Example:\n  \
    cargo run --profile release -p mamba-core --features train,cli,lm --example generate -- \\\n    \
    --checkpoint mamba-130m-hf --prompt 'Once upon a time' --temperature 0.8 --top-p 0.95 --seed 7")]
struct Args {
    /// Folder with config.json, weights and tokenizer.json
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// What to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,

    /// Most tokens to write
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_tokens: usize,

    /// Below 1 likelier tokens gain, above 1 they lose; 0 always takes the likeliest
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f64,

    /// Choose among so many likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,

    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,

    /// Above 1 tokens that the text already has become less likely
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f64,

    /// Seed of the draws
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,

    /// Text, or special token, that ends the output and is not shown; repeatable
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    /// How the weights are kept in memory: full, bf16, f16 or int8
    #[arg(long, value_name = "FORMAT", default_value_t = WeightFormat::Full)]
    weights: WeightFormat,

    #[command(flatten)]
    common: CommonArgs,
}

fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let generation = Generation {
        max_tokens: args.max_tokens,
        sampling: Sampling {
            repetition_penalty: args.repetition_penalty,
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
        },
        seed: args.seed,
        stop: Vec::new(),
    };
    generation.sampling.validate()?;
    let tokenizer = Tokenizer::load(&args.checkpoint)
        .hint(format!("a checkpoint folder has a {TOKENIZER} beside its config.json"))?;
    let stored = checkpoint::load_dir(&args.checkpoint)?;
    let lm = MambaLm::load_as(stored, args.weights, args.common.dtype(), &device)?;
    if tokenizer.vocab_size() > lm.vocab_size() {
        let (tokens, model) = (tokenizer.vocab_size(), lm.vocab_size());
        let message = format!("{TOKENIZER} has {tokens} tokens, the model {model}");
        return Err(Error::Config(message).into());
    }
    let stop_tokens = args.stop.iter().filter_map(|stop| tokenizer.token(stop)).collect();
    let generation = Generation { stop: stop_tokens, ..generation };

    let prompt = tokenizer.encode(&args.prompt)?;
    let started = Instant::now();
    let mut tokens = lm.generate(&prompt, &generation)?;
    let prefill = started.elapsed().as_secs_f64();
    let mut stream = tokenizer.stream(&args.stop);
    let mut text = String::new();
    let human = args.common.format == Format::Human;
    let mut stdout = std::io::stdout().lock();
    let mut show = |part: &str| -> std::io::Result<()> {
        text += part;
        if human && !part.is_empty() {
            stdout.write_all(part.as_bytes())?;
            stdout.flush()?;
        }
        Ok(())
    };
    let (started, mut count) = (Instant::now(), 0usize);
    for token in tokens.by_ref() {
        count += 1;
        show(&stream.push(token?)?)?;
        if stream.stopped() {
            break;
        }
    }
    show(&stream.finish()?)?;
    let seconds = started.elapsed().as_secs_f64();
    let stopped = stream.stopped() || tokens.ending() == Some(Ending::Stop);
    let ending = if stopped { "stop" } else { "length" };
    match human {
        true => writeln!(stdout)?,
        false => writeln!(
            stdout,
            "{}",
            json!({"prompt": args.prompt, "text": text, "prompt_tokens": prompt.len(), "tokens": count,
                "ending": ending, "prefill_seconds": prefill, "seconds": seconds})
        )?,
    }
    if !args.common.quiet {
        eprintln!(
            "{} tokens read in {prefill:.2} s; {count} written in {seconds:.2} s, {:.1} a second",
            prompt.len(),
            count as f64 / seconds.max(1e-9)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let args = Args::parse();
    run_main(|| run(args))
}
