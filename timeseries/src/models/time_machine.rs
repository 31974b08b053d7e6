//! TimeMachine (Ahamed and Cheng 2024, arXiv 2403.09898): four Mambas look at a window at two resolutions.
//!
//! ```text
//! e1 = W1 · window                      (·, n1)        outer = mamba3(e1) + mamba4(e1)
//! e2 = W2 · e1                          (·, n2)        inner = mamba1(e2) + mamba2(e2) (+ e2)
//! output = W4 · [W3 · inner (+ e1) | outer]            (·, H)
//! ```
//!
//! With `channel_independent` each variable is a batch row of its own: mamba2 and mamba3 then see a single token of n2 or
//! n1 channels, and mamba1 and mamba4 the n2 or n1 values as tokens of one channel. Else the variables are the tokens of
//! all four.

use super::layers::{Input, RevIn, Sizes, WindowNorm, drop};
use super::scalar_mamba::ScalarMamba;
use candle_core::{Module, Result, Tensor};
use mamba_core::nn::Linear;
use mamba_core::{Error, Mamba1, Mamba1Config, ParamBuilder, Rng};
use serde::{Deserialize, Serialize};

/// Hyper-parameters of TimeMachine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeMachineConfig {
    /// Width of the finer embedding.
    pub n1: usize,
    /// Width of the coarser one.
    pub n2: usize,
    /// The mixers.
    pub ssm_cfg: Mamba1Config,
    /// Dropout behind both embeddings.
    pub dropout: f64,
    /// Whether every variable is forecast from itself alone.
    pub channel_independent: bool,
    /// Whether the embeddings are added behind the mixers.
    pub residual: bool,
    /// Whether the normalisation of the windows has a learnt affine part.
    pub revin: bool,
}

impl Default for TimeMachineConfig {
    fn default() -> Self {
        Self {
            n1: 128,
            n2: 32,
            ssm_cfg: Mamba1Config { d_state: 256, d_conv: 2, expand: 1, ..Mamba1Config::default() },
            dropout: 0.7,
            channel_independent: true,
            residual: true,
            revin: true,
        }
    }
}

impl TimeMachineConfig {
    pub(crate) fn validate(&self) -> mamba_core::Result<()> {
        match self.n1 == 0 || self.n2 == 0 {
            true => Err(Error::Config(format!("n1 is {} and n2 {}, must be at least 1", self.n1, self.n2))),
            false => Ok(()),
        }
    }
}

/// A mixer over the values of an embedding, or over the variables.
#[derive(Clone, Debug)]
enum Mixer {
    /// Tokens are the values, of one channel.
    Scalar(ScalarMamba),
    /// The same for configs that [`ScalarMamba`] does not fit.
    Values(Mamba1),
    /// Tokens are the variables.
    Variables(Mamba1),
}

impl Mixer {
    fn new(width: usize, cfg: &TimeMachineConfig, pb: &ParamBuilder) -> Result<Self> {
        let ssm = &cfg.ssm_cfg;
        Ok(match cfg.channel_independent {
            true if ScalarMamba::fits(1, ssm) => Self::Scalar(ScalarMamba::new(ssm, pb)?),
            true => Self::Values(Mamba1::new(1, ssm, 1, pb)?),
            false => Self::Variables(Mamba1::new(width, ssm, 1, pb)?),
        })
    }

    /// `(rows, tokens, width)` → the same.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Scalar(mamba) => mamba.forward(&x.squeeze(1)?)?.unsqueeze(1),
            Self::Values(mamba) => {
                mamba.forward(&x.transpose(1, 2)?.contiguous()?)?.transpose(1, 2)?.contiguous()
            }
            Self::Variables(mamba) => mamba.forward(x),
        }
    }
}

/// TimeMachine.
#[derive(Clone, Debug)]
pub struct TimeMachine {
    revin: Option<RevIn>,
    lin1: Linear,
    lin2: Linear,
    lin3: Linear,
    lin4: Linear,
    mamba1: Mixer,
    mamba2: Mamba1,
    mamba3: Mamba1,
    mamba4: Mixer,
    cfg: TimeMachineConfig,
}

impl TimeMachine {
    /// Parameters under upstream's names.
    pub fn new(cfg: &TimeMachineConfig, sizes: Sizes, pb: &ParamBuilder) -> Result<Self> {
        cfg.validate()?;
        let (n1, n2) = (cfg.n1, cfg.n2);
        Ok(Self {
            revin: match cfg.revin {
                true => Some(RevIn::new(sizes.n_vars, &pb.pp("revin_layer"))?),
                false => None,
            },
            lin1: Linear::new(sizes.seq_len, n1, true, &pb.pp("lin1"))?,
            lin2: Linear::new(n1, n2, true, &pb.pp("lin2"))?,
            lin3: Linear::new(n2, n1, true, &pb.pp("lin3"))?,
            lin4: Linear::new(2 * n1, sizes.pred_len, true, &pb.pp("lin4"))?,
            mamba1: Mixer::new(n2, cfg, &pb.pp("mamba1"))?,
            mamba2: Mamba1::new(n2, &cfg.ssm_cfg, 1, &pb.pp("mamba2"))?,
            mamba3: Mamba1::new(n1, &cfg.ssm_cfg, 1, &pb.pp("mamba3"))?,
            mamba4: Mixer::new(n1, cfg, &pb.pp("mamba4"))?,
            cfg: cfg.clone(),
        })
    }

    /// `(B, L, V)` → `(B, H, V)`.
    pub fn forward(&self, input: &Input, rng: &mut Option<Rng>) -> Result<Tensor> {
        let (b, len, v) = input.values.dims3()?;
        let (x, norm) = match &self.revin {
            Some(revin) => revin.apply(&input.values)?,
            None => WindowNorm::apply(&input.values)?,
        };
        let x = x.transpose(1, 2)?.contiguous()?; // (B, V, L)
        let x = match self.cfg.channel_independent {
            true => x.reshape((b * v, 1, len))?,
            false => x,
        };
        let embedded1 = self.lin1.forward(&x)?; // (·, ·, n1)
        let x = drop(&embedded1, self.cfg.dropout, rng)?;
        let outer = (self.mamba4.forward(&x)? + self.mamba3.forward(&x)?)?;
        let embedded2 = self.lin2.forward(&x)?; // (·, ·, n2)
        let x = drop(&embedded2, self.cfg.dropout, rng)?;
        let mut inner = (self.mamba1.forward(&x)? + self.mamba2.forward(&x)?)?;
        if self.cfg.residual {
            inner = (inner + embedded2)?;
        }
        let mut inner = self.lin3.forward(&inner)?; // (·, ·, n1)
        if self.cfg.residual {
            inner = (inner + embedded1)?;
        }
        // The parts of lin4 are cut here and not beforehand: a copy would not see what training changes.
        let n1 = self.cfg.n1;
        let part = |i: usize| self.lin4.weight().narrow(1, i * n1, n1)?.contiguous();
        let of_inner = Linear::from_tensors(part(0)?, self.lin4.bias().cloned());
        let of_outer = Linear::from_tensors(part(1)?, None);
        let y = (of_inner.forward(&inner)? + of_outer.forward(&outer)?)?; // (·, ·, H)
        let h = y.dim(2)?;
        let y = y.reshape((b, v, h))?.transpose(1, 2)?; // (B, H, V)
        match &self.revin {
            Some(revin) => revin.invert(&y, &norm),
            None => norm.invert(&y),
        }
    }
}
