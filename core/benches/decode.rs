//! Decoding and prefill of the published 130 M size (24 layers, d_model 768, vocabulary 50,280) at batch 1, with weights in
//! f32, bf16, f16 and 8 bits: tokens per second, best and median of short runs. The best run is the one that other programs
//! of the machine disturbed least. `--json` prints one object a line, `--formats int8,bf16` measures only those,
//! `--decode-only` leaves prefill out.

use candle_core::{DType, Device, Tensor};
use mamba_core::lm::{LmConfig, MambaLm};
use mamba_core::{BackboneState, Error, Params, Result, WeightFormat, cli};
use std::time::{Duration, Instant};

/// Tokens of one timed run of decoding.
const STEPS: usize = 4;
const PROMPT: usize = 2048;

fn config() -> LmConfig {
    LmConfig { d_model: 768, n_layer: 24, vocab_size: 50_280, ..Default::default() }
}

/// Tokens per second.
struct Rate {
    best: f64,
    median: f64,
}

/// Runs of `tokens` tokens for about `time`, at least two after one that warms up.
fn rate(time: Duration, tokens: usize, mut run: impl FnMut() -> Result<()>) -> Result<Rate> {
    run()?;
    let begun = Instant::now();
    let mut rates = Vec::new();
    while rates.len() < 2 || begun.elapsed() < time {
        let started = Instant::now();
        run()?;
        rates.push(tokens as f64 / started.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(Rate { best: rates[rates.len() - 1], median: rates[rates.len() / 2] })
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_string()
}

/// Without head, with head, prefill.
fn measure(lm: &MambaLm, with_prefill: bool) -> Result<Vec<(&'static str, Rate)>> {
    let ids = Tensor::new(&[17u32], &Device::Cpu)?;
    let x = lm.embed(&ids)?.unsqueeze(1)?; // (1, 1, d_model)
    let mut state = BackboneState::new();
    let body = rate(Duration::from_secs(2), STEPS, || {
        (0..STEPS).try_for_each(|_| Ok(lm.forward_embedded(&x, None, Some(&mut state)).map(drop)?))
    })?;
    let whole = rate(Duration::from_secs(2), STEPS, || {
        (0..STEPS).try_for_each(|_| Ok(lm.step(&ids, &mut state).map(drop)?))
    })?;
    let mut rates = vec![("without_head", body), ("with_head", whole)];
    if with_prefill {
        let prompt = Tensor::zeros((1, PROMPT), DType::U32, &Device::Cpu)?;
        let run = || Ok(lm.prefill(&prompt, &mut BackboneState::new()).map(drop)?);
        rates.push(("prefill_2048", rate(Duration::from_secs(8), PROMPT, run)?));
    }
    Ok(rates)
}

fn main() -> Result<()> {
    cli::tune_allocator();
    cli::tune_candle();
    let args: Vec<String> = std::env::args().collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let formats = match args.iter().position(|arg| arg == "--formats").map(|at| args.get(at + 1)) {
        None => WeightFormat::ALL.to_vec(),
        Some(None) => return Err(Error::Config("--formats needs a list such as full,int8".into())),
        Some(Some(list)) => list.split(',').map(str::parse).collect::<Result<_>>()?,
    };
    let fresh = Params::fresh(0, DType::F32, &Device::Cpu);
    MambaLm::new(&config(), &fresh.builder())?;
    let weights = fresh.to_tensors();
    drop(fresh);
    if !has("--json") {
        println!("{} threads, load {}; best (median)", rayon::current_num_threads(), load_average());
    }
    for format in formats {
        let params = Params::frozen(weights.clone(), DType::F32, &Device::Cpu).with_weight_format(format);
        let lm = MambaLm::new(&config(), &params.builder())?;
        // on a thread of the pool, as `generate` runs
        let rates = rayon::scope(|_| measure(&lm, !has("--decode-only")))?;
        for (what, Rate { best, median }) in rates {
            match has("--json") {
                true => println!(
                    r#"{{"weights":"{format}","what":"{what}","best":{best:.1},"median":{median:.1},"load":{}}}"#,
                    load_average()
                ),
                false => println!("{:6} {what:14} {best:8.1} ({median:.1})", format.to_string()),
            }
        }
    }
    Ok(())
}
