//! Instance normalisation on the CPU. Pixels are taken in blocks that stay in cache; sums over blocks are added in order,
//! in f64, so that neither threads nor large means cost precision.

use crate::simd::{Real, dispatch};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Elements in a block of pixels.
const BLOCK: usize = 16 * 1024;

/// Parameters of the channels.
pub(super) struct Affine<'a, T> {
    pub(super) weight: &'a [T],
    pub(super) bias: &'a [T],
    pub(super) slope: Option<&'a [T]>,
}

/// Coefficients of one image: `z = scale·x + shift`, and its PReLU.
struct Coefficients<T> {
    scale: Vec<T>,
    shift: Vec<T>,
    slope: Vec<T>,
}

impl<T: Real> Affine<'_, T> {
    fn channels(&self) -> usize {
        self.weight.len()
    }

    fn coefficients(&self, mean: &[f64], rstd: &[f64]) -> Coefficients<T> {
        let scale = |c: usize| self.weight[c].to_f64() * rstd[c];
        let channels = 0..self.channels();
        Coefficients {
            scale: channels.clone().map(|c| T::from_f64(scale(c))).collect(),
            shift: channels.map(|c| T::from_f64(self.bias[c].to_f64() - mean[c] * scale(c))).collect(),
            slope: self.slope.map_or_else(|| vec![T::from_f64(1.0); self.channels()], <[T]>::to_vec),
        }
    }
}

fn block_len(channels: usize) -> usize {
    (BLOCK / channels).max(1) * channels
}

/// The output, and mean and reciprocal deviation of every channel of every image.
pub(super) fn forward<T: Real>(
    x: &[T],
    batch: usize,
    affine: &Affine<'_, T>,
    eps: f64,
) -> (Vec<T>, Vec<f64>, Vec<f64>) {
    let channels = affine.channels();
    let image = x.len() / batch;
    let (mut means, mut rstds) = (Vec::new(), Vec::new());
    let mut y = vec![T::default(); x.len()];
    for (x, y) in x.chunks_exact(image).zip(y.chunks_exact_mut(image)) {
        let blocks: Vec<(usize, Vec<T>, Vec<T>)> = x
            .par_chunks(block_len(channels))
            .map(|block| {
                let (mut sum, mut squares) = (vec![T::default(); channels], vec![T::default(); channels]);
                dispatch(Moments { block, mean: &mut sum, squares: &mut squares });
                (block.len() / channels, sum, squares)
            })
            .collect();
        let (mean, rstd) = combine(&blocks, channels, eps);
        let coefficients = affine.coefficients(&mean, &rstd);
        y.par_chunks_mut(block_len(channels))
            .zip(x.par_chunks(block_len(channels)))
            .for_each(|(y, x)| dispatch(Apply { y, x, coefficients: &coefficients }));
        means.extend(mean);
        rstds.extend(rstd);
    }
    (y, means, rstds)
}

/// Mean of a block, and the sum of squared distances to it. Both begin at zero.
struct Moments<'a, T> {
    block: &'a [T],
    mean: &'a mut [T],
    squares: &'a mut [T],
}

// The loops below are plain, so that the compiler writes them for the instruction set that `dispatch` has chosen.
impl<T: Real> WithSimd for Moments<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { block, mean, squares } = self;
        let channels = mean.len();
        for pixel in block.chunks_exact(channels) {
            mean.iter_mut().zip(pixel).for_each(|(sum, &x)| *sum += x);
        }
        let count = T::from_f64((block.len() / channels) as f64);
        mean.iter_mut().for_each(|mean| *mean /= count);
        for pixel in block.chunks_exact(channels) {
            for ((square, &x), &mean) in squares.iter_mut().zip(pixel).zip(&*mean) {
                let distance = x - mean;
                *square += distance * distance;
            }
        }
    }
}

/// Mean and reciprocal deviation of all blocks together (Chan's formula).
fn combine<T: Real>(blocks: &[(usize, Vec<T>, Vec<T>)], channels: usize, eps: f64) -> (Vec<f64>, Vec<f64>) {
    let of_channel = |c: usize| {
        let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
        for (n, block_mean, block_squares) in blocks {
            let n = *n as f64;
            let delta = block_mean[c].to_f64() - mean;
            squares += block_squares[c].to_f64() + delta * delta * count * n / (count + n);
            mean += delta * n / (count + n);
            count += n;
        }
        (mean, 1.0 / (squares / count + eps).sqrt())
    };
    (0..channels).map(of_channel).unzip()
}

struct Apply<'a, T> {
    y: &'a mut [T],
    x: &'a [T],
    coefficients: &'a Coefficients<T>,
}

impl<T: Real> WithSimd for Apply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { y, x, coefficients: Coefficients { scale, shift, slope } } = self;
        let channels = scale.len();
        let (shift, slope) = (&shift[..channels], &slope[..channels]);
        let zero = T::default();
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            for c in 0..channels {
                let z = scale[c] * x[c] + shift[c];
                y[c] = if z >= zero { z } else { slope[c] * z };
            }
        }
    }
}

