//! Training SEMamba on mixtures, and what it is measured by.

use crate::discriminator::MetricDiscriminator;
use crate::losses::{LossWeights, Losses};
use crate::metrics::{LEAST_SAMPLES, SAMPLE_RATE, Scores, comparable, pesq_wb, score};
use crate::mixture::{MixtureConfig, Mixtures, Pair, rms};
use crate::spectrum::Spectrum;
use crate::{Config, Enhancer, Error, SeMamba};
use candle_core::{DType, Device, Tensor};
use mamba_core::nn::widen;
use mamba_core::run_folder::Metric;
use mamba_core::train::{Prepared, StepLoss, Task, TrainConfig};
use mamba_core::{Params, Rng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that decides a run, besides the clips.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnhancementConfig {
    /// The model.
    pub model: Config,
    /// Optimizer and schedule.
    pub train: TrainConfig,
    /// Mixtures.
    pub data: MixtureConfig,
    /// Weights of the losses.
    pub loss: LossWeights,
}

impl EnhancementConfig {
    /// Refuses impossible values.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.model.validate()?;
        self.train.validate()?;
        self.data.validate()?;
        let setting =
            |name, got: String, expected: String| Err(Error::Setting { name, got, expected }.into());
        let (hop, rate) = (self.model.stft_cfg.hop_size, self.model.stft_cfg.sampling_rate);
        let segment = self.data.segment_size;
        if !segment.is_multiple_of(hop) {
            return setting("segment_size", segment.to_string(), format!("a multiple of the hop, {hop}"));
        }
        if rate != SAMPLE_RATE {
            let expected = format!("{SAMPLE_RATE}: validation scores are defined at this rate");
            return setting("sampling_rate", rate.to_string(), expected);
        }
        if self.loss.metric > 0.0 && segment < LEAST_SAMPLES {
            let expected = format!("at least {LEAST_SAMPLES} with the loss `metric`, which needs PESQ");
            return setting("segment_size", segment.to_string(), expected);
        }
        Ok(())
    }
}

/// Prefix of the discriminator's parameters, which share the optimizer and the files of the model.
pub(crate) const DISCRIMINATOR: &str = "discriminator";

/// Enhancement as the training loop sees it.
pub struct Enhancement<'a> {
    cfg: &'a EnhancementConfig,
    mixtures: &'a Mixtures,
    valid: Vec<Pair>,
    params: Params,
    model: SeMamba,
    discriminator: Option<MetricDiscriminator>,
    prepared: Prepared<Vec<Pair>>,
    device: Device,
}

impl<'a> Enhancement<'a> {
    /// A run from `params`: fresh ones, or those of a checkpoint.
    ///
    /// # Errors
    /// Held-out clips that cannot be scored, so that a run does not end at its first evaluation.
    pub fn new(
        cfg: &'a EnhancementConfig,
        mixtures: &'a Mixtures,
        params: Params,
    ) -> mamba_core::Result<Self> {
        cfg.validate()?;
        let model = SeMamba::new(&cfg.model, &params.builder())?;
        let pb = params.builder().pp(DISCRIMINATOR);
        let discriminator = (cfg.loss.metric > 0.0).then(|| MetricDiscriminator::new(&pb)).transpose()?;
        // A checkpoint to go on from need not have been trained with a discriminator.
        let of_discriminator = |name: &str| name.starts_with(DISCRIMINATOR);
        params.check_with(of_discriminator, of_discriminator)?;
        let device = params.device().clone();
        let (valid, prepared) = (mixtures.valid_pairs(), Prepared::default());
        expect_scores(mixtures, &valid)?;
        Ok(Self { cfg, mixtures, valid, params, model, discriminator, prepared, device })
    }

    /// The mixtures of a micro-batch, the first of which is number `first` of the run.
    fn mixed(&self, first: u64) -> Vec<Pair> {
        let TrainConfig { batch_size, seed, .. } = self.cfg.train;
        let pair = |i| self.mixtures.train_pair(seed, first + i);
        (0..batch_size as u64).into_par_iter().map(pair).collect()
    }

    fn first_of(&self, step: u64, micro: usize) -> u64 {
        let TrainConfig { batch_size, accumulate, .. } = self.cfg.train;
        (step * accumulate as u64 + micro as u64) * batch_size as u64
    }

    /// The model with its present weights.
    pub fn model(&self) -> &SeMamba {
        &self.model
    }

