//! One table of what the blocks reach on this machine: tokens per second, percent of what the machine can do at most, and
//! peak memory, for the shapes that the README names.
//!
//! ```text
//! cargo bench -p mamba-core --features train,cli,lm --bench table -- [--only WORDS] [--seconds S] [--json]
//! ```
//!
//! Each row is measured in a process of its own, so that its peak memory is its own. `--json` prints one object a line,
//! as the scripts in `kernels/benches/peers` do.

use candle_core::{DType, Device, Tensor};
use mamba_core::lm::{LmConfig, MambaLm};
use mamba_core::nn::NormKind;
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::{
    Backbone, BackboneConfig, BackboneState, Error, Mamba1Config, Params, Result, Rng, WeightFormat, cli,
};
use mamba_kernels::SelectiveScan;
use mamba_kernels::ceilings::Ceilings;
use serde::{Deserialize, Serialize};
use std::process::Command;
use std::time::{Duration, Instant};

/// States of a channel, and how much wider than the model the channels are: Mamba-1's defaults.
const D_STATE: usize = 16;
const EXPAND: usize = 2;
/// Of the published 130 M language model.
const VOCAB: usize = 50_280;

/// What a row runs.
#[derive(Clone, Copy)]
enum Work {
    /// A backbone over `batch` rows of `len` tokens, without a graph.
    Forward { layers: usize, d: usize, batch: usize, len: usize },
    /// Forward, backward, clipping, AdamW.
    Train { layers: usize, d: usize, batch: usize, len: usize },
    /// The 130 M language model over a prompt, with the head for its last token.
    Prefill { len: usize },
    /// One token after another.
    Decode { format: WeightFormat, head: bool },
    /// The selective scan alone, with gate and softplus.
    Scan { batch: usize, len: usize, d_inner: usize },
}

use Work::{Decode, Forward, Prefill, Scan, Train};

const ROWS: [(&str, Work); 23] = [
    ("forward 4x256 B1 L4096", Forward { layers: 4, d: 256, batch: 1, len: 4096 }),
    ("forward 16x256 B1 L16384", Forward { layers: 16, d: 256, batch: 1, len: 16_384 }),
    ("train 4x256 B4 L1024", Train { layers: 4, d: 256, batch: 4, len: 1024 }),
    ("train 4x256 B1 L1024", Train { layers: 4, d: 256, batch: 1, len: 1024 }),
    ("train 4x256 B1 L16384", Train { layers: 4, d: 256, batch: 1, len: 16_384 }),
    ("train 1x64 B32 L200", Train { layers: 1, d: 64, batch: 32, len: 200 }),
    ("prefill 24x768 L2048", Prefill { len: 2048 }),
    ("decode 24x768 full", Decode { format: WeightFormat::Full, head: false }),
    ("decode 24x768 bf16", Decode { format: WeightFormat::Bf16, head: false }),
    ("decode 24x768 f16", Decode { format: WeightFormat::F16, head: false }),
    ("decode 24x768 int8", Decode { format: WeightFormat::Int8, head: false }),
    ("decode+head 24x768 full", Decode { format: WeightFormat::Full, head: true }),
    ("decode+head 24x768 bf16", Decode { format: WeightFormat::Bf16, head: true }),
    ("decode+head 24x768 f16", Decode { format: WeightFormat::F16, head: true }),
    ("decode+head 24x768 int8", Decode { format: WeightFormat::Int8, head: true }),
    ("scan lm_130m_2k B1 L2048 D1536", Scan { batch: 1, len: 2048, d_inner: 1536 }),
    ("scan caduceus_131k B1 L131072 D512", Scan { batch: 1, len: 131_072, d_inner: 512 }),
    ("growth 4x256 B1 L1024", Forward { layers: 4, d: 256, batch: 1, len: 1 << 10 }),
    ("growth 4x256 B1 L4096", Forward { layers: 4, d: 256, batch: 1, len: 1 << 12 }),
    ("growth 4x256 B1 L16384", Forward { layers: 4, d: 256, batch: 1, len: 1 << 14 }),
    ("growth 4x256 B1 L65536", Forward { layers: 4, d: 256, batch: 1, len: 1 << 16 }),
    ("growth 4x256 B1 L262144", Forward { layers: 4, d: 256, batch: 1, len: 1 << 18 }),
    ("growth 4x256 B1 L1048576", Forward { layers: 4, d: 256, batch: 1, len: 1 << 20 }),
];

