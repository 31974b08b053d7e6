//! A denoiser of motion itself, frame by frame, for motion of any length: continued, filled in, streamed.
//!
//! Some frames of a motion are given, the others are free: given frames come in clean, free ones noised. A motion is made in
//! chunks. Each block has a Mamba mixer that reads forward through the whole motion, and one that reads backward inside each
//! chunk, so that a chunk depends on all that was before it, on the frames given inside it, and on nothing after it:
//!
//! ```text
//! x  = W frame                                                          (B, L, 263) → (B, L, d)
//! x  ← x + forward(u) + backward(u),   u = norm(x) + (given: g_i, free: f_i(step, condition))
//! y  = W' norm(x)                                                       (B, L, d) → (B, L, 263)
//! ```
//!
//! What the forward mixers remember of a chunk once it is made is all that the chunks after it need ([`StreamState`]):
//! motion of any length takes constant memory and constant time per chunk, and equals that of one pass over everything. The
//! condition speaks of free frames only, so that what is asked for may change from chunk to chunk, and guidance needs no
//! second state.

use super::attention::projection;
use super::condition::{Condition, ConditionConfig, ConditionEncoder};
use crate::diffusion::sinusoids;
use crate::features::N_FEATURES;
use candle_core::{Module, Result, Tensor};
use mamba_core::mixer::Pass;
use mamba_core::nn::{Linear, Norm, NormKind};
use mamba_core::{Error, Init, Mixer, MixerConfig, MixerState, ParamBuilder};
use mamba_kernels::{Segment, Segments};
use serde::{Deserialize, Serialize};

/// Hyper-parameters of the denoiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamDenoiserConfig {
    /// Width.
    pub d_model: usize,
    /// Blocks.
    pub n_layer: usize,
    /// The mixers of both directions.
    pub ssm_cfg: MixerConfig,
    /// What a motion is conditioned on.
    pub condition: ConditionConfig,
}

impl StreamDenoiserConfig {
    /// Refuses sizes that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        if self.d_model == 0 || !(1..=256).contains(&self.n_layer) {
            return Err(Error::Config(format!(
                "stream: d_model {} must be at least 1, n_layer {} 1 to 256",
                self.d_model, self.n_layer
            )));
        }
        self.ssm_cfg.validate_for(self.d_model).map_err(|e| Error::Config(format!("stream.ssm_cfg: {e}")))
    }
}

/// What the forward mixers remember of the frames so far; at first nothing.
#[derive(Clone, Debug, Default)]
pub struct StreamState {
    layers: Vec<MixerState>,
}

/// A batch of motions, or of chunks that continue a state.
#[derive(Clone, Debug)]
pub struct Frames {
    /// Standardised features `(B, L, 263)`: clean where given, noised where free.
    pub values: Tensor,
    /// `(B, L, 1)`: 1 where given, 0 where free.
    pub given: Tensor,
    /// The motions, for the forward direction.
    pub rows: Segments,
    /// Their chunks, for the backward direction.
    pub chunks: Segments,
}

impl Frames {
    /// Rows of one chunk each.
    pub fn chunk(values: Tensor, given: Tensor) -> Result<Self> {
        let (b, l, _) = values.dims3()?;
        let rows = Segments::whole(b, l);
        Ok(Self { values, given, chunks: rows.clone(), rows })
    }

    /// Rows in several chunks: `chunks[i]` are the lengths of those of row `i`, and what lies beyond their sum is padding.
    pub fn chunked(values: Tensor, given: Tensor, chunks: &[Vec<usize>]) -> Result<Self> {
        let (b, l, _) = values.dims3()?;
        let lengths: Vec<usize> = chunks.iter().map(|row| row.iter().sum()).collect();
        let mut items = Vec::new();
        for (row, lengths) in chunks.iter().enumerate() {
            let mut start = 0;
            for &length in lengths.iter().filter(|&&length| length > 0) {
                items.push(Segment { row, start, end: start + length });
                start += length;
            }
        }
        let rows = Segments::right_padded(l, &lengths)?;
        Ok(Self { values, given, rows, chunks: Segments::new(b, l, items)? })
    }
}

/// One block.
#[derive(Clone, Debug)]
struct Block {
    norm: Norm,
    /// What is added to free frames, from the embedding of step and condition.
    free: Linear,
    /// What is added to given frames.
    given: Tensor,
    forward: Mixer,
    backward: Mixer,
}

/// The denoiser.
#[derive(Clone, Debug)]
pub struct StreamDenoiser {
    input: Linear,
    condition: ConditionEncoder,
    step: [Linear; 2],
    blocks: Vec<Block>,
    norm: Norm,
    output: Linear,
    d_model: usize,
}

