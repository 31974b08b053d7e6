//! GELU on the CPU, in vectors, blocks spread over the cores.
//!
//! In f32, Φ comes from a Chebyshev fit of erfc with a relative error below 1.2e-7 everywhere (Press and others, Numerical
//! Recipes, 2nd edition, section 6.2).

use crate::simd::{Real, dispatch};
use candle_core::cpu::erf::erf_f64;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// The fit's polynomial, highest power first.
const ERFC: [f64; 10] = [
    0.170_872_77,
    -0.822_152_23,
    1.488_515_87,
    -1.135_203_98,
    0.278_868_07,
    -0.186_288_06,
    0.096_784_18,
    0.374_091_96,
    1.000_023_68,
    -1.265_512_23,
];
/// Elements of one task.
const BLOCK: usize = 1 << 13;

pub(super) fn forward<T: Real>(x: &[T]) -> Vec<T> {
    let mut y = vec![T::default(); x.len()];
    let blocks = y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK));
    blocks.for_each(|(y, x)| dispatch(Gelu { x, grad: None, out: y }));
    y
}

/// The gradient of the input given that of the output.
pub(super) fn backward<T: Real>(x: &[T], grad: &[T]) -> Vec<T> {
    let mut dx = vec![T::default(); x.len()];
    let blocks = dx.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).zip(grad.par_chunks(BLOCK));
    blocks.for_each(|((dx, x), grad)| dispatch(Gelu { x, grad: Some(grad), out: dx }));
    dx
}

/// x·Φ(x), or with a gradient of the output, grad·(Φ(x) + x·φ(x)).
struct Gelu<'a, T> {
    x: &'a [T],
    grad: Option<&'a [T]>,
    out: &'a mut [T],
}

impl<T: Real> WithSimd for Gelu<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let lanes = T::lanes::<S>();
        for (i, out) in self.out.chunks_mut(lanes).enumerate() {
            let at = i * lanes..i * lanes + out.len();
            let x = T::load(s, &self.x[at.clone()]);
            let (cdf, density) = normal(s, &self.x[at.clone()], x);
            let value = match self.grad {
                None => T::vmul(s, x, cdf),
                Some(grad) => T::vmul(s, T::load(s, &grad[at]), T::vfma(s, x, density, cdf)),
            };
            T::store(s, out, value);
        }
    }
}

/// Φ and φ of the elements of `x`, whose values are `values`.
#[inline(always)]
fn normal<S: Simd, T: Real>(s: S, values: &[T], x: T::V<S>) -> (T::V<S>, T::V<S>) {
    if std::mem::size_of::<T>() == 8 {
        let (mut cdf, mut density) = ([T::default(); 16], [T::default(); 16]);
        for (i, x) in values.iter().map(|x| x.to_f64()).enumerate() {
            cdf[i] = T::from_f64(0.5 * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2)));
            density[i] = T::from_f64((-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt());
        }
        return (T::load(s, &cdf[..values.len()]), T::load(s, &density[..values.len()]));
    }
    let c = |value: f64| T::splat(s, T::from_f64(value));
    // With u = |x|/√2 and t = 1/(1 + u/2): erfc(u) = t·exp(-u² + p(t)).
    let magnitude = T::vabs(s, x);
    let half_u = T::vmul(s, c(0.5 * std::f64::consts::FRAC_1_SQRT_2), magnitude);
    let t = T::vdiv(s, c(1.0), T::vadd(s, half_u, c(1.0)));
    let mut poly = c(ERFC[0]);
    for a in &ERFC[1..] {
        poly = T::vfma(s, poly, t, c(*a));
    }
    let minus_u2 = T::vmul(s, T::vmul(s, x, x), c(-0.5));
    let log2e = c(std::f64::consts::LOG2_E);
    let exp = T::vexp2(s, T::vmul(s, T::vadd(s, minus_u2, poly), log2e));
    let tail = T::vmul(s, c(0.5), T::vmul(s, t, exp)); // Φ(-|x|)
    // Φ(x) is the tail, plus 1 - 2·tail where x > 0; x/|x| would be NaN at 0.
    let sign = T::vdiv(s, x, T::vadd(s, magnitude, c(f64::from(f32::MIN_POSITIVE))));
    let positive = T::vfma(s, c(0.5), sign, c(0.5));
    let cdf = T::vfma(s, positive, T::vfma(s, c(-2.0), tail, c(1.0)), tail);
    let exp = T::vexp2(s, T::vmul(s, minus_u2, log2e));
    (cdf, T::vmul(s, exp, c(1.0 / (2.0 * std::f64::consts::PI).sqrt())))
}
