//! A denoiser of latents: condition, step and length as tokens, and the network over them, be it Motion Mamba or, as its
//! peer, the transformer encoder of MDM (Tevet et al. 2022, arXiv 2209.14916).

use super::attention::{Layer, LayerConfig, projection};
use super::condition::{Condition, ConditionConfig, ConditionEncoder};
use super::motion_mamba::{MotionMamba, MotionMambaConfig};
use crate::diffusion::sinusoids;
use candle_core::{DType, Device, Module, Result, Tensor};
use mamba_core::nn::{Linear, Norm, NormKind};
use mamba_core::{Error, Init, ParamBuilder, Params};
use serde::{Deserialize, Serialize};

/// Which network denoises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NetworkConfig {
    /// The U-Net of Mamba blocks.
    MotionMamba(MotionMambaConfig),
    /// A transformer encoder.
    Transformer(TransformerConfig),
}

/// Hyper-parameters of the transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformerConfig {
    /// Layers.
    pub n_layer: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Width inside the feed-forward parts.
    pub d_ff: usize,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self { n_layer: 8, n_head: 4, d_ff: 1024 }
    }
}

/// Hyper-parameters of a denoiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiserConfig {
    /// Latent tokens.
    pub latent_tokens: usize,
    /// Channels of a latent token.
    pub latent_dim: usize,
    /// What a motion is conditioned on.
    pub condition: ConditionConfig,
    /// The network.
    pub network: NetworkConfig,
}

impl DenoiserConfig {
    /// Refuses sizes that make no model.
    pub fn validate(&self) -> mamba_core::Result<()> {
        if self.latent_tokens == 0 || self.latent_dim == 0 {
            return Err(Error::Config("denoiser: latent_tokens and latent_dim must be at least 1".into()));
        }
        match &self.network {
            NetworkConfig::MotionMamba(cfg) => cfg.validate_for(self.latent_tokens, self.latent_dim),
            NetworkConfig::Transformer(cfg) if cfg.n_layer == 0 || cfg.d_ff == 0 => {
                Err(Error::Config("denoiser: n_layer and d_ff must be at least 1".into()))
            }
            NetworkConfig::Transformer(_) => Ok(()),
        }
    }

    /// Number of values of a denoiser of this shape.
    pub fn count(&self) -> Result<usize> {
        let params = Params::fresh(0, DType::F32, &Device::Cpu);
        Denoiser::new(self, &params.builder())?;
        Ok(params.count())
    }

    /// The transformer with about as many parameters: same latent and condition, `n_layer` layers, and feed-forward parts
    /// as wide as it takes.
    pub fn transformer_peer(&self, n_layer: usize) -> Result<Self> {
        let peer = |d_ff: usize| {
            let transformer = TransformerConfig { n_layer, n_head: 4, d_ff };
            Self { network: NetworkConfig::Transformer(transformer), ..self.clone() }
        };
        let (narrow, wide) = (peer(1).count()?, peer(2).count()?);
        let rest = self.count()?.saturating_sub(narrow);
        Ok(peer(1 + rest / (wide - narrow)))
    }
}

#[derive(Clone, Debug)]
enum Network {
    MotionMamba(Box<MotionMamba>),
    Transformer { layers: Vec<Layer>, norm: Norm, output: Linear },
}

/// A denoiser of latents `(B, T, d)`.
#[derive(Clone, Debug)]
pub struct Denoiser {
    condition: ConditionEncoder,
    step: [Linear; 2],
    length: Linear,
    positions: Tensor,
    network: Network,
    latent_tokens: usize,
}

impl Denoiser {
    /// A model under `pb`.
    pub fn new(cfg: &DenoiserConfig, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::from)?;
        let (n, d) = (cfg.latent_tokens, cfg.latent_dim);
        let net = pb.pp("network");
        let network = match &cfg.network {
            NetworkConfig::MotionMamba(mamba) => {
                Network::MotionMamba(Box::new(MotionMamba::new(n, d, mamba, &net)?))
            }
            NetworkConfig::Transformer(TransformerConfig { n_layer, n_head, d_ff }) => {
                let layer = LayerConfig { d, heads: *n_head, d_ff: *d_ff, dropout: 0.0 };
                let layers = (0..*n_layer).map(|i| Layer::new(layer, false, &net.pp("layers").pp(i)));
                Network::Transformer {
                    layers: layers.collect::<Result<_>>()?,
                    norm: Norm::new(NormKind::Layer, d, 1e-5, &net.pp("norm"))?,
                    output: projection(d, d, &net.pp("output"))?,
                }
            }
        };
        Ok(Self {
            condition: ConditionEncoder::new(&cfg.condition, d, &pb.pp("condition"))?,
            step: [projection(d, d, &pb.pp("step").pp(0))?, projection(d, d, &pb.pp("step").pp(1))?],
            length: projection(d, d, &pb.pp("length"))?,
            positions: pb.get_no_decay((n + 2, d), "positions", Init::Normal { std: 0.02 })?,
            network,
            latent_tokens: n,
        })
    }

    /// The U-Net, if it is one.
    pub fn motion_mamba(&self) -> Option<&MotionMamba> {
        match &self.network {
            Network::MotionMamba(mamba) => Some(mamba),
            Network::Transformer { .. } => None,
        }
    }

    /// Latents `z` `(B, T, d)` noised to `steps` (of the original schedule), motions of `lengths` frames → what the
    /// diffusion predicts, `(B, T, d)`.
    pub fn forward(
        &self,
        z: &Tensor,
        steps: &[usize],
        condition: &Condition,
        lengths: &[usize],
    ) -> Result<Tensor> {
        let (b, n, d) = z.dims3()?;
        if [steps.len(), condition.len(), lengths.len()] != [b; 3] || n != self.latent_tokens {
            candle_core::bail!(
                "denoiser: {b} latents of {n} tokens, {} steps, {} conditions, {} lengths, expected {} tokens and as many of each",
                steps.len(),
                condition.len(),
                lengths.len(),
                self.latent_tokens
            );
        }
        let waves = |values: &[usize]| {
            let values: Vec<f64> = values.iter().map(|&x| x as f64).collect();
            sinusoids(&values, d, 10_000.0, z.dtype(), z.device()) // (B, d)
        };
        let step = self.step[1].forward(&self.step[0].forward(&waves(steps)?)?.silu()?)?;
        let step = (step + self.length.forward(&waves(lengths)?)?)?.unsqueeze(1)?; // (B, 1, d)
        let condition = self.condition.forward(condition, z.device())?.to_dtype(z.dtype())?.unsqueeze(1)?;
        let tokens = Tensor::cat(&[z, &step, &condition], 1)?.broadcast_add(&self.positions)?; // (B, T + 2, d)
        match &self.network {
            Network::MotionMamba(mamba) => mamba.forward(&tokens),
            Network::Transformer { layers, norm, output } => {
                let x = layers.iter().try_fold(tokens, |x, layer| layer.forward(&x, None, None, None))?;
                output.forward(&norm.forward(&x.narrow(1, 0, n)?.contiguous()?)?)
            }
        }
    }

    /// The same with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): `scale` 1 asks once, with the
    /// condition; other scales move away from what would be predicted without it.
    pub fn guided(
        &self,
        z: &Tensor,
        steps: &[usize],
        condition: &Condition,
        lengths: &[usize],
        scale: f64,
    ) -> Result<Tensor> {
        let with = self.forward(z, steps, condition, lengths)?;
        if scale == 1.0 {
            return Ok(with);
        }
        let without = self.forward(z, steps, &condition.nothing(), lengths)?;
        &without + ((with - &without)? * scale)?
    }
}
