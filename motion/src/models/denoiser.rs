//! A denoiser of latents: condition, step and length as tokens, and the network over them, be it Motion Mamba or, as its
//! peer, the transformer encoder of MDM (Tevet et al. 2022, arXiv 2209.14916).

use super::attention::{Layer, LayerConfig, projection};
use super::motion_mamba::{MotionMamba, MotionMambaConfig};
use crate::diffusion::sinusoids;
use candle_core::{DType, Device, Module, Result, Tensor};
use mamba_core::nn::{Embedding, Linear, Norm, NormKind};
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

/// What a motion is conditioned on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ConditionConfig {
    /// Labels: of each group (content, style) one of so many values, or any.
    Labels {
        /// Values of each group.
        sizes: Vec<usize>,
    },
    /// The vector of a text, or none.
    Text {
        /// Channels of the vector.
        dim: usize,
    },
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
            NetworkConfig::MotionMamba(cfg) => cfg.validate(),
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

/// A batch of conditions.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// Of each row, a value or any for each group.
    Labels(Vec<Vec<Option<usize>>>),
    /// Of each row, the vector of a text or none.
    Text(Vec<Option<Vec<f32>>>),
}

impl Condition {
    /// Rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Labels(rows) => rows.len(),
            Self::Text(rows) => rows.len(),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As many rows that ask for nothing.
    pub fn nothing(&self) -> Self {
        match self {
            Self::Labels(rows) => Self::Labels(rows.iter().map(|row| vec![None; row.len()]).collect()),
            Self::Text(rows) => Self::Text(vec![None; rows.len()]),
        }
    }
}

#[derive(Clone, Debug)]
enum ConditionEncoder {
    /// A table for each group, whose first row means any.
    Labels(Vec<Embedding>),
    /// A map of the text's vector, and what stands for no text.
    Text(Linear, Tensor),
}

impl ConditionEncoder {
    fn new(cfg: &ConditionConfig, d: usize, pb: &ParamBuilder) -> Result<Self> {
        match cfg {
            ConditionConfig::Labels { sizes } => {
                let table = |(i, &size): (usize, &usize)| {
                    let weight = pb.pp("labels").pp(i).get_no_decay(
                        (size + 1, d),
                        "weight",
                        Init::Normal { std: 1.0 },
                    )?;
                    Ok(Embedding::from_tensor(weight))
                };
                Ok(Self::Labels(sizes.iter().enumerate().map(table).collect::<Result<_>>()?))
            }
            ConditionConfig::Text { dim } => Ok(Self::Text(
                projection(*dim, d, &pb.pp("text"))?,
                pb.get_no_decay(d, "no_text", Init::Normal { std: 1.0 })?,
            )),
        }
    }

    /// `(B, d)`.
    fn forward(&self, condition: &Condition, device: &Device) -> Result<Tensor> {
        match (self, condition) {
            (Self::Labels(tables), Condition::Labels(rows)) => {
                if let Some(row) = rows.iter().find(|row| row.len() != tables.len()) {
                    candle_core::bail!("condition: {} labels, expected {}", row.len(), tables.len());
                }
                let group = |(i, table): (usize, &Embedding)| {
                    let size = table.weight().dim(0)?;
                    let ids: Vec<u32> = rows.iter().map(|row| row[i].map_or(0, |id| id as u32 + 1)).collect();
                    match ids.iter().find(|&&id| id as usize >= size) {
                        Some(id) => candle_core::bail!(
                            "condition: label {} of group {i}, which has {}",
                            id - 1,
                            size - 1
                        ),
                        None => table.forward(&Tensor::from_vec(ids, rows.len(), device)?),
                    }
                };
                let groups = tables.iter().enumerate().map(group).collect::<Result<Vec<_>>>()?;
                match groups.split_first() {
                    Some((first, rest)) => rest.iter().try_fold(first.clone(), |sum, group| sum + group),
                    None => candle_core::bail!("condition: no groups of labels"),
                }
            }
            (Self::Text(map, nothing), Condition::Text(rows)) => {
                let dim = map.weight().dim(1)?;
                if let Some(row) = rows.iter().flatten().find(|row| row.len() != dim) {
                    candle_core::bail!("condition: a text of {} channels, expected {dim}", row.len());
                }
                let values = rows.iter().flat_map(|row| row.clone().unwrap_or_else(|| vec![0.0; dim]));
                let values = Tensor::from_iter(values, device)?.reshape((rows.len(), dim))?;
                let given = rows.iter().map(|row| if row.is_some() { 1f32 } else { 0.0 });
                let given = Tensor::from_iter(given, device)?.reshape((rows.len(), 1))?;
                let text = map.forward(&values)?.broadcast_mul(&given)?;
                text + given.affine(-1.0, 1.0)?.broadcast_mul(&nothing.unsqueeze(0)?)?
            }
            _ => candle_core::bail!("condition: labels and text are not interchangeable"),
        }
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
