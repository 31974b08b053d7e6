//! Initial values of parameters.

use crate::Rng;
use crate::linalg::{Matrix, multiply, symmetric_eigen, transpose};
use candle_core::{DType, Device, Result, Shape, Tensor, bail};

/// How a fresh parameter is filled.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// One value everywhere.
    Const(f64),
    /// Uniform in `[lo, hi)`.
    Uniform {
        /// Lower end.
        lo: f64,
        /// Upper end.
        hi: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// `kaiming_uniform_` of torch with a leaky-ReLU slope `a`: uniform within `√(6 / ((1 + a²) fan_in))`.
    KaimingUniform {
        /// Inputs that feed one output.
        fan_in: usize,
        /// Slope; torch's `nn.Linear` and `nn.Conv1d` take √5, which makes the bound `1/√fan_in`.
        a: f64,
    },
    /// `xavier_uniform_` of torch: uniform within `√(6 / (fan_in + fan_out))`.
    XavierUniform {
        /// Inputs that feed one output.
        fan_in: usize,
        /// Outputs that one input feeds.
        fan_out: usize,
    },
    /// S4D-Real for `A_log` of shape `(d, n)`: every row is `ln 1, ln 2, …, ln n`, that is `A = -(1..=n)`.
    S4dReal,
    /// Bias of the step size: `softplus⁻¹(max(exp(U(ln min, ln max)), floor))`, so that the step sizes start
    /// log-uniform between `min` and `max` (Mamba: 1e-3, 0.1, 1e-4).
    DtBias {
        /// Smallest step size drawn.
        min: f64,
        /// Largest step size drawn.
        max: f64,
        /// Step sizes below this are raised to it.
        floor: f64,
    },
    /// The logarithm of a value uniform in `[lo, hi)`; Mamba-2's `A_log` takes 1 and 16.
    LogUniform {
        /// Lower end, above 0.
        lo: f64,
        /// Upper end.
        hi: f64,
    },
    /// Every row of a `(d, n)` tensor is this.
    Rows(Vec<f64>),
    /// Another initialisation times a factor.
    Scaled(Box<Init>, f64),
}

impl Init {
    /// What torch gives weight and bias of `nn.Linear` and `nn.Conv1d`: uniform within `1/√fan_in`.
    pub fn linear(fan_in: usize) -> Self {
        Self::KaimingUniform { fan_in, a: 5f64.sqrt() }
    }

    /// The same, multiplied by `factor`; for example `1/√n_layer` for projections that end a residual branch.
    pub fn scaled(self, factor: f64) -> Self {
        Self::Scaled(Box::new(self), factor)
    }

    /// Draws a tensor.
    pub fn tensor(&self, shape: &Shape, rng: &mut Rng, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut uniform = |bound: f64| {
            rng.uniform_tensor(shape.clone(), -bound, bound, DType::F32, device)?.to_dtype(dtype)
        };
        match self {
            Self::Zeros => Tensor::zeros(shape.clone(), dtype, device),
            Self::Ones => Tensor::ones(shape.clone(), dtype, device),
            Self::Const(value) => Tensor::full(*value, shape.clone(), device)?.to_dtype(dtype),
            Self::KaimingUniform { fan_in, a } => {
                uniform((6.0 / ((1.0 + a * a) * (*fan_in).max(1) as f64)).sqrt())
            }
            Self::XavierUniform { fan_in, fan_out } => {
                uniform((6.0 / (fan_in + fan_out).max(1) as f64).sqrt())
            }
            Self::Uniform { lo, hi } => {
                rng.uniform_tensor(shape.clone(), *lo, *hi, DType::F32, device)?.to_dtype(dtype)
            }
            Self::Normal { std } => {
                rng.normal_tensor(shape.clone(), 0.0, *std, DType::F32, device)?.to_dtype(dtype)
            }
            Self::S4dReal => {
                let n = shape.dims().last().copied().unwrap_or(0);
                rows((1..=n).map(|k| (k as f64).ln()).collect(), shape, dtype, device)
            }
            Self::Rows(row) => rows(row.clone(), shape, dtype, device),
            Self::DtBias { min, max, floor } => {
                if !(*min > 0.0 && max >= min && *floor > 0.0) {
                    bail!("dt bias needs 0 < min <= max and floor > 0, got {min}, {max}, {floor}")
                }
                let values: Vec<f64> = (0..shape.elem_count())
                    .map(|_| inverse_softplus(rng.uniform_in(min.ln(), max.ln()).exp().max(*floor)))
                    .collect();
                Tensor::from_vec(values, shape.clone(), device)?.to_dtype(dtype)
            }
            Self::LogUniform { lo, hi } => {
                if !(*lo > 0.0 && hi >= lo) {
                    bail!("the logarithm of a uniform value needs 0 < lo <= hi, got {lo}, {hi}")
                }
                let values: Vec<f64> =
                    (0..shape.elem_count()).map(|_| rng.uniform_in(*lo, *hi).ln()).collect();
                Tensor::from_vec(values, shape.clone(), device)?.to_dtype(dtype)
            }
            Self::Scaled(inner, factor) => inner.tensor(shape, rng, dtype, device)? * *factor,
        }
    }
}

