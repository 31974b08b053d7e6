//! The trainings, as the training loop sees them: evaluator, VAE, denoiser of the VAE's latents, and those of the modules
//! below: denoiser of motion itself, grounding.

pub mod grounding;
pub mod stream;

use crate::conditions::{ClipConditions, DropConfig};
use crate::dataset::{Clip, Standard};
use crate::diffusion::{Diffusion, DiffusionConfig};
use crate::features::{Frame, N_FEATURES};
use crate::models::{Denoiser, DenoiserConfig, Evaluator, EvaluatorConfig, MotionVae, VaeConfig};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use mamba_core::run_folder::Metric;
use mamba_core::train::{Prepared, StepLoss, Task, TrainConfig};
use mamba_core::{Params, Rng};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How motions are cut out of clips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CropConfig {
    /// Fewest frames of a motion, where the clip has so many.
    pub min_frames: usize,
    /// Most frames.
    pub max_frames: usize,
}

impl Default for CropConfig {
    fn default() -> Self {
        Self { min_frames: 40, max_frames: 200 }
    }
}

impl CropConfig {
    /// Refuses a range that is none, or reaches beyond what the VAE takes.
    pub fn validate(&self, vae: &VaeConfig) -> mamba_core::Result<()> {
        let Self { min_frames, max_frames } = *self;
        if min_frames < 2 || min_frames > max_frames || max_frames > vae.max_frames {
            return Err(mamba_core::Error::Config(format!(
                "crop: min_frames {min_frames} and max_frames {max_frames} must rise from 2 to vae.max_frames {}",
                vae.max_frames
            )));
        }
        Ok(())
    }
}

/// A batch of motions of unlike length.
pub struct Motions {
    /// Standardised features `(B, L, 263)`, zero beyond a motion's length.
    pub values: Tensor,
    /// Frames of each.
    pub lengths: Vec<usize>,
}

impl Motions {
    /// Parts of clips.
    pub fn new(parts: &[&[Frame]], standard: &Standard, device: &Device) -> Result<Self> {
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut values = Vec::with_capacity(parts.len() * longest * N_FEATURES);
        for (row, part) in parts.iter().enumerate() {
            values.extend(standard.forward(part.iter()));
            values.resize((row + 1) * longest * N_FEATURES, 0.0);
        }
        let values = Tensor::from_vec(values, (parts.len(), longest, N_FEATURES), device)?;
        Ok(Self { values, lengths })
    }

    /// The same where parameters lie, in their type.
    pub fn like(self, params: &Params) -> Result<Self> {
        let values = self.values.to_device(params.device())?.to_dtype(params.dtype())?;
        Ok(Self { values, lengths: self.lengths })
    }
}

/// A random part of each of `count` random clips. One length is drawn for all; shorter clips are taken whole, so that
/// little of a batch is padding.
fn crops<'a>(
    clips: &[&'a Clip],
    count: usize,
    crop: CropConfig,
    rng: &mut Rng,
) -> Vec<(&'a Clip, &'a [Frame])> {
    let length = crop.min_frames + rng.below(crop.max_frames - crop.min_frames + 1);
    let part = |_| {
        let clip = clips[rng.below(clips.len())];
        let length = length.min(clip.frames.len());
        let start = rng.below(clip.frames.len() - length + 1);
        (clip, &clip.frames[start..start + length])
    };
    (0..count).map(part).collect()
}

/// The whole of each clip, or as much as a model takes.
fn starts<'a>(clips: &[&'a Clip], crop: CropConfig) -> Vec<&'a [Frame]> {
    clips.iter().map(|clip| &clip.frames[..clip.frames.len().min(crop.max_frames)]).collect()
}

/// Rows of a validation batch.
const SCORE_BATCH: usize = 16;

