//! Gaussian diffusion (Ho et al. 2020, arXiv 2006.11239; Nichol and Dhariwal 2021, arXiv 2102.09672; Song et al. 2020,
//! arXiv 2010.02502), with the conventions of MDM (Tevet et al. 2022, arXiv 2209.14916).
//!
//! ```text
//! x_t = √ᾱ_t · x_0 + √(1 - ᾱ_t) · ε                                  ᾱ_t = Π (1 - β_s)
//! DDPM  x_{t-1} = c1_t · x̂_0 + c2_t · x_t + σ_t · z                   (posterior of x_{t-1}, variance fixed, small)
//! DDIM  x_{t-1} = √ᾱ_{t-1} · x̂_0 + √(1 - ᾱ_{t-1} - σ²) · ε̂ + σ · z    (σ = 0 for η = 0: no randomness)
//! ```
//!
//! A model is asked for x_0, ε or v = √ᾱ · ε - √(1 - ᾱ) · x_0. Fewer steps than were trained are taken by respacing: the
//! kept steps get the β that leave their ᾱ as they were, and the model is told the original number of the step.

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use mamba_core::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_PI_2;

/// How β grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// ᾱ falls like a squared cosine.
    #[default]
    Cosine,
    /// β grows from 1e-4 to 0.02, for 1000 steps; in proportion for others.
    Linear,
}

/// What the model predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prediction {
    /// The clean sample.
    #[default]
    X0,
    /// The noise.
    Epsilon,
    /// √ᾱ · ε - √(1 - ᾱ) · x_0.
    V,
}

/// Settings of a diffusion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Steps that are trained.
    pub steps: usize,
    /// How β grows.
    pub schedule: Schedule,
    /// What the model predicts.
    pub prediction: Prediction,
    /// Weight the loss by min(SNR, γ) (Hang et al. 2023, arXiv 2303.09556); null for none.
    pub min_snr: Option<f64>,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self { steps: 1000, schedule: Schedule::Cosine, prediction: Prediction::X0, min_snr: None }
    }
}

impl DiffusionConfig {
    /// Refuses what makes no diffusion.
    pub fn validate(&self) -> Result<()> {
        if !(2..=100_000).contains(&self.steps) {
            return Err(Error::Config(format!("diffusion.steps is {}, expected 2 to 100000", self.steps)));
        }
        match self.min_snr {
            Some(gamma) if !(gamma > 0.0 && gamma.is_finite()) => {
                Err(Error::Config(format!("diffusion.min_snr is {gamma}, expected more than 0, or null")))
            }
            _ => Ok(()),
        }
    }
}

/// β of every step.
fn betas(schedule: Schedule, steps: usize) -> Vec<f64> {
    /// Largest β.
    const MAX: f64 = 0.999;
    let n = steps as f64;
    match schedule {
        Schedule::Cosine => {
            let bar = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
            (0..steps).map(|i| (1.0 - bar((i + 1) as f64 / n) / bar(i as f64 / n)).min(MAX)).collect()
        }
        Schedule::Linear => {
            let (first, last) = (0.1 / n, 20.0 / n);
            (0..steps).map(|i| first + (last - first) * i as f64 / (n - 1.0)).collect()
        }
    }
}

/// The steps that a respacing keeps. `""` keeps all; `"ddim50"` takes 50 at a fixed stride; `"10,15,20"` divides the steps
/// into three parts and takes so many of each, evenly.
///
/// # Errors
/// A text that is none of these, or more steps than there are.
pub fn respaced(steps: usize, respacing: &str) -> Result<Vec<usize>> {
    let wrong = |why: String| Error::Config(format!("respacing {respacing:?} of {steps} steps: {why}"));
    if respacing.is_empty() {
        return Ok((0..steps).collect());
    }
    if let Some(count) = respacing.strip_prefix("ddim") {
        let count: usize = count.parse().map_err(|_| wrong(format!("{count:?} is no number")))?;
        let stride = (1..steps).find(|stride| steps.div_ceil(*stride) == count);
        let stride = stride.ok_or_else(|| wrong(format!("no stride gives {count} steps")))?;
        return Ok((0..steps).step_by(stride).collect());
    }
    let counts = respacing
        .split(',')
        .map(|count| count.trim().parse::<usize>().map_err(|_| wrong(format!("{count:?} is no number"))));
    let counts: Vec<usize> = counts.collect::<Result<_>>()?;
    let (size, extra) = (steps / counts.len(), steps % counts.len());
    let (mut kept, mut start) = (Vec::new(), 0);
    for (i, &count) in counts.iter().enumerate() {
        let size = size + usize::from(i < extra);
        if count == 0 || count > size {
            return Err(wrong(format!("cannot take {count} of {size} steps")));
        }
        let stride = if count == 1 { 1.0 } else { (size - 1) as f64 / (count - 1) as f64 };
        // Halves go to the even step.
        let mut place = 0.0f64;
        for _ in 0..count {
            kept.push(start + place.round_ties_even() as usize);
            place += stride;
        }
        start += size;
    }
    Ok(kept)
}