/// Gradients of `x`, weight, bias and slope.
pub(super) fn backward<T: Real>(
    x: &[T],
    dy: &[T],
    affine: &Affine<'_, T>,
    means: &[f64],
    rstds: &[f64],
) -> [Vec<T>; 4] {
    let channels = affine.channels();
    let batch = means.len() / channels;
    let image = x.len() / batch;
    let pixels = (image / channels) as f64;
    let mut dx = vec![T::default(); x.len()];
    let mut totals = vec![[0f64; 3]; channels]; // weight, bias, slope
    for (b, (dx, (x, dy))) in
        dx.chunks_exact_mut(image).zip(x.chunks_exact(image).zip(dy.chunks_exact(image))).enumerate()
    {
        let (mean, rstd) = (&means[b * channels..][..channels], &rstds[b * channels..][..channels]);
        let coefficients = affine.coefficients(mean, rstd);
        let mean_t: Vec<T> = mean.iter().map(|&m| T::from_f64(m)).collect();
        let blocks: Vec<[Vec<T>; 3]> = x
            .par_chunks(block_len(channels))
            .zip(dy.par_chunks(block_len(channels)))
            .map(|(x, dy)| {
                let mut sums = [(); 3].map(|()| vec![T::default(); channels]);
                dispatch(GradientSums { x, dy, coefficients: &coefficients, mean: &mean_t, sums: &mut sums });
                sums
            })
            .collect();
        // Of each channel: dx = scale·(dz - Σdz/n - x̂·Σ(dz·x̂)/n) = scale·dz - a·x - k.
        let (mut a, mut k) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
        for c in 0..channels {
            let sum = |i: usize| blocks.iter().map(|sums| sums[i][c].to_f64()).sum::<f64>();
            let (dz, dz_centred, dslope) = (sum(0), sum(1), sum(2));
            let dz_normed = dz_centred * rstd[c];
            let scale = coefficients.scale[c].to_f64();
            let slope = scale * rstd[c] * dz_normed / pixels;
            a.push(T::from_f64(slope));
            k.push(T::from_f64(scale * dz / pixels - slope * mean[c]));
            totals[c][0] += dz_normed;
            totals[c][1] += dz;
            totals[c][2] += dslope;
        }
        dx.par_chunks_mut(block_len(channels))
            .zip(x.par_chunks(block_len(channels)).zip(dy.par_chunks(block_len(channels))))
            .for_each(|(dx, (x, dy))| {
                dispatch(Gradient { dx, x, dy, coefficients: &coefficients, a: &a, k: &k });
            });
    }
    let total = |i: usize| totals.iter().map(|sums| T::from_f64(sums[i])).collect();
    [dx, total(0), total(1), total(2)]
}

/// Adds up Σdz, Σdz·(x - mean) and the gradient of the slope.
struct GradientSums<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    coefficients: &'a Coefficients<T>,
    mean: &'a [T],
    sums: &'a mut [Vec<T>; 3],
}

impl<T: Real> WithSimd for GradientSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, dy, coefficients: Coefficients { scale, shift, slope }, mean, sums } = self;
        let [dz_sum, centred_sum, slope_sum] = sums;
        let channels = scale.len();
        let zero = T::default();
        let (dz_sum, centred_sum, slope_sum) =
            (&mut dz_sum[..channels], &mut centred_sum[..channels], &mut slope_sum[..channels]);
        let (shift, slope, mean) = (&shift[..channels], &slope[..channels], &mean[..channels]);
        for (x, dy) in x.chunks_exact(channels).zip(dy.chunks_exact(channels)) {
            for c in 0..channels {
                let z = scale[c] * x[c] + shift[c];
                let (dz, dslope) = if z >= zero { (dy[c], zero) } else { (dy[c] * slope[c], dy[c] * z) };
                dz_sum[c] += dz;
                centred_sum[c] += dz * (x[c] - mean[c]);
                slope_sum[c] += dslope;
            }
        }
    }
}

/// `dx = scale·dz - a·x - k`.
struct Gradient<'a, T> {
    dx: &'a mut [T],
    x: &'a [T],
    dy: &'a [T],
    coefficients: &'a Coefficients<T>,
    a: &'a [T],
    k: &'a [T],
}

impl<T: Real> WithSimd for Gradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { dx, x, dy, coefficients: Coefficients { scale, shift, slope }, a, k } = self;
        let channels = scale.len();
        let zero = T::default();
        let (shift, slope, a, k) = (&shift[..channels], &slope[..channels], &a[..channels], &k[..channels]);
        for (dx, (x, dy)) in
            dx.chunks_exact_mut(channels).zip(x.chunks_exact(channels).zip(dy.chunks_exact(channels)))
        {
            for c in 0..channels {
                let z = scale[c] * x[c] + shift[c];
                let dz = if z >= zero { dy[c] } else { dy[c] * slope[c] };
                dx[c] = scale[c] * dz - a[c] * x[c] - k[c];
            }
        }
    }
}