/// What all trainings look at.
#[derive(Clone)]
pub struct TrainingSet<'a> {
    /// Clips to train on.
    pub train: Vec<&'a Clip>,
    /// Clips that decide which weights are best; none to keep the latest.
    pub valid: Vec<&'a Clip>,
    /// Standardisation.
    pub standard: &'a Standard,
    /// Lengths.
    pub crop: CropConfig,
    /// Identifies the data.
    pub fingerprint: String,
}

/// Training of the VAE.
pub struct VaeTask<'a> {
    cfg: &'a VaeConfig,
    train: &'a TrainConfig,
    set: TrainingSet<'a>,
    params: Params,
    vae: MotionVae,
    prepared: Prepared<(Result<Motions>, Rng)>,
}

impl<'a> VaeTask<'a> {
    /// A training of `params`.
    pub fn new(
        cfg: &'a VaeConfig,
        train: &'a TrainConfig,
        set: TrainingSet<'a>,
        params: Params,
    ) -> Result<Self> {
        set.crop.validate(cfg)?;
        let vae = MotionVae::new(cfg, &params.builder())?;
        params.check()?;
        Ok(Self { cfg, train, set, params, vae, prepared: Prepared::default() })
    }

    /// A micro-batch on the host, and the generator that drew it.
    fn batch(&self, step: u64, micro: usize) -> (Result<Motions>, Rng) {
        let index = step * self.train.accumulate as u64 + micro as u64;
        let mut rng = Rng::stream(self.train.seed, "vae batch", index);
        let drawn = crops(&self.set.train, self.train.batch_size, self.set.crop, &mut rng);
        let parts: Vec<&[Frame]> = drawn.into_iter().map(|(_, part)| part).collect();
        (Motions::new(&parts, self.set.standard, &Device::Cpu), rng)
    }
}

impl Task for VaeTask<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn prepare(&mut self, step: u64, micro: usize) {
        self.prepared.put(step, micro, self.batch(step, micro));
    }

    fn config(&self) -> Value {
        serde_json::to_value(self.cfg).expect("a config of plain values has a JSON form")
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let (batch, seed) = (self.train.batch_size, self.train.seed);
        let index = step * self.train.accumulate as u64 + micro as u64;
        let prepared = self.prepared.take(step, micro);
        let (motions, mut rng) = prepared.unwrap_or_else(|| self.batch(step, micro));
        let motions = motions?.like(&self.params)?;
        let shape = (batch, self.cfg.latent_tokens, self.cfg.latent_dim);
        let noise = rng.normal_tensor(shape, 0.0, 1.0, self.params.dtype(), self.params.device())?;
        let mut dropping = Rng::stream(seed, "vae dropout", index);
        let loss = self.vae.loss(&motions.values, &motions.lengths, &noise, Some(&mut dropping))?;
        Ok(StepLoss { loss: loss.total, items: motions.lengths.iter().sum() })
    }

    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        let vae = MotionVae::new(
            self.cfg,
            &Params::frozen(self.params.to_tensors(), DType::F32, self.params.device()).builder(),
        )?;
        let (mut loss, mut kl, mut rows) = (0.0, 0.0, 0.0);
        for clips in self.set.valid.chunks(SCORE_BATCH) {
            let motions =
                Motions::new(&starts(clips, self.set.crop), self.set.standard, self.params.device())?;
            let latent = vae.encode(&motions.values, &motions.lengths, None)?;
            let losses = vae.loss(&motions.values, &motions.lengths, &latent.mean.zeros_like()?, None)?;
            let n = clips.len() as f64;
            loss += n * f64::from(losses.reconstruction.to_scalar::<f32>()?);
            kl += n * f64::from(losses.kl.to_scalar::<f32>()?);
            rows += n;
        }
        if rows == 0.0 {
            return Ok(Vec::new());
        }
        Ok(vec![Metric::down("loss", loss / rows), Metric::down("kl", kl / rows)])
    }

    fn data_fingerprint(&self) -> String {
        format!("{} {:?}", self.set.fingerprint, self.set.crop)
    }

    fn unit(&self) -> &'static str {
        "frames"
    }
}

