//! How well a language model predicts a text, with its weights in full and in small formats.

mod support;

use anyhow::{Result, bail};
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use mamba_core::cli::{CommonArgs, Format, HintExt, run_main};
use mamba_core::lm::MambaLm;
use mamba_core::text::{TOKENIZER, Tokenizer};
use mamba_core::{WeightFormat, checkpoint};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use support::{mean_loss, tokens_of};

/// Measure what small weights cost a language model on a text
///
/// Loss and perplexity for each format of the weights, and how far its logits are from those of full weights.
#[derive(Parser)]
#[command(after_help = "Example:\n  \
    cargo run --profile release -p mamba-core --features train,cli,lm --example perplexity -- book.txt --checkpoint runs/book")]
struct Args {
    /// Plain text
    #[arg(value_name = "FILE")]
    text: PathBuf,

    /// Folder with config.json, weights and tokenizer.json
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// Read so many tokens from the end of the text at most
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    tokens: usize,

    #[command(flatten)]
    common: CommonArgs,
}

/// What one format of the weights comes to.
#[derive(Serialize)]
struct Row {
    weights: WeightFormat,
    /// Nats per token.
    loss: f64,
    perplexity: f64,
    /// The largest difference of a logit from that of full weights, relative to the largest logit.
    logit_error: f64,
    /// Mean Kullback-Leibler divergence from the distribution of full weights, in nats per token.
    divergence: f64,
    /// Share of tokens at which the likeliest next one is the same.
    same_likeliest: f64,
}

/// Tokens whose logits are compared.
const COMPARED: usize = 4096;

/// Logits `(1, L, vocabulary)` against those of full weights.
fn compare(weights: WeightFormat, loss: f64, logits: &Tensor, full: &Tensor) -> Result<Row> {
    let scalar = |x: Tensor| x.to_dtype(DType::F64)?.to_scalar::<f64>();
    let (p, q) =
        (candle_nn::ops::log_softmax(full, D::Minus1)?, candle_nn::ops::log_softmax(logits, D::Minus1)?);
    let same = logits.argmax(D::Minus1)?.eq(&full.argmax(D::Minus1)?)?.to_dtype(DType::F32)?;
    Ok(Row {
        weights,
        loss,
        perplexity: loss.exp(),
        logit_error: scalar((logits - full)?.abs()?.max_all()?)? / scalar(full.abs()?.max_all()?)?,
        divergence: scalar((p.exp()? * (&p - q)?)?.sum(D::Minus1)?.mean_all()?)?,
        same_likeliest: scalar(same.mean_all()?)?,
    })
}

fn run(args: Args) -> Result<ExitCode> {
    let device = args.common.start()?;
    let tokenizer = Tokenizer::load(&args.checkpoint)
        .hint(format!("a checkpoint folder has a {TOKENIZER} beside its config.json"))?;
    let all = tokens_of(&args.text, &tokenizer)?;
    let tokens = &all[all.len() - args.tokens.min(all.len())..];
    if tokens.len() < 2 {
        bail!("{}: {} tokens are too few, expected at least 2", args.text.display(), tokens.len());
    }
    let stored = checkpoint::load_dir(&args.checkpoint)?;
    let measure = |format: WeightFormat, device: &Device| -> Result<(f64, Tensor)> {
        let lm = MambaLm::load_as(stored.clone(), format, args.common.dtype(), device)?;
        if tokenizer.vocab_size() > lm.vocab_size() {
            let (tokens, model) = (tokenizer.vocab_size(), lm.vocab_size());
            bail!("{TOKENIZER} has {tokens} tokens, the model {model}");
        }
        let ids = &tokens[..tokens.len().min(COMPARED)];
        let logits = lm.forward(&Tensor::from_slice(ids, (1, ids.len()), device)?)?;
        let logits = logits.narrow(2, 0, lm.vocab_size())?.to_dtype(DType::F32)?.contiguous()?;
        Ok((mean_loss(&lm, tokens, device)?, logits))
    };
    let (loss, full) = measure(WeightFormat::Full, &device)?;
    let mut rows = vec![compare(WeightFormat::Full, loss, &full, &full)?];
    for format in WeightFormat::ALL.into_iter().filter(|format| *format != WeightFormat::Full) {
        let (loss, logits) = measure(format, &device)?;
        rows.push(compare(format, loss, &logits, &full)?);
    }
    match args.common.format {
        Format::Json => println!("{}", json!({ "tokens": tokens.len(), "formats": rows })),
        Format::Human => {
            println!(
                "{} tokens\nweights      loss  perplexity  logit error  divergence  same likeliest",
                tokens.len()
            );
            for r in &rows {
                println!(
                    "{:<8} {:>8.4} {:>11.3} {:>12.1e} {:>11.1e} {:>13.2} %",
                    r.weights.to_string(),
                    r.loss,
                    r.perplexity,
                    r.logit_error,
                    r.divergence,
                    100.0 * r.same_likeliest
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let args = Args::parse();
    run_main(|| run(args))
}
