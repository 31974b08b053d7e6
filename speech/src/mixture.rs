//! Noisy examples mixed while training runs: a piece of speech, a piece of noise, a random ratio.
//!
//! Everything is a pure function of seed and number, so that a resumed run sees the same.

use crate::audio::{files_in, read_mono};
use crate::{Error, Result, sample};
use mamba_core::Rng;
use mamba_datasets::{Fractions, index_split};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How speech and noise are mixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureConfig {
    /// Samples in a training segment.
    pub segment_size: usize,
    /// Lowest and highest ratio of speech to noise in dB, where there is speech.
    pub snr_db: (f64, f64),
    /// Lowest and highest gain of the mixture in dB.
    pub gain_db: (f64, f64),
    /// How often two noises are added up.
    pub second_noise: f64,
    /// How often speech and noise each pass a random tilt of their spectrum, of at most 6 dB.
    pub tilt: f64,
    /// How often the speech is reverberated; the direct sound and what follows within 50 ms stay in the clean signal.
    pub reverberation: f64,
    /// Longest reverberation time in seconds, for a decay by 60 dB.
    pub max_rt60: f64,
    /// Share of the clean clips, and of the noises, that are held out for validation.
    pub valid: f64,
    /// Validation mixtures.
    pub valid_clips: usize,
    /// Longest validation clip in samples.
    pub valid_size: usize,
    /// Seed of the split and of the validation mixtures, apart from that of the run.
    pub split_seed: u64,
}

impl Default for MixtureConfig {
    fn default() -> Self {
        Self {
            segment_size: 32_000,
            snr_db: (-5.0, 20.0),
            gain_db: (-10.0, 6.0),
            second_noise: 0.3,
            tilt: 0.5,
            reverberation: 0.0,
            max_rt60: 0.6,
            valid: 0.1,
            valid_clips: 12,
            valid_size: 64_000,
            split_seed: 0,
        }
    }
}

impl MixtureConfig {
    /// Refuses impossible values.
    ///
    /// # Errors
    /// The first of them.
    pub fn validate(&self) -> Result<()> {
        let setting =
            |name, got: String, expected: &str| Error::Setting { name, got, expected: expected.into() };
        let range = |(lo, hi): (f64, f64)| lo.is_finite() && hi.is_finite() && lo <= hi;
        for (name, value) in [("snr_db", self.snr_db), ("gain_db", self.gain_db)] {
            if !range(value) {
                return Err(setting(name, format!("{value:?}"), "two numbers, the lower first"));
            }
        }
        for (name, value) in
            [("second_noise", self.second_noise), ("tilt", self.tilt), ("reverberation", self.reverberation)]
        {
            if !(0.0..=1.0).contains(&value) {
                return Err(setting(name, value.to_string(), "a probability"));
            }
        }
        if !(self.valid > 0.0 && self.valid < 1.0) {
            return Err(setting("valid", self.valid.to_string(), "a share above 0 and below 1"));
        }
        if self.segment_size < 1600 || self.valid_size < 8000 {
            let got = format!("{} and {}", self.segment_size, self.valid_size);
            return Err(setting("segment_size, valid_size", got, "at least 1600 and 8000"));
        }
        if !(0.0..10.0).contains(&self.max_rt60) || self.valid_clips == 0 {
            let got = format!("{} and {}", self.max_rt60, self.valid_clips);
            return Err(setting("max_rt60, valid_clips", got, "0 to 10 s, and at least 1"));
        }
        Ok(())
    }
}

/// Clean speech and noise in memory, split into what is trained on and what is held out.
#[derive(Debug)]
pub struct Mixtures {
    cfg: MixtureConfig,
    sample_rate: u32,
    train: Sources,
    valid: Sources,
    fingerprint: String,
}

/// Clips to mix from.
#[derive(Debug, Default)]
struct Sources {
    speech: Vec<Vec<f32>>,
    /// Where each clip of speech is from.
    paths: Vec<PathBuf>,
    noise: Vec<Vec<f32>>,
    /// Samples of speech up to and including each clip, so that every sample is as likely as any other.
    ends: Vec<usize>,
}

/// A noisy signal and the clean one in it, of the same length.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Speech and noise.
    pub noisy: Vec<f32>,
    /// Speech.
    pub clean: Vec<f32>,
}

