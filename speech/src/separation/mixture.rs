//! Mixtures of talkers made while training runs: a piece of each of some talkers, at random levels.
//!
//! Everything is a pure function of seed and number, so that a resumed run sees the same. Clips are held out by sentence:
//! what follows the last `_` in the name of a file (`arctic_a0050.wav` is sentence `a0050`), so that a sentence that several
//! talkers read is held out of all of them.

use crate::audio::{files_in, read_mono};
use crate::mixture::{decibels, rms};
use crate::{Error, Result, sample};
use mamba_core::Rng;
use mamba_datasets::{Fractions, index_split};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// How talkers are mixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TalkConfig {
    /// Samples in a training segment.
    pub segment_size: usize,
    /// Each talker's level is up or down from a common one by at most this many dB.
    pub level_db: f64,
    /// Speed and pitch of a training talker change by at most this part, up and down.
    pub speed: f64,
    /// Share of the sentences that are held out for validation.
    pub valid: f64,
    /// Share of the sentences that are held out for testing.
    pub test: f64,
    /// Validation mixtures.
    pub valid_mixtures: usize,
    /// Longest held-out mixture in samples.
    pub longest: usize,
    /// Seed of the split and of the held-out mixtures, apart from that of the run.
    pub split_seed: u64,
}

impl Default for TalkConfig {
    fn default() -> Self {
        Self {
            segment_size: 16_384,
            level_db: 2.5,
            speed: 0.0,
            valid: 0.1,
            test: 0.1,
            valid_mixtures: 16,
            longest: 40_000,
            split_seed: 0,
        }
    }
}

impl TalkConfig {
    /// Refuses impossible values.
    ///
    /// # Errors
    /// The first of them.
    pub fn validate(&self) -> Result<()> {
        let setting =
            |name, got: String, expected: &str| Error::Setting { name, got, expected: expected.into() };
        if !(0.0..=30.0).contains(&self.level_db) {
            return Err(setting("level_db", self.level_db.to_string(), "0 to 30"));
        }
        if !(0.0..=0.5).contains(&self.speed) {
            return Err(setting("speed", self.speed.to_string(), "0 to 0.5"));
        }
        if self.segment_size < 1600 || self.longest < 1600 {
            let got = format!("{} and {}", self.segment_size, self.longest);
            return Err(setting("segment_size, longest", got, "at least 1600"));
        }
        if self.valid_mixtures == 0 {
            return Err(setting("valid_mixtures", "0".into(), "at least 1"));
        }
        Ok(())
    }
}

/// Which of the sentences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Trained on.
    Train,
    /// Held out: they choose the weights.
    Valid,
    /// Held out: measured by `eval`.
    Test,
}

/// Some talkers at once, and each of them, all of one length.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// Their sum.
    pub mixture: Vec<f32>,
    /// The talkers.
    pub talkers: Vec<Vec<f32>>,
    /// Who they are.
    pub names: Vec<String>,
}

/// Read speech in memory, by talker and part.
#[derive(Debug)]
pub struct Talk {
    cfg: TalkConfig,
    n_src: usize,
    sample_rate: u32,
    talkers: Vec<Talker>,
    fingerprint: String,
}

#[derive(Debug)]
struct Talker {
    name: String,
    clips: BTreeMap<Part, Vec<Vec<f32>>>,
}

impl Talker {
    fn clips(&self, part: Part) -> &[Vec<f32>] {
        self.clips.get(&part).map_or(&[], Vec::as_slice)
    }

    fn samples(&self, part: Part) -> usize {
        self.clips(part).iter().map(Vec::len).sum()
    }
}

impl Talk {
    /// From folders: each folder in one of them is a talker, with all clips below it; one that holds clips itself is a
    /// talker too.
    ///
    /// # Errors
    /// Folders without audio, files that cannot be read, fewer talkers or sentences than are needed.
    pub fn load(folders: &[PathBuf], n_src: usize, sample_rate: u32, cfg: &TalkConfig) -> Result<Self> {
        let mut clips = Vec::new();
        for folder in folders {
            for path in files_in(folder)? {
                let below = path.strip_prefix(folder).unwrap_or(&path).components().collect::<Vec<_>>();
                let name = match below.as_slice() {
                    [talker, _, ..] => talker.as_os_str().to_string_lossy().into_owned(),
                    _ => folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                };
                let samples = read_mono(&path, sample_rate)?;
                if samples.iter().all(|&x| x == 0.0) {
                    return Err(Error::audio(&path, "the file is silent: remove it from the folder"));
                }
                clips.push((name, sentence(&path), samples));
            }
        }
        Self::new(clips, n_src, sample_rate, cfg)
    }

