//! The models of `core/benches/gpu.rs` as the crate mamba-rs runs them on a GPU, one JSON object a line.
//!
//! It compiles its kernels when it starts, by NVRTC, for which it needs CUDA's headers in `$CUDA_HOME/include`. Its models are
//! made without the map from the input to d_model, so that both sides do the same work. Each is measured as it is fastest: as
//! a captured graph, on rows that lie on the GPU, multiplied by its own kernels or by cuBLAS. f32 products stay f32, as ours
//! are: its mode that multiplies f32 in tf32 is not measured.

use mamba_rs::gpu::context::GpuCtx;
use mamba_rs::gpu::device::GpuDevice;
use mamba_rs::{
    GemmMode, GpuBackbone, GpuOptions, GpuTrainer, Mamba2Config, Mamba2GpuBackbone, Mamba2GpuTrainer,
    Mamba2Weights, MambaConfig, MambaGpuBackbone, MambaGpuTrainer, MambaWeights, TrainSessionCfg,
    WeightDtype,
};
use std::time::Instant;

/// B rows of L tokens through layers of d_model with N states; Mamba-2 has heads of 64 channels.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    b: usize,
    l: usize,
    d_model: usize,
    n: usize,
    mamba2: bool,
}

/// As in `core/benches/gpu.rs`.
const SHAPES: [Shape; 4] = [
    Shape { name: "caduceus_131k", b: 1, l: 131_072, d_model: 256, n: 16, mamba2: false },
    Shape { name: "lm_130m_2k", b: 8, l: 2048, d_model: 768, n: 16, mamba2: false },
    Shape { name: "ml1m_200", b: 256, l: 200, d_model: 64, n: 32, mamba2: false },
    Shape { name: "ssd_1.3b_8k", b: 1, l: 8192, d_model: 2048, n: 128, mamba2: true },
];

const LAYERS: usize = 4;
/// Seconds of a run, about.
const RUN: f64 = 0.05;

impl Shape {
    /// Rows for every token, between -`scale` and `scale`.
    fn rows(&self, scale: f32) -> Vec<f32> {
        let len = self.b * self.l * self.d_model;
        (0..len).map(|i| ((i * 7919 + 13) % 1000) as f32 * 0.002 * scale - scale).collect()
    }

    fn session(&self) -> TrainSessionCfg {
        TrainSessionCfg::new(self.d_model, self.b, self.l)
    }

    fn mamba1(&self) -> (MambaConfig, MambaWeights) {
        let Self { d_model, n, .. } = *self;
        let cfg = MambaConfig {
            d_model,
            n_layers: LAYERS,
            d_state: n,
            rms_norm_eps: 1e-5,
            ..MambaConfig::default()
        };
        let mut weights = MambaWeights::init(&cfg, d_model, 1);
        weights.input_proj_w.clear();
        weights.input_proj_b.clear();
        (cfg, weights)
    }

    fn mamba2(&self) -> (Mamba2Config, Mamba2Weights) {
        let Self { d_model, n, .. } = *self;
        let cfg =
            Mamba2Config { d_model, n_layers: LAYERS, d_state: n, headdim: 64, ..Mamba2Config::default() };
        let mut weights = Mamba2Weights::init(&cfg, d_model, 1);
        weights.input_proj_w.clear();
        weights.input_proj_b.clear();
        (cfg, weights)
    }

    /// Seconds of a forward pass without a graph of gradients.
    fn forward(&self, opts: GpuOptions) -> Result<f64, String> {
        if self.mamba2 {
            let (cfg, weights) = self.mamba2();
            self.time_forward(Mamba2GpuBackbone::new(&weights, cfg, self.d_model, self.b, opts)?)
        } else {
            let (cfg, weights) = self.mamba1();
            self.time_forward(MambaGpuBackbone::new(&weights, cfg, self.d_model, self.b, opts)?)
        }
    }