/// Latents of random parts of clips, kept so that the denoiser's training need not encode.
pub struct LatentSet {
    mean: Tensor,
    log_var: Tensor,
    lengths: Vec<usize>,
    clips: Vec<usize>,
}

impl LatentSet {
    /// `per_clip` parts of every clip, encoded; `go_on` is told after each batch how many are done. None if it says no.
    pub fn new(
        vae: &MotionVae,
        clips: &[&Clip],
        set: &TrainingSet<'_>,
        per_clip: usize,
        seed: u64,
        device: &Device,
        mut go_on: impl FnMut(usize) -> bool,
    ) -> Result<Option<Self>> {
        let (mut means, mut log_vars, mut lengths, mut owners) = (vec![], vec![], vec![], vec![]);
        let mut jobs: Vec<(usize, &[Frame])> = Vec::new();
        for (i, &clip) in clips.iter().enumerate() {
            let mut rng = Rng::stream(seed, "latent parts", i as u64);
            jobs.extend((0..per_clip).map(|_| (i, crops(&[clip], 1, set.crop, &mut rng)[0].1)));
        }
        // Like lengths together: less padding.
        jobs.sort_by_key(|(_, part)| part.len());
        for batch in jobs.chunks(SCORE_BATCH) {
            let parts: Vec<&[Frame]> = batch.iter().map(|(_, part)| *part).collect();
            let motions = Motions::new(&parts, set.standard, device)?;
            let latent = vae.encode(&motions.values, &motions.lengths, None)?;
            means.push(latent.mean);
            log_vars.push(latent.log_var);
            lengths.extend(motions.lengths);
            owners.extend(batch.iter().map(|(i, _)| *i));
            if !go_on(owners.len()) {
                return Ok(None);
            }
        }
        if owners.is_empty() {
            return Err(Error::Motion("no clip to encode".into()));
        }
        let (mean, log_var) = (Tensor::cat(&means, 0)?, Tensor::cat(&log_vars, 0)?);
        Ok(Some(Self { mean, log_var, lengths, clips: owners }))
    }

    /// The factor that brings the latents to variance one, on which diffusion schedules count.
    pub fn scale(&self) -> Result<f64> {
        let second = (self.mean.sqr()? + self.log_var.exp()?)?.mean_all()?.to_scalar::<f32>()?;
        Ok(f64::from(second.max(1e-12)).sqrt().recip())
    }
}

/// Settings of the denoiser's training beside its model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LatentDiffusionConfig {
    /// The diffusion.
    pub diffusion: DiffusionConfig,
    /// How often conditions are left out.
    pub drop: DropConfig,
    /// Parts of each clip whose latents are kept.
    pub parts_per_clip: usize,
}

impl Default for LatentDiffusionConfig {
    fn default() -> Self {
        Self { diffusion: DiffusionConfig::default(), drop: DropConfig::default(), parts_per_clip: 8 }
    }
}

/// What is stored of a denoiser: all that sampling needs beside the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredDenoiser {
    /// The network.
    pub model: DenoiserConfig,
    /// Its training.
    pub training: LatentDiffusionConfig,
    /// Factor on the VAE's latents.
    pub latent_scale: f64,
}

/// Training of the denoiser.
pub struct DenoiserTask<'a> {
    cfg: StoredDenoiser,
    train: &'a TrainConfig,
    fingerprint: String,
    params: Params,
    denoiser: Denoiser,
    diffusion: Diffusion,
    data: Labelled,
    valid: Option<Labelled>,
}

/// Latents with what is known of the clips that they are of.
pub struct Labelled {
    /// The latents.
    pub latents: LatentSet,
    /// Of each clip.
    pub conditions: ClipConditions,
}