    /// From generated voices, a low one and a high one for each two talkers.
    ///
    /// # Errors
    /// Impossible settings.
    pub fn generated(n_src: usize, sample_rate: u32, cfg: &TalkConfig) -> Result<Self> {
        let talkers = n_src.max(2) as u64;
        let clip = |i: u64| {
            let (talker, sentence) = (i % talkers, i / talkers);
            let pitch = 100.0 * 2f64.powf(talker as f64 / (talkers - 1) as f64);
            let voice = sample::voice_of(pitch, i, 3.0);
            let samples = crate::audio::resample(&voice, sample::SAMPLE_RATE, sample_rate)?;
            Ok((format!("voice {talker}"), sentence.to_string(), samples))
        };
        Self::new((0..12 * talkers).map(clip).collect::<Result<_>>()?, n_src, sample_rate, cfg)
    }

    /// From clips: talker, sentence, samples.
    ///
    /// # Errors
    /// Impossible settings, fewer talkers or sentences than are needed.
    pub fn new(
        clips: Vec<(String, String, Vec<f32>)>,
        n_src: usize,
        sample_rate: u32,
        cfg: &TalkConfig,
    ) -> Result<Self> {
        cfg.validate()?;
        let sentences: Vec<String> = clips
            .iter()
            .map(|(_, sentence, _)| sentence.clone())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let split =
            index_split(sentences.len(), Fractions { valid: cfg.valid, test: cfg.test }, cfg.split_seed)?;
        let part_of = |sentence: &String| {
            let i = sentences.binary_search(sentence).expect("every sentence was collected");
            match (split.valid.contains(&i), split.test.contains(&i)) {
                (true, _) => Part::Valid,
                (_, true) => Part::Test,
                _ => Part::Train,
            }
        };
        let mut talkers: BTreeMap<String, BTreeMap<Part, Vec<Vec<f32>>>> = BTreeMap::new();
        let mut hash = String::new();
        for (name, sentence, samples) in clips {
            let bytes: Vec<u8> = samples.iter().flat_map(|x| x.to_le_bytes()).collect();
            hash.push_str(&format!("{name} {sentence} {}\n", mamba_datasets::job::sha256(&bytes)));
            talkers.entry(name).or_default().entry(part_of(&sentence)).or_default().push(samples);
        }
        let talkers: Vec<Talker> = talkers.into_iter().map(|(name, clips)| Talker { name, clips }).collect();
        let fingerprint = mamba_datasets::job::sha256(hash.as_bytes());
        let talk = Self { cfg: cfg.clone(), n_src, sample_rate, talkers, fingerprint };
        talk.expect_enough(Part::Train)?;
        Ok(talk)
    }

    fn expect_enough(&self, part: Part) -> Result<()> {
        let have: Vec<&str> =
            self.talkers.iter().filter(|t| !t.clips(part).is_empty()).map(|t| t.name.as_str()).collect();
        if have.len() < self.n_src {
            let (n, have) = (self.n_src, have.join(", "));
            let message = format!(
                "mixtures of {n} talkers need {n} of them with {part:?} sentences, here are: {have}; a talker is a \
                 folder, a sentence is what follows the last _ in a name"
            );
            return Err(Error::Signal(message));
        }
        Ok(())
    }

    /// Talkers and seconds of each part.
    pub fn describe(&self) -> String {
        let seconds = |part| {
            self.talkers.iter().map(|t| t.samples(part)).sum::<usize>() as f64 / f64::from(self.sample_rate)
        };
        format!(
            "{} talkers; {:.0} s of speech to train on, {:.0} s and {:.0} s of other sentences held out",
            self.talkers.len(),
            seconds(Part::Train),
            seconds(Part::Valid),
            seconds(Part::Test)
        )
    }

