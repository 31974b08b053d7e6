//! The exact GELU in plain tensor ops: the specification of the kernel.

use candle_core::{Result, Tensor};

/// `½ x (1 + erf(x/√2))`, differentiable through candle's own ops.
///
/// # Errors
/// Those of the ops.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let erf = (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?;
    (x * 0.5)? * (erf + 1.0)?
}