/// Elements of the linear maps of one layer.
fn layer_weights(d: usize) -> usize {
    let (inner, rank) = (EXPAND * d, d.div_ceil(16));
    d * 2 * inner + inner * (rank + 2 * D_STATE) + rank * inner + inner * d
}

/// What one token needs, and which ceiling it meets.
enum Need {
    /// Floating point operations of matrix products.
    Products(f64),
    /// Bytes of weights that are read.
    Read(f64),
    /// Updates of states.
    Updates(f64),
}

impl Work {
    fn tokens(self) -> usize {
        match self {
            Forward { batch, len, .. } | Train { batch, len, .. } | Scan { batch, len, .. } => batch * len,
            Prefill { len } => len,
            Decode { .. } => STEPS,
        }
    }

    fn need(self) -> Need {
        match self {
            Forward { layers, d, .. } => Need::Products((2 * layers * layer_weights(d)) as f64),
            // backward multiplies twice for each product of forward
            Train { layers, d, .. } => Need::Products((6 * layers * layer_weights(d)) as f64),
            Prefill { .. } => Need::Products((2 * 24 * layer_weights(768)) as f64),
            Decode { format, head } => {
                let weights = 24 * layer_weights(768) + if head { VOCAB * 768 } else { 0 };
                let bytes = match format {
                    WeightFormat::Full => 4,
                    WeightFormat::Bf16 | WeightFormat::F16 => 2,
                    WeightFormat::Int8 => 1,
                };
                Need::Read((weights * bytes) as f64)
            }
            Scan { d_inner, .. } => Need::Updates((d_inner * D_STATE) as f64),
        }
    }

    /// Runs the work again and again for about `time`.
    fn measure(self, time: Duration) -> Result<Rate> {
        let tokens = self.tokens();
        match self {
            Forward { layers, d, batch, len } => {
                let fresh = Params::fresh(0, DType::F32, &Device::Cpu);
                Backbone::new(&backbone(layers, d), &fresh.builder())?;
                let params = Params::frozen(fresh.to_tensors(), DType::F32, &Device::Cpu);
                let model = Backbone::new(&backbone(layers, d), &params.builder())?;
                let x = random(&[batch, len, d], 1)?;
                rate(time, tokens, || Ok(model.forward(&x).map(drop)?))
            }
            Train { layers, d, batch, len } => {
                let params = Params::fresh(0, DType::F32, &Device::Cpu);
                let model = Backbone::new(&backbone(layers, d), &params.builder())?;
                let mut optimizer = AdamW::new(&params, AdamWConfig::default())?;
                let x = random(&[batch, len, d], 1)?;
                rate(time, tokens, || {
                    let loss = model.forward(&x)?.sqr()?.mean_all()?;
                    let mut grads = Gradients::of(&loss, &params)?;
                    grads.clip_grad_norm(1.0, 1)?;
                    Ok(optimizer.step(&grads, 1e-4)?)
                })
            }
            Prefill { len } => {
                let lm = language_model(WeightFormat::Full)?;
                let prompt = Tensor::zeros((1, len), DType::U32, &Device::Cpu)?;
                rate(time, tokens, || Ok(lm.prefill(&prompt, &mut BackboneState::new()).map(drop)?))
            }
            Decode { format, head } => {
                let lm = language_model(format)?;
                let ids = Tensor::new(&[17u32], &Device::Cpu)?;
                let x = lm.embed(&ids)?.unsqueeze(1)?; // (1, 1, d_model)
                let mut state = BackboneState::new();
                let mut step = || -> Result<()> {
                    match head {
                        true => lm.step(&ids, &mut state).map(drop)?,
                        false => lm.forward_embedded(&x, None, Some(&mut state)).map(drop)?,
                    }
                    Ok(())
                };
                // on a thread of the pool, as generation runs
                rayon::scope(|_| rate(time, tokens, || (0..STEPS).try_for_each(|_| step())))
            }
            Scan { batch, len, d_inner } => {
                let (u, z) = (random(&[batch, len, d_inner], 1)?, random(&[batch, len, d_inner], 2)?);
                let delta = random(&[batch, len, d_inner], 3)?;
                let (b, c) = (random(&[batch, len, D_STATE], 4)?, random(&[batch, len, D_STATE], 5)?);
                let a = random(&[d_inner, D_STATE], 6)?.exp()?.neg()?;
                let (skip, bias) = (random(&[d_inner], 7)?, (random(&[d_inner], 8)? - 4.0)?);
                rate(time, tokens, || {
                    let scan = SelectiveScan::new(&u, &delta, &a, &b, &c).skip(&skip).gate(&z);
                    Ok(scan.delta_bias(&bias).softplus(true).run().map(drop)?)
                })
            }
        }
    }
}

