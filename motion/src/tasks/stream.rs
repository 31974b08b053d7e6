//! Training of the denoiser of motion itself: some frames before a chunk are given, the chunk's own are noised.

use super::TrainingSet;
use crate::Result;
use crate::conditions::{ClipConditions, DropConfig};
use crate::dataset::Clip;
use crate::diffusion::{Diffusion, DiffusionConfig, Prediction};
use crate::features::{Frame, N_FEATURES};
use crate::join::join;
use crate::models::stream::Frames;
use crate::models::{StreamDenoiser, StreamDenoiserConfig};
use candle_core::{DType, Tensor};
use mamba_core::run_folder::Metric;
use mamba_core::train::{StepLoss, Task, TrainConfig};
use mamba_core::{Params, Rng};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Settings of the training beside its model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamTraining {
    /// The diffusion.
    pub diffusion: DiffusionConfig,
    /// How often conditions are left out.
    pub drop: DropConfig,
    /// Frames of a chunk, which are made at once.
    pub chunk: usize,
    /// Most frames before the chunk.
    pub history: usize,
    /// Share of batches without any frames before the chunk: beginnings.
    pub begin: f64,
    /// Share of motions whose frames before the chunk are of another clip: transitions.
    pub join: f64,
    /// Share of motions of whose chunk some frames are given, its last ones or any: filling in.
    pub fill: f64,
    /// Weight of the error of the change from frame to frame, which keeps motions from trembling. For a model that predicts
    /// x0.
    pub change_weight: f64,
}

impl Default for StreamTraining {
    fn default() -> Self {
        Self {
            diffusion: DiffusionConfig::default(),
            drop: DropConfig::default(),
            chunk: 40,
            history: 60,
            begin: 0.2,
            join: 0.2,
            fill: 0.3,
            change_weight: 1.0,
        }
    }
}

/// Fewest frames of a chunk in training.
const SHORTEST: usize = 8;
/// Most frames that are given at the end of a chunk.
pub const ENDING: usize = 10;
/// Share of frames that are given where any may be.
const ANY: f64 = 0.1;

impl StreamTraining {
    /// Refuses what makes no training.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.diffusion.validate()?;
        let problem = if !(SHORTEST..=2000).contains(&self.chunk) || !(2..=2000).contains(&self.history) {
            Some(format!(
                "chunk {} must lie in {SHORTEST} to 2000, history {} in 2 to 2000",
                self.chunk, self.history
            ))
        } else if [self.begin, self.join, self.fill].iter().any(|share| !(0.0..=1.0).contains(share)) {
            Some(format!(
                "begin {}, join {} and fill {} must lie in 0 to 1",
                self.begin, self.join, self.fill
            ))
        } else {
            let wrong = !(self.change_weight >= 0.0 && self.change_weight.is_finite());
            wrong.then(|| format!("change_weight is {}, expected at least 0", self.change_weight))
        };
        problem
            .map_or(Ok(()), |problem| Err(mamba_core::Error::Config(format!("stream.training: {problem}"))))
    }
}

/// What is stored of a denoiser of motion: all that sampling needs beside the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredStream {
    /// The network.
    pub model: StreamDenoiserConfig,
    /// Its training.
    pub training: StreamTraining,
}

/// A motion of a batch.
struct Example {
    frames: Vec<Frame>,
    /// Frames before the chunk.
    history: usize,
    /// Whether each frame is given.
    given: Vec<bool>,
    /// The clip that the chunk is of.
    clip: usize,
}

/// Training of the denoiser of motion.
pub struct StreamTask<'a> {
    cfg: StoredStream,
    train: &'a TrainConfig,
    set: TrainingSet<'a>,
    conditions: ClipConditions,
    valid_conditions: ClipConditions,
    params: Params,
    denoiser: StreamDenoiser,
    diffusion: Diffusion,
}

