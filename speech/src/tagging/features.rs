//! Log-mel spectrograms and cepstra of short clips.
//!
//! ```text
//! mel(f)      = 2595 · log10(1 + f / 700)
//! S[t, m]     = ln max(Σ_k W[m, k] · |X[t, k]|², 10^(-range/10) · the largest of the clip)
//! cepstrum[t] = DCT-II(S[t])
//! ```
//!
//! `W` are triangles between neighbouring points that lie evenly in mel. The floor lies below the loudest, so that a louder copy
//! of a clip has the same features but for a constant, which [`normalise`] takes away. Quiet frames at either end are cut off:
//! how tightly clips were cut, and how silent the room was, would else weigh more than what was said.

use crate::stft::{Stft, StftConfig};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The spectrogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MelConfig {
    /// Samples in a second.
    pub sampling_rate: u32,
    /// Samples in a frame.
    pub n_fft: usize,
    /// Samples from one frame to the next.
    pub hop_size: usize,
    /// Mel bands.
    pub n_mels: usize,
    /// Lower edge of the lowest band in Hz.
    pub f_min: f64,
    /// Upper edge of the highest band in Hz.
    pub f_max: f64,
    /// How far below the loudest value of a clip its values are cut off, in dB.
    pub range_db: f64,
    /// How far below the loudest frame of a clip frames are quiet, in dB; null keeps quiet ends.
    pub trim_db: Option<f64>,
}

impl Default for MelConfig {
    fn default() -> Self {
        Self {
            sampling_rate: 8000,
            n_fft: 256,
            hop_size: 80,
            n_mels: 40,
            f_min: 60.0,
            f_max: 3800.0,
            range_db: 50.0,
            trim_db: Some(30.0),
        }
    }
}

impl MelConfig {
    /// Refuses sizes that make no spectrogram.
    ///
    /// # Errors
    /// The first impossible value.
    pub fn validate(&self) -> Result<()> {
        self.stft().validate()?;
        let nyquist = f64::from(self.sampling_rate) / 2.0;
        if !(self.f_min >= 0.0 && self.f_min < self.f_max && self.f_max <= nyquist) {
            let got = format!("{} to {}", self.f_min, self.f_max);
            let expected = format!("a rising pair from 0 to {nyquist} Hz");
            return Err(Error::Setting { name: "f_min, f_max", got, expected });
        }
        for (name, db) in [("range_db", self.range_db), ("trim_db", self.trim_db.unwrap_or(30.0))] {
            if !(db > 0.0 && db <= 300.0) {
                return Err(Error::Setting {
                    name,
                    got: db.to_string(),
                    expected: "above 0, up to 300 dB".into(),
                });
            }
        }
        let bins = self.n_fft / 2 + 1;
        if !(2..=bins).contains(&self.n_mels) {
            let expected = format!("2 to {bins}, the bins of the spectrum");
            return Err(Error::Setting { name: "n_mels", got: self.n_mels.to_string(), expected });
        }
        Ok(())
    }

    fn stft(&self) -> StftConfig {
        let Self { sampling_rate, n_fft, hop_size, .. } = *self;
        StftConfig { sampling_rate, n_fft, hop_size, win_size: n_fft }
    }
}

/// `(frames, bands)`, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct MelImage {
    /// Values.
    pub values: Vec<f32>,
    /// Bands.
    pub n_mels: usize,
}

impl MelImage {
    /// Rows.
    pub fn frames(&self) -> usize {
        self.values.len() / self.n_mels
    }
}

/// Makes spectrograms.
#[derive(Clone)]
pub struct Mel {
    cfg: MelConfig,
    stft: Stft<f32>,
}

impl Mel {
    /// Plans the transform.
    ///
    /// # Errors
    /// As [`MelConfig::validate`].
    pub fn new(cfg: &MelConfig) -> Result<Self> {
        cfg.validate()?;
        Ok(Self { cfg: *cfg, stft: Stft::new(&cfg.stft())? })
    }

    /// The settings.
    pub fn config(&self) -> &MelConfig {
        &self.cfg
    }

