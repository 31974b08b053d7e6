//! The motion VAE of latent diffusion (Chen et al. 2023, "Executing your Commands via Motion Diffusion in Latent Space",
//! arXiv 2212.04048): a transformer turns a motion of any length into a few latent tokens, and another turns them and a
//! length back into a motion.
//!
//! ```text
//! encoder  [μ tokens, σ tokens, frames] → layers → the first tokens → (μ, log σ²)
//! decoder  L queries: positions and a map of z; attending to each other and to z → L frames
//! ```
//!
//! Other than upstream, layers are pre-norm without long skips, two linear maps read μ and log σ² off their tokens, queries
//! see z from the beginning, and position waves have periods of 0.3 to 30 s.

use super::attention::{Layer, LayerConfig, padding_mask, projection};
use crate::diffusion::sinusoids;
use crate::features::N_FEATURES;
use candle_core::{Module, Result, Tensor};
use mamba_core::nn::{Linear, Norm, NormKind, widen};
use mamba_core::{Error, Init, ParamBuilder, Rng};
use serde::{Deserialize, Serialize};

/// The slowest position wave takes 2π times so many frames: the waves span a motion, and few are nearly constant.
const SLOWEST: f64 = 100.0;

/// Hyper-parameters of the VAE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaeConfig {
    /// Latent tokens of a motion.
    pub latent_tokens: usize,
    /// Channels of a latent token, and of the layers.
    pub latent_dim: usize,
    /// Layers of the encoder and of the decoder.
    pub n_layer: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Width inside the feed-forward parts.
    pub d_ff: usize,
    /// Share of values that training drops.
    pub dropout: f64,
    /// Most frames of a motion.
    pub max_frames: usize,
    /// Weight of the Kullback-Leibler divergence.
    pub kl_weight: f64,
    /// Weight of the error of the change from frame to frame, which keeps motions from trembling.
    pub change_weight: f64,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            latent_tokens: 2,
            latent_dim: 256,
            n_layer: 9,
            n_head: 4,
            d_ff: 1024,
            dropout: 0.1,
            max_frames: 200,
            kl_weight: 1e-4,
            change_weight: 1.0,
        }
    }
}

impl VaeConfig {
    /// Refuses sizes that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        let Self { latent_tokens, latent_dim, n_layer, n_head, d_ff, max_frames, .. } = *self;
        let sizes = [latent_tokens, latent_dim, n_layer, n_head, d_ff, max_frames];
        if sizes.contains(&0) || sizes.iter().any(|&size| size > 1 << 16) {
            return Err(Error::Config(format!(
                "vae: latent_tokens, latent_dim, n_layer, n_head, d_ff and max_frames must lie in 1 to 65536, got {sizes:?}"
            )));
        }
        if !latent_dim.is_multiple_of(n_head) {
            return Err(Error::Config(format!(
                "vae: n_head {n_head} does not divide latent_dim {latent_dim}"
            )));
        }
        let positive = |x: f64| x >= 0.0 && x.is_finite();
        if !(0.0..1.0).contains(&self.dropout) || !positive(self.kl_weight) || !positive(self.change_weight) {
            return Err(Error::Config(format!(
                "vae: dropout {} must lie in [0, 1), kl_weight {} and change_weight {} must be at least 0",
                self.dropout, self.kl_weight, self.change_weight
            )));
        }
        Ok(())
    }
}

/// The distribution of a motion's latent.
#[derive(Clone, Debug)]
pub struct Latent {
    /// Mean `(B, tokens, dim)`.
    pub mean: Tensor,
    /// Logarithm of the variance `(B, tokens, dim)`.
    pub log_var: Tensor,
}

impl Latent {
    /// A latent drawn with `noise`, which is standard normal.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        &self.mean + (&self.log_var * 0.5)?.exp()?.mul(noise)?
    }

    /// The mean divergence from the standard normal distribution, by value.
    pub fn kl(&self) -> Result<Tensor> {
        let (mean, log_var) = (widen(&self.mean)?, widen(&self.log_var)?);
        let terms = (((mean.sqr()? + log_var.exp()?)? - log_var)? - 1.0)?;
        terms.mean_all()? * 0.5
    }
}

