//! The rows of `core/benches/table.rs` that the crate mamba-rs can run, one JSON object a line.
//!
//! Its models begin with a linear map from the input to d_model, which ours have not: 2 to 4 % of its matrix products.

use mamba_rs::mamba1::MambaConfig;
use mamba_rs::optim::session::TrainSessionCfg;
use mamba_rs::{MambaBackbone, MambaCpuTrainer, MambaWeights};
use std::time::{Duration, Instant};

fn config(n_layers: usize, d_model: usize) -> MambaConfig {
    MambaConfig { d_model, n_layers, d_state: 16, d_conv: 4, expand: 2, ..MambaConfig::default() }
}

fn input(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + 13) % 1000) as f32 * 0.002 - 1.0).collect()
}

/// Prints the best and the median of runs of `tokens` tokens.
fn report(row: &str, seconds: f64, tokens: usize, mut run: impl FnMut()) {
    run();
    let begun = Instant::now();
    let mut rates = Vec::new();
    while rates.len() < 2 || begun.elapsed() < Duration::from_secs_f64(seconds) {
        let started = Instant::now();
        run();
        rates.push(tokens as f64 / started.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse::<u64>().ok());
    println!(
        "{}",
        serde_json::json!({
            "program": "mamba-rs 0.8.2", "row": row, "tokens_per_second": rates[rates.len() - 1],
            "median": rates[rates.len() / 2], "runs": rates.len(), "peak_bytes": peak.map(|kib| kib * 1024),
        })
    );
}

fn forward(row: &str, seconds: f64, layers: usize, d: usize, len: usize) -> Result<(), String> {
    let model = MambaBackbone::init(config(layers, d), d, 1)?;
    let (x, mut y) = (input(len * d), vec![0f32; len * d]);
    let (mut state, mut scratch) = (model.alloc_state(), model.alloc_scratch());
    report(row, seconds, len, || {
        state.reset();
        model.forward_sequence(&x, &mut y, &mut state, &mut scratch, len);
    });
    Ok(())
}

fn train(row: &str, seconds: f64, layers: usize, d: usize, batch: usize, len: usize) -> Result<(), String> {
    let cfg = config(layers, d);
    let weights = MambaWeights::init(&cfg, d, 1);
    let mut trainer = MambaCpuTrainer::new(&weights, cfg, TrainSessionCfg::new(d, batch, len))?;
    let x = input(batch * len * d);
    let slope = vec![1e-3f32; batch * len * d];
    let mut failed = None;
    report(row, seconds, batch * len, || failed = trainer.step(&x, &slope).err());
    failed.map_or(Ok(()), Err)
}

fn decode(row: &str, seconds: f64) -> Result<(), String> {
    let mut model = MambaBackbone::init(config(24, 768), 768, 1)?;
    model.pack_for_decode();
    let (x, mut y) = (input(768), vec![0f32; 768]);
    let (mut state, mut scratch) = (model.alloc_state(), model.alloc_scratch());
    report(row, seconds, 4, || (0..4).for_each(|_| model.forward_step(&x, &mut y, &mut state, &mut scratch)));
    Ok(())
}

/// `mamba-rs-peer ROW SECONDS` measures one row in this process; without arguments it lists the rows.
fn main() -> Result<(), String> {
    const ROWS: [&str; 7] = [
        "forward 4x256 B1 L4096",
        "forward 16x256 B1 L16384",
        "train 4x256 B4 L1024",
        "train 4x256 B1 L1024",
        "train 1x64 B32 L200",
        "prefill 24x768 L2048",
        "decode 24x768 full",
    ];
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [row, seconds] = &args[..] else {
        ROWS.iter().for_each(|row| println!("{row}"));
        return Ok(());
    };
    let seconds = seconds.parse().map_err(|e| format!("{seconds}: {e}"))?;
    match row.as_str() {
        "forward 4x256 B1 L4096" => forward(row, seconds, 4, 256, 4096),
        "forward 16x256 B1 L16384" => forward(row, seconds, 16, 256, 16_384),
        "train 4x256 B4 L1024" => train(row, seconds, 4, 256, 4, 1024),
        "train 4x256 B1 L1024" => train(row, seconds, 4, 256, 1, 1024),
        "train 1x64 B32 L200" => train(row, seconds, 1, 64, 32, 200),
        "prefill 24x768 L2048" => forward(row, seconds, 24, 768, 2048),
        "decode 24x768 full" => decode(row, seconds),
        other => Err(format!("no row is called {other}")),
    }
}