impl StreamDenoiser {
    /// A model under `pb`.
    pub fn new(cfg: &StreamDenoiserConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::from)?;
        let (d, n) = (cfg.d_model, cfg.n_layer);
        let rms = |pb: ParamBuilder| Norm::new(NormKind::Rms, d, 1e-5, &pb);
        let block = |i: usize| {
            let pb = pb.pp("blocks").pp(i);
            Ok(Block {
                norm: rms(pb.pp("norm"))?,
                free: projection(d, d, &pb.pp("free"))?,
                given: pb.get_no_decay(d, "given", Init::Normal { std: 0.02 })?,
                forward: Mixer::new(d, &cfg.ssm_cfg, 2 * n, &pb.pp("forward"))?,
                backward: Mixer::new(d, &cfg.ssm_cfg, 2 * n, &pb.pp("backward"))?,
            })
        };
        Ok(Self {
            input: projection(N_FEATURES, d, &pb.pp("input"))?,
            condition: ConditionEncoder::new(&cfg.condition, d, &pb.pp("condition"))?,
            step: [projection(d, d, &pb.pp("step").pp(0))?, projection(d, d, &pb.pp("step").pp(1))?],
            blocks: (0..n).map(block).collect::<Result<_>>()?,
            norm: rms(pb.pp("norm"))?,
            output: projection(d, N_FEATURES, &pb.pp("output"))?,
            d_model: d,
        })
    }

    /// Frames whose free ones are noised to `steps` (of the original schedule, one a row) → what the diffusion predicts,
    /// `(B, L, 263)`; what it says of given frames means nothing. `state` is what is remembered of the frames before, and
    /// becomes what is remembered after these.
    pub fn forward(
        &self,
        frames: &Frames,
        steps: &[usize],
        condition: &Condition,
        state: Option<&mut StreamState>,
    ) -> Result<Tensor> {
        let Frames { values, given, .. } = frames;
        let (b, l, f) = values.dims3()?;
        if [steps.len(), condition.len()] != [b; 2] || given.dims() != [b, l, 1] || f != N_FEATURES {
            candle_core::bail!(
                "stream: {b} rows of {l} frames of {f} features, {} steps, {} conditions, given {:?}, expected {N_FEATURES} \
                features, as many steps and conditions as rows, given ({b}, {l}, 1)",
                steps.len(),
                condition.len(),
                given.dims()
            );
        }
        let waves: Vec<f64> = steps.iter().map(|&step| step as f64).collect();
        let waves = sinusoids(&waves, self.d_model, 10_000.0, values.dtype(), values.device())?; // (B, d)
        let step = self.step[1].forward(&self.step[0].forward(&waves)?.silu()?)?;
        let condition = self.condition.forward(condition, values.device())?.to_dtype(values.dtype())?;
        self.run(frames, &(step + condition)?.silu()?, state)
    }

    /// `asked` `(B, d)` is what free frames are told.
    fn run(&self, frames: &Frames, asked: &Tensor, mut state: Option<&mut StreamState>) -> Result<Tensor> {
        let Frames { values, given, rows, chunks } = frames;
        if let Some(state) = state.as_deref_mut() {
            if state.layers.is_empty() {
                state.layers.resize_with(self.blocks.len(), MixerState::new);
            }
            if state.layers.len() != self.blocks.len() {
                candle_core::bail!(
                    "stream: state of {} blocks for {}",
                    state.layers.len(),
                    self.blocks.len()
                );
            }
        }
        let free = given.affine(-1.0, 1.0)?; // (B, L, 1)

        let mut x = self.input.forward(values)?; // (B, L, d)
        for (i, block) in self.blocks.iter().enumerate() {
            let told = free.matmul(&block.free.forward(asked)?.unsqueeze(1)?)?; // (B, L, d)
            let told = (told + given.broadcast_mul(&block.given)?)?;
            let u = (block.norm.forward(&x)? + told)?;
            let state = state.as_deref_mut().map(|state| &mut state.layers[i]);
            let ahead =
                block.forward.forward_pass(&u, Pass { segments: Some(rows), reverse: false, state })?;
            let back = Pass { segments: Some(chunks), reverse: true, state: None };
            x = ((x + ahead)? + block.backward.forward_pass(&u, back)?)?;
        }
        self.output.forward(&self.norm.forward(&x)?)
    }

    /// The same with classifier-free guidance, as for [`Denoiser::guided`](super::Denoiser::guided); `state` is left as it is.
    pub fn guided(
        &self,
        frames: &Frames,
        steps: &[usize],
        condition: &Condition,
        state: &StreamState,
        scale: f64,
    ) -> Result<Tensor> {
        let with = self.forward(frames, steps, condition, Some(&mut state.clone()))?;
        if scale == 1.0 {
            return Ok(with);
        }
        let without = self.forward(frames, steps, &condition.nothing(), Some(&mut state.clone()))?;
        &without + ((with - &without)? * scale)?
    }

    /// Takes frames that are settled, `(B, L, 263)` standardised, into `state`.
    pub fn remember(&self, values: &Tensor, state: &mut StreamState) -> Result<()> {
        let (b, _, _) = values.dims3()?;
        let given = values.narrow(2, 0, 1)?.ones_like()?;
        let asked = Tensor::zeros((b, self.d_model), values.dtype(), values.device())?;
        self.run(&Frames::chunk(values.clone(), given)?, &asked, Some(state))?;
        Ok(())
    }
}
