//! How the time of sampling grows with the length of a motion: the denoiser of motion itself, which carries its state from
//! chunk to chunk, against a transformer encoder over all frames (MDM's design) of as many parameters.
//!
//! ```sh
//! cargo run --release -p mamba-motion --example growth
//! ```
//!
//! Weights are untrained: they do not change the time. One denoising step is measured, the fastest of three; a motion takes 50.

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use mamba_core::nn::Linear;
use mamba_core::{MixerConfig, ParamBuilder, Params, Rng};
use mamba_motion::features::{FPS, N_FEATURES};
use mamba_motion::models::attention::{Layer, LayerConfig};
use mamba_motion::models::stream::Frames;
use mamba_motion::models::{Condition, ConditionConfig, StreamDenoiser, StreamDenoiserConfig, StreamState};
use std::time::Instant;

const WIDTH: usize = 256;
const LAYERS: usize = 4;
const CHUNK: usize = 40;
const STEPS: f64 = 50.0;

/// An encoder over frames.
struct Transformer {
    input: Linear,
    layers: Vec<Layer>,
    output: Linear,
}

impl Transformer {
    fn new(d_ff: usize, pb: &ParamBuilder) -> candle_core::Result<Self> {
        let cfg = LayerConfig { d: WIDTH, heads: 4, d_ff, dropout: 0.0 };
        let layers = (0..2 * LAYERS).map(|i| Layer::new(cfg, false, &pb.pp("layers").pp(i)));
        Ok(Self {
            input: Linear::new(N_FEATURES, WIDTH, true, &pb.pp("input"))?,
            layers: layers.collect::<candle_core::Result<_>>()?,
            output: Linear::new(WIDTH, N_FEATURES, true, &pb.pp("output"))?,
        })
    }

    /// Parameters with feed-forward parts of this width.
    fn count(d_ff: usize) -> candle_core::Result<usize> {
        let params = Params::fresh(0, DType::F32, &Device::Cpu);
        Self::new(d_ff, &params.builder())?;
        Ok(params.count())
    }

    fn forward(&self, frames: &Tensor) -> candle_core::Result<Tensor> {
        let x = self.input.forward(frames)?;
        let x = self.layers.iter().try_fold(x, |x, layer| layer.forward(&x, None, None, None))?;
        self.output.forward(&x)
    }
}

/// Parameters that are not trained, so that no graph is kept.
fn frozen(build: impl FnOnce(&ParamBuilder) -> candle_core::Result<()>) -> candle_core::Result<Params> {
    let params = Params::fresh(1, DType::F32, &Device::Cpu);
    build(&params.builder())?;
    Ok(Params::frozen(params.to_tensors(), DType::F32, &Device::Cpu))
}

/// Seconds of the fastest of three runs.
fn seconds(mut run: impl FnMut() -> candle_core::Result<()>) -> candle_core::Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn main() -> Result<()> {
    mamba_core::cli::tune_allocator();
    mamba_core::cli::tune_candle();
    let condition = ConditionConfig::Labels { sizes: vec![10] };
    let cfg =
        StreamDenoiserConfig { d_model: WIDTH, n_layer: LAYERS, ssm_cfg: MixerConfig::default(), condition };
    let params = frozen(|pb| StreamDenoiser::new(&cfg, pb).map(|_| ()))?;
    let mamba = StreamDenoiser::new(&cfg, &params.builder())?;
    let count = params.count();
    let (narrow, wide) = (Transformer::count(1)?, Transformer::count(2)?);
    let d_ff = 1 + (count - narrow) / (wide - narrow);
    let params = frozen(|pb| Transformer::new(d_ff, pb).map(|_| ()))?;
    let transformer = Transformer::new(d_ff, &params.builder())?;
    println!("parameters: Mamba {count}, transformer {}; {STEPS} steps without guidance", params.count());
    println!("{:>8} {:>12} {:>12}", "motion s", "Mamba s", "transformer s");
    let label = Condition::Labels(vec![vec![Some(3)]]);
    for length in [10.0, 20.0, 40.0, 80.0, 160.0] {
        let frames = (length * FPS) as usize;
        let motion =
            Rng::new(2).normal_tensor((1, frames, N_FEATURES), 0.0, 1.0, DType::F32, &Device::Cpu)?;
        // As in sampling: every step of a chunk, then the chunk is taken into the state once.
        let chunk = |state: &mut StreamState, start: usize, settle: bool| {
            let values = motion.narrow(1, start, CHUNK.min(frames - start))?.contiguous()?;
            if settle {
                return mamba.remember(&values, state);
            }
            let given = values.narrow(2, 0, 1)?.zeros_like()?;
            mamba.guided(&Frames::chunk(values, given)?, &[500], &label, state, 1.0).map(|_| ())
        };
        let pass = |settle: bool| {
            let mut state = StreamState::default();
            (0..frames).step_by(CHUNK).try_for_each(|start| chunk(&mut state, start, settle))
        };
        let of_mamba = STEPS * seconds(|| pass(false))? + seconds(|| pass(true))?;
        let of_transformer = STEPS * seconds(|| transformer.forward(&motion).map(|_| ()))?;
        println!("{length:>8} {of_mamba:>12.2} {of_transformer:>12.2}");
    }
    Ok(())
}
