//! Initial values of parameters.

use crate::Rng;
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
                let &[d, n] = shape.dims() else {
                    bail!("S4D-Real initialises (d, n) tensors, got shape {:?}", shape.dims())
                };
                let row: Vec<f64> = (1..=n).map(|k| (k as f64).ln()).collect();
                Tensor::from_vec(row, (1, n), device)?.broadcast_as((d, n))?.to_dtype(dtype)?.contiguous()
            }
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
