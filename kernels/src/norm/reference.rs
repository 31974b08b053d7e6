//! Normalisation in plain tensor ops: the specification of the kernel.

use super::{Kind, Norm};
use candle_core::{D, Result, Tensor};

/// Output and `x + residual`, differentiable through candle's own ops.
///
/// # Errors
/// As [`Norm::run`].
pub fn norm(norm: &Norm<'_>) -> Result<(Tensor, Tensor)> {
    let group = norm.check()?;
    let sum = match norm.residual {
        Some(residual) => (norm.x + residual)?,
        None => norm.x.clone(),
    };
    let gate = norm.z.map(|z| z.silu()).transpose()?;
    let mut v = match &gate {
        Some(gate) if !norm.norm_before_gate => (&sum * gate)?,
        _ => sum.clone(),
    };
    let mut grouped = sum.dims().to_vec();
    let d = grouped.pop().unwrap_or(0);
    grouped.extend([d / group, group]);
    v = v.reshape(grouped)?; // (…, groups, group)
    if norm.kind == Kind::Layer {
        v = v.broadcast_sub(&v.mean_keepdim(D::Minus1)?)?;
    }
    let scale = (v.sqr()?.mean_keepdim(D::Minus1)? + norm.eps)?.sqrt()?;
    let mut y = v.broadcast_div(&scale)?.reshape(sum.shape())?.broadcast_mul(norm.weight)?;
    if let Some(bias) = norm.bias {
        y = y.broadcast_add(bias)?;
    }
    if let (Some(gate), true) = (&gate, norm.norm_before_gate) {
        y = (y * gate)?;
    }
    Ok((y, sum))
}
