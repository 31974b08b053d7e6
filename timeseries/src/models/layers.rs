//! Parts that several forecasters share.

use candle_core::{DType, Device, Module, Result, Tensor};
use mamba_core::nn::Linear;
use mamba_core::{Init, ParamBuilder, Rng, dropout};
use serde::{Deserialize, Serialize};

/// Added to variances under the root.
const EPS: f64 = 1e-5;

/// Sizes that the data decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Steps that the model sees, L.
    pub seq_len: usize,
    /// Steps that it forecasts, H.
    pub pred_len: usize,
    /// Variables, V.
    pub n_vars: usize,
    /// Calendar features of a step, M.
    pub n_marks: usize,
}

/// A batch of look-back windows.
#[derive(Clone, Debug)]
pub struct Input {
    /// Standardised values `(B, L, V)`.
    pub values: Tensor,
    /// Calendar features `(B, L, M)`; none where the model is not to see them.
    pub marks: Option<Tensor>,
}

impl Input {
    /// The same on a device, in a model's type.
    pub fn to(&self, device: &Device, dtype: DType) -> Result<Self> {
        let moved = |x: &Tensor| x.to_device(device)?.to_dtype(dtype);
        Ok(Self { values: moved(&self.values)?, marks: self.marks.as_ref().map(moved).transpose()? })
    }
}

/// Non-linearity of a feed-forward layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x · Φ(x), with the exact Φ.
    #[default]
    Gelu,
    /// max(x, 0).
    Relu,
}

impl Activation {
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => mamba_kernels::gelu(x),
            Self::Relu => x.relu(),
        }
    }
}

/// Each variable of each window brought to mean 0 and deviation 1, and the way back (Kim et al. 2022; without its
/// affine part, Liu et al. 2022).
#[derive(Debug)]
pub(crate) struct WindowNorm {
    mean: Tensor,
    deviation: Tensor,
}

impl WindowNorm {
    /// `x` `(B, L, V)` → the same normalised, and what undoes it.
    pub(crate) fn apply(x: &Tensor) -> Result<(Tensor, Self)> {
        let mean = x.mean_keepdim(1)?; // (B, 1, V)
        let centred = x.broadcast_sub(&mean)?;
        let deviation = (centred.sqr()?.mean_keepdim(1)? + EPS)?.sqrt()?; // (B, 1, V)
        Ok((centred.broadcast_div(&deviation)?, Self { mean, deviation }))
    }

    /// `y` `(B, H, V)` → the same in the scale of the input.
    pub(crate) fn invert(&self, y: &Tensor) -> Result<Tensor> {
        y.broadcast_mul(&self.deviation)?.broadcast_add(&self.mean)
    }
}

/// RevIN (Kim et al. 2022): a [`WindowNorm`] followed by a learnt affine map of each variable.
#[derive(Clone, Debug)]
pub(crate) struct RevIn {
    weight: Tensor,
    bias: Tensor,
}

impl RevIn {
    pub(crate) fn new(n_vars: usize, pb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            weight: pb.get_no_decay(n_vars, "affine_weight", Init::Ones)?,
            bias: pb.get_no_decay(n_vars, "affine_bias", Init::Zeros)?,
        })
    }

    pub(crate) fn apply(&self, x: &Tensor) -> Result<(Tensor, WindowNorm)> {
        let (x, norm) = WindowNorm::apply(x)?;
        Ok((x.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?, norm))
    }

    pub(crate) fn invert(&self, y: &Tensor, norm: &WindowNorm) -> Result<Tensor> {
        let y = y.broadcast_sub(&self.bias)?.broadcast_div(&(&self.weight + EPS * EPS)?)?;
        norm.invert(&y)
    }
}

/// Dropout while training, that is with a generator; nothing otherwise.
pub(crate) fn drop(x: &Tensor, p: f64, rng: &mut Option<Rng>) -> Result<Tensor> {
    match rng {
        Some(rng) if p > 0.0 => dropout(x, p, rng),
        _ => Ok(x.clone()),
    }
}

/// A linear map whose weight checkpoints hold as that of a convolution of width 1, `(out, in, 1)`.
pub(crate) fn pointwise(d_in: usize, d_out: usize, pb: &ParamBuilder) -> Result<Linear> {
    let weight = pb.get((d_out, d_in, 1), "weight", Init::linear(d_in))?.squeeze(2)?;
    Ok(Linear::from_tensors(weight, Some(pb.get_no_decay(d_out, "bias", Init::linear(d_in))?)))
}

/// `w2 · act(w1 · x)` with dropout behind both.
#[derive(Clone, Debug)]
pub(crate) struct FeedForward {
    pub(crate) inner: Linear,
    pub(crate) outer: Linear,
    pub(crate) activation: Activation,
    pub(crate) dropout: f64,
}

impl FeedForward {
    /// `(…, d)` → `(…, d)`; the caller drops the output.
    pub(crate) fn forward(&self, x: &Tensor, rng: &mut Option<Rng>) -> Result<Tensor> {
        let hidden = self.activation.apply(&self.inner.forward(x)?)?; // (…, d_ff)
        self.outer.forward(&drop(&hidden, self.dropout, rng)?)
    }
}

/// Sinusoidal positions (Vaswani et al. 2017, section 3.5), `(length, d)`.
pub(crate) fn positions(length: usize, d: usize, dtype: DType, pb: &ParamBuilder) -> Result<Tensor> {
    let value = |t: usize, i: usize| {
        let angle = t as f32 * (-((i & !1) as f32) * (10_000f32.ln() / d as f32)).exp();
        if i.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    };
    let table: Vec<f32> = (0..length).flat_map(|t| (0..d).map(move |i| value(t, i))).collect();
    Tensor::from_vec(table, (length, d), pb.device())?.to_dtype(dtype)
}