/// Constants of each step that is taken.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "named as in the papers and upstream")]
pub struct Constants {
    pub betas: Vec<f64>,
    pub alphas_cumprod: Vec<f64>,
    pub alphas_cumprod_prev: Vec<f64>,
    pub sqrt_alphas_cumprod: Vec<f64>,
    pub sqrt_one_minus_alphas_cumprod: Vec<f64>,
    pub log_one_minus_alphas_cumprod: Vec<f64>,
    pub sqrt_recip_alphas_cumprod: Vec<f64>,
    pub sqrt_recipm1_alphas_cumprod: Vec<f64>,
    pub posterior_variance: Vec<f64>,
    pub posterior_log_variance_clipped: Vec<f64>,
    pub posterior_mean_coef1: Vec<f64>,
    pub posterior_mean_coef2: Vec<f64>,
}

impl Constants {
    fn new(betas: Vec<f64>) -> Self {
        let n = betas.len();
        let mut product = 1.0;
        let bar: Vec<f64> = betas
            .iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        let prev: Vec<f64> = std::iter::once(1.0).chain(bar[..n - 1].iter().copied()).collect();
        let of_bar = |f: fn(f64) -> f64| bar.iter().map(|&a| f(a)).collect::<Vec<f64>>();
        let each = |f: &dyn Fn(usize) -> f64| (0..n).map(f).collect::<Vec<f64>>();
        let variance = each(&|i| betas[i] * (1.0 - prev[i]) / (1.0 - bar[i]));
        Self {
            sqrt_alphas_cumprod: of_bar(|a| a.sqrt()),
            sqrt_one_minus_alphas_cumprod: of_bar(|a| (1.0 - a).sqrt()),
            log_one_minus_alphas_cumprod: of_bar(|a| (1.0 - a).ln()),
            sqrt_recip_alphas_cumprod: of_bar(|a| (1.0 / a).sqrt()),
            sqrt_recipm1_alphas_cumprod: of_bar(|a| (1.0 / a - 1.0).sqrt()),
            // The variance of the first step is 0: its logarithm is taken from the second.
            posterior_log_variance_clipped: each(&|i| variance[i.max(1).min(n - 1)].ln()),
            posterior_mean_coef1: each(&|i| betas[i] * prev[i].sqrt() / (1.0 - bar[i])),
            posterior_mean_coef2: each(&|i| (1.0 - prev[i]) * (1.0 - betas[i]).sqrt() / (1.0 - bar[i])),
            posterior_variance: variance,
            alphas_cumprod: bar,
            alphas_cumprod_prev: prev,
            betas,
        }
    }
}

/// A factor for each step, and the tensor that it multiplies.
type Term<'a> = (&'a Vec<f64>, &'a Tensor);

/// How to go from noise to a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampler {
    /// The ancestral sampler.
    Ddpm,
    /// The implicit one; η 0 uses no noise on the way, 1 is as random as DDPM.
    Ddim {
        /// η.
        eta: f64,
    },
}

/// What a step says about the sample before it.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// Mean of x_{t-1}.
    pub mean: Tensor,
    /// Logarithm of its variance, to be broadcast.
    pub log_variance: Tensor,
    /// The clean sample as the model sees it.
    pub x0: Tensor,
}

/// Values that a sample is held at: in-betweening and continuation.
#[derive(Clone, Debug)]
pub struct Inpaint {
    /// 1 where the value is given, 0 where it is free; shaped like the sample, or to be broadcast.
    pub mask: Tensor,
    /// The given values.
    pub values: Tensor,
}

/// A diffusion over the steps that are taken.
#[derive(Clone, Debug)]
pub struct Diffusion {
    /// Constants of the steps taken.
    pub constants: Constants,
    /// The original number of each step taken.
    pub timestep_map: Vec<usize>,
    prediction: Prediction,
    min_snr: Option<f64>,
    /// Clean samples are clipped to [-1, 1].
    clip: bool,
    /// Logarithm of the variance that DDPM adds at each step.
    log_variance: Vec<f64>,
}