    /// The log-mel spectrogram of a clip of any length: a frame for each hop, and one, without quiet ends. Silence has the
    /// same value everywhere.
    ///
    /// `warp` moves all frequencies below about 85 % of the highest up by this factor, as a shorter vocal tract does
    /// (Jaitly and Hinton 2013); 1 leaves them.
    pub fn log_mel(&self, samples: &[f32], warp: f64) -> MelImage {
        let mut samples = samples.to_vec();
        if samples.len() < self.stft.min_samples() {
            samples.resize(self.stft.min_samples(), 0.0);
        }
        let (re, im) = self.stft.spectrum(&samples);
        let power: Vec<f32> = re.iter().zip(&im).map(|(re, im)| re * re + im * im).collect();
        let filters = self.filters(warp);
        let mut values = Vec::with_capacity(power.len() / self.stft.bins() * self.cfg.n_mels);
        for frame in power.chunks_exact(self.stft.bins()) {
            values.extend(filters.iter().map(|(first, weights)| {
                weights.iter().zip(&frame[*first..]).map(|(w, p)| w * p).sum::<f32>()
            }));
        }
        let n = self.cfg.n_mels;
        if let Some(db) = self.cfg.trim_db {
            let energies: Vec<f32> = values.chunks_exact(n).map(|frame| frame.iter().sum()).collect();
            let least = energies.iter().copied().fold(0.0, f32::max) * ratio(db);
            let loud = |e: &f32| *e >= least;
            let first = energies.iter().position(loud).unwrap_or(0);
            let last = energies.iter().rposition(loud).unwrap_or(0);
            values = values[first * n..(last + 1) * n].to_vec();
        }
        let floor = values.iter().copied().fold(1e-30, f32::max) * ratio(self.cfg.range_db);
        values.iter_mut().for_each(|x| *x = x.max(floor.max(f32::MIN_POSITIVE)).ln());
        MelImage { values, n_mels: n }
    }

    /// First bin and weights of every band.
    fn filters(&self, warp: f64) -> Vec<(usize, Vec<f32>)> {
        let MelConfig { sampling_rate, n_fft, n_mels, f_min, f_max, .. } = self.cfg;
        let nyquist = f64::from(sampling_rate) / 2.0;
        let knee = 0.85 * f_max.min(nyquist) * warp.min(1.0) / warp;
        let warped = |f: f64| match f <= knee {
            true => f * warp,
            false => nyquist - (nyquist - knee * warp) / (nyquist - knee) * (nyquist - f),
        };
        let (low, high) = (mel(f_min), mel(f_max));
        let point = |i: usize| warped(hertz(low + (high - low) * i as f64 / (n_mels + 1) as f64));
        let step = f64::from(sampling_rate) / n_fft as f64;
        let filter = |m: usize| {
            let (left, centre, right) = (point(m), point(m + 1), point(m + 2));
            let first = ((left / step).ceil() as usize).min(self.stft.bins() - 1);
            let last = ((right / step).floor() as usize).clamp(first, self.stft.bins() - 1);
            let weight = |k: usize| {
                let f = k as f64 * step;
                ((f - left) / (centre - left)).min((right - f) / (right - centre)).max(0.0)
            };
            let mut weights: Vec<f32> = (first..=last).map(|k| weight(k) as f32).collect();
            if weights.iter().all(|&w| w == 0.0) {
                // A band narrower than a bin hears the bin nearest to it.
                let nearest = ((centre / step).round() as usize).min(self.stft.bins() - 1);
                weights = vec![1.0];
                return (nearest, weights);
            }
            (first, weights)
        };
        (0..n_mels).map(filter).collect()
    }
}

/// A power so many dB below 1.
fn ratio(db: f64) -> f32 {
    10f64.powf(-db / 10.0) as f32
}

fn mel(hertz: f64) -> f64 {
    2595.0 * (1.0 + hertz / 700.0).log10()
}

fn hertz(mel: f64) -> f64 {
    700.0 * (10f64.powf(mel / 2595.0) - 1.0)
}

/// Takes the mean of every band away and brings the whole to a deviation of 1: what microphone, room and level do to a
/// clip is gone. A clip without any change becomes zeros.
pub fn normalise(image: &mut MelImage) {
    let (n, frames) = (image.n_mels, image.frames().max(1) as f64);
    for band in 0..n {
        let of_band = || image.values.iter().skip(band).step_by(n);
        let mean = (of_band().map(|&x| f64::from(x)).sum::<f64>() / frames) as f32;
        image.values.iter_mut().skip(band).step_by(n).for_each(|x| *x -= mean);
    }
    let power =
        image.values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / image.values.len().max(1) as f64;
    let deviation = power.sqrt().max(1e-5) as f32;
    image.values.iter_mut().for_each(|x| *x /= deviation);
}