impl<'a> StreamTask<'a> {
    /// A training of `params` on the clips of `set`, and what is known of them.
    pub fn new(
        cfg: StoredStream,
        train: &'a TrainConfig,
        set: TrainingSet<'a>,
        [conditions, valid_conditions]: [ClipConditions; 2],
        params: Params,
    ) -> Result<Self> {
        cfg.training.validate()?;
        let denoiser = StreamDenoiser::new(&cfg.model, &params.builder())?;
        params.check()?;
        let diffusion = Diffusion::new(&cfg.training.diffusion, "")?;
        Ok(Self { cfg, train, set, conditions, valid_conditions, params, denoiser, diffusion })
    }

    /// Motions of about the same lengths, so that little of a batch is padding.
    fn examples(&self, clips: &[&Clip], which: &[usize], rng: &mut Rng) -> Result<Vec<Example>> {
        let StreamTraining { chunk, history, begin, .. } = self.cfg.training;
        let history = if rng.uniform() < begin { 0 } else { 1 + rng.below(history) };
        let chunk = if rng.uniform() < 0.3 { SHORTEST + rng.below(chunk - SHORTEST + 1) } else { chunk };
        which.iter().map(|&clip| self.example(clips, clip, (history, chunk), rng)).collect()
    }

    fn example(
        &self,
        clips: &[&Clip],
        clip: usize,
        (history, chunk): (usize, usize),
        rng: &mut Rng,
    ) -> Result<Example> {
        let StreamTraining { join: transition, fill, .. } = self.cfg.training;
        let frames = &clips[clip].frames;
        let (frames, history) = if history >= 2 && rng.uniform() < transition {
            let before = clips[rng.below(clips.len())];
            let before = crop(&before.frames, history, rng);
            let after = crop(frames, chunk, rng);
            (join(&[before, after])?, before.len())
        } else {
            let whole = crop(frames, history + chunk, rng);
            // Of a clip that is too short for both, the chunk takes at most half.
            let chunk =
                if whole.len() < history + chunk && history > 0 { chunk.min(whole.len() / 2) } else { chunk };
            (whole.to_vec(), whole.len() - chunk.min(whole.len()))
        };
        let n = frames.len();
        let mut given: Vec<bool> = (0..n).map(|i| i < history).collect();
        if rng.uniform() < fill {
            if rng.uniform() < 0.5 {
                let ending = 1 + rng.below(ENDING.min((n - history) / 2).max(1));
                given[n - ending..].fill(true);
            } else {
                given[history..].iter_mut().for_each(|given| *given = rng.uniform() < ANY);
            }
            given[history] = false;
        }
        Ok(Example { frames, history, given, clip })
    }