impl Diffusion {
    /// A diffusion that takes the steps of a `respacing` (see [`respaced`]).
    pub fn new(cfg: &DiffusionConfig, respacing: &str) -> Result<Self> {
        cfg.validate()?;
        let all = betas(cfg.schedule, cfg.steps);
        let timestep_map = respaced(cfg.steps, respacing)?;
        let bar = Constants::new(all).alphas_cumprod;
        let mut last = 1.0;
        let kept = timestep_map.iter().map(|&step| {
            let beta = 1.0 - bar[step] / last;
            last = bar[step];
            beta
        });
        let constants = Constants::new(kept.collect());
        let log_variance = constants.posterior_log_variance_clipped.clone();
        Ok(Self {
            constants,
            timestep_map,
            prediction: cfg.prediction,
            min_snr: cfg.min_snr,
            clip: false,
            log_variance,
        })
    }

    /// Adds β as DDPM's variance, the largest sensible one, instead of the posterior's, the smallest.
    pub fn large_variance(mut self) -> Self {
        let Constants { betas, posterior_variance, .. } = &self.constants;
        let variance = |i: usize| if i == 0 { posterior_variance[1.min(betas.len() - 1)] } else { betas[i] };
        self.log_variance = (0..betas.len()).map(|i| variance(i).ln()).collect();
        self
    }

    /// Whether clean samples are clipped to [-1, 1] on the way.
    pub fn clip(mut self, clip: bool) -> Self {
        self.clip = clip;
        self
    }

    /// Steps taken.
    pub fn steps(&self) -> usize {
        self.timestep_map.len()
    }

    /// One value for each row, shaped to be broadcast over `like`.
    fn at(&self, values: &[f64], t: &[usize], like: &Tensor) -> TensorResult<Tensor> {
        let values: Vec<f64> = t.iter().map(|&t| values[t]).collect();
        let mut shape = vec![1; like.rank()];
        shape[0] = t.len();
        Tensor::from_vec(values, shape, like.device())?.to_dtype(like.dtype())
    }

    /// `a_t · x + b_t · y`, by row.
    fn blend(&self, t: &[usize], (a, x): Term<'_>, (b, y): Term<'_>) -> TensorResult<Tensor> {
        x.broadcast_mul(&self.at(a, t, x)?)? + y.broadcast_mul(&self.at(b, t, y)?)?
    }

    /// The noised sample of step `t`, one step a row.
    pub fn q_sample(&self, x0: &Tensor, t: &[usize], noise: &Tensor) -> TensorResult<Tensor> {
        let Constants { sqrt_alphas_cumprod: a, sqrt_one_minus_alphas_cumprod: b, .. } = &self.constants;
        self.blend(t, (a, x0), (b, noise))
    }

    /// The mean of x_{t-1} given x_t and x_0.
    pub fn posterior_mean(&self, x0: &Tensor, x: &Tensor, t: &[usize]) -> TensorResult<Tensor> {
        let Constants { posterior_mean_coef1: a, posterior_mean_coef2: b, .. } = &self.constants;
        self.blend(t, (a, x0), (b, x))
    }

    /// What the model should have said.
    pub fn target(&self, x0: &Tensor, t: &[usize], noise: &Tensor) -> TensorResult<Tensor> {
        match self.prediction {
            Prediction::X0 => Ok(x0.clone()),
            Prediction::Epsilon => Ok(noise.clone()),
            Prediction::V => {
                let c = &self.constants;
                let minus: Vec<f64> = c.sqrt_one_minus_alphas_cumprod.iter().map(|x| -x).collect();
                self.blend(t, (&c.sqrt_alphas_cumprod, noise), (&minus, x0))
            }
        }
    }

    /// The weight of each row's loss.
    pub fn loss_weights(&self, t: &[usize]) -> Vec<f64> {
        let weight = |&t: &usize| {
            let bar = self.constants.alphas_cumprod[t];
            let snr = bar / (1.0 - bar);
            let Some(gamma) = self.min_snr else { return 1.0 };
            match self.prediction {
                Prediction::X0 => snr.min(gamma),
                Prediction::Epsilon => snr.min(gamma) / snr,
                Prediction::V => snr.min(gamma) / (snr + 1.0),
            }
        };
        t.iter().map(weight).collect()
    }

    /// The mean squared error of each row, over the values whose `mask` (to be broadcast) is 1.
    pub fn losses(&self, output: &Tensor, target: &Tensor, mask: Option<&Tensor>) -> TensorResult<Tensor> {
        let error = (output - target)?.sqr()?;
        let rows = |x: &Tensor| x.flatten_from(1)?.sum(1);
        let Some(mask) = mask else { return error.flatten_from(1)?.mean(1) };
        let mask = mask.to_dtype(error.dtype())?.broadcast_as(error.shape())?;
        rows(&(error * &mask)?)? / rows(&mask.contiguous()?)?
    }