/// Tokens of one timed run of decoding.
const STEPS: usize = 4;

fn backbone(layers: usize, d: usize) -> BackboneConfig {
    BackboneConfig {
        d_model: d,
        n_layer: layers,
        d_intermediate: 0,
        norm: NormKind::Rms,
        norm_epsilon: 1e-5,
        mixer: Mamba1Config { d_state: D_STATE, expand: EXPAND, ..Mamba1Config::default() }.into(),
        dense_layers: 0,
    }
}

fn language_model(format: WeightFormat) -> Result<MambaLm> {
    let cfg = LmConfig { d_model: 768, n_layer: 24, vocab_size: VOCAB, ..Default::default() };
    let fresh = Params::fresh(0, DType::F32, &Device::Cpu);
    MambaLm::new(&cfg, &fresh.builder())?;
    let params = Params::frozen(fresh.to_tensors(), DType::F32, &Device::Cpu).with_weight_format(format);
    drop(fresh);
    Ok(MambaLm::new(&cfg, &params.builder())?)
}

fn random(dims: &[usize], seed: u64) -> Result<Tensor> {
    Ok(Rng::new(seed).normal_tensor(dims, 0.0, 1.0, DType::F32, &Device::Cpu)?)
}

/// A row as its process tells it.
#[derive(Serialize, Deserialize)]
struct Rate {
    /// Tokens per second of the run that other programs disturbed least.
    best: f64,
    median: f64,
    runs: usize,
    /// Of the whole process, in bytes, where the system says.
    peak_bytes: Option<u64>,
}

/// Runs for about `time`, at least two after one that warms up.
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
    let (best, median) = (rates[rates.len() - 1], rates[rates.len() / 2]);
    Ok(Rate { best, median, runs: rates.len(), peak_bytes: cli::peak_memory() })
}

/// What the command line asks for.
struct Args {
    only: Option<String>,
    time: Duration,
    json: bool,
    /// Measure this row here and now.
    row: Option<String>,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut args = Self { only: None, time: Duration::from_secs(6), json: false, row: None };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .ok_or_else(|| Error::Config(format!("{word} needs a value; see the head of table.rs")))
            };
            match word.as_str() {
                "--only" => args.only = Some(value()?),
                "--row" => args.row = Some(value()?),
                "--seconds" => {
                    let text = value()?;
                    let seconds = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
                    args.time =
                        seconds.ok_or_else(|| Error::Config(format!("--seconds {text} is no time")))?;
                }
                "--json" => args.json = true,
                "--bench" => {} // from cargo
                other => return Err(Error::Config(format!("unknown argument {other}"))),
            }
        }
        Ok(args)
    }
}

