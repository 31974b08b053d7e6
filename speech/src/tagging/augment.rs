//! Changes of a training clip that leave its class as it is.
//!
//! Speakers differ in speed, in the length of the vocal tract and in the room around them; masks (SpecAugment, Park et al.
//! 2019, arXiv 1904.08779) keep a model from leaning on one band or one moment. The level needs no change: features do not
//! depend on it.

use super::features::{Mel, MelImage, normalise};
use crate::mixture::{rms, tilt};
use crate::{Error, Result};
use mamba_core::Rng;
use serde::{Deserialize, Serialize};

/// How much is changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Speed and pitch change by at most this part, up and down.
    pub speed: f64,
    /// Frequencies are warped by at most this part, up and down.
    pub warp: f64,
    /// How often noise is added.
    pub noise: f64,
    /// Lowest and highest ratio of sound to noise in dB.
    pub snr_db: (f64, f64),
    /// Masks over time.
    pub time_masks: usize,
    /// Frames in each at most.
    pub time_mask: usize,
    /// Masks over frequency.
    pub freq_masks: usize,
    /// Bands in each at most.
    pub freq_mask: usize,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            speed: 0.15,
            warp: 0.15,
            noise: 0.5,
            snr_db: (5.0, 40.0),
            time_masks: 2,
            time_mask: 12,
            freq_masks: 2,
            freq_mask: 6,
        }
    }
}

impl AugmentConfig {
    /// Refuses impossible values.
    ///
    /// # Errors
    /// The first of them.
    pub fn validate(&self) -> Result<()> {
        let setting =
            |name, got: String, expected: &str| Error::Setting { name, got, expected: expected.into() };
        for (name, value) in [("speed", self.speed), ("warp", self.warp)] {
            if !(0.0..=0.5).contains(&value) {
                return Err(setting(name, value.to_string(), "0 to 0.5"));
            }
        }
        if !(0.0..=1.0).contains(&self.noise) {
            return Err(setting("noise", self.noise.to_string(), "a probability"));
        }
        let (low, high) = self.snr_db;
        if !(low.is_finite() && high.is_finite() && low <= high) {
            return Err(setting("snr_db", format!("{:?}", self.snr_db), "two numbers, the lower first"));
        }
        Ok(())
    }

    /// The features of a changed copy of a clip.
    pub fn features(&self, samples: &[f32], mel: &Mel, rng: &mut Rng) -> MelImage {
        let mut samples = faster(samples, rng.uniform_in(1.0 - self.speed, 1.0 + self.speed));
        if rng.uniform() < self.noise {
            let mut noise: Vec<f32> = samples.iter().map(|_| rng.normal() as f32).collect();
            tilt(&mut noise, rng.uniform_in(-0.9, 0.9) as f32);
            let ratio = 10f64.powf(-rng.uniform_in(self.snr_db.0, self.snr_db.1) / 20.0) as f32;
            let gain = ratio * rms(&samples) / rms(&noise).max(1e-9);
            samples.iter_mut().zip(noise).for_each(|(x, n)| *x += gain * n);
        }
        let mut image = mel.log_mel(&samples, rng.uniform_in(1.0 - self.warp, 1.0 + self.warp));
        normalise(&mut image);
        let (frames, bands) = (image.frames(), image.n_mels);
        for _ in 0..self.time_masks {
            // At most a fifth of a clip is hidden at once.
            let (start, len) = span(frames, self.time_mask.min(frames / 5), rng);
            image.values[start * bands..(start + len) * bands].fill(0.0);
        }
        for _ in 0..self.freq_masks {
            let (start, len) = span(bands, self.freq_mask.min(bands / 2), rng);
            image.values.chunks_exact_mut(bands).for_each(|frame| frame[start..start + len].fill(0.0));
        }
        image
    }
}

/// A random stretch of at most `longest` out of `n`.
fn span(n: usize, longest: usize, rng: &mut Rng) -> (usize, usize) {
    let len = rng.below(longest + 1);
    (rng.below(n - len + 1), len)
}

/// The sound played `factor` times as fast: shorter and higher. Between samples it follows a cubic (Catmull and Rom).
pub fn faster(samples: &[f32], factor: f64) -> Vec<f32> {
    let Some(last) = samples.len().checked_sub(1) else { return Vec::new() };
    let at = |i: isize| samples[i.clamp(0, last as isize) as usize];
    let value = |place: f64| {
        let i = place.floor() as isize;
        let t = (place - place.floor()) as f32;
        let (a, b, c, d) = (at(i - 1), at(i), at(i + 1), at(i + 2));
        b + 0.5 * t * (c - a + t * (2.0 * a - 5.0 * b + 4.0 * c - d + t * (3.0 * (b - c) + d - a)))
    };
    let n = (samples.len() as f64 / factor).round().max(1.0) as usize;
    (0..n).map(|i| value(i as f64 * factor)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::features::MelConfig;
    use super::*;

    #[test]
    fn a_faster_tone_is_a_higher_one() {
        let tone = |step: f64, n: usize| (0..n).map(|i| (step * i as f64).sin() as f32).collect::<Vec<_>>();
        let (fast, want) = (faster(&tone(0.1, 2000), 1.25), tone(0.125, 1600));
        assert_eq!(fast.len(), 1600);
        assert!(fast[..1590].iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-3));
        assert_eq!(faster(&tone(0.1, 50), 1.0), tone(0.1, 50));
        assert!(faster(&[], 1.1).is_empty());
    }

    #[test]
    fn features_depend_on_the_generator_only_and_masks_stay_inside() {
        let mel = Mel::new(&MelConfig::default()).unwrap();
        let cfg = AugmentConfig { time_masks: 5, freq_masks: 5, ..AugmentConfig::default() };
        let clip: Vec<f32> = (0..3000).map(|i| (0.3 * f64::from(i)).sin() as f32).collect();
        for seed in 0..20 {
            let features = |seed| cfg.features(&clip, &mel, &mut Rng::new(seed));
            assert_eq!(features(seed), features(seed));
            assert_ne!(features(seed), features(seed + 1));
            assert!(features(seed).values.iter().all(|x| x.is_finite()));
        }
        cfg.features(&clip[..3], &mel, &mut Rng::new(1));
        assert!(
            AugmentConfig { noise: 2.0, ..cfg }.validate().unwrap_err().to_string().contains("a probability")
        );
    }
}