impl<'a> DenoiserTask<'a> {
    /// A training of `params` on labelled latents.
    pub fn new(
        cfg: StoredDenoiser,
        train: &'a TrainConfig,
        data: Labelled,
        valid: Option<Labelled>,
        fingerprint: String,
        params: Params,
    ) -> Result<Self> {
        let denoiser = Denoiser::new(&cfg.model, &params.builder())?;
        params.check()?;
        let diffusion = Diffusion::new(&cfg.training.diffusion, "")?;
        Ok(Self { cfg, train, fingerprint, params, denoiser, diffusion, data, valid })
    }

    fn loss(
        &self,
        denoiser: &Denoiser,
        Labelled { latents, conditions }: &Labelled,
        rows: &[usize],
        drop: bool,
        rng: &mut Rng,
    ) -> Result<Tensor> {
        let ids = Tensor::from_iter(rows.iter().map(|&i| i as u32), latents.mean.device())?;
        let (mean, log_var) = (latents.mean.index_select(&ids, 0)?, latents.log_var.index_select(&ids, 0)?);
        let normal =
            |rng: &mut Rng| rng.normal_tensor(mean.shape().clone(), 0.0, 1.0, mean.dtype(), mean.device());
        let z = (&mean + ((log_var * 0.5)?.exp()? * normal(rng)?)?)?;
        let z = (z * self.cfg.latent_scale)?;
        let steps: Vec<usize> = rows.iter().map(|_| rng.below(self.diffusion.steps())).collect();
        let noise = normal(rng)?;
        let clips: Vec<usize> = rows.iter().map(|&i| latents.clips[i]).collect();
        let condition = conditions.draw(&clips, drop.then_some(self.cfg.training.drop), rng);
        let lengths: Vec<usize> = rows.iter().map(|&i| latents.lengths[i]).collect();
        let noised = self.diffusion.q_sample(&z, &steps, &noise)?;
        let dtype = if drop { self.params.dtype() } else { DType::F32 };
        let output = denoiser.forward(&noised.to_dtype(dtype)?, &steps, &condition, &lengths)?;
        let output = output.to_dtype(noised.dtype())?;
        let losses = self.diffusion.losses(&output, &self.diffusion.target(&z, &steps, &noise)?, None)?;
        let weights: Vec<f32> = self.diffusion.loss_weights(&steps).iter().map(|&w| w as f32).collect();
        let weights = Tensor::from_vec(weights, rows.len(), losses.device())?;
        Ok((losses * weights)?.mean_all()?)
    }
}

impl Task for DenoiserTask<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        serde_json::to_value(&self.cfg).expect("a config of plain values has a JSON form")
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let batch = self.train.batch_size;
        let index = step * self.train.accumulate as u64 + micro as u64;
        let mut rng = Rng::stream(self.train.seed, "denoiser batch", index);
        let rows: Vec<usize> = (0..batch).map(|_| rng.below(self.data.latents.lengths.len())).collect();
        let loss = self.loss(&self.denoiser, &self.data, &rows, true, &mut rng)?;
        Ok(StepLoss { loss, items: batch })
    }

    /// The loss on held-out latents, with the same steps and noise every time.
    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        let Some(valid) = &self.valid else { return Ok(Vec::new()) };
        let frozen = Params::frozen(self.params.to_tensors(), DType::F32, self.params.device());
        let denoiser = Denoiser::new(&self.cfg.model, &frozen.builder())?;
        let rows: Vec<usize> = (0..valid.latents.lengths.len()).collect();
        let mut loss = 0.0;
        for (i, batch) in rows.chunks(64).enumerate() {
            let mut rng = Rng::stream(0, "denoiser valid", i as u64);
            let part = self.loss(&denoiser, valid, batch, false, &mut rng)?;
            loss += batch.len() as f64 * f64::from(part.to_scalar::<f32>()?);
        }
        Ok(vec![Metric::down("loss", loss / rows.len() as f64)])
    }

    fn data_fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn unit(&self) -> &'static str {
        "motions"
    }
}

