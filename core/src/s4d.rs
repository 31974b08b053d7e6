//! A diagonal state space layer with complex states (Gu, Gupta, Goel and Ré 2022, "On the Parameterization and
//! Initialization of Diagonal State Space Models", arXiv 2206.11893): time-invariant, unlike Mamba, and the layer that
//! S4D-Lin was made for.
//!
//! ```text
//! h_n' = A_n h_n + B_n u,   y = 2 Re Σ_n C_n h_n + D u           n < N/2, for every channel
//! K_t  = 2 Re Σ_n C_n (exp(Δ A_n) - 1)/A_n · B_n · exp(Δ A_n)^t          (zero-order hold, their equation 3, B = 1)
//! y    = K * u + D u
//! ```
//!
//! States come in conjugate pairs, of which one is kept, real and imaginary part as a pair of real numbers. This is a plain
//! reference of O(L²) in tensor ops, for short sequences and for comparison; there is no fused kernel of it.

use crate::init::StateInit;
use crate::{Init, ParamBuilder};
use candle_core::{D, Result, Tensor, bail};

/// The layer; parameters `log_dt` `(D)`, `log_A_real`, `A_imag` `(D, N/2)`, `C` `(D, N/2, 2)` and `D` `(D)`.
#[derive(Clone, Debug)]
pub struct S4d {
    log_dt: Tensor,
    log_a_real: Tensor,
    a_imag: Tensor,
    c: Tensor,
    d: Tensor,
}

impl S4d {
    /// A layer of `d_model` channels with `d_state` real numbers of state each, an even number.
    pub fn new(d_model: usize, d_state: usize, init: StateInit, pb: &ParamBuilder) -> Result<Self> {
        if d_state == 0 || !d_state.is_multiple_of(2) {
            bail!("s4d: d_state is {d_state}, expected an even number, a pair for each complex state");
        }
        let pairs = d_state / 2;
        let poles = init.poles(pairs)?;
        let column = |f: fn(&(f64, f64)) -> f64| Init::Rows(poles.iter().map(f).collect());
        let (lo, hi) = (1e-3f64.ln(), 0.1f64.ln());
        Ok(Self {
            log_dt: pb.get_no_decay(d_model, "log_dt", Init::Uniform { lo, hi })?,
            log_a_real: pb.get_no_decay((d_model, pairs), "log_A_real", column(|p| (-p.0).ln()))?,
            a_imag: pb.get_no_decay((d_model, pairs), "A_imag", column(|p| p.1))?,
            c: pb.get((d_model, pairs, 2), "C", Init::Normal { std: 0.5f64.sqrt() })?,
            d: pb.get_no_decay(d_model, "D", Init::Ones)?,
        })
    }