    /// The clean sample that a model's output means.
    fn x0(
        &self,
        x: &Tensor,
        t: &[usize],
        output: &Tensor,
        inpaint: Option<&Inpaint>,
    ) -> TensorResult<Tensor> {
        let c = &self.constants;
        let negative = |values: &[f64]| values.iter().map(|x| -x).collect::<Vec<f64>>();
        let x0 = match self.prediction {
            Prediction::X0 => output.clone(),
            Prediction::Epsilon => {
                let minus = negative(&c.sqrt_recipm1_alphas_cumprod);
                self.blend(t, (&c.sqrt_recip_alphas_cumprod, x), (&minus, output))?
            }
            Prediction::V => {
                let minus = negative(&c.sqrt_one_minus_alphas_cumprod);
                self.blend(t, (&c.sqrt_alphas_cumprod, x), (&minus, output))?
            }
        };
        let x0 = match inpaint {
            Some(Inpaint { mask, values }) => {
                let mask = mask.to_dtype(x0.dtype())?.broadcast_as(x0.shape())?.contiguous()?;
                ((&x0 * mask.affine(-1.0, 1.0)?)? + values.broadcast_as(x0.shape())?.mul(&mask)?)?
            }
            None => x0,
        };
        if self.clip { x0.clamp(-1.0, 1.0) } else { Ok(x0) }
    }

    /// What the model's `output` for step `t` says about x_{t-1}.
    pub fn posterior(
        &self,
        x: &Tensor,
        t: &[usize],
        output: &Tensor,
        inpaint: Option<&Inpaint>,
    ) -> TensorResult<Posterior> {
        let x0 = self.x0(x, t, output, inpaint)?;
        let mean = self.posterior_mean(&x0, x, t)?;
        let log_variance = self.at(&self.log_variance, t, x)?;
        Ok(Posterior { mean, log_variance, x0 })
    }

    /// The sample before step `t`, with `noise` of the sample's shape; the first step adds none.
    pub fn step(
        &self,
        sampler: Sampler,
        posterior: &Posterior,
        x: &Tensor,
        t: &[usize],
        noise: &Tensor,
    ) -> TensorResult<Tensor> {
        let c = &self.constants;
        let (mean, sigma): (Tensor, Vec<f64>) = match sampler {
            Sampler::Ddpm => {
                let sigma = self.log_variance.iter().map(|x| (0.5 * x).exp());
                (posterior.mean.clone(), sigma.collect())
            }
            Sampler::Ddim { eta } => {
                let sigma = |(bar, prev): (&f64, &f64)| {
                    eta * ((1.0 - prev) / (1.0 - bar)).sqrt() * (1.0 - bar / prev).sqrt()
                };
                let bars = c.alphas_cumprod.iter().zip(&c.alphas_cumprod_prev);
                let sigma: Vec<f64> = bars.map(sigma).collect();
                let root: Vec<f64> = c.alphas_cumprod_prev.iter().map(|a| a.sqrt()).collect();
                let rest = c.alphas_cumprod_prev.iter().zip(&sigma);
                let rest: Vec<f64> = rest.map(|(a, s)| (1.0 - a - s * s).max(0.0).sqrt()).collect();
                let epsilon = self.epsilon(x, t, &posterior.x0)?;
                (self.blend(t, (&root, &posterior.x0), (&rest, &epsilon))?, sigma)
            }
        };
        let sigma: Vec<f64> = sigma.iter().enumerate().map(|(i, &s)| if i == 0 { 0.0 } else { s }).collect();
        mean + noise.broadcast_mul(&self.at(&sigma, t, x)?)?
    }

    /// The noise that a clean sample leaves in `x`. Where little noise is left this is a small difference of large
    /// numbers: the order of the operations is upstream's.
    fn epsilon(&self, x: &Tensor, t: &[usize], x0: &Tensor) -> TensorResult<Tensor> {
        let c = &self.constants;
        let difference = (x.broadcast_mul(&self.at(&c.sqrt_recip_alphas_cumprod, t, x)?)? - x0)?;
        difference.broadcast_div(&self.at(&c.sqrt_recipm1_alphas_cumprod, t, x)?)
    }