    /// The loss of some pairs of one length; with a discriminator the sum of its loss and the generator's, whose
    /// gradients do not mix. `rng` is for its dropout.
    pub fn loss(&self, pairs: &[Pair], rng: &mut Rng) -> mamba_core::Result<Tensor> {
        let (stft, compress) = (&self.cfg.model.stft_cfg, self.cfg.model.model_cfg.compress_factor);
        // Losses are computed in f32 where the model is in half precision.
        let dtype = if self.params.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let scaled = |signal: &[f32], factor: f32| signal.iter().map(|x| x * factor).collect::<Vec<_>>();
        let factor = |pair: &Pair| match self.cfg.model.model_cfg.causal {
            // A stream does not know its level in advance.
            true => 1.0,
            false => 1.0 / rms(&pair.noisy).max(1e-8),
        };
        let batch = |of: fn(&Pair) -> &[f32]| {
            let values: Vec<f32> = pairs.iter().flat_map(|p| scaled(of(p), factor(p))).collect();
            let shape = (pairs.len(), pairs[0].noisy.len());
            Tensor::from_vec(values, shape, &self.device)?.to_dtype(dtype)
        };
        let (noisy, clean) = (batch(|p| &p.noisy)?, batch(|p| &p.clean)?);
        let noisy = noisy.to_dtype(self.params.dtype())?;
        let Spectrum { mag, pha } = self.model.forward(&Spectrum::of(&noisy, stft, compress)?)?;
        let enhanced = Spectrum { mag: widen(&mag)?, pha: widen(&pha)? };
        let clean_spectrum = Spectrum::of(&clean, stft, compress)?;
        let losses = Losses::new(&self.cfg.model, &enhanced, &clean_spectrum, &clean)?;
        let total = losses.total(&self.cfg.loss)?;
        let Some(discriminator) = &self.discriminator else { return Ok(total) };
        let (clean_mag, enhanced_mag) = (self.narrow(&clean_spectrum.mag)?, self.narrow(&enhanced.mag)?);
        let judged = widen(&discriminator.detach().forward(&clean_mag, &enhanced_mag, None)?)?;
        let metric = ((judged - 1.0)?.sqr()?.mean_all()? * self.cfg.loss.metric)?;
        let fixed = Spectrum { mag: enhanced.mag.detach(), pha: enhanced.pha.detach() };
        let signals = fixed.signal(stft, compress)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let learnt = self.discriminator_loss(
            discriminator,
            &clean_mag,
            &self.narrow(&fixed.mag)?,
            pairs,
            &signals,
            rng,
        )?;
        Ok(total.add(&metric)?.add(&learnt)?)
    }

    /// In the type of the parameters.
    fn narrow(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.to_dtype(self.params.dtype())
    }

    /// How far the discriminator's predictions are from 1 for clean speech, and from PESQ for enhanced speech.
    fn discriminator_loss(
        &self,
        discriminator: &MetricDiscriminator,
        clean: &Tensor,
        enhanced: &Tensor,
        pairs: &[Pair],
        signals: &[Vec<f32>],
        rng: &mut Rng,
    ) -> mamba_core::Result<Tensor> {
        let own = (widen(&discriminator.forward(clean, clean, Some(rng))?)? - 1.0)?.sqr()?.mean_all()?;
        let pesq: Vec<Option<f64>> = pairs
            .par_iter()
            .zip(signals)
            .map(|(pair, signal)| pesq_or_worst(&pair.clean, signal))
            .collect::<crate::Result<_>>()?;
        // A segment without speech has no PESQ; it then counts for nothing.
        let target: Vec<f32> = pesq.iter().map(|p| p.map_or(0.0, |p| ((p - 1.0) / 3.5) as f32)).collect();
        let weight: Vec<f32> = pesq.iter().map(|p| f32::from(u8::from(p.is_some()))).collect();
        let predicted = widen(&discriminator.forward(clean, enhanced, Some(rng))?)?;
        let tensor = |x: Vec<f32>| Tensor::new(x, &self.device)?.to_dtype(predicted.dtype());
        let errors = ((&predicted - tensor(target)?)?.sqr()? * tensor(weight)?)?;
        Ok(own.add(&errors.mean_all()?)?)
    }
}

/// Wide-band PESQ; 1, the worst, where enhancement left no speech, and none where there was none.
fn pesq_or_worst(clean: &[f32], enhanced: &[f32]) -> crate::Result<Option<f64>> {
    match pesq_wb(clean, enhanced)? {
        None => Ok(pesq_wb(clean, clean)?.map(|_| 1.0)),
        known => Ok(known),
    }
}