/// Losses of a batch.
#[derive(Clone, Debug)]
pub struct VaeLoss {
    /// What is trained on.
    pub total: Tensor,
    /// Mean Huber error of the standardised features.
    pub reconstruction: Tensor,
    /// Mean divergence.
    pub kl: Tensor,
}

/// The VAE. Motions are standardised features `(B, L, 263)`.
#[derive(Clone, Debug)]
pub struct MotionVae {
    cfg: VaeConfig,
    input: Linear,
    tokens: Tensor,
    encoder: Vec<Layer>,
    encoder_norm: Norm,
    mean: Linear,
    log_var: Linear,
    query: Linear,
    decoder: Vec<Layer>,
    decoder_norm: Norm,
    output: Linear,
}

impl MotionVae {
    /// A model with parameters `encoder.…` and `decoder.…` under `pb`.
    pub fn new(cfg: &VaeConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::from)?;
        let d = cfg.latent_dim;
        let layer = LayerConfig { d, heads: cfg.n_head, d_ff: cfg.d_ff, dropout: cfg.dropout };
        let (encoder, decoder) = (pb.pp("encoder"), pb.pp("decoder"));
        let layers = |pb: &ParamBuilder, memory: bool| -> Result<Vec<Layer>> {
            (0..cfg.n_layer).map(|i| Layer::new(layer, memory, &pb.pp("layers").pp(i))).collect()
        };
        let norm = |pb: &ParamBuilder| Norm::new(NormKind::Layer, d, 1e-5, &pb.pp("norm"));
        Ok(Self {
            input: projection(N_FEATURES, d, &encoder.pp("input"))?,
            tokens: encoder.get_no_decay((2 * cfg.latent_tokens, d), "tokens", Init::Normal { std: 1.0 })?,
            encoder: layers(&encoder, false)?,
            encoder_norm: norm(&encoder)?,
            mean: projection(d, d, &encoder.pp("mean"))?,
            log_var: {
                let pb = encoder.pp("log_var");
                let weight = pb.get((d, d), "weight", Init::linear(d).scaled(0.1))?;
                // With variances of one at first, the noise would teach the decoder to pass the latent over.
                Linear::from_tensors(weight, Some(pb.get_no_decay(d, "bias", Init::Const(-4.0))?))
            },
            query: projection(cfg.latent_tokens * d, d, &decoder.pp("query"))?,
            decoder: layers(&decoder, true)?,
            decoder_norm: norm(&decoder)?,
            output: projection(d, N_FEATURES, &decoder.pp("output"))?,
            cfg: cfg.clone(),
        })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &VaeConfig {
        &self.cfg
    }

    /// The latent of motions `(B, L, 263)` of the given lengths; frames beyond a length are not seen.
    pub fn encode(&self, motion: &Tensor, lengths: &[usize], mut rng: Option<&mut Rng>) -> Result<Latent> {
        let (b, l, _) = motion.dims3()?;
        self.check(lengths, b, l)?;
        let n = self.cfg.latent_tokens;
        let positions = self.positions(l, motion)?;
        let frames = self.input.forward(motion)?.broadcast_add(&positions)?; // (B, L, d)
        let tokens = self.tokens.unsqueeze(0)?.repeat((b, 1, 1))?; // (B, 2T, d)
        let mask = padding_mask(lengths, 2 * n, l, motion)?;
        let mut x = Tensor::cat(&[&tokens, &frames], 1)?; // (B, 2T + L, d)
        for layer in &self.encoder {
            x = layer.forward(&x, mask.as_ref(), None, rng.as_deref_mut())?;
        }
        let read = |map: &Linear, from: usize| {
            map.forward(&self.encoder_norm.forward(&x.narrow(1, from, n)?.contiguous()?)?) // (B, T, d)
        };
        Ok(Latent { mean: read(&self.mean, 0)?, log_var: read(&self.log_var, n)?.clamp(-20.0, 10.0)? })
    }