    /// The noisier sample after step `t` (the DDIM process backwards).
    pub fn reverse_step(&self, posterior: &Posterior, x: &Tensor, t: &[usize]) -> TensorResult<Tensor> {
        let bars = &self.constants.alphas_cumprod;
        let next = |i: usize| bars.get(i + 1).copied().unwrap_or(0.0);
        let root: Vec<f64> = (0..bars.len()).map(|i| next(i).sqrt()).collect();
        let rest: Vec<f64> = (0..bars.len()).map(|i| (1.0 - next(i)).sqrt()).collect();
        let epsilon = self.epsilon(x, t, &posterior.x0)?;
        self.blend(t, (&root, &posterior.x0), (&rest, &epsilon))
    }

    /// A sample from noise `x`. `model` gets the noised sample and the original number of each row's step; `noise` gets
    /// the step and a tensor like the sample.
    pub fn sample(
        &self,
        sampler: Sampler,
        x: Tensor,
        inpaint: Option<&Inpaint>,
        mut model: impl FnMut(&Tensor, &[usize]) -> TensorResult<Tensor>,
        mut noise: impl FnMut(usize, &Tensor) -> TensorResult<Tensor>,
    ) -> TensorResult<Tensor> {
        let rows = x.dim(0)?;
        (0..self.steps()).rev().try_fold(x, |x, step| {
            let t = vec![step; rows];
            let output = model(&x, &vec![self.timestep_map[step]; rows])?;
            let posterior = self.posterior(&x, &t, &output, inpaint)?;
            let noise = noise(step, &x)?;
            Ok(self.step(sampler, &posterior, &x, &t, &noise)?.detach())
        })
    }
}

/// Sinusoids of positions or steps, half sines and half cosines, whose rates fall from 1 to 1 / `slowest`: `(n, d)`.
pub fn sinusoids(
    positions: &[f64],
    d: usize,
    slowest: f64,
    dtype: DType,
    device: &Device,
) -> TensorResult<Tensor> {
    let half = d.div_ceil(2);
    let wave = |&position: &f64| {
        (0..d).map(move |i| {
            let rate = (-slowest.ln() * (i % half) as f64 / half as f64).exp();
            if i < half { (position * rate).sin() } else { (position * rate).cos() }
        })
    };
    let values: Vec<f64> = positions.iter().flat_map(wave).collect();
    Tensor::from_vec(values, (positions.len(), d), device)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn respacings_keep_what_they_say() {
        assert_eq!(respaced(10, "").unwrap().len(), 10);
        assert_eq!(respaced(10, "ddim5").unwrap(), [0, 2, 4, 6, 8]);
        assert_eq!(respaced(10, "3").unwrap(), [0, 4, 9]);
        let message = |text: &str| respaced(10, text).unwrap_err().to_string();
        assert_eq!(message("ddim7"), "respacing \"ddim7\" of 10 steps: no stride gives 7 steps");
        assert_eq!(message("11"), "respacing \"11\" of 10 steps: cannot take 11 of 10 steps");
        assert_eq!(message("x"), "respacing \"x\" of 10 steps: \"x\" is no number");
    }

    #[test]
    fn a_perfect_model_is_sampled_to_its_clean_sample_whatever_it_predicts() -> TensorResult<()> {
        let x0 = Tensor::new(&[[0.3f64, -0.7, 0.1]], &Device::Cpu)?;
        for prediction in [Prediction::X0, Prediction::Epsilon, Prediction::V] {
            let cfg = DiffusionConfig { steps: 40, prediction, ..DiffusionConfig::default() };
            let diffusion = Diffusion::new(&cfg, "").map_err(candle_core::Error::from)?;
            for sampler in [Sampler::Ddpm, Sampler::Ddim { eta: 0.0 }] {
                let start = Tensor::new(&[[1f64, 2.0, -1.0]], &Device::Cpu)?;
                let model = |x: &Tensor, t: &[usize]| {
                    let epsilon = diffusion.epsilon(x, t, &x0)?;
                    diffusion.target(&x0, t, &epsilon)
                };
                let noise = |step: usize, x: &Tensor| x.ones_like()? * (0.1 * step as f64);
                let sample = diffusion.sample(sampler, start, None, model, noise)?;
                let error = (sample - &x0)?.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(error < 1e-9, "{prediction:?}, {sampler:?}: {error}");
            }
        }
        Ok(())
    }

    #[test]
    fn min_snr_weights_are_bounded() {
        for prediction in [Prediction::X0, Prediction::Epsilon, Prediction::V] {
            let cfg = DiffusionConfig { min_snr: Some(5.0), prediction, ..DiffusionConfig::default() };
            let diffusion = Diffusion::new(&cfg, "").unwrap();
            let weights = diffusion.loss_weights(&(0..1000).collect::<Vec<_>>());
            assert!(weights.iter().all(|w| (0.0..=5.0).contains(w)), "{prediction:?}");
        }
    }
}
