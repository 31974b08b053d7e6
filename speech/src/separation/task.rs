//! Training a separation model, and what it is measured by.

use super::loss::{best_order, pit_loss};
use super::mixture::{Mixture, Part, Talk, TalkConfig};
use super::model::{DualPathMamba, SeparatorConfig};
use super::separator::Separator;
use crate::Error;
use crate::metrics::si_sdr_db;
use crate::mixture::rms;
use candle_core::{Result, Tensor};
use mamba_core::Params;
use mamba_core::run_folder::Metric;
use mamba_core::train::{StepLoss, Task, TrainConfig};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that decides a run, besides the clips.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeparationConfig {
    /// The model.
    pub model: SeparatorConfig,
    /// Optimizer and schedule.
    pub train: TrainConfig,
    /// Mixtures.
    pub data: TalkConfig,
}

impl SeparationConfig {
    /// Refuses impossible values.
    ///
    /// # Errors
    /// The first of them.
    pub fn validate(&self) -> mamba_core::Result<()> {
        self.model.validate()?;
        self.train.validate()?;
        self.data.validate()?;
        let hop = self.model.stft_cfg.hop_size;
        if !self.data.segment_size.is_multiple_of(hop) {
            let (got, expected) =
                (self.data.segment_size.to_string(), format!("a multiple of the hop, {hop}"));
            return Err(Error::Setting { name: "segment_size", got, expected }.into());
        }
        Ok(())
    }
}

/// Ratios of one mixture in dB, means over its talkers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Separated {
    /// Who talks.
    pub talkers: Vec<String>,
    /// Scale-invariant ratio of signal to distortion of the mixture.
    pub mixture_si_sdr_db: f64,
    /// That of the separated talkers, in their best order.
    pub si_sdr_db: f64,
}

impl Separated {
    /// What separation gained.
    pub fn improvement_db(&self) -> f64 {
        self.si_sdr_db - self.mixture_si_sdr_db
    }

    /// Of the estimated talkers of a mixture.
    pub fn score(mixture: &Mixture, estimates: &[Vec<f32>]) -> Self {
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let truth: Vec<Vec<f64>> = mixture.talkers.iter().map(|t| wide(t)).collect();
        let estimates: Vec<Vec<f64>> = estimates.iter().map(|e| wide(e)).collect();
        let ratio = |estimate: usize, talker: usize| si_sdr_db(&truth[talker], &estimates[estimate]);
        let order = best_order(truth.len(), |e, t| -ratio(e, t));
        let n = truth.len() as f64;
        let heard = wide(&mixture.mixture);
        Self {
            talkers: mixture.names.clone(),
            mixture_si_sdr_db: truth.iter().map(|t| si_sdr_db(t, &heard)).sum::<f64>() / n,
            si_sdr_db: order.iter().enumerate().map(|(t, &e)| ratio(e, t)).sum::<f64>() / n,
        }
    }
}

/// Scores of a model on some mixtures.
///
/// # Errors
/// None that a caller could cause.
pub fn score_mixtures(separator: &Separator, mixtures: &[Mixture]) -> Result<Vec<Separated>> {
    mixtures.iter().map(|m| Ok(Separated::score(m, &separator.separate(&m.mixture)?))).collect()
}

/// Separation as the training loop sees it.
pub struct Separation<'a> {
    cfg: &'a SeparationConfig,
    talk: &'a Talk,
    valid: Vec<Mixture>,
    params: Params,
    model: DualPathMamba,
}

impl<'a> Separation<'a> {
    /// A run from `params`.
    ///
    /// # Errors
    /// Impossible settings, parameters of another shape.
    pub fn new(cfg: &'a SeparationConfig, talk: &'a Talk, params: Params) -> mamba_core::Result<Self> {
        cfg.validate()?;
        let model = DualPathMamba::new(&cfg.model, &params.builder())?;
        params.check()?;
        let valid = talk.held_out(Part::Valid, cfg.data.valid_mixtures)?;
        Ok(Self { cfg, talk, valid, params, model })
    }

    /// The loss of some mixtures of one length.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn loss(&self, mixtures: &[Mixture]) -> Result<Tensor> {
        let (device, dtype) = (self.params.device(), self.params.dtype());
        let (b, s, n) = (mixtures.len(), self.cfg.model.n_src, mixtures[0].mixture.len());
        let (mut heard, mut truth) = (Vec::with_capacity(b * n), Vec::with_capacity(b * s * n));
        for mixture in mixtures {
            let factor = 1.0 / rms(&mixture.mixture).max(1e-8);
            heard.extend(mixture.mixture.iter().map(|x| x * factor));
            truth.extend(mixture.talkers.iter().flatten().map(|x| x * factor));
        }
        let heard = Tensor::from_vec(heard, (b, n), device)?.to_dtype(dtype)?;
        let truth = Tensor::from_vec(truth, (b, s, n), device)?.to_dtype(dtype)?;
        pit_loss(&self.model.forward(&heard)?, &truth)
    }
}

impl Task for Separation<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn config(&self) -> Value {
        serde_json::to_value(&self.cfg.model).expect("a config of plain values has a JSON form")
    }

    fn train_step(&mut self, step: u64, micro: usize) -> mamba_core::Result<StepLoss> {
        let TrainConfig { batch_size, accumulate, seed, .. } = self.cfg.train;
        let first = (step * accumulate as u64 + micro as u64) * batch_size as u64;
        let mixtures: Vec<Mixture> = (0..batch_size as u64)
            .into_par_iter()
            .map(|i| self.talk.train_mixture(seed, first + i))
            .collect();
        Ok(StepLoss { loss: self.loss(&mixtures)?, items: batch_size * self.cfg.data.segment_size })
    }

    fn evaluate(&mut self) -> mamba_core::Result<Vec<Metric>> {
        let (dtype, device) = (self.params.dtype(), self.params.device());
        let separator = Separator::new(&self.cfg.model, self.params.to_tensors(), dtype, device)?;
        let scores = score_mixtures(&separator, &self.valid)?;
        let mean = |of: fn(&Separated) -> f64| scores.iter().map(of).sum::<f64>() / scores.len() as f64;
        Ok(vec![
            Metric::up("si_sdr_improvement_db", mean(Separated::improvement_db)),
            Metric::up("si_sdr_db", mean(|s| s.si_sdr_db)),
        ])
    }

    fn data_fingerprint(&self) -> String {
        let text = format!("{:?} {}", self.cfg.data, self.talk.fingerprint());
        mamba_datasets::job::sha256(text.as_bytes())
    }

    fn unit(&self) -> &'static str {
        "samples"
    }
}