    /// Identifies the clips.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Training example `number` of a run with `seed`: segments that begin anywhere in a clip, each talker with a
    /// different voice. A talker with more speech is heard more often.
    pub fn train_mixture(&self, seed: u64, number: u64) -> Mixture {
        let mut rng = Rng::stream(seed, "talk", number);
        let n = self.cfg.segment_size;
        let talkers = self.draw_talkers(Part::Train, &mut rng);
        let mut signals = Vec::new();
        for &talker in &talkers {
            let clips = self.talkers[talker].clips(Part::Train);
            // A clip that is nowhere loud in the chosen stretch is no talker: another one is drawn.
            let signal = loop {
                let clip = &clips[rng.below(clips.len())];
                let speed = rng.uniform_in(1.0 - self.cfg.speed, 1.0 + self.cfg.speed);
                let clip =
                    if self.cfg.speed > 0.0 { &crate::tagging::augment::faster(clip, speed) } else { clip };
                let mut signal = vec![0.0; n];
                match clip.len().checked_sub(n) {
                    Some(spare) => signal.copy_from_slice(&clip[rng.below(spare + 1)..][..n]),
                    None => {
                        let start = rng.below(n - clip.len() + 1);
                        signal[start..start + clip.len()].copy_from_slice(clip);
                    }
                }
                if rms(&signal) > 0.1 * rms(clip) {
                    break signal;
                }
            };
            signals.push(signal);
        }
        self.mixed(signals, &talkers, &mut rng)
    }

    /// The first `count` held-out mixtures: whole clips, cut to the shortest of each mixture; the same in every run.
    ///
    /// # Errors
    /// No held-out sentences of enough talkers.
    pub fn held_out(&self, part: Part, count: usize) -> Result<Vec<Mixture>> {
        self.expect_enough(part)?;
        let mixture = |number: u64| {
            let mut rng = Rng::stream(self.cfg.split_seed, "held-out talk", number);
            let talkers = self.draw_talkers(part, &mut rng);
            let clips: Vec<&Vec<f32>> = talkers
                .iter()
                .map(|&t| {
                    let clips = self.talkers[t].clips(part);
                    &clips[rng.below(clips.len())]
                })
                .collect();
            let n = clips.iter().map(|c| c.len()).min().unwrap_or(0).min(self.cfg.longest);
            let signals = clips.iter().map(|clip| clip[..n].to_vec()).collect();
            self.mixed(signals, &talkers, &mut rng)
        };
        Ok((0..count as u64).map(mixture).collect())
    }

    /// Different talkers, each as likely as it has speech.
    fn draw_talkers(&self, part: Part, rng: &mut Rng) -> Vec<usize> {
        let mut free: Vec<usize> =
            (0..self.talkers.len()).filter(|&t| !self.talkers[t].clips(part).is_empty()).collect();
        let mut drawn = Vec::new();
        while drawn.len() < self.n_src {
            let total: usize = free.iter().map(|&t| self.talkers[t].samples(part)).sum();
            let mut at = rng.below(total.max(1));
            let place = free
                .iter()
                .position(|&t| {
                    let samples = self.talkers[t].samples(part);
                    let here = at < samples;
                    at = at.saturating_sub(samples);
                    here
                })
                .unwrap_or(0);
            drawn.push(free.remove(place));
        }
        drawn
    }

    /// Brings talkers to their levels and adds them up.
    fn mixed(&self, mut talkers: Vec<Vec<f32>>, who: &[usize], rng: &mut Rng) -> Mixture {
        for talker in &mut talkers {
            let level = 0.05 * decibels(rng.uniform_in(-self.cfg.level_db, self.cfg.level_db));
            let gain = level / rms(talker).max(1e-9);
            talker.iter_mut().for_each(|x| *x *= gain);
        }
        let sum = |i: usize| talkers.iter().map(|t| t[i]).sum();
        let mixture: Vec<f32> = (0..talkers[0].len()).map(sum).collect();
        let names = who.iter().map(|&t| self.talkers[t].name.clone()).collect();
        Mixture { mixture, talkers, names }
    }
}

/// What is read in a clip, told by its name.
fn sentence(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    stem.rsplit('_').next().unwrap_or_default().to_string()
}
