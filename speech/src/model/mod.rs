//! SEMamba: speech enhancement by Mamba blocks over time and frequency (Chao et al. 2024, arXiv 2405.06573).
//!
//! ```text
//! (|X|^γ, arg X) → dense encoder → time-frequency blocks ┬→ mask decoder:  |Y|^γ = mask · |X|^γ
//!                                                        └→ phase decoder: arg Y
//! ```
//!
//! Activations are channel-last, `(B, T, F, C)`: the mixers' tokens and the convolutions' pixels are then the same memory.
//! With `causal`, which upstream does not have, no layer sees a later frame: convolutions are padded in the past only,
//! mixers over time run forward only, and each frame is normalised by itself.

mod codec;
mod tf_block;

use crate::spectrum::Spectrum;
use crate::{Config, ModelConfig};
use candle_core::{Result, Tensor};
use codec::{DenseEncoder, MagDecoder, PhaseDecoder};
use mamba_core::{MixerState, ParamBuilder};
pub(crate) use tf_block::TfMambaBlock;

/// The generator.
#[derive(Clone, Debug)]
pub struct SeMamba {
    encoder: DenseEncoder,
    blocks: Vec<TfMambaBlock>,
    mask_decoder: MagDecoder,
    phase_decoder: PhaseDecoder,
}

/// What a causal model remembers of the frames before.
#[derive(Clone, Debug, Default)]
pub struct StreamState {
    /// The last input frames of every dilated convolution, in the order in which they run.
    convolutions: Vec<Option<Tensor>>,
    /// States of the mixers over time.
    mixers: Vec<MixerState>,
}

/// Hands the convolutions of a pass their history, one after another; without a state there is none.
pub(crate) struct History<'a> {
    state: Option<&'a mut Vec<Option<Tensor>>>,
    next: usize,
}

impl History<'_> {
    /// `x` `(B, T, F, C)` behind the `frames` frames that came before it, zeros at the beginning; none without a state.
    pub(crate) fn extend(&mut self, x: &Tensor, frames: usize) -> Result<Option<Tensor>> {
        let Some(state) = &mut self.state else { return Ok(None) };
        if state.len() == self.next {
            state.push(None);
        }
        let slot = &mut state[self.next];
        self.next += 1;
        let past = match slot.take() {
            Some(past) => past,
            None => {
                let (b, _, f, c) = x.dims4()?;
                Tensor::zeros((b, frames, f, c), x.dtype(), x.device())?
            }
        };
        let extended = Tensor::cat(&[&past, x], 1)?; // (B, frames + T, F, C)
        *slot = Some(extended.narrow(1, extended.dim(1)? - frames, frames)?.contiguous()?);
        Ok(Some(extended))
    }
}

impl SeMamba {
    /// Parameters under upstream's names: `dense_encoder`, `TSMamba`, `mask_decoder`, `phase_decoder`.
    pub fn new(cfg: &Config, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let blocks = 0..cfg.model_cfg.num_tfmamba;
        let ModelConfig { hid_feature: c, norm_epsilon: eps, causal, .. } = cfg.model_cfg;
        let block = |i| TfMambaBlock::new(c, &cfg.mixer(), eps, causal, &pb.pp("TSMamba").pp(i));
        Ok(Self {
            encoder: DenseEncoder::new(cfg, &pb.pp("dense_encoder"))?,
            blocks: blocks.map(block).collect::<Result<_>>()?,
            mask_decoder: MagDecoder::new(cfg, &pb.pp("mask_decoder"))?,
            phase_decoder: PhaseDecoder::new(cfg, &pb.pp("phase_decoder"))?,
        })
    }

    /// The enhanced spectrum of a noisy one, `(B, T, F)` each.
    pub fn forward(&self, noisy: &Spectrum) -> Result<Spectrum> {
        self.forward_each(noisy, |_, _| ())
    }

    /// [`SeMamba::forward`] that shows `each` what leaves the encoder, every block and the mask decoder, under upstream's
    /// names: `(B, T, F', C)`.
    pub fn forward_each(&self, noisy: &Spectrum, each: impl FnMut(&str, &Tensor)) -> Result<Spectrum> {
        self.run(noisy, None, each)
    }

    /// The same for the next frames of a stream. Only a causal model gives what it would give for the whole.
    pub fn forward_stream(&self, noisy: &Spectrum, state: &mut StreamState) -> Result<Spectrum> {
        self.run(noisy, Some(state), |_, _| ())
    }

    fn run(
        &self,
        noisy: &Spectrum,
        state: Option<&mut StreamState>,
        mut each: impl FnMut(&str, &Tensor),
    ) -> Result<Spectrum> {
        let (convolutions, mut mixers) = match state {
            None => (None, None),
            Some(StreamState { convolutions, mixers }) => {
                mixers.resize_with(self.blocks.len(), MixerState::new);
                (Some(convolutions), Some(mixers))
            }
        };
        let mut history = History { state: convolutions, next: 0 };
        let x = Tensor::stack(&[&noisy.mag, &noisy.pha], 3)?; // (B, T, F, 2)
        let mut x = self.encoder.forward(&x, &mut history)?; // (B, T, F/2, C)
        each("dense_encoder", &x);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, mixers.as_mut().map(|states| &mut states[i]))?;
            each(&format!("TSMamba.{i}"), &x);
        }
        let mask = self.mask_decoder.forward(&x, &mut history)?; // (B, T, F)
        each("mask_decoder", &mask);
        Ok(Spectrum {
            mag: (mask * &noisy.mag)?,
            pha: self.phase_decoder.forward(&x, &noisy.pha, &mut history)?,
        })
    }
}