/// A `(d, n)` tensor of equal rows.
fn rows(row: Vec<f64>, shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
    let &[d, n] = shape.dims() else {
        bail!("rows of a state matrix fill (d, n) tensors, got shape {:?}", shape.dims())
    };
    if row.len() != n {
        bail!("a row of {} values for a tensor of shape {:?}", row.len(), shape.dims())
    }
    Tensor::from_vec(row, (1, n), device)?.broadcast_as((d, n))?.to_dtype(dtype)?.contiguous()
}

/// Which continuous-time state matrix a state space layer starts from.
///
/// | choice | `A` | [`Mamba1`](crate::Mamba1) | [`S4d`](crate::s4d::S4d) |
/// |---|---|---|---|
/// | `HippoLegS` | the dense matrix that keeps a history in Legendre polynomials ([`hippo_legs`]) | its eigenvalues, `-(n + 1)` | those of its normal part, `-1/2 ± iω_n` (S4D-LegS) |
/// | `S4dLin` | diagonal, `-1/2 + iπn` | complex states, as pairs | complex states, as pairs |
/// | `S4dReal` | diagonal, `-(n + 1)` | real states | pairs without an imaginary part, which may get one |
///
/// Both may stand for the dense matrix: Mamba-1 mixes its states by matrices `B` and `C` of its own, so that a change of
/// basis, which makes the triangular matrix diagonal, changes nothing; the complex layers take the part that a unitary basis
/// makes diagonal, as S4 and S4D do (arXiv 2111.00396, theorem 1; arXiv 2206.11893, section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateInit {
    /// HiPPO-LegS (Gu et al. 2020, arXiv 2008.07669, equation 3; here with the sign of S4).
    #[serde(rename = "hippo_legs")]
    HippoLegS,
    /// S4D-Lin (arXiv 2206.11893, section 4.2).
    S4dLin,
    /// S4D-Real (the same section).
    #[default]
    S4dReal,
}

impl StateInit {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::HippoLegS, Self::S4dLin, Self::S4dReal];

    /// The poles of `n` complex states, one of each conjugate pair, as real and imaginary parts.
    pub fn poles(self, n: usize) -> Vec<(f64, f64)> {
        match self {
            Self::HippoLegS => normal_legs(2 * n).into_iter().map(|omega| (-0.5, omega)).collect(),
            Self::S4dLin => (0..n).map(|k| (-0.5, std::f64::consts::PI * k as f64)).collect(),
            Self::S4dReal => (0..n).map(|k| (-(k as f64 + 1.0), 0.0)).collect(),
        }
    }
}

/// The positive imaginary parts, rising, of the eigenvalues of HiPPO-LegS' normal part `A + P Pᵀ`, `P_i = √(i + 1/2)`, of even
/// size `n`. It is `-1/2` plus the skew-symmetric `S`, `S_ik = -√((2i+1)(2k+1))/2` below the diagonal, so that `SᵀS` has their
/// squares, each twice.
fn normal_legs(n: usize) -> Vec<f64> {
    let entry = |i: usize, k: usize| {
        let size = ((2.0 * i as f64 + 1.0) * (2.0 * k as f64 + 1.0)).sqrt() / 2.0;
        match i.cmp(&k) {
            std::cmp::Ordering::Greater => -size,
            std::cmp::Ordering::Equal => 0.0,
            std::cmp::Ordering::Less => size,
        }
    };
    let s: Matrix = (0..n).map(|i| (0..n).map(|k| entry(i, k)).collect()).collect();
    let (mut squares, _) = symmetric_eigen(&multiply(&transpose(&s), &s));
    squares.sort_by(f64::total_cmp);
    squares.chunks_exact(2).map(|pair| ((pair[0] + pair[1]) / 2.0).max(0.0).sqrt()).collect()
}

