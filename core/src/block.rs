//! The pre-norm residual block of mamba_ssm: add → norm → mixer, with hidden state and residual kept apart so that the
//! add and the norm are one op.

use crate::ParamBuilder;
use crate::nn::{GatedMlp, Norm, NormKind};
use candle_core::{Module, Result, Tensor};

/// A mixer between an add-and-norm and, optionally, a gated feed-forward layer with its own add-and-norm.
#[derive(Clone, Debug)]
pub struct Block<M> {
    norm: Norm,
    mixer: M,
    mlp: Option<(Norm, GatedMlp)>,
}

impl<M> Block<M> {
    /// Parameters `norm` and, with a feed-forward layer, `norm2` under `pb`; that layer and the mixer are built by the
    /// caller.
    pub fn new(
        d_model: usize,
        norm: (NormKind, f64),
        mixer: M,
        mlp: Option<GatedMlp>,
        pb: &ParamBuilder,
    ) -> Result<Self> {
        let (kind, eps) = norm;
        let mlp = match mlp {
            Some(mlp) => Some((Norm::new(kind, d_model, eps, &pb.pp("norm2"))?, mlp)),
            None => None,
        };
        Ok(Self { norm: Norm::new(kind, d_model, eps, &pb.pp("norm"))?, mixer, mlp })
    }

    /// `hidden`, `residual` `(B, L, d_model)` → the next hidden state and residual; `mix` runs the mixer.
    pub fn forward(
        &self,
        hidden: &Tensor,
        residual: Option<&Tensor>,
        mix: impl FnOnce(&M, &Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let (x, residual) = self.norm.forward_residual(hidden, residual)?;
        let hidden = mix(&self.mixer, &x)?;
        let Some((norm, mlp)) = &self.mlp else { return Ok((hidden, residual)) };
        let (x, residual) = norm.forward_residual(&hidden, Some(&residual))?;
        Ok((mlp.forward(&x)?, residual))
    }
}