impl Mixtures {
    /// From folders of speech and of noise, at the given rate.
    ///
    /// # Errors
    /// Folders without audio, files that cannot be read, too few of them to hold some out, and pairs of clean and noisy
    /// recordings.
    pub fn load(clean: &[PathBuf], noise: &[PathBuf], sample_rate: u32, cfg: &MixtureConfig) -> Result<Self> {
        let read = |folders: &[PathBuf]| -> Result<Vec<(PathBuf, Vec<f32>)>> {
            let mut clips = Vec::new();
            for path in folders.iter().map(|folder| files_of(folder)).collect::<Result<Vec<_>>>()?.concat() {
                let samples = read_mono(&path, sample_rate)?;
                clips.push((path, samples));
            }
            Ok(clips)
        };
        let (clean, noise) = (read(clean)?, read(noise)?);
        refuse_pairs(&clean, &noise)?;
        Self::new(clean, noise, sample_rate, cfg)
    }

    /// From generated voices and noises.
    ///
    /// # Errors
    /// Impossible settings.
    pub fn generated(cfg: &MixtureConfig) -> Result<Self> {
        let name = |kind: &str, i: u64| PathBuf::from(format!("generated {kind} {i}"));
        let voices = (0..24).map(|i| (name("voice", i), sample::voice(i, 4.0))).collect();
        let noises = (0..12).map(|i| (name("noise", i), sample::noise(i, 8.0))).collect();
        Self::new(voices, noises, sample::SAMPLE_RATE, cfg)
    }

    fn new(
        speech: Vec<(PathBuf, Vec<f32>)>,
        noise: Vec<(PathBuf, Vec<f32>)>,
        sample_rate: u32,
        cfg: &MixtureConfig,
    ) -> Result<Self> {
        cfg.validate()?;
        for (path, samples) in speech.iter().chain(&noise) {
            if samples.iter().all(|&x| x == 0.0) {
                return Err(Error::audio(path, "the file is silent: remove it from the folder"));
            }
        }
        let mut hash = String::new();
        for (path, samples) in speech.iter().chain(&noise) {
            let bytes: Vec<u8> = samples.iter().flat_map(|x| x.to_le_bytes()).collect();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            hash.push_str(&format!("{name} {}\n", mamba_datasets::job::sha256(&bytes)));
        }
        let (mut train, mut valid) = (Sources::default(), Sources::default());
        let held_out = Fractions { valid: cfg.valid, test: 0.0 };
        let split = index_split(speech.len(), held_out, cfg.split_seed)?;
        for (i, (path, samples)) in speech.into_iter().enumerate() {
            let side = if split.valid.contains(&i) { &mut valid } else { &mut train };
            side.ends.push(side.ends.last().unwrap_or(&0) + samples.len());
            side.speech.push(samples);
            side.paths.push(path);
        }
        let split = index_split(noise.len(), held_out, cfg.split_seed)?;
        for (i, (_, samples)) in noise.into_iter().enumerate() {
            let side = if split.valid.contains(&i) { &mut valid } else { &mut train };
            side.noise.push(samples);
        }
        let fingerprint = mamba_datasets::job::sha256(hash.as_bytes());
        Ok(Self { cfg: cfg.clone(), sample_rate, train, valid, fingerprint })
    }

    /// Seconds of speech to train on and held out, and numbers of noises.
    pub fn describe(&self) -> String {
        let seconds = |s: &Sources| *s.ends.last().unwrap_or(&0) as f64 / f64::from(self.sample_rate);
        format!(
            "{:.0} s of speech and {} noises to train on; {:.0} s and {} noises held out",
            seconds(&self.train),
            self.train.noise.len(),
            seconds(&self.valid),
            self.valid.noise.len()
        )
    }

    /// Identifies the clips.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Training example `number` of a run with `seed`: of `segment_size` samples.
    pub fn train_pair(&self, seed: u64, number: u64) -> Pair {
        let mut rng = Rng::stream(seed, "mixture", number);
        let n = self.cfg.segment_size;
        let sources = &self.train;
        let at = rng.below(*sources.ends.last().expect("there is speech"));
        let clip = &sources.speech[sources.ends.partition_point(|&end| end <= at)];
        let speech = if clip.len() >= n {
            let start = rng.below(clip.len() - n + 1);
            clip[start..start + n].to_vec()
        } else {
            // A shorter clip begins somewhere in the segment, and another one fills the rest.
            let mut speech = vec![0.0; n];
            let start = rng.below(n - clip.len() + 1);
            speech[start..start + clip.len()].copy_from_slice(clip);
            let other = &sources.speech[rng.below(sources.speech.len())];
            let rest = start + clip.len();
            let len = other.len().min(n - rest);
            speech[rest..rest + len].copy_from_slice(&other[..len]);
            speech
        };
        self.mix(sources, speech, &mut rng)
    }