    fn loss(
        &self,
        denoiser: &StreamDenoiser,
        examples: &[Example],
        conditions: &ClipConditions,
        drop: bool,
        rng: &mut Rng,
    ) -> Result<Tensor> {
        let (training, device, dtype) = (&self.cfg.training, self.params.device(), self.params.dtype());
        let (b, l) = (examples.len(), examples.iter().map(|example| example.frames.len()).max().unwrap_or(0));
        let (mut values, mut given, mut free) = (Vec::new(), vec![0f32; b * l], vec![0f32; b * l]);
        for (row, example) in examples.iter().enumerate() {
            values.extend(self.set.standard.forward(&example.frames));
            values.resize((row + 1) * l * N_FEATURES, 0.0);
            for (i, &is_given) in example.given.iter().enumerate() {
                if is_given { given[row * l + i] = 1.0 } else { free[row * l + i] = 1.0 }
            }
        }
        let x0 = Tensor::from_vec(values, (b, l, N_FEATURES), device)?.to_dtype(dtype)?;
        let given = Tensor::from_vec(given, (b, l, 1), device)?.to_dtype(dtype)?;
        let free = Tensor::from_vec(free, (b, l, 1), device)?.to_dtype(dtype)?;
        let clips: Vec<usize> = examples.iter().map(|example| example.clip).collect();
        let condition = conditions.draw(&clips, drop.then_some(training.drop), rng);
        let steps: Vec<usize> = (0..b).map(|_| rng.below(self.diffusion.steps())).collect();
        let noise = rng.normal_tensor(x0.shape().clone(), 0.0, 1.0, dtype, device)?;
        let noised = self.diffusion.q_sample(&x0, &steps, &noise)?;
        let seen = (x0.broadcast_mul(&given)? + noised.broadcast_mul(&free)?)?;
        // As when motion is made, what is given before the chunk came in chunks.
        let chunks: Vec<Vec<usize>> = examples
            .iter()
            .map(|example| {
                let (whole, rest) = (example.history / training.chunk, example.history % training.chunk);
                let mut lengths = vec![training.chunk; whole];
                lengths.extend([rest, example.frames.len() - example.history]);
                lengths
            })
            .collect();
        let output =
            denoiser.forward(&Frames::chunked(seen, given.clone(), &chunks)?, &steps, &condition, None)?;
        let target = self.diffusion.target(&x0, &steps, &noise)?;
        let mut losses = self.diffusion.losses(&output, &target, Some(&free))?; // (B)
        if training.diffusion.prediction == Prediction::X0 && training.change_weight > 0.0 && l > 1 {
            let error = (output - target)?.broadcast_mul(&free)?;
            let change = (error.narrow(1, 1, l - 1)? - error.narrow(1, 0, l - 1)?)?;
            // Both frames of a pair lie in the motion, and one of them is free.
            let inside = (&given + &free)?;
            let pairs = (inside.narrow(1, 1, l - 1)? * inside.narrow(1, 0, l - 1)?)?;
            let one_free = free.narrow(1, 1, l - 1)?.maximum(&free.narrow(1, 0, l - 1)?)?;
            let changes =
                self.diffusion.losses(&change, &change.zeros_like()?, Some(&(pairs * one_free)?))?;
            losses = (losses + (changes * training.change_weight)?)?;
        }
        let weights: Vec<f32> = self.diffusion.loss_weights(&steps).iter().map(|&w| w as f32).collect();
        let weights = Tensor::from_vec(weights, b, device)?.to_dtype(dtype)?;
        Ok((losses * weights)?.mean_all()?)
    }
}

/// A random part of so many frames, or all of fewer.
fn crop<'a>(frames: &'a [Frame], length: usize, rng: &mut Rng) -> &'a [Frame] {
    let length = length.min(frames.len());
    let start = rng.below(frames.len() - length + 1);
    &frames[start..start + length]
}

/// Motions of a validation batch.
const SCORE_BATCH: usize = 16;
/// Motions of each clip in validation.
const LOOKS: usize = 2;

impl Task for StreamTask<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        serde_json::to_value(&self.cfg).expect("a config of plain values has a JSON form")
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let index = step * self.train.accumulate as u64 + micro as u64;
        let mut rng = Rng::stream(self.train.seed, "stream batch", index);
        let which: Vec<usize> = (0..self.train.batch_size).map(|_| rng.below(self.set.train.len())).collect();
        let examples = self.examples(&self.set.train, &which, &mut rng)?;
        let loss = self.loss(&self.denoiser, &examples, &self.conditions, true, &mut rng)?;
        Ok(StepLoss { loss, items: examples.iter().map(|example| example.frames.len()).sum() })
    }

    /// The loss on held-out clips, with the same parts, steps and noise every time.
    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        let frozen = Params::frozen(self.params.to_tensors(), DType::F32, self.params.device());
        let denoiser = StreamDenoiser::new(&self.cfg.model, &frozen.builder())?;
        let which: Vec<usize> = (0..self.set.valid.len()).flat_map(|clip| [clip; LOOKS]).collect();
        let mut loss = 0.0;
        for (i, batch) in which.chunks(SCORE_BATCH).enumerate() {
            let mut rng = Rng::stream(0, "stream valid", i as u64);
            let examples = self.examples(&self.set.valid, batch, &mut rng)?;
            let part = self.loss(&denoiser, &examples, &self.valid_conditions, false, &mut rng)?;
            loss += batch.len() as f64 * f64::from(part.to_scalar::<f32>()?);
        }
        if which.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![Metric::down("loss", loss / which.len() as f64)])
    }

    fn data_fingerprint(&self) -> String {
        self.set.fingerprint.clone()
    }

    fn unit(&self) -> &'static str {
        "frames"
    }
}
