//! Products of a few rows with weights that are read once from memory, as in decoding: the time is that of streaming
//! the weights, so they may be stored small and are widened in registers; sums are in the type of the activations.

use crate::simd::{Real, dispatch};
use half::{bf16, f16};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Most rows of `x` for which this beats a matrix product.
pub(super) const FEW_ROWS: usize = 4;
/// Bytes of weights that one task streams at least.
const TASK_BYTES: usize = 1 << 16;
/// Weight rows that share each load of `x`.
const ROWS: usize = 4;

/// A stored weight that widens to activations of type `T`.
pub(super) trait Weight<T: Real>: Copy + Send + Sync {
    /// As many weights as a register of `T` holds, or fewer, with zeros behind them.
    fn widen_from<S: Simd>(s: S, w: &[Self]) -> T::V<S>;

    fn widen(self) -> T;
}

impl<T: Real> Weight<T> for T {
    #[inline(always)]
    fn widen_from<S: Simd>(s: S, w: &[Self]) -> T::V<S> {
        T::load(s, w)
    }

    #[inline(always)]
    fn widen(self) -> T {
        self
    }
}

/// Widens lane by lane; with a whole register's worth of weights the compiler makes this a vector conversion.
#[inline(always)]
fn widen_lanes<S: Simd, W: Weight<f32>>(s: S, w: &[W]) -> S::f32s {
    let mut lanes = [0f32; 16];
    if w.len() >= S::F32_LANES {
        for (lane, w) in lanes[..S::F32_LANES].iter_mut().zip(&w[..S::F32_LANES]) {
            *lane = w.widen();
        }
    } else {
        for (lane, w) in lanes.iter_mut().zip(w) {
            *lane = w.widen();
        }
    }
    Real::load(s, &lanes[..S::F32_LANES])
}

impl Weight<f32> for bf16 {
    #[inline(always)]
    fn widen_from<S: Simd>(s: S, w: &[Self]) -> S::f32s {
        widen_lanes(s, w)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Weight<f32> for f16 {
    #[inline(always)]
    fn widen_from<S: Simd>(s: S, w: &[Self]) -> S::f32s {
        widen_lanes(s, w)
    }

    /// Exact for all finite values: the fields move to their places in an f32, and a product corrects the exponent's
    /// bias, which makes normal numbers of subnormal ones too.
    #[inline(always)]
    fn widen(self) -> f32 {
        const BIAS: f32 = f32::from_bits((127 + 112) << 23);
        let bits = u32::from(self.to_bits());
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * BIAS;
        f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
    }
}

/// The bits of an `i8`: candle has no such type, so that tensors hold them as U8.
impl Weight<f32> for u8 {
    #[inline(always)]
    fn widen_from<S: Simd>(s: S, w: &[Self]) -> S::f32s {
        widen_lanes(s, w)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self as i8)
    }
}

/// `y[r][o] = scales[o] · Σ_i x[r][i] weight[o][i] + bias[o]` for each of at most [`FEW_ROWS`] rows `r` of `x`; `y` is
/// row-major. Every output is one sum in one order, so the number of threads does not change it.
pub(super) fn forward<T: Real, W: Weight<T>>(
    x: &[T],
    weight: &[W],
    scales: Option<&[T]>,
    bias: Option<&[T]>,
    d_in: usize,
) -> Vec<T> {
    let (rows, d_out) = (x.len() / d_in, weight.len() / d_in);
    assert!(weight.len() == d_out * d_in && x.len() == rows * d_in, "shapes do not fit");
    let mut by_channel = vec![T::default(); rows * d_out]; // [channel][row]
    let channels = (TASK_BYTES / (d_in * size_of::<W>())).max(1).next_multiple_of(ROWS);
    let task = |(i, y): (usize, &mut [T])| {
        let first = i * channels;
        let weight = &weight[first * d_in..(first + y.len() / rows) * d_in];
        dispatch(Task { x, weight, d_in, y: &mut *y });
        for (k, y) in y.chunks_exact_mut(rows).enumerate() {
            for y in y {
                let scaled = scales.map_or(*y, |scales| *y * scales[first + k]);
                *y = bias.map_or(scaled, |bias| scaled + bias[first + k]);
            }
        }
    };
    match d_out <= channels {
        true => task((0, &mut by_channel)),
        false => by_channel.par_chunks_mut(channels * rows).enumerate().for_each(task),
    }
    if rows == 1 {
        return by_channel;
    }
    (0..rows).flat_map(|r| by_channel[r..].iter().step_by(rows).copied()).collect()
}

/// Some channels of one product.
struct Task<'a, T, W> {
    x: &'a [T],
    weight: &'a [W],
    d_in: usize,
    /// `[channel][row]`.
    y: &'a mut [T],
}

impl<T: Real, W: Weight<T>> WithSimd for Task<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Self { x, weight, d_in, y } = self;
        let rows = x.len() / d_in;
        for (weight, y) in weight.chunks(ROWS * d_in).zip(y.chunks_mut(ROWS * rows)) {
            for (r, x) in x.chunks_exact(d_in).enumerate() {
                if weight.len() == ROWS * d_in {
                    let sums = dots::<S, T, W, ROWS>(s, x, weight);
                    sums.into_iter().enumerate().for_each(|(k, sum)| y[k * rows + r] = sum);
                } else {
                    for (k, weight) in weight.chunks_exact(d_in).enumerate() {
                        y[k * rows + r] = dots::<S, T, W, 1>(s, x, weight)[0];
                    }
                }
            }
        }
    }
}

/// The products of `x` with `R` rows of weights.
#[inline(always)]
fn dots<S: Simd, T: Real, W: Weight<T>, const R: usize>(s: S, x: &[T], weight: &[W]) -> [T; R] {
    let (lanes, d_in) = (T::lanes::<S>(), x.len());
    let rows: [&[W]; R] = std::array::from_fn(|k| &weight[k * d_in..(k + 1) * d_in]);
    let mut sums = [T::vzero(s); R];
    let mut at = 0;
    while at + lanes <= d_in {
        let v = T::load(s, &x[at..at + lanes]);
        for k in 0..R {
            sums[k] = T::vfma(s, W::widen_from(s, &rows[k][at..at + lanes]), v, sums[k]);
        }
        at += lanes;
    }
    if at < d_in {
        let v = T::load(s, &x[at..]);
        for k in 0..R {
            sums[k] = T::vfma(s, W::widen_from(s, &rows[k][at..]), v, sums[k]);
        }
    }
    sums.map(|sum| T::reduce_sum(s, sum))
}
