//! Hidden-state suppressing (DGMamba, Long et al. 2024, arXiv 2404.07794, as in its released code): where a state hardly
//! lasts, its share of the output is made smaller.
//!
//! ```text
//! r_t[n] = Σ_d δ_t[d] A[d, n]                 δ: the step sizes before bias and softplus
//! C_t[n] ← C_t[n] · (1 if r_t[n] ≥ α, else r_t[n])
//! ```
//!
//! The released code reshapes where it should transpose, so that its mask belongs to other tokens and states than it was
//! computed from, and reuses the mask of one scan direction for all four. Neither is copied here.

use candle_core::{Result, Tensor};

/// DGMamba's threshold.
pub const ALPHA: f64 = 0.5;

/// The suppressed `C` `(B, L, N)`, given step sizes `delta` `(B, L, D)` before bias and softplus, and `a` `(D, N)`.
/// Gradients flow to all three, except through the comparison.
pub fn suppress(delta: &Tensor, a: &Tensor, c: &Tensor, alpha: f64) -> Result<Tensor> {
    let r = delta.broadcast_matmul(a)?; // (B, L, N)
    let lasting = r.ge(alpha)?.to_dtype(c.dtype())?;
    // lasting + (1 - lasting)·r
    let factor = (&lasting + (lasting.affine(-1.0, 1.0)? * r)?)?;
    c * factor
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn states_below_the_threshold_are_scaled_and_the_others_stay() -> Result<()> {
        let dev = Device::Cpu;
        let delta = Var::from_tensor(&Tensor::new(&[[[0.5f64, -1.0], [1.0, 2.0]]], &dev)?)?;
        let a = Tensor::new(&[[-1f64, 2.0, 0.5], [-1.0, 0.25, 1.0]], &dev)?;
        let c = Tensor::new(&[[[3f64, 5.0, 7.0], [2.0, 4.0, 6.0]]], &dev)?;
        // r = (0.5, 0.75, -0.75), (-3, 2.5, 2.5)
        let got = suppress(&delta, &a, &c, ALPHA)?;
        assert_eq!(got.to_vec3::<f64>()?, [[[3.0, 5.0, 7.0 * -0.75], [2.0 * -3.0, 4.0, 6.0]]]);
        let all = suppress(&delta, &a, &c, f64::NEG_INFINITY)?;
        assert_eq!(all.to_vec3::<f64>()?, c.to_vec3::<f64>()?);
        // only the suppressed entries depend on δ: ∂/∂δ of C·r is C·A
        let grads = got.sum_all()?.backward()?;
        let got = grads.get(&delta).unwrap().to_vec3::<f64>()?;
        assert_eq!(got, [[[7.0 * 0.5, 7.0], [-2.0, -2.0]]]);
        Ok(())
    }
}
