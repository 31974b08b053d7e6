//! Layers that several models share.

use candle_core::{Module, Result, Tensor};
use mamba_core::nn::Linear;
use mamba_core::{Init, ParamBuilder, Rng};
use mamba_kernels::Norm;

/// Deviation of the weights that RecBole's models start from.
pub(crate) const INIT_STD: f64 = 0.02;

/// A linear map with a bias, initialised as RecBole does: normal weights, zero bias.
pub(crate) fn linear(d_in: usize, d_out: usize, pb: &ParamBuilder) -> Result<Linear> {
    let weight = pb.get((d_out, d_in), "weight", Init::Normal { std: INIT_STD })?;
    Ok(Linear::from_tensors(weight, Some(pb.get_no_decay(d_out, "bias", Init::Zeros)?)))
}

/// Layer normalisation of `x`, or of `x + residual`.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    const EPS: f64 = 1e-12;

    pub(crate) fn new(d: usize, pb: &ParamBuilder) -> Result<Self> {
        let weight = pb.get_no_decay(d, "weight", Init::Ones)?;
        Ok(Self { weight, bias: pb.get_no_decay(d, "bias", Init::Zeros)? })
    }

    pub(crate) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let norm = Norm::layer(x, &self.weight, Self::EPS).bias(&self.bias);
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
