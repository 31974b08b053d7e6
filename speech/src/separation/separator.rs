//! A separation model at work: signals in one piece, or of any length in overlapping chunks.

use super::loss::best_order;
use super::model::{DualPathMamba, SeparatorConfig};
use crate::enhance::ChunkConfig;
use crate::mixture::rms;
use candle_core::{DType, Device, Result, Tensor};
use mamba_core::Params;
use std::collections::VecDeque;

/// A model that takes and gives samples at its own rate.
#[derive(Clone, Debug)]
pub struct Separator {
    model: DualPathMamba,
    cfg: SeparatorConfig,
    dtype: DType,
    device: Device,
}

impl Separator {
    /// From weights.
    ///
    /// # Errors
    /// Settings that make no model, weights of another shape.
    pub fn new(
        cfg: &SeparatorConfig,
        weights: impl IntoIterator<Item = (String, Tensor)>,
        dtype: DType,
        device: &Device,
    ) -> mamba_core::Result<Self> {
        // Without variables there is no graph, and activations are freed as they are used.
        let params = Params::frozen(weights, dtype, device);
        let model = DualPathMamba::new(cfg, &params.builder())?;
        params.check()?;
        Ok(Self { model, cfg: cfg.clone(), dtype, device: device.clone() })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &SeparatorConfig {
        &self.cfg
    }

    /// Samples in a second.
    pub fn sample_rate(&self) -> u32 {
        self.cfg.stft_cfg.sampling_rate
    }

    /// Talkers.
    pub fn talkers(&self) -> usize {
        self.cfg.n_src
    }

    /// The talkers of a mixture, each of its length; together they are the mixture. The whole is processed at once: memory
    /// grows with its length, see [`Stitch`]. Silence stays silence.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn separate(&self, mixture: &[f32]) -> Result<Vec<Vec<f32>>> {
        let level = rms(mixture);
        if level < 1e-8 {
            return Ok(vec![vec![0.0; mixture.len()]; self.talkers()]);
        }
        let stft = &self.cfg.stft_cfg;
        // A whole number of hops, and enough to be reflected at the ends.
        let len = mixture.len().max(2 * stft.n_fft).next_multiple_of(stft.hop_size);
        let mut signal: Vec<f32> = mixture.iter().map(|x| x / level).collect();
        signal.resize(len, 0.0);
        let signal = Tensor::from_vec(signal, (1, len), &self.device)?.to_dtype(self.dtype)?;
        let talkers = self.model.forward(&signal)?.squeeze(0)?.to_dtype(DType::F32)?; // (S, len)
        let mut talkers = talkers.to_vec2::<f32>()?;
        for talker in &mut talkers {
            talker.truncate(mixture.len());
            talker.iter_mut().for_each(|x| *x *= level);
        }
        Ok(talkers)
    }
}

/// Separates one channel that arrives in pieces, in memory that does not grow with its length. What comes out has the
/// length of what went in, without delay.
///
/// A model names the talkers of each chunk in an order of its own. Chunks overlap, and of all orders the one is taken whose
/// talkers differ least from those of the chunk before where the two overlap; then one fades into the other. Where an
/// overlap is silent, or holds one talker only, there is little to go by, so overlaps should be long.
pub struct Stitch<F> {
    separate: F,
    talkers: usize,
    cfg: ChunkConfig,
    waiting: VecDeque<f32>,
    /// The end of every talker of the chunk before, as far as the next chunk overlaps it.
    tails: Vec<Vec<f32>>,
}

impl<F: FnMut(&[f32]) -> Result<Vec<Vec<f32>>>> Stitch<F> {
    /// At the beginning of a signal; `separate` makes `talkers` signals of one. The overlap is at most half of a chunk.
    pub fn new(separate: F, talkers: usize, cfg: ChunkConfig) -> Self {
        let length = cfg.length.max(2);
        let cfg = ChunkConfig { length, overlap: cfg.overlap.clamp(1, length / 2) };
        Self { separate, talkers, cfg, waiting: VecDeque::new(), tails: vec![Vec::new(); talkers] }
    }

    /// Takes samples and gives those of each talker that are finished.
    ///
    /// # Errors
    /// As `separate`.
    pub fn push(&mut self, samples: &[f32]) -> Result<Vec<Vec<f32>>> {
        self.waiting.extend(samples);
        let mut out = vec![Vec::new(); self.talkers];
        // Some is held back, so that the last chunk is not a short one.
        while self.waiting.len() >= self.cfg.length + self.cfg.length / 2 {
            let chunk: Vec<f32> = self.waiting.iter().take(self.cfg.length).copied().collect();
            let kept = self.cfg.length - self.cfg.overlap;
            let talkers = Self::joined(&mut self.separate, &self.tails, &chunk)?;
            for ((out, tail), mut talker) in out.iter_mut().zip(&mut self.tails).zip(talkers) {
                *tail = talker.split_off(kept);
                out.extend(talker);
            }
            self.waiting.drain(..kept);
        }
        Ok(out)
    }

    /// The rest, after the last sample.
    ///
    /// # Errors
    /// As `separate`.
    pub fn finish(mut self) -> Result<Vec<Vec<f32>>> {
        let chunk: Vec<f32> = self.waiting.drain(..).collect();
        match chunk.is_empty() {
            true => Ok(self.tails),
            false => Self::joined(&mut self.separate, &self.tails, &chunk),
        }
    }

    /// The talkers of a chunk, in the order of the chunk before, faded in over its tails.
    fn joined(separate: &mut F, tails: &[Vec<f32>], chunk: &[f32]) -> Result<Vec<Vec<f32>>> {
        let talkers = separate(chunk)?;
        let difference = |new: usize, old: usize| -> f64 {
            talkers[new].iter().zip(&tails[old]).map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let order = best_order(tails.len(), difference);
        let mut talkers: Vec<Option<Vec<f32>>> = talkers.into_iter().map(Some).collect();
        let fade = |(old, new): (usize, usize)| {
            let mut talker = talkers[new].take().expect("every talker has one place in an order");
            let n = tails[old].len();
            for (i, (new, old)) in talker.iter_mut().zip(&tails[old]).enumerate() {
                let at = (i as f32 + 0.5) / n as f32;
                let weight = 0.5 - 0.5 * (std::f32::consts::PI * at).cos();
                *new = weight * *new + (1.0 - weight) * old;
            }
            talker
        };
        Ok(order.into_iter().enumerate().map(fade).collect())
    }
}