    fn time_forward(&self, mut model: impl GpuBackbone) -> Result<f64, String> {
        model.prefill(&self.rows(1.0), self.l)?;
        model.capture_prefill_graph(self.l)?;
        let wait = |model: &_| wait(GpuBackbone::ctx(model));
        seconds(&mut model, |model| model.prefill_on_device(self.l), wait)
    }

    /// Seconds of a training step: forward, backward, AdamW.
    fn train(&self, opts: GpuOptions) -> Result<f64, String> {
        if self.mamba2 {
            let (cfg, weights) = self.mamba2();
            self.time_training(Mamba2GpuTrainer::new(&weights, cfg, self.session(), opts)?)
        } else {
            let (cfg, weights) = self.mamba1();
            self.time_training(MambaGpuTrainer::new(&weights, cfg, self.session(), opts)?)
        }
    }

    fn time_training(&self, mut trainer: impl GpuTrainer) -> Result<f64, String> {
        trainer.step(&self.rows(1.0), &self.rows(1e-3))?;
        trainer.capture_graph()?;
        let wait = |trainer: &_| wait(GpuTrainer::ctx(trainer));
        seconds(&mut trainer, |trainer| trainer.step_on_device().map(drop), wait)
    }
}

fn wait(ctx: &GpuCtx) -> Result<(), String> {
    ctx.stream.synchronize().map_err(|error| format!("{error:?}"))
}

/// Median seconds of a call: five runs of some calls, each with one wait for the GPU at its end.
fn seconds<M>(
    model: &mut M,
    call: impl Fn(&mut M) -> Result<(), String>,
    wait: impl Fn(&M) -> Result<(), String>,
) -> Result<f64, String> {
    let mut timed = |calls: usize| -> Result<f64, String> {
        let started = Instant::now();
        (0..calls).try_for_each(|_| call(model))?;
        wait(model)?;
        Ok(started.elapsed().as_secs_f64() / calls as f64)
    };
    timed(1)?;
    let calls = (RUN / timed(2)?.max(1e-7)).clamp(1.0, 2000.0) as usize;
    let mut runs = (0..5).map(|_| timed(calls)).collect::<Result<Vec<_>, _>>()?;
    runs.sort_by(f64::total_cmp);
    Ok(runs[2])
}

fn main() {
    // Without a driver, what loads it panics.
    std::panic::set_hook(Box::new(|_| {}));
    let opened = std::panic::catch_unwind(|| GpuDevice::new(0))
        .unwrap_or_else(|_| Err("no NVIDIA driver is loaded".into()));
    let _ = std::panic::take_hook();
    if let Err(error) = opened {
        eprintln!("error: cuda:0: {error}");
        std::process::exit(1);
    }
    let types = [
        ("f32", WeightDtype::F32, [GemmMode::Deterministic, GemmMode::CublasPedantic]),
        ("bf16", WeightDtype::Bf16, [GemmMode::Deterministic, GemmMode::CublasFast]),
    ];
    type Measure = fn(&Shape, GpuOptions) -> Result<f64, String>;
    let passes: [(&str, Measure); 2] = [("fwd", Shape::forward), ("train", Shape::train)];
    let mut measured = false;
    for shape in SHAPES {
        for (name, dtype, modes) in types {
            for (pass, measure) in passes {
                let times = modes.map(|mode| {
                    let time = measure(&shape, GpuOptions::default().dtype(dtype).mode(mode));
                    time.map(|seconds| (seconds, format!("{mode:?}"))).inspect_err(|error| {
                        eprintln!("left out: mamba-rs, {} {name} {pass} {mode:?}: {error}", shape.name);
                    })
                });
                if let Some((seconds, mode)) = times.into_iter().flatten().min_by(|a, b| a.0.total_cmp(&b.0))
                {
                    let row = serde_json::json!({
                        "program": "mamba-rs 0.8.2", "op": "4_layers", "pass": pass, "dtype": name,
                        "shape": shape.name, "seconds": seconds, "mode": mode,
                    });
                    println!("{row}");
                    measured = true;
                }
            }
        }
    }
    if !measured {
        std::process::exit(1);
    }
}
