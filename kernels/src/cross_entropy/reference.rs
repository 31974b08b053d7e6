//! Cross-entropy of a linear classifier in plain tensor ops: the specification of the kernel.

use crate::fused::widen;
use candle_core::{D, Result, Tensor};

/// The loss, differentiable through candle's own ops; all logits exist at once.
///
/// # Errors
/// As [`super::linear_cross_entropy`].
pub fn linear_cross_entropy(x: &Tensor, weight: &Tensor, targets: &Tensor) -> Result<Tensor> {
    super::check(x, weight, targets)?;
    let logits = widen(&x.matmul(&weight.t()?)?)?; // (n, V)
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?; // (n, 1)
    let of_target = shifted.gather(&targets.unsqueeze(1)?, 1)?; // (n, 1)
    (total - of_target)?.mean_all()
}
