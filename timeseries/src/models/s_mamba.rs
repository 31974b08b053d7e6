//! S-Mamba (Wang et al. 2024, arXiv 2403.11144): each variable's whole look-back window is one token, and a Mamba reads
//! the tokens in both directions.
//!
//! ```text
//! tokens = W · [each variable's L values | each calendar feature's L values]      (B, V + M, d)
//! layer:   x = LN(x + mamba(x) + reversed mamba(x));  x = LN(x + ffn(x))
//! output = W' · LN(x), the tokens of the variables                               (B, V, H)
//! ```
//!
//! With `use_norm` every window is brought to mean 0 and deviation 1 and the forecast taken back (section 3.2). Published
//! weights hold two more mixers and an attention layer in each block that take no part in the forecast; they are ignored.

use super::layers::{Activation, FeedForward, Input, Sizes, WindowNorm, drop, pointwise};
use candle_core::{Module, Result, Tensor, bail};
use mamba_core::mamba1::Pass;
use mamba_core::nn::{Linear, Norm, NormKind};
use mamba_core::{Mamba1, Mamba1Config, ParamBuilder, Rng};
use serde::{Deserialize, Serialize};

/// Hyper-parameters of S-Mamba.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SMambaConfig {
    /// Width of a token.
    pub d_model: usize,
    /// Width inside the feed-forward layers.
    pub d_ff: usize,
    /// Layers.
    pub e_layers: usize,
    /// The mixers.
    pub ssm_cfg: Mamba1Config,
    /// Dropout.
    pub dropout: f64,
    /// Non-linearity of the feed-forward layers.
    pub activation: Activation,
    /// Whether every window is normalised by its own mean and deviation.
    pub use_norm: bool,
    /// Whether calendar features are tokens too.
    pub use_marks: bool,
}

impl Default for SMambaConfig {
    fn default() -> Self {
        Self {
            d_model: 256,
            d_ff: 256,
            e_layers: 2,
            ssm_cfg: Mamba1Config { d_state: 2, d_conv: 2, expand: 1, ..Mamba1Config::default() },
            dropout: 0.1,
            activation: Activation::Gelu,
            use_norm: true,
            use_marks: true,
        }
    }
}

/// S-Mamba.
#[derive(Clone, Debug)]
pub struct SMamba {
    embedding: Linear,
    layers: Vec<Layer>,
    norm: Norm,
    projector: Linear,
    dropout: f64,
    use_norm: bool,
    n_vars: usize,
}

#[derive(Clone, Debug)]
struct Layer {
    forward: Mamba1,
    reverse: Mamba1,
    norm1: Norm,
    ffn: FeedForward,
    norm2: Norm,
}

impl Layer {
    fn new(cfg: &SMambaConfig, pb: &ParamBuilder) -> Result<Self> {
        let (d, norm) = (cfg.d_model, |name| Norm::new(NormKind::Layer, cfg.d_model, 1e-5, &pb.pp(name)));
        Ok(Self {
            forward: Mamba1::new(d, &cfg.ssm_cfg, 1, &pb.pp("attention"))?,
            reverse: Mamba1::new(d, &cfg.ssm_cfg, 1, &pb.pp("attention_r"))?,
            norm1: norm("norm1")?,
            ffn: FeedForward {
                inner: pointwise(d, cfg.d_ff, &pb.pp("conv1"))?,
                outer: pointwise(cfg.d_ff, d, &pb.pp("conv2"))?,
                activation: cfg.activation,
                dropout: cfg.dropout,
            },
            norm2: norm("norm2")?,
        })
    }

    /// `(B, tokens, d)` → `(B, tokens, d)`.
    fn forward(&self, x: &Tensor, rng: &mut Option<Rng>) -> Result<Tensor> {
        let reverse = Pass { reverse: true, ..Pass::default() };
        let mixed = (self.forward.forward(x)? + self.reverse.forward_pass(x, reverse)?)?;
        let (x, _) = self.norm1.forward_residual(&mixed, Some(x))?;
        let y = drop(&self.ffn.forward(&x, rng)?, self.ffn.dropout, rng)?;
        Ok(self.norm2.forward_residual(&y, Some(&x))?.0)
    }
}

impl SMamba {
    /// Parameters under upstream's names.
    pub fn new(cfg: &SMambaConfig, sizes: Sizes, pb: &ParamBuilder) -> Result<Self> {
        let encoder = pb.pp("encoder");
        let layers = (0..cfg.e_layers).map(|i| Layer::new(cfg, &encoder.pp("attn_layers").pp(i)));
        Ok(Self {
            embedding: Linear::new(
                sizes.seq_len,
                cfg.d_model,
                true,
                &pb.pp("enc_embedding.value_embedding"),
            )?,
            layers: layers.collect::<Result<_>>()?,
            norm: Norm::new(NormKind::Layer, cfg.d_model, 1e-5, &encoder.pp("norm"))?,
            projector: Linear::new(cfg.d_model, sizes.pred_len, true, &pb.pp("projector"))?,
            dropout: cfg.dropout,
            use_norm: cfg.use_norm,
            n_vars: sizes.n_vars,
        })
    }

    /// Tensors of published weights that take no part in the forecast.
    pub(crate) fn ignores(name: &str) -> bool {
        [".man.", ".man2.", ".a."].iter().any(|part| name.contains(part))
    }

    /// `(B, L, V)` → `(B, H, V)`.
    pub fn forward(&self, input: &Input, rng: &mut Option<Rng>) -> Result<Tensor> {
        let n_vars = input.values.dim(2)?;
        if n_vars != self.n_vars {
            bail!("s_mamba: {n_vars} variables, expected {}", self.n_vars);
        }
        let (x, norm) = match self.use_norm {
            true => WindowNorm::apply(&input.values).map(|(x, norm)| (x, Some(norm)))?,
            false => (input.values.clone(), None),
        };
        let mut tokens = x.transpose(1, 2)?; // (B, V, L)
        if let Some(marks) = &input.marks {
            tokens = Tensor::cat(&[&tokens, &marks.transpose(1, 2)?], 1)?; // (B, V + M, L)
        }
        let mut x = drop(&self.embedding.forward(&tokens.contiguous()?)?, self.dropout, rng)?; // (B, V + M, d)
        for layer in &self.layers {
            x = layer.forward(&x, rng)?;
        }
        let y = self.projector.forward(&self.norm.forward(&x)?)?; // (B, V + M, H)
        let y = y.narrow(1, 0, n_vars)?.transpose(1, 2)?; // (B, H, V)
        norm.map_or_else(|| y.contiguous(), |norm| norm.invert(&y))
    }
}