    /// The first `len` taps of the convolution, `(D, len)`.
    pub fn kernel(&self, len: usize) -> Result<Tensor> {
        let dt = self.log_dt.exp()?.unsqueeze(1)?; // (D, 1)
        let a_re = self.log_a_real.exp()?.neg()?; // (D, N/2)
        let (x, y) = (a_re.broadcast_mul(&dt)?, self.a_imag.broadcast_mul(&dt)?); // ΔA
        // q = (exp(ΔA) - 1) / A, a complex quotient
        let decay = x.exp()?;
        let (e_re, e_im) = (((&decay * y.cos()?)? - 1.0)?, (&decay * y.sin()?)?);
        let norm = (a_re.sqr()? + self.a_imag.sqr()?)?;
        let q_re = (((&e_re * &a_re)? + (&e_im * &self.a_imag)?)? / &norm)?;
        let q_im = (((&e_im * &a_re)? - (&e_re * &self.a_imag)?)? / &norm)?;
        let part = |i| self.c.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1);
        let (c_re, c_im) = (part(0)?, part(1)?);
        let w_re = ((&c_re * &q_re)? - (&c_im * &q_im)?)?.unsqueeze(2)?; // (D, N/2, 1)
        let w_im = ((&c_re * &q_im)? + (&c_im * &q_re)?)?.unsqueeze(2)?;
        let t = Tensor::arange(0u32, len as u32, dt.device())?.to_dtype(dt.dtype())?.reshape((1, 1, len))?;
        let (x, y) = (x.unsqueeze(2)?.broadcast_mul(&t)?.exp()?, y.unsqueeze(2)?.broadcast_mul(&t)?); // (D, N/2, len)
        let wave = (y.cos()?.broadcast_mul(&w_re)? - y.sin()?.broadcast_mul(&w_im)?)?;
        (x * wave)?.sum(1)? * 2.0
    }

    /// `(B, L, D)` → `(B, L, D)`.
    pub fn forward(&self, u: &Tensor) -> Result<Tensor> {
        let (_, len, channels) = u.dims3()?;
        let kernel = self.kernel(len)?; // (D, L)
        // K as a lower triangular matrix for each channel: entry (t, s) is K[t - s], or a zero put behind the taps.
        let zero = Tensor::zeros((channels, 1), kernel.dtype(), kernel.device())?;
        let padded = Tensor::cat(&[&kernel, &zero], 1)?; // (D, L + 1)
        let entry = |i: usize| (i / len).checked_sub(i % len).unwrap_or(len) as u32;
        let ids = Tensor::from_iter((0..len * len).map(entry), u.device())?;
        let toeplitz = padded.index_select(&ids, 1)?.reshape((channels, len, len))?;
        let by_channel = u.permute((2, 1, 0))?.contiguous()?; // (D, L, B)
        let y = toeplitz.matmul(&by_channel)?.permute((2, 1, 0))?; // (B, L, D)
        y + u.broadcast_mul(&self.d)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Params, Rng};
    use candle_core::{DType, Device};

    /// The recurrence in complex arithmetic, one channel and one state at a time.
    fn stepped(layer: &S4d, u: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let m = |t: &Tensor| t.to_vec2::<f64>().unwrap();
        let (re, im) = (m(&layer.log_a_real), m(&layer.a_imag));
        let c = layer.c.to_vec3::<f64>().unwrap();
        let (dt, d) =
            (layer.log_dt.exp().unwrap().to_vec1::<f64>().unwrap(), layer.d.to_vec1::<f64>().unwrap());
        let mul = |a: (f64, f64), b: (f64, f64)| (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0);
        let mut y: Vec<Vec<f64>> = u.iter().map(|u| u.iter().zip(&d).map(|(u, d)| u * d).collect()).collect();
        for ch in 0..dt.len() {
            for n in 0..re[ch].len() {
                let a = (-re[ch][n].exp(), im[ch][n]);
                let grow = (a.0 * dt[ch]).exp();
                let step = (grow * (a.1 * dt[ch]).cos(), grow * (a.1 * dt[ch]).sin());
                let norm = a.0 * a.0 + a.1 * a.1;
                let b = mul((step.0 - 1.0, step.1), (a.0 / norm, -a.1 / norm));
                let mut h = (0.0, 0.0);
                for (t, u) in u.iter().enumerate() {
                    let next = mul(step, h);
                    h = (next.0 + b.0 * u[ch], next.1 + b.1 * u[ch]);
                    y[t][ch] += 2.0 * mul((c[ch][n][0], c[ch][n][1]), h).0;
                }
            }
        }
        y
    }

    #[test]
    fn the_convolution_is_the_recurrence_of_complex_states() -> Result<()> {
        for init in [StateInit::S4dLin, StateInit::S4dReal] {
            let params = Params::fresh(3, DType::F64, &Device::Cpu);
            let layer = S4d::new(3, 8, init, &params.builder())?;
            let u = Rng::new(4).normal_tensor((1, 20, 3), 0.0, 1.0, DType::F64, &Device::Cpu)?;
            let got = layer.forward(&u)?.squeeze(0)?.to_vec2::<f64>()?;
            let want = stepped(&layer, &u.squeeze(0)?.to_vec2::<f64>()?);
            for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                assert!((got - want).abs() < 1e-10 * want.abs().max(1.0), "{init:?}: {got}, expected {want}");
            }
            let grads = layer.forward(&u)?.sqr()?.sum_all()?.backward()?;
            for var in params.vars() {
                let size = grads.get(&var).unwrap().sqr()?.sum_all()?.to_scalar::<f64>()?;
                assert!(size > 0.0 && size.is_finite());
            }
        }
        let params = Params::fresh(3, DType::F32, &Device::Cpu);
        assert!(S4d::new(3, 7, StateInit::S4dLin, &params.builder()).is_err());
        assert!(S4d::new(3, 8, StateInit::HippoLegS, &params.builder()).is_err());
        Ok(())
    }
}
