//! Enhancing signals: in one piece, or of any length in overlapping chunks.

use crate::mixture::rms;
use crate::spectrum::Spectrum;
use crate::stft::StftConfig;
use crate::{Config, SeMamba, pcs};
use candle_core::{DType, Device, Result, Tensor};
use std::collections::VecDeque;

/// A model that takes and gives samples at its own rate.
#[derive(Clone, Debug)]
pub struct Enhancer {
    model: SeMamba,
    cfg: Config,
    dtype: DType,
    device: Device,
    stretch: bool,
}

impl Enhancer {
    /// From a model with its weights.
    pub fn new(model: SeMamba, cfg: Config, dtype: DType, device: &Device) -> Self {
        Self { model, cfg, dtype, device: device.clone(), stretch: false }
    }

    /// Whether [perceptual contrast stretching](crate::pcs) comes last. It is defined for spectra of 400 samples at 16 kHz.
    ///
    /// # Errors
    /// Another rate or size of spectrum.
    pub fn with_stretch(self, stretch: bool) -> crate::Result<Self> {
        let StftConfig { sampling_rate, n_fft, .. } = self.cfg.stft_cfg;
        if stretch && (sampling_rate, n_fft) != (16_000, 400) {
            let got = format!("of a model with {n_fft} samples at {sampling_rate} Hz");
            let expected = "400 samples at 16000 Hz".into();
            return Err(crate::Error::Setting { name: "contrast stretching", got, expected });
        }
        Ok(Self { stretch, ..self })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.cfg
    }

    /// The model.
    pub fn model(&self) -> &SeMamba {
        &self.model
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type it computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Samples in a second.
    pub fn sample_rate(&self) -> u32 {
        self.cfg.stft_cfg.sampling_rate
    }

    /// The enhanced signal, of the same length. The whole is processed at once: memory grows with its length, see
    /// [`Chunks`]. Silence stays silence.
    pub fn enhance(&self, noisy: &[f32]) -> Result<Vec<f32>> {
        let level = rms(noisy);
        if level < 1e-8 {
            return Ok(vec![0.0; noisy.len()]);
        }
        let stft = &self.cfg.stft_cfg;
        // A whole number of hops, and enough to be reflected at the ends.
        let len = noisy.len().next_multiple_of(stft.hop_size).max(2 * stft.n_fft);
        // Upstream brings signals to a mean square of 1.
        let factor = if self.cfg.model_cfg.causal { 1.0 } else { 1.0 / level };
        let mut signal: Vec<f32> = noisy.iter().map(|x| x * factor).collect();
        signal.resize(len, 0.0);
        let signal = Tensor::from_vec(signal, (1, len), &self.device)?.to_dtype(self.dtype)?;
        let compress = self.cfg.model_cfg.compress_factor;
        let enhanced = self.model.forward(&Spectrum::of(&signal, stft, compress)?)?;
        let signal = enhanced.signal(stft, compress)?.squeeze(0)?.to_dtype(DType::F32)?;
        let mut signal = signal.to_vec1::<f32>()?;
        signal.truncate(noisy.len());
        signal.iter_mut().for_each(|x| *x /= factor);
        if self.stretch {
            let stretched = pcs::stretch(&signal).map_err(candle_core::Error::wrap)?;
            return Ok(pcs::like_level(&stretched, &signal));
        }
        Ok(signal)
    }
}

/// How a long signal is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkConfig {
    /// Samples in a chunk.
    pub length: usize,
    /// Samples that two chunks share; over them one fades into the other.
    pub overlap: usize,
}

impl ChunkConfig {
    /// Chunks of `seconds` that share a tenth, at a rate.
    pub fn seconds(seconds: f64, sample_rate: u32) -> Self {
        let length = (seconds * f64::from(sample_rate)).max(1.0) as usize;
        Self { length, overlap: length / 10 }
    }
}

/// Enhances one channel that arrives in pieces, in memory that does not grow with its length. What comes out has the
/// length of what went in, without delay. A signal below one and a half chunks is processed as a whole.
pub struct Chunks<'a> {
    enhancer: &'a Enhancer,
    cfg: ChunkConfig,
    waiting: VecDeque<f32>,
    /// The enhanced end of the chunk before, as far as the next one overlaps it.
    tail: Vec<f32>,
}

impl<'a> Chunks<'a> {
    /// At the beginning of a signal.
    pub fn new(enhancer: &'a Enhancer, cfg: ChunkConfig) -> Self {
        let length = cfg.length.max(2 * enhancer.cfg.stft_cfg.n_fft);
        let cfg = ChunkConfig { length, overlap: cfg.overlap.clamp(1, length / 2) };
        Self { enhancer, cfg, waiting: VecDeque::new(), tail: Vec::new() }
    }

    /// Takes samples and gives those that are finished.
    pub fn push(&mut self, samples: &[f32]) -> Result<Vec<f32>> {
        self.waiting.extend(samples);
        let mut out = Vec::new();
        // Some is held back, so that the last chunk is not a short one.
        while self.waiting.len() >= self.cfg.length + self.cfg.length / 2 {
            let chunk: Vec<f32> = self.waiting.iter().take(self.cfg.length).copied().collect();
            let mut enhanced = self.joined(&chunk)?;
            let kept = self.cfg.length - self.cfg.overlap;
            self.tail = enhanced.split_off(kept);
            out.extend(enhanced);
            self.waiting.drain(..kept);
        }
        Ok(out)
    }

    /// The rest, after the last sample.
    pub fn finish(mut self) -> Result<Vec<f32>> {
        let chunk: Vec<f32> = self.waiting.drain(..).collect();
        if chunk.is_empty() { Ok(chunk) } else { self.joined(&chunk) }
    }

    /// A chunk, enhanced, its beginning faded in over the tail of the one before.
    fn joined(&self, chunk: &[f32]) -> Result<Vec<f32>> {
        let mut enhanced = self.enhancer.enhance(chunk)?;
        let n = self.tail.len();
        for (i, (new, old)) in enhanced.iter_mut().zip(&self.tail).enumerate() {
            let at = (i as f32 + 0.5) / n as f32;
            let weight = 0.5 - 0.5 * (std::f32::consts::PI * at).cos();
            *new = weight * *new + (1.0 - weight) * old;
        }
        Ok(enhanced)
    }
}
