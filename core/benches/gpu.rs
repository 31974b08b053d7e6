//! Time of whole models of four layers on a GPU, at the shapes of `kernels/benches/gpu.rs`: a forward pass, and a training step
//! (forward, backward, AdamW).
//!
//! ```sh
//! MAMBA_TEST_DEVICE=cuda:0 cargo bench -p mamba-core --features train,cli,lm,cuda --bench gpu -- [--json]
//! cargo bench -p mamba-core --features train,cli,lm --bench gpu -- --dry      # tiny shapes on the CPU: that it runs
//! ```
//!
//! `kernels/cuda/kit/peers.py` measures the crate mamba-rs, which has models and no ops, at the same shapes.

#[path = "../../kernels/benches/on_gpu/mod.rs"]
mod on_gpu;

use candle_core::{DType, Device};
use mamba_core::nn::NormKind;
use mamba_core::optim::{AdamW, AdamWConfig, Gradients};
use mamba_core::{
    Backbone, BackboneConfig, Mamba1Config, Mamba2Config, MixerConfig, Params, Result, Rng, cli,
};
use mamba_kernels::testing::device;
use on_gpu::seconds;

/// B rows of L tokens through layers of d_model with N states; Mamba-2 has heads of 64 channels. D of the ops is twice d_model.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    b: usize,
    l: usize,
    d_model: usize,
    n: usize,
    mamba2: bool,
}

const SHAPES: [Shape; 4] = [
    Shape { name: "caduceus_131k", b: 1, l: 131_072, d_model: 256, n: 16, mamba2: false },
    Shape { name: "lm_130m_2k", b: 8, l: 2048, d_model: 768, n: 16, mamba2: false },
    Shape { name: "ml1m_200", b: 256, l: 200, d_model: 64, n: 32, mamba2: false },
    Shape { name: "ssd_1.3b_8k", b: 1, l: 8192, d_model: 2048, n: 128, mamba2: true },
];

const LAYERS: usize = 4;

impl Shape {
    fn config(&self) -> BackboneConfig {
        let d_state = self.n;
        let mixer: MixerConfig = match self.mamba2 {
            true => Mamba2Config { d_state, headdim: 64, ..Mamba2Config::default() }.into(),
            false => Mamba1Config { d_state, ..Mamba1Config::default() }.into(),
        };
        BackboneConfig {
            d_model: self.d_model,
            n_layer: LAYERS,
            d_intermediate: 0,
            norm: NormKind::Rms,
            norm_epsilon: 1e-5,
            mixer,
            dense_layers: 0,
        }
    }

    /// Seconds of a forward pass and of a training step.
    fn measure(&self, dtype: DType, device: &Device) -> Result<[(&'static str, f64); 2]> {
        let cfg = self.config();
        let params = Params::fresh(0, dtype, device);
        let model = Backbone::new(&cfg, &params.builder())?;
        let frozen = Params::frozen(params.to_tensors(), dtype, device);
        let fixed = Backbone::new(&cfg, &frozen.builder())?;
        let mut optimizer = AdamW::new(&params, AdamWConfig::default())?;
        let x = Rng::new(1).normal_tensor(&[self.b, self.l, self.d_model], 0.0, 1.0, dtype, device)?;
        let forward = seconds(device, || fixed.forward(&x).map(drop))?;
        let train = seconds(device, || {
            let grads = Gradients::of(&model.forward(&x)?, &params).map_err(candle_core::Error::wrap)?;
            optimizer.step(&grads, 1e-4).map_err(candle_core::Error::wrap)
        })?;
        Ok([("fwd", forward), ("train", train)])
    }
}

fn main() -> Result<()> {
    cli::tune_allocator();
    cli::tune_candle();
    let flag = |name: &str| std::env::args().any(|arg| arg == name);
    let (device, json, dry) = (device(), flag("--json"), flag("--dry"));
    if device.is_cpu() && !dry {
        eprintln!("there is nothing to measure without a GPU: set MAMBA_TEST_DEVICE=cuda:0");
        return Ok(());
    }
    for shape in SHAPES {
        let shape = match dry {
            true => Shape { b: shape.b.min(2), l: 70, d_model: 64, ..shape },
            false => shape,
        };
        for dtype in if dry { vec![DType::F32] } else { vec![DType::F32, DType::BF16] } {
            for (pass, seconds) in shape.measure(dtype, &device)? {
                let tokens = (shape.b * shape.l) as f64 / seconds;
                let (name, dtype) = (shape.name, dtype.as_str());
                match json {
                    true => println!(
                        "{}",
                        serde_json::json!({
                            "program": "mamba-zoo", "op": "4_layers", "pass": pass, "dtype": dtype, "shape": name,
                            "seconds": seconds, "tokens_per_second": tokens,
                        })
                    ),
                    false => println!(
                        "4_layers/{pass}/{dtype}/{name}  {:.3} ms  {tokens:.0} tokens/s",
                        1e3 * seconds
                    ),
                }
            }
        }
    }
    Ok(())
}
