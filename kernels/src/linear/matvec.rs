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
/// Weights of a row that are widened at once: they stay in the first-level cache.
const BLOCK: usize = 256;

/// A stored weight that widens to activations of type `T`.
pub(super) trait Weight<T: Real>: Copy + Send + Sync {
    fn widen(self) -> T;

    /// The weights as activations, in `buffer` where they are not such already. A plain loop, which the compiler turns
    /// into vector conversions of the instruction set that it is inlined into.
    #[inline(always)]
    fn widen_block<'a>(weights: &'a [Self], buffer: &'a mut [T; BLOCK]) -> &'a [T] {
        let buffer = &mut buffer[..weights.len()];
        for (out, weight) in buffer.iter_mut().zip(weights) {
            *out = weight.widen();
        }
        buffer
    }
}

impl<T: Real> Weight<T> for T {
    #[inline(always)]
    fn widen(self) -> T {
        self
    }

    #[inline(always)]
    fn widen_block<'a>(weights: &'a [T], _: &'a mut [T; BLOCK]) -> &'a [T] {
        weights
    }
}

impl Weight<f32> for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Weight<f32> for f16 {
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
    let mut buffers = [[T::default(); BLOCK]; R];
    let mut sums = [T::vzero(s); R];
    for start in (0..d_in).step_by(BLOCK) {
        let columns = start..(start + BLOCK).min(d_in);
        let x = &x[columns.clone()];
        let mut rows: [&[T]; R] = [&[]; R];
        for (k, (row, buffer)) in rows.iter_mut().zip(&mut buffers).enumerate() {
            *row = W::widen_block(&weight[k * d_in..][columns.clone()], buffer);
        }
        let whole = x.len() / lanes * lanes;
        for at in (0..whole).step_by(lanes) {
            let v = T::load(s, &x[at..at + lanes]);
            for k in 0..R {
                sums[k] = T::vfma(s, T::load(s, &rows[k][at..at + lanes]), v, sums[k]);
            }
        }
        if whole < x.len() {
            let v = T::load(s, &x[whole..]);
            for k in 0..R {
                sums[k] = T::vfma(s, T::load(s, &rows[k][whole..]), v, sums[k]);
            }
        }
    }
    sums.map(|sum| T::reduce_sum(s, sum))
}