    /// The validation mixtures: always the same.
    pub fn valid_pairs(&self) -> Vec<Pair> {
        let pair = |i: usize| {
            let mut rng = Rng::stream(self.cfg.split_seed, "validation", i as u64);
            let clip = &self.valid.speech[i % self.valid.speech.len()];
            self.mix(&self.valid, clip[..clip.len().min(self.cfg.valid_size)].to_vec(), &mut rng)
        };
        (0..self.cfg.valid_clips).map(pair).collect()
    }

    /// Where the speech of validation mixture `i` is from.
    pub fn valid_clip(&self, i: usize) -> &Path {
        &self.valid.paths[i % self.valid.paths.len()]
    }

    fn mix(&self, sources: &Sources, mut speech: Vec<f32>, rng: &mut Rng) -> Pair {
        let n = speech.len();
        let noises = 1 + usize::from(rng.uniform() < self.cfg.second_noise);
        let mut noise = vec![0.0; n];
        for _ in 0..noises {
            let clip = &sources.noise[rng.below(sources.noise.len())];
            let (start, gain) = (rng.below(clip.len()), rng.uniform_in(0.3, 1.0) as f32);
            let level = gain / rms(clip).max(1e-9);
            noise.iter_mut().enumerate().for_each(|(i, x)| *x += level * clip[(start + i) % clip.len()]);
        }
        for signal in [&mut speech, &mut noise] {
            if rng.uniform() < self.cfg.tilt {
                tilt(signal, rng.uniform_in(-0.33, 0.33) as f32);
            }
        }
        let mut heard = speech.clone();
        if rng.uniform() < self.cfg.reverberation {
            (heard, speech) = self.reverberated(&speech, rng);
        }
        let snr = rng.uniform_in(self.cfg.snr_db.0, self.cfg.snr_db.1);
        let level = rng.uniform_in(self.cfg.gain_db.0, self.cfg.gain_db.1);
        let active = active_rms(&heard, self.sample_rate);
        let factor = active / rms(&noise).max(1e-9) * decibels(-snr);
        let mut noisy: Vec<f32> = heard.iter().zip(&noise).map(|(&s, &n)| s + factor * n).collect();
        // -26 dB of full scale is a usual level; nothing may be clipped.
        let peak = noisy.iter().fold(0f32, |m, x| m.max(x.abs())).max(1e-9);
        let gain = (0.05 * decibels(level) / rms(&noisy).max(1e-9)).min(0.99 / peak);
        noisy.iter_mut().chain(&mut speech).for_each(|x| *x *= gain);
        Pair { noisy, clean: speech }
    }

    /// Speech in a room of random decay, whole and only its first 50 ms.
    fn reverberated(&self, speech: &[f32], rng: &mut Rng) -> (Vec<f32>, Vec<f32>) {
        let rate = f64::from(self.sample_rate);
        let rt60 = rng.uniform_in(0.1, self.cfg.max_rt60.max(0.1));
        let (taps, early) = ((rt60 * rate * 0.6) as usize + 1, (0.05 * rate) as usize);
        let room: Vec<f32> = (0..taps)
            .map(|i| match i {
                0 => 1.0,
                // Sparse reflections: about one sample in eight.
                _ if rng.below(8) > 0 => 0.0,
                _ => (0.3 * rng.normal() * 10f64.powf(-3.0 * i as f64 / rate / rt60)) as f32,
            })
            .collect();
        let (mut all, mut first) = (vec![0.0; speech.len()], vec![0.0; speech.len()]);
        for (delay, &gain) in room.iter().enumerate().filter(|(_, gain)| **gain != 0.0) {
            let Some(rest) = speech.len().checked_sub(delay) else { break };
            all[delay..].iter_mut().zip(&speech[..rest]).for_each(|(y, &x)| *y += gain * x);
            if delay < early {
                first[delay..].iter_mut().zip(&speech[..rest]).for_each(|(y, &x)| *y += gain * x);
            }
        }
        (all, first)
    }
}

