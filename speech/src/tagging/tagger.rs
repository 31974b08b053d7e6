//! A trained tagging model at work: clips in, probabilities out.

use super::features::{Mel, normalise};
use super::model::{AudioMamba, TaggerConfig};
use crate::audio::{Reader, Resampler};
use candle_core::{DType, Device, Result, Tensor};
use mamba_core::Params;
use std::path::Path;

/// Windows that are computed at once.
const BATCH: usize = 32;

/// A model that takes samples at its own rate.
#[derive(Clone)]
pub struct Tagger {
    cfg: TaggerConfig,
    model: AudioMamba,
    mel: Mel,
    dtype: DType,
    device: Device,
}

impl Tagger {
    /// From weights.
    ///
    /// # Errors
    /// Settings that make no model, weights of another shape.
    pub fn new(
        cfg: &TaggerConfig,
        weights: impl IntoIterator<Item = (String, Tensor)>,
        dtype: DType,
        device: &Device,
    ) -> mamba_core::Result<Self> {
        // Without variables there is no graph, and activations are freed as they are used.
        let params = Params::frozen(weights, dtype, device);
        let model = AudioMamba::new(cfg, &params.builder())?;
        params.check()?;
        Ok(Self { cfg: cfg.clone(), model, mel: Mel::new(&cfg.mel)?, dtype, device: device.clone() })
    }

    /// The classes.
    pub fn labels(&self) -> &[String] {
        &self.cfg.labels
    }

    /// Samples in a second.
    pub fn sample_rate(&self) -> u32 {
        self.cfg.mel.sampling_rate
    }

    /// The class of highest probability.
    pub fn best(probabilities: &[f32]) -> usize {
        (0..probabilities.len())
            .rev()
            .max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]))
            .unwrap_or(0)
    }

    /// Probabilities of the classes for clips at [`Tagger::sample_rate`], which sum to 1. A clip longer than the model's
    /// window is heard in windows that overlap by half, and gets the mean of what they say.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn tag(&self, clips: &[&[f32]]) -> Result<Vec<Vec<f32>>> {
        let window = self.cfg.window();
        let windows: Vec<(usize, &[f32])> = clips
            .iter()
            .enumerate()
            .flat_map(|(i, clip)| {
                starts(clip.len(), window).map(move |at| (i, &clip[at..clip.len().min(at + window)]))
            })
            .collect();
        let mut sums = vec![vec![0.0; self.labels().len()]; clips.len()];
        let mut counts = vec![0.0; clips.len()];
        for batch in windows.chunks(BATCH) {
            let samples: Vec<&[f32]> = batch.iter().map(|(_, samples)| *samples).collect();
            for ((clip, _), row) in batch.iter().zip(self.windows(&samples)?) {
                sums[*clip].iter_mut().zip(row).for_each(|(sum, p)| *sum += p);
                counts[*clip] += 1.0;
            }
        }
        sums.iter_mut().zip(counts).for_each(|(sum, n)| sum.iter_mut().for_each(|p| *p /= n));
        Ok(sums)
    }

    /// Probabilities for the recording in a file, and its length in seconds. Memory does not grow with the length.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn tag_file(&self, path: &Path) -> mamba_core::Result<(Vec<f32>, f64)> {
        let mut reader = Reader::open(path)?;
        let rate = reader.spec().sample_rate;
        let mut resampler = Resampler::new(rate, self.sample_rate())?;
        let mut windows = Windows::new(self.cfg.window());
        let mut sum = vec![0f64; self.labels().len()];
        let mut count = 0.0;
        let mut hear = |windows: Vec<Vec<f32>>| -> Result<()> {
            for batch in windows.chunks(BATCH) {
                for row in self.windows(&batch.iter().map(Vec::as_slice).collect::<Vec<_>>())? {
                    sum.iter_mut().zip(row).for_each(|(sum, p)| *sum += f64::from(p));
                    count += 1.0;
                }
            }
            Ok(())
        };
        while let Some(channels) = reader.next_block()? {
            let mono = crate::audio::Audio { sample_rate: rate, channels }.mix_down();
            hear(windows.push(&resampler.push(&mono)?))?;
        }
        let mut last = windows.push(&resampler.finish()?);
        last.push(windows.finish());
        hear(last)?;
        let seconds = reader.frames() as f64 / f64::from(rate);
        Ok((sum.iter().map(|p| (p / count) as f32).collect(), seconds))
    }

    /// Probabilities for stretches of sound of one window at most.
    fn windows(&self, windows: &[&[f32]]) -> Result<Vec<Vec<f32>>> {
        let (frames, n) = (self.cfg.frames, self.cfg.mel.n_mels);
        let mut images = vec![0f32; windows.len() * frames * n];
        for (samples, out) in windows.iter().zip(images.chunks_exact_mut(frames * n)) {
            let mut image = self.mel.log_mel(samples, 1.0);
            normalise(&mut image);
            let have = image.frames().min(frames);
            let start = (frames - have) / 2;
            out[start * n..(start + have) * n].copy_from_slice(&image.values[..have * n]);
        }
        let images =
            Tensor::from_vec(images, (windows.len(), frames, n), &self.device)?.to_dtype(self.dtype)?;
        let logits = self.model.forward(&images, None)?.to_dtype(DType::F32)?;
        candle_nn::ops::softmax(&logits, 1)?.to_vec2()
    }
}

/// Where windows begin in a clip: half a window apart, the last one at the very end; a short clip has one.
fn starts(len: usize, window: usize) -> impl Iterator<Item = usize> {
    let last = len.saturating_sub(window);
    let step = (window / 2).max(1);
    (0..last.div_ceil(step)).map(move |i| i * step).chain([last])
}

/// Cuts sound that arrives in pieces into the windows of [`starts`].
struct Windows {
    window: usize,
    /// The sound from half a window before the next window on, or from the beginning.
    waiting: Vec<f32>,
    /// Where in it the next window begins.
    next: usize,
}

impl Windows {
    fn new(window: usize) -> Self {
        Self { window, waiting: Vec::new(), next: 0 }
    }

    /// Windows that something follows.
    fn push(&mut self, samples: &[f32]) -> Vec<Vec<f32>> {
        self.waiting.extend(samples);
        let step = (self.window / 2).max(1);
        let mut out = Vec::new();
        while self.waiting.len() > self.next + self.window {
            out.push(self.waiting[self.next..self.next + self.window].to_vec());
            self.waiting.drain(..self.next);
            self.next = step;
        }
        out
    }

    /// The last window: the end of the sound.
    fn finish(mut self) -> Vec<f32> {
        self.waiting.split_off(self.waiting.len().saturating_sub(self.window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_a_clip_and_end_with_it() {
        let all = |len| starts(len, 10).collect::<Vec<_>>();
        assert_eq!(all(0), [0]);
        assert_eq!(all(10), [0]);
        assert_eq!(all(11), [0, 1]);
        assert_eq!(all(20), [0, 5, 10]);
        assert_eq!(all(22), [0, 5, 10, 12]);
        for window in [1, 2, 7, 10] {
            for len in 1..40 {
                let clip: Vec<f32> = (0..len).map(|i| i as f32).collect();
                for block in [1, 3, 50] {
                    let mut windows = Windows::new(window);
                    let mut got: Vec<Vec<f32>> = clip.chunks(block).flat_map(|x| windows.push(x)).collect();
                    got.push(windows.finish());
                    let want: Vec<&[f32]> =
                        starts(len, window).map(|at| &clip[at..len.min(at + window)]).collect();
                    assert_eq!(got, want, "{len} samples by {block} in windows of {window}");
                }
            }
        }
    }
}