/// Training of the evaluator.
pub struct EvaluatorTask<'a> {
    cfg: EvaluatorConfig,
    train: &'a TrainConfig,
    set: TrainingSet<'a>,
    params: Params,
    evaluator: Evaluator,
    prepared: Prepared<(Result<Motions>, Vec<usize>)>,
}

impl<'a> EvaluatorTask<'a> {
    /// A training of `params` on the clips that have all labels.
    pub fn new(
        cfg: EvaluatorConfig,
        train: &'a TrainConfig,
        set: TrainingSet<'a>,
        params: Params,
    ) -> Result<Self> {
        let evaluator = Evaluator::new(&cfg, &params.builder())?;
        params.check()?;
        Ok(Self { cfg, train, set, params, evaluator, prepared: Prepared::default() })
    }

    /// A micro-batch on the host, and the combination of labels of each of its motions.
    fn batch(&self, step: u64, micro: usize) -> (Result<Motions>, Vec<usize>) {
        let index = step * self.train.accumulate as u64 + micro as u64;
        let mut rng = Rng::stream(self.train.seed, "evaluator batch", index);
        let crop = CropConfig { min_frames: self.cfg.window, max_frames: self.cfg.window };
        let drawn = crops(&self.set.train, self.train.batch_size, crop, &mut rng);
        let parts: Vec<&[Frame]> = drawn.iter().map(|(_, part)| *part).collect();
        let combinations = drawn.iter().map(|(clip, _)| self.combination(clip)).collect();
        (Motions::new(&parts, self.set.standard, &Device::Cpu), combinations)
    }

    fn combination(&self, clip: &Clip) -> usize {
        let labels: Option<Vec<usize>> = clip.labels.iter().copied().collect();
        self.cfg.combinations.iter().position(|known| Some(known) == labels.as_ref()).unwrap_or(0)
    }
}

impl Task for EvaluatorTask<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn prepare(&mut self, step: u64, micro: usize) {
        self.prepared.put(step, micro, self.batch(step, micro));
    }

    fn config(&self) -> Value {
        serde_json::to_value(&self.cfg).expect("a config of plain values has a JSON form")
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let prepared = self.prepared.take(step, micro);
        let (motions, combinations) = prepared.unwrap_or_else(|| self.batch(step, micro));
        let motions = motions?.like(&self.params)?;
        let loss = self.evaluator.loss(&motions.values, &motions.lengths, &combinations)?;
        Ok(StepLoss { loss, items: motions.lengths.iter().sum() })
    }

    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        let frozen = Params::frozen(self.params.to_tensors(), DType::F32, self.params.device());
        let evaluator = Evaluator::new(&self.cfg, &frozen.builder())?;
        let (mut loss, mut right, mut n) = (0.0, 0, 0);
        for clips in self.set.valid.chunks(SCORE_BATCH) {
            let crop = CropConfig { min_frames: 2, max_frames: self.cfg.window };
            let motions = Motions::new(&starts(clips, crop), self.set.standard, self.params.device())?;
            let combinations: Vec<usize> = clips.iter().map(|clip| self.combination(clip)).collect();
            let part = evaluator.loss(&motions.values, &motions.lengths, &combinations)?;
            loss += clips.len() as f64 * f64::from(part.to_scalar::<f32>()?);
            let likeliest =
                evaluator.logits(&motions.values, &motions.lengths)?.argmax(1)?.to_vec1::<u32>()?;
            right += likeliest.iter().zip(&combinations).filter(|&(&a, &b)| a as usize == b).count();
            n += clips.len();
        }
        if n == 0 {
            return Ok(Vec::new());
        }
        Ok(vec![Metric::down("loss", loss / n as f64), Metric::up("accuracy", right as f64 / n as f64)])
    }

    fn data_fingerprint(&self) -> String {
        self.set.fingerprint.clone()
    }

    fn unit(&self) -> &'static str {
        "frames"
    }
}
