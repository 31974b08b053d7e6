//! Decoding and prefill of the published 130 M size (24 layers, d_model 768, vocabulary 50,280) at batch 1, with weights in
//! f32, bf16 and 8 bits: tokens per second, medians. Prints a table; `--json` prints one object a line.

use candle_core::{DType, Device, Tensor};
use mamba_core::lm::{LmConfig, MambaLm};
use mamba_core::{BackboneState, Params, Result, WeightFormat, cli};
use std::time::Instant;

/// Tokens of one timed run of decoding.
const STEPS: usize = 32;
const PROMPT: usize = 2048;

fn config() -> LmConfig {
    LmConfig { d_model: 768, n_layer: 24, vocab_size: 50_280, ..Default::default() }
}

/// Tokens per second, the median of `runs`.
fn rate(runs: usize, tokens: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut rates = Vec::new();
    for _ in 0..runs {
        let started = Instant::now();
        run()?;
        rates.push(tokens as f64 / started.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[rates.len() / 2])
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_string()
}

fn measure(lm: &MambaLm) -> Result<[f64; 3]> {
    let ids = Tensor::new(&[17u32], &Device::Cpu)?;
    let x = lm.embed(&ids)?.unsqueeze(1)?; // (1, 1, d_model)
    let mut state = BackboneState::new();
    let body = rate(7, STEPS, || {
        for _ in 0..STEPS {
            lm.forward_embedded(&x, None, Some(&mut state))?;
        }
        Ok(())
    })?;
    let whole = rate(7, STEPS, || {
        for _ in 0..STEPS {
            lm.step(&ids, &mut state)?;
        }
        Ok(())
    })?;
    let prompt = Tensor::zeros((1, PROMPT), DType::U32, &Device::Cpu)?;
    let prefill = rate(3, PROMPT, || Ok(lm.prefill(&prompt, &mut BackboneState::new()).map(drop)?))?;
    Ok([body, whole, prefill])
}

fn main() -> Result<()> {
    cli::tune_allocator();
    cli::tune_candle();
    let json = std::env::args().any(|arg| arg == "--json");
    let fresh = Params::fresh(0, DType::F32, &Device::Cpu);
    MambaLm::new(&config(), &fresh.builder())?;
    let weights = fresh.to_tensors();
    drop(fresh);
    if !json {
        println!("{} threads, load {}", rayon::current_num_threads(), load_average());
        println!("{:8} {:>14} {:>14} {:>14}", "weights", "without head", "with head", "prefill 2048");
    }
    for format in [WeightFormat::Full, WeightFormat::Bf16, WeightFormat::Int8] {
        let params = Params::frozen(weights.clone(), DType::F32, &Device::Cpu).with_weight_format(format);
        let lm = MambaLm::new(&config(), &params.builder())?;
        // on a thread of the pool, as `generate` runs
        let [body, whole, prefill] = rayon::scope(|_| measure(&lm))?;
        match json {
            true => println!(
                r#"{{"weights":"{format}","body":{body:.1},"whole":{whole:.1},"prefill":{prefill:.1},"load":{}}}"#,
                load_average()
            ),
            false => println!("{:8} {body:>14.1} {whole:>14.1} {prefill:>14.1}", format.to_string()),
        }
    }
    Ok(())
}
