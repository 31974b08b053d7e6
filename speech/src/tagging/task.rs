//! Training a tagging model, and what it is measured by.

use super::augment::AugmentConfig;
use super::clips::Clips;
use super::features::Mel;
use super::model::{AudioMamba, TaggerConfig};
use super::tagger::Tagger;
use crate::audio::read_mono;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use mamba_core::run_folder::Metric;
use mamba_core::train::{StepLoss, Task, TrainConfig};
use mamba_core::{Params, Rng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that decides a run, besides the clips.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaggingConfig {
    /// The model.
    pub model: TaggerConfig,
    /// Optimizer and schedule.
    pub train: TrainConfig,
    /// Changes of the training clips.
    pub augment: AugmentConfig,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f64,
}

impl TaggingConfig {
    /// Refuses impossible values.
    ///
    /// # Errors
    /// The first of them.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.model.validate()?;
        self.train.validate()?;
        self.augment.validate()?;
        if !(0.0..1.0).contains(&self.label_smoothing) {
            let got = self.label_smoothing.to_string();
            return Err(Error::Setting { name: "label_smoothing", got, expected: "0 up to 1".into() }.into());
        }
        Ok(())
    }
}

/// Clips in memory, at the rate of a model.
#[derive(Clone, Debug)]
pub struct Sounds {
    /// Name, samples and class of each.
    sounds: Vec<(String, Vec<f32>, u32)>,
}

impl Sounds {
    /// Reads clips, whose labels must be among `labels`.
    ///
    /// # Errors
    /// Files that cannot be read, and other classes.
    pub fn read(clips: &Clips, labels: &[String], sample_rate: u32) -> Result<Self> {
        let read = |clip: &super::Clip| {
            let class = labels.iter().position(|l| *l == clip.label).ok_or_else(|| {
                let reason = format!("its class {:?} is none of {}", clip.label, labels.join(", "));
                Error::audio(&clip.path, reason)
            })?;
            Ok((clip.path.display().to_string(), read_mono(&clip.path, sample_rate)?, class as u32))
        };
        Ok(Self { sounds: clips.clips.par_iter().map(read).collect::<Result<_>>()? })
    }

    /// From samples and their classes.
    pub fn new(sounds: impl IntoIterator<Item = (Vec<f32>, u32)>) -> Self {
        let named = sounds.into_iter().enumerate();
        Self { sounds: named.map(|(i, (samples, class))| (format!("sound {i}"), samples, class)).collect() }
    }

    /// Number of clips.
    pub fn len(&self) -> usize {
        self.sounds.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sounds.is_empty()
    }

    /// Samples and class of each.
    pub fn iter(&self) -> impl Iterator<Item = (&[f32], u32)> {
        self.sounds.iter().map(|(_, samples, class)| (samples.as_slice(), *class))
    }

    fn fingerprint(&self) -> String {
        let hash = |(_, samples, class): &(String, Vec<f32>, u32)| {
            let bytes: Vec<u8> = samples.iter().flat_map(|x| x.to_le_bytes()).collect();
            format!("{class} {}\n", mamba_datasets::job::sha256(&bytes))
        };
        mamba_datasets::job::sha256(self.sounds.iter().map(hash).collect::<String>().as_bytes())
    }
}

/// How many clips of each class were taken for which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// The classes.
    pub labels: Vec<String>,
    /// Rows are true classes, columns predicted ones.
    pub counts: Vec<Vec<u64>>,
}

impl Confusion {
    /// Without any clip.
    pub fn new(labels: &[String]) -> Self {
        Self { labels: labels.to_vec(), counts: vec![vec![0; labels.len()]; labels.len()] }
    }

    /// Counts a clip.
    pub fn add(&mut self, truth: usize, predicted: usize) {
        self.counts[truth][predicted] += 1;
    }

    /// Clips.
    pub fn clips(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// Share of the clips whose class was found.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.counts.len()).map(|i| self.counts[i][i]).sum();
        right as f64 / self.clips() as f64
    }

    /// The mean over the classes that occur of the share of their clips that was found.
    pub fn mean_recall(&self) -> f64 {
        let recalls: Vec<f64> = self
            .counts
            .iter()
            .enumerate()
            .map(|(i, row)| (row[i], row.iter().sum::<u64>()))
            .filter(|(_, all)| *all > 0)
            .map(|(right, all)| right as f64 / all as f64)
            .collect();
        recalls.iter().sum::<f64>() / recalls.len() as f64
    }
}

/// What a model makes of clips whose classes are known: the confusion, and the mean cross-entropy in nats.
///
/// # Errors
/// None that a caller could cause.
pub fn evaluate(tagger: &Tagger, sounds: &Sounds) -> candle_core::Result<(Confusion, f64)> {
    let mut confusion = Confusion::new(tagger.labels());
    let mut nats = 0.0;
    let clips: Vec<&[f32]> = sounds.iter().map(|(samples, _)| samples).collect();
    for (probabilities, (_, class)) in tagger.tag(&clips)?.iter().zip(sounds.iter()) {
        nats -= f64::from(probabilities[class as usize].max(f32::MIN_POSITIVE)).ln();
        confusion.add(class as usize, Tagger::best(probabilities));
    }
    let n = sounds.len() as f64;
    Ok((confusion, nats / n))
}

