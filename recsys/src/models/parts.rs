//! Layers that several models share.

use candle_core::{Module, Result, Tensor};
use mamba_core::mixer::{AnySsm, Ssm};
use mamba_core::nn::Linear;
use mamba_core::{Init, Mixer, MixerConfig, ParamBuilder, Rng};
use mamba_kernels::Norm;
use serde::{Deserialize, Serialize};

/// Deviation of the weights that RecBole's models start from.
pub(crate) const INIT_STD: f64 = 0.02;

/// A linear map with a bias, initialised as RecBole does: normal weights, zero bias.
pub(crate) fn linear(d_in: usize, d_out: usize, pb: &ParamBuilder) -> Result<Linear> {
    let weight = pb.get((d_out, d_in), "weight", Init::Normal { std: INIT_STD })?;
    Ok(Linear::from_tensors(weight, Some(pb.get_no_decay(d_out, "bias", Init::Zeros)?)))
}

/// Initial weights of the mixers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Initialization {
    /// As the published code of RecBole's models: N(0, 0.02²) and zeros, step sizes of Mamba-1 included.
    #[default]
    RecBole,
    /// The mixers' own.
    Mamba,
}

/// A mixer of width `d`, initialised either way.
pub(crate) fn new_mixer(
    d: usize,
    cfg: &MixerConfig,
    initialization: Initialization,
    pb: &ParamBuilder,
) -> Result<Mixer> {
    if initialization == Initialization::RecBole {
        // Every torch.nn.Linear of the published code, also inside the mixer; what is created here, `new` finds.
        let normal = |name: &str, shape: (usize, usize)| {
            pb.pp(name).get(shape, "weight", Init::Normal { std: INIT_STD })
        };
        let sizes = AnySsm::projections(d, cfg).map_err(candle_core::Error::wrap)?;
        normal("in_proj", (sizes.d_in_proj, d))?;
        if let MixerConfig::Mamba1(cfg) = cfg {
            let (inner, rank) = (cfg.d_inner(d), cfg.dt_rank.resolve(d));
            normal("x_proj", (rank + 2 * cfg.d_state, inner))?;
            normal("dt_proj", (inner, rank))?;
            pb.pp("dt_proj").get_no_decay(inner, "bias", Init::Zeros)?;
        }
        normal("out_proj", (d, sizes.d_inner))?;
    }
    Mixer::new(d, cfg, 1, pb)
}

/// Layer normalisation of `x`, or of `x + residual`.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// With RecBole's epsilon, 1e-12.
    pub(crate) fn new(d: usize, pb: &ParamBuilder) -> Result<Self> {
        Self::with_eps(d, 1e-12, pb)
    }

    pub(crate) fn with_eps(d: usize, eps: f64, pb: &ParamBuilder) -> Result<Self> {
        let weight = pb.get_no_decay(d, "weight", Init::Ones)?;
        Ok(Self { weight, bias: pb.get_no_decay(d, "bias", Init::Zeros)?, eps })
    }

    pub(crate) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let norm = Norm::layer(x, &self.weight, self.eps).bias(&self.bias);
        residual.into_iter().fold(norm, |norm, residual| norm.residual(residual)).run()
    }
}

/// Dropout while training; nothing else.
pub(crate) struct Dropout<'a> {
    p: f64,
    rng: Option<&'a mut Rng>,
}

impl<'a> Dropout<'a> {
    /// With probability `p`, where there is a generator to draw from.
    pub(crate) fn new(p: f64, rng: Option<&'a mut Rng>) -> Self {
        Self { p, rng }
    }

    pub(crate) fn apply(&mut self, x: Tensor) -> Result<Tensor> {
        match &mut self.rng {
            Some(rng) if self.p > 0.0 => mamba_core::dropout(&x, self.p, rng),
            _ => Ok(x),
        }
    }
}

/// The feed-forward layer of BERT and SASRec: `LN(x + w_2 gelu(w_1 x))`.
#[derive(Clone, Debug)]
pub(crate) struct FeedForward {
    w_1: Linear,
    w_2: Linear,
    norm: LayerNorm,
}

impl FeedForward {
    /// Under the given names of its two maps and its norm.
    pub(crate) fn new(d: usize, hidden: usize, names: [&str; 3], pb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            w_1: linear(d, hidden, &pb.pp(names[0]))?,
            w_2: linear(hidden, d, &pb.pp(names[1]))?,
            norm: LayerNorm::new(d, &pb.pp(names[2]))?,
        })
    }

    pub(crate) fn forward(
        &self,
        x: &Tensor,
        dropout: &mut Dropout<'_>,
        inner_dropout: bool,
    ) -> Result<Tensor> {
        let mut hidden = mamba_kernels::gelu(&self.w_1.forward(x)?)?; // (B, L, hidden)
        if inner_dropout {
            hidden = dropout.apply(hidden)?;
        }
        let y = dropout.apply(self.w_2.forward(&hidden)?)?; // (B, L, d)
        self.norm.forward(&y, Some(x))
    }
}