    /// Motions `(B, L, 263)` from latents `(B, T, d)`, where L is the largest of the lengths; what lies beyond a motion's
    /// length means nothing.
    pub fn decode(&self, z: &Tensor, lengths: &[usize], mut rng: Option<&mut Rng>) -> Result<Tensor> {
        let l = lengths.iter().copied().max().unwrap_or(0);
        self.check(lengths, z.dim(0)?, l)?;
        let mask = padding_mask(lengths, 0, l, z)?;
        let query = self.query.forward(&z.flatten_from(1)?)?.unsqueeze(1)?; // (B, 1, d)
        let mut x = query.broadcast_add(&self.positions(l, z)?.unsqueeze(0)?)?; // (B, L, d)
        for layer in &self.decoder {
            x = layer.forward(&x, mask.as_ref(), Some(z), rng.as_deref_mut())?;
        }
        self.output.forward(&self.decoder_norm.forward(&x)?)
    }

    /// The loss of motions; `noise` `(B, T, d)` draws the latents, `rng` drops values.
    pub fn loss(
        &self,
        motion: &Tensor,
        lengths: &[usize],
        noise: &Tensor,
        mut rng: Option<&mut Rng>,
    ) -> Result<VaeLoss> {
        let latent = self.encode(motion, lengths, rng.as_deref_mut())?;
        let decoded = self.decode(&latent.sample(noise)?, lengths, rng)?;
        let l = decoded.dim(1)?;
        let error = (widen(&decoded)? - widen(&motion.narrow(1, 0, l)?)?)?;
        let reconstruction = masked_mean(&huber(&error)?, lengths, 0)?;
        let mut total = (&reconstruction + (latent.kl()? * self.cfg.kl_weight)?)?;
        if self.cfg.change_weight > 0.0 && l > 1 {
            let change = (error.narrow(1, 1, l - 1)? - error.narrow(1, 0, l - 1)?)?;
            let changes = masked_mean(&huber(&change)?, lengths, 1)?;
            total = (total + (changes * self.cfg.change_weight)?)?;
        }
        Ok(VaeLoss { total, reconstruction, kl: latent.kl()? })
    }

    fn positions(&self, l: usize, like: &Tensor) -> Result<Tensor> {
        let positions: Vec<f64> = (0..l).map(|i| i as f64).collect();
        sinusoids(&positions, self.cfg.latent_dim, SLOWEST, like.dtype(), like.device()) // (L, d)
    }

    fn check(&self, lengths: &[usize], rows: usize, l: usize) -> Result<()> {
        let most = self.cfg.max_frames;
        if lengths.len() != rows || lengths.iter().any(|&n| n == 0 || n > l || n > most) {
            candle_core::bail!(
                "vae: lengths {lengths:?} for {rows} motions of {l} frames, expected 1 to {most} each"
            );
        }
        Ok(())
    }
}

/// Half the square below 1, the distance less one half above.
fn huber(error: &Tensor) -> Result<Tensor> {
    let small = error.clamp(-1.0, 1.0)?;
    (error - (&small * 0.5)?)? * small
}

/// The mean of `(B, L, F)` over the first `length - less` rows of each.
fn masked_mean(x: &Tensor, lengths: &[usize], less: usize) -> Result<Tensor> {
    let (_, l, f) = x.dims3()?;
    let row = |&n: &usize| (0..l).map(move |i| if i + less < n { 1f32 } else { 0.0 });
    let mask: Vec<f32> = lengths.iter().flat_map(row).collect();
    let kept: f32 = mask.iter().sum();
    let mask = Tensor::from_vec(mask, (lengths.len(), l, 1), x.device())?.to_dtype(x.dtype())?;
    x.broadcast_mul(&mask)?.sum_all()? / (f64::from(kept.max(1.0)) * f as f64)
}
