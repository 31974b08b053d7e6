//! Linear maps in plain tensor ops: the specification of the kernel.

use candle_core::{D, Result, Tensor};

/// The parts of `x Wᵀ + b`, differentiable through candle's own ops.
///
/// # Errors
/// As [`super::linear`].
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, parts: &[usize]) -> Result<Vec<Tensor>> {
    super::check(x, weight, bias, parts)?;
    let mut y = x.broadcast_matmul(&weight.t()?)?; // (…, out)
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    let mut start = 0;
    parts
        .iter()
        .map(|&part| {
            start += part;
            y.narrow(D::Minus1, start - part, part)?.contiguous()
        })
        .collect()
}