/// Measures a row in a new process.
fn in_its_own_process(name: &str, time: Duration) -> Result<Rate> {
    let program = std::env::current_exe().map_err(candle_core::Error::wrap)?;
    let seconds = time.as_secs_f64().to_string();
    let command = Command::new(program).args(["--row", name, "--seconds", &seconds]).output();
    let output = command.map_err(candle_core::Error::wrap)?;
    let said = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&said).map_err(|_| {
        Error::Config(format!("row {name}: {} {}", output.status, String::from_utf8_lossy(&output.stderr)))
    })
}

fn si(x: f64) -> String {
    let (scaled, unit) = match x {
        x if x >= 1e12 => (x / 1e12, " T"),
        x if x >= 1e9 => (x / 1e9, " G"),
        x if x >= 1e6 => (x / 1e6, " M"),
        x if x >= 1e4 => (x / 1e3, " k"),
        x => (x, ""),
    };
    format!("{scaled:.1}{unit}")
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().filter(|load| !load.is_empty()).unwrap_or("unknown").to_string()
}

fn main() -> Result<()> {
    let args = Args::parse()?;
    cli::tune_allocator();
    cli::tune_candle();
    if let Some(name) = &args.row {
        let row = ROWS.iter().find(|(row, _)| row == name);
        let (_, work) = row.ok_or_else(|| Error::Config(format!("no row is called {name}")))?;
        println!("{}", serde_json::json!(work.measure(args.time)?));
        return Ok(());
    }
    let ceilings = Ceilings::measure(Duration::from_secs(2))?;
    let Ceilings { products, copy, read, state_updates, .. } = ceilings;
    if !args.json {
        println!("{} threads, load {}. This machine at most:", rayon::current_num_threads(), load_average());
        println!("  products {}FLOP/s, copy {}B/s, read {}B/s", si(products), si(copy), si(read));
        println!(
            "  state updates {}/s: one exponential, two products, two multiply-adds each\n",
            si(state_updates)
        );
        println!("| work | tokens/s, best (median) | percent of | peak memory |\n|---|---|---|---|");
    }
    let mut growth = Vec::new();
    for (name, work) in ROWS {
        if args.only.as_ref().is_some_and(|only| !only.split(',').any(|word| name.contains(word))) {
            continue;
        }
        let rate = in_its_own_process(name, args.time)?;
        let (share, of) = match work.need() {
            Need::Products(flops) => (flops * rate.best / products, "products"),
            Need::Read(bytes) => (bytes * rate.best / read, "read"),
            Need::Updates(updates) => (updates * rate.best / state_updates, "state updates"),
        };
        if args.json {
            let row = serde_json::json!({
                "program": "mamba-zoo", "row": name, "tokens_per_second": rate.best, "median": rate.median,
                "runs": rate.runs, "peak_bytes": rate.peak_bytes, "share": share, "of": of, "load": load_average(),
            });
            println!("{row}");
        } else {
            let peak =
                rate.peak_bytes.map_or("unknown".to_string(), |bytes| format!("{}B", si(bytes as f64)));
            let (best, median) = (si(rate.best), si(rate.median));
            println!("| {name} | {best} ({median}) | {:.0} % of {of} | {peak} |", 100.0 * share);
        }
        if let (true, Forward { len, .. }) = (name.starts_with("growth"), work) {
            growth.push((len as f64, len as f64 / rate.best, rate.peak_bytes));
        }
    }
    if let (false, [first, .., last]) = (args.json, &growth[..]) {
        let exponent = (last.1 / first.1).ln() / (last.0 / first.0).ln();
        println!("\nFrom {} to {} tokens the time grows with exponent {exponent:.3}", first.0, last.0);
        if let (Some(least), Some(most)) = (first.2, last.2) {
            let each = most.saturating_sub(least) as f64 / (last.0 - first.0);
            println!("and the peak memory by {} bytes a token.", each.round());
        }
    }
    Ok(())
}
