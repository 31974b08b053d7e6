//! Instance normalisation in plain tensor ops: the specification of the kernel.

use super::check;
use candle_core::{D, Result, Tensor};

/// [`super::instance_norm`], differentiable through candle's own ops.
///
/// # Errors
/// As [`super::instance_norm`].
pub fn instance_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    slope: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    check(x, weight, bias, slope)?;
    compose(x, weight, bias, slope, eps)
}

/// The same for arguments that were checked.
pub(super) fn compose(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    slope: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let pixels = x.reshape((x.dim(0)?, (), x.dim(D::Minus1)?))?; // (B, pixels, C)
    let centred = pixels.broadcast_sub(&pixels.mean_keepdim(1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?; // (B, 1, C)
    let z = centred.broadcast_div(&deviation)?.broadcast_mul(weight)?.broadcast_add(bias)?;
    let y = match slope {
        None => z,
        // max(z, 0) + slope·min(z, 0)
        Some(slope) => (z.relu()? - z.neg()?.relu()?.broadcast_mul(slope)?)?,
    };
    y.reshape(x.shape())
}
