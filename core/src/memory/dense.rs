//! Dense hidden connections (DenseSSM, He et al. 2024, arXiv 2403.00818, section 3.2): a layer adds the hidden states of
//! shallower layers to its own, each through a projection and a gate that depends on the layer's input,
//!
//! ```text
//! h_t^l ← h_t^l + Σ_i g_i(x_t) ⊙ P_i h_t^{l-i}            g_i(x) = σ(W_i x), P_i over channels
//! ```
//!
//! Hidden states `(B, L, D, N)` are never written down. Outputs read them as `C_t h_t`, which is linear, and gate and
//! projection act on channels, so that
//!
//! ```text
//! C_t^l (g_i(x_t) ⊙ P_i h_t^{l-i})  =  g_i(x_t) ⊙ P_i (C_t^l h_t^{l-i})
//! ```
//!
//! and the last bracket is a scan of what made up the shallower layer's state, read with the deeper layer's `C`. What is
//! published as code connects keys and values of RetNet layers; this is the equation for a selective state space model.
//!
//! [`BackboneConfig::dense_layers`](crate::BackboneConfig) and `LmConfig`'s field of that name connect the Mamba-1 layers of a
//! model so.

use crate::nn::Linear;
use crate::{Init, ParamBuilder};
use candle_core::{Module, Result, Tensor};
use mamba_kernels::{Segments, SelectiveScan};

/// What makes up the hidden states of a layer.
#[derive(Clone, Debug)]
pub struct HiddenStates {
    /// Inputs of the scan `(B, L, D)`.
    pub u: Tensor,
    /// Step sizes `(B, L, D)`, before bias and softplus.
    pub delta: Tensor,
    /// Bias of the step sizes `(D)`.
    pub delta_bias: Tensor,
    /// State matrix `(D, N)`.
    pub a: Tensor,
    /// Input coefficients `(B, L, N)`.
    pub b: Tensor,
    /// States before the first token `(segments, D, N)`.
    pub initial: Option<Tensor>,
    /// Which tokens form a sequence; by default each batch row.
    pub segments: Option<Segments>,
    /// Whether the scan runs from the last token to the first.
    pub reverse: bool,
}

impl HiddenStates {
    /// `C_t h_t` for every token: `c` `(B, L, N)` → `(B, L, D)`.
    pub fn read(&self, c: &Tensor) -> Result<Tensor> {
        let scan = SelectiveScan::new(&self.u, &self.delta, &self.a, &self.b, c);
        let scan = scan.delta_bias(&self.delta_bias).softplus(true).reverse(self.reverse);
        let scan = self.initial.iter().fold(scan, |scan, state| scan.initial_state(state));
        self.segments.iter().fold(scan, |scan, segments| scan.segments(segments)).run()
    }
}

/// The selective transition from one shallower layer.
#[derive(Clone, Debug)]
pub struct SelectiveTransition {
    gate: Linear,
    proj: Linear,
}

impl SelectiveTransition {
    /// Parameters `gate` and `proj` of a layer of `d_inner` channels, fed from one of `d_source`. `proj` starts at zero, so
    /// that the connected model starts as the plain one.
    pub fn new(d_inner: usize, d_source: usize, pb: &ParamBuilder) -> Result<Self> {
        Ok(Self {
            gate: Linear::new(d_inner, d_inner, true, &pb.pp("gate"))?,
            proj: Linear::with_init((d_inner, d_source), Init::Zeros, None, &pb.pp("proj"))?,
        })
    }

    /// What to add to the output of a layer's scan, before its gate `z`: `x` `(B, L, d_inner)` is the scan's input, `c`
    /// `(B, L, N)` its output coefficients, `source` the shallower layer's states, with the same N.
    pub fn forward(&self, x: &Tensor, c: &Tensor, source: &HiddenStates) -> Result<Tensor> {
        let gate = candle_nn::ops::sigmoid(&self.gate.forward(x)?)?; // (B, L, d_inner)
        gate * self.proj.forward(&source.read(c)?)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Params, Rng};
    use candle_core::{DType, Device};

    const CPU: Device = Device::Cpu;

    fn random(seed: u64, shape: &[usize]) -> Result<Tensor> {
        Rng::new(seed).normal_tensor(shape, 0.0, 1.0, DType::F64, &CPU)
    }

    /// The equation itself, with every hidden state written down.
    #[test]
    fn reading_with_the_deeper_layers_c_is_adding_the_hidden_states() -> Result<()> {
        let (len, d, source_d, n) = (7, 3, 4, 5);
        let source = HiddenStates {
            u: random(1, &[1, len, source_d])?,
            delta: random(2, &[1, len, source_d])?,
            delta_bias: random(3, &[source_d])?,
            a: random(4, &[source_d, n])?.abs()?.neg()?,
            b: random(5, &[1, len, n])?,
            initial: None,
            segments: None,
            reverse: false,
        };
        let (x, c) = (random(6, &[1, len, d])?, random(7, &[1, len, n])?);
        let params = Params::fresh(8, DType::F64, &CPU);
        let transition = SelectiveTransition::new(d, source_d, &params.builder())?;
        assert_eq!(transition.forward(&x, &c, &source)?.abs()?.max_all()?.to_scalar::<f64>()?, 0.0);
        params.set("proj.weight", &random(9, &[d, source_d])?)?;
        let got = transition.forward(&x, &c, &source)?.squeeze(0)?.to_vec2::<f64>()?;

        let m3 = |x: &Tensor| x.squeeze(0).unwrap().to_vec2::<f64>().unwrap();
        let (u, delta, b, x, c) = (m3(&source.u), m3(&source.delta), m3(&source.b), m3(&x), m3(&c));
        let (a, bias) = (source.a.to_vec2::<f64>()?, source.delta_bias.to_vec1::<f64>()?);
        let value = |name: &str| params.get(name).unwrap().tensor().clone();
        let (gate, p) = (value("gate.weight").to_vec2::<f64>()?, value("proj.weight").to_vec2::<f64>()?);
        let gate_bias = value("gate.bias").to_vec1::<f64>()?;
        let mut h = vec![vec![0.0; n]; source_d];
        for t in 0..len {
            for k in 0..source_d {
                let dt = (delta[t][k] + bias[k]).exp().ln_1p();
                for i in 0..n {
                    h[k][i] = (dt * a[k][i]).exp() * h[k][i] + dt * b[t][i] * u[t][k];
                }
            }
            for out in 0..d {
                let z: f64 = gate_bias[out] + (0..d).map(|k| gate[out][k] * x[t][k]).sum::<f64>();
                let g = 1.0 / (1.0 + (-z).exp());
                let added = |i: usize| g * (0..source_d).map(|k| p[out][k] * h[k][i]).sum::<f64>();
                let want: f64 = (0..n).map(|i| c[t][i] * added(i)).sum();
                assert!((got[t][out] - want).abs() < 1e-10, "{}, expected {want}", got[t][out]);
            }
        }
        Ok(())
    }
}