/// Refuses held-out clips that the scores of an evaluation are not defined for.
fn expect_scores(mixtures: &Mixtures, valid: &[Pair]) -> crate::Result<()> {
    for (i, pair) in valid.iter().enumerate() {
        comparable(&pair.clean, &pair.noisy, SAMPLE_RATE).map_err(|reason| {
            let n = pair.clean.len();
            let reason = format!(
                "of this clip {n} samples are held out for validation, and they cannot be scored ({reason}): remove \
                 the file, or hold out others with another data.split_seed"
            );
            Error::audio(mixtures.valid_clip(i), reason)
        })?;
    }
    for pair in valid {
        if pesq_wb(&pair.clean, &pair.clean)?.is_some() {
            return Ok(());
        }
    }
    let clips: Vec<String> = (0..valid.len()).map(|i| mixtures.valid_clip(i).display().to_string()).collect();
    Err(Error::Signal(format!(
        "PESQ, which weights are chosen by, finds no speech in the clips held out for validation ({}): hold out more or \
         others with data.valid and data.split_seed",
        clips.join(", ")
    )))
}

/// Mean scores of a model on some pairs. Ratings of speech of which the model leaves nothing are the worst.
pub fn score_pairs(enhancer: &Enhancer, pairs: &[Pair]) -> mamba_core::Result<Scores> {
    let enhanced: Vec<Vec<f32>> =
        pairs.iter().map(|pair| enhancer.enhance(&pair.noisy)).collect::<candle_core::Result<_>>()?;
    let scores: Vec<Scores> = pairs
        .par_iter()
        .zip(&enhanced)
        .map(|(pair, enhanced)| {
            let scores = score(&pair.clean, enhanced, enhancer.sample_rate())?;
            let lost = scores.pesq_wb.is_none() && pesq_wb(&pair.clean, &pair.clean)?.is_some();
            Ok(if lost { scores.or_worst() } else { scores })
        })
        .collect::<crate::Result<_>>()?;
    Ok(Scores::mean(&scores))
}

impl Task for Enhancement<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        serde_json::to_value(&self.cfg.model).expect("a config of plain values has a JSON form")
    }

    fn prepare(&mut self, step: u64, micro: usize) {
        self.prepared.put(step, micro, self.mixed(self.first_of(step, micro)));
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let first = self.first_of(step, micro);
        let pairs = self.prepared.take(step, micro).unwrap_or_else(|| self.mixed(first));
        let mut rng = Rng::stream(self.cfg.train.seed, "dropout", first);
        Ok(StepLoss { loss: self.loss(&pairs, &mut rng)?, items: pairs.len() * self.cfg.data.segment_size })
    }

    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        // Without variables there is no graph, and activations are freed as they are used.
        let frozen = Params::frozen(self.params.to_tensors(), self.params.dtype(), &self.device);
        let model = SeMamba::new(&self.cfg.model, &frozen.builder())?;
        let enhancer = Enhancer::new(model, self.cfg.model.clone(), self.params.dtype(), &self.device);
        let scores = score_pairs(&enhancer, &self.valid)?;
        Ok(vec![
            Metric::up("pesq_wb", scores.pesq_wb.unwrap_or(f64::NAN)),
            Metric::up("stoi", scores.stoi),
            Metric::up("si_sdr_db", scores.si_sdr_db),
        ])
    }

    fn data_fingerprint(&self) -> String {
        let text = format!("{:?} {:?} {}", self.cfg.data, self.cfg.loss, self.mixtures.fingerprint());
        mamba_datasets::job::sha256(text.as_bytes())
    }

    fn unit(&self) -> &'static str {
        "samples"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ModelConfig, sample};

    #[test]
    fn speech_that_is_lost_has_the_worst_pesq() -> crate::Result<()> {
        let (voice, silence) = (sample::voice(3, 2.0), vec![0.0; 32_000]);
        assert_eq!(pesq_or_worst(&voice, &silence)?, Some(1.0));
        assert_eq!(pesq_or_worst(&silence, &voice)?, None);
        Ok(())
    }

    #[test]
    fn a_model_that_gives_silence_is_rated_the_worst() -> mamba_core::Result<()> {
        let params = Params::fresh(0, DType::F32, &Device::Cpu);
        let model_cfg =
            ModelConfig { hid_feature: 8, num_tfmamba: 1, dense_depth: 1, ..ModelConfig::default() };
        let cfg = Config { model_cfg, ..Config::default() };
        let model = SeMamba::new(&cfg, &params.builder())?;
        let enhancer = Enhancer::new(model, cfg, DType::F32, &Device::Cpu);
        let pair = Pair { noisy: vec![0.0; 32_000], clean: sample::voice(3, 2.0) };
        assert_eq!(score_pairs(&enhancer, &[pair])?.pesq_wb, Some(1.0));
        Ok(())
    }
}