/// Refuses noise that is the clean speech with noise, under the same file names: a model would learn to take speech for
/// noise. Numbered files may share their names and nothing else, so the sound decides.
fn refuse_pairs(clean: &[(PathBuf, Vec<f32>)], noise: &[(PathBuf, Vec<f32>)]) -> Result<()> {
    let mut by_name: BTreeMap<_, Vec<_>> = BTreeMap::new();
    clean.iter().for_each(|clip| by_name.entry(clip.0.file_stem()).or_default().push(clip));
    let mut pairs = Vec::new();
    for (noise, samples) in noise {
        let namesakes = by_name.get(&noise.file_stem()).into_iter().flatten();
        let likeness =
            namesakes.map(|(clean, of_clean)| (correlation(of_clean, samples).abs(), clean, noise));
        pairs.extend(likeness.max_by(|a, b| a.0.total_cmp(&b.0)));
    }
    let mean = pairs.iter().map(|(likeness, ..)| likeness).sum::<f64>() / pairs.len() as f64;
    match pairs.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((_, clean, noise)) if mean > ALIKE => {
            let reason = format!(
                "this noise holds the speech of {}: --noise takes noise without speech, and pairs of clean and noisy \
                 recordings are not trained on; mix the clean ones with other noise",
                clean.display()
            );
            Err(Error::audio(noise, reason))
        }
        _ => Ok(()),
    }
}

/// Speech has a correlation above this with itself in noise 10 dB louder; other sound has one near 0.
const ALIKE: f64 = 0.2;

/// Of two signals over their common length, without their means.
fn correlation(a: &[f32], b: &[f32]) -> f64 {
    let common = a.len().min(b.len());
    let (a, b) = (&a[..common], &b[..common]);
    let mean = |x: &[f32]| x.iter().map(|&x| f64::from(x)).sum::<f64>() / common.max(1) as f64;
    let (of_a, of_b) = (mean(a), mean(b));
    let (mut dot, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b).map(|(a, b)| (f64::from(*a) - of_a, f64::from(*b) - of_b)) {
        (dot, aa, bb) = (dot + a * b, aa + a * a, bb + b * b);
    }
    dot / (aa * bb).sqrt().max(1e-30)
}

/// The files of a folder, or the file itself.
fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() { Ok(vec![path.to_path_buf()]) } else { files_in(path) }
}

/// The factor that a level in dB stands for.
pub(crate) fn decibels(db: f64) -> f32 {
    10f64.powf(db / 20.0) as f32
}

/// Root of the mean square.
pub(crate) fn rms(x: &[f32]) -> f32 {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    (squares / x.len().max(1) as f64).sqrt() as f32
}

/// Root mean square over the 20 ms frames within 40 dB of the loudest.
fn active_rms(x: &[f32], sample_rate: u32) -> f32 {
    let frames: Vec<f64> =
        x.chunks((sample_rate / 50).max(1) as usize).map(|frame| f64::from(rms(frame)).powi(2)).collect();
    let loudest = frames.iter().copied().fold(0.0, f64::max);
    let active: Vec<f64> = frames.into_iter().filter(|&p| p > loudest * 1e-4).collect();
    (active.iter().sum::<f64>() / active.len().max(1) as f64).sqrt() as f32
}

/// `y[i] = x[i] + a·x[i - 1]`: up to 6 dB between low and high.
pub(crate) fn tilt(x: &mut [f32], a: f32) {
    let mut last = 0.0;
    for x in x {
        (last, *x) = (*x, *x + a * last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_offset_is_no_likeness() {
        let [voice, noise] = [crate::sample::voice(1, 0.5), crate::sample::noise(2, 0.5)];
        let offset = |x: &[f32]| x.iter().map(|x| x + 0.5).collect::<Vec<f32>>();
        assert!(correlation(&offset(&voice), &offset(&noise)).abs() < 0.1);
        let noisy: Vec<f32> = voice.iter().zip(&noise).map(|(v, n)| v + n).collect();
        assert!(correlation(&voice, &noisy) > ALIKE);
    }
}