/// Tagging as the training loop sees it.
pub struct Tagging<'a> {
    cfg: &'a TaggingConfig,
    train: &'a Sounds,
    valid: &'a Sounds,
    params: Params,
    model: AudioMamba,
    mel: Mel,
}

impl<'a> Tagging<'a> {
    /// A run from `params`. Without validation clips the last weights are kept.
    ///
    /// # Errors
    /// Impossible settings, no clip to train on, parameters of another shape.
    pub fn new(
        cfg: &'a TaggingConfig,
        train: &'a Sounds,
        valid: &'a Sounds,
        params: Params,
    ) -> mamba_core::Result<Self> {
        cfg.validate()?;
        if train.is_empty() {
            return Err(Error::Signal("no clip is left to train on".into()).into());
        }
        let model = AudioMamba::new(&cfg.model, &params.builder())?;
        params.check()?;
        Ok(Self { cfg, train, valid, params, model, mel: Mel::new(&cfg.model.mel)? })
    }

    /// The loss of some training clips, each changed anew: cross-entropy against smoothed targets.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn loss(&self, clips: &[usize], seed: u64, number: u64) -> candle_core::Result<Tensor> {
        let window = self.cfg.model.frames * self.cfg.model.mel.n_mels;
        let images: Vec<f32> = clips
            .par_iter()
            .enumerate()
            .flat_map_iter(|(i, &clip)| {
                let mut rng = Rng::stream(seed, "augment", number + i as u64);
                let image = self.cfg.augment.features(&self.train.sounds[clip].1, &self.mel, &mut rng);
                let (have, n) = (image.frames(), image.n_mels);
                let frames = self.cfg.model.frames;
                let mut out = vec![0.0; window];
                match have.checked_sub(frames) {
                    Some(spare) => {
                        let start = rng.below(spare + 1);
                        out.copy_from_slice(&image.values[start * n..(start + frames) * n]);
                    }
                    None => {
                        let start = rng.below(frames - have + 1);
                        out[start * n..(start + have) * n].copy_from_slice(&image.values);
                    }
                }
                out
            })
            .collect();
        let device = self.params.device();
        let shape = (clips.len(), self.cfg.model.frames, self.cfg.model.mel.n_mels);
        let images = Tensor::from_vec(images, shape, device)?.to_dtype(self.params.dtype())?;
        let mut rng = Rng::stream(seed, "dropout", number);
        let logits = self.model.forward(&images, Some(&mut rng))?.to_dtype(DType::F32)?; // (B, classes)
        let classes: Vec<u32> = clips.iter().map(|&clip| self.train.sounds[clip].2).collect();
        let log_p = candle_nn::ops::log_softmax(&logits, 1)?;
        let of_class = log_p.gather(&Tensor::new(classes, device)?.unsqueeze(1)?, 1)?.mean_all()?;
        let smoothing = self.cfg.label_smoothing;
        ((of_class * (1.0 - smoothing))? + (log_p.mean_all()? * smoothing)?)?.neg()
    }
}

impl Task for Tagging<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        serde_json::to_value(&self.cfg.model).expect("a config of plain values has a JSON form")
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let TrainConfig { batch_size, accumulate, seed, .. } = self.cfg.train;
        let first = (step * accumulate as u64 + micro as u64) * batch_size as u64;
        // Every clip once in each pass, in an order that depends on the pass alone.
        let n = self.train.len() as u64;
        let mut order: Option<(u64, Vec<usize>)> = None;
        let clips: Vec<usize> = (first..first + batch_size as u64)
            .map(|number| {
                let (pass, place) = (number / n, (number % n) as usize);
                if order.as_ref().is_none_or(|(of, _)| *of != pass) {
                    order = Some((pass, Rng::stream(seed, "order", pass).permutation(n as usize)));
                }
                order.as_ref().map_or(0, |(_, order)| order[place])
            })
            .collect();
        Ok(StepLoss { loss: self.loss(&clips, seed, first)?, items: batch_size })
    }

    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        if self.valid.is_empty() {
            return Ok(Vec::new());
        }
        let tagger = Tagger::new(
            &self.cfg.model,
            self.params.to_tensors(),
            self.params.dtype(),
            self.params.device(),
        )?;
        let (confusion, nats) = evaluate(&tagger, self.valid)?;
        Ok(vec![Metric::up("accuracy", confusion.accuracy()), Metric::down("loss", nats)])
    }

    fn data_fingerprint(&self) -> String {
        let (train, valid) = (self.train.fingerprint(), self.valid.fingerprint());
        let text = format!("{:?} {} {train} {valid}", self.cfg.augment, self.cfg.label_smoothing);
        mamba_datasets::job::sha256(text.as_bytes())
    }

    fn unit(&self) -> &'static str {
        "clips"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_worked_by_hand() {
        let mut confusion = Confusion::new(&["a".into(), "b".into(), "never".into()]);
        for (truth, predicted) in [(0, 0), (0, 0), (0, 1), (1, 1)] {
            confusion.add(truth, predicted);
        }
        assert_eq!(confusion.clips(), 4);
        assert_eq!(confusion.accuracy(), 0.75);
        assert!(
            (confusion.mean_recall() - (2.0 / 3.0 + 1.0) / 2.0).abs() < 1e-12,
            "a class without clips is no class"
        );
    }
}