/// The first `count` cepstral coefficients of every frame: `(frames, count)`, row by row.
pub fn cepstra(image: &MelImage, count: usize) -> Vec<f32> {
    let n = image.n_mels;
    let table: Vec<f32> = (0..count)
        .flat_map(|k| {
            let power = if k == 0 { 1.0 } else { 2.0 };
            let scale = (power / n as f64).sqrt();
            (0..n).map(move |m| {
                (scale * (std::f64::consts::PI * k as f64 * (m as f64 + 0.5) / n as f64).cos()) as f32
            })
        })
        .collect();
    let of_frame = |frame: &[f32]| -> Vec<f32> {
        table.chunks_exact(n).map(|row| row.iter().zip(frame).map(|(a, b)| a * b).sum()).collect()
    };
    image.values.chunks_exact(n).flat_map(of_frame).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hertz: f64, gain: f32) -> Vec<f32> {
        (0..4000)
            .map(|i| gain * (std::f64::consts::TAU * hertz * f64::from(i) / 8000.0).sin() as f32)
            .collect()
    }

    fn loudest_band(image: &MelImage) -> usize {
        let middle = &image.values[image.frames() / 2 * image.n_mels..][..image.n_mels];
        (0..image.n_mels).max_by(|&a, &b| middle[a].total_cmp(&middle[b])).unwrap()
    }

    #[test]
    fn a_tone_sounds_in_the_band_whose_centre_it_is() {
        let cfg = MelConfig::default();
        let (maker, low, high) = (Mel::new(&cfg).unwrap(), mel(cfg.f_min), mel(cfg.f_max));
        for band in [8, 17, 30, 38] {
            let centre = hertz(low + (high - low) * (band + 1) as f64 / (cfg.n_mels + 1) as f64);
            assert_eq!(loudest_band(&maker.log_mel(&tone(centre, 0.5), 1.0)), band, "{centre} Hz");
        }
        // Bands moved up hear the same tone further down.
        assert!(
            loudest_band(&maker.log_mel(&tone(1500.0, 0.5), 1.2))
                < loudest_band(&maker.log_mel(&tone(1500.0, 0.5), 1.0))
        );
    }

    #[test]
    fn level_and_silence_do_not_matter() {
        let maker = Mel::new(&MelConfig::default()).unwrap();
        let features = |samples: &[f32]| {
            let mut image = maker.log_mel(samples, 1.0);
            normalise(&mut image);
            image
        };
        let sound: Vec<f32> =
            tone(440.0, 0.5).iter().enumerate().map(|(i, x)| x * (0.2 + i as f32 / 5000.0)).collect();
        let louder: Vec<f32> = sound.iter().map(|x| 0.01 * x).collect();
        let (a, b) = (features(&sound), features(&louder));
        assert!(a.values.iter().zip(&b.values).all(|(a, b)| (a - b).abs() < 1e-2));
        assert!(features(&[0.0; 900]).values.iter().all(|&x| x == 0.0));
        assert_eq!(features(&[]).frames(), 2, "an empty clip is a short one");
        let frames = |samples: &[f32], trim_db| {
            let cfg = MelConfig { trim_db, ..MelConfig::default() };
            Mel::new(&cfg).unwrap().log_mel(samples, 1.0).frames()
        };
        assert_eq!(frames(&sound, None), 51);
        let quiet = [vec![0.0; 4000], sound, vec![1e-4; 8000]].concat();
        assert_eq!(frames(&quiet, None), 201);
        assert!((45..=54).contains(&frames(&quiet, Some(30.0))), "{}", frames(&quiet, Some(30.0)));
    }

    #[test]
    fn cepstra_keep_the_energy_of_a_frame() {
        let image = MelImage { values: vec![1.0, -2.0, 0.5, 3.0, 0.0, 0.0, 0.0, 1.0], n_mels: 4 };
        let all = cepstra(&image, 4);
        let energy = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
        for (a, b) in all.chunks(4).zip(image.values.chunks(4)) {
            assert!((energy(a) - energy(b)).abs() < 1e-5, "the DCT is orthonormal");
        }
        assert!((all[0] - 2.5 / 2.0).abs() < 1e-6, "the first one is the sum by the root of the number");
        assert_eq!(cepstra(&image, 2), [all[0], all[1], all[4], all[5]]);
    }

    #[test]
    fn impossible_bands_are_refused() {
        let error = |cfg: MelConfig| Mel::new(&cfg).err().unwrap().to_string();
        assert!(
            error(MelConfig { f_max: 5000.0, ..Default::default() })
                .starts_with("f_min, f_max is 60 to 5000")
        );
        assert!(
            error(MelConfig { n_mels: 300, ..Default::default() })
                .starts_with("n_mels is 300: expected 2 to 129")
        );
    }
}