/// HiPPO-LegS: `A` `(n, n)` and `B` `(n)` in f64. `A[i][k] = -√((2i+1)(2k+1))` below the diagonal, `-(i+1)` on it, 0 above;
/// `B[i] = √(2i+1)`. The state of `x' = (A x + B u)/t` is the history of `u` up to `t` in scaled Legendre polynomials.
pub fn hippo_legs(n: usize, device: &Device) -> Result<(Tensor, Tensor)> {
    let root = |i: usize| (2.0 * i as f64 + 1.0).sqrt();
    let entry = |i: usize, k: usize| match i.cmp(&k) {
        std::cmp::Ordering::Greater => -root(i) * root(k),
        std::cmp::Ordering::Equal => -(i as f64 + 1.0),
        std::cmp::Ordering::Less => 0.0,
    };
    let a: Vec<f64> = (0..n * n).map(|at| entry(at / n, at % n)).collect();
    let b: Vec<f64> = (0..n).map(root).collect();
    Ok((Tensor::from_vec(a, (n, n), device)?, Tensor::from_vec(b, n, device)?))
}

/// The x with `ln(1 + exp(x)) = y`, for y > 0; stable for small y.
fn inverse_softplus(y: f64) -> f64 {
    y + (-(-y).exp_m1()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(init: &Init, shape: impl Into<Shape>) -> Vec<f64> {
        let tensor = init.tensor(&shape.into(), &mut Rng::new(1), DType::F64, &Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn s4d_real_rows_count_up() {
        assert_eq!(draw(&Init::S4dReal, (2, 3)), [0.0, 2f64.ln(), 3f64.ln(), 0.0, 2f64.ln(), 3f64.ln()]);
        assert!(Init::S4dReal.tensor(&4.into(), &mut Rng::new(1), DType::F32, &Device::Cpu).is_err());
    }

    #[test]
    fn diagonal_choices_have_their_closed_forms() {
        let pi = std::f64::consts::PI;
        assert_eq!(StateInit::S4dLin.poles(3), [(-0.5, 0.0), (-0.5, pi), (-0.5, 2.0 * pi)]);
        assert_eq!(StateInit::S4dReal.poles(3), [(-1.0, 0.0), (-2.0, 0.0), (-3.0, 0.0)]);
        let names = StateInit::ALL.map(|init| serde_json::to_value(init).unwrap());
        assert_eq!(names, ["hippo_legs", "s4d_lin", "s4d_real"]);
    }

    /// Of two states the skew part is ±√3/2; of four, by the trace of SᵀS and the Pfaffian of S, ω₁² + ω₂² = 43/2 and
    /// ω₁ω₂ = √105/4. The largest of many is n²/π (arXiv 2206.11893, section 4.2).
    #[test]
    fn the_normal_part_of_hippo_legs_has_its_closed_forms() {
        let poles = StateInit::HippoLegS.poles(1);
        assert!(poles[0].0 == -0.5 && (poles[0].1 - 0.75f64.sqrt()).abs() < 1e-12, "{poles:?}");
        let [slow, fast] = StateInit::HippoLegS.poles(2)[..] else { panic!("two states") };
        let root = (21.5f64 * 21.5 - 4.0 * 105.0 / 16.0).sqrt();
        for (got, want) in [(slow.1, (21.5 - root) / 2.0), (fast.1, (21.5 + root) / 2.0)] {
            assert!((got - want.sqrt()).abs() < 1e-12, "{got}, expected {}", want.sqrt());
        }
        let many = StateInit::HippoLegS.poles(32);
        let largest = many[31].1 / (64.0 * 64.0 / std::f64::consts::PI);
        assert!((largest - 1.0).abs() < 0.02, "{largest}");
        assert!(many.windows(2).all(|w| w[0].1 < w[1].1));
    }

    /// x' = (A x + B u)/t keeps u's coefficients in Legendre polynomials over [0, t]: for u = 1 that is the first basis
    /// vector, for u(s) = s it is t·(1/2, 1/(2√3), 0, …); both are checked in the equation itself.
    #[test]
    fn hippo_legs_keeps_histories_in_legendre_polynomials() -> Result<()> {
        const N: usize = 6;
        let (a, b) = hippo_legs(N, &Device::Cpu)?;
        let (a, b) = (a.to_vec2::<f64>()?, b.to_vec1::<f64>()?);
        assert_eq!(a[0], [-1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!((a[2][0], a[2][1], a[2][2]), (-(5f64.sqrt()), -(15f64.sqrt()), -3.0));
        let rate = |x: &[f64], u: f64| -> Vec<f64> {
            (0..N).map(|i| (0..N).map(|k| a[i][k] * x[k]).sum::<f64>() + b[i] * u).collect()
        };
        // u = 1: x = e_0 at all times, so A e_0 + B = 0
        let mut x = [0.0; N];
        x[0] = 1.0;
        assert!(rate(&x, 1.0).iter().all(|r| r.abs() < 1e-12));
        // u = s: x(t) = t·v, so t·x' = t·v = A (t v) + B t
        let mut v = [0.0; N];
        (v[0], v[1]) = (0.5, 0.5 / 3f64.sqrt());
        for (got, want) in rate(&v, 1.0).iter().zip(v) {
            assert!((got - want).abs() < 1e-12, "{got}, expected {want}");
        }
        Ok(())
    }

    #[test]
    fn dt_bias_gives_log_uniform_step_sizes() {
        let init = Init::DtBias { min: 1e-3, max: 0.1, floor: 1e-4 };
        let steps: Vec<f64> = draw(&init, 20_000).iter().map(|b| b.exp().ln_1p()).collect();
        assert!(steps.iter().all(|&s| (1e-3 * 0.999..0.1 * 1.001).contains(&s)));
        let below = steps.iter().filter(|&&s| s < 0.01).count() as f64 / 20_000.0;
        assert!(
            (below - 0.5).abs() < 0.02,
            "half of the step sizes lie below the geometric mean, got {below}"
        );
        let floored = draw(&Init::DtBias { min: 1e-3, max: 0.1, floor: 0.05 }, 1000);
        assert!(floored.iter().all(|b| b.exp().ln_1p() > 0.0499));
        assert!((inverse_softplus(2.0) - (2f64.exp() - 1.0).ln()).abs() < 1e-12);
    }

    #[test]
    fn log_uniform_values_are_logarithms_of_uniform_ones() {
        let values: Vec<f64> =
            draw(&Init::LogUniform { lo: 1.0, hi: 16.0 }, 20_000).iter().map(|x| x.exp()).collect();
        assert!(values.iter().all(|x| (1.0 - 1e-9..16.0 + 1e-9).contains(x)));
        let mean = values.iter().sum::<f64>() / 20_000.0;
        assert!((mean - 8.5).abs() < 0.1, "{mean}");
        assert!(
            Init::LogUniform { lo: 0.0, hi: 1.0 }
                .tensor(&4.into(), &mut Rng::new(1), DType::F32, &Device::Cpu)
                .is_err()
        );
    }

    #[test]
    fn bounds_are_those_of_torch() {
        let max = |values: Vec<f64>| values.into_iter().map(f64::abs).fold(0.0, f64::max);
        let linear = max(draw(&Init::linear(64), (100, 64)));
        assert!(linear <= 0.125 && linear > 0.124, "{linear}");
        let xavier = max(draw(&Init::XavierUniform { fan_in: 100, fan_out: 50 }, (50, 100)));
        assert!(xavier <= 0.2 && xavier > 0.198, "{xavier}");
        let halved = draw(&Init::linear(64).scaled(0.5), (100, 64));
        let whole = draw(&Init::linear(64), (100, 64));
        assert!(halved.iter().zip(&whole).all(|(h, w)| *h == w * 0.5));
    }

    #[test]
    fn normal_has_its_spread() {
        let values = draw(&Init::Normal { std: 0.02 }, 50_000);
        let std = (values.iter().map(|v| v * v).sum::<f64>() / 50_000.0).sqrt();
        assert!((std - 0.02).abs() < 3e-4, "{std}");
    }
}
