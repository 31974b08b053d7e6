//! The losses of SEMamba's generator, with upstream's weights.
//!
//! With `c` the clean and `g` the enhanced signal, all means over the batch:
//!
//! | loss | |
//! |---|---|
//! | magnitude | mean (|c|^γ - |g|^γ)² |
//! | phase | mean of the anti-wrapped differences of phase, of its step over frequency, and of its step over time |
//! | complex | 2 · mean over the parts of the compressed complex spectra |
//! | time | mean absolute difference of the signals |
//! | metric | (1 - D(c, g))², where the [discriminator](crate::discriminator) D predicts PESQ; off by default, as it takes time |
//! | consistency | 2 · mean difference between the enhanced spectrum and that of its own signal |
//!
//! "Anti-wrapped" is the distance to the nearest multiple of 2π (Ai and Ling 2023, arXiv 2211.15974).

use crate::Config;
use crate::spectrum::{Spectrum, compressed_complex};
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;

/// Weights of the losses, under upstream's names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossWeights {
    /// Of the magnitude loss.
    pub magnitude: f64,
    /// Of the phase loss.
    pub phase: f64,
    /// Of the complex loss.
    pub complex: f64,
    /// Of the time loss.
    pub time: f64,
    /// Of the consistency loss.
    pub consistancy: f64,
    /// Of the metric loss; upstream has 0.05. With 0 there is no discriminator.
    pub metric: f64,
}

impl Default for LossWeights {
    fn default() -> Self {
        Self { magnitude: 0.9, phase: 0.3, complex: 0.1, time: 0.2, consistancy: 0.1, metric: 0.0 }
    }
}

/// The losses one by one; scalars.
#[derive(Clone, Debug)]
pub struct Losses {
    /// Difference of the magnitudes.
    pub magnitude: Tensor,
    /// Difference of the phases.
    pub phase: Tensor,
    /// Difference of the complex spectra.
    pub complex: Tensor,
    /// Difference of the signals.
    pub time: Tensor,
    /// Difference between a spectrum and that of its signal.
    pub consistency: Tensor,
}

impl Losses {
    /// Of an enhanced spectrum against a clean signal `(B, samples)`, whose length is a multiple of the hop, and its
    /// spectrum.
    pub fn new(cfg: &Config, enhanced: &Spectrum, clean: &Spectrum, clean_signal: &Tensor) -> Result<Self> {
        let compress = cfg.model_cfg.compress_factor;
        let signal = enhanced.signal(&cfg.stft_cfg, compress)?;
        let complex = enhanced.complex()?; // (B, T, F, 2)
        let of_signal = compressed_complex(&signal, &cfg.stft_cfg, compress)?;
        Ok(Self {
            magnitude: mean_square(&clean.mag, &enhanced.mag)?,
            phase: phase_loss(&clean.pha, &enhanced.pha)?,
            complex: (mean_square(&clean.complex()?, &complex)? * 2.0)?,
            time: (clean_signal - &signal)?.abs()?.mean_all()?,
            consistency: (mean_square(&of_signal, &complex)? * 2.0)?,
        })
    }

    /// Their weighted sum.
    pub fn total(&self, weights: &LossWeights) -> Result<Tensor> {
        (&self.magnitude * weights.magnitude)?
            .add(&(&self.phase * weights.phase)?)?
            .add(&(&self.complex * weights.complex)?)?
            .add(&(&self.time * weights.time)?)?
            .add(&(&self.consistency * weights.consistancy)?)
    }
}

fn mean_square(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    (a - b)?.sqr()?.mean_all()
}

/// Sum of the mean anti-wrapped differences of phases `(B, T, F)`, of group delay and of instantaneous frequency.
pub fn phase_loss(clean: &Tensor, enhanced: &Tensor) -> Result<Tensor> {
    let difference = (clean - enhanced)?;
    // A step is taken from zero before the first bin and the first frame, as upstream's matrices do.
    let step = |dim: usize| {
        let n = difference.dim(dim)?;
        let before = difference.pad_with_zeros(dim, 1, 0)?.narrow(dim, 0, n)?;
        mean_anti_wrapped(&(before - &difference)?)
    };
    mean_anti_wrapped(&difference)?.add(&step(2)?)?.add(&step(1)?)
}

fn mean_anti_wrapped(x: &Tensor) -> Result<Tensor> {
    let turns = (x.detach() / TAU)?.round()?;
    (x - (turns * TAU)?)?.abs()?.mean_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn whole_turns_do_not_count() -> Result<()> {
        let clean = Tensor::new(&[[[0.1f64, 3.0]]], &Device::Cpu)?;
        let enhanced = Tensor::new(&[[[0.1 + TAU, 3.0 - 2.0 * TAU]]], &Device::Cpu)?;
        assert!(phase_loss(&clean, &enhanced)?.to_scalar::<f64>()? < 1e-12);
        // Differences 0.5 and -0.5: phase 0.5; over frequency -0.5 and 1; over time -0.5 and 0.5.
        let enhanced = Tensor::new(&[[[-0.4f64, 3.5]]], &Device::Cpu)?;
        let want = 0.5 + 0.75 + 0.5;
        assert!((phase_loss(&clean, &enhanced)?.to_scalar::<f64>()? - want).abs() < 1e-12);
        Ok(())
    }
}
